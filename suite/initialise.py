"""Named initialisations: each stored tensor is drawn from its own generator.

The key of a draw is (init seed, stored name), so a tensor does not depend on layout, on the order
of parameters or on the rest of the model. NumPy's `RandomState` is used because its stream is
frozen by NumPy's compatibility policy (NEP 19); `torch.randn` gives other values on another
instruction set. Specification with vectors: docs/spec/exact-step.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from checkpoints_manifest.names import VOCABULARY, stored_parameters
from suite.families import FAMILIES


def generator(name: str, seed: int) -> np.random.RandomState:
    """The generator of one stored tensor."""
    key = hashlib.sha256(b"init/v1\0" + str(seed).encode() + b"\0" + name.encode()).digest()
    return np.random.RandomState(np.frombuffer(key, dtype="<u4"))


def normal(name: str, seed: int, shape: tuple[int, ...], std: float) -> torch.Tensor:
    """N(0, std²) in fp64, rounded to fp32."""
    values = generator(name, seed).standard_normal(int(np.prod(shape))) * std
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def uniform(name: str, seed: int, shape: tuple[int, ...], bound: float) -> torch.Tensor:
    """Uniform on [-bound, bound) in fp64, rounded to fp32."""
    values = (2.0 * generator(name, seed).random_sample(int(np.prod(shape))) - 1.0) * bound
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def _residual(config: Any, name: str) -> bool:
    return name.endswith(FAMILIES[config.model_type].residual)


def _vector(name: str) -> float:
    return 1.0 if "norm" in name and name.endswith("weight") else 0.0


def small_wang_v1(config: Any, name: str, view: torch.Tensor, seed: int) -> None:
    """`small-wang-v1`, as in GPT-NeoX (megatron/model/init_functions.py).

    Matrices and embeddings: N(0, 2/(5h)) (`small_init`, Nguyen and Salazar 2019). The matrices that
    write to the residual stream: standard deviation 2/(L·sqrt(h)) (`wang_init`). Biases 0, norm
    weights 1.
    """
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    if view.dim() == 1:
        view.fill_(_vector(name))
        return
    small, wang = math.sqrt(2.0 / (5.0 * hidden)), 2.0 / (layers * math.sqrt(hidden))
    std = wang if _residual(config, name) else small
    view.copy_(normal(name, seed, tuple(view.shape), std))


def scaled_normal_v1(config: Any, name: str, view: torch.Tensor, seed: int) -> None:
    """`scaled-normal-v1`: N(0, 0.02²), scaled down by depth where the residual stream is written.

    GPT-2 (Radford et al. 2019, section 2.3) and Megatron-LM (`scaled_init_method_normal`): the two
    matrices of each block that write to the residual stream have 0.02/sqrt(2L). Embeddings and
    routers are matrices like the others. Biases 0, norm weights 1.
    """
    if view.dim() == 1:
        view.fill_(_vector(name))
        return
    depth = math.sqrt(2.0 * int(config.num_hidden_layers)) if _residual(config, name) else 1.0
    view.copy_(normal(name, seed, tuple(view.shape), 0.02 / depth))


def mamba_v1(config: Any, name: str, view: torch.Tensor, seed: int) -> None:
    """`mamba-v1`, as in the reference code (state-spaces/mamba, `mixer_seq_simple._init_weights`).

    Embeddings N(0, 0.02²). Projections U(±1/sqrt(fan-in)), PyTorch's default for linear layers,
    divided by sqrt(L) for `out_proj`. The convolution, weight and bias: U(±1/sqrt(kernel)). A_log
    = log(1..N) in every channel (S4D-real), D = 1. `dt_proj.weight` U(±rank^-1/2 · scale); its bias
    is the inverse softplus of steps drawn log-uniformly from [time_step_min, time_step_max], no
    less than `time_step_floor`. Other biases 0, norm weights 1.
    """
    shape = tuple(view.shape)
    if name in VOCABULARY:
        view.copy_(normal(name, seed, shape, 0.02))
    elif name.endswith("A_log"):
        row = [math.log(n) for n in range(1, shape[1] + 1)]
        view.copy_(torch.tensor(row, dtype=torch.float32).expand(shape))
    elif name.endswith(".D"):
        view.fill_(1.0)
    elif name.endswith("dt_proj.weight"):
        bound = float(config.time_step_rank) ** -0.5 * float(config.time_step_scale)
        view.copy_(uniform(name, seed, shape, bound))
    elif name.endswith("dt_proj.bias"):
        view.copy_(_step_bias(config, name, shape[0], seed))
    elif "conv1d" in name:
        view.copy_(uniform(name, seed, shape, 1.0 / math.sqrt(config.conv_kernel)))
    elif view.dim() == 1:
        view.fill_(_vector(name))
    else:
        depth = math.sqrt(int(config.num_hidden_layers)) if _residual(config, name) else 1.0
        view.copy_(uniform(name, seed, shape, 1.0 / (math.sqrt(shape[1]) * depth)))


def _step_bias(config: Any, name: str, channels: int, seed: int) -> torch.Tensor:
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    draws = generator(name, seed).random_sample(channels).tolist()
    steps = [max(math.exp(u * (high - low) + low), config.time_step_floor) for u in draws]
    # softplus(b) = dt, so b = dt + log(1 - exp(-dt)).
    biases = [dt + math.log(-math.expm1(-dt)) for dt in steps]
    return torch.tensor(biases, dtype=torch.float64).to(torch.float32)


Initialisation = Callable[[Any, str, torch.Tensor, int], None]
INITIALISATIONS: dict[str, Initialisation] = {
    "small-wang-v1": small_wang_v1,
    "scaled-normal-v1": scaled_normal_v1,
    "mamba-v1": mamba_v1,
}


@torch.no_grad()
def initialise(model: nn.Module, name: str, seed: int) -> None:
    """Fills every stored tensor of a model; what is not stored (vocabulary padding) is left."""
    for stored, view in stored_parameters(model).items():
        INITIALISATIONS[name](model.config, stored, view, seed)
