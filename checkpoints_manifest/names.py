"""Parameter names as checkpoints store them: the names that every transformers version shares.

In memory transformers 5 calls GPT-NeoX's output matrix `lm_head.weight`; `save_pretrained` writes
it as `embed_out.weight`, as every version before did. Only the name on disk is stable, so it is the
one in layouts, digests and keys of draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from checkpoints_manifest.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by stored name, in byte order; tied ones once."""
    renamed = {"lm_head.weight": "embed_out.weight"} if hasattr(model, "gpt_neox") else {}
    named = {renamed.get(name, name): parameter for name, parameter in model.named_parameters()}
    return dict(sorted(named.items(), key=lambda item: item[0].encode()))


def load_canonical(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors by stored name into a model.

    Raises:
        CheckpointError: the names or shapes are not exactly the model's.
    """
    parameters = canonical_parameters(model)
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if odd:
        raise CheckpointError(
            f"these are not the weights of this {type(model).__name__}: {odd[0]} has shape "
            f"{found.get(odd[0])}, expected {expected.get(odd[0])} ({len(odd)} names differ)"
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])
