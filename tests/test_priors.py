"""Priors are what they say in PyMC as in SciPy, and their scales follow the data."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hbm.priors import (
    Fixed,
    Gamma,
    HalfCauchy,
    HalfNormal,
    LogNormal,
    Normal,
    Priors,
    TruncatedNormal,
)

FAMILIES = (
    Normal(0.3, 2.5),
    HalfNormal(0.7),
    HalfCauchy(5.0),
    LogNormal(-0.9, 0.4),
    TruncatedNormal(0.4, 0.3),
)


@pytest.mark.parametrize("prior", FAMILIES, ids=repr)
def test_pymc_and_scipy_agree_on_the_density(prior):
    import pymc as pm

    with pm.Model() as model:
        variable = prior.pymc("x")
    points = np.array([0.01, 0.5, 1.0, 3.0, 40.0])
    difference = pm.logp(variable, points).eval() - prior.scipy().logpdf(points)
    # PyTensor keeps the logarithms of some constants in single precision.
    assert np.ptp(difference) < 1e-12
    assert np.abs(difference).max() < 1e-7
    assert model.named_vars == {"x": variable}
    assert np.isneginf(prior.scipy().logpdf(-1.0)) == (not isinstance(prior, Normal))


def test_a_gamma_that_begins_above_zero_is_one_moved_up():
    import pymc as pm

    prior = Gamma(2.0, 0.1, lower=2.0)
    points = np.array([2.01, 3.0, 12.0, 80.0])
    difference = pm.logp(prior.pymc(None), points).eval() - prior.scipy().logpdf(points)
    assert np.abs(difference).max() < 1e-7
    assert prior.scipy().pdf(1.9) == 0
    with pm.Model() as model:
        variable = prior.pymc("nu")
    assert set(model.named_vars) == {"nu", "nu_above_lower"}
    assert [v.name for v in model.free_RVs] == ["nu_above_lower"]
    density = model.compile_logp(jacobian=False, mode="FAST_COMPILE")
    point = {"nu_above_lower_log__": np.log(5.0)}
    assert float(density(point)) == pytest.approx(prior.scipy().logpdf(7.0), abs=1e-7)
    above = model.replace_rvs_by_values([variable])[0]
    at = model.compile_fn(above, inputs=model.value_vars, mode="FAST_COMPILE")
    assert float(at(point)) == pytest.approx(7.0)


def test_the_densities_are_the_textbooks():
    assert HalfNormal(2.0).scipy().pdf(1.0) == pytest.approx(2 * stats.norm(0, 2).pdf(1.0))
    log_normal = stats.norm(-0.9, 0.4).pdf(np.log(0.5)) / 0.5
    assert LogNormal(-0.9, 0.4).scipy().pdf(0.5) == pytest.approx(log_normal)
    cut = stats.norm(0.4, 0.3).pdf(0.5) / stats.norm(0.4, 0.3).sf(0)
    assert TruncatedNormal(0.4, 0.3).scipy().pdf(0.5) == pytest.approx(cut)
    assert HalfCauchy(5.0).scipy().pdf(3.0) == pytest.approx(2 / (np.pi * 5 * (1 + (3 / 5) ** 2)))
    assert Normal(1.0, 3.0).scipy().std() == pytest.approx(3.0)
    shape, rate, x = 2.0, 0.1, 7.0
    textbook = rate**shape * (x - 2) ** (shape - 1) * np.exp(-rate * (x - 2))  # Gamma(2) is 1
    assert Gamma(shape, rate, lower=2.0).scipy().pdf(x) == pytest.approx(textbook)
    ends = Priors().nu.scipy().ppf([0.025, 0.975])
    np.testing.assert_allclose(ends, [4.4, 57.7], atol=0.05)


def test_a_fixed_value_is_a_constant():
    import pymc as pm

    with pm.Model() as model:
        fixed = Fixed(0.25).pymc("sigma_genre")
    assert float(fixed.eval()) == 0.25
    assert not model.free_RVs
    with pytest.raises(TypeError, match="no density"):
        Fixed(0.25).scipy()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(0, 0), "Normal: sigma must be greater than 0, got 0"),
        (lambda: Normal(0, -1), "Normal: sigma must be greater"),
        (lambda: Normal(np.nan, 1), "Normal: mu must be finite, got nan"),
        (lambda: Normal(0, np.inf), "Normal: sigma must be finite"),
        (lambda: HalfNormal(0), "HalfNormal: sigma must be greater than 0"),
        (lambda: LogNormal(0, 0), "LogNormal: sigma must be greater than 0, got 0"),
        (lambda: TruncatedNormal(0, -1), "TruncatedNormal: sigma must be greater than 0"),
        (lambda: HalfCauchy(-2), "HalfCauchy: beta must be greater than 0, got -2"),
        (lambda: Fixed(-0.1), "Fixed: value must not be negative, got -0.1"),
        (lambda: Fixed(np.inf), "Fixed: value must be finite"),
        (lambda: Priors(sigma_creator=Fixed(0)), "complete pooling, not a hierarchy"),
        (lambda: Priors(nu=Fixed(2)), "nu must lie above 2, or effects have no variance"),
        (lambda: Priors(nu=Gamma(2, 0.1)), "nu must lie above 2"),
        (lambda: Gamma(0, 1), "Gamma: alpha must be greater than 0, got 0"),
        (lambda: Gamma(1, -1), "Gamma: beta must be greater than 0, got -1"),
    ],
)
def test_impossible_priors_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "wrong",
    [
        {"mu_global": HalfNormal()},
        {"mu_global": 0.0},
        {"sigma_genre": Normal()},
        {"sigma_genre": 1.0},
        {"sigma_creator": stats.halfnorm()},
        {"sigma_creator": None},
        {"nu": HalfNormal()},
    ],
    # The address of an object is another in every worker of a parallel run.
    ids=lambda wrong: "-".join(f"{k}-{type(v).__name__}" for k, v in wrong.items()),
)
def test_priors_of_the_wrong_kind_are_refused(wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Priors(**wrong)


def test_the_defaults_are_the_plans():
    assert Priors() == Priors(Normal(0, 1), HalfNormal(1), HalfNormal(1))
    assert Priors().describe() == {
        "mu_global": "Normal(mu=0, sigma=1)",
        "sigma_genre": "HalfNormal(sigma=1)",
        "sigma_creator": "HalfNormal(sigma=1)",
        "slope": "Normal(mu=0, sigma=1)",
        "sigma_spread": "HalfNormal(sigma=0.5)",
        "nu": "Gamma(alpha=2, beta=0.1, lower=2)",
    }
    assert Priors(sigma_genre=Fixed(0)).describe()["sigma_genre"] == "Fixed(value=0)"


def test_priors_cannot_be_changed():
    with pytest.raises(AttributeError):
        Priors().mu_global = Normal(1, 1)
    with pytest.raises(AttributeError):
        HalfNormal(1.0).sigma = 2.0


def frame(effects, se=1.0):
    return pd.DataFrame({"effect_hat": np.asarray(effects, float), "se": se})


def test_weakly_informative_by_hand():
    priors = Priors.weakly_informative(frame([1.0, 2, 3, 4, 1000]))
    spread = 1.4826 * 1.0  # the median of |-2, -1, 0, 1, 997| is 1
    assert isinstance(priors.sigma_genre, HalfNormal)
    assert priors.mu_global.mu == 0.0
    assert priors.mu_global.sigma == pytest.approx(5 * np.hypot(3.0, spread))
    assert priors.sigma_genre.sigma == pytest.approx(2 * spread)
    assert priors.sigma_creator == priors.sigma_genre


@given(
    effects=st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    scale=st.sampled_from([1e-9, 0.01, 100.0, 1e9]),
)
def test_weakly_informative_scales_with_the_data(effects, scale):
    one = Priors.weakly_informative(frame(effects, 0.7))
    other = Priors.weakly_informative(frame(scale * np.array(effects), scale * 0.7))
    assert other.mu_global.mu == one.mu_global.mu == 0
    for name in ("mu_global", "sigma_genre", "sigma_creator"):
        expected = scale * getattr(one, name).sigma
        assert getattr(other, name).sigma == pytest.approx(expected, rel=1e-9)


def test_ties_and_single_creators_take_the_scale_of_the_noise():
    for effects in ([2.0], [2.0, 2.0, 2.0, 7.0], [0.0, 0.0]):
        priors = Priors.weakly_informative(frame(effects, [0.5] * len(effects)))
        assert priors.sigma_creator == HalfNormal(1.0)
        assert priors.mu_global.sigma == pytest.approx(5 * np.hypot(np.median(effects), 0.5))


def test_without_creators_there_is_no_scale():
    with pytest.raises(ValueError, match="at least one creator"):
        Priors.weakly_informative(frame([]))
