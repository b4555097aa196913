"""How a run is carried out: ranks, recovery checkpoints, patience. Changes no bit of it.

So it is no part of a run's identity and may differ at every start. Composed from `operation` in
`sweeps/config.yaml`, written to `RUN/operation.json` by the launcher, read there by every rank.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.canonical import canonical_json
from data_pipeline.durable import write_bytes
from suite.assignment import ASSIGNMENTS
from suite.config import ConfigError, build
from suite.watchdog import START_FACTOR

_FILE = "operation.json"


@dataclass(frozen=True)
class RecoveryPlan:
    """When a checkpoint is saved that only serves a resume; null turns a rule off.

    A killed run loses at most the time since the newest one. The newest `keep` are kept, apart from
    the science checkpoints, which are all kept.
    """

    every_steps: int | None = None
    every_seconds: int | None = 900
    keep: int = 2

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"operation.recovery.{key}={value!r}: expected at least 1")


@dataclass(frozen=True)
class Operation:
    """One start of a run.

    Args:
        ranks: ranks on this machine; null: one per core.
        recovery: see `RecoveryPlan`.
        hang_seconds: ranks without a sign of life for so long are taken for hung.
        assignment: which rank computes which quanta; see `suite.assignment`. All give the same
            bits: another than `contiguous` is for tests and benchmarks of just that.
        accept: changes that the user accepts by name at this start: "numerics" for another
            numerics record (`suite.guard`), "engine" for another engine or layout
            (`suite.engine_record`).
    """

    ranks: int | None = None
    recovery: RecoveryPlan = field(default_factory=RecoveryPlan)
    hang_seconds: int = 600
    assignment: str = "contiguous"
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.hang_seconds < 1 or (self.ranks is not None and self.ranks < 1):
            raise ConfigError(
                f"operation: expected ranks and hang_seconds of at least 1, found {self.ranks} and "
                f"{self.hang_seconds}"
            )
        if self.assignment not in ASSIGNMENTS:
            raise ConfigError(
                f"operation.assignment={self.assignment!r} is not known; allowed: "
                f"{', '.join(ASSIGNMENTS)}"
            )

    def collective_seconds(self, watched: bool) -> int:
        """How long a collective waits for a rank.

        Where a launcher watches, longer than it does (its start included): it can name the rank.
        """
        return self.hang_seconds * (2 + START_FACTOR if watched else 3)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Operation:
        """From plain nested mappings.

        Raises:
            ConfigError: an unknown key or a value out of range, named.
        """
        return build(cls, dict(mapping), "operation")

    @classmethod
    def of_composed(cls, composed: Mapping[str, Any]) -> Operation:
        """From a composed configuration, whose `hardware` says how many ranks.

        Raises:
            ConfigError: as `from_mapping`.
        """
        found = cls.from_mapping(composed["operation"])
        return dataclasses.replace(found, ranks=composed["hardware"]["ranks"])

    def write(self, run_dir: Path) -> None:
        """Writes `operation.json` for the ranks of this start."""
        write_bytes(run_dir / _FILE, canonical_json(dataclasses.asdict(self)))

    @classmethod
    def read(cls, run_dir: Path) -> Operation:
        """What the launcher wrote; the defaults where there was none."""
        path = run_dir / _FILE
        return cls.from_mapping(json.loads(path.read_bytes())) if path.exists() else cls()
