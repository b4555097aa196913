"""The learning rate of a suite over its steps, checkpoints marked, as SVG."""

from __future__ import annotations

from pathlib import Path

from suite.plan import RungPlan, SuitePlan
from suite.schedule import learning_rate

_POINTS = 2000


def schedule_points(rung: RungPlan) -> tuple[list[int], list[float]]:
    """Updates, evenly spread with the first and last, and their learning rates over the peak."""
    train, peak = rung.config.train, rung.config.rung.lr
    stride = max(1, train.steps // _POINTS)
    updates = sorted({*range(1, train.steps + 1, stride), train.warmup_steps + 1, train.steps})
    updates = [n for n in updates if n <= train.steps]
    return updates, [learning_rate(n, peak, train) / peak for n in updates]


def plot_schedule(plan: SuitePlan, path: Path) -> None:
    """Writes the figure, steps on a linear scale and, for the early checkpoints, a logarithmic one.

    The schedule is the same for every rung but for its peak, so one curve stands for all.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tripod"
    from matplotlib import pyplot

    rung = next(iter(plan.rungs.values()))
    updates, rates = schedule_points(rung)
    saved = [step for step in rung.storage.steps if step]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.2), sharey=True)
    for axis, scale in zip(axes, ("linear", "log"), strict=True):
        axis.plot(updates, rates, color="#1f6f8b", linewidth=1.5)
        axis.vlines(saved, -0.06, -0.01, color="#c8553d", linewidth=0.5)
        axis.set_xscale(scale)
        axis.set_xlabel("update")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("learning rate / peak")
    count = len(rung.storage.steps)
    title = f"{plan.suite}: {rung.config.train.schedule}, {count} checkpoints (marks)"
    axes[0].set_title(title, loc="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
