"""`fixed64-v1` over a model and over ranks: add, reduce, clip; shared by every exact engine.

What an engine does around it (who computes which quantum, where weights live) changes no bit of the
gradient that comes out. Specification: docs/spec/exact-step.md, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from suite.comm import Group
from suite.gradient_digest import gradient_digest
from suite.layout import Layout
from suite.norm import chunk_sums, norm_from_chunks
from suite.quantise import SCALE_BITS, Quantiser


@torch.no_grad()
def add_gradients(
    accumulator: torch.Tensor,
    layout: Layout,
    parameters: Mapping[str, torch.nn.Parameter],
    quantise: Quantiser,
    limit: float,
) -> int:
    """Adds one quantum's gradients to the accumulator and clears them.

    Args:
        accumulator: int64 [layout.padded]; updated in place.
        layout: where each parameter lives.
        parameters: by canonical name; fp32 or bf16 gradients (bf16 to fp32 is exact). A parameter
            without a gradient adds zero.
        quantise: the verified quantiser.
        limit: from `suite.quantise.range_limit`.

    Returns:
        How many values were out of range.
    """
    bad = 0
    for slot in layout.slots:
        grad = parameters[slot.name].grad
        if grad is not None:
            part = accumulator[slot.start : slot.start + slot.size]
            bad += quantise(part, grad.float(), limit)
            parameters[slot.name].grad = None
    return bad


def mean_gradient(
    accumulator: torch.Tensor, layout: Layout, num_quanta: int, group: Group
) -> torch.Tensor:
    """This rank's shard of the mean gradient over all quanta of all ranks, fp32 [layout.shard]."""
    total = group.reduce_scatter_int64(accumulator, layout.shard)
    return total.to(torch.float64).mul_(2.0**-SCALE_BITS / num_quanta).to(torch.float32)


def clip_gradient(
    grad: torch.Tensor, layout: Layout, clip: float, group: Group
) -> tuple[float, float, str]:
    """Clips a shard of the mean gradient in place by the canonical norm of the whole.

    Returns:
        The norm, the coefficient, and the digest of the gradient before clipping; the same on
        every rank.
    """
    digest = gradient_digest(grad, layout.size, group)
    sums = group.all_gather(chunk_sums(grad))
    norm = norm_from_chunks(sums[: layout.num_chunks])
    coef = float(np.float32(min(1.0, clip / (norm + 1e-6))))
    if coef < 1.0:
        grad.mul_(coef)
    return norm, coef, digest
