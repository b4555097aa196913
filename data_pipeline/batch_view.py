"""What a step reads: rows, their documents and text, and the digests that the run must have logged.

Guarantees: the ids are those that ``BatchReader`` feeds, overlay included; the digest of a row and
the leaf of a step are those of ``order-digest-v1``, so a leaf printed here equals the one in the
run's ``order.log``. Reads the rows asked for and the records of their documents, no more. The leaf
needs every row: it is left out when only some are asked for.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.batches import BatchReader
from data_pipeline.datasets import notices
from data_pipeline.digests import leaf, sequence_digests
from data_pipeline.exposures import document_label, document_record
from data_pipeline.protocols import DocumentRef, Ids


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> bytes:
        """Return the bytes of ids."""
        ...


def view_batch(
    reader: BatchReader,
    step: int,
    rows: range | None = None,
    tokenizer: Decodes | None = None,
) -> dict[str, Any]:
    """Describe a step.

    Args:
        reader: The run's reader.
        step: 0-based.
        rows: Rows of the batch; all of them by default.
        tokenizer: To decode the ids of every document; none leaves the text out.

    Returns:
        ``{"step", "batch_size", "seq_len", "leaf", "notices", "rows"}``. ``leaf`` is hex, or None
        where only some rows were asked for; ``notices`` is what users of this kind of dataset must
        know. A row is ``{"row", "position", "sequence", "digest", "overlay", "documents"}``; a
        document is its record, with ``column`` and ``end_column`` in the row's S+1 ids, ``offset``,
        the ids of it that come before this row, and ``text``.

    Raises:
        ValueError: A negative step or rows outside the batch.
    """
    everything = range(reader.batch_size)
    wanted = everything if rows is None else rows
    ids = reader.ids(step, wanted)
    digests = sequence_digests(ids)
    first = step * reader.batch_size
    return {
        "step": step,
        "batch_size": reader.batch_size,
        "seq_len": reader.seq_len,
        "leaf": leaf(step, digests).hex() if wanted == everything else None,
        "notices": notices(reader.stream.index),
        "rows": [
            _row(reader, first + row, row, line, digest, tokenizer)
            for row, line, digest in zip(wanted, ids, digests, strict=True)
        ],
    }


def _row(
    reader: BatchReader, position: int, row: int, ids: Ids, digest: bytes, tokenizer: Decodes | None
) -> dict[str, Any]:
    sequence = int(reader.order.sequences(position, 1)[0])
    touched = [] if reader.overlay is None else reader.overlay.entries_at(position)
    return {
        "row": row,
        "position": position,
        "sequence": sequence,
        "digest": digest.hex(),
        "overlay": [
            {"name": one.name, "column": one.column, "end_column": one.end} for one in touched
        ],
        "documents": [
            _document(document, column, end, offset, ids, tokenizer)
            for document, column, end, offset in _documents(reader, sequence)
        ],
    }


def _documents(reader: BatchReader, sequence: int) -> list[tuple[DocumentRef, int, int, int]]:
    """(document, column, end column, ids of it before the row) of a sequence."""
    found, column = [], 0
    for start, end in reader.order.spans(sequence):
        for document in reader.stream.documents_in(start, end):
            low, high = max(start, document.start), min(end, document.end)
            place = column + low - start
            found.append((document, place, place + high - low, low - document.start))
        column += end - start
    return found


def _document(
    document: DocumentRef, column: int, end: int, offset: int, ids: Ids, tokenizer: Decodes | None
) -> dict[str, Any]:
    record = document_record(document)
    record |= {"label": document_label(document), "column": column, "end_column": end}
    record["offset"] = offset
    if tokenizer is not None:
        record["text"] = tokenizer.decode_bytes(ids[column:end]).decode("utf-8", "replace")
    return record


def as_text(view: dict[str, Any]) -> str:
    """Return it for a terminal."""
    leaf_line = "" if view["leaf"] is None else f"  leaf {view['leaf']}"
    lines = [f"step {view['step']}{leaf_line}"]
    for row in view["rows"]:
        lines.append(f"row {row['row']}  sequence {row['sequence']}  digest {row['digest'][:16]}")
        lines += [
            f"  {_columns(one)}  put in by the overlay: {one['name']}" for one in row["overlay"]
        ]
        for one in row["documents"]:
            before = f"  after {one['offset']} ids of it" if one["offset"] else ""
            lines.append(f"  {_columns(one)}  {one['label']}{before}")
            lines += ["    | " + line for line in one.get("text", "").splitlines()]
    return "\n".join(lines + [f"note: {notice}" for notice in view["notices"]])


def _columns(record: dict[str, Any]) -> str:
    return f"columns {record['column']}..{record['end_column'] - 1}"
