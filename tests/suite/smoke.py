"""What tests of the `smoke` suite share."""

import os
import subprocess
import sys

RUNGS = ["smoke-20k", "smoke-20k-seed1", "smoke-60k"]
SAME_BYTES = [
    "metrics.jsonl",
    "order.log",
    "sequence_loss.f32",
    "manifest.jsonl",
    "config.json",
    "numerics.json",
]


def tripod(*arguments, **kwargs):
    """Runs a command line in a process of its own, offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **kwargs.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "suite.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment, **kwargs,
    )  # fmt: skip


def flip(path, offset):
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
