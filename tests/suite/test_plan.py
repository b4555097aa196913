"""Every rung of every suite is planned; layouts, hours, storage and output have known answers."""

import dataclasses
import json
import subprocess
import sys

import pytest

from suite.cli_plan import suite_and_overrides
from suite.config import ConfigError
from suite.plan import plan_rung
from suite.plan_hardware import Hardware
from suite.plan_plot import plot_schedule, schedule_points
from suite.plan_split import choose_split, imbalance
from suite.plan_storage import full_states, plan_storage
from suite.plan_table import compute_table, duration, plan_json, plan_text, short, size
from suite.train import suite_names
from tests.suite.plans import composed, planned

CARD = Hardware(
    ranks=8, device="cuda", devices=8, memory_bytes=80e9,
    peak_flops={"fp32": 6.7e13, "bf16": 1e15}, utilisation=0.5, usable=0.9,
    price_per_device_hour=None,
)  # fmt: skip


@pytest.mark.parametrize("suite", suite_names())
def test_every_rung_is_planned(suite):
    plan = planned(suite)
    for name, rung in plan.rungs.items():
        assert rung.name == name
        assert rung.parameters.total > rung.parameters.embedding > 0
        assert 0 < rung.parameters.active <= rung.parameters.total <= rung.parameters.in_memory
        assert rung.flops > 0 and rung.device_hours > 0 and rung.choice.fits
        assert rung.choice.why.endswith(".")
        assert rung.storage.steps[0] == 0 and rung.storage.steps[-1] == rung.config.train.steps
    text = plan_text(plan)
    assert all(name in text for name in plan.rungs)
    assert len(json.dumps(plan_json(plan))) > 1000


def test_padding_is_in_memory_and_not_in_checkpoints():
    parameters = planned("families").rungs["families-llama"].parameters
    assert parameters.in_memory - parameters.total == 64 * 16  # tied: one matrix


def test_tied_matrices_count_once():
    parameters = planned("families").rungs["families-mamba"].parameters
    assert parameters.embedding == 512 * 16


def test_layouts_of_pythia_on_eight_h100():
    choices = {n.removeprefix("pythia-"): r.choice for n, r in planned("pythia").rungs.items()}
    for small in ("14m", "160m", "1.4b"):
        assert choices[small].overrides == () and choices[small].split.elastic
    assert choices["2.8b"].overrides == ("numerics.activation_checkpointing=blocks",)
    assert choices["2.8b"].split.elastic
    assert choices["12b"].split.zero_stage == 3 and not choices["12b"].split.elastic
    assert "same bits on this layout only" in choices["12b"].why
    assert all(c.memory.peak <= 72e9 for c in choices.values())


def test_a_smaller_device_gets_a_smaller_quantum_and_then_nothing():
    config = composed("pythia").rungs["pythia-14m"]
    parameters = planned("pythia").rungs["pythia-14m"].parameters.in_memory
    small = choose_split(config, parameters, dataclasses.replace(CARD, memory_bytes=4e9))
    assert small.fits and small.split.quantum == 2
    assert "numerics.quantum=2" in small.overrides and "another recipe" in small.why
    none = choose_split(config, parameters, dataclasses.replace(CARD, memory_bytes=1e8))
    assert not none.fits and none.overrides == ()


def test_no_more_ranks_than_quanta_and_uneven_shares_cost():
    config = composed("smoke").rungs["smoke-20k"]  # four quanta
    rung = plan_rung(config, CARD)
    assert rung.choice.split.ranks == 4
    assert imbalance(4, 4) == 1.0
    assert imbalance(4, 3) == 1.5
    three = plan_rung(config, dataclasses.replace(CARD, ranks=3))
    assert three.wall_hours == pytest.approx(2 * rung.wall_hours)


def test_hours_and_cost_are_operations_over_speed():
    config = composed("pythia").rungs["pythia-1.4b"]
    rung = plan_rung(config, dataclasses.replace(CARD, price_per_device_hour=2.5))
    assert rung.device_hours == pytest.approx(rung.flops / 5e14 / 3600)
    assert rung.wall_hours == pytest.approx(rung.device_hours / 8)
    assert rung.cost == pytest.approx(2.5 * rung.device_hours)
    assert rung.step_seconds * 143_000 / 3600 == pytest.approx(rung.wall_hours)
    measured = plan_rung(config, CARD, utilisation=0.25)
    assert measured.measured and not rung.measured
    assert measured.device_hours == pytest.approx(2 * rung.device_hours)


def test_recomputation_costs_a_forward():
    config = composed("pythia").rungs["pythia-2.8b"]
    whole = plan_rung(config, dataclasses.replace(CARD, memory_bytes=1e13))
    blocks = plan_rung(config, CARD)
    assert 1.25 < blocks.device_hours / whole.device_hours < 4 / 3
    assert blocks.flops == whole.flops


def test_storage_of_a_pythia_run():
    """fp32 weights and moments: six times the published fp16 weights."""
    storage = {n.removeprefix("pythia-"): r.storage for n, r in planned("pythia").rungs.items()}
    assert size(storage["14m"].local_bytes) == "26.0 GB"
    assert size(storage["70m"].local_bytes) == "130.1 GB"
    assert size(storage["1b"].local_bytes) == "1.9 TB"
    assert storage["1b"].hub_bytes * 3 == storage["1b"].local_bytes
    assert duration(storage["1b"].publish_hours) == "1.2 h"


def test_thinned_storage_keeps_first_and_last_state():
    assert full_states([0, 1, 2, 3, 4], 2) == [0, 2, 4]
    assert full_states([0, 1, 2, 3], 2) == [0, 2, 3]
    assert full_states([], 3) == []
    storage = plan_storage([0, 1, 2, 4, 8, 16], 100, 3)
    assert storage.thinned_bytes == 100 * (3 * 12 + 3 * 4)
    assert storage.saved_bytes == 100 * 3 * 8
    assert storage.replay_steps == 12
    with pytest.raises(ValueError, match="state_every=0"):
        plan_storage([0], 1, 0)


def test_digests_are_those_of_the_configuration():
    from data_pipeline.canonical import sha256_hex

    rung = planned("nano", "cpu").rungs["nano-1m"]
    assert rung.config_digest == sha256_hex(rung.config.to_bytes())


def test_hardware_is_no_part_of_the_identity():
    one, other = planned("pythia"), planned("pythia", "a100x8")
    assert [r.config_digest for r in one.rungs.values()] == [
        r.config_digest for r in other.rungs.values()
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"device": "tpu"}, "device='tpu'"), ({"usable": 1.5}, "usable=1.5"),
     ({"peak_flops": {"fp32": 1.0}}, "bf16"), ({"memory_bytes": None}, "memory_bytes")],
)  # fmt: skip
def test_hardware_that_cannot_be_is_named(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CARD, **change)


def test_null_hardware_is_this_machine():
    hardware = Hardware.from_mapping(
        {
            **dataclasses.asdict(CARD),
            "device": "cpu",
            "devices": None,
            "memory_bytes": None,
            "ranks": None,
        }
    )
    assert hardware.count >= 1
    assert hardware.memory_bytes > 1e8


def test_the_schedule_is_drawn_with_its_checkpoints(tmp_path):
    plan = planned("pythia")
    plot_schedule(plan, tmp_path / "schedule.svg")
    text = (tmp_path / "schedule.svg").read_text()
    assert "<svg" in text and "pythia-v1, 154 checkpoints" in text
    updates, rates = schedule_points(plan.rungs["pythia-14m"])
    assert updates[0] == 1 and updates[-1] == 143_000
    assert rates[0] == 0.0 and max(rates) == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)


def test_numbers_read_well():
    assert [short(n) for n in (12, 1_500, 299_892_736_000)] == ["12", "1.5k", "299.9B"]
    assert [duration(h) for h in (0.001, 0.5, 30, 20_000)] == [
        "3.6 s",
        "30.0 min",
        "1.2 days",
        "2.3 years",
    ]


def test_costs_are_shown_where_there_is_a_price():
    plan = planned("smoke")
    assert "cost" not in compute_table(plan)
    priced = dataclasses.replace(
        plan, rungs={n: dataclasses.replace(r, cost=1.0) for n, r in plan.rungs.items()}
    )
    assert "cost" in compute_table(priced)


def test_a_suite_is_named_once():
    assert suite_and_overrides(["hardware=cpu", "suite=nano"]) == ("nano", ["hardware=cpu"])
    assert suite_and_overrides(["nano"]) == ("nano", [])
    for words in ([], ["nano", "suite=smoke"]):
        with pytest.raises(ConfigError, match="expected one suite"):
            suite_and_overrides(words)


@pytest.mark.slow
def test_measured_speed_replaces_the_stated_one():
    from suite.plan_measure import measure

    plan = planned("smoke", "cpu")
    found = measure(plan)
    assert set(found) == set(plan.rungs)
    assert all(0.0 < share <= 1.0 for share in found.values())


def test_what_cannot_be_timed_here_is_said():
    from suite.plan_measure import cuda_devices, measure

    if cuda_devices():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="CUDA and there is none"):
        measure(planned("smoke"))


def test_importing_the_plan_does_not_import_torch():
    modules = "suite.plan, suite.plan_table, suite.cli_plan"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
