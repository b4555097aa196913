"""`tripod verify labels`: a checkpoint labelled step n is step n.

The loss of checkpoint n on the batch of its next step must equal, bit for bit, what the trainer
logged for that step. One number checks weights, export, order and label at once. The published
revision in the local Hub is loaded when there is one (so the export is checked too), else the run's
own checkpoint. Steps that were computed under another numerics record, which the ledger then
states, are left out and counted. Runs as its own process under the run's numerics: `python -m
suite.verify_labels RUN_DIR [...]`; prints one JSON line per run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from checkpoints_manifest.manifest import Ledger
from checkpoints_manifest.numerics_breaks import numerics_of
from data_pipeline.reading import Reading
from suite.config import RunConfig
from suite.engine_record import engine_of
from suite.guard import recorded_numerics
from suite.numerics import apply_determinism, check_same, numerics_record, profile_environment
from suite.recorder import read_sequence_losses
from suite.verify_order import Verdict, load_config


def verify_labels(run_dirs: list[Path]) -> Verdict:
    """Checks every checkpoint that has a next step.

    Starts a process with the numerics of the runs.
    """
    profile = load_config(run_dirs[0]).numerics.profile
    command = [sys.executable, "-m", "suite.verify_labels", *map(str, run_dirs)]
    done = subprocess.run(
        command, env=profile_environment(profile), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"verify labels could not run:\n{done.stderr.strip()[-2000:]}")
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    failures = [failure for result in results for failure in result["failures"]]
    checked = sum(result["checked"] for result in results)
    published = sum(result["published"] for result in results)
    detail = (
        f"{checked} checkpoints, next-step loss equal bit for bit "
        f"({published} read from the local Hub)"
    )
    left_out = sum(result["left_out"] for result in results)
    if left_out:
        detail += f"; {left_out} of an earlier numerics record left out"
    if left := sum(result["left"] for result in results):
        detail += f"; {left} trained with tensor parallelism are left to `tripod replay`"
    return Verdict("labels", tuple(failures), detail)


def check_run(run_dir: Path) -> dict[str, object]:
    """Compares each checkpoint of one run with the trainer's log; see the module's contract."""
    config = load_config(run_dir)
    numerics = config.numerics
    present = numerics_record(numerics.profile, numerics.precision, "none")
    records = Ledger(run_dir / "manifest.jsonl").records()
    newest = recorded_numerics(run_dir, records[-1]["numerics"], present)
    check_same(newest, present)
    data = config.data
    reader = Reading.of_run(run_dir).reader()
    logged = read_sequence_losses(run_dir, data.batch_size)
    failures: list[str] = []
    checked = published = left_out = left = 0
    for step in [record["step"] for record in records]:
        if step >= len(logged):
            continue
        if engine_of(run_dir, config, step + 1).tensor_parallel > 1:
            # Its losses are partial sums of several ranks; one process cannot give their bits.
            left += 1
            continue
        if numerics_of(records, step, step + 1) != records[-1]["numerics"]:
            left_out += 1
            continue
        weights, from_hub = _weights(config, run_dir, step)
        found = batch_losses(config, weights, reader.ids(step), step)
        checked, published = checked + 1, published + from_hub
        different = np.flatnonzero(found.view("<u4") != logged[step].view("<u4"))
        if different.size:
            row = int(different[0])
            failures.append(
                f"{run_dir.name}: step{step} is not step {step}: on the batch of step {step} row "
                f"{row} has loss "
                f"{found[row]!r}, the trainer logged {logged[step][row]!r} ({different.size} of "
                f"{found.size} rows differ)"
            )
    return {
        "run": run_dir.name,
        "checked": checked,
        "published": published,
        "left": left,
        "left_out": left_out,
        "failures": failures,
    }


def batch_losses(config: RunConfig, weights: Path, ids_BT: np.ndarray, step: int) -> np.ndarray:
    """Row losses of a batch, quantum by quantum as the trainer computes them, float32 [B].

    Args:
        config: the run.
        weights: a safetensors file of weights by HF parameter name, with `config.json` beside it
        when published.
        ids_BT: int64 [B, S+1].
        step: the step that reads this batch; dropout is keyed by it.
    """
    import torch
    from safetensors.torch import load_file

    from checkpoints_manifest.names import load_canonical
    from suite.loss import quantum_loss
    from suite.models import build_model, load_published, to_precision

    rung, quantum, rows = config.rung, config.numerics.quantum, len(ids_BT)
    if (weights.parent / "tokenizer.json").exists():
        model = load_published(weights.parent, rung.model)
    else:
        model = build_model(rung.model, rung.seeds.init)
        load_canonical(model, load_file(weights))
    to_precision(model, config.numerics.precision)
    parts = []
    for first in range(0, rows, quantum):
        ids = torch.from_numpy(ids_BT[first : first + quantum])
        place = model.dropout_context.at(rung.seeds.dropout, step * rows + first)  # type: ignore[operator, union-attr]
        with torch.no_grad(), place:
            parts.append(quantum_loss(model, ids, config.numerics).sequences)
    return torch.cat(parts).numpy().astype("<f4")


def _weights(config: RunConfig, run_dir: Path, step: int) -> tuple[Path, bool]:
    repo = f"models--{config.suite.hub_org}--{config.rung.name}"
    base = run_dir.parent / "hub" / repo
    ref = base / "refs" / f"step{step}"
    if ref.exists():
        return base / "snapshots" / ref.read_text() / "model.safetensors", True
    return run_dir / "checkpoints" / f"step{step}" / "model.safetensors", False


def main() -> int:
    """Checks the runs named on the command line in this process."""
    apply_determinism()
    for run_dir in map(Path, sys.argv[1:]):
        print(json.dumps(check_run(run_dir)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
