"""From the memorization table to curves: pure functions, no model, no files.

The table has one row per (rung, step, probe): the columns of ``score.score_windows`` joined with
the probe's cohort, n_exposures_so_far, first_step and n_exposures. Rates carry 95 % Wilson
intervals; means carry 95 % normal intervals over probes.

``exposure_effect`` is the difference-in-differences of Lesci et al. 2024 (arXiv:2406.04327) with
exact exposure steps: what reading a sequence did to its own loss, beyond what training did to
sequences that were not read.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from analysis.score import FRAGILE_MARGIN, PREFIX, WINDOW

Z95 = 1.959963984540054
CONTINUATION = WINDOW - PREFIX
MIN_TREATED = 8


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson 1927).

    Args:
        successes: 0..n.
        n: trials; 0 gives the interval (0, 1).
        z: half width of the interval in standard deviations.

    Raises:
        ValueError: successes outside 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, found {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    middle = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def exposure_bucket(count: int) -> str:
    """Name the power-of-two bucket of an exposure count: 0, 1, 2–3, 4–7, ... 128+."""
    if count < 2:
        return str(count)
    low = min(1 << (int(count).bit_length() - 1), 128)
    return "128+" if low == 128 else f"{low}–{2 * low - 1}"


BUCKETS = ("0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127", "128+")


def rates(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Exact rate and companions per group.

    Returns:
        ``by`` plus n, exact, fragile (labels within ``FRAGILE_MARGIN`` of flipping), rate,
        rate_low, rate_high, accepted_len (mean, 0..32), nll (mean nats per token), nll_low,
        nll_high.
    """
    if table.empty:
        names = ["n", "exact", "fragile", "rate", "rate_low", "rate_high"]
        return pd.DataFrame(columns=[*by, *names, "accepted_len", "nll", "nll_low", "nll_high"])
    rows = []
    for key, group in table.groupby(by, sort=True, observed=True):
        rows.append({**dict(zip(by, key, strict=True)), **_summary(group)})
    return pd.DataFrame(rows)


def _summary(group: pd.DataFrame) -> dict[str, float | int]:
    n, exact = len(group), int(group["exact"].sum())
    low, high = wilson(exact, n)
    nll = group["nll_sum"].to_numpy() / CONTINUATION
    mean, half = float(nll.mean()), _half_width(nll)
    return {
        "n": n,
        "exact": exact,
        "fragile": int((group["min_margin"].abs() < FRAGILE_MARGIN).sum()),
        "rate": exact / n,
        "rate_low": low,
        "rate_high": high,
        "accepted_len": float(group["accepted_len"].mean()),
        "nll": mean,
        "nll_low": mean - half,
        "nll_high": mean + half,
    }


def _half_width(values: np.ndarray) -> float:
    return Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def by_exposures(table: pd.DataFrame) -> pd.DataFrame:
    """Rates per rung, step and bucket of exposures so far, over all cohorts.

    The bucket "0" is the control: windows not read yet, whatever happens to them later.
    """
    bucketed = table.assign(
        exposures=pd.Categorical(
            [exposure_bucket(int(n)) for n in table["n_exposures_so_far"]], BUCKETS, ordered=True
        )
    )
    curves = rates(bucketed, ["rung", "step", "exposures"])
    return curves.assign(exposures=curves["exposures"].astype(str))


def repeated_vs_control(table: pd.DataFrame) -> pd.DataFrame:
    """Windows that repeat: already read (``seen``) against not read yet (``control``)."""
    repeated = table[table["cohort"] == "repeated"]
    return rates(_with_group(repeated), ["rung", "step", "group"])


def rows_vs_control(table: pd.DataFrame) -> pd.DataFrame:
    """First 64 ids of sequences: already read against not reached, from one shuffle."""
    rows = table[table["cohort"].isin(["row", "future"])]
    return rates(_with_group(rows), ["rung", "step", "group"])


def _with_group(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(group=np.where(table["n_exposures_so_far"] > 0, "seen", "control"))


def exposure_effect(table: pd.DataFrame) -> pd.DataFrame:
    """What one reading did to the loss of what was read, between consecutive checkpoints.

    For checkpoints a < b, over the ``row`` and ``future`` probes: treated are those whose text was
    first read by steps a..b-1, controls those whose text was not read before b. effect = mean drop
    in loss of the treated minus mean drop of the controls, in nats per token; positive means that
    reading helped beyond general training.

    Returns:
        rung, step_from, step, treated, controls, effect, effect_low, effect_high (95 %, unequal
        variances). Pairs with fewer than ``MIN_TREATED`` probes on either side are left out.
    """
    rows = table[table["cohort"].isin(["row", "future"])]
    columns = ["rung", "step_from", "step", "treated", "controls", "effect"]
    found = [
        {"rung": rung, **pair}
        for rung, group in rows.groupby("rung", sort=True)
        for pair in _effects(group)
    ]
    return pd.DataFrame(found, columns=[*columns, "effect_low", "effect_high"])


def _effects(group: pd.DataFrame) -> Iterator[dict[str, float | int]]:
    nll = group.pivot(index="probe_id", columns="step", values="nll_sum") / CONTINUATION
    first = group.drop_duplicates("probe_id").set_index("probe_id")["first_step"].reindex(nll.index)
    never = first < 0
    for before, after in _pairs(nll.columns):
        drop = nll[before] - nll[after]
        treated = drop[~never & (first >= before) & (first < after)].to_numpy()
        controls = drop[never | (first >= after)].to_numpy()
        if min(len(treated), len(controls)) < MIN_TREATED:
            continue
        effect = float(treated.mean() - controls.mean())
        error = math.sqrt(treated.var(ddof=1) / len(treated) + controls.var(ddof=1) / len(controls))
        yield {
            "step_from": int(before),
            "step": int(after),
            "treated": len(treated),
            "controls": len(controls),
            "effect": effect,
            "effect_low": effect - Z95 * error,
            "effect_high": effect + Z95 * error,
        }


def _pairs(steps: Iterable[int]) -> Iterator[tuple[int, int]]:
    ordered = sorted(steps)
    return itertools.pairwise(ordered)
