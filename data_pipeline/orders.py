"""Orders over a stream: the permutation of ``order.py`` joined with the ids it permutes.

``open_order`` is the one place that knows every order by name. Specification:
``docs/spec/order.md``, ``docs/spec/mixture.md`` and ``docs/spec/neox.md``.
"""

import numpy.typing as npt

from data_pipeline import neox, order, preshuffled
from data_pipeline.datasets import AnyStream
from data_pipeline.errors import DatasetError
from data_pipeline.megatron_stream import MegatronStream
from data_pipeline.mixture import MixtureV1
from data_pipeline.order import OrderV1
from data_pipeline.protocols import Ids, Order
from data_pipeline.shards import TokenStream

ORDERS = (order.NAME, neox.NAME, preshuffled.NAME)


class FlatOrder:
    """``order-v1`` over one stream: sequence i is the ids [i·S, i·S + S] of it."""

    name = order.NAME

    def __init__(self, stream: AnyStream, seq_len: int, seed: int) -> None:
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


class MixtureOrder:
    """``order-v1`` over a mixture: it permutes the virtual sequences of ``mixture-v1``."""

    name = order.NAME

    def __init__(self, stream: TokenStream, mixture: MixtureV1, seed: int) -> None:
        """Bind stream, mixture and data seed.

        Raises:
            ValueError: A mixture of no sequence, or a negative seed.
        """
        self.seq_len = mixture.seq_len
        self._stream, self._mixture = stream, mixture
        self._order = OrderV1(mixture.num_virtual, stream.index.digest, seed)

    @property
    def num_sequences(self) -> int:
        """Sequences of all parts; one may be read several times an epoch, or not at all."""
        return self._mixture.num_sequences

    def sequences(self, first: int, count: int) -> Ids:
        """Return the numbers of the sequences read at positions [first, first + count)."""
        return self._mixture.sequences(self._order.sequences(first, count))

    def rows(self, sequences: npt.ArrayLike) -> Ids:
        """Return ids [n, S+1] of n sequences by number."""
        return self._stream.windows(self._mixture.offsets(sequences), self.seq_len + 1)

    def spans(self, sequence: int) -> list[tuple[int, int]]:
        """Return the one span of the stream that is the sequence."""
        start = int(self._mixture.offsets([sequence])[0])
        return [(start, start + self.seq_len + 1)]

    def holding(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (sequence, column of ``start``) of every sequence with an id of [start, end)."""
        if start >= end:
            return []
        found, base = [], 0
        for part in self._mixture.parts:
            size = (part.available - 1) // self.seq_len
            local = start - part.offset
            first = max(0, -(-(local - self.seq_len) // self.seq_len))
            last = min(size - 1, (end - 1 - part.offset) // self.seq_len)
            found += [(base + i, local - i * self.seq_len) for i in range(first, last + 1)]
            base += size
        return found

    def positions_of(self, sequence: int, consumed: int) -> list[int]:
        """Return the positions below ``consumed`` that read the sequence, ascending."""
        epochs = -(-consumed // self._mixture.num_virtual)
        virtual = self._mixture.virtual_numbers(sequence)
        found = [p for v in virtual for p in self._order.positions_of(v, epochs)]
        return sorted(p for p in found if p < consumed)


def open_order(name: str, stream: AnyStream, seq_len: int, seed: int) -> Order:
    """Open an order by name over a stream.

    Raises:
        DatasetError: An unknown name, or an order that this kind of dataset does not have.
    """
    if name == order.NAME:
        mixture = stream.index.mixture(seq_len) if isinstance(stream, TokenStream) else None
        if mixture is not None and isinstance(stream, TokenStream):
            return MixtureOrder(stream, mixture, seed)
        return FlatOrder(stream, seq_len, seed)
    if name not in ORDERS:
        raise DatasetError(f"data.order: expected one of {list(ORDERS)}, found {name!r}")
    if not isinstance(stream, MegatronStream):
        raise DatasetError(
            f"data.order: {name} is the order of Megatron files, found a dataset of shards; use "
            f"{order.NAME}, or index the .bin and .idx files (`tripod data index-megatron`)"
        )
    if name == neox.NAME:
        return neox.NeoxOrder(stream, seq_len, seed)
    return preshuffled.PreshuffledOrder(stream, seq_len)
