"""Write a run's checkpoints to the local Hub: one revision `step{N}` each, `main` the last."""

from __future__ import annotations

import tempfile
from pathlib import Path

from checkpoints_manifest.export import export_revision
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Ledger
from suite.config import RunConfig, dataset_dir


def publish_run(config: RunConfig, run_dir: Path, hub: LocalHub) -> tuple[int, int]:
    """Publishes every checkpoint in the ledger that the Hub does not hold yet.

    Returns:
        (new revisions, revisions in all).
    """
    repo = f"{config.suite.hub_org}/{config.rung.name}"
    tokenizer = (dataset_dir(config, run_dir) / "tokenizer.json").read_bytes()
    records = Ledger(run_dir / "manifest.jsonl").records()
    present = set(hub.revisions(repo))
    new = 0
    for record in records:
        revision = f"step{record['step']}"
        if revision in present:
            continue
        weights = run_dir / "checkpoints" / revision / "model.safetensors"
        with tempfile.TemporaryDirectory(dir=run_dir) as scratch:
            files = Path(scratch) / revision
            export_revision(files, weights, dict(config.rung.model.hf), tokenizer, record)
            hub.publish(repo, revision, files)
        new += 1
    hub.set_main(repo, f"step{records[-1]['step']}")
    return new, len(records)
