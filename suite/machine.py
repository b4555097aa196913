"""What machine this is, in a few words: for reports and benchmarks, never for digests."""

from __future__ import annotations

import platform
from pathlib import Path

from suite.launch import default_ranks


def describe_machine() -> dict[str, str | int]:
    """CPU model, cores this process may use, operating system and Python version."""
    return {
        "cpu": _cpu_model(),
        "cores": default_ranks(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
