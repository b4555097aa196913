"""`dropout-v1`: dropout whose mask depends on the sequence, not on who computes it or when.

An element is dropped by a function of (dropout seed, position of its sequence in the run, site,
index of the element inside the sequence). The position of row r of step t is t·B + r; the site is
the module's path. So masks do not depend on ranks, quanta, batch splits, devices, or on how often a
block is recomputed, and no generator has a state. Specification with vectors:
docs/spec/exact-step.md.

The trainer tells the modules where they are:

    with model.dropout_context.at(seed, position):
        loss = ...; loss.backward()

A forward in training mode outside of such a block is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from suite.families import Family

ATTENTION = "dropout-v1"


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# splitmix64 (Steele, Lea and Flood 2014), in two's complement.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def mix64_(z: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64, elementwise and in place on int64 (read as unsigned)."""
    _shift_xor_(z, 30).mul_(_MIX_1)
    _shift_xor_(z, 27).mul_(_MIX_2)
    return _shift_xor_(z, 31)


def _shift_xor_(z: torch.Tensor, bits: int) -> torch.Tensor:
    return z.bitwise_xor_(_shifted(z, bits))


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    # torch shifts int64 arithmetically; the mask makes it a logical shift.
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


@functools.lru_cache(maxsize=4096)
def site_key(seed: int, site: str) -> int:
    """The key of a site: eight bytes of SHA-256, as a signed little-endian integer."""
    digest = hashlib.sha256(f"dropout-v1\0{seed}\0{site}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def keep_mask(
    seed: int, position: int, site: str, shape: tuple[int, ...], p: float, device: torch.device
) -> torch.Tensor:
    """Which elements stay: bool, `shape`, of which the first dimension runs over sequences.

    Args:
        seed: dropout seed of the run.
        position: position in the run of the first sequence; the others follow.
        site: path of the module.
        shape: [sequences, ...]; elements are counted row-major inside a sequence.
        p: probability of dropping, rounded to a multiple of 2^-32.
        device: where to compute; integers only, so the values are the same everywhere.
    """
    rows = torch.arange(position + 1, position + 1 + shape[0], dtype=torch.int64, device=device)
    keys = mix64_(rows * _GOLDEN + site_key(seed, site))
    count = math.prod(shape[1:])
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=device) * _GOLDEN
    draws = mix64_(keys[:, None] + counters[None, :])
    return (_shifted(draws, 32) >= round(p * (1 << 32))).view(shape)


class DropoutContext:
    """Where in the run the present forward is; shared by every dropout of one model."""

    def __init__(self) -> None:
        self._place: tuple[int, int] | None = None

    @contextlib.contextmanager
    def at(self, seed: int, position: int) -> Iterator[None]:
        """Forward and backward inside belong to the sequences from `position` on.

        The backward too, because recomputed blocks draw their masks again.
        """
        before, self._place = self._place, (seed, position)
        try:
            yield
        finally:
            self._place = before

    @property
    def place(self) -> tuple[int, int]:
        """The dropout seed and the position of the first sequence.

        Raises:
            RuntimeError: outside of `at`.
        """
        if self._place is None:
            raise RuntimeError(
                "dropout in training mode outside of `dropout_context.at(seed, position)`: the "
                "mask has no key; enter the context, or call model.eval()"
            )
        return self._place


class Site:
    """One place of a model where dropout happens."""

    def __init__(self, context: DropoutContext, path: str, p: float) -> None:
        self.context, self.path, self.p = context, path, p

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Drops and rescales values [sequences, ...]; two operations, each elementwise."""
        seed, position = self.context.place
        keep = keep_mask(seed, position, self.path, tuple(values.shape), self.p, values.device)
        return torch.where(keep, values * (1.0 / (1.0 - self.p)), values.new_zeros(()))


class KeyedDropout(nn.Module):
    """Takes the place of an `nn.Dropout`."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Keyed dropout of [sequences, ...] in training mode, nothing in evaluation."""
        return self.site(values) if self.training else values


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations with keyed dropout of the probabilities.

    The interface of `transformers` (AttentionInterface). Kernels with dropout inside draw from the
    device's generator, so this one materialises the probabilities [sequences, heads, S, S].
    """
    del kwargs
    groups = int(getattr(module, "num_key_value_groups", 1))
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if dropout:
        probabilities = module.dropout_site(probabilities)  # type: ignore[operator]
    output = torch.matmul(probabilities, value).transpose(1, 2).contiguous()
    return output, probabilities


def install_dropout(model: nn.Module, family: Family) -> None:
    """Keys every dropout of a model that is not zero; others, and their kernels, are left alone.

    Sets `model.dropout_context`.
    """
    context = DropoutContext()
    model.dropout_context = context  # type: ignore[assignment]
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and module.p:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, KeyedDropout(Site(context, path, module.p)))
    config: Any = model.config
    probability = max((getattr(config, key) for key in family.attention_dropout), default=0.0)
    if not probability:
        return
    _register_attention()
    config._attn_implementation = ATTENTION
    for path, module in model.named_modules():
        if hasattr(module, "attention_dropout"):
            module.dropout_site = Site(context, path, probability)


def _register_attention() -> None:
    """Makes `attention` known to transformers under its version; the function has no state."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
