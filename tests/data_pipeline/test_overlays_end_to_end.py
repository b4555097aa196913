"""Canaries and replaced documents through the reader that training uses."""

import argparse
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import cli_overlays
from data_pipeline.batches import BatchReader
from data_pipeline.canaries import plan_canaries
from data_pipeline.canary_study import Study
from data_pipeline.compare import compare_logs, step_leaf
from data_pipeline.errors import DatasetError
from data_pipeline.overlay import Overlay, binding_of
from data_pipeline.replace import fit, replace_documents
from tests.data_pipeline.runs import make_run
from tests.data_pipeline.test_canaries import group, study

S, B, STEPS = 48, 8, 24


@pytest.fixture(scope="module")
def plain(built):
    return BatchReader(built, S, B, seed=0)


@pytest.fixture(scope="module")
def tokenizer(plain):
    return plain.stream.index.tokenizer()


@pytest.fixture(scope="module")
def plan(plain, tokenizer):
    words = {"kind": "random_text", "words": 4, "word_list": ["zebra", "quartz", "waltz", "jump"]}
    record = study(
        group(copies={"0": 3, "1": 6, "4": 6}), group("text", words, {"1": 4}), first=5, last=20
    )
    return plan_canaries(Study.parse(record), binding_of(plain), tokenizer.encode)


@pytest.fixture(scope="module")
def path(plan, tmp_path_factory):
    return plan.overlay().save(tmp_path_factory.mktemp("suite") / "overlays")


@pytest.fixture(scope="module")
def planted(built, path):
    return BatchReader(built, S, B, seed=0, overlay=path)


def read_all(reader):
    return np.concatenate([reader.ids(step) for step in range(STEPS)])


def count(rows, ids):
    """Times that ids stand in rows."""
    windows = np.lib.stride_tricks.sliding_window_view(rows, len(ids), axis=1)
    return int((windows == np.array(ids)).all(axis=2).sum())


def test_leaves_differ_exactly_at_touched_steps_and_so_does_the_start(plain, planted, plan):
    logs = {
        name: b"".join(step_leaf(reader, step) for step in range(STEPS))
        for name, reader in (("plain", plain), ("planted", planted))
    }
    touched = {position // B for position in plan.overlay().positions()}
    (pair,) = compare_logs(logs)
    assert pair.step == min(touched)
    assert pair.differing == len(touched)
    for step in range(STEPS):
        same = step_leaf(plain, step) == step_leaf(planted, step)
        assert same == (step not in touched)
    assert plain.chain_start() != planted.chain_start()


def test_each_canary_is_read_as_often_as_planned_and_the_held_out_never(plain, planted, plan):
    before, after = read_all(plain), read_all(planted)
    assert {c.included for c in plan.canaries if c.copies} == {True, False}
    for canary in plan.canaries:
        expected = canary.copies if canary.included else 0
        assert count(after, canary.ids) == expected
        assert count(before, canary.ids) == 0
        for position, column in canary.placements:
            step, row = divmod(position, B)
            ids = planted.ids(step)[row, column : column + len(canary.ids)]
            assert tuple(ids.tolist()) == canary.ids
            assert canary.name in planted.describe(step)[row]["overlay"]


def test_nothing_else_changes(plain, planted, plan):
    overlay = plan.overlay()
    changed = read_all(plain) != read_all(planted)
    for position, row in enumerate(changed):
        for column in np.flatnonzero(row).tolist():
            assert overlay.hides(position, column, column + 1)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_any_split_over_ranks_reads_the_same_batch(planted, plan, world):
    for step in sorted({position // B for position in plan.overlay().positions()}):
        whole = planted.ids(step)
        for rank in range(world):
            rows = range(B)[rank::world]
            assert np.array_equal(planted.ids(step, rows), whole[rank::world])


def test_the_border_id_of_the_neighbour_is_untouched(plain, built, tmp_path):
    from data_pipeline.overlay import Entry

    sequence = int(plain.sequences(0)[0])
    (neighbour,) = plain.order.positions_of(sequence + 1, plain.num_sequences)
    ids = (5,) if plain.ids(0)[0, S] != 5 else (6,)
    made = Overlay(binding_of(plain), [Entry(0, S, ids, "canary", "border")])
    reader = BatchReader(built, S, B, seed=0, overlay=made.save(tmp_path))
    assert reader.ids(0)[0, S] == ids[0]
    step, row = divmod(neighbour, B)
    assert np.array_equal(reader.ids(step)[row], plain.ids(step)[row])


def test_an_overlay_of_another_reading_is_refused(built, path):
    for options in ({"seed": 1}, {"batch_size": B + 1}, {"seq_len": S - 1}):
        arguments = {"seq_len": S, "batch_size": B, "seed": 0, **options}
        with pytest.raises(DatasetError, match="is for another reading"):
            BatchReader(built, **arguments, overlay=path)


def replaced(plain, built, tokenizer, tmp_path, texts, fill="repeat", upto=STEPS):
    made = replace_documents(
        plain.stream, plain.order, binding_of(plain), texts, upto, tokenizer.encode, fill
    )
    return made, BatchReader(built, S, B, seed=0, overlay=made.save(tmp_path))


def test_a_replaced_document_is_read_in_every_row_that_held_it(plain, built, tokenizer, tmp_path):
    epochs = 2 * -(-plain.num_sequences // B)
    document = plain.stream.document(3)
    length = document.end - document.start
    text = "An entirely different text. " * 40
    made, reader = replaced(plain, built, tokenizer, tmp_path, {3: text}, upto=epochs)
    expected = np.append(tokenizer.encode(text)[: length - 1], plain.stream.index.eod)
    holding = plain.order.holding(document.start, document.end)
    assert len(holding) >= 3  # the document crosses borders of sequences
    rows = 0
    for step in range(epochs):
        read = zip(plain.sequences(step).tolist(), plain.ids(step), reader.ids(step), strict=True)
        for sequence, before, after in read:
            wanted = before.copy()
            for number, column in holding:
                if number == sequence:
                    first, last = max(column, 0), min(column + length, S + 1)
                    wanted[first:last] = expected[first - column : last - column]
                    rows += 1
            assert np.array_equal(after, wanted)
    assert rows == len(made.positions()) >= 2 * len(holding)
    assert {entry.kind for entry in made.entries} == {"document"}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_replacing_is_reading_a_stream_with_other_documents(plain, tokenizer, data):
    """The oracle edits a copy of the whole stream; the overlay must give the same rows."""
    stream, batches = plain.stream, plain.num_sequences * 2 // B
    numbers = st.integers(0, stream.num_documents - 1)
    texts = data.draw(st.dictionaries(numbers, st.text(min_size=1, max_size=500), max_size=4))
    fill = data.draw(st.sampled_from(["repeat", "eod"]))
    first = data.draw(st.integers(0, batches // 2))
    last = data.draw(st.integers(first, batches))
    edited = stream.read(0, stream.num_tokens)
    for number, text in texts.items():
        document = stream.document(number)
        size = document.end - document.start - 1
        edited[document.start : document.end - 1] = fit(tokenizer.encode(text), size, 0, fill)
    arguments = stream, plain.order, binding_of(plain), texts, last, tokenizer.encode, fill, first
    try:
        made = replace_documents(*arguments)
    except DatasetError:
        made = Overlay(binding_of(plain), [])
    windows = np.lib.stride_tricks.sliding_window_view(edited, S + 1)[::S]
    for step in range(batches):
        found = made.apply(np.arange(step * B, (step + 1) * B), plain.ids(step))
        replaced = first <= step < last
        wanted = windows[plain.sequences(step)] if replaced else plain.ids(step)
        assert np.array_equal(found, wanted)


def test_exposures_after_the_given_step_stay(plain, built, tokenizer, tmp_path):
    everything, _ = replaced(plain, built, tokenizer, tmp_path, {3: "x", 4: "y"})
    early, _ = replaced(plain, built, tokenizer, tmp_path, {3: "x", 4: "y"}, upto=10)
    with pytest.raises(DatasetError, match=r"read in steps \[0, 0\), found none of"):
        replaced(plain, built, tokenizer, tmp_path, {3: "x"}, upto=0)
    assert early.entries == tuple(e for e in everything.entries if e.position < 10 * B)
    late = replace_documents(
        plain.stream, plain.order, binding_of(plain), {3: "x", 4: "y"}, STEPS, tokenizer.encode,
        from_step=10,
    )  # fmt: skip
    assert late.entries == everything.entries[len(early.entries) :]
    with pytest.raises(ValueError, match="expected a document in"):
        replaced(plain, built, tokenizer, tmp_path, {10**6: "x"})


def test_short_texts_are_filled_and_long_ones_cut():
    ids = np.array([7, 8, 9])
    assert fit(ids, 2, 0, "repeat").tolist() == [7, 8]
    assert fit(ids, 3, 0, "repeat").tolist() == fit(ids, 3, 0, "eod").tolist() == [7, 8, 9]
    assert fit(ids, 9, 0, "repeat").tolist() == [7, 8, 9, 0, 7, 8, 9, 0, 7]
    assert fit(ids, 6, 0, "eod").tolist() == [7, 8, 9, 0, 0, 0]
    assert fit(ids, 0, 0, "eod").tolist() == []
    with pytest.raises(DatasetError, match="at least one id"):
        fit(ids[:0], 3, 0, "eod")


def test_unknown_policies_are_refused(plain, built, tokenizer, tmp_path):
    with pytest.raises(DatasetError, match="fill: expected one of"):
        replaced(plain, built, tokenizer, tmp_path, {3: "x"}, fill="spaces")


def tripod(*words):
    commands = {}

    def add(name, run, text, example):
        parser = argparse.ArgumentParser(prog=name)
        parser.set_defaults(run=run)
        commands[name] = parser
        return parser

    cli_overlays.add_commands(add)
    name, rest = " ".join(map(str, words[:2])), [str(word) for word in words[2:]]
    arguments = commands[name].parse_args(rest)
    return arguments.run(arguments)


def test_a_study_from_file_to_run(built, tmp_path, capsys):
    reading = [built, "--seq-len", S, "--batch-size", B, "--seed", 0]
    suite = tmp_path / "suite"
    (tmp_path / "study.json").write_text(json.dumps(study(group(), first=10, last=20)))
    plan = tmp_path / "plan.json"
    assert tripod("overlay", "plan", tmp_path / "study.json", *reading, "--out", plan) == 0
    out = capsys.readouterr().out
    assert "publish its SHA-256 before training" in out
    assert re.search(r"random +16 +4 ", out)
    texts = tmp_path / "texts.jsonl"
    lines = (json.dumps({"document": k, "text": f"short {k}"}) for k in range(9))
    texts.write_text("\n".join(lines))
    options = ["--upto-step", 10, "--suite", suite]
    assert tripod("overlay", "replace", texts, *reading, *options) == 0
    (first,) = (suite / "overlays").iterdir()
    assert tripod("overlay", "write", built, plan, first, "--suite", suite) == 0
    digest = re.findall(r"data\.overlay=([0-9a-f]{64})", capsys.readouterr().out)[-1]
    path = suite / "overlays" / f"{digest}.json"
    assert {e.kind for e in Overlay.load(path).entries} == {"canary", "document"}
    reader = make_run(suite / "a", built, overlay=path)
    assert reader.overlay.digest == digest
    with pytest.raises(DatasetError, match="expected a reading without overlay"):
        tripod("overlay", "plan", tmp_path / "study.json", suite / "a", "--out", plan)
    assert tripod("overlay", "show", path, "--limit", 3) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert (
        tripod("overlay", "plan", tmp_path / "study.json", *reading, "--out", plan, "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["rows"] > 0


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"document": 3}', '{"document": "3", "text": "x"}', '{"document": 3, '
             '"text": "x"}\n{"document": 3, "text": "y"}']
)  # fmt: skip
def test_bad_texts_are_refused(built, tmp_path, line):
    (tmp_path / "texts.jsonl").write_text(line + "\n")
    reading = [built, "--seq-len", S, "--batch-size", B, "--seed", 0]
    with pytest.raises(DatasetError, match=r"texts\.jsonl, line [12]: expected"):
        tripod("overlay", "replace", tmp_path / "texts.jsonl", *reading, "--upto-step", 1,
               "--suite", tmp_path)  # fmt: skip
