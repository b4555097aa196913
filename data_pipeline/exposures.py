"""Where and when ids of the stream are read: from offsets of the stream to steps, rows and columns.

Guarantees: every reading of every id of a span before a given step is listed, whatever the order,
the number of epochs or the number of sequences that hold the id. A span that no sequence holds
whole is listed part by part. The id that two neighbouring sequences share is read twice: as the
last target of one, and as the first input of the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data_pipeline.protocols import DocumentRef, Order


@dataclass(frozen=True)
class Part:
    """Ids [first, last) of a span, which stand at ``column`` and on of the S+1 ids of a sequence.

    ``whole`` says that these are all ids of the span.
    """

    sequence: int
    column: int
    first: int
    last: int
    whole: bool

    @property
    def end(self) -> int:
        """Column just after the part."""
        return self.column + self.last - self.first


@dataclass(frozen=True)
class PartRead:
    """One reading of a part of a span, at a position of the run."""

    step: int
    row: int
    position: int
    part: Part


class Exposures:
    """The readings of one order before one step."""

    def __init__(self, order: Order, batch_size: int, upto_step: int) -> None:
        """Bind the order, B, and the first step that is not counted.

        Raises:
            ValueError: B below 1 or a negative step.
        """
        if batch_size < 1 or upto_step < 0:
            raise ValueError(
                f"expected batch_size >= 1 and upto_step >= 0, found {batch_size} and {upto_step}"
            )
        self.order, self.batch_size, self.upto_step = order, batch_size, upto_step
        self.consumed = upto_step * batch_size
        self._positions_of = lru_cache(maxsize=1 << 16)(self._make_positions)

    def _make_positions(self, sequence: int) -> list[int]:
        return self.order.positions_of(sequence, self.consumed)

    def parts(self, start: int, end: int) -> list[Part]:
        """Return what each sequence holds of the ids [start, end) of the stream.

        A sequence that holds the shared border id only is left out where another one holds the
        whole span: nothing of the text is learnt there that is not learnt from the other.
        """
        width = self.order.seq_len + 1
        parts = []
        for sequence, column in self.order.holding(start, end):
            first, last = max(0, -column), min(end - start, width - column)
            whole = last - first == end - start
            parts.append(Part(sequence, column + first, first, last, whole))
        if end - start > 1 and any(part.whole for part in parts):
            parts = [part for part in parts if part.last - part.first > 1]
        return parts

    def of(self, start: int, end: int) -> Iterator[PartRead]:
        """Yield every reading of the ids [start, end) of the stream, sequence by sequence."""
        for part in self.parts(start, end):
            for position in self._positions_of(part.sequence):
                yield PartRead(*divmod(position, self.batch_size), position, part)


def document_record(document: DocumentRef) -> dict[str, Any]:
    """Return what the views print of a document."""
    record: dict[str, Any] = {
        "source": document.source,
        "name": document.name,
        "record": document.record,
        "id": document.id,
        "index": document.index,
        "start": document.start,
        "end": document.end,
        "sha256": document.sha256,
    }
    return record | ({"meta": document.meta} if document.meta else {})


def document_label(document: DocumentRef) -> str:
    """Return ``source:name[:record]``, which ``locate`` takes."""
    record = "" if document.record is None else f":{document.record}"
    return f"{document.source}:{document.name}{record}"


def one_pass(order: Order, batch_size: int) -> int:
    """Return the steps that read every sequence once; of an order that ends, the whole steps."""
    positions = getattr(order, "num_positions", None)
    if positions is None:
        return -(-order.num_sequences // batch_size)
    return int(positions) // batch_size
