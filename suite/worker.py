"""One rank of one run: `python -m torch.distributed.run ... -m suite.worker RUN_DIR`.

Reads the run's `config.json`, joins the group, continues from the newest complete state, and
trains. The loop is one screen: read, step, record, maybe save. Use `suite.launch` to start it, or
`suite.rank` under torchrun or srun; they set the environment that the numerics need.

Exit status: 0 trained to the last step; 75 asked to stop by a signal and did, its state saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from checkpoints_manifest.schedule import checkpoint_steps
from data_pipeline.batches import BatchReader
from data_pipeline.leaves import expected_leaves
from data_pipeline.reading import Reading
from suite.assignment import ASSIGNMENTS
from suite.comm import Group, join_group, leave_group
from suite.config import RunConfig
from suite.engine import Reader
from suite.engine_record import check_continues, with_present_engine
from suite.engines import make_engine
from suite.failures import leave_reason
from suite.heartbeat import LAUNCH_VARIABLE, Heartbeat
from suite.launch import die_with_parent
from suite.numerics import apply_determinism
from suite.operation import Operation
from suite.progress import Progress
from suite.quantise import NonFiniteGradientError
from suite.recorder import Recorder
from suite.recovery import Keeper
from suite.resume import Position, prepare_run
from suite.schedule import learning_rate
from suite.signals import INTERRUPTED, StopRequest, leave_mark
from suite.spikes import name_documents
from suite.watched_group import WatchedGroup


def train(
    config: RunConfig, run_dir: Path, group: Group, operation: Operation, stop: StopRequest
) -> int:
    """Trains one rung from where it stands; every rank calls it.

    Returns:
        Updates done: all of them, or fewer where the run was asked to stop.
    """
    heart = Heartbeat(run_dir, group.rank, group.world)
    group = WatchedGroup(group.rank, group.world, heart)
    engine = make_engine(config, group)
    engine.assignment = ASSIGNMENTS[operation.assignment]
    position = prepare_run(config, run_dir, group, engine.quantiser_name, operation.accept)
    named = check_continues(run_dir, engine.description, position.record)
    position = dataclasses.replace(position, fields={**position.fields, **named})
    if group.rank == 0:
        announce(config.rung.name, position)
    if (state := position.load()) is not None:
        engine.load_state(*state)
    reader = Reading.of_run(run_dir).reader()
    scheduled = set(checkpoint_steps(dict(config.checkpoints), config.train.steps))
    recorder = open_recorder(config, run_dir, reader, position) if group.rank == 0 else None
    keeper = Keeper(config, run_dir, engine, recorder, position, operation.recovery, stop, heart)
    progress = Progress(config, position.step, enabled=group.rank == 0)
    if position.fresh and 0 in scheduled:
        keeper.checkpoint(0)
    step = position.step
    while step < config.train.steps and not keeper.boundary(step):
        started, update = time.perf_counter(), step + 1
        lr = learning_rate(update, config.rung.lr, config.train)
        with naming_documents(reader, step):
            result = engine.step(update, lr, rows_of(reader, step, heart))
        if recorder is not None:
            recorder.record(update, lr, result, time.perf_counter() - started)
        if update in scheduled:
            keeper.checkpoint(update)
        progress.update(update, result.loss)
        step = update
    keeper.close(complete=step == config.train.steps)
    if recorder is not None:
        recorder.flush()
        recorder.close()
    progress.finish()
    group.barrier()
    heart.beat("done")
    return step


def announce(rung: str, position: Position) -> None:
    """Says where a run continues, and what was mended or passed over on the way."""
    for note in position.notes:
        print(f"{rung}: {note}", flush=True)
    if not position.fresh and position.directory is not None:
        kind = position.directory.parent.name
        print(f"{rung}: continues from {kind}/step{position.step}", flush=True)


def rows_of(reader: BatchReader, step: int, heart: Heartbeat) -> Reader:
    """Reads rows [first, last) of a step for the engine, a sign of life with each quantum."""
    heart.at(step)

    def read(first: int, last: int) -> np.ndarray:
        heart.quantum()
        return reader.ids(step, slice(first, last))

    return read


@contextlib.contextmanager
def naming_documents(reader: BatchReader, step: int) -> Iterator[None]:
    """Adds the documents of the rows to blame to the refusal of a step."""
    try:
        yield
    except NonFiniteGradientError as error:
        documents = name_documents(reader.describe(step), error.rows)
        text = f"{error}\nDocuments of these rows:\n{documents}"
        raise NonFiniteGradientError(text, error.rows) from error


def open_recorder(
    config: RunConfig, run_dir: Path, reader: BatchReader, position: Position
) -> Recorder:
    """The recorder of rank 0, its logs cut to the position."""
    leaves, rows = expected_leaves(reader, config.train.steps), config.data.batch_size
    recorder = Recorder(run_dir, position.chain, leaves, rows, config.batch_tokens, reader.describe)
    recorder.open_at(position.step, position.metrics_sha256)
    return recorder


def main() -> int:
    """Entry point of one rank; leaves the reason of a failure in `failure.txt` for the launcher."""
    die_with_parent()
    stop = StopRequest().install()
    run_dir = Path(sys.argv[1])
    stored = RunConfig.from_mapping(json.loads((run_dir / "config.json").read_text()))
    config = with_present_engine(stored, run_dir)
    operation = Operation.read(run_dir)
    apply_determinism()
    try:
        watched = LAUNCH_VARIABLE in os.environ
        group = join_group(operation.collective_seconds(watched))
        step = train(config, run_dir, group, operation, stop)
    except Exception as error:
        # The other ranks are stopped by torchrun; the first to fail says why.
        leave_reason(error, run_dir)
        raise
    complete = step == config.train.steps
    if group.rank == 0 and not complete:
        leave_mark(run_dir, step)
    group.barrier()
    leave_group()
    return 0 if complete else INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
