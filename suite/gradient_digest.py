"""`gradient-digest-v1`: one digest of a step's reduced gradient, the same on any number of ranks.

The flat canonical gradient before clipping is cut into chunks of 4,096; each rank hashes the chunks
of its shard and 32 bytes a chunk are gathered. Logged for every update, so a replay can be compared
between checkpoints, where no weights are stored. Specification: docs/spec/exact-step.md.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from suite.comm import Group
from suite.layout import CHUNK

_DOMAIN = b"gradient-digest-v1\0"


def chunk_digests(shard: torch.Tensor) -> torch.Tensor:
    """SHA-256 of each 4,096-element chunk of a shard as little-endian fp32: uint8 [n·32]."""
    data = np.ascontiguousarray(shard.detach().cpu().numpy(), dtype="<f4").reshape(-1, CHUNK)
    joined = b"".join(hashlib.sha256(row.data).digest() for row in data)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


def gradient_digest(shard: torch.Tensor, size: int, group: Group) -> str:
    """The digest of the whole gradient, hex; all ranks call it, every rank gets it.

    Args:
        shard: this rank's part of the flat canonical gradient, whole chunks of fp32.
        size: parameters in all, without padding.
        group: the ranks that hold the other parts.
    """
    gathered = group.all_gather(chunk_digests(shard).to(shard.device)).cpu().numpy().tobytes()
    used = -(-size // CHUNK) * 32
    return hashlib.sha256(_DOMAIN + size.to_bytes(8, "little") + gathered[:used]).hexdigest()
