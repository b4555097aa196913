"""When was this text read? Every exposure, from the shards alone.

Guarantees: the search is complete (``text_search``): it finds the text in whatever ids it was cut
into, inside a document, in shards of any number, and maps every place through the inverse of the
order to every step and row that read it. Rows whose ids an overlay replaced are searched as they
were read: planted text is found, replaced text is not claimed.

Says so where it is not: ``complete`` is false when more places were found than asked for. A text
that no sequence holds whole is reported as split, part by part, and not counted as an exposure.

Does not do: search across document borders, or in text that the tokenizer changed before it
encoded it, other than by changing the question in the same way (``needles``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from data_pipeline.datasets import AnyStream, notices
from data_pipeline.exposures import Exposures, document_label, document_record
from data_pipeline.protocols import DocumentRef, Ids, Order, Stream
from data_pipeline.search import Frequencies
from data_pipeline.search_index import SearchIndex, open_search_index
from data_pipeline.text_search import Match, TextPattern, Vocabulary

LIMIT = 100_000


@dataclass(frozen=True)
class Place:
    """A place of the text in the stream, and its document.

    ``one_document`` is false where the ids run over a border between documents that no mark shows.
    """

    start: int
    end: int
    skip: int
    document: DocumentRef
    one_document: bool

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self) | {"document": document_record(self.document)}


@dataclass(frozen=True)
class Exposure:
    """One reading of the text, or of ids [first, last) of it where ``whole`` is false.

    ``column`` is that of the first id that holds the text, ``end`` the column after the last one.
    ``planted`` says that an overlay put it there; ``document`` is None then.
    """

    step: int
    row: int
    position: int
    sequence: int
    column: int
    end: int
    whole: bool
    first: int
    last: int
    planted: bool
    document: DocumentRef | None

    def record(self, seq_len: int) -> dict[str, Any]:
        """Return it for JSON."""
        document = None if self.document is None else document_record(self.document)
        return asdict(self) | {"document": document, "read_as": read_as(self, seq_len)}


@dataclass(frozen=True)
class Seen:
    """The answer: ``exposures`` of the whole text and ``split`` parts of it, by position."""

    text: str
    needles: tuple[str, ...]
    upto_step: int
    seq_len: int
    complete: bool
    candidates: int
    places: list[Place]
    exposures: list[Exposure]
    split: list[Exposure]
    heldout: list[Place] | None = None
    notices: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Readings of the whole text."""
        return len(self.exposures)

    @property
    def first(self) -> Exposure | None:
        """The first reading of the whole text."""
        return self.exposures[0] if self.exposures else None

    @property
    def last(self) -> Exposure | None:
        """The last reading of the whole text."""
        return self.exposures[-1] if self.exposures else None

    def record(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "text": self.text,
            "needles": list(self.needles),
            "upto_step": self.upto_step,
            "complete": self.complete,
            "candidates": self.candidates,
            "count": self.count,
            "first": None if self.first is None else self.first.step,
            "last": None if self.last is None else self.last.step,
            "exposures": [one.record(self.seq_len) for one in self.exposures],
            "split": [one.record(self.seq_len) for one in self.split],
            "places": [place.record() for place in self.places],
            "heldout": None if self.heldout is None else [p.record() for p in self.heldout],
            "notices": self.notices,
        }


def read_as(exposure: Exposure, seq_len: int) -> str:
    """Return ``input`` for column 0 alone, ``target`` for column S alone, else ``both``."""
    if exposure.end == 1:
        return "input"
    return "target" if exposure.column == seq_len else "both"


class TextFinder:
    """Many questions over one stream: the vocabulary is decoded once."""

    def __init__(
        self,
        stream: Stream,
        tokenizer: Any = None,
        eod: int | None = None,
        use_index: bool = True,
    ) -> None:
        """Decode the vocabulary.

        Args:
            stream: What to search.
            tokenizer: ``encode(text)``, ``decode_bytes(ids)``, ``vocab_size``; that of the dataset
                by default.
            eod: The end-of-document mark; that of the dataset by default.
            use_index: Use the search index (``search_index.py``) where there is one; the answers
                are the same.
        """
        index: Any = getattr(stream, "index", None)
        self.stream = stream
        self.tokenizer = index.tokenizer() if tokenizer is None else tokenizer
        mark = index.eod if eod is None and index is not None else eod
        self.vocabulary = Vocabulary.of(self.tokenizer, mark)
        self._frequencies = Frequencies(stream)
        self._use_index = use_index
        self._indexes: dict[Stream, SearchIndex | None] = {}

    def patterns(self, text: str) -> list[TextPattern]:
        """Prepare the text, and what it becomes where the tokenizer normalises it.

        Raises:
            ValueError: An empty text.
        """
        plain = text.encode()
        kept = self.tokenizer.decode_bytes(np.asarray(self.tokenizer.encode(text)))
        needles = [plain] if plain in kept else [plain, kept]
        return [TextPattern(one, self.vocabulary, self._frequencies) for one in needles if one]

    def places(self, pattern: TextPattern, stream: Stream | None = None) -> Iterator[Place]:
        """Yield the places of a pattern in the stream (or in another one of this dataset).

        Raises:
            DatasetError: A file of the search index that is wrong or damaged.
        """
        stream = self.stream if stream is None else stream
        index = self._index_of(stream)
        document = None
        for match in pattern.search(stream, index):
            if document is None or not document.start <= match.start < document.end:
                document = stream.document_at(match.start)
            whole = match.end <= document.end
            yield Place(match.start, match.end, match.skip, document, whole)

    def _index_of(self, stream: Stream) -> SearchIndex | None:
        if self._use_index and stream not in self._indexes:
            self._indexes[stream] = open_search_index(stream)
        return self._indexes.get(stream)


def seen(
    text: str,
    finder: TextFinder,
    order: Order,
    batch_size: int,
    upto_step: int,
    *,
    extra: Iterable[tuple[int, Ids]] = (),
    heldout: Stream | None = None,
    limit: int = LIMIT,
) -> Seen:
    """Return every exposure of a text before a step.

    Args:
        text: What to look for; case and white space count.
        finder: The stream and its vocabulary.
        order: Which sequence is read when.
        batch_size: B.
        upto_step: First step that is not counted.
        extra: (position, ids [S+1]) of every row whose ids were replaced; searched as given, and
            exposures of the shards at these positions are counted only where the row agrees.
        heldout: Another split to search, reported apart.
        limit: Places to report at most; more make the answer incomplete.

    Raises:
        ValueError: An empty text.
    """
    if not text:
        raise ValueError("expected a text of at least one character, found an empty one")
    patterns = finder.patterns(text)
    exposures = Exposures(order, batch_size, upto_step)
    replaced = {p: np.asarray(ids) for p, ids in extra if p < exposures.consumed}
    found = [p for one in patterns for p in islice(finder.places(one), limit + 1)]
    places = found[:limit]
    readings = _of_places(places, exposures, finder.stream, replaced)
    for pattern in patterns:
        readings += _of_rows(pattern, exposures, finder.stream, replaced)
    readings.sort(key=lambda one: (one.position, one.column, one.end))
    held = None
    if heldout is not None:
        held = [p for one in patterns for p in islice(finder.places(one, heldout), limit + 1)]
    more = len(found) > limit or len(held or ()) > limit
    return Seen(
        text=text,
        needles=tuple(one.text.decode("utf-8", "replace") for one in patterns),
        upto_step=upto_step,
        seq_len=order.seq_len,
        complete=not more,
        candidates=max(one.candidates for one in patterns),
        places=places,
        exposures=[one for one in readings if one.whole],
        split=[one for one in readings if not one.whole],
        heldout=None if held is None else held[:limit],
        notices=[*_of_dataset(finder.stream), *_notices(more, limit, places, len(patterns))],
    )


def _of_places(
    places: list[Place], exposures: Exposures, stream: Stream, replaced: dict[int, Ids]
) -> list[Exposure]:
    found = []
    for place in places:
        for reading in exposures.of(place.start, place.end):
            part, row = reading.part, replaced.get(reading.position)
            if row is not None:
                start = place.start + part.first
                there = stream.read(start, part.last - part.first)
                if part.whole or not np.array_equal(row[part.column : part.end], there):
                    continue  # whole texts of a replaced row are found in the row itself
            found.append(
                Exposure(
                    step=reading.step,
                    row=reading.row,
                    position=reading.position,
                    sequence=part.sequence,
                    column=part.column,
                    end=part.end,
                    whole=part.whole,
                    first=part.first,
                    last=part.last,
                    planted=False,
                    document=place.document,
                )
            )
    return found


def _of_rows(
    pattern: TextPattern, exposures: Exposures, stream: Stream, replaced: dict[int, Ids]
) -> list[Exposure]:
    found = []
    for position, row in replaced.items():
        for match in pattern.find(row):
            sequence = int(exposures.order.sequences(position, 1)[0])
            document = _document_of(match, row, sequence, exposures.order, stream)
            step, number = divmod(position, exposures.batch_size)
            found.append(
                Exposure(
                    step=step,
                    row=number,
                    position=position,
                    sequence=sequence,
                    column=match.start,
                    end=match.end,
                    whole=True,
                    first=0,
                    last=match.end - match.start,
                    planted=document is None,
                    document=document,
                )
            )
    return found


def _document_of(
    match: Match, row: Ids, sequence: int, order: Order, stream: Stream
) -> DocumentRef | None:
    """The document of a match in a replaced row, or None where the overlay wrote any of its ids."""
    base = order.rows([sequence])[0]
    if not np.array_equal(base[match.start : match.end], row[match.start : match.end]):
        return None
    column = 0
    for start, end in order.spans(sequence):
        if match.start < column + end - start:
            return stream.document_at(start + match.start - column)
        column += end - start
    return None


def _of_dataset(stream: Stream) -> list[str]:
    return notices(stream.index) if isinstance(stream, AnyStream) else []


def _notices(more: bool, limit: int, places: list[Place], needles: int) -> list[str]:
    found = []
    if more:
        found.append(
            f"more than {limit} places hold the text: only the first {limit} are mapped to steps; "
            "ask for a longer text, or raise the limit"
        )
    if not all(place.one_document for place in places):
        found.append("some places run over a border between documents that no mark shows")
    if needles > 1:
        found.append("the tokenizer changes this text: both forms were searched")
    return found


def as_text(answer: Seen, most: int = 20) -> str:
    """Return the answer for a terminal, with at most ``most`` exposures of each kind."""
    first, last = answer.first, answer.last
    lines = [f"{answer.text!r}: read {answer.count} times before step {answer.upto_step}"]
    if first is not None and last is not None:
        lines[0] += f", first at step {first.step}, last at step {last.step}"
    lines += _listed(answer.exposures, most)
    if answer.split:
        lines.append(f"cut by the border of a sequence, so not read whole: {len(answer.split)}")
        lines += _listed(answer.split, most)
    if answer.heldout is not None:
        lines.append(f"places in the held-out split: {len(answer.heldout)}")
        lines += [f"  {document_label(place.document)}" for place in answer.heldout[:most]]
    state = "complete" if answer.complete else "NOT COMPLETE"
    lines.append(f"search: {state}; {len(answer.places)} places in the shards")
    return "\n".join(lines + [f"note: {notice}" for notice in answer.notices])


def _listed(exposures: list[Exposure], most: int) -> list[str]:
    lines = []
    for one in exposures[:most]:
        label = "planted by the overlay" if one.document is None else document_label(one.document)
        part = "" if one.whole else f"  (ids {one.first}..{one.last - 1} of the text)"
        lines.append(
            f"  step {one.step:>7}  row {one.row:>4}  columns {one.column}..{one.end - 1}  "
            f"{label}{part}"
        )
    if len(exposures) > most:
        lines.append(f"  and {len(exposures) - most} more (--json lists all)")
    return lines
