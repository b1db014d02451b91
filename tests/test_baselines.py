"""No pooling is Welch's test, complete pooling the inverse-variance mean of a genre."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hbm.baselines import (
    _most_probable,
    complete_pooling_estimates,
    empirical_bayes_estimates,
    james_stein_estimates,
    no_pooling_estimates,
)
from hbm.checks import DataError
from hbm.data import summarize_creators
from hbm.gaussian import Estimates, Hyper, log_density
from hbm.intervals import LEVEL, normal_factor, tail_probabilities

BASELINES = (no_pooling_estimates, complete_pooling_estimates)
COLUMNS = ["creator_id", "genre", "effect_hat", "se", "ci_lower", "ci_upper", "n_total", "p_value"]


def test_the_level_is_one_constant():
    assert LEVEL == 0.95
    assert tail_probabilities() == (pytest.approx(0.025), pytest.approx(0.975))
    assert normal_factor() == pytest.approx(1.959963984540054, rel=1e-12)
    assert normal_factor(0.5) == pytest.approx(stats.norm.ppf(0.75))
    for level in (0, 1, -0.1, 95):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            tail_probabilities(level)


@pytest.mark.parametrize("estimate", BASELINES)
def test_both_return_the_same_columns_from_users_and_from_summaries(users, estimate):
    from_users, summaries = estimate(users), summarize_creators(users)
    assert list(from_users.columns) == COLUMNS
    pd.testing.assert_frame_equal(from_users, estimate(summaries))
    assert from_users["creator_id"].tolist() == summaries["creator_id"].tolist()
    assert from_users["genre"].tolist() == summaries["genre"].tolist()
    assert from_users["n_total"].tolist() == summaries["n_total"].tolist()
    half = 1.959963984540054 * from_users["se"]
    np.testing.assert_allclose(from_users["ci_lower"], from_users["effect_hat"] - half)
    np.testing.assert_allclose(from_users["ci_upper"], from_users["effect_hat"] + half)


def test_no_pooling_is_welchs_test(users):
    estimates = no_pooling_estimates(users).set_index("creator_id")
    for creator, own in users.groupby("creator_id"):
        treated, control = (own.loc[own["group"] == g, "revenue"] for g in ("treatment", "control"))
        row = estimates.loc[creator]
        welch = stats.ttest_ind(treated, control, equal_var=False)
        assert row["p_value"] == pytest.approx(welch.pvalue, rel=1e-10)
        assert row["effect_hat"] == pytest.approx(treated.mean() - control.mean(), rel=1e-12)
        error = np.sqrt(treated.var() / len(treated) + control.var() / len(control))
        assert row["se"] == pytest.approx(error, rel=1e-12)


def test_without_degrees_of_freedom_the_p_value_is_a_normals():
    summaries = pd.DataFrame(
        {"creator_id": [1, 2, 3], "genre_idx": 0, "effect_hat": [1.0, -60, 0], "se": [0.5, 2, 1]}
    )
    estimates = no_pooling_estimates(summaries)
    np.testing.assert_allclose(
        estimates["p_value"], 2 * stats.norm.sf([2, 30, 0]), rtol=1e-10, atol=0
    )
    assert estimates["n_total"].isna().all()
    assert estimates["genre"].tolist() == ["0", "0", "0"]


def test_complete_pooling_by_hand():
    summaries = pd.DataFrame(
        {
            "creator_id": ["a", "b", "c", "d"],
            "genre_idx": [1, 0, 1, 1],
            "genre": ["music", "comedy", "music", "music"],
            "effect_hat": [1.0, 5.0, 4.0, 10.0],
            "se": [1.0, 3.0, 2.0, 0.5],
        }
    )
    pooled = complete_pooling_estimates(summaries)
    mean = (1 * 1 + 4 / 4 + 10 * 4) / (1 + 1 / 4 + 4)
    se = (1 + 1 / 4 + 4) ** -0.5
    np.testing.assert_allclose(pooled["effect_hat"], [mean, 5, mean, mean], rtol=1e-14)
    np.testing.assert_allclose(pooled["se"], [se, 3, se, se], rtol=1e-14)
    np.testing.assert_allclose(
        pooled["p_value"],
        2 * stats.norm.sf(np.array([mean / se, 5 / 3, mean / se, mean / se])),
        rtol=1e-9,
    )


def test_complete_pooling_compares_each_creator_with_itself():
    """Pooling the users of a genre would mistake a rich creator's many treated users for gain."""
    rows = []
    for creator, level, treated, control in (("rich", 100.0, 9, 3), ("poor", 1.0, 3, 9)):
        for group, n in (("treatment", treated), ("control", control)):
            rows += [(creator, "g", group, level + 0.01 * (k % 3)) for k in range(n)]
    users = pd.DataFrame(rows, columns=["creator_id", "genre", "group", "revenue"])
    assert complete_pooling_estimates(users)["effect_hat"].abs().max() < 0.01


def test_a_large_offset_costs_complete_pooling_no_digits(rng):
    effects, errors = rng.normal(0, 1, 50), rng.uniform(0.1, 3, 50)
    summaries = pd.DataFrame(
        {"creator_id": range(50), "genre_idx": np.arange(50) % 3, "se": errors}
    )
    near, far = (
        complete_pooling_estimates(summaries.assign(effect_hat=effects + offset))["effect_hat"]
        for offset in (0.0, 1e8)
    )
    np.testing.assert_allclose(far - 1e8, near, rtol=0, atol=4 * np.spacing(1e8))


@pytest.mark.parametrize("estimate", BASELINES)
def test_order_and_unit_do_not_matter(users, rng, estimate):
    summaries = summarize_creators(users)
    expected = estimate(summaries)
    order = rng.permutation(len(summaries))
    shuffled = estimate(summaries.iloc[order])
    pd.testing.assert_frame_equal(
        shuffled.reset_index(drop=True), expected.iloc[order].reset_index(drop=True)
    )
    cents = estimate(users.assign(revenue=100 * users["revenue"]))
    for column in ("effect_hat", "se", "ci_lower", "ci_upper"):
        np.testing.assert_allclose(cents[column], 100 * expected[column], rtol=1e-10)
    np.testing.assert_allclose(cents["p_value"], expected["p_value"], rtol=1e-9)


@pytest.mark.parametrize("estimate", BASELINES)
def test_bad_tables_are_refused(users, estimate):
    with pytest.raises(DataError, match="missing column group"):
        estimate(users.drop(columns="group"))
    with pytest.raises(DataError, match="'se' must be greater than 0"):
        estimate(summarize_creators(users).assign(se=0.0))


# --- plug-in pooling ------------------------------------------------------------------------


def test_james_stein_is_the_textbook_estimator(rng):
    """With one standard error: Efron & Morris (1975), shrinkage (N - 3) se² / S to the mean."""
    effects = rng.normal(1, 2, 12)
    summaries = pd.DataFrame(
        {"creator_id": range(12), "genre_idx": 0, "effect_hat": effects, "se": 1.5}
    )
    found = james_stein_estimates(summaries)
    pull = 9 * 1.5**2 / np.square(effects - effects.mean()).sum()
    np.testing.assert_allclose(found["shrinkage"], pull)
    np.testing.assert_allclose(found["effect_hat"], effects + pull * (effects.mean() - effects))
    near = james_stein_estimates(summaries.assign(effect_hat=1 + 0.01 * effects))
    np.testing.assert_allclose(near["shrinkage"], 1)  # the positive part
    with pytest.raises(ValueError, match="needs 4 creators, got 3"):
        james_stein_estimates(summaries.head(3))


def test_james_stein_beats_the_plain_estimates_at_every_truth(rng):
    """Stein's theorem, at a truth that is no draw from any model."""
    truth = np.array([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, -3.0, 4.0])
    gain = []
    for _ in range(1500):
        d = rng.normal(truth, 1)
        summaries = pd.DataFrame(
            {"creator_id": range(8), "genre_idx": 0, "effect_hat": d, "se": 1.0}
        )
        made = james_stein_estimates(summaries)["effect_hat"]
        gain.append(np.square(d - truth).sum() - np.square(made - truth).sum())
    assert np.mean(gain) > 4 * np.std(gain) / np.sqrt(1500)


@pytest.fixture
def baseball():
    """Efron & Morris (1975): 18 players, batting averages of 45 at bats and of the season."""
    early = np.array(
        [.400, .378, .356, .333, .311, .311, .289, .267, .244, .244, .222, .222, .222, .222, .222,
         .200, .178, .156]
    )  # fmt: skip
    season = np.array(
        [.346, .298, .276, .222, .273, .270, .263, .210, .269, .230, .264, .256, .303, .264, .226,
         .285, .316, .200]
    )  # fmt: skip
    se = np.sqrt(early.mean() * (1 - early.mean()) / 45)
    summaries = pd.DataFrame(
        {"creator_id": range(18), "genre_idx": 0, "effect_hat": early, "se": se}
    )
    return summaries, season


def test_baseball_players_are_predicted_as_published(baseball):
    """Shrinkage cuts the squared error to less than a third, from .0753 to .0213."""
    summaries, season = baseball
    plain = np.square(summaries["effect_hat"] - season).sum()
    made = james_stein_estimates(summaries)["effect_hat"]
    assert plain == pytest.approx(0.0753, abs=2e-3)
    assert np.square(made - season).sum() == pytest.approx(0.0213, abs=1e-3)


def test_empirical_bayes_maximises_the_marginal_likelihood(rng):
    from test_exact import simulated

    summaries = simulated(rng, [12, 9, 15])
    data = Estimates.from_frame(summaries)
    found = _most_probable(data, grouping=True)
    best = log_density(data, found)[0]
    for shift in ((0.05, 1, 1), (-0.05, 1, 1), (0, 1.1, 1), (0, 0.9, 1), (0, 1, 1.1), (0, 1, 0.9)):
        near = Hyper(
            found.mu_global + shift[0], found.sigma_genre * shift[1], found.sigma_creator * shift[2]
        )
        assert log_density(data, near)[0] <= best + 1e-7
    made = empirical_bayes_estimates(summaries)
    pull = summaries["se"] ** 2 / (summaries["se"] ** 2 + found.sigma_creator[0] ** 2)
    np.testing.assert_allclose(made["shrinkage"], pull)
    alone = _most_probable(data, grouping=False)
    assert alone.sigma_genre[0] == 0
    assert log_density(data, alone)[0] <= best


@pytest.mark.parametrize("grouping", [True, False])
def test_empirical_bayes_intervals_hold_the_uncertainty_of_the_mean(rng, grouping):
    """Generalised least squares given the two standard deviations, with whole matrices."""
    from test_exact import simulated

    summaries = simulated(rng, [3, 5, 2])
    d, idx = summaries["effect_hat"].to_numpy(), summaries["genre_idx"].to_numpy()
    found = _most_probable(Estimates.from_frame(summaries), grouping)
    same = found.sigma_genre[0] ** 2 * (idx[:, None] == idx)
    tau = same + found.sigma_creator[0] ** 2 * np.eye(len(d))
    precision = np.linalg.inv(tau + np.diag(summaries["se"] ** 2))
    pull = tau @ precision
    of_mu = 1 / precision.sum()
    left = 1 - pull.sum(axis=1)
    made = empirical_bayes_estimates(summaries, grouping=grouping)
    mu = of_mu * precision.sum(axis=0) @ d
    np.testing.assert_allclose(made["effect_hat"], mu + pull @ (d - mu), rtol=1e-9)
    np.testing.assert_allclose(
        made["se"] ** 2, np.diag(tau - pull @ tau) + left**2 * of_mu, rtol=1e-9
    )


@pytest.mark.parametrize("sizes", [[1], [8], [3, 3, 3, 3, 3]])
def test_where_nothing_varies_empirical_bayes_intervals_are_those_of_the_mean_of_all(sizes):
    """Both standard deviations are estimated as 0, and the mean is still no certain number."""
    n = sum(sizes)
    se = np.linspace(0.5, 1.5, n)
    summaries = pd.DataFrame(
        {
            "creator_id": range(n),
            "genre_idx": np.repeat(range(len(sizes)), sizes),
            "effect_hat": 1.0,
            "se": se,
        }
    )
    made = empirical_bayes_estimates(summaries)
    np.testing.assert_allclose(made["effect_hat"], 1)
    np.testing.assert_allclose(made["se"], (1 / se**2).sum() ** -0.5, rtol=1e-6)


def test_one_global_mean_agrees_with_an_independent_implementation(rng):
    """Random-effects meta-analysis by maximum likelihood, as the mean solves its equation."""
    from scipy import optimize
    from test_exact import simulated

    summaries = simulated(rng, [40])
    d, var = summaries["effect_hat"].to_numpy(), summaries["se"].to_numpy() ** 2

    def negative(theta):
        total = np.exp(theta[1]) + var
        return 0.5 * (np.log(total) + (d - theta[0]) ** 2 / total).sum()

    result = optimize.minimize(negative, [0.0, -1.0], method="BFGS")
    found = _most_probable(Estimates.from_frame(summaries), grouping=False)
    assert found.mu_global[0] == pytest.approx(result.x[0], abs=1e-4)
    assert found.sigma_creator[0] == pytest.approx(np.exp(result.x[1] / 2), abs=1e-4)


def test_student_intervals_are_wider_and_agree_with_the_p_value(users):
    plain = no_pooling_estimates(users)
    wide = no_pooling_estimates(users, student=True)
    assert (wide["ci_upper"] - wide["ci_lower"] > plain["ci_upper"] - plain["ci_lower"]).all()
    excludes = (wide["ci_lower"] > 0) | (wide["ci_upper"] < 0)
    assert (excludes == (wide["p_value"] < 0.05)).all()
