"""`dropout-v1`: a mask is a function of seed, position, site and element, and of nothing else."""

import hashlib

import pytest
import torch
from torch import nn

from suite.comm import Group
from suite.config import RunConfig
from suite.dropout import DropoutContext, KeyedDropout, Site, keep_mask, mix64_
from suite.engine import ExactEngine
from suite.families import FAMILIES
from suite.models import build_model
from tests.suite.tiny_families import family_config, family_mapping, state_digest, train

CPU = torch.device("cpu")
M64 = (1 << 64) - 1


def splitmix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def reference(seed, position, site, count, p):
    """The specification, in Python's own integers."""
    digest = hashlib.sha256(b"dropout-v1\0" + str(seed).encode() + b"\0" + site.encode()).digest()
    key = splitmix(
        (int.from_bytes(digest[:8], "little") + 0x9E3779B97F4A7C15 * (position + 1)) & M64
    )
    draws = [splitmix((key + 0x9E3779B97F4A7C15 * (e + 1)) & M64) for e in range(count)]
    return [draw >> 32 >= round(p * 2**32) for draw in draws]


def test_the_mixer_is_splitmix64():
    # The first outputs of splitmix64 from state 0 (Vigna's splitmix64.c).
    states = torch.tensor([1, 2, 3], dtype=torch.int64) * (0x9E3779B97F4A7C15 - (1 << 64))
    found = [value & M64 for value in mix64_(states).tolist()]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("position", [0, 41, 2**40])
@pytest.mark.parametrize("p", [0.1, 0.5, 2**-31])
def test_masks_are_those_of_the_specification(position, p):
    found = keep_mask(7, position, "a.b", (2, 3, 4), p, CPU)
    rows = [reference(7, position + row, "a.b", 12, p) for row in range(2)]
    assert found.view(2, 12).tolist() == rows


def test_vectors_of_the_specification():
    found = keep_mask(0, 0, "gpt_neox.emb_dropout", (1, 32), 0.5, CPU)[0]
    assert "".join("01"[bit] for bit in found.tolist()) == VECTOR


VECTOR = "01101100010010101101001001100010"


def test_a_mask_does_not_depend_on_how_sequences_are_grouped():
    whole = keep_mask(3, 100, "site", (6, 5, 7), 0.3, CPU)
    parts = [
        keep_mask(3, 100 + i, "site", (n, 5, 7), 0.3, CPU) for i, n in ((0, 1), (1, 2), (3, 3))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_every_part_of_the_key_matters():
    base = keep_mask(3, 100, "site", (1, 400), 0.5, CPU)
    for other in ((4, 100, "site"), (3, 101, "site"), (3, 100, "sitf")):
        share = (keep_mask(*other, (1, 400), 0.5, CPU) == base).float().mean()
        assert 0.4 < share < 0.6


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_and_the_mean_are_right(p):
    context = DropoutContext()
    module = KeyedDropout(Site(context, "x", p))
    ones = torch.ones(8, 50_000)
    with context.at(1, 0):
        dropped = module(ones)
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.003)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01 / (1 - p))
    assert set(dropped.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - p)))}
    assert torch.equal(module.eval()(ones), ones)


def test_without_a_place_training_is_refused_and_none_is_left_behind():
    context = DropoutContext()
    module = KeyedDropout(Site(context, "x", 0.5))
    with pytest.raises(RuntimeError, match="the mask has no key"):
        module(torch.ones(1, 3))
    with context.at(1, 0), context.at(1, 8):
        assert context.place == (1, 8)
    with pytest.raises(RuntimeError, match="the mask has no key"):
        context.place  # noqa: B018


def test_every_dropout_of_a_model_is_keyed_and_zero_ones_are_left_alone():
    model = build_model(family_config("gpt_neox").rung.model, 0)
    paths = {m.site.path for m in model.modules() if isinstance(m, KeyedDropout)}
    assert len(paths) == 5
    assert {"gpt_neox.emb_dropout", "gpt_neox.layers.1.post_mlp_dropout"} < paths
    assert not any(isinstance(m, nn.Dropout) for m in model.modules())
    assert model.config._attn_implementation == "dropout-v1"
    plain = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = build_model(family_config("gpt_neox", hf=plain).rung.model, 0)
    assert not any(isinstance(m, KeyedDropout) for m in model.modules())
    assert model.config._attn_implementation == FAMILIES["gpt_neox"].attention


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "mixtral"])
def test_attention_without_a_mask_is_that_of_transformers(family):
    config = family_config(family, hf={"hidden_dropout": 0.0} if family == "gpt_neox" else None)
    model = build_model(config.rung.model, 0).eval()
    ids = torch.arange(32).view(2, 16)
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        model.config._attn_implementation = "eager"
        theirs = model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_dropout_seed_changes_training_and_the_batch_split_does_not():
    mapping = family_mapping("llama")
    digests = {}
    for seed in (0, 1):
        mapping["rung"]["seeds"]["dropout"] = seed
        engine = ExactEngine(RunConfig.from_mapping(mapping), Group(0, 1))
        losses = train(engine, [1])[0].sequence_losses
        digests[seed] = (state_digest(engine), losses)
    assert digests[0][0] != digests[1][0]
    mapping["rung"]["seeds"]["dropout"] = 0
    mapping["numerics"]["quantum"] = 5
    engine = ExactEngine(RunConfig.from_mapping(mapping), Group(0, 1))
    losses = train(engine, [1])[0].sequence_losses
    # Another quantum is another recipe, but its masks are the same.
    torch.testing.assert_close(torch.from_numpy(losses), torch.from_numpy(digests[0][1]))
    assert abs(digests[0][1] - digests[1][1]).max() > 1e-4
