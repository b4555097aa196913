"""Norm, optimizer and layout give the same bits however the parameters are sharded."""

import math

import pytest
import torch
from torch import nn

from suite.adamw import Moments, adamw_v1
from suite.config import TrainConfig
from suite.layout import CHUNK, flatten_parameters, make_layout
from suite.norm import chunk_sums, halving_sum, norm_from_chunks

TRAIN = TrainConfig(
    steps=100, schedule="cosine-v1", warmup_steps=10, min_lr_ratio=0.1,
    beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0,
)  # fmt: skip


def odd_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(97, 61), nn.LayerNorm(61), nn.Linear(61, 33, bias=False))


def sharded_norm(grad, chunks, world):
    per_rank = -(-chunks // world)
    padded = torch.zeros(world * per_rank * CHUNK)
    padded[: grad.numel()] = grad
    sums = torch.cat([chunk_sums(shard) for shard in padded.chunk(world)])
    return norm_from_chunks(sums[:chunks])


def test_norm_is_the_same_on_any_number_of_ranks_where_the_usual_one_is_not():
    grad = torch.randn(37 * CHUNK - 5, generator=torch.Generator().manual_seed(1))
    grad *= torch.logspace(-6, 3, grad.numel())
    norms = {sharded_norm(grad, 37, world) for world in (1, 2, 3, 4, 5, 8)}
    assert len(norms) == 1
    exact = math.sqrt(math.fsum((grad.double() ** 2).tolist()))
    assert norms.pop() == pytest.approx(exact, rel=1e-14)
    # Negative control: fp32 norms of shards, combined.
    usual = {
        float(torch.stack([s.norm() for s in grad.chunk(w)]).norm()) for w in (1, 2, 3, 4, 5, 8)
    }
    assert len(usual) > 1


def test_halving_needs_a_power_of_two():
    with pytest.raises(ValueError, match="found 3"):
        halving_sum(torch.zeros(3))


def run_adamw(cuts, updates=5):
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(10_001, generator=generator)
    moments = Moments(torch.zeros_like(weights), torch.zeros_like(weights))
    for update in range(1, updates + 1):
        grad = torch.randn(10_001, generator=generator)
        for start, stop in zip((0, *cuts), (*cuts, 10_001), strict=True):
            part = slice(start, stop)
            spans = [(0, max(0, min(stop, 7000) - start))]
            state = Moments(moments.exp_avg[part], moments.exp_avg_sq[part])
            adamw_v1(weights[part], grad[part], state, spans, update, 1e-2, TRAIN)
    return weights, moments


def test_adamw_is_elementwise_wherever_shards_are_cut():
    whole, cut = run_adamw(()), run_adamw((1, 1025, 4099, 9998))
    assert torch.equal(whole[0], cut[0])
    assert torch.equal(whole[1].exp_avg_sq, cut[1].exp_avg_sq)


def test_adamw_is_adamw():
    found, _ = run_adamw(())
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(10_001, generator=generator)
    decayed, plain = nn.Parameter(start[:7000].clone()), nn.Parameter(start[7000:].clone())
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(5):
        grad = torch.randn(10_001, generator=generator)
        decayed.grad, plain.grad = grad[:7000], grad[7000:]
        optimizer.step()
    torch.testing.assert_close(found, torch.cat([decayed, plain]).detach(), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_layout_covers_every_parameter_once_on_any_number_of_ranks(world):
    model = odd_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    layout = make_layout(model, world)
    flat = flatten_parameters(model, layout)
    assert layout.padded % (world * CHUNK) == 0
    assert [slot.name for slot in layout.slots] == sorted(before)
    for name, view in layout.views(flat).items():
        assert torch.equal(view, before[name])
        assert dict(model.named_parameters())[name].data_ptr() == view.data_ptr()
    assert not flat[layout.size :].any()
    decayed = torch.zeros(layout.padded, dtype=torch.bool)
    for rank in range(world):
        for start, stop in layout.decayed_spans(rank):
            decayed[rank * layout.shard + start : rank * layout.shard + stop] = True
    for slot in layout.slots:
        part = decayed[slot.start : slot.start + slot.size]
        assert part.all() if slot.decay else not part.any()
    assert layout.num_chunks == -(-sum(p.numel() for p in before.values()) // CHUNK)
