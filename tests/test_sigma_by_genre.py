"""Genres with their own standard deviations: the density that was meant, and what it cures."""

import numpy as np
import pytest
from conftest import K
from scipy import stats
from test_exact import simulated

from hbm.diagnostics import check_diagnostics, hyper_draws
from hbm.estimates import extract_hbm_estimates
from hbm.gaussian import Estimates, Hyper, log_density
from hbm.model import _marginal, fit_hierarchical_model
from hbm.predictive import leave_one_out, posterior_predictive
from hbm.priors import Fixed, HalfNormal, Priors
from hbm.studies import simulate_summaries
from hbm.validation import join_truth

#: From the smallest to the largest, with the mean of the platform's constants.
SPREADS = np.linspace(0.10, 0.65, 5)


def with_spreads(seed, spreads=SPREADS, n=100):
    """A platform whose genres differ in spread, with the same errors as without."""
    summaries, truth = simulate_summaries(seed, n_creators_per_genre=n)
    own = truth["genre_effects"][truth["creator_genre"]]
    away = (truth["creator_effects"] - own) * (spreads / 0.4)[truth["creator_genre"]]
    moved = summaries["effect_hat"] + own + away - truth["creator_effects"]
    return summaries.assign(effect_hat=moved), truth | {"creator_effects": own + away}


def test_the_density_is_that_of_the_model(rng):
    """Differences between points: log normal spreads, and the creators given them."""
    priors = Priors(sigma_creator=HalfNormal(0.7), sigma_spread=HalfNormal(0.4))
    data = Estimates.from_frame(simulated(rng, [4, 1, 6]))
    model = _marginal(data, priors, sigma_by_genre=True)
    assert {v.name for v in model.free_RVs} == {
        "mu_offset", "sigma_genre", "sigma_spread",
        "log_sigma_mean", "log_sigma_away", "log_sigma_deviation",
    }  # fmt: skip
    density = model.compile_logp(jacobian=False, mode="FAST_COMPILE")
    outputs = [model[name] for name in ("mu_global", "sigma_creator", "sigma_by_genre")]
    values = model.compile_fn(
        model.replace_rvs_by_values(outputs), inputs=model.value_vars, mode="FAST_COMPILE"
    )
    gaps = []
    for _ in range(4):
        point = {v.name: rng.normal(0, 0.7, model.initial_point()[v.name].shape) for v in
                 model.value_vars}  # fmt: skip
        mu, sigma_creator, own = values(point)
        step = values(point | {"mu_offset": point["mu_offset"] + 1})[0] - mu
        sigma_genre, spread = (np.exp(point[f"sigma_{name}_log__"]) for name in ("genre", "spread"))
        theta = Hyper(np.array([mu]), np.array([sigma_genre]), own[None])
        expected = log_density(data, theta)[0] + np.log(step)
        expected += priors.mu_global.scipy().logpdf(mu)
        expected += priors.sigma_genre.scipy().logpdf(sigma_genre)
        expected += priors.sigma_spread.scipy().logpdf(spread)
        # The genres' standard deviations are log-normal around sigma_creator; as coordinates
        # their logarithms are the mean and, times the spread, two deviations from it.
        expected += priors.sigma_creator.scipy().logpdf(sigma_creator) + np.log(sigma_creator)
        expected += stats.norm(np.log(sigma_creator), spread).logpdf(np.log(own)).sum()
        expected += 3 * np.log(spread)
        gaps.append(float(density(point)) - expected)
    np.testing.assert_allclose(gaps, gaps[0], atol=2e-6)


@pytest.fixture(scope="module")
def platform():
    summaries, truth = with_spreads(3, n=40)
    return summaries, truth, fit_hierarchical_model(summaries, sigma_by_genre=True, draws=3000)


def test_the_fit_passes_and_knows_the_order_of_the_genres(platform):
    summaries, _, fit = platform
    assert check_diagnostics(fit).ok
    own = fit["posterior"]["sigma_by_genre"]
    low, high = own.quantile([0.025, 0.975], ("chain", "draw")).values
    assert np.all((low < SPREADS) & (high > SPREADS))
    assert high[0] < low[-1]
    assert hyper_draws(fit["posterior"].dataset).sigma_creator.shape == (12_000, 5)
    assert set(extract_hbm_estimates(fit, summaries)["genre"]) == set(summaries["genre"])


def test_predictions_use_the_genres_own_spread(platform):
    summaries, _, fit = platform
    replicated = posterior_predictive(fit, draws=2000)["posterior_predictive"]["effect_hat"]
    sd = fit["posterior"]["sigma_by_genre"].values.reshape(-1, 5)[:, summaries["genre_idx"]]
    var = np.square(sd).mean(axis=0) + np.square(summaries["se"])
    genre = fit["posterior"]["mu_genre"].var(("chain", "draw")).values[summaries["genre_idx"]]
    z = replicated.values[0] - replicated.values[0].mean(axis=0)
    squared = np.square(z)
    error = squared.std(axis=0) / np.sqrt(2000)
    assert np.max(np.abs(squared.mean(axis=0) - var - genre) / error) < 5
    common = leave_one_out(fit_hierarchical_model(summaries, engine="exact"))
    own = leave_one_out(fit)
    gain = (own.elpd.elpd_i - common.elpd.elpd_i).values
    assert own.pareto_k["n_above"][0] == 0
    assert gain.sum() > 2 * gain.std() * np.sqrt(len(gain))


def test_without_differences_it_is_the_common_model(rng):
    import arviz as az

    summaries = simulated(rng, [8, 5, 9])
    priors = Priors(sigma_spread=Fixed(0))
    own = fit_hierarchical_model(summaries, sigma_by_genre=True, priors=priors)
    diagnostics = check_diagnostics(own)
    assert diagnostics.ok
    assert "sigma_spread" not in diagnostics.table.index
    common = fit_hierarchical_model(summaries, engine="exact", draws=0)
    found, expected = (
        extract_hbm_estimates(own, summaries),
        extract_hbm_estimates(common, summaries),
    )
    error = az.mcse(own["posterior"].dataset["tau"]).values
    assert np.max(np.abs(found["effect_hat"] - expected["effect_hat"]) / error) < K
    np.testing.assert_allclose(found["se"], expected["se"], rtol=0.02)


def test_one_genre_has_no_deviation(rng):
    fit = fit_hierarchical_model(simulated(rng, [20]), sigma_by_genre=True, draws=200, tune=300)
    assert fit["posterior"]["sigma_by_genre"].sizes["genre"] == 1


@pytest.mark.parametrize("setting", [{"engine": "exact"}, {"parameterization": "centered"}])
def test_other_engines_refuse(rng, setting):
    with pytest.raises(ValueError, match="sigma_by_genre needs"):
        fit_hierarchical_model(simulated(rng, [4, 4]), sigma_by_genre=True, **setting)


def test_a_fixed_sigma_creator_is_refused(rng):
    priors = Priors(sigma_creator=Fixed(0.4))
    with pytest.raises(ValueError, match="needs a prior of sigma_creator that is not Fixed"):
        fit_hierarchical_model(simulated(rng, [4, 4]), sigma_by_genre=True, priors=priors)


@pytest.mark.slow
def test_it_cures_the_coverage_of_the_genres():
    hits = {"common": [], "own": []}
    for seed in range(6):
        summaries, truth = with_spreads([seed, 8])
        fits = {
            "common": fit_hierarchical_model(summaries, engine="exact", draws=0),
            "own": fit_hierarchical_model(summaries, sigma_by_genre=True, draws=3000),
        }
        for name, fit in fits.items():
            joined = join_truth(extract_hbm_estimates(fit, summaries), truth)
            hit = joined["effect_true"].between(joined["ci_lower"], joined["ci_upper"])
            hits[name].append(hit.groupby(joined["genre"], sort=False).mean().to_numpy())
    error = np.sqrt(0.95 * 0.05 / 600)
    off = {name: np.abs(np.mean(values, axis=0) - 0.95) for name, values in hits.items()}
    assert off["own"].max() < K * error
    assert off["common"].max() > K * error
