"""`verify checkpoints` names each kind of damage."""

import shutil

import pytest

from checkpoints_manifest.verify import verify_checkpoints
from tests.checkpoints_manifest.conftest import flip


def test_a_sound_run_has_no_findings(run_dir):
    report = verify_checkpoints(run_dir)
    assert (report.checkpoints, report.findings) == (3, ())


def damage_manifest(run_dir):
    path = run_dir / "checkpoints" / "step1" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"tokens":8', b'"tokens":9'))


DAMAGE = {
    "a weight": (lambda r: flip(r / "checkpoints/step1/model.safetensors"), "step1: .*sha256"),
    "a moment": (lambda r: flip(r / "checkpoints/step4/optimizer.safetensors"), "step4: .*sha256"),
    "a checkpoint gone": (lambda r: shutil.rmtree(r / "checkpoints/step1"), "step1: .* is missing"),
    "its own manifest": (damage_manifest, "step1: .* is not the ledger's record"),
    "the ledger": (lambda r: flip(r / "manifest.jsonl", 400), "manifest.jsonl line"),
    "the order log": (lambda r: flip(r / "order.log", 33), "step4: .*order chain"),
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
    assert len(findings) == 1
    import re

    assert re.search(words, findings[0]), findings[0]


def test_a_run_without_checkpoints_is_a_finding(empty_run):
    assert "holds no checkpoint" in verify_checkpoints(empty_run).findings[0]
