"""JSON Lines, plain or compressed: one object per line, streamed.

Record k is line k + 1 of the decompressed file. A line of white space holds nothing and is counted
with the empty documents. Lines end with a line feed; a last line without one is read all the same.
"""

import codecs
import json
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any, NoReturn

from data_pipeline.sources.base import SourceFile
from data_pipeline.sources.files import chosen_files
from data_pipeline.sources.records import (
    FIELD_KEYS,
    Malformed,
    RecordSource,
    expect_unchanged,
    missing,
)
from data_pipeline.sources.spec import Spec
from data_pipeline.sources.streams import (
    READ_BYTES,
    SUFFIXES,
    BrokenStream,
    HashedFile,
    decompressed,
    lines,
)

MAX_RECORD_BYTES = 256 << 20
MAX_DEPTH = 256  # what a parser can nest depends on its stack; this does not
_JSON_SPACE = b" \t\r"


class JsonlSource(RecordSource):
    """Files of JSON Lines below a directory."""

    kind = "jsonl"
    place, first = "line", 1

    def __init__(
        self, spec: Spec, workers: int = 1, known: Mapping[str, str] | None = None
    ) -> None:
        """Find and hash the files.

        Args:
            spec: ``root``; either ``files`` (paths relative to it) or ``include`` and ``exclude``
                (globs); the keys of ``records.FIELD_KEYS``; ``max_record_bytes``.
            workers: Threads that hash.
            known: SHA-256 by file name from an earlier opening; see ``open_source``.

        Raises:
            DatasetError: A bad recipe, or a file whose name has none of the suffixes.
        """
        optional = ["include", "exclude", "files", "max_record_bytes", *FIELD_KEYS]
        spec.expect_keys(required=["root"], optional=optional)
        name = spec.text("name", self.kind)
        self.max_record_bytes = spec.size("max_record_bytes", MAX_RECORD_BYTES)
        super().__init__(spec, name, lambda: chosen_files(spec, name, SUFFIXES, workers, known))

    def _declared(self) -> dict[str, Any]:
        return {**super()._declared(), "max_record_bytes": self.max_record_bytes}

    def _rows(self, file: SourceFile) -> Iterator[tuple[int, Mapping[str, Any] | Malformed | None]]:
        number, broken = 0, None
        with self._open(file) as raw:
            packed = BufferedReader(raw, READ_BYTES)  # a name keeps it, and so raw, open
            stream = decompressed(packed, file.name)
            try:
                for line, ended in lines(stream, self.max_record_bytes):
                    yield number, self._row(line, ended)
                    number += 1
            except BrokenStream as problem:
                broken = Malformed(f"{problem}: the rest of the file cannot be read")
            expect_unchanged(file, raw.sha256())
        if broken is not None:
            yield number, broken

    def _open(self, file: SourceFile) -> HashedFile:
        try:
            return HashedFile(file.path)
        except FileNotFoundError:
            raise missing(file) from None

    def _row(self, line: bytes | None, ended: bool) -> Mapping[str, Any] | Malformed | None:
        if line is None:
            return Malformed(f"longer than max_record_bytes, {self.max_record_bytes}")
        if not line.strip(_JSON_SPACE):
            return None
        try:
            return parse_object(line)
        except Malformed as problem:
            return problem if ended else Malformed(f"{problem}, in a last line that is cut off")


def parse_object(line: bytes) -> Mapping[str, Any]:
    """Parse one line by the grammar of RFC 8259; of equal keys the last counts.

    Raises:
        Malformed: Not UTF-8, not JSON, not an object, or nested deeper than ``MAX_DEPTH``.
    """
    if line.startswith(codecs.BOM_UTF8):
        raise Malformed("bad JSON: a byte order mark before the object")
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Malformed(f"invalid UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"bad JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise Malformed(_TOO_DEEP) from None
    except ValueError as error:  # NaN, or an integer of thousands of digits
        raise Malformed(f"bad JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed(f"expected a JSON object, found {type(value).__name__}")
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH:
        _expect_shallow(value)
    return value


_TOO_DEEP = f"bad JSON: nested deeper than {MAX_DEPTH} levels"


def _expect_shallow(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise Malformed(_TOO_DEEP)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
