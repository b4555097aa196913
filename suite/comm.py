"""What ranks exchange: integers, disjoint slots and copies. Nothing here adds floats of two ranks.

One process without torchrun is a group of one; every function then works without a process group.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from suite.placement import placement


@dataclass(frozen=True)
class Group:
    """The data-parallel group: this process's rank and the number of ranks."""

    rank: int
    world: int

    def reduce_scatter_int64(self, values: torch.Tensor, shard: int) -> torch.Tensor:
        """Sums int64 buffers over ranks and returns this rank's shard.

        The sum is associative, so order and algorithm are free.
        """
        if values.dtype != torch.int64:
            raise TypeError(
                f"expected int64 (float sums depend on the order), found {values.dtype}"
            )
        if self.world == 1:
            return values
        if dist.get_backend() == "gloo":
            # gloo's reduce-scatter costs more than its all-reduce (measured: 3.6 against 2.0 fp32
            # all-reduces).
            dist.all_reduce(values)
            return values[self.rank * shard : (self.rank + 1) * shard]
        out = torch.empty(shard, dtype=torch.int64, device=values.device)
        dist.reduce_scatter_tensor(out, values)
        return out

    def fill_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """Merges a vector of which each rank filled its own slots and left zeros elsewhere.

        Adding zero is exact.
        """
        if self.world > 1:
            dist.all_reduce(slots)
        return slots

    def any_rank(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set on any rank: the same answer on all of them."""
        if self.world == 1:
            return list(flags)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        counts = torch.tensor([int(flag) for flag in flags], dtype=torch.int64, device=device)
        dist.all_reduce(counts)
        return [count > 0 for count in counts.tolist()]

    def all_gather(self, shard: torch.Tensor) -> torch.Tensor:
        """Concatenates equal shards of all ranks."""
        if self.world == 1:
            return shard
        out = torch.empty(self.world * shard.numel(), dtype=shard.dtype, device=shard.device)
        dist.all_gather_into_tensor(out, shard.contiguous())
        return out

    def broadcast(self, value: object) -> object:
        """Rank 0's value on every rank (pickled: for small control messages)."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world > 1:
            dist.barrier()


def join_group(timeout_s: int = 600) -> Group:
    """Joins the group that torchrun or srun describes in the environment; alone without either.

    Args:
        timeout_s: how long a collective waits for a rank that does not answer.

    Raises:
        PlacementError: half an environment; see `suite.placement`.
    """
    place = placement(os.environ)
    if place.world > 1 and not dist.is_initialized():
        os.environ.update(place.environment())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return Group(place.rank, place.world)


def leave_group() -> None:
    """Ends the threads of the process group; all ranks call it when they are done.

    A process that exits with them running may abort (seen with DeepSpeed's groups on gloo).
    """
    if dist.is_initialized():
        dist.destroy_process_group()
