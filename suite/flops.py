"""How many floating-point operations a model needs: pure functions of its configuration.

Two counts, both of what the mathematics needs and not of what a machine does (recomputing
activations is extra; see `suite.memory`):

- `six_nd`: 6·N·D (Kaplan et al. 2020, section 2.1): six operations a parameter and token, two in
  the forward, four in the backward. N here is every parameter, as in "6ND" of a model card.
- `forward_flops`: every matrix product of every layer, a multiplication and an addition counted
  apart, with the attention to the (S + 1)/2 keys that a causal query sees on average. The backward
  is twice the forward. (PaLM's utilisation, Chowdhery et al. 2022, appendix B, counts all S keys;
  `ForwardFlops.attention_full` is that.) An embedding is a lookup and costs nothing; the output
  matrix is a product and does. Norms, activations and softmax are left out: below a hundredth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suite.families import FAMILIES, hf_config


@dataclass(frozen=True)
class ForwardFlops:
    """Forward operations for one token of a sequence of `seq_len`.

    Attributes:
        layers: matrix products of all blocks (and Mamba's convolution and scan).
        attention: products of queries with keys and of probabilities with values, causal.
        attention_full: the same without regard to the mask.
        head: the output matrix.
    """

    layers: float
    attention: float
    attention_full: float
    head: float

    @property
    def total(self) -> float:
        """Forward operations a token."""
        return self.layers + self.attention + self.head

    @property
    def training(self) -> float:
        """Forward and backward operations a token."""
        return 3.0 * self.total


def six_nd(parameters: int, tokens: int) -> float:
    """6·N·D."""
    return 6.0 * parameters * tokens


def forward_flops(family: str, hf: Mapping[str, Any], seq_len: int) -> ForwardFlops:
    """Counts one family's forward.

    Args:
        family: a name of `suite.families.FAMILIES`.
        hf: keyword arguments of its configuration class.
        seq_len: S.

    Raises:
        FamilyError: keys that the family does not have.
    """
    config = hf_config(FAMILIES[family], hf)
    layers = config.num_hidden_layers * _PER_LAYER[family](config)
    attended = 0.0
    if FAMILIES[family].attention is not None:
        attended = 4.0 * config.num_hidden_layers * _query_width(config)
    return ForwardFlops(
        layers=layers,
        attention=attended * (seq_len + 1) / 2.0,
        attention_full=attended * seq_len,
        head=2.0 * config.hidden_size * config.vocab_size,
    )


def _head_width(config: Any) -> int:
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _query_width(config: Any) -> int:
    return int(config.num_attention_heads) * _head_width(config)


def _grouped_attention(config: Any) -> float:
    """Query, key, value and output projections; keys and values may have fewer heads."""
    keys = int(config.num_key_value_heads) * _head_width(config)
    return float(2 * config.hidden_size * (2 * _query_width(config) + 2 * keys))


def _gpt_neox(config: Any) -> float:
    """Fused query, key and value 3h², output h², up and down 2·h·i."""
    h, wide = config.hidden_size, config.intermediate_size
    return float(2 * (4 * h * h + 2 * h * wide))


def _llama(config: Any) -> float:
    return _grouped_attention(config) + float(6 * config.hidden_size * config.intermediate_size)


def _mixtral(config: Any) -> float:
    """Only the experts that a token is routed to, and the router."""
    h, active = config.hidden_size, config.num_experts_per_tok
    experts = 3 * h * config.intermediate_size * active
    return _grouped_attention(config) + float(2 * (experts + h * config.num_local_experts))


def mamba_products(config: Any) -> float:
    """Matrix products of one Mamba block: the projections in and out, and those of the step."""
    h, d = config.hidden_size, config.intermediate_size
    rank, states = config.time_step_rank, config.state_size
    return float(2 * (h * 2 * d + d * (rank + 2 * states) + rank * d + d * h))


def _mamba(config: Any) -> float:
    """Products, convolution, and 9·d·n + 2·d for the scan (state-spaces/mamba #110)."""
    d = config.intermediate_size
    scan = 9 * d * config.state_size + 2 * d
    return mamba_products(config) + float(2 * d * config.conv_kernel + scan)


_PER_LAYER: dict[str, Callable[[Any], float]] = {
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mixtral": _mixtral,
    "mamba": _mamba,
}
