"""The exact engine agrees with one dense normal, with published results, with NUTS and itself."""

import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from scipy.special import logsumexp, ndtr

from hbm.diagnostics import MAX_QUADRATURE_ERROR, DiagnosticsError, check_diagnostics, estimates_of
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact import components, predict_effects
from hbm.exact.draws import (
    _Between,
    draw_effects,
    extract_hyper_estimates,
    hyper_cdf,
    likelihood_of,
    sums_between,
)
from hbm.exact.likelihood import Likelihood
from hbm.exact.quadrature import Cartesian, Polar, _outer_ends, _refine, integrate
from hbm.exact.rule import Rule, gauss_rule
from hbm.gaussian import (
    Estimates,
    Hyper,
    creator_moments,
    genre_moments,
    log_density,
    mixture_cdf,
    mixture_moments,
)
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, HalfCauchy, HalfNormal, Normal, Prior, Priors
from hbm.store import kept

#: What the engine promises, and what it is held to: of probabilities and log densities as they
#: are, of means and standard deviations in posterior standard deviations.
PROMISED = MAX_QUADRATURE_ERROR


def exact(summaries, **settings):
    return fit_hierarchical_model(summaries, engine="exact", **{"draws": 0} | settings)


def simulated(rng, shape, se=(0.1, 1.0), sigma_genre=0.5, sigma_creator=0.6):
    """Summaries of a platform with `shape` creators by genre, in a random order."""
    idx = rng.permutation(np.repeat(np.arange(len(shape)), shape))
    n = len(idx)
    mu = rng.normal(0.4, sigma_genre, len(shape))
    errors = np.exp(rng.uniform(*np.log(se), n))
    return pd.DataFrame(
        {
            "creator_id": [f"c{i}" for i in range(n)],
            "genre_idx": idx,
            "effect_hat": rng.normal(mu[idx], np.hypot(sigma_creator, errors)),
            "se": errors,
        }
    )


@dataclass(frozen=True)
class Exponential(Prior):
    """A prior that is neither even nor known to the engine."""

    scale: float = 1.0

    def scipy(self):
        return stats.expon(scale=self.scale)


class Dense:
    """The posterior by brute force: a fine grid over both log sigmas, dense normals at its nodes.

    Shares no formula with the engine: nothing is integrated in closed form but the conditional
    of one large normal (mu_global, mu_genre, tau, effect_hat).
    """

    def __init__(self, summaries, priors, step=0.1, low=-22.0, high=9.0, limits=()):
        self.effects = summaries["effect_hat"].to_numpy()
        self.noise = np.square(summaries["se"].to_numpy())
        self.prior = priors.mu_global
        idx = summaries["genre_idx"].to_numpy()
        self.member = np.eye(idx.max() + 1)[idx]
        axes = []
        for name in SIGMAS:
            points = np.arange(low, high, step), np.full(len(np.arange(low, high, step)), step)
            if name in limits:
                points = panels(low, np.log(limits[name]))
            axes.append(self.axis(getattr(priors, name), *points))
        grid = np.meshgrid(*(axis[0] for axis in axes), indexing="ij")
        self.sigma_genre, self.sigma_creator = (part.ravel() for part in grid)
        weight = (axes[0][1][:, None] + axes[1][1]).ravel() + self.log_likelihood()
        self.log_evidence = logsumexp(weight)
        self.weight = np.exp(weight - self.log_evidence)
        few = self.weight > 1e-18
        for name in ("sigma_genre", "sigma_creator", "weight"):
            setattr(self, name, getattr(self, name)[few])

    @staticmethod
    def axis(prior, x, width):
        if isinstance(prior, Fixed):
            return np.array([prior.value]), np.zeros(1)
        return np.exp(x), prior.scipy().logpdf(np.exp(x)) + x + np.log(width)

    def blocks(self):
        step = max(1, 2_000_000 // len(self.effects) ** 2)
        for start in range(0, len(self.sigma_genre), step):
            yield slice(start, start + step)

    def sources(self, block):
        """Variances of mu_global, of the genres around it and of the creators around them."""
        n, g = self.member.shape
        parts = [
            np.full((len(self.sigma_genre[block]), 1), self.prior.sigma),
            np.repeat(self.sigma_genre[block, None], g, axis=1),
            np.repeat(self.sigma_creator[block, None], n, axis=1),
        ]
        return np.square(np.hstack(parts))

    @property
    def tau_rows(self):
        n = len(self.effects)
        return np.hstack([np.ones((n, 1)), self.member, np.eye(n)])

    def covariance(self, block):
        rows = self.tau_rows
        tau = (rows * self.sources(block)[:, None, :]) @ rows.T
        return tau + np.diag(self.noise)

    def log_likelihood(self):
        away, result = self.effects - self.prior.mu, []
        for block in self.blocks():
            factor = np.linalg.cholesky(self.covariance(block))
            z = np.linalg.solve(factor, np.broadcast_to(away, factor.shape[:2])[..., None])[..., 0]
            log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
            squared = np.square(z).sum(axis=1)
            result.append(-0.5 * (squared + len(away) * np.log(2 * np.pi)) - log_det)
        return np.concatenate(result)

    def moments(self, rows):
        """Moments at each node of linear combinations of (mu_global, genre and creator parts)."""
        means, variances = [], []
        for block in self.blocks():
            sources = self.sources(block)
            across = (rows * sources[:, None, :]) @ self.tau_rows.T
            gain = np.linalg.solve(self.covariance(block), np.swapaxes(across, 1, 2))
            means.append(
                rows[:, 0] * self.prior.mu
                + np.einsum("knr,n->kr", gain, self.effects - self.prior.mu)
            )
            prior = (np.square(rows) * sources[:, None, :]).sum(axis=2)
            variances.append(prior - np.einsum("krn,knr->kr", across, gain))
        return np.concatenate(means), np.concatenate(variances)

    @property
    def mu_rows(self):
        n, g = self.member.shape
        return np.hstack([np.ones((g, 1)), np.eye(g), np.zeros((g, n))])

    def overall(self, rows):
        """Posterior means, standard deviations and distribution function of combinations."""
        mean, var = self.moments(rows)
        center = self.weight @ mean
        sd = np.sqrt(self.weight @ (np.square(mean - center) + var))
        return center, sd, lambda x: self.weight @ ndtr((x - mean) / np.sqrt(var))

    def of(self, sigma):
        """Posterior mean and standard deviation of a standard deviation."""
        mean = self.weight @ sigma
        return mean, np.sqrt(self.weight @ np.square(sigma - mean))


def panels(low, high):
    """Gauss-Legendre nodes and weights on pieces that shrink toward the upper end."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    ends = high - (high - low) * np.linspace(1, 0, 25) ** 2
    half, middle = np.diff(ends) / 2, (ends[1:] + ends[:-1]) / 2
    return np.add.outer(middle, 0 * nodes).ravel() + np.outer(half, nodes).ravel(), np.outer(
        half, weights
    ).ravel()


SIGMAS = ("sigma_genre", "sigma_creator")

WIDE = Priors(Normal(0, 2), HalfCauchy(0.7), HalfCauchy(0.5))

#: Creators by genre, how they are simulated, priors: every shape on which a grid could break.
CASES = {
    "three genres": ([3, 1, 7], {}, Priors()),
    "one genre": ([8], {}, Priors()),
    "one creator": ([1], {}, Priors()),
    "two creators of one genre": ([2], {}, Priors()),
    "two creators of two genres": ([1, 1], {}, Priors()),
    "one creator a genre": ([1] * 8, {}, Priors()),
    "nearly one creator a genre": ([1] * 7 + [2], {}, Priors()),
    "sixty creators": ([20, 1, 9, 30], {}, Priors()),
    "no spread at all": ([4, 4, 4], {"sigma_genre": 0, "sigma_creator": 0}, Priors()),
    "precise and noisy": ([4, 3, 4], {"se": (1e-3, 1e2)}, Priors()),
    "heavy-tailed priors": ([3, 1, 7], {}, WIDE),
    "heavy-tailed prior, one genre": ([8], {}, replace(WIDE, sigma_genre=Fixed(0))),
    "priors against the data": (
        [3, 1, 7],
        {"sigma_genre": 3, "sigma_creator": 2},
        Priors(Normal(-3, 0.5), HalfNormal(0.05), HalfNormal(0.05)),
    ),
    "no grouping": ([3, 1, 7], {}, Priors(sigma_genre=Fixed(0))),
    "known spread of genres": ([3, 1, 7], {}, Priors(sigma_genre=Fixed(0.3))),
    "known spread of creators": ([3, 1, 7], {}, Priors(sigma_creator=Fixed(0.4))),
    "both known": ([3, 1, 7], {}, Priors(sigma_genre=Fixed(0.2), sigma_creator=Fixed(0.4))),
    "priors of other families": ([3, 1, 7], {}, Priors(Normal(), Exponential(), Exponential(0.5))),
    "such priors on a ridge": ([1] * 6, {}, Priors(Normal(), Exponential(), Exponential(0.5))),
}


#: Dense grids that have to be finer, or need not reach as far.
DENSE = {
    "priors against the data": {"step": 0.04, "high": 1.0},
    "sixty creators": {"high": 2.5},
}


def summaries_of(name):
    shape, settings, _ = CASES[name]
    return simulated(np.random.default_rng(sorted(CASES).index(name)), shape, **settings)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    summaries, priors = summaries_of(request.param), CASES[request.param][2]
    dense = Dense(summaries, priors, **DENSE.get(request.param, {}))
    return summaries, exact(summaries, priors=priors), dense


def test_effects_equal_the_dense_normal(case):
    summaries, fit, dense = case
    found = extract_hbm_estimates(fit, summaries)
    mean, sd, cdf = dense.overall(dense.tau_rows)
    np.testing.assert_allclose((found["effect_hat"] - mean) / sd, 0, atol=PROMISED)
    np.testing.assert_allclose(found["se"] / sd, 1, atol=PROMISED)
    np.testing.assert_allclose(cdf(found["ci_lower"].to_numpy()), 0.025, atol=PROMISED)
    np.testing.assert_allclose(cdf(found["ci_upper"].to_numpy()), 0.975, atol=PROMISED)
    np.testing.assert_allclose(found["p_positive"], 1 - cdf(0.0), atol=PROMISED)


def test_genre_means_equal_the_dense_normal(case):
    _, fit, dense = case
    found = extract_genre_estimates(fit)
    mean, sd, cdf = dense.overall(dense.mu_rows)
    np.testing.assert_allclose((found["mean"] - mean) / sd, 0, atol=PROMISED)
    np.testing.assert_allclose(found["se"] / sd, 1, atol=PROMISED)
    np.testing.assert_allclose(cdf(found["lower"].to_numpy()), 0.025, atol=PROMISED)
    np.testing.assert_allclose(found["p_positive"], 1 - cdf(0.0), atol=PROMISED)


def test_hyperparameters_and_evidence_equal_the_dense_normal(case):
    _, fit, dense = case
    assert check_diagnostics(fit).ok
    assert fit.attrs["log_marginal_likelihood"] == pytest.approx(dense.log_evidence, abs=PROMISED)
    found = extract_hyper_estimates(fit).set_index("parameter")
    platform = np.eye(1, dense.tau_rows.shape[1])
    expected = {
        "mu_global": [part[0] for part in dense.overall(platform)[:2]],
        "sigma_genre": dense.of(dense.sigma_genre),
        "sigma_creator": dense.of(dense.sigma_creator),
    }
    for name, (mean, sd) in expected.items():
        scale = max(sd, 1e-6)
        assert found["mean"][name] == pytest.approx(mean, abs=PROMISED * scale), name
        assert found["se"][name] == pytest.approx(sd, abs=PROMISED * scale), name


def test_shrinkage_is_the_mean_weight_of_the_genre(case):
    summaries, fit, dense = case
    pull = dense.noise / (dense.noise + np.square(dense.sigma_creator)[:, None])
    found = extract_hbm_estimates(fit, summaries)["shrinkage"]
    np.testing.assert_allclose(found, dense.weight @ pull, atol=PROMISED)


@pytest.mark.parametrize("name", ["three genres", "one creator a genre", "no spread at all"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_distribution_functions_of_the_standard_deviations(name, sigma):
    """Between the nodes they are interpolated, which is good to about 1e-6."""
    summaries, priors = summaries_of(name), CASES[name][2]
    fit, whole = exact(summaries, priors=priors), Dense(summaries, priors)
    found = extract_hyper_estimates(fit).set_index("parameter").loc[sigma]
    for x, expected in ((found["lower"], 0.025), (found["mean"], None), (found["upper"], 0.975)):
        part = Dense(summaries, priors, limits={sigma: x})
        below = np.exp(part.log_evidence - whole.log_evidence)
        assert hyper_cdf(fit, sigma, x) == pytest.approx(below, abs=2e-6)
        if expected:
            assert hyper_cdf(fit, sigma, x) == pytest.approx(expected, abs=1e-9)


def test_distribution_functions_at_their_limits(rng):
    fit = exact(simulated(rng, [3, 2]), priors=Priors(sigma_genre=Fixed(0.3)))
    assert [hyper_cdf(fit, "sigma_genre", x) for x in (0.29, 0.3)] == [0, 1]
    assert [hyper_cdf(fit, "sigma_creator", x) for x in (-1, 0, 1e9)] == pytest.approx([0, 0, 1])
    assert [hyper_cdf(fit, "mu_global", x) for x in (-1e9, 1e9)] == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="unknown hyperparameter 'tau'"):
        hyper_cdf(fit, "tau", 0.0)


@pytest.mark.parametrize("mistake", ["variance for standard deviation", "wrong genre"])
def test_the_comparison_notices(mistake):
    shape, settings, priors = CASES["three genres"]
    summaries = simulated(np.random.default_rng(0), shape, **settings)
    wrong = summaries.copy()
    if mistake == "wrong genre":
        i = wrong.index[wrong["genre_idx"] == 2][0]
        wrong.loc[i, "genre_idx"] = 0
    else:
        wrong["se"] = np.square(wrong["se"])
    dense = Dense(summaries, priors)
    mean, sd, _ = dense.overall(dense.tau_rows)
    found = extract_hbm_estimates(exact(wrong, priors=priors), wrong)
    assert np.abs((found["effect_hat"] - mean) / sd).max() > 1e4 * PROMISED


def test_eight_schools():
    """Rubin (1981) with the priors of posteriordb, integrated numerically."""
    schools = pd.DataFrame(
        {
            "creator_id": list("ABCDEFGH"),
            "genre_idx": 0,
            "effect_hat": [28.0, 8, -3, 7, -1, 1, 18, 12],
            "se": [15.0, 10, 16, 11, 9, 11, 10, 18],
        }
    )
    fit = exact(schools, priors=Priors(Normal(0, 5), Fixed(0), HalfCauchy(5)))
    found = extract_hyper_estimates(fit).set_index("parameter")
    assert found.loc["mu_global", ["mean", "se"]].tolist() == pytest.approx(
        [4.3968, 3.3177], abs=5e-5
    )
    # Reference draws of posteriordb: mu 4.41, tau 3.60.
    assert found.loc["sigma_creator", ["mean", "se"]].tolist() == pytest.approx(
        [3.5977, 3.2200], abs=6e-5
    )


@pytest.mark.parametrize("shape", [[3, 1, 7], [1, 1, 1, 2], [30, 20]])
def test_both_kinds_of_coordinates_give_the_same(rng, shape):
    data = Estimates.from_frame(simulated(rng, shape))
    grids = []
    for kind in (Cartesian, Polar):
        plane = kind(Likelihood(data, Priors().mu_global), Priors())
        grids.append(_refine(plane, _outer_ends(plane, Priors()), PROMISED))
    one, other = grids
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=2 * PROMISED)
    for part in ("sigma_genre", "sigma_creator", "mu_mean"):
        means = [(np.exp(g.log_weight) * getattr(g.nodes, part)).sum() for g in grids]
        assert means[0] == pytest.approx(means[1], abs=2 * PROMISED)


def test_likelihood_is_that_of_the_closed_forms(rng):
    """At given hyperparameters, with mu_global integrated by a fine grid."""
    data = Estimates.from_frame(simulated(rng, [5, 1, 9]))
    prior = Normal(0.3, 0.8)
    likelihood = Likelihood(data, prior)
    for sigma_genre, sigma_creator in ((0.4, 0.3), (0.0, 1.0), (2.0, 0.01)):
        mu = np.linspace(-8, 8, 4001)
        each = np.full(len(mu), 1.0)
        density = log_density(data, Hyper(mu, sigma_genre * each, sigma_creator * each))
        density += prior.scipy().logpdf(mu)
        expected = logsumexp(density) + np.log(mu[1] - mu[0])
        weight = np.exp(density - logsumexp(density))
        sums = likelihood.sums(np.array([sigma_creator]))
        log_p, mean, var = (
            part[0, 0] for part in likelihood.given(sums, np.array([[sigma_genre]]))
        )
        assert log_p == pytest.approx(expected, abs=1e-9)
        assert mean == pytest.approx(weight @ mu, abs=1e-9)
        assert var == pytest.approx(weight @ np.square(mu - weight @ mu), rel=1e-9)


@pytest.mark.parametrize("shape", [[100] * 5, [2, 2, 2], [1] * 40, [12]])
def test_few_nodes_say_what_the_whole_grid_says(rng, shape):
    data = Estimates.from_frame(simulated(rng, shape))
    grid = integrate(Likelihood(data, Normal()), Priors())
    nodes = (part.ravel() for part in grid.nodes[:4])
    whole, few = Rule(*nodes, np.exp(grid.log_weight.ravel())), gauss_rule(grid)
    assert len(few.weight) < len(whole.weight) / 4
    effects = []
    for rule in (whole, few):
        genre = rule.centers(grid.plane.likelihood)
        effects.append(creator_moments(data, genre, rule.sigma_creator))
    overall = mixture_moments(effects[0], whole.weight)
    for z in (-3, -1, 0, 2):
        x = overall.mean + z * np.sqrt(overall.var)
        full, reduced = (
            mixture_cdf(moments, x, rule.weight)
            for moments, rule in zip(effects, (whole, few), strict=True)
        )
        np.testing.assert_allclose(reduced, full, atol=PROMISED)


# Where grids break -------------------------------------------------------------------------


def test_one_creator_a_genre_leaves_a_ridge(rng):
    """The data know the sum of the variances only: equal priors give equal posteriors."""
    fit = exact(simulated(rng, [1] * 2000, sigma_genre=0.3, sigma_creator=0.4))
    found = extract_hyper_estimates(fit).set_index("parameter")
    assert fit.attrs["quadrature_error"] < PROMISED
    columns = ["mean", "se", "lower", "upper"]
    np.testing.assert_allclose(
        found.loc["sigma_genre", columns].astype(float),
        found.loc["sigma_creator", columns].astype(float),
        rtol=1e-6,
    )
    nodes = fit["quadrature"].dataset
    weight = np.exp(nodes["log_weight"].values).ravel()
    squared = np.square([nodes[f"sigma_{level}"].values.ravel() for level in ("genre", "creator")])
    assert np.cov(squared, aweights=weight)[0, 1] < 0
    assert np.corrcoef(squared * np.sqrt(weight))[0, 1] < 1


@pytest.mark.parametrize(
    "shape", [[50, 50], [20] * 50, [2] * 1000, [2] * 10_000, [1] * 300 + [2] * 300]
)
def test_from_two_to_ten_thousand_genres(rng, shape):
    fit = exact(simulated(rng, shape))
    found = extract_hyper_estimates(fit).set_index("parameter")
    assert fit.attrs["quadrature_error"] < PROMISED
    if len(shape) > 10:
        for name, true in (("sigma_genre", 0.5), ("sigma_creator", 0.6)):
            assert abs(found["mean"][name] - true) < K * found["se"][name]


@pytest.mark.parametrize("n", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_very_many_creators(rng, n):
    """Narrower than any grid fixed in advance: sd of sigma_creator .001 and less."""
    summaries = simulated(rng, [n // 5] * 5, sigma_genre=0.3, sigma_creator=0.4)
    fit = exact(summaries)
    found = extract_hyper_estimates(fit).set_index("parameter")
    assert fit.attrs["quadrature_error"] < PROMISED
    assert found["se"]["sigma_creator"] < 0.0015
    assert abs(found["mean"]["sigma_creator"] - 0.4) < K * found["se"]["sigma_creator"]
    nodes = fit["quadrature"].dataset
    assert {name: size for name, size in nodes.sizes.items() if size > 129} == {}
    # The log density itself, by the closed forms, at the mode and a sd beside it.
    sigma = found["mean"]["sigma_creator"] + np.array([0, 1]) * found["se"]["sigma_creator"]
    likelihood = likelihood_of(fit)
    difference = np.diff(likelihood.sums(sigma).residual)
    closed = [log_density(likelihood.data, Hyper(*np.array([[0.4], [1e3], [s]])))[0] for s in sigma]
    assert difference[0] == pytest.approx(np.diff(closed)[0], abs=1e-3)


def test_effects_far_from_zero(rng):
    """An offset of 10^6, with a prior that allows it, changes no digit that matters."""
    near = simulated(rng, [30, 1, 20])
    far = near.assign(effect_hat=near["effect_hat"] + 1e6)
    fits = [
        exact(near, priors=Priors(Normal(0, 3))),
        exact(far, priors=Priors(Normal(1e6, 3))),
    ]
    one, other = (extract_hyper_estimates(fit) for fit in fits)
    np.testing.assert_allclose(one["se"], other["se"], rtol=PROMISED)
    np.testing.assert_allclose(one["mean"][1:], other["mean"][1:], rtol=PROMISED)
    evidence = [fit.attrs["log_marginal_likelihood"] for fit in fits]
    assert evidence[0] == pytest.approx(evidence[1], abs=PROMISED)
    a, b = extract_hbm_estimates(fits[0], near), extract_hbm_estimates(fits[1], far)
    np.testing.assert_allclose(a["effect_hat"], b["effect_hat"] - 1e6, atol=1e-7)
    np.testing.assert_allclose(a["se"], b["se"], rtol=PROMISED)
    np.testing.assert_allclose(a["ci_lower"], b["ci_lower"] - 1e6, atol=1e-6)


@pytest.mark.parametrize("unit", [0.01, 1e-9, 1e6])
def test_units_do_not_matter_under_scaled_priors(rng, unit):
    plain = simulated(rng, [6, 1, 5])
    scaled = plain.assign(effect_hat=unit * plain["effect_hat"], se=unit * plain["se"])
    fits = [exact(s, priors=Priors.weakly_informative(s)) for s in (plain, scaled)]
    one, other = (
        extract_hbm_estimates(fit, s) for fit, s in zip(fits, (plain, scaled), strict=True)
    )
    for name in ("effect_hat", "se", "ci_lower", "ci_upper"):
        np.testing.assert_allclose(unit * one[name], other[name], atol=PROMISED * unit)
    for name in ("p_positive", "shrinkage"):
        np.testing.assert_allclose(one[name], other[name], atol=PROMISED)
    shift = len(plain) * np.log(unit)
    assert fits[0].attrs["log_marginal_likelihood"] == pytest.approx(
        fits[1].attrs["log_marginal_likelihood"] + shift, abs=PROMISED
    )


def test_order_of_creators_and_numbers_of_genres_do_not_matter(rng):
    plain = simulated(rng, [6, 1, 5])
    order = rng.permutation(len(plain))
    other = plain.iloc[order].reset_index(drop=True)
    other["genre_idx"] = np.array([2, 0, 1])[other["genre_idx"]]
    fits = exact(plain), exact(other)
    one = extract_hbm_estimates(fits[0], plain).iloc[order].reset_index(drop=True)
    two = extract_hbm_estimates(fits[1], other)
    columns = ["effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage"]
    np.testing.assert_allclose(one[columns], two[columns], atol=1e-10)
    assert one["creator_id"].tolist() == two["creator_id"].tolist()


# Draws -------------------------------------------------------------------------------------

DRAWN = {
    "ordinary": ([10, 3, 7], Priors()),
    "few": ([2, 1], Priors()),
    "ridge": ([1] * 12, Priors()),
    "one genre, heavy tails": ([6], WIDE),
    "no grouping": ([6], Priors(sigma_genre=Fixed(0))),
    "known spread of creators": ([6, 2], Priors(sigma_creator=Fixed(0.5))),
}


@pytest.fixture(scope="module", params=DRAWN)
def drawn(request):
    shape, priors = DRAWN[request.param]
    summaries = simulated(np.random.default_rng(11), shape)
    return summaries, exact(summaries, priors=priors, draws=2500), priors


def agrees(values, cdf):
    """Kolmogorov and Smirnov find no difference, at the level of `K` standard errors."""
    return stats.kstest(values, cdf).pvalue > 2 * stats.norm.sf(K)


def test_draws_have_the_distribution_of_the_mixture(drawn):
    summaries, fit, _ = drawn
    posterior = fit["posterior"].dataset
    genre, sigma_creator, weight = components(fit)
    moments = creator_moments(estimates_of(fit), genre, sigma_creator)
    order = estimates_of(fit).order
    taus = posterior["tau"].values.reshape(-1, len(summaries))

    for place, i in list(enumerate(order))[:: max(1, len(order) // 3)]:
        unit = moments._replace(mean=moments.mean[:, [place]], var=moments.var[:, [place]])
        some = taus[::4, i]
        assert agrees(some, lambda x, unit=unit: mixture_cdf(unit, x[None, :], weight))
    between = _Between(fit)
    for name in ("mu_global", "sigma_genre", "sigma_creator"):
        values = posterior[name].values.ravel()
        if name in fit.attrs["fixed"]:
            assert np.all(values == values[0])
        else:
            cdf = partial(hyper_cdf, fit) if name == "mu_global" else between.cdf
            some = values[::40]  # one call a value
            assert agrees(some, np.vectorize(partial(cdf, name)))


def test_spread_of_draws(drawn):
    """Jitter between nodes would widen it, bare nodes would put quantiles on nodes."""
    _, fit, _ = drawn
    posterior = fit["posterior"].dataset
    for _, row in extract_hyper_estimates(fit).iterrows():
        values = posterior[row["parameter"]].values.ravel()
        if row["parameter"] in fit.attrs["fixed"]:
            continue
        assert len(np.unique(values)) == len(values)
        n = len(values)
        for bound, p in (("lower", 0.025), ("upper", 0.975)):
            share = (values < row[bound]).mean()
            assert abs(share - p) < K * np.sqrt(p * (1 - p) / n)


def test_draws_hang_together(drawn):
    """Differences and sums of effects, and products with the hyperparameters."""
    summaries, fit, priors = drawn
    posterior = fit["posterior"].dataset
    dense = Dense(summaries, priors, high=14.0)
    tau = dense.tau_rows
    rows = np.vstack([tau[0] - tau[1], tau[0] + tau[-1], tau.mean(axis=0)])
    values = posterior["tau"].values.reshape(-1, len(summaries))
    combined = values[:, 0] - values[:, 1], values[:, 0] + values[:, -1], values.mean(axis=1)
    mean, sd, cdf = dense.overall(rows)
    for k, got in enumerate(combined):
        assert abs(got.mean() - mean[k]) < K * sd[k] / np.sqrt(len(got))
        for z in (-1.5, 0.5):
            below = cdf(mean + z * sd)[k]
            error = np.sqrt(below * (1 - below) / len(got))
            assert abs((got < mean[k] + z * sd[k]).mean() - below) < K * error
    # P(tau_0 > 0 and sigma_creator above its mean): the joint of effect and hyperparameter.
    center, var = dense.moments(tau[:1])
    above = dense.sigma_creator > (middle := dense.of(dense.sigma_creator)[0])
    expected = dense.weight[above] @ ndtr(center / np.sqrt(var))[above, 0]
    got = ((values[:, 0] > 0) & (posterior["sigma_creator"].values.ravel() > middle)).mean()
    # The dense grid's bars are .1 wide on the log scale: half a bar may lie on either side.
    slack = dense.weight[np.abs(np.log(dense.sigma_creator / middle)) < 0.1].sum() / 2
    assert abs(got - expected) < K * np.sqrt(0.25 / len(values)) + slack


def test_means_over_draws_agree_with_the_mixture(drawn):
    """Rao-Blackwell: E[tau] is the mean over draws of E[tau | hyperparameters]."""
    summaries, fit, _ = drawn
    posterior = fit["posterior"].dataset
    found = extract_hbm_estimates(fit, summaries)
    names = ("mu_global", "sigma_genre", "sigma_creator")
    hyper = Hyper(*(posterior[name].values.ravel() for name in names))
    data = estimates_of(fit)
    means = creator_moments(data, genre_moments(data, hyper), hyper.sigma_creator).mean
    n = len(means)
    error = data.unsort(means.std(axis=0)) / np.sqrt(n) + 1e-12
    assert np.all(np.abs(data.unsort(means.mean(axis=0)) - found["effect_hat"]) < K * error)
    values = posterior["tau"].values.reshape(n, -1)
    assert np.all(np.abs(values.mean(axis=0) - found["effect_hat"]) < K * found["se"] / n**0.5)


def test_sums_between_values_of_sigma(rng):
    likelihood = Likelihood(Estimates.from_frame(simulated(rng, [30, 1, 20])), Normal())
    sigma = np.exp(rng.normal(-1, 1.5, 500))
    found, expected = sums_between(likelihood, sigma), likelihood.sums(sigma)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-5)


def test_draws_of_some_creators(rng):
    summaries = simulated(rng, [4, 3])
    fit = exact(summaries)
    assert list(fit["posterior"].dataset.data_vars) == []
    some = draw_effects(fit, ["c5", "c0"], draws=50, chains=2, random_seed=3)
    assert dict(some.sizes) == {"chain": 2, "draw": 50, "creator": 2, "genre": 2}
    assert some["creator"].values.tolist() == ["c5", "c0"]
    whole = draw_effects(fit, draws=50, chains=2, random_seed=3)
    for name in ("mu_global", "sigma_creator", "mu_genre"):
        np.testing.assert_array_equal(some[name], whole[name])
    found = extract_hbm_estimates(fit, summaries).set_index("creator_id")
    many = draw_effects(fit, ["c5"], draws=5000)["tau"].values.ravel()
    assert abs(many.mean() - found["effect_hat"]["c5"]) < K * found["se"]["c5"] / len(many) ** 0.5
    with pytest.raises(KeyError, match="1 unknown creators, first: \\['nobody'\\]"):
        draw_effects(fit, ["c0", "nobody"])


def test_large_requests_have_to_be_explicit(rng):
    summaries = simulated(rng, [700, 600])
    with pytest.raises(ValueError, match="8,000 draws of 1,300 creators"):
        exact(summaries, draws=2000)
    fit = exact(summaries)
    with pytest.raises(ValueError, match="raise max_values"):
        draw_effects(fit)
    assert draw_effects(fit, draws=2000, chains=4, max_values=11_000_000)["tau"].size == 10_400_000


# New creators ------------------------------------------------------------------------------


@pytest.mark.parametrize("se", [0.0, 0.7])
def test_new_creators_are_creators_without_data(rng, se):
    """A creator with a useless estimate is one of which nothing is known but its genre."""
    summaries = simulated(rng, [4, 3, 5])
    summaries["genre"] = np.array(["music", "comedy", "gaming"])[summaries["genre_idx"]]
    fit = exact(summaries)
    found = predict_effects(fit, ["gaming", None, "music"], se=se)
    assert found["genre"].tolist() == ["gaming", None, "music"]
    blank = pd.DataFrame({"genre_idx": [2, 3, 0], "genre": ["gaming", "new", "music"]})
    blank = blank.assign(creator_id=["x", "y", "z"], effect_hat=0.0, se=1e6)
    both = pd.concat([summaries, blank], ignore_index=True)
    expected = extract_hbm_estimates(exact(both), both).iloc[-3:].reset_index(drop=True)
    np.testing.assert_allclose(found["effect_hat"], expected["effect_hat"], atol=PROMISED)
    np.testing.assert_allclose(found["se"], np.hypot(expected["se"], se), rtol=PROMISED)
    if se == 0:
        for name in ("ci_lower", "ci_upper", "p_positive"):
            np.testing.assert_allclose(found[name], expected[name], atol=PROMISED)
    else:
        assert np.all(found["ci_lower"] < expected["ci_lower"])


def test_new_creators_are_checked(rng):
    fit = exact(simulated(rng, [4, 3]))
    with pytest.raises(KeyError, match="unknown genres: \\['drama'\\]"):
        predict_effects(fit, ["0", "drama"])
    with pytest.raises(ValueError, match="se must not be negative, got -1"):
        predict_effects(fit, ["0", "1"], se=[0.1, -1])


# As a fit among others -----------------------------------------------------------------------


def test_same_tree_as_nuts_and_within_its_monte_carlo_error():
    import arviz as az

    summaries = simulated(np.random.default_rng(5), [20, 20, 20])
    nuts = kept(fit_hierarchical_model, summaries, random_seed=1)
    fit = exact(summaries, draws=2000)
    posterior = nuts["posterior"].dataset
    assert dict(posterior.sizes) == dict(fit["posterior"].dataset.sizes)
    for name, values in posterior.data_vars.items():
        assert fit["posterior"].dataset[name].dims == values.dims
    for name in ("creator", "genre", "chain", "draw"):
        assert fit["posterior"].dataset[name].values.tolist() == posterior[name].values.tolist()
    for group in ("observed_data", "constant_data"):
        assert fit[group].dataset.identical(nuts[group].dataset.drop_attrs())

    found = extract_hyper_estimates(fit).set_index("parameter")
    for kind, column in (("mean", "mean"), ("sd", "se")):
        error = az.mcse(posterior[list(found.index)], method=kind)
        for name in found.index:
            sampled = float(getattr(posterior[name], kind if kind == "mean" else "std")())
            assert abs(sampled - found[column][name]) < K * float(error[name])
    one, other = extract_hbm_estimates(nuts, summaries), extract_hbm_estimates(fit, summaries)
    ess = float(min(az.ess(posterior[name]) for name in found.index))
    assert np.all(np.abs(one["effect_hat"] - other["effect_hat"]) < K * other["se"] / ess**0.5)
    assert one.columns.tolist() == other.columns.tolist()


def test_a_failed_quadrature_is_refused(rng):
    summaries = simulated(rng, [4, 3])
    fit = exact(summaries)
    checked = check_diagnostics(fit)
    assert checked.ok
    assert checked.table["quadrature_error"].max() <= PROMISED
    fit.attrs["quadrature_errors"]["sigma_genre"] = 3e-5
    checked = check_diagnostics(fit)
    assert checked.failures == ("quadrature error of sigma_genre is 3.0e-05, not below 1e-06",)
    with pytest.raises(DiagnosticsError):
        extract_hbm_estimates(fit, summaries)


def test_the_error_reported_is_an_error(rng):
    """A grid stopped early reports more than it promises, and more than it really is off by."""
    data = Estimates.from_frame(simulated(rng, [3, 2]))
    plane = Cartesian(Likelihood(data, Priors().mu_global), Priors())
    ends = _outer_ends(plane, Priors())
    early, late = _refine(plane, ends, 1e-1), _refine(plane, ends, PROMISED)
    assert early.error > late.error
    assert early.log_weight.size < late.log_weight.size
    assert abs(early.log_evidence - late.log_evidence) < early.errors["log_evidence"]


def test_the_exact_path_never_imports_pymc():
    code = """
import sys
import numpy as np, pandas as pd
from hbm import extract_hbm_estimates, fit_hierarchical_model
summaries = pd.DataFrame(
    {"creator_id": range(6), "genre_idx": [0, 1] * 3, "effect_hat": np.arange(6.0), "se": 1.0}
)
fit = fit_hierarchical_model(summaries, engine="exact", draws=10)
extract_hbm_estimates(fit, summaries)
assert not {"pymc", "pytensor", "arviz", "nutpie", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
