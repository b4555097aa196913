import contextlib
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.digests import chain_start, leaf, sequence_digests
from data_pipeline.errors import DatasetError
from data_pipeline.overlay import Binding, Entry, Overlay, merge

S, B, V, EOD = 7, 4, 50, 0
BINDING = Binding("ab" * 32, "order-v1", 3, S, B, V, EOD)
READING = ("ab" * 32, "order-v1", 3, S, B)


def entry(position=0, column=0, ids=(1, 2), kind="canary", name="c"):
    return Entry(position, column, tuple(ids), kind, name)


def overlay(*entries, **options):
    return Overlay(BINDING, entries, **options)


def base(positions):
    return np.array([[(p * 8 + c) % V for c in range(S + 1)] for p in positions], dtype=np.int64)


@st.composite
def overlays(draw):
    """Any valid overlay over positions 0..39."""
    entries = []
    for position in sorted(draw(st.sets(st.integers(0, 39), max_size=12))):
        cuts = sorted(draw(st.sets(st.integers(0, S + 1), min_size=2, max_size=6)))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False):
            ids = draw(st.lists(st.integers(1, V - 1), min_size=end - start, max_size=end - start))
            entries.append(entry(position, start, ids, "canary", f"{position}.{start}"))
    return overlay(*entries)


def test_published_vector():
    binding = Binding("00" * 32, "order-v1", 0, 3, 3, 100, 0)
    entries = [entry(1, 2, (50, 51), name="c/0"), entry(4, 0, (60,), "document", "document 7")]
    made = Overlay(binding, entries)
    assert len(made.data) == 353
    assert made.digest == "1fefc511210486e44c739da132a8affeedc9e5051121e0c994cc5f785defc9bd"
    start = "fb9b9d2b72ae751ca91e679086a9b6b239ee8c71555e12415a1ce8839b27a5b2"
    assert chain_start("00" * 32, 3, 3, "order-v1", 0, made.digest).hex() == start
    ids = made.apply([0, 1, 2], np.arange(12).reshape(3, 4))
    assert ids[1].tolist() == [4, 5, 50, 51]
    first = "18a69fc3c85cb8340c5c9a2c7489d2262e689022128c5452e7a886122b777873"
    assert leaf(0, sequence_digests(ids)).hex() == first


@given(overlays(), st.lists(st.integers(0, 45), max_size=20))
def test_applying_is_writing_every_entry_into_its_row(made, positions):
    ids = base(positions).reshape(-1, S + 1)
    expected = ids.copy()
    for row, position in enumerate(positions):
        for one in made.entries:
            if one.position == position:
                expected[row, one.column : one.end] = one.ids
    before = ids.copy()
    assert np.array_equal(made.apply(np.array(positions, dtype=np.int64), ids), expected)
    assert np.array_equal(ids, before)
    assert made.apply_in_place(np.array(positions, dtype=np.int64), ids) is ids
    assert np.array_equal(ids, expected)


@given(overlays(), st.integers(1, 8))
def test_any_split_over_ranks_reads_the_same_rows(made, ranks):
    positions = np.arange(40)
    whole = made.apply(positions, base(positions))
    for rank in range(ranks):
        mine = positions[rank::ranks]
        assert np.array_equal(made.apply(mine, base(mine)), whole[rank::ranks])


@given(overlays())
def test_the_bytes_give_the_overlay_back(made):
    again = Overlay.parse(made.data)
    assert (again.entries, again.binding, again.digest) == (made.entries, BINDING, made.digest)
    assert made.positions() == sorted({e.position for e in made.entries})
    assert [p for p, _ in made.rows_touching()] == made.positions()
    assert [p for p, _ in made.rows_touching(10, 20)] == [
        p for p in made.positions() if 10 <= p < 20
    ]


def test_untouched_rows_are_not_copied():
    ids = base([1, 2])
    assert overlay(entry(0)).apply([1, 2], ids) is ids
    assert overlay().apply([1, 2], ids) is ids


def test_entries_and_spans_of_a_row():
    made = overlay(entry(3, 1, (5,)), entry(3, 4, (6, 7)), entry(9, 0, (8,)))
    assert [e.column for e in made.entries_at(3)] == [1, 4]
    assert made.entries_at(4) == ()
    assert list(made.rows_touching()) == [(3, [(1, 2), (4, 6)]), (9, [(0, 1)])]
    assert [made.hides(3, a, b) for a, b in [(0, 1), (1, 2), (2, 4), (5, 8), (6, 8)]] == [
        False, True, False, True, False,
    ]  # fmt: skip


def test_the_digest_enters_the_chain():
    made, other = overlay(entry()), overlay(entry(ids=(1, 3)))
    starts = {chain_start(*READING[:1], S, B, "order-v1", 3, d) for d in (
        None, made.digest, other.digest)}  # fmt: skip
    assert made.digest == sha256_hex(made.data)
    assert len(starts) == 3
    assert overlay(entry(), plan="cd" * 32).digest != made.digest


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(5), entry(4)], r"entries 0 and 1: expected them sorted"),
        ([entry(5, 2), entry(5, 0)], r"entries 0 and 1: expected them sorted"),
        ([entry(5, 0), entry(5, 1)], r"overlap at position 5: columns \[0, 2\) and \[1, 3\)"),
        ([entry(5), entry(5)], "overlap"),
        ([entry(column=S)], r"within columns \[0, 8\), found column 7 and 2 ids"),
        ([entry(column=-1)], "found column -1"),
        ([entry(column="1")], "found column '1'"),
        ([entry(ids=())], "at least one id"),
        ([entry(position=-1)], "position: expected an integer"),
        ([entry(position=True)], "position: expected an integer"),
        ([entry(ids=(1, V))], r"expected ids in \[0, 50\), found 50"),
        ([entry(ids=(-1, 1))], "found -1"),
        ([entry(ids=(1, "2"))], "found '2'"),
        ([entry(ids=(1, EOD))], r"no end-of-document mark \(0\) in a canary"),
        ([entry(kind="edit")], "a kind of"),
        ([entry(name="")], "expected a name"),
    ],
)
def test_bad_entries_are_refused(entries, message):
    with pytest.raises(DatasetError, match=message):
        overlay(*entries)


def test_a_document_may_hold_the_mark():
    assert overlay(entry(ids=(1, EOD), kind="document")).entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index_digest": "12" * 32}, "index_digest: expected abab"),
        ({"order": "neox-v1"}, "order: expected order-v1, found neox-v1"),
        ({"seed": 4}, "seed: expected 3, found 4"),
        ({"seq_len": 8}, "seq_len: expected 7, found 8"),
        ({"batch_size": 8}, "batch_size: expected 4, found 8"),
        ({"vocab_size": 60}, "vocab_size: expected 50, found 60"),
        ({"eod": 1}, "eod: expected 0, found 1"),
    ],
)
def test_another_reading_is_refused(change, message):
    overlay().expect(*READING, vocab_size=V, eod=EOD)
    made = Overlay(dataclasses.replace(BINDING, **change), [])
    with pytest.raises(DatasetError, match=message):
        made.expect(*READING, vocab_size=V, eod=EOD)


def test_files_round_trip_and_damage_is_refused(tmp_path):
    made = overlay(entry(3, 1, (5,)), plan="cd" * 32)
    path = made.save(tmp_path / "overlays")
    assert path.name == f"{made.digest}.json"
    assert Overlay.load(path).digest == made.digest
    with pytest.raises(DatasetError, match=r"nowhere\.json: expected an overlay, found no file"):
        Overlay.load(tmp_path / "nowhere.json")
    other = overlay(entry(3, 1, (6,)))
    path.write_bytes(other.data)
    with pytest.raises(DatasetError, match=f"digest in its name, found {other.digest}"):
        Overlay.load(path)
    record = json.loads(made.data)
    for raw, message in [
        (made.data[:-1], "canonical JSON, found"),
        (made.data + b"\n", "another encoding"),
        (b"[1.5]", "no floats"),
        (b"\xff", "canonical JSON, found"),
        (b"[]", "expected the keys"),
        (canonical_json({**record, "schema": "overlay-v2"}), "'overlay-v2'"),
        (canonical_json({**record, "extra": 1}), "'extra'"),
        (canonical_json({**record, "plan": "x"}), "plan: expected"),
        (canonical_json({**record, "seed": "3"}), "seed: expected an integer"),
        (canonical_json({**record, "order": None}), "name of an order"),
        (canonical_json({**record, "index_digest": "AB" * 32}), "64 hex digits"),
        (canonical_json({**record, "entries": [{"position": 1}]}), "entry 0: expected the keys"),
        (canonical_json({**record, "entries": [{**record["entries"][0], "ids": 5}]}), "a list"),
        (canonical_json({**record, "entries": 5}), "list of entries"),
    ]:
        path.write_bytes(raw)
        with pytest.raises(DatasetError, match=message):
            Overlay.load(path)


def test_every_flipped_byte_is_noticed_or_changes_the_digest():
    made = overlay(entry(3, 1, (5,)), entry(9, 0, (8, 9)))
    for place in range(len(made.data)):
        raw = bytearray(made.data)
        raw[place] ^= 1
        with contextlib.suppress(DatasetError):
            assert Overlay.parse(bytes(raw)).digest != made.digest


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"ids \[n, 8\]"):
        overlay().apply([0], np.zeros((1, S), dtype=np.int64))
    with pytest.raises(ValueError, match="expected n positions"):
        overlay().apply([0, 1], base([0]))


def test_overlays_of_one_reading_join():
    joined = merge(overlay(entry(5), entry(9)), overlay(entry(1), entry(5, 4)))
    assert [(e.position, e.column) for e in joined.entries] == [(1, 0), (5, 0), (5, 4), (9, 0)]
    with pytest.raises(DatasetError, match="overlap"):
        merge(overlay(entry(5)), overlay(entry(5, 1)))
    with pytest.raises(DatasetError, match="one reading"):
        merge(overlay(), Overlay(dataclasses.replace(BINDING, seed=4), []))
