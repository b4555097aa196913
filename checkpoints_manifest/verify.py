"""`tripod verify checkpoints`: recompute what a run's ledger states, without torch or trainer.

Levels, each with everything before it:

- `metadata`: the ledger (schema, canonical form, chain, changes of numerics stated); every file
  there with its size; each checkpoint's own manifest.json; the newest record's digests of
  configuration and numerics;
- `bytes`: sha256 of every file;
- `tensors`: roots of weights and moments;
- `chain`: token order against config.json and order.log, tokens, the metrics log up to each step.
  Everything that can be checked without computing a step again;
- `replay`: computes steps again, which needs the trainer: not available here.

A checkpoint on disk that the ledger does not name is a finding: a ledger cut short still chains.
Where a run was pulled, `pulled.json` says which steps, and which of them with their state; the
others are counted, not missed.
Not checked: `environment`, which describes the machine of that moment.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Record
from checkpoints_manifest.numerics_breaks import (
    change_findings,
    describe_change,
    stated_changes,
)
from checkpoints_manifest.store import (
    FILE_LEVELS,
    checkpoint_dir,
    steps_on_disk,
    verify_files,
)
from checkpoints_manifest.writing import MANIFEST, ledger_of
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.digests import chain_next, chain_start

LEVELS = (*FILE_LEVELS, "chain", "replay")
PULLED = "pulled.json"
_LEAF = 32


@dataclass(frozen=True)
class Report:
    """How many checkpoints were looked at, and what was found wrong, first divergence first.

    `notes` say what was not there to be checked, and which changes of numerics were accepted.
    """

    checkpoints: int
    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()


def verify_checkpoints(run_dir: Path, level: str = "chain", jobs: int | None = None) -> Report:
    """Verifies every checkpoint of a run; damage is a finding, never an exception.

    Args:
        run_dir: the run directory.
        level: one of `LEVELS` but `replay`.
        jobs: checkpoints read at once, in threads (default: one per core); changes no finding.

    Raises:
        ValueError: another level.
    """
    check_level(level)
    try:
        records = ledger_of(run_dir).records()
    except CheckpointError as error:
        return Report(0, (str(error),))
    if not records:
        return Report(
            0, (f"{run_dir / 'manifest.jsonl'} holds no checkpoint; train the run first",)
        )
    try:
        pulled = read_pulled(run_dir / PULLED)
    except CheckpointError as error:
        return Report(0, (str(error),))
    here = [r for r in records if pulled is None or r["step"] in pulled.steps]
    findings: list[str] = []
    depth = level if level in FILE_LEVELS else FILE_LEVELS[-1]
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        for found in pool.map(partial(_check_one, run_dir, depth, pulled), here):
            findings += found
    findings += _check_unlisted(run_dir, records)
    if level == "chain":
        findings += _check_order(run_dir, records)
        findings += _check_metrics(run_dir, records)
    findings += change_findings(records)
    findings += _check_side_files(run_dir, records)
    notes = (
        *_not_here(pulled, len(records) - len(here)),
        *(f"accepted break: {describe_change(change)}" for change in stated_changes(records)),
    )
    return Report(len(here), tuple(findings), notes)


@dataclass(frozen=True)
class PulledSteps:
    """What `pulled.json` says is there."""

    steps: frozenset[int]
    with_state: frozenset[int]


def read_pulled(path: Path) -> PulledSteps | None:
    """Steps of a pulled run; None for a run that was not pulled.

    Raises:
        CheckpointError: not of pulled-v1.
    """
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_bytes())
        steps, with_state = facts["steps"], facts["steps_with_state"]
        if facts["schema"] != "pulled-v1" or {type(s) for s in (*steps, *with_state)} - {int}:
            raise ValueError("other fields")
        return PulledSteps(frozenset(steps), frozenset(with_state))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not of pulled-v1; pull again ({error!r})") from error


def _not_here(pulled: PulledSteps | None, missing: int) -> tuple[str, ...]:
    if pulled is None:
        return ()
    bare = len(pulled.steps - pulled.with_state)
    counts = ((missing, "steps of the ledger"), (bare, "pulled steps' optimizer state"))
    return tuple(f"not pulled: {count} {what}" for count, what in counts if count)


def check_level(level: str) -> None:
    """Refuses a level that cannot be checked from the files alone.

    Raises:
        ValueError: unknown, or `replay`.
    """
    if level == "replay":
        raise ValueError(
            "level replay computes steps again, which needs the trainer; verifying the files ends "
            "at level chain"
        )
    if level not in LEVELS:
        raise ValueError(f"expected a level of {', '.join(LEVELS)}; found {level!r}")


def _check_one(run_dir: Path, level: str, pulled: PulledSteps | None, record: Record) -> list[str]:
    directory = checkpoint_dir(run_dir, record["step"])
    try:
        verify_files(directory, record, level, not pulled or record["step"] in pulled.with_state)
    except CheckpointError as error:
        return [str(error)]
    path = directory / MANIFEST
    if not path.is_file() or path.read_bytes() != canonical_json(record):
        return [f"step{record['step']}: {path} is not the ledger's record of this step"]
    return []


def _check_unlisted(run_dir: Path, records: list[Record]) -> list[str]:
    unlisted = steps_on_disk(run_dir) - {record["step"] for record in records}
    return [
        f"step{step}: {checkpoint_dir(run_dir, step)} is not in the ledger; resume the run, which "
        "verifies and enters it, or restore the ledger from a copy"
        for step in sorted(unlisted)
    ]


def _check_order(run_dir: Path, records: list[Record]) -> list[str]:
    config, log = run_dir / "config.json", run_dir / "order.log"
    return order_findings(
        config.read_bytes() if config.exists() else None,
        log.read_bytes() if log.exists() else b"",
        records,
        str(config),
    )


def order_findings(
    config: bytes | None, log: bytes, records: list[Record], where: str
) -> list[str]:
    """Whether the leaves of a token order chain to what records state; the first divergence.

    Args:
        config: of the run; None: there is none.
        log: `order.log`, 32 bytes a step.
        records: the ledger.
        where: place of the configuration, for messages.
    """
    try:
        if config is None:
            raise ValueError("no such file")
        data = json.loads(config)["data"]
        names = ("index_digest", "seq_len", "batch_size", "order", "seed", "overlay")
        chain = chain_start(*(data[name] for name in names))
        batch_tokens = data["seq_len"] * data["batch_size"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{where} does not name the token order: {error!r}"]
    done = 0
    for record in records:
        step = record["step"]
        if len(log) < step * _LEAF:
            return [
                f"step{step}: order.log holds {len(log) // _LEAF} steps; expected at least {step}"
            ]
        for index in range(done, step):
            chain = chain_next(chain, log[index * _LEAF : (index + 1) * _LEAF])
        done = step
        wanted = {
            "order chain": (record["order"]["chain"], chain.hex()),
            "order name": (record["order"]["name"], data["order"]),
            "index digest": (record["order"]["index_digest"], data["index_digest"]),
            "tokens": (record["tokens"], step * batch_tokens),
        }
        for name, (stated, found) in wanted.items():
            if stated != found:
                return [
                    f"step{step}: the record carries {name} {stated}; config.json and order.log "
                    f"give {found}"
                ]
    return []


def _check_metrics(run_dir: Path, records: list[Record]) -> list[str]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    digest, done = hashlib.sha256(), 0
    for record in records:
        step = record["step"]
        digest.update(b"".join(lines[done:step]))
        done = step
        if len(lines) < step or digest.hexdigest() != record["metrics"]:
            return [
                f"step{step}: expected the first {step} lines of metrics.jsonl to have sha256 "
                f"{record['metrics']}, "
                f"found {digest.hexdigest()}"
            ]
    return []


def _check_side_files(run_dir: Path, records: list[Record]) -> list[str]:
    findings = []
    for key in ("config", "numerics"):
        path = run_dir / f"{key}.json"
        found = sha256_hex(path.read_bytes()) if path.exists() else "no file"
        if found != records[-1][key]:
            findings.append(
                f"step{records[-1]['step']}: expected {path.name} with sha256 {records[-1][key]}, "
                f"found {found}"
            )
    return findings
