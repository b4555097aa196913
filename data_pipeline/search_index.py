"""Search without a pass: where the pivot of a text stands, from the suffix arrays of the shards.

Guarantees: ``seen`` gives the same answer with these files as without, place for place and in the
same order. They only narrow the places that ``text_search`` extends and compares with the shard:
every place of a match is among them, because ids that may follow the pivot are followed in every
spelling. Near the borders of a shard, and where very many places are left, the shard is scanned.

The files lie beside the dataset (``suffix_file.py``), one a shard, and are no part of it. A shard
without a file is scanned; a file that is wrong is an error.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.datasets import open_index
from data_pipeline.errors import DatasetError
from data_pipeline.index import ShardIndex
from data_pipeline.protocols import Ids, Stream
from data_pipeline.search import sieve
from data_pipeline.shard_checks import expect_sha256
from data_pipeline.shards import TokenStream
from data_pipeline.suffix_file import (
    DIRECTORY,
    Suffixes,
    library_version,
    suffix_file,
    write_suffixes,
)
from data_pipeline.text_search import TextPattern

# Ranges this short are extended and compared rather than narrowed further.
_FEW = 1 << 10
# So are those with no more than this many places for each id that may come next.
_PLACES_A_NARROWING = 8
_DEEPEST = 64
# Above this share of the shard, or this number, of places a scan is cheaper.
_SHARE, _MOST = 16, 1 << 22


def build_search_index(
    dataset_dir: str | Path, progress: Callable[[str], None] | None = None
) -> tuple[int, int]:
    """Write the files that are missing, for every shard of every split; check those that are there.

    Args:
        dataset_dir: A local dataset with an index of schema ``index-v1``.
        progress: Called with a line of text for every shard.

    Returns:
        Files written, and files found and checked whole.

    Raises:
        DatasetError: Another kind of dataset, a shard or a file that is not what its record says,
            or no ``pydivsufsort``.
        OSError: The disk is full; finished files stay, and the same call goes on after them.
    """
    index = open_index(dataset_dir)
    if not isinstance(index, ShardIndex):
        raise DatasetError(
            f"{dataset_dir}: expected a dataset of index-v1, found {index.data['schema']}; "
            "`tripod seen` searches it by one pass over the files"
        )
    root, written, checked = index.root, 0, 0
    (root / DIRECTORY).mkdir(exist_ok=True)
    for shard in (shard for shards in index.splits.values() for shard in shards):
        path = suffix_file(root, shard.sha256)
        if path.is_file():
            Suffixes(path, shard.sha256, shard.tokens).verify()
            checked += 1
            continue
        library_version()
        expect_sha256(root / shard.file, shard.sha256)
        ids = np.memmap(root / shard.file, index.dtype, mode="r")
        write_suffixes(path, ids, shard.sha256)
        written += 1
        if progress is not None:
            progress(f"{shard.file}: {shard.tokens} ids sorted")
    return written, checked


def open_search_index(stream: Stream) -> "SearchIndex | None":
    """Open the search index of a stream; None for Megatron files, URLs and where there is none."""
    if not isinstance(stream, TokenStream) or not stream.index.storage.is_local:
        return None
    return SearchIndex(stream) if (stream.index.root / DIRECTORY).is_dir() else None


class SearchIndex:
    """The suffix arrays of one split; implements ``text_search.PivotIndex``."""

    def __init__(self, stream: TokenStream) -> None:
        """Find the files; each is checked when its shard is first searched."""
        self._root = stream.index.root
        shards = stream.index.splits[stream.split]
        starts = accumulate((shard.tokens for shard in shards), initial=0)
        self._shards = dict(zip(starts, shards, strict=False))
        self._open = lru_cache(maxsize=None)(self._open_suffixes)

    def _open_suffixes(self, start: int) -> Suffixes | None:
        shard = self._shards[start]
        path = suffix_file(self._root, shard.sha256)
        return Suffixes(path, shard.sha256, shard.tokens) if path.is_file() else None

    def places(self, start: int, ids: npt.NDArray[Any], pattern: TextPattern) -> Ids | None:
        """Return places of the shard that begins at ``start``; see ``PivotIndex``.

        Raises:
            DatasetError: The file of the shard is wrong or damaged.
        """
        suffixes = self._open(start)
        return None if suffixes is None else places_in(suffixes, ids, pattern)


def places_in(suffixes: Suffixes, ids: npt.NDArray[Any], pattern: TextPattern) -> Ids | None:
    """Return ascending places of candidate ids, those of every match among them.

    None where there are so many that a pass over the shard is cheaper.
    """
    reach = len(pattern.text)
    if len(ids) <= 2 * reach:
        return None
    ranges = _ranges(suffixes, ids, pattern)
    if ranges is None:
        return None
    found = [suffixes.run(low, high) for low, high in ranges]
    inside = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
    last = len(ids) - reach
    inside = inside[(inside >= reach) & (inside < last)]
    # A match near a border may go on in the next shard: nothing is narrowed there.
    head = list(sieve(ids[:reach], pattern.starts))
    tail = [places + last for places in sieve(ids[last:], pattern.starts)]
    return np.concatenate([*head, inside, *tail])


def _ranges(
    suffixes: Suffixes, ids: npt.NDArray[Any], pattern: TextPattern
) -> list[tuple[int, int]] | None:
    """Ranges of entries whose places hold the pivot; None where they hold too many places."""
    limit = min(_MOST, len(ids) // _SHARE)
    done: set[tuple[int, int]] = set()
    rows = _begin(suffixes, ids, pattern)
    for depth in range(1, _DEEPEST + 1):
        rows = rows[rows[:, 0] < rows[:, 1]]
        size = rows[:, 1] - rows[:, 0]
        end = (rows[:, 2] <= 0) | (size <= _FEW) | (depth == _DEEPEST)
        going = []
        for left in np.unique(rows[~end, 2]).tolist():
            pairs = pattern.after(left)
            group = (rows[:, 2] == left) & ~end
            end |= group & (size <= _PLACES_A_NARROWING * len(pairs))
            going.append(_follow(suffixes, ids, rows[group & ~end], depth, pairs))
        done.update((low, high) for low, high, _ in rows[end].tolist())
        if sum(high - low for low, high in done) > limit:
            return None
        if not going:
            break
        rows = np.concatenate(going)
    return sorted(done)


def _begin(suffixes: Suffixes, ids: npt.NDArray[Any], pattern: TextPattern) -> Ids:
    """Ranges of every way to cover the pivot, [n, 3]: first entry, end, bytes left to read."""
    candidates = np.array(sorted(pattern.starts), dtype=np.int64)
    low = np.zeros(len(candidates), dtype=np.int64)
    low, high = _narrow(suffixes, ids, low, low + len(ids), 0, candidates)
    rows = [
        (low_one, high_one, left)
        for one, low_one, high_one in zip(
            candidates.tolist(), low.tolist(), high.tolist(), strict=True
        )
        for left in pattern.left_after(one)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _follow(suffixes: Suffixes, ids: npt.NDArray[Any], rows: Ids, depth: int, pairs: Ids) -> Ids:
    """The ranges of ``rows`` narrowed to each of the ids that may come next."""
    low, high, left = (np.repeat(column, len(pairs)) for column in rows.T)
    wanted, sizes = (np.tile(column, len(rows)) for column in pairs.T)
    low, high = _narrow(suffixes, ids, low, high, depth, wanted)
    return np.stack([low, high, left - sizes], axis=1)


def _narrow(
    suffixes: Suffixes, ids: npt.NDArray[Any], low: Ids, high: Ids, depth: int, wanted: Ids
) -> tuple[Ids, Ids]:
    """In each range [low, high) of equal first ``depth`` ids: those with ``wanted`` next."""
    first = _bisect(suffixes, ids, low, high, depth, wanted)
    return first, _bisect(suffixes, ids, first, high, depth, wanted + 1)


def _bisect(
    suffixes: Suffixes, ids: npt.NDArray[Any], low: Ids, high: Ids, depth: int, wanted: Ids
) -> Ids:
    """Return for each range the first entry whose id at ``depth`` is ``wanted`` or larger."""
    low, high = low.copy(), high.copy()
    while (active := np.flatnonzero(low < high)).size:
        middle = (low[active] + high[active]) // 2
        places = suffixes.at(middle) + depth
        # The end of the shard sorts before every id.
        keys = np.where(
            places < len(ids), ids[np.minimum(places, len(ids) - 1)].astype(np.int64), -1
        )
        less = keys < wanted[active]
        low[active[less]] = middle[less] + 1
        high[active[~less]] = middle[~less]
    return low
