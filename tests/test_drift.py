"""Genre means that move: exact by dense normals, by a second implementation, and by limits."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from scipy.special import logsumexp, ndtr

from hbm.data import DataError
from hbm.diagnostics import MAX_QUADRATURE_ERROR, DiagnosticsError
from hbm.drift import STATIC, AutoRegression, RandomWalk, fit_drift_model
from hbm.drift.grid import DriftLikelihood
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact import predict_effects
from hbm.exact.draws import extract_hyper_estimates, hyper_cdf
from hbm.model import fit_hierarchical_model
from hbm.priors import Beta, Fixed, HalfCauchy, HalfNormal, Normal, Priors

PROMISED = MAX_QUADRATURE_ERROR

#: What the Gauss rule promises of effects, in probabilities and posterior standard deviations.
EFFECTS = 5e-5

#: Rounding, where everything is known but what is integrated in closed form.
ROUNDING = 1e-9

NUMBERS = ["effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage"]


def simulated(rng, cells, step=0.3, sigma_creator=0.5, se=(0.1, 0.8), offset=0.0):
    """Summaries with so many creators by (genre, period), in a random order."""
    keys = [key for key, n in cells.items() for _ in range(n)]
    idx, when = np.array([keys[i] for i in rng.permutation(len(keys))]).T
    walk = rng.normal(0, step, (idx.max() + 1, np.ptp(when) + 1)).cumsum(axis=1)
    errors = np.exp(rng.uniform(*np.log(se), len(keys)))
    center = rng.normal(0.4, 0.5, idx.max() + 1)[idx] + walk[idx, when - when.min()]
    return pd.DataFrame(
        {
            "creator_id": [f"c{i}" for i in range(len(keys))],
            "genre_idx": idx,
            "period": when,
            "effect_hat": offset + rng.normal(center, np.hypot(sigma_creator, errors)),
            "se": errors,
        }
    )


#: Three genres over nine periods: one seen all the time, one with gaps, one seen late and once.
#: Nothing at all is seen in period 5.
CELLS = {(0, t): 2 for t in (0, 1, 2, 3, 4, 6, 7, 8)} | {(1, 1): 3, (1, 4): 1, (1, 8): 2, (2, 7): 4}

KNOWN = Priors(Normal(0.2, 0.7), Fixed(0.6), Fixed(0.5))

PROCESSES = {
    "random walk": RandomWalk(Fixed(0.3)),
    "autoregression": AutoRegression(Fixed(0.4), Fixed(0.7)),
    "no correlation": AutoRegression(Fixed(0.4), Fixed(0.0)),
    "static": STATIC,
}


class DenseDrift:
    """Dense normals of mu_global, paths, effects and estimates; shares no formula with hbm.

    One for each row of hyperparameters: sigma_genre, sigma_creator, and those of the process.
    """

    def __init__(self, data, priors, process, hyper):
        self.data, self.mu, self.process = data, priors.mu_global, process
        self.hyper = np.atleast_2d(hyper)
        self.start = data["period"].min()
        self.own = data["genre_idx"].to_numpy(), data["period"].to_numpy()
        self.noise = np.square(data["se"].to_numpy())
        one = np.eye(len(data))
        self.tau = self.between(self.own, self.own)
        self.tau += np.square(self.hyper[:, 1])[:, None, None] * one
        self.covariance = self.tau + self.noise * one
        self.away = data["effect_hat"].to_numpy() - self.mu.mu

    def between(self, one, other):
        """Covariance of mu_genre at two lists of genres and periods."""
        genre, parameter = (np.square(self.hyper[:, k])[:, None, None] for k in (0, 2))
        s, t = np.meshgrid(one[1] - self.start, other[1] - self.start, indexing="ij")
        if isinstance(self.process, RandomWalk):
            moved = parameter * np.minimum(s, t)
        else:
            moved = parameter * self.hyper[:, 3, None, None] ** np.abs(s - t)
        return self.mu.sigma**2 + np.equal.outer(one[0], other[0]) * (genre + moved)

    def log_density(self):
        factor = np.linalg.cholesky(self.covariance)
        away = np.broadcast_to(self.away, factor.shape[:2])[..., None]
        squared = np.square(np.linalg.solve(factor, away)[..., 0]).sum(axis=1)
        log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        return -0.5 * (squared + len(self.away) * np.log(2 * np.pi)) - log_det

    def given_data(self, across, prior):
        """Mean and covariance, from the covariances with the estimates and among themselves."""
        gain = np.swapaxes(np.linalg.solve(self.covariance, np.swapaxes(across, 1, 2)), 1, 2)
        return self.mu.mu + gain @ self.away, prior - gain @ np.swapaxes(across, 1, 2)

    def effects(self):
        return self.given_data(self.tau, self.tau)

    def paths(self, idx, when):
        at = np.asarray(idx), np.asarray(when)
        return self.given_data(self.between(at, self.own), self.between(at, at))


def dense_of(data, process, priors=KNOWN):
    values = [getattr(process, name).value for name in process.names]
    known = priors.sigma_genre.value, priors.sigma_creator.value, *values
    return DenseDrift(data, priors, process, known)


def moments(found):
    """Means and standard deviations of the only row."""
    (mean,), (covariance,) = found
    return mean, np.sqrt(np.diag(covariance))


@pytest.fixture(scope="module", params=PROCESSES)
def known(request):
    """A fit with known hyperparameters, and the dense normal."""
    data = simulated(np.random.default_rng(sorted(PROCESSES).index(request.param)), CELLS)
    process = PROCESSES[request.param]
    return fit_drift_model(data, process=process, priors=KNOWN), dense_of(data, process)


# --- given the hyperparameters -----------------------------------------------------------------


def test_the_evidence_equals_a_dense_normal(known):
    fit, dense = known
    assert fit.log_evidence == pytest.approx(dense.log_density()[0], abs=ROUNDING)


def test_effects_equal_a_dense_normal(known):
    fit, dense = known
    mean, sd = moments(dense.effects())
    found = fit.estimates
    assert found["creator_id"].tolist() == dense.data["creator_id"].tolist()
    np.testing.assert_allclose(found["effect_hat"], mean, atol=ROUNDING)
    np.testing.assert_allclose(found["se"], sd, rtol=ROUNDING)
    np.testing.assert_allclose(found["ci_lower"], mean + sd * stats.norm.ppf(0.025), atol=1e-8)
    np.testing.assert_allclose(found["ci_upper"], mean + sd * stats.norm.ppf(0.975), atol=1e-8)
    np.testing.assert_allclose(found["p_positive"], ndtr(mean / sd), atol=ROUNDING)
    np.testing.assert_allclose(found["shrinkage"], dense.noise / (dense.noise + 0.25))


def test_paths_equal_a_dense_normal_in_periods_with_and_without_data(known):
    fit, dense = known
    found = fit.paths
    assert found["period"].tolist() == [*range(9)] * 3
    mean, sd = moments(dense.paths(np.repeat(np.arange(3), 9), np.tile(np.arange(9), 3)))
    np.testing.assert_allclose(found["mean"], mean, atol=ROUNDING)
    np.testing.assert_allclose(found["se"], sd, rtol=ROUNDING)
    counts = found.set_index(["genre", "period"])["n_creators"]
    assert counts.sum() == len(fit.data)
    assert {(int(g), t): n for (g, t), n in counts.items() if n} == CELLS


def test_forecasts_equal_a_dense_normal(known):
    fit, dense = known
    found = fit.forecast(3)
    mean, sd = moments(dense.paths(np.repeat(np.arange(3), 3), np.tile([9, 10, 11], 3)))
    np.testing.assert_allclose(found["mean"], mean, atol=ROUNDING)
    np.testing.assert_allclose(found["se"], sd, rtol=ROUNDING)
    np.testing.assert_allclose(found["creator_se"], np.hypot(sd, 0.5), rtol=ROUNDING)
    upper = mean + np.hypot(sd, 0.5) * stats.norm.ppf(0.975)
    np.testing.assert_allclose(found["creator_upper"], upper, atol=1e-8)
    new = fit.predict([None, "1"], [9, 4], se=0.3)
    mean, sd = moments(dense.paths([-1, 1], [9, 4]))
    sd = np.sqrt(sd**2 + 0.25 + 0.09)
    np.testing.assert_allclose(new["effect_hat"], mean, atol=ROUNDING)
    np.testing.assert_allclose(new["se"], sd, rtol=ROUNDING)
    np.testing.assert_allclose(new["p_positive"], ndtr(mean / sd), atol=ROUNDING)


def test_drawn_paths_have_the_dense_covariance_across_genres_and_periods(known):
    fit, dense = known
    n = 20_000
    drawn = fit.draw_paths(n, seed=3).reshape(n, -1)
    found = dense.paths(np.repeat(np.arange(3), 9), np.tile(np.arange(9), 3))
    (mean,), (covariance,) = found
    var = np.diag(covariance)
    assert np.all(np.abs(drawn.mean(axis=0) - mean) < K * np.sqrt(var / n))
    error = np.sqrt((np.outer(var, var) + covariance**2) / n)
    assert np.all(np.abs(np.cov(drawn.T) - covariance) < K * error + 1e-12)


@pytest.mark.parametrize("name", ["random walk", "autoregression"])
def test_the_kalman_smoother_equals_that_of_statsmodels(name):
    """One genre, given mu_global: a state of level and distance from it, known start."""
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    process = PROCESSES[name]
    data = simulated(np.random.default_rng(8), {(0, t): 1 for t in (0, 1, 3, 4, 7)})
    priors = replace(KNOWN, mu_global=Normal(0.2, 1e-9))
    fit = fit_drift_model(data, process=process, priors=priors)
    model = KalmanSmoother(k_endog=1, k_states=2, k_posdef=1)
    first = process.start(np.array([[0.4]]))[0, 0] if name == "autoregression" else 0.0
    slope, var = (1.0, 0.09) if name == "random walk" else (0.7, 0.16 * (1 - 0.49))
    values, noise = np.full((1, 8), np.nan), np.ones((1, 1, 8))
    values[0, data["period"]] = data["effect_hat"]
    noise[0, 0, data["period"]] = np.square(data["se"]) + 0.25
    model.bind(np.asfortranarray(values))
    model["design"], model["obs_cov"] = np.ones((1, 2)), noise
    model["transition"], model["selection"] = np.diag([1, slope]), np.array([[0.0], [1.0]])
    model["state_cov"] = np.array([[var]])
    model.initialize_known(np.array([0.2, 0.0]), np.diag([0.36, first]))
    smoothed = model.smooth()
    np.testing.assert_allclose(fit.paths["mean"], smoothed.smoothed_state.sum(axis=0), atol=1e-8)
    sd = np.sqrt(smoothed.smoothed_state_cov.sum(axis=(0, 1)))
    np.testing.assert_allclose(fit.paths["se"], sd, rtol=1e-8)
    assert fit.log_evidence == pytest.approx(smoothed.llf_obs.sum(), abs=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_no_digits_are_lost_far_from_zero(name):
    data = simulated(np.random.default_rng(5), CELLS)
    priors = replace(KNOWN, mu_global=Normal(0.2, 1e7))
    near, far = (
        fit_drift_model(d, process=PROCESSES[name], priors=priors)
        for d in (data, data.assign(effect_hat=data["effect_hat"] + 2.0**20))
    )
    np.testing.assert_allclose(near.paths["mean"], far.paths["mean"] - 2.0**20, atol=1e-7)
    np.testing.assert_allclose(near.estimates["se"], far.estimates["se"], rtol=1e-8)


# --- over the hyperparameters ------------------------------------------------------------------


SMALL = {(g, t): 1 for g in range(3) for t in range(4)} | {(0, 2): 3}

WIDE = Priors(Normal(0, 2), HalfNormal(0.7), HalfNormal(0.8))

FULL = {
    "random walk": (RandomWalk(HalfNormal(0.5)), WIDE, SMALL),
    "two periods": (RandomWalk(HalfNormal(0.5)), WIDE, {(g, t): 3 for g in range(2) for t in (0, 3)}),
    "one genre": (RandomWalk(HalfNormal(0.4)), WIDE, {(0, t): 2 for t in range(6)}),
    "one period": (RandomWalk(HalfNormal(0.4)), WIDE, {(0, 2): 4, (1, 2): 5}),
    "known correlation": (AutoRegression(HalfNormal(0.5), Fixed(0.6)), WIDE, SMALL),
    "autoregression": (
        AutoRegression(HalfNormal(0.5), Beta(2, 3)),
        replace(WIDE, sigma_genre=Fixed(0.5)),
        {(g, t): 1 for g in range(2) for t in range(6)},
    ),
}


class BruteForce:
    """The posterior on a product of Gauss-Legendre rules, a dense normal at every node."""

    def __init__(self, data, process, priors, n=48):
        axes = [priors.sigma_genre, priors.sigma_creator]
        nodes = [self.axis(p, n) for p in [*axes, *(getattr(process, k) for k in process.names)]]
        grid, log_weight = (
            np.stack(np.meshgrid(*part, indexing="ij"), axis=-1).reshape(-1, len(nodes))
            for part in zip(*nodes, strict=True)
        )
        log_weight = log_weight.sum(axis=1)
        for start in range(0, len(grid), 20_000):
            block = slice(start, start + 20_000)
            log_weight[block] += DenseDrift(data, priors, process, grid[block]).log_density()
        self.log_evidence = logsumexp(log_weight)
        weight = np.exp(log_weight - self.log_evidence)
        self.weight, self.hyper = weight[weight > 1e-11], grid[weight > 1e-11]
        self.weight /= self.weight.sum()
        self.dense = DenseDrift(data, priors, process, self.hyper)

    @staticmethod
    def axis(prior, n):
        """Nodes and log weights: pieces of 0 to 6 scales, finer toward 0; or of 0 to 1."""
        if isinstance(prior, Fixed):
            return np.array([prior.value]), np.zeros(1)
        pieces, top = (1, 1.0) if isinstance(prior, Beta) else (3, 6 * prior.sigma)
        x, w = np.polynomial.legendre.leggauss(n // pieces)
        ends = top * np.linspace(0, 1, pieces + 1) ** 2
        half = np.diff(ends)[:, None] / 2
        x, w = (half * x + ends[:-1, None] + half).ravel(), (half * w).ravel()
        return x, np.log(w) + prior.scipy().logpdf(x)

    def overall(self, found):
        """Means, standard deviations and distribution function of (mean, covariance) by node."""
        mean, var = found[0], np.diagonal(found[1], axis1=1, axis2=2)
        center = self.weight @ mean
        sd = np.sqrt(self.weight @ (np.square(mean - center) + var))
        return center, sd, lambda x: self.weight @ ndtr((x - mean) / np.sqrt(var))


@pytest.fixture(scope="module", params=FULL)
def full(request):
    process, priors, cells = FULL[request.param]
    data = simulated(np.random.default_rng(11), cells)
    return fit_drift_model(data, process=process, priors=priors), BruteForce(data, process, priors)


def test_the_evidence_equals_brute_force(full):
    fit, brute = full
    assert fit.diagnostics.ok
    assert fit.log_evidence == pytest.approx(brute.log_evidence, abs=PROMISED)


def test_hyperparameters_equal_brute_force(full):
    fit, brute = full
    hyper = fit.hyper.set_index("parameter")
    for k, name in enumerate(("sigma_genre", "sigma_creator", *fit.process.names)):
        mean = brute.weight @ brute.hyper[:, k]
        sd = np.sqrt(brute.weight @ np.square(brute.hyper[:, k] - mean))
        assert hyper["mean"][name] == pytest.approx(mean, abs=max(EFFECTS * sd, ROUNDING))
        assert hyper["se"][name] == pytest.approx(sd, abs=max(EFFECTS * sd, ROUNDING))
        for end, probability in (("lower", 0.025), ("upper", 0.975)):
            if sd > ROUNDING:
                found = fit.marginals.cdf(name, hyper[end][name])
                assert found == pytest.approx(probability, abs=PROMISED)


def test_effects_and_paths_and_forecasts_equal_brute_force(full):
    fit, brute = full
    n, periods = len(fit.genres), np.append(fit.periods, fit.periods[-1] + 2)
    places = np.repeat(np.arange(n), len(periods)), np.tile(periods, n)
    for found, wanted in (
        (fit.estimates, brute.dense.effects()),
        (fit.predict(fit.genres[places[0]], places[1]), brute.dense.paths(*places)),
    ):
        mean, sd, cdf = brute.overall(wanted)
        if "shrinkage" not in found:
            mean, var = wanted[0], np.diagonal(wanted[1], axis1=1, axis2=2)
            spread = np.square(brute.hyper[:, 1, None, None]) * np.eye(len(places[0]))
            mean, sd, cdf = brute.overall((mean, wanted[1] + spread))
        np.testing.assert_allclose((found["effect_hat"] - mean) / sd, 0, atol=EFFECTS)
        np.testing.assert_allclose(found["se"] / sd, 1, atol=EFFECTS)
        np.testing.assert_allclose(cdf(found["ci_lower"].to_numpy()), 0.025, atol=EFFECTS)
        np.testing.assert_allclose(cdf(found["ci_upper"].to_numpy()), 0.975, atol=EFFECTS)
        np.testing.assert_allclose(found["p_positive"], 1 - cdf(0.0), atol=EFFECTS)
