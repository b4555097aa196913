"""Run by torchrun in test_families.py: every family and precision, a digest for each.

Dropout, padding, chunked loss and activation checkpointing are on.
"""

import json
import sys

import torch

from suite.comm import join_group
from suite.engine import ExactEngine
from suite.numerics import apply_determinism
from tests.suite.tiny_families import HF, family_config, state_digest, train

EVERYTHING = {"activation_checkpointing": "blocks", "loss_chunk": 12}


class RankKeyedEngine(ExactEngine):
    """Control: dropout keyed by the rank and its own count of sequences, as elsewhere."""

    seen = 0

    def _forward_backward(self, ids, position):
        self.seen += len(ids)
        return super()._forward_backward(ids, 1_000_000 * self.group.rank + self.seen)


def scenarios(group):
    found = {}
    for family in HF:
        for precision in ("fp32", "bf16"):
            engine = ExactEngine(family_config(family, precision=precision, **EVERYTHING), group)
            results = train(engine)
            found[f"{family}-{precision}"] = state_digest(engine)
            found[f"{family}-{precision}-clipped"] = sum(r.clip_coef < 1 for r in results)
    engine = RankKeyedEngine(family_config("gpt_neox"), group)
    train(engine)
    found["rank-keyed"] = state_digest(engine)
    return found


if __name__ == "__main__":
    apply_determinism()
    group = join_group()
    result = scenarios(group)
    if group.rank == 0:
        print(json.dumps({"threads": torch.get_num_threads(), **result}), flush=True)
    sys.exit(0)
