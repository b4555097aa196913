"""A checkpoint as a Hugging Face revision that transformers 4 and 5 both load, to the same logits.

Weights are the checkpoint's own file (linked, not copied). transformers 5 writes only
`rope_parameters`, and 4 would then silently fall back to its defaults; so the configuration carries
the keys of both generations. The tokenizer class is one that both know.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.canonical import canonical_json

ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
END_OF_TEXT = "<|endoftext|>"
# `model_type` of transformers to the class of its causal LM.
ARCHITECTURES = {
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mamba": "MambaForCausalLM",
}


def export_revision(
    directory: Path,
    weights: Path,
    hf: Mapping[str, Any],
    tokenizer: bytes,
    record: Mapping[str, Any],
    family: str = "gpt_neox",
) -> None:
    """Fills a new directory with everything a revision holds.

    Args:
        directory: created; must not exist.
        weights: the checkpoint's `model.safetensors`.
        hf: keyword arguments of the family's configuration class, as in the run's configuration.
        tokenizer: bytes of the dataset's `tokenizer.json`.
        record: the ledger record; stored as `checkpoint_manifest.json`.
        family: `model_type` of transformers.
    """
    directory.mkdir(parents=True)
    link_or_copy(weights, directory / "model.safetensors")
    files = {
        "config.json": _json(model_config(hf, family)),
        "generation_config.json": _json({key: hf[key] for key in ("bos_token_id", "eos_token_id")}),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _json(tokenizer_config(hf)),
        "special_tokens_map.json": _json(
            dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        ),
        "checkpoint_manifest.json": canonical_json(dict(record)),
        "README.md": model_card(record).encode(),
        ".gitattributes": ATTRIBUTES.encode(),
    }
    for name, data in files.items():
        (directory / name).write_bytes(data)


def model_config(hf: Mapping[str, Any], family: str = "gpt_neox") -> dict[str, Any]:
    """`config.json`: keys of transformers 4 (`rope_theta`, `torch_dtype`) and 5 (`rope_*`).

    `vocab_size` is the vocabulary itself: rows that a run added in memory are not in checkpoints.
    """
    return {
        **hf,
        **_rotary(hf, family),
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _rotary(hf: Mapping[str, Any], family: str) -> dict[str, Any]:
    if family == "gpt_neox":
        rope = {
            "rope_type": "default",
            "rope_theta": hf["rotary_emb_base"],
            "partial_rotary_factor": hf["rotary_pct"],
        }
        return {"rope_parameters": rope}
    if family in ("llama", "mixtral"):
        head = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
        rope = {"rope_type": "default", "rope_theta": hf["rope_theta"]}
        return {"rope_parameters": rope, "head_dim": head}
    return {}


def tokenizer_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json`: a class that both generations load; no BOS, as in training."""
    context = hf.get("max_position_embeddings")  # Mamba has no bound
    return {
        "add_bos_token": False,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        **({} if context is None else {"model_max_length": context}),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": END_OF_TEXT,
    }


def model_card(record: Mapping[str, Any]) -> str:
    """The README of a revision: what it is and which digests it must have."""
    return f"""---
library_name: transformers
license: apache-2.0
tags: [tripod, {record["suite"]}]
---
# {record["rung"]}, step {record["step"]}

One checkpoint of the Tripod suite `{record["suite"]}`: {record["tokens"]:,} tokens seen.
Trained without a BOS token.

| | |
|---|---|
| weights root (`tensor-digest-v1`) | `{record["weights_root"]}` |
| order chain (`{record["order"]["name"]}`) | `{record["order"]["chain"]}` |
| data index | `{record["order"]["index_digest"]}` |

`checkpoint_manifest.json` is this checkpoint's record in the run's chained ledger.
"""


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-links a file, or copies it where the file system has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
