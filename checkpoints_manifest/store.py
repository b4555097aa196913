"""Checkpoints on disk: complete or absent, durable, verified as written.

Layout: `RUN/checkpoints/step{N}/{model,optimizer}.safetensors, trainer_state.json, manifest.json`,
and the ledger `RUN/manifest.jsonl`. A checkpoint is written into a temporary directory on the same
file system (free space checked before the first byte, each file's space reserved before its own),
synced, read back and digested, renamed, and then entered into the ledger. A crash at any point
leaves complete-or-absent; `reconcile` clears the rest. Nothing here ever deletes a complete
checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import (
    SCHEMA,
    Ledger,
    Record,
    check_record,
    parse_record,
    record_digest,
)
from checkpoints_manifest.tensor_digest import file_leaves, tensor_leaf, tensors_root
from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from data_pipeline.durable import free_bytes, fsync_directory, publish_directory, write_bytes

if TYPE_CHECKING:
    import torch

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "trainer_state.json", "manifest.json",
)  # fmt: skip
_TEMPORARY = ".tmp-"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_MOVE_AWAY = "move the directory away and resume from the checkpoint before it"
# Left free beside the tensors, for headers, JSON, the ledger and the logs.
_SPARE_BYTES = 1 << 20


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where a step's checkpoint lives."""
    return run_dir / "checkpoints" / f"step{step}"


def ledger_of(run_dir: Path) -> Ledger:
    """The ledger of a run."""
    return Ledger(run_dir / "manifest.jsonl")


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
        weights: CPU tensors by Hugging Face parameter name.
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
        ValueError: the moments are not those of the weights, or a tensor is not fp32 on the CPU.
    """
    from safetensors.torch import save

    _check_tensors(weights, moments)
    final = checkpoint_dir(run_dir, step)
    if final.exists():
        raise CheckpointError(
            f"{final} exists and is never overwritten; resume the run (which enters it into the "
            f"ledger), or move it away"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    _check_space(final, sum(t.nbytes for t in (*weights.values(), *moments.values())))
    temporary = final.parent / f"{_TEMPORARY}step{step}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        # One metadata key at most: with two, safetensors writes them in random order.
        write_bytes(temporary / MODEL, save(dict(weights), metadata={"format": "pt"}))
        write_bytes(temporary / OPTIMIZER, save(dict(moments), metadata={"format": "pt"}))
        state = canonical_json(dict(trainer_state))
        write_bytes(temporary / STATE, state)
        record = _build_record(run_dir, step, temporary, fields)
        _check_read_back(temporary, weights, moments, state, record)
        write_bytes(temporary / MANIFEST, canonical_json(record))
        publish_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    ledger_of(run_dir).append(record)
    return record


def _check_space(final: Path, tensor_bytes: int) -> None:
    needed, found = tensor_bytes + _SPARE_BYTES, free_bytes(final.parent)
    if found < needed:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: a checkpoint needs {needed:,} bytes, found {found:,}; "
            "nothing was written: free some space and resume",
            str(final),
        )


def _check_tensors(
    weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]
) -> None:
    expected = {f"{kind}.{name}": t.shape for kind in _MOMENTS for name, t in weights.items()}
    found = {name: t.shape for name, t in moments.items()}
    odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if odd:
        raise ValueError(
            f"expected the moments of {len(weights)} weights: {odd[0]} has shape "
            f"{found.get(odd[0])}, expected {expected.get(odd[0])}"
        )
    for name, tensor in (*weights.items(), *moments.items()):
        if f"{tensor.dtype} {tensor.device}" != "torch.float32 cpu":
            raise ValueError(f"{name}: expected fp32 on cpu, found {tensor.dtype} {tensor.device}")


def _build_record(run_dir: Path, step: int, directory: Path, fields: Mapping[str, Any]) -> Record:
    records = ledger_of(run_dir).records()
    leaves = file_leaves(directory / OPTIMIZER)
    computed = {
        "schema": SCHEMA,
        "step": step,
        "files": [describe_file(directory / name) for name in (MODEL, OPTIMIZER, STATE)],
        "weights_root": tensors_root(file_leaves(directory / MODEL)),
        "state_roots": {kind: _moment_root(leaves, kind) for kind in _MOMENTS},
        "previous": record_digest(records[-1]) if records else None,
    }
    if twice := sorted(set(fields) & set(computed)):
        raise ValueError(f"{twice[0]} is computed from the files, it is not the caller's to state")
    record: Record = {**fields, **computed}
    where = f"checkpoint step{step}"
    check_record(record, where)
    ledger_of(run_dir).check_next(records, record, where)
    return record


def describe_file(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file, as records list them."""
    return {"path": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}


def _moment_root(leaves: Mapping[str, bytes], kind: str) -> str:
    return tensors_root(
        {name: leaf for name, leaf in leaves.items() if name.startswith(f"{kind}.")}
    )


def _check_read_back(
    directory: Path,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    state: bytes,
    record: Record,
) -> None:
    """Digests of what is in memory against those of the files that were written."""

    def leaves(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
        return {
            name: tensor_leaf(name, "F32", list(t.shape), t.contiguous().numpy().tobytes())
            for name, t in tensors.items()
        }

    held = leaves(moments)
    expected = [tensors_root(leaves(weights)), *(_moment_root(held, kind) for kind in _MOMENTS)]
    found = [record["weights_root"], *(record["state_roots"][kind] for kind in _MOMENTS)]
    expected.append(sha256_hex(state))
    found += [item["sha256"] for item in record["files"] if item["path"] == STATE]
    if expected != found:
        raise CheckpointError(
            f"{directory}: read back {found}, expected {expected}: the disk or memory of this "
            f"machine changed bytes; "
            "the checkpoint was not published, earlier ones are untouched"
        )


def load_checkpoint(
    run_dir: Path, step: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """Weights, moments and trainer state of a checkpoint, after verifying every digest.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
    """
    from safetensors.torch import load_file

    verify_checkpoint(run_dir, _record_of(run_dir, step))
    directory = checkpoint_dir(run_dir, step)
    state = json.loads((directory / STATE).read_text())
    return load_file(directory / MODEL), load_file(directory / OPTIMIZER), state


def _record_of(run_dir: Path, step: int) -> Record:
    for record in ledger_of(run_dir).records():
        if record["step"] == step:
            return record
    raise CheckpointError(f"{run_dir / 'manifest.jsonl'} has no record of step {step}")


def verify_checkpoint(run_dir: Path, record: Record) -> None:
    """Recomputes sizes, sha256 and tensor roots of one checkpoint.

    Raises:
        CheckpointError: naming the step, the file, expected and found.
    """
    directory = checkpoint_dir(run_dir, record["step"])
    remedy = (
        "restore the checkpoint from a copy, or `tripod rewind` the run to the one before "
        "and resume"
    )
    listed = sorted(item["path"] for item in record["files"])
    if listed != sorted((MODEL, OPTIMIZER, STATE)):
        raise CheckpointError(
            f"step{record['step']}: expected the record to list {MODEL}, {OPTIMIZER} and {STATE}, "
            f"found {', '.join(listed)}; {remedy}"
        )
    for item in record["files"]:
        path = directory / item["path"]
        if not path.is_file():
            raise CheckpointError(f"step{record['step']}: {path} is missing; {remedy}")
        found = describe_file(path)
        for key in ("size", "sha256"):
            if found[key] != item[key]:
                raise CheckpointError(
                    f"step{record['step']}: {path}: expected {key} {item[key]}, found "
                    f"{found[key]}; {remedy}"
                )
    leaves = file_leaves(directory / OPTIMIZER)
    expected = {"weights_root": record["weights_root"], **record["state_roots"]}
    roots = {"weights_root": tensors_root(file_leaves(directory / MODEL))}
    roots.update({kind: _moment_root(leaves, kind) for kind in _MOMENTS})
    for key, value in roots.items():
        if value != expected[key]:
            raise CheckpointError(
                f"step{record['step']}: {directory}: expected {key} {expected[key]}, found "
                f"{value}; {remedy}"
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
    folder = run_dir / "checkpoints"
    for path in sorted(folder.glob(f"{_TEMPORARY}*")) if folder.exists() else ():
        shutil.rmtree(path)
        done.append(f"removed {path.name}")
    ledger = ledger_of(run_dir)
    if ledger.mend_torn_line():
        done.append("removed a torn last line from the ledger")
    known = {record["step"] for record in ledger.records()}
    for step in sorted(steps_on_disk(run_dir) - known):
        record = _own_manifest(folder / f"step{step}" / MANIFEST)
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
    for later in sorted(steps_on_disk(run_dir), reverse=True):
        if later > step:
            checkpoint_dir(run_dir, later).rename(aside / f"step{later}")
    for folder in (aside, parent, run_dir, run_dir / "checkpoints"):
        fsync_directory(folder)
    kept = [canonical_json(record) + b"\n" for record in records if record["step"] <= step]
    write_bytes(ledger.path, b"".join(kept))
    return aside


def _own_manifest(path: Path) -> Record:
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


def steps_on_disk(run_dir: Path) -> set[int]:
    """Steps that have a directory, complete or damaged, in the ledger or not."""
    names = (path.name for path in (run_dir / "checkpoints").glob("step*"))
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
