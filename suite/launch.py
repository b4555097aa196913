"""Start the ranks of one run through torchrun, with the environment that the numerics need.

No torch is imported here: the numerics profile must be in the environment before it is. If this
process dies, the kernel kills the ranks (Linux), so a killed sweep leaves nothing that still
writes.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from data_pipeline.durable import write_bytes
from suite.config import ConfigError, RunConfig, sibling_differences
from suite.deepspeed_config import check_supported
from suite.engine_record import settle_engine
from suite.numerics import profile_environment

_PR_SET_PDEATHSIG = 1


class RunFailedError(RuntimeError):
    """A run stopped with an error; carries the message of the rank that failed."""


def die_with_parent() -> None:
    """Asks the kernel, where it can, to kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def default_ranks() -> int:
    """One rank per core that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def write_config(config: RunConfig, run_dir: Path) -> None:
    """Writes `config.json`, or checks that the one there is the same.

    Raises:
        ConfigError: the directory belongs to another configuration; names each difference.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "config.json"
    if not path.exists():
        write_bytes(path, config.to_bytes())
        return
    found = json.loads(path.read_text())
    # A change of engine is settled by `suite.engine_record`: it can be accepted.
    records = {"the directory": found, "the command": config.to_record()}
    lines = sibling_differences(records, ("engine",))
    if lines:
        raise ConfigError(
            f"{run_dir} was started with another configuration:\n  "
            + "\n  ".join(lines)
            + "\nuse the same values, or another directory (root=...)"
        )


def worker_command(run_dir: Path, ranks: int) -> list[str]:
    """The torchrun command line of a run on one machine."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "suite.worker",
        str(run_dir),
    ]


def launch(
    config: RunConfig, run_dir: Path, ranks: int | None = None, accept: tuple[str, ...] = ()
) -> None:
    """Trains one rung in `run_dir` to its last step, continuing what is there.

    Args:
        config: the resolved run.
        run_dir: the run directory; created when missing.
        ranks: ranks; one per core when None. It changes no bit where the engine is elastic.
        accept: changes to accept by name: "engine" for another engine or layout.

    Raises:
        ConfigError: the directory was started with another configuration, or the engine refuses
        this run.
        RunFailedError: a rank stopped; the message is that rank's, the full output is in
        `train.log`.
    """
    ranks = min(ranks or default_ranks(), config.num_quanta * config.engine.tensor_parallel)
    check_supported(config, ranks)
    write_config(config, run_dir)
    settle_engine(config, run_dir, ranks, accept)
    failure = run_dir / "failure.txt"
    failure.unlink(missing_ok=True)
    log = run_dir / "train.log"
    with log.open("ab") as stderr:
        done = subprocess.run(
            worker_command(run_dir, ranks),
            env=profile_environment(config.numerics.profile),
            stderr=stderr,
            preexec_fn=die_with_parent,
            check=False,
        )
    if done.returncode:
        reason = failure.read_text() if failure.exists() else _tail(log)
        raise RunFailedError(f"{config.rung.name} stopped: {reason.strip()}\n(full output: {log})")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
