"""Which steps are saved.

A union of explicit steps, powers of two and every N. A pure function of the suite's YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("explicit", "powers_of_two_upto", "every", "last")


def checkpoint_steps(spec: Mapping[str, Any], total_steps: int) -> tuple[int, ...]:
    """Steps with a checkpoint, ascending.

    Args:
        spec: `explicit` (list of steps), `powers_of_two_upto` (1, 2, 4 ... up to this step),
        `every` (multiples of this,
            from it on), `last` (the final step). All optional.
        total_steps: updates in the run; later steps are left out.

    Raises:
        ValueError: an unknown key, or a value that is not a step.
    """
    unknown = sorted(set(spec) - set(KEYS))
    if unknown:
        raise ValueError(f"unknown key checkpoints.{unknown[0]}; the keys are: {', '.join(KEYS)}")
    steps = {int(step) for step in spec.get("explicit") or ()}
    if any(step < 0 for step in steps):
        raise ValueError(f"checkpoints.explicit={spec['explicit']}: steps start at 0")
    limit = min(int(spec.get("powers_of_two_upto") or 0), total_steps)
    steps.update(1 << k for k in range(limit.bit_length()))
    every = int(spec.get("every") or 0)
    if every < 0:
        raise ValueError(f"checkpoints.every={every}: expected a positive number of steps, or null")
    if every:
        steps.update(range(every, total_steps + 1, every))
    if spec.get("last"):
        steps.add(total_steps)
    return tuple(sorted(step for step in steps if step <= total_steps))
