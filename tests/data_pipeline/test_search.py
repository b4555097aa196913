from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.search import CHUNK, find_ids, first_of, iter_ids, sieve
from tests.data_pipeline.memory import MemoryStream


def brute_force(ids, pattern):
    size = len(pattern)
    return [at for at in range(len(ids) - size + 1) if ids[at : at + size] == pattern]


@st.composite
def cut_streams(draw, high=3):
    ids = draw(st.lists(st.integers(0, high), max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=12)))
    borders = [0, *cuts, len(ids)]
    pieces = [ids[a:b] for a, b in pairwise(borders)]
    return ids, [piece for piece in pieces if piece]


@settings(max_examples=400, deadline=None)
@given(cut=cut_streams(), pattern=st.lists(st.integers(0, 3), min_size=1, max_size=6))
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4"])
def test_search_equals_brute_force_whatever_the_shards(dtype, cut, pattern):
    ids, pieces = cut
    assert find_ids(MemoryStream(pieces, dtype), pattern).tolist() == brute_force(ids, pattern)


def test_matches_in_and_across_chunks_are_found():
    ids = np.ones(2 * CHUNK + 10, dtype="<u2")
    places = [0, CHUNK - 2, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK + 7]
    for place in places:
        ids[place : place + 3] = [7, 8, 9]
    stream = MemoryStream([ids])
    expected = [p for p in places if stream.ids[p : p + 3].tolist() == [7, 8, 9]]
    assert find_ids(stream, [7, 8, 9]).tolist() == expected
    assert len(expected) >= 4


def test_a_match_at_half_an_id_is_none():
    stream = MemoryStream([[0x0201] * 50])
    assert stream.ids.astype("<u2").tobytes().find(b"\x02\x01\x02\x01") == 1
    assert find_ids(stream, [0x0102, 0x0102]).size == 0
    assert find_ids(stream, [0x0201, 0x0201]).size == 49


def test_one_repeated_id_costs_passes_and_not_steps():
    stream = MemoryStream([np.full(3_000_000, 5)])
    assert find_ids(stream, [5] * 40).size == 3_000_000 - 39
    assert find_ids(stream, [5] * 40 + [6]).size == 0


@settings(max_examples=100, deadline=None)
@given(
    ids=st.lists(st.integers(0, 400), max_size=80),
    wanted=st.lists(st.integers(-2, 70_000), max_size=30),
)
def test_the_sieve_finds_every_wanted_id(ids, wanted):
    array = np.array(ids, dtype="<u2")
    found = [place for run in sieve(array, wanted) for place in run.tolist()]
    assert found == [place for place, one in enumerate(ids) if one in wanted]


def test_ids_that_the_shards_cannot_hold_match_nothing():
    stream = MemoryStream([[1, 2, 65535]])
    assert find_ids(stream, [2, 65536 + 65535]).size == 0
    assert find_ids(stream, [-1]).size == 0


def test_no_pattern_is_refused():
    with pytest.raises(ValueError, match="at least one id"):
        find_ids(MemoryStream([[1]]), [])


def test_a_limit_reads_no_further_than_needed():
    class Counting(MemoryStream):
        read_pieces = 0

        def pieces(self):
            for piece in super().pieces():
                self.read_pieces += 1
                yield piece

    stream = Counting([[1, 2]] * 50)
    assert first_of(iter_ids(stream, [1, 2]), 3).tolist() == [0, 2, 4]
    assert stream.read_pieces <= 4
