"""Learning-rate schedules: pure functions of the step, versioned by name.

The value is rounded to float32 here, once: the optimizer multiplies in float32, and the log shows
what it used. Formulas: docs/spec/exact-step.md.
"""

from __future__ import annotations

import math

import numpy as np

from suite.config import TrainConfig


def cosine_v1(update: int, peak: float, train: TrainConfig) -> float:
    """`cosine-v1`: linear warm-up, then half a cosine from peak to `min_lr_ratio`·peak.

    Args:
        update: 1-based update number, in [1, train.steps].
        peak: peak learning rate.
        train: schedule parameters; the floor is reached exactly at the last update.

    Returns:
        The learning rate, rounded to float32.
    """
    _check(update, train)
    if update <= train.warmup_steps:
        value = peak * update / train.warmup_steps
    else:
        done = (update - train.warmup_steps) / (train.steps - train.warmup_steps)
        floor = peak * train.min_lr_ratio
        value = floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
    return float(np.float32(value))


def pythia_v1(update: int, peak: float, train: TrainConfig) -> float:
    """`pythia-v1`: what GPT-NeoX v1.0 computed, and so what trained Pythia and GPT-NeoX-20B.

    Source: gpt-neox v1.0, megatron/learning_rates.py, `AnnealingLR.get_lr`, whose step count is 0
    at the first update (gpt-neox #1373). It differs from what its settings suggest in three ways:
    the first update has learning rate 0; the cosine decays towards 0 with the whole run as its
    half period, not the run without warm-up; and it is cut off at `min_lr_ratio`·peak, so with
    Pythia's settings the last 27,861 of 143,000 updates are at the floor.

    Args:
        update: 1-based update number, in [1, train.steps].
        peak: peak learning rate.
        train: schedule parameters.

    Returns:
        The learning rate, rounded to float32.
    """
    _check(update, train)
    step = min(update - 1, train.steps - train.warmup_steps)
    if train.warmup_steps and step <= train.warmup_steps:
        value = peak * step / train.warmup_steps
    else:
        angle = math.pi * (step - train.warmup_steps) / train.steps
        value = max(peak / 2.0 * (math.cos(angle) + 1.0), peak * train.min_lr_ratio)
    return float(np.float32(value))


def _check(update: int, train: TrainConfig) -> None:
    if not 1 <= update <= train.steps:
        raise ValueError(f"update {update} is outside [1, {train.steps}]")


SCHEDULES = {"cosine-v1": cosine_v1, "pythia-v1": pythia_v1}


def learning_rate(update: int, peak: float, train: TrainConfig) -> float:
    """The learning rate of a 1-based update under the schedule that `train` names."""
    return SCHEDULES[train.schedule](update, peak, train)


def unmoved_reason(update: int, peak: float, train: TrainConfig) -> str | None:
    """Why checkpoint `update` may have the weights of the one before it; None where it may not.

    The ledger refuses two steps with the same weights unless a record says why.
    """
    if update and learning_rate(update, peak, train) == 0.0:
        return f"the learning rate of update {update} is 0 under {train.schedule}"
    return None
