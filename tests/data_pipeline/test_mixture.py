from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DatasetError
from data_pipeline.mixture import MixtureV1, Part, parse_decimal, part_seed, share_tokens
from data_pipeline.permutation import Permutation

DIGEST = "00" * 32
VECTOR = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 8, 7, 0, 22, 16, 32, 33, 29, 26, 21]


@pytest.mark.parametrize(
    ("weights", "tokens", "shares"),
    [
        (["0.7", "0.3"], 10, [7, 3]),
        (["1", "1", "1"], 10, [4, 3, 3]),  # equal remainders: the first part
        (["1", "1", "1"], 11, [4, 4, 3]),
        (["0.2", "0.2", "0.6"], 7, [2, 1, 4]),  # 1.4, 1.4, 4.2
        (["0.1", "0.9"], 1, [0, 1]),
        (["3"], 5, [5]),
    ],
)
def test_shares_are_by_largest_remainder(weights, tokens, shares):
    assert share_tokens([Fraction(weight) for weight in weights], tokens) == shares


@given(
    weights=st.lists(st.fractions(Fraction(1, 1000), 1000), min_size=1, max_size=9),
    tokens=st.integers(0, 10**14),
)
def test_shares_add_up_and_are_within_one_of_the_exact_quota(weights, tokens):
    shares = share_tokens(weights, tokens)
    assert sum(shares) == tokens
    for weight, share in zip(weights, shares, strict=True):
        assert abs(share - tokens * weight / sum(weights)) < 1


@pytest.mark.parametrize("text", [0.7, "0,7", "-1", "1e3", "", " 1", "1.", None, True, "٣"])
def test_weights_that_are_no_decimal_text_are_refused(text):
    with pytest.raises(
        DatasetError, match=r'weights\.a: expected a decimal in quotes, like "0\.7"'
    ):
        parse_decimal("weights.a", text)


parts = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 400)), min_size=1, max_size=4)


def bound(sizes, seq_len) -> MixtureV1:
    """Parts of the given available and wanted ids; one that is too short is not wanted."""
    made, offset = [], 5
    for available, tokens in sizes:
        made.append(Part(offset, available, tokens if available > seq_len else 0))
        offset += available
    return MixtureV1(made, seq_len, DIGEST)


@settings(max_examples=150, deadline=None)
@given(sizes=parts, seq_len=st.integers(1, 17))
def test_every_sequence_is_read_floor_or_ceil_times_and_the_inverse_is_exact(sizes, seq_len):
    mixture = bound(sizes, seq_len)
    read = mixture.sequences(np.arange(mixture.num_virtual))
    times = np.bincount(read, minlength=mixture.num_sequences)
    first = 0
    for part in mixture.parts:
        size, wanted = (part.available - 1) // seq_len, part.tokens // seq_len
        here = times[first : first + size]
        assert here.sum() == wanted
        if size:
            assert set(here.tolist()) <= {wanted // size, -(-wanted // size)}
        first += size
    for sequence in range(mixture.num_sequences):
        assert mixture.virtual_numbers(sequence) == np.flatnonzero(read == sequence).tolist()


@settings(max_examples=100, deadline=None)
@given(sizes=parts, seq_len=st.integers(1, 17))
def test_no_sequence_crosses_a_border_of_parts(sizes, seq_len):
    mixture = bound(sizes, seq_len)
    offsets = mixture.offsets(np.arange(mixture.num_sequences))
    for sequence, offset in enumerate(offsets.tolist()):
        part = mixture.parts[mixture.part_of(sequence)]
        assert part.offset <= offset
        assert offset + seq_len + 1 <= part.offset + part.available
        assert (offset - part.offset) % seq_len == 0


def test_full_passes_read_in_order_and_the_rest_is_a_keyed_subset():
    mixture = MixtureV1([Part(0, 41, 110), Part(41, 21, 0)], 4, DIGEST)
    assert (mixture.num_sequences, mixture.num_virtual) == (15, 27)
    read = mixture.sequences(np.arange(27)).tolist()
    assert read[:20] == [*range(10), *range(10)]
    drawn = Permutation(10, part_seed(bytes(32), 0), 2).forward(np.arange(7)).tolist()
    assert read[20:] == drawn


def test_vectors_of_the_specification():
    assert part_seed(bytes(32), 0).hex()[:16] == "b68107838d2c4a59"
    assert part_seed(bytes(32), 1).hex()[:16] == "723ff2210b5a89d1"
    mixture = MixtureV1([Part(0, 41, 60), Part(41, 101, 30)], 4, DIGEST)
    assert (mixture.num_sequences, mixture.num_virtual) == (35, 22)
    assert mixture.sequences(np.arange(22)).tolist() == VECTOR
    assert mixture.virtual_numbers(VECTOR[10]) == sorted(
        place for place, sequence in enumerate(VECTOR) if sequence == VECTOR[10]
    )


@pytest.mark.parametrize("digest", ["11" * 32, "00" * 31 + "01"])
def test_the_subset_depends_on_the_index_and_the_part(digest):
    sizes = [Part(0, 4001, 2000), Part(4001, 4001, 2000)]
    mixture, other = MixtureV1(sizes, 4, DIGEST), MixtureV1(sizes, 4, digest)
    every = np.arange(mixture.num_virtual)
    assert mixture.sequences(every).tolist() != other.sequences(every).tolist()
    first, second = np.split(mixture.sequences(every), 2)
    assert first.tolist() != (second - 1000).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share_tokens([], 3), "positive weights"),
        (lambda: share_tokens([Fraction(0)], 3), "positive weights"),
        (lambda: MixtureV1([Part(0, 9, 9)], 0, DIGEST), "seq_len >= 1"),
        (lambda: MixtureV1([], 4, DIGEST), "parts"),
        (lambda: MixtureV1([Part(0, 4, 9)], 4, DIGEST), "at least 5 ids for one sequence"),
        (lambda: MixtureV1([Part(0, 9, 9)], 4, DIGEST).sequences([2]), r"\[0, 2\), found 2"),
        (lambda: MixtureV1([Part(0, 9, 9)], 4, DIGEST).virtual_numbers(-1), r"found -1"),
        (lambda: part_seed(b"", 0), "32 bytes"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_trillion_tokens_need_no_table():
    mixture = MixtureV1([Part(0, 10**12, 3 * 10**12), Part(10**12, 10**9, 10**11)], 2048, DIGEST)
    ends = np.array([0, mixture.num_virtual - 1])
    for virtual, sequence in zip(ends, mixture.sequences(ends), strict=True):
        assert int(virtual) in mixture.virtual_numbers(int(sequence))
