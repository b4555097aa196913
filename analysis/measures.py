"""What is computed at every checkpoint: three measures, each a function of (subject, its inputs).

A measure has a name, a digest of everything besides the weights that decides its rows, and a call
that turns a loaded subject into rows. Adding one is adding a class here and to ``build_measures``.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pandas as pd

from analysis import evals, heldout, score
from analysis.cells import write_json
from analysis.eval_tasks import EvalTasks, write_tasks
from analysis.heldout import HeldoutRows, heldout_loss, heldout_rows
from analysis.probes import Probes, build_probes, exposures_before, last_exposure_before
from analysis.rungs import SuiteDir
from analysis.score import score_windows
from analysis.subject import EVAL_BATCH, Subject
from data_pipeline.canonical import canonical_json, sha256_hex


class Measure(Protocol):
    """One kind of row computed per checkpoint."""

    @property
    def name(self) -> str:
        """Name of the measure and of its table."""
        ...

    @property
    def inputs(self) -> str:
        """Digest of definition and inputs, weights excluded."""
        ...

    def __call__(self, subject: Subject) -> pd.DataFrame:
        """Rows for the checkpoint that the subject holds."""
        ...


@dataclass(frozen=True)
class HeldoutMeasure:
    """Held-out loss: one row per checkpoint."""

    rows: HeldoutRows
    name: str = "heldout"

    @property
    def inputs(self) -> str:
        """Digest of the definition and the rows."""
        return _digest(heldout.NAME, heldout.BATCH, self.rows.digest)

    def __call__(self, subject: Subject) -> pd.DataFrame:
        """One row: loss, bits_per_byte, target_tokens, text_bytes."""
        return pd.DataFrame([heldout_loss(subject.model, self.rows)])


@dataclass(frozen=True)
class MemorizationMeasure:
    """Memorization: one row per checkpoint and probe."""

    probes: Probes
    name: str = "memorization"

    @property
    def inputs(self) -> str:
        """Digest of the definition and the probes."""
        return _digest(score.NAME, score.BATCH, self.probes.digest)

    def __call__(self, subject: Subject) -> pd.DataFrame:
        """The columns of ``score_windows`` with the probe and what had been read by this step."""
        step = subject.checkpoint.step
        exposures = list(self.probes.table["exposure_steps"])
        columns = ["probe_id", "cohort", "stratum", "first_step", "n_exposures"]
        known = self.probes.table[columns].assign(
            n_exposures_so_far=exposures_before(exposures, step),
            last_exposure_step=last_exposure_before(exposures, step),
        )
        return pd.concat([known, score_windows(subject.model, self.probes.ids)], axis=1)


@dataclass
class EvalMeasure:
    """lm-eval: one row per checkpoint, task and metric; the harness's record is kept as JSON."""

    tasks: EvalTasks
    records: Path
    name: str = "evals"

    @property
    def inputs(self) -> str:
        """Digest of the harness version and the tasks."""
        return _digest(evals.NAME, EVAL_BATCH, self.tasks.digest)

    @cached_property
    def harness(self) -> evals.Harness:
        """The loaded tasks."""
        return evals.load_harness(self.tasks)

    def __call__(self, subject: Subject) -> pd.DataFrame:
        """Rows task, metric, value, n, commit, task_digest."""
        results = evals.evaluate(self.harness, subject.language_model)
        checkpoint = subject.checkpoint
        about = {
            "rung": checkpoint.rung,
            "revision": f"step{checkpoint.step}",
            "commit": checkpoint.commit,
            "weights_root": checkpoint.weights_root,
            "task_digest": self.tasks.digest,
            "harness": evals.NAME,
        }
        path = self.records / checkpoint.rung / f"step{checkpoint.step}.json"
        write_json(path, {**about, **evals.public_record(results)})
        rows = evals.result_rows(results)
        return rows.assign(commit=checkpoint.commit, task_digest=self.tasks.digest)


def build_measures(suite: SuiteDir, probes: Probes | None = None) -> list[Measure]:
    """The measures of a suite, in the order in which they run."""
    return [
        HeldoutMeasure(heldout_rows(suite)),
        MemorizationMeasure(probes or build_probes(suite)),
        EvalMeasure(write_tasks(suite), suite.tables / "lm-eval"),
    ]


def _digest(*parts: object) -> str:
    return sha256_hex(canonical_json(list(parts)))
