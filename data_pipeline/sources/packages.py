"""Installed packages as a corpus that is byte-identical everywhere, with no download.

Files are checked against the SHA-256 in the wheel's RECORD as they are read. Order: packages as
listed, then files by path (code-point order).
"""

import base64
import csv
import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DatasetError
from data_pipeline.sources.base import SourceFile
from data_pipeline.sources.files import selector
from data_pipeline.sources.spec import Spec
from data_pipeline.sources.text import TextFileSource


class PackageSource(TextFileSource):
    """Files of installed distributions, chosen by globs and checked against RECORD."""

    kind = "python_packages"
    _origin = "the RECORD of the installed wheel"

    def __init__(
        self, spec: Spec, workers: int = 1, known: Mapping[str, str] | None = None
    ) -> None:
        """Find the files.

        Args:
            spec: ``packages``: ``{"name", "include": [globs], "exclude": [globs]}`` in reading
                order; ``name``, the kind by default, by which a mixture tells two of them apart.
            workers: Not used: the hashes are in RECORD.
            known: Not used either.

        Raises:
            DatasetError: A package that is not installed, has no RECORD, is named twice or has no
                file that matches; or a file without a SHA-256 in RECORD.
        """
        spec.expect_keys(required=["packages"], optional=["name"])
        self._versions: dict[str, str] = {}
        files: list[SourceFile] = []
        for package in spec.items("packages"):
            package.expect_keys(required=["name", "include"], optional=["exclude"])
            name = package.text("name")
            if name in self._versions:
                raise DatasetError(
                    f"package {name}: expected once, found twice; merge its include lists"
                )
            distribution = _distribution(name)
            self._versions[name] = distribution.version
            files += _package_files(name, distribution, package)
        self._part = spec.optional_text("name")
        super().__init__(self._part or self.kind, files)

    def _remedy(self, file: SourceFile) -> str:
        version = self._versions[file.source]
        return f"reinstall it: pip install --force-reinstall --no-deps {file.source}=={version}"

    def record(self, counts: Mapping[str, Counter[str]] | None = None) -> list[dict[str, Any]]:
        """Describe every package: version, files, digest of the list of file hashes, skipped.

        ``part`` is the name of this source where the recipe gives it one.
        """
        return [
            {
                "kind": "python_package",
                "name": name,
                "version": version,
                **({} if self._part is None else {"part": self._part}),
                **self._totals([f for f in self.files if f.source == name], self._counts(counts)),
            }
            for name, version in self._versions.items()
        ]


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise DatasetError(
            f"package {name}: expected an installed distribution, found none; "
            f"install the pinned packages (make setup)"
        ) from None


def _package_files(
    name: str, distribution: importlib.metadata.Distribution, package: Spec
) -> list[SourceFile]:
    record = distribution.read_text("RECORD")
    if record is None:
        raise DatasetError(
            f"package {name}: no RECORD in its metadata; reinstall it with pip from a wheel"
        )
    include = package.texts("include")
    wanted = selector(include, package.texts("exclude"))
    rows = sorted(row for row in csv.reader(record.splitlines()) if row and wanted(row[0]))
    if not rows:
        raise DatasetError(
            f"package {name} {distribution.version}: expected files matching "
            f"{list(include)}, found none"
        )
    return [_source_file(name, distribution, row) for row in rows]


def _source_file(
    name: str, distribution: importlib.metadata.Distribution, row: Sequence[str]
) -> SourceFile:
    path = Path(str(distribution.locate_file(row[0])))
    size = int(row[2]) if row[2].isdecimal() else 0  # only a hint: the hash decides
    return SourceFile(name, row[0], path, size, _record_hash(name, row))


def _record_hash(name: str, row: Sequence[str]) -> str:
    """Return the hex SHA-256 of a RECORD row (PEP 376: urlsafe base64 without padding)."""
    algorithm, _, value = row[1].partition("=")
    if algorithm != "sha256" or len(value) != 43:
        raise DatasetError(
            f"package {name}, {row[0]}: expected a sha256 in RECORD, found {row[1]!r}; "
            "reinstall the package with pip from a wheel"
        )
    return base64.urlsafe_b64decode(value + "=").hex()
