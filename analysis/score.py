"""One teacher-forced pass over 64-token windows: the memorization definitions of this project.

``memorization-32+32-v1``: the first 32 ids are the prompt, the last 32 the continuation (Biderman
et al. 2023, arXiv:2304.11158). Under teacher forcing every position sees the true ids before it, so
up to the first mistake the argmax is what greedy decoding would have produced. Hence ``exact``
(greedy decoding reproduces the continuation) and ``accepted_len`` (ids it gets right before its
first mistake) need no generation. ``token_matches`` is the teacher-forced accuracy; it is not
Pythia's free-running score and must not be compared with it.

Guarantees: fp32 logits, one fixed batch shape (the last batch is padded), so a window's numbers do
not depend on how many others are scored. ``min_margin`` is the smallest distance, over the
continuation, between the logit of the true id and the best other one: ``exact`` is ``min_margin`` >
0, and a label with |``min_margin``| below ``FRAGILE_MARGIN`` may flip on other hardware.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

NAME = "memorization-32+32-v1"
WINDOW = 64
PREFIX = 32
FRAGILE_MARGIN = 1e-3
BATCH = 32


@torch.inference_mode()
def score_windows(
    model: Any, windows_NK: npt.NDArray[np.int64], batch: int = BATCH
) -> pd.DataFrame:
    """Score windows with a causal LM.

    Args:
        model: a ``transformers`` causal LM in eval mode, on CPU or an accelerator.
        windows_NK: ids [n, 64].
        batch: windows per forward pass.

    Returns:
        One row per window, in order: exact (bool), accepted_len (0..32), token_matches (0..32),
        nll_sum (nats over the 32 ids of the continuation), min_margin (logits).

    Raises:
        ValueError: windows of another length.
    """
    if windows_NK.ndim != 2 or windows_NK.shape[1] != WINDOW:
        raise ValueError(f"expected windows [n, {WINDOW}], found {list(windows_NK.shape)}")
    parts = []
    for first in range(0, len(windows_NK), batch):
        part = windows_NK[first : first + batch]
        padded = np.concatenate([part, np.repeat(part[:1], batch - len(part), axis=0)])
        scores = _score_batch(model, torch.from_numpy(padded).to(model.device))
        parts.append({name: values[: len(part)].cpu().numpy() for name, values in scores.items()})
    columns = parts[0] if parts else {}
    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in columns})


def _score_batch(model: Any, ids_BK: torch.Tensor) -> dict[str, torch.Tensor]:
    continuation = WINDOW - PREFIX
    out = model(ids_BK[:, :-1], logits_to_keep=continuation, use_cache=False)
    logits_BCV = out.logits.float()
    target_BC1 = ids_BK[:, PREFIX:, None]
    true_BC = logits_BCV.gather(-1, target_BC1)[..., 0]
    nll_BC = -logits_BCV.log_softmax(-1).gather(-1, target_BC1)[..., 0]
    # The logits are ours to change: take the true id out to find the best other one.
    margin_BC = true_BC - logits_BCV.scatter_(-1, target_BC1, float("-inf")).amax(-1)
    match_BC = margin_BC > 0
    return {
        "exact": match_BC.all(1),
        "accepted_len": match_BC.long().cumprod(1).sum(1),
        "token_matches": match_BC.sum(1),
        "nll_sum": nll_BC.double().sum(1),
        "min_margin": margin_BC.amin(1),
    }
