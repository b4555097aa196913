import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DatasetError
from data_pipeline.megatron import write_megatron
from data_pipeline.megatron_build import MegatronPart, build_megatron_index
from data_pipeline.megatron_stream import MegatronStream
from data_pipeline.preshuffled import PreshuffledOrder
from tests.data_pipeline.test_megatron import cut

ROWS, WIDTH, BATCH = 96, 17, 16


@pytest.fixture(scope="module")
def array():
    """What Pythia's viewer would have as its dataset: uint16 [n, S+1]."""
    return np.random.RandomState(3).randint(0, 50_000, size=(ROWS, WIDTH)).astype(np.uint16)


def open_order(root, rows, shards=1, seq_len=WIDTH - 1):
    write_megatron(root / "document", rows, "uint16")
    if shards > 1:
        size = sum(map(len, rows)) * 2 // shards
        cut(root / "document", [size + (-1) ** k for k in range(shards - 1)], shards - 1)
    part = MegatronPart.of(root / "document")
    build_megatron_index(root / "data", [part], 50_304, 0, "unknown", None)
    return PreshuffledOrder(MegatronStream(root / "data"), seq_len)


@pytest.mark.parametrize("shards", [1, 2, 21])
def test_step_t_is_what_the_viewer_shows_however_the_file_is_cut(tmp_path, array, shards):
    order = open_order(tmp_path, array, shards)
    assert len(list(tmp_path.glob("*.bin"))) == shards
    assert order.num_sequences == ROWS
    for step in range(ROWS // BATCH):
        read = order.rows(order.sequences(step * BATCH, BATCH))
        assert read.dtype == np.int64
        assert np.array_equal(read, array[step * BATCH : (step + 1) * BATCH])


def test_spans_holding_and_positions_agree(tmp_path, array):
    order = open_order(tmp_path, array)
    stream = MegatronStream(tmp_path / "data")
    for sequence in (0, 1, ROWS - 1):
        ((start, end),) = order.spans(sequence)
        assert np.array_equal(stream.read(start, end - start), array[sequence])
        assert order.holding(start, end) == [(sequence, 0)]
        assert order.positions_of(sequence, ROWS) == [sequence]
        assert order.positions_of(sequence, sequence) == []
    assert order.holding(WIDTH - 2, WIDTH + 1) == [(0, WIDTH - 2), (1, -2)]
    assert order.holding(5, 5) == []
    assert [d.record for d in stream.documents_in(*order.spans(7)[0])] == [7]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, ROWS * WIDTH - 1), st.integers(1, 60))
def test_holding_is_every_sequence_with_an_id_of_the_span(start, count):
    order = object.__new__(PreshuffledOrder)
    order.seq_len, order.num_sequences = WIDTH - 1, ROWS
    end = min(start + count, ROWS * WIDTH)
    expected = {place // WIDTH for place in range(start, end)}
    found = order.holding(start, end)
    assert {sequence for sequence, _ in found} == expected
    assert all(sequence * WIDTH + column == start for sequence, column in found)


def test_an_item_of_another_length_is_refused(tmp_path, array):
    rows = [list(row) for row in array]
    rows[33] = rows[33][:-1]
    with pytest.raises(DatasetError, match="item 33: expected 17 ids for seq_len 16, found 16"):
        open_order(tmp_path, rows)


def test_another_seq_len_and_no_items_are_refused(tmp_path, array):
    with pytest.raises(DatasetError, match="item 0: expected 18 ids for seq_len 17, found 17"):
        open_order(tmp_path, array, seq_len=17)
    (tmp_path / "b").mkdir()
    with pytest.raises(DatasetError, match="at least one item"):
        open_order(tmp_path / "b", [])


def test_positions_past_the_end_are_refused(tmp_path, array):
    order = open_order(tmp_path, array)
    with pytest.raises(DatasetError, match=r"below 96, found \[90, 106\)"):
        order.sequences(90, 16)
    with pytest.raises(ValueError, match="first >= 0"):
        order.sequences(-1, 1)
    for number in (-1, ROWS):
        with pytest.raises(ValueError, match=r"in \[0, 96\)"):
            order.rows([number])
