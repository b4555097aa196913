"""The fixed probe set of a suite: which 64-token windows are scored at every checkpoint.

``probes-v1`` has four cohorts, all chosen by rule from the token order, none by looking at a model:

* ``row``: the first 64 ids of sequences at evenly spaced positions of the order that the run reads.
  Those read after checkpoint c are its control: same shuffle, same distribution, not yet seen.
* ``future``: the same, at positions the run never reaches. Always a control.
* ``repeated``: windows at any offset that occur more than once in what the run reads (licence
  headers, copied code), stratified by the number of occurrences in powers of two (``repeated``).
  In strata that few texts fill, windows overlap, and intervals that take them as independent are
  too narrow.
* ``heldout``: evenly spaced windows of the held-out split.

Windows that contain an end-of-document mark are left out. For every probe the exposures are counted
exactly (``windows``), so ``n_exposures_so_far`` at a checkpoint never looks into the future, and a
held-out or future window whose text does occur in the data says so.

The set is a function of the index, the order and the run length; ``probe_digest`` names it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis.repeated import repeated_places
from analysis.rungs import AnalysisError, SuiteDir
from analysis.score import WINDOW
from analysis.windows import Consumed, Ids, Occurrences, find_occurrences
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.shards import TokenStream

NAME = "probes-v1"
COHORTS = ("row", "future", "repeated", "heldout")


@dataclass(frozen=True)
class ProbeSizes:
    """How many windows to take; the defaults cost about half a minute on one core for suite `nano`.

    Attributes:
        row: sequences of the run. future: sequences beyond it. heldout: held-out windows.
        repeated_per_stratum: windows per power of two of occurrences.
        scan_positions: only the first so many positions are searched for repeated windows (their
            exposures are then counted over the whole run); bounds memory at 1 KiB a position.
    """

    row: int = 224
    future: int = 96
    heldout: int = 64
    repeated_per_stratum: int = 32
    scan_positions: int = 1 << 17


@dataclass(frozen=True)
class Probes:
    """The probe table, its windows and its name.

    Attributes:
        table: one row per probe; see ``build_probes``.
        ids: int64 [n, 64].
        digest: sha256 of the windows, their cohorts and their exposures.
    """

    table: pd.DataFrame
    ids: Ids
    digest: str


def build_probes(suite: SuiteDir, sizes: ProbeSizes | None = None) -> Probes:
    """Choose the probes of a suite and count their exposures.

    Returns:
        A table with probe_id, cohort, stratum (lower bound of the occurrence bucket, ``repeated``
        only), position and sequence (-1 for ``heldout``), column, offset (in the split's stream),
        source, document, exposure_steps (0-based steps, with repeats), n_exposures, first_step (-1
        when never read) and ids.

    Raises:
        AnalysisError: sequences shorter than 64 tokens.
    """
    sizes = sizes or ProbeSizes()
    seq_len, batch = int(suite.data["seq_len"]), int(suite.data["batch_size"])
    if seq_len < WINDOW:
        raise AnalysisError(
            f"expected data.seq_len of at least {WINDOW}, the length of a window, found {seq_len}"
        )
    train, heldout = TokenStream(suite.dataset, "train"), TokenStream(suite.dataset, "heldout")
    order = suite.order(train.num_sequences(seq_len))
    consumed = Consumed(train, order, seq_len, suite.last_step * batch)
    parts = [
        _rows(consumed, sizes.row, 0, consumed.positions, "row", train.index.eod),
        _rows(
            consumed,
            sizes.future,
            *_beyond(consumed, order.num_sequences),
            "future",
            train.index.eod,
        ),
        _repeated(consumed, sizes, train.index.eod),
        _heldout(heldout, sizes.heldout),
    ]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    ids = np.stack([np.asarray(row, dtype=np.int64) for row in table["ids"]])
    _add_exposures(table, find_occurrences(consumed, ids), batch)
    _add_documents(table, train, heldout)
    table.insert(0, "probe_id", np.arange(len(table)))
    return Probes(table, ids, probe_digest(table, sizes))


def probe_digest(table: pd.DataFrame, sizes: ProbeSizes) -> str:
    """Name a probe set by its content: sha256 of canonical JSON."""
    columns = ["cohort", "stratum", "position", "column", "offset", "exposure_steps", "ids"]
    rows = [[_plain(value) for value in row] for row in table[columns].itertuples(index=False)]
    return sha256_hex(canonical_json({"probes": NAME, "sizes": asdict(sizes), "rows": rows}))


def exposures_before(exposure_steps: Sequence[Sequence[int]], step: int) -> list[int]:
    """How often each probe was read before checkpoint ``step`` (by steps 0..step-1).

    Args:
        exposure_steps: per probe, the 0-based steps that read it.
        step: number of updates of the checkpoint.
    """
    return [sum(1 for exposure in steps if exposure < step) for steps in exposure_steps]


def last_exposure_before(exposure_steps: Sequence[Sequence[int]], step: int) -> list[int]:
    """The latest step before checkpoint ``step`` that read each probe; -1 when none did."""
    return [max((e for e in steps if e < step), default=-1) for steps in exposure_steps]


def evenly(start: int, stop: int, count: int) -> Ids:
    """At most ``count`` evenly spaced integers of [start, stop), the first one included."""
    count = max(0, min(count, stop - start))
    return start + (np.arange(count, dtype=np.int64) * (stop - start)) // max(count, 1)


def _beyond(consumed: Consumed, num_sequences: int) -> tuple[int, int]:
    # Only the first epoch has a future that was never read.
    return consumed.positions, min(2 * consumed.positions, num_sequences)


def _rows(
    consumed: Consumed, count: int, start: int, stop: int, cohort: str, eod: int
) -> pd.DataFrame:
    positions = evenly(start, max(start, stop), count)
    if not positions.size:
        return pd.DataFrame()
    sequences = np.concatenate([consumed.order.sequences(int(p), 1) for p in positions])
    ids = consumed.stream.sequences(sequences, consumed.seq_len)[:, :WINDOW]
    whole = ~(ids == eod).any(axis=1)
    columns = np.zeros(int(whole.sum()), dtype=np.int64)
    return _frame(cohort, ids[whole], positions[whole], sequences[whole], columns, consumed.seq_len)


def _frame(
    cohort: str, ids: Ids, positions: Ids, sequences: Ids, columns: Ids, seq_len: int
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "cohort": cohort,
            "stratum": 0,
            "position": positions,
            "sequence": sequences,
            "column": columns,
            "offset": sequences * seq_len + columns,
            "ids": list(ids),
        }
    )


def _heldout(stream: TokenStream, count: int) -> pd.DataFrame:
    slots = stream.num_tokens // WINDOW
    offsets = evenly(0, slots, count) * WINDOW
    ids = np.stack([stream.read(int(o), WINDOW) for o in offsets])
    whole = ~(ids == stream.index.eod).any(axis=1)
    offsets, ids = offsets[whole], ids[whole]
    nowhere = np.full(len(offsets), -1, dtype=np.int64)
    frame = _frame("heldout", ids, nowhere, nowhere, np.zeros_like(nowhere), 0)
    frame["offset"] = offsets
    return frame


def _repeated(consumed: Consumed, sizes: ProbeSizes, eod: int) -> pd.DataFrame:
    scan = Consumed(
        consumed.stream,
        consumed.order,
        consumed.seq_len,
        min(consumed.positions, sizes.scan_positions),
    )
    places = repeated_places(scan, sizes.repeated_per_stratum, eod)
    if not places:
        return pd.DataFrame()
    strata, rows, columns = (np.array(axis, dtype=np.int64) for axis in zip(*places, strict=True))
    sequences = np.concatenate([scan.order.sequences(int(p), 1) for p in rows])
    ids = scan.stream.sequences(sequences, scan.seq_len)
    ids = ids[np.arange(len(rows))[:, None], columns[:, None] + np.arange(WINDOW)]
    frame = _frame("repeated", ids, rows, sequences, columns, scan.seq_len)
    frame["stratum"] = strata
    return frame


def _add_exposures(table: pd.DataFrame, found: Occurrences, batch_size: int) -> None:
    steps = [found.steps(window, batch_size) for window in range(len(table))]
    table["exposure_steps"] = steps
    table["n_exposures"] = [len(one) for one in steps]
    table["first_step"] = [one[0] if one else -1 for one in steps]


def _add_documents(table: pd.DataFrame, train: TokenStream, heldout: TokenStream) -> None:
    documents = [
        (heldout if cohort == "heldout" else train).document_at(int(offset))
        for cohort, offset in zip(table["cohort"], table["offset"], strict=True)
    ]
    table["source"] = [document.source for document in documents]
    table["document"] = [document.name for document in documents]


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
