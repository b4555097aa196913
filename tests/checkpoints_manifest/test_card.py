"""The model card: everything a reader needs, equal bytes for equal facts, and YAML that is YAML."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest
import yaml

from checkpoints_manifest.card import CardFacts, loss_figure, model_card
from checkpoints_manifest.manifest import Ledger, record_digest
from checkpoints_manifest.publish import chain_lines
from checkpoints_manifest.published import FileFact
from tests.checkpoints_manifest.publishable import HF, make_run

LOSSES = [(n, 9 - n / 8) for n in range(1, 7)]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    run_dir = make_run(tmp_path_factory.mktemp("card") / "suite")
    records = Ledger(run_dir / "manifest.jsonl").records()
    files = (FileFact("model.safetensors", 3, "a" * 64, "b" * 40),)
    published = {r["step"]: (f"{r['step']:040x}", files) for r in records}
    return CardFacts(
        "org/toy-1", records, chain_lines(records, published, []), 12_345, HF, LOSSES,
        ["omegaconf 2.3.1"], {"bos": "none", "eod": "append"}, "apache-2.0", "org/toy-data",
    )  # fmt: skip


def test_the_front_matter_is_what_the_hub_reads(facts):
    _, front, _ = model_card(facts).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "license": "apache-2.0",
        "datasets": ["org/toy-data"], "tags": ["tripod", "toy"],
    }  # fmt: skip


def test_the_card_says_what_it_is_how_to_load_and_how_to_check(facts):
    card = model_card(facts)
    last = facts.records[-1]
    for text in (
        "12,345 parameters", 'from_pretrained("org/toy-1", revision="step2")',
        f"tripod pull org/toy-1 --steps all --to DIR --expect {facts.lines[-1].digest}",
        record_digest(last), last["weights_root"], last["order"]["chain"],
        last["order"]["index_digest"], "No BOS token in training", "eod append", "omegaconf 2.3.1",
        "## Licence\n\napache-2.0", "`hidden_size` | 16", "](loss.svg)",
        "8.250 at step 6",
    ):  # fmt: skip
        assert text in card, text


def test_every_revision_has_its_row(facts):
    card = model_card(facts)
    for line, tokens, loss in zip(
        facts.lines, (0, 8, 16, 32), ("", "8.8750", "8.7500", "8.5000"), strict=True
    ):
        row = f"| `step{line.step}` | {tokens} | {loss} | `{line.commit}` |"
        assert row in card


def test_equal_facts_give_equal_bytes_and_other_facts_others(facts):
    assert model_card(facts) == model_card(facts)
    assert loss_figure(LOSSES, "a") == loss_figure(LOSSES, "a")
    assert loss_figure(LOSSES, "a") != loss_figure(LOSSES[:-1], "a")
    without = dataclasses.replace(facts, dataset=None, losses=[])
    assert "datasets:" not in model_card(without) and "loss.svg" not in model_card(without)


def test_the_figure_is_an_svg_with_text_that_can_be_read():
    figure = loss_figure(LOSSES, "toy-1: 8.250 at step 6")
    root = ET.fromstring(figure)
    assert root.tag.endswith("svg")
    assert b"toy-1: 8.250 at step 6" in figure and b"training loss" in figure
