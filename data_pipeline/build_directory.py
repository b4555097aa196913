"""The directory where an unfinished build lies, and who may work in it.

It stands beside the dataset as ``.NAME.building`` and holds what is finished: the plan, surveys,
decisions, the tokenizer and shards, each with a record that is written last. A build that was
interrupted, killed included, is taken up where its records end.

Guarantees: one process works on a whole build, or several on different groups, never both; what
lies there is used only when recipe, sources and versions are those it was made from, else it is
cleared away (by a whole build, which says why) or refused (by a build of groups).
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.plan import Plan
from data_pipeline.recipe import Recipe

_FORMAT = "build-v1"
_LIBRARIES = ("rensa", "tiktoken", "tokenizers")


class BuildDirectory:
    """Paths of an unfinished build, and its locks."""

    def __init__(self, out: Path) -> None:
        """Name the directory of a build of ``out``; nothing is created."""
        self.out = out
        self.root = out.parent / f".{out.name}.building"
        self.final = self.root / "final"
        self.tokenizer = self.root / "tokenizer.json"
        self.decisions = self.root / "decisions.json"
        self.kept = self.root / "kept.mask"

    def survey(self, group: int, suffix: str) -> Path:
        """A file of the survey of a group; ``json`` is its record."""
        return self.root / "survey" / f"{group:05d}.{suffix}"

    def group(self, group: int) -> Path:
        """Where the shards of a group are written."""
        return self.root / "groups" / f"{group:05d}"

    @contextlib.contextmanager
    def held(self, group: int | None = None) -> Iterator[None]:
        """Lock the whole build, or one group of it, while the block runs.

        Raises:
            DatasetError: The dataset exists, or another process holds what is asked for.
        """
        self._expect_absent()
        self.root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, lock)
            _lock(lock, fcntl.LOCK_EX if group is None else fcntl.LOCK_SH, str(self.out))
            if not self.root.exists() or os.fstat(lock).st_ino != self.root.stat().st_ino:
                raise DatasetError(
                    f"{self.out}: another process built it just now; run the command again"
                )
            (self.root / "locks").mkdir(exist_ok=True)
            if group is not None:
                path = self.root / "locks" / f"{group:05d}"
                stack.enter_context(_locked(path, fcntl.LOCK_EX, f"{self.out}, group {group}"))
            yield

    def _expect_absent(self) -> None:
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise DatasetError(
                f"{self.out}: expected no dataset, found one; verify it (`tripod data verify`), or "
                "delete it to build it again"
            )

    def claim(self, plan: Plan, may_clear: bool) -> str | None:
        """Make sure that what lies here belongs to this plan; call it inside ``held``.

        Args:
            plan: What is to be built.
            may_clear: Whether the remains of another plan may be deleted.

        Returns:
            None for a new build; else what is done with what was found, for people.

        Raises:
            DatasetError: Remains of another plan that may not be deleted.
        """
        with _locked(self.root / "locks" / "plan", fcntl.LOCK_EX, str(self.out), wait=True):
            return self._claim(plan, may_clear)

    def _claim(self, plan: Plan, may_clear: bool) -> str | None:
        path, identity = self.root / "plan.json", _identity(plan)
        found = _read_record(path)
        if found == identity:
            return "continuing the build that was interrupted"
        remains = [entry for entry in self.root.iterdir() if entry.name != "locks"]
        reason = _difference(found, identity) if remains else None
        if reason is not None and not may_clear:
            raise DatasetError(
                f"{self.root}: expected a build of this recipe, found that {reason}; delete the "
                "directory to start over"
            )
        for entry in remains:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        files = [{file.name: file.sha256 for file in source.files} for source in plan.sources]
        write_bytes(self.root / "files.json", canonical_json(files))
        write_bytes(path, canonical_json(identity))
        return None if reason is None else f"starting over: {reason}"

    def known_files(self, recipe: Recipe) -> list[dict[str, str]] | None:
        """SHA-256 by name of the files of every source, when a build of this recipe is planned."""
        planned = _read_record(self.root / "plan.json")
        if not isinstance(planned, dict) or planned.get("recipe") != sha256_hex(recipe.identity):
            return None
        known = _read_record(self.root / "files.json")
        return known if isinstance(known, list) else None

    def clear_but_final(self) -> None:
        """Delete all that the finished dataset does not need."""
        for entry in self.root.iterdir():
            if entry.is_dir() and entry != self.final:
                shutil.rmtree(entry)
            elif entry.is_file() and entry.name != "plan.json":
                entry.unlink()

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.root)


@contextlib.contextmanager
def _locked(path: Path, mode: int, what: str, wait: bool = False) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, mode, what, wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, mode: int, what: str, wait: bool = False) -> None:
    try:
        fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatasetError(f"{what}: another process is building it; wait for it to end") from None


def _identity(plan: Plan) -> dict[str, Any]:
    """Everything that decides the bytes of the dataset."""
    return {
        "format": _FORMAT,
        "recipe": sha256_hex(plan.recipe.identity),
        "sources": plan.sources_sha256(),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _difference(found: Any, identity: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "it has no plan"
    names = {"format": "the form of unfinished builds", "versions": "library versions"}
    differ = [names.get(key, f"the {key}") for key in identity if found.get(key) != identity[key]]
    return f"{' and '.join(differ)} changed"
