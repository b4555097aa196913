"""Shards as one stream of token ids: written once, then read by memory map.

A split is the concatenation of its shards. Documents lie in source order, each closed by the
end-of-document id, and are packed without padding: sequence i covers ids [i·S, i·S + S] of the
stream (S inputs and S targets, one id shared with the next sequence), across document and shard
borders.

Guarantees: readers check the size of every file before they map it, so a truncated shard is an
error and never a crash. Does not check contents: that is ``index.verify_dataset``.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.index import Shard, ShardIndex, shard_file, token_dtype
from data_pipeline.tokenizer import EOD

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentRef:
    """A document of a split: ``start`` and ``end`` are offsets in its stream, the mark included."""

    source: str
    name: str
    index: int
    start: int
    end: int


class ShardWriter:
    """Writes one split. A shard is closed before the document that would make it too long."""

    def __init__(self, root: Path, split: str, vocab_size: int, shard_tokens: int) -> None:
        """Prepare to write below ``root / split``; memory use is one shard of ids."""
        self._root, self._split, self._limit = root, split, shard_tokens
        self._dtype = np.dtype(token_dtype(vocab_size)).newbyteorder("<")
        self._shards: list[Shard] = []
        self._clear()
        (root / split).mkdir()

    def _clear(self) -> None:
        self._ids: list[npt.NDArray[Any]] = []
        self._ends: list[int] = []
        self._lines: list[bytes] = []

    def add(self, ids: npt.NDArray[np.unsignedinteger[Any]], source: dict[str, Any]) -> None:
        """Append a document.

        Args:
            ids: Its ids, without the end-of-document mark, which is added here.
            source: ``source``, ``name``, ``bytes`` and ``sha256`` of its text.
        """
        size = len(ids) + 1
        tokens = self._ends[-1] if self._ends else 0
        if self._ends and tokens + size > self._limit:
            self._flush()
            tokens = 0
        self._ids.append(np.append(ids, EOD).astype(self._dtype))
        self._ends.append(tokens + size)
        self._lines.append(canonical_json(source) + b"\n")

    def close(self) -> tuple[Shard, ...]:
        """Write what is left and return the shards in stream order."""
        if self._ends:
            self._flush()
        return tuple(self._shards)

    def _flush(self) -> None:
        data = np.concatenate(self._ids).tobytes()
        docs = np.array(self._ends, dtype="<u8").tobytes()
        sources = b"".join(self._lines)
        shard = Shard(
            file=shard_file(self._split, len(self._shards)),
            tokens=self._ends[-1],
            documents=len(self._ends),
            sha256=sha256_hex(data),
            docs_sha256=sha256_hex(docs),
            sources_sha256=sha256_hex(sources),
        )
        write_bytes(self._root / shard.file, data)
        write_bytes(self._root / shard.docs_file, docs)
        write_bytes(self._root / shard.sources_file, sources)
        self._shards.append(shard)
        self._clear()


class TokenStream:
    """The ids of one split, as if they lay in one file."""

    def __init__(self, dataset_dir: str | Path, split: str = "train") -> None:
        """Map the shards.

        Raises:
            DatasetError: An unknown split, or a file that is missing or has another size.
        """
        self.index = ShardIndex.load(dataset_dir)
        if split not in self.index.splits:
            raise DatasetError(f"split: expected one of {sorted(self.index.splits)}, found {split}")
        self.split = split
        self._records = self.index.splits[split]
        self._shards = [self._map(s.file, self.index.dtype, s.tokens) for s in self._records]
        self._ends = [self._map(s.docs_file, np.dtype("<u8"), s.documents) for s in self._records]
        self._starts = _starts(shard.tokens for shard in self._records)
        self._first_document = _starts(shard.documents for shard in self._records)
        self.num_tokens = self._starts[-1]
        self.num_documents = self._first_document[-1]
        self._source_lines = lru_cache(maxsize=16)(self._read_source_lines)

    def _map(self, file: str, dtype: "np.dtype[Any]", count: int) -> npt.NDArray[Any]:
        path = self.index.root / file
        found = path.stat().st_size if path.is_file() else None
        if found != count * dtype.itemsize:
            raise DatasetError(
                f"{path}: expected {count * dtype.itemsize} bytes, found "
                f"{'no file' if found is None else found}; "
                "restore it from a copy, or delete the dataset and build it again"
            )
        return np.memmap(path, dtype, mode="r").view(np.ndarray)

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
            piece = self._shards[number][begin : begin + count - done]
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
        out = np.empty((numbers.size, seq_len + 1), dtype=np.int64)
        for row, number in enumerate(numbers.tolist()):
            out[row] = self.read(number * seq_len, seq_len + 1)
        return out

    def document_at(self, offset: int) -> DocumentRef:
        """Return the document that holds the id at ``offset`` (a mark belongs to what it closes).

        Raises:
            ValueError: ``offset`` does not lie in the stream.
        """
        if not 0 <= offset < self.num_tokens:
            raise ValueError(f"expected an offset in [0, {self.num_tokens}), found {offset}")
        number = self._shard_at(offset)
        place = np.searchsorted(self._ends[number], offset - self._starts[number], side="right")
        return self._document(number, int(place))

    def documents(self) -> Iterator[DocumentRef]:
        """Yield every document of the split in stream order."""
        for number, record in enumerate(self._records):
            for place in range(record.documents):
                yield self._document(number, place)

    def documents_in(self, start: int, end: int) -> Iterator[DocumentRef]:
        """Yield the documents that overlap [start, end) of the stream, in order."""
        while start < end:
            document = self.document_at(start)
            yield document
            start = document.end

    def _shard_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def _document(self, number: int, place: int) -> DocumentRef:
        ends, base = self._ends[number], self._starts[number]
        record = json.loads(self._source_lines(number)[place])
        return DocumentRef(
            source=record["source"],
            name=record["name"],
            index=self._first_document[number] + place,
            start=base + (int(ends[place - 1]) if place else 0),
            end=base + int(ends[place]),
        )

    def _read_source_lines(self, number: int) -> list[bytes]:
        record = self._records[number]
        path = self.index.root / record.sources_file
        lines = path.read_bytes().split(b"\n")[:-1]
        if len(lines) != record.documents:
            raise DatasetError(
                f"{path}: expected {record.documents} lines, found {len(lines)}; "
                "restore it from a copy, or delete the dataset and build it again"
            )
        return lines


def _starts(sizes: Iterator[int]) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts
