"""What a repository holds of a run already, and whether it may be gone on with.

The branch `checkpoints` is linear: commits of main first, then one per step in the ledger's order.
A step is published when its commit is known, from its branch `step{N}` or from `commits.jsonl`. One
commit more at the head is what a killed publisher left; anything else is somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub_answers import Refs, RemoteFile
from checkpoints_manifest.manifest import Record
from checkpoints_manifest.published import BRANCH, COMMITS, CommitLine, parse_commits
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.store import MODEL

_COMMITS_BYTES = 256 << 20


@dataclass(frozen=True)
class Survey:
    """The state of a repository.

    Attributes:
        refs: None where there is no repository.
        lines: `commits.jsonl` of main.
        commits: commit of every published step.
        branch: whether there is a branch `checkpoints`.
        head: the commit that the next step goes on top of; None where there is no main.
        left_over: a commit on top of `head` that no step is known to have.
        main: files of main.
    """

    refs: Refs | None
    lines: list[CommitLine]
    commits: dict[int, str]
    branch: bool
    head: str | None
    left_over: str | None
    main: dict[str, RemoteFile]


def survey(remote: Remote, records: Sequence[Record]) -> Survey:
    """Reads the state; changes nothing.

    Raises:
        CheckpointError: the repository holds another run, or history is not as it must be.
    """
    refs = remote.refs()
    main = refs.branches.get("main") if refs else None
    if refs is None or main is None:
        return Survey(refs, [], {}, False, None, None, {})
    files = remote.tree(main)
    where = f"{remote.url} {COMMITS}"
    if COMMITS not in files and BRANCH not in refs.branches and MODEL in files:
        raise CheckpointError(
            f"{remote.url} holds a model that was not published from a ledger; main would be "
            "overwritten. Publish to another repository"
        )
    data = remote.read(main, COMMITS, _COMMITS_BYTES) if COMMITS in files else b""
    lines = parse_commits(data, records, where)
    commits = _commits(refs, lines, records, remote.url)
    base = [commit for commit, _ in remote.history("main")]
    head, left_over = [base[0], *commits.values()][-1], None
    if BRANCH in refs.branches:
        history = remote.history(BRANCH)
        now = datetime.now(UTC)
        remote.pacer.seed("commit", [(now - date).total_seconds() for _, date in history])
        head, left_over = _ends([c for c, _ in history], base, list(commits.values()), remote.url)
    elif commits:
        raise CheckpointError(
            f"{remote.url} has steps but no branch {BRANCH}; create it again at commit "
            f"{list(commits.values())[-1]}"
        )
    return Survey(refs, lines, commits, BRANCH in refs.branches, head, left_over, files)


def _commits(
    refs: Refs, lines: Sequence[CommitLine], records: Sequence[Record], url: str
) -> dict[int, str]:
    commits = {line.step: line.commit for line in lines}
    missing = None
    for record in records:
        step = record["step"]
        branch = refs.branches.get(f"step{step}")
        if branch is not None and commits.setdefault(step, branch) != branch:
            raise CheckpointError(
                f"{url}: expected branch step{step} at {commits[step]} as {COMMITS} says, found "
                f"{branch}: somebody moved it"
            )
        if step not in commits:
            missing = step if missing is None else missing
        elif missing is not None:
            raise CheckpointError(
                f"{url}: step {step} is published and step {missing}, which comes before it, is "
                "not; history is linear. Publish the whole run to another repository"
            )
    unknown = sorted(
        name for name in refs.branches
        if name.startswith("step") and name not in {f"step{r['step']}" for r in records}
    )  # fmt: skip
    if unknown:
        raise CheckpointError(
            f"{url} has a branch {unknown[0]}, of which this run's ledger knows nothing: another "
            "run is published there. Publish to another repository"
        )
    return dict(sorted(commits.items()))


def _ends(
    history: list[str], base: list[str], published: list[str], url: str
) -> tuple[str, str | None]:
    first = next((i for i, commit in enumerate(history) if commit not in base), len(history))
    own = history[first:]
    if own[: len(published)] != published or len(own) > len(published) + 1 or first == 0:
        raise CheckpointError(
            f"{url}: the commits of {BRANCH} are not the published steps in order "
            f"({len(own)} commits, {len(published)} steps): somebody else wrote there. Publish to "
            "another repository"
        )
    head = first + len(published) - 1
    return history[head], history[head + 1] if len(own) > len(published) else None
