"""The configuration names what is wrong, and siblings may differ only in declared axes."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from suite.config import ConfigError, RunConfig, sibling_differences
from suite.launch import write_config
from suite.sweep import compose_suite
from suite.train import compose, suite_names


@pytest.fixture(scope="module")
def mapping():
    return compose("smoke", "smoke-20k")


def changed(mapping, path, value):
    result = copy.deepcopy(mapping)
    *groups, last = path.split(".")
    node = result
    for group in groups:
        node = node[group]
    node[last] = value
    return result


def test_every_rung_of_every_suite_composes_and_siblings_agree(tmp_path):
    for name in suite_names():
        plan = compose_suite(name, tmp_path)
        assert list(plan.rungs) == list(next(iter(plan.rungs.values())).suite.ladder)


def test_the_sweeper_trains_exactly_the_ladder():
    for name in suite_names():
        text = (Path(__file__).parents[2] / "sweeps" / "suite" / f"{name}.yaml").read_text()
        line = next(line for line in text.splitlines() if line.strip().startswith("rung: "))
        plan = compose_suite(name, Path("x"))
        assert line.split("rung: ")[1].split(",") == list(plan.rungs)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.stepz", 3, ["unknown key train.stepz", "steps"]),
        ("train.steps", "many", ["train.steps='many'", "expected int"]),
        ("train.steps", 0, ["train.steps=0"]),
        ("train.schedule", "linear", ["train.schedule='linear'", "cosine-v1"]),
        ("numerics.precision", "fp8", ["numerics.precision='fp8'", "fp32, bf16"]),
        ("numerics.quantum", 3, ["batch_size=8", "quantum=3"]),
        ("rung.name", "other", ["rung='other'", "smoke-60k"]),
        ("rung.model.hf.hidden_dropout", 1.5, ["hidden_dropout=1.5", "[0, 1)"]),
        ("rung.model.family", "gpt2", ["family='gpt2'", "gpt_neox, llama, mixtral, mamba"]),
        ("rung.model.hf.max_position_embeddings", 8, ["max_position_embeddings=8", "seq_len=96"]),
        ("data.overlay", "x", ["data.overlay='x'"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(mapping, path, value, words):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping(changed(mapping, path, value))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_key_is_named(mapping):
    broken = copy.deepcopy(mapping)
    del broken["train"]["clip"]
    with pytest.raises(ConfigError, match=r"missing key train\.clip"):
        RunConfig.from_mapping(broken)


def test_stored_configuration_round_trips(mapping):
    config = RunConfig.from_mapping(mapping)
    again = RunConfig.from_mapping(json.loads(config.to_bytes()))
    assert again.to_bytes() == config.to_bytes()
    assert again.train == config.train


def test_a_sibling_that_drifts_outside_the_axes_is_seen(mapping):
    one = RunConfig.from_mapping(mapping)
    record, drifted = one.to_record(), changed(one.to_record(), "train.clip", 0.25)
    assert sibling_differences({"a": record, "b": record}, one.suite.axes) == []
    assert sibling_differences({"a": record, "b": drifted}, one.suite.axes) == [
        "train.clip: a has 0.5, b has 0.25"
    ]
    assert sibling_differences({"a": record, "b": drifted}, ("train",)) == []


def test_a_directory_keeps_its_configuration(mapping, tmp_path):
    config = RunConfig.from_mapping(mapping)
    write_config(config, tmp_path)
    write_config(config, tmp_path)
    other = RunConfig.from_mapping(changed(mapping, "train.clip", 0.25))
    with pytest.raises(
        ConfigError, match=r"train\.clip: the directory has 0\.5, the command has 0\.25"
    ):
        write_config(other, tmp_path)


def test_unknown_suite_lists_the_suites_that_exist(capsys):
    from suite.cli import main

    assert main(["sweep", "pithia"]) == 2
    message = capsys.readouterr().err
    assert "pithia" in message
    for name in suite_names():
        assert name in message


def test_hydra_lists_the_suites_and_refuses_unknown_keys():
    for override, word in (("suite=pithia", "nano"), ("train.stepz=3", "train.stepz")):
        done = subprocess.run(
            [sys.executable, "-m", "suite.train", "rung=nano-1m", override],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert word in done.stderr
