"""Shuffled sequence fetch: ours against what others use, each in its own environment.

One process a side, asked in turn over pipes, round after round, on the same tokens; every side
opens its data anew for each run, and its first batch is not timed. Files are in
memory ("hot") or dropped from it before the run ("cold", POSIX_FADV_DONTNEED; the table says how
much was left).

    sh data_pipeline/bench/peers.sh DIR
    python -m data_pipeline.bench.fetch --venvs DIR      (about 3 minutes, the first time 1 more)
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.bench.common import machine, table, write_dataset
from data_pipeline.bench.fetch_side import SIDES
from data_pipeline.shards import TokenStream

_ENVIRONMENT = {
    "torchdata StatefulDataLoader": "torchdata",
    "HF datasets (Arrow)": "datasets",
    "litdata StreamingDataLoader": "litdata",
    "mosaicml-streaming": "mosaicml",
}


def main() -> int:
    """Print one table for each batch size and state of the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, help="directory made by peers.sh; ours only without")
    parser.add_argument("--sequences", type=int, default=20_000)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=400, help="batches of a run")
    parser.add_argument("--dir", type=Path, help="where to write the data; on the disk to measure")
    arguments = parser.parse_args()
    print(machine(), "\n")
    with tempfile.TemporaryDirectory(dir=arguments.dir) as scratch, contextlib.ExitStack() as stack:
        root = Path(scratch)
        _write(root, arguments.sequences, arguments.seq_len)
        sides = {}
        for name in SIDES:
            side = _start(name, root, arguments.seq_len, arguments.venvs)
            if side is not None:
                stack.callback(side.close)
                if side.ask("prepare") is not None:
                    sides[name] = side
        for batch in arguments.batch:
            for cold in (False, True):
                _compare(sides, batch, cold, arguments)
    return 0


class _Process:
    """A side, asked in lines of JSON."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def ask(self, request: object) -> dict[str, Any] | None:
        """Return the answer, or None (said once) when the side has failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._log.seek(0)
        reason = (self._log.read().strip().splitlines() or ["no message"])[-1]
        print(f"{self.name}: left out: {reason}\n")
        return None

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _start(name: str, root: Path, seq_len: int, venvs: Path | None) -> _Process | None:
    script = str(Path(__file__).with_name("fetch_side.py"))
    python = sys.executable
    # One thread for every library; none may reach for the network.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if name in _ENVIRONMENT:
        if venvs is None or not (venvs / _ENVIRONMENT[name] / ".installed").exists():
            print(f"{name}: left out: not installed (peers.sh)\n")
            return None
        python = str(venvs.absolute() / _ENVIRONMENT[name] / "bin" / "python")
    else:
        path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    # -P: the names of files beside the script must not stand in for modules.
    return _Process(name, [python, "-P", script, name, str(root), str(seq_len)], environment)


def _write(root: Path, sequences: int, seq_len: int) -> None:
    """Write the dataset, the same tokens as one file, and the document sizes."""
    tokens = sequences * seq_len + 1
    write_dataset(root / "dataset", tokens, tokens // 4)
    stream = TokenStream(root / "dataset")
    with (root / "tokens.bin").open("wb") as handle:
        for _, ids in stream.pieces():
            handle.write(ids[: tokens - handle.tell() // 2].tobytes())
    sizes = [document.end - document.start for document in stream.documents()]
    np.save(root / "sizes.npy", np.array(sizes, dtype=np.int32))
    del stream, ids
    gc.collect()  # pages that a process has mapped cannot be dropped from memory


def _compare(
    sides: dict[str, _Process], batch: int, cold: bool, arguments: argparse.Namespace
) -> None:
    most = min(arguments.most, arguments.sequences // batch - 1)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    left = dict.fromkeys(sides, 0.0)
    for seed in range(arguments.rounds):
        for name, side in list(sides.items()):
            answer = side.ask({"batch": batch, "most": most, "cold": cold, "seed": seed})
            if answer is None:
                sides.pop(name)
                continue
            times[name] += answer["times"]
            left[name] = max(left[name], answer["resident"])
            speeds[name].append(answer["tokens"] / sum(answer["times"]) / 1e6)
    ours = statistics.median(speeds["ours, digests"])
    rows = []
    for name in sides:
        median = statistics.median(speeds[name])
        p50, p99 = np.quantile(times[name], [0.5, 0.99]) * 1e3
        row = [name, f"{median:.1f}", f"{ours / median:.2f}", f"{p50:.2f}", f"{p99:.2f}"]
        rows.append([*row, f"{left[name]:.0%}"])
    print(f"B = {batch}, {'cold' if cold else 'hot'}, {most} batches a run\n")
    head = ["", "Mtok/s", "ours with digests is ×", "p50 ms", "p99 ms", "in memory at first"]
    print(table(head, rows), "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
