"""Which engine computed which steps: what the manifest says, and when a run may go on.

A run's `config.json` names the engine it was started with. A run that goes on with another engine,
or, where the bits depend on the layout, on another number of ranks, computes other bits from there
on: that is refused unless it is accepted by name, and then `engine.json` beside the configuration
and the `engine` field of every later record say so. No torch and no DeepSpeed is imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.recovery import recovery_dir
from checkpoints_manifest.store import checkpoint_dir, own_manifest, steps_on_disk
from checkpoints_manifest.writing import MANIFEST, RECOVERY, ledger_of
from data_pipeline.durable import write_bytes
from suite.config import ConfigError, EngineConfig, RunConfig

ELASTIC, FIXED_LAYOUT = "elastic", "fixed-layout"
ACCEPT_ENGINE = "engine"
_FILE = "engine.json"

Description = dict[str, Any]


class EngineError(RuntimeError):
    """The engine cannot do what is asked of it: names what was expected, found, and a remedy."""


def promise_of(engine: EngineConfig) -> str:
    """`elastic`: one digest on any number of ranks. `fixed-layout`: order, rerun and resume only.

    DeepSpeed keeps the first promise where a rank holds its whole gradient until the end of the
    step, so that it can be reduced as integers: ZeRO-0 and ZeRO-1, without offload or tensor
    parallelism.
    """
    whole = engine.zero_stage <= 1 and engine.tensor_parallel == 1 and not engine.offload_optimizer
    return ELASTIC if engine.name == "reference" or whole else FIXED_LAYOUT


def describe(engine: EngineConfig, ranks: int) -> Description:
    """The manifest's `engine` field, without `since`.

    Ranks are part of it where the bits depend on them.
    """
    promise = promise_of(engine)
    if engine.name == "reference":
        return {"name": engine.name, "promise": promise}
    try:
        installed = version("deepspeed")
    except PackageNotFoundError:
        installed = "none"
    return {
        "name": engine.name,
        "promise": promise,
        "version": installed,
        "zero_stage": engine.zero_stage,
        "offload_optimizer": engine.offload_optimizer,
        "tensor_parallel": engine.tensor_parallel,
        "options": {key: str(value) for key, value in engine.options.items()},
        **({"ranks": ranks} if promise == FIXED_LAYOUT else {}),
    }


def present_engine(config: RunConfig, run_dir: Path) -> EngineConfig:
    """The engine that a run continues with: the newest accepted change, or its configuration's."""
    changes = _changes(run_dir)
    return EngineConfig(**changes[-1]["engine"]) if changes else config.engine


def with_present_engine(config: RunConfig, run_dir: Path) -> RunConfig:
    """The configuration of a run with the engine that it continues with."""
    return dataclasses.replace(config, engine=present_engine(config, run_dir))


def engine_of(run_dir: Path, config: RunConfig, step: int) -> EngineConfig:
    """The engine that computed `step`, as a configuration.

    Args:
        run_dir: the run.
        config: its stored configuration.
        step: an update that was computed.
    """
    changes = [change for change in _changes(run_dir) if change["since"] < step]
    return EngineConfig(**changes[-1]["engine"]) if changes else config.engine


def computed_by(run_dir: Path, first: int, last: int) -> Description:
    """The description of the engine that computed updates first+1 .. last.

    Raises:
        EngineError: two engines or layouts did; says where to split.
    """
    records = ledger_of(run_dir).records()
    index = next((i for i, r in enumerate(records) if r["step"] >= last), len(records) - 1)
    record, changes = records[index], _changes(run_dir)
    engine, since = description_of(record), int(record.get("engine", {}).get("since", 0))
    changed = bool(changes) and changes[-1]["since"] == record["step"] < last
    if changed and changes[-1]["description"] != engine:
        # Changed after the newest checkpoint, which cannot say so.
        engine, since = dict(changes[-1]["description"]), int(record["step"])
    if since > first:
        raise EngineError(
            f"the engine of {run_dir.name} changed at step {since}, inside {first}..{last}; replay "
            f"{first}..{since} and {since}..{last} one after the other"
        )
    return engine


def last_description(run_dir: Path) -> tuple[int, Description]:
    """The newest saved step and which engine computed it; step 0 and {} where there is none.

    Checkpoints that a killed process did not enter into the ledger count, and recovery checkpoints;
    whether their files are sound is checked where they are loaded.
    """
    records = ledger_of(run_dir).records()[-1:]
    last = int(records[0]["step"]) if records else -1
    for path in sorted(_unlisted(run_dir, last), key=lambda path: int(path.name[len("step") :])):
        with contextlib.suppress(CheckpointError):  # the start itself says what is wrong with it
            records = [own_manifest(path / MANIFEST)]
    return (int(records[0]["step"]), description_of(records[0])) if records else (0, {})


def _unlisted(run_dir: Path, last: int) -> list[Path]:
    science = [checkpoint_dir(run_dir, step) for step in steps_on_disk(run_dir) if step > last]
    recovery = [
        recovery_dir(run_dir, step) for step in steps_on_disk(run_dir, RECOVERY) if step > last
    ]
    return science + recovery


def description_of(record: Mapping[str, Any]) -> Description:
    """The engine of a record; one without the field is the reference engine's."""
    engine = dict(record.get("engine", {"name": "reference", "promise": ELASTIC}))
    engine.pop("since", None)
    return engine


def settle_engine(
    config: RunConfig, run_dir: Path, ranks: int | None, accept: tuple[str, ...] = ()
) -> None:
    """Before a start: checks that the run may go on with this engine and layout.

    Args:
        config: as the command composed it.
        run_dir: the run directory, its `config.json` written.
        ranks: ranks that will compute; None where they are started elsewhere: each of them checks
            again (`check_continues`).
        accept: changes that the user accepts by name; "engine" is the one that matters here.

    Raises:
        ConfigError: another engine, version or layout than before, and it is not accepted.
    """
    stored = RunConfig.from_mapping(json.loads((run_dir / "config.json").read_text()))
    step, last = last_description(run_dir)
    ranks = ranks or int(last.get("ranks", 1))
    wanted = describe(config.engine, ranks)
    before = last or describe(present_engine(stored, run_dir), ranks)
    if wanted == before and config.engine == present_engine(stored, run_dir):
        return
    if _accepted(run_dir, step, wanted):
        return
    changes = [change for change in _changes(run_dir) if change["since"] < step]
    if wanted != last:
        if ACCEPT_ENGINE not in accept:
            raise ConfigError(_refusal(run_dir, before, wanted))
        engine = dataclasses.asdict(config.engine)
        changes.append({"since": step, "engine": engine, "description": wanted})
    # Else back to what the newest checkpoint names: changes that computed nothing are dropped.
    text = json.dumps(changes, sort_keys=True, indent=1)
    write_bytes(run_dir / _FILE, text.encode() + b"\n")


def check_continues(
    run_dir: Path, description: Description, record: Mapping[str, Any] | None
) -> dict[str, Description]:
    """In a rank, before it computes: the same check, against the state it continues from.

    Args:
        run_dir: the run.
        description: of the engine that will compute.
        record: of the checkpoint that it continues from; None at the start of a run.

    Returns:
        What every record from here on says: the `engine` field, whose `since` is the step after
        which this engine computed. Empty as long as a run has only had the reference engine.

    Raises:
        EngineError: naming each differing field.
    """
    step = 0 if record is None else int(record["step"])
    before = description if record is None else description_of(record)
    if before != description and not _accepted(run_dir, step, description):
        raise EngineError(_refusal(run_dir, before, description))
    changes = _changes(run_dir)
    if description["name"] == "reference" and not changes:
        return {}
    since = min(int(changes[-1]["since"]), step) if changes else 0
    return {"engine": {**description, "since": since}}


def check_same_engine(expected: Description, found: Description, run_dir: Path) -> None:
    """Refuses to recompute steps with another engine, version or layout than computed them.

    Raises:
        EngineError: naming each differing field.
    """
    if expected != found:
        raise EngineError(_refusal(run_dir, expected, found))


def _accepted(run_dir: Path, step: int, description: Description) -> bool:
    """Whether the newest accepted change, made at or after `step`, is to this engine."""
    changes = _changes(run_dir)
    newest = changes[-1] if changes else None
    return newest is not None and newest["since"] >= step and newest["description"] == description


def _changes(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / _FILE
    return list(json.loads(path.read_text())) if path.exists() else []


def _refusal(run_dir: Path, before: Description, wanted: Description) -> str:
    lines = [
        f"{key}: expected {before.get(key)!r}, found {wanted.get(key)!r}"
        for key in sorted({*before, *wanted})
        if before.get(key) != wanted.get(key)
    ]
    return (
        f"{run_dir} was computed by another engine or layout, and going on could change its "
        "bits:\n  "
        + "\n  ".join(lines)
        + "\nuse the recorded one, or train on with --accept-engine-change: "
        "every checkpoint from then on names the change"
    )
