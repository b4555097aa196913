import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import OrderV1, order_seed

DIGEST = hashlib.sha256(b"corpus").hexdigest()
counts = st.integers(1, 300)


def test_published_vectors():
    seed = "167641a26e167162c416a917158495549b5a372f9e84077b30e1b96ee07936a1"
    assert order_seed("00" * 32, 0).hex() == seed
    order = OrderV1(1000, "00" * 32, 0)
    assert order.sequences(0, 8).tolist() == [730, 235, 199, 912, 911, 554, 937, 397]
    assert order.sequences(1000, 8).tolist() == [909, 930, 963, 298, 887, 183, 108, 655]
    assert order.exposures(0, 32, 64) == [(15, 0), (34, 22)]


@settings(max_examples=50, deadline=None)
@given(n=counts, short=st.integers(0, 900), more=st.integers(0, 300), seed=st.integers(0, 9))
def test_a_longer_run_keeps_the_prefix(n, short, more, seed):
    order = OrderV1(n, DIGEST, seed)
    assert np.array_equal(order.sequences(0, short + more)[:short], order.sequences(0, short))


@settings(max_examples=50, deadline=None)
@given(n=counts, batch=st.integers(1, 24), other=st.integers(1, 24))
def test_another_batch_size_reads_the_same_stream(n, batch, other):
    order = OrderV1(n, DIGEST, 0)
    one = np.concatenate([order.step_sequences(step, batch) for step in range(other)])
    two = np.concatenate([order.step_sequences(step, other) for step in range(batch)])
    assert np.array_equal(one, two)


@settings(max_examples=50, deadline=None)
@given(n=counts, first=st.integers(0, 1000), count=st.integers(0, 40))
def test_any_position_can_be_asked_for_alone(n, first, count):
    order = OrderV1(n, DIGEST, 3)
    alone = [int(order.sequences(first + k, 1)[0]) for k in range(count)]
    assert order.sequences(first, count).tolist() == alone


@given(n=counts, epoch=st.integers(0, 5))
def test_every_epoch_reads_every_sequence_once(n, epoch):
    read = OrderV1(n, DIGEST, 0).sequences(epoch * n, n)
    assert sorted(read.tolist()) == list(range(n))


def test_epochs_seeds_and_corpora_have_other_orders():
    base = OrderV1(100, DIGEST, 0)
    first = base.sequences(0, 100).tolist()
    assert base.sequences(100, 100).tolist() != first
    assert OrderV1(100, DIGEST, 1).sequences(0, 100).tolist() != first
    assert OrderV1(100, "11" * 32, 0).sequences(0, 100).tolist() != first


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), batch=st.integers(1, 20), steps=st.integers(0, 20), data=st.data())
def test_exposures_are_the_steps_that_read_the_sequence(n, batch, steps, data):
    sequence = data.draw(st.integers(0, n - 1))
    order = OrderV1(n, DIGEST, 0)
    expected = [
        (step, row)
        for step in range(steps)
        for row, read in enumerate(order.step_sequences(step, batch).tolist())
        if read == sequence
    ]
    assert order.exposures(sequence, batch, steps) == expected


def test_positions_lie_one_in_every_epoch():
    order = OrderV1(50, DIGEST, 0)
    positions = order.positions_of(7, epochs=4)
    assert [position // 50 for position in positions] == [0, 1, 2, 3]
    assert [int(order.sequences(position, 1)[0]) for position in positions] == [7] * 4


def test_far_epochs_work():
    order = OrderV1(146_400_000, DIGEST, 0)
    position = 146_400_000 * 10**9 + 5
    sequence = int(order.sequences(position, 1)[0])
    assert 0 <= sequence < 146_400_000


@pytest.mark.parametrize(
    "call",
    [
        lambda: OrderV1(0, DIGEST, 0),
        lambda: OrderV1(5, "ab", 0),
        lambda: OrderV1(5, DIGEST, -1),
        lambda: OrderV1(5, DIGEST, 0).sequences(-1, 2),
        lambda: OrderV1(5, DIGEST, 0).step_sequences(0, 0),
        lambda: OrderV1(5, DIGEST, 0).positions_of(5, 1),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


@pytest.mark.parametrize("n", [1, 7, 1023, 1024, 1025, 5000])
def test_small_and_large_requests_give_the_same_positions(n):
    """Small ones are cut from blocks of 1,024 positions, which also cross epochs."""
    order = OrderV1(n, "00" * 32, 0)
    whole = order.sequences(0, 4000)
    for first in (0, 1, 1000, 1023, 1024, 2040, 2999):
        for count in (0, 1, 16, 100, 1000):
            assert np.array_equal(order.sequences(first, count), whole[first : first + count])
    order.sequences(0, 16)[:] = -1
    assert np.array_equal(order.sequences(0, 16), whole[:16])
