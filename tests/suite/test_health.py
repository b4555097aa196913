"""What goes wrong is stopped before it does harm, and named: documents, ranks, knobs."""

import dataclasses
import json
import math
import os
import signal
import time

import numpy as np
import pytest
import torch

from checkpoints_manifest.verify import verify_checkpoints
from data_pipeline.reading import Reading
from suite import failures
from suite.comm import Group
from suite.engine import ExactEngine, non_finite
from suite.failures import killed_ranks, killed_reason, leave_reason
from suite.heartbeat import Beat, Heartbeat, read_beats
from suite.noise import QuantumMeter, noise_line
from suite.quantise import NonFiniteGradientError, quantise_add_eager, range_limit
from suite.spikes import SpikeRule, name_documents
from suite.watchdog import hung
from tests.suite.in_process import STEPS, copy_of, small_config, train_here
from tests.suite.tiny_runs import build_suite, finish, start, steps_done, wait_until


@pytest.fixture(scope="module")
def suite_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    build_suite(directory)
    return directory


@pytest.fixture(scope="module")
def config(suite_dir):
    return small_config(suite_dir)


@pytest.fixture(scope="module")
def whole(suite_dir, config):
    train_here(config, suite_dir / "whole")
    return suite_dir / "whole"


# Non-finite losses and gradients


def poison(monkeypatch, at, rows):
    """Makes the losses of some rows of one update not a number."""
    from suite import engine

    real, calls = engine.quantum_loss, []

    def quantum_loss(*args):
        loss = real(*args)
        calls.append(1)
        update, quantum = divmod(len(calls) - 1, 6)
        if update + 1 == at and quantum in rows:
            return dataclasses.replace(loss, sequences=loss.sequences * math.nan)
        return loss

    monkeypatch.setattr(engine, "quantum_loss", quantum_loss)


def test_a_non_finite_loss_stops_before_the_update_with_its_documents_named(
    config, suite_dir, monkeypatch
):
    run_dir = suite_dir / "poisoned"
    poison(monkeypatch, 6, {1, 4})
    with pytest.raises(NonFiniteGradientError, match="Nothing was updated") as caught:
        train_here(config, run_dir)
    described = Reading.of_run(run_dir).reader().describe(5)
    for row in (1, 4):
        names = [f"{d['source']}:{d['name']}" for d in described[row]["documents"]]
        assert f"row {row} (sequence {described[row]['sequence']}): {', '.join(names)}" in str(
            caught.value
        )
    assert "row 0 " not in str(caught.value)
    report = verify_checkpoints(run_dir)
    assert report.findings == () and report.checkpoints == 3
    # Mended, it goes on from the newest checkpoint.
    monkeypatch.undo()
    assert train_here(config, run_dir) == STEPS


def test_a_gradient_out_of_range_blames_the_rows_of_its_quantum():
    error = non_finite(7, np.zeros(6), np.array([0.0, 3.0, 0.0]))
    assert error.rows == (2, 3)
    assert "3 gradient values" in str(error) and "quanta [1]" in str(error)


def test_many_rows_are_counted_rather_than_listed():
    rows = [{"sequence": n, "documents": [{"source": "s", "name": f"d{n}"}]} for n in range(50)]
    text = name_documents(rows, range(50))
    assert "row 19 (sequence 19): s:d19" in text and text.endswith("and 30 more rows")


# Spikes


def test_a_leap_of_the_loss_is_a_spike_and_noise_is_not():
    rule = SpikeRule()
    calm = [3.0 - 0.01 * n + 0.02 * (-1) ** n for n in range(60)]
    assert [rule.look(loss) for loss in calm] == [None] * 60
    found = rule.look(4.5)
    assert found["median"] < found["bound"] < 4.5
    assert rule.look(calm[-1]) is None


def test_nothing_is_a_spike_before_sixteen_losses():
    rule = SpikeRule([1.0] * 15)
    assert rule.look(100.0) is None
    assert rule.look(100.0) is not None


def test_the_rule_depends_on_the_losses_alone():
    losses = [2.0 + math.sin(7 * n) + (9.0 if n in (40, 90) else 0.0) for n in range(120)]
    whole = SpikeRule()
    seen = [whole.look(loss) for loss in losses]
    for cut in (17, 41, 90, 91):
        assert [SpikeRule(losses[:cut]).look(losses[cut])] == seen[cut : cut + 1]
    assert any(seen)


def test_a_spike_is_logged_with_rows_and_documents_and_survives_a_resume(
    config, whole, suite_dir, monkeypatch
):
    from suite import spikes

    monkeypatch.setattr(spikes, "_LEAST", 2)
    monkeypatch.setattr(spikes, "_DEVIATIONS", -9.0)
    monkeypatch.setattr(spikes, "_RELATIVE", -9.0)
    one, cut = suite_dir / "spiky", suite_dir / "spiky-cut"
    train_here(config, one)
    lines = [json.loads(line) for line in (one / "spikes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(3, STEPS + 1))
    reader = Reading.of_run(one).reader()
    losses = np.fromfile(one / "sequence_loss.f32", dtype="<f4").reshape(-1, 6)
    for line in lines:
        assert line["rule"] == "spike-v1"
        worst = line["rows"][0]
        assert worst["row"] == int(np.argmax(losses[line["step"] - 1]))
        described = reader.describe(line["step"] - 1)[worst["row"]]
        assert worst["documents"][0].endswith(described["documents"][0]["name"])
    from checkpoints_manifest.store import rewind

    copy = copy_of(one, cut.name)
    rewind(copy, 4)
    train_here(config, copy)
    assert (copy / "spikes.jsonl").read_bytes() == (one / "spikes.jsonl").read_bytes()
    assert (whole / "spikes.jsonl").read_bytes() == b""


# Gradient noise scale


def test_noise_lines_are_those_of_the_gradients(config, whole, suite_dir):
    """Recomputed by autograd, one quantum after the other, at the first update."""
    from suite.loss import sequence_nll

    engine = ExactEngine(config, Group(0, 1))
    ids = torch.from_numpy(Reading.of_run(whole).reader().ids(0))
    gradients = []
    for row in range(6):
        engine.model.zero_grad()
        sequence_nll(engine.model, ids[row : row + 1], "fp32").mean().backward()
        flat = [p.grad.double().flatten() for p in engine.model.parameters() if p.grad is not None]
        gradients.append(torch.cat(flat))
    small = float(torch.stack([g @ g for g in gradients]).mean())
    big = float(torch.stack(gradients).mean(0).square().sum())
    line = json.loads((whole / "noise.jsonl").read_text().splitlines()[0])
    assert line["quantum_square"] == pytest.approx(small, rel=1e-5)
    assert line["batch_square"] == pytest.approx(big, rel=1e-5)
    signal_, noise = (6 * big - small) / 5, (small - big) / (1 - 1 / 6)
    assert line["scale"] == pytest.approx(noise / signal_, rel=1e-4)


def test_the_estimate_finds_a_noise_that_is_known():
    draw = np.random.default_rng(0)
    truth, sigma, dimension, batch = 0.5, 2.0, 400, 64
    signals, noises = [], []
    for _ in range(60):
        gradients = truth / math.sqrt(dimension) + sigma * draw.standard_normal((batch, dimension))
        squares = (gradients**2).sum(1)
        norm = math.sqrt((gradients.mean(0) ** 2).sum())
        line = json.loads(noise_line(1, squares, norm, batch))
        signals.append(line["signal"])
        noises.append(line["noise"])
    assert np.mean(noises) == pytest.approx(sigma**2 * dimension, rel=0.02)
    assert np.mean(signals) == pytest.approx(truth**2, abs=1.0)


def test_a_signal_lost_in_the_noise_has_no_scale():
    line = json.loads(noise_line(3, np.array([4.0, 4.0]), 1.0, 8))
    assert line["signal"] < 0 and line["scale"] is None


def test_the_meter_changes_nothing_and_does_not_depend_on_alignment():
    grad = torch.randn(1003, generator=torch.Generator().manual_seed(1))
    shifted = torch.empty(1004)[1:].copy_(grad)
    assert shifted.data_ptr() % 64
    squares, sums = [], []
    for values in (grad, shifted):
        meter, acc = QuantumMeter(quantise_add_eager), torch.zeros(1003, dtype=torch.int64)
        meter(acc, values, range_limit(4))
        squares.append(meter.take())
        sums.append(acc)
        assert meter.take() == 0.0
    plain = torch.zeros(1003, dtype=torch.int64)
    quantise_add_eager(plain, grad, range_limit(4))
    assert squares[0] == squares[1] and all(torch.equal(acc, plain) for acc in sums)


# Heartbeat and watchdog


def beat(rank, step=5, phase="exchange", quanta=2, at=100.0, pid=None):
    return Beat("x", rank, 3, "elsewhere", pid or 1, step, phase, quanta, at)


def test_a_group_with_a_sign_of_life_does_not_hang():
    beats = {0: beat(0), 1: beat(1), 2: beat(2, phase="compute", at=190.0)}
    assert hung(beats, 3, 0.0, 240.0, 60) is None


def test_the_rank_that_others_wait_for_is_named_with_its_last_step():
    beats = {0: beat(0), 1: beat(1, phase="compute", quanta=3), 2: beat(2)}
    text = hung(beats, 3, 0.0, 240.0, 60)
    assert text.startswith("rank 1 (process 1 on elsewhere) hangs in quantum 3 of its share")
    assert "its last step was 5, no sign of life for 140 s" in text
    assert "rank 0" not in text and "rank 2" not in text


def test_a_rank_a_step_behind_is_the_one():
    beats = {0: beat(0, step=6, phase="compute"), 1: beat(1, step=5, phase="save"), 2: beat(2)}
    # Disks are slower than ranks.
    assert hung(beats, 3, 0.0, 240.0, 60) is None
    text = hung(beats, 3, 0.0, 740.0, 60)
    assert "rank 1 " in text and "while it saved the checkpoint of step 5" in text


def test_a_rank_that_never_reported_is_named():
    beats = {r: beat(r, phase="start") for r in range(2)}
    assert hung(beats, 3, 0.0, 640.0, 60) is None
    assert "rank 2 never reported" in hung(beats, 3, 0.0, 740.0, 60)


def test_where_all_wait_the_network_is_named():
    assert "look at the network" in hung({r: beat(r) for r in range(3)}, 3, 0.0, 240.0, 60)


def test_ranks_that_are_done_do_not_hang():
    assert hung({r: beat(r, phase="done") for r in range(3)}, 3, 0.0, 240.0, 60) is None


def test_beats_are_read_whole_and_by_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPOD_LAUNCH", "one")
    heart = Heartbeat(tmp_path, 0, 2)
    heart.at(41)
    heart.quantum()
    monkeypatch.setenv("TRIPOD_LAUNCH", "two")
    Heartbeat(tmp_path, 1, 2)
    (tmp_path / "heartbeat" / "rank2.json").write_text('{"torn')
    assert list(read_beats(tmp_path)) == [0, 1]
    found = read_beats(tmp_path, "one")
    assert list(found) == [0]
    assert (found[0].step, found[0].quanta, found[0].phase) == (41, 1, "compute")
    assert found[0].pid == os.getpid() and abs(found[0].time - time.time()) < 60


# Memory and lost ranks


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate"),
    ],
)
def test_out_of_memory_says_which_knob_to_turn(tmp_path, error):
    leave_reason(error, tmp_path)
    text = (tmp_path / "failure.txt").read_text()
    for knob in ("numerics.quantum", "activation_checkpointing", "zero_stage", "--ranks"):
        assert knob in text


def test_other_errors_are_left_as_they_are_and_the_first_counts(tmp_path):
    leave_reason(ValueError("memory lane"), tmp_path)
    leave_reason(MemoryError(), tmp_path)
    assert (tmp_path / "failure.txt").read_text() == "ValueError: memory lane\n"


def test_a_lost_peer_is_named_from_the_heartbeats(tmp_path):
    Heartbeat(tmp_path, 0, 2).beat("exchange")
    Heartbeat(tmp_path, 1, 2).at(12)
    text = failures.reason(RuntimeError("Timed out waiting 1800000ms for recv"), tmp_path)
    assert "rank 1 (process" in text and "its last step was 12" in text


def test_a_killed_rank_with_and_without_the_kernels_word():
    assert "by the kernel, which ran out of memory" in killed_reason([1], 1)
    assert "If nobody did that" in killed_reason([1], 0)
    assert killed_ranks("nothing of the kind") == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_rank_that_hangs_or_dies_is_named_and_earlier_checkpoints_stand(suite_dir, how):
    run_dir = suite_dir / how
    process = start(run_dir, 2, "train.steps=400", hang_seconds=4)
    assert wait_until(lambda: steps_done(run_dir) >= 3, process), finish(process)
    victim = read_beats(run_dir)[1]
    os.kill(victim.pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    status, said = finish(process)
    assert status == 2
    if how == "stopped":
        assert f"rank 1 (process {victim.pid}" in said and "is stopped (SIGSTOP" in said
        assert "its last step was" in said
    else:
        assert "rank 1 was killed" in said and "numerics.quantum" in said
    assert (run_dir / "failure.txt").read_text().strip() in said
    assert verify_checkpoints(run_dir).findings == ()
