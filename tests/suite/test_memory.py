"""Planned memory against what autograd keeps, and against what the engine allocates."""

import contextlib
import dataclasses

import pytest
import torch

from suite.families import FAMILIES, hf_config
from suite.memory import Split, activation_bytes, rank_memory
from suite.models import empty_model

LENGTH, WIDTH = 64, 64
_BASE = {
    "vocab_size": 100, "hidden_size": WIDTH, "tie_word_embeddings": False, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
_HEADS = {"num_attention_heads": 4, "max_position_embeddings": LENGTH}
_GROUPED = {**_HEADS, "num_key_value_heads": 2, "rope_theta": 1e4}
HF = {
    "gpt_neox": {
        **_BASE, **_HEADS, "intermediate_size": 256, "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "llama": {**_BASE, **_GROUPED, "intermediate_size": 160},
    "mixtral": {
        **_BASE, **_GROUPED, "intermediate_size": 96, "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": None,
    },
    "mamba": {**_BASE, "state_size": 16, "time_step_rank": 4},
}  # fmt: skip
REFERENCE = Split("reference", 1, 1, 1, "none", 8, None)


def kept(family, layers, rows, precision, blocks=False):
    """Bytes that autograd keeps for the backward, parameters left out."""
    model = empty_model(FAMILIES[family], {**HF[family], "num_hidden_layers": layers}).train()
    if blocks:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def pack(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            found[place] = tensor  # held, so that no other tensor gets its place
        return tensor

    autocast = contextlib.nullcontext()
    if precision == "bf16":
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, autocast:
        model.base_model(input_ids=torch.zeros(rows, LENGTH, dtype=torch.int64), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", HF)
def test_a_block_keeps_what_the_formula_says(family, precision):
    # Two layers against one, and more rows against fewer: what grows with both.
    few, many = (
        kept(family, 2, rows, precision) - kept(family, 1, rows, precision) for rows in (1, 3)
    )
    per_token = (many - few) / (2 * LENGTH)
    config = hf_config(FAMILIES[family], {**HF[family], "num_hidden_layers": 1})
    formula = activation_bytes(family, config, precision == "bf16")
    assert formula == pytest.approx(per_token, rel=0.03)


@pytest.mark.parametrize("family", HF)
def test_a_recomputed_block_keeps_its_input(family):
    one, two = (kept(family, layers, 2, "fp32", blocks=True) for layers in (1, 2))
    assert (two - one) / (2 * LENGTH) == 4 * WIDTH


def memory(parameters=1000, precision="fp32", **changes):
    split = dataclasses.replace(REFERENCE, **changes)
    hf = {**HF["gpt_neox"], "num_hidden_layers": 2}
    return rank_memory("gpt_neox", hf, parameters, LENGTH, precision, split)


def test_the_reference_engine_holds_what_the_engine_allocates():
    from suite.comm import Group
    from suite.engine import ExactEngine
    from tests.suite.rank_scenarios import config_for

    engine = ExactEngine(config_for("fp32"), Group(0, 1))
    parameters = engine.layout.padded
    moments = engine.moments.exp_avg.nbytes + engine.moments.exp_avg_sq.nbytes
    planned = memory(parameters)
    assert planned.weights == engine.flat.nbytes
    assert planned.moments == moments
    # The accumulator, and one gradient of every parameter.
    assert planned.gradients == engine._accumulator.nbytes + engine.flat.nbytes


def test_known_bytes_a_parameter():
    assert memory().state == 24_000
    assert memory(data_ranks=4).state == 18_000
    # ZeRO-3 with bf16 weights: (2 + 4 + 4 + 8) / W and what is gathered at a time.
    sharded = memory(10**12, "bf16-params", engine="deepspeed", zero_stage=3, data_ranks=1000)
    assert sharded.state == 18 * 10**9 + 3 * 10**9


def test_less_is_kept_with_each_measure():
    whole = memory()
    assert memory(activation_checkpointing="blocks").activations < whole.activations
    assert memory(quantum=4).activations < whole.activations
    assert memory(loss_chunk=64).logits == whole.logits / 8
    assert memory(tensor_parallel=2, engine="deepspeed", zero_stage=2).weights < whole.weights
