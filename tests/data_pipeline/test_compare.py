import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.batches import BatchReader
from data_pipeline.compare import (
    Pair,
    against_index,
    compare_logs,
    differing_rows,
    explain_leaf,
    locate_divergence,
    step_leaf,
)
from data_pipeline.digests import leaf, sequence_digests
from data_pipeline.errors import DatasetError
from data_pipeline.overlay import Binding, Entry, Overlay

S, B, STEPS = 48, 8, 10


def some_leaf(number):
    return hashlib.sha256(str(number).encode()).digest()


@pytest.fixture(scope="module")
def reader(built):
    return BatchReader(built, S, B, seed=0)


@pytest.fixture(scope="module")
def log(reader):
    return b"".join(step_leaf(reader, step) for step in range(STEPS))


@pytest.fixture(scope="module")
def decode(reader):
    return reader.stream.index.tokenizer().decode_bytes


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=2, max_size=4))
def test_every_pair_is_compared_on_its_common_prefix(runs):
    logs = {str(k): b"".join(map(some_leaf, run)) for k, run in enumerate(runs)}
    found = {(p.one, p.two): p for p in compare_logs(logs)}
    assert len(found) == len(runs) * (len(runs) - 1) // 2
    for (i, a), (j, b) in itertools.combinations(enumerate(runs), 2):
        differing = [k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        first = differing[0] if differing else None
        common = min(len(a), len(b))
        assert found[str(i), str(j)] == Pair(str(i), str(j), common, first, len(differing))


def test_a_log_cut_short_is_refused(log):
    with pytest.raises(DatasetError, match=r"b: order\.log: expected a multiple of 32"):
        compare_logs({"a": log, "b": log[:-1]})


def test_a_true_log_agrees_with_the_index(reader, log):
    seen = []
    assert against_index(reader, log, progress=seen.append) is None
    assert seen == list(range(1, STEPS + 1))


def test_the_first_step_that_differs_from_the_index_is_named(reader, log, decode):
    damaged = bytearray(log)
    damaged[32 * 6 + 5] ^= 1
    damaged[32 * 8] ^= 1
    found = against_index(reader, bytes(damaged), decode)
    assert found.step == 6
    assert found.expected == log[32 * 6 : 32 * 7]
    assert found.found != found.expected
    assert found.explanation is None
    assert [row["sequence"] for row in found.rows] == reader.sequences(6).tolist()
    text = decode(reader.ids(6)[2]).decode(errors="replace")
    assert found.rows[2]["text"] == text
    assert found.rows[2]["documents"]


def mistakes(reader):
    ids = reader.ids(5)
    dealt = np.concatenate([ids[rank::2] for rank in range(2)])
    gathered = ids.reshape(4, 2, -1).swapaxes(0, 1).reshape(ids.shape)
    swapped, repeated, other = ids.copy(), ids.copy(), ids.copy()
    swapped[[2, 6]] = ids[[6, 2]]
    repeated[3] = ids[1]
    other[7, 3] += 1
    return [
        (reader.ids(6), 5, "the batch of step 6"),
        (reader.ids(0), 5, "the batch of step 0"),
        (ids, 4, "this batch, hashed as step 4"),
        (reader.ids(4), 4, "the batch of step 4, hashed as step 4"),
        (ids[::-1], 5, "its rows in reverse order"),
        (dealt, 5, "its rows dealt to 2 ranks in turn, not in blocks"),
        (gathered, 5, "its rows gathered from 4 ranks in turn, not in blocks"),
        (swapped, 5, "its rows 2 and 6 exchanged"),
        (repeated, 5, "its row 1 in place of row 3"),
        (other, 5, None),
    ]


def test_usual_mistakes_are_recognised_from_the_leaf_alone(reader):
    for ids, hashed_as, expected in mistakes(reader):
        found = explain_leaf(reader, 5, leaf(hashed_as, sequence_digests(ids)))
        # Dealing 8 rows to 2 ranks and gathering them from 4 are one and the same permutation.
        if expected and "gathered from 4" in expected:
            assert found in (expected, "its rows dealt to 2 ranks in turn, not in blocks")
        else:
            assert found == expected


def test_sequence_digests_name_the_row(reader):
    ids = reader.ids(3)
    other = ids.copy()
    other[[1, 6], 4] += 1
    digests, changed = sequence_digests(ids), sequence_digests(other)
    assert differing_rows(digests, digests) == []
    assert differing_rows(digests, changed) == [1, 6]
    with pytest.raises(ValueError, match="one length"):
        differing_rows(digests, changed[:-1])


def overlaid(reader, built, tmp_path, *entries):
    index = reader.stream.index
    binding = Binding(index.digest, "order-v1", 0, S, B, index.vocab_size, index.eod)
    return BatchReader(built, S, B, seed=0, overlay=Overlay(binding, entries).save(tmp_path))


def test_two_readings_name_row_column_sequence_document_and_text(reader, built, tmp_path, decode):
    ids = tuple(int(i) for i in reader.stream.index.tokenizer().encode("planted!"))
    planted = overlaid(reader, built, tmp_path, Entry(4 * B + 3, 10, ids, "canary", "c0"))
    assert locate_divergence(reader, planted, 3) == []
    (found,) = locate_divergence(reader, planted, 4, decode, decode)
    before, after = reader.ids(4)[3], planted.ids(4)[3]
    column = int(np.flatnonzero(before != after)[0])
    assert (found.row, found.column) == (3, column)
    assert found.one.sequence == found.two.sequence == reader.sequences(4)[3]
    assert (found.one.overlay, found.two.overlay) == ([], ["c0"])
    assert "planted!" in found.two.text
    assert "planted!" not in found.one.text
    document = found.one.document
    assert document in reader.describe(4)[3]["documents"]
    assert document["start"] <= column < document["end"]
    without = leaf(4, sequence_digests(before[None].repeat(B, axis=0)))
    assert explain_leaf(planted, 4, without) is None
    assert explain_leaf(planted, 4, step_leaf(reader, 4)) == "this batch without its overlay"


def test_another_seed_differs_in_sequences(reader, built):
    found = locate_divergence(reader, BatchReader(built, S, B, seed=1), 0)
    assert len(found) >= B - 1
    assert any(row.one.sequence != row.two.sequence for row in found)
    assert found[0].one.text is None


def test_readings_of_another_shape_are_not_compared(reader, built):
    with pytest.raises(ValueError, match="differ at every step by definition"):
        locate_divergence(reader, BatchReader(built, S, B + 1, seed=0), 0)
