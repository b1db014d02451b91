"""Panels are checked where they enter, and simulated panels hold what they promise."""

import numpy as np
import pandas as pd
import pytest
from conftest import K

from hbm.checks import DataError
from hbm.rollouts.panels import Panel, generate_rollout_data, validate_panel


@pytest.fixture
def panel():
    """Three creators over four periods: treated in 3, in 4, and never."""
    rows = [(c, t, first) for c, first in (("a", 3), ("b", 4), ("n", None)) for t in (1, 2, 3, 4)]
    frame = pd.DataFrame(rows, columns=["creator_id", "period", "first_treated"])
    return frame.assign(
        revenue=np.arange(12.0),
        n_users=10,
        on=(frame["period"] >= frame["first_treated"]).astype(int),
    )


def test_a_panel_is_sorted_and_counted_from_its_first_period(panel):
    later = panel.assign(period=panel["period"] + 2000, first_treated=panel["first_treated"] + 2000)
    found = Panel.from_frame(later.sample(frac=1, random_state=3), weights="n_users", treated="on")
    assert list(found.ids) == ["a", "b", "n"]
    assert (found.start, found.n_periods, found.n_creators) == (2001, 4, 3)
    assert np.array_equal(found.outcome, np.arange(12.0))
    assert np.array_equal(found.first, [2, 3, np.inf])
    assert np.array_equal(found.treated, later["on"] == 1)
    assert np.array_equal(found.horizon[:4], [-2, -1, 0, 1])
    assert np.array_equal(found.label(found.period[:4]), [2001, 2002, 2003, 2004])


def test_ids_keep_their_type(panel):
    numbered = panel.assign(creator_id=panel["creator_id"].map({"a": 7, "b": 70, "n": 12}))
    assert list(Panel.from_frame(numbered).ids) == [7, 12, 70]
    categories = panel.assign(creator_id=panel["creator_id"].astype("category"))
    assert list(Panel.from_frame(categories).ids) == ["a", "b", "n"]


def test_a_valid_panel_is_returned_as_it_is(panel):
    assert validate_panel(panel) is panel


def test_unbalanced_panels_without_gaps_are_valid(panel):
    assert Panel.from_frame(panel.drop(index=[0, 7, 8])).n_creators == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.drop(columns="revenue"), "missing column revenue; columns found: creator_id"),
        (lambda p: p.iloc[:0], "the table has no rows"),
        (lambda p: p.assign(creator_id=p["creator_id"].where(p.index != 1)), "'creator_id' must n"),
        (lambda p: p.assign(period=p["period"] + 0.5), "'period' must be a whole number; 12 rows"),
        (
            lambda p: p.assign(period=p["period"].map(lambda t: f"2024Q{t}")),
            "'period' must hold whole numbers, its type is .*number the periods",
        ),
        (lambda p: p.assign(period=p["period"].where(p.index != 5)), "'period' must be a whole"),
        (
            lambda p: p.assign(revenue=p["revenue"].where(p.index != 5, np.inf)),
            r"'revenue' must be a finite number; 1 row breaks it, first creators: 'b' \(inf\)",
        ),
        (lambda p: p.assign(revenue=p["revenue"].astype(str)), "'revenue' must be numeric"),
        (
            lambda p: pd.concat([p, p.iloc[[6]]]),
            r"'period' must not repeat within a creator; 2 rows break it, first creators: 'b' \(3",
        ),
        (
            lambda p: p.drop(index=5),
            r"'period' must have no gaps between a creator's first and last .*'b' \(3\)",
        ),
        (
            lambda p: p.assign(first_treated=p["first_treated"].where(p.index != 3)),
            "'first_treated' must be the same in all rows of a creator .*switches off.*'a'",
        ),
        (
            lambda p: p.assign(first_treated=p["first_treated"] + 0.25),
            "'first_treated' must be a whole number, or missing for a creator never treated",
        ),
        (
            lambda p: p.assign(on=p["on"].where(p.index != 3, 0)),
            r"'on' must stay on from first_treated: a treatment that switches off .*'a' \(0\)",
        ),
        (
            lambda p: p.assign(on=p["on"].where(p.index != 8, 1)),
            r"'on' must be 0 before first_treated; 1 row breaks it, first creators: 'n' \(1\)",
        ),
        (lambda p: p.assign(on=2), "'on' must be 0 or 1"),
        (lambda p: p.assign(n_users=0), "'n_users' must be greater than 0"),
        (lambda p: p.assign(n_users=np.nan), "'n_users' must be a finite number"),
    ],
)
def test_a_broken_rule_is_named_with_column_and_creators(panel, change, message):
    with pytest.raises(DataError, match=f"panel: .*{message}"):
        validate_panel(change(panel), weights="n_users", treated="on")


def test_errors_name_the_columns_of_the_table(panel):
    renamed = panel.rename(columns={"creator_id": "state", "revenue": "rate", "period": "year"})
    renamed.loc[2, "rate"] = np.nan
    with pytest.raises(DataError, match=r"column 'rate' must be a finite number.*'a' \(nan\)"):
        validate_panel(renamed, unit="state", outcome="rate", period="year")


def test_gaps_are_taken_on_request(panel):
    assert len(Panel.from_frame(panel.drop(index=5), gaps="allow").period) == 11
    with pytest.raises(ValueError, match="gaps must be 'raise' or 'allow'"):
        Panel.from_frame(panel, gaps="fill")


# ----------------------------------------------------------------------------- simulated


def test_the_simulated_panel_is_valid_and_the_same_for_the_same_seed():
    panel, truth = generate_rollout_data(3, n_creators_per_genre=10)
    again, _ = generate_rollout_data(3, n_creators_per_genre=10)
    pd.testing.assert_frame_equal(panel, again)
    found = Panel.from_frame(panel, weights="n_users")
    treated = found.ids[np.isfinite(found.first)]
    assert list(treated) == list(truth["creator_id"])
    assert len(treated) == 40
    assert found.start + found.first.min() >= 9


def test_the_truth_is_in_the_panel():
    """Without noise a creator's revenue moves by what all share and by its effect."""
    panel, truth = generate_rollout_data(
        5, n_creators_per_genre=10, sigma_obs=1e-9, rho=0.5, ramp=3, drift=0.0
    )
    wide = panel.pivot(index="creator_id", columns="period", values="revenue")
    first = panel.groupby("creator_id")["first_treated"].first()
    shared = wide[first.isna()] - wide[first.isna()].mean(axis=1).to_numpy()[:, None]
    assert shared.std().max() < 1e-6
    for creator, effect in zip(truth["creator_id"][:9], truth["creator_effects"], strict=False):
        moved = wide.loc[creator] - shared.iloc[0]
        after = moved[wide.columns >= first[creator]] - moved[1]
        assert after.mean() == pytest.approx(effect, abs=1e-6)
        if len(after) > 3:
            assert after.iloc[0] == pytest.approx(after.iloc[-1] / 3, abs=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.4])
def test_errors_have_the_variance_and_memory_they_should(rho):
    panel, _ = generate_rollout_data(
        8, n_creators_per_genre=300, never_share=0.99, level_sd=0, period_sd=0, baseline=0, rho=rho
    )
    never = panel[panel["first_treated"].isna()]
    scaled = never["revenue"] * np.sqrt(never["n_users"]) / 2.0
    wide = scaled.to_numpy().reshape(-1, 24)
    products = (wide[:, 1:] * wide[:, :-1]).mean(axis=1)
    squares = np.square(wide).mean(axis=1)
    for values, expected in ((squares, 1.0), (products, rho)):
        assert abs(values.mean() - expected) < K * values.std() / np.sqrt(len(values))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout": (1, 5)}, "rollout must lie within periods 2 to 24"),
        ({"rollout": (9, 26)}, "rollout must lie"),
        ({"rho": 1.0}, "rho must lie between -1 and 1"),
        ({"never_share": 1.0}, "never_share"),
        ({"ramp": 0}, "ramp"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        generate_rollout_data(1, **settings)
