"""One checkpoint from memory to disk: complete or absent, read back, then entered into the ledger.

A checkpoint is written into a temporary directory on the same file system (free space checked
before the first byte, each file's space reserved before its own), synced, read back and compared
byte for byte with memory, digested, renamed, and then entered into the ledger. The reading back
sees what the operating system holds; it is no test of the medium after a power cut.

`Staged` is what stands between training and writing: memory that `fill` copies the state into.
`store.save_checkpoint` fills and writes in one call, `async_store` fills in the trainer's thread
and writes in its own, so both write the same bytes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import SCHEMA, Ledger, Record, check_record, record_digest
from checkpoints_manifest.tensor_digest import FileDigests, file_digests, tensors_root
from checkpoints_manifest.tensor_image import TensorImage, shapes_of
from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from data_pipeline.durable import free_bytes, publish_directory, write_bytes

if TYPE_CHECKING:
    import torch

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "trainer_state.json", "manifest.json",
)  # fmt: skip
# Science checkpoints, kept for good and named by the ledger; and those that only serve a resume.
CHECKPOINTS, RECOVERY = "checkpoints", "recovery"
MOMENTS = ("exp_avg", "exp_avg_sq")
TEMPORARY = ".tmp-"
# Left free beside the tensors, for JSON, the ledger and the logs.
_SPARE_BYTES = 1 << 20
_COMPUTED = ("schema", "step", "files", "weights_root", "state_roots", "previous")


@dataclass
class Staged:
    """The state of one step in memory of its own, ready to be written.

    Made once per model with `of` and filled for every save.
    """

    model: TensorImage
    optimizer: TensorImage
    state: bytes = b""
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> Staged:
        """Memory for tensors of these names and shapes.

        Raises:
            ValueError: the moments are not those of the weights.
        """
        expected = {f"{kind}.{name}": t.shape for kind in MOMENTS for name, t in weights.items()}
        found = {name: t.shape for name, t in moments.items()}
        odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        if odd:
            raise ValueError(
                f"expected the moments of {len(weights)} weights: {odd[0]} has shape "
                f"{found.get(odd[0])}, expected {expected.get(odd[0])}"
            )
        return cls(TensorImage(shapes_of(weights)), TensorImage(shapes_of(moments)))

    def fill(
        self,
        weights: Mapping[str, torch.Tensor],
        moments: Mapping[str, torch.Tensor],
        trainer_state: Mapping[str, Any],
        fields: Mapping[str, Any],
    ) -> None:
        """Copies a state; afterwards the caller may change all of its arguments.

        Raises:
            ValueError: other tensors than the memory was made for, or a field that is computed.
            TypeError: a trainer state or field that canonical JSON cannot hold.
        """
        if twice := sorted(set(fields) & set(_COMPUTED)):
            raise ValueError(
                f"{twice[0]} is computed from the files, it is not the caller's to state"
            )
        self.state = canonical_json(dict(trainer_state))
        self.fields = json.loads(canonical_json(dict(fields)))
        self.model.copy_from(weights)
        self.optimizer.copy_from(moments)


def check_absent(run_dir: Path, kind: str, step: int) -> None:
    """Refuses to overwrite a checkpoint.

    Raises:
        CheckpointError: the step has one.
    """
    final = run_dir / kind / f"step{step}"
    if final.exists():
        raise CheckpointError(
            f"{final} exists and is never overwritten; resume the run (which enters it into the "
            f"ledger), or move it away"
        )


def write_checkpoint(run_dir: Path, kind: str, step: int, staged: Staged) -> Record:
    """Writes what is staged as `RUN/{kind}/step{N}`; one writer per run.

    Args:
        run_dir: the run directory.
        kind: `CHECKPOINTS`, entered into the ledger, or `RECOVERY`, which follows the ledger (its
        `previous` is the newest record) but is not in it.
        step: updates done.
        staged: the state.

    Returns:
        The record.

    Raises:
        OSError: the file system refused; the temporary directory is gone.
        CheckpointError: read back other bytes, or the record may not follow the ledger.
    """
    check_absent(run_dir, kind, step)
    final = run_dir / kind / f"step{step}"
    final.parent.mkdir(parents=True, exist_ok=True)
    _check_space(final, len(staged.model.data) + len(staged.optimizer.data))
    temporary = final.parent / f"{TEMPORARY}step{step}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write_bytes(temporary / MODEL, staged.model.data)
        write_bytes(temporary / OPTIMIZER, staged.optimizer.data)
        write_bytes(temporary / STATE, staged.state)
        record = _build_record(run_dir, step, temporary, staged)
        write_bytes(temporary / MANIFEST, canonical_json(record))
        publish_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if kind == CHECKPOINTS:
        ledger_of(run_dir).append(record)
    return record


def ledger_of(run_dir: Path) -> Ledger:
    """The ledger of a run."""
    return Ledger(run_dir / "manifest.jsonl")


def _check_space(final: Path, tensor_bytes: int) -> None:
    needed, found = tensor_bytes + _SPARE_BYTES, free_bytes(final.parent)
    if found < needed:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: a checkpoint needs {needed:,} bytes, found {found:,}; "
            "nothing was written: free some space and resume",
            str(final),
        )


def _build_record(run_dir: Path, step: int, directory: Path, staged: Staged) -> Record:
    records = ledger_of(run_dir).records()
    model = file_digests(directory / MODEL, same_as=staged.model.data)
    optimizer = file_digests(directory / OPTIMIZER, same_as=staged.optimizer.data)
    record: Record = {
        **staged.fields,
        "schema": SCHEMA,
        "step": step,
        "files": [
            _listed(MODEL, model), _listed(OPTIMIZER, optimizer), _state_file(directory, staged),
        ],
        "weights_root": tensors_root(model.leaves),
        "state_roots": {kind: moment_root(optimizer.leaves, kind) for kind in MOMENTS},
        "previous": record_digest(records[-1]) if records else None,
    }  # fmt: skip
    where = f"checkpoint step{step}"
    check_record(record, where)
    ledger_of(run_dir).check_next(records, record, where)
    return record


def _listed(name: str, found: FileDigests) -> dict[str, Any]:
    return {"path": name, "size": found.size, "sha256": found.sha256}


def _state_file(directory: Path, staged: Staged) -> dict[str, Any]:
    item = describe_file(directory / STATE)
    if item["sha256"] != (expected := sha256_hex(staged.state)):
        raise CheckpointError(
            f"{directory / STATE}: read back sha256 {item['sha256']}, expected {expected}: the "
            "disk or memory of this machine changed bytes; the checkpoint was not published, "
            "earlier ones are untouched"
        )
    return item


def describe_file(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file, as records list them."""
    return {"path": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}


def moment_root(leaves: Mapping[str, bytes], kind: str) -> str:
    """Root of one moment, `exp_avg` or `exp_avg_sq`, from all leaves of an optimizer file."""
    return tensors_root(
        {name: leaf for name, leaf in leaves.items() if name.startswith(f"{kind}.")}
    )
