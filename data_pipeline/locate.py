"""Where is this document, and when was it read?

A document is named by its number in the split (``17``), by ``source:name[:record]`` as the views
print it, by the id its source gives it, or by the SHA-256 of its text (64 hex digits; equal texts
are all found).

Guarantees: every reading of every id of the document before a step is listed. A number costs a few
small reads, over a network too; any other name reads the records (``.sources.jsonl``) of the split
shard by shard, never the ids.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.canonical import canonical_json
from data_pipeline.datasets import AnyStream
from data_pipeline.errors import DatasetError
from data_pipeline.exposures import Exposures, Part, document_label, document_record
from data_pipeline.protocols import DocumentRef, Stream
from data_pipeline.shards import TokenStream

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Located:
    """A document, what each sequence holds of it, and every (step, row, part) that read it.

    ``times_read`` counts inputs (columns 0..S-1), over the length of the document: one pass makes
    it 1, less what the tail of the stream leaves unread.
    """

    document: DocumentRef
    upto_step: int
    parts: list[Part]
    readings: list[tuple[int, int, Part]]
    times_read: float

    def record(self) -> dict[str, Any]:
        """Return it for JSON; columns are of the S+1 ids of a row."""
        return {
            "document": document_record(self.document),
            "upto_step": self.upto_step,
            "times_read": round(self.times_read, 4),
            "sequences": [
                {"sequence": p.sequence, "column": p.column, "end": p.end, "offset": p.first}
                for p in self.parts
            ],
            "readings": [
                {
                    "step": step,
                    "row": row,
                    "sequence": p.sequence,
                    "column": p.column,
                    "end": p.end,
                    "offset": p.first,
                }
                for step, row, p in self.readings
            ],
        }


def find_documents(stream: Stream, name: str) -> list[DocumentRef]:
    """Return the documents with this number, name, id or SHA-256.

    Raises:
        DatasetError: There is none.
    """
    if name.isdecimal() and int(name) < stream.num_documents:
        return [_by_number(stream, int(name))]
    candidates = (
        _records_with(stream, name) if isinstance(stream, TokenStream) else stream.documents()
    )
    found = [document for document in candidates if _is_called(document, name)]
    if not found:
        raise DatasetError(
            f"document: expected a number below {stream.num_documents}, source:name[:record], an "
            f"id or a sha256 of this split, found {name!r}; "
            "`tripod batch PLACE --step K` prints the names of documents"
        )
    return found


def locate(document: DocumentRef, exposures: Exposures) -> Located:
    """Return the sequences that hold a document and every reading of them, by position."""
    parts = exposures.parts(document.start, document.end)
    readings = sorted(
        exposures.of(document.start, document.end), key=lambda one: (one.position, one.part.column)
    )
    inputs = sum(
        max(0, min(one.part.end, exposures.order.seq_len) - one.part.column) for one in readings
    )
    return Located(
        document,
        exposures.upto_step,
        parts,
        [(one.step, one.row, one.part) for one in readings],
        inputs / max(1, document.end - document.start),
    )


def as_text(located: Located, most: int = 20) -> str:
    """Return it for a terminal, with at most ``most`` readings."""
    one = located.document
    lines = [
        f"document {one.index}  {document_label(one)}" + (f"  id {one.id}" if one.id else ""),
        f"  ids [{one.start}, {one.end}) of the stream, {len(located.parts)} sequences",
        f"  read {located.times_read:.2f} times before step {located.upto_step}",
    ]
    for step, row, part in located.readings[:most]:
        lines.append(
            f"  step {step:>7}  row {row:>4}  columns {part.column}..{part.end - 1}  "
            f"ids {part.first}..{part.last - 1} of the document"
        )
    if len(located.readings) > most:
        lines.append(f"  and {len(located.readings) - most} more (--json lists all)")
    return "\n".join(lines)


def _is_called(document: DocumentRef, name: str) -> bool:
    return name in (
        document_label(document),
        f"{document.source}:{document.name}",
        document.id,
        document.sha256 or None,
    )


def _by_number(stream: Stream, number: int) -> DocumentRef:
    if isinstance(stream, AnyStream):
        return stream.document(number)
    return next(one for one in stream.documents() if one.index == number)


def _records_with(stream: TokenStream, name: str) -> Iterator[DocumentRef]:
    """Yield the documents whose record mentions the name, parsing no other record."""
    wanted = _fragments(name)
    first = 0
    for shard in stream.index.splits[stream.split]:
        storage = stream.index.storage
        lines = storage.read(shard.sources_file)
        places = sorted({place for one in wanted for place in _places(lines, one)})
        if places:
            rows = storage.array(shard.docs_file, np.dtype("<u8"), (shard.documents, 2))
            ends = np.asarray(rows[:])[:, 1].astype(np.int64)
            for number in np.unique(np.searchsorted(ends, places, side="right")).tolist():
                yield stream.document(first + number)
        first += shard.documents


def _fragments(name: str) -> list[bytes]:
    """What the canonical JSON of a record of this name must hold, one of them at least."""
    fragments = [b'"id":' + canonical_json(name)]
    if _SHA256.match(name):
        fragments.append(b'"sha256":' + canonical_json(name))
    words = name.split(":")
    for cut in range(1, len(words)):
        rest = ":".join(words[cut:])
        fragments.append(b'"name":' + canonical_json(rest))
        if words[-1].isdecimal() and cut < len(words) - 1:
            fragments.append(b'"name":' + canonical_json(":".join(words[cut:-1])))
    return fragments


def _places(data: bytes, wanted: bytes) -> Iterator[int]:
    place = data.find(wanted)
    while place >= 0:
        yield place
        place = data.find(wanted, place + len(wanted))
