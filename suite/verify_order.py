"""`tripod verify order`: all runs read the same tokens at every step, those the index promises.

Needs the runs' `order.log` files and ledgers; the promise is recomputed from the shards. O(steps)
to compare.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from checkpoints_manifest.manifest import Ledger
from data_pipeline.digests import chain_next
from data_pipeline.index import verify_dataset
from data_pipeline.leaves import expected_leaves
from data_pipeline.reading import Reading
from suite.config import RunConfig, dataset_dir
from suite.resume import start_chain

LEAF_BYTES = 32


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


def read_leaves(run_dir: Path) -> list[bytes]:
    """The leaves of a run's `order.log`, one per step."""
    data = (run_dir / "order.log").read_bytes()
    whole = len(data) - len(data) % LEAF_BYTES
    return [data[i : i + LEAF_BYTES] for i in range(0, whole, LEAF_BYTES)]


def verify_order(run_dirs: list[Path]) -> Verdict:
    """Checks every run's leaves and chains against the index, and the runs against each other."""
    failures: list[str] = []
    steps, heads, orders = 0, set(), set()
    for run_dir in run_dirs:
        config, leaves = load_config(run_dir), read_leaves(run_dir)
        orders.add(start_chain(config).hex())
        failures += _against_index(run_dir, config, leaves)
        chains = [start_chain(config)]
        for item in leaves:
            chains.append(chain_next(chains[-1], item))
        failures += _against_ledger(run_dir, chains)
        steps += len(leaves)
        heads.add((len(leaves), chains[-1].hex()))
    if len(orders) > 1:
        failures.append(f"the runs do not share one order: {len(orders)} different chain starts")
    failures += _against_each_other(run_dirs)
    detail = f"{len(run_dirs)} runs, {steps} steps recomputed from the shards"
    if len(heads) == 1:
        detail += f", one chain {next(iter(heads))[1]}"
    return Verdict("order", tuple(failures), detail)


def _against_index(run_dir: Path, config: RunConfig, leaves: list[bytes]) -> list[str]:
    verify_dataset(dataset_dir(config, run_dir), config.data.index_digest)
    reader = Reading.of_run(run_dir).reader()
    promised = expected_leaves(reader, len(leaves), cache=False)
    for step, found in enumerate(leaves):
        expected = promised[LEAF_BYTES * step : LEAF_BYTES * (step + 1)]
        if found != expected:
            first = reader.describe(step)[0]
            return [
                f"{run_dir.name}: first divergence from the index at step {step}: expected leaf "
                f"{expected.hex()}, found "
                f"{found.hex()}; the index promises row 0 = sequence {first['sequence']} of "
                f"{first['documents'][0]['name']}"
            ]
    return []


def _against_ledger(run_dir: Path, chains: list[bytes]) -> list[str]:
    for record in Ledger(run_dir / "manifest.jsonl").records():
        step, found = record["step"], record["order"]["chain"]
        if step >= len(chains):
            return [
                f"{run_dir.name}: checkpoint step{step} exists, but order.log holds "
                f"{len(chains) - 1} steps"
            ]
        if found != chains[step].hex():
            return [
                f"{run_dir.name}: checkpoint step{step} carries chain {found}, but order.log "
                f"gives {chains[step].hex()}"
            ]
    return []


def _against_each_other(run_dirs: list[Path]) -> list[str]:
    first, *others = [(run_dir.name, read_leaves(run_dir)) for run_dir in run_dirs]
    for name, leaves in others:
        for step, (a, b) in enumerate(zip(first[1], leaves, strict=False)):
            if a != b:
                return [f"{first[0]} and {name} read different tokens first at step {step}"]
    return []
