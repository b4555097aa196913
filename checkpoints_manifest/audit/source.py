"""Snapshots of repositories: from a Hub over HTTP, or from a local Hub's directory.

From a Hub: its refs, the tree and the commit title of each revision, and Tripod's ledger on main;
`details` adds the small JSON files (configurations, tokenizer settings, shard indices), one of each
digest. No weights are downloaded. From a directory in the cache layout: names of links and blobs;
what lies in the blobs is not hashed (`tripod verify` and `pull` do that).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from checkpoints_manifest.audit.drift import CONFIG, TOKENIZER
from checkpoints_manifest.audit.ledger import SIDE_FILES
from checkpoints_manifest.audit.names import STEP_LIKE
from checkpoints_manifest.audit.snapshot import GONE, Files, RepoSnapshot
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.hub_answers import Refs, RemoteFile
from checkpoints_manifest.published import BRANCH

_MAX_SMALL, _MAX_SIDE = 4 << 20, 64 << 20
# A tokenizer.json has megabytes and says nothing in a message.
_DETAILS = {*CONFIG, *TOKENIZER} - {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"}


class Metadata(Protocol):
    """What an audit asks of a Hub; `remote.Remote` is one."""

    repo_id: str

    def refs(self) -> Refs | None:
        """Branches and tags; None where there is no such repository."""

    def tree(self, commit: str) -> dict[str, RemoteFile]:
        """Files of a commit."""

    def title(self, revision: str) -> str:
        """Title of the newest commit."""

    def history(self, revision: str) -> list[tuple[str, datetime]]:
        """Commits of a branch, oldest first, with their dates."""

    def read(self, commit: str, path: str, max_bytes: int) -> bytes:
        """A small file."""


def snapshot_remote(
    remote: Metadata, details: bool = False, progress: Callable[[str], object] = str
) -> RepoSnapshot:
    """Reads the metadata of a repository on a Hub.

    Args:
        remote: the repository.
        details: also read small JSON files, so that drift is explained and indices are checked.
        progress: called with the name of each revision before it is read.

    Raises:
        CheckpointError: there is no such repository, or the Hub's answers cannot be used.
    """
    refs = remote.refs()
    if refs is None:
        raise CheckpointError(f"there is no repository {remote.repo_id}, or not for this login")
    # Other tags name releases, which are some step or main once more.
    tags = {name: commit for name, commit in refs.tags.items() if STEP_LIKE.fullmatch(name)}
    commits = {**tags, **refs.branches}
    trees: dict[str, Files] = {}
    titles: dict[str, str] = {}
    for name, commit in commits.items():
        progress(name)
        if commit not in trees:
            found = remote.tree(commit)
            trees[commit] = {path: (f.size, f.sha256 or f.blob) for path, f in found.items()}
            titles[commit] = remote.title(commit)
    revisions = {name: trees[commit] for name, commit in commits.items()}
    texts: dict[str, bytes] = {}
    for name, path, limit in _wanted(revisions, details):
        size, digest = revisions[name][path]
        if digest not in texts and size <= limit:
            texts[digest] = remote.read(commits[name], path, limit)
    history = remote.history(BRANCH) if BRANCH in refs.branches else []
    return RepoSnapshot(
        remote.repo_id, revisions, commits,
        {name: titles[commit] for name, commit in commits.items()}, texts,
        tuple(commit for commit, _ in history),
    )  # fmt: skip


def snapshot_local(root: Path, repo_id: str) -> RepoSnapshot:
    """Reads a repository of a local Hub (cache layout); all small files are read.

    Raises:
        CheckpointError: there is no such repository.
    """
    repository = LocalHub(root).repository(repo_id)
    if not (repository / "refs").is_dir():
        raise CheckpointError(f"{root} holds no repository {repo_id}")
    revisions: dict[str, Files] = {}
    commits, texts = {}, {}
    for ref in sorted((repository / "refs").rglob("*")):
        if not ref.is_file() or ".tmp-" in ref.name:
            continue
        name = ref.relative_to(repository / "refs").as_posix()
        commit = ref.read_text(errors="replace").strip()
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise CheckpointError(f"{ref}: expected a commit, found {commit!r:.100}")
        commits[name] = commit
        revisions[name] = _local_files(repository / "snapshots" / commit)
    for name, path, limit in _wanted(revisions, details=True):
        size, digest = revisions[name][path]
        if digest not in texts and 0 <= size <= limit:
            texts[digest] = (repository / "snapshots" / commits[name] / path).read_bytes()
    return RepoSnapshot(repo_id, revisions, commits, {}, texts)


def local_repositories(root: Path) -> list[str]:
    """Models below a local Hub's directory, as org/name."""
    names = (path.name.removeprefix("models--") for path in root.glob("models--*--*"))
    return sorted(name.replace("--", "/", 1) for name in names)


def _local_files(snapshot: Path) -> Files:
    found = {}
    for path in sorted(snapshot.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        # A blob's name is its digest; the link says it even where the blob is gone.
        digest = path.readlink().name if path.is_symlink() else ""
        size = path.stat().st_size if path.exists() else GONE
        found[path.relative_to(snapshot).as_posix()] = (size, digest)
    return found


def _wanted(revisions: Mapping[str, Files], details: bool) -> list[tuple[str, str, int]]:
    """Revision, path and size limit of the files whose content is read."""
    # Ledger and commits always: without them nothing else on main can be judged.
    side = SIDE_FILES if details else SIDE_FILES[:2]
    main = [("main", path, _MAX_SIDE) for path in side if path in revisions.get("main", {})]
    if not details:
        return main
    return main + [
        (name, path, _MAX_SMALL)
        for name, files in revisions.items()
        for path in files
        if path in _DETAILS or path.endswith(".index.json")
    ]
