"""Saves a run's state: science checkpoints by the schedule, recovery checkpoints when due.

Every rank has a `Keeper`, because the state is gathered from all of them; rank 0 writes, behind the
training (`checkpoints_manifest.async_store`). Recovery checkpoints lie in `RUN/recovery`, are in no
ledger, are never published and rotate; the newest verified one is removed only after the next was
read back. What is written at a step is the same whichever kind it is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import torch

from checkpoints_manifest.async_store import AsyncSaver
from checkpoints_manifest.numerics_breaks import FIELD
from checkpoints_manifest.recovery import remove_overtaken
from suite.comm import Group
from suite.config import RunConfig
from suite.heartbeat import Heartbeat
from suite.operation import RecoveryPlan
from suite.recorder import Recorder
from suite.resume import Position
from suite.schedule import unmoved_reason
from suite.signals import StopRequest

Tensors = dict[str, torch.Tensor]


class HasState(Protocol):
    """Whatever engine trains: all ranks call `state` together."""

    group: Group

    def state(self) -> tuple[Tensors, Tensors]:
        """Canonical weights and moments."""


class Keeper:
    """Decides at every step boundary what to save, and saves it.

    Args:
        config: the run.
        run_dir: its directory.
        engine: holds the state.
        recorder: the logs; on rank 0 only.
        position: where this start continues from.
        plan: when recovery checkpoints are due.
        stop: whether this process was asked to stop.
        heart: shows that this rank saves.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        engine: HasState,
        recorder: Recorder | None,
        position: Position,
        plan: RecoveryPlan,
        stop: StopRequest,
        heart: Heartbeat,
    ) -> None:
        self.config, self.run_dir, self.engine, self.recorder = config, run_dir, engine, recorder
        self.plan, self.stop, self.heart = plan, stop, heart
        self._fields, self._changes = dict(position.fields), list(position.changes)
        self._saver = AsyncSaver(run_dir, keep_recovery=plan.keep) if recorder else None
        self._saved = -1 if position.fresh else position.step
        self._since = time.monotonic()

    def boundary(self, step: int) -> bool:
        """Between two steps, on all ranks: saves what is due; returns whether the run shall stop.

        Args:
            step: updates done.
        """
        plan = self.plan
        late = plan.every_seconds is not None and self._elapsed() >= plan.every_seconds
        # Clocks and signals are each rank's own: what one of them says holds for all.
        stop, late = self.engine.group.any_rank([self.stop.asked, late and self._writes])
        due = late or (plan.every_steps is not None and step % plan.every_steps == 0)
        if step and step != self._saved and (due or stop):
            self._save(step, science=False)
        return stop

    def checkpoint(self, step: int) -> None:
        """Saves science checkpoint `step`; all ranks call it."""
        self._save(step, science=True)

    def close(self, complete: bool) -> None:
        """Waits until everything is on disk.

        Args:
            complete: the run is at its last step: nothing resumes from recovery checkpoints now.

        Raises:
            OSError, CheckpointError: a save failed.
        """
        if self._saver is not None:
            self.heart.beat("save")
            self._saver.close()
            if complete:
                remove_overtaken(self.run_dir)

    @property
    def _writes(self) -> bool:
        return self.recorder is not None

    def _elapsed(self) -> float:
        return time.monotonic() - self._since

    def _save(self, step: int, science: bool) -> None:
        weights, moments = self.engine.state()
        if self.recorder is not None and self._saver is not None:
            self.heart.beat("save")
            put = self._saver.save if science else self._saver.save_recovery
            put(step, weights, moments, self._trainer_state(step), self._record_fields(step))
        if science:
            self._changes = []
        self._saved, self._since = step, time.monotonic()
        self.engine.group.barrier()

    def _trainer_state(self, step: int) -> dict[str, Any]:
        assert self.recorder is not None
        return {"schema": "trainer-state-v1", "step": step, "chain": self.recorder.chain.hex()}

    def _record_fields(self, step: int) -> dict[str, Any]:
        """What the record says beside digests of files; the logs are durable by then."""
        assert self.recorder is not None
        config = self.config
        unmoved = unmoved_reason(step, config.rung.lr, config.train)
        return {
            "suite": config.suite.name,
            "rung": config.rung.name,
            "tokens": step * config.batch_tokens,
            "order": {
                "name": config.data.order,
                "index_digest": config.data.index_digest,
                "chain": self.recorder.chain.hex(),
            },
            **self._fields,
            "metrics": self.recorder.flush(),
            **({FIELD: self._changes} if self._changes else {}),
            **({"same_weights_reason": unmoved} if unmoved is not None else {}),
        }
