"""Each family through the same step with the same guarantees."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.export import export_revision
from checkpoints_manifest.names import (
    canonical_parameters,
    load_canonical,
    stored_parameters,
    stored_views,
)
from suite.comm import Group
from suite.config import ConfigError, RunConfig
from suite.engine import ExactEngine
from suite.families import FAMILIES, FamilyError
from suite.initialise import normal
from suite.loss import quantum_loss
from suite.models import build_model, count_parameters, decays, load_published
from suite.train import compose
from tests.suite.family_scenarios import EVERYTHING
from tests.suite.test_exactness import launch
from tests.suite.tiny_families import (
    HF,
    UPDATES,
    VOCABULARY,
    batch_of,
    family_config,
    family_mapping,
    state_digest,
    train,
)

ALONE = Group(0, 1)
families = pytest.mark.parametrize("family", list(HF))
RECORD = {
    "suite": "toy", "rung": "toy", "step": 3, "tokens": 9, "weights_root": "c" * 64,
    "order": {"name": "order-v1", "index_digest": "a" * 64, "chain": "b" * 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def worlds():
    module = "tests.suite.family_scenarios"
    return {world: launch(world, module=module) for world in (1, 2, 3)}


@pytest.mark.slow
@families
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_digest_for_any_number_of_ranks(worlds, family, precision):
    assert {found["threads"] for found in worlds.values()} == {1}
    key = f"{family}-{precision}"
    assert {found[f"{key}-clipped"] for found in worlds.values()} == {UPDATES}
    assert len({found[key] for found in worlds.values()}) == 1


@pytest.mark.slow
def test_dropout_keyed_by_rank_is_seen_to_fail(worlds):
    assert len({found["rank-keyed"] for found in worlds.values()}) == 3


@families
def test_quanta_in_any_order_give_the_same_bits(family):
    config = family_config(family)
    straight, shuffled = ExactEngine(config, ALONE), ExactEngine(config, ALONE)
    results = train(straight)
    shuffled.assignment = lambda *_: [3, 0, 4, 2, 1]
    again = train(shuffled)
    assert state_digest(straight) == state_digest(shuffled)
    assert [r.gradient for r in results] == [r.gradient for r in again]
    assert [r.loss for r in results] == [r.loss for r in again]


@families
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_changes_no_bit_and_draws_nothing(family, precision):
    digests = set()
    for mode in ("none", "blocks"):
        config = family_config(family, precision=precision, activation_checkpointing=mode)
        engine = ExactEngine(config, ALONE)
        state = torch.get_rng_state()
        train(engine)
        assert torch.equal(torch.get_rng_state(), state)
        digests.add(state_digest(engine))
    assert len(digests) == 1


@families
def test_checkpointed_blocks_keep_less(family):
    kept = [
        bytes_kept(ExactEngine(family_config(family, activation_checkpointing=mode), ALONE))
        for mode in ("none", "blocks")
    ]
    assert kept[1] < 0.7 * kept[0]


def bytes_kept(engine):
    """Bytes that the forward of one quantum keeps for its backward, weights left out."""
    weights = engine.flat.untyped_storage().data_ptr()
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with engine.model.dropout_context.at(0, 0), hooks:
        loss = quantum_loss(engine.model, torch.from_numpy(batch_of(1)[:2]), engine.config.numerics)
    kept.pop(weights, None)
    assert loss.objective.requires_grad  # alive until here, so no address was used twice
    return sum(kept.values())


@families
@pytest.mark.parametrize("tied", [False, True])
def test_state_moves_through_a_file_and_continues_to_the_same_bits(family, tied, tmp_path):
    config = family_config(family, hf={"tie_word_embeddings": tied}, **EVERYTHING)
    whole, first, second = (ExactEngine(config, ALONE) for _ in range(3))
    train(whole, range(1, 4))
    train(first, range(1, 3))
    for name, tensors in zip(("weights", "moments"), first.state(), strict=True):
        save_file(tensors, tmp_path / name)
    second.load_state(load_file(tmp_path / "weights"), load_file(tmp_path / "moments"))
    train(second, range(3, 4))
    assert state_digest(second) == state_digest(whole)
    weights, moments = whole.state()
    assert len(moments) == 2 * len(weights)
    assert {name.split(".", 1)[1] for name in moments} == set(weights)


@families
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_stored_is_what_transformers_stores(family, tied, tmp_path):
    config = family_config(family, hf={"tie_word_embeddings": tied}).rung.model
    model = build_model(dataclasses.replace(config, vocab_padding_multiple=1), 0)
    model.save_pretrained(tmp_path)
    theirs, ours = load_file(tmp_path / "model.safetensors"), stored_parameters(model)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert count_parameters(config) == sum(tensor.numel() for tensor in ours.values())


def losses_of(model, config):
    with torch.no_grad(), model.dropout_context.at(0, 20):
        return quantum_loss(model, torch.from_numpy(batch_of(1)[:2]), config.numerics).sequences


@families
@pytest.mark.parametrize("tied", [False, True])
def test_an_export_loads_anywhere_with_equal_logits(family, tied, tmp_path):
    config = family_config(family, hf={"tie_word_embeddings": tied})
    engine = ExactEngine(config, ALONE)
    train(engine, range(1, 3))
    weights, _ = engine.state()
    save_file(weights, tmp_path / "w.safetensors", {"format": "pt"})
    folder, hf = tmp_path / "files", dict(config.rung.model.hf)
    export_revision(folder, tmp_path / "w.safetensors", hf, b"{}", RECORD, family)
    published, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.from_numpy(batch_of(1)[:2, :-1])
    with torch.no_grad():
        found = published.eval()(input_ids=ids).logits
        expected = engine.model.eval()(input_ids=ids).logits
    assert found.shape[-1] == VOCABULARY
    assert not expected[..., VOCABULARY:].any()
    torch.testing.assert_close(found, expected[..., :VOCABULARY], rtol=1e-5, atol=1e-6)
    again = load_published(folder, config.rung.model)
    assert torch.equal(losses_of(engine.model.train(), config), losses_of(again, config))
    expected_keys = {"model_type": family, "vocab_size": VOCABULARY, "torch_dtype": "float32"}
    assert expected_keys.items() <= json.loads((folder / "config.json").read_text()).items()
    tied_away = {"embed_out.weight", "lm_head.weight"} & set(weights)
    assert bool(tied_away) is not tied


@families
def test_padded_rows_are_zero_and_stay_zero(family):
    engine = ExactEngine(family_config(family, padding=64), ALONE)
    train(engine)
    output = engine.model.get_output_embeddings().weight
    assert output.shape[0] == 128
    assert not output[VOCABULARY:].any()
    assert output[:VOCABULARY].all()
    assert all(tensor.shape[:1] != (128,) for tensor in engine.state()[0].values())
    # Padding is outside the softmax: the loss is that of the vocabulary alone.
    plain = ExactEngine(family_config(family, padding=1), ALONE)
    first, other = train(plain, [1])[0], train(ExactEngine(engine.config, ALONE), [1])[0]
    assert first.loss == pytest.approx(other.loss, rel=1e-6)
    assert first.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)


@families
def test_initial_weights_depend_on_seed_and_name_alone(family):
    config = family_config(family).rung.model
    torch.manual_seed(1)
    one = stored_parameters(build_model(config, 0))
    torch.manual_seed(2)
    again, other = (stored_parameters(build_model(config, seed)) for seed in (0, 1))
    deeper = dataclasses.replace(config, hf={**config.hf, "num_hidden_layers": 3})
    deep = stored_parameters(build_model(deeper, 0))
    residual = FAMILIES[family].residual
    drawn = 0
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name])
        drawn += not torch.equal(tensor, other[name])
        assert torch.equal(tensor, deep[name]) is not name.endswith(residual)
    assert drawn >= sum(t.dim() >= 2 and "A_log" not in n for n, t in one.items())


VECTORS = {  # of docs/spec/exact-step.md
    "llama": {
        "model.embed_tokens.weight": ("-0x1.dccffc0000000p-8", "0x1.48d58c0000000p-7"),
        "model.layers.0.mlp.down_proj.weight": ("-0x1.58c2700000000p-9", "0x1.05bd9e0000000p-7"),
    },
    "mixtral": {
        "model.layers.0.block_sparse_moe.experts.3.w2.weight": (
            "-0x1.a6b2480000000p-8", "0x1.94a0980000000p-9",
        ),
    },
    "mamba": {
        "backbone.layers.0.mixer.out_proj.weight": (
            "0x1.2d6c360000000p-4", "-0x1.bd0d7e0000000p-4",
        ),
        "backbone.layers.0.mixer.conv1d.bias": ("-0x1.a719b00000000p-2", "-0x1.7c57160000000p-2"),
        "backbone.layers.0.mixer.dt_proj.bias": ("-0x1.5001fa0000000p+2", "-0x1.84ac8a0000000p+2"),
    },
}  # fmt: skip


@pytest.mark.parametrize("family", list(VECTORS))
def test_vectors_of_the_initialisations(family):
    mapping = compose("families", f"families-{family}")
    weights = stored_parameters(build_model(RunConfig.from_mapping(mapping).rung.model, 0))
    for name, values in VECTORS[family].items():
        assert tuple(float(v).hex() for v in weights[name].flatten()[:2]) == values, name


def test_scaled_normal_v1_is_smaller_where_the_residual_stream_is_written():
    config = family_config("mixtral").rung.model
    weights = stored_parameters(build_model(config, 7))
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    assert torch.equal(weights[name], normal(name, 7, (16, 24), 0.01))
    name = name.replace("w2", "w1")
    assert torch.equal(weights[name], normal(name, 7, (24, 16), 0.02))
    assert weights["model.norm.weight"].eq(1).all()


def test_mamba_v1_is_the_reference_initialisation():
    config = family_config("mamba").rung.model
    hf = {**config.hf, "hidden_size": 64, "state_size": 16}
    weights = stored_parameters(build_model(dataclasses.replace(config, hf=hf), 0))
    mixer = "backbone.layers.0.mixer."
    rows = torch.arange(1, 17).log()
    torch.testing.assert_close(weights[mixer + "A_log"], rows.expand(128, 16))
    assert weights[mixer + "D"].eq(1).all()
    steps = torch.nn.functional.softplus(weights[mixer + "dt_proj.bias"])
    assert 0.001 <= steps.min() < 0.003 < 0.03 < steps.max() <= 0.1
    for name, bound in (
        ("in_proj.weight", 64**-0.5), ("out_proj.weight", 128**-0.5 / 2**0.5),
        ("dt_proj.weight", 2**-0.5), ("conv1d.weight", 0.5), ("conv1d.bias", 0.5),
    ):  # fmt: skip
        largest = float(weights[mixer + name].abs().max())
        assert 0.9 * bound < largest <= bound, name
    assert float(weights["backbone.embeddings.weight"].std()) == pytest.approx(0.02, rel=0.05)


@families
def test_decay_spares_vectors_and_state_matrices(family):
    model = build_model(family_config(family).rung.model, 0)
    spared = {n for n, p in canonical_parameters(model).items() if not decays(n, p)}
    vectors = {n for n, p in canonical_parameters(model).items() if p.dim() < 2}
    states = {n for n in canonical_parameters(model) if n.endswith(("A_log", "mixer.D"))}
    assert spared == vectors | states
    assert bool(states) is (family == "mamba")


def test_experts_are_stored_one_by_one_as_views():
    model = build_model(family_config("mixtral").rung.model, 0)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    fused = canonical_parameters(model)[name].data
    views = stored_views(model, name, fused)
    assert len(views) == 8
    prefix = "model.layers.0.block_sparse_moe.experts.2."
    assert torch.equal(views[prefix + "w1.weight"], fused[2, :24])
    assert torch.equal(views[prefix + "w3.weight"], fused[2, 24:])
    views[prefix + "w3.weight"].fill_(9.0)
    assert fused[2, 24:].eq(9).all()
    stored = {n: t.clone() for n, t in stored_parameters(model).items()}
    del stored[prefix + "w2.weight"]
    with pytest.raises(CheckpointError, match=r"experts\.2\.w2\.weight has shape None"):
        load_canonical(model, stored)


@pytest.mark.parametrize(
    ("family", "key", "value", "words"),
    [
        ("llama", "hidden_dropout", 0.1, "llama has no such dropout"),
        ("mamba", "attention_dropout", 0.1, "mamba has no such dropout"),
        ("gpt_neox", "hidden_dropout", 1.0, "expected a probability"),
        ("mixtral", "router_jitter_noise", 0.1, "only 0.0 keeps the exact step"),
        ("llama", "rope_scaling", {"factor": 2}, "unscaled rotary"),
    ],
)
def test_what_a_family_cannot_have_is_refused_by_name(family, key, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        family_config(family, hf={key: value})
    assert f"rung.model.hf.{key}" in str(caught.value)


def test_a_key_of_another_family_is_refused_when_the_model_is_built():
    config = family_config("llama", hf={"rotary_pct": 0.25}).rung.model
    with pytest.raises(FamilyError, match=r"rotary_pct: LlamaConfig has no such key"):
        build_model(config, 0)


def test_a_missing_key_and_an_initialisation_of_another_family_are_refused():
    mapping = family_mapping("llama")
    del mapping["rung"]["model"]["hf"]["rope_theta"]
    with pytest.raises(ConfigError, match="rope_theta is missing"):
        RunConfig.from_mapping(mapping)
    mapping = family_mapping("mamba")
    mapping["rung"]["model"]["initialisation"] = "small-wang-v1"
    with pytest.raises(ConfigError, match="allowed: mamba-v1"):
        RunConfig.from_mapping(mapping)


def test_installed_kernels_that_would_replace_the_reference_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "mamba_ssm")
    with pytest.raises(FamilyError, match="mamba_ssm is installed"):
        build_model(family_config("mamba").rung.model, 0)
