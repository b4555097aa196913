"""Where the runs of a suite stand, read from their directories; works while they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints_manifest.manifest import Ledger
from suite.verify import run_dirs_of
from suite.verify_order import load_config


def suite_status(path: Path) -> list[dict[str, Any]]:
    """One row per run: rung, step, steps, loss (None before step 1), checkpoints, failure."""
    rows = []
    for run_dir in run_dirs_of(path):
        config = load_config(run_dir)
        last = _last_metrics(run_dir / "metrics.jsonl")
        failure = run_dir / "failure.txt"
        ledger = run_dir / "manifest.jsonl"
        rows.append(
            {
                "rung": config.rung.name,
                "step": last["step"] if last else 0,
                "steps": config.train.steps,
                "loss": last["loss"] if last else None,
                "checkpoints": len(Ledger(ledger).records()) if ledger.exists() else 0,
                "failure": failure.read_text().strip() if failure.exists() else None,
            }
        )
    return rows


def _last_metrics(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return dict(json.loads(whole[-1])) if whole else None
