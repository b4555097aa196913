"""Megatron files as one stream of ids: the parts of an index, one after the other.

With a ``split`` string in the index the stream is the items of that split only; else it is every
item of every part. A document is an item: where items are rows of a preshuffled set, so is it.

Guarantees: ids are read from the memory maps of the files where they lie; nothing is copied or
joined. Sizes and the ``.idx`` are checked on opening, contents by ``verify_megatron``.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.gather import will_need
from data_pipeline.megatron import MegatronFiles
from data_pipeline.megatron_index import MegatronIndex
from data_pipeline.protocols import DocumentRef, Ids


@dataclass(frozen=True)
class Part:
    """The items [``first_item``, ``last_item``) of one file, and where they stand in the stream.

    ``base_item`` and ``base`` are the number and the offset, in the stream, of the first of them;
    ``shift`` is what makes an offset in the file one in the stream.
    """

    number: int
    name: str
    files: MegatronFiles
    first_item: int
    last_item: int
    base_item: int
    base: int
    shift: int
    num_tokens: int

    @property
    def num_items(self) -> int:
        """Items of the part."""
        return self.last_item - self.first_item

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Ids of every item, mapped: [items]."""
        return self.files.sizes[self.first_item : self.last_item]

    def item_start(self, item: int) -> int:
        """Offset in the stream of an item of the part; ``num_items`` gives the end."""
        return self.files.item_start(self.first_item + item) + self.shift

    def item_starts(self, items: Ids) -> Ids:
        """Offsets in the stream of n items of the part, int64 [n]."""
        return self.files.item_starts(items + self.first_item) + self.shift

    def item_at(self, offset: int) -> int:
        """Item of the part that holds the id at an offset of the stream."""
        return self.files.item_at(offset - self.shift) - self.first_item

    def copy(self, offsets: Ids, counts: Ids, out: Ids) -> None:
        """Fill ``out`` with runs of ids from offsets of the stream, all of them in the part."""
        self.files.copy(offsets - self.shift, counts, out)


class MegatronStream:
    """The ids of one split of Megatron files; implements ``protocols.Stream``."""

    def __init__(self, dataset_dir: str | Path, split: str = "train") -> None:
        """Map the files.

        Args:
            dataset_dir: A dataset with an index of schema ``megatron-index-v1``.
            split: ``train``; also ``valid`` or ``test`` where the index has a ``split`` string.

        Raises:
            DatasetError: Another split, or files that are not as the index says.
        """
        self.index = MegatronIndex.load(dataset_dir)
        self.split = split
        first, last = self.index.item_range(split)
        self.parts = list(_parts(self.index, first, last))
        self._bases = [part.base for part in self.parts]
        self._base_items = [part.base_item for part in self.parts]
        self.num_tokens = self.parts[-1].base + self.parts[-1].num_tokens
        self.num_documents = self.parts[-1].base_item + self.parts[-1].num_items

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
        while done < count:
            part = self.parts[bisect_right(self._bases, offset + done) - 1]
            size = min(count - done, part.base + part.num_tokens - offset - done)
            part.files.read_into(offset + done - part.shift, out[done : done + size])
            done += size
        return out

    def pieces(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (offset, ids), mapped, in stream order: every shard, and every id across a cut."""
        for part in self.parts:
            first = part.base - part.shift
            last = first + part.num_tokens
            for start, ids in part.files.segments():
                begin, end = max(first, start), min(last, start + len(ids))
                if begin < end:
                    yield begin + part.shift, ids[begin - start : end - start]

    def num_sequences(self, seq_len: int) -> int:
        """Number of whole sequences of S inputs and S targets, cut as ``order-v1`` cuts them."""
        if seq_len < 1:
            raise ValueError(f"expected seq_len >= 1, found {seq_len}")
        return max(0, (self.num_tokens - 1) // seq_len)

    def sequences(self, seq_ids: npt.ArrayLike, seq_len: int) -> Ids:
        """Return sequences of the flat stream by number: int64 [n, S+1].

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
        """Return the ``width`` ids from each of n offsets of the stream: int64 [n, width].

        Raises:
            ValueError: A window that does not lie in the stream.
        """
        starts = np.asarray(offsets, dtype=np.int64)
        low, high = (int(starts.min()), int(starts.max())) if starts.size else (0, 0)
        if low < 0 or width < 0 or (starts.size and high + width > self.num_tokens):
            raise ValueError(
                f"expected windows in [0, {self.num_tokens}), found [{low}, {high + width})"
            )
        out = np.empty((starts.size, width), dtype=np.int64)
        if len(self.parts) == 1:
            self.parts[0].copy(starts, np.full(starts.size, width), out.reshape(-1))
        else:
            for row, start in enumerate(starts.tolist()):
                out[row] = self.read(start, width)
        return out

    def will_need(self, spans: Sequence[tuple[int, int]]) -> None:
        """Start to read the files of these spans [start, end), without waiting for them."""
        edges = np.array(spans, dtype=np.int64).reshape(-1, 2)
        starts, pieces = self._pieces
        will_need(pieces.__getitem__, starts, edges[:, 0], edges[:, 1] - edges[:, 0])

    @cached_property
    def _pieces(self) -> tuple[Ids, list[npt.NDArray[Any]]]:
        """Where each piece starts, the end of the last, and the pieces."""
        pieces = list(self.pieces())
        return np.array([*(start for start, _ in pieces), self.num_tokens]), [p for _, p in pieces]

    def document(self, index: int) -> DocumentRef:
        """Return the item with this number in the stream; it may be empty.

        Raises:
            ValueError: ``index`` is not in [0, num_documents).
        """
        if not 0 <= index < self.num_documents:
            raise ValueError(f"expected a document in [0, {self.num_documents}), found {index}")
        part = self.parts[bisect_right(self._base_items, index) - 1]
        return _reference(part, index - part.base_item)

    def document_at(self, offset: int) -> DocumentRef:
        """Return the item that holds the id at ``offset``.

        Raises:
            ValueError: ``offset`` does not lie in the stream.
        """
        part = self.part_at(offset)
        return _reference(part, part.item_at(offset))

    def part_at(self, offset: int) -> Part:
        """Return the part that holds the id at ``offset``; ValueError outside the stream."""
        if not 0 <= offset < self.num_tokens:
            raise ValueError(f"expected an offset in [0, {self.num_tokens}), found {offset}")
        return self.parts[bisect_right(self._bases, offset) - 1]

    def documents_in(self, start: int, end: int) -> Iterator[DocumentRef]:
        """Yield the items that hold ids of [start, end), in order."""
        while start < end:
            document = self.document_at(start)
            yield document
            start = document.end

    def documents(self) -> Iterator[DocumentRef]:
        """Yield every item in stream order, empty ones too."""
        for part in self.parts:
            for item in range(part.num_items):
                yield _reference(part, item)


def _parts(index: MegatronIndex, first: int, last: int) -> Iterator[Part]:
    """Open the parts; [first, last) narrows the items where a split cuts the one file."""
    whole = first == 0 and last == sum(part["items"] for part in index.data["parts"])
    base_item = base = 0
    for number, record in enumerate(index.data["parts"]):
        files = index.open_files(number)
        begin, end = (0, files.num_items) if whole else (first, last)
        start = files.item_start(begin)
        tokens = files.item_start(end) - start
        shift = base - start
        yield Part(number, record["name"], files, begin, end, base_item, base, shift, tokens)
        base_item, base = base_item + end - begin, base + tokens


def _reference(part: Part, item: int) -> DocumentRef:
    name = part.files.idx.name.removesuffix(".idx")
    start, end = part.item_start(item), part.item_start(item + 1)
    number = part.first_item + item
    return DocumentRef(part.name, name, part.base_item + item, start, end, record=number)
