"""`norm-v1`: a gradient norm whose bits do not depend on how the gradient is sharded.

The flat canonical gradient is cut into chunks of 4,096. Squares are summed in fp64 by halving:
x[:n/2] + x[n/2:], twelve times a chunk, then over the chunk sums in index order padded with zeros
to a power of two. Every operation is one elementwise IEEE addition, so the result is the same on
any device, and on any number of ranks that own whole chunks.
"""

from __future__ import annotations

import torch

from suite.layout import CHUNK


def halving_sum(values: torch.Tensor) -> torch.Tensor:
    """Sums the last dimension, whose length is a power of two, by repeated halving."""
    length = values.shape[-1]
    if length & (length - 1):
        raise ValueError(f"expected a power of two, found {length}")
    while length > 1:
        length //= 2
        values = values[..., :length] + values[..., length : 2 * length]
    return values[..., 0]


def chunk_sums(shard: torch.Tensor) -> torch.Tensor:
    """Sums of squares in fp64, one for each 4,096-element chunk of a rank's shard."""
    squares = shard.view(-1, CHUNK).to(torch.float64)
    return halving_sum(squares * squares)


def norm_from_chunks(sums: torch.Tensor) -> float:
    """The norm from all chunk sums in index order.

    Trailing zero chunks (padding) change nothing.
    """
    padded = torch.zeros(1 << (sums.numel() - 1).bit_length(), dtype=torch.float64)
    padded[: sums.numel()] = sums
    return float(halving_sum(padded).sqrt())
