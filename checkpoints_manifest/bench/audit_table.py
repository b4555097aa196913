"""Prints the table of docs/audit.md: which published faults the audit catches, and how.

python -m checkpoints_manifest.bench.audit_table
"""

from __future__ import annotations

from checkpoints_manifest.audit import Finding, RepoSnapshot, audit, audit_family
from checkpoints_manifest.bench.faults import FAULTS, clean


def findings(snapshots: list[RepoSnapshot]) -> list[Finding]:
    """What an audit of these repositories says."""
    found = [finding for snapshot in snapshots for finding in audit(snapshot)]
    return found + audit_family(snapshots)


def table() -> str:
    """Markdown: fault, source, findings, the first message."""
    lines = ["| fault | seen in | found as | first finding |", "|---|---|---|---|"]
    for fault in FAULTS.values():
        found = findings(fault.build())
        kinds = ", ".join(f"`{kind}`" for kind in dict.fromkeys(f.kind for f in found))
        first = found[0].message if found else "**not caught**"
        lines.append(f"| {fault.what} | {fault.where} | {kinds} | {first} |")
    controls = (("no fault, one file", 1), ("no fault, three shards", 3))
    for label, shards in controls:
        count = len(findings([clean(shards=shards)]))
        lines.append(f"| {label} | control | {count} findings | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
