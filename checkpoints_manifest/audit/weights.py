"""Audit of weights by their digests: there, whole, unlike any other step's, and main the last."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from checkpoints_manifest.audit.ledger import reasons
from checkpoints_manifest.audit.snapshot import (
    GONE,
    Finding,
    RepoSnapshot,
    signatures,
    step_list,
    weights_of,
)

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")


def unreadable(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Steps that cannot be loaded: no weights, missing shards, no configuration."""
    for name in snapshot.steps:
        files = snapshot.revisions[name]
        problems = [*_weight_problems(snapshot, name)]
        if "config.json" not in files:
            problems.append("no config.json")
        problems += [f"{path} has no content" for path, item in files.items() if item[0] == GONE]
        if problems:
            yield Finding("unreadable-step", (name,), f"{name}: {'; '.join(problems)}")


def _weight_problems(snapshot: RepoSnapshot, name: str) -> Iterator[str]:
    files = snapshot.revisions[name]
    formats = weights_of(files)
    if not formats:
        yield "no weights"
    for path, (size, _) in (item for found in formats.values() for item in found.items()):
        if size == 0:
            yield f"{path} is empty"
    shards: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for path in (path for found in formats.values() for path in found):
        if match := _SHARD.fullmatch(path):
            shards[match[1], match[3], match[4]].add(int(match[2]))
    for (stem, count, suffix), numbers in shards.items():
        for number in sorted(set(range(1, int(count) + 1)) - numbers):
            yield f"{stem}-{number:05}-of-{count}{suffix} is missing"
        if f"{stem}{suffix}.index.json" not in files:
            yield f"{stem}{suffix}.index.json is missing"
    for path in files:
        if path.endswith(".index.json"):
            yield from _index_problems(snapshot, name, path)


def _index_problems(snapshot: RepoSnapshot, name: str, path: str) -> Iterator[str]:
    text = snapshot.text(name, path)
    if text is None:
        return
    try:
        named = {str(file) for file in dict(json.loads(text)["weight_map"]).values()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield f"{path} is no index of shards ({error!r:.100})"
        return
    for file in sorted(named - set(snapshot.revisions[name])):
        yield f"{path} names {file:.100}, which is not there"


def duplicates(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """The same weights under two steps, unless the ledger says why."""
    groups: dict[tuple[str, ...], list[str]] = {}
    by_weights: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name in snapshot.steps:
        for suffix, signature in signatures(snapshot.revisions[name]).items():
            by_weights[suffix, signature].append(name)
    for names in by_weights.values():
        groups.setdefault(tuple(names), names)
    explained = reasons(snapshot)
    for names in groups.values():
        unexplained = [name for name in names[1:] if snapshot.steps[name] not in explained]
        if unexplained:
            yield Finding(
                "duplicate-weights", tuple(names),
                f"{len(names)} steps serve the same weights: {step_list(names)}; at most one of "
                f"them is what its name says{_first_step_hint(snapshot, names)}",
            )  # fmt: skip


def _first_step_hint(snapshot: RepoSnapshot, names: list[str]) -> str:
    if {snapshot.steps[name] for name in names} == {0, 1}:
        return " (unless the first update has a learning rate of zero)"
    return ""


def shared_shards(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Files of weights under two steps that are not the same as a whole."""
    holders: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in snapshot.steps:
        for found in weights_of(snapshot.revisions[name]).values():
            for path, (_, digest) in found.items():
                if len(found) > 1:
                    holders[digest].append((name, path))
    for places in holders.values():
        names = list(dict.fromkeys(name for name, _ in places))
        wholes = {tuple(sorted(signatures(snapshot.revisions[name]).values())) for name in names}
        if len(wholes) > 1:
            yield Finding(
                "shared-shard", tuple(names),
                f"{places[0][1]} is the same file in {step_list(names)}, whose other shards "
                "differ: all but one of them are put together from two steps",
            )  # fmt: skip


def main_not_last(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """`main` is the last step."""
    if "main" not in snapshot.revisions:
        return
    last = next(reversed(snapshot.steps))
    main, final = (signatures(snapshot.revisions[name]) for name in ("main", last))
    common = set(main) & set(final)
    if not main:
        yield Finding("main-not-last", ("main",), f"main has no weights; expected those of {last}")
    elif not common and final:
        yield Finding(
            "main-not-last", ("main", last),
            f"main has weights as {', '.join(main)} and {last} as {', '.join(final)}: expected one "
            "format in both",
        )  # fmt: skip
    elif any(main[suffix] != final[suffix] for suffix in common):
        same = [
            name for name in snapshot.steps
            if any(signatures(snapshot.revisions[name]).get(s) == main[s] for s in common)
        ]  # fmt: skip
        found = f"those of {step_list(same)}" if same else "weights that no step has"
        yield Finding(
            "main-not-last", ("main", last), f"main: expected the weights of {last}, found {found}"
        )


def odd_sizes(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Steps of one model have weights of one size; a little room for headers and pickles."""
    for suffix in sorted({s for f in snapshot.revisions.values() for s in weights_of(f)}):
        totals = {
            name: sum(max(size, 0) for size, _ in found[suffix].values())
            for name in snapshot.steps
            if suffix in (found := weights_of(snapshot.revisions[name]))
        }
        if not totals:
            continue
        usual = Counter(totals.values()).most_common(1)[0][0]
        for name, total in totals.items():
            if abs(total - usual) > max(1 << 16, usual // 1000):
                yield Finding(
                    "odd-size", (name,),
                    f"{name}: weights ({suffix}) have {total:,} bytes; most steps have {usual:,}",
                )  # fmt: skip


def audit_family(snapshots: Sequence[RepoSnapshot]) -> list[Finding]:
    """Runs of one suite against each other: seeds, variants and sizes must not share weights.

    Two runs may share step 0 (one initialisation, two orders), and whatever else has the weights of
    that common start.
    """
    findings = []
    for one, two in combinations(snapshots, 2):
        starts = [set(_weights_at(s, 0).items()) for s in (one, two)]
        common_start = {signature for _, signature in starts[0] & starts[1]}
        held = {sig: name for name in two.steps for sig in _signatures_at(two, name)}
        shared = [
            (name, held[sig])
            for name in one.steps
            for sig in _signatures_at(one, name)
            if sig in held and sig[1] not in common_start
        ]
        if not shared:
            continue
        names = tuple(f"{one.name}@{a} = {two.name}@{b}" for a, b in dict.fromkeys(shared))
        if starts[0] and starts[1] and not common_start:
            kind, why = "wrong-lineage", "but their step 0 differ: not both descend from their own"
        else:
            kind, why = "shared-between-runs", "so at most one of them is what its name says"
        findings.append(Finding(kind, names, f"the same weights: {step_list(names, 4)}; {why}"))
    return findings


def _weights_at(snapshot: RepoSnapshot, step: int) -> dict[str, tuple[str, ...]]:
    for name, number in snapshot.steps.items():
        if number == step:
            return signatures(snapshot.revisions[name])
    return {}


def _signatures_at(snapshot: RepoSnapshot, name: str) -> list[tuple[str, tuple[str, ...]]]:
    return list(signatures(snapshot.revisions[name]).items())
