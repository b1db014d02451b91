"""The test of uniformity and its band: against enumeration, simulation and each other."""

from itertools import product
from math import factorial

import numpy as np
import pytest
from conftest import K
from scipy.stats import binom, norm

from hbm.uniform import uniform_band, uniform_pvalue


def statistic(counts):
    """Smallest tail probability of the numbers of values up to 1/n, 2/n, …"""
    n = len(counts) + 1
    z = np.arange(1, n) / n
    return min(binom.cdf(counts, n, z).min(), binom.sf(np.asarray(counts) - 1, n, z).min())


def enumerated(n):
    """Every way in which n values fall into n equal parts: statistic and probability."""
    for parts in product(range(n + 1), repeat=n):
        if sum(parts) == n:
            ways = factorial(n) / np.prod([factorial(part) for part in parts])
            yield parts, statistic(np.cumsum(parts)[:-1]), ways / n**n


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_p_values_are_those_of_enumeration(n):
    cases = list(enumerated(n))
    for parts, found, _ in cases:
        middles = np.repeat((np.arange(n) + 0.5) / n, parts)
        expected = sum(p for _, other, p in cases if other <= found * (1 + 1e-9))
        assert uniform_pvalue(middles) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [30, 150])
def test_p_values_of_uniform_samples_are_uniform(n, rng):
    p_values = np.array([uniform_pvalue(rng.random(n)) for _ in range(2000)])
    for level in (0.01, 0.05, 0.2, 0.5):
        error = np.sqrt(level * (1 - level) / 2000)
        assert abs((p_values <= level).mean() - level) < K * error + 0.1 * level  # discrete


def test_a_sample_leaves_the_band_exactly_if_its_p_value_is_small(rng):
    n, level = 120, 0.9
    z, low, high = uniform_band(n, level)
    outcomes = []
    for power in np.linspace(0.7, 1.4, 200):
        sample = rng.random(n) ** power
        share = np.searchsorted(np.sort(sample), z, side="right") / n
        outside = ((share < low - 1e-9) | (share > high + 1e-9)).any()
        assert outside == (uniform_pvalue(sample) <= 1 - level)
        outcomes.append(outside)
    assert 20 < sum(outcomes) < 180


def test_the_band_is_the_narrowest_of_its_kind_and_holds_its_level(rng):
    n = 200
    z, low, high = uniform_band(n, 0.95)
    np.testing.assert_allclose(low, 1 - high[::-1])
    assert (low <= z).all()
    assert (z <= high).all()
    shares = np.sort(rng.random((20_000, n)), axis=1)
    counts = np.array([np.searchsorted(row, z, side="right") for row in shares])
    inside = ((counts >= n * low - 1e-6) & (counts <= n * high + 1e-6)).all(axis=1).mean()
    error = np.sqrt(0.95 * 0.05 / 20_000)
    assert abs(inside - 0.95) < K * error + 0.002
    pointwise = norm.ppf(0.975) * np.sqrt(z * (1 - z) / n)
    assert (high - low)[n // 2] > 2 * pointwise[n // 2]


def test_departures_of_every_kind_are_noticed(rng):
    score = rng.normal(size=1000)
    assert uniform_pvalue(norm.cdf(score)) > 1e-4
    for wrong in (score + 0.25, 1.25 * score, 0.8 * score):
        assert uniform_pvalue(norm.cdf(wrong)) < 1e-4
    assert uniform_pvalue(np.full(50, 0.5)) < 1e-12
    assert 0 <= uniform_pvalue(np.zeros(50)) < 1e-12


def test_what_is_no_sample_of_shares_is_refused():
    for sample in ([0.5], [0.2, 1.1], [0.2, np.nan], [-0.1, 0.3]):
        with pytest.raises(ValueError, match=r"all of them in \[0, 1\]"):
            uniform_pvalue(sample)
    for settings in ((1, 0.95), (10, 1.0), (10, 0.0)):
        with pytest.raises(ValueError, match="a band needs"):
            uniform_band(*settings)
