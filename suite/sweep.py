"""`tripod sweep SUITE`: data, ladder, local Hub, verification, evaluation, report.

Does only what is missing.

Every part is a process of its own or a plain function; a killed sweep carries on with the same
command to the same bits.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Ledger, record_digest
from data_pipeline.durable import free_bytes, write_bytes
from suite.config import ConfigError, RunConfig, sibling_differences
from suite.data import ensure_dataset
from suite.launch import RunFailedError, default_ranks, die_with_parent
from suite.preflight import preflight
from suite.preflight_refusal import refusal
from suite.publish import publish_run
from suite.signals import INTERRUPTED, RunInterruptedError, run_passing_on
from suite.train import compose, suite_names
from suite.verify import verify_all
from suite.verify_order import Verdict

# A checkpoint holds weights and two moments in fp32; the Hub links weights rather than copying
# them.
_BYTES_PER_PARAMETER = 12


@dataclass(frozen=True)
class Sweep:
    """A composed suite: where it lives and the config of every rung, in ladder order."""

    directory: Path
    rungs: dict[str, RunConfig]

    def run_dir(self, rung: str) -> Path:
        """The run directory of a rung."""
        return self.directory / rung


def compose_suite(suite: str, root: Path, overrides: list[str] | None = None) -> Sweep:
    """Composes every rung of a suite and checks that siblings differ only in the declared axes.

    Raises:
        ConfigError: unknown suite, or siblings that differ elsewhere.
    """
    if suite not in suite_names():
        raise ConfigError(f"no suite {suite!r}; the suites are: {', '.join(suite_names())}")
    first = ladder(suite)
    rungs = {name: RunConfig.from_mapping(compose(suite, name, overrides)) for name in first}
    axes = next(iter(rungs.values())).suite.axes
    lines = sibling_differences({name: c.to_record() for name, c in rungs.items()}, axes)
    if lines:
        raise ConfigError(
            f"rungs of suite {suite!r} differ outside its axes ({', '.join(axes)}):\n  "
            + "\n  ".join(lines)
        )
    return Sweep(root.resolve() / suite, rungs)


def ladder(suite: str) -> list[str]:
    """The rungs of a suite by name, as its file lists them."""
    from omegaconf import OmegaConf

    from suite.train import config_dir

    loaded = OmegaConf.load(Path(config_dir()) / "suite" / f"{suite}.yaml")
    return [str(name) for name in loaded.suite.ladder]


def is_complete(config: RunConfig, run_dir: Path) -> bool:
    """Whether a run's ledger holds its last step and the checkpoint is there."""
    last = config.train.steps
    if not (run_dir / "checkpoints" / f"step{last}" / "manifest.json").exists():
        return False
    return any(r["step"] == last for r in Ledger(run_dir / "manifest.jsonl").records())


def sweep(
    suite: str,
    root: Path,
    overrides: list[str] | None = None,
    ranks: int | None = None,
    accept: tuple[str, ...] = (),
) -> int:
    """Brings a suite to its report.

    Args:
        suite: its name.
        root: where suites live.
        overrides: Hydra overrides for every rung.
        ranks: ranks per run; changes no bit.
        accept: changes to accept at this start; see `suite.launch.launch`.

    Returns:
        The exit status: 0 done, 1 a verification failed, 2 it cannot run here (reasons printed).
    """
    plan = compose_suite(suite, root, overrides)
    asked = [*(overrides or []), *([f"hardware.ranks={ranks}"] if ranks else [])]
    failures = preflight(plan, asked)
    if failures:
        print(refusal(plan, failures, asked))
        return 2
    plan.directory.mkdir(parents=True, exist_ok=True)
    lock = _lock(plan.directory)
    try:
        _check_disk(plan)
        first = next(iter(plan.rungs.values()))
        settings = [*asked, *([f"accept=[{','.join(accept)}]"] if accept else [])]
        _timed("data", lambda: _data(first, root, plan.directory))
        _timed("train", lambda: _train(plan, suite, root, settings))
        _timed("publish", lambda: _publish(plan))
        ok = _timed("verify", lambda: _verify(plan))
        _timed("analyze", lambda: _report(plan.directory))
        print(digest_table(plan))
        print(f"report: {plan.directory / 'report.html'}")
        return 0 if ok else 1
    finally:
        lock.close()


def _timed(name: str, part: Callable[[], bool]) -> bool:
    started = time.perf_counter()
    print(f"== {name}", flush=True)
    result = part()
    print(f"   {name}: {time.perf_counter() - started:.1f} s", flush=True)
    return result


def _lock(directory: Path) -> IO[bytes]:
    handle = (directory / "sweep.lock").open("ab")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ConfigError(
            f"another sweep is running in {directory} (it holds sweep.lock); wait for it or stop it"
        ) from None
    return handle


def _check_disk(plan: Sweep) -> None:
    from checkpoints_manifest.schedule import checkpoint_steps
    from suite.models import count_parameters

    needed = 0
    for name, config in plan.rungs.items():
        count = len(checkpoint_steps(dict(config.checkpoints), config.train.steps))
        if not is_complete(config, plan.run_dir(name)):
            needed += count * _BYTES_PER_PARAMETER * count_parameters(config.rung.model)
    free = free_bytes(plan.directory)
    if free < 1.2 * needed:
        raise OSError(
            f"the checkpoints of this sweep need {needed / 1e6:,.0f} MB and a fifth more, "
            f"{free / 1e6:,.0f} MB are free at "
            f"{plan.directory}; free some space or choose another place with --root"
        )


def _data(config: RunConfig, root: Path, directory: Path) -> bool:
    present = (directory / config.data.dir / "index.json").exists()
    filled = ensure_dataset(config, root.resolve(), workers=default_ranks())
    print(f"   index {filled.data.index_digest}" + (" (already built)" if present else ""))
    return True


def _train(plan: Sweep, suite: str, root: Path, settings: list[str]) -> bool:
    missing = [name for name, c in plan.rungs.items() if not is_complete(c, plan.run_dir(name))]
    for name in plan.rungs:
        if name not in missing:
            print(f"   {name}: complete, nothing to do")
    if not missing:
        return True
    command = [sys.executable, "-m", "suite.train", "--multirun", f"suite={suite}"]
    command += [f"rung={','.join(missing)}", f"root={root.resolve()}"]
    status = run_passing_on(command + settings, die_with_parent)
    if status == INTERRUPTED:
        raise RunInterruptedError("the sweep was asked to stop; the same command carries on")
    if status:
        raise RunFailedError(
            f"training stopped with status {status} (reason above); the same command carries on"
        )
    return True


def _publish(plan: Sweep) -> bool:
    hub = LocalHub(plan.directory / "hub")
    for name, config in plan.rungs.items():
        new, total = publish_run(config, plan.run_dir(name), hub)
        print(f"   {config.suite.hub_org}/{name}: {total} revisions, {new} new")
    return True


def ledger_heads(plan: Sweep) -> dict[str, str]:
    """The digest of the newest ledger record of each rung."""
    heads = {}
    for name in plan.rungs:
        records = Ledger(plan.run_dir(name) / "manifest.jsonl").records()
        heads[name] = record_digest(records[-1])
    return heads


def _verify(plan: Sweep) -> bool:
    path, heads = plan.directory / "verification.json", ledger_heads(plan)
    if path.exists():
        before = json.loads(path.read_text())
        if before.get("ledger_heads") == heads and all(
            before[k]["ok"] for k in ("order", "checkpoints", "labels")
        ):
            print("   verified before, ledgers unchanged (`make verify` recomputes everything)")
            return True
    verdicts = verify_all([plan.run_dir(name) for name in plan.rungs])
    write_verification(plan.directory, verdicts, heads)
    return all(verdict.ok for verdict in verdicts)


def write_verification(directory: Path, verdicts: list[Verdict], heads: dict[str, str]) -> None:
    """Writes `verification.json`, which the report shows as badges."""
    from suite.machine import describe_machine

    content = {
        v.name: {"ok": v.ok, "detail": v.detail, "failures": list(v.failures)} for v in verdicts
    }
    record = {**content, "ledger_heads": heads, "machine": describe_machine()}
    write_bytes(directory / "verification.json", json.dumps(record, indent=1).encode())


def _report(directory: Path) -> bool:
    analyze(directory)
    return True


def analyze(directory: Path) -> None:
    """Fills the tables and writes the report, in a process of its own."""
    from suite.numerics import profile_environment

    done = subprocess.run(
        [sys.executable, "-m", "analysis", str(directory)],
        env={**profile_environment("native"), "HF_HUB_OFFLINE": "1"},
        preexec_fn=die_with_parent,
        check=False,
    )
    if done.returncode:
        raise RunFailedError(f"the analysis stopped with status {done.returncode} (reason above)")


def digest_table(plan: Sweep) -> str:
    """Final step, weights root and order chain of every rung, as the README prints them."""
    lines = ["rung               step  weights_root" + " " * 54 + "order chain"]
    for name in plan.rungs:
        last = Ledger(plan.run_dir(name) / "manifest.jsonl").records()[-1]
        lines.append(
            f"{name:<18} {last['step']:>4}  {last['weights_root']}  {last['order']['chain'][:16]}…"
        )
    return "\n".join(lines)
