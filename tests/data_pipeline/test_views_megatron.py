"""Views of Megatron files: several epochs in one shuffle, blends, preshuffled rows."""

import json
from argparse import ArgumentParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batch_view import view_batch
from data_pipeline.batches import BatchReader
from data_pipeline.cli_views import add_commands
from data_pipeline.exposures import Exposures, one_pass
from data_pipeline.locate import find_documents, locate
from data_pipeline.megatron import write_megatron
from data_pipeline.megatron_build import MegatronPart, build_megatron_index
from data_pipeline.megatron_index import NeoxPlan
from data_pipeline.seen import seen
from tests.data_pipeline.test_seen import finder, places_of, read_by_rows

S = 6
ids = st.lists(st.integers(1, 7), max_size=12)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("megatron")


def index(root, files, plan, eod_policy="unknown"):
    parts = []
    for number, items in enumerate(files):
        write_megatron(root / f"file{number}", items, "uint16")
        parts.append(MegatronPart.of(root / f"file{number}", weight="1.0"))
    (root / "data" / "index.json").unlink(missing_ok=True)
    build_megatron_index(root / "data", parts, 10, 0, eod_policy, plan)
    return root / "data"


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(ids, min_size=2, max_size=8), min_size=1, max_size=2),
    text=st.text("ab", min_size=1, max_size=4),
    samples=st.integers(1, 40),
)
def test_exposures_under_neox_equal_decoding_every_row(root, files, text, samples):
    closed = [[[*item, 0] for item in items] + [[1, 2] * S + [0]] for items in files]
    plan = NeoxPlan(split=None, num_samples=samples, seq_len=S)
    reader = BatchReader(index(root, closed, plan, "appended"), S, 1, 7, "neox-v1")
    steps = min(samples, one_pass(reader.order, 1))
    answer = seen(text, finder(reader.stream), reader.order, 1, steps)
    assert places_of(answer.exposures) == read_by_rows(reader.order, steps, text.encode(), {})


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.integers(0, 7), min_size=S + 1, max_size=S + 1), min_size=1, max_size=9
    ),
    text=st.text("ab", min_size=1, max_size=4),
)
def test_exposures_of_preshuffled_rows_equal_decoding_every_row(root, rows, text):
    reader = BatchReader(index(root, [rows], None), S, 1, 0, "preshuffled-v1")
    answer = seen(text, finder(reader.stream), reader.order, 1, len(rows))
    assert places_of(answer.exposures) == read_by_rows(reader.order, len(rows), text.encode(), {})


def test_a_batch_and_a_document_of_preshuffled_rows_say_what_is_unknown(root):
    rows = [[one, 1, 2, 3, 4, 5, 0] for one in (1, 2, 3, 4)]
    reader = BatchReader(index(root, [rows], None), S, 2, 0, "preshuffled-v1")
    view = view_batch(reader, 1)
    assert [row["documents"][0]["index"] for row in view["rows"]] == [2, 3]
    assert any("EOD unknown" in notice for notice in view["notices"])
    (document,) = find_documents(reader.stream, "3")
    found = locate(document, Exposures(reader.order, 2, 2))
    assert [(step, row) for step, row, _ in found.readings] == [(1, 1)]
    assert np.array_equal(reader.ids(1)[1], rows[3])


def test_describe_prints_the_facts_of_megatron_files(root, capsys):
    out = index(root, [[[1, 2, 0], [3, 4, 5, 0]] * 20], NeoxPlan("90,10,0", 4, S))
    parser = ArgumentParser()
    commands = parser.add_subparsers()

    def add(name, run, text, example):
        sub = commands.add_parser(name.replace(" ", "-"))
        sub.set_defaults(run=run)
        return sub

    add_commands(add)
    arguments = parser.parse_args(["data-describe", str(out), "--seq-len", str(S)])
    assert arguments.run(arguments) == 0
    printed = capsys.readouterr().out
    assert "valid" in printed
    assert "note: EOD unknown" in printed
    words = ["batch", str(out), "--order", "neox-v1", "--seq-len", str(S), "--batch-size", "1"]
    arguments = parser.parse_args([*words, "--seed", "1", "--step", "0", "--json"])
    assert arguments.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["notices"]
