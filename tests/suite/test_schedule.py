"""`cosine-v1` at its corners, and values that must never change."""

import pytest

from suite.config import TrainConfig
from suite.schedule import learning_rate

TRAIN = TrainConfig(
    steps=100, schedule="cosine-v1", warmup_steps=10, min_lr_ratio=0.1,
    beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0,
)  # fmt: skip


def test_corners():
    assert learning_rate(1, 1.0, TRAIN) == pytest.approx(0.1)
    assert learning_rate(10, 1.0, TRAIN) == 1.0
    assert learning_rate(55, 1.0, TRAIN) == pytest.approx(0.55, rel=1e-6)
    assert learning_rate(100, 1.0, TRAIN) == pytest.approx(0.1)
    values = [learning_rate(n, 1.0, TRAIN) for n in range(10, 101)]
    assert values == sorted(values, reverse=True)


def test_golden_values_of_cosine_v1():
    found = [learning_rate(n, 3e-3, TRAIN).hex() for n in (1, 7, 11, 50, 99)]
    assert found == [
        "0x1.3a92a40000000p-12",
        "0x1.13404e0000000p-9",
        "0x1.891bb40000000p-9",
        "0x1.edfda00000000p-10",
        "0x1.3b6f640000000p-12",
    ]


def test_outside_the_run_is_refused():
    for update in (0, 101):
        with pytest.raises(ValueError, match=str(update)):
            learning_rate(update, 1.0, TRAIN)
