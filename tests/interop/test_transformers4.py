"""A published revision gives transformers 4 and 5 the same ids and, bit for bit, the same logits.

Needs a second environment (`make interop` makes it, CI does so): TRIPOD_TRANSFORMERS4_PYTHON names
its interpreter. One thread.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_manifest.export import export_revision
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.names import stored_parameters
from data_pipeline.tokenizer import train_bpe

pytestmark = pytest.mark.interop

_COMMON = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0,
    "eos_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_ATTENTION = {
    **_COMMON, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
# Not the defaults of transformers 4, which it would fall back to without the legacy keys.
_GROUPED = {**_ATTENTION, "num_key_value_heads": 1, "rope_theta": 500.0}
HF = {
    "gpt_neox": {
        **_ATTENTION, "hidden_act": "gelu_pytorch_tanh", "rotary_pct": 0.5,
        "rotary_emb_base": 500, "use_parallel_residual": True,
    },
    "llama": _GROUPED,
    "llama-tied": {**_GROUPED, "tie_word_embeddings": True},
    "mixtral": {
        **_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None,
    },
    "mamba": {**_COMMON, "state_size": 4},
    "mamba-tied": {**_COMMON, "state_size": 4, "tie_word_embeddings": True},
}  # fmt: skip
FAMILIES = {"gpt_neox": "GPTNeoX", "llama": "Llama", "mixtral": "Mixtral", "mamba": "Mamba"}


@pytest.fixture(scope="module")
def other_python():
    found = os.environ.get("TRIPOD_TRANSFORMERS4_PYTHON")
    if not found:
        pytest.skip(
            "TRIPOD_TRANSFORMERS4_PYTHON is not set; `make interop` makes the environment and "
            "runs this"
        )
    return found


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interop")
    tokenizer = train_bpe([Path(__file__).read_text()], 400).data
    for name, hf in HF.items():
        publish(folder, name, hf, tokenizer)
    return folder / "hub"


def publish(folder, name, hf, tokenizer):
    import transformers

    family = name.partition("-")[0]
    prefix = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**hf)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    weights = folder / f"{name}.safetensors"
    save_file(stored_parameters(model), weights, {"format": "pt"})
    order = {"name": "order-v1", "index_digest": "a" * 64, "chain": "b" * 64}
    record = {
        "suite": "toy",
        "rung": name,
        "step": 3,
        "tokens": 9,
        "weights_root": "c" * 64,
        "order": order,
    }
    export_revision(folder / name, weights, hf, tokenizer, record, family)
    LocalHub(folder / "hub").publish(f"tripod/{name}", "step3", folder / name)


def logits(python, hub, name="gpt_neox"):
    script = Path(__file__).with_name("logits.py")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(hub),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [python, str(script), f"tripod/{name}", "step3"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", list(HF))
def test_both_generations_give_the_same_ids_and_logits(other_python, hub, name):
    ours, theirs = logits(sys.executable, hub, name), logits(other_python, hub, name)
    assert (ours.pop("major"), theirs.pop("major")) == ("5", "4")
    assert ours == theirs


def test_without_the_legacy_keys_transformers_4_silently_computes_something_else(other_python, hub):
    """The control: what a plain transformers 5 export does to users of 4."""
    ours = logits(sys.executable, hub)
    repository = LocalHub(hub).repository("tripod/gpt_neox")
    snapshot = repository / "snapshots" / LocalHub(hub).commit_of("tripod/gpt_neox", "step3")
    config = (snapshot / "config.json").resolve()
    whole = config.read_text()
    stripped = json.loads(whole)
    for key in ("rotary_pct", "rotary_emb_base"):
        del stripped[key]
    try:
        config.write_text(json.dumps(stripped))
        assert logits(sys.executable, hub)["logits"] == ours["logits"]
        assert logits(other_python, hub)["logits"] != ours["logits"]
    finally:
        config.write_text(whole)
