"""Panels of the report: each a small SVG and the table it shows.

Every panel has the same size and fits a phone; the page sets them side by side where there is room.
One colour per model size everywhere (viridis in log parameters, its bright end left out, safe for
colour-blind readers); further seeds of a size are thinner. Text stays text, so the page's fonts
apply and it can be selected and searched. Equal tables give equal bytes.

The groups of a rung carry ``data-rung``, which the page uses to show and hide it.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.memorization import BUCKETS

SIZE_INCHES = (4.6, 3.15)
INK, MUTED, RULE = "#1d242b", "#5c6670", "#dfe3e7"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Look:
    """How a rung is drawn: its colour says the size, its width the seed."""

    rung: str
    parameters: int
    seed: int
    colour: str
    width: float


@dataclass(frozen=True)
class Panel:
    """One figure of the report.

    Attributes:
        name: file name stem. title, caption: text. alt: what the figure shows, for screen readers.
        svg: the figure, without XML prolog. table: the numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    table: pd.DataFrame


def looks(rungs: Sequence[tuple[str, int, int]]) -> dict[str, Look]:
    """Assign colours and widths.

    Args:
        rungs: (name, parameters, init seed), in ladder order.

    Returns:
        Looks by rung name; rungs of one size share a colour.
    """
    logs = [math.log(parameters) for _, parameters, _ in rungs]
    low, span = min(logs), max(logs) - min(logs)
    seen: set[int] = set()
    found = {}
    for (name, parameters, seed), log in zip(rungs, logs, strict=True):
        place = 0.08 + 0.70 * ((log - low) / span if span else 0.5)
        colour = mpl.colors.to_hex(mpl.colormaps["viridis"](place))
        found[name] = Look(name, parameters, seed, colour, 0.9 if parameters in seen else 1.7)
        seen.add(parameters)
    return found


def draw(name: str, paint: Callable[[Any], None]) -> str:
    """Draw one panel and return its SVG element.

    Args:
        name: figure name; makes the ids of the SVG unique on the page.
        paint: called with the axes.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    return _inline(sink.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Cut prolog and metadata; make ids unique on a page; let the page set size and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", svg)
    svg = re.sub(rf'id="{re.escape(name)}__([^"]*)"', r'data-rung="\1"', svg)
    svg = svg.replace(' id="', f' id="{name}-')
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1).strip()


def step_axis(axes: Any, first_step: int, last_step: int) -> None:
    """A logarithmic step axis on which step 0 has a place (left of 1)."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    powers = [2**k for k in range(0, max(1, last_step).bit_length())]
    powers = [power for power in powers if first_step <= power <= last_step]
    ticks = powers[::-1][:: 1 + len(powers) // 7][::-1]
    _fixed_ticks(axes, [0, *ticks] if first_step == 0 else ticks, lambda value: f"{int(value):,}")
    axes.set_xlim(first_step / 1.25 if first_step else -0.3, last_step * 1.25)
    axes.set_xlabel("step")


def token_axis(axes: Any, first: int, last: int) -> None:
    """A logarithmic axis of tokens read."""
    axes.set_xscale("log")
    low, high = math.ceil(math.log10(first)), math.floor(math.log10(last))
    ticks = [m * 10**e for e in range(low - 1, high + 1) for m in (1, 3)]
    _fixed_ticks(axes, [t for t in ticks if first * 0.9 <= t <= last * 1.1], compact)
    axes.set_xlim(first * 0.85, last * 1.2)
    axes.set_xlabel("tokens read")


def _fixed_ticks(axes: Any, ticks: Sequence[float], text: Callable[[float], str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def compact(value: float) -> str:
    """A count as people say it: 140 k, 1.2 M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def line(axes: Any, figure: str, look: Look, x: Any, y: Any, **kwargs: Any) -> None:
    """Draw one rung's line; its group can be hidden by the page."""
    options: dict[str, Any] = {"color": look.colour, "lw": look.width, "zorder": 3, **kwargs}
    axes.plot(np.asarray(x), np.asarray(y), gid=f"{figure}__{look.rung}", **options)


def band(axes: Any, figure: str, look: Look, x: Any, low: Any, high: Any) -> None:
    """Draw one rung's interval."""
    axes.fill_between(
        np.asarray(x),
        np.asarray(low),
        np.asarray(high),
        color=look.colour,
        alpha=0.12,
        lw=0,
        zorder=2,
        gid=f"{figure}__{look.rung}",
    )


def curves(
    name: str,
    table: pd.DataFrame,
    rungs: dict[str, Look],
    y: str,
    label: str,
    interval: tuple[str, str] | None = None,
    reference: tuple[float, str] | None = None,
    bottom: float | None = None,
) -> str:
    """A panel of one quantity against step, a line per rung.

    Args:
        name: figure name.
        table: rung, step and the columns named.
        rungs: looks by rung, in drawing order.
        y: column drawn.
        label: axis label.
        interval: columns of the lower and upper end of a band.
        reference: a horizontal line and its name (chance, zero).
        bottom: lower end of the axis.
    """

    def paint(axes: Any) -> None:
        for rung, look in rungs.items():
            rows = table[table["rung"] == rung].sort_values("step")
            if interval:
                band(axes, name, look, rows["step"], rows[interval[0]], rows[interval[1]])
            line(axes, name, look, rows["step"], rows[y], marker="o", ms=2.4)
        if reference:
            refer(axes, *reference)
        step_axis(axes, int(table["step"].min()), int(table["step"].max()))
        axes.set_ylabel(label)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)

    return draw(name, paint)


def refer(axes: Any, value: float, text: str) -> None:
    """Draw and name a horizontal reference line."""
    axes.axhline(value, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        text,
        (0.995, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=MUTED,
        fontsize=8.5,
    )


def bucket_curves(
    name: str,
    table: pd.DataFrame,
    rungs: dict[str, Look],
    y: str,
    label: str,
    interval: tuple[str, str] | None = None,
) -> str:
    """A panel of one quantity against the bucket of exposures, a line per rung."""
    present = [bucket for bucket in BUCKETS if bucket in set(table["exposures"])]

    def paint(axes: Any) -> None:
        for number, (rung, look) in enumerate(rungs.items()):
            rows = table[table["rung"] == rung].set_index("exposures")
            rows = rows.loc[[bucket for bucket in present if bucket in rows.index]]
            x = np.array([present.index(b) for b in rows.index]) + _dodge(number, len(rungs))
            if interval:
                axes.vlines(
                    x,
                    rows[interval[0]],
                    rows[interval[1]],
                    color=look.colour,
                    lw=0.8,
                    alpha=0.55,
                    gid=f"{name}__{rung}",
                )
            line(axes, name, look, x, rows[y], marker="o", ms=2.8)
        axes.set_xlabel("times read so far")
        axes.set_ylabel(label)
        axes.set_xticks(range(len(present)), present)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)

    return draw(name, paint)


def _dodge(number: int, count: int) -> float:
    """Shift a rung sideways so that intervals at one bucket do not cover each other."""
    return 0.07 * (number - (count - 1) / 2)
