"""What a user reads when a sweep is refused: the table, every reason, and what fits instead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.config import RunConfig
from suite.plan import plan_of
from suite.plan_table import compute_table, duration, layout_lines, storage_table
from suite.preflight import Failure, preflight, suite_of

if TYPE_CHECKING:
    from suite.sweep import Sweep

_SUGGESTED_HOURS = 24.0  # a suite that is offered instead should end within this
_TESTS = ("smoke", "families")


def refusal(sweep: Sweep, failures: list[Failure], overrides: list[str] | None = None) -> str:
    """What a user reads when a sweep is refused: table, every failure, what fits instead."""
    suite = suite_of(sweep)
    plan = plan_of(sweep.rungs, suite, overrides, state_every=10)
    parts = [
        f"suite {suite} cannot run here (hardware {plan.hardware_name}: {plan.hardware.count} "
        f"{plan.hardware.device}). What each rung needs:",
        compute_table(plan),
        storage_table(list(plan.rungs.values())),
    ]
    if any(rung.choice.overrides for rung in plan.rungs.values()):
        parts.append(layout_lines(list(plan.rungs.values())))
    count = f"{len(failures)} reason{'s' if len(failures) > 1 else ''}"
    parts.append(f"{count}:\n" + "\n".join(f"  {failure}" for failure in failures))
    parts.append(suggestion(suite, sweep.directory.parent))
    return "\n\n".join(parts)


def suggestion(suite: str, root: Path) -> str:
    """The nearest suite that this machine can run, and how to see what the refused one takes."""
    near = nearest_suite(suite, root)
    lines = [f"`tripod plan {suite} hardware=h100x8` plans it for other machines."]
    if near is None:
        return "No suite fits this machine. " + lines[0]
    name, hours = near
    return (
        f"The nearest suite that fits this machine: {name}, about {duration(hours)} at the stated "
        f"speed:\n  make sweep SUITE={name}\n" + lines[0]
    )


def nearest_suite(suite: str, root: Path) -> tuple[str, float] | None:
    """The suite closest in kind, then the largest, that fits here within a day: name and hours.

    Closest in kind: its name starts with the same word (`pythia-laptop` for `pythia`). Test suites
    are left out.
    """
    from suite.sweep import compose_suite
    from suite.train import suite_names

    found = []
    for name in suite_names():
        if name == suite or name in _TESTS or not _may_fit(name):
            continue
        sweep = compose_suite(name, root)
        plan = plan_of(sweep.rungs, name)
        hours = sum(rung.wall_hours for rung in plan.rungs.values())
        if hours <= _SUGGESTED_HOURS and not preflight(sweep, mock=False):
            found.append((_kind(name) == _kind(suite), hours, name))
    if not found:
        return None
    _, hours, name = max(found)
    return name, hours


def _kind(suite: str) -> str:
    return suite.partition("-")[0]


def _may_fit(suite: str) -> bool:
    """Whether a suite's smallest rung could end in a day here: one rung is composed, not all."""
    from suite.sweep import ladder
    from suite.train import compose

    first = ladder(suite)[0]
    config = RunConfig.from_mapping(compose(suite, first))
    rung = plan_of({first: config}, suite).rungs[first]
    return rung.choice.fits and rung.wall_hours <= _SUGGESTED_HOURS
