"""mixture-v1: how many tokens are read from each source, and which sequences those are.

Weights become integer token counts by largest remainder, in exact fractions. At sequence length S
the parts, one after the other, contribute a fixed number of *virtual sequences*; an order permutes
those as it would the sequences of one stream. A part that is read more than once has every one of
its sequences read once in each full pass; what is left over is a keyed random subset, so every
sequence of a part is read floor(c/N) or ceil(c/N) times, where c of its virtual sequences fall on
N sequences.

Guarantees: integers only; no state; the inverse is exact. Does not read shards. Specification with
test vectors: ``docs/spec/mixture.md``.
"""

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.permutation import Permutation

RULE = "mixture-v1"
Ids = npt.NDArray[np.int64]

_DOMAIN = b"mixture/seed/v1\0"
_DECIMAL = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


def parse_decimal(place: str, text: Any) -> Fraction:
    """Read a non-negative number from decimal text (or an integer), exactly.

    Raises:
        DatasetError: A float or any other form; ``place`` says where it stands.
    """
    if type(text) is int and text >= 0:
        return Fraction(text)
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise DatasetError(
            f'{place}: expected a decimal in quotes, like "0.7", found {text!r}; '
            "a float has no exact decimal value"
        )
    return Fraction(text)


def share_tokens(weights: Sequence[Fraction], tokens: int) -> list[int]:
    """Share ``tokens`` by weight, by largest remainder; equal remainders go to the first part.

    Raises:
        ValueError: No weights, or one that is not positive.
    """
    if not weights or min(weights) <= 0:
        raise ValueError(f"expected positive weights, found {[str(w) for w in weights]}")
    total = sum(weights)
    quotas = [tokens * weight / total for weight in weights]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda k: (shares[k] - quotas[k], k))
    for k in by_remainder[: tokens - sum(shares)]:
        shares[k] += 1
    return shares


@dataclass(frozen=True)
class Part:
    """One source: ``available`` ids from ``offset`` of the stream, of which ``tokens`` are read."""

    offset: int
    available: int
    tokens: int


class MixtureV1:
    """The virtual sequences of a mixture at one sequence length.

    Sequences are numbered part after part: part k has N_k = (available_k - 1) // S of them, each of
    S + 1 ids of its own; none crosses a border of parts.
    """

    def __init__(self, parts: Sequence[Part], seq_len: int, index_digest: str) -> None:
        """Bind the mixture.

        Args:
            parts: The parts in stream order.
            seq_len: S.
            index_digest: 64 hexadecimal digits; every dataset has its own random subsets.

        Raises:
            ValueError: S below 1, no parts, or a part that is too short for one sequence.
        """
        if seq_len < 1 or not parts:
            raise ValueError(f"expected seq_len >= 1 and parts, found {seq_len} and {len(parts)}")
        self.parts, self.seq_len = tuple(parts), seq_len
        self._digest = bytes.fromhex(index_digest)
        self._sizes = [(part.available - 1) // seq_len for part in parts]
        self._virtual = [part.tokens // seq_len for part in parts]
        for k, (part, size, wanted) in enumerate(
            zip(parts, self._sizes, self._virtual, strict=True)
        ):
            if wanted and size < 1:
                raise ValueError(
                    f"mixture part {k}: expected at least {seq_len + 1} ids for one sequence, "
                    f"found {part.available}; use a shorter seq_len or more text"
                )
        self._first = [0, *accumulate(self._sizes)]
        self._first_virtual = [0, *accumulate(self._virtual)]

    @property
    def num_sequences(self) -> int:
        """Sequences of all parts."""
        return self._first[-1]

    @property
    def num_virtual(self) -> int:
        """Virtual sequences: what an order permutes."""
        return self._first_virtual[-1]

    def sequences(self, virtual: npt.ArrayLike) -> Ids:
        """Return the sequence that each virtual sequence is.

        Args:
            virtual: n numbers in [0, num_virtual).

        Returns:
            int64 [n].

        Raises:
            ValueError: A number out of range.
        """
        numbers = _in_range(virtual, self.num_virtual)
        part_of = np.searchsorted(self._first_virtual, numbers, side="right") - 1
        out = np.empty_like(numbers)
        for k in np.unique(part_of).tolist():
            here = part_of == k
            local = numbers[here] - self._first_virtual[k]
            out[here] = self._first[k] + self._places(k, local)
        return out

    def _places(self, k: int, local: Ids) -> Ids:
        """Virtual numbers within part k to sequence numbers within it."""
        passes, places = np.divmod(local, self._sizes[k])
        last = passes == self._virtual[k] // self._sizes[k]
        if last.any():
            places[last] = self._subset(k).forward(places[last]).astype(np.int64)
        return places

    def virtual_numbers(self, sequence: int) -> list[int]:
        """Return the virtual sequences that are this sequence, ascending.

        Raises:
            ValueError: ``sequence`` is not in [0, num_sequences).
        """
        k, place = self._locate(sequence)
        size, first = self._sizes[k], self._first_virtual[k]
        full, rest = divmod(self._virtual[k], size)
        found = [first + number * size + place for number in range(full)]
        if rest:
            drawn = int(self._subset(k).inverse(place))
            if drawn < rest:
                found.append(first + full * size + drawn)
        return found

    def offsets(self, sequences: npt.ArrayLike) -> Ids:
        """Return where each sequence begins in the stream: int64 [n]; it is S + 1 ids long."""
        numbers = _in_range(sequences, self.num_sequences)
        part_of = np.searchsorted(self._first, numbers, side="right") - 1
        starts = np.array([part.offset for part in self.parts], dtype=np.int64)
        local = numbers - np.array(self._first, dtype=np.int64)[part_of]
        return np.asarray(starts[part_of] + local * self.seq_len, dtype=np.int64)

    def part_of(self, sequence: int) -> int:
        """Return the number of the part that holds a sequence."""
        return self._locate(sequence)[0]

    def _locate(self, sequence: int) -> tuple[int, int]:
        number = int(_in_range(sequence, self.num_sequences)[0])
        k = int(np.searchsorted(self._first, number, side="right")) - 1
        return k, number - self._first[k]

    def _subset(self, k: int) -> Permutation:
        """The permutation whose first places are the sequences of the last pass of part k."""
        return self._subsets[k]

    @cached_property
    def _subsets(self) -> dict[int, Permutation]:
        return {
            k: Permutation(size, part_seed(self._digest, k), self._virtual[k] // size)
            for k, size in enumerate(self._sizes)
            if size and self._virtual[k] % size
        }


def part_seed(index_digest: bytes, part: int) -> bytes:
    """Derive the 32-byte permutation seed of a part.

    Args:
        index_digest: 32 bytes.
        part: Its number, from 0.

    Returns:
        SHA-256 of ``"mixture/seed/v1\\0" || index_digest || LE64(part)``.
    """
    if len(index_digest) != 32:
        raise ValueError(f"expected an index digest of 32 bytes, found {len(index_digest)}")
    return hashlib.sha256(_DOMAIN + index_digest + struct.pack("<Q", part)).digest()


def _in_range(numbers: npt.ArrayLike, limit: int) -> Ids:
    found = np.atleast_1d(np.asarray(numbers, dtype=np.int64))
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < limit:
        raise ValueError(f"expected numbers in [0, {limit}), found {found.min()}..{found.max()}")
    return found
