"""`adamw-v1` as a torch optimizer, so that DeepSpeed runs the reference's update on its shards."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from suite.adamw import Moments, adamw_v1
from suite.config import TrainConfig
from suite.models import decays

KINDS = ("exp_avg", "exp_avg_sq")


class AdamWV1(torch.optim.Optimizer):
    """One group with weight decay, one without; parameters in canonical order.

    Elementwise, so DeepSpeed may replace a group's parameters by flat shards of them. Before each
    step, `prepare` says the number of the update and its learning rate.

    Args:
        parameters: by canonical name, in their full shapes.
        train: betas, eps, weight decay.
        digests: whether `gradient_digest` will be asked for.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], train: TrainConfig, digests: bool
    ) -> None:
        split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in parameters.items():
            split[decays(name, parameter)].append(parameter)
        groups = [{"params": split[decay], "decay": decay} for decay in split if split[decay]]
        super().__init__(groups, {"lr": 0.0})
        self._train, self._update, self._lr, self._digests = train, 0, 0.0, digests
        self._digest = hashlib.sha256()

    def prepare(self, update: int, lr: float) -> None:
        """Names the 1-based update and its learning rate; forgets the last one's gradients."""
        self._update, self._lr = update, lr
        self._digest = hashlib.sha256(b"gradient-digest-layout-v1\0")

    def moments(self, parameter: torch.Tensor) -> Moments:
        """The moments of a parameter or flat shard, zero where there are none yet."""
        state = self.state[parameter]
        for kind in KINDS:
            if kind not in state:
                state[kind] = torch.zeros_like(parameter, requires_grad=False)
        return Moments(*(state[kind] for kind in KINDS))

    def gradient_digest(self) -> bytes:
        """SHA-256 of the clipped fp32 gradients that this rank's update consumed, in order."""
        return self._digest.digest()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates the parameters that DeepSpeed has put into the groups."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                weights, grad = parameter.data.view(-1), parameter.grad.view(-1)
                if self._digests:
                    self._digest.update(grad.contiguous().cpu().numpy().tobytes())
                spans = [(0, weights.numel())] if group["decay"] else []
                moments = self.moments(parameter)
                flat = Moments(moments.exp_avg.view(-1), moments.exp_avg_sq.view(-1))
                adamw_v1(weights, grad, flat, spans, self._update, self._lr, self._train)
