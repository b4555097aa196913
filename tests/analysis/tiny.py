"""GPT-NeoX models of a few thousand parameters, and ids to feed them."""

from typing import Any

import numpy as np
import torch

SEQ_LEN, VOCAB = 96, 384


def hf_config(hidden: int, layers: int) -> dict[str, Any]:
    """A GPT-NeoX of the given width and depth."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": SEQ_LEN,
        "hidden_act": "gelu_pytorch_tanh",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def new_model(hf: dict[str, Any], seed: int) -> Any:
    """A GPT-NeoX with seeded weights."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**hf, use_cache=False)).float()


def random_ids(seed: int, shape: tuple[int, ...], vocab: int = VOCAB) -> np.ndarray:
    """Ids in [1, vocab), drawn from a frozen stream (NEP 19)."""
    return np.random.RandomState(seed).randint(1, vocab, size=shape).astype(np.int64)
