"""Reading a published run: what main states, and one revision's files, verified.

Nothing that a server says is believed: ledger and `commits.jsonl` are chained and must agree, every
file has the size and SHA-256 that they state, tensors have the roots of the ledger. Only then does
a file leave the directory it was downloaded into. huggingface_hub itself compares sizes only.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.export import link_or_copy
from checkpoints_manifest.manifest import Ledger, Record
from checkpoints_manifest.published import (
    COMMITS,
    LEDGER,
    PUBLICATION,
    CommitLine,
    parse_commits,
    parse_publication,
)
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import SIDE_FILES, check_logs, check_side_files, read_config
from checkpoints_manifest.store import MODEL, OPTIMIZER, STATE
from checkpoints_manifest.tensor_digest import file_leaves, tensors_root
from data_pipeline.canonical import sha256_file, sha256_hex
from data_pipeline.durable import free_bytes

_PUBLICATION_BYTES, _MAIN_FILE_BYTES = 1 << 20, 256 << 20
STATE_FILES = (OPTIMIZER, STATE)


@dataclass(frozen=True)
class Publication:
    """What main states of a run, after checking that it agrees with itself.

    Attributes:
        commit: of main, which all of it was read from.
        records: the ledger.
        lines: where each step lies; a line per record.
        side_files: name to bytes: configuration, numerics, environment, order, metrics.
        ledger: bytes of the ledger.
    """

    commit: str
    records: list[Record]
    lines: list[CommitLine]
    side_files: Mapping[str, bytes]
    ledger: bytes

    @property
    def digest(self) -> str:
        """Digest of the last line, which covers every file of every step."""
        return self.lines[-1].digest


def read_publication(
    remote: Remote, scratch: Path, revision: str = "main", expect: str | None = None
) -> Publication:
    """Reads main, pinned to one commit.

    Args:
        remote: a model repository.
        scratch: an existing directory for the files that are checked.
        revision: main, a tag, or 40 hexadecimal digits.
        expect: the digest that the last line must have (the card names it).

    Raises:
        CheckpointError: no such repository, nothing published, a broken chain, other bytes than
        stated, or another digest than expected.
    """
    commit = _commit_of(remote, revision)
    where = f"{remote.url} {revision}"
    data = remote.read(commit, PUBLICATION, _PUBLICATION_BYTES)
    stated = parse_publication(data, f"{where} {PUBLICATION}")
    names = [LEDGER, COMMITS, *(f"run/{name}" for name in SIDE_FILES)]
    found = {name: _read(remote, commit, name, stated, where) for name in names}
    (scratch / LEDGER).write_bytes(found[LEDGER])
    records = Ledger(scratch / LEDGER).records()
    lines = parse_commits(found[COMMITS], records, f"{where} {COMMITS}")
    if not records or len(lines) != len(records):
        raise CheckpointError(
            f"{where}: expected a line in {COMMITS} for each record of the ledger, found "
            f"{len(lines)} for {len(records)}: the run was not published to its end. Ask its "
            "publisher to run `tripod publish` again"
        )
    if expect is not None and lines[-1].digest != expect:
        raise CheckpointError(
            f"{where}: expected a publication with digest {expect}, found {lines[-1].digest}: it "
            "is another one, or was changed. Ask its publisher, or give the tag of the release"
        )
    side_files = {name: found[f"run/{name}"] for name in SIDE_FILES}
    for name, content in side_files.items():
        (scratch / name).write_bytes(content)
    check_side_files(scratch, records[-1])
    check_logs(scratch, read_config(scratch), records[-1])
    return Publication(commit, records, lines, side_files, found[LEDGER])


def _commit_of(remote: Remote, revision: str) -> str:
    refs = remote.refs()
    if refs is None:
        raise CheckpointError(
            f"{remote.url}: no such repository, or it is private and this login may not read it"
        )
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    commit = refs.tags.get(revision) or refs.branches.get(revision)
    if commit is None:
        names = ", ".join(sorted({*refs.tags, "main"})[:20])
        raise CheckpointError(f"{remote.url} has no revision {revision}; releases: {names}")
    return commit


def _read(
    remote: Remote, commit: str, name: str, stated: Mapping[str, tuple[int, str]], where: str
) -> bytes:
    if name not in stated or stated[name][0] > _MAIN_FILE_BYTES:
        raise CheckpointError(
            f"{where}: {PUBLICATION} must list {name}, with at most {_MAIN_FILE_BYTES:,} bytes; it "
            f"states {stated.get(name)}"
        )
    size, sha256 = stated[name]
    # Twice: what a proxy says for a moment is not what the Hub holds.
    for _ in range(2):
        data = remote.read(commit, name, size)
        if (len(data), sha256_hex(data)) == (size, sha256):
            return data
    raise CheckpointError(
        f"{where}: {name}: expected {size} bytes with sha256 {sha256}, found {len(data)} with "
        f"{sha256_hex(data)}; the Hub serves other bytes than were published"
    )


def choose_steps(wanted: str, available: Sequence[int]) -> tuple[int, ...]:
    """Steps of `0,512,1000`, `0:1000` (ends included, either may be left out), `all`; or a mixture.

    Raises:
        CheckpointError: not of that form, or a step that is not published.
    """
    chosen: set[int] = set()
    for part in wanted.split(","):
        match = re.fullmatch(r"(all)|([0-9]{1,18})|([0-9]{0,18}):([0-9]{0,18})", part.strip())
        if match is None:
            raise CheckpointError(
                f"expected steps such as 0,512,1000 or 0:1000 or all, found {wanted!r}"
            )
        if match[2] is not None and int(match[2]) not in available:
            raise CheckpointError(
                f"step {match[2]} is not published; the steps are: {', '.join(map(str, available))}"
            )
        low = int(match[2] or match[3] or 0)
        high = int(match[2] or match[4] or available[-1])
        chosen.update(step for step in available if low <= step <= high)
    if not chosen:
        raise CheckpointError(
            f"no published step is in {wanted!r}; they are: {', '.join(map(str, available))}"
        )
    return tuple(sorted(chosen))


def wanted_files(line: CommitLine, with_state: bool) -> tuple[str, ...]:
    """Files of a revision that are downloaded.

    Raises:
        CheckpointError: state is wanted and was not published.
    """
    listed = [file.path for file in line.files]
    if with_state and (missing := [name for name in STATE_FILES if name not in listed]):
        raise CheckpointError(
            f"step {line.step} was published without {missing[0]}; only its weights can be pulled"
        )
    return tuple(name for name in listed if with_state or name not in STATE_FILES)


def check_space(lines: Iterable[tuple[CommitLine, Sequence[str]]], folder: Path) -> None:
    """Room for what will be downloaded.

    Raises:
        OSError: ENOSPC, before anything is downloaded.
    """
    needed = sum(file.size for line, names in lines for file in line.files if file.path in names)
    if (found := free_bytes(folder)) < needed:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: these steps need {needed:,} bytes, {found:,} are free; "
            "pull fewer steps, or `stream` them",
            str(folder),
        )


def fetch_revision(
    remote: Remote,
    line: CommitLine,
    record: Record,
    names: Sequence[str],
    folder: Path,
    present: Path | None = None,
) -> None:
    """Downloads files of a revision into `folder` and verifies bytes and tensors.

    Args:
        remote: a model repository.
        line: of `commits.jsonl`; pins the commit.
        record: of the ledger.
        names: files to have.
        folder: kept when something fails, so that complete files are not downloaded again.
        present: a directory that may hold some of the files already; they are verified too.

    Raises:
        CheckpointError: names the file that has other bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in line.files:
        if file.path not in names:
            continue
        target = folder / file.path
        held = present / file.path if present else None
        if held is not None and held.is_file() and not target.exists():
            link_or_copy(held, target)
        if target.is_file() and (target.stat().st_size, sha256_file(target)) == (
            file.size,
            file.sha256,
        ):
            continue
        # What huggingface_hub takes from its own cache may be damaged: the second time, afresh.
        for force in (False, True):
            target.unlink(missing_ok=True)
            remote.download(line.commit, file.path, file.size, folder, force)
            found = (target.stat().st_size, sha256_file(target))
            if found == (file.size, file.sha256):
                break
        else:
            target.unlink()
            raise CheckpointError(
                f"{remote.url} step{line.step}: {file.path}: expected size and sha256 "
                f"{(file.size, file.sha256)}, the Hub serves {found}; nothing of this step was "
                "taken. Tell its publisher"
            )
    _check_roots(record, folder, f"{remote.url} step{line.step}")


def _check_roots(record: Record, folder: Path, where: str) -> None:
    expected = {"weights": record["weights_root"]}
    found = {"weights": tensors_root(file_leaves(folder / MODEL))}
    if (folder / OPTIMIZER).exists():
        leaves = file_leaves(folder / OPTIMIZER)
        for kind, root in record["state_roots"].items():
            own = {name: leaf for name, leaf in leaves.items() if name.startswith(f"{kind}.")}
            expected[kind], found[kind] = root, tensors_root(own)
    for name, root in expected.items():
        if found[name] != root:
            raise CheckpointError(
                f"{where}: expected {name} with root {root}, found {found[name]}: its record "
                "states a file whose tensors are others. Nothing of this step was taken"
            )
