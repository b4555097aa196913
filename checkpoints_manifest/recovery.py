"""Checkpoints that only serve a resume: `RUN/recovery/step{N}`, the newest few of them.

Same files and record as a science checkpoint, but not in the ledger, because they are deleted: a
record's `previous` is the newest ledger record at the time, so one that no longer follows the
ledger (after a rewind, or once a later science checkpoint stands) is never resumed from. Science
checkpoints in `RUN/checkpoints` are never touched here.

An older recovery checkpoint is removed only after a newer one was written, read back and synced.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Record
from checkpoints_manifest.store import own_manifest, steps_on_disk, verify_files
from checkpoints_manifest.writing import (
    MANIFEST,
    RECOVERY,
    TEMPORARY,
    Staged,
    ledger_of,
    write_checkpoint,
)
from data_pipeline.durable import fsync_directory


def recovery_dir(run_dir: Path, step: int) -> Path:
    """Where a step's recovery checkpoint lives."""
    return run_dir / RECOVERY / f"step{step}"


def write_recovery(run_dir: Path, step: int, staged: Staged, keep: int) -> Record:
    """Writes a recovery checkpoint, then removes all but the newest `keep`.

    Raises:
        ValueError: `keep` is below 1.
        OSError, CheckpointError: as `write_checkpoint`; nothing was removed.
    """
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 recovery checkpoint, found {keep}")
    record = write_checkpoint(run_dir, RECOVERY, step, staged)
    for old in sorted(steps_on_disk(run_dir, RECOVERY), reverse=True)[keep:]:
        _remove(recovery_dir(run_dir, old))
    return record


def _remove(path: Path) -> None:
    # Renamed first: a half-removed directory must not look like a checkpoint.
    gone = path.with_name(f"{TEMPORARY}old-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    fsync_directory(path.parent)
    shutil.rmtree(gone)


def newest_recovery(run_dir: Path) -> tuple[Record | None, list[str]]:
    """The newest recovery checkpoint later than the ledger's last, verified.

    Each gives the same bits when resumed from, so an older one may stand in for a damaged one; the
    caller reports what was passed over.

    Returns:
        (its record, or None; a line for each one passed over).
    """
    records, passed_over = ledger_of(run_dir).records(), []
    last = records[-1]["step"] if records else -1
    for step in sorted(steps_on_disk(run_dir, RECOVERY), reverse=True):
        if step <= last:
            break
        directory = recovery_dir(run_dir, step)
        try:
            record = own_manifest(directory / MANIFEST)
            ledger_of(run_dir).check_next(records, record, str(directory))
            verify_files(directory, record)
        except CheckpointError as error:
            passed_over.append(f"recovery checkpoint step{step} is not usable: {error}")
            continue
        return record, passed_over
    return None, passed_over


def remove_overtaken(run_dir: Path) -> list[int]:
    """Removes recovery checkpoints at or before the newest science checkpoint.

    Call it when that one is on disk and was read back: nothing resumes from these any more.

    Returns:
        The steps removed.
    """
    records = ledger_of(run_dir).records()
    last = records[-1]["step"] if records else -1
    gone = sorted(step for step in steps_on_disk(run_dir, RECOVERY) if step <= last)
    for step in gone:
        _remove(recovery_dir(run_dir, step))
    return gone
