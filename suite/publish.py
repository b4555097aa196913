"""Write a run's checkpoints to the local Hub: one revision `step{N}` each, `main` the last."""

from __future__ import annotations

import tempfile
from pathlib import Path

from checkpoints_manifest.export import export_revision
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Ledger, Record
from suite.config import RunConfig, dataset_dir


def publish_run(config: RunConfig, run_dir: Path, hub: LocalHub) -> tuple[int, int]:
    """Publishes every checkpoint in the ledger that the Hub does not hold yet.

    Returns:
        (new revisions, revisions in all).
    """
    repo = repository_of(config)
    records = Ledger(run_dir / "manifest.jsonl").records()
    present = set(hub.revisions(repo))
    missing = [record for record in records if f"step{record['step']}" not in present]
    for record in missing:
        publish_step(config, run_dir, hub, record, run_dir)
    hub.set_main(repo, f"step{records[-1]['step']}")
    return len(missing), len(records)


def repository_of(config: RunConfig) -> str:
    """The repository of a run in its suite's local Hub: org/rung."""
    return f"{config.suite.hub_org}/{config.rung.name}"


def publish_step(
    config: RunConfig, run_dir: Path, hub: LocalHub, record: Record, holder: Path
) -> str:
    """Publishes one checkpoint as `step{N}`.

    Args:
        config: the run.
        run_dir: the run directory, whose dataset has the tokenizer.
        hub: where to.
        record: the checkpoint's record.
        holder: the directory whose `checkpoints/` holds it: the run, or where it was recomputed.

    Returns:
        The commit id.
    """
    revision = f"step{record['step']}"
    tokenizer = (dataset_dir(config, run_dir) / "tokenizer.json").read_bytes()
    weights = holder / "checkpoints" / revision / "model.safetensors"
    with tempfile.TemporaryDirectory(dir=run_dir) as scratch:
        files = Path(scratch) / revision
        model = config.rung.model
        export_revision(files, weights, dict(model.hf), tokenizer, record, model.family)
        return hub.publish(repository_of(config), revision, files)
