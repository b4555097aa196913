"""Exact search for ids in a stream: every occurrence, shard by shard, without an index.

Guarantees: all occurrences are found, overlapping ones and those that cross any number of shard
borders included, in stream order; memory is bounded by one chunk and the result. A shard is read
once, chunk by chunk, comparing whole ids, so a pattern never matches at half an id, and the worst
case (a shard of one repeated id) costs one vectorised pass per id of the pattern, never a step of
the interpreter per candidate.

The first pass looks for the rarest id of the pattern only. That is two to three times as fast as
``re``, ``bytes.find`` and ``mmap.find`` over the same bytes; the C library's ``memmem`` is faster
still, and not used: it is not on every system, and hits at half an id are its worst case. Measure
with ``python -m data_pipeline.bench.search``.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.protocols import Ids, Stream

CHUNK = 1 << 18
SAMPLE = 1 << 17
_READS = 128
_RUN = 1 << 20
# Above this many ids, one table look-up per id of the stream is faster than comparing with each.
_MOST_COMPARED = 14


def find_ids(stream: Stream, pattern: Sequence[int] | npt.ArrayLike) -> Ids:
    """Return the offset of every occurrence of ``pattern`` in the stream, ascending.

    Raises:
        ValueError: An empty pattern.
    """
    found = list(iter_ids(stream, pattern))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def iter_ids(stream: Stream, pattern: Sequence[int] | npt.ArrayLike) -> Iterator[Ids]:
    """Yield the offsets of ``find_ids`` in ascending runs, none of them empty.

    Raises:
        ValueError: An empty pattern.
    """
    wanted = np.asarray(pattern, dtype=np.int64).reshape(-1)
    if not wanted.size:
        raise ValueError("expected a pattern of at least one id, found none")
    rarest_first = np.argsort(Frequencies(stream).of(wanted), kind="stable")
    before = 0
    for start, ids in stream.pieces():
        if start:
            yield from _across(stream, wanted, rarest_first, start, before)
        for places in _within(ids, wanted, rarest_first):
            yield places + start
        before = start


def _across(
    stream: Stream, wanted: Ids, rarest_first: Ids, border: int, before: int
) -> Iterator[Ids]:
    """Matches that cross ``border`` and no border before it: they start in the piece ``before``."""
    low = max(before, border - len(wanted) + 1)
    high = min(stream.num_tokens, border + len(wanted) - 1)
    for places in _within(stream.read(low, high - low), wanted, rarest_first):
        offsets = places + low
        crossing = offsets[(offsets < border) & (offsets + len(wanted) > border)]
        if crossing.size:
            yield crossing


def _within(ids: npt.NDArray[Any], wanted: Ids, rarest_first: Ids) -> Iterator[Ids]:
    first, *others = rarest_first.tolist()
    for places in sieve(ids, [int(wanted[first])]):
        starts = places - first
        starts = starts[(starts >= 0) & (starts <= len(ids) - len(wanted))]
        for other in others:
            if not starts.size:
                break
            starts = starts[ids[starts + other] == wanted[other]]
        if starts.size:
            yield starts


def sieve(ids: npt.NDArray[Any], wanted: Iterable[int]) -> Iterator[Ids]:
    """Yield, in runs of about a million, the places of ``ids`` that hold one of the wanted ids.

    Args:
        ids: One-dimensional, of any integer type; mapped shards are read as they are.
        wanted: Ids; those that the type cannot hold match nothing.

    Yields:
        Ascending int64 places, never empty.
    """
    limits = np.iinfo(ids.dtype)
    values = sorted({one for one in wanted if limits.min <= one <= limits.max})
    if not values:
        return
    hits = _compare if len(values) <= _MOST_COMPARED else _look_up
    marks = np.empty((2, CHUNK), dtype=bool)
    known = np.array(values, dtype=ids.dtype)
    table = _table(known) if hits is _look_up else known
    run: list[Ids] = []
    size = 0
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        places = np.flatnonzero(hits(chunk, table, marks[:, : len(chunk)]))
        if places.size:
            run.append(places + start)
            size += places.size
        if size >= _RUN:
            yield np.concatenate(run)
            run, size = [], 0
    if run:
        yield np.concatenate(run)


def _compare(
    chunk: npt.NDArray[Any], known: npt.NDArray[Any], marks: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = marks[0]
    one = marks[1]
    np.equal(chunk, known[0], out=found)
    for value in known[1:]:
        np.equal(chunk, value, out=one)
        np.logical_or(found, one, out=found)
    return found


def _table(known: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether an id is known, by id; the last place stands for every larger id."""
    table = np.zeros(int(known[-1]) + 2, dtype=bool)
    table[known.astype(np.int64)] = True
    return table


def _look_up(
    chunk: npt.NDArray[Any], table: npt.NDArray[np.bool_], marks: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = marks[0]
    places = np.minimum(chunk.astype(np.int64), len(table) - 1)
    np.take(table, places, out=found, mode="clip")
    return found


class Frequencies:
    """How often ids occur, judged by a sample of the stream: a guess, for speed only."""

    def __init__(self, stream: Stream) -> None:
        """Read ``SAMPLE`` ids at regular distances (or the whole of a shorter stream)."""
        reads = min(_READS, max(1, stream.num_tokens // (SAMPLE // _READS)))
        size = min(stream.num_tokens, SAMPLE // _READS)
        last = stream.num_tokens - size
        starts = [last * number // max(1, reads - 1) for number in range(reads)]
        sample = np.concatenate([stream.read(start, size) for start in starts])
        ids, counts = np.unique(sample, return_counts=True)
        self._counts = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        self._size = max(1, len(sample))

    def of(self, ids: Iterable[int] | Ids) -> npt.NDArray[np.float64]:
        """Return the share of the stream that each id makes up."""
        return np.array([self._counts.get(int(one), 0) / self._size for one in ids])


def first_of(found: Iterator[Ids], limit: int) -> Ids:
    """Return at most ``limit`` offsets of runs of offsets, reading no further than needed."""
    offsets = islice((offset for run in found for offset in run.tolist()), limit)
    return np.fromiter(offsets, dtype=np.int64)
