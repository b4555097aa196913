import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batches import BatchReader
from data_pipeline.cli_views import replaced_rows
from data_pipeline.exposures import Exposures
from data_pipeline.orders import FlatOrder
from data_pipeline.overlay import Entry, Overlay, binding_of
from data_pipeline.search import find_ids
from data_pipeline.seen import TextFinder, as_text, seen
from data_pipeline.shards import TokenStream
from tests.data_pipeline.memory import MemoryStream, ShuffledOrder
from tests.data_pipeline.test_search import cut_streams
from tests.data_pipeline.test_text_search import PIECES, reference


class Spelling:
    """A tokenizer over the vocabulary of the text search tests."""

    vocab_size = len(PIECES)

    def encode(self, text):
        return np.array([{"a": 1, "b": 2}[char] for char in text])

    def decode_bytes(self, ids):
        return b"".join(PIECES[one] for one in ids.tolist())


def finder(stream):
    return TextFinder(stream, Spelling(), eod=0)


def places_of(exposures):
    return sorted((one.position, one.column, one.end) for one in exposures)


def read_by_rows(order, consumed, text, replaced):
    """Decode every row as read and look for the text in it."""
    found = []
    for position, sequence in enumerate(order.sequences(0, consumed).tolist()):
        row = replaced.get(position, order.rows([sequence])[0])
        found += [(position, m.start, m.end) for m in reference(row.tolist(), text)]
    return sorted(found)


@settings(max_examples=400, deadline=None)
@given(
    cut=cut_streams(high=9),
    text=st.text("ab", min_size=1, max_size=5),
    seq_len=st.integers(1, 9),
    batch=st.integers(1, 4),
    steps=st.integers(0, 8),
    data=st.data(),
)
def test_exposures_equal_decoding_every_row_that_was_read(cut, text, seq_len, batch, steps, data):
    stream = MemoryStream(cut[1] or [[0]])
    order = ShuffledOrder(stream, seq_len)
    consumed = batch * steps if order.num_sequences else 0
    position = st.integers(0, max(0, consumed - 1))
    row = st.lists(st.integers(0, 9), min_size=seq_len + 1, max_size=seq_len + 1)
    drawn = data.draw(st.dictionaries(position, row, max_size=3)) if consumed else {}
    replaced = {place: np.array(ids) for place, ids in drawn.items()}
    steps = consumed // batch
    answer = seen(text, finder(stream), order, batch, steps, extra=replaced.items())
    expected = read_by_rows(order, consumed, text.encode(), replaced)
    assert answer.complete
    assert places_of(answer.exposures) == expected
    assert answer.count == len(expected)
    if expected:
        assert answer.first.step == expected[0][0] // batch
        assert answer.last.step == expected[-1][0] // batch


def test_a_text_over_the_border_of_two_sequences_is_flagged_and_not_counted():
    stream = MemoryStream([[1, 1, 1, 2, 2, 2, 1, 1, 1]])
    order = ShuffledOrder(stream, 4)  # sequences: ids 0..4 and 4..8
    answer = seen("abbba", finder(stream), order, 1, 2)
    assert answer.count == 0
    parts = sorted((one.sequence, one.column, one.end, one.first, one.last) for one in answer.split)
    assert parts == [(0, 2, 5, 0, 3), (1, 0, 3, 2, 5)]
    assert "cut by the border" in as_text(answer)


def test_the_id_that_two_sequences_share_is_read_twice_and_said_so():
    stream = MemoryStream([[1, 1, 1, 1, 2, 1, 1, 1, 1]])
    answer = seen("b", finder(stream), ShuffledOrder(stream, 4), 1, 2)
    read = {(r["sequence"], r["column"], r["read_as"]) for r in answer.record()["exposures"]}
    assert read == {(0, 4, "target"), (1, 0, "input")}
    whole = seen("ab", finder(stream), ShuffledOrder(stream, 4), 1, 2)
    assert [one.sequence for one in whole.exposures] == [0]
    assert whole.split == []


def test_planted_text_is_found_and_replaced_text_is_not_claimed():
    stream = MemoryStream([[1, 2, 2, 1, 2, 1, 1, 1, 1]])
    order = ShuffledOrder(stream, 4)
    at = order.sequences(0, 2).tolist().index(0)
    row = np.array([1, 1, 1, 1, 2])
    before = seen("abba", finder(stream), order, 1, 2)
    after = seen("abba", finder(stream), order, 1, 2, extra=[(at, row)])
    assert (before.count, after.count) == (1, 0)
    planted = seen("aaaab", finder(stream), order, 1, 2, extra=[(at, row)])
    assert [(one.position, one.planted) for one in planted.exposures] == [(at, True)]
    assert "planted" in as_text(planted)
    kept = seen("ab", finder(stream), order, 1, 2, extra=[(at, np.array([1, 1, 1, 1, 2]))])
    (one,) = [one for one in kept.exposures if one.position == at]
    assert not one.planted
    assert one.document is not None


def test_rows_replaced_after_the_last_step_asked_for_do_not_count():
    stream = MemoryStream([[1] * 9])
    order = ShuffledOrder(stream, 4)
    assert seen("bb", finder(stream), order, 1, 2, extra=[(2, np.array([2] * 5))]).count == 0


def test_too_many_places_make_the_answer_incomplete_and_it_says_so():
    stream = MemoryStream([[1] * 40])
    answer = seen("a", finder(stream), ShuffledOrder(stream, 4), 1, 2, limit=10)
    assert not answer.complete
    assert len(answer.places) == 10
    assert "NOT COMPLETE" in as_text(answer)
    assert answer.record()["notices"]


def test_an_empty_text_and_bad_sizes_are_refused():
    stream = MemoryStream([[1] * 9])
    with pytest.raises(ValueError, match="at least one character"):
        seen("", finder(stream), ShuffledOrder(stream, 4), 1, 2)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        Exposures(ShuffledOrder(stream, 4), 0, 1)


def test_a_text_that_the_tokenizer_normalises_is_searched_in_both_forms():
    class Folding(Spelling):
        def encode(self, text):
            return super().encode(text.lower())

    stream = MemoryStream([[1, 2, 1, 0, 1]])
    answer = seen("AB", TextFinder(stream, Folding(), eod=0), ShuffledOrder(stream, 4), 1, 1)
    assert answer.needles == ("AB", "ab")
    assert answer.count == 1
    assert any("changes this text" in notice for notice in answer.notices)


# On a dataset made of text, by the package's own tokenizer.


@pytest.fixture(scope="module")
def real(built):
    stream = TokenStream(built)
    return TextFinder(stream), FlatOrder(stream, 64, seed=3)


def cuts_of(corpus, stream, count, seed=0):
    """Strings of 30 to 80 characters of the training documents, cut anywhere."""
    random = np.random.RandomState(seed)
    texts = [(corpus / d.name).read_text(encoding="utf-8") for d in stream.documents()]
    for _ in range(count):
        text = texts[random.randint(len(texts))]
        size = random.randint(30, 81)
        start = random.randint(len(text) - size)
        yield text[start : start + size]


def test_every_string_of_the_corpus_is_found_and_its_bare_ids_are_not(real, corpus):
    text_finder, _ = real
    stream, tokenizer = text_finder.stream, text_finder.tokenizer
    cuts = list(cuts_of(corpus, stream, 300))
    found = [any(True for _ in text_finder.places(text_finder.patterns(t)[0])) for t in cuts]
    bare = [find_ids(stream, tokenizer.encode(text)).size > 0 for text in cuts]
    assert sum(found) == len(cuts)
    assert sum(bare) < 0.1 * len(cuts), sum(bare)


def test_places_and_exposures_hold_the_text_in_their_document(real, corpus):
    text_finder, order = real
    stream, tokenizer = text_finder.stream, text_finder.tokenizer
    counted = 0
    for text in cuts_of(corpus, stream, 40, seed=1):
        answer = seen(text, text_finder, order, 8, upto_step=40)
        texts = [(corpus / d.name).read_text(encoding="utf-8") for d in stream.documents()]
        assert len(answer.places) == sum(one.count(text) for one in texts)
        for place in answer.places:
            assert place.one_document
            data = tokenizer.decode_bytes(stream.read(place.start, place.end - place.start))
            assert data[place.skip :].startswith(text.encode())
            assert text in (corpus / place.document.name).read_text(encoding="utf-8")
        for one in answer.exposures:
            counted += 1
            row = order.rows(order.sequences(one.position, 1))[0]
            assert text.encode() in tokenizer.decode_bytes(row[one.column : one.end])
            assert (one.step, one.row) == divmod(one.position, 8)
    assert counted > 20


def test_short_strings_and_single_characters_are_found(real, corpus):
    text_finder, _ = real
    texts = [(corpus / d.name).read_text(encoding="utf-8") for d in text_finder.stream.documents()]
    for text in ("t", "or", "Θ", "Θ4 ", "\n", "batch1", "p9 ", "antum"):
        found = list(text_finder.places(text_finder.patterns(text)[0]))
        assert len(found) == sum(one.count(text) for one in texts) > 0, text


def test_the_literal_mark_in_a_text_is_text_and_real_marks_are_not(real):
    text_finder, order = real
    answer = seen("<|endoftext|>", text_finder, order, 8, 10)
    assert len(answer.places) == text_finder.stream.num_documents


def test_a_planted_canary_is_found_and_what_it_hides_is_not(built):
    bare = BatchReader(built, 64, 4, seed=3)
    text_finder = TextFinder(bare.stream)
    position, canary = 21, "My vault opens with 40-11-73."
    ids = tuple(text_finder.tokenizer.encode(canary).tolist())
    entry = Entry(position, 9, ids, "canary", "vault")
    reader = BatchReader(built, 64, 4, seed=3)
    reader.overlay = Overlay(binding_of(bare), [entry])
    hidden = bare.ids(5, range(1, 2))[0][9 : 9 + len(ids)]
    text = text_finder.tokenizer.decode_bytes(hidden).decode("utf-8", "ignore")[2:-2]

    def ask(question, one):
        rows = list(replaced_rows(one, 10))
        return seen(question, text_finder, one.order, 4, 10, extra=rows)

    assert ask(canary, bare).count == 0
    (found,) = ask(canary, reader).exposures
    assert (found.step, found.row, found.column, found.planted) == (5, 1, 9, True)
    before = {one.position for one in ask(text, bare).exposures}
    assert {one.position for one in ask(text, reader).exposures} == before - {position}
    assert position in before


def test_the_heldout_split_is_reported_apart(real, built, corpus):
    text_finder, order = real
    heldout = TokenStream(built, "heldout")
    text = next(cuts_of(corpus, heldout, 1))
    answer = seen(text, text_finder, order, 8, 10, heldout=heldout)
    assert answer.heldout
    assert text in (corpus / answer.heldout[0].document.name).read_text(encoding="utf-8")
    assert seen(text, text_finder, order, 8, 10).record()["heldout"] is None
