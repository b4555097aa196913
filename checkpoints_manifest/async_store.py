"""Checkpoints written behind the training loop; it waits only while its state is copied.

    with AsyncSaver(run_dir) as saver:
        ...
        saver.save(step, weights, moments, trainer_state, fields)

Guarantees: what lands on disk is what `store.save_checkpoint` writes, byte for byte, by the same
protocol (reserved, synced, read back, renamed, then the ledger), one checkpoint after the other in
the order of the calls. Nothing is dropped: when every buffer is taken, `save` waits. A failed
write is raised at the next `save` or at `close`, and nothing is written after it. `close` (and the
end of the `with`) waits until everything is on disk; so does the end of the interpreter.

Memory: `buffers` times 12 bytes per parameter, pinned where there is a CUDA device. With one buffer
a save waits for the one before it; with two it is copied while the one before is still written.
"""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Record
from checkpoints_manifest.recovery import write_recovery
from checkpoints_manifest.writing import (
    CHECKPOINTS,
    RECOVERY,
    Staged,
    check_absent,
    write_checkpoint,
)

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


class AsyncSaver:
    """One writer thread for one run.

    Args:
        run_dir: the run directory; no other process saves into it.
        buffers: saves that may be in memory at once.
        keep_recovery: recovery checkpoints kept.
    """

    def __init__(self, run_dir: Path, buffers: int = 1, keep_recovery: int = 2) -> None:
        if buffers < 1 or keep_recovery < 1:
            raise ValueError(
                f"expected at least 1 buffer and 1 recovery checkpoint, found {buffers} and "
                f"{keep_recovery}"
            )
        self.run_dir, self.buffers, self.keep_recovery = run_dir, buffers, keep_recovery
        self._free: list[Staged] = []
        self._pending: deque[tuple[int, Future[Record], Staged]] = deque()
        self._failure: BaseException | None = None  # set and raised in the trainer's thread
        self._failed_step: int | None = None  # set and read in the writer's thread
        self._closed = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        atexit.register(self.close)

    def reserve(self, weights: Tensors, moments: Tensors) -> None:
        """Allocates the buffers now rather than at the first save.

        Raises:
            ValueError: the moments are not those of the weights.
        """
        while len(self._free) + len(self._pending) < self.buffers:
            self._free.append(Staged.of(weights, moments))

    def save(
        self,
        step: int,
        weights: Tensors,
        moments: Tensors,
        trainer_state: Mapping[str, Any],
        fields: Mapping[str, Any],
    ) -> None:
        """Copies the state and returns; the checkpoint is written in the background.

        Args:
            step: updates done.
            weights: fp32 tensors by Hugging Face parameter name, on the CPU or a CUDA device.
            moments: `exp_avg.<name>` and `exp_avg_sq.<name>`.
            trainer_state: small and canonical-JSON-able.
            fields: the record's fields other than files, roots and chain, as of this step; logs
            that they digest must be synced by now.

        Raises:
            OSError, CheckpointError: an earlier save failed, or this step has a checkpoint.
            ValueError, TypeError: arguments that `store.save_checkpoint` refuses.
        """
        self._submit(CHECKPOINTS, step, (weights, moments, trainer_state, fields))

    def save_recovery(
        self,
        step: int,
        weights: Tensors,
        moments: Tensors,
        trainer_state: Mapping[str, Any],
        fields: Mapping[str, Any],
    ) -> None:
        """As `save`, for a checkpoint that only serves a resume and is removed later."""
        self._submit(RECOVERY, step, (weights, moments, trainer_state, fields))

    def _submit(self, kind: str, step: int, state: tuple[Any, ...]) -> None:
        if self._closed:
            raise CheckpointError(f"step{step}: the saver of {self.run_dir} is closed")
        self._collect(wait_for=len(self._pending) - self.buffers + 1)
        check_absent(self.run_dir, kind, step)
        self.reserve(*state[:2])
        staged = self._free.pop()
        try:
            staged.fill(*state)
        except BaseException:
            self._free.append(staged)
            raise
        future = self._writer.submit(self._write, kind, step, staged)
        self._pending.append((step, future, staged))

    def _write(self, kind: str, step: int, staged: Staged) -> Record:
        if self._failed_step is not None:
            raise CheckpointError(
                f"step{step} was not written, because step{self._failed_step} before it was not"
            )
        try:
            if kind == RECOVERY:
                return write_recovery(self.run_dir, step, staged, self.keep_recovery)
            return write_checkpoint(self.run_dir, kind, step, staged)
        except BaseException:
            self._failed_step = step
            raise

    def _collect(self, wait_for: int) -> None:
        """Takes back finished buffers, waiting for the `wait_for` oldest; raises what failed."""
        while self._pending and (wait_for > 0 or self._pending[0][1].done()):
            step, future, staged = self._pending[0]
            failure = future.exception()
            if failure is not None and self._failure is None:
                failure.add_note(f"while checkpoint step{step} was written in the background")
                self._failure = failure
            self._pending.popleft()
            self._free.append(staged)
            wait_for -= 1
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        """Waits until every save so far is on disk.

        Raises:
            OSError, CheckpointError: one of them failed.
        """
        self._collect(wait_for=len(self._pending))

    def close(self) -> None:
        """Drains and stops the writer; a second call does nothing more.

        Raises:
            OSError, CheckpointError: a save failed.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            self.drain()
        finally:
            self._writer.shutdown()
            self._free.clear()

    def __enter__(self) -> AsyncSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except BaseException as failure:
            if failure is not error:
                raise
