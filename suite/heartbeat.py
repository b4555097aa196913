"""A sign of life per rank: `RUN/heartbeat/rank{r}.json`, rewritten in place as a step proceeds.

Says which rank of which start, where (host, process), at which step, what it does (`start`,
`compute` with the quanta read so far, `exchange`, `save`, `done`) and since when. One write of one
block, not synced: a few microseconds. `exchange` is what a rank does that waits for the others, so
a group that stands still shows who keeps it waiting. Nothing here is read by the training, and no
torch is imported: the launcher reads it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

_BLOCK = 512
LAUNCH_VARIABLE = "TRIPOD_LAUNCH"


@dataclass(frozen=True)
class Beat:
    """One sign of life; `step` counts updates done, `quanta` those begun in the next one."""

    launch: str
    rank: int
    world: int
    host: str
    pid: int
    step: int
    phase: str
    quanta: int
    time: float


class Heartbeat:
    """Writes the beats of one rank.

    Args:
        run_dir: the run directory.
        rank: this rank.
        world: how many there are.
    """

    def __init__(self, run_dir: Path, rank: int, world: int) -> None:
        folder = run_dir / "heartbeat"
        folder.mkdir(exist_ok=True)
        self._file = os.open(folder / f"rank{rank}.json", os.O_CREAT | os.O_WRONLY, 0o644)
        launch = os.environ.get(LAUNCH_VARIABLE, "")
        self._who = (launch, rank, world, socket.gethostname(), os.getpid())
        self._step = self._quanta = 0
        self.beat("start")

    def at(self, step: int) -> None:
        """`step` updates are done and the next one begins."""
        self._step, self._quanta = step, 0
        self.beat("compute")

    def quantum(self) -> None:
        """One more quantum of the present step begins."""
        self._quanta += 1
        self.beat("compute")

    def beat(self, phase: str) -> None:
        """This rank now does `phase`."""
        beat = Beat(*self._who, self._step, phase, self._quanta, time.time())
        os.pwrite(self._file, json.dumps(asdict(beat)).encode().ljust(_BLOCK - 1) + b"\n", 0)


def read_beats(run_dir: Path, launch: str | None = None) -> dict[int, Beat]:
    """The newest beat of each rank.

    Args:
        run_dir: the run directory.
        launch: only beats of this start; all when None.
    """
    beats = {}
    for path in (run_dir / "heartbeat").glob("rank*.json"):
        try:
            beat = Beat(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            continue  # caught in the middle of a write; the next look sees it whole
        if launch is None or beat.launch == launch:
            beats[beat.rank] = beat
    return dict(sorted(beats.items()))
