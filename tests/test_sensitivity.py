"""Power scaling: the right prior is scaled, and a prior that fights the data is flagged."""

import numpy as np
import pandas as pd
import pytest
from conftest import K

from hbm.exact.draws import extract_hyper_estimates
from hbm.gaussian import Estimates, Hyper, creator_moments
from hbm.learned import remember_batch
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, HalfNormal, Normal, Priors
from hbm.robust import fit_hierarchical_model_robust
from hbm.sensitivity import (
    CONFLICT,
    FINE,
    STRONG_PRIOR,
    THRESHOLD,
    _diagnosis,
    prior_sensitivity,
    with_log_prior,
)

HYPER = ["mu_global", "sigma_genre", "sigma_creator"]


@pytest.fixture(scope="module")
def summaries():
    rng = np.random.default_rng(6)
    idx = rng.permutation(np.repeat(np.arange(4), 30))
    errors = rng.uniform(0.05, 0.5, 120)
    tau = rng.normal(rng.normal(0.5, 0.3, 4)[idx], 0.4)
    return pd.DataFrame(
        {
            "creator_id": [f"c{i}" for i in rng.permutation(120)],
            "genre_idx": idx,
            "genre": np.array(["a", "b", "c", "d"])[idx],
            "effect_hat": rng.normal(tau, errors),
            "se": errors,
        }
    )


def fitted(summaries, priors=Priors(), draws=1000):
    return fit_hierarchical_model(summaries, engine="exact", draws=draws, priors=priors)


@pytest.fixture(scope="module")
def fit(summaries):
    return fitted(summaries)


@pytest.fixture(scope="module")
def table(fit):
    return prior_sensitivity(fit).set_index("quantity")


def test_the_log_prior_is_that_of_the_hyperparameters(fit):
    tree = with_log_prior(fit)
    found, posterior = tree["log_prior"].dataset, fit["posterior"].dataset
    assert list(found.data_vars) == HYPER
    for name in HYPER:
        expected = getattr(Priors(), name).scipy().logpdf(posterior[name].values)
        np.testing.assert_allclose(found[name].values, expected)
        assert found[name].dims == ("chain", "draw")
    assert tree["log_likelihood"]["effect_hat"].dims == ("chain", "draw", "creator")
    assert "log_prior" not in fit.children


def test_what_is_fixed_has_no_prior(summaries):
    tree = with_log_prior(fitted(summaries, Priors(sigma_genre=Fixed(0.3)), draws=50))
    assert list(tree["log_prior"].data_vars) == ["mu_global", "sigma_creator"]


def test_what_past_batches_said_is_refused(summaries):
    learned = remember_batch(Priors(), summaries)
    with pytest.raises(ValueError, match="power scaling cannot use what past batches said"):
        prior_sensitivity(fitted(summaries, learned, draws=50))


def test_reweighting_is_what_a_fit_with_the_scaled_prior_gives(summaries):
    """Normal(mu, sigma)^alpha is Normal(mu, sigma / sqrt(alpha)); half-normals likewise."""
    alpha = 1.5
    given = Priors(Normal(0.0, 0.5), HalfNormal(0.3), HalfNormal(0.3))
    scale = np.sqrt(alpha)
    scaled = Priors(Normal(0.0, 0.5 / scale), HalfNormal(0.3 / scale), HalfNormal(0.3 / scale))
    tree = with_log_prior(fitted(summaries, given, draws=5000))
    log_prior = sum(values for values in tree["log_prior"].dataset.data_vars.values())
    weight = np.exp((alpha - 1) * (log_prior - log_prior.max())).values.ravel()
    weight /= weight.sum()
    expected, before = (
        extract_hyper_estimates(fitted(summaries, p, draws=0)).set_index("parameter")["mean"]
        for p in (scaled, given)
    )
    for name in HYPER:
        draws = tree["posterior"][name].values.ravel()
        mean = weight @ draws
        error = np.sqrt(weight**2 @ (draws - mean) ** 2)
        assert abs(mean - expected[name]) < K * error, name
    # Scaling does move what it is compared with.
    assert abs(before["sigma_genre"] - expected["sigma_genre"]) > 10 * error


def test_the_table_is_arvizs(fit, table):
    from arviz_stats import psense_summary

    theirs = psense_summary(with_log_prior(fit), var_names=HYPER, round_to=10)
    for name in HYPER:
        assert table.loc[name, "prior"] == pytest.approx(theirs.loc[name, "prior"], abs=1e-9)
        likelihood = theirs.loc[name, "likelihood"]
        assert table.loc[name, "likelihood"] == pytest.approx(likelihood, abs=1e-9)
        assert table.loc[name, "diagnosis"] == theirs.loc[name, "diagnosis"]


def test_many_values_are_represented_by_the_most_sensitive(fit, table):
    from arviz_stats import psense

    assert table.index.tolist() == [*HYPER, "mu_genre", "tau"]
    assert table["n"].tolist() == [1, 1, 1, 4, 120]
    to_prior = psense(with_log_prior(fit), var_names=["tau"], group="prior")["tau"]
    assert table.loc["tau", "prior"] == float(to_prior.max())
    assert float(to_prior.sel(creator=table.loc["tau", "worst"])) == float(to_prior.max())
    assert np.isnan(table.loc["tau", "likelihood"])
    assert table.loc["mu_genre", "worst"] in ("a", "b", "c", "d")


def test_with_many_creators_effects_do_not_hang_on_the_default_priors(table):
    assert table.loc["tau", "prior"] < THRESHOLD / 2
    assert table.loc["sigma_creator", "diagnosis"] == FINE
    assert table.loc["sigma_creator", "likelihood"] > 10 * table.loc["sigma_creator", "prior"]
    assert table.loc["sigma_genre", "largest_prior"] == "sigma_genre"


def test_a_strong_prior_that_fights_the_data_is_flagged(summaries):
    priors = Priors(sigma_creator=HalfNormal(0.02))
    table = prior_sensitivity(fitted(summaries, priors)).set_index("quantity")
    assert table.loc["sigma_creator", "diagnosis"] == CONFLICT
    assert table.loc["tau", "diagnosis"] == STRONG_PRIOR
    assert table.loc["tau", "largest_prior"] == "sigma_creator"
    priors = Priors(mu_global=Normal(-5.0, 0.3))
    table = prior_sensitivity(fitted(summaries, priors)).set_index("quantity")
    assert table.loc["mu_global", "prior"] > THRESHOLD
    assert table.loc["mu_global", "diagnosis"] != FINE


def test_diagnoses():
    low, high = THRESHOLD - 0.01, THRESHOLD + 0.01
    assert _diagnosis(low, low) == _diagnosis(low, high) == _diagnosis(low, np.nan) == FINE
    assert _diagnosis(high, high) == CONFLICT
    assert _diagnosis(high, low) == _diagnosis(high, np.nan) == STRONG_PRIOR


def test_a_robust_fit_has_a_prior_of_nu_too(summaries):
    robust = fit_hierarchical_model_robust(summaries, draws=500, tune=500, chains=2)
    table = prior_sensitivity(robust).set_index("quantity")
    assert table.index.tolist() == [*HYPER, "nu", "mu_genre", "tau"]
    assert table.loc["nu", "largest_prior"] == "nu"
    assert table.loc["nu", "prior"] > THRESHOLD  # effects here are normal: nu is next to prior


def test_the_likelihood_is_the_integrated_one(fit, summaries):
    """By creator, given the genre's mean and sigma_creator, as two normals would have it."""
    data = Estimates.from_frame(summaries)
    posterior = fit["posterior"].dataset.isel(chain=0, draw=[3])
    hyper = Hyper(*(posterior[name].values for name in HYPER))
    tau = creator_moments(data, posterior["mu_genre"].values, hyper.sigma_creator)
    # p(d | mu) = p(d | tau) p(tau | mu) / p(tau | d, mu) at any tau.
    at, mu = data.effect_hat + 0.1, posterior["mu_genre"].values[0, data.genre_idx]

    def log_normal(x, mean, var):
        return -0.5 * (np.log(2 * np.pi * var) + (x - mean) ** 2 / var)

    expected = (
        log_normal(data.effect_hat, at, data.se**2)
        + log_normal(at, mu, hyper.sigma_creator**2)
        - log_normal(at, tau.mean[0], tau.var[0])
    )
    found = with_log_prior(fit)["log_likelihood"]["effect_hat"][0, 3].values
    np.testing.assert_allclose(found, data.unsort(expected), atol=1e-9)
