"""Versions of the record, and the way from an old one to the present one.

A ledger is never rewritten: its digests are those of the bytes as they were written. Records of an
older version are checked by that version's JSON Schema and chained by their own bytes; code that
reads their fields takes `migrate_record(record)`, which gives the fields of the present version.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from checkpoints_manifest.errors import CheckpointError

PRESENT = "manifest-v1"
# Every version that can be read, to the JSON Schema beside this file.
SCHEMA_FILES = {"manifest-v1": "manifest-v1.schema.json"}
# From each version but the present one: the next version, and the step to it.
Step = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: dict[str, tuple[str, Step]] = {}


def version_of(record: Mapping[str, Any], where: str) -> str:
    """The version that a record states.

    Raises:
        CheckpointError: none, or one that this Tripod does not know.
    """
    version = record.get("schema")
    if type(version) is not str or version not in SCHEMA_FILES:
        raise CheckpointError(
            f"{where}: expected a record of {', '.join(sorted(SCHEMA_FILES))}, found schema "
            f"{version!r:.100}; if a later Tripod wrote it, read it with that"
        )
    return version


def migrate_record(record: Mapping[str, Any], where: str = "the record") -> dict[str, Any]:
    """The fields of a record in the present version; the record itself is not changed.

    The result has no digest of its own: chains are over the records as they were written.

    Raises:
        CheckpointError: a version that this Tripod does not know, or has no way from.
    """
    found = copy.deepcopy(dict(record))
    while (version := version_of(found, where)) != PRESENT:
        if version not in MIGRATIONS:
            raise CheckpointError(f"{where}: there is no way from {version} to {PRESENT}")
        following, step = MIGRATIONS[version]
        found = step(found) | {"schema": following}
    return found
