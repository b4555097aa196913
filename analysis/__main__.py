"""``python -m analysis runs/<suite>``: tables, figures and report of a suite."""

import argparse
import sys
import time
from pathlib import Path

from analysis.analyze import analyze_suite
from checkpoints_manifest.errors import CheckpointError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and analyse one suite; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Score every checkpoint of a suite, then write its tables and report.",
        epilog="example: python -m analysis runs/nano",
    )
    parser.add_argument("suite_dir", type=Path, help="directory of a trained and published suite")
    parser.add_argument("--workers", type=int, default=None, help="scoring processes (default: 2)")
    chosen = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        analyze_suite(
            chosen.suite_dir,
            lambda line: print(f"   {line}  [{time.perf_counter() - started:.0f} s]", flush=True),
            chosen.workers,
        )
    except (ValueError, OSError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
