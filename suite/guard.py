"""A run goes on under the numerics record of its state, or under another one that a user accepted.

What counts is the record that computed the state a run continues from, which its manifest names by
digest. `RUN/numerics.json` holds the present record, `RUN/numerics/<digest>.json` those before it.
An accepted change is listed in the manifest of the next checkpoint (`numerics_changes`), so a start
that dies before it has saved anything has to be accepted again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints_manifest.manifest import Record
from checkpoints_manifest.numerics_breaks import Change, make_change
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.durable import write_bytes
from suite.comm import Group
from suite.numerics import NumericsError, differences, refusal

ACCEPT_NUMERICS = "numerics"


def settle_numerics(
    run_dir: Path,
    state: Record | None,
    pending: Sequence[Change],
    present: Mapping[str, Any],
    accepted: bool,
) -> list[Change]:
    """Checks that a run may go on with the present record, and writes `numerics.json`.

    Args:
        run_dir: the run directory.
        state: record of the checkpoint it continues from, of either kind; None at its start.
        pending: changes accepted before that no line of the ledger lists yet.
        present: numerics record of this process.
        accepted: whether the user accepts a change.

    Returns:
        The changes that the next checkpoint's record has to list.

    Raises:
        NumericsError: another record, and the change is not accepted; names every field.
    """
    changes, path, data = list(pending), run_dir / "numerics.json", canonical_json(dict(present))
    if state is not None:
        before, after = recorded_numerics(run_dir, state["numerics"], present), sha256_hex(data)
        if state["numerics"] != after:
            if not accepted:
                raise NumericsError(refusal(differences(before, present)))
            changes.append(make_change(state["step"], state["numerics"], after, before, present))
            earlier = run_dir / "numerics" / f"{state['numerics']}.json"
            earlier.parent.mkdir(exist_ok=True)
            write_bytes(earlier, canonical_json(before))
    write_bytes(path, data)
    return changes


def recorded_numerics(run_dir: Path, digest: str, present: Mapping[str, Any]) -> dict[str, Any]:
    """The numerics record with a digest, from the run directory.

    Args:
        run_dir: the run directory.
        digest: what a manifest says.
        present: the record of this process, for the message.

    Raises:
        NumericsError: none of the files has that digest.
    """
    named = run_dir / "numerics.json"
    for path in (named, run_dir / "numerics" / f"{digest}.json"):
        if path.exists() and sha256_hex(data := path.read_bytes()) == digest:
            return dict(json.loads(data))
    found = json.loads(named.read_bytes()) if named.exists() else {}
    lines = differences(found, present) or ["in nothing but its bytes: it is not canonical JSON"]
    raise NumericsError(
        f"{named} is not the record that the ledger names ({digest}); it differs from this process "
        "in:\n  "
        + "\n  ".join(lines)
        + "\nrestore the file from a copy; the checkpoints here were not touched"
    )


def check_ranks_agree(record: Mapping[str, Any], group: Group) -> None:
    """Refuses a group of unlike machines: every rank must compute with rank 0's record.

    Raises:
        NumericsError: on the rank that differs, naming the fields.
    """
    first = group.broadcast(dict(record))
    assert isinstance(first, dict)
    lines = differences(first, record)
    if lines:
        raise NumericsError(
            f"rank {group.rank} computes with another numerics record than rank 0:\n  "
            + "\n  ".join(lines)
            + "\nstart the run on machines of one kind with one installation"
        )
