"""The two things every reader of a dataset needs: a stream of ids, and an order over it.

A *stream* is one split of a dataset as if its ids lay in one file. An *order* cuts the stream into
numbered sequences of S inputs and S targets and says which of them is read at which position of a
run. Views, proofs, overlays and the loader are written against these two, so they work for every
dataset (`index-v1`, Megatron files in place) and every order (`order-v1`, `neox-v1`,
`preshuffled-v1`).

Position p = step · B + row, counted from zero over the whole run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentRef:
    """A document of a stream: ``start`` and ``end`` are offsets in it, the closing mark included.

    ``name`` is the file (or record) the document came from, ``record`` its number within that file
    or None where a file is one document, ``id`` what the source calls it, ``meta`` what the source
    says about it; ``sha256`` is that of its UTF-8 text ("" where only ids are known).
    """

    source: str
    name: str
    index: int
    start: int
    end: int
    sha256: str = ""
    record: int | None = None
    id: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


class Stream(Protocol):
    """The ids of one split."""

    @property
    def num_tokens(self) -> int:
        """Ids in the stream."""
        ...

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        ...

    def read(self, offset: int, count: int) -> Ids:
        """Return ``count`` ids from ``offset``; ValueError outside the stream."""
        ...

    def pieces(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (offset, ids) in stream order: whole shards, mapped; parts of them behind a URL."""
        ...

    def document_at(self, offset: int) -> DocumentRef:
        """Return the document that holds the id at ``offset``."""
        ...

    def documents_in(self, start: int, end: int) -> Iterator[DocumentRef]:
        """Yield the documents that overlap [start, end), in stream order."""
        ...

    def documents(self) -> Iterator[DocumentRef]:
        """Yield every document in stream order."""
        ...


class Order(Protocol):
    """Sequences of S+1 ids, and which of them is read at which position."""

    name: str
    seq_len: int

    @property
    def num_sequences(self) -> int:
        """Sequences that can be read; their numbers are [0, num_sequences)."""
        ...

    def sequences(self, first: int, count: int) -> Ids:
        """Return the numbers of the sequences read at positions [first, first + count)."""
        ...

    def rows(self, sequences: npt.ArrayLike) -> Ids:
        """Return ids [n, S+1] of n sequences by number."""
        ...

    def spans(self, sequence: int) -> list[tuple[int, int]]:
        """Return the spans [start, end) of the stream whose ids, joined, are the sequence."""
        ...

    def holding(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (sequence, column) of every sequence that holds an id of the span [start, end).

        ``column`` is where the id at ``start`` stands in the S+1 ids: negative when the span begins
        before the sequence does. A span lies whole in a sequence when ``0 <= column`` and
        ``column + end - start <= S + 1``.
        """
        ...

    def positions_of(self, sequence: int, consumed: int) -> list[int]:
        """Return the positions below ``consumed`` that read the sequence, ascending."""
        ...
