"""A suite directory to tables, figures and report: does only what is missing.

``analyze_suite`` writes ``analysis/{probes,memorization,heldout,evals,metrics}.parquet``, the
figures with their data, and ``report.html``. Scoring runs in two worker processes of one thread
each; an interrupted run keeps every finished cell.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from analysis.cells import CellStore, write_table
from analysis.measures import Measure, build_measures
from analysis.probes import Probes, build_probes
from analysis.report import build_report
from analysis.rungs import AnalysisError, Rung, SuiteDir
from analysis.worker import missing

Progress = Callable[[str], None]
WORKERS = 2


def analyze_suite(suite_dir: Path, progress: Progress = print, workers: int | None = None) -> Path:
    """Bring the tables, figures and report of a suite up to date.

    Args:
        suite_dir: ``runs/<suite>``, trained and published.
        progress: called with one line per finished checkpoint and part.
        workers: scoring processes; as many as there are cores, two at most, when None.

    Returns:
        The report's path.

    Raises:
        AnalysisError: the suite is incomplete, or a worker stopped.
    """
    suite = SuiteDir.load(suite_dir)
    probes = build_probes(suite)
    measures = build_measures(suite, probes)
    store = CellStore(suite.tables)
    todo = {rung: len(missing(store, measures, rung)) for rung in suite.rungs}
    total = sum(todo.values())
    if total:
        progress(f"{total} checkpoints to score")
        _score(suite, todo, progress, workers or min(WORKERS, len(os.sched_getaffinity(0))))
    else:
        progress("all checkpoints scored before")
    write_tables(suite, store, measures, probes)
    report = build_report(suite.path)
    progress(f"report {report}")
    return report


def write_tables(
    suite: SuiteDir, store: CellStore, measures: Sequence[Measure], probes: Probes
) -> None:
    """Write every table from the cells and the training logs."""
    checkpoints = [checkpoint for rung in suite.rungs for checkpoint in rung.checkpoints]
    for measure in measures:
        write_table(
            suite.tables / f"{measure.name}.parquet", store.table(measure.name, checkpoints)
        )
    write_table(suite.tables / "probes.parquet", probes.table.assign(probe_digest=probes.digest))
    write_table(suite.tables / "metrics.parquet", training_metrics(suite))


def training_metrics(suite: SuiteDir) -> pd.DataFrame:
    """The training logs of all rungs: rung, step, tokens, loss, grad_norm, clip_coef, lr."""
    parts = [
        pd.read_json(rung.directory / "metrics.jsonl", lines=True, precise_float=True)
        for rung in suite.rungs
    ]
    for rung, part in zip(suite.rungs, parts, strict=True):
        part.insert(0, "rung", rung.name)
    return pd.concat(parts, ignore_index=True)


def partition(costs: dict[Rung, int], workers: int) -> list[list[str]]:
    """Share rungs between workers so that the longest share is short (longest first)."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for rung, cost in sorted(costs.items(), key=lambda item: (-item[1], item[0].name)):
        if cost:
            least = loads.index(min(loads))
            shares[least].append(rung.name)
            loads[least] += cost
    return [share for share in shares if share]


def _score(suite: SuiteDir, todo: dict[Rung, int], progress: Progress, workers: int) -> None:
    costs = {rung: count * _cost(rung) for rung, count in todo.items()}
    running = [_start(suite.path, share) for share in partition(costs, workers)]
    threads = [
        threading.Thread(target=_forward, args=(process, progress), daemon=True)
        for process in running
    ]
    try:
        for thread in threads:
            thread.start()
        codes = [process.wait() for process in running]
        for thread in threads:
            thread.join()
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    if any(codes):
        raise AnalysisError(
            f"expected the scoring processes to end with status 0, found {codes} (reason above); "
            "the finished checkpoints are kept: run the same command again"
        )


def _cost(rung: Rung) -> int:
    """Relative cost of a checkpoint: multiply-adds a token, and a share for the softmax."""
    vocabulary = int(rung.config["rung"]["model"]["hf"]["vocab_size"])
    return rung.parameters[0] + 100 * vocabulary


def _start(path: Path, rungs: list[str]) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "analysis.worker", str(path), *rungs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def _forward(process: "subprocess.Popen[str]", progress: Progress) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        progress(line.rstrip("\n"))
