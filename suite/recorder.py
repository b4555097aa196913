"""The logs of a run: append-only, deterministic, without duplicates after a resume.

`metrics.jsonl` (one line per update), `sequence_loss.f32` (B little-endian float32 per update: each
sequence's loss at the moment it was first trained on), `order.log` (the 32-byte leaf of every
step), `noise.jsonl` (`suite.noise`) and `spikes.jsonl` (`suite.spikes`). Wall times go to
`timing.jsonl`, which is never compared. Resuming from checkpoint n verifies that the first n
entries are those the manifest names, then cuts the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_pipeline.digests import chain_next, leaf
from suite.engine import StepResult
from suite.noise import noise_line
from suite.spikes import Describe, SpikeRule, spike_line

METRICS, LOSSES, ORDER, TIMING = "metrics.jsonl", "sequence_loss.f32", "order.log", "timing.jsonl"
NOISE, SPIKES = "noise.jsonl", "spikes.jsonl"


class LogError(RuntimeError):
    """A log does not hold what a checkpoint says it must: names the file, expected and found."""


class OrderError(RuntimeError):
    """The ids that were fed to the model are not those of the published order."""


def metrics_line(update: int, tokens: int, lr: float, result: StepResult) -> bytes:
    """One line of `metrics.jsonl`; floats by `repr`, which round-trips."""
    record = {
        "step": update,
        "tokens": tokens,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "clip_coef": result.clip_coef,
        "lr": lr,
        "gradient": result.gradient,
    }
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


class Recorder:
    """Writes the logs of one run and carries the order chain; only rank 0 has one.

    Args:
        run_dir: the run directory.
        chain: C_{n-1} at the checkpoint that the run starts from.
        expected: leaves that the index promises, 32 bytes a step; a step with another leaf stops
        the run.
        batch_size: B.
        batch_tokens: target tokens per step.
        describe: what a step reads, for the log of spikes; without it there is none.
    """

    def __init__(
        self,
        run_dir: Path,
        chain: bytes,
        expected: bytes,
        batch_size: int,
        batch_tokens: int,
        describe: Describe | None = None,
    ) -> None:
        self.run_dir, self.chain, self.expected = run_dir, chain, expected
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self._describe, self._rule = describe, SpikeRule()
        self._files: dict[str, BinaryIO] = {}
        self._metrics_digest = hashlib.sha256()

    def open_at(self, step: int, metrics_sha256: str | None) -> None:
        """Cuts the logs to `step` updates after checking them, and opens them for appending.

        Raises:
            LogError: a log is shorter than the checkpoint says, or its content differs.
        """
        kept = _first_lines(self.run_dir / METRICS, step)
        found = hashlib.sha256(kept).hexdigest()
        if metrics_sha256 is not None and found != metrics_sha256:
            raise LogError(
                f"{self.run_dir / METRICS}: the first {step} lines should have sha256 "
                f"{metrics_sha256}, found {found}; "
                "restore the file, or start the run again in an empty directory"
            )
        self._metrics_digest.update(kept)
        self._rule = SpikeRule(json.loads(line)["loss"] for line in kept.splitlines())
        sizes = {METRICS: len(kept), LOSSES: 4 * self.batch_size * step, ORDER: 32 * step}
        for name, size in sizes.items():
            path = self.run_dir / name
            present = path.stat().st_size if path.exists() else 0
            if present < size:
                raise LogError(
                    f"{path}: expected at least {size} bytes for {step} steps, found {present}; "
                    "restore the file, or start the run again in an empty directory"
                )
            handle = path.open("ab")
            handle.truncate(size)
            self._files[name] = handle
        for name in (NOISE, SPIKES):
            handle = (self.run_dir / name).open("ab")
            handle.truncate(_size_up_to(self.run_dir / name, step))
            self._files[name] = handle
        self._files[TIMING] = (self.run_dir / TIMING).open("ab")

    def record(self, update: int, lr: float, result: StepResult, seconds: float) -> None:
        """Appends one update to every log.

        Raises:
            OrderError: the leaf of what was fed differs from the expected one; nothing is logged.
        """
        step = update - 1
        found = leaf(step, result.sequence_digests)
        promised = self.expected[32 * step : 32 * update]
        if found != promised:
            raise OrderError(
                f"step {step}: the index promises leaf {promised.hex()}, but the ids fed to the "
                f"model have {found.hex()}; "
                "run `tripod data verify` on the dataset; the checkpoints before this step are "
                "sound"
            )
        self.chain = chain_next(self.chain, found)
        line = metrics_line(update, update * self.batch_tokens, lr, result)
        self._metrics_digest.update(line)
        self._files[METRICS].write(line)
        self._files[LOSSES].write(result.sequence_losses.astype("<f4").tobytes())
        self._files[ORDER].write(found)
        self._record_health(update, result)
        timing = {"step": update, "seconds": round(seconds, 6)}
        self._files[TIMING].write(json.dumps(timing).encode() + b"\n")

    def _record_health(self, update: int, result: StepResult) -> None:
        if len(result.quantum_squares) > 1:
            line = noise_line(update, result.quantum_squares, result.grad_norm, self.batch_size)
            self._files[NOISE].write(line)
        spike = self._rule.look(result.loss)
        if spike is not None and self._describe is not None:
            described = self._describe(update - 1)
            line = spike_line(update, result.loss, spike, result.sequence_losses, described)
            self._files[SPIKES].write(line)

    def flush(self) -> str:
        """Makes the logs durable; returns the sha256 of `metrics.jsonl` so far."""
        for handle in self._files.values():
            handle.flush()
            os.fsync(handle.fileno())
        return self._metrics_digest.hexdigest()

    def close(self) -> None:
        """Flushes and closes every log."""
        for handle in self._files.values():
            handle.close()
        self._files.clear()


def _first_lines(path: Path, count: int) -> bytes:
    if count == 0:
        return b""
    if not path.exists():
        raise LogError(
            f"{path} is missing; expected {count} lines; restore it or start the run again"
        )
    lines = path.read_bytes().splitlines(keepends=True)[:count]
    if len(lines) < count or not lines[-1].endswith(b"\n"):
        raise LogError(
            f"{path}: expected {count} whole lines, found {len(lines)}; restore it or start again"
        )
    return b"".join(lines)


def _size_up_to(path: Path, step: int) -> int:
    """Bytes of the whole lines of a log that are of updates up to `step`."""
    size = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError) as error:
            raise LogError(f"{path}: a line before step {step} is damaged ({error})") from error
        size += len(line)
    return size


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run, one dict per update."""
    text = (run_dir / METRICS).read_text()
    return [json.loads(line) for line in text.splitlines()]


def read_sequence_losses(run_dir: Path, batch_size: int) -> np.ndarray:
    """Per-sequence losses at exposure, float32 [steps, B]."""
    return np.fromfile(run_dir / LOSSES, dtype="<f4").reshape(-1, batch_size)
