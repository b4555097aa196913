"""`tripod publish RUN --to org/name` and `tripod pull org/name`.

Publishing without `--to` writes the suite's local Hub and belongs to `suite`, as does the check of
labels: `add_publish_options` and `publish_to` are the part that speaks to a Hub. Exit status: 0
done; errors raise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from checkpoints_manifest.publish import LabelCheck, Options, dry_run, publish
from checkpoints_manifest.publish_dataset import dataset_changes, publish_dataset
from checkpoints_manifest.pull import pull
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import RunFiles


class Add(Protocol):
    """Adds a subcommand: name, what runs it, help, example."""

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        """Returns the subcommand's parser."""


def add_commands(add: Add) -> None:
    """Adds `pull`."""
    sub = add(
        "pull",
        _pull,
        "download published steps; takes nothing that is not as published",
        "pull org/nano-1m --steps 0,64,128 --to pulled",
    )
    sub.add_argument("repository", metavar="ORG/NAME")
    sub.add_argument(
        "--steps", default="all", help="0,512,1000 or 0:1000 (ends included) or all (default)"
    )
    sub.add_argument("--to", type=Path, required=True, metavar="DIR", help="earlier pulls stay")
    sub.add_argument(
        "--with-state", action="store_true", help="also optimizer and trainer state, to replay"
    )
    sub.add_argument("--revision", default="main", help="a release's tag (default: main)")
    sub.add_argument("--expect", metavar="DIGEST", help="the publication's digest, from its card")
    sub.add_argument("--jobs", type=int, default=4, help="steps at a time (default: 4)")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")


def add_publish_options(sub: argparse.ArgumentParser) -> None:
    """Options of `publish` for a Hub; its argument `path` is the caller's."""
    sub.add_argument("--to", metavar="ORG/NAME", help="model repository on the Hub")
    sub.add_argument(
        "--dataset-to", metavar="ORG/NAME", help="dataset repository for index, order and logs"
    )
    sub.add_argument(
        "--with-state", action="store_true", help="optimizer and trainer state in each revision"
    )
    sub.add_argument("--tag", metavar="NAME", help="name this release")
    sub.add_argument("--licence", default="apache-2.0", help="SPDX name (default: apache-2.0)")
    sub.add_argument("--private", action="store_true", help="where repositories are created")
    sub.add_argument(
        "--dry-run", action="store_true", help="say what would be done, by reading only"
    )
    sub.add_argument("--json", action="store_true", help="print the result as JSON")


def publish_to(arguments: argparse.Namespace, check_label: LabelCheck | None) -> int:
    """Runs `publish RUN --to`: dataset first, so that the card's link leads somewhere.

    Args:
        arguments: of `add_publish_options`, and `path`, a run directory.
        check_label: see `publish`.
    """
    run = RunFiles.read(arguments.path)
    remote = Remote(arguments.to)
    options = Options(
        with_state=arguments.with_state,
        tag=arguments.tag,
        private=arguments.private,
        licence=arguments.licence,
        dataset=arguments.dataset_to,
    )
    say = _quiet if arguments.json else _say
    data = Remote(arguments.dataset_to, "dataset") if arguments.dataset_to else None
    if arguments.dry_run:
        if data is not None:
            changed = dataset_changes(run, data, options.licence)
            say(f"would commit to {data.url}: {', '.join(changed) or 'nothing'}")
        steps = dry_run(run, remote, check_label, options, say)
        if arguments.json:
            print(json.dumps({"would_publish": steps}))
        return 0
    if data is not None:
        commit = publish_dataset(run, data, options.licence, options.private)
        say(f"{data.url}: commit {commit}")
    done = publish(run, remote, check_label, options, say)
    say(f"{remote.url}: {len(done.steps)} steps, {len(done.new)} new; digest {done.digest}")
    if arguments.json:
        print(json.dumps(asdict(done)))
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # Several files arrive at once; a line per step says more.
    disable_progress_bars()
    done = pull(
        Remote(arguments.repository),
        arguments.steps,
        arguments.to,
        with_state=arguments.with_state,
        revision=arguments.revision,
        expect=arguments.expect,
        jobs=arguments.jobs,
        say=_quiet if arguments.json else _say,
    )
    if arguments.json:
        print(json.dumps(asdict(done), default=str))
        return 0
    print(
        f"{done.run_dir}: {len(done.steps)} steps as published, {len(done.new)} new; publication "
        f"{done.digest}\nload them: HF_HUB_OFFLINE=1 HF_HUB_CACHE={done.hub}"
    )
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _quiet(line: str) -> None:
    """Progress does not go into JSON."""
