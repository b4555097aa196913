"""How much memory one rank needs: pure functions of parameters, shapes and split.

State follows from what the engines allocate. Activations are what autograd keeps for the backward
pass, bytes for each token and layer, counted with saved-tensor hooks on torch 2.13 and the
attention of `scaled_dot_product_attention` (which keeps no probabilities); `tests/suite` counts
them again. Not in here: the CUDA context, fragmentation, communication buffers and workspaces, for
which the hardware's `usable` leaves room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suite.families import FAMILIES, hf_config

# Output probabilities: fp32 logits, their log-softmax and one gradient of each are alive at once.
_LOGIT_BYTES = 12
# ZeRO-2 and ZeRO-3 gather into buckets of so many bytes (DeepSpeed's default, 5e8 fp16 elements).
_BUCKET_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Split:
    """How one rung is laid out over ranks.

    Attributes:
        engine: "reference" or "deepspeed".
        data_ranks: W, ranks that have quanta of their own.
        tensor_parallel: T, ranks that share one copy of the weights.
        zero_stage: what is sharded over the data ranks (the reference engine is ZeRO-1).
        activation_checkpointing: "none" or "blocks".
        quantum: q, sequences of one forward and backward: the micro-batch.
        loss_chunk: tokens whose logits exist at a time; None: the whole quantum.
    """

    engine: str
    data_ranks: int
    tensor_parallel: int
    zero_stage: int
    activation_checkpointing: str
    quantum: int
    loss_chunk: int | None

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.data_ranks * self.tensor_parallel

    @property
    def elastic(self) -> bool:
        """Whether the bits are the same on any number of ranks."""
        return self.zero_stage <= 1 and self.tensor_parallel == 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        weights: weights, masters and computing copies.
        gradients: gradients of a quantum and the accumulator.
        moments: both moments.
        activations: what is kept for the backward pass.
        logits: the output layer at its largest.
        update: temporaries of the update, when gradients of the quantum and activations are gone.
    """

    weights: float
    gradients: float
    moments: float
    activations: float
    logits: float
    update: float

    @property
    def state(self) -> float:
        """Bytes that are there during a backward pass whatever the quantum is."""
        return self.weights + self.gradients + self.moments

    @property
    def peak(self) -> float:
        """The larger of the backward pass and the update."""
        backward = self.state + self.activations + self.logits
        return max(backward, self.weights + self.moments + self.update)


def rank_memory(
    family: str, hf: Mapping[str, Any], parameters: int, seq_len: int, precision: str, split: Split
) -> Memory:
    """Bytes that one rank needs.

    Args:
        family: a name of `suite.families.FAMILIES`.
        hf: keyword arguments of its configuration class.
        parameters: P, as they are in memory.
        seq_len: S.
        precision: "fp32", "bf16" or "bf16-params".
        split: the layout.
    """
    tokens = split.quantum * seq_len
    config = hf_config(FAMILIES[family], hf)
    half = precision != "fp32"
    layer = activation_bytes(family, config, half) * tokens / split.tensor_parallel
    layers = int(config.num_hidden_layers)
    casts = 2.0 * parameters / split.tensor_parallel if precision == "bf16" else 0.0
    if split.activation_checkpointing == "blocks":
        # Each block keeps its fp32 input; one block is computed again at a time.
        stream = 4.0 * config.hidden_size * tokens
        activations = layers * stream + layer + casts / layers
    else:
        activations = layers * layer + casts
    logits = _LOGIT_BYTES * min(tokens, split.loss_chunk or tokens) * config.vocab_size
    weights, gradients, moments, update = _state(parameters, precision, split)
    logits /= split.tensor_parallel
    return Memory(weights, gradients, moments, activations, float(logits), update)


def _state(parameters: int, precision: str, split: Split) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients, moments and of the temporaries of an update."""
    mine = parameters / split.tensor_parallel
    shard = mine / split.data_ranks
    copy = 2.0 if precision == "bf16-params" else 0.0
    if split.elastic:
        # fp32 weights on every rank; fp32 gradients of one quantum beside the int64 accumulator.
        # The update turns the reduced int64 shard into fp64 and fp32 (`mean gradient`).
        reduced = 8.0 * shard if split.data_ranks > 1 else 0.0
        return (4.0 + copy) * mine, 12.0 * mine, 8.0 * shard, 8.0 * mine + reduced + 12.0 * shard
    computing = copy or 4.0
    masters = 4.0 if copy else 0.0
    if split.zero_stage >= 3:
        weights = (computing + masters) * shard + min(computing * mine, 2.0 * _BUCKET_BYTES)
    else:
        weights = computing * mine + masters * shard
    held = shard if split.zero_stage >= 2 else mine
    gradients = 4.0 * held + min(computing * mine, _BUCKET_BYTES)
    return weights, gradients, 8.0 * shard, 4.0 * shard


def activation_bytes(family: str, config: Any, half: bool) -> float:
    """Bytes kept for one token by one block.

    Args:
        family: a name of `suite.families.FAMILIES`.
        config: its `transformers` configuration.
        half: bf16 under autocast (norms and the residual stream stay fp32) rather than fp32.
    """
    return _KEPT[family](config, half)


def _gpt_neox(config: Any, half: bool) -> float:
    """Input, two norms, query-key-value with its rotated parts, attention, the MLP."""
    h, wide = config.hidden_size, config.intermediate_size
    return float(22 * h + 4 * wide + 32 if half else 40 * h + 8 * wide + 32)


def _attention(config: Any, half: bool) -> float:
    keys = config.num_key_value_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    h = config.hidden_size
    return float(30 * h + 4 * keys if half else 32 * h + 8 * keys)


def _llama(config: Any, half: bool) -> float:
    return _attention(config, half) + float((8 if half else 16) * config.intermediate_size + 24)


def _mixtral(config: Any, half: bool) -> float:
    """The active experts keep their inputs gathered and their outputs weighted, besides."""
    h, wide = config.hidden_size, config.intermediate_size
    expert = 8 * wide + 7 * h + 32 if half else 16 * wide + 12 * h + 32
    router = 4 * config.num_local_experts + 28
    return _attention(config, half) + float(config.num_experts_per_tok * expert + router)


def _mamba(config: Any, half: bool) -> float:
    """The reference scan keeps its state for every token: d·n values, three times and more."""
    h, states = config.hidden_size, config.state_size
    scan = config.intermediate_size * states
    return float(14 * scan + 66 * h if half else 12 * scan + 94 * h)


_KEPT: dict[str, Callable[[Any, bool], float]] = {
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mixtral": _mixtral,
    "mamba": _mamba,
}
