import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DatasetError
from data_pipeline.megatron import write_megatron
from data_pipeline.megatron_build import MegatronPart, build_megatron_index
from data_pipeline.megatron_index import NeoxPlan
from data_pipeline.megatron_stream import MegatronStream
from data_pipeline.neox import NeoxOrder
from data_pipeline.neox_blend import Blend
from data_pipeline.neox_maps import IndexMaps, num_epochs, samples_of_parts, split_bounds
from tests.data_pipeline import neox_reference as slow

# fmt: off
GOLDEN_A = {
    "lengths": [5, 3, 9, 1, 12, 4, 7, 2],
    "order": [
        7, 2, 4, 1, 2, 0, 3, 7, 6, 5, 2, 4, 0, 2, 5, 1, 6, 6, 5, 0, 3, 3, 1, 1, 7, 0, 4, 4, 5, 6,
        3, 7,
    ],
    "bounds": [
        [0, 0], [1, 6], [2, 5], [3, 1], [4, 6], [6, 0], [8, 5], [10, 2], [11, 1], [11, 9], [13, 0],
        [13, 8], [16, 0], [17, 1], [18, 2], [21, 0], [24, 1], [26, 2], [26, 10], [27, 6], [28, 2],
        [29, 6],
    ],
    "shuffled": [8, 20, 14, 9, 6, 0, 4, 5, 13, 18, 7, 15, 17, 10, 16, 3, 11, 1, 12, 19, 2],
}
# fmt: on
some_lengths = st.lists(st.integers(0, 14), min_size=1, max_size=12)


def bounds(maps):
    return np.stack(maps.bounds(np.arange(maps.num_samples + 1)), axis=1)


def items_of(lengths, base=1):
    """Ids that are all different, so that a wrong place cannot look right."""
    ends = list(itertools.accumulate(lengths, initial=base))
    return [list(range(a, b)) for a, b in itertools.pairwise(ends)]


def dataset(root, files, plan, weights=None):
    """Index files of items, below ``root``, which hypothesis may give again."""
    parts = []
    for number, items in enumerate(files):
        write_megatron(root / f"file{number}", items, "int32")
        weight = "1.0" if weights is None else str(weights[number])
        parts.append(MegatronPart.of(root / f"file{number}", weight=weight))
    (root / "data" / "index.json").unlink(missing_ok=True)
    build_megatron_index(root / "data", parts, 1 << 20, None, "unknown", plan)
    return MegatronStream(root / "data")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One directory for all examples of a property test."""
    return tmp_path_factory.mktemp("neox")


def test_golden_a_is_matched_exactly():
    epochs = num_epochs(43, 8, 20)
    maps = IndexMaps(np.array(GOLDEN_A["lengths"]), 8, epochs, 1234)
    assert (epochs, maps.num_samples) == (4, 21)
    assert maps.order.tolist() == GOLDEN_A["order"]
    assert bounds(maps).tolist() == GOLDEN_A["bounds"]
    assert maps.shuffled.tolist() == GOLDEN_A["shuffled"]


def test_golden_b_is_matched_byte_for_byte():
    lengths = np.random.RandomState(7).randint(1, 3000, size=5000).astype(np.int32)
    tokens = int(lengths.sum())
    maps = IndexMaps(lengths, 2048, num_epochs(tokens, 2048, 6000), 1234)
    assert (maps.epochs, tokens, maps.num_samples) == (2, 7_477_329, 7302)
    found = [maps.order, bounds(maps).astype("<i4"), maps.shuffled]
    assert [hashlib.sha256(array.tobytes()).hexdigest() for array in found] == [
        "2227ea163a9486a6498ef43ecaf0513a794bb68d94c0b58069211e60617f641e",
        "1b410a87326ce132b31a5437ffca2127fb3494489b1283165531a06037cd5710",
        "441efbc965703abb431b94db26970b807747c66f55a0731d1c06e2d2c6e70cc0",
    ]


@settings(max_examples=60, deadline=None)
@given(some_lengths, st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_closed_form_equals_the_iteration_with_its_own_twister(lengths, seq_len, epochs, seed):
    assume((epochs * sum(lengths) - 1) // seq_len >= 1)
    maps = IndexMaps(np.array(lengths), seq_len, epochs, seed)
    order, borders, shuffled = slow.maps(lengths, seq_len, epochs, seed)
    assert maps.order.tolist() == order
    assert [tuple(border) for border in bounds(maps).tolist()] == borders
    assert maps.shuffled.tolist() == shuffled


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 400))
def test_epochs_are_the_fewest_that_hold_the_samples(tokens, seq_len, need):
    assert num_epochs(tokens, seq_len, need) == slow.epochs_for(tokens, seq_len, need)


@pytest.mark.parametrize(
    ("split", "items", "expected"),
    [
        ("969, 30, 1", 1000, [0, 969, 999, 1000]),
        ("969,30,1", 8, [0, 8, 8, 8]),
        ("949,50,1", 12345, [0, 11716, 12333, 12345]),
        ("1,1,1", 10, [0, 4, 7, 10]),
        ("1", 7, [0, 7, 7, 7]),
        ("3/1", 8, [0, 6, 8, 8]),
        ("1,1,1,97", 9, [0, 3, 6, 9]),
        ("1,1", 5, [0, 3, 5, 5]),  # 2.5 goes to 2 twice, and the border moves up by what is missing
    ],
)
def test_split_strings_cut_where_gpt_neox_cuts(split, items, expected):
    assert split_bounds(split, items) == expected


@pytest.mark.parametrize("split", ["", "a", "1,,2", "0,0,0", "-1,2", "nan", "inf,1"])
def test_a_split_string_without_meaning_is_refused(split):
    with pytest.raises(DatasetError, match="split: expected shares such as"):
        split_bounds(split, 10)


def test_a_split_that_gpt_neox_cannot_make_is_refused():
    with pytest.raises(DatasetError, match="where GPT-NeoX stops too"):
        split_bounds("0,1,1", 3)


def test_pythia_asks_for_the_number_in_its_file_names():
    assert samples_of_parts([1.0], 143_000 * 1024) == ([1.0], [147_164_160])


def test_shares_are_added_from_left_to_right_as_old_pythons_did():
    weights = [0.1] * 10
    assert samples_of_parts(weights, 1)[0][0] == 0.1 / 0.9999999999999999 != 0.1 / 1.0


def test_blends_take_the_published_sequence():
    files, numbers = Blend([0.5, 0.3, 0.2], 13).files(0, 13)
    assert files.tolist() == [0, 1, 2, 0, 1, 0, 2, 0, 1, 0, 0, 1, 2]
    assert numbers.tolist() == [0, 0, 0, 1, 1, 2, 1, 3, 2, 4, 5, 3, 2]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 9), min_size=1, max_size=5),
    st.integers(1, 300),
    st.integers(0, 299),
)
def test_blends_equal_the_recurrence_from_any_position(weights, size, first):
    first = min(first, size - 1)
    expected = slow.blend(weights, size)
    files, numbers = Blend(weights, size).files(first, size - first)
    assert list(zip(files.tolist(), numbers.tolist(), strict=True)) == expected[first:]
    again = Blend(weights, size)
    for position, (file, number) in enumerate(expected):
        assert again.position_of(file, number, size) == position
        assert again.position_of(file, number, position) is None


def test_blends_hold_across_the_blocks_that_they_are_kept_in():
    expected = slow.blend([0.7, 0.3], 140_000)
    walk = Blend([0.7, 0.3], 140_000)
    for first, count in [(65_530, 12), (131_060, 20), (139_990, 10), (0, 3)]:
        files, numbers = walk.files(first, count)
        found = list(zip(files.tolist(), numbers.tolist(), strict=True))
        assert found == expected[first : first + count]
    for position in [0, 65_535, 65_536, 131_072, 139_999]:
        assert walk.position_of(*expected[position], 140_000) == position
    assert walk.position_of(0, 99_999, 140_000) is None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(some_lengths, min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 99),
    st.data(),
)
def test_paths_and_their_blend_read_what_gpt_neox_reads(root, lengths, seq_len, need, seed, data):
    weights = [data.draw(st.sampled_from([0.2, 1.0, 3.5])) for _ in lengths]
    files = [items_of(each, base=1000 * (k + 1)) for k, each in enumerate(lengths)]
    assume(all(sum(each) > seq_len for each in lengths))
    expected = slow.stream_of_paths(files, weights, need, seq_len, seed)
    stream = dataset(root, files, NeoxPlan(None, need, seq_len), weights)
    order = NeoxOrder(stream, seq_len, seed)
    assert order.num_positions == len(expected)
    for position, row in enumerate(expected):
        if row is None:
            with pytest.raises(DatasetError, match="GPT-NeoX would warn and read one again"):
                order.sequences(position, 1)
        else:
            (sequence,) = order.sequences(position, 1).tolist()
            assert order.rows([sequence])[0].tolist() == row
            assert order.positions_of(sequence, position + 1) == [position]
            assert order.positions_of(sequence, position) == []


@settings(max_examples=25, deadline=None)
@given(some_lengths, st.integers(1, 6), st.integers(1, 20), st.integers(0, 99))
def test_spans_join_to_rows(root, lengths, seq_len, need, seed):
    assume(sum(lengths) > seq_len)
    stream = dataset(root, [items_of(lengths)], NeoxPlan("1", need, seq_len))
    order = NeoxOrder(stream, seq_len, seed)
    rows = order.rows(np.arange(order.num_sequences))
    assert rows.shape == (order.num_sequences, seq_len + 1)
    for sequence, row in enumerate(rows):
        spans = order.spans(sequence)
        assert all(start < end for start, end in spans)
        assert np.array_equal(np.concatenate([stream.read(a, b - a) for a, b in spans]), row)


def brute_holding(rows, text):
    """Sequences with ids of a span, all of them different, and the columns where all of it is."""
    touched = {sequence for sequence, row in enumerate(rows) if set(text) & set(row)}
    whole = {
        (sequence, column)
        for sequence, row in enumerate(rows)
        for column in range(len(row) - len(text) + 1)
        if row[column : column + len(text)] == text
    }
    return touched, whole


def check_holding(order, stream, rows, start, end):
    found = order.holding(start, end)
    touched, whole = brute_holding(rows, stream.read(start, end - start).tolist())
    assert {sequence for sequence, _ in found} == touched
    fits = order.seq_len + 1 - (end - start)
    assert {(sequence, column) for sequence, column in found if 0 <= column <= fits} == whole
    assert all(start - end < column <= order.seq_len for _, column in found)


@settings(max_examples=30, deadline=None)
@given(some_lengths, st.integers(1, 8), st.integers(1, 3), st.integers(0, 99), st.data())
def test_holding_finds_every_exposure_and_says_which_are_whole(
    root, lengths, seq_len, epochs, seed, data
):
    assume(sum(lengths) > seq_len)
    stream = dataset(root, [items_of(lengths)], NeoxPlan("1", None, seq_len, epochs))
    order = NeoxOrder(stream, seq_len, seed)
    rows = order.rows(np.arange(order.num_sequences)).tolist()
    for _ in range(5):
        start = data.draw(st.integers(0, stream.num_tokens - 1))
        end = data.draw(st.integers(start + 1, stream.num_tokens))
        check_holding(order, stream, rows, start, end)


def test_holding_is_right_for_every_span_of_two_blended_files(tmp_path):
    lengths = GOLDEN_A["lengths"]
    files = [items_of(lengths), items_of([4, 0, 6, 1], base=500)]
    stream = dataset(tmp_path, files, NeoxPlan(None, None, 8, 3), [3, 1])
    order = NeoxOrder(stream, 8, 1234)
    assert order.num_sequences == 16 + 4
    rows = order.rows(np.arange(order.num_sequences)).tolist()
    for start, end in itertools.combinations(range(stream.num_tokens + 1), 2):
        check_holding(order, stream, rows, start, end)


def test_columns_of_an_item_are_where_its_ids_stand(tmp_path):
    lengths = GOLDEN_A["lengths"]
    stream = dataset(tmp_path, [items_of(lengths)], NeoxPlan("1", 20, 8))
    order = NeoxOrder(stream, 8, 1234)
    for document in stream.documents():
        for sequence, column in order.holding(document.start, document.end):
            row = order.rows([sequence])[0].tolist()
            for offset in range(document.end - document.start):
                if 0 <= column + offset <= 8:
                    assert row[column + offset] == stream.read(document.start + offset, 1)[0]


def test_the_stream_is_the_split_and_records_are_items_of_the_file(tmp_path):
    files = [items_of([3, 4, 5, 2, 6, 1, 7, 3, 2, 9])]
    dataset(tmp_path, files, NeoxPlan("6,3,1", 3, 4))
    streams = {name: MegatronStream(tmp_path / "data", name) for name in ("train", "valid", "test")}
    records = {name: [d.record for d in s.documents()] for name, s in streams.items()}
    assert records == {"train": [0, 1, 2, 3, 4, 5], "valid": [6, 7, 8], "test": [9]}
    part = streams["valid"].parts[0]
    assert part.item_starts(np.arange(3)).tolist() == [part.item_start(k) for k in range(3)]
    assert streams["valid"].read(0, 12).tolist() == list(itertools.chain(*files[0][6:9]))
    order = NeoxOrder(streams["train"], 4, 1234)
    assert set(order.rows(np.arange(order.num_sequences)).ravel()) <= set(range(1, 22))
    with pytest.raises(DatasetError, match="expected the split 'train'"):
        NeoxOrder(streams["test"], 4, 1234)
    with pytest.raises(DatasetError, match="expected one of"):
        MegatronStream(tmp_path / "data", "heldout")


def test_positions_past_the_end_say_what_gpt_neox_would_do(tmp_path):
    order = NeoxOrder(dataset(tmp_path, [items_of([30])], NeoxPlan("1", 3, 4)), 4, 1)
    assert (order.num_sequences, order.num_positions) == (7, 6)
    assert len(order.sequences(0, 6)) == 6
    assert len(order.sequences(6, 0)) == 0
    with pytest.raises(DatasetError, match=r"below 6, found \[5, 7\).*modulo their length"):
        order.sequences(5, 2)
    with pytest.raises(ValueError, match="first >= 0"):
        order.sequences(-1, 2)
    for number in (-1, 7):
        with pytest.raises(ValueError, match=r"in \[0, 7\)"):
            order.rows([number])
        with pytest.raises(ValueError, match=r"in \[0, 7\)"):
            order.positions_of(number, 10)


def test_a_longer_run_keeps_the_prefix_within_one_number_of_epochs_only(tmp_path):
    files = [items_of([20, 30, 25, 5])]
    orders = []
    for number, need in enumerate([10, 19, 20]):
        (tmp_path / str(number)).mkdir()
        stream = dataset(tmp_path / str(number), files, NeoxPlan("1", need, 4))
        orders.append(NeoxOrder(stream, 4, 1234))
    first, second, third = (order.rows(order.sequences(0, 10)) for order in orders)
    assert np.array_equal(first, second)
    assert not np.array_equal(second, third)


def test_another_seq_len_than_the_index_was_made_for_is_refused(tmp_path):
    stream = dataset(tmp_path, [items_of([30])], NeoxPlan("1", 3, 4))
    with pytest.raises(DatasetError, match="expected seq_len 4, found 5"):
        NeoxOrder(stream, 5, 1)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="data seed"):
            NeoxOrder(stream, 4, seed)


@pytest.mark.parametrize(
    ("plan", "lengths", "message"),
    [
        (NeoxPlan("1", 3, 4), [[30], [30]], "one file with a split"),
        (NeoxPlan("1", 3, 4, 2), [[30]], "give one of them"),
        (NeoxPlan("1", None, 4), [[30]], "give one of them"),
        (NeoxPlan("1", None, 40, 1), [[30]], "at least 41 ids"),
        (NeoxPlan("0,1", 3, 4), [[30, 20]], "at least one id to train on"),
        (NeoxPlan(None, 3, 4), [[30], [0]], "at least one id to train on"),
    ],
)
def test_plans_that_gpt_neox_could_not_carry_out_are_refused(tmp_path, plan, lengths, message):
    with pytest.raises(DatasetError, match=message):
        dataset(tmp_path, [items_of(each) for each in lengths], plan)


def test_preshuffled_files_have_no_neox_order(tmp_path):
    stream = dataset(tmp_path, [items_of([5, 5])], None)
    with pytest.raises(DatasetError, match="preshuffled-v1"):
        NeoxOrder(stream, 4, 1)
