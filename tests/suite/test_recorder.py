"""Logs survive a resume without duplicates; a batch that was not promised stops the run."""

import hashlib

import numpy as np
import pytest

from data_pipeline.digests import chain_next, leaf
from suite.engine import StepResult
from suite.recorder import LogError, OrderError, Recorder, read_metrics, read_sequence_losses

ROWS = 3


def result(update, salt=b""):
    digests = [hashlib.sha256(bytes([update, row]) + salt).digest() for row in range(ROWS)]
    losses = np.array([1.0, 0.1 * update, 3.0], dtype=np.float32)
    return StepResult(1.0 / update, losses, digests, 0.5, 1.0, "0" * 64)


LEAVES = b"".join(leaf(n - 1, result(n).sequence_digests) for n in range(1, 7))
START = hashlib.sha256(b"start").digest()


def record(run_dir, first, last, chain=START, metrics=None, expected=LEAVES):
    recorder = Recorder(run_dir, chain, expected, ROWS, 30)
    recorder.open_at(first, metrics)
    digest, chains = None, {}
    for update in range(first + 1, last + 1):
        recorder.record(update, 1e-3, result(update), 0.25)
        digest = recorder.flush()
        chains[update] = (digest, recorder.chain)
    recorder.close()
    return chains


def contents(run_dir):
    return {
        n: (run_dir / n).read_bytes() for n in ("metrics.jsonl", "order.log", "sequence_loss.f32")
    }


def test_logs_hold_one_entry_per_update(tmp_path):
    chains = record(tmp_path, 0, 6)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert read_metrics(tmp_path)[2]["tokens"] == 90
    assert read_sequence_losses(tmp_path, ROWS).shape == (6, ROWS)
    assert (tmp_path / "order.log").read_bytes() == LEAVES
    expected = START
    for step in range(6):
        expected = chain_next(expected, LEAVES[32 * step : 32 * step + 32])
    assert chains[6][1] == expected


def test_resuming_earlier_gives_the_same_bytes_as_never_stopping(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    record(whole, 0, 6)
    chains = record(cut, 0, 5)
    with (cut / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "torn')
    digest, chain = chains[3]
    record(cut, 3, 6, chain, digest)
    assert contents(cut) == contents(whole)


def test_a_changed_log_is_refused_on_resume(tmp_path):
    digest, chain = record(tmp_path, 0, 4)[3]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss":1.0', b'"loss":1.5', 1))
    with pytest.raises(LogError, match=f"should have sha256 {digest}"):
        record(tmp_path, 3, 4, chain, digest)


@pytest.mark.parametrize("name", ["metrics.jsonl", "order.log", "sequence_loss.f32"])
def test_a_log_that_lost_its_end_is_refused(tmp_path, name):
    digest, chain = record(tmp_path, 0, 4)[4]
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LogError, match=name):
        record(tmp_path, 4, 5, chain, digest)


def test_a_missing_log_is_refused(tmp_path):
    digest, chain = record(tmp_path, 0, 2)[2]
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(LogError, match="is missing"):
        record(tmp_path, 2, 3, chain, digest)


def test_a_batch_other_than_the_promised_one_stops_the_run_before_it_is_logged(tmp_path):
    swapped = LEAVES[:32] + leaf(1, result(2).sequence_digests[::-1]) + LEAVES[64:]
    with pytest.raises(OrderError, match="step 1: the index promises leaf"):
        record(tmp_path, 0, 3, expected=swapped)
    assert (tmp_path / "order.log").read_bytes() == LEAVES[:32]
    assert len(read_metrics(tmp_path)) == 1
