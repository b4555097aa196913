"""What a suite directory holds, as the analysis sees it: rungs, checkpoints, their weights.

Reads ``config.json`` and ``manifest.jsonl`` of every run, and the local Hub. Writes nothing.
Checkpoint "step n" is the state after n updates: it has consumed the batches of steps 0..n-1.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from checkpoints_manifest.manifest import Ledger
from checkpoints_manifest.names import VOCABULARY
from checkpoints_manifest.tensor_digest import file_leaves, tensors_root
from data_pipeline.index import ShardIndex
from data_pipeline.order import NAME as ORDER_V1
from data_pipeline.order import OrderV1


class AnalysisError(ValueError):
    """The suite directory is not what the analysis needs: expected, found, remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint of one rung.

    Attributes:
        weights: ``model.safetensors`` inside the Hub's snapshot.
        commit: the Hub commit (40 hex) that the revision ``step{step}`` names.
        weights_root: tensor-digest-v1 root that the ledger states.
    """

    rung: str
    step: int
    tokens: int
    weights_root: str
    commit: str
    weights: Path


@dataclass(frozen=True, eq=False)
class Rung:
    """One model of the ladder with one set of seeds."""

    name: str
    directory: Path
    hub: Path
    config: Mapping[str, Any]

    @property
    def repo_id(self) -> str:
        """Name of the model on the local Hub, ``<org>/<rung>``."""
        return f"{self.config['suite']['hub_org']}/{self.name}"

    @property
    def init_seed(self) -> int:
        """Seed of the initial weights."""
        return int(self.config["rung"]["seeds"]["init"])

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The ledger's records, oldest first."""
        return list(Ledger(self.directory / "manifest.jsonl").records())

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint of the ledger, by step, with its weights on the Hub.

        Raises:
            AnalysisError: a checkpoint of the ledger is not on the Hub.
        """
        return [self._checkpoint(record) for record in self.records]

    def _checkpoint(self, record: Mapping[str, Any]) -> Checkpoint:
        revision = f"step{record['step']}"
        found = try_to_load_from_cache(
            self.repo_id, "model.safetensors", cache_dir=self.hub, revision=revision
        )
        if not isinstance(found, str):
            raise AnalysisError(
                f"expected {self.repo_id} at revision {revision} in {self.hub}, found nothing; "
                "publish the run first (`make sweep` does)"
            )
        path = Path(found)
        return Checkpoint(
            rung=self.name,
            step=int(record["step"]),
            tokens=int(record["tokens"]),
            weights_root=str(record["weights_root"]),
            commit=path.parent.name,
            weights=path,
        )

    @cached_property
    def parameters(self) -> tuple[int, int]:
        """Number of parameters: (all, without the input and output embeddings)."""
        total = embedding = 0
        with safe_open(self.checkpoints[-1].weights, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                size = math.prod(file.get_slice(name).get_shape())
                total += size
                embedding += size * (name in VOCABULARY)
        return total, total - embedding


@dataclass(frozen=True)
class SuiteDir:
    """A suite directory with its rungs, smallest model first."""

    path: Path
    rungs: tuple[Rung, ...]

    @classmethod
    def load(cls, path: Path) -> "SuiteDir":
        """Read a suite directory.

        Raises:
            AnalysisError: no runs, no checkpoints, or runs that do not share this dataset and one
                order.
        """
        path = path.resolve()
        configs = sorted(path.glob("*/config.json"))
        if not configs:
            raise AnalysisError(
                f"expected runs (<rung>/config.json) in {path}, found none; run `make sweep` first"
            )
        rungs = [
            Rung(file.parent.name, file.parent, path / "hub", json.loads(file.read_bytes()))
            for file in configs
        ]
        _require_one_order(rungs)
        empty = [rung.name for rung in rungs if not rung.records]
        if empty:
            raise AnalysisError(
                f"expected checkpoints in every ledger, found none in {empty}; "
                "finish or remove these runs"
            )
        suite = cls(path, tuple(rungs))
        found = ShardIndex.load(suite.dataset).digest
        if found != suite.data["index_digest"]:
            raise AnalysisError(
                f"expected index digest {suite.data['index_digest']}, found {found} in "
                f"{suite.dataset}; the runs were trained on another dataset"
            )
        rungs.sort(key=lambda rung: (rung.parameters[0], rung.init_seed, rung.name))
        return cls(path, tuple(rungs))

    @property
    def name(self) -> str:
        """The suite's name."""
        return str(self.rungs[0].config["suite"]["name"])

    @property
    def data(self) -> Mapping[str, Any]:
        """The data section of the configuration, shared by all rungs."""
        section: Mapping[str, Any] = self.rungs[0].config["data"]
        return section

    @property
    def dataset(self) -> Path:
        """The dataset directory."""
        return (self.path / str(self.data["dir"])).resolve()

    @property
    def tables(self) -> Path:
        """Where the tables are written."""
        return self.path / "analysis"

    @property
    def last_step(self) -> int:
        """The largest number of updates of any rung's checkpoints."""
        return max(int(rung.records[-1]["step"]) for rung in self.rungs)

    def order(self, num_sequences: int) -> OrderV1:
        """The token order that all rungs share.

        Raises:
            AnalysisError: an order this analysis does not know.
        """
        if self.data["order"] != ORDER_V1:
            raise AnalysisError(f"expected order {ORDER_V1!r}, found {self.data['order']!r}")
        mixture = ShardIndex.load(self.dataset).data["mixture"]
        if self.data["overlay"] is not None or mixture is not None:
            raise AnalysisError(
                f"expected a run without overlay and mixture, found overlay {self.data['overlay']} "
                f"and mixture {mixture}: the probes of this analysis would name other sequences "
                "than were read; train and verify such a suite, and search it with `tripod seen`"
            )
        return OrderV1(num_sequences, self.data["index_digest"], int(self.data["seed"]))


def verified_root(checkpoint: Checkpoint) -> str:
    """Recompute the tensor root of the weights on the Hub.

    Raises:
        AnalysisError: the weights are not those that the ledger names for this step.
    """
    found = tensors_root(file_leaves(checkpoint.weights))
    if found != checkpoint.weights_root:
        raise AnalysisError(
            f"{checkpoint.rung} step{checkpoint.step}: expected weights root "
            f"{checkpoint.weights_root}, found {found} in {checkpoint.weights}; "
            "run `tripod verify checkpoints` and publish the run again"
        )
    return found


def _require_one_order(rungs: list[Rung]) -> None:
    keys = ("dir", "index_digest", "order", "seed", "seq_len", "batch_size", "overlay")
    first = {key: rungs[0].config["data"][key] for key in keys}
    for rung in rungs[1:]:
        other = {key: rung.config["data"][key] for key in keys}
        if other != first:
            raise AnalysisError(
                f"expected all rungs to share one data section, found {rungs[0].name}: {first} "
                f"and {rung.name}: {other}; analyse them as two suites"
            )
