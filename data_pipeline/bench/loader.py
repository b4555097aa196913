"""The loader over a long run: throughput and memory over 100,000 batches.

python -m data_pipeline.bench.loader          (about 2 minutes)
"""

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

from data_pipeline.batches import BatchReader
from data_pipeline.bench.common import machine, private_mb, resident_mb, table, write_dataset
from data_pipeline.loader import Loader


def main() -> int:
    """Print the table; exit status 1 when private memory grew by more than 16 MB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-digests", action="store_true")
    arguments = parser.parse_args()
    print(machine(), "\n")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "data"
        tokens = arguments.sequences * arguments.seq_len + 1
        write_dataset(root, tokens, tokens // 4)
        reader = BatchReader(root, arguments.seq_len, arguments.batch_size, seed=0)
        with Loader(reader, workers=arguments.workers, digests=not arguments.no_digests) as loader:
            rows, sizes = _run(loader, arguments.batches, arguments.batch_size, arguments.seq_len)
    head = ["batches", "Mtok/s", "private MB", "with mapped files MB"]
    print(
        f"B = {arguments.batch_size}, S = {arguments.seq_len}, {arguments.workers} worker(s), "
        f"digests {'left out' if arguments.no_digests else 'included'}\n"
    )
    print(table(head, rows))
    return 1 if max(sizes) - sizes[0] > 16 else 0


def _run(
    loader: Loader, batches: int, batch_size: int, seq_len: int
) -> tuple[list[list[object]], list[float]]:
    rows: list[list[object]] = []
    sizes = []
    every = batches // 10
    start = time.perf_counter()
    for batch in loader.steps(0, batches):
        if (batch.step + 1) % every == 0:
            seconds = time.perf_counter() - start
            gc.collect()
            sizes.append(private_mb())
            speed = every * batch_size * (seq_len + 1) / seconds / 1e6
            rows.append(
                [f"{batch.step + 1:,}", f"{speed:.0f}", f"{sizes[-1]:.1f}", f"{resident_mb():.1f}"]
            )
            start = time.perf_counter()
    return rows, sizes


if __name__ == "__main__":
    sys.exit(main())
