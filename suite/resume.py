"""Where a run stands: lock, data, numerics and newest checkpoint, checked before any computing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from checkpoints_manifest.manifest import Ledger
from checkpoints_manifest.store import latest_complete_step, reconcile
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.datasets import verify_any
from data_pipeline.digests import chain_start
from data_pipeline.durable import write_bytes
from suite.comm import Group
from suite.config import RunConfig, dataset_dir
from suite.lock import lock_run
from suite.numerics import check_environment, check_same, environment_record, numerics_record


@dataclass(frozen=True)
class Position:
    """Step and order chain that a run continues from; `fresh` when no checkpoint exists yet."""

    step: int
    chain: bytes
    metrics_sha256: str | None
    fresh: bool


def start_chain(config: RunConfig) -> bytes:
    """C_{-1} of a run."""
    data = config.data
    if data.index_digest is None:
        raise ValueError("data.index_digest is not set; build the data first (`tripod data build`)")
    return chain_start(
        data.index_digest, data.seq_len, data.batch_size, data.order, data.seed, data.overlay
    )


def prepare_run(config: RunConfig, run_dir: Path, group: Group, quantiser: str) -> Position:
    """Checks everything that could change a bit, then says where to continue; all ranks call it.

    Raises:
        NumericsError, RunLockedError, DatasetError, CheckpointError: before anything was written.
    """
    numerics = config.numerics
    record = numerics_record(numerics.profile, numerics.precision, quantiser)
    check_environment(record)
    position = None
    if group.rank == 0:
        lock_run(run_dir)
        verify_any(dataset_dir(config, run_dir), config.data.index_digest)
        _check_or_write(run_dir, record)
        position = _newest(config, run_dir)
    result = group.broadcast(position)
    assert isinstance(result, Position)
    return result


def _check_or_write(run_dir: Path, record: dict[str, object]) -> None:
    path = run_dir / "numerics.json"
    if path.exists():
        check_same(json.loads(path.read_text()), record)
    else:
        write_bytes(path, canonical_json(record))
    environment = canonical_json(environment_record())
    write_bytes(run_dir / "environment.json", environment)
    fields = {
        "numerics": sha256_hex(canonical_json(record)),
        "config": sha256_hex((run_dir / "config.json").read_bytes()),
        "environment": sha256_hex(environment),
    }
    write_bytes(run_dir / "record_fields.json", canonical_json(fields))


def _newest(config: RunConfig, run_dir: Path) -> Position:
    reconcile(run_dir)
    step = latest_complete_step(run_dir)
    if step is None:
        return Position(0, start_chain(config), None, fresh=True)
    record = next(r for r in Ledger(run_dir / "manifest.jsonl").records() if r["step"] == step)
    return Position(step, bytes.fromhex(record["order"]["chain"]), record["metrics"], fresh=False)
