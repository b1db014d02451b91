"""The closed forms are those of one large normal distribution, and behave at its limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from hbm.gaussian import (
    Estimates,
    Hyper,
    Moments,
    creator_moments,
    genre_moments,
    genre_sums,
    log_density,
    mixture_cdf,
    mixture_moments,
    mixture_quantile,
    shrinkage_factor,
)

#: Creators by genre: one genre, one creator a genre, two in all, unequal ones.
SHAPES = ([1], [2], [12], [1, 1], [1] * 8, [3, 1, 7], [20, 1, 1, 30], [5] * 12)


def simulated(rng, shape, offset=0.0):
    """Estimates in a random order, so that sorting by genre has something to do."""
    idx = rng.permutation(np.repeat(np.arange(len(shape)), shape))
    return Estimates.from_arrays(
        offset + rng.normal(0.5, 1.0, len(idx)), rng.uniform(0.05, 2.0, len(idx)), idx
    )


def hyper(*rows):
    return Hyper(*np.array(rows, dtype=float).T)


HYPER = hyper((0.5, 0.3, 0.4), (-2.0, 1.5, 0.1), (0.0, 0.01, 3.0))


def dense(data, mu_global, sigma_genre, sigma_creator):
    """Mean and covariance of (mu_genre, tau, effect_hat), the model as it stands."""
    n, g = len(data.se), data.n_genres
    member = np.eye(g)[data.genre_idx]
    tau_of = np.hstack([member, np.eye(n)])  # tau = member mu_genre + deviation
    source = np.diag(np.r_[np.full(g, sigma_genre**2), np.full(n, sigma_creator**2)])
    rows = np.vstack([np.hstack([np.eye(g), np.zeros((g, n))]), tau_of, tau_of])
    covariance = rows @ source @ rows.T
    covariance[g + n :, g + n :] += np.diag(data.se**2)
    return np.full(g + 2 * n, mu_global), covariance


def conditioned(data, *hyperparameters):
    """Moments of (mu_genre, tau) given the estimates, by one dense regression."""
    mean, covariance = dense(data, *hyperparameters)
    latent = slice(0, data.n_genres + len(data.se))
    seen = slice(data.n_genres + len(data.se), None)
    gain = np.linalg.solve(covariance[seen, seen], covariance[seen, latent]).T
    return Moments(
        mean[latent] + gain @ (data.effect_hat - mean[seen]),
        np.diag(covariance[latent, latent] - gain @ covariance[seen, latent]),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_density_is_that_of_the_dense_normal(rng, shape):
    data = simulated(rng, shape)
    found = log_density(data, HYPER)
    for draw, row in enumerate(zip(*HYPER, strict=True)):
        mean, covariance = dense(data, *row)
        seen = slice(data.n_genres + len(data.se), None)
        expected = stats.multivariate_normal(mean[seen], covariance[seen, seen]).logpdf(
            data.effect_hat
        )
        assert found[draw] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_are_those_of_dense_conditioning(rng, shape):
    data = simulated(rng, shape)
    genre = genre_moments(data, HYPER)
    creator = creator_moments(data, genre, HYPER.sigma_creator)
    for draw, row in enumerate(zip(*HYPER, strict=True)):
        expected = conditioned(data, *row)
        found = Moments(
            np.r_[genre.mean[draw], creator.mean[draw]], np.r_[genre.var[draw], creator.var[draw]]
        )
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found.var, expected.var, rtol=1e-8, atol=1e-11)


def test_creator_moments_given_the_genre_means_are_one_precision_average(rng):
    data = simulated(rng, [3, 1, 7])
    mu_genre = rng.normal(size=(3, 3))
    found = creator_moments(data, mu_genre, HYPER.sigma_creator)
    prior = 1 / HYPER.sigma_creator[:, None] ** 2
    precision = prior + 1 / data.se**2
    mean = (prior * mu_genre[:, data.genre_idx] + data.effect_hat / data.se**2) / precision
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.var, 1 / precision, rtol=1e-10)


def test_a_large_offset_costs_only_the_digits_it_must(rng):
    """Uncentred sums lose them all; sums of squares would be wrong by thousands."""
    near = simulated(rng, [20, 1, 30])
    far = Estimates.from_arrays(near.effect_hat + 1e6, near.se, near.genre_idx)
    shifted = HYPER._replace(mu_global=HYPER.mu_global + 1e6)
    # Rounding an effect by half a spacing moves a standardised residual of some 10 by ~1e-8.
    np.testing.assert_allclose(log_density(far, shifted), log_density(near, HYPER), atol=1e-5)
    genre, genre_far = genre_moments(near, HYPER), genre_moments(far, shifted)
    np.testing.assert_allclose(genre_far.mean - 1e6, genre.mean, rtol=0, atol=1e-8)
    np.testing.assert_allclose(genre_far.var, genre.var, rtol=1e-12)
    creator = creator_moments(near, genre, HYPER.sigma_creator)
    creator_far = creator_moments(far, genre_far, HYPER.sigma_creator)
    np.testing.assert_allclose(creator_far.mean - 1e6, creator.mean, rtol=0, atol=1e-8)


def test_genre_sums_by_hand():
    data = Estimates.from_arrays([1.0, 5.0, 4.0], [1.0, 3.0, 2.0], [1, 0, 1])
    sums = genre_sums(data, np.array([0.0]))
    np.testing.assert_allclose(sums.weight, [[1 / 9, 1.25]])
    np.testing.assert_allclose(sums.mean, [[5.0, 1.6]])
    spread = 1.0 * 0.6**2 + 0.25 * 2.4**2
    np.testing.assert_allclose(
        sums.residual, [[0.0, 0.5 * (np.log(0.25) - spread - np.log(1.25))]], atol=1e-14
    )


# --- limits -------------------------------------------------------------------------------------


def test_no_grouping_is_the_limit_of_a_small_sigma_genre(rng):
    data = simulated(rng, [3, 1, 7])
    at_zero, near = hyper((0.5, 0.0, 0.4)), hyper((0.5, 1e-7, 0.4))
    genre = genre_moments(data, at_zero)
    np.testing.assert_array_equal(genre.mean, 0.5)
    np.testing.assert_array_equal(genre.var, 0.0)
    np.testing.assert_allclose(log_density(data, at_zero), log_density(data, near), rtol=1e-9)
    alone = Estimates.from_arrays(data.effect_hat, data.se, np.zeros(11, int))
    np.testing.assert_allclose(log_density(data, at_zero), log_density(alone, at_zero), rtol=1e-12)


def test_complete_pooling_is_the_limit_of_a_small_sigma_creator(rng):
    data = simulated(rng, [3, 1, 7])
    genre = genre_moments(data, hyper((0.5, 1e6, 1e-9)))
    weight = 1 / data.se**2
    expected = data.by_genre(weight * data.effect_hat) / data.by_genre(weight)
    np.testing.assert_allclose(genre.mean[0], expected, rtol=1e-9)
    np.testing.assert_allclose(genre.var[0], 1 / data.by_genre(weight), rtol=1e-9)
    creator = creator_moments(data, genre, np.array([1e-9]))
    np.testing.assert_allclose(creator.mean[0], genre.mean[0, data.genre_idx], rtol=1e-9)
    np.testing.assert_allclose(creator.var[0], genre.var[0, data.genre_idx], rtol=1e-9)


def test_no_pooling_is_the_limit_of_a_large_sigma_creator(rng):
    data = simulated(rng, [3, 1, 7])
    sigma = np.array([1e8])
    creator = creator_moments(data, genre_moments(data, hyper((0.5, 0.3, 1e8))), sigma)
    np.testing.assert_allclose(creator.mean[0], data.effect_hat, rtol=1e-9)
    np.testing.assert_allclose(creator.var[0], data.se**2, rtol=1e-9)
    assert shrinkage_factor(data.se, sigma).max() < 1e-15


# --- order --------------------------------------------------------------------------------------


def test_sorting_and_unsorting_are_inverse(rng):
    idx = rng.permutation(np.repeat(np.arange(4), [3, 1, 7, 2]))
    effects = rng.normal(size=13)
    data = Estimates.from_arrays(effects, np.ones(13), idx)
    assert (np.diff(data.genre_idx) >= 0).all()
    np.testing.assert_array_equal(data.unsort(data.effect_hat), effects)
    np.testing.assert_array_equal(data.unsort(data.genre_idx), idx)
    sums = [effects[idx == g].sum() for g in range(4)]
    np.testing.assert_allclose(data.by_genre(data.effect_hat), sums, rtol=1e-12)
    stack = np.arange(26.0).reshape(2, 13)
    np.testing.assert_array_equal(data.unsort(stack[:, data.order]), stack)


def test_a_block_of_creators_has_the_moments_of_the_whole(rng):
    data = simulated(rng, [3, 1, 7])
    genre = genre_moments(data, HYPER)
    whole = creator_moments(data, genre, HYPER.sigma_creator)
    parts = [
        creator_moments(data.take(block), genre, HYPER.sigma_creator)
        for block in (slice(0, 2), slice(2, 9), slice(9, 99))
    ]
    np.testing.assert_array_equal(np.hstack([p.mean for p in parts]), whole.mean)
    np.testing.assert_array_equal(np.hstack([p.var for p in parts]), whole.var)


finite = st.floats(-10, 10)
positive = st.floats(0.01, 10)
creators = st.lists(st.tuples(finite, positive, st.integers(0, 3)), min_size=1, max_size=20)


def arrays_of(rows):
    """Effects, standard errors and genres; genres numbered without gaps."""
    effect, se, genre = (np.array(column) for column in zip(*rows, strict=True))
    return effect, se, np.unique(genre, return_inverse=True)[1]


@given(creators, finite, positive, positive, st.randoms(use_true_random=False))
def test_the_order_of_creators_does_not_matter(rows, mu_global, sigma_genre, sigma_creator, random):
    theta = hyper((mu_global, sigma_genre, sigma_creator))

    def result(order):
        data = Estimates.from_arrays(*(column[order] for column in arrays_of(rows)))
        moments = creator_moments(data, genre_moments(data, theta), theta.sigma_creator)
        return data.unsort(moments.mean)[0], data.unsort(moments.var)[0], log_density(data, theta)

    order = list(range(len(rows)))
    plain = result(order)
    random.shuffle(order)
    shuffled = result(order)
    for left, right in zip(plain[:2], shuffled[:2], strict=True):
        np.testing.assert_allclose(left[order], right, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(plain[2], shuffled[2], rtol=1e-9)


@given(creators, finite, positive, positive)
def test_a_creators_mean_lies_between_its_data_and_its_genre(rows, mu, sigma_genre, sigma_creator):
    data = Estimates.from_arrays(*arrays_of(rows))
    theta = hyper((mu, sigma_genre, sigma_creator))
    genre = genre_moments(data, theta)
    means = creator_moments(data, genre, theta.sigma_creator).mean[0]
    toward = genre.mean[0, data.genre_idx]
    slack = 1e-9 * (1 + np.abs(toward) + np.abs(data.effect_hat))
    assert (means >= np.minimum(toward, data.effect_hat) - slack).all()
    assert (means <= np.maximum(toward, data.effect_hat) + slack).all()
    own = data.by_genre(data.effect_hat / (sigma_creator**2 + data.se**2))
    own = own / data.by_genre(1 / (sigma_creator**2 + data.se**2))
    slack = 1e-9 * (1 + np.abs(own) + abs(mu))
    assert (genre.mean[0] >= np.minimum(mu, own) - slack).all()
    assert (genre.mean[0] <= np.maximum(mu, own) + slack).all()


@given(st.lists(positive, min_size=2, max_size=20, unique=True), positive)
def test_shrinkage_lies_in_the_unit_interval_and_grows_with_the_noise(errors, sigma_creator):
    errors = np.sort(errors)
    pull = shrinkage_factor(errors, np.array([sigma_creator]))[0]
    assert (pull > 0).all()
    assert (pull < 1).all()
    assert (np.diff(pull) >= 0).all()
    assert (shrinkage_factor(errors, np.array([2 * sigma_creator]))[0] < pull).all()


@given(creators, finite, positive, positive)
def test_pooling_never_costs_precision(rows, mu, sigma_genre, sigma_creator):
    data = Estimates.from_arrays(*arrays_of(rows))
    theta = hyper((mu, sigma_genre, sigma_creator))
    var = creator_moments(data, genre_moments(data, theta), theta.sigma_creator).var[0]
    assert (var > 0).all()
    assert (var <= data.se**2 * (1 + 1e-12)).all()


# --- mixtures -----------------------------------------------------------------------------------


def one_unit(means, sds):
    return Moments(np.array(means, float)[:, None], np.array(sds, float)[:, None] ** 2)


MIXTURES = {
    "one normal": ([3.0], [2.0], None),
    "equal normals": ([3.0] * 5, [2.0] * 5, None),
    "overlapping": ([0, 0.5, 1], [1, 2, 0.5], [0.2, 0.5, 0.3]),
    "two far apart": ([-50, 50], [1, 1], [0.5, 0.5]),
    "far apart, rare": ([0, 1e4], [1, 1], [0.98, 0.02]),
    "one very narrow": ([0, 0.3], [1, 1e-6], [0.5, 0.5]),
    "one very narrow and rare": ([0, -1.96], [1, 1e-7], [0.97, 0.03]),
    "one very wide": ([0, 0], [1, 1e6], [0.9, 0.1]),
    "weight of zero": ([0, 1e3], [1, 1], [1.0, 0.0]),
    "far from zero": ([1e6, 1e6 + 1], [0.1, 0.2], None),
    "tiny": ([1e-9, 3e-9], [1e-9, 2e-9], None),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_mixtures_equal_weighted_sums_of_scipy_normals(kind):
    means, sds, weights = MIXTURES[kind]
    shares = np.full(len(means), 1 / len(means)) if weights is None else np.array(weights)
    unit = one_unit(means, sds)

    def cdf(x):
        return np.sum(shares * stats.norm(means, sds).cdf(x))

    overall = mixture_moments(unit, weights)
    mean = np.sum(shares * means)
    var = np.sum(shares * (np.square(sds) + np.square(means - mean)))
    assert overall.mean[0] == pytest.approx(mean)
    assert overall.var[0] == pytest.approx(var)
    for x in (mean, mean - 2 * np.sqrt(var), 0.0):
        assert mixture_cdf(unit, x, weights)[0] == pytest.approx(cdf(x), rel=1e-10, abs=1e-15)
    for probability in (0.025, 0.2, 0.5, 0.975):
        found = mixture_quantile(unit, probability, weights)[0]
        # The quantile's own error, 1e-10 sd, may be many sd of a narrow component.
        slack = 2e-10 * np.sqrt(var) + np.spacing(abs(found))
        assert cdf(found - slack) <= probability <= cdf(found + slack)
        low, high = mean - 40 * np.sqrt(var), mean + 40 * np.sqrt(var)
        assert found == pytest.approx(
            optimize.brentq(lambda x, p=probability: cdf(x) - p, low, high, xtol=1e-300),
            rel=1e-9,
            abs=3e-10 * np.sqrt(var),
        )


@given(
    st.lists(st.tuples(finite, positive, st.floats(0.01, 1)), min_size=1, max_size=8),
    st.floats(0.001, 0.999),
)
def test_quantile_and_cdf_are_inverse(components, probability):
    means, sds, weights = (np.array(column) for column in zip(*components, strict=True))
    unit, weights = one_unit(means, sds), weights / weights.sum()
    quantile = mixture_quantile(unit, probability, weights)
    assert mixture_cdf(unit, quantile, weights)[0] == pytest.approx(probability, abs=1e-7)
    mirrored = mixture_quantile(unit._replace(mean=-unit.mean), 1 - probability, weights)
    scale = np.sqrt(mixture_moments(unit, weights).var[0])
    assert mirrored[0] == pytest.approx(-quantile[0], abs=1e-8 * scale)


def test_quantiles_of_many_units_do_not_disturb_each_other(rng):
    """Units converge at different speeds; each must get its own answer."""
    unit = Moments(rng.normal(0, 10, (200, 30)), rng.uniform(1e-4, 9, (200, 30)))
    together = mixture_quantile(unit, 0.025)
    alone = [
        mixture_quantile(Moments(unit.mean[:, [i]], unit.var[:, [i]]), 0.025)[0] for i in range(30)
    ]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-8)


def test_quantiles_of_draws_agree_with_sampling(rng):
    unit = Moments(rng.normal(0, 1, (50, 4)), rng.uniform(0.1, 2, (50, 4)))
    which = rng.integers(0, 50, 100_000)
    draws = rng.normal(unit.mean[which], np.sqrt(unit.var[which]))
    for probability in (0.025, 0.5, 0.975):
        below = (draws <= mixture_quantile(unit, probability)).mean(axis=0)
        error = np.sqrt(probability * (1 - probability) / len(which))
        assert (np.abs(below - probability) < 4 * error).all()
