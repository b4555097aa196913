"""overlay-v1: a manifest that replaces ids of chosen rows, never an id of a shard.

An entry names a position of the run (position = step · B + row) and a column of the S+1 ids that
are read there, and gives the ids to read instead. The manifest is canonical JSON; its SHA-256 is
the ``overlay`` of C_{-1}, so a run with an overlay can never pass for a run without it.

Guarantees: an overlay is bound to one reading (index digest, order, seed, S, B) and refused for any
other; entries are sorted by (position, column), do not overlap, lie inside the row and hold ids of
the vocabulary; a canary holds no end-of-document mark. Applying it to some rows gives what applying
it to all of them gives, so any split over ranks reads the same batch.

Does not do: change a neighbour. The last id of a sequence is also the first of the next one, and an
entry over it changes it in the row at its own position only. Specification with test vectors:
``docs/spec/overlay.md``.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json, is_sha256_hex, sha256_hex
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.protocols import Ids

if TYPE_CHECKING:
    from data_pipeline.batches import BatchReader

SCHEMA = "overlay-v1"
CANARY, DOCUMENT = "canary", "document"
_KINDS = (CANARY, DOCUMENT)
_MAX_POSITION = 1 << 62


@dataclass(frozen=True)
class Binding:
    """The one reading that an overlay is for; ``eod`` is None where documents have no mark."""

    index_digest: str
    order: str
    seed: int
    seq_len: int
    batch_size: int
    vocab_size: int
    eod: int | None

    def __post_init__(self) -> None:
        for name, low in (("seed", 0), ("seq_len", 1), ("batch_size", 1), ("vocab_size", 1)):
            found = getattr(self, name)
            if type(found) is not int or found < low:
                raise DatasetError(f"overlay: {name}: expected an integer >= {low}, found {found}")
        if not is_sha256_hex(self.index_digest) or type(self.order) is not str:
            raise DatasetError(
                "overlay: expected an index digest of 64 hex digits and the name of an order, "
                f"found {self.index_digest!r} and {self.order!r}"
            )
        if self.eod is not None and type(self.eod) is not int:
            raise DatasetError(f"overlay: eod: expected an id or null, found {self.eod!r}")


@dataclass(frozen=True)
class Entry:
    """Read ``ids`` at columns [column, column + len(ids)) of the row at ``position``."""

    position: int
    column: int
    ids: tuple[int, ...]
    kind: str
    name: str

    @property
    def end(self) -> int:
        """Column just after the replaced ones."""
        return self.column + len(self.ids)


class Overlay:
    """A checked overlay; the value is immutable."""

    def __init__(self, binding: Binding, entries: Iterable[Entry], plan: str | None = None) -> None:
        """Check and keep the entries.

        Args:
            binding: The reading it is for.
            entries: Sorted by (position, column).
            plan: SHA-256 of the published plan that the entries follow from, or None.

        Raises:
            DatasetError: Entries unsorted, overlapping, outside the row or the vocabulary, of an
                unknown kind or without a name, or a canary with an end-of-document mark.
        """
        self.binding, self.entries, self.plan = binding, tuple(entries), plan
        if plan is not None and not is_sha256_hex(plan):
            raise DatasetError(f"overlay: plan: expected null or 64 hex digits, found {plan!r}")
        for number, entry in enumerate(self.entries):
            _check_entry(number, entry, binding)
        for number, (one, two) in enumerate(zip(self.entries, self.entries[1:], strict=False)):
            _check_neighbours(number, one, two)
        self._positions = np.array([e.position for e in self.entries], dtype=np.int64)
        self._columns = np.array([e.column for e in self.entries], dtype=np.int64)
        self._lengths = np.array([len(e.ids) for e in self.entries], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)
        self._ids = np.array([i for e in self.entries for i in e.ids], dtype=np.int64)

    @classmethod
    def load(cls, path: str | Path) -> "Overlay":
        """Read a manifest.

        Raises:
            DatasetError: No file, not canonical JSON of this schema, bad entries, or a file that is
                named by another digest; the message names the file.
        """
        path = Path(path)
        try:
            overlay = cls.parse(path.read_bytes())
        except FileNotFoundError:
            raise DatasetError(
                f"{path}: expected an overlay, found no file; copy it from whoever published the "
                "run, or make it again from its plan"
            ) from None
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from None
        if is_sha256_hex(path.stem) and path.stem != overlay.digest:
            raise DatasetError(
                f"{path}: expected the overlay with the digest in its name, found "
                f"{overlay.digest}; restore the file from a copy"
            )
        return overlay

    @classmethod
    def parse(cls, raw: bytes) -> "Overlay":
        """Read the bytes of a manifest; errors as ``load``."""
        try:
            data = json.loads(raw)
            canonical = canonical_json(data)
        except (ValueError, TypeError, RecursionError) as error:
            raise DatasetError(f"expected an overlay in canonical JSON, found {error}") from None
        if canonical != raw:
            raise DatasetError(
                "expected canonical JSON, found another encoding of it; write it with Overlay.save"
            )
        names = [field.name for field in dataclasses.fields(Binding)]
        _expect_keys("overlay", data, ["schema", "plan", "entries", *names])
        if data["schema"] != SCHEMA or not isinstance(data["entries"], list):
            raise DatasetError(
                f"expected schema {SCHEMA!r} with a list of entries, found {data['schema']!r}"
            )
        entries = [_parse_entry(number, record) for number, record in enumerate(data["entries"])]
        return cls(Binding(**{name: data[name] for name in names}), entries, data["plan"])

    @cached_property
    def data(self) -> bytes:
        """The bytes of the manifest."""
        entries = [vars(entry) for entry in self.entries]
        return canonical_json(
            {
                "schema": SCHEMA,
                "plan": self.plan,
                "entries": entries,
                **dataclasses.asdict(self.binding),
            }
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest: the ``overlay`` of C_{-1}."""
        return sha256_hex(self.data)

    def save(self, directory: str | Path) -> Path:
        """Write ``<digest>.json`` below ``directory``, where runs look for it, and return it."""
        path = Path(directory) / f"{self.digest}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, self.data)
        return path

    def expect(
        self,
        index_digest: str,
        order: str,
        seed: int,
        seq_len: int,
        batch_size: int,
        vocab_size: int | None = None,
        eod: int | None = None,
    ) -> None:
        """Refuse any reading but the overlay's own.

        Args:
            index_digest: Of the dataset.
            order: Its name.
            seed: The data seed.
            seq_len: S.
            batch_size: B.
            vocab_size: Number of ids, or None where the dataset does not know it.
            eod: End-of-document id, or None likewise.

        Raises:
            DatasetError: A value differs; all of them are named.
        """
        found = dataclasses.asdict(self.binding)
        expected = {
            "index_digest": index_digest,
            "order": order,
            "seed": seed,
            "seq_len": seq_len,
            "batch_size": batch_size,
            "vocab_size": found["vocab_size"] if vocab_size is None else vocab_size,
            "eod": found["eod"] if eod is None else eod,
        }
        wrong = [
            f"{name}: expected {expected[name]}, found {found[name]}"
            for name in found
            if found[name] != expected[name]
        ]
        if wrong:
            raise DatasetError(
                f"overlay {self.digest} is for another reading: {'; '.join(wrong)}; make the "
                "overlay again from its plan for this reading"
            )

    def apply(self, positions: npt.ArrayLike, ids: Ids) -> Ids:
        """Return the ids with every entry at these positions put in.

        Args:
            positions: n positions of the run, in any order.
            ids: [n, S+1], the rows that the order reads there; not changed.

        Returns:
            [n, S+1]; ``ids`` itself when no row is touched.

        Raises:
            ValueError: Another shape.
        """
        entries, rows = self._touched(positions, ids)
        if not entries.size:
            return ids
        out = ids.copy()
        self._put(entries, rows, out)
        return out

    def apply_in_place(self, positions: npt.ArrayLike, ids: Ids) -> Ids:
        """As ``apply``, but write into ``ids``: only the replaced ids are touched, none copied."""
        self._put(*self._touched(positions, ids), ids)
        return ids

    def _touched(self, positions: npt.ArrayLike, ids: Ids) -> tuple[Ids, Ids]:
        """Return (entry, row) numbers of every entry that stands at one of the positions."""
        places = np.asarray(positions, dtype=np.int64)
        width = self.binding.seq_len + 1
        if ids.ndim != 2 or places.shape != (ids.shape[0],) or ids.shape[1] != width:
            raise ValueError(
                f"expected n positions and ids [n, {width}], found {places.shape} and {ids.shape}"
            )
        if not places.size or not self._any_in(int(places.min()), int(places.max())):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        first = np.searchsorted(self._positions, places, side="left")
        count = np.searchsorted(self._positions, places, side="right") - first
        return _ranges(first, count), np.repeat(np.arange(places.size), count)

    def _any_in(self, low: int, high: int) -> bool:
        first, end = np.searchsorted(self._positions, [low, high + 1])
        return bool(first < end)

    def _put(self, entries: Ids, rows: Ids, out: Ids) -> None:
        lengths = self._lengths[entries]
        columns = _ranges(self._columns[entries], lengths)
        out[np.repeat(rows, lengths), columns] = self._ids[_ranges(self._offsets[entries], lengths)]

    def positions(self) -> list[int]:
        """Return the positions that are touched, ascending, each once."""
        return cast("list[int]", np.unique(self._positions).tolist())

    def entries_at(self, position: int) -> tuple[Entry, ...]:
        """Return the entries at a position, by column."""
        first, last = np.searchsorted(self._positions, [position, position + 1])
        return self.entries[first:last]

    def rows_touching(
        self, first: int = 0, end: int = _MAX_POSITION
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield (position, replaced column spans [start, end)) of the rows in [first, end).

        A search over the shards misses what stands in these rows and finds what they no longer
        hold: search the rows themselves, and drop hits for which ``hides`` is true.
        """
        number = int(np.searchsorted(self._positions, first))
        while number < len(self.entries) and self.entries[number].position < end:
            here = self.entries_at(self.entries[number].position)
            yield here[0].position, [(entry.column, entry.end) for entry in here]
            number += len(here)

    def hides(self, position: int, start: int, end: int) -> bool:
        """Say whether an entry replaces an id in columns [start, end) of the row at a position."""
        return any(e.column < end and start < e.end for e in self.entries_at(position))


def binding_of(reader: "BatchReader") -> Binding:
    """Return what an overlay for this reading must name."""
    index = reader.stream.index
    return Binding(
        index_digest=index.digest,
        order=reader.order.name,
        seed=reader.seed,
        seq_len=reader.seq_len,
        batch_size=reader.batch_size,
        vocab_size=index.vocab_size,
        eod=index.eod,
    )


def merge(one: Overlay, two: Overlay) -> Overlay:
    """Join two overlays of one reading, for example canaries and replaced documents.

    The result names no plan: publish the two, whose entries it holds.

    Raises:
        DatasetError: Two readings, or entries that overlap.
    """
    if one.binding != two.binding:
        raise DatasetError(
            f"expected two overlays of one reading, found {one.binding} and {two.binding}"
        )
    return Overlay(one.binding, sorted([*one.entries, *two.entries], key=entry_place))


def entry_place(entry: Entry) -> tuple[int, int]:
    """Sort key of entries."""
    return entry.position, entry.column


def _ranges(first: Ids, count: Ids) -> Ids:
    """Join the ranges [first_i, first_i + count_i)."""
    shift: Ids = np.repeat(first - (np.cumsum(count) - count), count)
    return np.arange(shift.size, dtype=np.int64) + shift


def _expect_keys(place: str, record: Any, keys: list[str]) -> None:
    found = sorted(record) if isinstance(record, dict) else type(record).__name__
    if found != sorted(keys):
        raise DatasetError(f"{place}: expected the keys {sorted(keys)}, found {found}")


def _parse_entry(number: int, record: Any) -> Entry:
    _expect_keys(f"entry {number}", record, ["position", "column", "ids", "kind", "name"])
    if not isinstance(record["ids"], list):
        raise DatasetError(f"entry {number}: ids: expected a list, found {record['ids']!r}")
    return Entry(**{**record, "ids": tuple(record["ids"])})


def _check_entry(number: int, entry: Entry, binding: Binding) -> None:
    place = f"entry {number} ({entry.name!r} at position {entry.position})"
    if entry.kind not in _KINDS or type(entry.name) is not str or not entry.name:
        raise DatasetError(f"{place}: expected a name and a kind of {_KINDS}, found {entry.kind!r}")
    if type(entry.position) is not int or not 0 <= entry.position < _MAX_POSITION:
        raise DatasetError(f"{place}: position: expected an integer in [0, 2^62)")
    width = binding.seq_len + 1
    if type(entry.column) is not int or not 0 <= entry.column < entry.end <= width:
        raise DatasetError(
            f"{place}: expected at least one id within columns [0, {width}), found column "
            f"{entry.column!r} and {len(entry.ids)} ids"
        )
    wrong = [i for i in entry.ids if type(i) is not int or not 0 <= i < binding.vocab_size]
    if wrong:
        raise DatasetError(
            f"{place}: expected ids in [0, {binding.vocab_size}), found {wrong[0]!r}; "
            "encode the text with the tokenizer of this dataset"
        )
    if entry.kind == CANARY and binding.eod in entry.ids:
        raise DatasetError(
            f"{place}: expected no end-of-document mark ({binding.eod}) in a canary; cut it there"
        )


def _check_neighbours(number: int, one: Entry, two: Entry) -> None:
    if entry_place(two) < entry_place(one):
        raise DatasetError(
            f"entries {number} and {number + 1}: expected them sorted by (position, column), "
            f"found {entry_place(one)} before {entry_place(two)}"
        )
    if one.position == two.position and two.column < one.end:
        raise DatasetError(
            f"entries {number} and {number + 1} ({one.name!r}, {two.name!r}) overlap at position "
            f"{one.position}: columns [{one.column}, {one.end}) and [{two.column}, {two.end})"
        )
