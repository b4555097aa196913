"""The index maps of GPT-NeoX for one file: its items shuffled, cut into samples, shuffled again.

Own words and closed forms for what ``gpt2_dataset.py`` and ``helpers.cpp`` of GPT-NeoX compute
(packing "packed"); equal to them bit for bit, items of length zero included. ``docs/spec/neox.md``
is the specification, with vectors.

Memory: 8.5 bytes an item and epoch and 4 a sample: 2.4 GB for the standard Pile of Pythia (210 M
items, 162 M samples), more while it is made, in every process that opens it. The two inverses,
which only searches need, are made on first use: 4 bytes an item and epoch, 4 a sample. Nothing is
cached in files.
"""

import math
from collections.abc import Sequence
from functools import cached_property, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError

_BLOCK = 16  # slots between two marks
_FACTOR = 1.005  # what GPT-NeoX asks of each file beyond its share of the samples
Ids = npt.NDArray[np.int64]


def sum_in_order(numbers: Sequence[float]) -> float:
    """Add from left to right.

    Python's ``sum`` did so too until 3.12 and compensates since, which can change the last bit.
    """
    return reduce(add, numbers, 0.0)


def split_bounds(split: str, items: int) -> list[int]:
    """Return the four item numbers between which ``train``, ``valid`` and ``test`` lie.

    Args:
        split: Such as ``"969, 30, 1"``: up to three shares, by ``,`` or else by ``/``.
        items: Items of the file.

    Raises:
        DatasetError: Not numbers, a negative one, or no share at all.
    """
    separator = "," if "," in split else "/"
    try:
        shares = [float(share) for share in split.split(separator)]
    except ValueError:
        shares = []
    shares = [*shares, 0.0, 0.0][:3] if shares else []
    total = sum_in_order(shares)
    if not all(0.0 <= share < float("inf") for share in shares) or not 0.0 < total < float("inf"):
        raise DatasetError(
            f"split: expected shares such as '969, 30, 1', at least one above 0, found {split!r}; "
            "use the string of the GPT-NeoX config"
        )
    bounds = [0]
    for share in shares:
        # Python's round: a half goes to the even neighbour.
        bounds.append(bounds[-1] + round(share / total * float(items)))
    surplus = bounds[-1] - items
    bounds = [0, *(bound - surplus for bound in bounds[1:])]
    if min(bounds) < 0:
        raise DatasetError(
            f"split: expected borders of at least 0, found {bounds} for {split!r} of {items} "
            "items, where GPT-NeoX stops too; give another split"
        )
    return bounds


def samples_of_parts(weights: Sequence[float], num_samples: int) -> tuple[list[float], list[int]]:
    """Return the shares of the files of ``train_data_paths`` and the samples asked of each.

    Raises:
        DatasetError: A negative weight, or none above 0.
    """
    total = sum_in_order(weights)
    if not all(0.0 <= weight < float("inf") for weight in weights) or not 0.0 < total < float(
        "inf"
    ):
        raise DatasetError(
            f"weights: expected numbers of at least 0, one of them above, found {list(weights)}; "
            "use the weights of the GPT-NeoX config"
        )
    shares = [weight / total for weight in weights]
    return shares, [math.ceil(num_samples * share * _FACTOR) for share in shares]


def num_epochs(tokens: int, seq_len: int, num_samples: int) -> int:
    """Return E, the smallest number of epochs that holds ``num_samples`` samples.

    Raises:
        DatasetError: No ids, of which no number of epochs holds a sample.
    """
    if tokens < 1:
        raise DatasetError(
            f"expected at least one id to train on, found {tokens}; GPT-NeoX would not return: "
            "give a file with text, or a split that leaves items for training"
        )
    return max(1, -(-(num_samples * seq_len + 1) // tokens))


class IndexMaps:
    """The samples of one file, in the order in which GPT-NeoX numbers them.

    Sample j is the S+1 ids from place j·S of the joined items ``order``; ``shuffled[k]`` is the
    sample at place k of the file's order. ``num_samples`` counts them.
    """

    def __init__(
        self, lengths: npt.NDArray[np.integer[Any]], seq_len: int, epochs: int, seed: int
    ) -> None:
        """Make the two permutations.

        Args:
            lengths: Ids of every item, [items].
            seq_len: S.
            epochs: E; see ``num_epochs``.
            seed: The one seed of GPT-NeoX, which also drew its initial weights.

        Raises:
            DatasetError: Too little text for one sample.
            ValueError: A seed outside [0, 2^32).
        """
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"expected a data seed in [0, 2^32) for neox-v1, found {seed}")
        lengths = np.ascontiguousarray(lengths, dtype=np.int32)
        self.seq_len, self.epochs = seq_len, epochs
        total = epochs * int(lengths.sum(dtype=np.int64))
        self.num_samples = max(0, (total - 1) // seq_len)
        if self.num_samples < 1:
            raise DatasetError(
                f"expected at least {seq_len + 1} ids for one sample, found {total} in {epochs} "
                "epochs; use a shorter seq_len or more text"
            )
        # Frozen by numpy (NEP 19); the second shuffle goes on where the first one stopped.
        rng = np.random.RandomState(seed)
        self.order = np.tile(np.arange(len(lengths), dtype=np.int32), epochs)
        rng.shuffle(self.order)
        narrow = self.num_samples < (1 << 32) - 2
        self.shuffled = np.arange(self.num_samples, dtype=np.uint32 if narrow else np.int64)
        rng.shuffle(self.shuffled)
        slots = -(-len(self.order) // _BLOCK) * _BLOCK
        self._lengths = np.zeros(slots, dtype=np.int32)
        np.take(lengths, self.order, out=self._lengths[: len(self.order)])
        blocks = self._lengths.reshape(-1, _BLOCK).sum(axis=1, dtype=np.int64)
        self._marks = np.cumsum(blocks) - blocks

    def bounds(self, samples: npt.ArrayLike) -> tuple[Ids, Ids]:
        """Return (slot, offset) where samples begin; a slot is a place in ``order``.

        ``num_samples`` itself is allowed: sample j ends, inclusively, where sample j + 1 begins.
        """
        numbers = np.asarray(samples, dtype=np.int64)
        places = numbers * self.seq_len
        block = np.searchsorted(self._marks, places, side="right") - 1
        inside = np.cumsum(self._lengths.reshape(-1, _BLOCK)[block], axis=1, dtype=np.int64)
        rest = places - self._marks[block]
        step = (inside <= rest[:, None]).sum(axis=1)
        before = np.where(step > 0, inside[np.arange(len(step)), step - 1], 0)
        first = numbers == 0  # GPT-NeoX starts at slot 0 even where its item is empty
        return np.where(first, 0, block * _BLOCK + step), np.where(first, 0, rest - before)

    def pieces(self, samples: npt.ArrayLike) -> tuple[Ids, Ids, Ids, Ids]:
        """Return the pieces of items that make up samples, one after the other.

        Returns:
            (row, item, start, count), each int64 [pieces]: which of the samples, which item, the
            first id of it and how many. Pieces without ids are left out.

        Raises:
            ValueError: A sample out of range.
        """
        numbers = np.asarray(samples, dtype=np.int64)
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_samples:
            raise ValueError(
                f"expected samples in [0, {self.num_samples}), found "
                f"{int(numbers.min())}..{int(numbers.max())}"
            )
        slots, offsets = self.bounds(np.concatenate([numbers, numbers + 1]))
        n = len(numbers)
        first, last = slots[:n], slots[n:]
        counts = last - first + 1
        begins = np.cumsum(counts) - counts  # of every row, among the pieces
        row = np.repeat(np.arange(n), counts)
        slot = np.arange(len(row)) + np.repeat(first - begins, counts)
        start, end = np.zeros(len(row), dtype=np.int64), self._lengths[slot].astype(np.int64)
        start[begins] = offsets[:n]
        end[begins + counts - 1] = offsets[n:] + 1
        kept = start < end
        item = self.order[slot].astype(np.int64)
        return row[kept], item[kept], start[kept], (end - start)[kept]

    def item_places(self, item: int) -> list[int]:
        """Return where an item begins in the joined items, once for every epoch, ascending."""
        first = item * self.epochs
        return [
            self._slot_start(slot) for slot in self._slots[first : first + self.epochs].tolist()
        ]

    def place_of(self, sample: int) -> int:
        """Return the place of a sample in the file's order: k with ``shuffled[k] == sample``."""
        return int(self._inverse[sample])

    def _slot_start(self, slot: int) -> int:
        block = slot // _BLOCK
        before = self._lengths[block * _BLOCK : slot].sum(dtype=np.int64)
        return int(self._marks[block] + before)

    @cached_property
    def _slots(self) -> npt.NDArray[np.uint32]:
        """Slots by item, E for each, ascending."""
        slots = np.arange(len(self.order), dtype=np.uint32)
        if self.epochs == 1:
            out = np.empty_like(slots)
            out[self.order] = slots
            return out
        keys = self.order.astype(np.int64) * len(slots) + slots
        keys.sort()
        return (keys % len(slots)).astype(np.uint32)

    @cached_property
    def _inverse(self) -> npt.NDArray[Any]:
        inverse = np.empty_like(self.shuffled)
        inverse[self.shuffled] = np.arange(self.num_samples, dtype=self.shuffled.dtype)
        return inverse
