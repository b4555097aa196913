"""Plans that several tests look at, composed once: Hydra takes a quarter of a second a rung."""

import functools
from pathlib import Path

from suite.plan import SuitePlan, plan_of
from suite.sweep import Sweep, compose_suite


@functools.cache
def composed(suite: str) -> Sweep:
    return compose_suite(suite, Path("nowhere"))


@functools.cache
def planned(suite: str, hardware: str = "h100x8") -> SuitePlan:
    return plan_of(composed(suite).rungs, suite, [f"hardware={hardware}"], state_every=10)
