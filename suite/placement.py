"""Rank, number of ranks and meeting point of this process, from the environment of its launcher.

Pure functions of the environment. `torchrun` says everything itself; under SLURM, one task of
`srun` is one rank, the first host of the step is the meeting point, and the port is drawn from the
job's number. A process with neither is alone. Only what `srun` sets for a step counts (not what a
batch script sees), so that commands typed in a job script are not taken for ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


class PlacementError(RuntimeError):
    """The environment does not say where this process stands: names what is missing."""


@dataclass(frozen=True)
class Placement:
    """Where a process stands; `local_rank` counts within its machine and picks the device."""

    rank: int
    world: int
    local_rank: int
    address: str
    port: int
    launcher: str

    def environment(self) -> dict[str, str]:
        """The variables of `torch.distributed` (`env://`) that say the same."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def placement(environ: Mapping[str, str]) -> Placement:
    """Where this process stands.

    Raises:
        PlacementError: half an environment: a number of ranks without a rank, or a rank outside
            its group.
    """
    if "WORLD_SIZE" in environ or "RANK" in environ:
        found = _torchrun(environ)
    elif "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        found = _slurm(environ)
    else:
        return Placement(0, 1, 0, "localhost", 29500, "none")
    if not 0 <= found.rank < found.world:
        raise PlacementError(
            f"{found.launcher}: expected a rank in [0, {found.world}), found {found.rank}"
        )
    return found


def _torchrun(environ: Mapping[str, str]) -> Placement:
    world = _number(environ, "WORLD_SIZE", "torchrun")
    # One rank needs nobody to meet.
    default = None if world > 1 else "localhost"
    return Placement(
        rank=_number(environ, "RANK", "torchrun"),
        world=world,
        local_rank=int(environ.get("LOCAL_RANK", "0")),
        address=_needed(environ, "MASTER_ADDR", "torchrun", default),
        port=int(_needed(environ, "MASTER_PORT", "torchrun", None if world > 1 else "29500")),
        launcher="torchrun",
    )


def _slurm(environ: Mapping[str, str]) -> Placement:
    nodes = _needed(environ, "SLURM_STEP_NODELIST", "srun", None)
    job = _number(environ, "SLURM_JOB_ID", "srun")
    # Steps of one job, and jobs that share a machine, must not meet on one port.
    step = int(re.sub(r"\D", "", environ.get("SLURM_STEP_ID", "")) or 0)
    return Placement(
        rank=_number(environ, "SLURM_PROCID", "srun"),
        world=_number(environ, "SLURM_STEP_NUM_TASKS", "srun"),
        local_rank=int(environ.get("SLURM_LOCALID", "0")),
        address=environ.get("MASTER_ADDR") or first_host(nodes),
        port=int(environ.get("MASTER_PORT") or 20_000 + (job * 7 + step) % 20_000),
        launcher="srun",
    )


def first_host(nodes: str) -> str:
    """First host of a SLURM node list: `gpu[003-010,12],login1` begins with `gpu003`.

    Raises:
        PlacementError: not a node list.
    """
    match = re.match(r"([A-Za-z0-9_.-]+)(?:\[(\d+)[\d,-]*\])?([A-Za-z0-9_.-]*)(?:,|$)", nodes)
    if match is None:
        raise PlacementError(
            f"expected a SLURM node list, found {nodes!r}; set MASTER_ADDR to the host of rank 0"
        )
    return "".join(part or "" for part in match.groups())


def _needed(environ: Mapping[str, str], name: str, launcher: str, default: str | None) -> str:
    value = environ.get(name) or default
    if value is None:
        raise PlacementError(
            f"{launcher} set no {name}; start ranks with `tripod train`, torchrun or srun "
            "(docs/running.md)"
        )
    return value


def _number(environ: Mapping[str, str], name: str, launcher: str) -> int:
    text = _needed(environ, name, launcher, None)
    if not text.isdigit():
        raise PlacementError(f"{launcher}: expected a number in {name}, found {text!r}")
    return int(text)
