"""Complete or absent: no crash point or failing system call harms an earlier checkpoint."""

import errno
import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from checkpoints_manifest import store, writing
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.store import (
    checkpoint_dir,
    latest_complete_step,
    ledger_of,
    load_checkpoint,
    reconcile,
    rewind,
    save_checkpoint,
)
from tests.checkpoints_manifest.conftest import fields, flip, save, tensors

# Every call through which a save reaches the disk.
SYSTEM_CALLS = ("posix_fallocate", "write", "fsync", "rename", "replace")


def everything(run_dir):
    return {
        path.relative_to(run_dir): path.read_bytes()
        for path in run_dir.rglob("*")
        if path.is_file()
    }


def inject(monkeypatch, at, act):
    """Makes the at-th system call of a save do `act` instead; returns the list of calls seen."""
    seen = []

    def wrap(name):
        real = getattr(os, name)

        def called(*arguments, **keywords):
            seen.append(name)
            if len(seen) == at:
                act()
            return real(*arguments, **keywords)

        return called

    for name in SYSTEM_CALLS:
        monkeypatch.setattr(os, name, wrap(name))
    return seen


def calls_of_a_save(run_dir, monkeypatch):
    with monkeypatch.context() as patch:
        seen = inject(patch, -1, lambda: None)
        save(run_dir, 4)
    return len(seen)


def test_what_is_saved_comes_back_bit_for_bit(run_dir):
    weights, moments = tensors(4)
    found = load_checkpoint(run_dir, 4)
    for expected, tensor_dict in zip((weights, moments), found, strict=False):
        assert set(expected) == set(tensor_dict)
        assert all(torch.equal(expected[name], tensor_dict[name]) for name in expected)
    assert found[2] == {"step": 4}
    assert latest_complete_step(run_dir) == 4


def test_files_are_readable_by_others_and_carry_one_metadata_key(run_dir):
    for path in checkpoint_dir(run_dir, 4).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
    header = (checkpoint_dir(run_dir, 4) / "model.safetensors").read_bytes()[8:]
    assert b'"__metadata__":{"format":"pt"}' in header


def test_same_state_gives_the_same_bytes(run_dir, empty_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "numerics.json"):
        (other / name).write_bytes((run_dir / name).read_bytes())
    for step in (0, 1, 4):
        save(other, step)
    names = {
        path for path in everything(run_dir) if path.parts[0] in ("checkpoints", "manifest.jsonl")
    }
    assert all(everything(other)[name] == everything(run_dir)[name] for name in names)


def test_everything_is_synced_before_the_rename_and_the_rename_before_the_ledger(
    run_dir, monkeypatch
):
    with monkeypatch.context() as patch:
        seen = inject(patch, -1, lambda: None)
        save(run_dir, 5)
    renamed = seen.index("rename")
    # Four files: space, bytes, sync, name, folder; then the finished files and their folder again.
    assert (
        seen[:renamed]
        == ["posix_fallocate", "write", "fsync", "replace", "fsync"] * 4 + ["fsync"] * 5
    )
    assert seen[renamed:] == ["rename", "fsync", "write", "fsync"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_any_failing_system_call_leaves_earlier_checkpoints_intact(empty_run, monkeypatch, code):
    for step in (0, 1):
        save(empty_run, step)
    before = everything(empty_run)
    total = calls_of_a_save(empty_run, monkeypatch)
    assert total > 10
    for at in range(1, total + 1):
        import shutil

        shutil.rmtree(empty_run)
        for path, data in before.items():
            (empty_run / path).parent.mkdir(parents=True, exist_ok=True)
            (empty_run / path).write_bytes(data)

        def fail():
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            inject(patch, at, fail)
            with pytest.raises(OSError, match=os.strerror(code)):
                save(empty_run, 4)
        after = everything(empty_run)
        assert {path: after[path] for path in before} == before, f"call {at}"
        assert not list((empty_run / "checkpoints").glob(".tmp-*")), f"call {at}"
        reconcile(empty_run)
        if latest_complete_step(empty_run) == 1:
            save(empty_run, 4)
        assert latest_complete_step(empty_run) == 4, f"call {at}"


def test_no_byte_is_written_when_the_disk_is_full(run_dir, monkeypatch):
    written = []
    real = os.write

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "write", lambda *a: written.append(a) or real(*a))
    with pytest.raises(OSError, match="No space left"):
        save(run_dir, 5)
    assert written == []


def test_a_process_killed_at_any_system_call_leaves_complete_or_absent(empty_run, monkeypatch):
    for step in (0, 1):
        save(empty_run, step)
    before = everything(empty_run)
    total = calls_of_a_save(empty_run, monkeypatch)
    outcomes = set()
    for at in range(1, total + 1):
        import shutil

        shutil.rmtree(empty_run)
        for path, data in before.items():
            (empty_run / path).parent.mkdir(parents=True, exist_ok=True)
            (empty_run / path).write_bytes(data)
        child = os.fork()
        if child == 0:
            inject(monkeypatch, at, lambda: os._exit(9))
            save(empty_run, 4)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, f"call {at}"
        reconcile(empty_run)
        found = latest_complete_step(empty_run)
        assert found in (1, 4), f"call {at}"
        outcomes.add(found)
        if found == 1:
            save(empty_run, 4)
        load_checkpoint(empty_run, 4)
        load_checkpoint(empty_run, 1)
        assert not list((empty_run / "checkpoints").glob(".tmp-*"))
    assert outcomes == {1, 4}


def test_a_disk_too_small_for_the_whole_checkpoint_is_refused_before_its_first_file(
    run_dir, monkeypatch
):
    before = everything(run_dir)
    staged = writing.Staged.of(*tensors(5))
    needed = len(staged.model.data) + len(staged.optimizer.data) + (1 << 20)
    monkeypatch.setattr(writing, "free_bytes", lambda path: needed - 1)
    monkeypatch.setattr(writing, "write_bytes", lambda *a: pytest.fail("a file was written"))
    with pytest.raises(OSError, match=rf"needs {needed:,} bytes, found {needed - 1:,}") as caught:
        save(run_dir, 5)
    assert caught.value.errno == errno.ENOSPC
    assert everything(run_dir) == before
    monkeypatch.undo()
    monkeypatch.setattr(writing, "free_bytes", lambda path: needed)
    save(run_dir, 5)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
)
def test_a_damaged_newest_checkpoint_is_named_and_earlier_ones_stay(run_dir, name):
    flip(checkpoint_dir(run_dir, 4) / name)
    for act in (latest_complete_step, lambda r: load_checkpoint(r, 4)):
        with pytest.raises(CheckpointError, match=rf"step4: .*{name}: expected sha256 .*, found"):
            act(run_dir)
    load_checkpoint(run_dir, 1)


def test_a_truncated_and_a_missing_file_are_named(run_dir):
    path = checkpoint_dir(run_dir, 4) / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="expected size"):
        latest_complete_step(run_dir)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is missing"):
        latest_complete_step(run_dir)


def test_moved_away_the_checkpoint_before_is_not_taken_silently(run_dir):
    import shutil

    shutil.rmtree(checkpoint_dir(run_dir, 4))
    with pytest.raises(CheckpointError, match="step4"):
        latest_complete_step(run_dir)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
)
def test_bytes_that_change_between_memory_and_disk_are_seen_before_publishing(
    run_dir, monkeypatch, name
):
    real = writing.write_bytes

    def rotten(path, data, *more):
        real(path, data, *more)
        if path.name == name:
            flip(path)

    monkeypatch.setattr(writing, "write_bytes", rotten)
    with pytest.raises(CheckpointError, match="read back"):
        save(run_dir, 5)
    assert not checkpoint_dir(run_dir, 5).exists()
    assert latest_complete_step(run_dir) == 4


def test_rewind_sets_later_checkpoints_aside_and_deletes_nothing(run_dir):
    before = everything(run_dir)
    flip(checkpoint_dir(run_dir, 4) / "model.safetensors")
    with pytest.raises(CheckpointError, match="tripod rewind"):
        latest_complete_step(run_dir)
    with pytest.raises(CheckpointError, match="no record of step 3; its steps: 0, 1, 4"):
        rewind(run_dir, 3)
    aside = rewind(run_dir, 1)
    assert latest_complete_step(run_dir) == 1
    assert (aside / "step4" / "optimizer.safetensors").exists()
    save(run_dir, 4)
    assert {path: data for path, data in everything(run_dir).items() if path in before} == before


def test_a_rewind_killed_before_it_cut_the_ledger_is_finished_by_the_next(run_dir, monkeypatch):
    def killed(path, data):
        if path.name == "manifest.jsonl" and path.parent == run_dir:
            raise KeyboardInterrupt
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            rewind(run_dir, 1)
    with pytest.raises(CheckpointError, match=r"step4: .* is missing; .*tripod rewind"):
        latest_complete_step(run_dir)
    rewind(run_dir, 1)
    assert latest_complete_step(run_dir) == 1
    assert (run_dir / "set-aside" / "0" / "step4" / "manifest.json").exists()


def test_a_checkpoint_is_never_overwritten(run_dir):
    before = everything(run_dir)
    with pytest.raises(CheckpointError, match="never overwritten"):
        save(run_dir, 4)
    assert everything(run_dir) == before


def test_two_steps_with_the_same_weights_are_refused_without_a_reason(run_dir):
    weights, moments = tensors(4)
    with pytest.raises(CheckpointError, match="has the weights of step 4"):
        save_checkpoint(run_dir, 5, weights, moments, {}, fields(run_dir, 5))
    reason = {"same_weights_reason": "the learning rate is zero"}
    save_checkpoint(run_dir, 5, weights, moments, {}, fields(run_dir, 5) | reason)


def test_reconcile_clears_leftovers_and_names_a_broken_manifest(run_dir):
    (run_dir / "checkpoints" / ".tmp-step9-1").mkdir()
    with (run_dir / "manifest.jsonl").open("ab") as file:
        file.write(b'{"torn')
    assert reconcile(run_dir) == [
        "removed .tmp-step9-1",
        "removed a torn last line from the ledger",
    ]
    assert reconcile(run_dir) == []
    stray = run_dir / "checkpoints" / "step9"
    stray.mkdir()
    with pytest.raises(CheckpointError, match=r"step9 is not in the ledger"):
        reconcile(run_dir)
    (stray / "manifest.json").write_text('{"step": 9}')
    with pytest.raises(CheckpointError, match=r"its manifest\.json is no record"):
        reconcile(run_dir)
    other = checkpoint_dir(run_dir, 4) / "manifest.json"
    (stray / "manifest.json").write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="not the record of step9"):
        reconcile(run_dir)


def test_a_checkpoint_saved_but_not_entered_is_entered_at_the_next_start(run_dir):
    lines = (run_dir / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "manifest.jsonl").write_bytes(b"".join(lines[:2]))
    assert reconcile(run_dir) == ["entered step 4 into the ledger"]
    assert (run_dir / "manifest.jsonl").read_bytes() == b"".join(lines)
    assert [r["step"] for r in ledger_of(run_dir).records()] == [0, 1, 4]


def test_weights_file_is_plain_safetensors(run_dir):
    found = load_file(checkpoint_dir(run_dir, 1) / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(1)[0].items())
