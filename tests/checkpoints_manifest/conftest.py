"""A small run whose checkpoints tests may damage."""

import hashlib
import json

import pytest
import torch

from checkpoints_manifest.store import save_checkpoint
from data_pipeline.canonical import sha256_hex
from data_pipeline.digests import chain_next, chain_start

DATA = {
    "index_digest": "ab" * 32,
    "seq_len": 4, "batch_size": 2, "order": "order-v1", "seed": 0, "overlay": None,
}  # fmt: skip


def tensors(step):
    generator = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(3, 5, generator=generator) for name in ("b.weight", "a.bias")}
    moments = {
        f"{kind}.{name}": torch.rand(3, 5, generator=generator)
        for kind in ("exp_avg", "exp_avg_sq")
        for name in weights
    }
    return weights, moments


def leaves(count):
    return [hashlib.sha256(bytes([i])).digest() for i in range(count)]


def metrics(step):
    return b"".join(b'{"step":%d}\n' % n for n in range(1, step + 1))


def fields(run_dir, step):
    chain = chain_start(**DATA)
    for leaf in leaves(step):
        chain = chain_next(chain, leaf)
    return {
        "suite": "toy",
        "rung": "toy-1",
        "tokens": step * 8,
        "order": {"name": "order-v1", "index_digest": DATA["index_digest"], "chain": chain.hex()},
        "numerics": sha256_hex((run_dir / "numerics.json").read_bytes()),
        "config": sha256_hex((run_dir / "config.json").read_bytes()),
        "environment": "cd" * 32,
        "metrics": sha256_hex(metrics(step)),
    }


def save(run_dir, step):
    weights, moments = tensors(step)
    return save_checkpoint(run_dir, step, weights, moments, {"step": step}, fields(run_dir, step))


@pytest.fixture
def empty_run(tmp_path):
    run_dir = tmp_path / "toy-1"
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps({"data": DATA}))
    (run_dir / "numerics.json").write_text("{}")
    (run_dir / "order.log").write_bytes(b"".join(leaves(6)))
    (run_dir / "metrics.jsonl").write_bytes(metrics(6))
    return run_dir


@pytest.fixture
def run_dir(empty_run):
    for step in (0, 1, 4):
        save(empty_run, step)
    return empty_run


def flip(path, offset=-1):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
