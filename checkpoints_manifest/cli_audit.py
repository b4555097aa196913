"""Commands that judge and look after checkpoints: `audit`, `hub gc`, `sign`, `verify signature`.

Exit status: 0 fine, 1 something was found, errors raise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from checkpoints_manifest.audit import Finding, RepoSnapshot, audit_family
from checkpoints_manifest.audit.deep import Fetch, choose, deep_audit, zero_pages
from checkpoints_manifest.audit.report import AuditReport, as_html, as_json, as_text
from checkpoints_manifest.audit.schedule import declared
from checkpoints_manifest.audit.snapshot import weights_of
from checkpoints_manifest.audit.source import (
    local_repositories,
    snapshot_local,
    snapshot_remote,
)
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.hub_gc import collect_garbage
from checkpoints_manifest.manifest import Ledger
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.signing import sign_ledger, verify_signature
from checkpoints_manifest.verify import LEVELS
from data_pipeline.canonical import sha256_file
from data_pipeline.durable import write_bytes

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
PASSWORD = "TRIPOD_KEY_PASSWORD"
# Files that state a token order, up to the size that --deep downloads.
_ORDER = re.compile(r"(?:.*/)?[\w-]*(?:order|shuffle|indices|idx)[\w-]*\.(?:npy|log|bin)", re.ASCII)
_MAX_ORDER = 2 << 30


def add_commands(add: Add) -> None:
    """Adds this package's commands; `add` is `suite.command_line.CommandTable.add`."""
    sub = add(
        "audit", _audit, "is step N of a published suite step N? from metadata alone",
        "audit EleutherAI/pythia-2.8b --schedule pythia --html audit.html",
    )  # fmt: skip
    sub.add_argument(
        "repositories", nargs="+",
        help="org/name on a Hub, several for runs of one suite; or a local Hub's directory",
    )  # fmt: skip
    sub.add_argument("--endpoint", help="address of the Hub (default: huggingface_hub's)")
    sub.add_argument(
        "--schedule",
        help="steps there should be: pythia, or like 0,pow2<=512,every=1000<=143000 "
        "(default: the ledger's, or inferred)",
    )
    sub.add_argument(
        "--details", action="store_true", help="also read small JSON files: configurations, indices"
    )
    sub.add_argument(
        "--deep", type=int, metavar="N", nargs="?", const=8, default=0,
        help="also download N checkpoints (default 8) and compare their weights",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true", help="print findings as JSON")
    sub.add_argument("--html", type=Path, help="also write one self-contained page")

    sub = add(
        "hub gc", _gc, "remove from a local Hub what no ref and no ledger needs",
        "hub gc runs/nano/hub --dry-run",
    )  # fmt: skip
    sub.add_argument("hub", type=Path, help="directory of a local Hub")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    sub.add_argument(
        "--ledger", type=Path, action="append", default=[],
        help="manifest.jsonl of a run whose files stay (those beside the Hub always do)",
    )  # fmt: skip

    sub = add("sign", _sign, "sign a run's ledger", "sign runs/nano/nano-1m --key private.pem")
    sub.add_argument("run_dir", type=Path)
    sub.add_argument(
        "--key", type=Path, required=True,
        help=f"private key, PEM; its password, if any, in {PASSWORD}",
    )  # fmt: skip

    sub = add(
        "verify signature", _verify_signature, "check the signature over a run's ledger",
        "verify signature runs/nano/nano-1m --key public.pem",
    )  # fmt: skip
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--key", type=Path, required=True, help="public key, PEM")


def add_level_flag(parser: argparse.ArgumentParser) -> None:
    """The `--level` of `verify checkpoints`; pass it on to `verify.verify_checkpoints`."""
    parser.add_argument(
        "--level", choices=LEVELS, default="chain",
        help="how deep, each with all before it (default: chain; replay computes steps again)",
    )  # fmt: skip


def _audit(arguments: argparse.Namespace) -> int:
    schedule = declared(arguments.schedule) if arguments.schedule else None
    sources = [source for text in arguments.repositories for source in _sources(text, arguments)]
    reports = []
    for snapshot, fetch in sources:
        more = _deep(snapshot, fetch, arguments.deep) if arguments.deep else []
        reports.append(AuditReport.of(snapshot, schedule, more))
    between = audit_family([report.snapshot for report in reports])
    if arguments.html:
        write_bytes(arguments.html, as_html(reports, between).encode())
    if arguments.json:
        found = [as_json(report) for report in reports]
        print(json.dumps({"repositories": found, "between": [vars(f) for f in between]}))
    else:
        for report in reports:
            print(as_text(report))
        for finding in between:
            print(f"FAIL between repositories: {finding.kind}  {finding.message}")
    return 1 if between or any(report.findings for report in reports) else 0


def _sources(text: str, arguments: argparse.Namespace) -> Iterator[tuple[RepoSnapshot, Fetch]]:
    root = Path(text)
    if root.is_dir():
        names = local_repositories(root)
        if not names:
            raise CheckpointError(f"{root} holds no model in the Hub's cache layout")
        for name in names:
            local = snapshot_local(root, name)
            yield local, _local_fetch(root, local)
        return
    remote = Remote(text, endpoint=arguments.endpoint)
    snapshot = snapshot_remote(remote, arguments.details)
    yield snapshot, _remote_fetch(remote, snapshot)


def _deep(snapshot: RepoSnapshot, fetch: Fetch, count: int) -> list[Finding]:
    by_step = {step: name for name, step in snapshot.steps.items()}
    found = deep_audit([(by_step[s], s) for s in choose(list(by_step), count)], fetch)
    main = snapshot.revisions.get("main", {})
    paths = [p for p, (size, _) in main.items() if _ORDER.fullmatch(p) and size <= _MAX_ORDER]
    if paths:
        with fetch("main", paths) as folder:
            found += [f for path in paths for f in zero_pages(f"main:{path}", folder / path)]
    return found


def _local_fetch(root: Path, snapshot: RepoSnapshot) -> Fetch:
    @contextmanager
    def fetch(name: str, paths: Sequence[str] | None = None) -> Iterator[Path]:
        yield LocalHub(root).repository(snapshot.name) / "snapshots" / snapshot.commits[name]

    return fetch


def _remote_fetch(remote: Remote, snapshot: RepoSnapshot) -> Fetch:
    """Downloads files of a revision, or its weights in one format, while they are looked at."""

    @contextmanager
    def fetch(name: str, paths: Sequence[str] | None = None) -> Iterator[Path]:
        files = snapshot.revisions[name]
        formats = weights_of(files)
        chosen = formats.get("safetensors") or formats.get("bin") or {}
        if paths is not None:
            chosen = {path: files[path] for path in paths}
        for path in chosen:
            # The tree is the server's word; nothing may be written outside the folder.
            if not re.fullmatch(r"(?!.*\.\.)[\w][\w./-]*", path, re.ASCII):
                raise CheckpointError(f"{name}: expected a path inside the repository: {path!r}")
        with tempfile.TemporaryDirectory(prefix="tripod-audit-") as folder:
            for path, (size, digest) in chosen.items():
                got = remote.download(snapshot.commits[name], path, size, Path(folder), force=False)
                if len(digest) == 64 and sha256_file(got) != digest:
                    raise CheckpointError(f"{path} has not the SHA-256 that the Hub states")
            yield Path(folder)

    return fetch


def _gc(arguments: argparse.Namespace) -> int:
    hub = LocalHub(arguments.hub)
    beside = sorted(arguments.hub.absolute().parent.glob("*/manifest.jsonl"))
    names = local_repositories(arguments.hub)
    if not names:
        raise CheckpointError(f"{arguments.hub} holds no model in the Hub's cache layout")
    for name in names:
        done = collect_garbage(hub, name, [*beside, *arguments.ledger], arguments.dry_run)
        verb = "would remove" if arguments.dry_run else "removed"
        print(
            f"{name}: {verb} {len(done.snapshots)} snapshots, {len(done.blobs)} blobs, "
            f"{len(done.temporary)} temporary files; {done.freed_bytes:,} bytes"
        )
        for path in done.paths if arguments.dry_run else ():
            print(f"    {path}")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    # A ledger that does not verify is not signed.
    records = Ledger(arguments.run_dir / "manifest.jsonl").records()
    path = sign_ledger(arguments.run_dir, arguments.key, os.environ.get(PASSWORD))
    print(f"{path}: signed, {len(records)} checkpoints")
    return 0


def _verify_signature(arguments: argparse.Namespace) -> int:
    try:
        verify_signature(arguments.run_dir, arguments.key)
    except CheckpointError as error:
        print(f"FAIL {error}")
        return 1
    print(f"ok   {arguments.run_dir / 'manifest.jsonl'} is signed by the holder of {arguments.key}")
    return 0
