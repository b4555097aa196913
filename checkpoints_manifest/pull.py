"""Pulling published steps into a directory that is a run and a local Hub at once.

    TO/NAME/                 as the trainer writes it: ledger, configuration, order, metrics, and
                             checkpoints/step{N}, for `tripod verify`, `replay` and resuming
    TO/hub/                  the Hugging Face cache layout, under the Hub's own commit ids:
                             HF_HUB_CACHE=TO/hub HF_HUB_OFFLINE=1 loads ORG/NAME by revision

Weights lie there once (hard links). Everything is downloaded beside, into TO/.pull-NAME, verified
(`fetch.py`), and then moved: no unverified byte is ever under a final name. Killed at any point,
the same command goes on; complete files are not downloaded again.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.exclusive import exclusive
from checkpoints_manifest.export import link_or_copy
from checkpoints_manifest.fetch import (
    Publication,
    check_space,
    choose_steps,
    fetch_revision,
    read_publication,
    wanted_files,
)
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Record
from checkpoints_manifest.published import LEDGER, CommitLine
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.store import MANIFEST, OPTIMIZER, steps_on_disk
from data_pipeline.canonical import canonical_json
from data_pipeline.durable import fsync_directory, publish_directory, write_bytes

PULLED = "pulled.json"


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Attributes:
        run_dir: TO/NAME.
        hub: TO/hub, for HF_HUB_CACHE.
        steps: that were asked for; all of them are there and were verified.
        new: those of them that were not there before.
        digest: of the publication.
    """

    run_dir: Path
    hub: Path
    steps: tuple[int, ...]
    new: tuple[int, ...]
    digest: str


def pull(
    remote: Remote,
    steps: str,
    to: Path,
    *,
    with_state: bool = False,
    revision: str = "main",
    expect: str | None = None,
    jobs: int = 4,
    say: Callable[[str], None] = print,
) -> Pulled:
    """Downloads steps and takes what is as published.

    Args:
        remote: a model repository.
        steps: as `choose_steps` takes it.
        to: directory; may hold earlier pulls.
        with_state: also optimizer moments and trainer state.
        revision: main, or the tag of a release.
        expect: digest that the publication must have.
        jobs: steps downloaded at a time.
        say: gets progress, a line at a time.

    Raises:
        CheckpointError: something is not as published (other steps are taken all the same), or `to`
            holds another run.
        OSError: this machine refused; ENOSPC before anything is downloaded.
    """
    place = _Place(remote, to)
    to.mkdir(parents=True, exist_ok=True)
    with exclusive(to / f".pull-{place.run_dir.name}.lock", f"pulls into {to}"):
        place.staging.mkdir(exist_ok=True)
        publication = read_publication(remote, place.staging, revision, expect)
        chosen = choose_steps(steps, [line.step for line in publication.lines])
        place.check_same_run(publication)
        work = [
            (line, record, wanted_files(line, with_state))
            for line, record in zip(publication.lines, publication.records, strict=True)
            if line.step in chosen
        ]
        missing = [item for item in work if not place.holds(*item)]
        check_space([(line, names) for line, _, names in missing], to)
        place.write_side_files(publication)
        _take_all(place, missing, jobs, say)
        place.finish(publication)
    new = tuple(line.step for line, _, _ in missing)
    return Pulled(place.run_dir, place.hub.root, chosen, new, publication.digest)


def _take_all(
    place: _Place,
    missing: Sequence[tuple[CommitLine, Record, Sequence[str]]],
    jobs: int,
    say: Callable[[str], None],
) -> None:
    def take(item: tuple[CommitLine, Record, Sequence[str]]) -> str | None:
        line, _, names = item
        try:
            place.take(*item)
        except CheckpointError as error:
            return str(error)
        say(f"step{line.step}: {len(names)} files, verified")
        return None

    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        problems = [problem for problem in pool.map(take, missing) if problem is not None]
    if problems:
        raise CheckpointError("\n".join(problems))


class _Place:
    """The two layouts below one directory."""

    def __init__(self, remote: Remote, to: Path) -> None:
        self.remote = remote
        name = remote.repo_id.split("/")[1]
        self.run_dir, self.staging = to / name, to / f".pull-{name}"
        self.hub = LocalHub(to / "hub")
        self.repository = self.hub.repository(remote.repo_id)
        self._placing = threading.Lock()

    def check_same_run(self, publication: Publication) -> None:
        path = self.run_dir / LEDGER
        held = path.read_bytes() if path.exists() else b""
        # An older release may be pulled into a newer one and the other way round.
        if not (held.startswith(publication.ledger) or publication.ledger.startswith(held)):
            raise CheckpointError(
                f"{path} is the ledger of another run than {self.remote.url}; pull into another "
                "directory"
            )

    def holds(self, line: CommitLine, record: Record, names: Sequence[str]) -> bool:
        """Whether a step was taken before; what has a final name was verified then."""
        snapshot = self._snapshot(line)
        ref = self.repository / "refs" / f"step{line.step}"
        sizes = {file.path: file.size for file in line.files}
        wanted = [snapshot / name for name in names]
        wanted += [self._checkpoint(line) / name for name in self._stored(record, names)]
        return (
            ref.is_file()
            and ref.read_text() == line.commit
            and (self._checkpoint(line) / MANIFEST).is_file()
            and all(p.is_file() and p.stat().st_size == sizes[p.name] for p in wanted)
        )

    def take(self, line: CommitLine, record: Record, names: Sequence[str]) -> None:
        """Downloads, verifies, and moves a step to its places."""
        folder = self.staging / f"step{line.step}"
        fetch_revision(self.remote, line, record, names, folder, self._checkpoint(line))
        # Steps share blobs, and arrive in threads; `hub gc` must not see them half placed.
        with self._placing, self.hub.lock(self.remote.repo_id):
            self._add_checkpoint(line, record, names, folder)
            self._add_snapshot(line, names, folder)
            shutil.rmtree(folder)

    def _checkpoint(self, line: CommitLine) -> Path:
        return self.run_dir / "checkpoints" / f"step{line.step}"

    def _snapshot(self, line: CommitLine) -> Path:
        return self.repository / "snapshots" / line.commit

    def _stored(self, record: Record, names: Sequence[str]) -> list[str]:
        return [item["path"] for item in record["files"] if item["path"] in names]

    def _add_checkpoint(
        self, line: CommitLine, record: Record, names: Sequence[str], folder: Path
    ) -> None:
        final = self._checkpoint(line)
        final.parent.mkdir(parents=True, exist_ok=True)
        fresh = final if final.exists() else final.parent / f".tmp-{final.name}-{os.getpid()}"
        if fresh is not final:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
        for name in self._stored(record, names):
            _link(folder / name, fresh / name)
        write_bytes(fresh / MANIFEST, canonical_json(record))
        if fresh is not final:
            publish_directory(fresh, final)
        fsync_directory(final)

    def _add_snapshot(self, line: CommitLine, names: Sequence[str], folder: Path) -> None:
        snapshot, blobs = self._snapshot(line), self.repository / "blobs"
        for path in (snapshot, blobs, self.repository / "refs"):
            path.mkdir(parents=True, exist_ok=True)
        stored = {item.path: item for item in line.files}
        for name in names:
            file = stored[name]
            # As huggingface_hub names them: SHA-256 of an object, git's id of a small file.
            blob = file.sha256 if file.is_object else file.blob
            _link(folder / name, blobs / blob)
            link = snapshot / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / ".." / "blobs" / blob)
        for path in (blobs, snapshot, snapshot.parent):
            fsync_directory(path)
        write_bytes(self.repository / "refs" / f"step{line.step}", line.commit.encode())

    def write_side_files(self, publication: Publication) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / LEDGER
        if path.exists() and len(path.read_bytes()) > len(publication.ledger):
            return
        for name, data in publication.side_files.items():
            write_bytes(self.run_dir / name, data)
        write_bytes(path, publication.ledger)

    def finish(self, publication: Publication) -> None:
        last = publication.lines[-1]
        if (self.repository / "refs" / f"step{last.step}").exists():
            write_bytes(self.repository / "refs" / "main", last.commit.encode())
        steps = sorted(steps_on_disk(self.run_dir))
        folders = {step: self.run_dir / "checkpoints" / f"step{step}" for step in steps}
        facts = {
            "schema": "pulled-v1",
            "repository": self.remote.repo_id,
            "commit": publication.commit,
            "digest": publication.digest,
            "steps": steps,
            "steps_with_state": [s for s in steps if (folders[s] / OPTIMIZER).exists()],
        }
        write_bytes(self.run_dir / PULLED, canonical_json(facts) + b"\n")
        shutil.rmtree(self.staging)


def _link(source: Path, target: Path) -> None:
    """Gives a verified file one more name, replacing what was there, synced."""
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    link_or_copy(source, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
