"""Where a run went on under another numerics record: what its ledger states, and what it hides.

Bits hold per numerics record, and every manifest carries the digest of the one that computed it. A
user may accept a change by name; the next checkpoint's record then lists it in `numerics_changes`,
each with the step after which the new record computes, both digests and the fields that differ. A
digest that changes without being listed, or a list that does not lead from the record before to
this one, is a finding. Specification: docs/spec/manifest.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from checkpoints_manifest.errors import CheckpointError

FIELD = "numerics_changes"
Change = dict[str, Any]


def make_change(
    step: int, before: str, after: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Change:
    """One change, as a record lists it.

    Args:
        step: updates done before it; update step + 1 is the first of the new record.
        before: digest of the numerics record until then.
        after: digest of the one from then on.
        old: the record behind `before`.
        new: the record behind `after`.
    """
    fields = {
        name: {"from": old.get(name), "to": new.get(name)}
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }
    return {"step": step, "from": before, "to": after, "fields": fields}


def describe_change(change: Change) -> str:
    """One line for people: the step, and every field with both values."""
    fields = ", ".join(
        f"{name} {values['from']!r} -> {values['to']!r}"
        for name, values in sorted(change["fields"].items())
    )
    return f"from update {change['step'] + 1} on under another numerics record: {fields}"


def stated_changes(records: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Every change that a ledger states, oldest first."""
    return [change for record in records for change in record.get(FIELD, ())]


def change_findings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the stated changes of a ledger; empty where every change is stated."""
    return [f"step{step}: {problem}" for step, problem in _problems(records)]


def _problems(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    now, low = None, 0
    for record in records:
        step, changes = record["step"], record.get(FIELD, [])
        if now is None:
            now = changes[0]["from"] if changes else record["numerics"]
        for change in changes:
            if change["from"] != now:
                yield (
                    step,
                    f"a change of numerics is stated from {change['from']}, but the steps before "
                    f"it were computed under {now}",
                )
            if not low <= change["step"] < step:
                yield (
                    step,
                    f"a change of numerics is stated after step {change['step']}; expected one in "
                    f"[{low}, {step})",
                )
            now, low = change["to"], change["step"]
        if now != record["numerics"]:
            yield (
                step,
                f"its numerics record is {record['numerics']}, that of the steps before it {now}, "
                "and no accepted change says so",
            )
        now, low = record["numerics"], step


def numerics_of(records: Sequence[Mapping[str, Any]], first: int, last: int) -> str:
    """Digest of the numerics record under which updates first+1 .. last were computed.

    Raises:
        CheckpointError: there was a change between them; names it.
    """
    if not records:
        raise CheckpointError("an empty ledger names no numerics record")
    changes = stated_changes(records)
    inside = [change for change in changes if first < change["step"] < last]
    if inside:
        raise CheckpointError(
            f"updates {first + 1}..{last} cross an accepted change of numerics, "
            f"{describe_change(inside[0])}; nobody can recompute them in one go: take the parts "
            f"{first}..{inside[0]['step']} and {inside[0]['step']}..{last} where a checkpoint "
            "stands between them"
        )
    earlier = [change for change in changes if change["step"] <= first]
    if earlier:
        return str(earlier[-1]["to"])
    return str(changes[0]["from"] if changes else records[-1]["numerics"])
