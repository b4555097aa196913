"""Figures of ``describe``, as SVG with the same bytes for the same tables."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

_STYLE = {"svg.hashsalt": "tripod", "svg.fonttype": "none", "font.size": 9.0}
_MOST_SOURCES = 30


def plot(tables: dict[str, pd.DataFrame], directory: Path) -> list[Path]:
    """Write ``sources.svg``, ``lengths.svg`` and ``tokens.svg``; return them."""
    with mpl.rc_context(_STYLE):
        figures = {
            "sources": _sources(tables["sources"]),
            "lengths": _lengths(tables["length_histogram"]),
            "tokens": _tokens(tables["tokens"]),
        }
        paths = []
        for name, figure in figures.items():
            paths.append(directory / f"{name}.svg")
            figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def _sources(table: pd.DataFrame) -> Figure:
    by_source = table.groupby("source")["tokens"].sum().sort_values().tail(_MOST_SOURCES)
    figure = Figure(figsize=(6.4, 1.2 + 0.25 * len(by_source)), layout="constrained")
    axes = figure.subplots()
    axes.barh(by_source.index.to_list(), by_source.to_numpy(), color="#4c72b0")
    axes.set_xlabel("tokens")
    axes.set_title("Tokens by source")
    return figure


def _lengths(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for split, group in table.groupby("split"):
        axes.stairs(
            group["documents"].to_numpy(),
            [*group["from_tokens"], group["below_tokens"].iloc[-1]],
            label=str(split),
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of a document (end mark included)")
    axes.set_ylabel("documents")
    axes.set_title("Document lengths, by powers of two")
    axes.legend(frameon=False)
    return figure


def _tokens(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for split, group in table.groupby("split"):
        axes.plot(range(1, len(group) + 1), group["share"].to_numpy(), label=str(split), lw=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rank of the id")
    axes.set_ylabel("share of the stream")
    axes.set_title("Token frequencies")
    axes.legend(frameon=False)
    return figure
