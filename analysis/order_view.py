"""The token order at a glance: which documents the rows of some steps hold."""

from pathlib import Path
from typing import Any

import numpy as np

from analysis.probes import evenly
from analysis.rungs import Rung, SuiteDir
from data_pipeline.batches import BatchReader

MAX_STEPS = 64
SNIPPET_TOKENS = 48
SNIPPET_CHARS = 110
LEAF_BYTES = 32


def order_view(suite: SuiteDir, max_steps: int = MAX_STEPS) -> dict[str, Any]:
    """Describe evenly spaced steps, the first and the last included.

    Returns:
        ``{"steps": total, "rungs": [smallest, largest], "documents": [[source, label], ...],
        "sample": [{"step", "leaf", "rows": [[sequence, [document index, ...], snippet,
        [loss in the smallest, loss in the largest rung]], ...]}, ...]}``; steps are 0-based. A loss
        is that of the sequence when it was read, in nats per token, or None where it was not
        logged.
    """
    data, total = suite.data, suite.last_step
    reader = BatchReader(
        suite.dataset, data["seq_len"], data["batch_size"], int(data["seed"]), data["order"]
    )
    tokenizer = reader.stream.index.tokenizer()
    documents: dict[tuple[str, str], int] = {}
    ends = [suite.rungs[0], suite.rungs[-1]]
    losses = [_losses(rung) for rung in ends]
    leaves = _leaves(suite.rungs[0].directory / "order.log")
    sample = []
    for step in _steps(total, max_steps):
        rows = []
        ids = reader.ids(step)
        for described in reader.describe(step):
            row = described["row"]
            held = [
                documents.setdefault((d["source"], d["name"]), len(documents))
                for d in described["documents"]
            ]
            text = snippet(tokenizer.decode_bytes(ids[row, :SNIPPET_TOKENS]))
            read = [_loss_of(one, step, row) for one in losses]
            rows.append([described["sequence"], held, text, read])
        sample.append({"step": step, "leaf": leaves.get(step, ""), "rows": rows})
    return {
        "steps": total,
        "rungs": [rung.name for rung in ends],
        "documents": [[source, document_label(source, name)] for source, name in documents],
        "sample": sample,
    }


def document_label(source: str, name: str) -> str:
    """The path of a document, its source included once."""
    return name if name.startswith(f"{source}/") else f"{source}/{name}"


def snippet(data: bytes, chars: int = SNIPPET_CHARS) -> str:
    """The start of a text on one line: runs of white space become one space."""
    text = " ".join(data.decode("utf-8", errors="replace").split())
    return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"


def _steps(total: int, max_steps: int) -> list[int]:
    steps = set(evenly(0, total, max_steps).tolist())
    if len(steps) == max_steps and total > 1:
        steps.discard(max(steps))
    return sorted(steps | {total - 1})


def _leaves(path: Path) -> dict[int, str]:
    data = path.read_bytes()
    count = len(data) // LEAF_BYTES
    return {t: data[LEAF_BYTES * t : LEAF_BYTES * (t + 1)].hex() for t in range(count)}


def _losses(rung: Rung) -> np.ndarray | None:
    path = rung.directory / "sequence_loss.f32"
    if not path.exists():
        return None
    return np.fromfile(path, dtype="<f4").reshape(-1, int(rung.config["data"]["batch_size"]))


def _loss_of(losses: np.ndarray | None, step: int, row: int) -> float | None:
    return None if losses is None or step >= len(losses) else round(float(losses[step, row]), 2)
