"""Held-out loss: fixed rows of the held-out split, the same at every checkpoint of every rung.

``heldout-loss-v1``: at most 48 evenly spaced sequences of S inputs and S targets from the held-out
stream (documents packed, as in training). Reports nats per target token and bits per byte of text;
the end-of-document mark counts as a target but has no bytes. Documents enter the held-out split by
the hash of their content, so exact copies of training documents cannot be in it; near copies can.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analysis.probes import evenly
from analysis.rungs import AnalysisError, SuiteDir
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.shards import TokenStream

NAME = "heldout-loss-v1"
ROWS = 48
BATCH = 16


@dataclass(frozen=True)
class HeldoutRows:
    """The rows that are scored.

    Attributes:
        ids: int64 [n, S+1].
        text_bytes: bytes of text behind the targets of all rows.
        digest: sha256 of the definition and the ids.
    """

    ids: npt.NDArray[np.int64]
    text_bytes: int
    digest: str


def heldout_rows(suite: SuiteDir, count: int = ROWS) -> HeldoutRows:
    """Choose the rows of a suite.

    Raises:
        AnalysisError: the held-out split is shorter than one sequence.
    """
    stream = TokenStream(suite.dataset, "heldout")
    seq_len = int(suite.data["seq_len"])
    ids = stream.sequences(evenly(0, stream.num_sequences(seq_len), count), seq_len)
    if not len(ids):
        raise AnalysisError(
            f"expected at least one held-out sequence of {seq_len + 1} tokens, found "
            f"{stream.num_tokens} tokens; raise data.build.heldout_permille"
        )
    tokenizer = stream.index.tokenizer()
    targets = ids[:, 1:].ravel()
    text_bytes = len(tokenizer.decode_bytes(targets[targets != stream.index.eod]))
    digest = sha256_hex(canonical_json([NAME, suite.data["index_digest"], ids.tolist()]))
    return HeldoutRows(ids, text_bytes, digest)


@torch.inference_mode()
def heldout_loss(model: Any, rows: HeldoutRows, batch: int = BATCH) -> dict[str, float | int]:
    """Score a causal LM on the rows.

    Returns:
        loss (mean nats per target token), bits_per_byte, target_tokens, text_bytes.
    """
    total = 0.0
    for first in range(0, len(rows.ids), batch):
        part = rows.ids[first : first + batch]
        padded = np.concatenate([part, np.repeat(part[:1], batch - len(part), axis=0)])
        ids_BT = torch.from_numpy(padded).to(model.device)
        logits_BSV = model(ids_BT[:, :-1], use_cache=False).logits.float()
        chosen_BS = logits_BSV.log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
        total -= float(chosen_BS[: len(part)].double().sum())
    tokens = rows.ids.shape[0] * (rows.ids.shape[1] - 1)
    return {
        "loss": total / tokens,
        "bits_per_byte": total / math.log(2) / rows.text_bytes,
        "target_tokens": tokens,
        "text_bytes": rows.text_bytes,
    }
