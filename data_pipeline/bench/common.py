"""What the benchmarks share: interleaved rounds, tables, the machine line, synthetic datasets."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import sha256_hex
from data_pipeline.index import build_index
from data_pipeline.shard_record import Shard
from data_pipeline.shard_writer import ShardWriter
from data_pipeline.tokenizer import Tokenizer, train_bpe


def machine() -> str:
    """One line: processor, cores this process may use, system, versions, load at this moment."""
    model = platform.processor() or "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0))
    return (
        f"Machine: {model}, {cores} cores, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}, load {os.getloadavg()[0]:.1f}"
    )


def interleaved(
    sides: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, tuple[float, list[float]]]:
    """Call the sides in turn, round after round.

    Returns:
        For each side the median and all of its times in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: (statistics.median(values), values) for name, values in times.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def resident_mb() -> float:
    """Megabytes of this process that are in memory, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def private_mb() -> float:
    """Megabytes of this process that are in memory and belong to it alone: no mapped files."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6


def write_dataset(
    root: Path, tokens: int, shard_tokens: int, seed: int = 0, mean: int = 1_000
) -> None:
    """Write a dataset of random ids below 300 in documents of ``mean`` of them, more or less."""
    draw = np.random.RandomState(seed)
    root.mkdir(parents=True)
    writer = ShardWriter(root, "train", 300, shard_tokens)
    (root / "heldout").mkdir()
    written = 0
    while written < tokens:
        ids: npt.NDArray[Any] = draw.randint(1, 300, size=draw.randint(mean // 5, mean * 9 // 5))
        ids = ids[: max(1, tokens - written - 1)].astype(np.uint16)
        name = f"{written}.txt"
        record = {
            "source": "synthetic",
            "name": name,
            "bytes": 1,
            "sha256": sha256_hex(name.encode()),
        }
        writer.add(ids, record)
        written += len(ids) + 1
    (root / "tokenizer.json").write_bytes(_tokenizer().data)
    (root / "index.json").write_bytes(synthetic_index(writer.close()))


def synthetic_index(shards: Sequence[Shard]) -> bytes:
    """Return the index of a dataset with these shards and a tokenizer of 300 ids."""
    source = {"kind": "text_tree", "name": "synthetic"}
    return build_index(_tokenizer(), 0, {"train": shards, "heldout": ()}, [source])


def _tokenizer() -> Tokenizer:
    return train_bpe([f"synthetic text {k}" for k in range(500)], 300)
