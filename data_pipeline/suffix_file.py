"""Suffix-array files, ``search-index-v1``: the places of a shard, sorted by the ids from there on.

Guarantees: a file is complete or absent. What was read of it is what was written: the header, the
size and the table of block digests are checked when it is opened, every block when it is first
touched, so a wrong, truncated, flipped or stale file is an error and never a missed place. Reading
needs no library; writing needs ``pydivsufsort``. Format: ``docs/spec/search-index.md``.

Memory to write one, beside the mapped shard: twice its ids as bytes, and 4 bytes for each byte of
it (8 from 2 GiB on).
"""

import importlib.metadata
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.durable import fsync_directory, reserve, write_all
from data_pipeline.errors import DatasetError
from data_pipeline.protocols import Ids

SCHEMA = "search-index-v1"
DIRECTORY = "search"
BLOCK = 1 << 14  # entries
HEADER_BYTES = 4096
LIBRARY = "pydivsufsort"
_DIGEST = 32
_REMEDY = (
    "delete it and run `tripod data search-index` again, or search without it (`seen --index none`)"
)


def suffix_file(root: Path, shard_sha256: str) -> Path:
    """The file of a shard, named by its content."""
    return root / DIRECTORY / f"{shard_sha256}.sa"


def write_suffixes(path: Path, ids: npt.NDArray[Any], shard_sha256: str) -> None:
    """Sort the places of a shard and write its file, atomically and durably.

    Args:
        path: The file; its directory must exist.
        ids: All ids of the shard, uint16 or uint32.
        shard_sha256: SHA-256 of the shard, as in the index; the caller has checked it.

    Raises:
        DatasetError: ``pydivsufsort`` is not installed.
        OSError: The disk is full; the file is then not there.
    """
    version = library_version()
    dtype = _entry_type(len(ids))
    blocks = -(-len(ids) // BLOCK)
    begin = HEADER_BYTES + blocks * _DIGEST
    tmp = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        try:
            reserve(descriptor, begin + len(ids) * dtype.itemsize)
            os.lseek(descriptor, begin, os.SEEK_SET)
            table = bytearray()
            for block in _blocks(_sorted_places(ids)):
                data = block.astype(dtype).tobytes()
                table += bytes.fromhex(sha256_hex(data))
                write_all(descriptor, data)
            os.lseek(descriptor, 0, os.SEEK_SET)
            write_all(descriptor, _header(len(ids), shard_sha256, version, table) + table)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)
    fsync_directory(path.parent)


def library_version() -> str:
    """Return the version of the library that sorts.

    Raises:
        DatasetError: It is not installed.
    """
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise DatasetError(
            f"search index: expected the package {LIBRARY}, found none; install it: "
            "pip install 'tripod-suite[search]'"
        ) from None


def _entry_type(tokens: int) -> "np.dtype[Any]":
    return np.dtype("<u4" if tokens <= 1 << 32 else "<u8")


def _header(tokens: int, shard_sha256: str, version: str, table: bytes | bytearray) -> bytes:
    record = {
        "block": BLOCK,
        "library": LIBRARY,
        "library_version": version,
        "schema": SCHEMA,
        "shard_sha256": shard_sha256,
        "table_sha256": sha256_hex(table),
        "tokens": tokens,
    }
    return canonical_json(record).ljust(HEADER_BYTES, b"\n")


def _sorted_places(ids: npt.NDArray[Any]) -> Iterator[Ids]:
    """Yield the sorted places in runs.

    The library sorts the suffixes of the bytes; with the high byte first, those that begin at a
    whole id are in the order of the ids.
    """
    from pydivsufsort import divsufsort

    width = ids.dtype.itemsize
    data = ids.astype(ids.dtype.newbyteorder(">")).view(np.uint8)
    starts = divsufsort(data)
    for begin in range(0, len(starts), 1 << 20):
        run = starts[begin : begin + (1 << 20)]
        yield run[run % width == 0].astype(np.int64) // width


def _blocks(runs: Iterator[Ids]) -> Iterator[Ids]:
    left = np.zeros(0, dtype=np.int64)
    for run in runs:
        left = np.concatenate([left, run])
        whole = len(left) // BLOCK * BLOCK
        yield from left[:whole].reshape(-1, BLOCK)
        left = left[whole:]
    if left.size:
        yield left


class Suffixes:
    """An open file: entry n is the place whose ids come n-th in order."""

    def __init__(self, path: Path, shard_sha256: str, tokens: int) -> None:
        """Check the header, the size and the table of digests.

        Raises:
            DatasetError: Another file than that of this shard, or one that is damaged.
        """
        self._path, dtype = path, _entry_type(tokens)
        blocks = -(-tokens // BLOCK)
        begin = HEADER_BYTES + blocks * _DIGEST
        with path.open("rb") as handle:
            header, self._table = handle.read(HEADER_BYTES), handle.read(blocks * _DIGEST)
        record = _read_header(header)
        expected = json.loads(_header(tokens, shard_sha256, "", self._table))
        for key in sorted(expected.keys() - {"library_version"}):
            self._expect(key, expected[key], record.get(key))
        known = isinstance(record.get("library_version"), str) and len(record) == len(expected)
        canonical = canonical_json(record).ljust(HEADER_BYTES, b"\n") == header
        self._expect("canonical header", True, known and canonical)
        self._expect("size in bytes", begin + tokens * dtype.itemsize, path.stat().st_size)
        self._entries = np.memmap(path, dtype, mode="r", offset=begin, shape=(tokens,))
        self._checked = np.zeros(blocks, dtype=bool)

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, numbers: Ids) -> Ids:
        """Return the entries with these numbers; DatasetError where their block is damaged."""
        blocks = numbers // BLOCK
        if not self._checked[blocks].all():
            self._check(np.unique(blocks))
        return self._entries[numbers].astype(np.int64)

    def run(self, start: int, end: int) -> Ids:
        """Return the entries [start, end); errors as ``at``."""
        self._check(np.arange(start // BLOCK, -(-end // BLOCK)))
        return self._entries[start:end].astype(np.int64)

    def verify(self) -> None:
        """Check every block; errors as ``at``."""
        self._check(np.arange(len(self._checked)))

    def _check(self, blocks: Ids) -> None:
        for block in blocks[~self._checked[blocks]].tolist():
            data = self._entries[block * BLOCK : (block + 1) * BLOCK].tobytes()
            wanted = self._table[block * _DIGEST : (block + 1) * _DIGEST].hex()
            self._expect(f"sha256 of block {block}", wanted, sha256_hex(data))
            self._checked[block] = True

    def _expect(self, what: str, expected: object, found: object) -> None:
        if expected != found:
            raise DatasetError(
                f"{self._path}: {what}: expected {expected!r}, found {found!r}; {_REMEDY}"
            )


def _read_header(header: bytes) -> dict[str, Any]:
    """The record, or an empty one that no check lets pass."""
    try:
        record = json.loads(header)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
