"""What is asked of a run by signals: SIGTERM, or SLURM's SIGUSR1 before a preemption.

A rank notes the signal and looks at the note between two steps (`Keeper.boundary`): all ranks save
a recovery checkpoint and exit with status 75, "try again" (EX_TEMPFAIL of sysexits.h), whichever of
them was told. A process that started ranks passes the signal on and waits. SIGINT is not handled:
an interrupted terminal stops at once, as a kill would.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from data_pipeline.durable import write_bytes

# Calls a function in a child before it becomes the command.
Preparation = Callable[[], None]

INTERRUPTED = 75
_MARK = "interrupted.json"
STOPPING = (signal.SIGTERM, signal.SIGUSR1)


class RunInterruptedError(RuntimeError):
    """A run was asked to stop, saved its state and did; the same command carries on."""


def leave_mark(run_dir: Path, step: int) -> None:
    """Says beside the run that it stopped because it was asked to, and at which step."""
    write_bytes(run_dir / _MARK, json.dumps({"step": step}).encode())


def clear_mark(run_dir: Path) -> None:
    """Removes the mark of an earlier start."""
    (run_dir / _MARK).unlink(missing_ok=True)


def marked_step(run_dir: Path) -> int | None:
    """The step at which the run stopped when it was asked to; None where it was not."""
    path = run_dir / _MARK
    return int(json.loads(path.read_bytes())["step"]) if path.exists() else None


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def asked(self) -> bool:
        """True from the first signal on."""
        return self.signal is not None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """The handler: nothing but a note, so that no step is cut in two."""
        del frame
        self.signal = number

    def install(self) -> StopRequest:
        """Notes the signals of `STOPPING` from now on, until the process ends."""
        for number in STOPPING:
            signal.signal(number, self.note)
        return self


@contextmanager
def passing_on(stop: Callable[[int], None]) -> Iterator[None]:
    """While it is open, signals of `STOPPING` call `stop(number)` instead of ending this process.

    Python delivers signals to the main thread; elsewhere (a launcher of Hydra that uses threads)
    nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda received, frame: stop(received)) for number in STOPPING
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_passing_on(command: list[str], prepare: Preparation | None = None) -> int:
    """Runs a command that starts ranks in turn; signals to stop are passed on to it.

    Returns:
        Its exit status.
    """
    child = subprocess.Popen(command, preexec_fn=prepare)
    try:
        with passing_on(child.send_signal):
            return child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
