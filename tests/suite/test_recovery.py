"""When recovery checkpoints are saved, that they stay apart, and what a resume takes."""

import re
import shutil

import pytest

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.recovery import newest_recovery, recovery_dir
from checkpoints_manifest.store import ledger_of, steps_on_disk
from checkpoints_manifest.verify import verify_checkpoints
from checkpoints_manifest.writing import RECOVERY
from suite import recovery, worker
from suite.assignment import ASSIGNMENTS, contiguous, keyed_v1
from suite.config import ConfigError
from suite.operation import Operation, RecoveryPlan
from suite.resume import newest_state
from suite.signals import StopRequest
from tests.suite.in_process import STEPS, Killed, copy_of, small_config, train_here
from tests.suite.smoke import flip
from tests.suite.tiny_runs import build_suite, differing_files


@pytest.fixture(scope="module")
def suite_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    build_suite(directory)
    return directory


@pytest.fixture(scope="module")
def config(suite_dir):
    return small_config(suite_dir)


@pytest.fixture(scope="module")
def whole(suite_dir, config):
    assert train_here(config, suite_dir / "whole") == STEPS
    return suite_dir / "whole"


@pytest.fixture
def run_dir(suite_dir, request):
    directory = suite_dir / re.sub(r"\W", "-", request.node.name)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def die_at(monkeypatch):
    """Makes the training die in the middle of a step."""

    def at(step):
        def rows_of(reader, present, heart):
            if present == step:
                raise Killed
            return real(reader, present, heart)

        real = worker.rows_of
        monkeypatch.setattr(worker, "rows_of", rows_of)

    yield at
    monkeypatch.undo()


def die(config, run_dir, die_at, monkeypatch, step, **operation):
    die_at(step)
    with pytest.raises(Killed):
        train_here(config, run_dir, recovery=operation)
    monkeypatch.undo()


def test_by_steps_they_rotate_apart_from_science_checkpoints(config, run_dir, die_at, monkeypatch):
    die(config, run_dir, die_at, monkeypatch, 7, every_steps=1, keep=2)
    # Science checkpoints at 0, 1 and 4: no recovery checkpoint doubles one.
    assert steps_on_disk(run_dir) == {0, 1, 4}
    assert steps_on_disk(run_dir, RECOVERY) == {6, 7}
    assert [record["step"] for record in ledger_of(run_dir).records()] == [0, 1, 4]
    assert verify_checkpoints(run_dir).findings == ()


def test_a_resume_takes_the_newest_state_of_either_kind(
    config, whole, run_dir, die_at, monkeypatch
):
    die(config, run_dir, die_at, monkeypatch, 7, every_steps=3)
    assert newest_state(run_dir)[0] == recovery_dir(run_dir, 6)
    for name in ("metrics.jsonl", "noise.jsonl"):
        with (run_dir / name).open("ab") as log:
            log.write(b'{"step": 8, "torn')
    assert train_here(config, run_dir) == STEPS
    assert differing_files(whole, run_dir) == []
    assert steps_on_disk(run_dir, RECOVERY) == set()


def test_by_the_clock(config, run_dir, die_at, monkeypatch):
    now = iter(range(0, 10_000, 40))
    monkeypatch.setattr(recovery.time, "monotonic", lambda: next(now))
    die_at(7)
    with pytest.raises(Killed):
        train_here(config, run_dir, recovery={"every_seconds": 100})
    monkeypatch.undo()
    found = steps_on_disk(run_dir, RECOVERY)
    assert found and not found & {0, 1, 4}


def test_no_rule_no_recovery_checkpoint(config, run_dir, die_at, monkeypatch):
    die(config, run_dir, die_at, monkeypatch, 7, every_seconds=None)
    assert not (run_dir / RECOVERY).exists()


def test_asked_to_stop_it_saves_where_it_is(config, whole, run_dir, monkeypatch):
    stop = StopRequest()

    def rows_of(reader, step, heart):
        if step == 5:
            stop.note(15)
        return real(reader, step, heart)

    real = worker.rows_of
    monkeypatch.setattr(worker, "rows_of", rows_of)
    assert train_here(config, run_dir, stop) == 6
    monkeypatch.undo()
    assert newest_recovery(run_dir)[0]["step"] == 6
    # Asked again before the first step: nothing to save, nothing to lose.
    asked = StopRequest()
    asked.note(15)
    assert train_here(config, run_dir, asked) == 6
    assert train_here(config, run_dir) == STEPS
    assert differing_files(whole, run_dir) == []


def test_a_damaged_recovery_checkpoint_is_passed_over_for_the_one_before(
    config, whole, run_dir, die_at, monkeypatch
):
    die(config, run_dir, die_at, monkeypatch, 7, every_steps=1, keep=2)
    flip(recovery_dir(run_dir, 7) / "model.safetensors", -3)
    _, record, (line,) = newest_state(run_dir)
    assert record["step"] == 6 and "step7 is not usable" in line
    assert train_here(config, run_dir) == STEPS
    assert differing_files(whole, run_dir) == []


def test_a_recovery_checkpoint_of_another_history_is_not_taken(
    config, run_dir, die_at, monkeypatch
):
    die(config, run_dir, die_at, monkeypatch, 7, every_steps=1)
    path = recovery_dir(run_dir, 7) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"previous":"', b'"previous":"0', 1)[:-1])
    record, lines = newest_recovery(run_dir)
    assert record["step"] == 6 and len(lines) == 1


def test_a_damaged_science_checkpoint_stops_where_no_later_state_stands(whole, suite_dir):
    copy = copy_of(whole, "damaged")
    flip(copy / "checkpoints" / f"step{STEPS}" / "optimizer.safetensors", -3)
    with pytest.raises(CheckpointError, match=f"step{STEPS}: .*sha256"):
        newest_state(copy)
    shutil.rmtree(copy)


def test_a_full_disk_leaves_the_recovery_checkpoint_before_it(config, run_dir, die_at, monkeypatch):
    from checkpoints_manifest import writing

    free = writing.free_bytes
    monkeypatch.setattr(
        writing, "free_bytes", lambda path: 0 if newest_recovery(run_dir)[0] else free(path)
    )
    with pytest.raises(OSError, match="nothing was written: free some space"):
        train_here(config, run_dir, recovery={"every_steps": 1})
    monkeypatch.undo()
    assert newest_recovery(run_dir)[0]["step"] == 2
    assert verify_checkpoints(run_dir).findings == ()


def test_how_a_run_is_carried_out_is_no_part_of_what_it_is(config, whole, suite_dir):
    text = (whole / "config.json").read_text()
    assert "recovery" not in text and "hang" not in text and "assignment" not in text


@pytest.mark.parametrize(
    "mapping",
    [
        {"recovery": {"keep": 0}}, {"recovery": {"every_steps": -1}}, {"assignment": "any"},
        {"hang_seconds": 0}, {"recovery": {"every": 3}}, {"ranks": 0},
    ],
)  # fmt: skip
def test_an_operation_that_cannot_be_is_refused_by_name(mapping):
    with pytest.raises(ConfigError, match="operation"):
        Operation.from_mapping(mapping)


def test_an_operation_survives_its_file(tmp_path):
    operation = Operation(3, RecoveryPlan(5, None, 1), 60, "keyed-v1", ("numerics",))
    operation.write(tmp_path)
    assert Operation.read(tmp_path) == operation
    assert Operation.read(tmp_path / "nowhere") == Operation()


@pytest.mark.parametrize("name", sorted(ASSIGNMENTS))
def test_every_quantum_has_one_rank(name):
    for quanta in (1, 5, 12):
        for world in (1, 2, 3, 7):
            shares = [ASSIGNMENTS[name](3, rank, world, quanta) for rank in range(world)]
            assert sorted(q for share in shares for q in share) == list(range(quanta))


def test_keyed_assignment_changes_with_the_step_and_contiguous_does_not():
    keyed = {tuple(keyed_v1(step, 0, 2, 12)) for step in range(8)}
    assert len(keyed) == 8 and any(list(share) != sorted(share) for share in keyed)
    assert len({contiguous(step, 0, 2, 12) for step in range(8)}) == 1
