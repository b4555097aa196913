"""Curves from planted tables have the planted values."""

import numpy as np
import pandas as pd
import pytest

from analysis import memorization as mem
from analysis.memorization import BUCKETS, exposure_bucket, wilson


def planted(steps: tuple[int, ...] = (0, 10, 20)) -> pd.DataFrame:
    """40 row probes first read at steps 0..19 (two a step), 20 never; reading takes 0.5 nats off.

    General training takes 0.01 nats per token and step off everybody. A repeated probe is exact as
    soon as it has been read twice.
    """
    noise = np.random.RandomState(0).normal(0, 0.02, size=(1000, 80))
    rows = []
    for step in steps:
        for probe in range(80):
            cohort = "row" if probe < 40 else "future" if probe < 60 else "repeated"
            first = probe // 2 if probe < 40 else -1 if probe < 60 else 3
            reads = [first] * (first >= 0) + [12] * (cohort == "repeated")
            so_far = sum(read < step for read in reads)
            nll = 5 - 0.01 * step - 0.5 * (so_far > 0) + noise[step, probe]
            rows.append(
                {
                    "rung": "a",
                    "step": step,
                    "probe_id": probe,
                    "cohort": cohort,
                    "first_step": first,
                    "n_exposures_so_far": so_far,
                    "exact": cohort == "repeated" and so_far == 2,
                    "accepted_len": 32 if cohort == "repeated" and so_far == 2 else 4,
                    "nll_sum": 32 * nll,
                    "min_margin": 1.0 if probe else 1e-6,
                }
            )
    return pd.DataFrame(rows)


def test_exposure_effect_recovers_the_planted_effect() -> None:
    effects = mem.exposure_effect(planted())
    assert effects["step"].tolist() == [10, 20]
    assert effects["effect"].to_numpy() == pytest.approx([0.5, 0.5], abs=0.02)
    assert effects["treated"].tolist() == [20, 20]
    assert effects["controls"].tolist() == [40, 20]
    assert ((effects["effect_low"] < 0.5) & (effects["effect_high"] > 0.5)).all()


def test_exposure_effect_is_zero_when_reading_changes_nothing() -> None:
    table = planted()
    table["nll_sum"] = 32 * (5 - 0.01 * table["step"] + 0.001 * (table["probe_id"] % 7))
    assert mem.exposure_effect(table)["effect"].to_numpy() == pytest.approx([0, 0], abs=1e-9)


def test_the_step_that_a_checkpoint_has_not_read_is_not_treated() -> None:
    """Checkpoint 10 has seen steps 0..9: probes of step 10 belong to the next interval."""
    table = planted()
    assert (table.query("step == 10 and first_step == 9")["n_exposures_so_far"] == 1).all()
    assert (table.query("step == 10 and first_step == 10")["n_exposures_so_far"] == 0).all()
    assert mem.exposure_effect(table)["treated"].iloc[0] == 20


def test_intervals_with_few_probes_are_left_out() -> None:
    assert mem.exposure_effect(planted((0, 1, 20)))["step"].tolist() == [20]
    empty = mem.exposure_effect(planted((0,)))
    assert len(empty) == 0
    assert "effect" in empty.columns


def test_repeated_windows_against_their_control() -> None:
    curve = mem.repeated_vs_control(planted()).set_index(["step", "group"])
    assert set(curve.index) == {(0, "control"), (10, "seen"), (20, "seen")}
    assert curve.loc[(10, "seen"), "rate"] == 0.0
    assert curve.loc[(20, "seen"), "rate"] == 1.0
    assert curve.loc[(20, "seen"), "n"] == 20


def test_rows_against_what_the_order_has_not_reached() -> None:
    curve = mem.rows_vs_control(planted()).set_index(["step", "group"])
    assert curve.loc[(10, "seen"), "n"] == 20
    assert curve.loc[(10, "control"), "n"] == 40
    gap = curve.loc[(10, "control"), "nll"] - curve.loc[(10, "seen"), "nll"]
    assert gap == pytest.approx(0.5, abs=0.02)
    assert set(curve.loc[0].index) == {"control"}


def test_rates_by_exposures() -> None:
    curve = mem.by_exposures(planted()).set_index(["step", "exposures"])
    assert curve.loc[(20, "2–3"), "rate"] == 1.0
    assert curve.loc[(20, "2–3"), "accepted_len"] == 32
    assert curve.loc[(20, "1"), ["n", "exact"]].tolist() == [40, 0]
    assert curve.loc[(20, "0"), "n"] == 20
    assert curve.loc[(20, "1"), "fragile"] == 1


def test_every_count_has_the_bucket_that_holds_it() -> None:
    for count in range(0, 400):
        name = exposure_bucket(count)
        assert name in BUCKETS
        low, _, high = name.partition("–")
        if name == "128+":
            assert count >= 128
        else:
            assert int(low) <= count <= int(high or low)


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_wilson_covers_a_planted_rate() -> None:
    draws = np.random.RandomState(0).binomial(50, 0.1, size=2000)
    covered = [low <= 0.1 <= high for low, high in (wilson(int(d), 50) for d in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)
