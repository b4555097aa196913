"""Prints ids and a digest of logits of one revision; run by two generations of transformers."""

import hashlib
import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "import numpy as np\n\ndef f(x):\n    return x + 1  # é 中 <|endoftext|>\n"

if __name__ == "__main__":
    repository, revision = sys.argv[1:]
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(repository, revision=revision).eval()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    result = {
        "major": transformers.__version__.split(".")[0],
        "ids": ids.tolist(),
        "dtype": str(logits.dtype),
        "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
    }
    print(json.dumps(result))
