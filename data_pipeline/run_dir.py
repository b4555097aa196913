"""What a run directory says about its order, read as plain files.

``config.json`` names the reading (key ``data``), ``order.log`` holds the leaves and
``manifest.jsonl`` one record a checkpoint with ``step`` and ``order.chain``. Nothing here needs the
dataset or the trainer.
"""

import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipeline.digests import chain_next, split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.prove import ORDER_KEYS, parse_order, start_of


@dataclass(frozen=True)
class RunOrder:
    """The order of one run: what C_{-1} names, the leaves, and the chain of every checkpoint."""

    path: Path
    order: dict[str, Any]
    log: bytes
    checkpoints: dict[int, str]

    @classmethod
    def load(cls, run_dir: str | Path) -> "RunOrder":
        """Read a run directory; a run that has not reached a step or checkpoint has none.

        Raises:
            DatasetError: No run there, or files that are not what a run writes.
        """
        path = Path(run_dir)
        config = path / "config.json"
        try:
            data = json.loads(config.read_bytes())["data"]
            order = parse_order({key: data[key] for key in ORDER_KEYS})
        except FileNotFoundError:
            raise DatasetError(f"{path}: expected a run, found no config.json") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{config}: expected the order of a run, found {error!r}") from error
        log = path / "order.log"
        return cls(path, order, log.read_bytes() if log.exists() else b"", _checkpoints(path))

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    def check_checkpoints(self) -> list[str]:
        """Compare the chain of every checkpoint with the one over the leaves.

        Returns:
            What does not fit, in words: the first checkpoint only, as the others follow from it.

        Raises:
            DatasetError: A log that is not a whole number of leaves.
        """
        try:
            leaves = split_leaves(self.log)
        except ValueError as error:
            raise DatasetError(f"{self.path / 'order.log'}: {error}") from None
        chains = list(accumulate(leaves, chain_next, initial=start_of(self.order)))
        for step, found in sorted(self.checkpoints.items()):
            if step >= len(chains):
                return [
                    f"checkpoint step{step} exists, but order.log holds {len(chains) - 1} steps"
                ]
            if found != chains[step].hex():
                return [
                    f"checkpoint step{step} carries chain {found}, but order.log gives "
                    f"{chains[step].hex()}"
                ]
        return []

    def checkpoint_after(self, step: int) -> int | None:
        """Return the first checkpoint whose chain covers a step, None when there is none yet."""
        return min((n for n in self.checkpoints if n > step), default=None)


def find_runs(path: str | Path) -> list[Path]:
    """Return the run directories at a path: itself, or the runs of a suite in name order.

    Raises:
        DatasetError: Neither.
    """
    path = Path(path)
    if (path / "config.json").exists():
        return [path]
    found = sorted(p.parent for p in path.glob("*/config.json"))
    if not found:
        raise DatasetError(f"{path}: expected a run or a suite directory, found no config.json")
    return found


def _checkpoints(path: Path) -> dict[int, str]:
    ledger = path / "manifest.jsonl"
    found: dict[int, str] = {}
    for number, line in enumerate(ledger.read_bytes().splitlines() if ledger.exists() else []):
        try:
            record = json.loads(line)
            step, chain = record["step"], record["order"]["chain"]
            if type(step) is not int or type(chain) is not str:
                raise TypeError(f"step {step!r} and chain {chain!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{ledger}, line {number + 1}: expected a record with step and order.chain, found "
                f"{error!r}; restore the ledger from a copy"
            ) from error
        found[step] = chain
    return found
