"""Where two runs, or a run and its index, stop reading the same tokens.

Pure functions over the leaves of ``order.log`` (``docs/spec/order.md``) and over readers.

What can be located from what:

- two logs: the step, exactly, without data;
- a log and the index: the step, exactly, and what the index promises there. A leaf is one digest
  over all rows, so which row differs does not follow from it; ``explain_leaf`` tries the usual
  mistakes (another step's batch, rows swapped, repeated or dealt to ranks in another way, an
  overlay left out) and names the one that gives the leaf found, which is then proven;
- sequence digests of the step from both sides: the rows, exactly;
- two readings: row, column, sequence, document and text on both sides.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.digests import DIGEST_BYTES, leaf, sequence_digests, split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.protocols import Ids, Order

Decode = Callable[[npt.NDArray[np.integer[Any]]], bytes]
Progress = Callable[[int], None]

_NEAR_STEPS = 64
_MOST_ROWS_FOR_PAIRS = 256  # pairs of rows cost B³ bytes of hashing
_AROUND = 24  # ids of text shown before and after the first difference


class Batches(Protocol):
    """What is needed of a ``BatchReader``."""

    batch_size: int
    seq_len: int

    @property
    def order(self) -> Order:
        """The order, without any overlay."""
        ...

    def ids(self, step: int) -> Ids:
        """Return ids [B, S+1] of a step, overlay applied."""
        ...

    def sequences(self, step: int) -> Ids:
        """Return the sequence numbers of a step."""
        ...

    def describe(self, step: int) -> list[dict[str, Any]]:
        """Say which documents the rows of a step hold."""
        ...


@dataclass(frozen=True)
class Pair:
    """Two logs over the ``common`` steps that both have.

    ``step`` is the first that differs, None when they agree; ``differing`` counts those that do.
    """

    one: str
    two: str
    common: int
    step: int | None
    differing: int


@dataclass(frozen=True)
class LeafDifference:
    """The first step at which a log is not what the index promises.

    ``rows`` is what the index promises (``BatchReader.describe``, with ``text`` when it can be
    decoded); ``explanation`` what the run read instead, None when no usual mistake gives the leaf.
    """

    step: int
    expected: bytes
    found: bytes
    rows: list[dict[str, Any]]
    explanation: str | None


@dataclass(frozen=True)
class Side:
    """What one reading has at the place of a difference; ``text`` is the ids around it.

    ``document`` is None where the ids there belong to none.
    """

    sequence: int
    document: dict[str, Any] | None
    overlay: list[str]
    ids: list[int]
    text: str | None


@dataclass(frozen=True)
class RowDifference:
    """A row that two readings fill differently, and the first column that differs."""

    row: int
    column: int
    one: Side
    two: Side


def compare_logs(logs: Mapping[str, bytes]) -> list[Pair]:
    """Compare every two logs over their common steps.

    Args:
        logs: ``order.log`` of each run, by name.

    Returns:
        One ``Pair`` for every two runs, in the order given.

    Raises:
        DatasetError: A log that is not a whole number of leaves.
    """
    leaves = {name: _matrix(name, log) for name, log in logs.items()}
    return [_pair(one, leaves[one], two, leaves[two]) for one, two in combinations(leaves, 2)]


def _matrix(name: str, log: bytes) -> npt.NDArray[np.uint64]:
    try:
        split_leaves(log)
    except ValueError as error:
        raise DatasetError(f"{name}: order.log: {error}") from None
    return np.frombuffer(log, dtype="<u8").reshape(-1, DIGEST_BYTES // 8)


def _pair(one: str, a: npt.NDArray[np.uint64], two: str, b: npt.NDArray[np.uint64]) -> Pair:
    common = min(len(a), len(b))
    steps = np.flatnonzero((a[:common] != b[:common]).any(axis=1))
    return Pair(one, two, common, int(steps[0]) if steps.size else None, int(steps.size))


def step_leaf(batches: Batches, step: int) -> bytes:
    """Return the leaf that a reading promises for a step."""
    return leaf(step, sequence_digests(batches.ids(step)))


def against_index(
    batches: Batches,
    log: bytes,
    decode: Decode | None = None,
    progress: Progress | None = None,
) -> LeafDifference | None:
    """Recompute a log from the shards, up to the first step that differs.

    Args:
        batches: What the run says it read.
        log: Its ``order.log``.
        decode: Bytes of ids, for the text of the promised rows.
        progress: Called with the number of steps checked.

    Returns:
        The first difference, None when there is none.

    Raises:
        DatasetError: A log that is not a whole number of leaves.
    """
    for step in range(len(_matrix("run", log))):
        found = log[step * DIGEST_BYTES : (step + 1) * DIGEST_BYTES]
        difference = check_leaf(batches, step, found, decode)
        if difference is not None:
            return difference
        if progress:
            progress(step + 1)
    return None


def check_leaf(
    batches: Batches, step: int, found: bytes, decode: Decode | None = None
) -> LeafDifference | None:
    """Recompute one leaf from the shards; arguments and result as ``against_index``."""
    expected = step_leaf(batches, step)
    if expected == found:
        return None
    explanation = explain_leaf(batches, step, found)
    rows = promised_rows(batches, step, decode)
    return LeafDifference(step, expected, found, rows, explanation)


def promised_rows(
    batches: Batches, step: int, decode: Decode | None = None
) -> list[dict[str, Any]]:
    """Return ``describe(step)``; with ``decode`` every row also has its ``text``."""
    rows = batches.describe(step)
    if decode is None:
        return rows
    ids = batches.ids(step)
    return [{**row, "text": as_text(decode, ids[row["row"]])} for row in rows]


def as_text(decode: Decode, ids: npt.NDArray[np.integer[Any]]) -> str:
    """Decode ids; a character cut at either end shows as U+FFFD."""
    return decode(ids).decode("utf-8", errors="replace")


def differing_rows(one: Sequence[bytes], two: Sequence[bytes]) -> list[int]:
    """Return the rows whose sequence digests differ.

    Raises:
        ValueError: Two batch sizes.
    """
    if len(one) != len(two):
        raise ValueError(f"expected two lists of one length, found {len(one)} and {len(two)}")
    return [row for row, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]


def explain_leaf(batches: Batches, step: int, found: bytes) -> str | None:
    """Find what a run read at a step instead of what the index promises.

    Tried: the step without its overlay; the batches of the 64 steps on either side and of the first
    64; this batch hashed as one of those steps; its rows reversed, or dealt to 2 to 64 ranks in
    turn instead of in blocks and the other way round; two rows exchanged, or one read in place of
    another (up to 256 rows).

    Args:
        batches: What was promised.
        step: The step.
        found: The leaf of the run.

    Returns:
        A sentence, or None when nothing tried gives the leaf. A sentence is as sure as SHA-256.
    """
    guesses = _guesses(batches, step)
    return next((what for what, digest in guesses if digest == found), None)


def _guesses(batches: Batches, step: int) -> Iterator[tuple[str, bytes]]:
    own = sequence_digests(batches.ids(step))
    bare = sequence_digests(batches.order.rows(batches.sequences(step)))
    yield "this batch without its overlay", leaf(step, bare)
    near = range(max(0, step - _NEAR_STEPS), step + _NEAR_STEPS + 1)
    for other in sorted({*near, *range(_NEAR_STEPS)} - {step}, key=lambda t: (abs(t - step), t)):
        theirs = sequence_digests(batches.ids(other))
        yield f"the batch of step {other}", leaf(step, theirs)
        yield f"this batch, hashed as step {other}", leaf(other, own)
        yield f"the batch of step {other}, hashed as step {other}", leaf(other, theirs)
    yield "its rows in reverse order", leaf(step, own[::-1])
    for ranks in range(2, min(len(own), 64) + 1):
        dealt = [digest for rank in range(ranks) for digest in own[rank::ranks]]
        yield f"its rows dealt to {ranks} ranks in turn, not in blocks", leaf(step, dealt)
        if len(own) % ranks == 0:
            size = len(own) // ranks
            blocks = [own[r * size + k] for k in range(size) for r in range(ranks)]
            yield f"its rows gathered from {ranks} ranks in turn, not in blocks", leaf(step, blocks)
    if len(own) <= _MOST_ROWS_FOR_PAIRS:
        yield from _pairs_of_rows(step, own)


def _pairs_of_rows(step: int, own: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Exchanges and repetitions of two rows; the hash of the rows before them is shared."""
    head = hashlib.sha256(b"leaf-v1\0" + struct.pack("<Q", step))
    for first in range(len(own)):
        for second in range(first + 1, len(own)):
            between = b"".join(own[first + 1 : second])
            after = b"".join(own[second + 1 :])
            a, b = own[first], own[second]
            for what, x, y in (
                (f"its rows {first} and {second} exchanged", b, a),
                (f"its row {second} in place of row {first}", b, b),
                (f"its row {first} in place of row {second}", a, a),
            ):
                whole = head.copy()
                whole.update(x + between + y + after)
                yield what, whole.digest()
        head.update(own[first])


def locate_divergence(
    one: Batches,
    two: Batches,
    step: int,
    decode_one: Decode | None = None,
    decode_two: Decode | None = None,
) -> list[RowDifference]:
    """Say which rows of a step two readings fill differently, and with what.

    Args:
        one: A reading.
        two: Another, of the same S and B; index, order, seed and overlay may differ.
        step: The step.
        decode_one: Bytes of the ids of ``one``, for its text.
        decode_two: The same for ``two``.

    Returns:
        The differing rows in order, empty when the step is the same.

    Raises:
        ValueError: Another S or B.
    """
    if (one.seq_len, one.batch_size) != (two.seq_len, two.batch_size):
        raise ValueError(
            f"expected two readings of one shape, found S={one.seq_len}, B={one.batch_size} and "
            f"S={two.seq_len}, B={two.batch_size}; their leaves differ at every step by definition"
        )
    a, b = one.ids(step), two.ids(step)
    differs = a != b
    rows = np.flatnonzero(differs.any(axis=1)).tolist()
    if not rows:
        return []
    left, right = one.describe(step), two.describe(step)
    found = []
    for row in rows:
        column = int(np.argmax(differs[row]))
        sides = (
            _side(left[row], a[row], column, decode_one),
            _side(right[row], b[row], column, decode_two),
        )
        found.append(RowDifference(row, column, *sides))
    return found


def _side(row: dict[str, Any], ids: Ids, column: int, decode: Decode | None) -> Side:
    documents = (d for d in row["documents"] if d["start"] <= column < d["end"])
    around = ids[max(0, column - _AROUND) : column + _AROUND]
    text = None if decode is None else as_text(decode, around)
    return Side(
        row["sequence"], next(documents, None), row.get("overlay", []), around.tolist(), text
    )
