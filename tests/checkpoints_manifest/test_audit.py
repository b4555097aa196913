"""The audit: every published fault is found under its name, a sound suite has none."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_manifest.audit import KINDS, RepoSnapshot, audit, audit_family
from checkpoints_manifest.audit.report import AuditReport, as_html, as_json, as_text
from checkpoints_manifest.audit.schedule import KNOWN, declared, inferred
from checkpoints_manifest.bench import audit_table
from checkpoints_manifest.bench.faults import FAULTS, LAST, STEPS, clean, edited
from checkpoints_manifest.schedule import checkpoint_steps

ODD = ("__proto__", "<script>alert(1)</script>", "step1" * 30, "step９", "main/x", "step0/../..")


def kinds(findings):
    return {finding.kind for finding in findings}


@pytest.mark.parametrize("name", FAULTS)
def test_each_published_fault_is_found_and_nothing_else(name):
    fault = FAULTS[name]
    assert kinds(audit_table.findings(fault.build())) == fault.kinds
    assert fault.kinds <= set(KINDS)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_sound_suite_has_no_finding(shards):
    assert len(STEPS) == 154
    assert audit_table.findings([clean(shards=shards), clean("org/other", shards)]) == []
    assert audit(clean(shards=shards), declared("pythia")) == []


def test_the_published_case_is_counted_as_it_was_by_hand():
    """86 of 154 revisions: 76 as main, 10 of a second file, 68 unique."""
    (snapshot,) = FAULTS["final weights under 86 of 154 steps"].build()
    report = AuditReport.of(snapshot)
    groups = [f.revisions for f in report.findings if f.kind == "duplicate-weights"]
    assert sorted(map(len, groups)) == [10, 76]
    assert LAST in min(groups, key=len)
    assert {"step0", "step53000"} <= set(max(groups, key=len))
    assert report.shared == 86
    assert "86 of 154 serve weights that another step serves too" in report.headline
    weights = [snapshot.revisions[name]["model.safetensors"] for name in snapshot.steps]
    assert sum(weights.count(one) == 1 for one in weights) == 68
    (main,) = [f for f in report.findings if f.kind == "main-not-last"]
    assert re.search("main: expected the weights of step143000, found those of step0", main.message)


def test_the_steps_concerned_are_named():
    found = audit(edited(lambda r: r.pop("step4000"))[0])
    assert [(f.kind, f.revisions) for f in found] == [("missing-step", ("step4000",))]
    (finding,) = audit(FAULTS["one shard swapped"].build()[0])
    assert finding.revisions == ("step50000", "step58000", LAST)


def test_equal_first_steps_come_with_the_reason_that_may_be_good():
    def same(revisions):
        revisions["step1"]["model.safetensors"] = revisions["step0"]["model.safetensors"]

    (finding,) = audit(edited(same)[0])
    assert "learning rate of zero" in finding.message


def test_optimizer_state_is_no_weights():
    def with_state(revisions):
        for files in revisions.values():
            files["optimizer.safetensors"] = (5, "0" * 64)

    assert audit(edited(with_state)[0]) == []


def test_a_missing_format_in_one_step_is_not_a_duplicate_and_main_in_another_is_named():
    def converted(revisions):
        revisions["main"]["pytorch_model.bin"] = revisions["main"].pop("model.safetensors")

    (finding,) = audit(edited(converted)[0])
    assert (finding.kind, "expected one format" in finding.message) == ("main-not-last", True)


def test_configurations_that_differ_only_in_their_writer_are_one(monkeypatch):
    (snapshot,) = edited(lambda r: None)
    whole = json.loads(snapshot.text("step0", "config.json"))
    for change, expected in (({"transformers_version": "4.1"}, set()),
                             ({"vocab_size": 1}, {"config-drift"})):  # fmt: skip
        data = json.dumps(whole | change).encode()
        files = {**snapshot.revisions["step8"], "config.json": (len(data), "f" * 40)}
        changed = replace(
            snapshot,
            revisions={**snapshot.revisions, "step8": files},
            texts={**snapshot.texts, "f" * 40: data},
        )
        found = audit(changed)
        assert kinds(found) == expected
        assert not found or "(vocab_size: 50304 and 1)" in found[0].message


def test_two_runs_may_share_their_start_and_what_equals_it():
    one = clean("org/a")

    def start(snapshot, steps):
        revisions = dict(snapshot.revisions)
        for step in steps:
            path = "model.safetensors"
            revisions[f"step{step}"] = {**revisions[f"step{step}"],
                                        path: one.revisions["step0"][path]}  # fmt: skip
        return replace(snapshot, revisions=revisions)

    assert audit_family([one, start(clean("org/b"), [0])]) == []
    # A first update with a learning rate of zero: step 1 is the common start once more.
    assert audit_family([start(one, [1]), start(clean("org/b"), [0, 1])]) == []
    (finding,) = audit_family([one, replace(one, name="org/copy")])
    assert finding.kind == "shared-between-runs"


def test_names_with_tokens_must_be_in_proportion():
    def names(change):
        files = {"config.json": (1, "c" * 40)}
        found = {}
        for step in range(0, 6000, 1000):
            tokens = change.get(step, round(step * 4_194_304 / 1e9))
            weights = {"model.safetensors": (9, f"{step:064}")}
            found[f"step{step}-tokens{tokens}B"] = files | weights
        return audit(RepoSnapshot("org/olmo", found))

    assert names({}) == []
    assert [f.kind for f in names({3000: 6})] == ["renamed-step"]


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        (STEPS, []),
        ([s for s in STEPS if s not in (4, 1000, 26_000)], [4, 1000, 26_000]),
        (range(1000, 144_000, 1000), []),
        ([s for s in range(5000, 9000, 500) if s != 7000], [7000]),
        ((0, 1, 2, 4, 8, 16, 32, 64, 128, 200), []),
        ((0, 1, 2, 4, 16, 32, 64, 128, 192, 256, 300), [8]),
        ((0, 200), []),
        ((7,), []),
        ((), []),
        ((0, 1, 2, 3, 5, 6, 7, 8), [4]),
    ],
)
def test_a_schedule_is_inferred_from_the_steps_that_are_there(steps, missing):
    assert sorted(inferred(steps).steps - set(steps)) == missing


def test_a_schedule_can_be_declared():
    assert declared("pythia").steps == set(checkpoint_steps(*KNOWN["pythia"]))
    spelled = declared("0,pow2<=512,every=1000<=143000")
    assert spelled.steps == declared("pythia").steps
    for wrong in ("pythias", "every=1000", "pow2<=x", "", "-1"):
        with pytest.raises(ValueError, match="expected"):
            declared(wrong)
    assert {f.kind for f in audit(edited(lambda r: r.pop(LAST))[0], spelled)} == {
        "missing-step", "main-not-last",
    }  # fmt: skip


def test_a_repository_without_steps_is_a_finding():
    (finding,) = audit(RepoSnapshot("org/x", {"main": {"model.safetensors": (1, "0" * 64)}}))
    assert finding.kind == "no-steps"


def test_the_table_of_the_docs_is_printed_and_every_fault_is_caught():
    table = audit_table.table()
    assert table.count("\n") == 1 + len(FAULTS) + 2
    assert "not caught" not in table


FILES = st.dictionaries(
    st.sampled_from(["model.safetensors", "model-00001-of-00002.safetensors", "config.json",
                     "model.safetensors.index.json", "tokenizer.json", *ODD]),
    st.tuples(st.integers(-1, 1 << 40), st.sampled_from(["a" * 64, "b" * 64, "c" * 40, ""])),
)  # fmt: skip
NAMES = st.sampled_from(["main", "step0", "step1", "step01", "step8", "checkpoint-8", *ODD])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(NAMES, FILES), st.dictionaries(NAMES, st.text(max_size=20)),
    st.dictionaries(st.sampled_from(["a" * 64, "b" * 64, "c" * 40]), st.binary(max_size=20)),
)  # fmt: skip
def test_whatever_a_hub_states_there_is_an_answer(revisions, titles, texts):
    snapshot = RepoSnapshot("org/any", revisions, {}, titles, texts)
    report = AuditReport.of(snapshot)
    json.dumps(as_json(report))
    as_text(report)
    page = as_html([report])
    assert "<script" not in page
    HTMLParser().feed(page)
    audit_family([snapshot, replace(snapshot, name="org/other")])


def test_reports_say_the_same_in_three_forms():
    report = AuditReport.of(FAULTS["missing shard"].build()[0])
    data = as_json(report)
    assert [f["kind"] for f in data["findings"]] == ["unreadable-step", "odd-size"]
    assert (data["steps"], data["expected_steps"]) == (154, 154)
    assert as_text(report).startswith("FAIL org/suite: 154 steps; inferred: powers of two to 512")
    page = as_html([report])
    assert "step9000: model-00002-of-00003.safetensors is missing" in page
    assert page.count('<span style="background') == 154
    for outside in ("http://", "https://", "<script", "<link", "<img"):
        assert outside not in page
    assert as_text(AuditReport.of(clean())).endswith("nothing found")


def test_the_docs_hold_the_table_that_the_script_prints():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    assert audit_table.table() in page
    assert all(f"`{kind}`" in page for kind in KINDS if kind not in ("no-steps", "deep"))
