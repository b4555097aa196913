"""The canonical state out of DeepSpeed's layouts, and back: exact copies, never sums.

DeepSpeed keeps fp32 master weights and moments as flat shards (ZeRO 1 and 2), as a shard of each
parameter (ZeRO 3), or whole (ZeRO 0); tensor parallelism cuts matrices once more. Its own helpers
for ZeRO 1 and 2 add fragments of ranks, which turns -0.0 into 0.0; here they are concatenated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from suite.deepspeed_optimizer import KINDS, AdamWV1
from suite.engine_record import EngineError

MASTER = "master"


@dataclass(frozen=True)
class TensorSplit:
    """How tensor parallelism cut one parameter: `dim` is None where every rank holds all of it."""

    dim: int | None
    rank: int
    world: int
    group: Any

    @classmethod
    def of(
        cls, name: str, full: tuple[int, ...], local: tuple[int, ...], rank: int, world: int,
        group: Any,
    ) -> TensorSplit:  # fmt: skip
        """The split that turned shape `full` into `local`.

        Raises:
            EngineError: the shapes are not those of equal parts along one dimension.
        """
        if local == full:
            return cls(None, rank, world, group)
        dims = [d for d, (a, b) in enumerate(zip(full, local, strict=True)) if a != b]
        if len(dims) != 1 or full[dims[0]] != world * local[dims[0]]:
            raise EngineError(
                f"{name}: tensor parallelism over {world} ranks made {local} of {full}; expected "
                "equal parts along one dimension; choose engine.tensor_parallel so that it divides "
                "the heads and the widths of the model, or 1"
            )
        return cls(dims[0], rank, world, group)

    def gather(self, local: torch.Tensor) -> torch.Tensor:
        """The whole tensor on every rank of the tensor-parallel group."""
        if self.dim is None:
            return local
        parts = [torch.empty_like(local) for _ in range(self.world)]
        dist.all_gather(parts, local.contiguous(), group=self.group)
        return torch.cat(parts, dim=self.dim)

    def cut(self, full: torch.Tensor) -> torch.Tensor:
        """This rank's part of a whole tensor."""
        if self.dim is None:
            return full
        return full.chunk(self.world, dim=self.dim)[self.rank]


class CanonicalState:
    """Reads and writes fp32 master weights and moments of a DeepSpeed engine by canonical name.

    All ranks call its methods together.

    Args:
        engine: what `deepspeed.initialize` returned.
        optimizer: the base optimizer inside it.
        parameters: the engine's parameters by canonical name.
        splits: how tensor parallelism cut each.
        stage: the ZeRO stage.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: AdamWV1,
        parameters: Mapping[str, nn.Parameter],
        splits: Mapping[str, TensorSplit],
        stage: int,
    ) -> None:
        self._engine, self._optimizer, self._stage = engine, optimizer, stage
        self._parameters, self._splits = parameters, splits
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def read(self, kind: str) -> dict[str, torch.Tensor]:
        """Every tensor of a kind ("master", "exp_avg" or "exp_avg_sq"), whole, fp32, on the CPU."""
        found = {
            name: self._splits[name].gather(tensor).cpu() for name, tensor in self._local(kind)
        }
        return {name: found[name] for name in self._parameters}

    @torch.no_grad()
    def write(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies whole tensors into the shards; `refresh` then updates what the forward reads."""
        cut = {name: self._splits[name].cut(tensor) for name, tensor in tensors.items()}
        if self._stage == 3:
            for name, parameter in self._parameters.items():
                self._write_partitioned(kind, parameter, cut[name])
            return
        for shard, group, members in self._flat_shards():
            flat = torch.cat([cut[self._names[id(p)]].reshape(-1) for p in members])
            start = shard.numel() * dist.get_rank(group) if group is not None else 0
            part = flat[start : start + shard.numel()]
            target = self._of_kind(shard, kind).view(-1)
            target.zero_()  # the padding
            target[: part.numel()].copy_(part)

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the weights that the forward reads those of the masters."""
        zero = self._engine.optimizer
        if self._stage in (1, 2):
            zero.update_lp_params()
        elif self._stage == 3:
            # Small parameters stay whole between steps; without this they would keep old values.
            zero._partition_all_parameters()
            for index in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(index)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _local(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors whole over data-parallel ranks, still cut by tensor parallelism."""
        if self._stage == 3:
            for name, parameter in self._parameters.items():
                yield name, self._read_partitioned(kind, parameter)
            return
        for shard, group, members in self._flat_shards():
            flat = self._of_kind(shard, kind).detach().view(-1)
            if group is not None and dist.get_world_size(group) > 1:
                whole = torch.empty(flat.numel() * dist.get_world_size(group), dtype=flat.dtype)
                dist.all_gather_into_tensor(whole, flat.contiguous(), group=group)
                flat = whole
            offset = 0
            for parameter in members:
                part = flat[offset : offset + parameter.numel()]
                # A copy: the caller may keep it over later updates.
                yield self._names[id(parameter)], part.view(parameter.shape).clone()
                offset += parameter.numel()

    def _of_kind(self, shard: torch.Tensor, kind: str) -> torch.Tensor:
        if kind == MASTER:
            return shard.data
        moments = self._optimizer.moments(shard)
        return moments.exp_avg if kind == KINDS[0] else moments.exp_avg_sq

    def _flat_shards(self) -> Iterator[tuple[torch.Tensor, Any, list[nn.Parameter]]]:
        """This rank's fp32 shards, the group that holds the others, the parameters in order."""
        zero = self._engine.optimizer
        if self._stage == 0:
            for parameter in self._parameters.values():
                yield parameter, None, [parameter]
            return
        if hasattr(zero, "fp32_groups_flat_partition"):  # BF16_Optimizer
            shards, members = zero.fp32_groups_flat_partition, zero.bf16_groups
        else:
            shards, members = zero.single_partition_of_fp32_groups, zero.round_robin_bit16_groups
        yield from zip(shards, zero.real_dp_process_group, members, strict=True)

    def _read_partitioned(self, kind: str, parameter: nn.Parameter) -> torch.Tensor:
        self._create_partitioned_moments()
        key = None if kind == MASTER else kind
        full: torch.Tensor = self._engine.optimizer.get_full_hp_param(parameter, key)
        return full.clone()

    def _write_partitioned(self, kind: str, parameter: nn.Parameter, value: torch.Tensor) -> None:
        self._create_partitioned_moments()
        zero, key = self._engine.optimizer, None if kind == MASTER else kind
        shard, _ = zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        start = shard.numel() * zero._get_param_partition_rank(parameter)
        part = value.reshape(-1)[start : start + shard.numel()]
        shard.zero_()  # the last rank's padding
        shard[: part.numel()].copy_(part)

    def _create_partitioned_moments(self) -> None:
        for shard in self._engine.optimizer.fp32_partitioned_groups_flat:
            self._optimizer.moments(shard)
