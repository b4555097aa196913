"""Run directories as a trainer writes them, without training."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.batches import BatchReader
from data_pipeline.canonical import canonical_json
from data_pipeline.digests import chain_over, leaf, sequence_digests, split_leaves

S, B = 48, 8


def make_run(
    path: Path,
    dataset: Path,
    steps: int = 12,
    seed: int = 0,
    overlay: Path | None = None,
    every: int = 4,
    fed: Any = None,
    batch_size: int = B,
    order: str = "order-v1",
    seq_len: int = S,
) -> BatchReader:
    """Write a run below the directory that holds ``dataset``.

    ``fed(step, ids)`` returns what the run read instead of what its index promises.
    """
    reader = BatchReader(dataset, seq_len, batch_size, seed, order, overlay)
    record = {
        "index_digest": reader.stream.index.digest,
        "order": order,
        "seed": seed,
        "seq_len": seq_len,
        "batch_size": batch_size,
        "overlay": None if overlay is None else overlay.stem,
    }
    path.mkdir(parents=True)
    data = {"dir": str(dataset), "build": {}, **record}
    (path / "config.json").write_text(json.dumps({"data": data}))
    feed = fed or (lambda step, ids: ids)
    leaves = [leaf(step, sequence_digests(feed(step, reader.ids(step)))) for step in range(steps)]
    write_log(path, reader.chain_start(), b"".join(leaves), every)
    return reader


def write_log(path: Path, start: bytes, log: bytes, every: int = 4) -> None:
    leaves = split_leaves(log)
    (path / "order.log").write_bytes(log)
    lines = [
        canonical_json({"step": n, "order": {"chain": chain_over(start, leaves[:n]).hex()}})
        for n in range(0, len(leaves) + 1, every)
    ]
    (path / "manifest.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
