"""The digests that training will be checked against, computed from the dataset alone."""

import errno
from pathlib import Path

from data_pipeline.batches import BatchReader
from data_pipeline.digests import DIGEST_BYTES, chain_over, leaf, sequence_digests, split_leaves
from data_pipeline.durable import write_bytes


def expected_leaves(reader: BatchReader, steps: int, cache: bool = True) -> bytes:
    """Compute the order log that a run of ``steps`` steps must produce.

    Args:
        reader: What the run reads.
        steps: Number of steps.
        cache: Keep the leaves in the dataset's ``leaves`` directory, in a file named by C_{-1} that
            ends with the chain over its leaves; a file whose chain does not fit is computed again.

    Returns:
        32·steps bytes: L_0 .. L_{steps-1}.
    """
    start, storage = reader.chain_start(), reader.stream.index.storage
    path = Path(str(storage)) / "leaves" / f"{start.hex()}.log"
    cache = cache and storage.is_local
    known = _cached(path, start) if cache else b""
    if len(known) >= steps * DIGEST_BYTES:
        return known[: steps * DIGEST_BYTES]
    first = len(known) // DIGEST_BYTES
    new = [leaf(step, sequence_digests(reader.ids(step))) for step in range(first, steps)]
    leaves = known + b"".join(new)
    if cache:
        _keep(path, leaves, chain_over(start, split_leaves(leaves)))
    return leaves


def _cached(path: Path, start: bytes) -> bytes:
    if not path.is_file():
        return b""
    data = path.read_bytes()
    leaves, end = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if len(data) % DIGEST_BYTES or not leaves or chain_over(start, split_leaves(leaves)) != end:
        return b""
    return leaves


def _keep(path: Path, leaves: bytes, end: bytes) -> None:
    """Keep the leaves where the directory can be written; a read-only dataset is computed anew."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, leaves + end)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
