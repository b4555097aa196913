"""Every order keeps the contract of ``protocols.Order``, over every kind of dataset."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batches import BatchReader
from data_pipeline.build import build_dataset
from data_pipeline.datasets import notices, open_index, open_stream, verify_any
from data_pipeline.errors import DatasetError
from data_pipeline.leaves import expected_leaves
from data_pipeline.megatron import write_megatron
from data_pipeline.megatron_build import MegatronPart, build_megatron_index
from data_pipeline.megatron_index import NeoxPlan
from data_pipeline.orders import open_order

S = 16


def items(count, low, high):
    state = np.random.RandomState(5)
    return [state.randint(1, 200, size=state.randint(low, high)) for _ in range(count)]


@pytest.fixture(scope="module")
def mixed(corpus, tmp_path_factory):
    """Two parts: of the first half of the sequences is read, of the second all twice and more."""
    out = tmp_path_factory.mktemp("mixed") / "data"
    trees = [
        {"kind": "text_tree", "name": part, "root": str(corpus / part), "include": ["**/*.txt"]}
        for part in ("part0", "part1")
    ]
    spec = {
        "name": "mixed",
        "sources": trees,
        "tokenizer": {"vocab_size": 300, "train_bytes": 20_000},
        "heldout_permille": 100,
        "shard_tokens": 1000,
        "mixture": {"tokens": 12_000, "weights": {"part0": "0.1", "part1": "0.9"}},
    }
    build_dataset(spec, out)
    return out


@pytest.fixture(scope="module")
def megatron(tmp_path_factory):
    root = tmp_path_factory.mktemp("megatron")
    write_megatron(root / "docs", items(60, 3, 40), np.dtype("<u2"))
    plan = NeoxPlan(split="90,10,0", num_samples=100, seq_len=S)
    build_megatron_index(root / "docs-data", [MegatronPart.of(root / "docs")], 200, 0, "none", plan)
    write_megatron(root / "rows", items(50, S + 1, S + 2), np.dtype("<u2"))
    build_megatron_index(root / "rows-data", [MegatronPart.of(root / "rows")], 200, 0, "none", None)
    return root


@pytest.fixture(scope="module")
def orders(built, mixed, megatron):
    places = {
        "flat": ("order-v1", built),
        "mixture": ("order-v1", mixed),
        "flat over Megatron files": ("order-v1", megatron / "docs-data"),
        "neox": ("neox-v1", megatron / "docs-data"),
        "preshuffled": ("preshuffled-v1", megatron / "rows-data"),
    }
    return {key: (open_stream(place), name, place) for key, (name, place) in places.items()}


KINDS = ["flat", "mixture", "flat over Megatron files", "neox", "preshuffled"]


def opened(orders, kind):
    stream, name, _ = orders[kind]
    return stream, open_order(name, stream, S, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_spans_joined_are_the_rows(orders, kind):
    stream, order = opened(orders, kind)
    numbers = np.arange(order.num_sequences)[:40]
    for number, row in zip(numbers.tolist(), order.rows(numbers), strict=True):
        spans = order.spans(number)
        assert np.array_equal(np.concatenate([stream.read(a, b - a) for a, b in spans]), row)
        assert row.shape == (S + 1,)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_the_inverse_of_the_order(orders, kind):
    _, order = opened(orders, kind)
    consumed = 49 if kind == "preshuffled" else 90
    read = order.sequences(0, consumed)
    for number in range(0, order.num_sequences, 7):
        assert order.positions_of(number, consumed) == np.flatnonzero(read == number).tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_holding_names_every_sequence_with_an_id_of_the_span(orders, kind, data):
    stream, order = opened(orders, kind)
    start = data.draw(st.integers(0, stream.num_tokens - 1))
    end = data.draw(st.integers(start + 1, min(stream.num_tokens, start + 2 * S)))
    found = order.holding(start, end)
    wanted = {
        number
        for number in range(order.num_sequences)
        if any(a < end and start < b for a, b in order.spans(number))
    }
    assert {number for number, _ in found} == wanted
    for number, column in found:
        if column >= 0 and column + end - start <= S + 1:
            row = order.rows([number])[0]
            assert np.array_equal(
                row[column : column + end - start], stream.read(start, end - start)
            )


def test_a_mixture_reads_its_parts_as_often_as_it_says(mixed):
    reader = BatchReader(mixed, S, 1, seed=0)
    mixture = reader.stream.index.mixture(S)
    read = reader.order.sequences(0, mixture.num_virtual)
    parts = [mixture.part_of(number) for number in read.tolist()]
    assert [parts.count(k) for k in (0, 1)] == [1200 // S, 10_800 // S]
    times = np.bincount(read, minlength=reader.num_sequences)
    second = [mixture.part_of(n) == 1 for n in range(reader.num_sequences)]
    assert times[second].min() >= 1 and np.ptp(times[second]) == 1
    first = np.logical_not(second)
    assert times[first].max() == 1 and times[first].min() == 0


def test_a_mixture_never_crosses_from_one_source_to_the_other(mixed):
    reader = BatchReader(mixed, S, 8, seed=0)
    for step in range(20):
        for row in reader.describe(step):
            assert len({document["source"] for document in row["documents"]}) == 1


def test_leaves_differ_between_orders_over_the_same_files(megatron):
    place = megatron / "docs-data"
    one = expected_leaves(BatchReader(place, S, 4, 0, "neox-v1"), 5, cache=False)
    two = expected_leaves(BatchReader(place, S, 4, 0, "order-v1"), 5, cache=False)
    assert not {one[i : i + 32] for i in range(0, 160, 32)} & {
        two[i : i + 32] for i in range(0, 160, 32)
    }


def test_the_orders_of_megatron_files_are_refused_over_shards(built):
    for name in ("neox-v1", "preshuffled-v1"):
        with pytest.raises(DatasetError, match=f"{name} is the order of Megatron files"):
            open_order(name, open_stream(built), S, 0)


def test_any_dataset_is_verified_and_describes_itself(built, megatron):
    assert verify_any(built).digest == open_index(built).digest
    assert notices(open_index(built)) == []
    index = open_index(megatron / "docs-data")
    assert verify_any(megatron / "docs-data", index.digest).digest == index.digest
    assert any("No EOD" in notice for notice in notices(index))
    path = megatron / "docs.bin"
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"docs\.bin"):
        verify_any(megatron / "docs-data")
