"""`spike-v1`: steps whose loss leaps, found by a robust rule that depends on the metrics log alone.

A step is a spike where its loss exceeds the median of the 64 losses before it by more than 6 robust
standard deviations (1.4826 times the median absolute deviation from that median), and by more than
2 % of the median. Before 16 losses are known nothing is a spike. The rule sees each loss once and
in order, spikes included, so a resumed run finds the same ones.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

NAME = "spike-v1"
_WINDOW, _LEAST, _DEVIATIONS, _RELATIVE, _NORMAL = 64, 16, 6.0, 0.02, 1.4826
# A line names the worst rows; all of them are one `tripod batch` away.
_ROWS = 16

# What a step reads, one mapping per row: `BatchReader.describe`.
Describe = Callable[[int], Sequence[dict[str, Any]]]


class SpikeRule:
    """Looks at one loss after the other.

    Args:
        losses: those of the steps before, oldest first; the last 64 count.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._window: deque[float] = deque(losses, maxlen=_WINDOW)

    def look(self, loss: float) -> dict[str, float] | None:
        """Whether the next loss is a spike: the median and bound it exceeds, or None."""
        found = None
        if len(self._window) >= _LEAST:
            middle = median(self._window)
            deviation = _NORMAL * median(abs(value - middle) for value in self._window)
            bound = middle + max(_DEVIATIONS * deviation, _RELATIVE * abs(middle))
            if loss > bound:
                found = {"median": middle, "bound": bound}
        self._window.append(loss)
        return found


def spike_line(
    update: int,
    loss: float,
    found: dict[str, float],
    row_losses: np.ndarray,
    described: Sequence[dict[str, Any]],
) -> bytes:
    """One line of `spikes.jsonl`: the step and its worst rows with their documents.

    Args:
        update: 1-based.
        loss: of the batch.
        found: from `SpikeRule.look`.
        row_losses: float32 [B].
        described: `BatchReader.describe(update - 1)`, one mapping per row.
    """
    worst = sorted(range(len(row_losses)), key=lambda row: (-float(row_losses[row]), row))[:_ROWS]
    rows = [
        {
            "row": row,
            "sequence": described[row]["sequence"],
            "loss": float(row_losses[row]),
            "documents": document_names(described[row]),
        }
        for row in worst
    ]
    record = {"step": update, "rule": NAME, "loss": loss, **found, "rows": rows}
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def document_names(row: dict[str, Any]) -> list[str]:
    """`source:name` of every document that a described row holds."""
    return [f"{document['source']}:{document['name']}" for document in row["documents"]]


def name_documents(described: Sequence[dict[str, Any]], rows: Sequence[int], most: int = 20) -> str:
    """The documents of some rows, for a message.

    Args:
        described: one mapping per row of the batch.
        rows: which rows.
        most: rows that are spelled out.
    """
    lines = [
        f"row {row} (sequence {described[row]['sequence']}): "
        + ", ".join(document_names(described[row]))
        for row in rows[:most]
    ]
    more = len(rows) - most
    return "\n".join([*lines, *([f"and {more} more rows"] if more > 0 else [])])
