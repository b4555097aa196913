"""Which figures the report has: tables in, ``Panel`` out.

The text that explains a number lives here, next to it.
"""

from typing import Any

import pandas as pd

from analysis import memorization as mem
from analysis.figures import (
    Look,
    Panel,
    bucket_curves,
    compact,
    curves,
    draw,
    line,
    step_axis,
    token_axis,
)
from analysis.memorization import wilson

Looks = dict[str, Look]
MIN_WINDOWS = 6


def loss_panels(metrics: pd.DataFrame, heldout: pd.DataFrame, rungs: Looks) -> list[Panel]:
    """Training loss by tokens, and held-out loss by checkpoint."""
    return [_training(metrics, rungs), _heldout(heldout, rungs)]


def _training(metrics: pd.DataFrame, rungs: Looks) -> Panel:
    name = "training-loss"

    def paint(axes: Any) -> None:
        for rung, look in rungs.items():
            rows = metrics[metrics["rung"] == rung]
            line(axes, name, look, rows["tokens"], rows["loss"], lw=0.65 * look.width)
        token_axis(axes, int(metrics["tokens"].min()), int(metrics["tokens"].max()))
        axes.set_ylabel("training loss (nats per token)")

    per_step = int(metrics["tokens"].min())
    return Panel(
        name,
        "Training loss",
        f"Every update is one point, unsmoothed; one step reads {per_step:,} tokens. All models "
        "read the same batch at the same step, so the curves move together.",
        _ends_alt("Training loss against tokens read", metrics, rungs, "loss"),
        draw(name, paint),
        metrics[["rung", "step", "tokens", "loss", "grad_norm", "clip_coef", "lr"]],
    )


def _heldout(heldout: pd.DataFrame, rungs: Looks) -> Panel:
    name = "heldout-loss"
    tokens = int(heldout["target_tokens"].iloc[0])
    return Panel(
        name,
        "Held-out loss",
        f"Bits per byte on {tokens:,} fixed tokens of documents that training never reads, at "
        "every checkpoint.",
        _ends_alt("Held-out bits per byte against step", heldout, rungs, "bits_per_byte"),
        curves(name, heldout, rungs, "bits_per_byte", "bits per byte"),
        heldout[["rung", "step", "tokens", "weights_root", "loss", "bits_per_byte"]],
    )


def eval_panels(evals: pd.DataFrame, rungs: Looks) -> list[Panel]:
    """The two local lm-eval tasks by checkpoint."""
    return [_continuation(evals, rungs), _excerpts(evals, rungs)]


def _continuation(evals: pd.DataFrame, rungs: Looks) -> Panel:
    name = "continuation-accuracy"
    rows = evals[evals["metric"] == "acc_mutual_info"]
    intervals = [
        wilson(round(value * n), int(n)) for value, n in zip(rows["value"], rows["n"], strict=True)
    ]
    rows = rows.assign(low=[low for low, _ in intervals], high=[high for _, high in intervals])
    widest = float((rows["high"] - rows["low"]).max() / 2)
    return Panel(
        name,
        "Picking the true continuation",
        f"Accuracy on {int(rows['n'].iloc[0])} items with four choices; the wrong ones come from "
        "other held-out documents. Chosen is the text that the context helps most "
        f"(acc_mutual_info). A point's 95 % interval is at most ±{widest:.2f}, see the CSV.",
        _ends_alt("Accuracy against step, chance is 0.25", rows, rungs, "value"),
        curves(name, rows, rungs, "value", "accuracy", reference=(0.25, "chance")),
        rows[
            ["rung", "step", "tokens", "weights_root", "value", "low", "high", "n", "task_digest"]
        ],
    )


def _excerpts(evals: pd.DataFrame, rungs: Looks) -> Panel:
    name = "excerpt-bits-per-byte"
    rows = evals[(evals["task"] == "tripod_heldout_ppl") & (evals["metric"] == "bits_per_byte")]
    return Panel(
        name,
        "Compressing short excerpts",
        f"Bits per byte on {int(rows['n'].iloc[0])} held-out excerpts, each scored alone after an "
        "end-of-document mark, so with less context than in the held-out loss above.",
        _ends_alt("Bits per byte against step", rows, rungs, "value"),
        curves(name, rows, rungs, "value", "bits per byte"),
        rows[["rung", "step", "tokens", "weights_root", "value", "n", "task_digest"]],
    )


def memorization_panels(table: pd.DataFrame, rungs: Looks) -> list[Panel]:
    """Recall by step and by exposures, and the effect of one reading."""
    exposures = mem.by_exposures(table)
    last = exposures["step"].max()
    final = exposures[exposures["step"] == last]
    drawn = final[final["n"] >= MIN_WINDOWS]
    return [
        _recall_by_step(table, rungs),
        _recall_by_exposures(final, drawn, rungs, int(last)),
        _accepted_by_exposures(final, drawn, rungs, int(last)),
        _effect(table, rungs),
    ]


def _recall_by_step(table: pd.DataFrame, rungs: Looks) -> Panel:
    name = "recall-by-step"
    rows = mem.repeated_vs_control(table)
    drawn = rows[rows["n"] >= MIN_WINDOWS]

    def paint(axes: Any) -> None:
        for rung, look in rungs.items():
            mine = drawn[drawn["rung"] == rung]
            for group, style in (("control", (0, (2, 2))), ("seen", "-")):
                part = mine[mine["group"] == group].sort_values("step")
                marker = {"marker": "o", "ms": 2.4} if group == "seen" else {}
                line(axes, name, look, part["step"], part["accepted_len"], ls=style, **marker)
        step_axis(axes, int(table["step"].min()), int(table["step"].max()))
        axes.set_ylabel("ids right before first mistake")
        axes.set_ylim(bottom=0)

    count = table.loc[table["cohort"] == "repeated", "probe_id"].nunique()
    return Panel(
        name,
        "Text that repeats, read or not yet",
        "Mean number of ids of the continuation (of 32) that greedy decoding gets right before its "
        f"first mistake, on {count} windows that occur more than once in training. Solid: already "
        f"read. Dashed: the control, read only later. At least {MIN_WINDOWS} windows a point.",
        "Accepted length of repeated windows against step, already read and not read yet. "
        + _ends(drawn[drawn["group"] == "seen"], rungs, "accepted_len"),
        draw(name, paint),
        rows,
    )


def _recall_by_exposures(
    final: pd.DataFrame, drawn: pd.DataFrame, rungs: Looks, last: int
) -> Panel:
    name = "recall-by-exposures"
    return Panel(
        name,
        "Exact recall by number of readings",
        f"Share of windows at step {last} whose 32-token continuation greedy decoding reproduces "
        "exactly from the 32 tokens before it; 0 is the control. Bars are 95 % Wilson intervals. "
        "Text that repeats often is also easier text.",
        "Share of exactly recalled windows against the number of times they were read.",
        bucket_curves(name, drawn, rungs, "rate", "exact recall", ("rate_low", "rate_high")),
        final,
    )


def _accepted_by_exposures(
    final: pd.DataFrame, drawn: pd.DataFrame, rungs: Looks, last: int
) -> Panel:
    name = "accepted-by-exposures"
    return Panel(
        name,
        "How far recall gets",
        f"The same windows at step {last}: mean number of ids (of 32) right before the first "
        "mistake. It moves long before a whole continuation is exact. Both figures leave out "
        f"buckets with fewer than {MIN_WINDOWS} windows; in rare buckets windows overlap.",
        "Mean accepted length against the number of times a window was read.",
        bucket_curves(name, drawn, rungs, "accepted_len", "ids right before first mistake"),
        final[["rung", "step", "exposures", "n", "accepted_len", "nll", "nll_low", "nll_high"]],
    )


def _effect(table: pd.DataFrame, rungs: Looks) -> Panel:
    name = "exposure-effect"
    rows = mem.exposure_effect(table)
    label = "loss drop beyond controls (nats)"
    ends = ("effect_low", "effect_high")
    svg = curves(name, rows, rungs, "effect", label, ends, (0.0, "no effect")) if len(rows) else ""
    return Panel(
        name,
        "What one reading does",
        "Between two checkpoints: how much the loss of sequences read in between fell, minus how "
        "much it fell for sequences not read yet. Bands are 95 % intervals; above zero, a model "
        "remembers what it has just read.",
        "Difference in loss drop between sequences read and not read, against step.",
        svg,
        rows,
    )


def _ends_alt(what: str, table: pd.DataFrame, rungs: Looks, column: str) -> str:
    return f"{what}. {_ends(table, rungs, column)}"


def _ends(table: pd.DataFrame, rungs: Looks, column: str) -> str:
    parts = []
    for rung, look in rungs.items():
        rows = table[table["rung"] == rung].sort_values("step")
        if len(rows):
            first, last = rows[column].iloc[0], rows[column].iloc[-1]
            parts.append(f"{rung} ({compact(look.parameters)}) from {first:.3g} to {last:.3g}")
    return "; ".join(parts) + "."
