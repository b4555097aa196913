"""`tripod bench step`: what exactness costs here, against plain DDP, interleaved.

Both sides have the same model, kernels and batch.

Plain: DistributedDataParallel with `no_sync` on all but a rank's last quantum, `clip_grad_norm_`,
torch's foreach AdamW. Prints both medians and their ratio for one rank and for one rank per core.
Never part of the tests.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from suite.config import RunConfig
from suite.launch import default_ranks
from suite.machine import describe_machine
from suite.numerics import profile_environment


def bench_step(rung: str, rounds: int) -> int:
    """Runs the benchmark at 1 rank and at one rank per core and prints the table."""
    from suite.train import compose, suite_names

    suite = next(s for s in suite_names() if rung.startswith(f"{s}-"))
    config = RunConfig.from_mapping(compose(suite, rung))
    print(f"{rung}, batch {config.data.batch_size} x {config.data.seq_len}, {describe_machine()}")
    print("ranks  exact s/step  plain s/step  exact/plain  tokens/s exact")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.json"
        path.write_bytes(config.to_bytes())
        for ranks in sorted({1, default_ranks()}):
            result = _measure(path, ranks, rounds, config.numerics.profile)
            exact, plain = result["exact"], result["plain"]
            print(
                f"{ranks:>5}  {exact:12.4f}  {plain:12.4f}  {exact / plain:11.3f}  "
                f"{config.batch_tokens / exact:14,.0f}"
            )
    return 0


def _measure(config: Path, ranks: int, rounds: int, profile: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    command += ["-m", "suite.bench", str(config), str(rounds)]
    done = subprocess.run(
        command, env=profile_environment(profile), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the benchmark stopped:\n{done.stderr[-2000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return {key: float(value) for key, value in json.loads(line).items()}


def _plain_step(config: RunConfig, rank: int, world: int) -> Callable[[np.ndarray], None]:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from suite.engine import quanta_of
    from suite.loss import sequence_nll
    from suite.models import build_model

    model = build_model(config.rung.model, config.rung.seeds.init)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    quantum, mine = config.numerics.quantum, quanta_of(rank, world, config.num_quanta)

    def step(batch: np.ndarray) -> None:
        for index in mine:
            last = index == mine[-1]
            waits = not last and isinstance(wrapped, DistributedDataParallel)
            with wrapped.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                ids = torch.from_numpy(batch[index * quantum : (index + 1) * quantum])
                loss = sequence_nll(wrapped, ids, config.numerics.precision).mean() / len(mine)
                loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    """One rank of the benchmark."""
    from suite.comm import Group, join_group
    from suite.engine import ExactEngine
    from suite.numerics import apply_determinism

    config = RunConfig.from_mapping(json.loads(Path(sys.argv[1]).read_text()))
    rounds = int(sys.argv[2])
    apply_determinism()
    group: Group = join_group()
    vocab = int(config.rung.model.hf["vocab_size"])
    shape = (config.data.batch_size, config.data.seq_len + 1)
    batch = np.random.RandomState(0).randint(0, vocab, shape).astype(np.int64)
    engine, plain = ExactEngine(config, group), _plain_step(config, group.rank, group.world)
    seconds: dict[str, list[float]] = {"exact": [], "plain": []}
    for turn in range(rounds + 1):
        for name in ("exact", "plain"):
            group.barrier()
            started = time.perf_counter()
            if name == "exact":
                engine.step(turn + 1, 1e-3, lambda a, b: batch[a:b])
            else:
                plain(batch)
            group.barrier()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    if group.rank == 0:
        print(json.dumps({name: statistics.median(values) for name, values in seconds.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
