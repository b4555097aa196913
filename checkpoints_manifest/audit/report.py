"""What an audit found, as text for a terminal, JSON for a script, one page of HTML for a reader.

The page is self-contained: no script, no network, every name from the repository escaped.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints_manifest.audit import KINDS, Finding, RepoSnapshot, audit, schedule_of
from checkpoints_manifest.audit.schedule import Schedule
from checkpoints_manifest.audit.snapshot import weights_of

# Colours that are told apart without red and green (Okabe and Ito), and a sign for each.
_LOOK = {
    "missing-step": ("#ffffff", "·"),
    "unreadable-step": ("#e69f00", "!"),
    "duplicate-weights": ("#d55e00", "="),
    "shared-shard": ("#cc79a7", "%"),
    "": ("#56b4e9", ""),
}
_OTHER_LOOK = ("#f0e442", "?")
_CSS = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;text-align:left;
vertical-align:top;border-bottom:1px solid #ddd}code,td.id{font-family:monospace;font-size:.9em}
.strip{display:flex;flex-wrap:wrap;gap:2px;margin:1rem 0}.strip span{width:1.1rem;height:1.4rem;
text-align:center;border:1px solid #888;font-size:.8rem;line-height:1.4rem}
.note{color:#555}summary{cursor:pointer}
"""


@dataclass(frozen=True)
class AuditReport:
    """One repository and everything found."""

    snapshot: RepoSnapshot
    schedule: Schedule
    findings: tuple[Finding, ...]

    @classmethod
    def of(
        cls,
        snapshot: RepoSnapshot,
        declared: Schedule | None = None,
        more: Sequence[Finding] = (),
    ) -> AuditReport:
        """Audits a snapshot; `more` are findings of other kinds of audit."""
        schedule = schedule_of(snapshot, declared)
        return cls(snapshot, schedule, (*audit(snapshot, declared), *more))

    @property
    def shared(self) -> int:
        """Steps that serve weights that another step serves too."""
        return len({r for f in self.findings if f.kind == "duplicate-weights" for r in f.revisions})

    @property
    def headline(self) -> str:
        """One line: how many steps, how many findings, how many shared weights."""
        steps = len(self.snapshot.steps)
        parts = [f"{steps} steps", self.schedule.words]
        if self.shared:
            parts.append(f"{self.shared} of {steps} serve weights that another step serves too")
        parts.append(f"{len(self.findings)} findings" if self.findings else "nothing found")
        return "; ".join(parts)


def as_text(report: AuditReport) -> str:
    """A table for a terminal."""
    lines = [f"{'FAIL' if report.findings else 'ok  '} {report.snapshot.name}: {report.headline}"]
    width = max((len(f.kind) for f in report.findings), default=0)
    lines += [f"     {f.kind:<{width}}  {f.message}" for f in report.findings]
    return "\n".join(lines)


def as_json(report: AuditReport) -> dict[str, Any]:
    """Plain data, `audit-v1`."""
    return {
        "schema": "audit-v1",
        "repository": report.snapshot.name,
        "schedule": report.schedule.words,
        "expected_steps": len(report.schedule.steps),
        "steps": len(report.snapshot.steps),
        "steps_with_shared_weights": report.shared,
        "findings": [
            {"kind": f.kind, "revisions": list(f.revisions), "message": f.message}
            for f in report.findings
        ],
    }


def as_html(reports: Sequence[AuditReport], between: Sequence[Finding] = ()) -> str:
    """One page for one or more repositories, and for what was found between them."""
    body = "\n".join(_section(report) for report in reports)
    if between:
        body += f"\n<h2>Between the repositories</h2>\n{_table(between)}"
    title = "Audit of " + ", ".join(report.snapshot.name for report in reports)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(title)}</title>'
        f"<style>{_CSS}</style></head><body><h1>{_e(title)}</h1>\n"
        '<p class="note">From metadata alone: digests that the Hub states, no weights '
        "downloaded.</p>\n"
        f"{body}\n</body></html>\n"
    )


def _section(report: AuditReport) -> str:
    kinds: dict[str, list[str]] = defaultdict(list)
    for finding in report.findings:
        for name in finding.revisions:
            kinds[name].append(finding.kind)
    found = _table(report.findings) if report.findings else ""
    return (
        f"<h2>{_e(report.snapshot.name)}</h2><p>{_e(report.headline)}.</p>\n"
        f"{_strip(report, kinds)}\n{found}\n{_legend(report)}\n{_revisions(report, kinds)}"
    )


def _table(findings: Sequence[Finding]) -> str:
    rows = "\n".join(
        f"<tr><td><code>{_e(f.kind)}</code></td><td>{_e(f.message)}</td></tr>" for f in findings
    )
    return f"<table><tr><th>found</th><th>what</th></tr>\n{rows}</table>"


def _strip(report: AuditReport, kinds: dict[str, list[str]]) -> str:
    """A cell per step, in order: sound, or the first thing that is wrong with it."""
    names = dict(report.snapshot.steps)
    pattern = report.snapshot.pattern
    for step in report.schedule.steps - set(names.values()):
        names[pattern.replace("{N}", str(step))] = step
    cells = []
    for name in sorted(names, key=lambda n: (names[n], n)):
        first = next((k for k in _LOOK if k in kinds[name]), kinds[name][0] if kinds[name] else "")
        colour, sign = _LOOK.get(first, _OTHER_LOOK)
        title = f"{name}: {', '.join(dict.fromkeys(kinds[name])) or 'nothing found'}"
        cells.append(f'<span style="background:{colour}" title="{_e(title)}">{sign}</span>')
    return f'<div class="strip">{"".join(cells)}</div>'


def _legend(report: AuditReport) -> str:
    kinds = dict.fromkeys(f.kind for f in report.findings)
    rows = [
        f"{_LOOK.get(kind, _OTHER_LOOK)[1]} <code>{_e(kind)}</code>: {_e(KINDS.get(kind, ''))}"
        for kind in kinds
    ]
    return f'<p class="note">{"<br>".join(rows)}</p>' if rows else ""


def _revisions(report: AuditReport, kinds: dict[str, list[str]]) -> str:
    rows = []
    others = sorted(set(report.snapshot.revisions) - set(report.snapshot.steps))
    for name in (*report.snapshot.steps, *others):
        weights = [item for w in weights_of(report.snapshot.revisions[name]).values()
                   for item in w.values()]  # fmt: skip
        size = sum(max(size, 0) for size, _ in weights)
        digests = " ".join(digest[:12] for _, digest in weights)
        rows.append(
            f'<tr><td>{_e(name)}</td><td>{size:,}</td><td class="id">{_e(digests)}</td>'
            f"<td>{_e(', '.join(dict.fromkeys(kinds[name])))}</td></tr>"
        )
    head = "<tr><th>revision</th><th>bytes of weights</th><th>digests</th><th>found</th></tr>"
    return (
        f"<details><summary>All {len(rows)} revisions</summary>"
        f"<table>{head}\n{chr(10).join(rows)}</table></details>"
    )


def _e(text: str) -> str:
    return html.escape(text, quote=True)
