"""Leaving out by subtraction is what leaving out and integrating anew gives."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr
from test_exact import CASES, WIDE, Dense, Exponential, exact, simulated, summaries_of

from hbm.exact import loo
from hbm.exact.likelihood import Likelihood
from hbm.exact.loo import leave_one_genre_out, loo_exact
from hbm.exact.quadrature import integrate
from hbm.exact.rule import effect_rule
from hbm.priors import Priors

#: Log densities: the error that exact fits are allowed.
CLOSE = 1e-6


def without(summaries, drop):
    """The summaries without some creators, genres numbered without gaps."""
    rest = summaries[~drop].reset_index(drop=True)
    return rest.assign(genre_idx=np.unique(rest["genre_idx"], return_inverse=True)[1])


@pytest.mark.parametrize(
    "name",
    [
        "three genres",
        "one genre",
        "one creator a genre",
        "nearly one creator a genre",
        "no spread at all",
        "precise and noisy",
        "heavy-tailed priors",
        "no grouping",
        "two creators of one genre",
        "two creators of two genres",
    ],
)
def test_each_creator_as_if_fitted_without_it(name):
    summaries, priors = summaries_of(name), CASES[name][2]
    fit = exact(summaries, priors=priors)
    found = loo_exact(fit)
    assert found.pointwise["creator_id"].tolist() == summaries["creator_id"].tolist()
    whole = fit.attrs["log_marginal_likelihood"]
    for i in range(len(summaries)):
        rest = exact(without(summaries, summaries.index == i), priors=priors)
        expected = whole - rest.attrs["log_marginal_likelihood"]
        assert found.pointwise["elpd"][i] == pytest.approx(expected, abs=CLOSE)
    elpd = found.pointwise["elpd"]
    assert found.elpd == pytest.approx(elpd.sum())
    assert found.se == pytest.approx(np.sqrt(len(elpd)) * elpd.std())


def test_against_the_dense_normal():
    """Neither the fit nor the integration without a creator shares a formula with this."""
    summaries = summaries_of("three genres")
    found = loo_exact(exact(summaries)).pointwise
    whole = Dense(summaries, Priors())
    for i in (0, 4, 9):
        rest = Dense(without(summaries, summaries.index == i), Priors())
        expected = whole.log_evidence - rest.log_evidence
        assert found["elpd"][i] == pytest.approx(expected, abs=CLOSE)


def test_probability_of_a_smaller_estimate(rng):
    """By the derivative of the predictive's distribution function: its density."""
    summaries = simulated(rng, [4, 3])
    step = 1e-4 * summaries["se"][2]
    near = []
    for shift in (-step, 0.0, step):
        moved = summaries.copy()
        moved.loc[2, "effect_hat"] += shift
        near.append(loo_exact(exact(moved)).pointwise.loc[2])
    slope = (near[2]["pit"] - near[0]["pit"]) / (2 * step)
    assert np.log(slope) == pytest.approx(near[1]["elpd"], abs=1e-3)
    assert 0 < near[1]["pit"] < 1


def test_probabilities_are_uniform_when_the_model_is_right(rng):
    """One creator of each of many platforms, drawn from the priors and the model."""
    priors, values = Priors(), []
    for _ in range(60):
        mu = rng.normal()
        sigma_genre, sigma_creator = np.abs(rng.normal(size=2))
        summaries = simulated(rng, [3, 3], sigma_genre=0, sigma_creator=0)
        genre = rng.normal(mu, sigma_genre, 2)[summaries["genre_idx"]]
        tau = rng.normal(genre, sigma_creator)
        summaries["effect_hat"] = rng.normal(tau, summaries["se"])
        values.append(loo_exact(exact(summaries, priors=priors)).pointwise["pit"][0])
    assert stats.kstest(values, "uniform").pvalue > 2 * stats.norm.sf(4)


def test_an_outlier_moves_the_posterior_off_the_grid(rng):
    summaries = simulated(rng, [30] * 3)
    summaries.loc[7, "effect_hat"] = 40.0
    fit = exact(summaries)
    found = loo_exact(fit).pointwise
    assert found["refitted"][7]
    assert found["refitted"].sum() < 10
    rest = exact(without(summaries, summaries.index == 7))
    expected = fit.attrs["log_marginal_likelihood"] - rest.attrs["log_marginal_likelihood"]
    assert found["elpd"][7] == pytest.approx(expected, abs=CLOSE)


def test_few_nodes_do_where_there_are_many_creators(rng, monkeypatch):
    fit = exact(simulated(rng, [1000] * 4))
    grid = loo_exact(fit)
    monkeypatch.setattr(loo, "MAX_WORK", 0)
    few = loo_exact(fit)
    np.testing.assert_allclose(few.pointwise["elpd"], grid.pointwise["elpd"], atol=CLOSE)
    np.testing.assert_allclose(few.pointwise["pit"], grid.pointwise["pit"], atol=CLOSE)


def test_each_genre_as_if_fitted_without_it():
    summaries = summaries_of("three genres")
    found = leave_one_genre_out(exact(summaries))
    assert found["genre"].tolist() == ["0", "1", "2"]
    assert found["n_creators"].tolist() == [3, 1, 7]
    whole = Dense(summaries, Priors())
    for g, row in found.iterrows():
        out = summaries["genre_idx"] == g
        rest = Dense(without(summaries, out), Priors())
        assert row["elpd_joint"] == pytest.approx(whole.log_evidence - rest.log_evidence, abs=CLOSE)
        # Each creator of the absent genre by itself is one more creator of one more genre.
        each = 0.0
        for i in summaries.index[out]:
            one = summaries[~out | (summaries.index == i)].reset_index(drop=True)
            each += Dense(one, Priors()).log_evidence - rest.log_evidence
        assert row["elpd_summed"] == pytest.approx(each, abs=CLOSE)


def test_joint_and_summed_differ_but_for_one_creator(rng):
    found = leave_one_genre_out(exact(simulated(rng, [5, 1, 6])))
    same = np.isclose(found["elpd_joint"], found["elpd_summed"], atol=CLOSE)
    assert same.tolist() == [False, True, False]


def test_genres_by_name(rng):
    summaries = simulated(rng, [3, 2, 4])
    summaries["genre"] = np.array(["music", "comedy", "gaming"])[summaries["genre_idx"]]
    fit = exact(summaries)
    whole = leave_one_genre_out(fit)
    some = leave_one_genre_out(fit, ["gaming"])
    assert some["genre"].tolist() == ["gaming"]
    assert some["elpd_joint"][0] == whole["elpd_joint"][2]
    with pytest.raises(KeyError, match="unknown genres: \\['drama'\\]"):
        leave_one_genre_out(fit, ["music", "drama"])


def test_what_cannot_be_left_out(rng):
    with pytest.raises(ValueError, match="two genres at least"):
        leave_one_genre_out(exact(simulated(rng, [5])))


def test_a_prior_of_ones_own_is_used_again_when_a_genre_is_left_out(rng):
    summaries = simulated(rng, [2, 2])
    priors = Priors(sigma_genre=Exponential())
    left = leave_one_genre_out(exact(summaries, priors=priors))["elpd_joint"]
    first = exact(summaries[summaries["genre_idx"] == 0], priors=priors)
    both = exact(summaries, priors=priors).attrs["log_marginal_likelihood"]
    assert left[1] == pytest.approx(both - first.attrs["log_marginal_likelihood"], abs=CLOSE)


def test_a_grouping_that_is_there_predicts_better(rng):
    """The difference against no grouping at all, by creator, is far beyond its error."""
    summaries = simulated(rng, [40] * 6, sigma_genre=0.8, sigma_creator=0.3)
    flat = summaries.assign(genre_idx=0)
    grouped, alone = (loo_exact(exact(s)).pointwise["elpd"] for s in (summaries, flat))
    difference = grouped - alone
    assert difference.sum() > 4 * np.sqrt(len(difference)) * difference.std()


def test_predictive_of_the_left_out_agrees_with_a_new_creator(rng):
    """The probability of a smaller estimate, from the fit without the creator."""
    summaries = simulated(rng, [4, 3])
    priors = WIDE
    found = loo_exact(exact(summaries, priors=priors)).pointwise
    data = exact(summaries)["constant_data"]["genre_idx"].values
    i = 1
    from hbm.gaussian import Estimates

    every = Estimates.from_frame(summaries)
    kept = every.order != i
    grid = integrate(Likelihood(every, priors.mu_global).subset(kept), priors)
    rule = effect_rule(grid)
    genre = rule.centers(grid.plane.likelihood)
    var = genre.var[:, data[i]] + rule.sigma_creator**2 + summaries["se"][i] ** 2
    z = (summaries["effect_hat"][i] - genre.mean[:, data[i]]) / np.sqrt(var)
    assert found["pit"][i] == pytest.approx(rule.weight @ ndtr(z), abs=CLOSE)
