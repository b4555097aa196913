"""Where a 64-token window occurs in what a run consumed: exact counts, by hash and compare.

``window-hash-v1``: each id is mixed by the splitmix64 finaliser, then h_1 = mixed id and
h_2k[i] = h_k[i] · P^k + h_k[i + k] (mod 2^64, P = 0x9E3779B97F4A7C15), doubled up to the window
length. Hashes only find candidates: every hit is confirmed by comparing ids, so a collision cannot
change a count.

An occurrence counts only when the whole window lies inside the S+1 ids of one sequence: a window
that crosses a border between sequences was never seen as one context.

Cost: about 10 million windows per second and core; memory is bounded by the chunk, not the run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

_P = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Ids = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class Sequences(Protocol):
    """Reads sequences of the training stream (``data_pipeline.shards.TokenStream``)."""

    def sequences(self, seq_ids: Ids, seq_len: int) -> Ids:
        """Return ids [n, S+1]."""
        ...


class Order(Protocol):
    """Says which sequence is read at which position (``data_pipeline.order.OrderV1``)."""

    def sequences(self, first: int, count: int) -> Ids:
        """Return the sequences at positions [first, first + count)."""
        ...


@dataclass(frozen=True)
class Consumed:
    """The part of the training stream that a run has read: positions [0, positions)."""

    stream: Sequences
    order: Order
    seq_len: int
    positions: int

    def chunks(self, size: int = 4096) -> Iterator[tuple[int, Ids]]:
        """Yield (first position, ids [n, S+1]) over everything consumed, in reading order."""
        for first in range(0, self.positions, size):
            count = min(size, self.positions - first)
            sequences = self.order.sequences(first, count)
            yield first, self.stream.sequences(sequences, self.seq_len)


def mix(values: npt.NDArray[np.unsignedinteger]) -> Hashes:
    """The splitmix64 finaliser, elementwise: a bijection of 64-bit integers."""
    x = values.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def window_hashes(ids_NT: Ids, length: int = 64) -> Hashes:
    """Hash every window of every row.

    Args:
        ids_NT: ids [n, T].
        length: window length, a power of two, at most T.

    Returns:
        window-hash-v1 values [n, T - length + 1]; entry (r, c) covers ids r, c..c+length-1.

    Raises:
        ValueError: a length that is not a power of two or longer than the rows.
    """
    if length < 1 or length & (length - 1) or length > ids_NT.shape[1]:
        raise ValueError(
            f"expected a power of two of at most {ids_NT.shape[1]} ids, found length {length}"
        )
    hashes = mix(ids_NT.astype(np.uint64) + np.uint64(1))
    size = 1
    while size < length:
        weight = np.uint64(pow(_P, size, 1 << 64))
        hashes = hashes[:, :-size] * weight + hashes[:, size:]
        size *= 2
    return hashes


@dataclass(frozen=True)
class Occurrences:
    """Confirmed occurrences, sorted by window, then by position, then by column.

    Attributes:
        window: index of the window in the list that was asked for, int64 [m].
        position: position in the order (step · B + row), int64 [m].
        column: first id inside the sequence, int64 [m].
    """

    window: Ids
    position: Ids
    column: Ids

    def steps(self, window: int, batch_size: int) -> list[int]:
        """Steps (0-based) that read a window, with repeats, in order."""
        found = self.position[self.window == window] // batch_size
        return [int(step) for step in found]


def find_occurrences(consumed: Consumed, windows_NK: Ids) -> Occurrences:
    """Find every occurrence of every window in what was consumed.

    Args:
        consumed: the sequences read so far.
        windows_NK: the windows [n, K], K a power of two.
    """
    length = windows_NK.shape[1]
    wanted = window_hashes(windows_NK, length)[:, 0]
    by_hash = np.argsort(wanted, kind="stable")
    parts = [
        _match(first, ids, windows_NK, wanted[by_hash], by_hash) for first, ids in consumed.chunks()
    ]
    window, position, column = (
        np.concatenate([part[axis] for part in parts] or [np.zeros(0, np.int64)])
        for axis in range(3)
    )
    order = np.lexsort((column, position, window))
    return Occurrences(window[order], position[order], column[order])


def _match(
    first: int, ids: Ids, windows_NK: Ids, sorted_hashes: Hashes, by_hash: Ids
) -> tuple[Ids, Ids, Ids]:
    length = windows_NK.shape[1]
    hashes = window_hashes(ids, length)
    low = np.searchsorted(sorted_hashes, hashes.ravel(), side="left")
    high = np.searchsorted(sorted_hashes, hashes.ravel(), side="right")
    hits = np.flatnonzero(high > low)
    repeats = (high - low)[hits]  # equal windows may be asked for more than once
    places = np.repeat(hits, repeats)
    ends = np.cumsum(repeats)
    ranks = np.arange(places.size) + np.repeat(low[hits] - (ends - repeats), repeats)
    window = by_hash[ranks]
    row, column = np.divmod(places, hashes.shape[1])
    spans = ids[row[:, None], column[:, None] + np.arange(length)]
    same = (spans == windows_NK[window]).all(axis=1)
    return window[same], first + row[same], column[same]
