import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.search import Frequencies
from data_pipeline.text_search import Match, TextPattern, Vocabulary
from tests.data_pipeline.memory import MemoryStream
from tests.data_pipeline.test_search import cut_streams

# Id 0 is a mark, 8 has no bytes, and 9 spells the same as 1.
PIECES = [b"#", b"a", b"b", b"ab", b"ba", b"aab", b"abab", b"bbaaba", b"", b"a"]
VOCABULARY = Vocabulary(PIECES, marks=(0,))


def reference(ids, text):
    """Every place of the text, by decoding: borders of ids by byte, marks break the text."""
    data, owner = bytearray(), []
    for at, one in enumerate(ids):
        piece = PIECES[one] if one not in (0, 8) else b"\xff"
        data += piece
        owner += [at] * len(piece)
    found, at = [], bytes(data).find(text)
    while at >= 0:
        first, last = owner[at], owner[at + len(text) - 1]
        found.append(Match(first, last + 1, at - owner.index(first)))
        at = bytes(data).find(text, at + 1)
    return found


def search(stream, text):
    return list(TextPattern(text, VOCABULARY, Frequencies(stream)).search(stream))


@settings(max_examples=600, deadline=None)
@given(cut=cut_streams(high=9), text=st.text("ab", min_size=1, max_size=9))
def test_search_equals_decoding_everything(cut, text):
    ids, pieces = cut
    found = search(MemoryStream(pieces), text.encode())
    assert sorted(found, key=lambda m: (m.start, m.skip)) == reference(ids, text.encode())
    whole = TextPattern(text.encode(), VOCABULARY, Frequencies(MemoryStream(pieces)))
    assert sorted(whole.find(np.array(ids, "<u2")), key=lambda m: (m.start, m.skip)) == reference(
        ids, text.encode()
    )


def test_a_text_inside_one_id_is_found_with_its_place():
    assert search(MemoryStream([[2, 7, 2]]), b"aab") == [Match(1, 2, 2)]
    assert search(MemoryStream([[6]]), b"b") == [Match(0, 1, 1), Match(0, 1, 3)]


def test_marks_and_ids_without_bytes_break_the_text():
    assert search(MemoryStream([[1, 0, 2], [1, 8, 2]]), b"ab") == []
    assert search(MemoryStream([[0, 0]]), b"#") == []


def test_text_of_no_id_of_the_vocabulary_is_not_there():
    assert search(MemoryStream([[1, 2, 3]]), b"xyz") == []


def test_long_texts_are_found():
    ids = ([3, 1, 4, 7] * 300)[:1100]
    text = b"".join(PIECES[one] for one in ids[50:1000])
    found = search(MemoryStream([ids[:500], ids[500:]]), text)
    assert Match(50, 1000, 0) in found
    assert found == reference(ids, text)


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="at least one byte"):
        search(MemoryStream([[1]]), b"")
