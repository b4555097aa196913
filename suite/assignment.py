"""Which rank computes which quanta of a step: pure functions, and no bit depends on them.

`contiguous` is what training uses. `keyed-v1` gives every quantum to a rank drawn by hash, another
one each step, in an order drawn by hash: tests and benchmarks show with it that assignment and
order of the quanta change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

# (step, rank, world, num_quanta) -> the quanta of that rank, in the order it computes them.
Assignment = Callable[[int, int, int, int], Sequence[int]]


def contiguous(step: int, rank: int, world: int, num_quanta: int) -> range:
    """A contiguous block of quanta; blocks differ by at most one quantum."""
    del step
    return range(rank * num_quanta // world, (rank + 1) * num_quanta // world)


def keyed_v1(step: int, rank: int, world: int, num_quanta: int) -> list[int]:
    """Quanta drawn by SHA-256 of step and quantum; shares are uneven and may be empty."""
    draws = {quantum: _draw(step, quantum) for quantum in range(num_quanta)}
    mine = (quantum for quantum, draw in draws.items() if draw % world == rank)
    return sorted(mine, key=lambda quantum: draws[quantum] // world)


def _draw(step: int, quantum: int) -> int:
    digest = hashlib.sha256(f"assignment keyed-v1 {step} {quantum}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


ASSIGNMENTS: dict[str, Assignment] = {"contiguous": contiguous, "keyed-v1": keyed_v1}
