"""Records to documents: which fields are read, what is malformed, and what then happens.

A *row* is a record as a mapping of its fields. A record is malformed when the text is missing or
no string, when a declared id or source is, or when something has no UTF-8 encoding. The policy is
declared: ``stop`` raises with file, place and reason; ``skip`` counts and goes on.

Specification: ``docs/spec/sources.md``.
"""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.canonical import canonical_json
from data_pipeline.errors import DatasetError
from data_pipeline.sources.base import Document, Source, SourceFile, changed
from data_pipeline.sources.spec import Spec
from data_pipeline.sources.text import is_empty

FIELD_KEYS = ("text_field", "id_field", "meta_fields", "source_field", "malformed", "name")
_ABSENT = object()


class Malformed(ValueError):
    """Why a record, or all the rest of a file, is no document."""


@dataclass(frozen=True)
class Fields:
    """The declared fields: a key, or keys of nested objects joined by dots."""

    text: str = "text"
    id: str | None = None
    meta: tuple[str, ...] = ()
    source: str | None = None

    @classmethod
    def of(cls, spec: Spec) -> "Fields":
        """Read ``text_field``, ``id_field``, ``meta_fields`` and ``source_field``.

        Raises:
            DatasetError: A value that is no field, or no list of them.
        """
        return cls(
            spec.text("text_field", "text"),
            spec.optional_text("id_field"),
            spec.texts("meta_fields"),
            spec.optional_text("source_field"),
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Every declared field, in the order text, id, meta, source."""
        return tuple(f for f in (self.text, self.id, *self.meta, self.source) if f is not None)

    def record(self) -> dict[str, Any]:
        """Return the declared fields for the index."""
        out: dict[str, Any] = {"text": self.text}
        if self.id is not None:
            out["id"] = self.id
        if self.meta:
            out["meta"] = list(self.meta)
        if self.source is not None:
            out["source"] = self.source
        return out

    def document(self, file: SourceFile, number: int, row: Mapping[str, Any]) -> Document:
        """Turn a row into a document.

        Raises:
            Malformed: A missing or wrong text, id or source, or a value without a UTF-8 encoding.
        """
        meta = {name: lookup(row, name) for name in self.meta}
        return Document(
            source=file.source if self.source is None else _name(row, self.source, (str,)),
            name=file.name,
            text=_text(row, self.text),
            record=number,
            id=None if self.id is None else str(_name(row, self.id, (str, int))),
            meta={
                name: meta_value(name, value)
                for name, value in meta.items()
                if value is not _ABSENT and value is not None
            },
        )


def lookup(row: Mapping[str, Any], field: str) -> Any:
    """Return the value of a field, or a mark that it is absent.

    A key that equals the whole field comes first; otherwise each part names a key one level down.
    """
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def meta_value(name: str, value: Any) -> str | int:
    """Return a value as metadata: strings and integers as they are, the rest as canonical JSON.

    Canonical JSON has no floats: one is written as the shortest decimal that reads back the same,
    and within a nested value as a string of it.

    Raises:
        Malformed: A type that JSON does not have, or no UTF-8 encoding.
    """
    if type(value) is float:
        return json.dumps(value)
    try:
        if type(value) is str:
            value.encode("utf-8")
            return value
        if type(value) is int:
            return value
        return canonical_json(_without_floats(value)).decode("utf-8")
    except UnicodeEncodeError:
        raise Malformed(f"metadata field {name!r} has a lone surrogate") from None
    except TypeError as error:
        raise Malformed(f"metadata field {name!r}: {error}") from None


def _without_floats(value: Any) -> Any:
    if type(value) is float:
        return json.dumps(value)
    if isinstance(value, dict):
        return {key: _without_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_floats(item) for item in value]
    return value


def _text(row: Mapping[str, Any], field: str) -> str:
    value = lookup(row, field)
    if isinstance(value, bytes):  # a binary column
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(f"invalid UTF-8 in {field!r} at byte {error.start}") from None
    if not isinstance(value, str):
        raise Malformed(f"expected a string in {field!r}, found {_described(value)}")
    return value


def _name(row: Mapping[str, Any], field: str, types: Sequence[type]) -> Any:
    value = lookup(row, field)
    if type(value) not in types or value == "":
        wanted = "a string or an integer" if int in types else "a string"
        raise Malformed(f"expected {wanted} in {field!r}, found {_described(value)}")
    if isinstance(value, str):
        _expect_encodable(field, value)
    return value


def _expect_encodable(field: str, value: str) -> bytes:
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed(f"lone surrogate in {field!r} at character {error.start}") from None


def _described(value: Any) -> str:
    if value is _ABSENT:
        return "no such field"
    names = {type(None): "null", dict: "an object", list: "a list", bool: "a boolean"}
    return names.get(type(value), repr(value)[:60])


class RecordSource(Source):
    """Files of records; a subclass says how a file becomes rows."""

    place = "record"  # what a record is called in an error
    first = 0  # the number that an error gives to record 0

    def __init__(self, spec: Spec, name: str, find: Callable[[], Sequence[SourceFile]]) -> None:
        """Read the declared fields and the policy, then find the files, which can take long."""
        self.fields = Fields.of(spec)
        malformed = spec.choice("malformed", "stop", ("stop", "skip"))
        super().__init__(name, find(), malformed)

    def read(self, file: SourceFile, counts: Counter[str]) -> Iterator[Document]:
        """Yield the documents of a file; see ``Source.read``."""
        for number, row in self._rows(file):
            if row is None:
                counts["skipped_empty"] += 1
                continue
            try:
                if isinstance(row, Malformed):
                    raise row
                document = self.fields.document(file, number, row)
                data = _expect_encodable(self.fields.text, document.text)
            except Malformed as problem:
                if self.malformed == "stop":
                    raise self._stopped(file, number, problem) from None
                counts["skipped_malformed"] += 1
                continue
            if is_empty(data):
                counts["skipped_empty"] += 1
                continue
            counts["documents"] += 1
            counts["bytes"] += len(data)
            yield document

    @abstractmethod
    def _rows(self, file: SourceFile) -> Iterator[tuple[int, Mapping[str, Any] | Malformed | None]]:
        """Yield (0-based number, row) in file order; None is a record that holds nothing.

        Checks the file's SHA-256 when all rows have been read.
        """

    def _stopped(self, file: SourceFile, number: int, problem: Malformed) -> DatasetError:
        return DatasetError(
            f"{file.path}, {self.place} {number + self.first}: {problem}; correct the record, or "
            "declare `malformed: skip` to leave such records out and count them"
        )

    def _declared(self) -> dict[str, Any]:
        return {"fields": self.fields.record(), "malformed": self.malformed}


def expect_unchanged(file: SourceFile, found: str) -> None:
    """Compare the SHA-256 of what was read with the file's record.

    Raises:
        DatasetError: They differ.
    """
    if found != file.sha256:
        remedy = f"do not change {file.name} while the dataset is built; build again"
        raise changed(file, found, remedy, "when the build started")


def missing(file: SourceFile) -> DatasetError:
    """Return the error for a file that is gone."""
    return DatasetError(
        f"{file.path}: file not found; restore it, it was there when the build started"
    )
