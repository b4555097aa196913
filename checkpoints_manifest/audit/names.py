"""Audit of names: what revisions, commit titles and the order of commits say must be one thing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from checkpoints_manifest.audit.snapshot import Finding, RepoSnapshot, signatures

STEP_LIKE = re.compile(r"(?i)(?:global[_-]?)?(?:step|checkpoint|ckpt|iter)s?[_-]?0*(\d+)\b.*")
# Branches that hold weights and are no step: `checkpoints` is where Tripod's steps are committed.
_OTHER_BRANCHES = ("main", "master", "checkpoints")


def odd_names(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Two names of one step, names unlike the others, weights under no step."""
    by_step: dict[int, list[str]] = defaultdict(list)
    for name, step in snapshot.steps.items():
        by_step[step].append(name)
    for step, names in by_step.items():
        if len(names) > 1:
            yield Finding("odd-name", tuple(names), f"{', '.join(names)} all name step {step}")
    for name in sorted(set(snapshot.revisions) - set(snapshot.steps)):
        if STEP_LIKE.fullmatch(name):
            yield Finding(
                "odd-name", (name,),
                f"{name}: expected a name like the others', {snapshot.pattern}",
            )  # fmt: skip
        elif name not in _OTHER_BRANCHES and signatures(snapshot.revisions[name]):
            yield Finding("other-branch", (name,), f"{name} holds weights and names no step")
    yield from _token_names(snapshot)


def _token_names(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Names that carry tokens too: tokens per step must be one number, up to rounding."""
    found = [
        (name, step, int(match[1]))
        for name, step in snapshot.steps.items()
        if step and (match := re.search(r"tokens(\d+)B", name))
    ]
    # Tokens are rounded to a billion, so each name bounds tokens per step from both sides.
    if not found:
        return
    name, step, billions = max(found, key=lambda item: item[2])
    per_step = billions / step
    for other, other_step, other_billions in found:
        if abs(other_billions - per_step * other_step) > 1 + per_step * other_step / 50:
            yield Finding(
                "renamed-step", (other,),
                f"{other}: at the tokens per step of {name}, step {other_step} has seen "
                f"{per_step * other_step:.0f}B tokens, the name says {other_billions}B",
            )  # fmt: skip


def commit_titles(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """A commit that says it is another step."""
    for name, step in snapshot.steps.items():
        stated = {int(n) for n in re.findall(r"\bstep[ _-]?(\d+)\b", snapshot.titles.get(name, ""))}
        if stated and step not in stated:
            yield Finding(
                "renamed-step", (name,),
                f"{name}: its commit is titled {snapshot.titles[name]!r:.100}",
            )  # fmt: skip


def commit_order(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Commits of a linear history come in the order of the steps."""
    place = {commit: number for number, commit in enumerate(snapshot.history)}
    known = [name for name in snapshot.steps if snapshot.commits.get(name) in place]
    for before, after in pairwise(known):
        if place[snapshot.commits[before]] > place[snapshot.commits[after]]:
            yield Finding(
                "wrong-order", (before, after),
                f"the commit of {before} comes after the commit of {after}",
            )  # fmt: skip
