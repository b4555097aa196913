"""A small run with its dataset, as `tripod publish` finds it; `python -m` of it publishes one."""

import hashlib
import json
import sys
from pathlib import Path

import torch

from checkpoints_manifest.pacer import Pacer
from checkpoints_manifest.publish import Options, publish
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import RunFiles
from checkpoints_manifest.store import save_checkpoint
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.digests import chain_next, chain_start

STEPS = (0, 1, 2, 4)
HF = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 32, "hidden_act": "gelu_pytorch_tanh",
    "rotary_pct": 0.5, "rotary_emb_base": 5000, "use_parallel_residual": True,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def random_weights(step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(30, 7, generator=generator) for name in ("b.weight", "a.bias")}


def real_weights(step):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from checkpoints_manifest.names import canonical_parameters

    torch.manual_seed(step)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**HF))
    return {name: p.data.clone() for name, p in canonical_parameters(model).items()}


def make_run(suite_dir, steps=STEPS, weights=random_weights, tokenizer=b'{"version": "1.0"}'):
    """`suite_dir/data` and `suite_dir/toy-1`, trained two steps past its last checkpoint."""
    dataset, run_dir = suite_dir / "data", suite_dir / "toy-1"
    for folder in (dataset / "leaves", run_dir):
        folder.mkdir(parents=True)
    (dataset / "tokenizer.json").write_bytes(tokenizer)
    index = canonical_json({
        "tokenizer": {"sha256": sha256_hex(tokenizer)},
        "policies": {"bos": "none", "eod": "append"},
        "sources": [{"name": "omegaconf", "version": "2.3.1"}],
    })  # fmt: skip
    (dataset / "index.json").write_bytes(index)
    data = {
        "index_digest": sha256_hex(index), "seq_len": 4, "batch_size": 2, "order": "order-v1",
        "seed": 0, "overlay": None,
    }  # fmt: skip
    total = steps[-1] + 2
    leaves = [hashlib.sha256(bytes([i])).digest() for i in range(total)]
    start = chain_start(**data)
    (dataset / "leaves" / f"{start.hex()}.log").write_bytes(b"".join(leaves))
    rung = {"name": "toy-1", "model": {"hf": HF}}
    config = {"data": {**data, "dir": "data"}, "rung": rung}
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "numerics.json").write_text("{}")
    (run_dir / "environment.json").write_text('{"python": "3.11"}')
    (run_dir / "order.log").write_bytes(b"".join(leaves))
    (run_dir / "sequence_loss.f32").write_bytes(bytes(8 * total))
    lines = [b'{"step":%d,"loss":%.1f}\n' % (n, 9 - n / 8) for n in range(1, total + 1)]
    (run_dir / "metrics.jsonl").write_bytes(b"".join(lines))
    (run_dir / "timing.jsonl").write_bytes(b'{"step":1,"seconds":0.5}\n' * total)
    for step in steps:
        save_step(run_dir, step, weights(step))
    return run_dir


def save_step(run_dir, step, weights):
    config = json.loads((run_dir / "config.json").read_text())
    data = {key: value for key, value in config["data"].items() if key != "dir"}
    chain = chain_start(**data)
    log = (run_dir / "order.log").read_bytes()
    for index in range(step):
        chain = chain_next(chain, log[32 * index : 32 * index + 32])
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:step]
    fields = {
        "suite": "toy", "rung": "toy-1", "tokens": step * 8,
        "order": {
            "name": "order-v1", "index_digest": data["index_digest"], "chain": chain.hex(),
        },
        "metrics": sha256_hex(b"".join(lines)),
        **{
            key: sha256_hex((run_dir / f"{key}.json").read_bytes())
            for key in ("numerics", "config", "environment")
        },
    }  # fmt: skip
    moments = {
        f"{kind}.{name}": torch.full_like(tensor, step + 0.5)
        for kind in ("exp_avg", "exp_avg_sq")
        for name, tensor in weights.items()
    }
    return save_checkpoint(run_dir, step, weights, moments, {"step": step}, fields)


def true_label(step):
    return None


def quick_pacer():
    """The Hub's limits on a clock that only sleeping moves, so that no test waits."""
    clock = [0.0]
    return Pacer(clock=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s))


def main(run_dir, endpoint, repo, state, tag):
    remote = Remote(repo, endpoint=endpoint, pacer=quick_pacer())
    options = Options(with_state=state == "state", tag=tag or None)
    done = publish(RunFiles.read(Path(run_dir)), remote, true_label, options)
    print(f"done {len(done.new)} of {len(done.steps)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
