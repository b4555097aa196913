"""The loss of one quantum: per-sequence negative log-likelihood, and what is added to it.

Logits and loss are fp32 in every precision. Padded logits are cut off before the softmax, so they
never receive probability and their rows no gradient. Everything is computed inside one quantum,
whose shape is fixed: the split of a batch over ranks cannot change a bit.
Specification: docs/spec/exact-step.md.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from suite.config import NumericsConfig


@dataclass(frozen=True)
class QuantumLoss:
    """What one forward gives.

    `sequences` is the mean negative log-likelihood of each sequence in nats, fp32 [q], the value
    that is logged; `objective` the scalar whose gradient is taken.
    """

    sequences: torch.Tensor
    objective: torch.Tensor


def quantum_loss(model: nn.Module, ids_BT: torch.Tensor, numerics: NumericsConfig) -> QuantumLoss:
    """Forward of one quantum.

    Args:
        model: from `suite.models.build_model`.
        ids_BT: int64 [q, S+1]: S inputs, S targets, one id of overlap.
        numerics: precision ("bf16-params" is a matter of the model: its parameters are bf16) and
            `loss_chunk`.
    """
    config: Any = model.config
    coefficient = float(getattr(config, "router_aux_loss_coef", 0.0))
    extra = {"output_router_logits": True} if coefficient else {}
    with _autocast(ids_BT.device.type, numerics.precision):
        outputs = model.base_model(input_ids=ids_BT[:, :-1], use_cache=False, **extra)  # type: ignore[operator]
        head = functools.partial(_logits, model.get_output_embeddings(), config.vocab_size)  # type: ignore[operator]
        losses = token_nll(head, outputs.last_hidden_state, ids_BT[:, 1:], numerics.loss_chunk)
    sequences = losses.mean(dim=1)
    objective = sequences.mean()
    if coefficient:
        top = int(config.num_experts_per_tok)
        objective = objective + coefficient * router_balance_v1(outputs.router_logits, top)
    return QuantumLoss(sequences, objective)


def sequence_nll(model: nn.Module, ids_BT: torch.Tensor, precision: str) -> torch.Tensor:
    """Mean negative log-likelihood of each sequence, fp32 [B], from the model's own forward.

    For models that must be called whole (DistributedDataParallel); of an unpadded model it gives
    the bits of `quantum_loss` without `loss_chunk`.
    """
    with _autocast(ids_BT.device.type, precision):
        logits = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return _nll(logits, ids_BT[:, 1:].flatten()).view(ids_BT.shape[0], -1).mean(dim=1)


def _autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    if precision == "bf16":
        # Without the cache each chunk of the loss casts the output matrix for itself, so their
        # gradients are added in fp32 and not in bf16.
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


def _logits(head: nn.Module, vocab_size: int, hidden: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = head(hidden)
    return logits[..., :vocab_size] if logits.shape[-1] > vocab_size else logits


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float().flatten(0, -2), targets, reduction="none")


def token_nll(
    head: functools.partial[torch.Tensor],
    hidden_BTH: torch.Tensor,
    targets_BT: torch.Tensor,
    chunk: int | None,
) -> torch.Tensor:
    """Negative log-likelihood of each target, fp32 [B, T].

    With `chunk`, logits exist for `chunk` tokens at a time, in the forward and again in the
    backward (`chunked-ce-v1`): memory does not grow with tokens times vocabulary. The gradient of
    the output matrix is then a sum over chunks, so each chunk size is a recipe of its own.

    Args:
        head: hidden states to logits without padding.
        hidden_BTH: last hidden states.
        targets_BT: int64.
        chunk: tokens per chunk, or None for all at once.
    """
    targets = targets_BT.flatten()
    if chunk is None:
        return _nll(head(hidden_BTH), targets).view(targets_BT.shape)

    def part(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return _nll(head(hidden), wanted)

    pieces = zip(
        torch.split(hidden_BTH.flatten(0, 1), chunk), torch.split(targets, chunk), strict=True
    )
    losses = [
        checkpoint(part, hidden, wanted, use_reentrant=False, preserve_rng_state=False)
        for hidden, wanted in pieces
    ]
    return torch.cat(losses).view(targets_BT.shape)


def router_balance_v1(router_logits: tuple[torch.Tensor, ...], top: int) -> torch.Tensor:
    """`router-balance-v1`: load balance as in Switch Transformer (Fedus et al. 2021, eq. 4).

    E · sum over experts of (share of tokens routed to it) · (its mean probability), the shares and
    means taken over every token and layer of one quantum, as `transformers` does over a batch.
    Statistics of a whole batch would depend on its split.

    Args:
        router_logits: one [tokens, E] for each layer.
        top: experts per token; each token counts once for every expert it is routed to.

    Returns:
        A scalar, fp32; `top` when the load is even.
    """
    experts = router_logits[0].shape[-1]
    share = torch.zeros(experts, dtype=torch.int64, device=router_logits[0].device)
    mass = torch.zeros(experts, dtype=torch.float32, device=router_logits[0].device)
    rows = 0
    for logits in router_logits:
        probabilities = logits.float().softmax(dim=-1)
        chosen = probabilities.detach().topk(top, dim=-1).indices
        share = share + F.one_hot(chosen, experts).sum(dim=(0, 1))
        mass = mass + probabilities.sum(dim=0)
        rows += logits.shape[0]
    return (share.to(torch.float32) / rows * (mass / rows)).sum() * experts
