"""One rank of one run under any launcher: `torchrun ... -m suite.rank RUN`, or the same with srun.

Sets the numerics environment of the run before torch is loaded, then becomes `suite.worker`. The
run directory must be there: `tripod train SUITE RUNG --prepare` writes it. No torch is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from suite.numerics import profile_environment
from suite.placement import placement
from suite.signals import clear_mark
from suite.verify_order import load_config


def rank_environment(run_dir: Path) -> dict[str, str]:
    """The environment of a rank: that of the run's profile, and where it stands in its group.

    Raises:
        FileNotFoundError: no run there.
        PlacementError: the launcher did not say where this process stands.
    """
    profile = load_config(run_dir).numerics.profile
    return {**profile_environment(profile), **placement(os.environ).environment()}


def main() -> int:
    """Entry point; returns only where the command line is wrong."""
    if len(sys.argv) != 2:
        print("usage: python -m suite.rank RUN_DIR (docs/running.md)", file=sys.stderr)
    else:
        _become_worker(Path(sys.argv[1]))
    return 2


def _become_worker(run_dir: Path) -> None:
    environment = rank_environment(run_dir)
    if environment["RANK"] == "0":
        # Of the start before: here is no launcher that clears them.
        (run_dir / "failure.txt").unlink(missing_ok=True)
        clear_mark(run_dir)
    command = [sys.executable, "-m", "suite.worker", str(run_dir)]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    raise SystemExit(main())
