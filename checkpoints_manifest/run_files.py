"""What publishing reads of a run: ledger, configuration, tokenizer, logs; checked before use."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.exclusive import exclusive
from checkpoints_manifest.export import export_revision, link_or_copy
from checkpoints_manifest.manifest import Record
from checkpoints_manifest.store import MODEL, OPTIMIZER, STATE, checkpoint_dir, ledger_of
from data_pipeline.canonical import sha256_hex
from data_pipeline.digests import chain_over, chain_start, split_leaves

# Files of a run that a checker needs beside the checkpoints; in the model's repository, run/NAME.
SIDE_FILES = ("config.json", "numerics.json", "environment.json", "order.log", "metrics.jsonl")
ORDER_KEYS = ("index_digest", "seq_len", "batch_size", "order", "seed", "overlay")
# Logs that grow with batch size or hold wall times too: in the dataset's repository.
LOGS = ("order.log", "metrics.jsonl", "sequence_loss.f32", "timing.jsonl")


@dataclass(frozen=True)
class RunFiles:
    """A run that may be published.

    Attributes:
        directory: the run.
        dataset: directory of the dataset it read.
        records: the ledger, oldest first, at least one.
        config: `config.json`.
        tokenizer: bytes of the dataset's `tokenizer.json`.
        index: the dataset's `index.json`.
    """

    directory: Path
    dataset: Path
    records: list[Record]
    config: Mapping[str, Any]
    tokenizer: bytes
    index: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> RunFiles:
        """Reads and checks.

        Raises:
            CheckpointError: no checkpoint; side files that are not those of the newest record; a
            dataset or tokenizer that is not the one the run states.
        """
        records = ledger_of(directory).records()
        if not records:
            raise CheckpointError(f"{directory} holds no checkpoint; train the run first")
        check_side_files(directory, records[-1])
        config = read_config(directory)
        check_logs(directory, config, records[-1])
        try:
            # As `suite` resolves it: relative to the directory that holds the run.
            dataset = (directory.parent / config["data"]["dir"]).resolve()
            raw = (dataset / "index.json").read_bytes()
            index = json.loads(raw)
            tokenizer = (dataset / "tokenizer.json").read_bytes()
            expected = (records[-1]["order"]["index_digest"], index["tokenizer"]["sha256"])
            dict(config["rung"]["model"]["hf"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{directory}: its configuration or dataset cannot be read ({error!r}); publish "
                "from the directory where the run was trained"
            ) from error
        if (found := (sha256_hex(raw), sha256_hex(tokenizer))) != expected:
            raise CheckpointError(
                f"{dataset}: expected index.json and tokenizer.json with sha256 {expected}, found "
                f"{found}: this is not the dataset of {directory.name}"
            )
        return cls(directory, dataset, records, config, tokenizer, index)

    def export(self, record: Record, directory: Path, with_state: bool) -> None:
        """Fills a new directory with the files of a revision.

        Args:
            record: of the ledger.
            directory: created.
            with_state: also optimizer moments and trainer state.
        """
        checkpoint = checkpoint_dir(self.directory, record["step"])
        hf = dict(self.config["rung"]["model"]["hf"])
        export_revision(directory, checkpoint / MODEL, hf, self.tokenizer, record)
        for name in (OPTIMIZER, STATE) if with_state else ():
            link_or_copy(checkpoint / name, directory / name)

    def log_until(self, name: str, step: int) -> bytes:
        """A file of the run; of a log, what had been written when `step` was saved."""
        data = (self.directory / name).read_bytes()
        if name == "order.log":
            return data[: 32 * step]
        if name == "sequence_loss.f32":
            return data[: 4 * int(self.config["data"]["batch_size"]) * step]
        if name.endswith(".jsonl"):
            return b"".join(data.splitlines(keepends=True)[:step])
        return data

    def losses(self) -> list[tuple[int, float]]:
        """Step and training loss, of every logged update."""
        path = self.directory / "metrics.jsonl"
        rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [(row["step"], float(row["loss"])) for row in rows if "loss" in row]

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for a while, inside the run: weights are linked, within one file system."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".publish-") as path:
            yield Path(path)

    @contextmanager
    def one_publisher(self) -> Iterator[None]:
        """One publisher per run on this machine; clears what a killed one left.

        Raises:
            CheckpointError: another process publishes this run.
        """
        with exclusive(self.directory / "publish.lock", f"publishes {self.directory}"):
            for left in self.directory.glob(".publish-*"):
                shutil.rmtree(left)
            yield


def check_logs(directory: Path, config: Mapping[str, Any], record: Record) -> None:
    """Metrics and token order, up to a record, against its digests.

    Raises:
        CheckpointError: they are not those that the record was made from.
    """
    step = record["step"]
    try:
        start = chain_start(*(config["data"][key] for key in ORDER_KEYS))
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory / 'config.json'} does not name the token order: {error!r}"
        ) from error
    order = (directory / "order.log").read_bytes()[: 32 * step]
    lines = (directory / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:step]
    whole = len(order) == 32 * step and len(lines) == step
    chain = chain_over(start, split_leaves(order)) if whole else b""
    for name, expected, found in (
        ("order.log", record["order"]["chain"], chain.hex()),
        ("metrics.jsonl", record["metrics"], sha256_hex(b"".join(lines))),
    ):
        if found != expected:
            raise CheckpointError(
                f"{directory / name}: expected digest {expected} up to step {step}, as its record "
                f"says, found {found or 'fewer steps'}; restore the file from a copy"
            )


def read_config(directory: Path) -> Mapping[str, Any]:
    """`config.json` of a run.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    try:
        found = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{directory / 'config.json'} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{directory / 'config.json'} is not a JSON object")
    return found


def check_side_files(directory: Path, record: Record) -> None:
    """The run's side files are there, and those of a record.

    Raises:
        CheckpointError: one is missing or differs.
    """
    for name in SIDE_FILES:
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; restore it from a copy")
        key = name.removesuffix(".json")
        if name.endswith(".json") and sha256_hex(path.read_bytes()) != record[key]:
            raise CheckpointError(
                f"{path}: expected sha256 {record[key]} as in the record of step "
                f"{record['step']}, found {sha256_hex(path.read_bytes())}; restore the file"
            )
