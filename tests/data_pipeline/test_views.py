import json
from argparse import ArgumentParser
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from data_pipeline.batch_view import as_text, view_batch
from data_pipeline.batches import BatchReader
from data_pipeline.canonical import canonical_json
from data_pipeline.cli_views import add_commands
from data_pipeline.describe import describe
from data_pipeline.digests import leaf, sequence_digests
from data_pipeline.errors import DatasetError
from data_pipeline.exposures import Exposures
from data_pipeline.locate import as_text as located_text
from data_pipeline.locate import find_documents, locate
from data_pipeline.shards import TokenStream
from tests.data_pipeline.memory import MemoryStream, ShuffledOrder


@pytest.fixture(scope="module")
def reader(built):
    return BatchReader(built, 64, 4, seed=5)


@pytest.fixture(scope="module")
def tokenizer(reader):
    return reader.stream.index.tokenizer()


# batch


def test_the_leaf_and_digests_are_those_of_the_run(reader):
    view = view_batch(reader, 3)
    digests = sequence_digests(reader.ids(3))
    assert view["leaf"] == leaf(3, digests).hex()
    assert [row["digest"] for row in view["rows"]] == [one.hex() for one in digests]
    assert view_batch(reader, 4)["leaf"] != view["leaf"]


def test_some_rows_have_no_leaf_and_are_the_rows_of_the_whole(reader):
    whole, some = view_batch(reader, 3), view_batch(reader, 3, range(1, 3))
    assert some["leaf"] is None
    assert some["rows"] == whole["rows"][1:3]


def test_the_documents_of_a_row_tile_it_and_hold_their_text(reader, tokenizer, corpus):
    for step in range(4):
        view = view_batch(reader, step, tokenizer=tokenizer)
        for row, ids in zip(view["rows"], reader.ids(step), strict=True):
            column = 0
            for one in row["documents"]:
                assert one["column"] == column
                column = one["end_column"]
                there = reader.stream.document(one["index"])
                start = there.start + one["offset"]
                span = ids[one["column"] : column]
                assert np.array_equal(reader.stream.read(start, len(span)), span)
                kept = one["text"].removesuffix("<|endoftext|>").strip("\ufffd")
                assert kept in (corpus / one["name"]).read_text(encoding="utf-8") + "<|endoftext|>"
            assert column == 65
    assert "columns 0.." in as_text(view)
    assert json.loads(json.dumps(view)) == view


def test_rows_outside_the_batch_are_refused(reader):
    with pytest.raises(ValueError, match="expected rows"):
        view_batch(reader, 0, range(3, 6))


# locate


def test_a_document_is_found_by_number_name_and_digest(reader):
    for document in list(reader.stream.documents())[::5]:
        for name in (
            str(document.index),
            f"{document.source}:{document.name}",
            document.sha256,
        ):
            assert document in find_documents(reader.stream, name)


def test_equal_texts_are_all_found(built):
    streams = [TokenStream(built), TokenStream(built, "heldout")]
    counted = [
        (stream, sha256, count)
        for stream in streams
        for sha256, count in Counter(d.sha256 for d in stream.documents()).items()
        if count > 1
    ]
    assert counted
    for stream, sha256, count in counted:
        assert len(find_documents(stream, sha256)) == count


def test_records_ids_and_names_with_colons_are_found(dataset, resign):
    """Rewrite the records of the first shard as a builder of jsonl files would have."""
    index = json.loads((dataset / "index.json").read_bytes())
    stem = index["splits"]["train"]["shards"][0]["file"].removesuffix(".bin")
    lines = (dataset / f"{stem}.sources.jsonl").read_bytes().splitlines()
    new = []
    for number, line in enumerate(lines):
        record = json.loads(line) | {"name": "a:b.jsonl", "record": number, "id": f"doc é{number}"}
        new.append(canonical_json(record) + b"\n")
    docs = np.fromfile(dataset / f"{stem}.docs", "<u8").reshape(-1, 2)
    docs[:, 1] = np.cumsum([len(line) for line in new])
    (dataset / f"{stem}.sources.jsonl").write_bytes(b"".join(new))
    docs.tofile(dataset / f"{stem}.docs")
    resign(dataset)
    stream = TokenStream(dataset)
    source = stream.document(0).source
    (one,) = find_documents(stream, f"{source}:a:b.jsonl:1")
    assert one.index == 1
    assert find_documents(stream, "doc é1") == [one]
    assert len(find_documents(stream, f"{source}:a:b.jsonl")) == len(lines)


def test_an_unknown_document_is_refused_with_what_names_there_are(reader):
    with pytest.raises(DatasetError, match="expected a number below"):
        find_documents(reader.stream, "nobody:nothing.txt")
    with pytest.raises(DatasetError, match="expected a number below"):
        find_documents(reader.stream, str(reader.stream.num_documents))


def test_located_readings_are_those_of_the_batches(reader):
    steps = 30
    exposures = Exposures(reader.order, reader.batch_size, steps)
    for document in list(reader.stream.documents())[::7]:
        found = locate(document, exposures)
        read = Counter()
        for step, row, part in found.readings:
            ids = reader.ids(step, range(row, row + 1))[0]
            inside = reader.stream.read(document.start + part.first, part.last - part.first)
            assert np.array_equal(ids[part.column : part.end], inside)
            read[step, row] += part.last - part.first
        expected = Counter(
            {
                (step, row["row"]): one["end_column"] - one["column"]
                for step in range(steps)
                for row in view_batch(reader, step)["rows"]
                for one in row["documents"]
                if one["index"] == document.index
            }
        )
        assert read == expected
        assert f"read {found.times_read:.2f} times" in located_text(found)


def test_locate_works_for_any_stream_and_order():
    stream = MemoryStream([[1, 2, 0, 1, 1], [2, 2, 0, 1]])
    (document,) = find_documents(stream, "memory:doc1")
    found = locate(document, Exposures(ShuffledOrder(stream, 3), 1, 4))
    assert [(part.sequence, part.column) for part in found.parts] == [(0, 3), (1, 0)]
    # Two passes; ids 3..5 of the stream are inputs, 6 is a target only and 7 in the unread tail.
    assert found.times_read == pytest.approx(2 * 3 / 5)


# describe


@pytest.fixture(scope="module")
def described(built, tokenizer):
    splits = {name: TokenStream(built, name) for name in ("train", "heldout")}
    return splits, describe(splits, [64, 128], tokenizer, ["as declared"])


def _of(table, split):
    return table[table["split"] == split]


def test_counts_agree_with_the_documents_and_ids(described):
    splits, found = described
    for name, stream in splits.items():
        documents = list(stream.documents())
        sources = _of(found.tables["sources"], name)
        assert sources["documents"].sum() == len(documents)
        assert sources["tokens"].sum() == stream.num_tokens
        histogram = _of(found.tables["length_histogram"], name)
        for row in histogram.to_dict("records"):
            inside = [d for d in documents if row["from_tokens"] <= d.end - d.start]
            inside = [d for d in inside if d.end - d.start < row["below_tokens"]]
            assert row["documents"] == len(inside)
        assert histogram["tokens"].sum() == stream.num_tokens
        tokens = _of(found.tables["tokens"], name)
        counted = Counter(stream.read(0, stream.num_tokens).tolist())
        assert dict(zip(tokens["id"], tokens["count"], strict=True)) == counted
        (row,) = _of(found.tables["duplicates"], name).to_dict("records")
        distinct = Counter(d.sha256 for d in documents)
        assert row["distinct"] == len(distinct)
        assert row["extra_documents"] == len(documents) - len(distinct)
        lengths = [d.end - d.start for d in documents]
        (all_,) = _of(found.tables["lengths"], name).query("source == '(all)'")["q50"]
        assert all_ == np.median(lengths)
    assert found.tables["duplicates"]["extra_documents"].sum() >= 1
    assert len(found.tables["duplicate_groups"]) >= 1
    assert set(found.tables["sequences"]["seq_len"]) == {64, 128}
    assert "as declared" in found.notices
    assert any("repeat the text" in notice for notice in found.notices)


def test_tables_and_figures_are_written_with_the_same_bytes_every_time(described, tmp_path):
    _, found = described
    one, two = found.save(tmp_path / "one"), found.save(tmp_path / "two")
    names = {path.name for path in one}
    assert {"tokens.parquet", "tokens.csv", "lengths.svg", "tokens.svg", "sources.svg"} <= names
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    table = pd.read_parquet(tmp_path / "one" / "tokens.parquet")
    assert table["count"].sum() == found.tables["tokens"]["count"].sum()


def test_streams_without_digests_are_described_and_it_is_said():
    found = describe({"train": MemoryStream([[1, 2, 0], [3, 0]])})
    assert found.tables["duplicates"]["with_digest"].tolist() == [0]
    assert "no digest" in found.notices[0]
    assert "text" not in found.tables["tokens"]


# the command line


@pytest.fixture
def tripod(capsys):
    parser = ArgumentParser()
    commands = parser.add_subparsers()

    def add(name, run, text, example):
        sub = commands.add_parser(name.replace(" ", "-"), help=text, epilog=example)
        sub.set_defaults(run=run)
        return sub

    add_commands(add)

    def call(*words):
        arguments = parser.parse_args([str(word) for word in words])
        code = arguments.run(arguments)
        return code, capsys.readouterr().out

    return call


DATASET = ("--seq-len", 64, "--batch-size", 4, "--seed", 5)


def test_batch_of_a_dataset_and_of_a_run_agree(tripod, built, tmp_path, reader):
    run = tmp_path / "suite" / "run"
    run.mkdir(parents=True)
    data = {"dir": str(built), "seq_len": 64, "batch_size": 4, "seed": 5, "order": "order-v1"}
    config = {"data": data | {"overlay": None}, "train": {"steps": 3}}
    (run / "config.json").write_text(json.dumps(config))
    words = ("--step", 2, "--json")
    code, one = tripod("batch", built, *DATASET, *words)
    assert code == 0
    assert tripod("batch", run, *words) == (0, one)
    assert json.loads(one) == view_batch(reader, 2)
    _, text = tripod("batch", run, "--step", 2, "--rows", "1:3", "--decode")
    assert "row 1" in text
    assert "row 0" not in text
    assert "    | " in text
    _, found = tripod("locate", run, "--document", 0, "--json")
    assert json.loads(found)[0]["upto_step"] == 3
    with pytest.raises(DatasetError, match="expected no sizes"):
        tripod("batch", run, "--seed", 1, "--step", 0)


def test_a_dataset_needs_to_be_told_how_it_is_read(tripod, built):
    with pytest.raises(DatasetError, match="with --seq-len"):
        tripod("batch", built, "--seq-len", 64, "--step", 0)


@pytest.mark.parametrize("rows", ["2:1", "-1:2", "x", "1:1"])
def test_rows_that_are_none_are_refused(tripod, built, rows):
    with pytest.raises(SystemExit):
        tripod("batch", built, *DATASET, "--step", 0, f"--rows={rows}")


def test_seen_prints_and_says_when_it_is_not_complete(tripod, built):
    words = ("seen", built, "digest", *DATASET)
    code, out = tripod(*words, "--json", "--heldout")
    answer = json.loads(out)
    assert code == 0
    assert answer["complete"]
    assert answer["count"] == len(answer["exposures"]) > 10
    assert answer["heldout"]
    code, out = tripod(*words, "--limit", 3)
    assert code == 1
    assert "NOT COMPLETE" in out
    code, out = tripod(*words, "--upto", 2)
    assert code == 0
    assert "before step 2" in out


def test_locate_and_describe_print(tripod, built, tmp_path, reader):
    one = reader.stream.document(3)
    _, out = tripod("locate", built, *DATASET, "--document", f"{one.source}:{one.name}")
    assert out.startswith("document 3  ")
    code, out = tripod("data-describe", built, "--out", tmp_path / "out", "--seq-len", 64)
    assert code == 0
    assert "sources" in out
    assert (tmp_path / "out" / "tokens.svg").is_file()
