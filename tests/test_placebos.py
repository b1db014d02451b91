"""Placebos say how large errors are, and look at untreated outcomes only."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from conftest import K
from scipy import stats

from hbm.checks import DataError
from hbm.replicate import replicate
from hbm.rollouts import borusyak_imputation_estimator
from hbm.rollouts.panels import generate_rollout_data
from hbm.rollouts.placebos import (
    MIN_PLACEBOS,
    borusyak_imputation_estimator_calibrated,
    placebo_effects,
    placebo_test,
    pretrend_test,
)

SMALL = {"n_creators_per_genre": 12, "n_periods": 10, "rollout": (5, 10)}


@pytest.fixture(scope="module")
def panel():
    return generate_rollout_data(3, never_share=0.4, rho=0.3, **SMALL)[0]


def treated(panel):
    return panel["period"] >= panel["first_treated"]


# ------------------------------------------------------------------------------ pre-trends


@pytest.mark.parametrize("weights", [None, "n_users"])
def test_pretrend_test_is_a_clustered_regression(panel, weights):
    """A second implementation: statsmodels, every effect a dummy."""
    found = pretrend_test(panel, 3, weights=weights)
    frame = panel[~treated(panel)]
    horizon = frame["period"] - frame["first_treated"]
    leads = pd.DataFrame({h: (horizon == h).astype(float) for h in (-3, -2, -1)})
    x = pd.concat(
        [
            leads,
            pd.get_dummies(frame["creator_id"], dtype=float),
            pd.get_dummies(frame["period"], dtype=float).iloc[:, 1:],
        ],
        axis=1,
    )
    weight = 1.0 if weights is None else frame[weights]
    fit = sm.WLS(frame["revenue"].to_numpy(), x.to_numpy(), weights=weight).fit(
        cov_type="cluster",
        cov_kwds={"groups": pd.factorize(frame["creator_id"])[0], "use_correction": False},
    )
    n, clusters = len(frame), frame["creator_id"].nunique()
    # Of the dummies, those of the creators are nested in the clusters.
    small = clusters / (clusters - 1) * (n - 1) / (n - 3 - frame["period"].nunique())
    np.testing.assert_allclose(found.leads["effect"], fit.params[:3], rtol=1e-8)
    np.testing.assert_allclose(found.leads["se"], fit.bse[:3] * np.sqrt(small), rtol=1e-8)
    covariance = fit.cov_params()[:3, :3] * small
    wald = fit.params[:3] @ np.linalg.solve(covariance, fit.params[:3]) / 3
    assert found.statistic == pytest.approx(wald, rel=1e-8)
    assert found.df == (3, clusters - 1)
    assert found.p_value == pytest.approx(stats.f.sf(wald, 3, clusters - 1))
    assert list(found.leads["horizon"]) == [-3, -2, -1]


def _p_value(rng, drift=0.0, sigma_obs=2.0):
    panel, _ = generate_rollout_data(
        rng, drift=drift, sigma_obs=sigma_obs, rho=0.5, never_share=0.4, **SMALL
    )
    return pretrend_test(panel, 2).p_value


def test_pretrend_test_errs_as_often_as_it_says():
    rejected = np.array(replicate(_p_value, 300, seed=1)) < 0.05
    assert abs(rejected.mean() - 0.05) < K * np.sqrt(0.05 * 0.95 / 300)


def test_pretrend_test_notices_creators_that_drift():
    found = np.array(replicate(_p_value, 40, seed=2, drift=0.3, sigma_obs=1.0))
    assert np.mean(found < 0.05) > 0.8


def test_pretrend_test_refuses_what_it_cannot_tell(panel):
    with pytest.raises(DataError, match="no untreated row lies at horizon -9, -10"):
        pretrend_test(panel, 10)
    soon = panel[panel["first_treated"] == 5]
    others = panel[panel["first_treated"] == 7]
    with pytest.raises(DataError, match="6 leads cannot be told apart"):
        pretrend_test(pd.concat([soon, others]), 6)
    with pytest.raises(ValueError, match="leads must be at least 1"):
        pretrend_test(panel, 0)


# -------------------------------------------------------------------------------- placebos


def test_nothing_looks_at_treated_outcomes(panel):
    """So neither the factor nor the tests can know the truth."""
    other = panel.assign(revenue=panel["revenue"] + 100 * treated(panel))
    for source in ("never", "before"):
        pd.testing.assert_frame_equal(
            placebo_effects(panel, source=source), placebo_effects(other, source=source)
        )
    assert pretrend_test(panel).p_value == pretrend_test(other).p_value
    assert placebo_test(panel).att == placebo_test(other).att
    factors = [borusyak_imputation_estimator_calibrated(p).factor for p in (panel, other)]
    assert factors[0] == factors[1]


def test_placebo_test_dates_treatment_earlier(panel):
    found = placebo_test(panel, 2, weights="n_users")
    earlier = panel[~treated(panel)].assign(first_treated=lambda p: p["first_treated"] - 2)
    by_hand = borusyak_imputation_estimator(earlier, weights="n_users", unidentified="exclude")
    assert found.att == pytest.approx(by_hand.att)
    assert found.att_se == pytest.approx(by_hand.att_se)
    assert set(found.event_study["horizon"]) == {0, 1}
    with pytest.raises(ValueError, match="periods must be at least 1"):
        placebo_test(panel, 0)


def test_who_pretends_and_when(panel):
    first = panel.groupby("creator_id")["first_treated"].first()
    never = placebo_effects(panel, source="never", random_seed=5)
    assert set(never["creator_id"]) == set(first.index[first.isna()])
    assert set(never["first_treated"]) <= set(first.dropna())
    before = placebo_effects(panel, source="before")
    assert set(before["creator_id"]) == set(first.index[first.notna()])
    real = before["creator_id"].map(first)
    assert (before["first_treated"] < real).all()
    assert (before["n_before"] >= 1).all()
    assert (before["first_treated"] + before["n_periods"] == real).all()
    np.testing.assert_allclose(before["z"], before["effect_hat"] / before["se"])
    assert len(first.dropna()) > MIN_PLACEBOS
    auto = placebo_effects(panel, random_seed=5)
    pd.testing.assert_frame_equal(auto, never)
    few = panel[panel["creator_id"].map(first).notna() | (panel["creator_id"] < "c10")]
    assert set(placebo_effects(few)["creator_id"]) == set(first.index[first.notna()])


def test_a_placebo_is_compared_with_untreated_rows_of_others(panel):
    """One fold by hand: the rest of the never treated, and everybody before treatment."""
    folds = placebo_effects(panel, source="never", n_folds=2, random_seed=1, rho=0)
    half = folds.iloc[[0]]["creator_id"].iloc[0]
    dated = folds.set_index("creator_id")["first_treated"]
    for fold in _folds_of(panel, np.random.default_rng(1)):
        if half not in fold:
            continue
        kept = panel[~treated(panel)]
        kept = kept.assign(
            first_treated=kept["creator_id"].map(dated[dated.index.isin(fold)]).astype(float)
        )
        by_hand = borusyak_imputation_estimator(kept, rho=0).ite.set_index("creator_id")
        mine = folds[folds["creator_id"].isin(fold)].set_index("creator_id")
        np.testing.assert_allclose(mine["effect_hat"], by_hand["effect_hat"])
        np.testing.assert_allclose(mine["se"], by_hand["se"])


def _folds_of(panel, rng):
    """The folds, in the order in which `placebo_effects` draws."""
    from hbm.rollouts.panels import Panel
    from hbm.rollouts.placebos import _pretend_never

    checked = Panel.from_frame(panel)
    first = _pretend_never(checked, rng)
    dealt = rng.permutation(np.flatnonzero(np.isfinite(first)))
    return [set(checked.ids[fold]) for fold in np.array_split(dealt, 2)]


# ----------------------------------------------------------------------------- calibration


def test_a_factor_scales_creators_and_nothing_else(panel):
    plain = borusyak_imputation_estimator(panel, weights="n_users")
    fixed = borusyak_imputation_estimator_calibrated(
        panel, calibration_factor=2.5, weights="n_users"
    )
    np.testing.assert_allclose(fixed.ite["se"], 2.5 * plain.ite["se"])
    np.testing.assert_allclose(fixed.covariance.dense(), 6.25 * plain.covariance.dense())
    np.testing.assert_allclose(np.sqrt(fixed.covariance.variance), fixed.ite["se"])
    assert (fixed.att, fixed.att_se) == (plain.att, plain.att_se)
    assert fixed.ite["effect_hat"].equals(plain.ite["effect_hat"])
    assert fixed.factor == 2.5
    assert np.isnan(fixed.factor_se)
    assert plain.factor == 1


def test_the_factor_is_the_spread_of_the_placebos(panel):
    found = borusyak_imputation_estimator_calibrated(
        panel, source="before", random_seed=3, weights="n_users", rho=0.0
    )
    z = placebo_effects(panel, source="before", random_seed=3, weights="n_users", rho=0.0)["z"]
    assert found.factor == pytest.approx(np.sqrt(np.mean(np.square(z))))
    rng = np.random.default_rng(0)
    resampled = rng.choice(z, (4000, len(z)))
    bootstrap = np.sqrt(np.square(resampled).mean(axis=1)).std()
    assert found.factor_se == pytest.approx(bootstrap, rel=0.1)


def _calibrated(rng, **world):
    panel, truth = generate_rollout_data(
        rng, n_creators_per_genre=30, n_periods=16, rollout=(6, 14), never_share=0.4, **world
    )
    found = borusyak_imputation_estimator_calibrated(panel, weights="n_users")
    error = np.abs(found.ite["effect_hat"] - truth["creator_effects"])
    before = np.mean(error <= 1.959964 * found.ite["se"] / found.factor)
    return found.factor, before, np.mean(error <= 1.959964 * found.ite["se"])


def test_a_right_error_model_gets_a_factor_of_one():
    factor, before, after = np.array(replicate(_calibrated, 60, seed=4, rho=0.6)).T
    # The mean square is unbiased, its root is not.
    excess = np.square(factor) - 1
    assert abs(excess.mean()) < K * excess.std(ddof=1) / np.sqrt(60)
    assert abs(before.mean() - 0.95) < K * before.std(ddof=1) / np.sqrt(60)
    # Given the factor, which knows nothing of the treated, coverage is that of a wider normal.
    away = after - (2 * stats.norm.cdf(1.959964 * factor) - 1)
    assert abs(away.mean()) < K * away.std(ddof=1) / np.sqrt(60)


def test_calibration_mends_creators_that_drift_apart():
    """Their errors are no normals of one scale, so that 95% is not exact."""
    factor, before, after = np.array(replicate(_calibrated, 60, seed=5, trend_sd=0.2)).T
    assert factor.mean() > 1.5
    assert before.mean() < 0.8
    assert abs(after.mean() - 0.95) < 0.1 * abs(before.mean() - 0.95)


def test_calibration_refuses_too_few_placebos_and_bad_factors(panel):
    with pytest.raises(ValueError, match="calibration_factor must be greater than 0, got 0"):
        borusyak_imputation_estimator_calibrated(panel, calibration_factor=0)
    few = panel[panel["creator_id"].isin(panel["creator_id"].unique()[[0, 1, 2, 3, 20, 21, 22]])]
    with pytest.raises(DataError, match="too few for a calibration factor, at least 20"):
        borusyak_imputation_estimator_calibrated(few, n_folds=2, unidentified="exclude")
    with pytest.raises(DataError, match="creators can pretend to be treated, too few for 5 folds"):
        placebo_effects(few, source="before")
    with pytest.raises(ValueError, match="source must be one of"):
        placebo_effects(panel, source="truth")
    with pytest.raises(ValueError, match="n_folds must be at least 2"):
        placebo_effects(panel, n_folds=1)


def test_settings_reach_the_placebos(panel):
    renamed = panel.rename(columns={"creator_id": "who", "period": "week", "revenue": "money"})
    columns = {"unit": "who", "period": "week", "outcome": "money"}
    ours = borusyak_imputation_estimator_calibrated(renamed, weights="n_users", **columns)
    same = borusyak_imputation_estimator_calibrated(panel, weights="n_users")
    assert ours.factor == same.factor
    assert list(ours.ite["creator_id"]) == list(same.ite["creator_id"])
