"""neox-v1: the sequences of GPT-NeoX in the order in which it reads them, bit for bit.

One file (``data_path`` with a ``split`` string) is shuffled and packed by ``neox_maps``; several
(``train_data_paths``) are blended by ``neox_blend``, and one listed alone is blended with itself,
which changes nothing but the number of samples asked for. Position p is the p-th sample that the
loader reads: step t of batch B consumes [t·B, (t+1)·B) whatever the ranks and the micro-batch.

Guarantees: equal to the compiled code of GPT-NeoX for every position that it reads without
complaint. Where GPT-NeoX would print a warning and read some other sample instead (an index past
the end, taken modulo the length), this raises an error that says so.

Note what the order depends on: items and their lengths, S, the seed and, through the number of
epochs E, on how many samples were asked for. Below one E a longer run keeps the prefix; across a
change of E every position changes. Specification: ``docs/spec/neox.md``.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.megatron_index import expect
from data_pipeline.megatron_stream import MegatronStream
from data_pipeline.neox_blend import Blend
from data_pipeline.neox_maps import IndexMaps, samples_of_parts
from data_pipeline.protocols import Ids

NAME = "neox-v1"


@dataclass(frozen=True)
class _Run:
    """Ids of a span that follow each other in one file's shuffled items.

    They stand at [``place``, ``place`` + ``count``) there; ``skipped`` ids of the span come before.
    """

    part: int
    place: int
    count: int
    skipped: int


class NeoxOrder:
    """``neox-v1`` over Megatron files; implements ``protocols.Order``.

    Sequences are numbered as GPT-NeoX numbers samples before it shuffles them, part after part.
    All of them can be read by number; the last one of the shuffled list of a single file is read
    at no position (GPT-NeoX's length is one short).
    """

    name = NAME

    def __init__(self, stream: MegatronStream, seq_len: int, seed: int) -> None:
        """Make the index maps; time and memory as of ``neox_maps``.

        Args:
            stream: Opened with split ``train``.
            seq_len: S, as in the index.
            seed: The seed of the GPT-NeoX config (1234 unless it says another).

        Raises:
            DatasetError: An index that says nothing about GPT-NeoX, that was made for another S, or
                whose numbers do not follow from its files.
            ValueError: A seed outside [0, 2^32).
        """
        plan, where = stream.index.plan, stream.index.storage.where("index.json")
        if plan is None:
            raise DatasetError(
                f"{where}: expected what GPT-NeoX was asked for, found null; this dataset is read "
                "in file order (preshuffled-v1): index the files again with `--split` or `--paths`"
            )
        if stream.split != "train":
            raise DatasetError(
                f"{where}: expected the split 'train' for {NAME}, found {stream.split!r}"
            )
        if seq_len != plan.seq_len:
            raise DatasetError(
                f"{where}: expected seq_len {plan.seq_len}, found {seq_len}; the number of epochs, "
                f"and so the whole order, depends on it: index the files again for {seq_len}"
            )
        weights, tokens = stream.index.weights, [part.num_tokens for part in stream.parts]
        epochs, samples = plan.of_parts(weights, tokens)
        expect(where, "neox.epochs", epochs, stream.index.data["neox"]["epochs"])
        expect(where, "neox.samples", samples, stream.index.data["neox"]["samples"])
        self.seq_len = seq_len
        self._stream = stream
        self._maps = [
            IndexMaps(part.lengths, seq_len, count, seed)
            for part, count in zip(stream.parts, epochs, strict=True)
        ]
        self._bases = [0, *accumulate(samples)]
        # One short for every file: GPT-NeoX counts boundaries, less one, of samples, less one.
        self.num_positions = sum(count - 1 for count in samples)
        shares = samples_of_parts(weights, plan.num_samples or 0)[0]
        self._blend = Blend(shares, self.num_positions)

    @property
    def num_sequences(self) -> int:
        """Samples of all parts, those that no position reads included."""
        return self._bases[-1]

    def sequences(self, first: int, count: int) -> Ids:
        """Return the numbers of the sequences read at positions [first, first + count).

        Raises:
            DatasetError: Positions that GPT-NeoX could only fill by reading other samples again.
            ValueError: A negative position or count.
        """
        if first < 0 or count < 0:
            raise ValueError(f"expected first >= 0 and count >= 0, found {first} and {count}")
        if first + count > self.num_positions:
            raise DatasetError(
                f"{NAME}: expected positions below {self.num_positions}, found "
                f"[{first}, {first + count}); GPT-NeoX would stop, or in later versions begin "
                "again at position 0, and its datasets warn and take an index modulo their length: "
                "ask for fewer steps, or index the files for more samples (another order where E "
                "changes)"
            )
        files, numbers = self._blend.files(first, count)
        out = np.empty(count, dtype=np.int64)
        for part, maps in enumerate(self._maps):
            mask = files == part
            wanted = numbers[mask]
            if wanted.size and int(wanted[-1]) >= maps.num_samples:
                self._refuse_overrun(part, first + int(np.flatnonzero(mask)[-1]))
            out[mask] = maps.shuffled[wanted].astype(np.int64) + self._bases[part]
        return out

    def rows(self, sequences: npt.ArrayLike) -> Ids:
        """Return ids [n, S+1] of n sequences by number.

        Raises:
            ValueError: A number out of range.
        """
        numbers = self._checked(sequences)
        out = np.empty((len(numbers), self.seq_len + 1), dtype=np.int64)
        parts = np.searchsorted(self._bases, numbers, side="right") - 1
        for part in np.unique(parts).tolist():
            rows = np.flatnonzero(parts == part)
            _, item, start, count = self._maps[part].pieces(numbers[rows] - self._bases[part])
            offsets = self._stream.parts[part].item_starts(item) + start
            ids = out if len(rows) == len(out) else np.empty_like(out[: len(rows)])
            self._stream.parts[part].copy(offsets, count, ids.reshape(-1))
            if ids is not out:
                out[rows] = ids
        return out

    def spans(self, sequence: int) -> list[tuple[int, int]]:
        """Return the spans of the stream whose ids, joined, are the sequence: one for each item."""
        number = int(self._checked([sequence])[0])
        part = bisect_right(self._bases, number) - 1
        _, item, start, count = self._maps[part].pieces([number - self._bases[part]])
        begins = self._stream.parts[part].item_starts(item) + start
        return list(zip(begins.tolist(), (begins + count).tolist(), strict=True))

    def holding(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (sequence, column) of every sequence that holds an id of the span [start, end).

        ``column`` is where the id at ``start`` stands, as ``protocols.Order`` says. A span over
        several items is one piece here only where the shuffle left them together. Elsewhere its
        fragments are given as if the border of the sequence had cut them: the column is negative
        where ids before the fragment are missing, and else such that the span does not fit.

        Returns:
            Ascending; an item that is read in E epochs stands there up to E times or more.
        """
        found = set()
        for run in self._runs(start, end):
            first = max(0, -(-(run.place - self.seq_len) // self.seq_len))
            last = min(
                self._maps[run.part].num_samples - 1, (run.place + run.count - 1) // self.seq_len
            )
            for sample in range(first, last + 1):
                column = self._column(run, sample, end - start)
                found.add((self._bases[run.part] + sample, column))
        return sorted(found)

    def positions_of(self, sequence: int, consumed: int) -> list[int]:
        """Return the one position below ``consumed`` that reads the sequence, or none."""
        number = int(self._checked([sequence])[0])
        part = bisect_right(self._bases, number) - 1
        place = self._maps[part].place_of(number - self._bases[part])
        position = self._blend.position_of(part, place, consumed)
        return [] if position is None else [position]

    def _checked(self, sequences: npt.ArrayLike) -> Ids:
        numbers = np.asarray(sequences, dtype=np.int64)
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_sequences:
            raise ValueError(
                f"expected sequences in [0, {self.num_sequences}), found "
                f"{int(numbers.min())}..{int(numbers.max())}"
            )
        return numbers

    def _column(self, run: _Run, sample: int, length: int) -> int:
        """Column of the start of a span of ``length`` ids in a sample that holds ids of ``run``."""
        begin = sample * self.seq_len
        column = run.place - begin
        if run.skipped:
            return min(column, 0) - run.skipped
        if run.count < length and column >= 0:
            held = min(run.place + run.count, begin + self.seq_len + 1) - run.place
            return self.seq_len + 1 - held
        return column

    def _runs(self, start: int, end: int) -> list[_Run]:
        """Where the ids of a span stand in the shuffled items, joined where they stay together."""
        open_runs: dict[tuple[int, int], _Run] = {}
        done: list[_Run] = []
        for part, item, first, last in self._items(start, end):
            following: dict[tuple[int, int], _Run] = {}
            offset = first - self._stream.parts[part].item_start(item)
            for slot in self._maps[part].item_places(item):
                place, count = slot + offset, last - first
                before = open_runs.pop((part, place), None)
                run = _Run(part, place, count, first - start)
                if before is not None:
                    run = _Run(part, before.place, before.count + count, before.skipped)
                following[part, place + count] = run
            done.extend(open_runs.values())
            open_runs = following
        return [*done, *open_runs.values()]

    def _items(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (part, item, first, last) of the pieces of items that make up a span."""
        while start < end:
            place = self._stream.part_at(start)
            item = place.item_at(start)
            last = min(end, place.item_start(item + 1))
            yield place.number, item, start, last
            start = last

    def _refuse_overrun(self, part: int, position: int) -> None:
        samples = self._maps[part].num_samples
        raise DatasetError(
            f"{NAME}: position {position}: expected a sample of "
            f"{self._stream.parts[part].name!r}, found all {samples} of them read; GPT-NeoX would "
            f"warn and read one again, that at its place modulo {samples - 1}: ask for fewer "
            "steps, or for more samples"
        )
