"""Probes: exposures by brute force, controls that were not read, a name that follows them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.probes import (
    Probes,
    ProbeSizes,
    build_probes,
    evenly,
    exposures_before,
    last_exposure_before,
    probe_digest,
)
from analysis.repeated import repeated_places
from analysis.rungs import AnalysisError, SuiteDir
from analysis.windows import Consumed
from data_pipeline.batches import BatchReader
from data_pipeline.shards import TokenStream
from tests.analysis.fixture_suite import BATCH
from tests.analysis.tiny import SEQ_LEN

SIZES = ProbeSizes(row=24, future=12, heldout=12, repeated_per_stratum=6)


@pytest.fixture(scope="module")
def suite(trained: Path) -> SuiteDir:
    return SuiteDir.load(trained)


@pytest.fixture(scope="module")
def probes(suite: SuiteDir) -> Probes:
    return build_probes(suite, SIZES)


def brute_force_steps(suite: SuiteDir, window: np.ndarray) -> list[int]:
    reader = BatchReader(suite.dataset, SEQ_LEN, BATCH, 0)
    return [
        step
        for step in range(suite.last_step)
        for row in reader.ids(step)
        for column in range(SEQ_LEN + 1 - 64 + 1)
        if (row[column : column + 64] == window).all()
    ]


def test_exposures_equal_brute_force(suite: SuiteDir, probes: Probes) -> None:
    for window, steps in zip(probes.ids, probes.table["exposure_steps"], strict=True):
        assert steps == brute_force_steps(suite, window)


def test_row_probes_are_what_the_trainer_reads(suite: SuiteDir, probes: Probes) -> None:
    reader = BatchReader(suite.dataset, SEQ_LEN, BATCH, 0)
    rows = probes.table[probes.table["cohort"] == "row"]
    assert len(rows) >= 20
    for probe in rows.itertuples():
        step, row = divmod(int(probe.position), BATCH)
        assert (reader.ids(step)[row][:64] == probes.ids[probe.probe_id]).all()
        assert step in probe.exposure_steps
        assert probe.sequence == reader.sequences(step)[row]


def test_future_probes_lie_beyond_the_run(suite: SuiteDir, probes: Probes) -> None:
    future = probes.table[probes.table["cohort"] == "future"]
    assert len(future) >= 8
    assert (future["position"] >= suite.last_step * BATCH).all()


def test_repeated_probes_lie_in_their_stratum_and_keep_their_distance(probes: Probes) -> None:
    repeated = probes.table[probes.table["cohort"] == "repeated"]
    assert len(repeated) >= 8
    assert repeated["stratum"].nunique() >= 2
    assert (repeated["stratum"] <= repeated["n_exposures"]).all()
    assert (repeated["n_exposures"] < 2 * repeated["stratum"]).all()
    assert repeated["stratum"].value_counts().max() <= SIZES.repeated_per_stratum
    assert (np.diff(np.sort(repeated["offset"].to_numpy())) >= 8).all()


class Rows:
    """Sequences that are given, read in their order."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def sequences(self, *arguments: object) -> np.ndarray:
        if isinstance(arguments[0], np.ndarray):
            return self.ids[arguments[0]]
        return np.arange(arguments[0], arguments[0] + arguments[1])  # type: ignore[operator]


def planted(copies: dict[int, int]) -> Consumed:
    """Sequences of 129 ids: content k, without repeats inside, appears copies[k] times."""
    contents = [np.arange(1, 130) + 1000 * k for k, times in copies.items() for _ in range(times)]
    rows = Rows(np.stack(contents))
    return Consumed(rows, rows, 128, len(contents))


def test_repeated_windows_of_a_planted_stream() -> None:
    """129 ids hold 66 windows: 3 starts are 32 apart at most; 8 apart, they are at most 9."""
    scan = planted({0: 1, 1: 3, 2: 5})
    places = repeated_places(scan, per_stratum=100, eod=0)
    for low, position, content in ((2, 1, 1), (4, 4, 2)):
        mine = [place for place in places if place[0] == low]
        assert {place[1] for place in mine} == {position}, content
        columns = np.sort([place[2] for place in mine])
        assert (np.diff(columns) >= 8).all()
        assert 5 <= len(columns) <= 9
    assert {place[0] for place in places} == {2, 4}
    few = repeated_places(scan, per_stratum=1, eod=0)
    assert [place[0] for place in few] == [2, 4]
    far = [place[2] for place in repeated_places(scan, 2, 0) if place[0] == 2]
    assert len(far) == 2


def test_windows_with_a_mark_are_not_chosen() -> None:
    scan = planted({1: 4})
    marked = 1000 + 65  # the 65th id of the content is the mark: only windows before or after it
    places = repeated_places(scan, per_stratum=100, eod=marked)
    assert places
    assert all(column + 64 <= 64 or column > 64 for _, _, column in places)


def test_no_probe_holds_an_end_of_document_mark(probes: Probes) -> None:
    assert (probes.ids != 0).all()


def test_heldout_probes_come_from_the_heldout_split(suite: SuiteDir, probes: Probes) -> None:
    stream = TokenStream(suite.dataset, "heldout")
    heldout = probes.table[probes.table["cohort"] == "heldout"]
    assert len(heldout) >= 6
    for probe in heldout.itertuples():
        assert (stream.read(int(probe.offset), 64) == probes.ids[probe.probe_id]).all()
        assert stream.document_at(int(probe.offset)).name == probe.document


def test_exposures_so_far_never_look_ahead() -> None:
    steps = [[0, 3, 3, 7], [], [5]]
    assert exposures_before(steps, 0) == [0, 0, 0]
    assert exposures_before(steps, 3) == [1, 0, 0]
    assert exposures_before(steps, 4) == [3, 0, 0]
    assert exposures_before(steps, 8) == [4, 0, 1]
    assert last_exposure_before(steps, 4) == [3, -1, -1]
    assert last_exposure_before(steps, 0) == [-1, -1, -1]


def test_the_set_is_reproducible_and_named_by_its_content(suite: SuiteDir, probes: Probes) -> None:
    again = build_probes(suite, SIZES)
    assert again.digest == probes.digest
    pd.testing.assert_frame_equal(again.table, probes.table)
    assert build_probes(suite, ProbeSizes(row=8, future=4, heldout=4)).digest != probes.digest
    changed = probes.table.copy()
    changed.at[3, "ids"] = np.array([*changed.at[3, "ids"][:-1], 1])
    assert probe_digest(changed, SIZES) != probes.digest


def test_evenly_spaced() -> None:
    assert evenly(0, 10, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly(5, 8, 10).tolist() == [5, 6, 7]
    assert evenly(5, 5, 3).tolist() == []


def test_sequences_shorter_than_a_window_are_refused(suite: SuiteDir) -> None:
    suite = SuiteDir.load(suite.path)
    suite.rungs[0].config["data"]["seq_len"] = 63  # type: ignore[index]
    with pytest.raises(AnalysisError, match="at least 64"):
        build_probes(suite)
