"""Measure a build: one jsonl.zst corpus, with 1 and 2 workers and through a SIGKILL.

    python -m data_pipeline.bench.build_large --size 1000 --dir /tmp/build

Writes a corpus that depends on ``--size`` only, builds it three times and prints the index digest,
the throughput and the peak memory of each build. Ends with status 1 when the digests differ.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

_WORDS = 20_000
_MEGABYTE = 1_000_000


def documents(size: int) -> Iterator[bytes]:
    """Yield lines of JSON with ``size`` bytes of text in all: Zipf-like words from a hash.

    One document in 50 repeats an earlier one, exactly or with a changed end.
    """
    vocabulary = [_word(number) for number in range(_WORDS)]
    kept: list[str] = []
    done, number = 0, 0
    while done < size:
        text = _text(number, vocabulary)
        if number % 50 == 49:
            text = kept[number // 50 % len(kept)] + ("" if number % 100 == 99 else " and more")
        elif number % 37 == 0 and len(kept) < 1_000:
            kept.append(text)
        done += len(text.encode())
        yield json.dumps({"id": f"doc-{number}", "text": text}, ensure_ascii=False).encode() + b"\n"
        number += 1


def _word(number: int) -> str:
    digest = hashlib.sha256(b"word" + str(number).encode()).digest()
    letters = "etaoinshrdlucmfwypvbgkjqxzéüßжд数据"
    length = 2 + digest[0] % (4 + number.bit_length() // 2)
    return "".join(letters[byte % (26 + (digest[1] < 20) * 7)] for byte in digest[2 : 2 + length])


def _text(number: int, vocabulary: list[str]) -> str:
    random_bytes = hashlib.shake_128(b"text" + str(number).encode())
    count = 50 + int.from_bytes(random_bytes.digest(2), "little") % 1_200
    drawn = random_bytes.digest(4 * count)
    words = []
    for place in range(0, 4 * count, 4):
        value = int.from_bytes(drawn[place : place + 4], "little")
        rank = (value >> 16) % (1 << (1 + value % 15))  # a word's chance falls with its rank
        words.append(vocabulary[rank % _WORDS] + (".\n" if value % 97 == 0 else ""))
    return " ".join(words)


def write_corpus(path: Path, size: int) -> int:
    """Write the corpus as one zstandard file and return its bytes of JSON."""
    total = 0
    with path.open("wb") as raw, zstandard.ZstdCompressor(3).stream_writer(raw) as out:
        for line in documents(size):
            total += out.write(line)
    return total


def recipe(corpus: Path, size: int, steps: bool) -> dict[str, Any]:
    """The recipe of the benchmark; ``steps`` adds exact and near-deduplication."""
    made: dict[str, Any] = {
        "name": "bench",
        "sources": [{"kind": "jsonl", "root": str(corpus), "name": "web", "id_field": "id"}],
        "tokenizer": {"vocab_size": 8_192, "train_bytes": min(size // 4, 16 * _MEGABYTE)},
        "heldout_permille": 10,
        "shard_tokens": max(size // 80, 100_000),
    }
    return made | ({"dedup": {"exact": True, "near": {}}} if steps else {})


_CHILD = """
import json, sys
from pathlib import Path
from data_pipeline.build import build_dataset
if __name__ == "__main__":
    print(build_dataset(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), print))
"""


class Run:
    """One build in a process of its own; ``peak`` is the most memory all its processes held."""

    def __init__(self, spec: dict[str, Any], out: Path, workers: int) -> None:
        """Start it."""
        command = [sys.executable, "-c", _CHILD, json.dumps(spec), str(out), str(workers)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._start = time.monotonic()
        self.peak = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def watch(self, kill_after: float | None = None) -> bool:
        """Follow it to its end, or kill it; return whether it was killed."""
        while self._process.poll() is None:
            self.peak = max(self.peak, _memory_of_tree(self._process.pid))
            if kill_after is not None and self.seconds > kill_after:
                os.kill(self._process.pid, signal.SIGKILL)
                self._process.wait()
                return True
            time.sleep(0.05)
        return False

    def digest(self) -> str:
        """The index digest it printed.

        Raises:
            RuntimeError: It failed.
        """
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the build ended with {self._process.returncode}:\n{output}")
        return output.split()[-1]


def _memory_of_tree(root: int) -> int:
    """Resident bytes of a process and its descendants (pages that they share count each time)."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    page = os.sysconf("SC_PAGE_SIZE")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            resident[int(path.name)] = int((path / "statm").read_text().split()[1]) * page
        except OSError:
            continue  # it ended while we looked
        children.setdefault(int(fields[1]), []).append(int(path.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += resident.get(process, 0)
        waiting += children.get(process, [])
    return total


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=20, help="megabytes of text (default: 20)")
    parser.add_argument("--dir", type=Path, required=True, help="an empty directory to work in")
    parser.add_argument("--steps", action="store_true", help="with deduplication")
    arguments = parser.parse_args()
    size, root = arguments.size * _MEGABYTE, arguments.dir
    corpus = root / "corpus"
    corpus.mkdir(parents=True)
    json_bytes = write_corpus(corpus / "part-000.jsonl.zst", size)
    packed = (corpus / "part-000.jsonl.zst").stat().st_size
    print(f"corpus: {json_bytes / 1e6:.0f} MB of JSON, {packed / 1e6:.0f} MB packed", flush=True)
    spec = recipe(corpus, size, arguments.steps)
    digests, seconds = set(), 0.0
    for workers in (1, 2):
        run = Run(spec, root / "out", workers)
        run.watch()
        digests.add(run.digest())
        seconds = run.seconds
        print(f"{workers} workers: {_line(run, size)}, {max(digests)}", flush=True)
        shutil.rmtree(root / "out")
    run = Run(spec, root / "out", 2)
    killed = run.watch(kill_after=0.7 * seconds)
    again = Run(spec, root / "out", 2)
    again.watch()
    digests.add(again.digest())
    when = f"killed after {0.7 * seconds:.0f} s" if killed else "ended before it was killed"
    print(f"{when}, went on: {_line(again, size)}, {max(digests)}")
    print("digests agree" if len(digests) == 1 else f"DIGESTS DIFFER: {sorted(digests)}")
    return 0 if len(digests) == 1 else 1


def _line(run: Run, size: int) -> str:
    rate = size / 1e6 / run.seconds
    return f"{run.seconds:.1f} s, {rate:.1f} MB/s, peak {run.peak / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
