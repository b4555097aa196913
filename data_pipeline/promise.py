"""The order of a run, published before it is trained.

A promise is a directory of two files: ``order.log``, the leaf of every step, and ``order.json``,
which names the reading, the number of steps and the chain over the leaves (its form is in
``docs/spec/order-proof.md``). Anybody can compare a run with it in O(steps), without data; whoever
has the dataset can recompute it. The SHA-256 of ``order.json`` commits to everything, so it is
enough to publish that.

Does not hide: who has the dataset can test a guess about an overlay against its leaves. Publish the
promise of a canary study after the study, its plan digest before.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.compare import Pair, compare_logs
from data_pipeline.digests import DIGEST_BYTES, chain_over, split_leaves
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.prove import parse_order, start_of

SCHEMA = "order-promise-v1"
_KEYS = ("schema", "order", "steps", "start", "chain", "log_sha256")


@dataclass(frozen=True)
class Promise:
    """A published order: what C_{-1} names, and the leaves (``leaves.expected_leaves``)."""

    order: dict[str, Any]
    log: bytes

    @property
    def steps(self) -> int:
        """Steps promised."""
        return len(self.log) // DIGEST_BYTES

    def chain_at(self, checkpoint: int) -> bytes:
        """Return the chain that checkpoint n must carry: C_{n-1}.

        Raises:
            DatasetError: The promise ends before.
        """
        if not 0 <= checkpoint <= self.steps:
            raise DatasetError(
                f"expected a checkpoint in [0, {self.steps}], where the promise ends, found "
                f"{checkpoint}"
            )
        return chain_over(start_of(self.order), split_leaves(self.log[: checkpoint * DIGEST_BYTES]))

    @property
    def record(self) -> dict[str, Any]:
        """Content of ``order.json``."""
        start = start_of(self.order)
        return {
            "schema": SCHEMA,
            "order": self.order,
            "steps": self.steps,
            "start": start.hex(),
            "chain": chain_over(start, split_leaves(self.log)).hex(),
            "log_sha256": sha256_hex(self.log),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of ``order.json``, which commits to every leaf."""
        return sha256_hex(canonical_json(self.record))


def save_promise(promise: Promise, out: str | Path) -> Path:
    """Write both files into a directory that is made for it, and return the directory.

    Raises:
        DatasetError: Another promise is there.
    """
    out = Path(out)
    data = canonical_json(promise.record)
    path = out / "order.json"
    if path.exists() and path.read_bytes() != data:
        raise DatasetError(
            f"{path}: expected no promise, found another one; a published order is never changed: "
            "choose another directory"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "order.log", promise.log)
    write_bytes(path, data)
    return out


def load_promise(directory: str | Path) -> Promise:
    """Read a promise and check that its parts agree.

    Raises:
        DatasetError: A file is missing, or the log, the order and the chain do not fit together.
    """
    path = Path(directory) / "order.json"
    try:
        raw = path.read_bytes()
        log = path.with_name("order.log").read_bytes()
        record = json.loads(raw)
        canonical = canonical_json(record)
    except FileNotFoundError as error:
        raise DatasetError(f"{error.filename}: expected a published order, found no file") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path}: expected canonical JSON, found {error}") from None
    found = sorted(record) if isinstance(record, dict) else type(record).__name__
    if found != sorted(_KEYS) or record["schema"] != SCHEMA or canonical != raw:
        raise DatasetError(
            f"{path}: expected canonical JSON of schema {SCHEMA} with the keys {sorted(_KEYS)}, "
            f"found {str(found)[:200]}"
        )
    if sha256_hex(log) != record["log_sha256"] or len(log) % DIGEST_BYTES:
        raise DatasetError(
            f"{path.with_name('order.log')}: expected sha256 {record['log_sha256']}, found "
            f"{sha256_hex(log)}; download it again"
        )
    promise = Promise(parse_order(record["order"]), log)
    for key, expected in promise.record.items():
        if record[key] != expected:
            raise DatasetError(f"{path}: {key}: expected {expected}, found {record[key]}")
    return promise


def check_against_promise(promise: Promise, order: dict[str, Any], log: bytes) -> list[str]:
    """Compare a run with a promise, without data.

    Args:
        promise: What was published.
        order: What the run's C_{-1} names.
        log: The run's ``order.log``; it may be shorter than the promise.

    Returns:
        What differs, in words; nothing when the run kept the promise so far.

    Raises:
        DatasetError: A log that is not a whole number of leaves.
    """
    pair: Pair = compare_logs({"promise": promise.log, "run": log})[0]
    failures = [
        f"{key}: expected {promise.order[key]}, found {order[key]}"
        for key in promise.order
        if promise.order[key] != order[key]
    ]
    if pair.step is not None:
        failures.append(
            f"{pair.differing} of {pair.common} steps are not what was promised, the first is step "
            f"{pair.step}"
        )
    if len(log) > len(promise.log):
        failures.append(
            f"expected at most {promise.steps} steps, found {len(log) // DIGEST_BYTES}: the rest "
            "was not promised"
        )
    return failures
