"""Initialisation is keyed by (seed, name): independent of everything else in the model."""

import math

import pytest
import torch

from checkpoints_manifest.names import canonical_parameters
from suite.config import RunConfig
from suite.models import build_model, decays
from suite.train import compose


@pytest.fixture(scope="module")
def model_config():
    return RunConfig.from_mapping(compose("smoke", "smoke-60k")).rung.model


def state(config, seed=0):
    return {
        n: p.detach().clone() for n, p in canonical_parameters(build_model(config, seed)).items()
    }


def test_same_seed_same_weights_other_seed_other_weights(model_config):
    torch.manual_seed(1)
    one = state(model_config)
    torch.manual_seed(2)
    again, other = state(model_config), state(model_config, seed=1)
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name])
        if tensor.dim() > 1:
            assert not torch.equal(tensor, other[name])


def test_a_deeper_model_starts_with_the_same_small_init_tensors(model_config):
    import dataclasses

    deeper = dataclasses.replace(model_config, hf={**model_config.hf, "num_hidden_layers": 4})
    one, two = state(model_config), state(deeper)
    for name in one:
        if not name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            assert torch.equal(one[name], two[name]), name


def test_standard_deviations_are_those_of_small_and_wang_init(model_config):
    hidden, layers = model_config.hf["hidden_size"], model_config.hf["num_hidden_layers"]
    for name, tensor in state(model_config).items():
        if tensor.dim() == 1:
            expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert torch.all(tensor == expected), name
        else:
            residual = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            std = 2 / (layers * math.sqrt(hidden)) if residual else math.sqrt(2 / (5 * hidden))
            assert float(tensor.std()) == pytest.approx(std, rel=0.06), name
            assert decays(name, tensor)


def test_golden_values_of_small_wang_v1(model_config):
    first = state(model_config)["gpt_neox.embed_in.weight"].flatten()[:3]
    assert [float(v).hex() for v in first] == GOLDEN


GOLDEN = ["-0x1.cef77c0000000p-4", "-0x1.fe9e7a0000000p-4", "0x1.0832800000000p-4"]
