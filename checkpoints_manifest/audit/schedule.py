"""Which steps a suite should have: declared, or inferred from those that are there.

Inference only ever says "every N" or "powers of two", and only where the steps that are there show
it, so a gap that it names is a gap in a row that is otherwise regular. It cannot know of a step
before the first or after the last; a declared schedule can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from checkpoints_manifest.schedule import checkpoint_steps

# As `schedule.checkpoint_steps` takes them, with the last step.
KNOWN: dict[str, tuple[Mapping[str, Any], int]] = {
    "pythia": ({"explicit": [0], "powers_of_two_upto": 512, "every": 1000}, 143_000),
}
_ROW = 3  # equal distances, or powers of two, that make a rule


@dataclass(frozen=True)
class Schedule:
    """Steps that should be there, and in words where that is known from."""

    steps: frozenset[int]
    words: str


def declared(spec: str) -> Schedule:
    """A schedule from the command line.

    Args:
        spec: a name of `KNOWN`, or parts joined by commas: steps (`0`), `pow2<=512`,
            `every=1000<=143000`.

    Raises:
        ValueError: anything else.
    """
    if spec in KNOWN:
        return Schedule(frozenset(checkpoint_steps(*KNOWN[spec])), f"declared: {spec}")
    steps: set[int] = set()
    for part in spec.split(","):
        rule, _, limit = part.partition("<=")
        try:
            if rule == "pow2":
                steps.update(checkpoint_steps({"powers_of_two_upto": int(limit)}, int(limit)))
            elif rule.startswith("every="):
                every = {"every": int(rule.removeprefix("every="))}
                steps.update(checkpoint_steps(every, int(limit)))
            elif part.isascii() and part.isdigit():
                steps.add(int(part))
            else:
                raise ValueError(part)
        except ValueError as error:
            raise ValueError(
                f"expected a schedule like 0,pow2<=512,every=1000<=143000 or one of "
                f"{', '.join(KNOWN)}; found {part!r} in {spec!r}"
            ) from error
    return Schedule(frozenset(steps), f"declared: {spec}")


def inferred(present: Iterable[int]) -> Schedule:
    """The rows that the steps at hand belong to, gaps filled."""
    steps = sorted(set(present))
    rules: list[tuple[str, set[int]]] = []
    every = _distance(steps)
    row = {step for step in steps if every and step and step % every == 0}
    powers = [step for step in steps if step & (step - 1) == 0 and step and step not in row]
    if len(powers) >= _ROW:
        upto = max(powers)
        rules.append((f"powers of two to {upto}", {1 << k for k in range(upto.bit_length())}))
    if every and row:
        # A dense start that ends before the first multiple says that the row starts with it.
        first = every if len(powers) >= _ROW and max(powers) < min(row) else min(row)
        rules.append(
            (f"every {every} from {first} to {max(row)}", {*range(first, max(row), every)})
        )
    expected = set(steps).union(*(found for _, found in rules))
    words = " and ".join(rule for rule, _ in rules) or "no rule found, the steps as they are"
    return Schedule(frozenset(expected), f"inferred: {words}")


def _distance(steps: list[int]) -> int | None:
    """The distance of a regular row: the one with most of its multiples present."""
    gaps = Counter(b - a for a, b in pairwise(steps))
    rows = [gap for gap, count in gaps.items() if count >= _ROW]
    covered = {gap: sum(step % gap == 0 for step in steps) for gap in rows}
    # Every number is a multiple of 1: a row counts by how much of it is there, too.
    return max(
        (gap for gap in rows if 2 * covered[gap] > steps[-1] // gap - steps[0] // gap),
        key=lambda gap: (covered[gap], gap), default=None,
    )  # fmt: skip
