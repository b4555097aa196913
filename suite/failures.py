"""Says what to do about a failure: which knob for memory, which rank the others waited for.

The reason that a rank leaves in `failure.txt`, and what the launcher makes of a rank that left
none because the kernel killed it. No torch is imported: the launcher must not load it.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

from suite.heartbeat import read_beats
from suite.watchdog import hung

MEMORY_KNOBS = (
    "to need less memory, without changing a bit: fewer ranks on a machine (--ranks, or "
    "hardware.ranks), or activation checkpointing (numerics.activation_checkpointing=blocks); as "
    "another recipe, in a new run: a smaller numerics.quantum, or ZeRO stage 2 or 3 "
    "(engine.name=deepspeed engine.zero_stage=3)"
)
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_cpu")
# What collectives say when another rank does not answer.
_WAITING_WORDS = ("timed out", "timeout", "connection closed by peer", "connection reset")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's, Python's or the allocator's way to say that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_WORDS)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says no more than that another rank did not answer."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WAITING_WORDS)


def reason(error: BaseException, run_dir: Path) -> str:
    """What a rank leaves in `failure.txt` about an error."""
    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return f"{text}\nout of memory; {MEMORY_KNOBS}"
    if is_lost_peer(error):
        beats = read_beats(run_dir)
        world = next(iter(beats.values())).world if beats else 0
        # All of them are silent by now: the collective has waited for its whole timeout.
        culprit = hung(beats, world, 0.0, time.time(), 0.0)
        return f"{text}\n{culprit}" if culprit else text
    return text


def leave_reason(error: BaseException, run_dir: Path) -> None:
    """Writes `failure.txt`, unless another rank has: the first to fail says why."""
    with contextlib.suppress(FileExistsError), (run_dir / "failure.txt").open("x") as file:
        file.write(reason(error, run_dir) + "\n")


def killed_ranks(log: str) -> list[int]:
    """Local ranks that torchrun's report says were killed with SIGKILL, as the kernel does."""
    pattern = r"local_rank: (\d+)\)\n\s*exitcode\s*: -9\b"
    return [int(rank) for rank in re.findall(pattern, log)]


def oom_kills() -> int:
    """Processes that the kernel has killed on this machine for want of memory, since it started."""
    path = Path("/proc/vmstat")
    text = path.read_text() if path.exists() else ""
    match = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(match.group(1)) if match else 0


def killed_reason(ranks: list[int], oom_kills_since: int) -> str:
    """Why ranks died that could not say so themselves."""
    who = f"rank {', '.join(map(str, ranks))}"
    if oom_kills_since:
        return f"{who} was killed by the kernel, which ran out of memory; {MEMORY_KNOBS}"
    return (
        f"{who} was killed (SIGKILL). If nobody did that, the kernel or a memory limit of the "
        f"container or job did, for want of memory; {MEMORY_KNOBS}"
    )
