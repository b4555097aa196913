"""Runs of every order, from the command line: verified, shown, searched, and broken once each."""

import json

import numpy as np
import pytest

from data_pipeline import cli_proofs, cli_views
from data_pipeline.build import build_dataset
from data_pipeline.megatron import write_megatron
from data_pipeline.megatron_build import MegatronPart, build_megatron_index
from data_pipeline.megatron_index import NeoxPlan
from data_pipeline.tokenizer import train_bpe
from tests.data_pipeline.command import run_command
from tests.data_pipeline.conftest import recipe
from tests.data_pipeline.runs import make_run

S, B, STEPS = 16, 4, 12
KINDS = ["order-v1", "mixture", "order-v1 over Megatron files", "neox-v1", "preshuffled-v1"]


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_bpe([path.read_text() for path in sorted(corpus.glob("*/doc*.txt"))], 300)


@pytest.fixture(scope="module")
def places(corpus, tokenizer, tmp_path_factory):
    """Dataset and order of every kind."""
    root = tmp_path_factory.mktemp("orders")
    build_dataset(recipe(corpus), root / "flat")
    trees = [
        {"kind": "text_tree", "name": name, "root": str(corpus / name), "include": ["**/*.txt"]}
        for name in ("part0", "part1")
    ]
    mixture = {"tokens": 6_000, "weights": {"part0": "0.3", "part1": "0.7"}}
    spec = {key: value for key, value in recipe(corpus).items() if key != "source"}
    build_dataset(spec | {"sources": trees, "mixture": mixture}, root / "mixture")
    texts = [path.read_text() for path in sorted(corpus.glob("*/doc*.txt"))]
    items = [np.append(tokenizer.encode(text), 0) for text in texts]
    stream = np.concatenate(items)
    rows = [stream[at : at + S + 1] for at in range(0, len(stream) - S, S)]
    write_megatron(root / "docs", items, np.dtype("<u2"))
    write_megatron(root / "rows", rows, np.dtype("<u2"))
    plan = NeoxPlan(split="90,10,0", num_samples=STEPS * B, seq_len=S)
    for name, policy, planned in (("docs", "appended", plan), ("rows", "appended", None)):
        build_megatron_index(
            root / f"{name}-data",
            [MegatronPart.of(root / name)],
            300,
            0,
            policy,
            planned,
            tokenizer,
        )
    return {
        "order-v1": (root / "flat", "order-v1"),
        "mixture": (root / "mixture", "order-v1"),
        "order-v1 over Megatron files": (root / "docs-data", "order-v1"),
        "neox-v1": (root / "docs-data", "neox-v1"),
        "preshuffled-v1": (root / "rows-data", "preshuffled-v1"),
    }


@pytest.fixture(params=KINDS)
def run(request, places, tmp_path):
    """A run of each kind, and its reader."""
    dataset, order = places[request.param]
    return make(tmp_path / "suite" / "a", dataset, order)


def make(path, dataset, order, fed=None):
    reader = make_run(path, dataset, STEPS, batch_size=B, order=order, seq_len=S, fed=fed)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"train": {"steps": STEPS}}))
    return path, reader


def tripod(*words):
    """`tripod WORDS` with the commands of the views and the proofs."""

    def add_commands(add):
        for module in (cli_proofs, cli_views):
            module.add_commands(lambda name, *rest: add(two_words(name), *rest))

    def two_words(name):
        return name if " " in name else f"{name} "

    first = words[0]
    words = words if first in ("verify", "prove") else (first, "", *words[1:])
    return run_command(add_commands, *words)


def test_an_honest_run_passes_and_shows_what_it_read(run, capsys):
    path, reader = run
    assert tripod("verify", "order", path, "--against-index") == 0
    assert f"{STEPS} steps recomputed from the shards" in capsys.readouterr().out
    step = 5
    assert tripod("batch", path, "--step", step, "--decode", "--json") == 0
    view = json.loads(capsys.readouterr().out)
    log = (path / "order.log").read_bytes()
    assert view["leaf"] == log[32 * step : 32 * step + 32].hex()
    assert [row["sequence"] for row in view["rows"]] == reader.sequences(step).tolist()


def decoded(reader, row):
    """The bytes of a row, with a byte that is in no text for every end-of-document mark."""
    index = reader.stream.index
    tokenizer = index.tokenizer()
    ends = np.flatnonzero(row == index.eod)
    return b"\xff".join(
        tokenizer.decode_bytes(part[part != index.eod]) for part in np.split(row, ends)
    )


def test_seen_finds_every_reading_of_a_text_and_no_other(run, capsys):
    path, reader = run
    rows = [decoded(reader, row) for step in range(STEPS) for row in reader.ids(step)]
    text = max(rows[7].split(b"\xff"), key=len)[1:9].decode("utf-8", "ignore")
    assert text
    wanted = {position for position, row in enumerate(rows) if text.encode() in row}
    assert tripod("seen", path, text, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    found = {one["position"] for one in answer["exposures"]}
    assert found == wanted != set()
    assert tripod("seen", path, "no such text anywhere", "--json") == 0
    assert json.loads(capsys.readouterr().out)["count"] == 0


BROKEN = {
    "two rows exchanged": lambda step, ids: ids[[1, 0, 2, 3]] if step == 6 else ids,
    "one id changed": lambda step, ids: ids + (step == 6) * (np.arange(S + 1) == 3),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_read_something_else_is_found_at_its_step(
    kind, broken, places, tmp_path, capsys
):
    dataset, order = places[kind]
    make(tmp_path / "suite" / "a", dataset, order)
    path, _ = make(tmp_path / "suite" / "b", dataset, order, fed=broken)
    assert tripod("verify", "order", path, "--against-index") == 1
    assert "first divergence from the index at step 6" in capsys.readouterr().out
    assert tripod("verify", "order", path.parent, "--without-data") == 1
    assert "different tokens first at step 6" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_under_another_seed_is_not_taken_for_its_own(kind, places, tmp_path, capsys):
    dataset, order = places[kind]
    path, _ = make(tmp_path / "suite" / "a", dataset, order)
    config = json.loads((path / "config.json").read_text())
    config["data"]["seed"] += 1
    (path / "config.json").write_text(json.dumps(config))
    assert tripod("verify", "order", path, "--against-index") == 1
    assert "FAIL" in capsys.readouterr().out
