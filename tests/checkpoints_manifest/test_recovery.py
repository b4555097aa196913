"""Recovery checkpoints rotate; one that verifies is always there; science ones stay."""

import errno
import os
import shutil

import pytest
import torch

from checkpoints_manifest.async_store import AsyncSaver
from checkpoints_manifest.recovery import newest_recovery, recovery_dir, write_recovery
from checkpoints_manifest.store import load_files, reconcile, rewind, steps_on_disk
from checkpoints_manifest.verify import verify_checkpoints
from checkpoints_manifest.writing import RECOVERY, Staged
from tests.checkpoints_manifest.conftest import fields, flip, save, tensors
from tests.checkpoints_manifest.test_async_store import arguments, put, restore
from tests.checkpoints_manifest.test_store import everything, inject


def staged(run_dir, step):
    found = Staged.of(*tensors(step))
    found.fill(*tensors(step), {"step": step}, fields(run_dir, min(step, 6)))
    return found


def rotate(run_dir, step, keep=2):
    return write_recovery(run_dir, step, staged(run_dir, step), keep)


def kept(run_dir):
    return sorted(steps_on_disk(run_dir, RECOVERY))


def test_only_the_newest_stay_and_science_checkpoints_all_do(run_dir):
    before = everything(run_dir)
    for step in range(5, 12):
        rotate(run_dir, step)
    assert kept(run_dir) == [10, 11]
    after = everything(run_dir)
    assert {path: after[path] for path in before} == before
    assert verify_checkpoints(run_dir).findings == ()


def test_the_newest_is_found_verified_and_loaded(run_dir):
    assert newest_recovery(run_dir) == (None, [])
    for step in (5, 6):
        rotate(run_dir, step)
    record, passed_over = newest_recovery(run_dir)
    assert (record["step"], passed_over) == (6, [])
    weights, moments, state = load_files(recovery_dir(run_dir, 6), record)
    assert state == {"step": 6}
    for expected, found in zip(tensors(6), (weights, moments), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_damaged_one_is_passed_over_by_name(run_dir):
    for step in (5, 6):
        rotate(run_dir, step)
    flip(recovery_dir(run_dir, 6) / "optimizer.safetensors")
    record, (line,) = newest_recovery(run_dir)
    assert record["step"] == 5
    assert "step6 is not usable" in line
    assert "sha256" in line


def test_one_that_a_science_checkpoint_overtook_is_not_resumed_from(run_dir):
    rotate(run_dir, 5)
    save(run_dir, 6)
    assert newest_recovery(run_dir) == (None, [])
    rotate(run_dir, 7)
    assert newest_recovery(run_dir)[0]["step"] == 7


def test_a_rewind_sets_later_ones_aside(run_dir):
    rotate(run_dir, 5)
    aside = rewind(run_dir, 1)
    assert newest_recovery(run_dir) == (None, [])
    assert (aside / "recovery-step5" / "manifest.json").exists()
    # One that was left from before the rewind does not follow the ledger any more.
    shutil.copytree(aside / "recovery-step5", recovery_dir(run_dir, 5))
    record, (line,) = newest_recovery(run_dir)
    assert record is None
    assert "chain is broken" in line


@pytest.mark.parametrize("kill", [False, True], ids=["error", "kill"])
@pytest.mark.parametrize("keep", [1, 2])
def test_at_every_system_call_there_is_one_that_verifies(run_dir, monkeypatch, keep, kill):
    for step in (5, 6):
        rotate(run_dir, step, keep)
    before, science = everything(run_dir), steps_on_disk(run_dir)
    at, done = 0, False
    while not done:
        at += 1
        restore(run_dir, before)

        def fail():
            if kill:
                os._exit(9)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        child = os.fork()
        if child == 0:
            inject(monkeypatch, at, fail)
            try:
                rotate(run_dir, 7, keep)
            except OSError:
                os._exit(1)
            os._exit(0)
        done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        record, passed_over = newest_recovery(run_dir)
        assert record["step"] in (6, 7), f"call {at}"
        assert passed_over == []
        reconcile(run_dir)
        assert not list((run_dir / RECOVERY).glob(".tmp-*"))
        assert steps_on_disk(run_dir) == science
        assert verify_checkpoints(run_dir).findings == ()
    assert at > 10


def test_the_saver_rotates_them_between_science_checkpoints(empty_run):
    with AsyncSaver(empty_run, keep_recovery=2) as saver:
        put(saver, 0)
        for step in (1, 2, 3):
            saver.save_recovery(*arguments(empty_run, step))
        put(saver, 4)
        saver.save_recovery(*arguments(empty_run, 5))
    assert kept(empty_run) == [3, 5]
    assert newest_recovery(empty_run)[0]["step"] == 5
    assert verify_checkpoints(empty_run).findings == ()


def test_to_keep_none_is_refused(run_dir):
    with pytest.raises(ValueError, match="at least 1"):
        rotate(run_dir, 5, keep=0)
    with pytest.raises(ValueError, match="1 recovery checkpoint"):
        AsyncSaver(run_dir, keep_recovery=0)
