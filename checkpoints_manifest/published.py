"""What lies beside the checkpoints on a Hub: `commits.jsonl` and `publication.json` on main.

`commits.jsonl` (`commits-v1`) says for every published step which commit holds it and which bytes
each of its files has. Its lines are chained like the ledger's, each names the digest of its ledger
record, so the digest of the last line covers every weight, configuration and tokenizer of the
suite's rung. `publication.json` (`publication-v1`) lists the files of main with their SHA-256. A
commit cannot name itself: that is why both lie on main and not in the steps' own commits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.gitobjects import blob_id, lfs_pointer
from checkpoints_manifest.hub_answers import RemoteFile
from checkpoints_manifest.manifest import Record, record_digest
from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex

COMMITS, PUBLICATION, LEDGER = "commits.jsonl", "publication.json", "manifest.jsonl"
BRANCH = "checkpoints"
_NAME = re.compile(r"(?!\.git$)(?!\.{1,2}$)[A-Za-z0-9_.][A-Za-z0-9._-]{0,200}")
_HEX = {40: re.compile("[0-9a-f]{40}"), 64: re.compile("[0-9a-f]{64}")}


@dataclass(frozen=True)
class FileFact:
    """A published file: `blob` is the id that git has for it, its LFS pointer's for an object."""

    path: str
    size: int
    sha256: str
    blob: str

    @property
    def is_object(self) -> bool:
        """Whether git holds a pointer, and the store of large files the bytes."""
        return self.blob == blob_id(lfs_pointer(self.sha256, self.size))

    def is_on(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub states the same file."""
        if remote is None or remote.size != self.size:
            return False
        return remote.blob == self.blob and remote.sha256 in (None, self.sha256)


@dataclass(frozen=True)
class CommitLine:
    """One line of `commits.jsonl`: where a step lies, and its files."""

    step: int
    record: str
    weights_root: str
    commit: str
    files: tuple[FileFact, ...]
    previous: str | None

    def to_bytes(self) -> bytes:
        """The line without its end."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        files = [vars(file) for file in self.files]
        return canonical_json({**fields, "schema": "commits-v1", "files": files})

    @property
    def digest(self) -> str:
        """SHA-256 of the line."""
        return sha256_hex(self.to_bytes())


def fact_of(
    path: Path, name: str, remote: RemoteFile | None, sha256: str | None = None
) -> FileFact:
    """A local file as the Hub states it, or as it would: large ones as LFS objects.

    Args:
        path: the file.
        name: its path in the repository.
        remote: what the Hub says of it; None: assume an object where the name says so.
        sha256: of the file, where it has just been computed.
    """
    size = path.stat().st_size
    digest = sha256 or sha256_file(path)
    large = remote.sha256 is not None if remote else path.suffix == ".safetensors"
    blob = blob_id(lfs_pointer(digest, size) if large else path.read_bytes())
    return FileFact(name, size, digest, blob)


def parse_commits(data: bytes, records: Sequence[Record], where: str) -> list[CommitLine]:
    """The lines of `commits.jsonl`, checked against the ledger.

    Raises:
        CheckpointError: a line is torn, malformed, out of chain, or not of the ledger's record.
    """
    *texts, torn = data.split(b"\n")
    if torn:
        raise CheckpointError(f"{where} line {len(texts) + 1} is torn: it has no end")
    by_step = {record["step"]: record for record in records}
    lines: list[CommitLine] = []
    for number, text in enumerate(texts, start=1):
        line = _parse_line(text, f"{where} line {number}")
        record = by_step.get(line.step)
        expected = (
            lines[-1].digest if lines else None,
            record_digest(record) if record else "no record of this step",
            record["weights_root"] if record else None,
        )
        found = (line.previous, line.record, line.weights_root)
        for name, want, have in zip(
            ("previous", "record", "weights_root"), expected, found, strict=True
        ):
            if want != have:
                raise CheckpointError(
                    f"{where} line {number} (step {line.step}): expected {name} {want}, found "
                    f"{have}: it does not belong to this ledger"
                )
        if lines and line.step <= lines[-1].step:
            raise CheckpointError(f"{where} line {number}: step {line.step} does not rise")
        _check_record_files(line, by_step[line.step], f"{where} line {number}")
        lines.append(line)
    return lines


def _check_record_files(line: CommitLine, record: Record, where: str) -> None:
    """The record's files, as far as they are published, are those of the line."""
    listed = {file.path: file for file in line.files}
    stated = {item["path"]: (item["size"], item["sha256"]) for item in record["files"]}
    manifest = canonical_json(dict(record))
    stated["checkpoint_manifest.json"] = (len(manifest), sha256_hex(manifest))
    for path, expected in stated.items():
        file = listed.get(path)
        if file is None and path in ("model.safetensors", "checkpoint_manifest.json"):
            raise CheckpointError(f"{where}: {path} is not listed")
        if file is not None and (file.size, file.sha256) != expected:
            raise CheckpointError(
                f"{where}: expected {path} with size and sha256 {expected}, found "
                f"{(file.size, file.sha256)}"
            )


def _parse_line(text: bytes, where: str) -> CommitLine:
    fields = _object(text, "commits-v1", where)
    try:
        line = CommitLine(
            step=_count(fields["step"]),
            record=_hex(fields["record"], 64),
            weights_root=_hex(fields["weights_root"], 64),
            commit=_hex(fields["commit"], 40),
            files=_files(fields["files"]),
            previous=None if fields["previous"] is None else _hex(fields["previous"], 64),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is not of commits-v1: {error}") from error
    if line.to_bytes() != text:
        raise CheckpointError(f"{where} has other fields than commits-v1, or is not canonical")
    return line


def publication_bytes(files: Mapping[str, tuple[int, str]]) -> bytes:
    """`publication.json` from path to (size, sha256) of the other files of main."""
    listed = [
        {"path": path, "size": size, "sha256": sha256}
        for path, (size, sha256) in sorted(files.items())
    ]
    return canonical_json({"schema": "publication-v1", "files": listed}) + b"\n"


def parse_publication(data: bytes, where: str) -> dict[str, tuple[int, str]]:
    """Path to (size, sha256), of `publication.json`.

    Raises:
        CheckpointError: it is not that, or names a path outside the repository.
    """
    fields = _object(data.removesuffix(b"\n"), "publication-v1", where)
    try:
        listed = [
            (_path(item["path"]), _count(item["size"]), _hex(item["sha256"], 64))
            for item in fields["files"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is not of publication-v1: {error}") from error
    found = {path: (size, sha256) for path, size, sha256 in listed}
    if publication_bytes(found) != data:
        raise CheckpointError(f"{where} has other fields than publication-v1, or is not canonical")
    return found


def _object(text: bytes, schema: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON ({error})") from error
    if not isinstance(found, dict) or found.get("schema") != schema:
        raise CheckpointError(f"{where}: expected an object of schema {schema}")
    return found


def _files(value: Any) -> tuple[FileFact, ...]:
    facts = tuple(
        FileFact(_path(i["path"]), _count(i["size"]), _hex(i["sha256"], 64), _hex(i["blob"], 40))
        for i in value
    )
    if any("/" in fact.path for fact in facts):
        raise ValueError("a revision is a flat directory of files")
    if len({fact.path for fact in facts}) != len(facts):
        raise ValueError("a file is listed twice")
    return facts


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a whole number from 0 on, found {value!r:.100}")
    return value


def _hex(value: Any, digits: int) -> str:
    if type(value) is not str or not _HEX[digits].fullmatch(value):
        raise ValueError(f"expected {digits} hexadecimal digits, found {value!r:.100}")
    return value


def _path(value: Any) -> str:
    if type(value) is not str or not all(_NAME.fullmatch(part) for part in value.split("/")):
        raise ValueError(f"expected a path inside the repository, found {value!r:.100}")
    return value
