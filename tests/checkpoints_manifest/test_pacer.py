"""The pacer: never over a limit, never slower than the limit, and the Hub's word goes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_manifest.pacer import HUB_LIMITS, Limit, Pacer, spell


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def pacer(clock, **limits):
    return Pacer(limits or HUB_LIMITS, clock, clock.sleep)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 3)), max_size=60),
    st.integers(3, 6),
    st.floats(1, 50),
)
def test_no_window_ever_holds_more_than_the_limit(actions, count, seconds):
    clock = Clock()
    paced = pacer(clock, call=Limit(count, seconds))
    times = []
    for pause, size in actions:
        clock.now += pause
        paced.take("call", size)
        times += [clock.now] * size
    for first in times:
        assert sum(first <= t < first + seconds * (1 - 1e-9) for t in times) <= count


def test_the_limit_is_used_to_the_full_and_then_waited_for():
    clock = Clock()
    paced = pacer(clock)
    for _ in range(128):
        assert paced.take("commit") == 0
    assert paced.take("commit") == 3600.0


def test_154_commits_and_main_take_the_hour_that_was_promised():
    clock = Clock()
    paced = pacer(clock)
    promised = paced.eta({"commit": 155, "call": 155 * 9})
    started = clock.now
    for _ in range(155):
        paced.take("commit")
        paced.take("call", 9)
    assert clock.now - started == pytest.approx(promised)
    assert promised == 3600.0


@given(st.integers(0, 700), st.lists(st.floats(0, 5000), max_size=200))
def test_the_estimate_is_the_wait(commits, ages):
    clock = Clock()
    paced = pacer(clock)
    paced.seed("commit", ages)
    promised, started = paced.eta({"commit": commits}), clock.now
    for _ in range(commits):
        paced.take("commit")
    assert clock.now - started == pytest.approx(promised, abs=1e-6)


def test_commits_of_an_earlier_process_count():
    clock = Clock()
    paced = pacer(clock)
    paced.seed("commit", [10.0] * 128)
    assert paced.delay("commit") == pytest.approx(3590)
    paced = pacer(clock)
    paced.seed("commit", [4000.0] * 128)
    assert paced.delay("commit") == 0
    # A server whose clock runs ahead of ours dates commits in the future.
    paced.seed("commit", [-500.0] * 128)
    assert paced.delay("commit") == pytest.approx(3600)


def test_what_the_hub_says_goes_first():
    clock = Clock()
    paced = pacer(clock)
    paced.back_off(42)
    assert paced.eta({"commit": 1}) == 42
    assert paced.take("call") == 42
    paced.back_off(5)
    paced.back_off(1)
    assert paced.take("commit") == 5


def test_more_at_once_than_the_limit_is_an_error_not_an_endless_wait():
    with pytest.raises(ValueError, match="never"):
        pacer(Clock(), call=Limit(2, 1.0)).take("call", 3)


def test_durations_as_people_say_them():
    assert [spell(s) for s in (0, 59.4, 61, 4320)] == ["0 s", "59 s", "1 min", "1 h 12 min"]
