"""Where documents come from: installed packages or a tree of text files, read in one fixed order.

Guarantees: the same recipe gives the same documents in the same order on every machine. Files of
an installed package are checked against the SHA-256 in the wheel's RECORD as they are read, so a
corpus made of pinned packages is byte-identical everywhere. What is left out (not UTF-8, or
nothing but white space) is counted and recorded, never dropped in silence. Text is not normalised
in any way.

Order: packages as listed, then files by path (code-point order of the POSIX path).
"""

import base64
import csv
import importlib.metadata
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from data_pipeline.errors import DatasetError

_COUNTS = ("bytes", "documents", "skipped_empty", "skipped_not_utf8")


@dataclass(frozen=True)
class Document:
    """One text with the place it came from."""

    source: str
    name: str
    text: str
    record: int | None = None
    id: str | None = None
    meta: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFile:
    """A file to read, its size in bytes and the SHA-256 (hex) it must have."""

    source: str
    name: str
    path: Path
    size: int
    sha256: str


class Source(ABC):
    """Documents that can be read again and again, and a record of what they are."""

    malformed = "skip"

    def __init__(self, name: str, files: Sequence[SourceFile]) -> None:
        """Keep the files in reading order."""
        self.name, self.files = name, tuple(files)

    def documents(self) -> Iterator[Document]:
        """Yield the documents in order."""
        counts = Counter[str]()
        for file in self.files:
            yield from self.read(file, counts)

    def read(self, file: SourceFile, counts: Counter[str]) -> Iterator[Document]:
        """Yield the documents of one file and count what was read and skipped.

        Raises:
            DatasetError: The file is missing or its bytes are not the recorded ones.
        """
        data = self._read(file)
        reason = skip_reason(data)
        if reason:
            counts[f"skipped_{reason}"] += 1
        else:
            counts["documents"] += 1
            counts["bytes"] += len(data)
            yield Document(file.source, file.name, data.decode("utf-8"))

    def _read(self, file: SourceFile) -> bytes:
        try:
            data = file.path.read_bytes()
        except FileNotFoundError:
            raise DatasetError(f"{file.path}: file not found; {self._remedy(file)}") from None
        found = sha256_hex(data)
        if found != file.sha256:
            raise DatasetError(
                f"{file.path}: expected sha256 {file.sha256} ({self._origin}), found {found}; "
                f"{self._remedy(file)}"
            )
        return data

    _origin: str

    @abstractmethod
    def _remedy(self, file: SourceFile) -> str: ...

    @abstractmethod
    def record(self, counts: Mapping[str, Counter[str]]) -> list[dict[str, Any]]:
        """Describe the source for the index from the counts of every file, by its name."""

    def _counts(self, source: str, counts: Mapping[str, Counter[str]]) -> dict[str, Any]:
        files = [file for file in self.files if file.source == source]
        total = sum((counts[file.name] for file in files), Counter[str]())
        return {
            "files": len(files),
            "files_sha256": sha256_hex(canonical_json([[f.name, f.sha256] for f in files])),
            **{key: total[key] for key in _COUNTS},
        }


class PackageSource(Source):
    """Files of installed distributions, chosen by globs and checked against RECORD."""

    _origin = "the RECORD of the installed wheel"

    def __init__(self, packages: Sequence[Mapping[str, Any]]) -> None:
        """Find the files.

        Args:
            packages: ``{"name", "include": [globs], "exclude": [globs]}`` in reading order.

        Raises:
            DatasetError: A package that is not installed, has no RECORD, is named twice or has no
                file that matches; or a file without a SHA-256 in RECORD.
        """
        self._versions: dict[str, str] = {}
        files: list[SourceFile] = []
        for package in packages:
            name = package["name"]
            if name in self._versions:
                raise DatasetError(
                    f"package {name}: expected once, found twice; merge its include lists"
                )
            distribution = _distribution(name)
            self._versions[name] = distribution.version
            files += _package_files(name, distribution, package)
        super().__init__("+".join(self._versions), files)

    def _remedy(self, file: SourceFile) -> str:
        version = self._versions[file.source]
        return f"reinstall it: pip install --force-reinstall --no-deps {file.source}=={version}"

    def record(self, counts: Mapping[str, Counter[str]]) -> list[dict[str, Any]]:
        """Describe every package: version, files, digest of the list of file hashes, skipped."""
        return [
            {
                "kind": "python_package",
                "name": name,
                "version": version,
                **self._counts(name, counts),
            }
            for name, version in self._versions.items()
        ]


class TreeSource(Source):
    """Text files below a directory, chosen by globs; hashed when the source is opened."""

    _origin = "when the build started"

    def __init__(
        self,
        root: str | Path,
        include: Sequence[str] = ("**",),
        exclude: Sequence[str] = (),
        name: str = "text",
    ) -> None:
        """Find and hash the files.

        Args:
            root: The directory.
            include: Globs over paths relative to ``root``.
            exclude: Globs of paths to leave out.
            name: What the source is called in the index; the place of ``root`` is not recorded.

        Raises:
            DatasetError: ``root`` is no directory, or no file matches.
        """
        root = Path(root)
        if not root.is_dir():
            raise DatasetError(f"{root}: expected a directory of text files; correct source.root")
        wanted = _selector(include, exclude)
        paths = sorted(
            path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
        )
        files = [
            SourceFile(
                name, path, root / path, (root / path).stat().st_size, sha256_file(root / path)
            )
            for path in paths
            if wanted(path)
        ]
        if not files:
            raise DatasetError(f"{root}: expected files matching {list(include)}, found none")
        super().__init__(name, files)

    def _remedy(self, file: SourceFile) -> str:
        return f"do not change {file.name} while the dataset is built; build again"

    def record(self, counts: Mapping[str, Counter[str]]) -> list[dict[str, Any]]:
        """Describe the tree; its location is left out, so that it can be anywhere."""
        name = self.files[0].source
        return [{"kind": "text_tree", "name": name, **self._counts(name, counts)}]


def open_source(spec: Mapping[str, Any]) -> Source:
    """Open the source that a recipe names.

    Args:
        spec: ``{"kind": "python_packages", "packages": [...]}`` or
            ``{"kind": "text_tree", "root", "include", "exclude", "name"}``.

    Raises:
        DatasetError: An unknown kind; the message lists the known ones.
    """
    kind = spec.get("kind")
    if kind == "python_packages":
        return PackageSource(spec["packages"])
    if kind == "text_tree":
        return TreeSource(**{key: value for key, value in spec.items() if key != "kind"})
    raise DatasetError(f"source.kind: expected python_packages or text_tree, found {kind!r}")


def skip_reason(data: bytes) -> str | None:
    """Say why bytes are no document: ``empty`` (only ASCII white space), ``not_utf8``, or None."""
    if not data.strip():
        return "empty"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "not_utf8"
    return None


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Translate a glob over POSIX paths: ``*`` and ``?`` stay inside a part, ``**`` crosses parts.

    Raises:
        ValueError: ``**`` beside other characters in a part, or a character class.
    """
    if "[" in pattern or "]" in pattern:
        raise ValueError(f"glob {pattern!r}: character classes are not supported; list the names")
    parts = pattern.split("/")
    out = ""
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if part == "**":
            out += ".*" if last else "(?:[^/]+/)*"
        elif "**" in part:
            raise ValueError(f"glob {pattern!r}: ** must be a part of its own, like a/**/*.py")
        else:
            out += re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            out += "" if last else "/"
    return re.compile(out, re.DOTALL)


def _selector(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Return a test that is true for a path matching an include and no exclude."""
    yes, no = [glob_regex(p) for p in include], [glob_regex(p) for p in exclude]

    def wanted(name: str) -> bool:
        return any(p.fullmatch(name) for p in yes) and not any(p.fullmatch(name) for p in no)

    return wanted


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise DatasetError(
            f"package {name}: expected an installed distribution, found none; "
            f"install the pinned packages (make setup)"
        ) from None


def _package_files(
    name: str, distribution: importlib.metadata.Distribution, package: Mapping[str, Any]
) -> list[SourceFile]:
    record = distribution.read_text("RECORD")
    if record is None:
        raise DatasetError(
            f"package {name}: no RECORD in its metadata; reinstall it with pip from a wheel"
        )
    wanted = _selector(package["include"], package.get("exclude", ()))
    rows = sorted(row for row in csv.reader(record.splitlines()) if row and wanted(row[0]))
    if not rows:
        raise DatasetError(
            f"package {name} {distribution.version}: expected files matching "
            f"{list(package['include'])}, found none"
        )
    return [
        SourceFile(
            name,
            row[0],
            Path(str(distribution.locate_file(row[0]))),
            int(row[2]),
            _record_hash(name, row),
        )
        for row in rows
    ]


def _record_hash(name: str, row: Sequence[str]) -> str:
    """Return the hex SHA-256 of a RECORD row (PEP 376: urlsafe base64 without padding)."""
    algorithm, _, value = row[1].partition("=")
    if algorithm != "sha256" or len(value) != 43:
        raise DatasetError(
            f"package {name}, {row[0]}: expected a sha256 in RECORD, found {row[1]!r}; "
            "reinstall the package with pip from a wheel"
        )
    return base64.urlsafe_b64decode(value + "=").hex()
