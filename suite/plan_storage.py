"""What the checkpoints of a rung take: disk, Hub, publishing time, and what replay saves.

A checkpoint is fp32 weights and two fp32 moments; a revision on a Hub is the weights. A replayable
run needs the full state only now and then: the steps between are recomputed, bit for bit
(`tripod checkpoint`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

_WEIGHTS, _STATE = 4, 12  # bytes a parameter
# The Hub's answer to too many commits names the limit: "rate limit for repository commits (128 per
# hour)"; docs/pythia.md has the arithmetic.
COMMITS_PER_HOUR = 128


@dataclass(frozen=True)
class Storage:
    """Bytes and hours for the checkpoints of one rung.

    Attributes:
        steps: steps with a checkpoint.
        local_bytes: full state at every one.
        hub_bytes: weights at every one.
        publish_hours: least time for one commit a checkpoint under the Hub's limit, a repository.
        state_every: every so-manieth checkpoint keeps the full state in the thinned layout.
        thinned_bytes: weights at every checkpoint, full state at every `state_every`-th and the
            last.
        replay_steps: most updates between a full state and the next checkpoint before another one.
    """

    steps: tuple[int, ...]
    local_bytes: int
    hub_bytes: int
    publish_hours: float
    state_every: int
    thinned_bytes: int
    replay_steps: int

    @property
    def saved_bytes(self) -> int:
        """What thinning saves."""
        return self.local_bytes - self.thinned_bytes


def plan_storage(steps: Sequence[int], parameters: int, state_every: int) -> Storage:
    """Counts.

    Args:
        steps: steps with a checkpoint, ascending.
        parameters: parameters as stored.
        state_every: k, at least 1.

    Raises:
        ValueError: k below 1.
    """
    if state_every < 1:
        raise ValueError(f"state_every={state_every}: expected at least 1")
    kept = full_states(steps, state_every)
    bounds = [*kept, steps[-1]] if steps else []
    gaps = [b - a for a, b in itertools.pairwise(bounds)]
    light = (len(steps) - len(kept)) * _WEIGHTS
    return Storage(
        steps=tuple(steps),
        local_bytes=len(steps) * _STATE * parameters,
        hub_bytes=len(steps) * _WEIGHTS * parameters,
        publish_hours=len(steps) / COMMITS_PER_HOUR,
        state_every=state_every,
        thinned_bytes=(len(kept) * _STATE + light) * parameters,
        replay_steps=max(gaps, default=0),
    )


def full_states(steps: Sequence[int], state_every: int) -> list[int]:
    """Steps that keep the full state: the first, every k-th after it, and the last."""
    kept = list(steps[::state_every])
    return kept if not steps or kept[-1] == steps[-1] else [*kept, steps[-1]]
