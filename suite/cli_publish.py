"""`tripod publish`: to the suite's local Hub, or with `--to` one run to a Hub.

A step goes to a Hub only when its label is true: the loss of its weights on the next batch is what
the trainer logged.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from checkpoints_manifest import cli_hub

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add `publish`."""
    sub = add(
        "publish",
        run_publish,
        "write every checkpoint to the suite's local Hub, or one run to a Hub with --to",
        "publish runs/nano/nano-1m --to org/nano-1m --dry-run",
    )
    sub.add_argument("path", type=Path, help="a suite or a run directory; a run with --to")
    cli_hub.add_publish_options(sub)


def run_publish(arguments: argparse.Namespace) -> int:
    """`tripod publish`."""
    if arguments.to is not None:
        return cli_hub.publish_to(arguments, label_check(arguments.path))
    from checkpoints_manifest.hub import LocalHub
    from suite.publish import publish_run
    from suite.verify import run_dirs_of
    from suite.verify_order import load_config

    for run_dir in run_dirs_of(arguments.path):
        new, total = publish_run(load_config(run_dir), run_dir, LocalHub(run_dir.parent / "hub"))
        print(f"{run_dir.name}: {total} revisions, {new} new")
    return 0


def label_check(run_dir: Path) -> Callable[[int], str | None]:
    """Says for a step what is wrong with its label, or None; all steps are checked at the first."""
    from suite.verify_labels import verify_labels

    failures: list[str] | None = None

    def check(step: int) -> str | None:
        nonlocal failures
        if failures is None:
            failures = list(verify_labels([run_dir]).failures)
        return next((text for text in failures if f": step{step} is not " in text), None)

    return check
