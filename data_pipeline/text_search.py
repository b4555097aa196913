"""Find a text in a stream of ids, whatever ids it was cut into.

A string that is part of a longer text usually has other ids there than alone: its first and last
ids reach over the ends of the string, and borders between ids may shift. So this search does not
encode the string. Choose one byte of the string, the *pivot*. Wherever the string stands in the
decoded stream, exactly one id covers that byte, and only few ids of the vocabulary can: those whose
bytes agree with the string around it. One pass finds them all; every hit is then extended to both
sides, id by id, comparing bytes.

Guarantees: complete and exact for every string of at least one byte and for every way to cut it
into ids, by this tokenizer or any other over the same vocabulary. The pivot only decides the speed:
it is the byte that the fewest and rarest ids can cover. A match lies inside one document: the
end-of-document mark, and ids without bytes, match nothing.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.protocols import Ids, Stream
from data_pipeline.search import Frequencies, sieve

# Cost of a pivot: a compare of the whole stream per id, and about 80 ns per hit to extend.
_COST_OF_AN_ID, _COST_OF_HITS = 0.1, 80.0
_PIVOTS = 256


class DecodesBytes(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    def decode_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> bytes:
        """Return the bytes of ids."""
        ...


class Vocabulary:
    """The bytes of every id, and which ids begin, end or hold some bytes."""

    def __init__(self, pieces: Sequence[bytes], marks: Sequence[int] = ()) -> None:
        """Index ``pieces[id]``; ids in ``marks``, and those without bytes, stand for no text."""
        skipped = set(marks)
        self.pieces = [b"" if one in skipped else piece for one, piece in enumerate(pieces)]
        self.longest = max(map(len, self.pieces), default=0)
        self._ids: dict[bytes, list[int]] = defaultdict(list)
        for one, piece in enumerate(self.pieces):
            if piece:
                self._ids[piece].append(one)
        self._forward = sorted(self._ids)
        self._backward = sorted(piece[::-1] for piece in self._ids)

    @classmethod
    def of(cls, tokenizer: DecodesBytes, eod: int | None) -> "Vocabulary":
        """Decode every id of a tokenizer, once; ``eod`` is None where documents have no mark."""
        one = np.zeros(1, dtype=np.int64)
        pieces = []
        for one[0] in range(tokenizer.vocab_size):
            pieces.append(tokenizer.decode_bytes(one))
        return cls(pieces, () if eod is None else (eod,))

    def spelled(self, piece: bytes) -> list[int]:
        """Return the ids whose bytes are ``piece``."""
        return self._ids.get(piece, [])

    def longer(self, start: bytes) -> list[int]:
        """Return the ids that begin with ``start`` and go on."""
        return [i for piece in _prefixed(self._forward, start) for i in self._ids[piece]]

    def longer_before(self, end: bytes) -> list[int]:
        """Return the ids that end with ``end`` and begin before it."""
        found = _prefixed(self._backward, end[::-1])
        return [i for piece in found for i in self._ids[piece[::-1]]]

    def around(self, middle: bytes) -> list[tuple[int, int]]:
        """Return (id, bytes before) of every place of ``middle`` strictly inside an id."""
        places = []
        for piece, ids in self._ids.items():
            at = piece.find(middle, 1)
            while 0 < at < len(piece) - len(middle):
                places += [(one, at) for one in ids]
                at = piece.find(middle, at + 1)
        return places


def _prefixed(pieces: list[bytes], start: bytes) -> Iterator[bytes]:
    """The entries of a sorted list that begin with ``start`` and are longer."""
    for at in range(bisect_left(pieces, start + b"\0"), len(pieces)):
        if not pieces[at].startswith(start):
            return
        yield pieces[at]


@dataclass(frozen=True)
class Match:
    """A place of the text: ids [start, end) of the stream hold it.

    ``skip`` bytes of the first id come before the text.
    """

    start: int
    end: int
    skip: int


class PivotIndex(Protocol):
    """Knows, without a pass over a shard, where the pivot of a text may stand in it."""

    def places(self, start: int, ids: npt.NDArray[Any], pattern: "TextPattern") -> Ids | None:
        """Narrow the places of the candidates in one piece of the stream.

        Args:
            start: Offset of the piece.
            ids: Its ids.
            pattern: The text.

        Returns:
            Ascending places of candidates, the pivot of every match among them, and every one as
            near to an end of the piece as the text has bytes; None where a pass is cheaper.
        """
        ...


class TextPattern:
    """One string prepared for one vocabulary."""

    def __init__(self, text: bytes, vocabulary: Vocabulary, frequencies: Frequencies) -> None:
        """Choose the pivot.

        Raises:
            ValueError: An empty text.
        """
        if not text:
            raise ValueError("expected a text of at least one byte, found an empty one")
        self.text, self._vocabulary = text, vocabulary
        self.pivot, placements = self._choose(frequencies)
        self.starts: dict[int, list[int]] = defaultdict(list)
        for one, start in placements:
            self.starts[one].append(start)
        self._before = lru_cache(maxsize=None)(self._make_before)
        self.after = lru_cache(maxsize=None)(self._make_after)

    @property
    def candidates(self) -> int:
        """How many ids of the vocabulary can cover the pivot."""
        return len(self.starts)

    def left_after(self, one: int) -> list[int]:
        """Return the bytes of the text after a candidate, for each of its places in the text."""
        size = len(self._vocabulary.pieces[one])
        return [len(self.text) - start - size for start in self.starts[one]]

    def _choose(self, frequencies: Frequencies) -> tuple[int, list[tuple[int, int]]]:
        limit = min(len(self.text), _PIVOTS)
        placements = list(set(self._placements(limit)))
        lengths = np.array([len(self._vocabulary.pieces[one]) for one, _ in placements], np.int64)
        starts = np.array([start for _, start in placements], dtype=np.int64)
        costs = _COST_OF_AN_ID + _COST_OF_HITS * frequencies.of(one for one, _ in placements)
        steps = np.zeros(limit + 1)
        np.add.at(steps, np.clip(starts, 0, limit), costs)
        np.add.at(steps, np.clip(starts + lengths, 0, limit), -costs)
        pivot = int(np.argmin(np.cumsum(steps)[:limit]))
        covers = (starts <= pivot) & (pivot < starts + lengths)
        return pivot, [placements[at] for at in np.flatnonzero(covers)]

    def _placements(self, limit: int) -> Iterator[tuple[int, int]]:
        """Every (id, start) that agrees with the text and covers one of its first bytes."""
        text, known, size = self.text, self._vocabulary, len(self.text)
        for start in range(limit):
            for end in range(start + 1, min(size, start + known.longest) + 1):
                yield from ((one, start) for one in known.spelled(text[start:end]))
            if size - start < known.longest:
                yield from ((one, start) for one in known.longer(text[start:]))
        for end in range(1, min(size, known.longest - 1) + 1):
            for one in known.longer_before(text[:end]):
                yield one, end - len(known.pieces[one])
        if size < known.longest - 1:
            yield from ((one, -before) for one, before in known.around(text))

    def _make_before(self, left: int) -> npt.NDArray[np.int64]:
        """Ids that may end where the first ``left`` bytes do: [n, 2] (id, bytes), sorted."""
        text, known = self.text, self._vocabulary
        sizes = range(1, min(left, known.longest) + 1)
        ids = [one for size in sizes for one in known.spelled(text[left - size : left])]
        if left < known.longest:
            ids += known.longer_before(text[:left])
        return self._with_sizes(ids)

    def _make_after(self, left: int) -> npt.NDArray[np.int64]:
        """Ids that may come next where ``left`` bytes are still to read: [n, 2] (id, bytes)."""
        text, known, at = self.text, self._vocabulary, len(self.text) - left
        ends = range(at + 1, min(len(text), at + known.longest) + 1)
        ids = [one for end in ends for one in known.spelled(text[at:end])]
        if left < known.longest:
            ids += known.longer(text[at:])
        return self._with_sizes(ids)

    def _with_sizes(self, ids: list[int]) -> npt.NDArray[np.int64]:
        pairs = sorted((one, len(self._vocabulary.pieces[one])) for one in ids)
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def find(self, ids: npt.NDArray[Any]) -> list[Match]:
        """Return every place of the text in an array of ids, in order of its pivot."""
        return [m for places in sieve(ids, self.starts) for m in self._extend(ids, places)]

    def search(self, stream: Stream, index: "PivotIndex | None" = None) -> Iterator[Match]:
        """Yield every place of the text in a stream, in order; ``index`` changes the speed only."""
        reach = len(self.text)
        for start, ids in stream.pieces():
            for places in self._pivots(start, ids, index):
                inside = (places >= reach) & (places < len(ids) - reach)
                found = self._extend(ids, places[inside], start)
                near = places[~inside] + start
                for side in (near[near < start + reach], near[near >= start + reach]):
                    found += self._near(stream, side)
                yield from sorted(found, key=lambda match: (match.start, match.skip))

    def _pivots(
        self, start: int, ids: npt.NDArray[Any], index: "PivotIndex | None"
    ) -> Iterator[Ids]:
        places = None if index is None else index.places(start, ids, self)
        return sieve(ids, self.starts) if places is None else iter([places])

    def _near(self, stream: Stream, places: Ids) -> list[Match]:
        """Matches whose pivot lies so close to a shard border that they may cross it."""
        if not places.size:
            return []
        low = max(0, int(places[0]) - len(self.text))
        high = min(stream.num_tokens, int(places[-1]) + len(self.text) + 1)
        return self._extend(stream.read(low, high - low), places - low, low)

    def _extend(self, ids: npt.NDArray[Any], places: Ids, base: int = 0) -> list[Match]:
        """Keep the places whose neighbours spell the rest of the text."""
        found = [np.zeros((0, 3), dtype=np.int64)]
        here = ids[places]
        for one in _distinct(here):
            hits = places[here == one]
            for start in self.starts[one]:
                size = len(self._vocabulary.pieces[one])
                found.append(self._extend_one(ids, hits, start, start + size))
        rows = np.concatenate(found) + np.array([base, base, 0])
        order = np.lexsort((rows[:, 2], rows[:, 0]))
        return [Match(*row) for row in rows[order].tolist()]

    def _extend_one(self, ids: npt.NDArray[Any], hits: Ids, start: int, end: int) -> Ids:
        """Extend hits whose id covers bytes [start, end) of the text; [n, 3]: start, end, skip."""
        first, skip = hits, np.full(len(hits), -start)
        if start > 0:
            first, left, kept = _walk(ids, hits, start, -1, self._before)
            hits, skip = hits[kept], -left
        last, rest = hits, len(self.text) - end
        if rest > 0:
            last, _, kept = _walk(ids, hits, rest, 1, self.after)
            first, skip = first[kept], skip[kept]
        return np.stack([first, last + 1, skip], axis=1)


def _walk(
    ids: npt.NDArray[Any], places: Ids, size: int, direction: int, allowed: Any
) -> tuple[Ids, Ids, Ids]:
    """Read ``size`` bytes of the text from each place on, to one side.

    Args:
        ids: Where to read.
        places: Where reading starts; the ids there are read already.
        size: Bytes of the text to read.
        direction: -1 or 1.
        allowed: From the bytes left to the ids that may come next, with their sizes.

    Returns:
        Last place, bytes left (zero, or negative where the last id holds more than the text), and
        number of the start; of those that read to the end.
    """
    left, origin = np.full(len(places), size), np.arange(len(places))
    done: list[tuple[Ids, Ids, Ids]] = [(places[:0], left[:0], origin[:0])]
    while places.size:
        places = places + direction
        inside = (places >= 0) & (places < len(ids))
        places, left, origin = places[inside], left[inside], origin[inside]
        left, ok = _advance(ids[places], left, allowed)
        ended = ok & (left <= 0)
        done.append((places[ended], left[ended], origin[ended]))
        going = ok & (left > 0)
        places, left, origin = places[going], left[going], origin[going]
    joined = [np.concatenate(column) for column in zip(*done, strict=True)]
    order = np.argsort(joined[2], kind="stable")
    return joined[0][order], joined[1][order], joined[2][order]


def _advance(here: npt.NDArray[Any], left: Ids, allowed: Any) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Say which ids may stand here, and how many bytes are then left to read."""
    after, ok = left.copy(), np.zeros(len(here), dtype=bool)
    for size in _distinct(left):
        pairs = allowed(size)
        group = np.flatnonzero(left == size)
        if not len(pairs):
            continue
        at = np.minimum(np.searchsorted(pairs[:, 0], here[group]), len(pairs) - 1)
        match = pairs[at, 0] == here[group]
        ok[group] = match
        after[group] = np.where(match, size - pairs[at, 1], size)
    return after, ok


def _distinct(values: npt.NDArray[Any]) -> list[int]:
    """The values that occur; most often there is one only, which needs no sorting."""
    if values.size and bool((values == values[0]).all()):
        return [int(values[0])]
    return [int(value) for value in np.unique(values)]
