import hashlib
import struct

import numpy as np
import pytest

from data_pipeline.digests import (
    chain_next,
    chain_over,
    chain_start,
    leaf,
    sequence_digests,
    split_leaves,
)

IDS = np.arange(12, dtype=np.int64).reshape(3, 4)
START = chain_start("00" * 32, 3, 3, "order-v1", 0)


def test_published_vectors():
    digests = sequence_digests(IDS)
    row = "d338c7cfbd24e8741dd131258566a2a6062f965c156f701c380ee71b840de304"
    fifth = "e3ff452b8f814293afdd3269a08fabdf39acd0ed86163cf3ed3aae83cc6fdbf5"
    start = "e8d86c93b63f4b6c5329973e8c9aba6faf22e042034890e73a27f6da4b2fee38"
    first = "94df8fe0268177979cf82d2d72e46dc23da39d4bb047ae6fb92089ca01d9e063"
    assert digests[1].hex() == row
    assert leaf(5, digests).hex() == fifth
    assert START.hex() == start
    assert chain_next(START, leaf(0, digests)).hex() == first


def test_formulas_hold_with_hashlib_alone():
    rows = [hashlib.sha256(struct.pack("<4I", *row)).digest() for row in IDS.tolist()]
    assert sequence_digests(IDS) == rows
    expected = hashlib.sha256(b"leaf-v1\0" + struct.pack("<Q", 5) + b"".join(rows)).digest()
    assert leaf(5, rows) == expected
    record = (
        '{"batch_size":3,"index_digest":"' + "00" * 32 + '","order":"order-v1",'
        '"overlay":null,"seed":0,"seq_len":3}'
    )
    assert hashlib.sha256(b"chain-v1\0" + record.encode()).digest() == START
    assert chain_next(START, expected) == hashlib.sha256(START + expected).digest()


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.uint32, ">i8"])
def test_the_type_and_layout_of_the_ids_do_not_matter(dtype):
    assert sequence_digests(IDS.astype(dtype)) == sequence_digests(IDS)
    assert sequence_digests(np.asfortranarray(IDS)) == sequence_digests(IDS)


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 200])
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_change_no_digest(rows, threads):
    ids = np.random.RandomState(rows).randint(0, 1 << 16, (rows, 600))
    assert sequence_digests(ids, threads) == sequence_digests(ids)
    assert sequence_digests(ids.T[:, :5], threads) == sequence_digests(ids.T[:, :5].copy())


def test_a_bad_id_in_any_thread_is_refused():
    ids = np.zeros((100, 600), dtype=np.int64)
    ids[70, 3] = 1 << 32
    for threads in (1, 2):
        with pytest.raises(ValueError, match=r"expected ids in \[0, 2\^32\)"):
            sequence_digests(ids, threads)
    with pytest.raises(ValueError, match="threads >= 1, found 0"):
        sequence_digests(IDS, 0)


def test_any_split_over_ranks_and_micro_batches_gives_the_same_leaf():
    whole = sequence_digests(IDS)
    pieces = sequence_digests(IDS[:1]) + sequence_digests(IDS[1:])
    assert leaf(0, pieces) == leaf(0, whole)


def test_every_way_to_read_something_else_changes_the_leaf():
    base = leaf(0, sequence_digests(IDS))
    other_token = IDS.copy()
    other_token[2, 3] += 1
    assert leaf(0, sequence_digests(other_token)) != base
    assert leaf(0, sequence_digests(IDS[[1, 0, 2]])) != base
    assert leaf(0, sequence_digests(IDS[:2])) != base
    assert leaf(1, sequence_digests(IDS)) != base


def test_a_skipped_repeated_or_swapped_step_changes_the_chain():
    a, b, c = (leaf(step, sequence_digests(IDS + step)) for step in range(3))
    base = chain_over(START, [a, b, c])
    for wrong in ([a, c], [a, b, b, c], [b, a, c], [a, b], []):
        assert chain_over(START, wrong) != base
    assert chain_over(START, []) == START
    assert chain_over(chain_over(START, [a]), [b, c]) == base


@pytest.mark.parametrize(
    "change",
    [
        {"index_digest": "11" * 32},
        {"seq_len": 4},
        {"batch_size": 4},
        {"order": "neox-v1"},
        {"seed": 1},
        {"overlay": "22" * 32},
    ],
)
def test_everything_that_names_the_order_enters_the_start(change):
    base = {"index_digest": "00" * 32, "seq_len": 3, "batch_size": 3, "order": "order-v1"}
    arguments = {**base, "seed": 0, "overlay": None}
    assert chain_start(**arguments) == START
    assert chain_start(**{**arguments, **change}) != START


@pytest.mark.parametrize(
    "call",
    [
        lambda: sequence_digests(np.zeros(4, dtype=np.int64)),
        lambda: sequence_digests(np.zeros((2, 4))),
        lambda: sequence_digests(np.array([[-1]])),
        lambda: sequence_digests(np.array([[1 << 32]])),
        lambda: leaf(0, []),
        lambda: leaf(-1, [START]),
        lambda: leaf(0, [b"short"]),
        lambda: chain_next(b"short", START),
        lambda: split_leaves(b"x" * 33),
    ],
)
def test_what_cannot_be_a_batch_or_a_digest_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_a_log_is_cut_into_its_leaves():
    assert split_leaves(START + bytes(32)) == [START, bytes(32)]
