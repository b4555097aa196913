"""A stream and an order in memory, written for clarity: references for what reads real datasets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipeline.protocols import DocumentRef, Ids


class MemoryStream:
    """Ids in pieces of any size; documents end after every id 0 (and at the end)."""

    def __init__(self, pieces: Sequence[Sequence[int]], dtype: str = "<u2") -> None:
        self._pieces = [np.array(piece, dtype=dtype) for piece in pieces]
        joined = [piece.astype(np.int64) for piece in self._pieces]
        self.ids = np.concatenate(joined) if joined else np.zeros(0, np.int64)
        ends = sorted({*(np.flatnonzero(self.ids == 0) + 1).tolist(), len(self.ids)} - {0})
        self.borders = [0, *ends]

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_documents(self) -> int:
        return len(self.borders) - 1

    def read(self, offset: int, count: int) -> Ids:
        if offset < 0 or count < 0 or offset + count > len(self.ids):
            raise ValueError(f"expected a range in the stream, found {offset}, {count}")
        return self.ids[offset : offset + count]

    def pieces(self) -> Iterator[tuple[int, Any]]:
        start = 0
        for piece in self._pieces:
            yield start, piece
            start += len(piece)

    def document_at(self, offset: int) -> DocumentRef:
        return next(d for d in self.documents() if d.start <= offset < d.end)

    def documents_in(self, start: int, end: int) -> Iterator[DocumentRef]:
        return (d for d in self.documents() if d.start < end and start < d.end)

    def documents(self) -> Iterator[DocumentRef]:
        for index, (start, end) in enumerate(zip(self.borders, self.borders[1:], strict=False)):
            yield DocumentRef("memory", f"doc{index}", index, start, end)


class ShuffledOrder:
    """Sequences of S+1 ids, S apart, shuffled anew in every epoch."""

    name = "memory"

    def __init__(self, stream: MemoryStream, seq_len: int, seed: int = 0) -> None:
        self.stream, self.seq_len, self._seed = stream, seq_len, seed
        self.num_sequences = max(0, (stream.num_tokens - 1) // seq_len)

    def _epoch(self, epoch: int) -> Ids:
        return np.random.RandomState(self._seed * 1000 + epoch).permutation(self.num_sequences)

    def sequences(self, first: int, count: int) -> Ids:
        numbers = [
            int(self._epoch(p // self.num_sequences)[p % self.num_sequences])
            for p in range(first, first + count)
        ]
        return np.array(numbers, dtype=np.int64)

    def rows(self, sequences: Any) -> Ids:
        size = self.seq_len
        return np.stack([self.stream.read(n * size, size + 1) for n in np.asarray(sequences)])

    def spans(self, sequence: int) -> list[tuple[int, int]]:
        return [(sequence * self.seq_len, sequence * self.seq_len + self.seq_len + 1)]

    def holding(self, start: int, end: int) -> list[tuple[int, int]]:
        return [
            (n, start - n * self.seq_len)
            for n in range(self.num_sequences)
            if n * self.seq_len < end and start < n * self.seq_len + self.seq_len + 1
        ]

    def positions_of(self, sequence: int, consumed: int) -> list[int]:
        return [p for p, n in enumerate(self.sequences(0, consumed).tolist()) if n == sequence]
