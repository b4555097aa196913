"""Published steps one after another, for evaluation, with at most `keep` of them on disk.

The next step is downloaded while the caller works on the present one. Each is verified before the
caller sees it, and deleted when it is no longer among the last `keep`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checkpoints_manifest.fetch import (
    check_space,
    choose_steps,
    fetch_revision,
    read_publication,
    wanted_files,
)
from checkpoints_manifest.manifest import Record
from checkpoints_manifest.published import CommitLine
from checkpoints_manifest.remote import Remote


@dataclass(frozen=True)
class Streamed:
    """A verified revision: `from_pretrained(directory)` loads it, until the stream moves on."""

    step: int
    directory: Path
    record: Record


def stream(
    remote: Remote,
    steps: str,
    keep: int = 2,
    *,
    directory: Path | None = None,
    revision: str = "main",
    expect: str | None = None,
) -> Iterator[Streamed]:
    """Yields steps in order; closing the iterator removes what it holds.

    Args:
        remote: a model repository.
        steps: as `choose_steps` takes it.
        keep: checkpoints on disk at any moment, the one being downloaded included; with 1 the next
            download waits until the caller is done.
        directory: where they lie; None: a temporary directory.
        revision: main, or the tag of a release.
        expect: digest that the publication must have.

    Raises:
        ValueError: `keep` is less than 1.
        CheckpointError: something is not as published; steps before it were yielded.
        OSError: this machine refused.
    """
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 checkpoint on disk, found keep={keep}")
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="tripod-stream-") as scratch:
        yield from _stream(remote, steps, keep, Path(scratch), revision, expect)


def _stream(
    remote: Remote, steps: str, keep: int, scratch: Path, revision: str, expect: str | None
) -> Iterator[Streamed]:
    publication = read_publication(remote, scratch, revision, expect)
    chosen = choose_steps(steps, [line.step for line in publication.lines])
    waiting = deque(
        (line, record)
        for line, record in zip(publication.lines, publication.records, strict=True)
        if line.step in chosen
    )
    first = [(line, wanted_files(line, with_state=False)) for line, _ in waiting]
    check_space(first[:keep], scratch)

    def fetch(line: CommitLine, record: Record) -> Streamed:
        folder = scratch / f"step{line.step}"
        fetch_revision(remote, line, record, wanted_files(line, with_state=False), folder)
        return Streamed(line.step, folder, record)

    held: deque[Streamed] = deque()
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Streamed] | None = None
        while waiting or coming is not None:
            if coming is None:
                _drop(held, keep - 1)
                coming = pool.submit(fetch, *waiting.popleft())
            held.append(coming.result())
            coming = None
            if waiting and keep > 1:
                _drop(held, keep - 1)
                coming = pool.submit(fetch, *waiting.popleft())
            yield held[-1]


def _drop(held: deque[Streamed], count: int) -> None:
    while len(held) > count:
        shutil.rmtree(held.popleft().directory)
