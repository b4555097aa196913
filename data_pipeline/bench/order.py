"""Speed of the token order: positions in bulk, one step, resuming late, opening a huge index.

python -m data_pipeline.bench.order          (about a minute)
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipeline.bench.common import interleaved, machine, private_mb, table
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.index import ShardIndex, shard_file
from data_pipeline.index_schema import SCHEMA, SPLIT_RULE
from data_pipeline.order import OrderV1

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
        places = iter(range(10**9))
        found = interleaved(
            {
                "bulk": lambda order=order: order.sequences(0, count),  # type: ignore[misc]
                "step": lambda order=order: [  # type: ignore[misc]
                    order.step_sequences(next(places), _BATCH) for _ in range(20)
                ],
            },
            rounds,
        )
        step = found["step"][0] / 20
        rows.append(
            [f"{sequences:,}", f"{count / found['bulk'][0] / 1e6:.1f}", f"{step * 1e3:.3f}"]
        )
    print(table(["sequences N", "M positions/s", f"ms per step of {_BATCH}"], rows), "\n")


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
            {
                "file": shard_file("train", number),
                "tokens": tokens,
                "documents": tokens // 1000,
                "sha256": digest,
                "docs_sha256": digest,
                "sources_sha256": digest,
            }
            for number in range(shards)
        ]
        (root / "index.json").write_bytes(_index(records))
        command = [sys.executable, "-m", "data_pipeline.bench.order", "--open", scratch]
        found = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for _ in range(5)
        ]
    seconds = sorted(one["seconds"] for one in found)[2]
    megabytes = sorted(one["mb"] for one in found)[2]
    rows = [[f"{shards * tokens:,}", shards, f"{seconds * 1e3:.0f}", f"{megabytes:.1f}"]]
    print(table(["tokens", "shards", "ms to open and order one step", "MB more in memory"], rows))


def _index(records: list[dict[str, object]]) -> bytes:
    return canonical_json(
        {
            "schema": SCHEMA,
            "dtype": "uint16",
            "eod": 0,
            "policies": {
                "bos": "none",
                "eod": "append",
                "normalisation": "none",
                "special_tokens_in_text": "ordinary",
            },
            "sources": [
                {
                    "kind": "text_tree",
                    "name": "synthetic",
                    "files": 1,
                    "files_sha256": sha256_hex(b""),
                    "documents": 1,
                    "bytes": 1,
                    "skipped_empty": 0,
                    "skipped_not_utf8": 0,
                }
            ],
            "split": {"rule": SPLIT_RULE, "heldout_permille": 0},
            "splits": {"train": {"shards": records}, "heldout": {"shards": []}},
            "tokenizer": {"sha256": sha256_hex(b""), "conformance_sha256": sha256_hex(b"")},
            "vocab_size": 50_304,
        }
    )


def _open(root: Path) -> None:
    """Open the index and order one step; the shards themselves do not exist."""
    before, start = private_mb(), time.perf_counter()
    index = ShardIndex.load(root)
    order = OrderV1((index.num_tokens() - 1) // 2048, index.digest, 0)
    order.step_sequences(1_000_000, _BATCH)
    print(json.dumps({"seconds": time.perf_counter() - start, "mb": private_mb() - before}))


if __name__ == "__main__":
    sys.exit(main())
