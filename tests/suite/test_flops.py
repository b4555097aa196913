"""Counted operations are those that torch counts, and the known ones of Pythia."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from suite.families import FAMILIES
from suite.flops import forward_flops, mamba_products, six_nd
from suite.models import empty_model
from tests.suite.plans import planned
from tests.suite.tiny_families import HF

LENGTH, ROWS = 16, 3


def counted(family, hf):
    """Operations a token of one forward, by kind, as torch counts them."""
    model = empty_model(FAMILIES[family], hf).eval()
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids)
    kinds = {str(kind): n for kind, n in counter.flop_counts["Global"].items()}
    return {kind.partition(".")[2]: n / (ROWS * LENGTH) for kind, n in kinds.items()}


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "mixtral"])
def test_torch_counts_the_same_products(family):
    found, plan = counted(family, HF[family]), forward_flops(family, HF[family], LENGTH)
    assert sum(found.values()) == plan.layers + plan.attention_full + plan.head
    assert found["bmm"] == plan.attention_full


def test_torch_counts_the_same_products_of_mamba():
    from suite.families import hf_config

    config = hf_config(FAMILIES["mamba"], HF["mamba"])
    found, plan = counted("mamba", HF["mamba"]), forward_flops("mamba", HF["mamba"], LENGTH)
    assert found["mm"] == 2 * mamba_products(config) + plan.head
    assert plan.attention == 0
    # The scan and the convolution, which torch counts with padding and without elementwise work.
    assert plan.layers - 2 * mamba_products(config) >= found["bmm"]


def test_causal_attention_is_half_of_full_attention_and_a_token():
    plan = forward_flops("gpt_neox", HF["gpt_neox"], LENGTH)
    assert plan.attention / plan.attention_full == (LENGTH + 1) / (2 * LENGTH)


@pytest.mark.parametrize(
    ("rung", "flop"),
    [("14m", 2.5e19), ("31m", 5.5e19), ("70m", 1.27e20), ("160m", 2.9e20), ("410m", 7.3e20),
     ("1b", 1.8e21), ("1.4b", 2.5e21), ("2.8b", 5.0e21), ("6.9b", 1.2e22), ("12b", 2.1e22)],
)  # fmt: skip
def test_six_nd_of_pythia(rung, flop):
    assert planned("pythia").rungs[f"pythia-{rung}"].flops_6nd == pytest.approx(flop, rel=0.03)


def test_the_two_counts_agree_where_matrices_dominate():
    """An embedding is in 6ND and costs nothing; attention costs and is not in 6ND."""
    for rung in planned("pythia").rungs.values():
        bound = 0.02 if rung.parameters.total > 1.2e9 else 0.36
        assert rung.flops == pytest.approx(rung.flops_6nd, rel=bound)
    assert six_nd(10, 3) == 180


def test_only_routed_experts_count():
    few = forward_flops("mixtral", {**HF["mixtral"], "num_experts_per_tok": 1}, LENGTH)
    many = forward_flops("mixtral", HF["mixtral"], LENGTH)
    assert many.layers - few.layers == 2 * 2 * 3 * 16 * 24
