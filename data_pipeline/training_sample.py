"""The documents that a tokenizer is trained on: training documents only, chosen by content hash.

Guarantees: the sample is a random part of the training split that does not depend on document
order, groups or workers; held-out documents and documents that a step left out are not in it.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from data_pipeline.meter import Progress
from data_pipeline.plan import Plan
from data_pipeline.removal import Mask
from data_pipeline.survey import Survey, read_group
from data_pipeline.tokenizer import Tokenizer, train_bpe

Numbers = npt.NDArray[np.int64]


def train_on_sample(plan: Plan, survey: Survey, kept: Mask, say: Progress) -> Tokenizer:
    """Train the tokenizer that the recipe asks for; arguments as ``encode.encode_group``."""
    recipe = plan.recipe
    chosen = training_sample(
        survey.prefixes,
        survey.all_sizes,
        kept,
        recipe.heldout_permille,
        recipe.tokenizer["train_bytes"],
    )
    size = int(survey.all_sizes[chosen].sum())
    say(f"tokenizer: training {recipe.tokenizer['vocab_size']} ids on {size:,} bytes")
    return train_bpe(_texts(plan, survey, chosen), recipe.tokenizer["vocab_size"])


def training_sample(
    prefixes: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint64],
    kept: Mask,
    heldout_permille: int,
    train_bytes: int,
) -> Numbers:
    """Choose training documents in order of (hash prefix, number) while they fit.

    Args:
        prefixes: First 8 bytes, big-endian, of the SHA-256 of n documents.
        sizes: Their sizes in bytes.
        kept: Which of them to look at.
        heldout_permille: Held-out documents per thousand.
        train_bytes: Largest sum of sizes; the first document that does not fit ends the choice.

    Returns:
        int64 numbers, ascending.
    """
    train = kept & (prefixes % np.uint64(1000) >= heldout_permille)
    numbers = np.flatnonzero(train)
    order = numbers[np.argsort(prefixes[numbers], kind="stable")]
    fits = np.cumsum(sizes[order], dtype=np.uint64) <= train_bytes
    return np.sort(order[fits])


def _texts(plan: Plan, survey: Survey, chosen: Numbers) -> Iterator[str]:
    """Read the chosen documents; groups without any are not read."""
    for group in plan.groups:
        first, end = survey.first[group.number], survey.first[group.number + 1]
        wanted = set((chosen[(chosen >= first) & (chosen < end)] - first).tolist())
        if wanted:
            counts: dict[str, Counter[str]] = {}
            for number, document in enumerate(read_group(plan, group, counts)):
                if number in wanted:
                    yield document.text
