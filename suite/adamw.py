"""`adamw-v1`: AdamW (Loshchilov and Hutter 2019) with one IEEE operation per call.

No fused multiply-add and no division by a Python scalar, so that given the reduced gradient the new
state is the same on other hardware too. Elementwise, so shards may be cut anywhere. Scalars are
computed in fp64 and rounded to fp32 once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from suite.config import TrainConfig

_BLOCK = 1 << 15


@dataclass
class Moments:
    """First and second moments of one rank's shard, fp32."""

    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor


@torch.no_grad()
def adamw_v1(
    weights: torch.Tensor,
    grad: torch.Tensor,
    moments: Moments,
    decayed_spans: list[tuple[int, int]],
    update: int,
    lr: float,
    train: TrainConfig,
) -> None:
    """Updates one shard in place.

    Args:
        weights: fp32 shard.
        grad: fp32 mean gradient of the shard, clipped; overwritten.
        moments: moments of the shard.
        decayed_spans: shard-relative spans with weight decay.
        update: 1-based number of this update, for bias correction.
        lr: learning rate of this update.
        train: betas, eps, weight decay.
    """
    # w <- w·(1 - lr·wd); m <- b1·m + (1-b1)·g; v <- b2·v + (1-b2)·g²; w <- w - lr/(1-b1^t) ·
    # m/(sqrt(v)/sqrt(1-b2^t) + eps)
    if train.weight_decay and lr:
        for start, stop in decayed_spans:
            weights[start:stop].mul_(1.0 - lr * train.weight_decay)
    step_size = lr / (1.0 - train.beta1**update)
    inverse_root = 1.0 / math.sqrt(1.0 - train.beta2**update)
    for start in range(0, weights.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        g, m, v = grad[block], moments.exp_avg[block], moments.exp_avg_sq[block]
        m.mul_(train.beta1).add_(g * (1.0 - train.beta1))
        v.mul_(train.beta2).add_((g * g).mul_(1.0 - train.beta2))
        denominator = v.sqrt().mul_(inverse_root).add_(train.eps)
        weights[block].sub_((m / denominator).mul_(step_size))
