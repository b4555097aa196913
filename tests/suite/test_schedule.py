"""Schedules at their corners, and values that must never change."""

import dataclasses

import pytest

from suite.config import TrainConfig
from suite.schedule import SCHEDULES, learning_rate, unmoved_reason

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
    for schedule in SCHEDULES:
        train = dataclasses.replace(TRAIN, schedule=schedule)
        for update in (0, 101):
            with pytest.raises(ValueError, match=str(update)):
                learning_rate(update, 1.0, train)


# Pythia's own: 143,000 updates, 1,430 of them warm-up.
PYTHIA = dataclasses.replace(TRAIN, steps=143_000, warmup_steps=1430, schedule="pythia-v1")


def test_pythia_v1_starts_at_zero_and_peaks_after_the_warm_up():
    assert learning_rate(1, 6e-4, PYTHIA) == 0.0
    assert learning_rate(2, 1430.0, PYTHIA) == 1.0
    assert learning_rate(1431, 1.0, PYTHIA) == 1.0
    assert learning_rate(1500, 1.0, PYTHIA) < 1.0


def test_pythia_v1_is_at_its_floor_from_step_115139_on():
    floor = learning_rate(143_000, 1.0, PYTHIA)
    assert floor == pytest.approx(0.1)
    at_floor = [n for n in range(100_000, 143_001) if learning_rate(n, 1.0, PYTHIA) == floor]
    # Step t is update t + 1.
    assert at_floor == list(range(115_140, 143_001))
    assert len(at_floor) == 27_861


@pytest.mark.parametrize(
    ("step", "trained", "clean"),
    [(20_000, 5.754e-4, 5.774e-4), (71_500, 3.094e-4, 3.343e-4), (100_000, 1.319e-4, 1.739e-4),
     (110_000, 8.18e-5, 1.292e-4)],
)  # fmt: skip
def test_published_values_of_pythia_160m(step, trained, clean):
    """What GPT-NeoX v1.0 computed, and what its main branch computes since 2023."""
    assert learning_rate(step + 1, 6e-4, PYTHIA) == pytest.approx(trained, abs=5e-8)
    cosine = dataclasses.replace(PYTHIA, schedule="cosine-v1")
    assert learning_rate(step, 6e-4, cosine) == pytest.approx(clean, abs=5e-8)


def test_golden_values_of_pythia_v1():
    found = [learning_rate(n, 6e-4, PYTHIA).hex() for n in (1, 2, 1431, 20_001, 115_139, 143_000)]
    assert found == GOLDEN


def test_a_step_that_cannot_move_says_why():
    assert unmoved_reason(0, 1.0, PYTHIA) is None
    assert "update 1" in unmoved_reason(1, 1.0, PYTHIA)
    assert unmoved_reason(2, 1.0, PYTHIA) is None
    assert unmoved_reason(1, 1.0, TRAIN) is None


GOLDEN = [
    "0x0.0p+0",
    "0x1.c285640000000p-22",
    "0x1.3a92a40000000p-11",
    "0x1.2daa060000000p-11",
    "0x1.f758ca0000000p-15",
    "0x1.f751040000000p-15",
]


def test_a_checkpoint_that_did_not_move_is_saved_with_its_reason(tmp_path):
    """Pythia's step 1 has the weights of step 0: the ledger takes it with a reason only."""
    import torch

    from checkpoints_manifest.errors import CheckpointError
    from checkpoints_manifest.manifest import Ledger
    from suite.comm import Group
    from suite.config import RunConfig
    from suite.heartbeat import Heartbeat
    from suite.operation import RecoveryPlan
    from suite.recovery import Keeper
    from suite.resume import Position
    from suite.signals import StopRequest
    from suite.train import compose

    class Still:
        """An engine whose weights never move, and a recorder of nothing."""

        group, chain = Group(0, 1), bytes(32)

        def state(self):
            weights = {"a.weight": torch.ones(2, 2)}
            kinds = ("exp_avg", "exp_avg_sq")
            return weights, {f"{kind}.a.weight": torch.zeros(2, 2) for kind in kinds}

        def flush(self):
            return "0" * 64

    for schedule in ("pythia-v1", "cosine-v1"):
        mapping = compose("smoke", "smoke-20k", [f"train.schedule={schedule}"])
        config, run_dir = RunConfig.from_mapping(mapping), tmp_path / schedule
        run_dir.mkdir()
        fields = dict.fromkeys(("numerics", "config", "environment"), "0" * 64)
        position = Position(0, bytes(32), None, True, None, None, fields, (), ())
        keeper = Keeper(
            config, run_dir, Still(), Still(), position, RecoveryPlan(), StopRequest(),
            Heartbeat(run_dir, 0, 1),
        )  # fmt: skip
        keeper.checkpoint(0)
        keeper.checkpoint(1)
        if schedule == "cosine-v1":
            with pytest.raises(CheckpointError, match="same_weights_reason"):
                keeper.close(complete=True)
        else:
            keeper.close(complete=True)
            last = Ledger(run_dir / "manifest.jsonl").records()[-1]
            assert (
                last["same_weights_reason"] == "the learning rate of update 1 is 0 under pythia-v1"
            )
