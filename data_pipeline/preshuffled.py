"""preshuffled-v1: files whose items already are the sequences, read in file order.

Item i, S+1 ids, is the i-th sequence that a run reads: step t of batch B reads the items
[t·B, (t+1)·B). Pythia's published preshuffled sets have this form, with S = 2048 and B = 1024, and
step t is what Pythia's own viewer shows as ``dataset[t * 1024 : (t + 1) * 1024]``. Sequences share
no id with their neighbours in the file. The seed plays no part.

What such a file cannot say: which documents a sequence holds, whether marks stand between them, and
that a model was trained on it. Specification: ``docs/spec/neox.md``.
"""

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.megatron_stream import MegatronStream
from data_pipeline.protocols import Ids

NAME = "preshuffled-v1"
_CHECKED_AT_ONCE = 1 << 22


class PreshuffledOrder:
    """``preshuffled-v1`` over Megatron files; implements ``protocols.Order``."""

    name = NAME

    def __init__(self, stream: MegatronStream, seq_len: int) -> None:
        """Check that every item has S+1 ids.

        Args:
            stream: The files.
            seq_len: S.

        Raises:
            DatasetError: An item of another length, or no items.
        """
        for part in stream.parts:
            for first in range(0, part.num_items, _CHECKED_AT_ONCE):
                lengths = part.lengths[first : first + _CHECKED_AT_ONCE]
                wrong = lengths != seq_len + 1
                if wrong.any():
                    place = int(np.argmax(wrong))
                    raise DatasetError(
                        f"{part.files.idx}: item {part.first_item + first + place}: expected "
                        f"{seq_len + 1} ids for seq_len {seq_len}, found {int(lengths[place])}; "
                        f"use another seq_len, or neox-v1 where items are documents"
                    )
        self.seq_len = seq_len
        self.num_sequences = stream.num_documents
        self._stream = stream
        if not self.num_sequences:
            raise DatasetError(f"{stream.index.storage}: expected at least one item, found none")

    def sequences(self, first: int, count: int) -> Ids:
        """Return the positions themselves.

        Raises:
            DatasetError: Positions past the last item.
            ValueError: A negative position or count.
        """
        if first < 0 or count < 0:
            raise ValueError(f"expected first >= 0 and count >= 0, found {first} and {count}")
        if first + count > self.num_sequences:
            raise DatasetError(
                f"{NAME}: expected positions below {self.num_sequences}, found "
                f"[{first}, {first + count}); the files hold no more: ask for fewer steps"
            )
        return np.arange(first, first + count, dtype=np.int64)

    def rows(self, sequences: npt.ArrayLike) -> Ids:
        """Return ids [n, S+1] of n sequences by number.

        Raises:
            ValueError: A number out of range.
        """
        numbers = np.asarray(sequences, dtype=np.int64)
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_sequences:
            raise ValueError(
                f"expected sequences in [0, {self.num_sequences}), found "
                f"{int(numbers.min())}..{int(numbers.max())}"
            )
        return self._stream.windows(numbers * (self.seq_len + 1), self.seq_len + 1)

    def spans(self, sequence: int) -> list[tuple[int, int]]:
        """Return the one span of the stream that is the sequence."""
        width = self.seq_len + 1
        return [(sequence * width, (sequence + 1) * width)]

    def holding(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (sequence, column of ``start``) of every sequence with an id of [start, end)."""
        width = self.seq_len + 1
        if start >= end:
            return []
        last = min(self.num_sequences - 1, (end - 1) // width)
        return [(number, start - number * width) for number in range(start // width, last + 1)]

    def positions_of(self, sequence: int, consumed: int) -> list[int]:
        """Return [``sequence``] where that lies below ``consumed``, else none."""
        return [sequence] if 0 <= sequence < min(consumed, self.num_sequences) else []
