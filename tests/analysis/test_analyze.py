"""Tables hold what was measured, and only what is missing is computed."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import analyze, worker
from analysis.__main__ import main
from analysis.analyze import analyze_suite, partition, training_metrics, write_tables
from analysis.cells import CellStore, write_table
from analysis.heldout import heldout_loss, heldout_rows
from analysis.measures import HeldoutMeasure, MemorizationMeasure, build_measures
from analysis.probes import ProbeSizes, build_probes
from analysis.rungs import SuiteDir
from analysis.subject import Subject
from analysis.worker import fill_rung, missing

TABLES = ("probes", "memorization", "heldout", "evals", "metrics")


@pytest.fixture
def copy(analysed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(analysed, tmp_path / "toy", symlinks=True))


def table(path: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(path / "analysis" / f"{name}.parquet")


def test_every_checkpoint_is_in_every_table(analysed: Path) -> None:
    suite = SuiteDir.load(analysed)
    expected = {
        (r.name, c.step, c.tokens, c.weights_root) for r in suite.rungs for c in r.checkpoints
    }
    assert len(expected) == 12
    for name in ("memorization", "heldout", "evals"):
        keys = table(analysed, name)[["rung", "step", "tokens", "weights_root"]].drop_duplicates()
        assert set(keys.itertuples(index=False, name=None)) == expected
    assert len(table(analysed, "evals")) == 12 * 5
    assert len(table(analysed, "memorization")) == 12 * len(table(analysed, "probes"))
    assert len(table(analysed, "metrics")) == 3 * 8


def test_table_rows_are_what_the_measure_gives(analysed: Path) -> None:
    suite = SuiteDir.load(analysed)
    rung, rows = suite.rungs[1], heldout_rows(suite)
    subject = Subject(rung)
    subject.load(rung.checkpoints[2])
    found = table(analysed, "heldout").query("rung == @rung.name and step == 4")
    assert found["loss"].item() == heldout_loss(subject.model, rows)["loss"]


def test_exposures_in_the_table_stop_at_the_checkpoint(analysed: Path) -> None:
    joined = table(analysed, "memorization").merge(
        table(analysed, "probes")[["probe_id", "exposure_steps"]], on="probe_id"
    )
    counted = [
        int((np.asarray(steps) < step).sum())
        for steps, step in zip(joined["exposure_steps"], joined["step"], strict=True)
    ]
    assert joined["n_exposures_so_far"].tolist() == counted
    assert (joined.query("step == 0")["n_exposures_so_far"] == 0).all()
    assert joined.query("step == 8")["n_exposures_so_far"].max() > 1


def test_a_second_run_scores_nothing_and_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (copy / "analysis" / f"{name}.parquet").read_bytes() for name in TABLES}
    report = (copy / "report.html").read_bytes()
    monkeypatch.setattr(analyze, "_score", lambda *arguments: pytest.fail("scored again"))
    lines: list[str] = []
    analyze_suite(copy, lines.append)
    assert "all checkpoints scored before" in lines
    assert before == {name: (copy / "analysis" / f"{name}.parquet").read_bytes() for name in TABLES}
    assert report == (copy / "report.html").read_bytes()


def test_only_missing_and_stale_cells_are_computed(copy: Path) -> None:
    suite = SuiteDir.load(copy)
    store, measures = CellStore(suite.tables), build_measures(suite)
    rung = suite.rungs[0]
    assert missing(store, measures, rung) == []
    store.path("heldout", rung.checkpoints[1]).unlink()
    stale = store.path("evals", rung.checkpoints[2])  # another step's cell under this name
    shutil.copy(store.path("evals", rung.checkpoints[3]), stale)
    todo = [(c.step, [m.name for m in lacking]) for c, lacking in missing(store, measures, rung)]
    assert todo == [(2, ["heldout"]), (4, ["evals"])]
    before = table(copy, "evals")
    assert fill_rung(store, measures, rung, lambda line: None) == 2
    assert missing(store, measures, rung) == []
    write_tables(suite, store, measures, build_probes(suite))
    pd.testing.assert_frame_equal(table(copy, "evals"), before)


def test_other_probes_make_memorization_stale_and_nothing_else(copy: Path) -> None:
    suite = SuiteDir.load(copy)
    measures = build_measures(suite, build_probes(suite, ProbeSizes(row=8, future=4, heldout=4)))
    todo = missing(CellStore(suite.tables), measures, suite.rungs[0])
    assert len(todo) == 4
    assert {m.name for _, lacking in todo for m in lacking} == {"memorization"}


def test_a_missing_cell_is_an_error_not_a_gap(copy: Path) -> None:
    suite = SuiteDir.load(copy)
    store, probes = CellStore(suite.tables), build_probes(suite)
    measures = [HeldoutMeasure(heldout_rows(suite)), MemorizationMeasure(probes)]
    store.path("heldout", suite.rungs[2].checkpoints[0]).unlink()
    with pytest.raises(FileNotFoundError, match="step0"):
        write_tables(suite, store, measures, probes)


def test_the_training_log_is_read_exactly(analysed: Path) -> None:
    suite = SuiteDir.load(analysed)
    metrics = training_metrics(suite)
    for rung in suite.rungs:
        lines = (rung.directory / "metrics.jsonl").read_text().splitlines()
        expected = [json.loads(line)["loss"] for line in lines]
        assert metrics.query("rung == @rung.name")["loss"].tolist() == expected


def test_work_is_shared_evenly(analysed: Path) -> None:
    small, seed, large = SuiteDir.load(analysed).rungs
    assert partition({small: 2, seed: 2, large: 5}, 2) == [["toy-50k"], ["toy-8k", "toy-8k-seed1"]]
    assert partition({small: 0, seed: 0, large: 5}, 2) == [["toy-50k"]]
    assert partition({small: 0, seed: 0, large: 0}, 2) == []


def test_a_worker_ends_with_the_process_that_started_it(copy: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from analysis.worker import *; end_with_parent(); import time; time.sleep(60)",
        ],
        stdin=subprocess.PIPE,
        cwd=Path(analyze.__file__).parents[1],
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 1


def test_other_weights_stop_the_run_and_keep_what_is_done(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    suite = SuiteDir.load(copy)
    rung, store = suite.rungs[0], CellStore(suite.tables)
    for checkpoint in rung.checkpoints:
        store.path("heldout", checkpoint).unlink()
    third = rung.checkpoints[2].weights
    third.unlink()
    shutil.copy(rung.checkpoints[3].weights, third)  # step 8 published as step 4
    assert worker.main([str(copy), rung.name]) == 1
    assert "toy-8k step4: expected weights root" in capsys.readouterr().err
    assert store.path("heldout", rung.checkpoints[1]).exists()
    assert not store.path("heldout", rung.checkpoints[2]).exists()


def test_the_command_line_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "run `make sweep` first" in capsys.readouterr().err


def test_tables_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.parquet"
    write_table(path, pd.DataFrame({"a": [1]}))
    before = path.read_bytes()

    def full(descriptor: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_pipeline.durable.reserve", full)
    with pytest.raises(OSError, match="No space"):
        write_table(path, pd.DataFrame({"a": [2]}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_analysis_does_not_import_the_trainer() -> None:
    for path in Path(analyze.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])]
            module = getattr(node, "module", None) or ""
            imported = names if isinstance(node, ast.Import) else [module]
            assert not any(name.split(".")[0] in ("suite", "sweeps") for name in imported), path
