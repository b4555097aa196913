"""`manifest-v1`: one canonical-JSON record per checkpoint, and the ledger that chains them.

Each record carries the digest of the one before it, so a changed byte anywhere breaks the chain
from there on. No two steps may share a weights root unless the record says why. Specification:
docs/spec/manifest.md; JSON Schema: manifest-v1.schema.json beside this file.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.versions import PRESENT, SCHEMA_FILES, version_of
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.durable import append_line

SCHEMA = PRESENT
Record = dict[str, Any]


@functools.cache
def _validator(version: str) -> Any:
    text = Path(__file__).with_name(SCHEMA_FILES[version]).read_text()
    return jsonschema.Draft202012Validator(json.loads(text))


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Validates a record against the JSON Schema of its version.

    Raises:
        CheckpointError: naming the first field that is wrong.
    """
    try:
        # First: JSON Schema takes 1.0 for an integer, canonical JSON does not.
        canonical_json(dict(record))
    except (TypeError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{where}: {problem}") from problem
    version = version_of(record, where)
    errors = sorted(_validator(version).iter_errors(record), key=lambda e: [*map(str, e.path)])
    if errors:
        field = ".".join(map(str, errors[0].path)) or "the record"
        raise CheckpointError(
            f"{where}: {field} is not as {version} wants it: {errors[0].message:.300}"
        )


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's canonical bytes, hex."""
    return sha256_hex(canonical_json(dict(record)))


def parse_record(data: bytes, where: str) -> Record:
    """A record from its canonical bytes (a ledger's line without its end, or a manifest.json).

    Raises:
        CheckpointError: not JSON, not `manifest-v1`, or not in canonical form.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON ({error}); restore it from a copy") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{where} is not a record; restore it from a copy")
    check_record(record, where)
    if canonical_json(record) != data:
        raise CheckpointError(f"{where} is not in canonical form; restore it from a copy")
    return record


@functools.lru_cache(maxsize=4096)
def _is_record(line: bytes) -> bool:
    # A ledger is read at every save and grows a line at a time: each line is validated once.
    try:
        parse_record(line, "")
    except CheckpointError:
        return False
    return True


class Ledger:
    """The chained records of a run, one line each, oldest first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> list[Record]:
        """Every record, after checking schema, canonical form, chain and order.

        Raises:
            CheckpointError: the line number, what was expected and what was found.
        """
        return self.parse(self.path.read_bytes()) if self.path.exists() else []

    def parse(self, data: bytes) -> list[Record]:
        """As `records`, of bytes that were read elsewhere."""
        *lines, torn = data.split(b"\n")
        records: list[Record] = []
        for number, line in enumerate(lines, start=1):
            where = f"{self.path} line {number}"
            record = json.loads(line) if _is_record(line) else parse_record(line, where)
            self.check_next(records, record, where)
            records.append(record)
        if torn:
            raise CheckpointError(
                f"{self.path} line {len(lines) + 1} is torn: it has no end; the process died while "
                "writing it. Resume the run, which mends the ledger from the checkpoint's own "
                "manifest.json"
            )
        return records

    def mend_torn_line(self) -> bool:
        """Removes a last line without an end; returns whether there was one."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole == len(data):
            return False
        with self.path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
        return True

    def check_next(self, records: Sequence[Record], record: Record, where: str) -> None:
        """Whether a record may follow: chain, rising steps, no weights twice without a reason.

        Raises:
            CheckpointError: it may not.
        """
        previous = record_digest(records[-1]) if records else None
        if record["previous"] != previous:
            raise CheckpointError(
                f"{where} (step {record['step']}): the ledger's chain is broken: expected "
                f"previous {previous}, found "
                f"{record['previous']}; restore the ledger from a copy"
            )
        if records and record["step"] <= records[-1]["step"]:
            raise CheckpointError(
                f"{where}: step {record['step']} does not follow step {records[-1]['step']}"
            )
        same = [r["step"] for r in records if r["weights_root"] == record["weights_root"]]
        if same and "same_weights_reason" not in record:
            raise CheckpointError(
                f"{where}: step {record['step']} has the weights of step {same[0]} (root "
                f"{record['weights_root']}) and "
                "gives no same_weights_reason; two steps do not share weights by accident"
            )

    def append(self, record: Record) -> None:
        """Appends a record durably after all checks."""
        where = f"{self.path} (new record)"
        check_record(record, where)
        self.check_next(self.records(), record, where)
        append_line(self.path, canonical_json(record))
