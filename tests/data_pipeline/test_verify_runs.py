import json
import shutil

import pytest

from data_pipeline.errors import DatasetError
from data_pipeline.overlay import Entry, Overlay, binding_of
from data_pipeline.run_dir import RunOrder, find_runs
from data_pipeline.verify_runs import verify_order
from tests.data_pipeline.runs import B, S, make_run, write_log


@pytest.fixture(scope="module")
def suite(built, tmp_path_factory):
    """Three runs of one order; b is shorter."""
    root = tmp_path_factory.mktemp("suite")
    for name, steps in (("a", 12), ("b", 7), ("c", 12)):
        make_run(root / name, built, steps)
    return root


@pytest.fixture
def runs(suite, tmp_path):
    shutil.copytree(suite, tmp_path / "suite")
    return [tmp_path / "suite" / name for name in "abc"]


def log_of(run):
    return (run / "order.log").read_bytes()


def test_equal_runs_pass_with_and_without_data(runs):
    verdict = verify_order(runs)
    assert verdict.ok
    assert verdict.detail == "3 runs, 31 steps compared without data"
    said = []
    verdict = verify_order([runs[0], runs[2]], recompute=True, progress=said.append)
    assert verdict.ok
    assert "24 steps recomputed from the shards, one chain" in verdict.detail
    assert said == ["a: 12 of 12 steps recomputed", "c: 12 of 12 steps recomputed"]


def test_no_dataset_is_needed_to_compare(runs):
    for run in runs:
        config = json.loads((run / "config.json").read_text())
        config["data"]["dir"] = "gone"
        (run / "config.json").write_text(json.dumps(config))
    assert verify_order(runs).ok
    with pytest.raises(DatasetError, match="gone"):
        verify_order(runs, recompute=True)
    log = bytearray(log_of(runs[2]))
    log[32 * 5] ^= 1
    (runs[2] / "order.log").write_bytes(log)
    failures = "\n".join(verify_order(runs).failures)
    assert "a and c: they read different tokens first at step 5 (1 of 12" in failures
    assert "b and c: they read different tokens first at step 5 (1 of 7" in failures
    assert "rows can be named only with the datasets of both runs" in failures


def test_a_run_that_read_other_rows_is_told_apart(built, tmp_path):
    make_run(tmp_path / "good", built)
    make_run(
        tmp_path / "bad", built, fed=lambda t, ids: ids[[1, 0, *range(2, B)]] if t > 8 else ids
    )
    verdict = verify_order([tmp_path / "good", tmp_path / "bad"])
    (failure,) = verdict.failures
    assert "different tokens first at step 9 (3 of 12 common steps differ)" in failure
    assert "bad did not read what its index promises, but its rows 0 and 1 exchanged" in failure
    (index, _) = verify_order([tmp_path / "bad", tmp_path / "good"], recompute=True).failures
    assert "bad: first divergence from the index at step 9" in index
    assert "the run read: its rows 0 and 1 exchanged" in index
    assert "row 0: sequence" in index
    assert "part" in index


def test_another_order_is_named_with_rows_and_text(built, tmp_path):
    make_run(tmp_path / "one", built, seed=0)
    make_run(tmp_path / "two", built, seed=1)
    (failure,) = verify_order([tmp_path / "one", tmp_path / "two"]).failures
    assert "they do not share one order (seed 0 and 1);" in failure
    assert "first at step 0 (12 of 12 common steps differ)" in failure
    assert "row 0, column" in failure
    assert "one has sequence" in failure
    assert "did not read" not in failure


def test_another_batch_size_is_no_comparison(built, tmp_path):
    make_run(tmp_path / "one", built)
    make_run(tmp_path / "two", built, batch_size=4)
    (failure,) = verify_order([tmp_path / "one", tmp_path / "two"]).failures
    assert "batch_size 8 and 4" in failure
    assert "differ at every step by definition" in failure


def test_ledgers_are_held_to_the_log(runs):
    log = log_of(runs[0])
    (runs[0] / "order.log").write_bytes(log[: 32 * 8])
    assert verify_order(runs[:1]).failures == (
        "a: checkpoint step12 exists, but order.log holds 8 steps",
    )
    (runs[0] / "order.log").write_bytes(log[:-1])
    with pytest.raises(DatasetError, match="cut short"):
        verify_order(runs[:1])
    damaged = bytearray(log)
    damaged[32 * 5] ^= 1
    (runs[0] / "order.log").write_bytes(damaged)
    (failure,) = verify_order(runs[:1]).failures
    assert "checkpoint step8 carries chain" in failure


def test_a_damaged_dataset_does_not_accuse_the_run(dataset, tmp_path):
    reader = make_run(tmp_path / "a", dataset)
    assert verify_order([tmp_path / "a"], recompute=True).ok
    shard = dataset / "train" / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    offset = min(int(i) for step in range(12) for i in reader.sequences(step)) * S + 5
    data[2 * offset + 1] ^= 0x80  # outside the vocabulary too
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match=r"shard-00000\.bin: sha256"):
        verify_order([tmp_path / "a"], recompute=True)


def test_another_dataset_at_the_same_place_is_refused(runs):
    config = json.loads((runs[0] / "config.json").read_text())
    config["data"]["index_digest"] = "12" * 32
    (runs[0] / "config.json").write_text(json.dumps(config))
    run = RunOrder.load(runs[0])
    write_log(runs[0], bytes(32), run.log)
    with pytest.raises(DatasetError, match="expected index digest 1212"):
        verify_order(runs[:1], recompute=True)


def test_runs_with_and_without_canaries_part_at_the_touched_steps(built, tmp_path):
    plain = make_run(tmp_path / "plain", built)
    ids = tuple(int(i) for i in plain.stream.index.tokenizer().encode("a planted sentence"))
    entries = [Entry(step * B + 2, 5, ids, "canary", "c/0") for step in (4, 9)]
    overlay = Overlay(binding_of(plain), entries).save(tmp_path / "overlays")
    make_run(tmp_path / "planted", built, overlay=overlay)
    assert verify_order([tmp_path / "planted"], recompute=True).ok
    (failure,) = verify_order([tmp_path / "plain", tmp_path / "planted"]).failures
    assert "they do not share one order (overlay None and" in failure
    assert "first at step 4 (2 of 12 common steps differ)" in failure
    assert "row 2, column 5" in failure
    assert "with overlay c/0" in failure
    assert "a planted sentence" in failure
    # A run that claims the overlay and did not read it.
    shutil.rmtree(tmp_path / "planted")
    make_run(tmp_path / "planted", built, overlay=overlay, fed=lambda t, ids: plain.ids(t))
    (failure,) = verify_order([tmp_path / "planted"], recompute=True).failures
    assert "the run read: this batch without its overlay" in failure


def test_directories_that_are_no_runs_are_refused(runs, tmp_path):
    assert find_runs(runs[0].parent) == runs
    assert find_runs(runs[1]) == [runs[1]]
    with pytest.raises(DatasetError, match="a run or a suite directory"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"expected a run, found no config\.json"):
        RunOrder.load(tmp_path)
    (runs[0] / "config.json").write_text('{"data": {"seed": 1}}')
    with pytest.raises(DatasetError, match="expected the order of a run"):
        RunOrder.load(runs[0])
    (runs[1] / "manifest.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DatasetError, match="line 1: expected a record with step"):
        RunOrder.load(runs[1])
