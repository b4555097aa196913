"""`verify checkpoints` names each kind of damage."""

import json
import re
import shutil

import pytest

from checkpoints_manifest.store import save_checkpoint
from checkpoints_manifest.verify import LEVELS, verify_checkpoints
from data_pipeline.canonical import canonical_json
from tests.checkpoints_manifest.conftest import fields, flip, tensors


def test_a_sound_run_has_no_findings(run_dir):
    report = verify_checkpoints(run_dir)
    assert (report.checkpoints, report.findings) == (3, ())


def damage_manifest(run_dir):
    path = run_dir / "checkpoints" / "step1" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"tokens":8', b'"tokens":9'))


def change_config(run_dir):
    path = run_dir / "config.json"
    whole = path.read_text()
    path.write_text(whole.replace('"seed": 0', '"seed": 1'))


def cut_ledger(run_dir):
    path = run_dir / "manifest.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


DAMAGE = {
    "a weight": (lambda r: flip(r / "checkpoints/step1/model.safetensors"), "step1: .*sha256"),
    "a moment": (lambda r: flip(r / "checkpoints/step4/optimizer.safetensors"), "step4: .*sha256"),
    "a checkpoint gone": (lambda r: shutil.rmtree(r / "checkpoints/step1"), "step1: .* is missing"),
    "its own manifest": (damage_manifest, "step1: .* is not the ledger's record"),
    "the ledger": (lambda r: flip(r / "manifest.jsonl", 400), "manifest.jsonl line"),
    "the order log": (lambda r: flip(r / "order.log", 33), "step4: .*order chain"),
    "the data named": (change_config, "step0: .*order chain"),
    "the ledger cut short": (cut_ledger, "step4: .*is not in the ledger; resume"),
    "a short order log": (lambda r: (r / "order.log").write_bytes(b""), "step1: order.log holds 0"),
    "the metrics": (lambda r: flip(r / "metrics.jsonl", 30), "step4: .*metrics.jsonl"),
    "no metrics": (lambda r: (r / "metrics.jsonl").unlink(), "step1: .*metrics.jsonl"),
    "the numerics": (lambda r: (r / "numerics.json").write_text("{} "), "numerics.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_is_named(run_dir, kind):
    act, words = DAMAGE[kind]
    act(run_dir)
    findings = verify_checkpoints(run_dir).findings
    # Another configuration is seen twice: by what it says and by its digest.
    assert len(findings) == (2 if kind == "the data named" else 1)
    assert re.search(words, findings[0]), findings[0]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"tokens": 9}, "step5: .* tokens 9; .* give 40"),
        ({"order": {"name": "order-v2"}}, "step5: .* order name order-v2"),
        ({"order": {"index_digest": "0" * 64}}, "step5: .* index digest 0+;"),
    ],
)
def test_a_record_that_states_something_else_than_the_run_is_named(run_dir, field, words):
    stated = fields(run_dir, 5)
    for key, value in field.items():
        stated[key] = stated[key] | value if isinstance(value, dict) else value
    weights, moments = tensors(5)
    save_checkpoint(run_dir, 5, weights, moments, {}, stated)
    (finding,) = verify_checkpoints(run_dir).findings
    assert re.search(words, finding), finding


def test_a_folder_that_holds_no_run_is_a_finding(tmp_path):
    assert "holds no checkpoint" in verify_checkpoints(tmp_path / "nowhere").findings[0]


def test_a_run_without_checkpoints_is_a_finding(empty_run):
    assert "holds no checkpoint" in verify_checkpoints(empty_run).findings[0]


FIRST_LEVEL = {
    "a weight": "bytes",
    "a moment": "bytes",
    "a checkpoint gone": "metadata",
    "its own manifest": "metadata",
    "the ledger": "metadata",
    "the order log": "chain",
    "the data named": "metadata",
    "the ledger cut short": "metadata",
    "a short order log": "chain",
    "the metrics": "chain",
    "no metrics": "chain",
    "the numerics": "metadata",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_is_found_from_its_level_on(run_dir, kind):
    DAMAGE[kind][0](run_dir)
    found = [bool(verify_checkpoints(run_dir, level).findings) for level in LEVELS[:-1]]
    first = LEVELS.index(FIRST_LEVEL[kind])
    assert found == [index >= first for index in range(len(LEVELS) - 1)]


def test_a_root_that_is_not_that_of_the_tensors_is_found_at_the_tensor_level(run_dir):
    """A writer who states a digest of other tensors, and chains and hashes everything well."""
    path = run_dir / "manifest.jsonl"
    lines = path.read_bytes().splitlines()
    changed = canonical_json(json.loads(lines[-1]) | {"weights_root": "0" * 64})
    path.write_bytes(b"\n".join([*lines[:-1], changed, b""]))
    (run_dir / "checkpoints/step4/manifest.json").write_bytes(changed)
    assert verify_checkpoints(run_dir, "bytes").findings == ()
    (finding,) = verify_checkpoints(run_dir, "tensors").findings
    assert re.search("step4: .*expected weights_root 0+, found", finding)


def test_the_replay_level_and_unknown_ones_are_refused(run_dir):
    with pytest.raises(ValueError, match="needs the trainer"):
        verify_checkpoints(run_dir, "replay")
    with pytest.raises(ValueError, match="expected a level of metadata, bytes, tensors, chain"):
        verify_checkpoints(run_dir, "all")


def test_the_number_of_threads_changes_no_finding(run_dir):
    for step in (0, 1, 4):
        flip(run_dir / f"checkpoints/step{step}/model.safetensors")
    one, many = (verify_checkpoints(run_dir, jobs=jobs) for jobs in (1, 3))
    assert one == many
    assert len(one.findings) == 3
