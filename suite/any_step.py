"""`tripod checkpoint RUN --step n`: any step of a run, saved or not.

A step that was never saved is recomputed from the nearest full state before it, every step on the
way compared with the run's logs (`suite.replay`), written below `RUN/recomputed/step{n}` as a
checkpoint, and published to the suite's local Hub as revision `step{n}`.
"""

from __future__ import annotations

from pathlib import Path

from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.store import checkpoint_dir, latest_complete_step, ledger_of
from suite.publish import publish_step
from suite.replay import Segment, replay, saved_steps
from suite.verify_order import load_config


class ReplayError(RuntimeError):
    """The recomputed steps are not those of the run: names the first difference."""


def checkpoint_at(run_dir: Path, step: int, ranks: int = 1) -> tuple[Path, bool]:
    """The directory of checkpoint `step`, recomputed where it was never saved.

    Args:
        run_dir: the run; its dataset must be at hand where the step has to be recomputed.
        step: updates done.
        ranks: ranks that recompute; changes no bit.

    Returns:
        The directory (`model.safetensors`, `optimizer.safetensors`, ...), and whether it was
        recomputed now.

    Raises:
        ValueError: the run has not trained that far, or has no state before `step`.
        ReplayError: the recomputed steps differ from the logs; nothing was written.
    """
    saved = saved_steps(run_dir)
    if step in saved:
        return checkpoint_dir(run_dir, step), False
    target = run_dir / "recomputed" / f"step{step}"
    if latest_complete_step(target) == step:
        return checkpoint_dir(target, step), False
    earlier = [s for s in saved if s < step]
    logged = (run_dir / "order.log").stat().st_size // 32
    if not earlier or step > logged:
        raise ValueError(
            f"--step {step}: expected a step in [{saved[0]}, {logged}], which this run has trained"
        )
    verdict = replay(run_dir, [Segment(earlier[-1], step)], ranks, save_to=target)
    if not verdict.ok:
        raise ReplayError(verdict.failures[0])
    _publish(run_dir, target, step)
    return checkpoint_dir(target, step), True


def _publish(run_dir: Path, target: Path, step: int) -> None:
    config = load_config(run_dir)
    (record,) = ledger_of(target).records()
    publish_step(config, run_dir, LocalHub(run_dir.parent / "hub"), record, target)
