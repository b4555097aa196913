"""Learning-rate schedules: pure functions of the step, versioned by name.

The value is rounded to float32 here, once: the optimizer multiplies in float32, and the log shows
what it used.
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
    if not 1 <= update <= train.steps:
        raise ValueError(f"update {update} is outside [1, {train.steps}]")
    if update <= train.warmup_steps:
        value = peak * update / train.warmup_steps
    else:
        done = (update - train.warmup_steps) / (train.steps - train.warmup_steps)
        floor = peak * train.min_lr_ratio
        value = floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
    return float(np.float32(value))


SCHEDULES = {"cosine-v1": cosine_v1}


def learning_rate(update: int, peak: float, train: TrainConfig) -> float:
    """The learning rate of a 1-based update under the schedule that `train` names."""
    return SCHEDULES[train.schedule](update, peak, train)
