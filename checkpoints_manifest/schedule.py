"""Which steps are saved.

A union of explicit steps, powers of two and every N: a pure function of the suite's YAML. Pythia's
154 checkpoints are ``explicit=[0]``, ``powers_of_two_upto=512``, ``every=1000``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("explicit", "powers_of_two_upto", "every", "last")


def checkpoint_steps(spec: Mapping[str, Any], total_steps: int) -> tuple[int, ...]:
    """Steps with a checkpoint, ascending.

    Args:
        spec: ``explicit`` (list of steps), ``powers_of_two_upto`` (1, 2, 4 ... up to this step),
            ``every`` (its multiples, from itself on), ``last`` (the final step). All optional.
        total_steps: Updates in the run; later steps are left out.

    Raises:
        ValueError: An unknown key, or a value that is not a step.
    """
    unknown = sorted(set(spec) - set(KEYS))
    if unknown:
        raise ValueError(f"unknown key checkpoints.{unknown[0]}; the keys are: {', '.join(KEYS)}")
    total = _step("total_steps", total_steps)
    explicit, last = spec.get("explicit") or [], spec.get("last") or False
    if not isinstance(explicit, list | tuple) or type(last) is not bool:
        raise ValueError(
            f"checkpoints: expected a list of steps in explicit and true or false in last, found "
            f"{explicit!r} and {last!r}"
        )
    steps = {_step("explicit", step) for step in explicit}
    limit = min(_step("powers_of_two_upto", spec.get("powers_of_two_upto") or 0), total)
    steps.update(1 << k for k in range(limit.bit_length()))
    every = _step("every", spec.get("every") or 0)
    if every:
        steps.update(range(every, total + 1, every))
    if last:
        steps.add(total)
    return tuple(sorted(step for step in steps if step <= total))


def _step(key: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"checkpoints.{key}: expected whole numbers from 0 on, found {value!r}")
    return value
