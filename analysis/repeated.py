"""Chooses windows that a run reads more than once, stratified by how often.

``repeated-v1``: candidates are all windows of what was consumed, without an end-of-document mark,
grouped by content; strata are the powers of two of their number of occurrences, from 2. Within a
stratum candidates come in the order of their mixed hash, and are taken while they keep clear of
those taken before: first at a distance of 32 ids at every occurrence (continuations share no id),
then, in strata that are not full, at a distance of 8. No randomness and no model is involved.

Memory: about 1 KiB per position scanned, for sequences of 128 tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.score import PREFIX, WINDOW
from analysis.windows import Consumed, Hashes, Ids, mix, window_hashes

DISTANCES = (WINDOW - PREFIX, 8)
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Groups:
    """Windows grouped by hash: group g has places ``by_hash[first[g] : first[g] + counts[g]]``.

    Attributes:
        usable: [positions, columns], whether a window holds no end-of-document mark.
        by_hash: flat places, sorted by hash, then by place.
        values, first, counts: per group its hash, its first entry in ``by_hash`` and its size.
    """

    usable: Flags
    by_hash: Ids
    values: Hashes
    first: Ids
    counts: Ids

    def places(self, group: int) -> tuple[Ids, Ids]:
        """Positions and columns of a group's windows, in reading order."""
        start = self.first[group]
        flat = self.by_hash[start : start + self.counts[group]]
        rows, columns = np.divmod(flat, self.usable.shape[1])
        return rows, columns

    def stratum(self, low: int) -> Iterator[int]:
        """The groups with low..2·low-1 occurrences, in the order of their mixed hash."""
        groups = np.flatnonzero((self.counts >= low) & (self.counts < 2 * low))
        for group in groups[np.argsort(mix(self.values[groups]), kind="stable")]:
            yield int(group)


def group_windows(scan: Consumed, eod: int) -> Groups:
    """Group all windows of what was consumed by their hash."""
    hashes, usable = [], []
    for _, ids in scan.chunks():
        hashes.append(window_hashes(ids, WINDOW))
        marks = np.cumsum(np.pad(ids == eod, ((0, 0), (1, 0))), axis=1)
        usable.append(marks[:, WINDOW:] == marks[:, :-WINDOW])
    flat = np.concatenate(hashes).ravel()
    by_hash = np.argsort(flat, kind="stable")
    values, first, counts = np.unique(flat[by_hash], return_index=True, return_counts=True)
    return Groups(np.concatenate(usable), by_hash, values, first, counts)


def repeated_places(scan: Consumed, per_stratum: int, eod: int) -> list[tuple[int, int, int]]:
    """Choose repeated windows.

    Args:
        scan: what was consumed.
        per_stratum: at most so many windows per stratum.
        eod: the end-of-document id.

    Returns:
        (stratum, position, column) of one occurrence each; a stratum is named by its lower bound.
    """
    groups = group_windows(scan, eod)
    strata = [1 << k for k in range(1, int(groups.counts.max(initial=1)).bit_length())]
    taken = {distance: np.zeros(groups.usable.shape, dtype=np.bool_) for distance in DISTANCES}
    chosen: dict[int, list[tuple[int, int, int]]] = {low: [] for low in strata}
    for distance in DISTANCES:
        for low in strata:
            for group in groups.stratum(low):
                if len(chosen[low]) == per_stratum:
                    break
                rows, columns = groups.places(group)
                if groups.usable[rows[0], columns[0]] and not taken[distance][rows, columns].any():
                    _take(taken, rows, columns)
                    chosen[low].append((low, int(rows[0]), int(columns[0])))
    return [place for low in strata for place in chosen[low]]


def _take(taken: dict[int, Flags], rows: Ids, columns: Ids) -> None:
    """Mark, for every distance, the windows that start closer than it to one of these."""
    for distance, flags in taken.items():
        for shift in range(1 - distance, distance):
            shifted = columns + shift
            inside = (shifted >= 0) & (shifted < flags.shape[1])
            flags[rows[inside], shifted[inside]] = True
