"""`tripod verify order`: do runs read the same tokens at every step, and those of their index?

Without data nothing but the run directories is read: leaves are compared with leaves and with the
chain of every checkpoint, O(steps). With it every byte of the dataset is checked against the index
and every leaf is recomputed from the shards. Where runs differ, the first step is named; where
their datasets are at hand, rows, documents and text too.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.batches import BatchReader
from data_pipeline.compare import (
    Decode,
    LeafDifference,
    Pair,
    RowDifference,
    Side,
    against_index,
    check_leaf,
    compare_logs,
    locate_divergence,
    promised_rows,
)
from data_pipeline.datasets import verify_any
from data_pipeline.digests import DIGEST_BYTES, chain_over, split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.prove import start_of
from data_pipeline.reading import Reading
from data_pipeline.run_dir import RunOrder

_SHOWN = 8  # rows and pairs named in full
_SHOWN_TEXT = 60


@dataclass(frozen=True)
class OrderVerdict:
    """Outcome: one line for people, and what went wrong, first divergences first."""

    failures: tuple[str, ...]
    detail: str

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def verify_order(
    run_dirs: Sequence[str | Path],
    recompute: bool = False,
    progress: Callable[[str], None] | None = None,
    verify_data: Callable[[str], object] = verify_any,
) -> OrderVerdict:
    """Compare any number of runs with each other, with their ledgers and with their index.

    Args:
        run_dirs: Run directories.
        recompute: Also recompute every leaf from the shards.
        progress: Called with a line of text now and then.
        verify_data: Checks the dataset at a place, and raises DatasetError when it is damaged;
            called once a local dataset, before a run is accused of not following its index.

    Raises:
        DatasetError: A run that cannot be read, or (with ``recompute``) a dataset that is not the
            run's or is damaged.
    """
    runs = {str(path): RunOrder.load(path) for path in run_dirs}
    failures = []
    if recompute:
        for place in sorted({Reading.of_run(run.path).dataset for run in runs.values()}):
            if "://" not in place:
                verify_data(place)
    for run in runs.values():
        failures += [f"{run.name}: {failure}" for failure in run.check_checkpoints()]
        if recompute:
            failures += _against_index(run, progress or (lambda line: None))
    pairs = compare_logs({name: run.log for name, run in runs.items()})
    failures += _differences(runs, pairs)
    return OrderVerdict(tuple(failures), _detail(list(runs.values()), recompute))


def _detail(runs: list[RunOrder], recompute: bool) -> str:
    steps = [len(run.log) // DIGEST_BYTES for run in runs]
    how = "recomputed from the shards" if recompute else "compared without data"
    heads = {chain_over(start_of(run.order), split_leaves(run.log)).hex() for run in runs}
    one = f", one chain {heads.pop()}" if len(heads) == 1 else ""
    return f"{len(runs)} runs, {sum(steps)} steps {how}{one}"


def open_reader(run: RunOrder) -> BatchReader:
    """Open what a run says it read.

    Raises:
        DatasetError: The dataset at the place that the run names is another one, or none.
    """
    reading = Reading.of_run(run.path)
    reader = reading.reader()
    if reader.chain_start() != start_of(run.order):
        overlay = None if reader.overlay is None else reader.overlay.digest
        raise DatasetError(
            f"{run.path}: expected index digest {run.order['index_digest']} and overlay "
            f"{run.order['overlay']}, found {reader.stream.index.digest} at {reading.dataset} and "
            f"overlay {overlay}; restore the dataset and the overlay that the run was trained with"
        )
    return reader


def decoder(reader: BatchReader) -> Decode | None:
    """Return what turns the ids of a reader into bytes; None where no tokenizer was declared."""
    index = reader.stream.index
    return None if index.data["tokenizer"] is None else index.tokenizer().decode_bytes


def has_data(run_dirs: Sequence[str | Path]) -> bool:
    """Say whether the datasets of all runs are where their configurations say."""
    places = {Reading.of_run(path).dataset for path in run_dirs}
    return all("://" in place or (Path(place) / "index.json").exists() for place in places)


def _against_index(run: RunOrder, say: Callable[[str], None]) -> list[str]:
    reader = open_reader(run)
    steps = len(run.log) // DIGEST_BYTES

    def progress(done: int) -> None:
        if done % 1000 == 0 or done == steps:
            say(f"{run.name}: {done:,} of {steps:,} steps recomputed")

    found = against_index(reader, run.log, progress=progress)
    if found is None:
        return []
    remote = not reader.stream.index.storage.is_local
    rows = promised_rows(reader, found.step, decoder(reader))
    found = dataclasses.replace(found, rows=rows)
    doubt = "\n  or the remote shards are damaged: verify a copy of the dataset" if remote else ""
    return [f"{run.name}: first divergence from the index at {leaf_difference(found)}{doubt}"]


def leaf_difference(found: LeafDifference) -> str:
    """Put it into words: the step, both leaves, what was read instead, and what was promised."""
    what = found.explanation or "nothing that was tried (see data_pipeline.compare.explain_leaf)"
    lines = [
        f"step {found.step}: expected leaf {found.expected.hex()}, found {found.found.hex()}",
        f"the run read: {what}",
        "the index promises:",
    ]
    for row in found.rows[:_SHOWN]:
        names = ", ".join(f"{d['source']}:{d['name']}" for d in row["documents"])
        text = "" if row.get("text") is None else f" {row['text'][:_SHOWN_TEXT]!r}"
        lines.append(f"  row {row['row']}: sequence {row['sequence']} of {names}{text}")
    if len(found.rows) > _SHOWN:
        lines.append(f"  and {len(found.rows) - _SHOWN} more rows")
    return "\n  ".join(lines)


def _differences(runs: dict[str, RunOrder], pairs: list[Pair]) -> list[str]:
    """Say where every two runs part; the pairs after the first few are named without rows."""
    failures: list[str] = []
    for pair in pairs:
        one, two = runs[pair.one], runs[pair.two]
        unequal = [key for key in one.order if one.order[key] != two.order[key]]
        if pair.step is None and not unequal:
            continue
        parts = [f"{one.name} and {two.name}:"]
        if unequal:
            values = (f"{key} {one.order[key]} and {two.order[key]}" for key in unequal)
            parts.append(f"they do not share one order ({'; '.join(values)});")
        if pair.step is None:
            parts.append(f"their {pair.common} common steps are equal all the same")
        else:
            parts.append(f"they read different tokens first at step {pair.step}")
            parts.append(f"({pair.differing} of {pair.common} common steps differ)")
        located = []
        if pair.step is not None and len(failures) < _SHOWN:
            located = _located(one, two, pair.step)
        failures.append("\n  ".join([" ".join(parts), *located]))
    return failures


def _located(one: RunOrder, two: RunOrder, step: int) -> list[str]:
    """Name rows and text as far as the datasets at hand allow."""
    try:
        first, second = open_reader(one), open_reader(two)
        decoders = decoder(first), decoder(second)
    except (DatasetError, OSError) as error:
        return [f"rows can be named only with the datasets of both runs: {error}"]
    lines = []
    for run, reader in ((one, first), (two, second)):
        own = run.log[step * DIGEST_BYTES : (step + 1) * DIGEST_BYTES]
        found = check_leaf(reader, step, own)
        if found is not None:
            what = found.explanation or "other tokens"
            lines.append(f"{run.name} did not read what its index promises, but {what}")
    try:
        rows = locate_divergence(first, second, step, *decoders)
    except ValueError as error:
        return [*lines, str(error)]
    lines += [row_difference(one.name, two.name, row) for row in rows[:_SHOWN]]
    more = len(rows) - _SHOWN
    return [*lines, f"and {more} more rows"] if more > 0 else lines


def row_difference(one: str, two: str, row: RowDifference) -> str:
    """Put it into words."""
    return (
        f"row {row.row}, column {row.column}: {one} has {_words(row.one)}; "
        f"{two} has {_words(row.two)}"
    )


def _words(side: Side) -> str:
    document = side.document or {"source": "no document", "name": "?"}
    inside = f" with overlay {', '.join(side.overlay)}" if side.overlay else ""
    text = "" if side.text is None else f" {side.text[:_SHOWN_TEXT]!r}"
    name = f"{document['source']}:{document['name']}"
    return f"sequence {side.sequence} of {name}{inside}{text}"
