"""Which steps are saved; Pythia's 154 in one line."""

import pytest

from checkpoints_manifest.schedule import checkpoint_steps


def test_pythias_154_checkpoints():
    spec = {"explicit": [0], "powers_of_two_upto": 512, "every": 1000}
    steps = checkpoint_steps(spec, 143_000)
    assert len(steps) == 154
    assert steps[:12] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    assert steps[-1] == 143_000


def test_union_without_duplicates_and_within_the_run():
    spec = {"explicit": [0, 4, 99], "powers_of_two_upto": 64, "every": 4, "last": True}
    assert checkpoint_steps(spec, 10) == (0, 1, 2, 4, 8, 10)
    assert checkpoint_steps({}, 10) == ()
    assert checkpoint_steps({"last": True}, 10) == (10,)


@pytest.mark.parametrize("spec", [{"each": 3}, {"explicit": [-1]}, {"every": -2}])
def test_bad_schedules_are_named(spec):
    with pytest.raises(ValueError, match=str(next(iter(spec)))):
        checkpoint_steps(spec, 10)
