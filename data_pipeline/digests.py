"""order-digest-v1: a digest for every sequence, step and prefix of a run.

A sequence digest covers the S+1 ids of one sequence; the leaf of step t covers t and the B
sequence digests in row order; the chain C_t covers C_{t-1} and the leaf, and starts from
everything that names the order. The ids are hashed as fed to the model, so equal chains mean that
equal tokens were read in equal order, whatever the number of ranks or the micro-batch: each rank
digests its own rows and 32 bytes a row are gathered.

Does not prove: that the gradient used the batch. Replaying the step does. Specification with test
vectors: ``docs/spec/order.md``.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json

DIGEST_BYTES = 32
_ROWS = 32  # rows of 2,049 ids that are narrowed and hashed at a time: they stay in cache
_LEAF_DOMAIN = b"leaf-v1\0"
_CHAIN_DOMAIN = b"chain-v1\0"


def sequence_digests(ids_BT: npt.NDArray[np.integer[Any]], threads: int = 1) -> list[bytes]:
    """Digest every row of a batch.

    Args:
        ids_BT: Token ids [B, S+1] of any integer type: inputs are columns 0..S-1, targets 1..S.
        threads: Threads that hash; the digests are the same for any number. Rows of 512 ids and
            more gain by it: ``hashlib`` holds the interpreter lock below 2,048 bytes.

    Returns:
        B digests of 32 bytes: SHA-256 of the S+1 ids as little-endian uint32.

    Raises:
        ValueError: Not a matrix of integers, an id outside [0, 2^32), or ``threads`` below 1.
    """
    if threads < 1:
        raise ValueError(f"expected threads >= 1, found {threads}")
    ids_BT = np.asarray(ids_BT)
    if ids_BT.ndim != 2 or not np.issubdtype(ids_BT.dtype, np.integer):
        raise ValueError(
            f"expected integer ids of shape [B, S+1], found {ids_BT.dtype} {ids_BT.shape}"
        )
    parts = [ids_BT[first : first + _ROWS] for first in range(0, len(ids_BT), _ROWS)]
    if threads == 1 or len(parts) < 2:
        return [digest for rows in parts for digest in _row_digests(rows)]
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        return [digest for digests in pool.map(_row_digests, parts) for digest in digests]


def _expect_32_bits(ids: npt.NDArray[np.integer[Any]]) -> None:
    if ids.size and not np.can_cast(ids.dtype, np.uint32, "safe"):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= 1 << 32:
            raise ValueError(f"expected ids in [0, 2^32), found {low}..{high}")


def _row_digests(ids: npt.NDArray[np.integer[Any]]) -> list[bytes]:
    """Hash each row where it lies; SHA-256 is nine tenths of the time."""
    _expect_32_bits(ids)
    rows = np.ascontiguousarray(ids, dtype="<u4")
    size = rows.shape[1] * rows.itemsize
    data = rows.reshape(-1).data.cast("B")
    starts = range(0, len(rows) * size, size) if size else [0] * len(rows)
    return [hashlib.sha256(data[start : start + size]).digest() for start in starts]


def leaf(step: int, digests: Sequence[bytes]) -> bytes:
    """Return L_t, the digest of step ``step`` (0-based) from its sequence digests in row order.

    Raises:
        ValueError: No digests, a digest that is not 32 bytes long, or a negative step.
    """
    if step < 0 or not digests or any(len(digest) != DIGEST_BYTES for digest in digests):
        lengths = sorted({len(digest) for digest in digests})
        raise ValueError(
            f"expected step >= 0 and digests of {DIGEST_BYTES} bytes, "
            f"found step {step} and {len(digests)} digests of lengths {lengths}"
        )
    return hashlib.sha256(_LEAF_DOMAIN + struct.pack("<Q", step) + b"".join(digests)).digest()


def chain_start(
    index_digest: str,
    seq_len: int,
    batch_size: int,
    order: str,
    seed: int,
    overlay: str | None = None,
) -> bytes:
    """Return C_{-1}, which names everything that decides the order.

    Args:
        index_digest: 64 hexadecimal digits.
        seq_len: S, the inputs of a sequence.
        batch_size: B, the sequences of a step.
        order: Name of the order, ``order-v1``.
        seed: The data seed.
        overlay: Digest of a manifest that replaces sequences, or None.
    """
    record = {
        "batch_size": batch_size,
        "index_digest": index_digest,
        "order": order,
        "overlay": overlay,
        "seed": seed,
        "seq_len": seq_len,
    }
    return hashlib.sha256(_CHAIN_DOMAIN + canonical_json(record)).digest()


def chain_next(previous: bytes, leaf: bytes) -> bytes:
    """Return C_t from C_{t-1} and L_t.

    Raises:
        ValueError: An argument that is not 32 bytes long.
    """
    if len(previous) != DIGEST_BYTES or len(leaf) != DIGEST_BYTES:
        raise ValueError(
            f"expected two digests of {DIGEST_BYTES} bytes, found {len(previous)} and {len(leaf)}"
        )
    return hashlib.sha256(previous + leaf).digest()


def chain_over(start: bytes, leaves: Iterable[bytes]) -> bytes:
    """Return the chain after all ``leaves``; ``start`` itself when there are none."""
    for one in leaves:
        start = chain_next(start, one)
    return start


def split_leaves(log: bytes) -> list[bytes]:
    """Cut the bytes of an ``order.log`` into leaves.

    Raises:
        ValueError: The length is not a multiple of 32.
    """
    if len(log) % DIGEST_BYTES:
        raise ValueError(
            f"expected a multiple of {DIGEST_BYTES} bytes, found {len(log)}; "
            "the log is cut short: restore it from the run's newest checkpoint"
        )
    return [log[start : start + DIGEST_BYTES] for start in range(0, len(log), DIGEST_BYTES)]
