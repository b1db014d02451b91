"""Forecasts know nothing of the future, score what they say, and cover as promised."""

import numpy as np
import pandas as pd
import pytest

from hbm.drift import STATIC, AutoRegression, RandomWalk, fit_drift_model
from hbm.drift.future import compare_futures, leave_future_out
from hbm.drift.study import simulate_drift

FORECAST = ["mean", "se", "lower", "upper"]


@pytest.fixture(scope="module")
def platform():
    """Three genres; the third begins in period 6, and period 4 has no data."""
    data, _ = simulate_drift(1, n_periods=8, n_creators_per_genre=32, genres=("a", "b", "c"))
    late = (data["genre"] == "c") & (data["period"] < 6)
    return data[~late & (data["period"] != 4)].reset_index(drop=True)


@pytest.fixture(scope="module", params=["random walk", "static", "autoregression"])
def process(request):
    return {"random walk": RandomWalk(), "static": STATIC, "autoregression": AutoRegression()}[
        request.param
    ]


@pytest.fixture(scope="module")
def future(platform, process):
    return leave_future_out(platform, process=process, first=2)


# --- what a forecast knows ---------------------------------------------------------------------


def perturbed(data, when, rng):
    """The same data up to and with a period; after it, anything."""
    after = data["period"] > when
    n = after.sum()
    wild = data.copy()
    wild.loc[after, "effect_hat"] = rng.normal(50, 30, n)
    wild.loc[after, "se"] = np.exp(rng.normal(size=n))
    return wild


def test_perturbing_the_future_leaves_forecasts_bit_identical(platform, process, future):
    rng = np.random.default_rng(2)
    for when in (3, 6):
        other = leave_future_out(perturbed(platform, when, rng), process=process, first=2)
        for frame in ("periods", "genres", "estimates"):
            known, found = getattr(future, frame), getattr(other, frame)
            past = known["period"] <= when
            assert 0 < past.sum() < len(known)
            pd.testing.assert_frame_equal(known[past], found[past], rtol=0, atol=0)
        # Not because nothing was perturbed.
        assert other.periods["elpd"].iloc[-1] != future.periods["elpd"].iloc[-1]


def test_what_is_predicted_does_not_know_its_own_estimates(platform, process, future):
    """The forecasts of a period: from the period itself only the standard errors are taken."""
    now = platform["period"] == 6
    data = platform.copy()
    data.loc[now, "effect_hat"] += 100
    other = leave_future_out(data, process=process, first=2)
    for frame in ("genres", "estimates"):
        known, found = getattr(future, frame), getattr(other, frame)
        part = known["period"] <= 6
        pd.testing.assert_frame_equal(
            known.loc[part, FORECAST], found.loc[part, FORECAST], rtol=0, atol=0
        )


def test_a_future_cut_off_or_with_new_genres_changes_nothing_before(platform, process, future):
    short = leave_future_out(platform[platform["period"] <= 5], process=process, first=2)
    extra = platform[platform["genre"] == "a"].assign(
        creator_id=lambda d: "new " + d["creator_id"], genre="d", genre_idx=3, period=7
    )
    longer = leave_future_out(pd.concat([platform, extra]), process=process, first=2)
    for other in (short, longer):
        for frame in ("periods", "genres", "estimates"):
            known, found = getattr(future, frame), getattr(other, frame)
            pd.testing.assert_frame_equal(
                known[known["period"] <= 5], found[found["period"] <= 5], rtol=0, atol=0
            )


# --- what it says ------------------------------------------------------------------------------


def test_the_scores_add_up_to_the_evidence(platform, process, future):
    whole = fit_drift_model(platform, process=process).log_evidence
    past = fit_drift_model(platform[platform["period"] < 2], process=process).log_evidence
    assert future.elpd == pytest.approx(whole - past, abs=1e-9)
    assert future.periods["period"].tolist() == [2, 3, 5, 6, 7]
    count = platform.groupby("period").size()
    assert future.periods["n_creators"].tolist() == count.loc[[2, 3, 5, 6, 7]].tolist()


def test_one_creator_at_a_time_is_predicted_by_the_ratio_of_evidences(process):
    """The predictive density of the forecasts and the ratio of two integrals are one number."""
    data, _ = simulate_drift(4, n_periods=9, n_creators_per_genre=9, genres=("a",), size=0.5)
    found = leave_future_out(data, process=process, first=4)
    np.testing.assert_allclose(found.periods["elpd"], found.periods["elpd_summed"], atol=1e-5)


def test_forecasts_are_those_of_a_fit_to_the_past(platform, process, future):
    fit = fit_drift_model(platform[platform["period"] < 5], process=process)
    new = platform[platform["period"] == 5]
    predicted = fit.predict(new["genre"], new["period"], se=new["se"])
    found = future.estimates[future.estimates["period"] == 5].reset_index(drop=True)
    assert found["creator_id"].tolist() == new["creator_id"].tolist()
    names = {"effect_hat": "mean", "ci_lower": "lower", "ci_upper": "upper"}
    wanted = predicted.drop(columns=["genre", "period", "p_positive"]).rename(columns=names)
    pd.testing.assert_frame_equal(found[FORECAST], wanted[FORECAST], rtol=1e-9)
    # In the first period of a genre it is one that has never been seen.
    fit = fit_drift_model(platform[platform["period"] < 6], process=process)
    found = future.estimates.query("period == 6 and genre == 'c'")
    wanted = fit.predict([None] * len(found), found["period"], platform.set_index("creator_id")
                         .loc[found["creator_id"], "se"])  # fmt: skip
    np.testing.assert_allclose(found["se"], wanted["se"], rtol=1e-9)


def test_models_are_compared_on_the_same_periods(platform):
    futures = {
        name: leave_future_out(platform, process=process, first=3)
        for name, process in {"static": STATIC, "walk": RandomWalk()}.items()
    }
    table = compare_futures(futures)
    best, other = table["model"]
    away = futures[other].periods["elpd"] - futures[best].periods["elpd"]
    assert table["elpd"].tolist() == [futures[best].elpd, futures[other].elpd]
    assert table["elpd_diff"].tolist() == pytest.approx([0, away.sum()])
    assert table["dse"].tolist() == pytest.approx([0, away.std(ddof=1) * 2])
    with pytest.raises(ValueError, match="predicted different periods"):
        compare_futures(futures | {"short": leave_future_out(platform, first=5)})


def test_there_has_to_be_a_past_and_a_future(platform):
    for first in (0, 7):
        with pytest.raises(ValueError, match="of 7 periods with data"):
            leave_future_out(platform, first=first)
    with pytest.raises(ValueError, match="of 1 periods with data"):
        leave_future_out(platform[platform["period"] == 0])
