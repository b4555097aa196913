"""`tripod verify order` over runs of a suite, as one verdict among the others.

The comparison itself is `data_pipeline.verify_runs`: it needs no trainer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DatasetError
from data_pipeline.verify_runs import has_data
from data_pipeline.verify_runs import verify_order as verify_runs
from suite.config import RunConfig
from suite.train import declared_axes


@dataclass(frozen=True)
class Verdict:
    """Outcome of one verification.

    `detail` is one line for people; `failures` name what diverged first.
    """

    name: str
    failures: tuple[str, ...]
    detail: str

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def load_config(run_dir: Path) -> RunConfig:
    """The configuration of a run directory.

    Raises:
        FileNotFoundError: the directory holds no run.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} holds no run (no config.json)")
    return RunConfig.from_mapping(json.loads(path.read_text()))


def verify_order(run_dirs: list[Path]) -> Verdict:
    """All runs read the same tokens at every step; where data is at hand, those of the index.

    Runs of a suite whose axes name `data.seed` are compared with those of their own data seed:
    another seed is another order by declaration.
    """
    failures: tuple[str, ...] = ()
    details = []
    for seed, group in by_declared_seed(run_dirs).items():
        try:
            found = verify_runs(group, recompute=has_data(group))
        except DatasetError as error:
            return Verdict("order", (str(error),), "the order could not be recomputed")
        failures += found.failures
        details.append(found.detail if seed is None else f"data seed {seed}: {found.detail}")
    return Verdict("order", failures, "; ".join(details))


def by_declared_seed(run_dirs: list[Path]) -> dict[int | None, list[Path]]:
    """Runs that must agree: all of them under None, or those of one declared data seed."""
    groups: dict[int | None, list[Path]] = {}
    for run_dir in run_dirs:
        config = load_config(run_dir)
        declared = "data.seed" in declared_axes(config.suite.name)
        groups.setdefault(config.data.seed if declared else None, []).append(run_dir)
    return groups
