"""`tripod hub gc`: removes from a local Hub what nothing needs, and nothing else.

Kept: every snapshot that a ref names; every snapshot that a published `commits.jsonl` names; every
blob that a kept snapshot links to; every blob whose SHA-256 a ledger states (ledgers of runs that
the caller gives, and `manifest.jsonl` in kept snapshots). Removed: other snapshots and blobs, which
killed writers and removed refs leave behind, and temporary files. A ledger or ref that cannot be
read stops everything before anything is removed.

Writers hold the repository's lock, and so does this; readers need none: what they can reach is
never removed. A blob is a hard link to a run's file where the file system allows it; removing it
leaves the run's file alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Ledger, Record
from checkpoints_manifest.published import COMMITS, LEDGER, parse_commits
from data_pipeline.durable import fsync_directory

_COMMIT_DIGITS = 40
_GONE = ".tmp-gc-"


@dataclass(frozen=True)
class Garbage:
    """What was removed, or would be.

    Attributes:
        snapshots: directories that no ref and no commits.jsonl names.
        blobs: files that no kept snapshot and no ledger needs.
        temporary: what killed writers left.
        freed_bytes: of blobs that no other name holds.
    """

    snapshots: tuple[Path, ...]
    blobs: tuple[Path, ...]
    temporary: tuple[Path, ...]
    freed_bytes: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything, in the order of removal."""
        return self.temporary + self.snapshots + self.blobs


def collect_garbage(
    hub: LocalHub, repo_id: str, ledgers: Sequence[Path] = (), dry_run: bool = False
) -> Garbage:
    """Finds and removes what nothing needs of one repository.

    Args:
        hub: the local Hub.
        repo_id: org/name.
        ledgers: `manifest.jsonl` of runs whose files must stay.
        dry_run: only say what would be removed.

    Raises:
        CheckpointError: a ref, ledger or link that cannot be read, or no such repository; nothing
        was removed.
    """
    if not hub.repository(repo_id).is_dir():
        raise CheckpointError(f"{hub.root} holds no repository {repo_id}")
    with hub.lock(repo_id):
        garbage = _find(hub.repository(repo_id), ledgers)
        if not dry_run:
            for path in garbage.paths:
                _remove(path)
            for folder in ("refs", "snapshots", "blobs"):
                if (hub.repository(repo_id) / folder).exists():
                    fsync_directory(hub.repository(repo_id) / folder)
    return garbage


def _find(repository: Path, ledgers: Sequence[Path]) -> Garbage:
    places = ((repository / folder).glob(".*tmp-*") for folder in ("refs", "snapshots", "blobs"))
    temporary = sorted({*chain(*places), *repository.glob(f"{_GONE}*")})
    stated = {sha for path in ledgers for sha in _stated(_read(path))}
    reached = set(_commits_of_refs(repository))
    for commit in sorted(reached):
        snapshot = repository / "snapshots" / commit
        records = _read(snapshot / LEDGER) if (snapshot / LEDGER).exists() else []
        stated |= _stated(records)
        reached |= set(_commits_named(snapshot / COMMITS, records))
    folders = [p for p in sorted((repository / "snapshots").glob("*")) if p not in temporary]
    kept = [path for path in folders if path.name in reached]
    linked = {name for snapshot in kept for name in _links(snapshot)}
    blobs = [
        path
        for path in sorted((repository / "blobs").glob("*"))
        if path not in temporary and path.name not in linked | stated
    ]
    return Garbage(
        tuple(path for path in folders if path not in kept), tuple(blobs), tuple(temporary),
        sum(p.stat().st_size for p in blobs if p.is_file() and p.stat().st_nlink == 1),
    )  # fmt: skip


def _commits_of_refs(repository: Path) -> Iterator[str]:
    for ref in (repository / "refs").rglob("*"):
        if ref.is_dir() or ".tmp-" in ref.name:
            continue
        commit = ref.read_text(errors="replace").strip()
        if len(commit) != _COMMIT_DIGITS or set(commit) - set("0123456789abcdef"):
            raise CheckpointError(
                f"{ref}: expected a commit, found {commit!r:.100}; nothing was removed. Publish "
                "the revision again, or remove the ref by hand"
            )
        yield commit


def _read(path: Path) -> list[Record]:
    try:
        return Ledger(path).parse(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); nothing was removed") from error


def _stated(records: Sequence[Record]) -> set[str]:
    return {item["sha256"] for record in records for item in record["files"]}


def _commits_named(path: Path, records: list[Record]) -> list[str]:
    if not path.exists():
        return []
    return [line.commit for line in parse_commits(path.read_bytes(), records, str(path))]


def _links(snapshot: Path) -> Iterator[str]:
    """Names of the blobs that a snapshot needs."""
    for path in snapshot.rglob("*"):
        if path.is_symlink():
            yield path.readlink().name
        elif path.is_file():
            # A cache without links holds the file itself; it goes with its snapshot.
            yield path.name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Renamed first: a snapshot is there whole, or not at all.
        gone = path
        if not path.name.startswith(_GONE):
            gone = path.parent.parent / f"{_GONE}{path.name}"
            path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink()
