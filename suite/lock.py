"""One process trains in a run directory at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


class RunLockedError(RuntimeError):
    """Another process trains in this directory."""


_held_locks: list[IO[bytes]] = []


def lock_run(run_dir: Path) -> None:
    """Takes the directory's lock until this process ends.

    Raises:
        RunLockedError: somebody else has it.
    """
    handle = (run_dir / "lock").open("ab")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise RunLockedError(
            f"{run_dir} is in use: another process trains there and holds {run_dir / 'lock'}; "
            f"wait for it or stop it "
            "(the lock goes with the process; never delete the file)"
        ) from None
    _held_locks.append(handle)
