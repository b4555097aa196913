"""Near-duplicates by MinHash: signatures by a library, groups by bands, one document kept of each.

A document's signature is rensa's R-MinHash over the hashes of its runs of words (``words.py``).
Documents whose signatures agree in all values of a band form a bucket. In a bucket, in document
order, a document is joined with every leader whose signature agrees with its own in at least
threshold · permutations places; one that agrees with no leader becomes one. Joined documents form
groups (connected components over all bands); the one that comes first is kept.

Guarantees: the same groups on every machine for one version of the algorithm, which is recorded;
memory of some tens of bytes a document, whatever the signatures take on disk.

Does not guarantee: that every pair above the threshold is found (with the default 16 bands of 8
values a pair of similarity 0.8 shares a band with probability 0.95, one of 0.9 with 0.9999), nor
that two members of one group are similar to each other: a chain of similar documents is one group.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.recipe import NearRule
from data_pipeline.words import ngram_hashes

ALGORITHM = "rensa-r-minhash-2"
SIGNATURE = np.dtype("<u4")
_SEED = 42
_CHUNK = 1 << 16

Signatures = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]


def signatures(texts_words: Sequence[Sequence[str]], rule: NearRule) -> Signatures:
    """Return the signature of every document.

    Args:
        texts_words: The words of n documents. One with fewer words than a shingle is one shingle.
        rule: How to hash.

    Returns:
        uint32 [n, permutations]; zeros for a document without words, which is never compared.

    Raises:
        DatasetError: The installed rensa computes another algorithm.
    """
    from rensa import RMinHash

    if RMinHash.ALGORITHM_VERSION != 2:
        raise DatasetError(
            f"rensa: expected R-MinHash version 2, found {RMinHash.ALGORITHM_VERSION}; "
            "install the pinned version"
        )
    hashes = [ngram_hashes(words, max(1, min(rule.shingle, len(words)))) for words in texts_words]
    ends = np.cumsum([0, *(len(one) for one in hashes)], dtype=np.uint64)
    flat = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, rule.permutations, _SEED)
    rows = np.array(matrix.to_rows(), dtype=SIGNATURE).reshape(len(hashes), rule.permutations)
    rows[np.diff(ends) == 0] = 0
    return rows


class Table(Protocol):
    """Signatures by document number, of any storage: ascending rows, and columns of them."""

    def __getitem__(self, key: tuple[Numbers, slice], /) -> Signatures: ...


def near_duplicates(table: Table, candidates: Numbers, rule: NearRule) -> Iterator[tuple[int, int]]:
    """Yield (document, kept document) for every near-duplicate, by document number.

    Args:
        table: uint32 [documents, permutations]; it is read in pieces.
        candidates: Numbers of the documents to look at, ascending.
        rule: Threshold and bands.
    """
    agree = -(-rule.threshold.numerator * rule.permutations // rule.threshold.denominator)
    parent = np.arange(len(candidates), dtype=np.int64)
    for band in range(rule.bands):
        columns = slice(band * rule.rows, (band + 1) * rule.rows)
        for members in _buckets(_band_keys(table, candidates, columns)):
            _join_similar(table, candidates, members, agree, parent)
    for place in range(len(candidates)):
        root = _find(parent, place)
        if root != place:
            yield int(candidates[place]), int(candidates[root])


def _band_keys(table: Table, candidates: Numbers, columns: slice) -> npt.NDArray[np.uint64]:
    """One key a candidate, 0 for documents without words; equal keys are only candidates."""
    keys = np.zeros(len(candidates), dtype=np.uint64)
    for start in range(0, len(candidates), _CHUNK):
        rows = table[candidates[start : start + _CHUNK], columns].astype(np.uint64)
        piece = keys[start : start + _CHUNK]
        for column in rows.T:
            piece *= np.uint64(0x9E3779B97F4A7C15)
            piece += column
    return keys


def _buckets(keys: npt.NDArray[np.uint64]) -> Iterator[Numbers]:
    """Yield the places, ascending, of every key that stands at two places or more."""
    order = np.argsort(keys, kind="stable")
    found = keys[order]
    starts = np.flatnonzero(np.r_[True, found[1:] != found[:-1]]) if len(found) else order
    sizes = np.diff(np.r_[starts, len(found)])
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        if found[start]:
            yield order[start : start + size]


def _join_similar(
    table: Table, candidates: Numbers, members: Numbers, agree: int, parent: Numbers
) -> None:
    """Join each member with all earlier leaders it is similar to; without one it leads."""
    rows = table[candidates[members], slice(None)]
    leaders: list[int] = []
    for number in range(len(members)):
        equal = (rows[leaders] == rows[number]).sum(axis=1)
        similar = np.flatnonzero(equal >= agree).tolist()
        for place in similar:
            _join(parent, int(members[leaders[place]]), int(members[number]))
        if not similar:
            leaders.append(number)


def _find(parent: Numbers, place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = int(parent[place])
    return place


def _join(parent: Numbers, a: int, b: int) -> None:
    """Union; the root of a group is its smallest member."""
    a, b = _find(parent, a), _find(parent, b)
    parent[max(a, b)] = min(a, b)
