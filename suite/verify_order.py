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
    """All runs read the same tokens at every step; where data is at hand, those of the index."""
    try:
        found = verify_runs(run_dirs, recompute=has_data(run_dirs))
    except DatasetError as error:
        return Verdict("order", (str(error),), "the order could not be recomputed")
    return Verdict("order", found.failures, found.detail)
