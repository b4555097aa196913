"""Sources whose files are documents: a tree of text files, and what trees and packages share.

A file that holds only ASCII white space, or that is not UTF-8, is skipped and counted.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.canonical import sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.sources.base import Document, Source, SourceFile, changed
from data_pipeline.sources.files import find_files
from data_pipeline.sources.spec import Spec

# The record of these kinds is older than malformed records: it has no count of them.
TEXT_COUNTS = ("bytes", "documents", "skipped_empty", "skipped_not_utf8")


class TextFileSource(Source):
    """One document per file."""

    _origin: str

    def read(self, file: SourceFile, counts: Counter[str]) -> Iterator[Document]:
        """Yield the document of a file, or count why it is none; see ``Source.read``."""
        data = self._data(file)
        reason = skip_reason(data)
        if reason:
            counts[f"skipped_{reason}"] += 1
            return
        counts["documents"] += 1
        counts["bytes"] += len(data)
        yield Document(file.source, file.name, data.decode("utf-8"))

    def _data(self, file: SourceFile) -> bytes:
        try:
            data = Path(file.path).read_bytes()
        except FileNotFoundError:
            raise DatasetError(f"{file.path}: file not found; {self._remedy(file)}") from None
        found = sha256_hex(data)
        if found != file.sha256:
            raise changed(file, found, self._remedy(file), self._origin)
        return data

    @abstractmethod
    def _remedy(self, file: SourceFile) -> str: ...

    def _totals(
        self,
        files: Sequence[SourceFile],
        counts: Mapping[str, Counter[str]],
        keys: Sequence[str] = TEXT_COUNTS,
    ) -> dict[str, Any]:
        return super()._totals(files, counts, keys)


class TreeSource(TextFileSource):
    """Text files below a directory, chosen by globs; hashed when the source is opened."""

    kind = "text_tree"
    _origin = "when the build started"

    def __init__(
        self, spec: Spec, workers: int = 1, known: Mapping[str, str] | None = None
    ) -> None:
        """Find and hash the files.

        Args:
            spec: ``root``; optional ``include``, ``exclude`` (globs over paths relative to
                ``root``) and ``name``, what the source is called in the index.
            workers: Threads that hash.
            known: SHA-256 by file name from an earlier opening; see ``open_source``.

        Raises:
            DatasetError: ``root`` is no directory, a glob matches nothing, or a file cannot be
                named.
        """
        spec.expect_keys(required=["root"], optional=["include", "exclude", "name"])
        name = spec.text("name", "text")
        include, exclude = spec.texts("include", ("**",)), spec.texts("exclude")
        super().__init__(
            name, find_files(name, spec.root(), include, exclude, workers=workers, known=known)
        )

    def _remedy(self, file: SourceFile) -> str:
        return f"do not change {file.name} while the dataset is built; build again"


def skip_reason(data: bytes) -> str | None:
    """Say why bytes are no document: ``empty`` (only ASCII white space), ``not_utf8``, or None."""
    if is_empty(data):
        return "empty"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "not_utf8"
    return None


def is_empty(data: bytes) -> bool:
    """Say whether UTF-8 bytes hold nothing but ASCII white space."""
    return not data or data.isspace()
