"""What a source is: files in one order, each read as a stream of documents.

Guarantees: documents of a file come in the order of the file, one at a time. Reading a file to its
end proves that its bytes have the recorded SHA-256; a file that changed is an error, never other
documents. What is left out is counted. A source can be pickled, so any process can read any file.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.errors import DatasetError

COUNTS = ("bytes", "documents", "skipped_empty", "skipped_malformed", "skipped_not_utf8")


@dataclass(frozen=True)
class Document:
    """One text with the place it came from.

    ``source`` is the domain that analyses group by and ``name`` the file, relative to the source.
    ``record`` is the 0-based number of the record in its file, None where a file is one document.
    ``id`` and ``meta`` are what the source says about it, for the fields that the recipe declares.
    """

    source: str
    name: str
    text: str
    record: int | None = None
    id: str | None = None
    meta: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFile:
    """A file to read: its size in bytes and the SHA-256 (hex) it must have.

    ``name`` is the POSIX path relative to the source, unique in it. ``path`` is a URL when the
    records come from a Hub.
    """

    source: str
    name: str
    path: Path | str
    size: int
    sha256: str


class Source(ABC):
    """Documents that can be read again and again, and a record of what they are."""

    kind: str

    def __init__(self, name: str, files: Sequence[SourceFile], malformed: str = "skip") -> None:
        """Keep the files in reading order.

        Raises:
            DatasetError: Two files of one name.
        """
        self.name, self.files, self.malformed = name, tuple(files), malformed
        names = Counter(file.name for file in self.files)
        twice = [file for file, count in names.items() if count > 1]
        if twice:
            raise DatasetError(
                f"source {name}: expected every file once, found {twice[0]!r} {names[twice[0]]} "
                "times; take it out of all lists but one"
            )
        self._last_pass: dict[str, Counter[str]] = {}

    @abstractmethod
    def read(self, file: SourceFile, counts: Counter[str]) -> Iterator[Document]:
        """Yield the documents of one file in record order, reading no further than asked.

        Args:
            file: One of ``files``.
            counts: Counts documents, their UTF-8 bytes and what was skipped (``COUNTS``); complete
                when the file has been read to its end.

        Raises:
            DatasetError: The file is missing, its bytes are not the recorded ones, or a record is
                malformed and the policy is to stop.
        """

    def documents(self) -> Iterator[Document]:
        """Yield the documents of all files; ``record()`` is complete afterwards.

        Raises:
            DatasetError: See ``read``.
        """
        self._last_pass = {file.name: Counter() for file in self.files}
        for file in self.files:
            yield from self.read(file, self._last_pass[file.name])

    def record(self, counts: Mapping[str, Counter[str]] | None = None) -> list[dict[str, Any]]:
        """Describe the source for the index; where it lies is left out.

        Args:
            counts: What ``read`` counted, by file name; by default in the last ``documents``.

        Returns:
            One record per source that the index names: what it is, how it was read, the number of
            files, the digest of the list of their hashes, and the counts.
        """
        return [
            {
                "kind": self.kind,
                "name": self.name,
                **self._declared(),
                **self._totals(self.files, self._counts(counts)),
            }
        ]

    def _declared(self) -> dict[str, Any]:
        """Return what the recipe says about reading that decides which documents come out."""
        return {}

    def _counts(self, counts: Mapping[str, Counter[str]] | None) -> Mapping[str, Counter[str]]:
        return self._last_pass if counts is None else counts

    def _totals(
        self,
        files: Sequence[SourceFile],
        counts: Mapping[str, Counter[str]],
        keys: Sequence[str] = COUNTS,
    ) -> dict[str, Any]:
        total = Counter[str]()
        for file in files:
            total.update(counts.get(file.name, {}))
        return {
            "files": len(files),
            "files_sha256": sha256_hex(canonical_json([[f.name, f.sha256] for f in files])),
            **{key: total[key] for key in keys},
        }


def changed(file: SourceFile, found: str, remedy: str, origin: str) -> DatasetError:
    """Return the error for a file whose SHA-256 is not the recorded one."""
    return DatasetError(
        f"{file.path}: expected sha256 {file.sha256} ({origin}), found {found}; {remedy}"
    )
