"""`tripod audit`: is step N of a published suite step N? From metadata alone, for anyone's suite.

Checks of one repository (`audit`): steps that are missing, unreadable steps, the same weights under
two steps, shards of another step, main against the last step, tokenizer, configuration and size
that drift, names, commit titles and order that contradict, files of nothing but zeros, and Tripod's
own ledger where there is one. Checks between repositories (`audit_family`): runs that share weights
but not their start. A finding never depends on more than the snapshot; a sound suite has none.

What metadata cannot show: weights that are unique and wrong. `deep` looks at the weights
themselves, and a replayed step proves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from checkpoints_manifest.audit.drift import config_drift, zeroed_files
from checkpoints_manifest.audit.ledger import check_ledger, ledger_steps
from checkpoints_manifest.audit.names import commit_order, commit_titles, odd_names
from checkpoints_manifest.audit.schedule import Schedule, inferred
from checkpoints_manifest.audit.snapshot import Finding, RepoSnapshot, step_list
from checkpoints_manifest.audit.weights import (
    audit_family,
    duplicates,
    main_not_last,
    odd_sizes,
    shared_shards,
    unreadable,
)

__all__ = ["KINDS", "Finding", "RepoSnapshot", "audit", "audit_family", "schedule_of"]

KINDS = {
    "no-steps": "no revision is named as a step",
    "missing-step": "a step of the schedule has no revision",
    "unreadable-step": "a step without weights or configuration, or with files missing",
    "duplicate-weights": "two steps serve the same weights",
    "shared-shard": "a step serves a file of another step's weights",
    "main-not-last": "main does not serve the last step",
    "odd-size": "weights of another size than the other steps'",
    "tokenizer-drift": "tokenizer files differ between steps",
    "config-drift": "configurations differ between steps",
    "zeroed-file": "a file holds nothing but zeros",
    "odd-name": "a name that contradicts the others",
    "other-branch": "weights under a branch that is no step",
    "renamed-step": "a revision's name, commit title or own record name different steps",
    "wrong-order": "commits of the steps are not in the order of the steps",
    "ledger": "the ledger on main is broken or says something else",
    "wrong-lineage": "two runs share weights but not their start",
    "shared-between-runs": "two runs serve the same weights",
    "deep": "the weights themselves do not look like one run",
}


def schedule_of(snapshot: RepoSnapshot, declared: Schedule | None = None) -> Schedule:
    """The schedule that a snapshot is held against: declared, the ledger's, or inferred."""
    if declared is not None:
        return declared
    stated = ledger_steps(snapshot)
    if stated is not None:
        return Schedule(frozenset(stated), "the ledger on main")
    return inferred(snapshot.steps.values())


def audit(snapshot: RepoSnapshot, schedule: Schedule | None = None) -> list[Finding]:
    """Everything that metadata shows to be wrong with a repository; an empty list if nothing is.

    Args:
        snapshot: the repository.
        schedule: steps that should be there; None: the ledger's, or inferred.
    """
    if not snapshot.steps:
        return [Finding("no-steps", (), f"no revision of {snapshot.name} is named as a step")]
    checks: tuple[Callable[[RepoSnapshot], Iterator[Finding]], ...] = (
        unreadable, duplicates, shared_shards, main_not_last, odd_sizes, config_drift, zeroed_files,
        odd_names, commit_titles, commit_order, check_ledger,
    )  # fmt: skip
    found = [*_missing(snapshot, schedule_of(snapshot, schedule))]
    for check in checks:
        found += check(snapshot)
    return found


def _missing(snapshot: RepoSnapshot, schedule: Schedule) -> Iterator[Finding]:
    missing = sorted(schedule.steps - set(snapshot.steps.values()))
    if missing:
        names = tuple(snapshot.pattern.replace("{N}", str(step)) for step in missing)
        yield Finding(
            "missing-step", names,
            f"no revision {step_list(names)}; expected ({schedule.words}) "
            f"{len(schedule.steps)} steps, found {len(snapshot.steps)}",
        )  # fmt: skip
