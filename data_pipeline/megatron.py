"""Megatron and GPT-NeoX token files (``.idx`` and ``.bin``), read where they lie.

An ``.idx`` says how long each *item* of the ``.bin`` is and which type its ids have; the ``.bin``
is the ids and nothing else. The ``.bin`` may be cut into shards that follow each other byte for
byte (Pythia: 21 of 30 GB, or 83 of 5 GB): they are read as one stream and never joined. An item,
and even an id, may lie across a cut.

Guarantees: everything the ``.idx`` says is checked when it is opened, in pieces of bounded memory:
magic, version, type, every count against every size, every pointer against the lengths before it,
the document index (12 bytes an item are read). A file that is
cut, longer, swapped with another or of another type is an error and never a crash or a wrong id.

Does not guarantee: that the ids are the right ones, because these files hold no checksum. That is
``megatron_index``. Specification: ``docs/spec/neox.md``.
"""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError

MAGIC = b"MMIDIDX\0\0"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
# GPT-NeoX numbers: 6 is float32 and 7 float64 (Megatron-LM has them the other way round); a float
# is no token id, so both are refused.
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = (6, 7)
_CHECKED_AT_ONCE = 1 << 22
_COPY = "fetch the file again from where it was published, or write it again"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.bin\Z")

Ids = npt.NDArray[np.int64]


def find_files(prefix: str | Path) -> tuple[Path, list[Path]]:
    """Return the ``.idx`` and the ``.bin``, or its shards in order, of a file prefix.

    Shards are named ``<prefix>-00000-of-00020.bin`` and so on. The last number of all is either
    the number of the last shard (Pythia: 21 files "of 00020") or the number of shards.

    Raises:
        DatasetError: No such files, a shard missing, or both a whole ``.bin`` and shards.
    """
    prefix = Path(prefix)
    idx, whole = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    if not idx.is_file():
        raise DatasetError(
            f"{idx}: expected a Megatron index, found no file; "
            "give the path of the files without `.idx` and `.bin`"
        )
    found = {}
    for path in sorted(prefix.parent.iterdir()):
        match = _SHARD.search(path.name)
        if match and path.name[: match.start()] == prefix.name:
            found[int(match[1]), int(match[2])] = path
    if whole.is_file():
        if found:
            raise DatasetError(
                f"{whole}: expected one .bin or its shards, found both ({len(found)} shards); "
                "move one of them to another directory"
            )
        return idx, [whole]
    totals = sorted({total for _, total in found})
    numbers = sorted(number for number, _ in found)
    count = len(numbers)
    if len(totals) != 1 or numbers != list(range(count)) or count - totals[0] not in (0, 1):
        expected = (
            f"shards 0..{totals[0]}" if totals else f"it, or {prefix.name}-00000-of-NNNNN.bin"
        )
        raise DatasetError(
            f"{whole}: expected {expected}, found shards {numbers} of {totals}; {_COPY}"
        )
    return idx, [found[number, totals[0]] for number in numbers]


class MegatronFiles:
    """One ``.idx`` and its ``.bin`` or shards, mapped into memory.

    ``sizes`` are the lengths of the items in ids, int32 [items]; ``pointers`` the offsets of the
    items in bytes, int64 [items]; ``document_index`` int64, which no order uses. ``dtype`` is the
    type of an id.
    """

    def __init__(self, idx: str | Path, bins: Sequence[str | Path]) -> None:
        """Map the files and check the ``.idx``.

        Raises:
            DatasetError: Anything that is not as the format says; file, expected, found, remedy.
        """
        self.idx, self.bins = Path(idx), [Path(path) for path in bins]
        self.dtype, items, documents = _read_header(self.idx)
        self.sizes = _map(self.idx, "<i4", HEADER.size, items)
        self.pointers = _map(self.idx, "<i8", HEADER.size + 4 * items, items)
        self.document_index = _map(self.idx, "<i8", HEADER.size + 12 * items, documents)
        self.num_items = items
        self.num_tokens = self._check_items()
        self._check_document_index()
        self._segments = self._map_bins()
        self._starts = np.array([start for start, _ in self._segments], dtype=np.int64)

    @classmethod
    def open(cls, prefix: str | Path) -> "MegatronFiles":
        """Map the files of a prefix; see ``find_files``."""
        return cls(*find_files(prefix))

    def item_start(self, item: int) -> int:
        """Offset of an item in ids; ``num_items`` gives the end of the last one."""
        if item == self.num_items:
            return self.num_tokens
        return int(self.pointers[item]) // self.dtype.itemsize

    def item_at(self, offset: int) -> int:
        """Number of the item that holds the id at ``offset`` (an empty item holds none)."""
        # Not np.searchsorted: the pointers are unaligned in the file and it would copy them all.
        return bisect_right(self.pointers, offset * self.dtype.itemsize) - 1

    def item_starts(self, items: Ids) -> Ids:
        """Offsets in ids of n items, int64 [n]."""
        return self.pointers[items] // self.dtype.itemsize

    def copy(self, offsets: Ids, counts: Ids, out: Ids) -> None:
        """Fill ``out``, int64 [sum of counts], with runs of ids, one after the other."""
        numbers = np.searchsorted(self._starts, offsets, side="right") - 1
        done = 0
        for number, offset, count in zip(
            numbers.tolist(), offsets.tolist(), counts.tolist(), strict=True
        ):
            start, ids = self._segments[number]
            piece = ids[offset - start : offset - start + count]
            end = done + len(piece)
            out[done:end] = piece
            done += count
            if end < done:  # the run goes on in the next shard
                self.read_into(offset + len(piece), out[end:done])

    def read_into(self, offset: int, out: Ids) -> None:
        """Fill ``out``, int64 [n], with the n ids from ``offset``."""
        number = int(np.searchsorted(self._starts, offset, side="right")) - 1
        done = 0
        while done < len(out):
            start, ids = self._segments[number]
            begin = offset + done - start
            piece = ids[begin : begin + len(out) - done]
            out[done : done + len(piece)] = piece
            done, number = done + len(piece), number + 1

    def segments(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (offset, ids), mapped: one for each shard, and one for each id across a cut."""
        yield from self._segments

    def _check_items(self) -> int:
        """Check pointers against lengths, block by block; return the number of ids."""
        total, width = 0, self.dtype.itemsize
        for first in range(0, self.num_items, _CHECKED_AT_ONCE):
            sizes = self.sizes[first : first + _CHECKED_AT_ONCE].astype(np.int64)
            if int(sizes.min()) < 0:
                item = first + int(np.argmax(sizes < 0))
                self._refuse(f"length of item {item}", "at least 0", int(self.sizes[item]))
            starts = total + np.cumsum(sizes) - sizes
            wrong = self.pointers[first : first + _CHECKED_AT_ONCE] != starts * width
            if wrong.any():
                place = int(np.argmax(wrong))
                found = int(self.pointers[first + place])
                self._refuse(f"pointer of item {first + place}", int(starts[place]) * width, found)
            total += int(sizes.sum())
        return total

    def _check_document_index(self) -> None:
        """Ascending from 0 to at most the number of items."""
        last = 0
        for first in range(0, len(self.document_index), _CHECKED_AT_ONCE):
            block = np.asarray(self.document_index[first : first + _CHECKED_AT_ONCE])
            if first == 0 and int(block[0]) != 0:
                self._refuse("first entry of the document index", 0, int(block[0]))
            if int(block[0]) < last or bool(np.any(block[1:] < block[:-1])):
                self._refuse("document index", "ascending item numbers", "a smaller one after")
            last = int(block[-1])
        if last > self.num_items:
            self._refuse("last entry of the document index", f"at most {self.num_items}", last)

    def _map_bins(self) -> list[tuple[int, npt.NDArray[Any]]]:
        sizes = [_size(path) for path in self.bins]
        expected = self.num_tokens * self.dtype.itemsize
        if sum(sizes) != expected:
            names = ", ".join(f"{p.name} {size}" for p, size in zip(self.bins, sizes, strict=True))
            raise DatasetError(
                f"{self.idx}: expected {expected} bytes of {self.dtype.name} ids in its .bin, "
                f"found {sum(sizes)} ({names}); a file is cut, missing or of another .idx: {_COPY}"
            )
        raw = [
            np.memmap(path, "u1", mode="r").view(np.ndarray)
            for path, size in zip(self.bins, sizes, strict=True)
            if size
        ]
        return list(id_runs(raw, self.dtype))

    def _refuse(self, what: str, expected: object, found: object) -> None:
        raise DatasetError(f"{self.idx}: {what}: expected {expected}, found {found}; {_COPY}")


def write_megatron(
    prefix: str | Path,
    items: Iterable[npt.ArrayLike],
    dtype: str,
    document_index: Sequence[int] | None = None,
) -> MegatronFiles:
    """Write ``<prefix>.idx`` and ``<prefix>.bin``, the bytes that GPT-NeoX's builder writes.

    Args:
        prefix: Path without suffix; the directory must exist.
        items: Ids of every item, each a flat array; held in memory.
        dtype: ``uint8``, ``int8``, ``int16``, ``int32``, ``int64`` or ``uint16``.
        document_index: By default every item is a document: 0, 1, ..., items.

    Returns:
        The files, opened again and so checked.

    Raises:
        ValueError: Another dtype, or an id that does not fit it.
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    codes = {np.dtype(name): code for code, name in DTYPES.items()}
    if wanted not in codes:
        names = sorted(code.name for code in codes)
        raise ValueError(f"expected a dtype of {names}, found {dtype!r}")
    parts = [_as_ids(item, wanted) for item in items]
    sizes = np.array([len(part) for part in parts], dtype="<i4")
    lengths = sizes.astype(np.int64)
    pointers = ((np.cumsum(lengths) - lengths) * wanted.itemsize).astype("<i8")
    chosen = range(len(parts) + 1) if document_index is None else document_index
    entries = np.array(chosen, dtype="<i8")
    header = HEADER.pack(MAGIC, VERSION, codes[wanted], len(parts), len(entries))
    body = b"".join([header, sizes.tobytes(), pointers.tobytes(), entries.tobytes()])
    write_bytes(f"{prefix}.bin", b"".join(part.tobytes() for part in parts))
    write_bytes(f"{prefix}.idx", body)
    return MegatronFiles(f"{prefix}.idx", [f"{prefix}.bin"])


def _read_header(path: Path) -> tuple["np.dtype[Any]", int, int]:
    """Return (type of an id, items, document entries) of an ``.idx`` of the right size."""
    size = _size(path)
    with path.open("rb") as handle:
        head = handle.read(HEADER.size)
    if head[: len(MAGIC)] != MAGIC:
        _refuse(path, "first 9 bytes", MAGIC.hex(), head[: len(MAGIC)].hex() or "none")
    if len(head) < HEADER.size:
        _refuse(path, "size in bytes", f"at least {HEADER.size}", size)
    _, version, code, items, documents = HEADER.unpack(head)
    if version != VERSION:
        _refuse(path, "version", VERSION, version)
    if code in _FLOATS:
        _refuse(path, "type of an id", f"an integer, code {sorted(DTYPES)}", f"{code}, a float")
    if code not in DTYPES:
        _refuse(path, "type code", f"one of {sorted(DTYPES)}", code)
    expected = HEADER.size + 12 * items + 8 * documents
    if size == expected + items and items:
        _refuse(path, "size in bytes", expected, f"{size}: one mode byte an item, multimodal data")
    if size != expected:
        _refuse(
            path, f"size in bytes ({items} items, {documents} document entries)", expected, size
        )
    return np.dtype(DTYPES[code]), items, documents


def id_runs(
    shards: Iterable[npt.NDArray[np.uint8]], dtype: "np.dtype[Any]"
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """View bytes in pieces as ids without joining them.

    Yields (number of the first id, ids): one run for each piece, and one for each id across a cut.
    """
    width, begin = dtype.itemsize, 0
    carried = np.zeros(0, dtype=np.uint8)
    for shard in shards:
        missing = min(-len(carried) % width, len(shard))
        if missing:
            carried = np.concatenate([carried, shard[:missing]])
        if len(carried) == width:
            yield (begin + missing) // width - 1, carried.view(dtype)
            carried = carried[:0]
        whole = (len(shard) - missing) // width * width
        if whole:
            yield (begin + missing) // width, shard[missing : missing + whole].view(dtype)
        if missing + whole < len(shard):
            carried = shard[missing + whole :]
        begin += len(shard)


def _as_ids(item: npt.ArrayLike, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    ids = np.asarray(item).ravel()
    limits = np.iinfo(dtype)
    if ids.size and ids.dtype.kind not in "iuO":
        raise ValueError(f"expected integer ids, found {ids.dtype.name}; give token ids")
    if ids.size and not limits.min <= int(ids.min()) <= int(ids.max()) <= limits.max:
        raise ValueError(
            f"expected ids in [{limits.min}, {limits.max}] for {dtype.name}, found "
            f"{int(ids.min())}..{int(ids.max())}; use a wider dtype"
        )
    return ids.astype(dtype)


def _map(path: Path, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
    if count == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,)).view(np.ndarray)


def _size(path: Path) -> int:
    if not path.is_file():
        raise DatasetError(f"{path}: expected a file, found none; {_COPY}")
    return path.stat().st_size


def _refuse(path: Path, what: str, expected: object, found: object) -> None:
    raise DatasetError(f"{path}: {what}: expected {expected}, found {found}; {_COPY}")
