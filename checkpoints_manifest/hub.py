"""A local Hub in the Hugging Face cache layout, for `from_pretrained(repo, revision="step64")`.

Blobs are content-addressed and shared between revisions (weights are hard links to the run's own
files); commits have real git ids, each step on the one before it; a revision's ref is written last,
atomically, so readers see a complete revision or none. Point `HF_HUB_CACHE` at the directory and
set `HF_HUB_OFFLINE=1`.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.export import link_or_copy
from checkpoints_manifest.gitobjects import blob_id, commit_id, lfs_pointer, tree_id
from data_pipeline.canonical import sha256_file
from data_pipeline.durable import fsync_directory, write_bytes

LFS_SUFFIXES = (".safetensors",)
_STEP = re.compile(r"step(?:0|[1-9][0-9]*)")


class LocalHub:
    """Revisions of models below one cache directory.

    One writer per repository at a time (they wait for each other); any number of readers.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def repository(self, repo_id: str) -> Path:
        """The cache folder of a model.

        Raises:
            CheckpointError: not of the form org/name.
        """
        # `--` would let two names share one folder; the Hub refuses it too.
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or ".." in repo_id or "--" in repo_id:
            raise CheckpointError(f"expected a repository org/name, found {repo_id!r}")
        return self.root / f"models--{repo_id.replace('/', '--')}"

    def revisions(self, repo_id: str) -> list[str]:
        """Published steps, ascending: `step0`, `step1` ..."""
        refs = self.repository(repo_id) / "refs"
        names = [path.name for path in refs.glob("step*")] if refs.exists() else []
        return sorted((n for n in names if _STEP.fullmatch(n)), key=_number)

    def commit_of(self, repo_id: str, revision: str) -> str | None:
        """The 40-hex commit that a revision names, or None."""
        if not re.fullmatch(r"\w[\w.-]*", revision):
            raise CheckpointError(f"expected the name of a revision, found {revision!r}")
        ref = self.repository(repo_id) / "refs" / revision
        return ref.read_text() if ref.exists() else None

    @contextmanager
    def lock(self, repo_id: str) -> Iterator[None]:
        """Holds a repository against other writers; readers need no lock. Waits for its turn."""
        path = self.root / ".locks" / self.repository(repo_id).name / "writer.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def publish(self, repo_id: str, revision: str, files: Path) -> str:
        """Publishes a directory of files as `step{N}` on top of the steps before it.

        Args:
            repo_id: org/name.
            revision: `step{N}`. Its parent is the nearest published step before it, so a step that
                is added between others (one that was recomputed) hangs beside the main line.
            files: flat directory.

        Returns:
            The commit id. Publishing the same files again changes nothing.

        Raises:
            CheckpointError: the revision exists with other files.
        """
        if not _STEP.fullmatch(revision):
            raise CheckpointError(f"expected a revision step{{N}}, found {revision!r}")
        with self.lock(repo_id):
            return self._publish(repo_id, revision, files)

    def _publish(self, repo_id: str, revision: str, files: Path) -> str:
        repository = self.repository(repo_id)
        before = [name for name in self.revisions(repo_id) if _number(name) != _number(revision)]
        existing = self.commit_of(repo_id, revision)
        earlier = [name for name in before if _number(name) < _number(revision)]
        # The nearest step before it; when this one was published, it may have been another of them.
        parents = [None, *(self.commit_of(repo_id, name) for name in earlier)]
        for folder in ("blobs", "refs", "snapshots"):
            (repository / folder).mkdir(parents=True, exist_ok=True)
            # What a killed writer left; in refs/ the Hub's own readers would take it for a ref.
            for left in (repository / folder).glob(".*tmp-*"):
                left.unlink()
        blobs, git_ids = _add_blobs(repository, files)
        message, tree = f"{repo_id} {revision}", tree_id(git_ids)
        commits = [commit_id(tree, parent, message) for parent in parents]
        if existing is not None and existing not in commits:
            raise CheckpointError(
                f"{repo_id}: {revision} is published as commit {existing}; the files given now "
                f"would be {commits[-1]}. "
                "A published step never changes: publish to another repository"
            )
        commit = existing or commits[-1]
        _add_snapshot(repository, commit, blobs)
        if existing is None:
            _set_ref(repository, revision, commit)
        return commit

    def set_main(self, repo_id: str, revision: str) -> None:
        """Points `main` at a published revision."""
        with self.lock(repo_id):
            commit = self.commit_of(repo_id, revision)
            if commit is None:
                raise CheckpointError(f"{repo_id} has no revision {revision}; publish it first")
            if self.commit_of(repo_id, "main") != commit:
                _set_ref(self.repository(repo_id), "main", commit)


def _number(revision: str) -> int:
    return int(revision.removeprefix("step"))


def _add_blobs(repository: Path, files: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Stores every file; returns two maps from its name: to the cache's blob, to git's blob id."""
    blobs, git_ids = {}, {}
    for path in sorted(files.iterdir()):
        if not path.is_file():
            raise CheckpointError(f"expected a flat directory of files, found {path}")
        if path.suffix in LFS_SUFFIXES:
            name = sha256_file(path)
            git_ids[path.name] = blob_id(lfs_pointer(name, path.stat().st_size))
            _link_blob(path, repository / "blobs" / name, name)
        else:
            data = path.read_bytes()
            name = git_ids[path.name] = blob_id(data)
            blob = repository / "blobs" / name
            if not blob.exists() or blob.read_bytes() != data:
                write_bytes(blob, data)
        blobs[path.name] = name
    return blobs, git_ids


def _link_blob(source: Path, blob: Path, sha256: str) -> None:
    if blob.exists() and (blob.samefile(source) or sha256_file(blob) == sha256):
        return
    temporary = blob.with_name(f".tmp-{blob.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    link_or_copy(source, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(blob)
    fsync_directory(blob.parent)


def _add_snapshot(repository: Path, commit: str, blobs: dict[str, str]) -> None:
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(exist_ok=True)
    for name, blob in blobs.items():
        link, target = snapshot / name, Path("..") / ".." / "blobs" / blob
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    fsync_directory(snapshot)
    fsync_directory(snapshot.parent)


def _set_ref(repository: Path, name: str, commit: str) -> None:
    # No newline: with one, hf_hub_download and scan_cache_dir fail.
    write_bytes(repository / "refs" / name, commit.encode())
