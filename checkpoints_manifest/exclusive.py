"""One process at a time, by a lock that goes with the process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError


@contextmanager
def exclusive(lock: Path, what: str) -> Iterator[None]:
    """Holds `lock` (a file, created, left there) for the block.

    Raises:
        CheckpointError: another process has it; `what` says what that one does.
    """
    with lock.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process {what} (it holds {lock}); wait for it or stop it"
            ) from None
        yield
