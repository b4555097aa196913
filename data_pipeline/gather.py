"""Many rows of ids out of the shards of a stream at once, and telling the kernel what comes next.

Guarantees: ``gather_rows`` returns exactly the ids that slicing the shards row by row would, in the
order asked for, across shard borders; an offset outside the stream or an id type that does not fit
the result is an error, never a wrapped number. ``will_need`` changes no result, only how soon it is
there: on data colder than memory reading ahead is about five times the speed of a memory map alone,
which reads the neighbourhood of every page it lacks.

A shard is opened (``array_of``) only when a row lies in it, so a stream of any number of shards
costs what is read of it.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.storage import Array

Offsets = npt.NDArray[np.int64]
ArrayOf = Callable[[int], Array]

_WILLNEED = 3  # MADV_WILLNEED: POSIX, the same number on Linux, macOS and the BSDs
_FEW = 32  # measured: up to here a loop over rows costs less than preparing one indexing operation


def gather_rows(
    array_of: ArrayOf,
    starts: npt.ArrayLike,
    offsets: npt.ArrayLike,
    width: int,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Return the ``width`` ids from each of n offsets of a stream.

    Args:
        array_of: Gives the ids of shard k, one-dimensional: a NumPy array (mapped or not), or
            anything whose slices are NumPy arrays, as a remote file.
        starts: Offset in the stream of the first id of every shard, and the stream's length:
            ascending, one more than there are shards. An int64 array is used as it is.
        offsets: n offsets in ids.
        width: Ids of a row, at least 1.
        out: Where to put the rows, [n, width]; a new int64 array by default. With the type of the
            shards (uint16, uint32) ids are copied and not widened: a quarter of the memory.

    Returns:
        ``out``: row i holds ids [offsets[i], offsets[i] + width).

    Raises:
        ValueError: A row that does not lie in the stream, an ``out`` of another shape, or one whose
            type cannot hold every id of the shards.
    """
    starts = np.asarray(starts, dtype=np.int64)
    offsets = _checked(starts, offsets, width)
    if out is None:
        out = np.empty((offsets.size, width), dtype=np.int64)
    if out.shape != (offsets.size, width):
        raise ValueError(f"expected out of shape {(offsets.size, width)}, found {out.shape}")
    fitting = _fitting(array_of, out.dtype)
    shards = np.searchsorted(starts, offsets, side="right") - 1
    local = offsets - starts[shards]
    if offsets.size <= _FEW:
        _copy_each(fitting, shards, local, out, range(offsets.size))
        return out
    crossing = offsets + width > starts[shards + 1]
    _copy_each(fitting, shards, local, out, np.flatnonzero(crossing).tolist())
    for shard, rows in _by_shard(shards, np.flatnonzero(~crossing)):
        ids = fitting(shard)
        if isinstance(ids, np.ndarray):
            _copy_windows(ids, local[rows], out, rows)
        else:
            _copy_each(fitting, shards, local, out, rows.tolist())
    return out


def will_need(
    array_of: ArrayOf, starts: npt.ArrayLike, offsets: npt.ArrayLike, widths: npt.ArrayLike
) -> None:
    """Ask the kernel to read the pages of these rows now, without waiting for them.

    Does nothing for shards that are not memory maps. Arguments and errors as ``gather_rows``;
    ``widths`` may be one number, or one for each offset.
    """
    starts = np.asarray(starts, dtype=np.int64)
    width = np.asarray(widths, dtype=np.int64)
    begins = _checked(starts, offsets, width)
    ends = begins + width
    while begins.size:  # once, and once more for each border that a row crosses
        shards = np.searchsorted(starts, begins, side="right") - 1
        limits = starts[shards + 1]
        for shard, rows in _by_shard(shards, np.arange(begins.size)):
            begin, end = begins[rows], np.minimum(ends, limits)[rows]
            _advise(array_of(shard), begin - starts[shard], end - starts[shard])
        crossing = ends > limits
        begins, ends = limits[crossing], ends[crossing]


def _advise(ids: Array, begin: Offsets, end: Offsets) -> None:
    """Ask for ids [begin, end) of a mapped shard, by address."""
    if not isinstance(ids, np.ndarray) or not _is_mapped(ids):
        return
    base, size = ids.__array_interface__["data"][0], ids.itemsize
    first = (base + begin * size) // mmap.PAGESIZE * mmap.PAGESIZE
    lengths = base + end * size - first
    advise = _madvise()
    for address, length in zip(first.tolist(), lengths.tolist(), strict=True):
        # A refusal (a file system that cannot) costs speed only: nothing to report.
        advise(address, length, _WILLNEED)


def _checked(starts: Offsets, offsets: npt.ArrayLike, widths: int | Offsets) -> Offsets:
    values = np.asarray(offsets, dtype=np.int64).reshape(-1)
    if np.min(widths, initial=1) < 1:
        raise ValueError(f"expected rows of at least 1 id, found width {np.min(widths)}")
    if values.size and (int(values.min()) < 0 or int((values + widths).max()) > int(starts[-1])):
        raise ValueError(
            f"expected rows of {np.max(widths)} ids in [0, {int(starts[-1])}), found one from "
            f"{int(values.min() if values.min() < 0 else values.max())}"
        )
    return values


def _by_shard(shards: Offsets, rows: Offsets) -> list[tuple[int, Offsets]]:
    """Group rows by shard; rows of a shard stay in order."""
    if not rows.size:
        return []
    of_row = shards[rows]
    if int(of_row.min()) == int(of_row.max()):
        return [(int(of_row[0]), rows)]
    order = np.argsort(of_row, kind="stable")
    of_row, rows = of_row[order], rows[order]
    cuts = np.flatnonzero(np.diff(of_row)) + 1
    first = of_row[np.concatenate(([0], cuts))].tolist()
    return list(zip(first, np.split(rows, cuts), strict=True))


def _copy_windows(
    ids: npt.NDArray[Any], local: Offsets, out: npt.NDArray[Any], rows: Offsets
) -> None:
    """Copy a window of ``ids`` to each of the rows: one indexing operation, no loop in Python."""
    width, step = out.shape[1], ids.strides[0]
    # Every window of the shard, overlapping, without a copy; _checked keeps the index inside.
    windows: npt.NDArray[Any] = np.ndarray(
        (len(ids) - width + 1, width), ids.dtype, ids.data, 0, (step, step)
    )
    if len(rows) == len(out):  # then they are all rows in order
        out[...] = windows[local]
    else:
        out[rows] = windows[local]


def _copy_each(
    array_of: ArrayOf, shards: Offsets, local: Offsets, out: npt.NDArray[Any], rows: Iterable[int]
) -> None:
    """Copy rows one by one; each begins in its shard and may end in a later one."""
    width = out.shape[1]
    of_row, begins = shards.tolist(), local.tolist()
    for row in rows:
        shard, begin = of_row[row], begins[row]
        piece = array_of(shard)[begin : begin + width]
        out[row, : len(piece)] = piece
        done = len(piece)
        while done < width:
            shard += 1
            piece = array_of(shard)[: width - done]
            out[row, done : done + len(piece)] = piece
            done += len(piece)


def _fitting(array_of: ArrayOf, dtype: "np.dtype[Any]") -> ArrayOf:
    """Wrap ``array_of`` so that a shard whose ids do not fit ``dtype`` is refused."""

    @functools.cache
    def checked(shard: int) -> Array:
        ids = array_of(shard)
        found = getattr(ids, "dtype", dtype)
        if not _fits(found, dtype):
            raise ValueError(
                f"expected out of a type that holds every {found}, found {dtype}; use int64"
            )
        return ids

    return checked


@functools.cache
def _fits(ids: "np.dtype[Any]", out: "np.dtype[Any]") -> bool:
    return np.can_cast(ids, out, "safe")


def _is_mapped(ids: npt.NDArray[Any]) -> bool:
    base: Any = ids
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap | mmap.mmap)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call
