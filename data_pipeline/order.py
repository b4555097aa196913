"""order-v1: which sequence is read at which position, as a pure function of the index and a seed.

Position p lies in epoch e = p // N at place j = p % N and reads sequence π(seed, e)(j), where N is
the number of sequences and π is PRP v1. Step t consumes positions [t·B, (t+1)·B).

Guarantees: no state and no random generator; every position can be computed alone; a longer run or
another batch size keeps the prefix; every epoch reads every sequence once; the inverse (which
steps read sequence i?) costs one permutation per epoch. The seed is bound to the index digest, so
the order cannot be chosen independently of the corpus. Specification: ``docs/spec/order.md``.
"""

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_pipeline.permutation import Permutation

NAME = "order-v1"
_DOMAIN = b"order/seed/v1\0"
_BLOCK = 1024  # positions computed together: small steps share them, a step of 1,024 is one of them


def order_seed(index_digest: str, seed: int) -> bytes:
    """Derive the 32-byte permutation seed from the corpus and a human seed.

    Args:
        index_digest: 64 hexadecimal digits.
        seed: A non-negative integer, written in decimal into the hash.

    Raises:
        ValueError: A digest of another length, or a negative seed.
    """
    digest = bytes.fromhex(index_digest)
    if len(digest) != 32:
        raise ValueError(f"expected an index digest of 64 hex digits, found {index_digest!r}")
    if seed < 0:
        raise ValueError(f"expected a data seed of at least 0, found {seed}")
    return hashlib.sha256(_DOMAIN + digest + str(seed).encode("ascii")).digest()


class OrderV1:
    """The order of one index under one data seed."""

    def __init__(self, num_sequences: int, index_digest: str, seed: int) -> None:
        """Bind the order.

        Raises:
            ValueError: No sequences, a malformed digest or a negative seed.
        """
        if num_sequences < 1:
            raise ValueError(
                f"expected at least one sequence, found {num_sequences}; "
                "use a shorter seq_len or more text"
            )
        self.num_sequences = num_sequences
        self._seed = order_seed(index_digest, seed)
        self._permutation = lru_cache(maxsize=8)(self._make_permutation)
        self._block = lru_cache(maxsize=16)(self._make_block)

    def _make_permutation(self, epoch: int) -> Permutation:
        return Permutation(self.num_sequences, self._seed, epoch)

    def sequences(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return the sequences read at positions [first, first + count).

        Returns:
            int64 array of ``count`` sequence numbers; it may cross any number of epochs.
        """
        if first < 0 or count < 0:
            raise ValueError(f"expected first >= 0 and count >= 0, found {first} and {count}")
        if count > _BLOCK or self.num_sequences < _BLOCK:
            return self._compute(first, count)
        number, place = divmod(first, _BLOCK)
        found = self._block(number)[place : place + count]
        if len(found) < count:
            found = np.concatenate([found, self._block(number + 1)[: count - len(found)]])
        return found.copy()

    def _make_block(self, number: int) -> npt.NDArray[np.int64]:
        return self._compute(number * _BLOCK, _BLOCK)

    def _compute(self, first: int, count: int) -> npt.NDArray[np.int64]:
        parts = []
        while count:
            epoch, place = divmod(first, self.num_sequences)
            size = min(count, self.num_sequences - place)
            places = np.arange(place, place + size, dtype=np.uint64)
            parts.append(self._permutation(epoch).forward(places).astype(np.int64))
            first, count = first + size, count - size
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def step_sequences(self, step: int, batch_size: int) -> npt.NDArray[np.int64]:
        """Return the B sequences that step ``step`` (0-based) reads, in row order."""
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, found {batch_size}")
        return self.sequences(step * batch_size, batch_size)

    def positions_of(self, sequence: int, epochs: int) -> list[int]:
        """Return the positions that read ``sequence`` in the first ``epochs`` epochs, in order.

        Raises:
            ValueError: ``sequence`` is not in [0, num_sequences).
        """
        return [
            epoch * self.num_sequences + int(self._permutation(epoch).inverse(sequence))
            for epoch in range(epochs)
        ]

    def exposures(self, sequence: int, batch_size: int, upto_step: int) -> list[tuple[int, int]]:
        """Return every (step, row) with step < ``upto_step`` that reads ``sequence``, in order."""
        consumed = upto_step * batch_size
        epochs = -(-consumed // self.num_sequences)
        positions = self.positions_of(sequence, epochs)
        return [divmod(position, batch_size) for position in positions if position < consumed]
