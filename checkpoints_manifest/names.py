"""Parameter names as checkpoints store them: the names that every transformers version shares.

Memory and disk differ in three ways, and only the disk is stable:

- transformers 5 calls GPT-NeoX's output matrix `lm_head.weight`; `save_pretrained` writes it as
  `embed_out.weight`, as every version before did;
- transformers 5 holds Mixtral's experts fused, `mlp.experts.gate_up_proj` [E, 2I, H] and
  `mlp.experts.down_proj` [E, H, I]; on disk each expert has its own `w1`, `w2`, `w3`;
- vocabulary padding (`suite.models`) adds rows to the embeddings in memory. They are zero, stay
  zero, and are not stored.

So a parameter in memory corresponds to one or more stored tensors, each a view of it:
`stored_views`. Checkpoints, digests and the keys of initial draws use stored names; the flat layout
of the optimizer uses `canonical_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from checkpoints_manifest.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Parameters with one row for each id of the vocabulary.
VOCABULARY = (
    "gpt_neox.embed_in.weight",
    "embed_out.weight",
    "model.embed_tokens.weight",
    "backbone.embeddings.weight",
    "lm_head.weight",
)


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by canonical name, in byte order; tied ones once."""
    renamed = {"lm_head.weight": "embed_out.weight"} if hasattr(model, "gpt_neox") else {}
    named = {renamed.get(name, name): parameter for name, parameter in model.named_parameters()}
    return dict(sorted(named.items(), key=lambda item: item[0].encode()))


def stored_views(model: nn.Module, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The stored tensors of one parameter: stored name to a view of `tensor`.

    Args:
        model: the model that the parameter belongs to.
        name: its canonical name.
        tensor: of the parameter's shape: the weights themselves, or one of their moments.

    Returns:
        Views that share memory with `tensor` and cover it, but for the rows of vocabulary padding.
    """
    if name in VOCABULARY:
        rows = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        return {name: tensor[:rows] if tensor.shape[0] > rows else tensor}
    base, found, leaf = name.partition(".mlp.experts.")
    if found:
        return _experts(f"{base}.block_sparse_moe.experts", leaf, tensor)
    if name.endswith(".mlp.gate.weight"):  # the router
        return {name.replace(".mlp.gate.", ".block_sparse_moe.gate."): tensor}
    return {name: tensor}


def _experts(prefix: str, leaf: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    views = {}
    for expert in range(tensor.shape[0]):
        if leaf == "gate_up_proj":
            gate, up = tensor[expert].chunk(2)
            views[f"{prefix}.{expert}.w1.weight"] = gate
            views[f"{prefix}.{expert}.w3.weight"] = up
        else:
            views[f"{prefix}.{expert}.w2.weight"] = tensor[expert]
    return views


def stored_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stored views of tensors by canonical name (weights or a moment), in byte order."""
    views = {
        stored: view
        for name, tensor in tensors.items()
        for stored, view in stored_views(model, name, tensor).items()
    }
    return dict(sorted(views.items(), key=lambda item: item[0].encode()))


def stored_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights as a checkpoint stores them: stored name to a view, in byte order."""
    return stored_state(model, {n: p.data for n, p in canonical_parameters(model).items()})


def load_canonical(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors by stored name into a model.

    Raises:
        CheckpointError: the names or shapes are not exactly the model's.
    """
    views = stored_parameters(model)
    expected = {name: tuple(view.shape) for name, view in views.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if odd:
        raise CheckpointError(
            f"these are not the weights of this {type(model).__name__}: {odd[0]} has shape "
            f"{found.get(odd[0])}, expected {expected.get(odd[0])} ({len(odd)} names differ)"
        )
    for name, view in views.items():
        view.copy_(tensors[name])
