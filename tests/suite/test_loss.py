"""The loss of a quantum: padding, chunks, memory, and the router's balance."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from suite.comm import Group
from suite.config import ConfigError
from suite.engine import ExactEngine
from suite.loss import QuantumLoss, quantum_loss, router_balance_v1, sequence_nll
from suite.models import build_model
from tests.suite.tiny_families import HF, VOCABULARY, batch_of, family_config, state_digest, train

IDS = torch.from_numpy(batch_of(1)[:2])
TOKENS = IDS[:, 1:].numel()


def loss_of(model, config) -> QuantumLoss:
    with model.dropout_context.at(0, 0):
        return quantum_loss(model, IDS, config.numerics)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def largest_and_kept(config):
    """Largest tensor of forward and backward, and elements kept between them, of a wide head."""
    model = build_model(config.rung.model, 0)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with model.dropout_context.at(0, 0), Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = quantum_loss(model, IDS % 50, config.numerics)
        loss.objective.backward()
    return largest.elements, max(kept)


def test_chunks_keep_memory_flat_in_tokens_times_vocabulary():
    vocabulary, hidden, chunk = 3000, 16, 4
    hf = {"vocab_size": vocabulary}
    whole = largest_and_kept(family_config("llama", hf=hf, padding=1))
    chunked = largest_and_kept(family_config("llama", hf=hf, padding=1, loss_chunk=chunk))
    assert whole == (TOKENS * vocabulary, TOKENS * vocabulary)
    # The largest left is the output matrix (or its gradient); nothing of its width is kept.
    assert chunked[0] == hidden * vocabulary
    assert chunked[1] < vocabulary


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_chunk_gives_the_bits_of_none_and_smaller_chunks_are_recipes_of_their_own(precision):
    digests = {}
    for chunk in (None, TOKENS, 10, 7):
        engine = ExactEngine(
            family_config("gpt_neox", precision=precision, loss_chunk=chunk), Group(0, 1)
        )
        losses = [result.loss for result in train(engine)]
        digests[chunk] = (state_digest(engine), losses)
    assert digests[None][0] == digests[TOKENS][0]
    assert len({digest for digest, _ in digests.values()}) == 3
    assert digests[7][1] == pytest.approx(digests[None][1], rel=1e-3)


def test_chunked_gradients_are_the_gradients():
    grads = []
    for chunk in (None, 5):
        config = family_config("llama", loss_chunk=chunk)
        model = build_model(config.rung.model, 0)
        loss_of(model, config).objective.backward()
        grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_padded_logits_receive_no_probability():
    config = family_config("llama", padding=64)
    model = build_model(config.rung.model, 0)
    with torch.no_grad():  # rows that would win if they took part
        model.lm_head.weight[VOCABULARY:].fill_(50.0)
    loss = loss_of(model, config)
    plain = family_config("llama", padding=1)
    expected = loss_of(build_model(plain.rung.model, 0), plain)
    torch.testing.assert_close(loss.sequences, expected.sequences)
    loss.objective.backward()
    assert not model.lm_head.weight.grad[VOCABULARY:].any()
    assert model.lm_head.weight.grad[:VOCABULARY].any(dim=1).all()


@pytest.mark.parametrize("family", list(HF))
def test_the_logged_loss_is_the_likelihood_of_the_models_own_logits(family):
    none = {key: 0.0 for key in HF[family] if "dropout" in key}
    config = family_config(family, padding=1, hf=none)
    model = build_model(config.rung.model, 0)
    loss = loss_of(model, config)
    logits = model(input_ids=IDS[:, :-1]).logits
    expected = F.cross_entropy(logits.transpose(1, 2), IDS[:, 1:], reduction="none").mean(1)
    torch.testing.assert_close(loss.sequences, expected)
    assert torch.equal(sequence_nll(model, IDS, "fp32"), loss.sequences)
    assert loss.sequences.dtype == torch.float32


def test_router_balance_is_that_of_transformers_and_of_one_quantum():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = tuple(torch.randn(40, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    found = router_balance_v1(logits, 2)
    torch.testing.assert_close(found, load_balancing_loss_func(logits, 4, 2))
    even = (torch.eye(4).repeat(10, 1) + torch.eye(4).roll(1, 0).repeat(10, 1),)
    assert float(router_balance_v1(even, 2)) == pytest.approx(2.0)
    first, second = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], [[1.0, 0.0, 2.0], [2.0, 0.0, 0.0]]
    vector = (torch.tensor(first), torch.tensor(second))  # of docs/spec/exact-step.md
    assert float(router_balance_v1(vector, 1)) == pytest.approx(1.0760560, rel=1e-6)


def test_the_router_loss_is_optimised_and_not_logged():
    with_loss, without = (
        family_config("mixtral", hf={"router_aux_loss_coef": coefficient})
        for coefficient in (0.02, 0.0)
    )
    model = build_model(with_loss.rung.model, 0)
    loss = loss_of(model, with_loss)
    loss.objective.backward()
    extra = float((loss.objective - loss.sequences.mean()).detach())
    assert extra == pytest.approx(0.02 * 2, rel=0.1)
    bare = build_model(without.rung.model, 0)
    plain = loss_of(bare, without)
    plain.objective.backward()
    assert torch.equal(plain.sequences, loss.sequences)
    assert torch.equal(plain.objective, plain.sequences.mean())
    gates = [m.model.layers[0].mlp.gate.weight.grad for m in (model, bare)]
    assert not torch.equal(*gates)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("loss_chunk", 0, "numerics.loss_chunk=0"),
        ("activation_checkpointing", "all", "allowed: none, blocks"),
    ],
)
def test_bad_values_are_refused(key, value, words):
    with pytest.raises(ConfigError, match=words):
        family_config("llama", **{key: value})
