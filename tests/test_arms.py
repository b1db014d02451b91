"""Estimated standard errors: the simulation, the referee, and the bias that must not be there."""

import numpy as np
import pytest
from conftest import K
from scipy import integrate, stats

from hbm.arms import (
    METHODS,
    REVENUE,
    _density,
    _true_variances,
    simulate_arms,
    standard_error_study,
    student_likelihood_estimates,
)
from hbm.data import summarize_creators
from hbm.estimates import extract_hbm_estimates
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, Priors


@pytest.mark.parametrize("revenue", REVENUE)
def test_revenue_is_standardised(rng, revenue):
    values = REVENUE[revenue](rng, 400_000)
    for moment, expected in ((values, 0), (values**2, 1)):
        assert abs(moment.mean() - expected) < K * stats.sem(moment)


def test_arms_have_the_stated_standard_errors(rng):
    arms, truth = simulate_arms(rng, n=20, share=0.1, treated_sd=1.5, n_creators=20_000)
    assert arms["n_treatment"].unique() == [2]
    assert arms["n_control"].unique() == [18]
    np.testing.assert_allclose(truth["se"] ** 2, 9 / 2 + 4 / 18)
    error = arms["mean_treatment"] - arms["mean_control"] - truth["creator_effects"]
    assert abs(error.mean()) < K * error.sem()
    squared = np.square(error)
    assert abs(squared.mean() - truth["se"][0] ** 2) < K * squared.sem()
    assert abs(arms["var_treatment"].mean() - 9) < K * arms["var_treatment"].sem()


def test_a_t_is_a_mixture_of_normals():
    """The Gauss rule gives the density of tau's t likelihood, integrated over a normal tau."""
    se, df = np.array([0.7, 1.3]), np.array([5.0, 18.0])
    share, noise = _true_variances(se, df)
    np.testing.assert_allclose(share.sum(axis=1), 1)
    for i in range(2):
        found = (_density(0.9, noise[i], np.array([0.2]), np.array([0.4])) @ share[i])[0]

        def product(tau, i=i):
            t = stats.t(df[i], tau, se[i]).pdf(0.9)
            return t * stats.norm(0.2, 0.4).pdf(tau)

        expected, _ = integrate.quad(product, -6, 6)
        assert found / np.sqrt(2 * np.pi) == pytest.approx(expected, rel=2e-4)


def test_with_many_degrees_of_freedom_the_referee_is_the_model(rng):
    """The difference goes with 1 / df: what is left of it at 1 / df = 0 is nothing."""
    arms, truth = simulate_arms(rng, n=40, n_creators=60)
    summaries = summarize_creators(arms)
    priors = Priors(sigma_genre=Fixed(0))
    fit = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)
    expected = extract_hbm_estimates(fit, summaries)["effect_hat"]
    some, more = (
        student_likelihood_estimates(summaries.assign(df=df), truth) for df in (150.0, 300.0)
    )
    np.testing.assert_allclose(2 * more["effect_hat"] - some["effect_hat"], expected, atol=5e-4)
    assert np.abs(more["effect_hat"] - expected).max() > 5e-3
    assert more["pit"].between(0, 1).all()


@pytest.fixture(scope="module")
def skewed():
    """One user in ten treated, lognormal revenue."""
    table = standard_error_study(
        12, sizes=(20, 50), shares=(0.1,), referee_up_to=0, n_creators=300, seed=3
    )
    return table[table["revenue"] == "lognormal"].set_index(["method", "n"])


@pytest.mark.parametrize("n", [20, 50])
def test_two_arms_pooled_leaves_no_bias_with_skewed_revenue_and_unequal_arms(skewed, n):
    row = skewed.loc[(METHODS["pooled"], n)]
    assert abs(row["bias"]) < K * row["bias_se"]
    for method in ("welch", "moderated"):
        worse = skewed.loc[(METHODS[method], n)]
        assert worse["bias"] < -K * worse["bias_se"]
        assert worse["correlation"] > 0.5


def test_small_arms_inflate_the_spread_with_welch_and_moderation_mends_it():
    table = standard_error_study(
        10, sizes=(10,), shares=(0.5,), referee_up_to=10, n_creators=300, seed=4
    )
    table = table[table["revenue"] == "normal"].set_index("method")
    sigma = table["sigma_creator"]
    assert sigma["Welch"] - 0.4 > K * table["sigma_creator_se"]["Welch"]
    assert sigma["Welch"] > sigma["t likelihood"] > sigma["known"]
    assert table["mse"]["Welch"] > 1.2 * table["mse"]["known"]
    for method in (METHODS["moderated"], METHODS["pooled"]):
        assert abs(table["mse"][method] / table["mse"]["known"] - 1) < 0.05
