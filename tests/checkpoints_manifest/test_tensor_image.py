"""What is staged in memory is already the file that safetensors writes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from checkpoints_manifest.tensor_image import TensorImage, shapes_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 5), max_size=3)


def image_of(tensors):
    image = TensorImage(shapes_of(tensors))
    image.copy_from(tensors)
    return image


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), SHAPES, max_size=6))
def test_an_image_is_byte_for_byte_what_the_library_writes(shapes):
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    assert bytes(image_of(tensors).data) == save(tensors, metadata={"format": "pt"})


def test_every_bit_of_a_value_survives():
    bits = torch.tensor([0x80000000, 0, 0x7FC00001, 0xFFC00001, 0x7F800000, 1], dtype=torch.int64)
    values = bits.to(torch.int32).view(torch.float32)
    found = load(bytes(image_of({"a": values}).data))["a"]
    assert torch.equal(found.view(torch.int32), values.view(torch.int32))


def test_tensors_that_are_not_contiguous_are_written_row_by_row():
    matrix = torch.arange(12.0).view(3, 4)
    assert torch.equal(load(bytes(image_of({"a": matrix.t()}).data))["a"], matrix.t())


def test_an_image_is_filled_in_place_and_keeps_nothing_of_its_source():
    image = TensorImage({"a": (3,), "b": ()})
    address = image.data.obj.ctypes.data
    source = {"a": torch.ones(3), "b": torch.tensor(2.0)}
    image.copy_from(source)
    source["a"].zero_()
    assert torch.equal(load(bytes(image.data))["a"], torch.ones(3))
    image.copy_from(source)
    assert torch.equal(load(bytes(image.data))["a"], torch.zeros(3))
    assert image.data.obj.ctypes.data == address


@pytest.mark.parametrize("other", [{"a": torch.ones(4)}, {"b": torch.ones(3)}, {}])
def test_other_tensors_than_the_image_was_made_for_are_refused(other):
    with pytest.raises(ValueError, match="expected"):
        TensorImage({"a": (3,)}).copy_from(other)


def test_tensors_that_are_not_fp32_are_refused():
    with pytest.raises(ValueError, match=r"a: expected fp32, found torch\.float64"):
        TensorImage({"a": (3,)}).copy_from({"a": torch.ones(3, dtype=torch.float64)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_device_are_copied_before_the_call_returns():
    source = {"a": torch.arange(1 << 20, device="cuda", dtype=torch.float32)}
    image = TensorImage(shapes_of(source))
    image.copy_from(source)
    source["a"].zero_()
    assert torch.equal(load(bytes(image.data))["a"], torch.arange(1 << 20, dtype=torch.float32))
