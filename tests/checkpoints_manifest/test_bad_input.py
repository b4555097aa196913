"""Bad input ends in this package's own error, never in a wrong answer or a bare exception."""

import json
import struct
import time

import pytest
import torch
from huggingface_hub import scan_cache_dir

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Ledger, check_record
from checkpoints_manifest.schedule import checkpoint_steps
from checkpoints_manifest.store import checkpoint_dir, reconcile, save_checkpoint
from checkpoints_manifest.tensor_digest import file_leaves
from checkpoints_manifest.verify import verify_checkpoints
from data_pipeline.canonical import canonical_json
from tests.checkpoints_manifest.conftest import fields, flip, tensors

SOUND = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "spec",
    [{"powers_of_two_upto": -4}, {"explicit": [2.7]}, {"explicit": ["3"]}, {"every": 2.5}],
)
def test_steps_that_are_not_whole_numbers_are_refused(spec):
    with pytest.raises(ValueError, match=f"{next(iter(spec))}: expected whole numbers"):
        checkpoint_steps(spec, 10)


@pytest.mark.parametrize("spec", [{"explicit": 5}, {"explicit": "13"}, {"last": "no"}])
def test_schedules_of_another_type_are_refused(spec):
    with pytest.raises(ValueError, match="expected a list of steps in explicit and true or false"):
        checkpoint_steps(spec, 10)


@pytest.mark.parametrize(
    "header",
    [
        json.dumps({"a": SOUND | {"data_offsets": ["0", "8"]}}),
        json.dumps({"a": SOUND | {"data_offsets": [0, 8.9]}}),
        json.dumps({"a": SOUND | {"data_offsets": [0, 4, 8]}}),
        json.dumps({"a": SOUND | {"shape": [True, 2]}}),
        json.dumps({"a": SOUND | {"shape": "ab"}}),
        json.dumps({"a": SOUND | {"dtype": ["F32"]}}),
        json.dumps({"a": SOUND, "empty": {"dtype": "F99", "shape": [0], "data_offsets": [8, 8]}}),
        json.dumps({"\ud800": SOUND}),
        '{"a":' * 100_000,
    ],
    ids=range(9),
)
def test_headers_that_only_look_sound_are_refused(tmp_path, header):
    path = tmp_path / "t"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0" * 8)
    with pytest.raises(CheckpointError, match="header is broken"):
        file_leaves(path)


@pytest.mark.parametrize(
    ("old", "new"), [(b'"step":1,', b'"step":1.0,'), (b"\n", b"\r"), (b"{", b"[" * 100_000)]
)
def test_a_ledger_that_only_looks_sound_is_a_finding(run_dir, old, new):
    path = run_dir / "manifest.jsonl"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    (finding,) = verify_checkpoints(run_dir).findings
    assert "manifest.jsonl line" in finding


def test_a_broken_configuration_is_a_finding(run_dir):
    (run_dir / "config.json").write_text("{")
    findings = verify_checkpoints(run_dir).findings
    assert "config.json does not name the token order" in findings[0]


@pytest.mark.parametrize("break_it", [lambda m: m.popitem(), lambda m: m.update(x=torch.zeros(1))])
def test_moments_that_are_not_those_of_the_weights_are_refused(run_dir, break_it):
    weights, moments = tensors(5)
    break_it(moments)
    with pytest.raises(ValueError, match="expected the moments of 2 weights"):
        save_checkpoint(run_dir, 5, weights, moments, {}, fields(run_dir, 5))
    assert not checkpoint_dir(run_dir, 5).exists()


def test_tensors_that_are_not_fp32_and_stated_digests_are_refused(run_dir):
    weights, moments = tensors(5)
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    with pytest.raises(ValueError, match=r"expected fp32, found torch\.bfloat16"):
        save_checkpoint(run_dir, 5, half, moments, {}, fields(run_dir, 5))
    for name in ("files", "previous", "weights_root"):
        with pytest.raises(ValueError, match=f"{name} is computed"):
            save_checkpoint(run_dir, 5, weights, moments, {}, fields(run_dir, 5) | {name: None})
    assert not checkpoint_dir(run_dir, 5).exists()


def test_a_damaged_checkpoint_is_not_entered_into_the_ledger(run_dir):
    path = run_dir / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    flip(checkpoint_dir(run_dir, 4) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step4: .*sha256"):
        reconcile(run_dir)
    assert path.read_bytes() == b"".join(lines[:2])


def test_a_stray_checkpoint_that_does_not_follow_the_ledger_is_named(run_dir):
    path = run_dir / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1]))
    checkpoint_dir(run_dir, 1).rename(run_dir / "elsewhere")
    with pytest.raises(CheckpointError, match=r"step4 is not in the ledger .*move the directory"):
        reconcile(run_dir)
    assert path.read_bytes() == lines[0]


def test_a_lost_ledger_comes_back_from_the_checkpoints(run_dir):
    path = run_dir / "manifest.jsonl"
    whole = path.read_bytes()
    path.unlink()
    assert len(reconcile(run_dir)) == 3
    assert path.read_bytes() == whole


def test_a_record_that_does_not_list_the_files_of_a_checkpoint_is_a_finding(run_dir):
    path = run_dir / "manifest.jsonl"
    lines = path.read_bytes().splitlines()
    record = json.loads(lines[-1])
    whole = record["files"]
    for files in (whole[1:], [*whole, whole[0]], [whole[0], whole[0], whole[2]]):
        changed = canonical_json(record | {"files": files})
        path.write_bytes(b"\n".join([*lines[:-1], changed, b""]))
        findings = verify_checkpoints(run_dir).findings
        assert "step4: expected the record to list model.safetensors" in findings[0]


@pytest.mark.parametrize("field", ["weights_root", "path"])
def test_a_line_end_hidden_in_a_field_is_refused(run_dir, field):
    record = Ledger(run_dir / "manifest.jsonl").records()[0]
    holder = record["files"][0] if field == "path" else record
    holder[field] += "\n"
    with pytest.raises(CheckpointError, match=field):
        check_record(record, "a record")


def test_a_long_ledger_does_not_slow_the_next_save(run_dir):
    """Each line is validated once per process, not once per save."""
    ledger = Ledger(run_dir / "manifest.jsonl")
    weights, moments = tensors(5)
    for step in range(5, 65):
        weights = {name: tensor + 1 for name, tensor in weights.items()}
        save_checkpoint(run_dir, step, weights, moments, {}, fields(run_dir, 0))
    started = time.perf_counter()
    assert len(ledger.records()) == 63
    assert time.perf_counter() - started < 0.02


def test_names_that_leave_their_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    hub = LocalHub(tmp_path / "hub")
    (hub.repository("a/b") / "refs").mkdir(parents=True)
    for revision in ("../../../secret", ".", "..", ""):
        with pytest.raises(CheckpointError, match="name of a revision"):
            hub.commit_of("a/b", revision)
    # One step has one name.
    for revision in ("step01", "step٣", "step-1", "step1 "):
        with pytest.raises(CheckpointError, match="expected a revision step"):
            hub.publish("a/b", revision, tmp_path)
    # In the cache layout a--b/c and a/b--c would be one folder.
    with pytest.raises(CheckpointError, match="org/name"):
        hub.repository("a--b/c")


def test_publishing_replaces_damaged_blobs_and_clears_what_a_killed_writer_left(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    (files / "model.safetensors").write_bytes(b"weights")
    (files / "config.json").write_bytes(b"{}")
    hub = LocalHub(tmp_path / "hub")
    commit = hub.publish("a/b", "step1", files)
    repository = hub.repository("a/b")
    for blob in list((repository / "blobs").iterdir()):
        blob.unlink()
        blob.write_bytes(b"junk")
    (repository / "refs" / ".step1.tmp-1-ab").write_bytes(b"")
    link = repository / "snapshots" / commit / "config.json"
    link.unlink()
    link.symlink_to("../../blobs/elsewhere")
    assert hub.publish("a/b", "step1", files) == commit
    assert {blob.read_bytes() for blob in (repository / "blobs").iterdir()} == {b"weights", b"{}"}
    assert link.read_bytes() == b"{}"
    assert not scan_cache_dir(hub.root).warnings
