"""A model whose weights are exchanged in place: one object scores every checkpoint of a rung.

Guarantees: ``load`` recomputes the tensor root of the file on the Hub and refuses weights that are
not those of the ledger; after it every parameter holds that checkpoint's values (no name is
missing, none is left over), in fp32 and eval mode, with one thread. Nothing is cached across
weights.
"""

from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file

from analysis.rungs import AnalysisError, Checkpoint, Rung, verified_root
from checkpoints_manifest.names import load_canonical

EVAL_BATCH = 16


class Subject:
    """The model and tokenizer of one rung, with the weights of the checkpoint loaded last."""

    def __init__(self, rung: Rung) -> None:
        """Build the model from its snapshot on the Hub, with the rung's first weights."""
        from transformers import AutoModelForCausalLM

        self.rung = rung
        self.checkpoint: Checkpoint = rung.checkpoints[0]
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            self.checkpoint.weights.parent, local_files_only=True, dtype=torch.float32
        ).eval()
        self.load(self.checkpoint)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as published on the Hub."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.checkpoint.weights.parent, local_files_only=True)

    @cached_property
    def language_model(self) -> Any:
        """The model as the lm-eval harness sees it; it follows the weights that are loaded."""
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=EVAL_BATCH)

    def load(self, checkpoint: Checkpoint) -> None:
        """Put the weights of a checkpoint into the model.

        Raises:
            AnalysisError: another rung's checkpoint, or weights that the ledger does not name.
            CheckpointError: parameters missing from the file, left over or of another shape.
        """
        if checkpoint.rung != self.rung.name:
            raise AnalysisError(
                f"expected a checkpoint of {self.rung.name}, found one of {checkpoint.rung}"
            )
        verified_root(checkpoint)
        load_canonical(self.model, load_file(checkpoint.weights))
        self.checkpoint = checkpoint
