"""Time and memory of ``data describe``: ``python -m data_pipeline.bench.describe``.

For each size (millions of ids, synthetic documents of about ``--mean`` ids, shards of half a
million) a process of its own opens the dataset, notes its memory and describes it. Prints seconds
and the growth of the peak of the memory that is the process's own (mapped files left out); in the
last column that growth beyond the row before, for each document more.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from data_pipeline.bench.common import machine, private_mb, table, write_dataset
from data_pipeline.describe import describe
from data_pipeline.shards import TokenStream


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[2, 20])
    parser.add_argument("--mean", type=int, default=100, help="ids of a document")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_measure(arguments.one)))
        return
    print(machine(), "\n")
    rows: list[list[object]] = []
    last = (0.0, 0.0)
    for millions in arguments.millions:
        tokens = int(millions * 1e6)
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "data"
            write_dataset(root, tokens, 500_000, mean=arguments.mean)
            command = [sys.executable, "-m", "data_pipeline.bench.describe", "--one", str(root)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        documents, seconds, grown = found["documents"], found["seconds"], found["grown_mb"]
        more = f"{(grown - last[1]) * 1e6 / (documents - last[0]):.0f}" if rows else ""
        last = (documents, grown)
        speed = tokens / seconds / 1e6
        rows.append([tokens, documents, f"{seconds:.2f}", f"{speed:.1f}", f"{grown:.0f}", more])
    head = ["ids", "documents", "seconds", "Mtok/s", "memory, MB", "bytes a document more"]
    print(table(head, rows))


def _measure(root: Path) -> dict[str, float]:
    stream = TokenStream(root)
    before, peak, done = private_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], private_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    found = describe({"train": stream}, [256], None, [])
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    peak[0] = max(peak[0], private_mb())
    assert len(found.tables["tokens"])
    return {
        "documents": stream.num_documents,
        "seconds": seconds,
        "grown_mb": peak[0] - before,
    }


if __name__ == "__main__":
    main()
