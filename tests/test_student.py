"""The finite mixture is the Student-t: densities, effects and draws against numerical integrals."""

from math import exp, lgamma, log, log1p, pi, sqrt

import numpy as np
import pytest
from conftest import K
from scipy import integrate, stats
from scipy.special import ndtr

from hbm.gaussian import Estimates, mixture_cdf, mixture_moments, mixture_quantile
from hbm.student import (
    Draws,
    Nodes,
    components,
    conditional_means,
    draw_effects,
    effects_given,
    estimate_cdf,
    estimate_log_density,
    genre_centers,
    log_density,
    mixture,
    nodes_for,
)

#: Standard errors, in scales of the Student-t: from data that decide to data that say little.
NOISE = (0.03, 0.3, 1.0, 3.0)
DEGREES = (2.1, 3.0, 5.0, 10.0, 30.0, 100.0)
#: The nodes of data without far outliers.
NODES = Nodes(10.0, 24)


def one_creator(effect_hat, se):
    return Estimates.from_arrays([effect_hat], [se], [0])


def draw(mu, sigma, nu):
    return Draws(np.array([[mu]]), np.array([sigma]), np.array([nu]))


def student_pdf(x, nu, mu, sigma):
    """SciPy's density, without the cost of its frozen distributions."""
    constant = lgamma((nu + 1) / 2) - lgamma(nu / 2) - 0.5 * log(nu * pi) - log(sigma)
    return exp(constant - (nu + 1) / 2 * log1p(((x - mu) / sigma) ** 2 / nu))


def normal_pdf(x, mean, sd):
    return exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * sqrt(2 * pi))


def test_the_referee_is_right():
    assert student_pdf(0.9, 3.5, 0.2, 0.4) == pytest.approx(stats.t(3.5, 0.2, 0.4).pdf(0.9))
    assert normal_pdf(0.9, 0.2, 0.4) == pytest.approx(stats.norm(0.2, 0.4).pdf(0.9))


def unnormalised(data, mu, sigma, nu):
    """Prior times likelihood of one effect, and where it is not negligible."""
    effect, se = data.effect_hat[0], data.se[0]
    places = {effect, mu, mu - sigma, mu + sigma, *(effect + se * k for k in (-9, -3, 3, 9))}
    ends = effect - 12 * se, effect + 12 * se
    inside = sorted(x for x in places if ends[0] < x < ends[1])
    return (
        lambda tau: student_pdf(tau, nu, mu, sigma) * normal_pdf(tau, effect, se),
        ends,
        inside,
    )


def integral(function, ends, places):
    return integrate.quad(function, *ends, points=places, limit=500, epsabs=0, epsrel=1e-10)[0]


@pytest.mark.parametrize(
    ("far", "error"), [((0.0, 0.7, 2.0, 5.0), 2e-5), ((7.0, 10.0), 1e-3)], ids=["near", "far"]
)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("nu", DEGREES)
def test_the_density_is_the_integral(nu, noise, far, error):
    """Estimates up to 5 and up to 10 standard deviations (of scale and noise) from the center."""
    mu, sigma = 0.3, 0.4
    for distance in far:
        data = one_creator(mu + distance * sigma * np.hypot(1, noise), noise * sigma)
        exact = np.log(integral(*unnormalised(data, mu, sigma, nu)))
        center = np.array([[mu]])
        args = data.effect_hat, data.se, center, np.array([sigma]), np.array([nu])
        assert log_density(*args, *NODES)[0, 0] == pytest.approx(exact, abs=error)
        finer = log_density(*args, 30.0, 120)[0, 0]
        assert finer == pytest.approx(exact, abs=error / 10)


def test_as_the_degrees_grow_the_density_becomes_normal():
    effect, se = np.array([0.1, 3.0]), np.array([0.2, 1.0])
    found = log_density(effect, se, np.zeros((1, 2)), np.array([0.7]), np.array([1e7]), *NODES)
    np.testing.assert_allclose(found[0], stats.norm(0, np.hypot(0.7, se)).logpdf(effect), atol=1e-6)


def test_the_weights_sum_to_one_and_give_the_variance():
    nu = np.array([4.0, 10.0, 50.0])
    variance, log_weight = mixture(nu, *NODES)
    assert variance.shape == log_weight.shape == (3, 24, 1)
    weight = np.exp(log_weight)
    np.testing.assert_allclose(weight.sum(axis=1), 1)
    np.testing.assert_allclose((weight * variance).sum(axis=(1, 2)), nu / (nu - 2), rtol=1e-3)


def test_pytensor_and_numpy_share_the_formula():
    import pytensor
    import pytensor.tensor as pt

    rng = np.random.default_rng(0)
    effect, se, center = rng.normal(size=7), rng.uniform(0.1, 1, 7), rng.normal(size=7)
    sigma, nu = pt.dscalar(), pt.dscalar()
    symbolic = log_density(effect, se, pt.as_tensor(center), sigma, nu, *NODES, xp=pt)
    plain = pytensor.compile.Mode(linker="py", optimizer=None)
    compiled = pytensor.function([sigma, nu], symbolic, mode=plain)
    expected = log_density(effect, se, center[None], np.array([0.4]), np.array([6.0]), *NODES)[0]
    np.testing.assert_allclose(compiled(0.4, 6.0), expected, rtol=1e-10)


CASES = {
    "small and near": (0.9, 0.6, 5.0),
    "large and near": (0.9, 0.05, 5.0),
    "small and far": (3.5, 0.6, 3.0),
    "large and far": (3.5, 0.05, 3.0),
    "nearly normal": (-1.0, 0.3, 60.0),
}


@pytest.mark.parametrize(("effect", "se", "nu"), CASES.values(), ids=CASES)
def test_the_posterior_of_an_effect_is_the_integral(effect, se, nu):
    mu, sigma = 0.3, 0.4
    data = one_creator(effect, se)
    function, ends, places = unnormalised(data, mu, sigma, nu)
    total = integral(function, ends, places)
    mean = integral(lambda x: x * function(x), ends, places) / total
    var = integral(lambda x: (x - mean) ** 2 * function(x), ends, places) / total
    moments, weight, pull = components(data, draw(mu, sigma, nu), NODES)
    overall = mixture_moments(moments, weight)
    sd = np.sqrt(var)
    assert overall.mean[0] == pytest.approx(mean, abs=1e-4 * sd)
    assert overall.var[0] == pytest.approx(var, rel=1e-3)
    for probability in (0.025, 0.5, 0.975):
        x = mixture_quantile(moments, probability, weight)
        assert mixture_cdf(moments, x, weight)[0] == pytest.approx(probability, abs=1e-9)
        below = integral(function, (ends[0], x[0]), [p for p in places if p < x[0]]) / total
        assert below == pytest.approx(probability, abs=1e-4)
    # The mean lies between the estimate and the genre's mean, by the averaged weight.
    average = (weight * pull).sum()
    assert 0 < average < 1
    assert overall.mean[0] == pytest.approx(effect + average * (mu - effect), abs=1e-12)


def test_shrinkage_falls_as_the_estimate_moves_out_and_grows_with_its_noise():
    def pull(effect, se):
        _, weight, pulls = components(one_creator(effect, se), draw(0.0, 0.4, 4.0), NODES)
        return (weight * pulls).sum()

    along = [pull(effect, 0.4) for effect in (0.0, 0.8, 1.6, 2.4, 3.2, 4.0)]
    assert (np.diff(along) < 0).all()
    assert along[0] > 3 * along[-1]
    assert (np.diff([pull(1.0, se) for se in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)]) > 0).all()


@pytest.fixture(scope="module")
def several():
    """Creators of three genres in no order, and draws of what their effects hang on."""
    rng = np.random.default_rng(4)
    idx = rng.permutation(np.repeat([0, 1, 2], [4, 1, 3]))
    data = Estimates.from_arrays(rng.normal(0.5, 1, 8), rng.uniform(0.05, 1, 8), idx)
    n = 300
    draws = Draws(rng.normal(0.5, 0.3, (n, 3)), rng.uniform(0.2, 0.6, n), rng.uniform(2.5, 30, n))
    return data, draws


def test_blocks_change_nothing(several, monkeypatch):
    data, draws = several
    functions = (conditional_means, estimate_log_density, estimate_cdf)
    whole = [function(data, draws, NODES) for function in functions]
    monkeypatch.setattr("hbm.student._BLOCK", 1000)
    for function, expected in zip(functions, whole, strict=True):
        np.testing.assert_array_equal(function(data, draws, NODES), expected)


def test_conditional_means_and_densities_are_those_of_single_creators(several):
    data, draws = several
    means = conditional_means(data, draws, NODES)
    density, below = (f(data, draws, NODES) for f in (estimate_log_density, estimate_cdf))
    for s, i in ((0, 0), (17, 5), (299, 7)):
        one = one_creator(data.effect_hat[i], data.se[i])
        mu, sigma, nu = draws.mu_genre[s, data.genre_idx[i]], draws.sigma_creator[s], draws.nu[s]
        function, ends, places = unnormalised(one, mu, sigma, nu)
        total = integral(function, ends, places)
        assert means[s, i] == pytest.approx(
            integral(lambda x, f=function: x * f(x), ends, places) / total, abs=1e-5
        )
        assert density[s, i] == pytest.approx(np.log(total), abs=2e-5)
        cdf = integrate.quad(
            lambda x, t=(nu, mu, sigma), one=one: (
                student_pdf(x, *t) * ndtr((one.effect_hat[0] - x) / one.se[0])
            ),
            mu - 400 * sigma,
            mu + 400 * sigma,
            points=[mu, one.effect_hat[0]],
            limit=500,
        )[0]
        assert below[s, i] == pytest.approx(cdf, abs=1e-4)


def test_drawn_effects_have_the_distribution_of_the_mixture():
    n = 20_000
    data = Estimates.from_arrays([3.5, 0.2, 1.0], [0.6, 0.05, 0.4], [0, 0, 0])
    draws = Draws(np.full((n, 1), 0.3), np.full(n, 0.4), np.full(n, 3.0))
    tau = draw_effects(data, draws, NODES, np.random.default_rng(1))
    moments, weight, _ = components(data, draw(0.3, 0.4, 3.0), NODES)
    overall = mixture_moments(moments, weight)
    assert (np.abs(tau.mean(axis=0) - overall.mean) < K * np.sqrt(overall.var / n)).all()
    for i in range(3):
        some = moments.mean[:, [i]], moments.var[:, [i]]

        def cdf(x, some=some, i=i):
            z = (x - some[0]) / np.sqrt(some[1])
            return weight[:, i] @ stats.norm.cdf(z)

        assert stats.kstest(tau[:, i], cdf).pvalue > 1e-4


def test_draws_are_thinned_evenly(several):
    _, draws = several
    some = draws.thinned(7)
    assert len(some.nu) == 7
    np.testing.assert_array_equal(some.nu[[0, -1]], draws.nu[[0, -1]])
    assert len(draws.thinned(1000).nu) == 300


def test_effects_of_a_block_are_those_of_the_whole(several):
    data, draws = several
    whole = effects_given(data, draws, NODES)
    part = effects_given(data.take(slice(2, 5)), draws, NODES)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[:, :, 2:5], b)


# --- laying out the nodes -----------------------------------------------------------------------


def test_centers_are_not_moved_by_outliers():
    rng = np.random.default_rng(2)
    idx = np.repeat([0, 1], 50)
    effects = rng.normal([1.0, -2.0], 0.3, (50, 2)).T.ravel()
    wild = effects.copy()
    wild[[0, 1, 60]] = 1e3, 1e3, -1e4
    se = np.full(100, 0.1)
    (center, scale), (moved, other) = (
        genre_centers(Estimates.from_arrays(e, se, idx)) for e in (effects, wild)
    )
    np.testing.assert_allclose(center, [1, -2], atol=K * 0.32 / np.sqrt(50))
    np.testing.assert_allclose(moved, center, atol=0.05)
    assert other == pytest.approx(scale, rel=0.1)


def test_nodes_reach_the_farthest_estimate():
    rng = np.random.default_rng(3)
    effects, se, idx = rng.normal(0, 1, 40), np.full(40, 0.1), np.zeros(40, int)
    assert nodes_for(Estimates.from_arrays(effects, se, idx)) == NODES
    effects[3] = 1000.0
    nodes = nodes_for(Estimates.from_arrays(effects, se, idx))
    assert nodes.reach > 500
    assert nodes.size > NODES.size
    data, mu, sigma, nu = one_creator(1000.0, 0.1), 0.0, 1.0, 2.5
    exact = np.log(integral(*unnormalised(data, mu, sigma, nu)))
    args = data.effect_hat, data.se, np.array([[mu]]), np.array([sigma]), np.array([nu])
    assert log_density(*args, *nodes)[0, 0] == pytest.approx(exact, abs=1e-4)
    assert abs(log_density(*args, *NODES)[0, 0] - exact) > 0.1  # what nodes too near would do


def test_single_creators_and_ties_have_centers_too():
    alone = Estimates.from_arrays([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], [0, 1, 2])
    center, scale = genre_centers(alone)
    np.testing.assert_allclose(center, [1, 2, 3])
    assert scale == 0
    assert nodes_for(alone) == NODES
