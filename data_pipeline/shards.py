"""Shards as one stream of token ids, read by memory map (``shard_writer.py`` writes them).

A split is the concatenation of its shards. Documents lie in source order, each closed by the
end-of-document id, and are packed without padding: sequence i covers ids [i·S, i·S + S] of the
stream (S inputs and S targets, one id shared with the next sequence), across document and shard
borders.

Guarantees: readers check the size of every file before they map it, so a truncated shard is an
error and never a crash. Does not check contents: that is ``index.verify_dataset``.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.gather import gather_rows, will_need
from data_pipeline.index import ShardIndex
from data_pipeline.protocols import DocumentRef, Ids
from data_pipeline.storage import Array

REMOTE_BLOCK = 1 << 22  # bytes
_DOCS_ROW = 16  # bytes of a row of `.docs`: two u64


class TokenStream:
    """The ids of one split, as if they lay in one file."""

    def __init__(
        self, place: str | Path, split: str = "train", index: ShardIndex | None = None
    ) -> None:
        """Check the sizes of the files; each is mapped when it is first read.

        Args:
            place: The directory of a dataset, or its URL (sizes are then checked at first use).
            split: ``train`` or ``heldout``.
            index: The index of the dataset, where it is read already.

        Raises:
            DatasetError: An unknown split, or a file that is missing or has another size.
        """
        self.index = index or ShardIndex.load(place)
        if split not in self.index.splits:
            raise DatasetError(f"split: expected one of {sorted(self.index.splits)}, found {split}")
        self.split = split
        self._records = self.index.splits[split]
        self._starts = _starts(shard.tokens for shard in self._records)
        self._edges = np.array(self._starts, dtype=np.int64)
        self._first_document = _starts(shard.documents for shard in self._records)
        self.num_tokens = self._starts[-1]
        self.num_documents = self._first_document[-1]
        # One entry a shard at most: nothing is ever dropped, so an array once returned stays valid.
        self._ids = lru_cache(maxsize=None)(self._open_ids)
        self._ends = lru_cache(maxsize=None)(self._open_ends)
        if self.index.storage.is_local:
            self._check_sizes()

    def _check_sizes(self) -> None:
        for shard in self._records:
            check = self.index.storage.check
            check(shard.file, shard.tokens * self.index.dtype.itemsize)
            check(shard.docs_file, shard.documents * _DOCS_ROW)

    def _open_ids(self, number: int) -> Array:
        shard = self._records[number]
        return self.index.storage.array(shard.file, self.index.dtype, (shard.tokens,))

    def _open_ends(self, number: int) -> Array:
        shard, storage = self._records[number], self.index.storage
        ends = storage.array(shard.docs_file, np.dtype("<u8"), (shard.documents, 2))
        storage.check(shard.sources_file, int(ends[shard.documents - 1][1]))
        return ends

    def pieces(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (offset, ids) in stream order, ids in the type of the shards.

        A piece is a shard, mapped; behind a URL at most ``REMOTE_BLOCK`` bytes of one, fetched when
        its turn comes, so memory does not grow with the shards.
        """
        block = REMOTE_BLOCK // self.index.dtype.itemsize
        for number, start in enumerate(self._starts[:-1]):
            ids = self._ids(number)
            size = max(1, len(ids) if self.index.storage.is_local else block)
            for first in range(0, len(ids), size):
                yield start + first, ids[first : first + size]

    def num_sequences(self, seq_len: int) -> int:
        """Number of whole sequences of S inputs and S targets; the rest of the stream is unused."""
        if seq_len < 1:
            raise ValueError(f"expected seq_len >= 1, found {seq_len}")
        return max(0, (self.num_tokens - 1) // seq_len)

    def read(self, offset: int, count: int) -> Ids:
        """Return ``count`` ids from ``offset`` of the stream.

        Raises:
            ValueError: The range does not lie in the stream.
        """
        if offset < 0 or count < 0 or offset + count > self.num_tokens:
            raise ValueError(
                f"expected a range in [0, {self.num_tokens}), found [{offset}, {offset + count})"
            )
        out = np.empty(count, dtype=np.int64)
        done = 0
        number = self._shard_at(offset)
        while done < count:
            begin = offset + done - self._starts[number]
            piece = self._ids(number)[begin : begin + count - done]
            out[done : done + len(piece)] = piece
            done, number = done + len(piece), number + 1
        return out

    def sequences(self, seq_ids: npt.ArrayLike, seq_len: int) -> Ids:
        """Return sequences by number.

        Args:
            seq_ids: n numbers in [0, num_sequences(seq_len)).
            seq_len: S.

        Returns:
            int64 [n, S+1].

        Raises:
            ValueError: A number out of range.
        """
        numbers = np.asarray(seq_ids, dtype=np.int64)
        limit = self.num_sequences(seq_len)
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < limit:
            raise ValueError(
                f"expected sequences in [0, {limit}), found {numbers.min()}..{numbers.max()}"
            )
        return self.windows(numbers * seq_len, seq_len + 1)

    def windows(self, offsets: npt.ArrayLike, width: int) -> Ids:
        """Return the ``width`` ids from each of n offsets of the stream: int64 [n, width]."""
        return gather_rows(self._ids, self._edges, offsets, width)

    def will_need(self, spans: Sequence[tuple[int, int]]) -> None:
        """Start to read the files of these spans [start, end), without waiting for them."""
        offsets = np.array(spans, dtype=np.int64).reshape(-1, 2)
        will_need(self._ids, self._edges, offsets[:, 0], offsets[:, 1] - offsets[:, 0])

    def document_at(self, offset: int) -> DocumentRef:
        """Return the document that holds the id at ``offset`` (a mark belongs to what it closes).

        Raises:
            ValueError: ``offset`` does not lie in the stream.
        """
        if not 0 <= offset < self.num_tokens:
            raise ValueError(f"expected an offset in [0, {self.num_tokens}), found {offset}")
        number = self._shard_at(offset)
        local = offset - self._starts[number]
        return self._document(number, bisect_right(self._ends(number), local, key=_token_end))

    def document(self, index: int) -> DocumentRef:
        """Return the document with this number in the stream.

        Raises:
            ValueError: ``index`` is not in [0, num_documents).
        """
        if not 0 <= index < self.num_documents:
            raise ValueError(f"expected a document in [0, {self.num_documents}), found {index}")
        number = bisect_right(self._first_document, index) - 1
        return self._document(number, index - self._first_document[number])

    def documents(self) -> Iterator[DocumentRef]:
        """Yield every document of the split in stream order; each shard's records are read once."""
        for number, shard in enumerate(self._records):
            lines = self.index.storage.read(shard.sources_file).split(b"\n")[:-1]
            rows = self._ends(number)[:].tolist()
            if len(lines) != len(rows):
                raise DatasetError(self._broken(number, f"{len(rows)} lines", f"{len(lines)}"))
            start = 0
            for place, (line, (end, _)) in enumerate(zip(lines, rows, strict=True)):
                yield self._reference(number, place, line, start, end)
                start = end

    def documents_in(self, start: int, end: int) -> Iterator[DocumentRef]:
        """Yield the documents that overlap [start, end) of the stream, in order."""
        while start < end:
            document = self.document_at(start)
            yield document
            start = document.end

    def _shard_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def _document(self, number: int, place: int) -> DocumentRef:
        ends = self._ends(number)
        start, line_start = (int(v) for v in ends[place - 1]) if place else (0, 0)
        end, line_end = (int(v) for v in ends[place])
        line = self.index.storage.read_range(
            self._records[number].sources_file, line_start, line_end
        )
        return self._reference(number, place, line, start, end)

    def _reference(self, number: int, place: int, line: bytes, start: int, end: int) -> DocumentRef:
        try:
            record = json.loads(line)
            base = self._starts[number]
            return DocumentRef(
                source=record["source"],
                name=record["name"],
                index=self._first_document[number] + place,
                start=base + start,
                end=base + end,
                sha256=record["sha256"],
                record=record.get("record"),
                id=record.get("id"),
                meta=record.get("meta", {}),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                self._broken(number, f"a record of document {place}", repr(error))
            ) from error

    def _broken(self, number: int, expected: str, found: str) -> str:
        where = self.index.storage.where(self._records[number].sources_file)
        return (
            f"{where}: expected {expected}, found {found}; "
            "restore it from a copy, or delete the dataset and build it again"
        )


def _token_end(row: npt.NDArray[np.uint64]) -> int:
    return int(row[0])


def _starts(sizes: Iterator[int]) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts
