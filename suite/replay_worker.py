"""One rank of a replay: `python -m suite.replay_worker RUN_DIR FIRST LAST [SAVE_TO]`.

Prints one JSON line, `{"failures": [...]}`, from rank 0. Writes nothing into the run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from checkpoints_manifest.manifest import Record
from checkpoints_manifest.numerics_breaks import numerics_of
from checkpoints_manifest.store import checkpoint_dir, ledger_of, load_checkpoint, save_checkpoint
from checkpoints_manifest.tensor_digest import tensor_leaf, tensors_root
from data_pipeline.canonical import sha256_hex
from data_pipeline.digests import chain_next, leaf
from data_pipeline.reading import Reading
from suite.comm import Group, join_group, leave_group
from suite.config import RunConfig
from suite.engine import StepResult
from suite.engine_record import check_same_engine, computed_by, engine_of
from suite.engines import make_engine
from suite.guard import recorded_numerics
from suite.launch import die_with_parent
from suite.numerics import apply_determinism, check_environment, check_same, numerics_record
from suite.recorder import METRICS, ORDER, metrics_line
from suite.schedule import learning_rate
from suite.verify_order import load_config

State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Replay:
    """Recomputes one segment and compares it; every rank runs one, rank 0 has the verdict."""

    def __init__(self, run_dir: Path, group: Group, first: int, last: int) -> None:
        """Open the run's configuration, data and logs.

        Args:
            run_dir: the run.
            group: the ranks that recompute.
            first: the checkpoint to start from.
            last: the last step to recompute; the engine is the one that computed these steps.

        Raises:
            NumericsError: this process cannot keep the profile of the run.
            EngineError: it has another engine, version or layout than computed these steps.
        """
        self.run_dir, self.group, self.first, self.last = run_dir, group, first, last
        stored = load_config(run_dir)
        engine = engine_of(run_dir, stored, last)
        self.config: RunConfig = dataclasses.replace(stored, engine=engine)
        numerics = self.config.numerics
        self.engine = make_engine(self.config, group)
        check_same_engine(computed_by(run_dir, first, last), self.engine.description, run_dir)
        self._numerics = numerics_record(
            numerics.profile, numerics.precision, self.engine.quantiser_name
        )
        check_environment(self._numerics)
        self.reader = Reading.of_run(run_dir).reader()
        self.records: dict[int, Record] = {
            record["step"]: record for record in ledger_of(run_dir).records()
        }
        self._lines = (run_dir / METRICS).read_bytes().splitlines(keepends=True)
        self._leaves = (run_dir / ORDER).read_bytes()

    def run(self) -> list[str]:
        """Recomputes updates first+1 .. last; returns what differed first, or nothing.

        Raises:
            NumericsError: they were computed under another numerics record than this process has.
            CheckpointError: they cross an accepted change of numerics.
        """
        first, last = self.first, self.last
        self._computed_under = numerics_of(list(self.records.values()), first, last)
        recorded = recorded_numerics(self.run_dir, self._computed_under, self._numerics)
        check_same(recorded, self._numerics)
        weights, moments, _ = load_checkpoint(self.run_dir, first)
        self.engine.load_state(weights, moments)
        self.chain = bytes.fromhex(self.records[first]["order"]["chain"])
        for update in range(first + 1, last + 1):
            lr = learning_rate(update, self.config.rung.lr, self.config.train)
            result = self.engine.step(
                update,
                lr,
                lambda a, b, t=update - 1: self.reader.ids(t, slice(a, b)),  # type: ignore[misc]
            )
            difference = self._compare_step(update, lr, result)
            if difference is None and update in self.records:
                difference = self._compare_state(update)
            if difference:
                return [f"{self.run_dir.name}: first difference at step {update}: {difference}"]
        return []

    def _compare_step(self, update: int, lr: float, result: StepResult) -> str | None:
        fed = leaf(update - 1, result.sequence_digests)
        self.chain = chain_next(self.chain, fed)
        promised = self._leaves[32 * (update - 1) : 32 * update]
        if fed != promised:
            return f"the run read leaf {promised.hex()}, the replay {fed.hex()}"
        line = metrics_line(update, update * self.config.batch_tokens, lr, result)
        logged = self._lines[update - 1] if update <= len(self._lines) else b"{}"
        if line == logged:
            return None
        return _first_field(json.loads(logged), json.loads(line))

    def _compare_state(self, update: int) -> str | None:
        weights, moments = self.engine.state()
        record = self.records[update]
        expected = {"weights_root": record["weights_root"], **record["state_roots"]}
        found = roots(weights, moments)
        for key, value in found.items():
            if value != expected[key]:
                return (
                    f"{key} is {expected[key]} in the ledger, {value} in the replay"
                    + self._first_tensor(update, (weights, moments))
                )
        return None

    def _first_tensor(self, update: int, state: State) -> str:
        """Where the checkpoint on disk differs from the replay, if it is there."""
        from safetensors.torch import load_file

        directory = checkpoint_dir(self.run_dir, update)
        for name, tensors in zip(("model", "optimizer"), state, strict=True):
            path = directory / f"{name}.safetensors"
            saved = load_file(path) if path.exists() else {}
            for tensor in sorted(set(saved) & set(tensors)):
                same = torch.equal(
                    saved[tensor].view(torch.int32), tensors[tensor].view(torch.int32)
                )
                if not same:
                    largest = (saved[tensor] - tensors[tensor]).abs().max().item()
                    return f"; first in tensor {tensor}, by at most {largest:.3g}"
        return ""

    def save(self, step: int, target: Path) -> None:
        """Writes the present state as checkpoint `step` of the directory `target`, from rank 0."""
        weights, moments = self.engine.state()
        if self.group.rank:
            return
        record = self.records[max(saved for saved in self.records if saved <= step)]
        kept = ("suite", "rung", "config", "environment", "engine")
        fields = {key: record[key] for key in kept if key in record}
        fields["numerics"] = self._computed_under
        fields["tokens"] = step * self.config.batch_tokens
        fields["order"] = {**record["order"], "chain": self.chain.hex()}
        fields["metrics"] = sha256_hex(b"".join(self._lines[:step]))
        state = {"schema": "trainer-state-v1", "step": step, "chain": self.chain.hex()}
        target.mkdir(parents=True, exist_ok=True)
        save_checkpoint(target, step, weights, moments, state, fields)


def roots(weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]) -> dict[str, str]:
    """`weights_root` and the two roots of the moments, from tensors in memory."""

    def root(tensors: dict[str, torch.Tensor]) -> str:
        return tensors_root(
            {
                name: tensor_leaf(name, "F32", list(t.shape), t.contiguous().numpy().tobytes())
                for name, t in tensors.items()
            }
        )

    kinds = ("exp_avg", "exp_avg_sq")
    by_kind = {
        kind: {name: t for name, t in moments.items() if name.startswith(f"{kind}.")}
        for kind in kinds
    }
    return {"weights_root": root(weights), **{kind: root(by_kind[kind]) for kind in kinds}}


def _first_field(logged: dict[str, Any], found: dict[str, Any]) -> str:
    for key, value in found.items():
        if logged.get(key) != value:
            return f"{key} is {logged.get(key)!r} in the log, {value!r} in the replay"
    return "the line of the metrics log has other bytes"


def main() -> int:
    """Entry point of one rank."""
    die_with_parent()
    run_dir, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    apply_determinism()
    group = join_group()
    replay = Replay(run_dir, group, first, last)
    failures = replay.run()
    if not failures and len(sys.argv) > 4:
        replay.save(last, Path(sys.argv[4]))
    if group.rank == 0:
        print(json.dumps({"failures": failures}), flush=True)
    group.barrier()
    leave_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
