"""Start the ranks of one run through torchrun, with the environment that the numerics need.

No torch is imported here: the numerics profile must be in the environment before it is. If this
process dies, the kernel kills the ranks (Linux), so a killed sweep leaves nothing that still
writes. Asked to stop (SIGTERM, SIGUSR1), it passes that on to the ranks and waits until they have
saved; a group without a sign of life is ended and the rank that hung is named.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.durable import write_bytes
from suite.config import ConfigError, RunConfig, sibling_differences
from suite.deepspeed_config import check_supported
from suite.engine_record import settle_engine
from suite.failures import killed_ranks, killed_reason, oom_kills
from suite.heartbeat import LAUNCH_VARIABLE, read_beats
from suite.numerics import profile_environment
from suite.operation import Operation
from suite.signals import RunInterruptedError, StopRequest, clear_mark, marked_step, passing_on
from suite.watchdog import hung

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.2


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


def prepare(
    config: RunConfig, run_dir: Path, operation: Operation, ranks: int | None = None
) -> None:
    """Writes what the ranks read, for a start by torchrun or srun over machines (`suite.rank`).

    Args:
        config: the resolved run.
        run_dir: the run directory; created when missing.
        operation: how to carry it out, with the changes that are accepted.
        ranks: ranks in all; None where they are started elsewhere.

    Raises:
        ConfigError: the directory was started with another configuration, engine or layout.
    """
    write_config(config, run_dir)
    settle_engine(config, run_dir, ranks, operation.accept)
    operation.write(run_dir)


def launch(
    config: RunConfig,
    run_dir: Path,
    ranks: int | None = None,
    accept: tuple[str, ...] = (),
    operation: Operation | None = None,
) -> None:
    """Trains one rung in `run_dir` to its last step, continuing what is there.

    Args:
        config: the resolved run.
        run_dir: the run directory; created when missing.
        ranks: ranks; as `operation` says, or one per core, when None. It changes no bit where the
            engine is elastic.
        accept: changes to accept by name: "numerics" for another numerics record, "engine" for
            another engine or layout.
        operation: how to carry it out; the defaults when None.

    Raises:
        ConfigError: the directory was started with another configuration, or the engine refuses
        this run.
        RunFailedError: a rank stopped; the message is that rank's, the full output is in
            `train.log`.
        RunInterruptedError: the run was asked to stop by a signal, and its state is saved.
    """
    operation = dataclasses.replace(operation or Operation(), accept=accept)
    ranks = ranks or operation.ranks or default_ranks()
    ranks = min(ranks, config.num_quanta * config.engine.tensor_parallel)
    check_supported(config, ranks)
    prepare(config, run_dir, operation, ranks)
    (run_dir / "failure.txt").unlink(missing_ok=True)
    clear_mark(run_dir)
    log, killed_before = run_dir / "train.log", oom_kills()
    with log.open("ab") as stderr:
        start, launched = stderr.tell(), secrets.token_hex(8)
        process = subprocess.Popen(
            worker_command(run_dir, ranks),
            env={**profile_environment(config.numerics.profile), LAUNCH_VARIABLE: launched},
            stderr=stderr,
            preexec_fn=die_with_parent,
        )
        hanging = _supervise(process, run_dir, launched, ranks, operation.hang_seconds)
    if process.returncode == 0:
        return
    if (step := marked_step(run_dir)) is not None:
        raise RunInterruptedError(
            f"{config.rung.name} was asked to stop and is saved at step {step}; the same command "
            "carries on"
        )
    output = log.read_bytes()[start:].decode(errors="replace")
    reason = hanging or _reason(run_dir, output, oom_kills() - killed_before)
    raise RunFailedError(f"{config.rung.name} stopped: {reason}\n(full output: {log})")


def _reason(run_dir: Path, output: str, killed_for_memory: int) -> str:
    """Why the ranks failed; what a rank could not say itself is left in `failure.txt` too."""
    failure = run_dir / "failure.txt"
    if killed := killed_ranks(output):
        # What the others said is no more than that this one was gone.
        failure.write_text(killed_reason(killed, killed_for_memory) + "\n")
    return failure.read_text().strip() if failure.exists() else _tail(output)


def _supervise(
    process: subprocess.Popen[bytes], run_dir: Path, launched: str, ranks: int, patience: float
) -> str | None:
    """Waits for the ranks; passes signals on to them, and ends them where one hangs.

    Returns:
        Which rank hung; None where none did.
    """
    asked, told, hanging, started = StopRequest(), set[int](), None, time.time()
    with passing_on(asked.note), _ended_on_error(process):
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_LOOK_SECONDS)
                return hanging
            beats = read_beats(run_dir, launched)
            if asked.asked:
                # Only the ranks: torchrun would give them thirty seconds and then kill them.
                told |= _signal({b.pid for b in beats.values()} - told, signal.SIGTERM)
            hanging = hung(beats, ranks, started, time.time(), patience)
            if hanging is not None:
                (run_dir / "failure.txt").write_text(f"{hanging}\n")
                _signal({beat.pid for beat in beats.values()}, signal.SIGKILL)
                process.kill()
                process.wait()
                return hanging


@contextlib.contextmanager
def _ended_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.kill()
        process.wait()
        raise


def _signal(pids: set[int], number: int) -> set[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return pids


def _tail(output: str, lines: int = 15) -> str:
    return "\n".join(output.splitlines()[-lines:])
