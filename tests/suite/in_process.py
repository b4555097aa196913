"""Trainings of the tiny run inside the test's own process: one rank, under the native profile."""

import shutil
from unittest import mock

from checkpoints_manifest.async_store import AsyncSaver
from suite import recovery
from suite.comm import Group
from suite.launch import prepare
from suite.operation import Operation
from suite.signals import StopRequest
from suite.worker import train
from tests.suite.tiny_runs import tiny_config

STEPS = 8
SMALL = (
    "numerics.profile=native", f"train.steps={STEPS}", "checkpoints.every=4",
    "checkpoints.powers_of_two_upto=1",
)  # fmt: skip


class Killed(BaseException):
    """What a test raises where a process would be gone."""


def small_config(suite_dir, *overrides):
    """Checkpoints 0, 1, 4 and 8 of eight steps."""
    return tiny_config(suite_dir, *SMALL, *overrides)


def train_here(config, run_dir, stop=None, **operation):
    """Trains in this process, which then holds no lock any more; returns the updates done."""
    from suite import lock

    how = Operation.from_mapping(operation)
    prepare(config, run_dir, how)
    savers = []
    make = lambda *args, **kwargs: savers.append(AsyncSaver(*args, **kwargs)) or savers[-1]  # noqa: E731
    try:
        with mock.patch.object(recovery, "AsyncSaver", make):
            return train(config, run_dir, Group(0, 1), how, stop or StopRequest())
    finally:
        # What the end of the process would wait for.
        for saver in savers:
            saver.close()
        for handle in lock._held_locks:
            handle.close()
        lock._held_locks.clear()


def copy_of(run_dir, name):
    """A copy beside the run, so that it finds its data."""
    target = run_dir.with_name(name)
    shutil.copytree(run_dir, target)
    return target
