"""Replay: anyone recomputes steps of a run; every way to tamper with one is seen and named."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_manifest.manifest import record_digest
from checkpoints_manifest.store import latest_complete_step, ledger_of
from checkpoints_manifest.tensor_digest import file_leaves, tensors_root
from checkpoints_manifest.writing import describe_file
from data_pipeline.canonical import canonical_json
from suite.replay import Segment, random_segments, segment_of
from tests.suite.smoke import flip, tripod

pytestmark = pytest.mark.slow
RUN = "smoke-20k"


def rewrite_ledger(run_dir, change):
    """A forger's ledger: records changed, chained again, and the manifests beside the weights."""
    previous, lines = None, []
    for record in ledger_of(run_dir).records():
        change(record)
        record["previous"], data = previous, canonical_json(record)
        record["previous"] = previous
        data = canonical_json(record)
        (run_dir / "checkpoints" / f"step{record['step']}" / "manifest.json").write_bytes(data)
        previous = record_digest(record)
        lines.append(data + b"\n")
    (run_dir / "manifest.jsonl").write_bytes(b"".join(lines))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_of_two_ranks_is_replayed_with_any_number(calm, ranks):
    done = tripod("replay", calm[0] / RUN, "--from", 2, "--to", 12, "--ranks", ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 steps recomputed (2..12)" in done.stdout


def test_segments_that_are_drawn_are_replayed(calm):
    done = tripod("replay", calm[0] / RUN, "--spot-check", 2, "--seed", 7)
    assert done.returncode == 0, done.stdout + done.stderr
    for segment in random_segments(calm[0] / RUN, 2, 7):
        assert str(segment) in done.stdout


def test_weights_that_were_not_trained_are_caught_though_every_digest_fits(copy):
    """Another checkpoint in place of the trained one, the ledger forged to match."""
    run_dir = copy / RUN
    path = run_dir / "checkpoints" / "step6" / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})

    def forge(record):
        if record["step"] == 6:
            record["weights_root"] = tensors_root(file_leaves(path))
            files = [f for f in record["files"] if f["path"] != path.name]
            record["files"] = [describe_file(path), *files]

    rewrite_ledger(run_dir, forge)
    assert tripod("verify", "checkpoints", run_dir).returncode == 0
    before = tripod("replay", run_dir, "--from", 4, "--to", 6)
    assert before.returncode == 1
    assert "first difference at step 6: weights_root" in before.stdout
    assert f"first in tensor {name}" in before.stdout
    after = tripod("replay", run_dir, "--from", 6, "--to", 8)
    assert after.returncode == 1 and "first difference at step 7" in after.stdout


def test_a_log_that_tells_another_story_is_caught_between_checkpoints(copy):
    path = copy / RUN / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[8]["gradient"] = "0" * 64
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    done = tripod("replay", copy / RUN, "--from", 6, "--to", 12)
    assert done.returncode == 1
    assert "first difference at step 9: gradient is '000" in done.stdout


def test_other_tokens_than_the_log_says_are_caught(copy):
    flip(copy / RUN / "order.log", 32 * 9 + 1)
    done = tripod("replay", copy / RUN, "--from", 6, "--to", 12)
    assert done.returncode == 1 and "first difference at step 10: the run read leaf" in done.stdout


def test_other_numerics_are_refused_and_named(copy):
    path = copy / RUN / "numerics.json"
    path.write_bytes(canonical_json({**json.loads(path.read_text()), "mkl": "2019.0"}))
    done = tripod("replay", copy / RUN, "--from", 0, "--to", 2)
    assert done.returncode == 2 and "mkl: expected '2019.0'" in done.stderr


def test_a_request_that_cannot_be_met_names_what_can(calm):
    run_dir = calm[0] / RUN
    assert segment_of(run_dir, None, None) == Segment(0, 24)
    with pytest.raises(ValueError, match="nearest before it is 4"):
        segment_of(run_dir, 5, 6)
    with pytest.raises(ValueError, match=r"expected a step in \(6, 24\]"):
        segment_of(run_dir, 6, 25)


def test_a_step_that_was_never_saved_can_be_had(copy):
    done = tripod("checkpoint", copy / RUN, "--step", 11)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(recomputed)" in done.stdout
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM

    repo = copy / "hub" / "models--tripod--smoke-20k"
    snapshot = repo / "snapshots" / (repo / "refs" / "step11").read_text()
    model = AutoModelForCausalLM.from_pretrained(snapshot)
    saved = load_file(copy / RUN / "recomputed/step11/checkpoints/step11/model.safetensors")
    assert torch.equal(model.gpt_neox.embed_in.weight, saved["gpt_neox.embed_in.weight"])
    # From the recomputed state the run goes on to the saved one: it is the step that it says.
    again = tripod("checkpoint", copy / RUN, "--step", 11)
    assert again.returncode == 0 and "(recomputed)" not in again.stdout
    assert tripod("verify", "all", copy / RUN).returncode == 0
    assert latest_complete_step(copy / RUN / "recomputed" / "step11") == 11


def test_a_step_beyond_the_run_is_refused(calm):
    done = tripod("checkpoint", calm[0] / RUN, "--step", 25)
    assert done.returncode == 2 and "expected a step in [0, 24]" in done.stderr
