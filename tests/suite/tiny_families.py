"""Tiny models of every family and what the family tests do with them."""

import hashlib

import numpy as np

from suite.config import RunConfig
from suite.engine import ExactEngine
from suite.families import FAMILIES
from suite.train import compose

UPDATES, BATCH, LENGTH, VOCABULARY = 3, 10, 17, 100

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_ATTENTION = {
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32,
    "attention_dropout": 0.1,
}  # fmt: skip
_GROUPED = {**_ATTENTION, "num_key_value_heads": 1, "rope_theta": 500.0}
HF = {
    "gpt_neox": {
        **_COMMON, **_ATTENTION, "hidden_dropout": 0.1, "rotary_pct": 0.5, "rotary_emb_base": 500,
    },
    "llama": {**_COMMON, **_GROUPED},
    "mixtral": {
        **_COMMON, **_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.02, "sliding_window": None,
    },
    "mamba": {**_COMMON, "state_size": 4, "time_step_rank": 2},
}  # fmt: skip


def family_mapping(family, *, precision="fp32", padding=16, hf=None, **numerics):
    """A run configuration of a tiny model as plain mappings; V = 5 quanta, clipping fires."""
    mapping = compose("smoke", "smoke-20k")
    mapping["rung"]["model"] = {
        "family": family,
        "initialisation": FAMILIES[family].initialisations[-1],
        "hf": {**HF[family], **(hf or {})},
        "vocab_padding_multiple": padding,
    }
    mapping["data"] |= {"batch_size": BATCH, "seq_len": LENGTH - 1}
    mapping["train"] |= {"clip": 0.05, "warmup_steps": 1}
    mapping["numerics"] |= {"precision": precision, "quantum": 2, **numerics}
    return mapping


def family_config(family, **changes):
    return RunConfig.from_mapping(family_mapping(family, **changes))


def batch_of(update):
    return np.random.RandomState(update).randint(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int64)


def train(engine, updates=range(1, UPDATES + 1)):
    """Trains some updates; returns the results."""
    results = []
    for update in updates:
        batch = batch_of(update)
        results.append(engine.step(update, 1e-2, lambda a, b, batch=batch: batch[a:b]))
    return results


def state_digest(engine: ExactEngine) -> str:
    weights, moments = engine.state()
    digest = hashlib.sha256()
    for name, tensor in sorted({**weights, **moments}.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
