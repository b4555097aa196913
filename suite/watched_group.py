"""A group whose collectives show in the heartbeat; see `suite.heartbeat`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suite.comm import Group
from suite.heartbeat import Heartbeat


@dataclass(frozen=True)
class WatchedGroup(Group):
    """A group whose collectives show in the heartbeat that this rank waits for the others."""

    heart: Heartbeat

    def fill_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """See `Group`."""
        self.heart.beat("exchange")
        return super().fill_slots(slots)

    def all_gather(self, shard: torch.Tensor) -> torch.Tensor:
        """See `Group`."""
        self.heart.beat("exchange")
        return super().all_gather(shard)

    def barrier(self) -> None:
        """See `Group`."""
        self.heart.beat("exchange")
        super().barrier()
