"""All verifications of a suite, printed as they finish."""

from __future__ import annotations

import sys
from pathlib import Path

from checkpoints_manifest.verify import verify_checkpoints
from suite.replay import replay, segment_of
from suite.verify_labels import verify_labels
from suite.verify_order import Verdict, verify_order

KINDS = ("order", "checkpoints", "labels")


def verify_kind(kind: str, run_dirs: list[Path], level: str = "chain") -> Verdict:
    """One of `KINDS` over some runs; `level` is that of checkpoints."""
    if kind == "order":
        return verify_order(run_dirs)
    if kind == "labels":
        return verify_labels(run_dirs)
    return _checkpoints(run_dirs, level)


def _checkpoints(run_dirs: list[Path], level: str) -> Verdict:
    failures, total = [], 0
    for run_dir in run_dirs:
        report = verify_checkpoints(run_dir, "chain" if level == "replay" else level)
        total += report.checkpoints
        failures += [f"{run_dir.name}: {finding}" for finding in report.findings]
        for note in report.notes:
            print(f"   note {run_dir.name}: {note}", file=sys.stderr, flush=True)
        if level == "replay" and not report.findings:
            failures += replay(run_dir, [segment_of(run_dir, None, None)]).failures
    return Verdict("checkpoints", tuple(failures), f"{total} checkpoints: {_DETAIL[level]}")


_DETAIL = {
    "metadata": "records, chain and sizes",
    "bytes": "every file's bytes and the ledger's chain recomputed",
    "tensors": "every file, tensor root and ledger link recomputed",
    "chain": "every file, tensor root, ledger link and order chain recomputed",
    "replay": "every file and link recomputed, and every step computed again",
}


def verify_all(
    run_dirs: list[Path], kinds: tuple[str, ...] = KINDS, level: str = "chain"
) -> list[Verdict]:
    """Runs the verifications in turn and prints a line for each, failures below it."""
    verdicts = []
    for kind in kinds:
        verdict = verify_kind(kind, run_dirs, level)
        print(f"   {'ok  ' if verdict.ok else 'FAIL'} {kind}: {verdict.detail}", flush=True)
        for failure in verdict.failures:
            print(f"        {failure}", flush=True)
        verdicts.append(verdict)
    return verdicts


def run_dirs_of(path: Path) -> list[Path]:
    """The run directories at a path: itself, or the runs of a suite directory, in name order.

    Raises:
        FileNotFoundError: neither.
    """
    if (path / "config.json").exists():
        return [path]
    found = sorted(p.parent for p in path.glob("*/config.json"))
    if not found:
        raise FileNotFoundError(
            f"{path} is neither a run nor a suite directory; runs are made by `tripod sweep`"
        )
    return found
