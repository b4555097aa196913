import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.gather import gather_rows, will_need


def cut(ids, sizes):
    """The shards of a stream, and where each starts."""
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return [ids[a:b] for a, b in itertools.pairwise(starts)], starts


def row_by_row(ids, offsets, width):
    return np.array([ids[o : o + width] for o in offsets], dtype=np.int64).reshape(-1, width)


class Remote:
    """Only slices, as a remote file."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        assert isinstance(key, slice)
        return self.ids[key].copy()


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda s: sum(s) > 0),
    dtype=st.sampled_from(["<u2", "<u4", "<i4", "<i8"]),
    remote=st.booleans(),
    data=st.data(),
)
def test_rows_are_those_of_slicing_one_by_one(sizes, dtype, remote, data):
    ids = np.arange(sum(sizes)).astype(dtype)
    shards, starts = cut(ids, sizes)
    width = data.draw(st.integers(1, len(ids)))
    draw_offset = st.integers(0, len(ids) - width)
    offsets = data.draw(st.lists(draw_offset, max_size=6)) * data.draw(st.sampled_from([1, 20]))
    array_of = [Remote(s) for s in shards].__getitem__ if remote else shards.__getitem__
    expected = row_by_row(ids, offsets, width)
    found = gather_rows(array_of, starts, offsets, width)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)
    native = np.empty((len(offsets), width), dtype)
    assert gather_rows(array_of, starts.tolist(), offsets, width, native) is native
    assert np.array_equal(native, expected)
    will_need(array_of, starts, offsets, width)


def test_the_first_and_the_last_row_and_those_at_a_border():
    shards, starts = cut(np.arange(100, dtype=np.uint16), [10, 0, 40, 50])
    offsets = [0, 1, 2, 3, 9, 10, 41, 42, 43, 49, 50, 92] * 4
    found = gather_rows(shards.__getitem__, starts, offsets, 8)
    assert np.array_equal(found, row_by_row(np.arange(100), offsets, 8))


def test_a_shard_that_holds_no_row_is_not_opened():
    shards, starts = cut(np.arange(100, dtype=np.uint16), [10] * 10)
    opened = []

    def array_of(number):
        opened.append(number)
        return shards[number]

    for offsets in ([22], [22] * 40, [22, 71] * 40):
        opened.clear()
        gather_rows(array_of, starts, offsets, 3)
        assert sorted(opened) == sorted({o // 10 for o in offsets})


@pytest.mark.parametrize("repeat", [1, 40])
@pytest.mark.parametrize("offset", [-1, 93, 10**12, -(2**62)])
def test_a_row_outside_the_stream_is_refused(offset, repeat):
    shards, starts = cut(np.arange(100, dtype=np.uint16), [50, 50])
    for function in (gather_rows, will_need):
        with pytest.raises(ValueError, match=rf"in \[0, 100\), found one from {offset}"):
            function(shards.__getitem__, starts, [3, offset] * repeat, 8)


def test_an_out_that_cannot_hold_every_id_is_refused():
    shards, starts = cut(np.full(100, 70_000, dtype=np.uint32), [50, 50])
    for rows in (2, 64):
        for dtype in (np.uint16, np.int32, np.float32):
            with pytest.raises(ValueError, match="a type that holds every uint32"):
                gather_rows(shards.__getitem__, starts, [1] * rows, 8, np.empty((rows, 8), dtype))
    with pytest.raises(ValueError, match="out of shape"):
        gather_rows(shards.__getitem__, starts, [1, 2], 8, np.empty((2, 9), np.int64))
    with pytest.raises(ValueError, match="at least 1 id"):
        gather_rows(shards.__getitem__, starts, [1, 2], 0)


def test_pages_of_a_mapped_file_are_asked_for_and_those_of_memory_are_not(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("data_pipeline.gather._madvise", lambda: lambda *a: asked.append(a) or 0)
    path = tmp_path / "ids.bin"
    np.arange(20_000, dtype=np.uint16).tofile(path)
    mapped = np.memmap(path, np.uint16, mode="r").view(np.ndarray)
    base = mapped.ctypes.data
    shards, starts = [mapped[:9000], np.arange(5, dtype=np.uint16), mapped[9000:]], [0, 9000, 9005]
    starts.append(20_005)
    will_need(shards.__getitem__, starts, [0, 8990], 100)
    page = 4096 if base % 4096 == 0 else 1
    spans = [(first - base, first - base + length) for first, length, _ in asked]
    assert all(advice == 3 for *_, advice in asked)
    assert len(spans) == 3  # the row in the first shard; both ends of the one over the border
    for (found, end), (start, stop) in zip(
        spans, [(0, 200), (17_980, 18_000), (18_000, 18_170)], strict=True
    ):
        assert found == start // page * page
        assert end == stop
