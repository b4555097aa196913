"""All verifications of a suite, printed as they finish."""

from __future__ import annotations

from pathlib import Path

from checkpoints_manifest.verify import verify_checkpoints
from suite.verify_labels import verify_labels
from suite.verify_order import Verdict, verify_order

KINDS = ("order", "checkpoints", "labels")


def verify_kind(kind: str, run_dirs: list[Path]) -> Verdict:
    """One of `KINDS` over some runs."""
    if kind == "order":
        return verify_order(run_dirs)
    if kind == "labels":
        return verify_labels(run_dirs)
    return _checkpoints(run_dirs)


def _checkpoints(run_dirs: list[Path]) -> Verdict:
    failures, total = [], 0
    for run_dir in run_dirs:
        report = verify_checkpoints(run_dir)
        total += report.checkpoints
        failures += [f"{run_dir.name}: {finding}" for finding in report.findings]
    detail = f"{total} checkpoints: every file, tensor root, ledger link and order chain recomputed"
    return Verdict("checkpoints", tuple(failures), detail)


def verify_all(run_dirs: list[Path], kinds: tuple[str, ...] = KINDS) -> list[Verdict]:
    """Runs the verifications in turn and prints a line for each, failures below it."""
    verdicts = []
    for kind in kinds:
        verdict = verify_kind(kind, run_dirs)
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
