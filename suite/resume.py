"""Where a run stands: lock, data, numerics and newest state, checked before any computing.

The newest complete state is a science checkpoint or, where one is later, a recovery checkpoint.
Either holds everything: weights, moments, step, order chain and the digest of the metrics log; the
schedule's place and every random draw are functions of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_manifest.manifest import Record
from checkpoints_manifest.numerics_breaks import FIELD, Change
from checkpoints_manifest.recovery import newest_recovery, recovery_dir
from checkpoints_manifest.store import (
    checkpoint_dir,
    latest_complete_step,
    ledger_of,
    load_files,
    reconcile,
)
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.datasets import verify_any
from data_pipeline.digests import chain_start
from data_pipeline.durable import write_bytes
from suite.comm import Group
from suite.config import RunConfig, dataset_dir
from suite.guard import ACCEPT_NUMERICS, check_ranks_agree, settle_numerics
from suite.lock import lock_run
from suite.numerics import check_environment, environment_record, numerics_record


@dataclass(frozen=True)
class Position:
    """Step and order chain that a run continues from; `fresh` when no checkpoint exists yet.

    `directory` and `record` are those of the state to load, `fields` what the next manifest records
    say about configuration, numerics and environment, `changes` the accepted changes of numerics
    that the next one has to list, `notes` what was passed over on the way, a line each.
    """

    step: int
    chain: bytes
    metrics_sha256: str | None
    fresh: bool
    directory: Path | None
    record: Record | None
    fields: Mapping[str, Any]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Weights and moments of the state, every digest verified; None at the start of a run.

        Raises:
            CheckpointError: a file is missing, truncated or changed.
        """
        if self.directory is None or self.record is None:
            return None
        weights, moments, _ = load_files(self.directory, self.record)
        return weights, moments


def start_chain(config: RunConfig) -> bytes:
    """C_{-1} of a run."""
    data = config.data
    if data.index_digest is None:
        raise ValueError("data.index_digest is not set; build the data first (`tripod data build`)")
    return chain_start(
        data.index_digest, data.seq_len, data.batch_size, data.order, data.seed, data.overlay
    )


def prepare_run(
    config: RunConfig, run_dir: Path, group: Group, quantiser: str, accept: tuple[str, ...] = ()
) -> Position:
    """Checks everything that could change a bit, then says where to continue; all ranks call it.

    Args:
        config: the run.
        run_dir: its directory.
        group: the ranks.
        quantiser: which form of the quantiser runs here.
        accept: changes that the user accepts by name; "numerics" is the one that matters here.

    Raises:
        NumericsError, RunLockedError, DatasetError, CheckpointError: before anything was written.
    """
    numerics = config.numerics
    record = numerics_record(numerics.profile, numerics.precision, quantiser)
    check_environment(record)
    check_ranks_agree(record, group)
    position = None
    if group.rank == 0:
        lock_run(run_dir)
        verify_any(dataset_dir(config, run_dir), config.data.index_digest)
        position = _position(config, run_dir, record, ACCEPT_NUMERICS in accept)
    result = group.broadcast(position)
    assert isinstance(result, Position)
    return result


def _position(
    config: RunConfig, run_dir: Path, numerics: dict[str, Any], accepted: bool
) -> Position:
    notes = reconcile(run_dir)
    directory, record, passed_over = newest_state(run_dir)
    in_ledger = record is None or record in ledger_of(run_dir).records()
    pending = () if record is None or in_ledger else tuple(record.get(FIELD, ()))
    changes = settle_numerics(run_dir, record, pending, numerics, accepted)
    fields = _write_fields(run_dir, numerics)
    if record is None:
        start = start_chain(config)
        return Position(0, start, None, True, None, None, fields, (), (*notes, *passed_over))
    return Position(
        step=int(record["step"]),
        chain=bytes.fromhex(record["order"]["chain"]),
        metrics_sha256=record["metrics"],
        fresh=False,
        directory=directory,
        record=record,
        fields=fields,
        changes=tuple(changes),
        notes=(*notes, *passed_over),
    )


def newest_state(run_dir: Path) -> tuple[Path | None, Record | None, list[str]]:
    """Directory and record of the newest complete state of either kind, verified.

    Returns:
        (directory, record, a line for each recovery checkpoint that was passed over); None, None at
        the start of a run.

    Raises:
        CheckpointError: it would be a science checkpoint, which is damaged or gone.
    """
    record, passed_over = newest_recovery(run_dir)
    if record is not None:
        return recovery_dir(run_dir, record["step"]), record, passed_over
    step = latest_complete_step(run_dir)
    if step is None:
        return None, None, passed_over
    record = next(r for r in ledger_of(run_dir).records() if r["step"] == step)
    return checkpoint_dir(run_dir, step), record, passed_over


def _write_fields(run_dir: Path, numerics: dict[str, Any]) -> dict[str, str]:
    environment = canonical_json(environment_record())
    write_bytes(run_dir / "environment.json", environment)
    return {
        "numerics": sha256_hex(canonical_json(numerics)),
        "config": sha256_hex((run_dir / "config.json").read_bytes()),
        "environment": sha256_hex(environment),
    }
