"""Speed and recall of search: ``python -m data_pipeline.bench.search --tokens 1000000000``.

The text is the Python standard library of this machine, encoded by a tokenizer trained on it and
repeated until there are enough ids; questions are strings of it, of 30 to 80 characters, cut
anywhere. Ways to look for one id pattern run interleaved over the same mapped file. Prints the
median over questions and rounds per CPU second (one thread, warm), which a busy machine distorts
less than wall time; recall is the share of the strings found at least once. With the extra
``[search]`` also: the time to sort a shard of ``--indexed`` ids, and that of a question answered
from the file and by a pass over the same ids.
"""

import argparse
import ctypes
import mmap
import re
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.protocols import Ids
from data_pipeline.search import Frequencies, find_ids
from data_pipeline.search_index import places_in
from data_pipeline.suffix_file import Suffixes, write_suffixes
from data_pipeline.text_search import Match, TextPattern, Vocabulary
from data_pipeline.tokenizer import EOD, Tokenizer, train_bpe


class MappedStream:
    """Just enough of a stream: one mapped file."""

    def __init__(self, path: Path) -> None:
        """Map a file of uint16 ids."""
        self.path = path
        self._ids = np.memmap(path, "<u2", mode="r").view(np.ndarray)
        self.num_tokens = len(self._ids)

    def read(self, offset: int, count: int) -> Ids:
        """Return ids of the stream."""
        return self._ids[offset : offset + count].astype(np.int64)

    def pieces(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield the one piece."""
        yield 0, self._ids


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="ids to search")
    parser.add_argument("--text-mb", type=float, default=8, help="distinct text, in MB")
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--indexed", type=int, default=20_000_000, help="ids to sort; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=20)
    arguments = parser.parse_args()
    texts = _standard_library(int(arguments.text_mb * 1e6))
    tokenizer = train_bpe(texts[: len(texts) // 4], arguments.vocab)
    ids = np.concatenate([np.append(tokenizer.encode(text), EOD) for text in texts]).astype("<u2")
    questions = _cuts(texts, max(arguments.questions, 300))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ids.bin"
        _repeat(ids, arguments.tokens, path)
        stream, vocabulary = MappedStream(path), Vocabulary.of(tokenizer, EOD)
        _patterns(stream, tokenizer, questions[:5], arguments.rounds)
        _texts(stream, vocabulary, questions[: arguments.questions], arguments.rounds)
        if arguments.indexed:
            _repeat(ids, arguments.indexed, path)
            some = questions[: arguments.questions]
            _by_index(MappedStream(path), vocabulary, some, arguments.rounds)
        _repeat(ids, len(ids), path)
        _recall(MappedStream(path), vocabulary, tokenizer, questions)


def _patterns(stream: Any, tokenizer: Tokenizer, questions: list[str], rounds: int) -> None:
    """Ways to find the inner ids of a question, all over the same bytes."""
    ways = {
        "find_ids (rarest id first)": lambda ids: len(find_ids(stream, ids)),
        "memmem (C library)": lambda ids: _memmem(stream, _bytes(ids)),
        "re over the map": lambda ids: _re(stream.path, _bytes(ids)),
        "bytes.find, 4 MiB at a time": lambda ids: _bytes_find(stream.path, _bytes(ids)),
        "mmap.find": lambda ids: _mmap_find(stream.path, _bytes(ids)),
    }
    inner = [tokenizer.encode(text)[2:-2] for text in questions]
    for name, times in _interleaved(ways, inner, rounds).items():
        print(f"{name:<34} {_rate(stream, times)}")


def _texts(stream: Any, vocabulary: Vocabulary, questions: list[str], rounds: int) -> None:
    """Text search, complete, by the length of the text."""
    kinds = {
        "text, 30-80 characters": questions,
        "text, 8 characters": [text[5:13] for text in questions],
    }
    for name, some in kinds.items():
        patterns = [TextPattern(t.encode(), vocabulary, Frequencies(stream)) for t in some]
        times = _interleaved({name: lambda one: list(one.search(stream))}, patterns, rounds)[name]
        ids = statistics.median(pattern.candidates for pattern in patterns)
        print(f"{name:<34} {_rate(stream, times)}  candidate ids (median) {ids:.0f}")


class OneFile:
    """The search index of a stream of one piece."""

    def __init__(self, suffixes: Suffixes) -> None:
        """Keep the open file."""
        self._suffixes = suffixes

    def places(self, start: int, ids: npt.NDArray[Any], pattern: TextPattern) -> Ids | None:
        """See ``text_search.PivotIndex``."""
        return places_in(self._suffixes, ids, pattern)


def _by_index(stream: Any, vocabulary: Vocabulary, texts: list[str], rounds: int) -> None:
    """The same questions, by the sorted places and by a pass."""
    path = stream.path.with_suffix(".sa")
    begin = time.process_time()
    write_suffixes(path, next(stream.pieces())[1], "0" * 64)
    seconds = time.process_time() - begin
    print(
        f"{'sort a shard':<34} {seconds:.1f} s for {stream.num_tokens / 1e6:.0f} M ids, "
        f"file of {path.stat().st_size / 1e6:.0f} MB"
    )
    index = OneFile(Suffixes(path, "0" * 64, stream.num_tokens))
    patterns = [TextPattern(t.encode(), vocabulary, Frequencies(stream)) for t in texts]
    answers: dict[str, list[list[Match]]] = {"by the index": [], "by a pass": []}
    ways = {
        "by the index": lambda one: answers["by the index"].append(list(one.search(stream, index))),
        "by a pass": lambda one: answers["by a pass"].append(list(one.search(stream))),
    }
    for name, times in _interleaved(ways, patterns, rounds).items():
        middle, high = np.percentile(times, [50, 90]) * 1e3
        print(f"{'text, ' + name:<34} {middle:.2f} ms a question (p90 {high:.2f})")
    print(f"  equal answers: {answers['by the index'] == answers['by a pass']}")


def _recall(stream: Any, vocabulary: Vocabulary, tokenizer: Tokenizer, texts: list[str]) -> None:
    """How many strings of the text are found at all."""

    def trimmed(text: str, trim: int) -> bool:
        ids = tokenizer.encode(text)
        ids = ids[trim : len(ids) - trim]
        return bool(len(ids)) and bool(find_ids(stream, ids).size)

    frequencies = Frequencies(stream)
    print(f"recall over {len(texts)} strings of 30-80 characters, cut anywhere")
    for trim in range(4):
        found = sum(trimmed(text, trim) for text in texts)
        print(f"  ids, {trim} dropped at each edge: {100 * found / len(texts):.1f} %")
    found = sum(
        any(True for _ in TextPattern(text.encode(), vocabulary, frequencies).search(stream))
        for text in texts
    )
    print(f"  text search: {100 * found / len(texts):.1f} %")


def _interleaved(
    ways: dict[str, Callable[[Any], Any]], questions: list[Any], rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for question in questions:
            for name, way in ways.items():
                begin = time.process_time()
                way(question)
                times[name].append(time.process_time() - begin)
    return times


def _rate(stream: Any, times: list[float]) -> str:
    low, middle, high = np.percentile([stream.num_tokens / t / 1e9 for t in times], [10, 50, 90])
    return f"{middle:5.2f} Gtok/s  (p10 {low:.2f}, p90 {high:.2f})"


def _bytes(ids: npt.NDArray[Any]) -> bytes:
    return ids.astype("<u2").tobytes()


def _aligned(found: Iterator[int]) -> int:
    return sum(1 for place in found if place % 2 == 0)


def _memmem(stream: Any, wanted: bytes) -> int:
    function = ctypes.CDLL(None).memmem
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    (_, ids) = next(stream.pieces())
    begin, end = ids.ctypes.data, ids.ctypes.data + ids.nbytes

    def hits() -> Iterator[int]:
        at = function(begin, end - begin, wanted, len(wanted))
        while at:
            yield at - begin
            at = function(at + 1, end - at - 1, wanted, len(wanted))

    return _aligned(hits())


def _re(path: Path, wanted: bytes) -> int:
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as map_:
        return _aligned(hit.start() for hit in re.finditer(re.escape(wanted), map_, re.DOTALL))


def _mmap_find(path: Path, wanted: bytes) -> int:
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as map_:
        return _aligned(_finds(map_.find, wanted))


def _bytes_find(path: Path, wanted: bytes, size: int = 1 << 22) -> int:
    found = 0
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as map_:
        for start in range(0, len(map_), size):
            found += _aligned(_finds(map_[start : start + size + len(wanted) - 1].find, wanted))
    return found


def _finds(find: Callable[[bytes, int], int], wanted: bytes) -> Iterator[int]:
    at = find(wanted, 0)
    while at >= 0:
        yield at
        at = find(wanted, at + 1)


def _standard_library(size: int) -> list[str]:
    texts, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if total >= size:
            break
        if "site-packages" not in path.parts:
            texts.append(path.read_text(encoding="utf-8", errors="ignore"))
            total += len(texts[-1])
    return [text for text in texts if len(text) > 200]


def _cuts(texts: list[str], count: int) -> list[str]:
    random = np.random.RandomState(0)
    cuts: list[str] = []
    while len(cuts) < count:
        text = texts[random.randint(len(texts))]
        size = random.randint(30, 81)
        start = random.randint(len(text) - size)
        cuts.append(text[start : start + size])
    return cuts


def _repeat(ids: npt.NDArray[Any], count: int, path: Path) -> None:
    with path.open("wb") as handle:
        for start in range(0, count, len(ids)):
            handle.write(ids[: count - start].tobytes())


if __name__ == "__main__":
    main()
