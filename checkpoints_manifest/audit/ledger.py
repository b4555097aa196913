"""Audit of Tripod's own ledger, `manifest.jsonl` on main, against what the repository serves.

The ledger's text is read with the snapshot; everything here is compared with digests that the Hub
states, so a file is checked without downloading it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from checkpoints_manifest.audit.snapshot import GONE, Finding, RepoSnapshot
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.gitobjects import blob_id, commit_id, lfs_pointer, tree_id
from checkpoints_manifest.manifest import Ledger, Record
from checkpoints_manifest.published import COMMITS, LEDGER, parse_commits
from checkpoints_manifest.verify import order_findings
from data_pipeline.canonical import canonical_json, sha256_hex

# Files of main that the ledger's checks read; the order's only where they are not large.
SIDE_FILES = (LEDGER, COMMITS, "run/config.json", "run/order.log")
_OWN_RECORD = "checkpoint_manifest.json"


def read_ledger(snapshot: RepoSnapshot) -> tuple[list[Record], str | None]:
    """Records of the ledger on main, and what is wrong with it; none where there is no ledger."""
    text = snapshot.text("main", LEDGER)
    if text is None:
        return [], None
    try:
        return Ledger(Path(LEDGER)).parse(text), None
    except CheckpointError as error:
        return [], str(error)


def ledger_steps(snapshot: RepoSnapshot) -> list[int] | None:
    """Steps of the ledger; None where there is none that can be read."""
    return [record["step"] for record in read_ledger(snapshot)[0]] or None


def reasons(snapshot: RepoSnapshot) -> set[int]:
    """Steps whose record says why they have the weights of an earlier one."""
    return {r["step"] for r in read_ledger(snapshot)[0] if "same_weights_reason" in r}


def check_ledger(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """The ledger's chain; files and commits of each revision against it."""
    records, problem = read_ledger(snapshot)
    if problem is not None:
        yield Finding("ledger", ("main",), f"main: {problem}")
    by_step = {record["step"]: record for record in records}
    for name, step in snapshot.steps.items():
        if records and step not in by_step:
            yield Finding("ledger", (name,), f"{name} is published, the ledger has no record of it")
        elif records:
            yield from _check_files(snapshot, name, by_step[step])
    if records:
        yield from _check_order(snapshot, records)
        yield from _check_published(snapshot, records)
    yield from _check_local_commits(snapshot)


def _check_files(snapshot: RepoSnapshot, name: str, record: Record) -> Iterator[Finding]:
    files = snapshot.revisions[name]
    for item in record["files"]:
        found = files.get(item["path"])
        # Small files carry git's id, which says nothing about their SHA-256.
        if found and len(found[1]) == 64 and found != (item["size"], item["sha256"]):
            yield Finding(
                "ledger", (name,),
                f"{name}: {item['path']}: the ledger states {item['size']} bytes, sha256 "
                f"{item['sha256']}; the revision serves {found[0]} bytes, {found[1]}",
            )  # fmt: skip
    own = canonical_json(record)
    served = files.get(_OWN_RECORD)
    if served and served[1] not in (blob_id(own), sha256_hex(own)):
        yield Finding(
            "ledger", (name,), f"{name}: {_OWN_RECORD} is not the ledger's record of this step"
        )


def _check_order(snapshot: RepoSnapshot, records: list[Record]) -> Iterator[Finding]:
    config, log = (snapshot.text("main", path) for path in SIDE_FILES[2:])
    if config is not None and log is not None:
        for message in order_findings(config, log, records, SIDE_FILES[2]):
            yield Finding("ledger", ("main",), f"main: {message}")


def _check_published(snapshot: RepoSnapshot, records: list[Record]) -> Iterator[Finding]:
    """`commits.jsonl` against the ledger and the branches."""
    text = snapshot.text("main", COMMITS)
    if text is None:
        return
    try:
        lines = parse_commits(text, records, COMMITS)
    except CheckpointError as error:
        yield Finding("ledger", ("main",), f"main: {error}")
        return
    for line in lines:
        name = f"step{line.step}"
        if name not in snapshot.revisions:
            continue
        if snapshot.commits.get(name, line.commit) != line.commit:
            yield Finding(
                "ledger", (name,),
                f"{name}: {COMMITS} names commit {line.commit}, the branch is at "
                f"{snapshot.commits[name]}",
            )  # fmt: skip
        stated = {f.path: (f.size, (f.sha256, f.blob)) for f in line.files}
        served = snapshot.revisions[name]
        for path in sorted({*stated, *served}):
            if path not in stated or path not in served:
                where = COMMITS if path in stated else "the revision"
                yield Finding("ledger", (name,), f"{name}: {path} is in {where} only")
            elif served[path][0] != stated[path][0] or served[path][1] not in stated[path][1]:
                yield Finding("ledger", (name,), f"{name}: {path} is not the file of {COMMITS}")


def _check_local_commits(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Commits of a local Hub carry name, files and parent in their id; others are not judged."""
    parent, local = None, False
    for number, name in enumerate(snapshot.steps):
        files, stated = snapshot.revisions[name], snapshot.commits.get(name)
        whole = all(size != GONE and "/" not in path for path, (size, _) in files.items())
        if stated is None or not whole:
            return
        blobs = {
            path: digest if len(digest) == 40 else blob_id(lfs_pointer(digest, size))
            for path, (size, digest) in files.items()
        }
        expected = commit_id(tree_id(blobs), parent, f"{snapshot.name} {name}")
        if number == 0 and expected == stated:
            local = True
        if local and expected != stated:
            yield Finding(
                "renamed-step", (name,),
                f"{name}: its name, files and parent give commit {expected}, the ref names "
                f"{stated}: the ref was moved or renamed",
            )  # fmt: skip
            return
        parent = stated
