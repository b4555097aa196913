"""Orders over a stream: the permutation of ``order.py`` joined with the ids it permutes.

``open_order`` is the one place that knows every order by name. Specification:
``docs/spec/order.md``.
"""

import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.order import NAME, OrderV1
from data_pipeline.protocols import Ids, Order
from data_pipeline.shards import TokenStream

ORDERS = (NAME,)


class FlatOrder:
    """``order-v1`` over one stream: sequence i is the ids [i·S, i·S + S] of it."""

    name = NAME

    def __init__(self, stream: TokenStream, seq_len: int, seed: int) -> None:
        """Bind stream, S and data seed.

        Raises:
            ValueError: S below 1, too little text for one sequence, or a negative seed.
        """
        self.seq_len = seq_len
        self._stream = stream
        self._order = OrderV1(stream.num_sequences(seq_len), stream.index.digest, seed)

    @property
    def num_sequences(self) -> int:
        """N = floor((T - 1) / S)."""
        return self._order.num_sequences

    def sequences(self, first: int, count: int) -> Ids:
        """Return the numbers of the sequences read at positions [first, first + count)."""
        return self._order.sequences(first, count)

    def rows(self, sequences: npt.ArrayLike) -> Ids:
        """Return ids [n, S+1] of n sequences by number."""
        return self._stream.sequences(sequences, self.seq_len)

    def spans(self, sequence: int) -> list[tuple[int, int]]:
        """Return the one span of the stream that is the sequence."""
        return [(sequence * self.seq_len, (sequence + 1) * self.seq_len + 1)]

    def holding(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (sequence, column of ``start``) of every sequence with an id of [start, end)."""
        first = max(0, -(-(start - self.seq_len) // self.seq_len))
        last = min(self.num_sequences - 1, (end - 1) // self.seq_len) if start < end else -1
        return [(i, start - i * self.seq_len) for i in range(first, last + 1)]

    def positions_of(self, sequence: int, consumed: int) -> list[int]:
        """Return the positions below ``consumed`` that read the sequence, ascending."""
        epochs = -(-consumed // self.num_sequences)
        return [p for p in self._order.positions_of(sequence, epochs) if p < consumed]


def open_order(name: str, stream: TokenStream, seq_len: int, seed: int) -> Order:
    """Open an order by name over a stream.

    Raises:
        DatasetError: An unknown name, or an order that this kind of dataset does not have.
    """
    if name not in ORDERS:
        raise DatasetError(f"data.order: expected one of {list(ORDERS)}, found {name!r}")
    return FlatOrder(stream, seq_len, seed)
