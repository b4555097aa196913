"""Checkpoints on disk: complete or absent, durable, verified as written.

Layout: `RUN/checkpoints/step{N}/{model,optimizer}.safetensors, trainer_state.json, manifest.json`,
and the ledger `RUN/manifest.jsonl`. Writing is `writing.py`, in the background `async_store.py`;
`RUN/recovery/` holds checkpoints that only serve a resume (`recovery.py`). A crash at any point
leaves complete-or-absent; `reconcile` clears the rest. Nothing here ever deletes a complete
checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Record, parse_record
from checkpoints_manifest.tensor_digest import file_digests, tensors_root
from checkpoints_manifest.writing import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    MOMENTS,
    OPTIMIZER,
    RECOVERY,
    STATE,
    TEMPORARY,
    Staged,
    check_absent,
    ledger_of,
    moment_root,
    write_checkpoint,
)
from data_pipeline.canonical import canonical_json, sha256_file
from data_pipeline.durable import fsync_directory, write_bytes

if TYPE_CHECKING:
    import torch

__all__ = [
    "CHECKPOINTS", "FILE_LEVELS", "MANIFEST", "MODEL", "OPTIMIZER", "RECOVERY", "STATE",
    "checkpoint_dir", "latest_complete_step", "ledger_of", "load_checkpoint", "load_files",
    "own_manifest", "reconcile", "rewind", "save_checkpoint", "steps_on_disk", "verify_checkpoint",
    "verify_files",
]  # fmt: skip

# How much of a checkpoint's files is looked at, cheapest first.
FILE_LEVELS = ("metadata", "bytes", "tensors")
_MOVE_AWAY = "move the directory away and resume from the checkpoint before it"
_REMEDY = (
    "restore the checkpoint from a copy, or `tripod rewind` the run to the one before and resume"
)


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where a step's checkpoint lives."""
    return run_dir / CHECKPOINTS / f"step{step}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    trainer_state: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> Record:
    """Writes checkpoint `step` and its ledger record.

    Args:
        run_dir: the run directory.
        step: updates done.
        weights: fp32 tensors by Hugging Face parameter name.
        moments: `exp_avg.<name>` and `exp_avg_sq.<name>`.
        trainer_state: small and canonical-JSON-able.
        fields: the record's fields other than files, roots and chain.

    Returns:
        The record.

    Raises:
        OSError: the file system refused (full disk): the temporary directory is gone, earlier
        checkpoints are untouched.
        CheckpointError: what was read back is not what was written, or the step exists with other
        content.
        ValueError: the moments are not those of the weights, or a tensor is not fp32.
    """
    check_absent(run_dir, CHECKPOINTS, step)
    staged = Staged.of(weights, moments)
    staged.fill(weights, moments, trainer_state, fields)
    return write_checkpoint(run_dir, CHECKPOINTS, step, staged)


def load_checkpoint(
    run_dir: Path, step: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """Weights, moments and trainer state of a checkpoint, after verifying every digest.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
    """
    return load_files(checkpoint_dir(run_dir, step), _record_of(run_dir, step))


def load_files(
    directory: Path, record: Record
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """As `load_checkpoint`, for a checkpoint that lies in any directory."""
    from safetensors.torch import load_file

    verify_files(directory, record)
    state = json.loads((directory / STATE).read_text())
    return load_file(directory / MODEL), load_file(directory / OPTIMIZER), state


def _record_of(run_dir: Path, step: int) -> Record:
    for record in ledger_of(run_dir).records():
        if record["step"] == step:
            return record
    raise CheckpointError(f"{run_dir / 'manifest.jsonl'} has no record of step {step}")


def verify_checkpoint(run_dir: Path, record: Record, level: str = "tensors") -> None:
    """Compares the files of one checkpoint with its record.

    Args:
        run_dir: the run directory.
        record: from the ledger.
        level: one of `FILE_LEVELS`: sizes; also sha256; also tensor roots.

    Raises:
        CheckpointError: naming the step, the file, expected and found.
    """
    verify_files(checkpoint_dir(run_dir, record["step"]), record, level)


def verify_files(
    directory: Path, record: Record, level: str = "tensors", with_state: bool = True
) -> None:
    """As `verify_checkpoint`, for any directory; without state, only the weights must be there."""
    where, listed = f"step{record['step']}", sorted(item["path"] for item in record["files"])
    if listed != sorted((MODEL, OPTIMIZER, STATE)):
        raise CheckpointError(
            f"{where}: expected the record to list {MODEL}, {OPTIMIZER} and {STATE}, "
            f"found {', '.join(listed)}; {_REMEDY}"
        )
    leaves = {}
    for item in record["files"]:
        path = directory / item["path"]
        if not with_state and path.name != MODEL and not path.exists():
            continue
        if not path.is_file():
            raise CheckpointError(f"{where}: {path} is missing; {_REMEDY}")
        _check_stated(where, path, "size", item["size"], path.stat().st_size)
        if level != "metadata":
            leaves[item["path"]] = _check_bytes(where, path, item["sha256"], level)
    if level != "tensors":
        return
    expected = {"weights_root": record["weights_root"], **record["state_roots"]}
    roots = {"weights_root": tensors_root(leaves[MODEL])}
    if OPTIMIZER in leaves:
        roots.update({kind: moment_root(leaves[OPTIMIZER], kind) for kind in MOMENTS})
    for key, value in roots.items():
        _check_stated(where, directory, key, expected[key], value)


def _check_bytes(where: str, path: Path, sha256: str, level: str) -> dict[str, bytes]:
    if level == "bytes" or path.name == STATE:
        _check_stated(where, path, "sha256", sha256, sha256_file(path))
        return {}
    try:
        found = file_digests(path)
    except CheckpointError:
        # A broken header: damage if the bytes are not those of the record.
        _check_stated(where, path, "sha256", sha256, sha256_file(path))
        raise
    _check_stated(where, path, "sha256", sha256, found.sha256)
    return found.leaves


def _check_stated(where: str, path: Path, key: str, expected: object, found: object) -> None:
    if found != expected:
        raise CheckpointError(
            f"{where}: {path}: expected {key} {expected}, found {found}; {_REMEDY}"
        )


def reconcile(run_dir: Path) -> list[str]:
    """Clears what a killed process left: temporary files, a torn line, an unentered checkpoint.

    Returns:
        What was done, a line each.

    Raises:
        CheckpointError: a checkpoint on disk is damaged, has no record of its own, or does not
        follow the ledger.
    """
    done = []
    folder = run_dir / CHECKPOINTS
    for parent in (folder, run_dir / RECOVERY):
        for path in sorted(parent.glob(f"{TEMPORARY}*")):
            shutil.rmtree(path)
            done.append(f"removed {path.name}")
    ledger = ledger_of(run_dir)
    if ledger.mend_torn_line():
        done.append("removed a torn last line from the ledger")
    known = {record["step"] for record in ledger.records()}
    for step in sorted(steps_on_disk(run_dir) - known):
        record = own_manifest(folder / f"step{step}" / MANIFEST)
        try:
            ledger.check_next(ledger.records(), record, f"step{step}")
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder / f'step{step}'} is not in the ledger and does not follow it ({error}). "
                f"If the ledger is whole, {_MOVE_AWAY}"
            ) from error
        verify_checkpoint(run_dir, record)
        ledger.append(record)
        done.append(f"entered step {step} into the ledger")
    return done


def rewind(run_dir: Path, step: int) -> Path:
    """Takes every checkpoint after `step` out of the run; training then continues from `step`.

    Nothing is deleted: directories and ledger go to `RUN/set-aside/<n>`, which is returned. The
    same steps trained again give the same bits, so the ledger's chain comes out as before.

    Raises:
        CheckpointError: `step` is not in the ledger.
    """
    ledger = ledger_of(run_dir)
    records = ledger.records()
    if step not in [record["step"] for record in records]:
        steps = ", ".join(str(record["step"]) for record in records)
        raise CheckpointError(f"{ledger.path} has no record of step {step}; its steps: {steps}")
    parent = run_dir / "set-aside"
    aside = parent / str(len(list(parent.glob("*"))) if parent.exists() else 0)
    aside.mkdir(parents=True)
    write_bytes(aside / ledger.path.name, ledger.path.read_bytes())
    for kind, prefix in ((RECOVERY, "recovery-"), (CHECKPOINTS, "")):
        for later in sorted(steps_on_disk(run_dir, kind), reverse=True):
            if later > step:
                source = run_dir / kind / f"step{later}"
                source.rename(aside / f"{prefix}step{later}")
    for folder in (aside, parent, run_dir, run_dir / CHECKPOINTS, run_dir / RECOVERY):
        if folder.exists():
            fsync_directory(folder)
    kept = [canonical_json(record) + b"\n" for record in records if record["step"] <= step]
    write_bytes(ledger.path, b"".join(kept))
    return aside


def own_manifest(path: Path) -> Record:
    """The record that lies in a checkpoint's directory.

    Raises:
        CheckpointError: it is missing, no record, or of another step than the directory's name.
    """
    try:
        record = parse_record(path.read_bytes(), str(path))
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"{path.parent} is not in the ledger and its {MANIFEST} is no record ({error}); "
            f"{_MOVE_AWAY}"
        ) from error
    if f"step{record['step']}" != path.parent.name:
        raise CheckpointError(f"{path} is not the record of {path.parent.name}; {_MOVE_AWAY}")
    return record


def steps_on_disk(run_dir: Path, kind: str = CHECKPOINTS) -> set[int]:
    """Steps that have a directory, complete or damaged, in the ledger or not."""
    names = (path.name for path in (run_dir / kind).glob("step*"))
    found = (re.fullmatch(r"step(0|[1-9][0-9]*)", name) for name in names)
    return {int(match.group(1)) for match in found if match}


def latest_complete_step(run_dir: Path) -> int | None:
    """The newest checkpoint, verified; None when there is none.

    Raises:
        CheckpointError: the newest checkpoint is damaged or gone; names what to do. Earlier ones
        are untouched.
    """
    records = ledger_of(run_dir).records()
    if not records:
        return None
    verify_checkpoint(run_dir, records[-1])
    return int(records[-1]["step"])
