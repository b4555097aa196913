"""The bytes of a safetensors file in memory that is allocated once and filled again and again.

Guarantees: after `copy_from`, `data` is byte for byte what `safetensors.torch.save` returns for the
same fp32 tensors with the metadata `{"format": "pt"}`, so what is staged for a writer is already
the file. Filling it is one copy of each tensor and allocates nothing; where a CUDA device is
present the memory is pinned. Does not guarantee anything while `copy_from` runs: one thread fills,
and hands over before another reads.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]
_ITEM, _LINE = 4, 64  # bytes of an fp32, of a cache line


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Name to shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def fp32_header(shapes: Shapes) -> tuple[bytes, dict[str, int]]:
    """Header of a safetensors file of fp32 tensors, as the library writes it.

    Returns:
        (the 8 length bytes and the JSON, padded with spaces to a multiple of 8; name to the
        tensor's first byte, counted from the end of the header).
    """
    # One metadata key at most: with two, safetensors writes them in random order.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name in sorted(shapes, key=str.encode):
        starts[name] = end
        end += math.prod(shapes[name]) * _ITEM
        entries[name] = {
            "dtype": "F32", "shape": list(shapes[name]), "data_offsets": [starts[name], end],
        }  # fmt: skip
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, starts


class TensorImage:
    """Memory laid out as a safetensors file of fp32 tensors.

    Args:
        shapes: name to shape; names without lone surrogates.
    """

    def __init__(self, shapes: Shapes) -> None:
        import torch

        header, starts = fp32_header(shapes)
        self.shapes = dict(shapes)
        elements = sum(math.prod(shape) for shape in shapes.values())
        pinned = torch.cuda.is_available()
        # Tensors start on a cache line, which copying into them is faster for.
        before = -len(header) % _LINE
        size = before + len(header) + _ITEM * elements
        memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        # Touches every page now: the first save would otherwise pay for it.
        memory.fill_(0)
        memory = memory[before:]
        memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        self._places = {}
        for name, shape in shapes.items():
            first = len(header) + starts[name]
            place = memory[first : first + _ITEM * math.prod(shape)]
            self._places[name] = place.view(torch.float32).view(shape)
        self.data: memoryview = memory.numpy().data

    def copy_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies fp32 tensors, on the CPU or a CUDA device, into their places.

        Returns when the copies are done, so the caller may change the tensors at once.

        Raises:
            ValueError: other names or shapes than the image was made for, or another dtype.
        """
        import torch

        if (found := shapes_of(tensors)) != self.shapes:
            odd = next(n for n in {*found, *self.shapes} if found.get(n) != self.shapes.get(n))
            raise ValueError(
                f"the buffers were made for other tensors: {odd} has shape {found.get(odd)}, "
                f"expected {self.shapes.get(odd)}; use one saver per model"
            )
        devices = set()
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name}: expected fp32, found {tensor.dtype}")
            self._places[name].copy_(tensor, non_blocking=True)
            devices.add(tensor.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
