"""Speed of the token order: positions in bulk, one step, resuming late, opening a huge index.

python -m data_pipeline.bench.order          (about a minute)
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.bench.common import interleaved, machine, private_mb, synthetic_index, table
from data_pipeline.canonical import sha256_hex
from data_pipeline.index import ShardIndex
from data_pipeline.order import OrderV1
from data_pipeline.shard_record import Shard, shard_file

_BATCH = 1024
_PYTHIA = 146_400_000  # sequences of the Pile in one epoch of Pythia


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shards", type=int, default=2000, help="shards of the 10^12-token index")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.open is not None:
        _open(arguments.open)
        return 0
    print(machine(), "\n")
    _bulk(arguments.rounds)
    _resume(arguments.rounds)
    _huge(arguments.shards)
    return 0


def _bulk(rounds: int) -> None:
    count = 1 << 20
    rows = []
    for sequences in (_PYTHIA, 488_281_250, (1 << 30) + 1):
        order = OrderV1(sequences, "00" * 32, 0)
        sides: dict[str, Callable[[], object]] = {
            "bulk": partial(order.sequences, 0, count),
            "steps": partial(_next_steps, order, itertools.count()),
        }
        found = interleaved(sides, rounds)
        speed, step = count / found["bulk"][0] / 1e6, found["steps"][0] / 20
        rows.append([f"{sequences:,}", f"{speed:.1f}", f"{step * 1e3:.3f}"])
    print(table(["sequences N", "M positions/s", f"ms per step of {_BATCH}"], rows), "\n")


def _next_steps(order: OrderV1, steps: Iterator[int]) -> None:
    """Twenty steps that were not asked for before."""
    for step in itertools.islice(steps, 20):
        order.step_sequences(step, _BATCH)


def _resume(rounds: int) -> None:
    """The order at a step, from nothing: what a restarted run pays before its first batch."""

    def ours(step: int) -> None:
        OrderV1(_PYTHIA, "00" * 32, 0).step_sequences(step, _BATCH)

    found = interleaved(
        {
            "order-v1, step 0": lambda: ours(0),
            "order-v1, step 100,000": lambda: ours(100_000),
            "order-v1, step 1,000,000 (epoch 6)": lambda: ours(1_000_000),
            "NeoX batch sampler, step 100": lambda: _neox_walk(100),
            "NeoX batch sampler, step 10,000": lambda: _neox_walk(10_000),
        },
        rounds=max(3, rounds // 5),
    )
    rows = [[name, f"{median * 1e3:.2f}"] for name, (median, _) in found.items()]
    walk = found["NeoX batch sampler, step 10,000"][0]
    rows.append(["NeoX, step 1,000,000, extrapolated", f"{walk * 1e5:.0f}"])
    start = time.perf_counter()
    np.random.RandomState(1234).shuffle(np.arange(_PYTHIA // 10, dtype=np.uint32))
    shuffle = time.perf_counter() - start
    rows.append(
        ["NeoX, sample shuffle of a tenth of the Pile, before that", f"{shuffle * 1e3:.0f}"]
    )
    print(table(["from nothing to the sequences of a step", "ms"], rows), "\n")


def _neox_walk(step: int) -> list[int]:
    """GPT-NeoX's ``DistributedBatchSampler``: positions are counted through one by one."""
    start, batch = step * _BATCH, []
    for position in range(start + _BATCH):
        if position >= start:
            batch.append(position)
    return batch


def _huge(shards: int) -> None:
    tokens = 10**12 // shards
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        digest = sha256_hex(b"")
        records = [
            Shard(shard_file("train", number), tokens, tokens // 1000, digest, digest, digest)
            for number in range(shards)
        ]
        (root / "index.json").write_bytes(synthetic_index(records))
        command = [sys.executable, "-m", "data_pipeline.bench.order", "--open", scratch]
        found = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for _ in range(5)
        ]
    seconds = sorted(one["seconds"] for one in found)[2]
    megabytes = sorted(one["mb"] for one in found)[2]
    rows = [[f"{shards * tokens:,}", shards, f"{seconds * 1e3:.0f}", f"{megabytes:.1f}"]]
    print(table(["tokens", "shards", "ms to open and order one step", "MB more in memory"], rows))


def _open(root: Path) -> None:
    """Open the index and order one step; the shards themselves do not exist."""
    before, start = private_mb(), time.perf_counter()
    index = ShardIndex.load(root)
    order = OrderV1((index.num_tokens() - 1) // 2048, index.digest, 0)
    order.step_sequences(1_000_000, _BATCH)
    print(json.dumps({"seconds": time.perf_counter() - start, "mb": private_mb() - before}))


if __name__ == "__main__":
    sys.exit(main())
