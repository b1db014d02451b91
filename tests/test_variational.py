"""Variational fits: right where they can be, and their gradients those of the model."""

from functools import partial

import numpy as np
import pytest
from scipy import stats
from scipy.stats import norm
from test_sbc import LEVEL

from hbm.gaussian import Estimates
from hbm.priors import HalfCauchy, Priors
from hbm.production import variational
from hbm.production.variational import (
    METHODS,
    Target,
    advi,
    centred,
    marginal,
    noncentred,
    pathfinder,
    variational_comparison,
    variational_table,
)
from hbm.studies import simulate_summaries

#: Runs of a method that its errors are judged by.
RUNS = 10


@pytest.fixture(scope="module")
def data():
    return Estimates.from_frame(simulate_summaries(3, n_creators_per_genre=4)[0])


@pytest.mark.parametrize("model", [marginal, centred, noncentred])
def test_gradients_are_those_of_the_density(model, data, rng):
    target = model(data, Priors())
    z, step = rng.normal(0, 0.5, (2, target.size)), 1e-5
    ends = step * np.array([-1.0, 1.0])[:, None, None] * np.eye(target.size)
    low, high = (target.density((z[:, None] + end).reshape(-1, target.size)) for end in ends)
    numeric = ((high - low) / (2 * step)).reshape(z.shape)
    np.testing.assert_allclose(target.gradient(z), numeric, atol=1e-5)


def test_the_models_are_the_same_model(data, rng):
    """The densities differ by the change of variables, and integrating gives the marginal."""
    n_genres = data.n_genres
    z = rng.normal(0, 0.3, (3, 3 + n_genres + len(data.se)))
    genre, tau = (part.mean for part in noncentred(data, Priors()).effects(z))
    written = np.column_stack([z[:, :3], genre, tau])
    jacobian = n_genres * z[:, 1] + len(data.se) * z[:, 2]
    np.testing.assert_allclose(
        centred(data, Priors()).density(written) + jacobian, noncentred(data, Priors()).density(z)
    )
    # p(d | hyper) = p(d, effects | hyper) / p(effects | d, hyper), whatever the effects are.
    target, constant = marginal(data, Priors()), []
    for row in z:
        genre_moments, _ = target.effects(row[None, :3])
        mu = genre_moments.mean[0]
        sigma = np.exp(row[2])
        pull = data.se**2 / (data.se**2 + sigma**2)
        center = data.effect_hat + pull * (mu[data.genre_idx] - data.effect_hat)
        at = np.concatenate([row[:3], mu, center])[None]
        posterior = norm.logpdf(center, center, sigma * np.sqrt(pull)).sum()
        posterior += norm.logpdf(mu, mu, np.sqrt(genre_moments.var[0])).sum()
        joint = centred(data, Priors()).density(at)[0] - posterior
        constant.append(joint - target.density(row[None, :3])[0])
    np.testing.assert_allclose(constant, constant[0])


@pytest.fixture(scope="module")
def normal():
    """A correlated normal of five dimensions, with nothing to approximate."""
    rng = np.random.default_rng(5)
    root = np.tril(rng.normal(0, 0.4, (5, 5))) + np.eye(5)
    mean, precision = rng.normal(size=5), np.linalg.inv(root @ root.T)

    def density(z):
        away = z - mean
        return -0.5 * np.einsum("di,ij,dj->d", away, precision, away)

    target = Target(5, density, lambda z: -(z - mean) @ precision, None)
    return target, mean, root @ root.T


def assert_right_on_average(errors):
    """A run ends where its draws lead it: what several runs leave to chance is their own spread."""
    p_value = stats.ttest_1samp(errors, 0).pvalue
    assert p_value.min() > (1 - LEVEL) / len(p_value)


@pytest.mark.parametrize("method", [pathfinder, partial(advi, full_rank=True)])
def test_a_normal_is_found(method, normal, rng):
    target, mean, covariance = normal
    sd, pairs = np.sqrt(np.diag(covariance)), np.tril_indices(5, -1)
    correlation = covariance / np.outer(sd, sd)
    errors = [
        [
            *(drawn.mean(axis=0) - mean) / sd,
            *np.log(drawn.std(axis=0) / sd),
            *(np.corrcoef(drawn.T) - correlation)[pairs],
        ]
        for drawn in (method(target, rng) for _ in range(RUNS))
    ]
    assert_right_on_average(errors)


def test_mean_field_has_the_conditional_sds_of_a_normal(normal, rng):
    """Known in closed form: its variances are those given all other coordinates."""
    target, mean, covariance = normal
    conditional = 1 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    errors = [
        [*(drawn.mean(axis=0) - mean), *np.log(drawn.std(axis=0) / conditional)]
        for drawn in (advi(target, rng) for _ in range(RUNS))
    ]
    assert_right_on_average(errors)


def test_the_comparison_has_a_row_for_all_and_no_error_for_the_exact_engine(monkeypatch):
    monkeypatch.setattr(variational, "STEPS", 300)
    found = variational_comparison(1, n_creators_per_genre=4)  # one needs no other process
    assert len(found) == (len(METHODS) + 1) * 5
    exact = found[found["method"] == "exact engine"]
    assert (exact["error"] == 0).all()
    np.testing.assert_allclose(exact["sd_ratio"], 1)
    assert len(variational_table(found)) == len(METHODS) + 1


def test_other_priors_are_refused(data):
    with pytest.raises(ValueError, match="half-normal"):
        marginal(data, Priors(sigma_genre=HalfCauchy())).density(np.zeros((1, 3)))


@pytest.mark.slow
def test_mean_field_is_what_pymc_finds(rng):
    """The same approximation of the same model, by another implementation of ADVI."""
    import pymc as pm

    from hbm.model import _centered

    data = Estimates.from_frame(simulate_summaries(3, n_creators_per_genre=8)[0])
    with _centered(data, Priors()):
        # Twenty draws a step, for it ends with the last step instead of an average.
        adam = pm.adam(learning_rate=0.01)
        found = pm.fit(6000, random_seed=1, obj_optimizer=adam, obj_n_mc=20, progressbar=False)
        theirs = found.sample(4000, random_seed=1, return_inferencedata=False)
    target = centred(data, Priors())
    ours = advi(target, rng)
    tau = target.effects(ours)[1].mean
    sd = theirs["tau"].std(axis=0)
    z = (tau.mean(axis=0) - theirs["tau"].mean(axis=0)) / sd
    assert np.sqrt(np.mean(np.square(z))) < 0.1
    np.testing.assert_allclose(np.log(tau.std(axis=0) / sd).mean(), 0, atol=0.05)
    for place, name in enumerate(("mu_global", "sigma_genre", "sigma_creator")):
        values = ours[:, place] if not place else np.exp(ours[:, place])
        assert values.std() == pytest.approx(theirs[name].std(), rel=0.25), name
