"""Publishing a run to a Hub: one commit per step, read back, then the ledger on main.

Protocol. For every step in the ledger's order: one commit on top of the known head of the linear
branch `checkpoints`, then the branch `step{N}` at that commit, so a step has all its files or does
not exist. What the Hub then states (commit, parent, SHA-256 of objects, git ids of small files) is
compared with the ledger. When every step is there: ledger, `commits.jsonl`, card, logs and the
last step's files on main, in one commit; then the tag.

Killed or refused at any point, the same command goes on from what the Hub holds; run again when all
is done, it changes nothing. Nothing is published unless every label of the steps still to publish
was checked and is true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub_answers import RemoteFile
from checkpoints_manifest.main_branch import bring_main, differing
from checkpoints_manifest.manifest import Record, record_digest
from checkpoints_manifest.pacer import spell
from checkpoints_manifest.publish_main import main_files
from checkpoints_manifest.published import BRANCH, CommitLine, FileFact, fact_of
from checkpoints_manifest.remote import CALLS_PER_COMMIT, Operation, Remote
from checkpoints_manifest.run_files import RunFiles
from checkpoints_manifest.store import verify_checkpoint
from checkpoints_manifest.survey import Survey, survey

LabelCheck = Callable[[int], str | None]
Say = Callable[[str], None]
# Branch, two listings of refs, history and tree beside the commit itself.
_CALLS_PER_STEP = CALLS_PER_COMMIT + 5


@dataclass(frozen=True)
class Options:
    """What is published beside weights, and under which names.

    Attributes:
        with_state: optimizer moments and trainer state in each new revision.
        tag: name of a release, set at main when all is there.
        private: where the repository is created.
        licence: SPDX name in lower case, for the card.
        dataset: repository of the dataset, for the card.
    """

    with_state: bool = False
    tag: str | None = None
    private: bool = False
    licence: str = "apache-2.0"
    dataset: str | None = None


@dataclass(frozen=True)
class Published:
    """What stands on the Hub now.

    Attributes:
        new: steps published by this call.
        steps: all of them.
        main: commit of main.
        digest: of the last line of `commits.jsonl`; what `pull --expect` takes.
    """

    new: tuple[int, ...]
    steps: tuple[int, ...]
    main: str
    digest: str


def publish(
    run: RunFiles,
    remote: Remote,
    check_label: LabelCheck | None,
    options: Options,
    say: Say = print,
) -> Published:
    """Publishes what is not there yet.

    Args:
        run: the run.
        remote: a model repository.
        check_label: for a step, None where its next-step loss is the logged one (or where the log
            has no next step), else what differs. Asked for every step still to publish, before
            anything changes.
        options: what goes with it.
        say: gets progress, a line at a time.

    Raises:
        CheckpointError: a label is false or was not checked; the repository holds something else;
            the Hub refused, or stored something else than was sent.
        OSError: this machine refused (disk, permissions).
    """
    if not remote.logged_in:
        raise CheckpointError(
            f"publishing to {remote.url} needs a login: run `hf auth login`, or set HF_TOKEN"
        )
    with run.one_publisher():
        state = survey(remote, run.records)
        work = _Work(run, remote, options)
        published = work.check_published(state)
        pending = _pending(run.records, state)
        check_labels([record["step"] for record in pending], check_label)
        if state.refs is None:
            remote.create(options.private)
            state = survey(remote, run.records)
        if state.refs is None or state.head is None:
            raise CheckpointError(f"{remote.url} has no branch main; create the repository again")
        for step in published:
            if f"step{step}" not in state.refs.branches:
                remote.create_branch(f"step{step}", published[step][0])
        if pending and not state.branch:
            remote.create_branch(BRANCH, state.head)
        head, made = state.head, state.left_over
        for left, record in zip(range(len(pending) - 1, -1, -1), pending, strict=True):
            head, files = work.publish_step(record, head, made)
            published[record["step"]], made = (head, files), None
            say(f"step{record['step']}: commit {head}, {left} to go{work.eta(left)}")
        lines = chain_lines(run.records, published, state.lines)
        main = work.publish_main(lines)
        if options.tag is not None:
            remote.create_tag(options.tag, main)
    new = tuple(record["step"] for record in pending)
    return Published(new, tuple(published), main, lines[-1].digest)


def dry_run(
    run: RunFiles,
    remote: Remote,
    check_label: LabelCheck | None,
    options: Options,
    say: Say = print,
) -> tuple[int, ...]:
    """Says what `publish` would do now, by requests that change nothing; returns the new steps.

    Raises:
        CheckpointError: as `publish` would.
    """
    state = survey(remote, run.records)
    work = _Work(run, remote, options)
    published = work.check_published(state)
    pending = _pending(run.records, state)
    check_labels([record["step"] for record in pending], check_label)
    if state.refs is None:
        kind = "private" if options.private else "public"
        say(f"would create the {kind} model repository {remote.url}")
    if pending and not state.branch:
        say(f"would create branch {BRANCH}")
    for number, record in enumerate(pending):
        if number == 0 and state.left_over is not None:
            work.holds(record, remote.tree(state.left_over), state.left_over)
            say(f"would take commit {state.left_over} for step{record['step']}, made before")
        else:
            count, size = work.size_of(record)
            say(f"would commit step{record['step']} to {BRANCH}: {count} files, {size:,} bytes")
        say(f"would create branch step{record['step']} at that commit")
    for step in published:
        if state.refs is not None and f"step{step}" not in state.refs.branches:
            say(f"would create branch step{step} at {published[step][0]} again")
    changed = work.main_changes(chain_lines(run.records, published, state.lines), state.main)
    if pending:
        say("would commit ledger, card, logs and the last step's files to main")
    elif changed:
        say(f"would commit to main: {', '.join(changed)}")
    if options.tag is not None and (state.refs is None or options.tag not in state.refs.tags):
        say(f"would create tag {options.tag} at main")
    if not pending and not changed:
        say(f"{remote.url}: {len(published)} steps published, nothing else to do")
    elif seconds := work.eta(len(pending)):
        say(f"the Hub's limits allow that{seconds}")
    return tuple(record["step"] for record in pending)


def check_labels(steps: Sequence[int], check_label: LabelCheck | None) -> None:
    """The gate: every label checked, every one true.

    Raises:
        CheckpointError: no check was given, or some labels are false; lists them all.
    """
    if not steps:
        return
    if check_label is None:
        raise CheckpointError(
            f"{len(steps)} steps were to be published and no check of their labels was given; a "
            "checkpoint is published only when its next-step loss equals the trainer's log. Run "
            "`tripod verify labels` on the run"
        )
    false = [f"  step{step}: {text}" for step in steps if (text := check_label(step)) is not None]
    if false:
        raise CheckpointError(
            "nothing was published: these checkpoints are not the steps they are labelled as:\n"
            + "\n".join(false)
            + "\nRestore them from a copy, or `tripod rewind` the run and train on"
        )


def chain_lines(
    records: Sequence[Record],
    published: dict[int, tuple[str, tuple[FileFact, ...]]],
    lines: Sequence[CommitLine],
) -> list[CommitLine]:
    """`commits.jsonl`: the lines that stand, and one for each step published since."""
    chained = list(lines)
    for record in records[len(lines) :]:
        if record["step"] in published:
            commit, files = published[record["step"]]
            previous = chained[-1].digest if chained else None
            chained.append(
                CommitLine(
                    record["step"], record_digest(record), record["weights_root"], commit,
                    tuple(sorted(files, key=lambda file: file.path)), previous,
                )
            )  # fmt: skip
    return chained


def _pending(records: Sequence[Record], state: Survey) -> list[Record]:
    pending = [record for record in records if record["step"] not in state.commits]
    if state.left_over is not None and not pending:
        raise CheckpointError(
            f"commit {state.left_over} at the head of {BRANCH} is none of this run's steps: "
            "somebody else wrote there. Publish to another repository"
        )
    return pending


class _Work:
    """The steps of publishing one run, each safe to repeat."""

    def __init__(self, run: RunFiles, remote: Remote, options: Options) -> None:
        self.run, self.remote, self.options = run, remote, options

    def eta(self, steps: int) -> str:
        work = {"commit": steps + 1, "call": (steps + 1) * _CALLS_PER_STEP}
        seconds = self.remote.pacer.eta(work)
        return f" in about {spell(seconds)}" if seconds >= 1 else ""

    def size_of(self, record: Record) -> tuple[int, int]:
        with self._exported(record) as files:
            return len(files), sum(path.stat().st_size for path in files.values())

    def check_published(self, state: Survey) -> dict[int, tuple[str, tuple[FileFact, ...]]]:
        """Commit and files of every published step, after comparing the Hub with the ledger."""
        lines = {line.step: line for line in state.lines}
        published = {}
        for record in self.run.records:
            step = record["step"]
            if step in state.commits:
                commit = state.commits[step]
                tree = self.remote.tree(commit)
                if step in lines:
                    files = lines[step].files
                    _compare(files, tree, f"{self.remote.url} step{step} ({commit})")
                else:
                    files = self.holds(record, tree, commit)
                published[step] = (commit, files)
        return published

    def holds(
        self, record: Record, tree: dict[str, RemoteFile], commit: str
    ) -> tuple[FileFact, ...]:
        """The files of a revision, after finding each as the Hub states it.

        Raises:
            CheckpointError: names the file that differs.
        """
        sha256 = {item["path"]: item["sha256"] for item in record["files"]}
        with self._exported(record) as files:
            facts = tuple(
                fact_of(path, name, tree.get(name), sha256.get(name))
                for name, path in files.items()
            )
        _compare(facts, tree, f"{self.remote.url} step{record['step']} ({commit})")
        return facts

    def publish_step(
        self, record: Record, parent: str, made: str | None
    ) -> tuple[str, tuple[FileFact, ...]]:
        """Commit (or the commit `made` before), branch, and what was read back."""
        step = record["step"]
        verify_checkpoint(self.run.directory, record)
        commit = made or self._commit_step(record, parent)
        facts = self.holds(record, self.remote.tree(commit), commit)
        found = [c for c, _ in self.remote.history(commit)][-2:]
        if found != [parent, commit]:
            raise CheckpointError(
                f"{self.remote.url}: expected commit {commit} of step {step} on top of {parent}, "
                f"found {found}; the Hub did not do as it said. Publish again"
            )
        self.remote.create_branch(f"step{step}", commit)
        return commit, facts

    def _commit_step(self, record: Record, parent: str) -> str:
        before = self.remote.tree(parent)
        with self._exported(record) as files:

            def operations() -> list[Operation]:
                gone = sorted(set(before) - set(files))
                return [
                    *(CommitOperationDelete(name, is_folder=False) for name in gone),
                    *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
                ]

            def holds(tree: dict[str, RemoteFile]) -> bool:
                return set(tree) == set(files) and not differing(files, tree)

            message = f"{self.remote.repo_id} step{record['step']}"
            return self.remote.commit(BRANCH, parent, operations, message, holds)

    def publish_main(self, lines: Sequence[CommitLine]) -> str:
        """Brings main to the published state."""
        with self.run.scratch() as scratch:
            files = self._main_files(lines, scratch)
            return bring_main(self.remote, files, f"{len(lines)} steps")

    def main_changes(self, lines: Sequence[CommitLine], tree: dict[str, RemoteFile]) -> list[str]:
        """Files of main that are not as they should be."""
        if not lines:
            return []
        with self.run.scratch() as scratch:
            return differing(self._main_files(lines, scratch), tree)

    def _main_files(self, lines: Sequence[CommitLine], scratch: Path) -> dict[str, Path]:
        return main_files(
            self.run, lines, self.remote.repo_id, self.options.licence, self.options.dataset,
            scratch / "main",
        )  # fmt: skip

    @contextmanager
    def _exported(self, record: Record) -> Iterator[dict[str, Path]]:
        with self.run.scratch() as scratch:
            directory = scratch / f"step{record['step']}"
            self.run.export(record, directory, self.options.with_state)
            yield {path.name: path for path in sorted(directory.iterdir())}


def _compare(facts: Sequence[FileFact], tree: dict[str, RemoteFile], where: str) -> None:
    listed = {fact.path: fact for fact in facts}
    for path in sorted(set(listed) | set(tree)):
        fact = listed.get(path)
        if fact is None or not fact.is_on(tree.get(path)):
            raise CheckpointError(
                f"{where}: expected {path} to be {fact or 'absent'}, the Hub states "
                f"{tree.get(path) or 'no such file'}. A published step never changes: publish to "
                "another repository"
            )
