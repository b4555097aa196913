"""The flat canonical layout: every parameter, in name order, in one fp32 buffer of equal shards.

Shards are whole numbers of 4,096-element chunks, the unit of the canonical norm, so that no value
depends on how many ranks there are. Padding is zero and stays zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from checkpoints_manifest.names import canonical_parameters
from suite.models import decays

CHUNK = 4096


@dataclass(frozen=True)
class Slot:
    """Where one parameter lives in the flat buffer: elements [start, start + size)."""

    name: str
    start: int
    size: int
    shape: tuple[int, ...]
    decay: bool


@dataclass(frozen=True)
class Layout:
    """Slots in name order; `padded` elements in all, `shard` of them per rank."""

    slots: tuple[Slot, ...]
    size: int
    shard: int
    world: int

    @property
    def padded(self) -> int:
        """Length of the flat buffer: `world` shards."""
        return self.shard * self.world

    @property
    def num_chunks(self) -> int:
        """Chunks of the canonical norm that hold a parameter, whatever the number of ranks."""
        return -(-self.size // CHUNK)

    def decayed_spans(self, rank: int) -> list[tuple[int, int]]:
        """Spans [start, stop) of this rank's shard to which weight decay applies."""
        low, high = rank * self.shard, (rank + 1) * self.shard
        spans: list[tuple[int, int]] = []
        for slot in self.slots:
            start, stop = max(slot.start, low) - low, min(slot.start + slot.size, high) - low
            if not slot.decay or start >= stop:
                continue
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((start, stop))
        return spans

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named views of a flat buffer of at least `size` elements, in canonical shapes."""
        return {
            slot.name: flat[slot.start : slot.start + slot.size].view(slot.shape)
            for slot in self.slots
        }


def make_layout(model: nn.Module, world: int) -> Layout:
    """The layout of a model over `world` ranks; tied parameters appear once."""
    slots, offset = [], 0
    for name, parameter in canonical_parameters(model).items():
        size = parameter.numel()
        slots.append(Slot(name, offset, size, tuple(parameter.shape), decays(name, parameter)))
        offset += size
    chunks_per_rank = math.ceil(math.ceil(offset / CHUNK) / world)
    return Layout(tuple(slots), offset, chunks_per_rank * CHUNK, world)


@torch.no_grad()
def flatten_parameters(model: nn.Module, layout: Layout) -> torch.Tensor:
    """Moves the model's parameters into one flat fp32 buffer and makes them views of it.

    Returns:
        The buffer, `layout.padded` elements, zero in the padding.
    """
    parameters = canonical_parameters(model)
    flat = torch.zeros(layout.padded, dtype=torch.float32)
    for name, view in layout.views(flat).items():
        view.copy_(parameters[name])
    point_parameters(parameters, layout, flat)
    return flat


def point_parameters(
    parameters: Mapping[str, nn.Parameter], layout: Layout, flat: torch.Tensor
) -> None:
    """Makes parameters views of a flat buffer, of its type; buffers of the model stay fp32."""
    for name, view in layout.views(flat).items():
        parameters[name].data = view
