"""The lattice integrates known densities, says how well, and is drawn from between its nodes."""

import numpy as np
import pytest
from conftest import K
from scipy import stats

from hbm.exact import lattice
from hbm.exact.lattice import Marginal, Values, draw_between, integrate_on_lattice, reduced

BOUNDS = (-30.0, 30.0)


def values_of(log_density):
    def evaluate(points):
        return Values(log_density(points), points, np.zeros_like(points))

    return evaluate


def gumbel(points):
    """Independent skewed densities: y - exp(y) has the integral 1."""
    return (points - np.exp(points)).sum(axis=1)


class Correlated:
    """A normal with unequal scales and a correlation of .9 that is not along the axes."""

    def __init__(self, n_dims):
        self.mean = np.arange(n_dims) - 1.0
        scale = np.array([0.01, 1.0, 5.0, 0.3])[:n_dims]
        correlation = np.eye(n_dims)
        if n_dims > 1:
            correlation[0, 1] = correlation[1, 0] = 0.9
        self.covariance = correlation * np.outer(scale, scale)
        self.normal = stats.multivariate_normal(self.mean, self.covariance)

    def __call__(self, points):
        return np.atleast_1d(self.normal.logpdf(points.reshape(-1, len(self.mean)))) + 7.0


@pytest.mark.parametrize("n_dims", [1, 2, 3, 4])
def test_a_correlated_normal(n_dims):
    density = Correlated(n_dims)
    found = integrate_on_lattice(values_of(density), np.zeros(n_dims), BOUNDS, 1e-5)
    assert found.log_evidence == pytest.approx(7.0, abs=2e-5)
    assert found.errors.max() < 1e-4  # of a cut four units earlier
    weight = np.exp(found.log_weight)
    assert weight.sum() == pytest.approx(1)
    sd = np.sqrt(np.diag(density.covariance))
    mean = weight @ found.points
    np.testing.assert_allclose((mean - density.mean) / sd, 0, atol=2e-5)
    away = (found.points - mean) / sd
    correlation = density.covariance / np.outer(sd, sd)
    np.testing.assert_allclose((weight * away.T) @ away, correlation, atol=1e-4)


def test_skewed_tails_need_no_ends():
    found = integrate_on_lattice(values_of(gumbel), np.full(3, -5.0), BOUNDS, 1e-4)
    assert found.log_evidence == pytest.approx(0, abs=1e-4)
    euler = -np.euler_gamma  # the mean of the logarithm of an exponential variable
    weight = np.exp(found.log_weight)
    np.testing.assert_allclose(weight @ found.points, euler, atol=1e-4)


def test_a_ridge_is_followed():
    """Two coordinates of which only the sum of exponentials is known well."""

    def ridge(points):
        total = np.exp(points).sum(axis=1)
        return points.sum(axis=1) - 0.5 * np.square((total - 1) / 0.02) - np.exp(points).sum(axis=1)

    found = integrate_on_lattice(values_of(ridge), np.array([-1.0, -0.5]), BOUNDS, 1e-4)
    # In x = exp(y): the density of the sum t = x1 + x2 is t exp(-t), times a narrow normal.
    t = np.linspace(0.8, 1.2, 20001)
    exact = np.trapezoid(t * np.exp(-0.5 * np.square((t - 1) / 0.02) - t), t)
    assert found.errors.max() <= 2e-4
    assert found.log_evidence == pytest.approx(np.log(exact), abs=5e-4)


def test_the_stated_error_is_about_the_error():
    for tolerance in (1e-2, 1e-3, 1e-4):
        found = integrate_on_lattice(values_of(gumbel), np.full(2, -1.0), BOUNDS, tolerance)
        assert abs(found.log_evidence) <= 2 * found.errors.max()
        assert found.errors.max() <= 2 * tolerance


def test_what_cannot_be_refined_is_said(monkeypatch):
    monkeypatch.setattr(lattice, "MAX_NODES", 1000)
    found = integrate_on_lattice(values_of(gumbel), np.full(3, -1.0), BOUNDS, 1e-9)
    assert found.errors.max() > 1e-9


def test_a_density_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr(lattice, "MAX_NODES", 100)
    flat = values_of(lambda points: -1e-9 * np.square(points).sum(axis=1))
    with pytest.raises(ValueError, match="too wide for a lattice"):
        integrate_on_lattice(flat, np.zeros(3), BOUNDS)


def test_without_a_dimension_there_is_one_node():
    def known(points):
        return Values(
            np.full(len(points), 2.5), np.zeros((len(points), 1)), np.ones((len(points), 1))
        )

    found = integrate_on_lattice(known, np.zeros(0), BOUNDS)
    assert (found.log_evidence, len(found.index), found.errors.max()) == (2.5, 1, 0)
    assert draw_between(found, gumbel, np.random.default_rng(1), 5).shape == (5, 0)


def test_marginals():
    found = integrate_on_lattice(values_of(gumbel), np.full(3, -1.0), BOUNDS, 1e-3)
    marginal = Marginal(found, 1)
    exact = stats.gumbel_l()
    y = exact.ppf([1e-4, 0.025, 0.3, 0.5, 0.9, 0.975])
    np.testing.assert_allclose(marginal.cdf(y), exact.cdf(y), atol=1e-3)
    np.testing.assert_allclose(marginal.quantile(exact.cdf(y)), y, atol=0.02)
    # With the factor that makes it skewed known, what is interpolated is a straight line.
    known = Marginal(found, 1, lambda y: -np.exp(y))
    np.testing.assert_allclose(known.cdf(y), exact.cdf(y), atol=1e-4)
    np.testing.assert_allclose(known.quantile(exact.cdf(y)), y, atol=2e-3)
    assert known.weight @ known.points == pytest.approx(-np.euler_gamma, abs=1e-3)
    assert (marginal.cdf(-1e3), marginal.cdf(1e3)) == (0, 1)


def test_draws_lie_between_the_nodes():
    found = integrate_on_lattice(values_of(gumbel), np.full(3, -1.0), BOUNDS)
    drawn = draw_between(found, gumbel, np.random.default_rng(3), 4000)
    assert drawn.shape == (4000, 3)
    for column in drawn.T:
        assert stats.kstest(column, stats.gumbel_l().cdf).pvalue > 1e-3
        assert len(np.unique(column)) == len(column)
    correlation = np.corrcoef(drawn.T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < K / np.sqrt(len(drawn))
    again = draw_between(found, gumbel, np.random.default_rng(3), 4000)
    np.testing.assert_array_equal(drawn, again)


@pytest.mark.parametrize("degree", [2, 4])
def test_fewer_nodes_keep_every_moment(rng, degree):
    values = rng.gamma(2.0, 1.0, (3000, 3)) @ rng.normal(size=(3, 3))
    weight = rng.dirichlet(np.ones(3000))
    kept, some = reduced(values, weight, degree)
    assert len(kept) <= {2: 10, 4: 35}[degree]
    assert np.all(some > 0)
    for powers in np.ndindex(degree + 1, degree + 1, degree + 1):
        if sum(powers) <= degree:
            monomial = np.prod(values**powers, axis=1)
            scale = weight @ np.abs(monomial)
            assert abs(some @ monomial[kept] - weight @ monomial) < 1e-8 * scale


def test_what_does_not_vary_is_no_variable(rng):
    values = np.column_stack([rng.normal(size=200), np.full(200, 0.5)])
    kept, weight = reduced(values, np.full(200, 1 / 200), 3)
    assert len(kept) <= 4
    assert weight @ values[kept, 0] == pytest.approx(values[:, 0].mean())
