"""`tripod plan` and `tripod preflight`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suite.config import ConfigError

Add = Callable[..., argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Adds both commands to the command line."""
    sub = add(
        "plan",
        _plan,
        "parameters, FLOPs, memory, layout, hours, checkpoints and digests of every rung",
        "plan pythia hardware=h100x8 --plot schedule.svg",
    )
    _add_suite(sub)
    sub.add_argument("--json", action="store_true", help="print the plan as JSON")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="write the schedule as SVG")
    sub.add_argument(
        "--measure",
        action="store_true",
        help="time some sequences of each rung that fits here, and plan with that",
    )
    sub.add_argument(
        "--state-every",
        type=int,
        default=10,
        metavar="K",
        help="what keeping the full state at every K-th checkpoint saves (default: 10)",
    )
    sub = add(
        "preflight",
        _preflight,
        "everything that would stop a sweep, found at once",
        "preflight pythia hardware=h100x8",
    )
    _add_suite(sub)
    sub.add_argument("--root", type=Path, default=Path("runs"))
    sub.add_argument("--json", action="store_true", help="print the failures as JSON")


def _add_suite(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="SUITE|KEY=VALUE",
        help="a suite (pythia, or suite=pythia), and Hydra overrides: hardware=h100x8, ...",
    )


def suite_and_overrides(words: list[str]) -> tuple[str, list[str]]:
    """Splits `pythia hardware=h100x8` or `suite=pythia hardware=h100x8`.

    Raises:
        ConfigError: no suite, or two.
    """
    from suite.train import suite_names

    named = [word.removeprefix("suite=") for word in words if _names_suite(word)]
    if len(named) != 1:
        raise ConfigError(
            f"expected one suite, found {', '.join(named) or 'none'}; the suites are: "
            f"{', '.join(suite_names())}"
        )
    return named[0], [word for word in words if not _names_suite(word)]


def _names_suite(word: str) -> bool:
    return "=" not in word or word.startswith("suite=")


def _plan(arguments: argparse.Namespace) -> int:
    from suite.plan import plan_suite
    from suite.plan_table import plan_json, plan_text

    suite, overrides = suite_and_overrides(arguments.overrides)
    plan = plan_suite(suite, overrides, arguments.state_every)
    if arguments.measure:
        from suite.plan_measure import measure

        plan = plan_suite(suite, overrides, arguments.state_every, measure(plan))
    if arguments.plot is not None:
        from suite.plan_plot import plot_schedule

        plot_schedule(plan, arguments.plot)
    print(json.dumps(plan_json(plan)) if arguments.json else plan_text(plan))
    return 0


def _preflight(arguments: argparse.Namespace) -> int:
    from suite.preflight import notices, preflight
    from suite.preflight_refusal import refusal
    from suite.sweep import compose_suite

    suite, overrides = suite_and_overrides(arguments.overrides)
    sweep = compose_suite(suite, arguments.root, overrides)
    failures = preflight(sweep, overrides)
    if arguments.json:
        rows: list[dict[str, Any]] = [vars(failure) for failure in failures]
        print(json.dumps(rows))
    elif failures:
        print(refusal(sweep, failures, overrides))
    else:
        print(f"ok  {suite}: nothing stops it ({len(sweep.rungs)} rungs)")
    for notice in notices():
        print(f"note: {notice}", file=sys.stderr)
    return 1 if failures else 0
