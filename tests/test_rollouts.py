"""Rollout estimates agree with published numbers, a second implementation, and dense algebra."""

import time
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from causaldata import castle
from conftest import K
from scipy import sparse, stats

from hbm.checks import DataError
from hbm.replicate import replicate
from hbm.rollouts import borusyak_imputation_estimator, estimate_rollout
from hbm.rollouts.panels import Panel, generate_rollout_data
from hbm.rollouts.twoway import TwoWay

SMALL = {"n_creators_per_genre": 8, "n_periods": 8, "rollout": (3, 8)}


@pytest.fixture(scope="module")
def panel():
    return generate_rollout_data(3, rho=0.4, ramp=2, **SMALL)[0]


@pytest.fixture(scope="module")
def unbalanced(panel):
    """Creators that enter late, leave early, or skip a period."""
    rng = np.random.default_rng(1)
    ids = panel["creator_id"].unique()
    enter = dict(zip(ids, rng.integers(1, 3, len(ids)), strict=True))
    leave = dict(zip(ids, rng.integers(7, 9, len(ids)), strict=True))
    kept = panel["creator_id"].map(enter) <= panel["period"]
    kept &= panel["creator_id"].map(leave) >= panel["period"]
    return panel[kept & (rng.random(len(panel)) < 0.95)].sample(frac=1, random_state=1)


class Dense:
    """The estimator by dense matrices: shares no formula with the module."""

    def __init__(self, panel, weights=None):
        frame = panel.sort_values(["creator_id", "period"], ignore_index=True)
        self.frame = frame
        self.weight = np.ones(len(frame)) if weights is None else frame[weights].to_numpy(float)
        creators = pd.get_dummies(frame["creator_id"]).to_numpy(float)
        periods = pd.get_dummies(frame["period"]).to_numpy(float)
        self.treated = (frame["period"] >= frame["first_treated"]).to_numpy()
        x = np.hstack([creators, periods[:, 1:]])
        x0, w0 = x[~self.treated], self.weight[~self.treated, None]
        self.project = x @ np.linalg.solve(x0.T @ (w0 * x0), (w0 * x0).T)
        self.y = frame["revenue"].to_numpy()
        self.rest = self.y - self.project @ self.y[~self.treated]

    def linear(self, weight):
        """Weights of all outcomes in the weighted sum of effects."""
        whole = weight.copy()
        whole[~self.treated] -= weight @ self.project
        return whole

    def average(self, chosen):
        weight = np.where(chosen & self.treated, self.weight, 0.0)
        return weight / weight.sum()

    def clustered(self, chosen):
        """The conservative standard error, effects averaged by cohort and period."""
        weight = self.average(chosen)
        rest, frame = self.rest.copy(), self.frame
        for _, rows in frame[self.treated].groupby(["first_treated", "period"]).groups.items():
            square = np.square(weight[rows])
            if square.sum():
                rest[rows] -= np.average(self.rest[rows], weights=square)
        score = pd.Series(self.linear(weight) * rest).groupby(frame["creator_id"]).sum()
        return np.sqrt(np.square(score).sum())

    def creators(self):
        ids = self.frame["creator_id"].to_numpy()
        found = np.unique(ids[self.treated])
        return found, np.array([self.linear(self.average(ids == creator)) for creator in found])

    def covariance(self, sigma, rho):
        ids, period = self.frame["creator_id"].to_numpy(), self.frame["period"].to_numpy()
        omega = np.power(rho, np.abs(period[:, None] - period)) * (ids[:, None] == ids)
        omega *= sigma**2 / np.sqrt(np.outer(self.weight, self.weight))
        _, linear = self.creators()
        return linear @ omega @ linear.T


# ------------------------------------------------------------------- published and second


@pytest.fixture(scope="module")
def castle_panel():
    """550 state-years; a law is in force for a whole year first in the year after it began."""
    states = castle.load_pandas().data
    whole_year = states[states["post"] == 1].groupby("sid")["year"].min()
    return states.assign(first_treated=states["sid"].map(whole_year - 1))


CASTLE = {"unit": "sid", "period": "year", "outcome": "l_homicide"}


def test_castle_doctrine_all_printed_digits(castle_panel):
    """The manual of the authors' R package: unweighted, effects averaged by cohort and year."""
    found = borusyak_imputation_estimator(castle_panel, **CASTLE)
    assert f"{found.att:.8f}" == "0.07980155"
    assert f"{found.att_se:.8f}" == "0.06088398"
    printed = [f"{effect:.6f}" for effect in found.event_study["effect"]]
    assert printed == ["0.071071", "0.092884", "0.076773", "0.100185", "0.050247", "0.095841"]
    assert list(found.event_study["n_creators"]) == [21, 21, 20, 18, 14, 1]
    assert len(found.ite) == 21


def test_castle_would_notice_a_year_and_weights(castle_panel):
    late = castle_panel.assign(first_treated=castle_panel["first_treated"] + 1)
    assert abs(borusyak_imputation_estimator(late, **CASTLE).att - 0.0798) > 0.005
    weighted = borusyak_imputation_estimator(castle_panel, weights="popwt", **CASTLE)
    assert abs(weighted.att - 0.0798) > 0.005


@pytest.fixture(scope="module")
def second():
    """A second implementation on a panel of our own, plain and leaving out."""
    from diff_diff import ImputationDiD

    panel, _ = generate_rollout_data(
        7, n_creators_per_genre=12, n_periods=10, rollout=(4, 10), rho=0.3, ramp=3
    )
    table = panel.assign(first_treated=panel["first_treated"].fillna(0))
    columns = {"outcome": "revenue", "unit": "creator_id", "time": "period"}

    def fitted(**settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImputationDiD(**settings).fit(table, first_treat="first_treated", **columns)

    return panel, fitted


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("average_by", ["cohort_horizon", "horizon"])
def test_second_implementation_agrees(second, leave_one_out, average_by):
    panel, fitted = second
    theirs = fitted(leave_one_out=leave_one_out, aux_partition=average_by)
    ours = borusyak_imputation_estimator(panel, leave_one_out=leave_one_out, average_by=average_by)
    assert ours.att == pytest.approx(theirs.overall_att, rel=1e-9)
    assert ours.att_se == pytest.approx(theirs.overall_se, rel=1e-9)
    study = theirs.aggregate("event_study").to_dataframe()
    study = study[study["event_time"] >= 0]
    assert list(ours.event_study["horizon"]) == list(study["event_time"])
    np.testing.assert_allclose(ours.event_study["effect"], study["att"], rtol=1e-8)
    np.testing.assert_allclose(ours.event_study["se"], study["se"], rtol=1e-8)


# ------------------------------------------------------------------------- dense algebra


@pytest.mark.parametrize("weights", [None, "n_users"])
@pytest.mark.parametrize("which", ["panel", "unbalanced"])
def test_effects_and_clustered_errors_agree_with_dense_algebra(weights, which, request):
    frame = request.getfixturevalue(which)
    dense = Dense(frame, weights)
    found = borusyak_imputation_estimator(frame, weights=weights, gaps="allow")
    everyone = np.ones(len(dense.y), bool)
    assert found.att == pytest.approx(dense.linear(dense.average(everyone)) @ dense.y, abs=1e-12)
    assert found.att_se == pytest.approx(dense.clustered(everyone), rel=1e-10)
    horizon = (dense.frame["period"] - dense.frame["first_treated"]).to_numpy()
    for row in found.event_study.itertuples():
        assert row.se == pytest.approx(dense.clustered(horizon == row.horizon), rel=1e-9)
    ids, linear = dense.creators()
    assert list(found.ite["creator_id"]) == list(ids)
    np.testing.assert_allclose(found.ite["effect_hat"], linear @ dense.y, atol=1e-11)
    np.testing.assert_allclose(found.effects["effect_hat"], dense.rest[dense.treated], atol=1e-11)
    earned = found.effects["imputed"] + found.effects["effect_hat"]
    np.testing.assert_allclose(earned, dense.y[dense.treated])


@pytest.mark.parametrize("weights", [None, "n_users"])
@pytest.mark.parametrize("rho", [0.0, 0.6, -0.4])
def test_covariance_of_creators_agrees_with_dense_algebra(unbalanced, weights, rho):
    found = borusyak_imputation_estimator(unbalanced, weights=weights, gaps="allow", rho=rho)
    dense = Dense(unbalanced, weights).covariance(found.errors.sigma, rho)
    scale = np.sqrt(dense.diagonal())
    np.testing.assert_allclose(
        found.covariance.dense() / np.outer(scale, scale),
        dense / np.outer(scale, scale),
        atol=1e-10,
    )
    np.testing.assert_allclose(found.ite["se"], scale, rtol=1e-10)
    assert np.array_equal(found.covariance.creator_id, found.ite["creator_id"])
    assert found.covariance.rank < 2 * 8


def test_independent_errors_of_two_groups_are_the_textbook_difference():
    """One cohort, one period before and one after: a difference of differences."""
    rng = np.random.default_rng(0)
    ids = np.repeat([f"c{i}" for i in range(60)], 2)
    frame = pd.DataFrame({"creator_id": ids, "period": np.tile([1, 2], 60)})
    frame["first_treated"] = np.where(np.arange(120) < 40, 2.0, np.nan)
    frame["revenue"] = rng.normal(size=120)
    found = borusyak_imputation_estimator(frame, rho=0)
    change = frame.groupby("creator_id", sort=False)["revenue"].agg(lambda x: x.iloc[1] - x.iloc[0])
    treated = frame.groupby("creator_id", sort=False)["first_treated"].first().notna()
    assert found.att == pytest.approx(change[treated].mean() - change[~treated].mean())
    spread = change[~treated].var()
    np.testing.assert_allclose(found.ite["se"], np.sqrt(spread * (1 + 1 / 40)))
    dense = found.covariance.dense()
    np.testing.assert_allclose(dense[0, 1:], spread / 40)


# ---------------------------------------------------------------------------- invariances


def test_units_levels_and_shared_shocks_change_nothing(unbalanced):
    base = borusyak_imputation_estimator(unbalanced, weights="n_users", gaps="allow")
    creator = pd.factorize(unbalanced["creator_id"])[0]
    moved = unbalanced["revenue"] * 100 + 1e6 + creator * 7 + np.square(unbalanced["period"])
    changed = unbalanced.assign(
        revenue=moved,
        n_users=unbalanced["n_users"] * 3.5,
        period=unbalanced["period"] + 2000,
        first_treated=unbalanced["first_treated"] + 2000,
    )
    other = borusyak_imputation_estimator(changed, weights="n_users", gaps="allow")
    assert other.att == pytest.approx(100 * base.att, rel=1e-8)
    assert other.att_se == pytest.approx(100 * base.att_se, rel=1e-8)
    np.testing.assert_allclose(other.ite["effect_hat"], 100 * base.ite["effect_hat"], rtol=1e-6)
    np.testing.assert_allclose(other.ite["se"], 100 * base.ite["se"], rtol=1e-5)
    assert other.errors.rho == pytest.approx(base.errors.rho, abs=1e-5)


def test_treated_outcomes_move_effects_and_nothing_else(panel):
    base = borusyak_imputation_estimator(panel)
    treated = panel["period"] >= panel["first_treated"]
    other = borusyak_imputation_estimator(panel.assign(revenue=panel["revenue"] + 5 * treated))
    np.testing.assert_allclose(other.ite["effect_hat"], base.ite["effect_hat"] + 5)
    np.testing.assert_allclose(other.ite["se"], base.ite["se"])
    assert other.att == pytest.approx(base.att + 5)
    assert other.errors == pytest.approx(base.errors)


def test_the_overall_effect_averages_all_that_it_should(panel):
    found = borusyak_imputation_estimator(panel, weights="n_users")
    users = panel.groupby("creator_id")["n_users"].first()
    weight = found.ite["n_periods"] * found.ite["creator_id"].map(users)
    assert found.att == pytest.approx(np.average(found.ite["effect_hat"], weights=weight))
    assert found.ite["n_periods"].sum() == found.event_study["n_creators"].sum()
    assert (found.ite["n_periods"] + found.ite["n_before"] == 8).all()


# ------------------------------------------------------------------------------- refusals


def with_dates(panel, **first):
    return panel.assign(first_treated=panel["creator_id"].map(first).astype(float))


@pytest.fixture(scope="module")
def tiny():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        [(c, t) for c in "abcd" for t in range(1, 6)], columns=["creator_id", "period"]
    )
    return frame.assign(revenue=rng.normal(size=20), first_treated=np.nan)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({}, "no row is treated"),
        ({"a": 9, "b": 6}, "no row is treated; first_treated lies beyond"),
        (dict.fromkeys("abcd", 1), "no never-treated and no not-yet-treated rows"),
        ({"a": 1, "b": 3}, r"treated in its first period.*5 rows; 1 creators, first: 'a'\)"),
        (
            {"a": 3, "b": 4, "c": 4, "d": 3},
            r"no creator is untreated in the period \(8 rows; 2 periods, first: 4, 5\)",
        ),
    ],
)
def test_panels_that_cannot_be_imputed_are_refused(tiny, first, message):
    with pytest.raises(DataError, match=message):
        borusyak_imputation_estimator(with_dates(tiny, **first))


def test_what_cannot_be_imputed_is_set_aside_on_request_and_counted(tiny):
    frame = with_dates(tiny, a=1, b=3, c=4, d=5)
    found = borusyak_imputation_estimator(frame, unidentified="exclude", rho=0)
    assert list(found.ite["creator_id"]) == ["b", "c"]
    excluded = found.excluded.groupby("reason").size()
    assert excluded[excluded.index.str.startswith("treated in its first")].sum() == 5
    assert excluded["no creator is untreated in the period"] == 3
    assert len(found.effects) + len(found.excluded) == 5 + 3 + 2 + 1
    # A creator without any untreated row changes nothing for the others.
    alone = borusyak_imputation_estimator(
        frame[frame["creator_id"] != "a"], unidentified="exclude", rho=0
    )
    assert alone.att == pytest.approx(found.att)


def test_creators_who_share_no_period_with_others_cannot_be_compared(tiny):
    """Periods 1-2 of a and b, 3-5 of c and d: a's later periods have no link to its earlier."""
    early = tiny["creator_id"].isin(["c", "d"]) == (tiny["period"] > 2)
    frame = with_dates(tiny[early | (tiny["creator_id"] == "a")], a=3)
    with pytest.raises(DataError, match="no chain of untreated rows joins the creator"):
        borusyak_imputation_estimator(frame)
    with pytest.raises(DataError, match="no treated row has an untreated one"):
        borusyak_imputation_estimator(frame, unidentified="exclude")


def test_without_degrees_of_freedom_there_is_no_error_model(tiny):
    frame = with_dates(tiny[tiny["creator_id"] < "c"], a=3)
    one = frame[(frame["creator_id"] == "b") | (frame["period"] >= 2)]
    with pytest.raises(ValueError, match="no degrees of freedom are left"):
        borusyak_imputation_estimator(one)
    constant = with_dates(tiny, a=3).assign(revenue=1.0)
    with pytest.raises(ValueError, match="leave no residuals"):
        borusyak_imputation_estimator(constant)


def test_leaving_out_needs_two_creators_a_group(tiny):
    frame = with_dates(tiny, a=3, b=4)
    with pytest.raises(DataError, match="alone in theirs: 'a', 'b'; a coarser average_by"):
        borusyak_imputation_estimator(frame, leave_one_out=True)
    found = borusyak_imputation_estimator(frame, leave_one_out=True, average_by="all")
    assert found.att_se > 0
    assert list(found.event_study["se"].isna()) == [False, False, True]


@pytest.mark.parametrize(
    "settings", [{"unidentified": "drop"}, {"average_by": "cohort"}, {"rho": 1.0}]
)
def test_unknown_settings_are_refused(tiny, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        borusyak_imputation_estimator(with_dates(tiny, a=3), **settings)


# ---------------------------------------------------------------- two-way and its errors


def test_two_way_fit_is_least_squares_even_in_pieces():
    """Two groups of creators without a common period: residuals are those of lstsq."""
    rng = np.random.default_rng(4)
    creator = np.repeat(np.arange(12), 4)
    period = np.tile(np.arange(4), 12) + 4 * (creator >= 6)
    weight, y = rng.uniform(0.5, 3, 48), rng.normal(size=48)
    fit = TwoWay(creator, period, weight, 12, 8)
    x = np.hstack([np.eye(12)[creator], np.eye(8)[period]])
    root = np.sqrt(weight)[:, None]
    beta = np.linalg.lstsq(x * root, y * root[:, 0], rcond=None)[0]
    np.testing.assert_allclose(fit.residual(y), y - x @ beta, atol=1e-12)
    assert fit.df == 48 - np.linalg.matrix_rank(x)
    assert sparse.issparse(fit.share)


def test_influence_is_the_derivative_of_the_fit():
    rng = np.random.default_rng(5)
    panel = Panel.from_frame(generate_rollout_data(1, **SMALL)[0], weights="n_users")
    controls = panel.rows(~panel.treated)
    fit = TwoWay(controls.creator, controls.period, controls.weight, panel.n_creators, 8)
    by_creator = rng.normal(size=panel.n_creators)
    by_period = rng.normal(size=8)
    by_period[-1] += by_creator.sum() - by_period.sum()  # else the constant is not determined
    alpha, beta = fit.fit(controls.outcome)
    total = fit.influence(by_creator, by_period) @ controls.outcome
    assert total == pytest.approx(by_creator @ alpha + by_period @ beta)


def _errors(rng, rho, n_periods):
    panel, _ = generate_rollout_data(
        rng, n_creators_per_genre=200, n_periods=n_periods, rollout=(4, n_periods), rho=rho
    )
    return borusyak_imputation_estimator(panel, weights="n_users").errors[:2]


@pytest.mark.parametrize("rho", [0.0, 0.6])
@pytest.mark.parametrize("n_periods", [6, 16])
def test_the_error_model_is_recovered_from_short_series(rho, n_periods):
    """The plain autocorrelation of demeaned series of four would be off by a third."""
    found = np.array(replicate(_errors, 20, seed=11, rho=rho, n_periods=n_periods))
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(20)
    assert np.all(np.abs(mean - [2.0, rho]) < K * error)


# -------------------------------------------------------------------------------- coverage


def _covered(rng, rho, assumed):
    panel, truth = generate_rollout_data(
        rng, n_creators_per_genre=20, n_periods=16, rollout=(6, 14), rho=rho
    )
    ite = borusyak_imputation_estimator(panel, weights="n_users", rho=assumed).ite
    return np.mean(np.abs(ite["effect_hat"] - truth["creator_effects"]) <= 1.959964 * ite["se"])


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_intervals_of_single_creators_cover(rho):
    covered = np.array(replicate(_covered, 100, seed=21, rho=rho, assumed=None))
    assert abs(covered.mean() - 0.95) < K * covered.std(ddof=1) / np.sqrt(len(covered))


def test_taking_remembering_errors_for_independent_ones_undercovers():
    covered = np.array(replicate(_covered, 40, seed=22, rho=0.6, assumed=0.0))
    assert covered.mean() < 0.85


def _overall(rng):
    panel, truth = generate_rollout_data(
        rng, n_creators_per_genre=12, n_periods=10, rollout=(4, 10), rho=0.5, sigma_creator=0.0
    )
    found = borusyak_imputation_estimator(panel)
    weight = found.ite["n_periods"]
    return found.att - np.average(truth["creator_effects"], weights=weight), found.att_se


def test_the_overall_effect_is_unbiased_and_its_error_not_too_small():
    error, se = np.array(replicate(_overall, 200, seed=23)).T
    assert abs(error.mean()) < K * error.std() / np.sqrt(200)
    covered = np.abs(error) <= 1.959964 * se
    assert covered.mean() > 0.95 - K * np.sqrt(0.95 * 0.05 / 200)


# ------------------------------------------------------------------------------------ scale


@pytest.mark.slow
@pytest.mark.parametrize("n_periods", [20, 100])
def test_a_million_rows_take_seconds(n_periods):
    panel, truth = generate_rollout_data(
        1,
        n_creators_per_genre=200_000 // n_periods,
        n_periods=n_periods,
        rollout=(n_periods // 2, n_periods),
        rho=0.6,
    )
    how = {"weights": "n_users", "gaps": "allow", "unidentified": "exclude"}
    estimate = partial(borusyak_imputation_estimator, **how)
    rng = np.random.default_rng(0)
    for frame in (panel, panel[rng.random(len(panel)) < 0.8]):
        start = time.perf_counter()
        found = estimate(frame)
        assert time.perf_counter() - start < 60
        # A hundredth of the creators each: they say how much the estimate varies.
        parts = [
            estimate(part).errors.rho for _, part in frame.groupby(frame["creator_id"].str[-2:])
        ]
        assert abs(found.errors.rho - 0.6) < K * stats.sem(parts)
        known = pd.Series(truth["creator_effects"], index=truth["creator_id"])
        error = found.ite["effect_hat"] - known.loc[found.ite["creator_id"]].to_numpy()
        if frame is panel:
            covered = np.abs(error) <= 1.959964 * found.ite["se"]
            assert abs(covered.mean() - 0.95) < K * np.sqrt(0.95 * 0.05 / len(covered))
        with pytest.raises(ValueError, match="creators give a matrix of"):
            found.covariance.dense()


def test_a_checked_panel_goes_the_same_way(panel):
    direct = estimate_rollout(Panel.from_frame(panel))
    assert direct.att == borusyak_imputation_estimator(panel).att
