"""A suite small enough for tests, trained in seconds by a plain loop and laid out like a real one.

Every file is written by the packages that write it in a real run, except the training log, which
this loop writes itself. The corpus has a header that most documents share, so some windows repeat.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints_manifest.export import export_revision
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Ledger
from checkpoints_manifest.names import canonical_parameters
from checkpoints_manifest.store import save_checkpoint
from data_pipeline.batches import BatchReader
from data_pipeline.build import build_dataset
from data_pipeline.canonical import sha256_hex
from data_pipeline.digests import chain_next, chain_start, leaf, sequence_digests
from tests.analysis.tiny import SEQ_LEN, VOCAB, hf_config, new_model

BATCH = 8
HEADER = """# Licensed under the terms of the test corpus, as is, without any warranty of any kind.
# You may copy this file, change it and pass it on, if you keep these lines at its top.
# See the file LICENSE for the words that count; the words here are for people in a hurry.
# Nothing in this file was written by hand, and nobody should read it for its story.

import order, step, shard, token
from ledger import digest, chain, record, append
from suite import rung, seed, batch, quantum, schedule, checkpoint

if __name__ == "__main__":
    raise SystemExit("this file is text, not a program; see the three lines above")

"""
NOUNS = ["step", "token", "order", "batch", "digest", "shard", "model", "seed", "ledger", "loss"]
VERBS = ["reads", "writes", "checks", "keeps", "hashes", "follows", "counts", "proves", "repeats"]


def write_corpus(root: Path, documents: int = 90, lines: int = 30) -> None:
    """Sentences drawn by hash, so that every machine writes the same text."""
    for number in range(documents):
        text = HEADER if number % 4 else ""
        for line in range(lines):
            draw = hashlib.sha256(f"{number}/{line}".encode()).digest()
            words = (NOUNS[draw[0] % 10], VERBS[draw[1] % 9], NOUNS[draw[2] % 10], draw[3] % 50)
            text += "the {} {} the {} number {}.\n".format(*words)
        path = root / f"part{number % 3}" / f"document-{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make_suite(
    root: Path,
    rungs: Sequence[tuple[str, int, int, int]],
    steps: int = 8,
    saved: Sequence[int] = (0, 2, 4, 8),
    lr: float = 1e-2,
) -> Path:
    """Build data, train and publish rungs.

    Args:
        root: the suite directory to create.
        rungs: (name, hidden size, layers, init seed).
        steps: updates.
        saved: steps with a checkpoint.
        lr: constant learning rate of Adam.
    """
    write_corpus(root / "text")
    digest = build_dataset(
        {
            "name": "fixture",
            "source": {"kind": "text_tree", "root": str(root / "text"), "include": ["**/*.txt"]},
            "tokenizer": {"vocab_size": VOCAB, "train_bytes": 1 << 20},
            "heldout_permille": 250,
            "shard_tokens": 1 << 20,
        },
        root / "data",
    )
    for name, hidden, layers, seed in rungs:
        config = run_config(name, digest, hf_config(hidden, layers), seed, steps, saved, lr)
        train_rung(root / name, config)
        publish_rung(root, name, config)
    checks = ("order", "checkpoints", "labels")
    record = {
        name: {"ok": True, "detail": "made by the fixture", "failures": []} for name in checks
    }
    (root / "verification.json").write_text(json.dumps({**record, "machine": "a test machine"}))
    return root


def run_config(
    name: str,
    digest: str,
    hf: dict[str, Any],
    seed: int,
    steps: int,
    saved: Sequence[int],
    lr: float,
) -> dict[str, Any]:
    """A ``config.json`` with the keys of a real one."""
    return {
        "suite": {"name": root_name(name), "hub_org": "tripod"},
        "rung": {
            "name": name,
            "lr": lr,
            "seeds": {"init": seed, "dropout": 0},
            "model": {"family": "gpt_neox", "initialisation": "test", "hf": hf},
        },
        "data": {
            "dir": "data",
            "build": {},
            "index_digest": digest,
            "order": "order-v1",
            "seed": 0,
            "seq_len": SEQ_LEN,
            "batch_size": BATCH,
            "overlay": None,
        },
        "train": {"steps": steps},
        "checkpoints": {"explicit": list(saved)},
    }


def root_name(rung: str) -> str:
    """The suite's name: the part of the rung's name before the first dash."""
    return rung.split("-", maxsplit=1)[0]


def train_rung(run_dir: Path, config: dict[str, Any]) -> None:
    """Train one rung and write its run directory."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(config, sort_keys=True))
    data = config["data"]
    reader = BatchReader(run_dir.parent / "data", SEQ_LEN, BATCH, data["seed"])
    model = new_model(config["rung"]["model"]["hf"], config["rung"]["seeds"]["init"])
    optimizer = torch.optim.Adam(model.parameters(), lr=config["rung"]["lr"], betas=(0.9, 0.95))
    chain = chain_start(data["index_digest"], SEQ_LEN, BATCH, data["order"], data["seed"])
    metrics, losses, leaves = b"", b"", b""
    saved = config["checkpoints"]["explicit"]
    for step in range(config["train"]["steps"] + 1):
        if step in saved:
            _save(run_dir, step, model, chain, config, metrics)
        if step == config["train"]["steps"]:
            break
        ids_BT = torch.from_numpy(reader.ids(step))
        logits = model(ids_BT[:, :-1]).logits
        loss_BS = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids_BT[:, 1:], reduction="none"
        )
        optimizer.zero_grad()
        loss_BS.mean().backward()
        optimizer.step()
        line = {"step": step + 1, "tokens": (step + 1) * BATCH * SEQ_LEN}
        line |= {"loss": loss_BS.mean().item(), "grad_norm": 1.0, "clip_coef": 1.0}
        metrics += json.dumps({**line, "lr": config["rung"]["lr"]}).encode() + b"\n"
        losses += loss_BS.mean(1).detach().numpy().astype("<f4").tobytes()
        leaves += leaf(step, sequence_digests(ids_BT.numpy()))
        chain = chain_next(chain, leaves[-32:])
    (run_dir / "metrics.jsonl").write_bytes(metrics)
    (run_dir / "sequence_loss.f32").write_bytes(losses)
    (run_dir / "order.log").write_bytes(leaves)


def _save(
    run_dir: Path, step: int, model: Any, chain: bytes, config: dict[str, Any], metrics: bytes
) -> None:
    weights = {name: p.detach().clone() for name, p in canonical_parameters(model).items()}
    moments = {
        f"{kind}.{name}": torch.zeros_like(value)
        for kind in ("exp_avg", "exp_avg_sq")
        for name, value in weights.items()
    }
    fields = {
        "suite": config["suite"]["name"],
        "rung": config["rung"]["name"],
        "tokens": step * BATCH * SEQ_LEN,
        "order": {
            "name": config["data"]["order"],
            "index_digest": config["data"]["index_digest"],
            "chain": chain.hex(),
        },
        "numerics": sha256_hex(b"test"),
        "config": sha256_hex((run_dir / "config.json").read_bytes()),
        "environment": sha256_hex(b"test"),
        "metrics": sha256_hex(metrics),
    }
    state = {"schema": "trainer-state-v1", "step": step, "chain": chain.hex()}
    save_checkpoint(run_dir, step, weights, moments, state, fields)


def publish_rung(root: Path, name: str, config: dict[str, Any]) -> None:
    """Publish every checkpoint of a rung on the suite's local Hub."""
    hub, tokenizer = LocalHub(root / "hub"), (root / "data" / "tokenizer.json").read_bytes()
    for record in Ledger(root / name / "manifest.jsonl").records():
        revision = f"step{record['step']}"
        weights = root / name / "checkpoints" / revision / "model.safetensors"
        files = root / "scratch" / name / revision
        export_revision(files, weights, config["rung"]["model"]["hf"], tokenizer, record)
        hub.publish(f"tripod/{name}", revision, files)
