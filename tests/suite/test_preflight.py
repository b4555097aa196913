"""Preflight finds everything at once, says what to do, and writes nothing."""

import dataclasses
import fcntl
import json

import pytest

from suite import preflight as checks
from suite.cli import main
from suite.preflight import Failure, preflight
from suite.preflight_mock import mock_quantum
from suite.preflight_refusal import refusal
from suite.sweep import Sweep
from tests.suite.plans import composed, planned


def at(suite, directory):
    return Sweep(directory / suite, composed(suite).rungs)


def names(failures):
    return [failure.check for failure in failures]


def test_a_suite_that_fits_has_no_failure(tmp_path):
    assert preflight(at("smoke", tmp_path), mock=False) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_mock_quantum_computes_under_the_runs_numerics():
    assert checks.check_quantum(planned("smoke", "cpu").rungs) == []


def test_a_quantum_that_is_not_finite_is_seen():
    config = composed("smoke").rungs["smoke-20k"]
    hf = {**config.rung.model.hf, "layer_norm_eps": float("nan")}
    model = dataclasses.replace(config.rung.model, hf=hf)
    broken = dataclasses.replace(config, rung=dataclasses.replace(config.rung, model=model))
    numerics = dataclasses.replace(config.numerics, profile="native")
    broken = dataclasses.replace(broken, numerics=numerics)
    with pytest.raises(FloatingPointError, match="not finite"):
        mock_quantum(broken)


def test_a_failing_process_of_the_mock_quantum_is_a_failure(monkeypatch):
    monkeypatch.setattr(checks.sys, "executable", "/bin/false")
    (failure,) = checks.check_quantum(planned("smoke", "cpu").rungs)
    assert failure.check == "mock quantum" and failure.rungs == ("smoke-20k",)


def test_pythia_is_refused_here_with_every_reason_its_table_and_what_fits(tmp_path):
    sweep = at("pythia", tmp_path)
    failures = preflight(sweep)
    assert {"memory", "time", "disk", "data"} <= set(names(failures))
    text = refusal(sweep, failures)
    for name in sweep.rungs:
        assert name in text
    assert "nearest suite that fits this machine: pythia-laptop" in text
    assert "make sweep SUITE=pythia-laptop" in text
    assert "pile=/path/document" in text
    assert not list(tmp_path.iterdir())


def test_a_refused_sweep_exits_2_and_writes_nothing(tmp_path, monkeypatch, capsys):
    from suite import sweep as module

    monkeypatch.setattr(module, "preflight", lambda plan, asked: [Failure("x", "found y", "do z")])
    monkeypatch.setattr(module, "refusal", lambda plan, failures, asked: f"{failures[0]} {asked}")
    assert (
        main(["sweep", "smoke", "--root", str(tmp_path / "r"), "--ranks", "3", "train.steps=9"])
        == 2
    )
    out = capsys.readouterr().out
    assert "found y" in out and "train.steps=9" in out and "hardware.ranks=3" in out
    assert not (tmp_path / "r").exists()


def test_a_drifted_sibling_is_named():
    rungs = dict(composed("smoke").rungs)
    odd = rungs["smoke-60k"]
    rungs["smoke-60k"] = dataclasses.replace(odd, train=dataclasses.replace(odd.train, clip=0.25))
    (failure,) = checks.check_siblings(rungs)
    assert "train.clip" in failure.found and "suite.axes" in failure.remedy


def test_other_versions_than_the_lock_are_named(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("torch==1.0.0\nnumpy==0.0.1\n")
    found = checks.check_versions(lock)
    assert len(found) == 2 and all("make setup" in failure.remedy for failure in found)
    assert "torch: expected 1.0.0" in found[0].found
    assert checks.check_versions() == []
    assert checks.check_versions(tmp_path / "none") == []


def test_missing_devices_are_named():
    plan = planned("smoke")
    found = checks.check_devices(plan, cuda=lambda: 2)
    assert "expects 8 CUDA devices, found 2" in found[0].found
    # No engine computes on CUDA yet, and the preflight says so rather than start.
    assert names(found) == ["devices", "engine"]
    assert names(checks.check_devices(plan, cuda=lambda: 8)) == ["engine"]
    assert checks.check_devices(planned("smoke", "cpu")) == []


def test_layouts_that_must_be_asked_for_are_listed_with_their_overrides():
    plan = planned("pythia")
    found = {failure.rungs: failure.remedy for failure in checks.check_memory(plan, plan.rungs)}
    assert "engine.zero_stage=3" in found[("pythia-12b",)]
    assert "activation_checkpointing=blocks" in found[("pythia-2.8b",)]


def test_a_full_disk_is_seen_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "free_bytes", lambda path: 1000)
    (failure,) = checks.check_disk(tmp_path / "a" / "b", planned("smoke", "cpu").rungs)
    assert "MB" in failure.found and str(tmp_path) in failure.found and "--root" in failure.remedy


def test_a_run_in_use_is_seen(tmp_path):
    sweep = at("smoke", tmp_path)
    run = sweep.run_dir("smoke-20k")
    run.mkdir(parents=True)
    with (run / "lock").open("ab") as lock:
        assert checks.check_locks(sweep, list(sweep.rungs)) == []
        fcntl.flock(lock, fcntl.LOCK_EX)
        (failure,) = checks.check_locks(sweep, list(sweep.rungs))
    assert str(run / "lock") in failure.found


def test_a_dataset_is_present_or_buildable(tmp_path):
    sweep = at("pythia", tmp_path)
    tokenizer, files = checks.check_data(sweep)
    assert "expected token files" in files.found and "expected the tokenizer" in tokenizer.found
    (sweep.directory / "data").mkdir(parents=True)
    (sweep.directory / "data" / "index.json").write_text("{}")
    assert checks.check_data(sweep) == []
    config = composed("smoke").rungs["smoke-20k"]
    empty = dataclasses.replace(config, data=dataclasses.replace(config.data, build={}))
    (failure,) = checks.check_data(Sweep(tmp_path / "x", {"smoke-20k": empty}))
    assert "data.build is empty" in failure.found


def test_a_run_of_years_is_refused():
    plan = planned("pythia", "cpu")
    (failure,) = checks.check_time(plan.rungs)
    assert "years" in failure.found and failure.rungs == tuple(plan.rungs)


def test_a_missing_compiler_is_a_notice(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    assert "no C compiler" in checks.notices()[0]


def test_the_commands(tmp_path, capsys):
    """Wired as the command line wires them."""
    import argparse

    from suite import cli_plan
    from suite.command_line import CommandTable

    parser = argparse.ArgumentParser()
    cli_plan.add_commands(CommandTable(parser).add)

    def run(*words):
        arguments = parser.parse_args([*words])
        return arguments.run(arguments), capsys.readouterr().out

    status, out = run("plan", "smoke", "--json", "--plot", str(tmp_path / "x.svg"))
    assert status == 0 and len(json.loads(out)["rungs"]) == 3
    assert (tmp_path / "x.svg").exists()
    status, out = run("plan", "suite=smoke", "hardware=h100x8", "hardware.price_per_device_hour=2")
    assert status == 0 and "8 GPUs of 80 GB" in out and "cost" in out
    status, out = run("preflight", "smoke", "hardware=h100x8", "--root", str(tmp_path), "--json")
    assert status == 1 and "devices" in [row["check"] for row in json.loads(out)]
