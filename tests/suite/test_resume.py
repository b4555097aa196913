"""Stopped anywhere, any number of times, on any number of ranks: the bytes of a run left in peace.

Every start is a launcher and torchrun, as users have it. The moments are drawn from a seed that is
printed. What must be equal: weights, moments, ledger, metrics, order, sequence losses, noise.
"""

import random
import shutil
import signal

import pytest

from checkpoints_manifest.recovery import newest_recovery
from checkpoints_manifest.store import steps_on_disk
from checkpoints_manifest.writing import RECOVERY
from suite.signals import INTERRUPTED
from tests.suite.smoke import flip
from tests.suite.tiny_runs import (
    STEPS,
    build_suite,
    differing_files,
    finish,
    kill,
    start,
    steps_done,
    train,
    wait_until,
)

pytestmark = pytest.mark.slow
EVERY = 3


@pytest.fixture(scope="module")
def suite_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    build_suite(directory)
    return directory


@pytest.fixture(scope="module")
def calm_run(suite_dir):
    """Trained in one go on two ranks, without recovery checkpoints."""
    status, said = train(suite_dir / "calm", 2)
    assert status == 0, said
    return suite_dir / "calm"


@pytest.fixture(scope="module")
def stopped_run(suite_dir):
    """Stopped four times at random moments, with other ranks and quanta each time, then finished.

    Returns the directory and, per stop, (signal, step it had reached, step it was saved at, exit
    status, output).
    """
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    print(f"seed of the moments: {seed}")
    run_dir, stops = suite_dir / "stopped", []
    plans = (
        (signal.SIGKILL, 3, "keyed-v1"), (signal.SIGTERM, 1, "contiguous"),
        (signal.SIGKILL, 2, "keyed-v1"), (signal.SIGUSR1, 2, "contiguous"),
    )  # fmt: skip
    for number, ranks, assignment in plans:
        at = min((stops[-1][2] if stops else 0) + draw.randrange(2, 12), STEPS - 4)
        recovery = {"every_steps": EVERY} if number == signal.SIGKILL else {}
        process = start(run_dir, ranks, recovery=recovery, assignment=assignment)
        assert wait_until(lambda at=at: steps_done(run_dir) >= at, process), finish(process)
        if number == signal.SIGKILL:
            kill(process, run_dir)
            status, said = None, ""
        else:
            process.send_signal(number)
            status, said = finish(process)
        stops.append((number, steps_done(run_dir), newest_step(run_dir), status, said))
    status, said = train(run_dir, 4, assignment="keyed-v1")
    assert status == 0, said
    return run_dir, stops


def newest_step(run_dir):
    record, _ = newest_recovery(run_dir)
    return max(record["step"] if record else 0, *steps_on_disk(run_dir))


def test_it_ends_in_the_bytes_of_a_run_left_in_peace(calm_run, stopped_run):
    assert differing_files(calm_run, stopped_run[0]) == []


def test_a_kill_loses_at_most_the_last_interval_and_what_was_being_written(stopped_run):
    for number, reached, saved, _, _ in stopped_run[1]:
        if number == signal.SIGKILL:
            assert 0 <= reached - saved <= 2 * EVERY


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step_and_exits_with_a_status_of_its_own(stopped_run, number):
    (stop,) = [stop for stop in stopped_run[1] if stop[0] == number]
    _, reached, saved, status, said = stop
    assert status == INTERRUPTED == 75, said
    assert reached <= saved <= reached + 1
    assert f"is saved at step {saved}; the same command carries on" in said


def test_nothing_of_a_stop_is_left_in_a_finished_run(stopped_run):
    run_dir = stopped_run[0]
    assert steps_on_disk(run_dir, RECOVERY) == set()
    assert not (run_dir / "failure.txt").exists() and not (run_dir / "interrupted.json").exists()


def test_the_comparison_can_fail(calm_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(calm_run, run_dir)
    assert differing_files(calm_run, run_dir) == []
    for name in ("checkpoints/step32/optimizer.safetensors", "noise.jsonl"):
        flip(run_dir / name, -5)
    assert sorted(differing_files(calm_run, run_dir)) == [
        "checkpoints/step32/optimizer.safetensors", "noise.jsonl",
    ]  # fmt: skip
