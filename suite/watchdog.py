"""Tells a hung rank from those that wait for it, by their heartbeats.

A group is taken for hung when no rank of it has shown a sign of life for `hang_seconds`: as long as
one still computes, the others wait for it. Before the first step, while data is verified and state
is read, and while a rank saves, patience is `START_FACTOR` times as long. To blame is a rank that
never reported, has died or is stopped; else the ranks that do not wait in a collective, at the
earliest step. Where all of them wait, the network is.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from suite.heartbeat import Beat

START_FACTOR = 10
_STATES = {
    "T": "is stopped (SIGSTOP or a debugger)",
    "t": "is stopped (SIGSTOP or a debugger)",
    "D": "waits for a disk or device",
    "Z": "has died",
}


def hung(
    beats: Mapping[int, Beat], world: int, started: float, now: float, patience: float
) -> str | None:
    """Which rank hangs, in one sentence with its last step; None while there are signs of life.

    Args:
        beats: the newest beat of each rank that has reported.
        world: ranks that were started.
        started: when they were, in seconds as `time.time`.
        now: the present, likewise.
        patience: seconds without any sign of life.
    """
    newest = max((beat.time for beat in beats.values()), default=started)
    silence = now - max(newest, started)
    phases = {beat.phase for beat in beats.values()}
    slow = phases <= {"start"} or "save" in phases
    if silence < patience * (START_FACTOR if slow else 1):
        return None
    missing = sorted(set(range(world)) - set(beats))
    if missing:
        ranks = ", ".join(map(str, missing))
        return f"rank {ranks} never reported in the {now - started:.0f} s since the start"
    if all(beat.phase == "done" for beat in beats.values()):
        return None
    suspects = blamed(beats)
    if not suspects:
        steps = sorted({beat.step for beat in beats.values()})
        return (
            f"all {world} ranks have waited for each other for {silence:.0f} s after step "
            f"{', '.join(map(str, steps))}: look at the network between them"
        )
    return "; ".join(_describe(beat, now) for beat in suspects)


def blamed(beats: Mapping[int, Beat]) -> list[Beat]:
    """The ranks that the others wait for: gone or stopped; else computing, and furthest back."""
    here = [beat for beat in beats.values() if beat.phase != "done"]
    stopped = [beat for beat in here if process_state(beat) in ("T", "t", "Z")]
    busy = [beat for beat in here if beat.phase != "exchange"]
    first = min((beat.step for beat in busy), default=0)
    return stopped or [beat for beat in busy if beat.step == first]


def process_state(beat: Beat) -> str:
    """The kernel's letter for the state of a rank's process; empty where this machine cannot say.

    `Z` where the process is gone.
    """
    if beat.host != socket.gethostname() or not Path("/proc/self/stat").exists():
        return ""
    try:
        text = Path(f"/proc/{beat.pid}/stat").read_text()
    except FileNotFoundError:
        return "Z"
    return text.rpartition(")")[2].split()[0]


def _describe(beat: Beat, now: float) -> str:
    doing = {
        "compute": f"in quantum {beat.quanta} of its share of step {beat.step}",
        "save": f"while it saved the checkpoint of step {beat.step}",
        "start": "while it started",
        "exchange": f"while the ranks exchanged the results of step {beat.step}",
    }.get(beat.phase, f"in {beat.phase}")
    state = _STATES.get(process_state(beat))
    return (
        f"rank {beat.rank} (process {beat.pid} on {beat.host}) hangs {doing}: its last step was "
        f"{beat.step}, no sign of life for {now - beat.time:.0f} s"
        + (f"; the process {state}" if state else "")
    )
