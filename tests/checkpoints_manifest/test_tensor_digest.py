"""`tensor-digest-v1`: vectors of the spec, independence of the file format, and hostile headers."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.tensor_digest import file_leaves, tensor_leaf, tensors_root

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "tensor-digest.md"
LEAF = tensor_leaf("w", "F32", [2], struct.pack("<2f", 1.0, -2.0))


def test_vectors_are_those_of_the_spec():
    found = re.findall(r"`([0-9a-f]{64})`", SPEC.read_text())
    zero = tensor_leaf("b", "F32", [], struct.pack("<f", 0.0))
    assert found == [LEAF.hex(), zero.hex(), tensors_root({"w": LEAF, "b": zero})]


def test_a_leaf_depends_on_name_dtype_shape_and_every_bit():
    data = struct.pack("<2f", 1.0, -2.0)
    others = [
        tensor_leaf("v", "F32", [2], data),
        tensor_leaf("w", "I32", [2], data),
        tensor_leaf("w", "F32", [2, 1], data),
        tensor_leaf("w", "F32", [2], struct.pack("<2f", 1.0, -2.0000002)),
    ]
    assert len({LEAF, *others}) == 5
    assert tensor_leaf("w", "F32", [], struct.pack("<f", 0.0)) != tensor_leaf(
        "w", "F32", [], struct.pack("<f", -0.0)
    )


def test_a_root_depends_on_names_and_not_on_the_order_of_insertion():
    other = tensor_leaf("b", "F32", [], b"\0\0\0\0")
    assert tensors_root({"w": LEAF, "b": other}) == tensors_root({"b": other, "w": LEAF})
    assert tensors_root({"w": LEAF, "b": other}) != tensors_root({"w": other, "b": LEAF})
    assert tensors_root({"ab": LEAF}) != tensors_root({"a": LEAF})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_file_gives_the_leaves_of_its_tensors(tmp_path, dtype):
    tensor = (torch.arange(12).reshape(3, 4) % 5).to(dtype)
    save_file({"x": tensor, "empty": torch.zeros(0, 3)}, tmp_path / "t", metadata={"format": "pt"})
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
    raw = (
        tensor.view(torch.uint8).numpy().tobytes()
        if dtype != torch.bool
        else tensor.numpy().tobytes()
    )
    assert file_leaves(tmp_path / "t") == {
        "x": tensor_leaf("x", names[dtype], [3, 4], raw),
        "empty": tensor_leaf("empty", "F32", [0, 3], b""),
    }


def with_header(path, header, data=b"\0" * 8, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start, stop, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 4), "b": entry(2, 6)},
        {"a": entry(0, 4), "b": entry(5, 9)},
        {"a": entry(0, 4)},
        {"a": entry(0, 800, (200,))},
        {"a": entry(0, 8, (1,))},
        {"a": entry(0, 8, (-2,))},
        {"a": entry(0, 8, (-2, -1))},
        {"a": entry(0, 8, (2,), "F99")},
        {"a": entry(-4, 4, (2,))},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        [1, 2],
        b"{not json",
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
    ],
)
def test_hostile_headers_are_refused(tmp_path, header):
    path = with_header(tmp_path / "t", header)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        file_leaves(path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63])
def test_absurd_header_lengths_are_refused(tmp_path, length):
    path = with_header(tmp_path / "t", {"a": entry(0, 8, (2,))}, length=length)
    with pytest.raises(CheckpointError, match="length"):
        file_leaves(path)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused_or_read_without_a_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "t"
    path.write_bytes(data)
    try:
        file_leaves(path)
    except CheckpointError as error:
        assert str(path) in str(error)


@given(st.integers(0, 399), st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_any_flipped_bit_changes_the_root_or_is_refused(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("flip") / "t"
    save_file({"x": torch.ones(30), "y": torch.zeros(20)}, path, metadata={"format": "pt"})
    before = tensors_root(file_leaves(path))
    data = bytearray(path.read_bytes())
    header = struct.unpack("<Q", data[:8])[0]
    position %= len(data)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    try:
        after = tensors_root(file_leaves(path))
    except CheckpointError:
        return
    # Padding and metadata of the header are not tensors; the file's sha256 covers them.
    assert after != before or position < 8 + header
