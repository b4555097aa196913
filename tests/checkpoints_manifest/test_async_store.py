"""Saving behind the training loop: the same bytes, in order, none dropped, no failure unseen."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from checkpoints_manifest import async_store
from checkpoints_manifest.async_store import AsyncSaver
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.store import (
    latest_complete_step,
    ledger_of,
    load_checkpoint,
    reconcile,
    save_checkpoint,
    steps_on_disk,
)
from checkpoints_manifest.verify import verify_checkpoints
from tests.checkpoints_manifest.conftest import fields, flip, save, tensors
from tests.checkpoints_manifest.test_store import everything, inject

REPOSITORY = Path(__file__).parents[2]


def arguments(run_dir, step):
    return (step, *tensors(step), {"step": step}, fields(run_dir, step))


def put(saver, step):
    saver.save(*arguments(saver.run_dir, step))


def restore(run_dir, files):
    shutil.rmtree(run_dir)
    for path, data in files.items():
        (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / path).write_bytes(data)


class Gate:
    """Holds the writer before each checkpoint until the test lets it go."""

    def __init__(self, monkeypatch):
        self.reached, self.open = threading.Semaphore(0), threading.Semaphore(0)
        real = async_store.write_checkpoint

        def gated(*arguments):
            self.reached.release()
            assert self.open.acquire(timeout=20)
            return real(*arguments)

        monkeypatch.setattr(async_store, "write_checkpoint", gated)


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_files_and_ledger_are_those_of_the_synchronous_form(empty_run, tmp_path, buffers):
    other = tmp_path / "other"
    shutil.copytree(empty_run, other)
    with AsyncSaver(other, buffers) as saver:
        for step in (0, 1, 2, 4):
            save(empty_run, step)
            put(saver, step)
    assert everything(other) == everything(empty_run)
    assert verify_checkpoints(other).findings == ()


def test_a_save_returns_before_the_checkpoint_is_written_and_the_next_one_waits(
    empty_run, monkeypatch
):
    gate, returned = Gate(monkeypatch), threading.Event()
    saver = AsyncSaver(empty_run)
    put(saver, 0)
    assert gate.reached.acquire(timeout=20)
    assert steps_on_disk(empty_run) == set()

    def second():
        put(saver, 1)
        returned.set()

    thread = threading.Thread(target=second)
    thread.start()
    # The only buffer is being written: the second save has to wait for it.
    assert not returned.wait(0.1)
    gate.open.release()
    assert returned.wait(20)
    assert latest_complete_step(empty_run) == 0
    gate.open.release()
    thread.join()
    saver.close()
    assert latest_complete_step(empty_run) == 1


def test_two_buffers_hold_two_saves(empty_run, monkeypatch):
    gate = Gate(monkeypatch)
    with AsyncSaver(empty_run, buffers=2) as saver:
        put(saver, 0)
        put(saver, 1)
        assert steps_on_disk(empty_run) == set()
        gate.open.release(2)
    assert [record["step"] for record in ledger_of(empty_run).records()] == [0, 1]


def test_a_dense_schedule_is_written_whole_and_in_order(empty_run):
    weights, moments = tensors(0)
    with AsyncSaver(empty_run) as saver:
        for step in range(40):
            saver.save(step, weights, moments, {"step": step}, fields(empty_run, 0))
            # The trainer goes on at once, in the same memory.
            for tensor in (*weights.values(), *moments.values()):
                tensor += 1
    assert [record["step"] for record in ledger_of(empty_run).records()] == list(range(40))
    for step in (0, 7, 39):
        found, _, state = load_checkpoint(empty_run, step)
        assert state == {"step": step}
        for name, tensor in tensors(0)[0].items():
            for _ in range(step):
                tensor += 1
            assert torch.equal(found[name], tensor)


def test_buffers_are_allocated_once(empty_run):
    with AsyncSaver(empty_run) as saver:
        saver.reserve(*tensors(0))
        (staged,) = saver._free
        for step in (0, 1):
            put(saver, step)
        saver.drain()
        assert saver._free == [staged]


def test_state_and_fields_are_taken_when_save_is_called(empty_run, monkeypatch):
    gate = Gate(monkeypatch)
    with AsyncSaver(empty_run) as saver:
        step, weights, moments, state, stated = arguments(empty_run, 0)
        saver.save(step, weights, moments, state, stated)
        state["step"], stated["order"]["chain"] = 99, "0" * 64
        gate.open.release()
    assert load_checkpoint(empty_run, 0)[2] == {"step": 0}
    assert ledger_of(empty_run).records()[0]["order"] == fields(empty_run, 0)["order"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_any_failing_system_call_stops_the_next_save_and_harms_nothing(
    empty_run, monkeypatch, code
):
    for step in (0, 1):
        save(empty_run, step)
    before = everything(empty_run)
    with monkeypatch.context() as patch:
        seen = inject(patch, -1, lambda: None)
        with AsyncSaver(empty_run) as saver:
            put(saver, 4)
    assert len(seen) > 10

    def fail():
        raise OSError(code, os.strerror(code))

    for at in range(1, len(seen) + 1):
        restore(empty_run, before)
        saver = AsyncSaver(empty_run)
        with monkeypatch.context() as patch:
            inject(patch, at, fail)
            put(saver, 4)
            with pytest.raises(OSError, match=os.strerror(code)) as caught:
                put(saver, 5)
        assert "while checkpoint step4 was written" in caught.value.__notes__[0]
        with pytest.raises(OSError, match=os.strerror(code)):
            saver.close()
        after = everything(empty_run)
        assert {path: after[path] for path in before} == before, f"call {at}"
        assert 5 not in steps_on_disk(empty_run)
        assert not list((empty_run / "checkpoints").glob(".tmp-*")), f"call {at}"
        reconcile(empty_run)
        if latest_complete_step(empty_run) == 1:
            save(empty_run, 4)
        assert latest_complete_step(empty_run) == 4, f"call {at}"


def test_a_process_killed_at_any_system_call_of_the_writer_leaves_complete_or_absent(
    empty_run, monkeypatch
):
    for step in (0, 1):
        save(empty_run, step)
    before, outcomes, at = everything(empty_run), set(), 0
    while True:
        at += 1
        restore(empty_run, before)
        child = os.fork()
        if child == 0:
            inject(monkeypatch, at, lambda: os._exit(9))
            with AsyncSaver(empty_run) as saver:
                put(saver, 4)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        reconcile(empty_run)
        found = latest_complete_step(empty_run)
        assert found in (1, 4), f"call {at}"
        outcomes.add(found)
        if found == 1:
            save(empty_run, 4)
        load_checkpoint(empty_run, 4)
        load_checkpoint(empty_run, 1)
    assert at > 10
    assert outcomes == {1, 4}


def test_bytes_that_change_on_their_way_to_disk_stop_the_next_save(run_dir, monkeypatch):
    from checkpoints_manifest import writing

    real = writing.write_bytes

    def rotten(path, data, *more):
        real(path, data, *more)
        if path.name == "model.safetensors":
            flip(path)

    monkeypatch.setattr(writing, "write_bytes", rotten)
    saver = AsyncSaver(run_dir)
    put(saver, 5)
    for act in (lambda: put(saver, 6), saver.close):
        with pytest.raises(CheckpointError, match="read back"):
            act()
    assert latest_complete_step(run_dir) == 4


def test_what_waits_behind_a_failed_save_is_not_written(empty_run, monkeypatch):
    gate = Gate(monkeypatch)
    saver = AsyncSaver(empty_run, buffers=2)
    put(saver, 0)
    assert gate.reached.acquire(timeout=20)
    put(saver, 1)

    def fail():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    inject(monkeypatch, 1, fail)
    gate.open.release(2)
    with pytest.raises(OSError, match="Input/output"):
        saver.close()
    assert steps_on_disk(empty_run) == set()
    assert ledger_of(empty_run).records() == []


def test_a_failure_is_raised_at_the_end_of_the_with_and_does_not_hide_another(
    empty_run, monkeypatch
):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(async_store, "write_checkpoint", fail)
    with pytest.raises(OSError, match="Input/output"), AsyncSaver(empty_run) as saver:
        put(saver, 0)
    with pytest.raises(OSError, match="Input/output") as caught, AsyncSaver(empty_run) as saver:
        put(saver, 0)
        saver.drain()
    assert caught.value.__context__ is None
    with pytest.raises(CheckpointError, match="is closed"):
        put(saver, 1)
    saver.close()


def test_bad_arguments_are_refused_at_the_call_and_spend_no_buffer(empty_run):
    with AsyncSaver(empty_run) as saver:
        put(saver, 0)
        saver.drain()
        step, weights, moments, state, stated = arguments(empty_run, 1)
        for wrong in (
            (weights, {}, state, stated),
            ({n: t.double() for n, t in weights.items()}, moments, state, stated),
            (weights, moments, state, stated | {"files": []}),
        ):
            with pytest.raises(ValueError, match=r"expected|computed"):
                saver.save(step, *wrong)
        with pytest.raises(TypeError, match="floats"):
            saver.save(step, weights, moments, {"lr": 0.5}, stated)
        with pytest.raises(CheckpointError, match="never overwritten"):
            put(saver, 0)
        put(saver, 1)
    assert [record["step"] for record in ledger_of(empty_run).records()] == [0, 1]
    with pytest.raises(ValueError, match="at least 1 buffer"):
        AsyncSaver(empty_run, buffers=0)


def test_the_end_of_the_interpreter_waits_for_what_was_saved(empty_run):
    code = (
        "import sys; from pathlib import Path; from checkpoints_manifest.async_store import *; "
        "from tests.checkpoints_manifest.test_async_store import put; "
        "saver = AsyncSaver(Path(sys.argv[1]), buffers=3); [put(saver, n) for n in (0, 1, 2)]"
    )
    subprocess.run([sys.executable, "-c", code, empty_run], cwd=REPOSITORY, check=True)
    assert latest_complete_step(empty_run) == 2
    assert verify_checkpoints(empty_run).findings == ()


def test_a_synchronous_save_may_follow(empty_run):
    with AsyncSaver(empty_run) as saver:
        put(saver, 0)
    save_checkpoint(empty_run, *arguments(empty_run, 1))
    assert latest_complete_step(empty_run) == 1
