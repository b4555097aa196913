"""Models: stock `transformers` causal LMs built from a config, ready for the exact step.

What is ours: the named initialisation (`suite.initialise`), dropout keyed by sequence
(`suite.dropout`) and the zero rows of vocabulary padding. A checkpoint knows nothing of the last
two: it loads into the stock class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from suite.config import ModelConfig
from suite.dropout import install_dropout
from suite.families import FAMILIES, Family, hf_config
from suite.initialise import initialise

# Mamba's state matrices, which the reference code marks `_no_weight_decay`.
_UNDECAYED = ("mixer.A_log", "mixer.D")


def build_model(config: ModelConfig, init_seed: int) -> nn.Module:
    """A causal LM with fp32 weights under the config's named initialisation, in training mode.

    Raises:
        FamilyError: keys that the family does not have.
        TypeError, ValueError: from `transformers`, for values it does not accept.
    """
    model = empty_model(FAMILIES[config.family], config.hf)
    initialise(model, config.initialisation, init_seed)
    return _prepared(model, config)


def load_published(directory: Path, config: ModelConfig) -> nn.Module:
    """A published revision, read as anyone would read it, then made ready for the exact step.

    Args:
        directory: holds `config.json` and `model.safetensors`.
        config: the rung's model; its padding and dropout are not part of what is published.
    """
    from transformers import AutoModelForCausalLM

    family = FAMILIES[config.family]
    kwargs = {"attn_implementation": family.attention} if family.attention else {}
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, experts_implementation="eager", **kwargs
    )
    return _prepared(model, config)


def _prepared(model: nn.Module, config: ModelConfig) -> nn.Module:
    pad_vocabulary(model, config.vocab_padding_multiple)
    install_dropout(model, FAMILIES[config.family])
    return model.train()


def empty_model(family: Family, hf: Mapping[str, Any], device: str = "cpu") -> nn.Module:
    """A causal LM of a family in fp32, with whatever weights `transformers` gives it.

    On the device "meta" it has shapes and no memory.
    """
    import transformers

    with torch.device(device):
        model: nn.Module = getattr(transformers, family.model_class)(hf_config(family, hf))
    return model.to(torch.float32)


def to_precision(model: nn.Module, precision: str) -> None:
    """Makes a model of fp32 weights compute as a precision says, outside an engine.

    With `bf16-params` its parameters become bf16, rounded to nearest even; its buffers (rotary
    frequencies) stay fp32.
    """
    if precision == "bf16-params":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)


@torch.no_grad()
def pad_vocabulary(model: nn.Module, multiple: int) -> None:
    """Adds zero rows to the embeddings until their number is a multiple of `multiple`.

    Kernels like round sizes. The configuration keeps the vocabulary of the tokenizer: the loss
    leaves the padded logits out, so their rows have no gradient and stay zero, and checkpoints do
    not store them. (A vocabulary whose padding takes part in the softmax, as in the published
    Pythia, is simply a larger `vocab_size`.)
    """
    rows = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    padded = -(-rows // multiple) * multiple
    if padded == rows:
        return
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    tied = inputs.weight is outputs.weight
    inputs.weight, inputs.num_embeddings = _padded(inputs.weight, padded), padded
    outputs.weight = inputs.weight if tied else _padded(outputs.weight, padded)
    outputs.out_features = padded


def _padded(weight: nn.Parameter, rows: int) -> nn.Parameter:
    zeros = weight.new_zeros(rows - weight.shape[0], weight.shape[1])
    return nn.Parameter(torch.cat([weight.data, zeros]))


def count_parameters(config: ModelConfig) -> int:
    """Parameters of a model as its checkpoint stores them; tied matrices count once.

    Nothing is allocated.
    """
    model = empty_model(FAMILIES[config.family], config.hf, device="meta")
    return sum(parameter.numel() for parameter in model.parameters())


def checkpoint_blocks(model: nn.Module) -> None:
    """Recomputes each block in the backward pass instead of keeping what it computed.

    Changes no bit: blocks are functions of their inputs, their weights and keyed masks. No
    generator is saved or restored, because none is used.
    """
    kwargs = {"use_reentrant": False, "preserve_rng_state": False}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)  # type: ignore[operator]


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies to a parameter, by canonical name.

    Matrices, embeddings, convolutions, experts and routers decay; biases, norms and Mamba's A_log
    and D do not.
    """
    return parameter.dim() >= 2 and not name.endswith(_UNDECAYED)
