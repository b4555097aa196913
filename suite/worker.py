"""One rank of one run: `python -m torch.distributed.run ... -m suite.worker RUN_DIR`.

Reads the run's `config.json`, joins the group, continues from the newest complete checkpoint, and
trains. The loop is one screen: read, step, record, maybe save. Use `suite.launch` to start it; that
sets the environment the numerics need.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from checkpoints_manifest.schedule import checkpoint_steps
from checkpoints_manifest.store import load_checkpoint, save_checkpoint
from data_pipeline.batches import BatchReader
from data_pipeline.leaves import expected_leaves
from data_pipeline.reading import Reading
from suite.comm import Group, join_group
from suite.config import RunConfig
from suite.engine_record import check_continues, record_field, with_present_engine
from suite.engines import Engine, make_engine
from suite.launch import die_with_parent
from suite.numerics import apply_determinism
from suite.progress import Progress
from suite.recorder import Recorder
from suite.resume import Position, prepare_run
from suite.schedule import learning_rate


def train(config: RunConfig, run_dir: Path, group: Group) -> None:
    """Trains one rung from where it stands to its last step; every rank calls it."""
    engine = make_engine(config, group)
    check_continues(run_dir, engine.description)
    position = prepare_run(config, run_dir, group, engine.quantiser_name)
    if position.step:
        weights, moments, _ = load_checkpoint(run_dir, position.step)
        engine.load_state(weights, moments)
    reader = Reading.of_run(run_dir).reader()
    scheduled = set(checkpoint_steps(dict(config.checkpoints), config.train.steps))
    recorder = open_recorder(config, run_dir, reader, position) if group.rank == 0 else None
    progress = Progress(config, position.step, enabled=group.rank == 0)
    if position.fresh and 0 in scheduled:
        save(engine, recorder, config, run_dir, 0)
    for step in range(position.step, config.train.steps):
        started, update = time.perf_counter(), step + 1
        lr = learning_rate(update, config.rung.lr, config.train)
        result = engine.step(update, lr, lambda a, b, t=step: reader.ids(t, slice(a, b)))  # type: ignore[misc]
        if recorder is not None:
            recorder.record(update, lr, result, time.perf_counter() - started)
        if update in scheduled:
            save(engine, recorder, config, run_dir, update)
        progress.update(update, result.loss)
    if recorder is not None:
        recorder.flush()
        recorder.close()
    progress.finish()
    group.barrier()


def open_recorder(
    config: RunConfig, run_dir: Path, reader: BatchReader, position: Position
) -> Recorder:
    """The recorder of rank 0, its logs cut to the position."""
    leaves, rows = expected_leaves(reader, config.train.steps), config.data.batch_size
    recorder = Recorder(run_dir, position.chain, leaves, rows, config.batch_tokens)
    recorder.open_at(position.step, position.metrics_sha256)
    return recorder


def save(
    engine: Engine, recorder: Recorder | None, config: RunConfig, run_dir: Path, step: int
) -> None:
    """Saves checkpoint `step` from rank 0; all ranks call it, because the state is gathered."""
    weights, moments = engine.state()
    if recorder is not None:
        metrics_sha256 = recorder.flush()
        fields = {
            "suite": config.suite.name,
            "rung": config.rung.name,
            "tokens": step * config.batch_tokens,
            "order": {
                "name": config.data.order,
                "index_digest": config.data.index_digest,
                "chain": recorder.chain.hex(),
            },
            **json.loads((run_dir / "record_fields.json").read_text()),
            "metrics": metrics_sha256,
            **record_field(run_dir, engine.description),
        }
        state = {"schema": "trainer-state-v1", "step": step, "chain": recorder.chain.hex()}
        save_checkpoint(run_dir, step, weights, moments, state, fields)
    engine.group.barrier()


def main() -> int:
    """Entry point of one rank; leaves the reason of a failure in `failure.txt` for the launcher."""
    die_with_parent()
    run_dir = Path(sys.argv[1])
    stored = RunConfig.from_mapping(json.loads((run_dir / "config.json").read_text()))
    config = with_present_engine(stored, run_dir)
    apply_determinism()
    group = join_group()
    try:
        train(config, run_dir, group)
    except Exception as error:
        # The other ranks are stopped by torchrun; the first to fail says why.
        with contextlib.suppress(FileExistsError), (run_dir / "failure.txt").open("x") as file:
            file.write(f"{type(error).__name__}: {error}\n")
        raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
