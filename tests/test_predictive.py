"""Checks that need no truth: predictive checks, creators left out."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hbm.learned import remember_batch
from hbm.model import fit_hierarchical_model
from hbm.predictive import (
    leave_one_out,
    loo_pit,
    posterior_predictive,
    predictive_pvalues,
    prior_predictive,
    with_log_likelihood,
)
from hbm.priors import Fixed, HalfNormal, Normal, Priors
from hbm.studies import simulate_summaries

#: Every statistical tolerance is this many Monte Carlo errors: missed once in 16,000 by chance.
K = 4
N_DATA_SETS = 10


def fitted(summaries, draws=500):
    return fit_hierarchical_model(summaries, engine="exact", draws=draws)


def largest_of(n):
    """How far the largest of n may lie, in Monte Carlo errors, to be as rare as one beyond K."""
    return stats.norm.isf(stats.norm.sf(K) / n)


@pytest.fixture(scope="module")
def summaries():
    return simulate_summaries(42)[0]


@pytest.fixture(scope="module")
def posterior(summaries):
    return fitted(summaries)


def heavy_tailed(summaries, scale=1.5):
    """The same creators, one in 50 of them with an effect far from its genre's."""
    outliers = summaries["n_total"].rank(ascending=False, method="first") <= len(summaries) / 50
    sign = np.where(np.arange(len(summaries)) % 2, 1, -1)
    effects = summaries["effect_hat"] + np.where(outliers, 2 * scale * sign, 0.0)
    return summaries.assign(effect_hat=effects)


# --- predictive checks ----------------------------------------------------------------------


def test_prior_predictive_has_the_moments_of_the_priors(summaries):
    priors = Priors(Normal(2, 0.5), Fixed(0.3), HalfNormal(0.4))
    draws = 4000
    tree = prior_predictive(summaries, priors, draws=draws, seed=1)
    effects = tree["prior_predictive"]["effect_hat"]
    assert effects.dims == ("chain", "draw", "creator")
    assert effects["creator"].values.tolist() == summaries["creator_id"].tolist()
    assert (tree["prior"]["sigma_genre"] == 0.3).all()
    first = effects.values[0, :, 0]
    variance = 0.5**2 + 0.3**2 + 0.4**2 + summaries["se"].iloc[0] ** 2
    assert abs(first.mean() - 2) < K * np.sqrt(variance / draws)
    squared = np.square(first - 2)
    assert abs(squared.mean() - variance) < K * stats.sem(squared)
    same_genre = np.cov(effects.values[0, :, 0], effects.values[0, :, 1])[0, 1]
    product = (first - 2) * (effects.values[0, :, 1] - 2)
    assert abs(same_genre - (0.5**2 + 0.3**2)) < K * stats.sem(product)


def test_prior_predictive_refuses_what_past_batches_said(summaries):
    learned = remember_batch(Priors(), summaries)
    with pytest.raises(ValueError, match="cannot use what past batches said"):
        prior_predictive(summaries, learned)


def test_posterior_predictive_adds_a_group_and_leaves_the_posterior_alone(posterior):
    replicated = posterior_predictive(posterior, draws=50)
    assert "posterior_predictive" not in posterior.children
    assert replicated["posterior_predictive"]["effect_hat"].shape == (1, 50, 500)
    again = posterior_predictive(posterior, draws=50)
    assert replicated["posterior_predictive"].dataset.equals(again["posterior_predictive"].dataset)
    with pytest.raises(ValueError, match="replicate must be 'creator' or 'estimate'"):
        posterior_predictive(posterior, replicate="genre")


def test_new_creators_or_the_same_ones_again(posterior, summaries):
    draws = 4000
    se, tau = summaries["se"].to_numpy(), posterior["posterior"]["tau"]
    tau = tau.stack(sample=("chain", "draw")).transpose("sample", "creator").values
    for replicate in ("creator", "estimate"):
        tree = posterior_predictive(posterior, draws=draws, replicate=replicate)
        effects = tree["posterior_predictive"]["effect_hat"].values[0]
        squared = np.square(effects - effects.mean(axis=0))
        if replicate == "estimate":
            expected = tau.var(axis=0) + se**2
        else:
            genre = posterior["posterior"]["mu_genre"].var(("chain", "draw")).values
            sigma = posterior["posterior"]["sigma_creator"]
            expected = genre[summaries["genre_idx"]] + float((sigma**2).mean()) + se**2
        z = (squared.mean(axis=0) - expected) / stats.sem(squared, axis=0)
        assert np.abs(z).max() < largest_of(len(z)), replicate


def test_an_exact_fit_without_draws_is_asked_for_some(summaries, loo):
    empty = fitted(summaries, draws=0)
    assert posterior_predictive(empty, draws=10)["posterior_predictive"].sizes["draw"] == 10
    asked = leave_one_out(empty)
    z = (asked.elpd.elpd_i - loo.elpd.elpd_i).values
    z /= np.hypot(importance_error(asked), importance_error(loo))
    assert np.abs(z).max() < largest_of(len(z))
    pd.testing.assert_frame_equal(loo_pit(empty), loo_pit(empty, asked))


def test_pvalues_by_hand(posterior):
    tree = posterior_predictive(posterior, draws=3)
    observed = posterior["observed_data"]["effect_hat"].values
    shifted = np.stack([observed - 1, observed, observed + 1])[None]
    tree["posterior_predictive"]["effect_hat"].values[:] = shifted
    table = predictive_pvalues(tree).set_index("statistic")
    assert ", ".join(table) == "observed, replicated, lower, upper, p_value"
    assert table.loc["max", "p_value"] == 0.5
    assert table.loc["max", "observed"] == observed.max()
    mean = predictive_pvalues(tree, statistics={"mean": lambda effects: effects.mean(axis=-1)})
    assert mean["statistic"].tolist() == ["mean"]
    with pytest.raises(ValueError, match="no group 'posterior_predictive'"):
        predictive_pvalues(posterior)


def test_pvalues_are_not_extreme_where_the_model_holds_and_are_where_it_does_not():
    true, heavy = [], []
    for seed in range(N_DATA_SETS):
        summaries, _ = simulate_summaries([seed, 3], n_creators_per_genre=40)
        for found, data in ((true, summaries), (heavy, heavy_tailed(summaries))):
            tree = posterior_predictive(fitted(data, draws=100), draws=400)
            found.append(predictive_pvalues(tree).set_index("statistic")["p_value"])
    extreme = {
        name: [(2 * np.minimum(p, 1 - p) < 0.05) for p in found]
        for name, found in (("true", true), ("heavy", heavy))
    }
    # A fit to the same data makes extremes rarer than 5%: the binomial gives an upper bound.
    n_values = N_DATA_SETS * 5
    assert np.sum(extreme["true"]) <= stats.binom(n_values, 0.05).ppf(stats.norm.cdf(K))
    spread = pd.DataFrame(true)
    assert (spread.min() < 0.5).all()
    assert (spread.max() > 0.5).all()
    rarest = pd.DataFrame(heavy)[["min", "max"]]
    assert np.mean(np.minimum(rarest, 1 - rarest) < 0.025) > 0.5


def test_keeping_each_tau_cannot_reveal_heavy_tails():
    summaries, _ = simulate_summaries(4, n_creators_per_genre=40)
    fit = fitted(heavy_tailed(summaries))
    new, kept = (
        predictive_pvalues(posterior_predictive(fit, replicate=how)).set_index("statistic")
        for how in ("creator", "estimate")
    )
    assert min(new.loc["max", "p_value"], 1 - new.loc["min", "p_value"]) < 0.025
    assert 0.025 < kept.loc["max", "p_value"] < 0.975
    assert 0.025 < kept.loc["min", "p_value"] < 0.975


# --- leaving creators out -------------------------------------------------------------------


@pytest.fixture(scope="module")
def loo(posterior):
    return leave_one_out(posterior)


def test_the_integrated_likelihood_is_safe_and_the_conditional_one_is_not(posterior, loo):
    assert loo.pareto_k["n_above"].item() == 0
    assert loo.pareto_k["max_k"].item() < 0.7
    assert loo.elpd.p < 10  # a handful of shared parameters
    with pytest.warns(UserWarning, match="shape parameter of Pareto"):
        conditional = leave_one_out(posterior, conditional=True)
    assert conditional.pareto_k["n_above"].item() > 100
    assert conditional.elpd.p > 100  # one parameter a creator


def test_log_likelihood_is_the_closed_forms(posterior, summaries):
    tree = with_log_likelihood(posterior)
    group = tree["log_likelihood"]["effect_hat"]
    assert group.dims == ("chain", "draw", "creator")
    assert "log_likelihood" not in posterior.children
    draw = posterior["posterior"].dataset.isel(chain=1, draw=7)
    genre = summaries["genre_idx"].to_numpy()
    sd = np.hypot(float(draw["sigma_creator"]), summaries["se"])
    expected = stats.norm.logpdf(summaries["effect_hat"], draw["mu_genre"].values[genre], sd)
    np.testing.assert_allclose(group.isel(chain=1, draw=7), expected, rtol=1e-10)
    given = with_log_likelihood(posterior, conditional=True)["log_likelihood"]["effect_hat"]
    expected = stats.norm.logpdf(summaries["effect_hat"], draw["tau"].values, summaries["se"])
    np.testing.assert_allclose(given.isel(chain=1, draw=7), expected, rtol=1e-9)


def importance_error(loo):
    """Monte Carlo error of each term of elpd, from independent draws: sd(weight) / mean / √S."""
    weights = np.exp(loo.elpd.log_weights.stack(sample=("chain", "draw")))
    shares = weights / weights.sum("sample")
    return np.sqrt(np.square(shares).sum("sample") - 1 / shares.sizes["sample"]).values


def test_leave_one_out_agrees_with_refits():
    summaries, _ = simulate_summaries(5, genres=("a", "b", "c"), n_creators_per_genre=20)
    fit = fitted(summaries, draws=1000)
    loo = leave_one_out(fit)
    evidence = fit.attrs["log_marginal_likelihood"]
    for i in range(0, 60, 6):
        without = fitted(summaries.drop(index=i), draws=0).attrs["log_marginal_likelihood"]
        difference = loo.elpd.elpd_i.values[i] - (evidence - without)
        assert abs(difference) < K * importance_error(loo)[i], summaries["creator_id"][i]


def test_loo_pit_is_uniform_where_the_model_holds_and_not_with_wrong_errors(posterior, loo):
    pit = loo_pit(posterior, loo)
    assert ", ".join(pit) == "creator_id, pit, pareto_k"
    assert stats.kstest(pit["pit"], "uniform").pvalue > 1e-4
    summaries, _ = simulate_summaries(42, sigma_creator=0.1)
    wrong = summaries.assign(se=2 * summaries["se"])  # too small ones pass for a large sigma
    assert stats.kstest(loo_pit(fitted(wrong))["pit"], "uniform").pvalue < 1e-4


def test_good_fits_make_no_warnings(posterior):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loo_pit(posterior, leave_one_out(posterior))
        predictive_pvalues(posterior_predictive(posterior, draws=10))
