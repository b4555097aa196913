"""Models: stock `transformers` causal LMs built from a config, with our own named initialisation.

The initialisation draws each tensor from its own generator, keyed by (init seed, parameter name):
it does not depend on layout, on the order of parameters or on the rest of the model. NumPy's
`RandomState` is used because its stream is frozen by NumPy's compatibility policy (NEP 19);
`torch.randn` gives other values on another instruction set.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from checkpoints_manifest.names import canonical_parameters
from suite.config import ModelConfig


def build_model(config: ModelConfig, init_seed: int) -> nn.Module:
    """A causal LM with fp32 weights under the config's named initialisation, in training mode.

    Raises:
        TypeError, ValueError: from `transformers`, for keys it does not accept.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    hf = GPTNeoXConfig(**dict(config.hf))
    hf._attn_implementation = "sdpa"
    hf.use_cache = False
    model: nn.Module = GPTNeoXForCausalLM(hf).to(torch.float32)
    INITIALISATIONS[config.initialisation](model, config.hf, init_seed)
    return model.train()


def to_precision(model: nn.Module, precision: str) -> None:
    """Makes a model of fp32 weights compute as a precision says, outside an engine.

    With `bf16-params` its parameters become bf16, rounded to nearest even; its buffers (rotary
    frequencies) stay fp32.
    """
    if precision == "bf16-params":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)


def _normal(name: str, seed: int, shape: tuple[int, ...], std: float) -> torch.Tensor:
    key = hashlib.sha256(b"init/v1\0" + str(seed).encode() + b"\0" + name.encode()).digest()
    state = np.random.RandomState(np.frombuffer(key, dtype="<u4"))
    values = state.standard_normal(int(np.prod(shape))) * std
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


@torch.no_grad()
def small_wang_v1(model: nn.Module, hf: Any, seed: int) -> None:
    """`small-wang-v1`, as in GPT-NeoX (megatron/model/init_functions.py).

    Matrices and embeddings: N(0, 2/(5h)) (`small_init`, Nguyen and Salazar 2019). The two matrices
    that write to the residual stream: standard deviation 2/(L·sqrt(h)) (`wang_init`). Biases 0,
    LayerNorm weights 1.
    """
    hidden, layers = int(hf["hidden_size"]), int(hf["num_hidden_layers"])
    small, wang = math.sqrt(2.0 / (5.0 * hidden)), 2.0 / (layers * math.sqrt(hidden))
    for name, parameter in canonical_parameters(model).items():
        if parameter.dim() == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            residual = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            std = wang if residual else small
            parameter.copy_(_normal(name, seed, tuple(parameter.shape), std))


INITIALISATIONS = {"small-wang-v1": small_wang_v1}


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: matrices and embeddings, not biases or norms (as in Pythia)."""
    del name
    return parameter.dim() >= 2
