"""Fills the missing cells of some rungs: ``python -m analysis.worker SUITE_DIR RUNG [RUNG ...]``.

One process, one thread. It prints one line per finished checkpoint and ends when its standard input
is closed, so that it does not outlive the process that started it.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from analysis.cells import CellStore
from analysis.measures import Measure, build_measures
from analysis.rungs import Checkpoint, Rung, SuiteDir
from analysis.subject import Subject
from checkpoints_manifest.errors import CheckpointError

Progress = Callable[[str], None]


def missing(
    store: CellStore, measures: Sequence[Measure], rung: Rung
) -> list[tuple[Checkpoint, list[Measure]]]:
    """The checkpoints of a rung that lack cells, each with the measures it lacks."""
    pairs = [
        (checkpoint, [m for m in measures if not store.has(m.name, checkpoint, m.inputs)])
        for checkpoint in rung.checkpoints
    ]
    return [(checkpoint, lacking) for checkpoint, lacking in pairs if lacking]


def fill_rung(store: CellStore, measures: Sequence[Measure], rung: Rung, progress: Progress) -> int:
    """Compute the missing cells of one rung; returns how many checkpoints were scored."""
    todo = missing(store, measures, rung)
    if not todo:
        return 0
    subject = Subject(rung)
    for done, (checkpoint, lacking) in enumerate(todo, start=1):
        subject.load(checkpoint)
        for measure in lacking:
            store.write(measure.name, checkpoint, measure.inputs, measure(subject))
        progress(f"{rung.name} step{checkpoint.step} ({done}/{len(todo)})")
    return len(todo)


def end_with_parent() -> None:
    """Stop this process as soon as its standard input is closed."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _be_quiet() -> None:
    """Leave standard error to errors: no progress bars, no hints."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(arguments: Sequence[str]) -> int:
    """Entry point of the worker process; returns the exit status."""
    end_with_parent()
    torch.set_num_threads(1)
    _be_quiet()
    try:
        suite = SuiteDir.load(Path(arguments[0]))
        store, measures = CellStore(suite.tables), build_measures(suite)
        for rung in suite.rungs:
            if rung.name in arguments[1:]:
                fill_rung(store, measures, rung, lambda line: print(line, flush=True))
    except (ValueError, OSError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
