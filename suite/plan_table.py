"""A plan as people and scripts read it: tables of text, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from suite.plan import RungPlan, SuitePlan


def plan_text(plan: SuitePlan) -> str:
    """The whole plan: compute, storage, layouts, digests, notes."""
    rungs = list(plan.rungs.values())
    parts = [
        _title(plan),
        compute_table(plan),
        storage_table(rungs),
        layout_lines(rungs),
        digest_table(rungs),
        *_notes(plan),
    ]
    return "\n\n".join(part for part in parts if part)


def _title(plan: SuitePlan) -> str:
    hardware, config = plan.hardware, next(iter(plan.rungs.values())).config
    memory = (hardware.memory_bytes or 0.0) / 1e9
    kind = "cores" if hardware.device == "cpu" else "GPUs"
    reached = {rung.utilisation for rung in plan.rungs.values()}
    share = f"{min(reached):.1%}" + (f" to {max(reached):.1%}" if len(reached) > 1 else "")
    how = "measured here" if all(rung.measured for rung in plan.rungs.values()) else "stated"
    return (
        f"suite {plan.suite} on {plan.hardware_name}: {hardware.count} {kind} of {memory:.0f} GB, "
        f"{share} of peak ({how})\n"
        f"{config.train.steps:,} steps of {config.data.batch_size:,} x {config.data.seq_len:,} "
        f"tokens, {config.train.schedule}, {config.numerics.precision}"
    )


def compute_table(plan: SuitePlan) -> str:
    """Parameters, tokens, operations, memory and hours, a rung a line."""
    head = [
        "rung", "parameters", "non-embedding", "tokens", "tok/par", "6ND", "FLOPs", "split",
        "state", "kept", "peak GB", "device-h", "wall", "cost",
    ]  # fmt: skip
    rows = [_compute_row(rung) for rung in plan.rungs.values()]
    if all(row[-1] == "-" for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    hours = sum(rung.device_hours for rung in plan.rungs.values())
    wall = sum(rung.wall_hours for rung in plan.rungs.values())
    return (
        _table(head, rows)
        + f"\nall rungs: {hours:,.0f} device-hours, {duration(wall)} one after another"
    )


def _compute_row(rung: RungPlan) -> list[str]:
    memory, parameters = rung.choice.memory, rung.parameters
    return [
        rung.name,
        f"{parameters.total:,}",
        f"{parameters.non_embedding:,}",
        short(rung.tokens),
        f"{rung.tokens / parameters.active:,.0f}",
        f"{rung.flops_6nd:.2e}",
        f"{rung.flops:.2e}",
        split_words(rung),
        f"{memory.state / 1e9:,.1f}",
        f"{(memory.activations + memory.logits) / 1e9:,.1f}",
        f"{memory.peak / 1e9:,.1f}" + ("" if rung.choice.fits else " (!)"),
        f"{rung.device_hours:,.1f}",
        duration(rung.wall_hours),
        "-" if rung.cost is None else f"{rung.cost:,.0f}",
    ]


def split_words(rung: RungPlan) -> str:
    """The layout in a few characters: quantum, ranks, engine."""
    split = rung.choice.split
    words = [f"q{split.quantum}", f"{split.ranks} ranks" if split.ranks > 1 else "1 rank"]
    words.append("exact" if split.engine == "reference" else f"zero{split.zero_stage}")
    if split.tensor_parallel > 1:
        words.append(f"tp{split.tensor_parallel}")
    if split.activation_checkpointing == "blocks":
        words.append("blocks")
    return " ".join(words)


def storage_table(rungs: Sequence[RungPlan]) -> str:
    """Checkpoints: number, disk, Hub, publishing time, what replay saves."""
    head = [
        "rung", "checkpoints", "disk", "Hub", "publish",
        f"full state at 1 in {rungs[0].storage.state_every}", "saved", "replay at most",
    ]  # fmt: skip
    rows = []
    for rung in rungs:
        storage = rung.storage
        rows.append(
            [
                rung.name,
                str(len(storage.steps)),
                size(storage.local_bytes),
                size(storage.hub_bytes),
                duration(storage.publish_hours),
                size(storage.thinned_bytes),
                size(storage.saved_bytes),
                f"{storage.replay_steps:,} steps",
            ]
        )
    return (
        _table(head, rows)
        + f"\nall rungs: {size(sum(r.storage.local_bytes for r in rungs))} on disk"
    )


def layout_lines(rungs: Sequence[RungPlan]) -> str:
    """Why each layout was chosen; rungs with the same reason share a line."""
    reasons: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for rung in rungs:
        reasons.setdefault((rung.choice.why, rung.choice.overrides), []).append(rung.name)
    lines = ["layout:"]
    for (why, overrides), names in reasons.items():
        lines.append(f"  {_some(names)}: {why}")
        if overrides:
            lines.append(f"    ask for it: {' '.join(overrides)}")
    return "\n".join(lines)


def _some(names: Sequence[str], shown: int = 10) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def digest_table(rungs: Sequence[RungPlan]) -> str:
    """Digests of the resolved configurations and of the data index, where it is known."""
    index = rungs[0].config.data.index_digest
    lines = [
        f"data index {index or 'not known before the data is built; it enters the digests below'}"
    ]
    lines.append(_table(["rung", "configuration"], [[r.name, r.config_digest] for r in rungs]))
    return "\n".join(lines)


def _notes(plan: SuitePlan) -> list[str]:
    lines = []
    for rung, keys in plan.notes.get("deviations", {}).items():
        lines += [f"  {rung}, {key}: {why}" for key, why in keys.items()]
    parts = ["deviations:\n" + "\n".join(lines)] if lines else []
    for key, title in (("not_repeated", "not repeated"), ("about", "about")):
        if key in plan.notes:
            parts.append(f"{title}:\n" + "\n".join(f"  {line}" for line in plan.notes[key]))
    return parts


def plan_json(plan: SuitePlan) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds and hours, no rounding."""
    return {
        "suite": plan.suite,
        "hardware": {"name": plan.hardware_name, **asdict(plan.hardware)},
        "rungs": [_rung_json(rung) for rung in plan.rungs.values()],
        "notes": dict(plan.notes),
    }


def _rung_json(rung: RungPlan) -> dict[str, Any]:
    parameters, choice, storage = rung.parameters, rung.choice, rung.storage
    return {
        "rung": rung.name,
        "family": rung.config.rung.model.family,
        "parameters": {**asdict(parameters), "non_embedding": parameters.non_embedding},
        "tokens": rung.tokens,
        "steps": rung.config.train.steps,
        "flops": {"6nd": rung.flops_6nd, "exact": rung.flops},
        "split": {
            **asdict(choice.split),
            "ranks": choice.split.ranks,
            "elastic": choice.split.elastic,
        },
        "why": choice.why,
        "overrides": list(choice.overrides),
        "fits": choice.fits,
        "memory_bytes": {
            **asdict(choice.memory),
            "state": choice.memory.state,
            "peak": choice.memory.peak,
        },
        "utilisation": rung.utilisation,
        "measured": rung.measured,
        "step_seconds": rung.step_seconds,
        "device_hours": rung.device_hours,
        "wall_hours": rung.wall_hours,
        "cost": rung.cost,
        "storage": {**asdict(storage), "saved_bytes": storage.saved_bytes},
        "config_digest": rung.config_digest,
        "index_digest": rung.config.data.index_digest,
    }


def short(number: float) -> str:
    """A count in a few characters: 299.9B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return f"{number:.0f}"


def size(count: float) -> str:
    """Bytes in a few characters, decimal units."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e3:,.0f} kB"


def duration(hours: float) -> str:
    """Hours in the unit that people would use."""
    for unit, name in ((24 * 365.25, "years"), (24.0, "days"), (1.0, "h")):
        if hours >= unit:
            return f"{hours / unit:,.1f} {name}"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 or head[i] == "split" else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *rows)
    )
