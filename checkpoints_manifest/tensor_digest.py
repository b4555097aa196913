"""`tensor-digest-v1`: digests of tensors that do not depend on the file format. No torch needed.

A leaf covers a tensor's name, dtype, shape and little-endian bytes (so -0.0 is not 0.0); a root
covers all leaves in name order. Specification with vectors: docs/spec/tensor-digest.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_manifest.errors import CheckpointError
from data_pipeline.canonical import canonical_json

_LEAF, _ROOT = b"tensor-digest-v1\0", b"tensor-root-v1\0"
# Bytes per element of the safetensors dtypes that a checkpoint may hold.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MAX_HEADER = 100_000_000
# Small enough to stay in cache between the two hashes.
_READ = 1 << 20


def tensor_leaf(name: str, dtype: str, shape: list[int], data: bytes | memoryview) -> bytes:
    """The 32-byte leaf of one tensor.

    Args:
        name: Hugging Face parameter name.
        dtype: safetensors name, e.g. "F32".
        shape: sizes, outermost first.
        data: row-major little-endian bytes.
    """
    digest = _leaf_hash(name, dtype, shape)
    digest.update(data)
    return digest.digest()


def _leaf_hash(name: str, dtype: str, shape: list[int]) -> hashlib._Hash:
    header = canonical_json([name, dtype, list(shape)])
    return hashlib.sha256(_LEAF + struct.pack("<Q", len(header)) + header)


def tensors_root(leaves: Mapping[str, bytes]) -> str:
    """The root over leaves in the byte order of their UTF-8 names, as hex."""
    digest = hashlib.sha256(_ROOT)
    for name in sorted(leaves, key=str.encode):
        encoded = name.encode()
        digest.update(struct.pack("<Q", len(encoded)) + encoded + leaves[name])
    return digest.hexdigest()


def read_header(path: Path) -> tuple[dict[str, tuple[str, list[int], int, int]], int]:
    """Parses and validates a safetensors header.

    Returns:
        (name -> (dtype, shape, start, stop) with offsets into the data section, where the data
        section starts).

    Raises:
        CheckpointError: an absurd size, broken JSON, an unknown dtype, or offsets that overlap,
        leave gaps or do not fit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(
                f"{path}: expected a safetensors header within {size} bytes, found length {length}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
        _check_metadata(header.pop("__metadata__", {}))
        entries = {name: _entry(name, item) for name, item in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is broken ({error})") from error
    _check_offsets(path, entries, size - 8 - length)
    return entries, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _check_metadata(found: Any) -> None:
    if type(found) is not dict or any(type(value) is not str for value in found.values()):
        raise TypeError(f"__metadata__ is not from text to text: {found!r:.100}")


def _entry(name: str, item: Mapping[str, Any]) -> tuple[str, list[int], int, int]:
    dtype, shape, (start, stop) = item["dtype"], item["shape"], item["data_offsets"]
    name.encode()  # refuses a lone surrogate, which has no bytes to hash
    if type(dtype) is not str or dtype not in DTYPE_BYTES or type(shape) is not list:
        raise TypeError(f"tensor {name!r} has dtype {dtype!r} and shape {shape!r}")
    # Exactly integers: 8.9, "8" and true are not sizes.
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise TypeError(f"tensor {name!r} has shape {shape!r} and offsets [{start!r}, {stop!r})")
    return dtype, shape, start, stop


def _check_offsets(
    path: Path, entries: dict[str, tuple[str, list[int], int, int]], available: int
) -> None:
    end = 0
    for name, (dtype, shape, start, stop) in sorted(
        entries.items(), key=lambda e: (e[1][2], e[1][3])
    ):
        if start != end or stop - start != math.prod(shape) * DTYPE_BYTES[dtype]:
            raise CheckpointError(
                f"{path}: tensor {name!r} ({dtype}, {shape}) does not fit offsets [{start}, {stop})"
            )
        end = stop
    if end != available:
        raise CheckpointError(f"{path}: expected {end} bytes of tensors, found {available}")


def file_leaves(path: Path) -> dict[str, bytes]:
    """Leaves of every tensor in a safetensors file, streamed."""
    return file_digests(path).leaves


@dataclass(frozen=True)
class FileDigests:
    """What one read of a safetensors file gives: sha256 of its bytes, leaf of each tensor."""

    size: int
    sha256: str
    leaves: dict[str, bytes]


def file_digests(path: Path, same_as: memoryview | None = None) -> FileDigests:
    """SHA-256 and leaves in a single pass over a safetensors file.

    Args:
        path: the file.
        same_as: bytes that the file must hold, for reading back what was just written.

    Raises:
        CheckpointError: a broken header, an early end, or a byte that differs from `same_as`.
    """
    entries, base = read_header(path)
    whole, leaves, done = hashlib.sha256(), {}, 0
    buffer = memoryview(bytearray(_READ))
    # The header, then the tensors in file order: `read_header` proved that they leave no gap.
    parts: list[tuple[str | None, hashlib._Hash, int]] = [(None, hashlib.sha256(), base)]
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda e: e[1][2:]):
        parts.append((name, _leaf_hash(name, dtype, shape), stop - start))
    with path.open("rb", buffering=0) as file:
        for label, digest, size in parts:
            end = done + size
            while done < end:
                count = file.readinto(buffer[: min(_READ, end - done)])
                if not count:
                    raise CheckpointError(f"{path}: ends at byte {done}, expected {end} or more")
                block = buffer[:count]
                if same_as is not None:
                    _check_same(path, block, same_as, done)
                whole.update(block)
                digest.update(block)
                done += count
            if label is not None:
                leaves[label] = digest.digest()
    if same_as is not None and len(same_as) != done:
        raise CheckpointError(f"{path}: read back {done} bytes, expected {len(same_as)}")
    return FileDigests(done, whole.hexdigest(), leaves)


def _check_same(path: Path, block: memoryview, same_as: memoryview, offset: int) -> None:
    expected = same_as[offset : offset + len(block)]
    if len(expected) == len(block) and np.array_equal(
        np.frombuffer(block, np.uint8), np.frombuffer(expected, np.uint8)
    ):
        return
    raise CheckpointError(
        f"{path}: read back other bytes than were written, within the {len(block)} from byte "
        f"{offset} on: the disk or memory of this machine changed them; "
        "the checkpoint was not published, earlier ones are untouched"
    )
