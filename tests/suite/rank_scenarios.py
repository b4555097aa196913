"""Run by torchrun in test_exactness.py: trains a tiny model several ways, a digest for each.

Exact ways must give one digest for every number of ranks; the controls are what other trainers do,
and must not.
"""

import hashlib
import json
import sys

import numpy as np
import torch
import torch.distributed as dist

from suite.comm import Group, join_group
from suite.config import RunConfig
from suite.engine import ExactEngine
from suite.norm import chunk_sums, norm_from_chunks
from suite.numerics import apply_determinism
from suite.train import compose

UPDATES = 6
BATCH, LENGTH = 24, 33


def config_for(precision: str, quantum: int = 2) -> RunConfig:
    overrides = [
        f"numerics.precision={precision}",
        f"numerics.quantum={quantum}",
        f"data.batch_size={BATCH}",
        "data.seq_len=32",
        "train.clip=0.05",
    ]
    return RunConfig.from_mapping(compose("smoke", "smoke-60k", overrides))


def batch_of(update: int) -> np.ndarray:
    return np.random.RandomState(update).randint(0, 512, (BATCH, LENGTH)).astype(np.int64)


def state_digest(engine: ExactEngine) -> str:
    weights, moments = engine.state()
    digest = hashlib.sha256()
    for name, tensor in sorted({**weights, **moments}.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def run(engine: ExactEngine, updates: range = range(1, UPDATES + 1)) -> list[float]:
    clips = []
    for update in updates:
        batch = batch_of(update)
        result = engine.step(update, 1e-2, lambda a, b, batch=batch: batch[a:b])
        clips.append(result.clip_coef)
    return clips


class FloatSumEngine(ExactEngine):
    """Control: fp32 gradients of a rank's quanta added locally, then all-reduced as floats."""

    def _backward(self, ids, position):
        return self._forward_backward(ids, position), 0

    def _update(self, update, lr):
        parameters = self._parameters
        flat = torch.zeros(self.layout.padded)
        for name, view in self.layout.views(flat).items():
            view.copy_(parameters[name].grad)
            parameters[name].grad = None
        if self.group.world > 1:
            dist.all_reduce(flat)
        low = self.group.rank * self.layout.shard
        grad = flat[low : low + self.layout.shard] / self.config.num_quanta
        return self._apply(grad, update, lr)

    def _apply(self, grad, update, lr):
        from suite.adamw import adamw_v1

        sums = self.group.all_gather(chunk_sums(grad))
        norm = norm_from_chunks(sums[: self.layout.num_chunks])
        coef = min(1.0, self.config.train.clip / norm)
        adamw_v1(
            self.weights, grad * coef, self.moments, self._decayed, update, lr, self.config.train
        )
        if self.group.world > 1:
            self.flat.copy_(self.group.all_gather(self.weights))
        return norm, coef, ""


class ShardNormEngine(ExactEngine):
    """Control: integer reduction, but the norm is fp32 by shard, combined by a float all-reduce."""

    def _update(self, update, lr):
        total = self.group.reduce_scatter_int64(self._accumulator, self.layout.shard)
        grad = (total.double() * (2.0**-44 / self.config.num_quanta)).float()
        square = grad.norm() ** 2
        if self.group.world > 1:
            dist.all_reduce(square)
        coef = min(1.0, self.config.train.clip / float(square.sqrt()))
        from suite.adamw import adamw_v1

        adamw_v1(
            self.weights, grad * coef, self.moments, self._decayed, update, lr, self.config.train
        )
        if self.group.world > 1:
            self.flat.copy_(self.group.all_gather(self.weights))
        return float(square.sqrt()), coef, ""


def exact(group: Group, precision: str) -> dict[str, object]:
    engine = ExactEngine(config_for(precision), group)
    clips = run(engine)
    return {
        f"exact-{precision}": state_digest(engine),
        f"clipped-{precision}": sum(c < 1 for c in clips),
    }


def scenarios(group: Group) -> dict[str, object]:
    found = exact(group, "fp32") | exact(group, "bf16")
    for name, kind in (("float-sum", FloatSumEngine), ("shard-norm", ShardNormEngine)):
        engine = kind(config_for("fp32"), group)
        run(engine)
        found[name] = state_digest(engine)
    engine = ExactEngine(config_for("fp32", quantum=4), group)
    run(engine)
    found["doubled-quantum"] = state_digest(engine)
    return found


if __name__ == "__main__":
    apply_determinism()
    group = join_group()
    result = exact(group, "fp32") if "fp32-only" in sys.argv else scenarios(group)
    if group.rank == 0:
        print(json.dumps({"threads": torch.get_num_threads(), **result}), flush=True)
    sys.exit(0)
