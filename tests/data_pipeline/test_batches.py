import itertools

import numpy as np
import pytest

from data_pipeline.batches import BatchReader
from data_pipeline.digests import leaf, sequence_digests, split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.leaves import expected_leaves
from data_pipeline.loader import Loader, rank_rows

S, B = 48, 8


@pytest.fixture(scope="module")
def reader(built):
    return BatchReader(built, S, B, seed=0)


def test_rows_are_the_sequences_of_the_order(reader):
    for step in (0, 3, 10_000):
        sequences = reader.order.sequences(step * B, B)
        assert np.array_equal(reader.sequences(step), sequences)
        assert np.array_equal(reader.ids(step), reader.stream.sequences(sequences, S))


def test_targets_are_the_inputs_one_place_on(reader):
    ids = reader.ids(1)
    assert ids.shape == (B, S + 1)
    assert ids.dtype == np.int64
    flat = reader.stream.read(0, reader.stream.num_tokens)
    for row, sequence in zip(ids, reader.sequences(1), strict=True):
        assert np.array_equal(row[1:], flat[sequence * S + 1 : sequence * S + S + 1])


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 8])
def test_any_split_over_ranks_reads_the_same_batch(reader, pieces):
    borders = [B * k // pieces for k in range(pieces + 1)]
    parts = [reader.ids(4, slice(a, b)) for a, b in itertools.pairwise(borders)]
    assert np.array_equal(np.concatenate(parts), reader.ids(4))
    strided = np.concatenate([reader.ids(4, range(k, B, pieces)) for k in range(pieces)])
    order = np.concatenate([np.arange(k, B, pieces) for k in range(pieces)])
    assert np.array_equal(strided, reader.ids(4)[order])


def test_what_is_read_is_what_the_leaves_promise(built, reader):
    leaves = split_leaves(expected_leaves(BatchReader(built, S, B, 0), steps=9, cache=False))
    for step in range(9):
        assert leaf(step, sequence_digests(reader.ids(step))) == leaves[step]
    swapped = reader.ids(2)[[1, 0, *range(2, B)]]
    assert leaf(2, sequence_digests(swapped)) != leaves[2]


def test_a_first_epoch_reads_every_sequence_once(reader):
    steps = reader.num_sequences // B
    read = np.concatenate([reader.sequences(step) for step in range(steps)])
    assert len(set(read.tolist())) == steps * B


def test_a_row_can_be_traced_to_its_documents(reader):
    stream = reader.stream
    whole = {d.name: stream.read(d.start, d.end - d.start) for d in stream.documents()}
    several = 0
    for step in range(6):
        ids = reader.ids(step)
        for row in reader.describe(step):
            assert row["sequence"] == reader.sequences(step)[row["row"]]
            columns = [(d["start"], d["end"]) for d in row["documents"]]
            assert [0, *(end for _, end in columns)] == [*(start for start, _ in columns), S + 1]
            several += len(columns) > 1
            for d in row["documents"]:
                piece = ids[row["row"], d["start"] : d["end"]]
                assert np.array_equal(whole[d["name"]][d["offset"] :][: len(piece)], piece)
    assert several > 0


@pytest.mark.parametrize("rows", [range(7, 9), range(-1, 1)])
def test_rows_outside_the_batch_are_refused(reader, rows):
    with pytest.raises(ValueError, match=r"expected rows in \[0, 8\)"):
        reader.ids(0, rows)


def test_no_rows_are_an_empty_batch(reader):
    assert reader.ids(0, range(0)).shape == (0, S + 1)
    assert reader.ids(0, slice(5, 5)).shape == (0, S + 1)


def test_bad_orders_and_sizes_are_refused(built):
    with pytest.raises(DatasetError, match=r"expected one of .*'neox-v1'.*, found 'order-v2'"):
        BatchReader(built, S, B, 0, order="order-v2")
    with pytest.raises(ValueError, match="batch_size >= 1"):
        BatchReader(built, S, 0, 0)
    with pytest.raises(ValueError, match="use a shorter seq_len or more text"):
        BatchReader(built, 10**6, B, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_batches_of_the_reader(reader, workers):
    rows = rank_rows(B, rank=1, world_size=3)
    with Loader(reader, rows, workers=workers, digests=True, read_ahead=True) as loader:
        for batch in loader.steps(4, 12):
            assert np.array_equal(batch.ids, reader.ids(batch.step, rows))
            whole = sequence_digests(reader.ids(batch.step))
            assert list(batch.digests) == [whole[row] for row in rows]


def test_files_may_be_asked_for_in_advance(reader):
    reader.will_need(5)
    reader.will_need(10**9, range(2, 4))
    with pytest.raises(ValueError, match=r"rows in \[0, 8\)"):
        reader.will_need(5, range(7, 9))
