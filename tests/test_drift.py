"""Genre means that move: exact by dense normals, by a second implementation, and by limits."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from scipy.special import logsumexp, ndtr

from hbm.checks import DataError
from hbm.diagnostics import MAX_QUADRATURE_ERROR, DiagnosticsError
from hbm.drift import STATIC, AutoRegression, RandomWalk, fit_drift_model
from hbm.drift.study import simulate_drift
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact import predict_effects
from hbm.exact.draws import extract_hyper_estimates, hyper_cdf
from hbm.gaussian import mixture_moments
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, Gamma, HalfCauchy, HalfNormal, Normal, Priors

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
    "autoregression": AutoRegression(0.7, Fixed(0.4)),
    "no correlation": AutoRegression(0.0, Fixed(0.4)),
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
            moved = parameter * self.process.rho ** np.abs(s - t)
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
    known = priors.sigma_genre.value, priors.sigma_creator.value, process.prior.value
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

TWO = [(g, t) for g in range(2) for t in (0, 3)]

WIDE = Priors(Normal(0, 2), HalfNormal(0.7), HalfNormal(0.8))

FULL = {
    "random walk": (RandomWalk(HalfNormal(0.5)), WIDE, SMALL),
    "two periods": (
        RandomWalk(HalfNormal(0.5)),
        WIDE,
        {(g, t): 3 for g in range(2) for t in (0, 3)},
    ),
    "one genre": (RandomWalk(HalfNormal(0.4)), WIDE, {(0, t): 2 for t in range(6)}),
    "one period": (RandomWalk(HalfNormal(0.4)), WIDE, {(0, 2): 4, (1, 2): 5}),
    "autoregression": (AutoRegression(0.6, HalfNormal(0.5)), WIDE, SMALL),
}


class BruteForce:
    """The posterior on a product of Gauss-Legendre rules, a dense normal at every node."""

    def __init__(self, data, process, priors, n=48):
        axes = [priors.sigma_genre, priors.sigma_creator, process.prior]
        nodes = [self.axis(prior, n) for prior in axes]
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
        """Nodes and log weights: pieces of 0 to 6 scales, finer toward 0."""
        x, w = np.polynomial.legendre.leggauss(n // 3)
        ends = 6 * prior.sigma * np.linspace(0, 1, 4) ** 2
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
    for k, name in enumerate(("sigma_genre", "sigma_creator", brute.dense.process.name)):
        mean = brute.weight @ brute.hyper[:, k]
        sd = np.sqrt(brute.weight @ np.square(brute.hyper[:, k] - mean))
        assert hyper["mean"][name] == pytest.approx(mean, abs=max(EFFECTS * sd, ROUNDING))
        assert hyper["se"][name] == pytest.approx(sd, abs=max(EFFECTS * sd, ROUNDING))
        for end, probability in (("lower", 0.025), ("upper", 0.975)):
            if sd > ROUNDING:
                found = fit.hyper_cdf(name, hyper[end][name])
                assert found == pytest.approx(probability, abs=PROMISED)


def test_effects_and_paths_and_forecasts_equal_brute_force(full):
    fit, brute = full
    n, periods = len(fit.genres), np.append(fit.periods, fit.periods[-1] + 2)
    places = np.repeat(np.arange(n), len(periods)), np.tile(periods, n)
    spread = np.square(brute.hyper[:, 1])[:, None, None] * np.eye(len(places[0]))
    mean, covariance = brute.dense.paths(*places)
    for found, wanted in (
        (fit.estimates, brute.dense.effects()),
        (fit.predict(fit.genres[places[0]], places[1]), (mean, covariance + spread)),
    ):
        mean, sd, cdf = brute.overall(wanted)
        np.testing.assert_allclose((found["effect_hat"] - mean) / sd, 0, atol=EFFECTS)
        np.testing.assert_allclose(found["se"] / sd, 1, atol=EFFECTS)
        np.testing.assert_allclose(cdf(found["ci_lower"].to_numpy()), 0.025, atol=EFFECTS)
        np.testing.assert_allclose(cdf(found["ci_upper"].to_numpy()), 0.975, atol=EFFECTS)
        np.testing.assert_allclose(found["p_positive"], 1 - cdf(0.0), atol=EFFECTS)


def test_the_paths_frame_says_what_the_predictions_say(full):
    """They differ by the spread of the creators alone, which brute force has checked."""
    fit, brute = full
    n, periods = len(fit.genres), fit.periods
    mean, sd, cdf = brute.overall(
        brute.dense.paths(np.repeat(np.arange(n), len(periods)), np.tile(periods, n))
    )
    np.testing.assert_allclose((fit.paths["mean"] - mean) / sd, 0, atol=EFFECTS)
    np.testing.assert_allclose(fit.paths["se"] / sd, 1, atol=EFFECTS)
    np.testing.assert_allclose(cdf(fit.paths["upper"].to_numpy()), 0.975, atol=EFFECTS)


def test_nodes_are_added_where_the_posterior_needs_them():
    """Hard shapes keep the promise: ridges, precise among noisy, nothing there, priors far off."""
    rng = np.random.default_rng(0)
    every = {(g, t): 3 for g in range(4) for t in range(6)}
    against = Priors(Normal(-3, 0.5), HalfNormal(0.05), HalfNormal(0.05))
    cauchy = Priors(Normal(), HalfCauchy(1), HalfCauchy(1))
    shapes = [
        (simulated(rng, {(0, 0): 1}), Priors()),
        (simulated(rng, {(g, g % 5): 1 for g in range(15)}), Priors()),
        (simulated(rng, {(g, t): 1 for g in range(4) for t in range(8)}), Priors()),
        (simulated(rng, every, se=(1e-3, 1e1)), Priors()),
        (simulated(rng, every, step=0, sigma_creator=0), Priors()),
        (simulated(rng, every, step=2, sigma_creator=2), against),
        (simulated(rng, every), cauchy),
    ]
    for data, priors in shapes:
        for process in (RandomWalk(HalfCauchy(0.2)), AutoRegression(0)):
            fit = fit_drift_model(data, process=process, priors=priors)
            assert max(fit.posterior.errors.values()) <= PROMISED
            finer = with_more_nodes(fit)
            away = np.abs(finer["effect_hat"] - fit.estimates["effect_hat"]) / finer["se"]
            assert away.max() < EFFECTS
            assert np.abs(fit.estimates["se"] / finer["se"] - 1).max() < EFFECTS


def with_more_nodes(fit):
    """Effects by a Gauss rule with more nodes of everything."""
    finer = replace(fit.posterior)
    finer.__dict__["rule"] = finer.reduced([20] * len(finer.axes))
    moments = mixture_moments(replace(fit, posterior=finer).effect_moments(), finer.weight)
    return {"effect_hat": moments.mean, "se": np.sqrt(moments.var)}


def test_draws_of_the_hyperparameters_are_of_their_distributions(platform):
    for process in (RandomWalk(), AutoRegression(0.9, HalfNormal(0.01))):
        fit = fit_drift_model(platform, process=process)
        drawn = fit.posterior.draw(np.random.default_rng(1), 400)
        for axis, values in zip(fit.posterior.axes, drawn.T, strict=True):
            below = [fit.hyper_cdf(axis.name, x) for x in values]
            assert stats.kstest(below, "uniform").pvalue > 2 * stats.norm.sf(K)


# --- what it has to agree with -----------------------------------------------------------------


@pytest.fixture(scope="module")
def platform():
    return simulate_drift(3, n_periods=9, n_creators_per_genre=45)[0]


def test_what_does_not_move_is_the_static_model(platform):
    static = fit_hierarchical_model(platform, engine="exact", draws=0)
    fit = fit_drift_model(platform, process=STATIC)
    expected = extract_hbm_estimates(static, platform)
    pd.testing.assert_frame_equal(
        fit.estimates[expected.columns], expected, rtol=0, atol=1e-5, check_dtype=False
    )
    assert fit.log_evidence == pytest.approx(static.attrs["log_marginal_likelihood"], abs=1e-6)
    genres = extract_genre_estimates(static).drop(columns="n_creators")
    for when in (0, 8):
        paths = fit.paths[fit.paths["period"] == when].reset_index(drop=True)
        pd.testing.assert_frame_equal(paths[genres.columns], genres, rtol=0, atol=1e-5)
    hyper = extract_hyper_estimates(static).set_index("parameter")
    found = fit.hyper.set_index("parameter").loc[hyper.index]
    pd.testing.assert_frame_equal(found, hyper, rtol=0, atol=1e-5)
    assert fit.hyper_cdf("sigma_genre", 0.3) == pytest.approx(
        hyper_cdf(static, "sigma_genre", 0.3), abs=1e-5
    )
    new = predict_effects(static, ["music", None], se=0.2)
    pd.testing.assert_frame_equal(
        fit.predict(["music", None], [9, 12], se=0.2)[new.columns], new, rtol=0, atol=1e-3
    )


def test_one_period_says_nothing_of_motion(platform):
    now = platform.assign(period=4)
    fit = fit_drift_model(now)
    assert fit.log_evidence == pytest.approx(
        fit_drift_model(now, process=STATIC).log_evidence, abs=1e-6
    )
    step = fit.hyper.set_index("parameter").loc["sigma_step"]
    prior = RandomWalk().sigma_step.scipy()
    assert step["mean"] == pytest.approx(prior.mean(), rel=1e-5)
    assert step["upper"] == pytest.approx(prior.ppf(0.975), rel=1e-5)


@pytest.mark.parametrize("process", [RandomWalk(), AutoRegression(0.7)])
def test_order_and_names_and_origin_of_time_do_not_matter(platform, process):
    fit = fit_drift_model(platform, process=process)
    shuffled = platform.sample(frac=1, random_state=2)
    shuffled = shuffled.assign(
        month=shuffled["period"].astype(float) - 700, genre_idx=4 - shuffled["genre_idx"]
    ).drop(columns="period")
    other = fit_drift_model(shuffled, period="month", process=process)
    assert other.log_evidence == pytest.approx(fit.log_evidence, abs=1e-7)
    assert other.estimates["creator_id"].tolist() == shuffled["creator_id"].tolist()
    found = other.estimates.set_index("creator_id").loc[platform["creator_id"]]
    for name in NUMBERS:
        np.testing.assert_allclose(found[name], fit.estimates[name], atol=1e-6)
    paths = other.paths.assign(period=other.paths["period"] + 700)
    keys = ["genre", "period"]
    both = fit.paths.merge(paths, on=keys, suffixes=("", "_other"))
    assert len(both) == len(fit.paths)
    np.testing.assert_allclose(both["mean"], both["mean_other"], atol=1e-6)
    assert (both["n_creators"] == both["n_creators_other"]).all()


def test_units_do_not_matter_with_priors_in_the_same_unit(platform):
    cents = platform.assign(effect_hat=100 * platform["effect_hat"], se=100 * platform["se"])
    priors = Priors(Normal(0, 100), HalfNormal(100), HalfNormal(100))
    fit = fit_drift_model(platform)
    other = fit_drift_model(cents, process=RandomWalk(HalfNormal(20)), priors=priors)
    np.testing.assert_allclose(other.paths["upper"], 100 * fit.paths["upper"], rtol=1e-6)
    np.testing.assert_allclose(other.estimates["se"], 100 * fit.estimates["se"], rtol=1e-6)


@pytest.mark.slow
def test_the_whole_posterior_agrees_with_nuts_on_every_parameter_of_the_model():
    """The model as it is written down, sampled without any integral done beforehand."""
    import arviz as az
    import pymc as pm

    data, _ = simulate_drift(5, n_periods=6, n_creators_per_genre=30, genres=("a", "b", "c"))
    fit = fit_drift_model(data)
    with pm.Model():
        mu = pm.Normal("mu_global")
        sigma_genre, sigma_creator = (pm.HalfNormal(f"sigma_{k}") for k in ("genre", "creator"))
        step = pm.HalfNormal("sigma_step", 0.2)
        level = mu + sigma_genre * pm.Normal("level", shape=3)
        moves = pm.Normal("moves", shape=(3, 5))
        walk = pm.math.concatenate([np.zeros((3, 1)), pm.math.cumsum(moves, axis=1)], axis=1)
        path = pm.Deterministic("path", level[:, None] + step * walk)
        center = path[data["genre_idx"].to_numpy(), data["period"].to_numpy()]
        tau = pm.Deterministic(
            "tau", center + sigma_creator * pm.Normal("creator", shape=len(data))
        )
        pm.Normal("d", tau, data["se"].to_numpy(), observed=data["effect_hat"].to_numpy())
        sampled = pm.sample(
            2000, tune=1500, chains=4, random_seed=1, target_accept=0.995, nuts_sampler="nutpie",
            progressbar=False, quiet=True, compute_convergence_checks=False,
        )  # fmt: skip
    posterior = sampled["posterior"].dataset
    assert int(sampled["sample_stats"]["diverging"].sum()) == 0
    hyper = fit.hyper.set_index("parameter")
    exact = {"path": (fit.paths["mean"], fit.paths["se"])}
    exact["tau"] = fit.estimates["effect_hat"], fit.estimates["se"]
    exact |= {name: (row["mean"], row["se"]) for name, row in hyper.iterrows()}
    for name, (mean, sd) in exact.items():
        draws = posterior[name]
        for kind, wanted in (("mean", mean), ("sd", sd)):
            error = np.ravel(az.mcse(draws.to_dataset(), method=kind)[name].values)
            found = np.ravel(getattr(draws, kind if kind == "mean" else "std")(("chain", "draw")))
            assert np.all(np.abs(found - np.ravel(wanted)) < K * error), (name, kind)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "message"),
    [
        ([0, 1, None, 3], "'period' must not be missing; 1 row breaks it, first creators: 'c2'"),
        ([0, 1, 2.5, 3], "'period' must be a whole number.*first creators: 'c2' .*2.5"),
        ([0, 1, np.inf, 3], "'period' must be a whole number.*'c2' .*inf"),
        (["0", "1", "2", "3"], "'period' must be a whole number.*its type is"),
        (pd.date_range("2024-01-01", periods=4), "'period' must be a whole number.*its type is"),
        ([202311, 202312, 202401, 202402], "looks like calendar months.*year \\* 12 \\+ month"),
        ([0, 1, 2, 10**6], "runs from 0 to 1000000, more than 2,000 periods"),
    ],
)
def test_periods_that_do_not_count_are_refused(period, message):
    data = pd.DataFrame(
        {
            "creator_id": ["c0", "c1", "c2", "c3"],
            "genre_idx": [0, 0, 1, 1],
            "period": period,
            "effect_hat": [0.1, 0.2, 0.3, 0.4],
            "se": 0.1,
        }
    )
    with pytest.raises(DataError, match=message):
        fit_drift_model(data)


def test_other_mistakes_are_refused(platform):
    with pytest.raises(DataError, match="missing column month"):
        fit_drift_model(platform, period="month")
    with pytest.raises(DataError, match="'se' must be greater than 0"):
        fit_drift_model(platform.assign(se=0.0))
    for rho in (1, -0.1, np.nan):
        with pytest.raises(ValueError, match="rho must be at least 0 and below 1"):
            AutoRegression(rho)
    for prior in (Normal(), Gamma()):
        with pytest.raises(TypeError, match="sigma_step needs a HalfNormal, HalfCauchy or Fixed"):
            fit_drift_model(platform, process=RandomWalk(prior))
    with pytest.raises(TypeError, match="sigma_genre needs a HalfNormal, HalfCauchy or Fixed"):
        fit_drift_model(platform, priors=Priors(sigma_genre=Gamma()))
    fit = fit_drift_model(platform)
    with pytest.raises(KeyError, match=r"unknown genres.*opera"):
        fit.predict(["opera"], [9])
    with pytest.raises(ValueError, match="se must not be negative"):
        fit.predict(["music"], [9], se=-1)
    with pytest.raises(ValueError, match="first period of the data is 0"):
        fit.predict(["music"], [-1])
    with pytest.raises(ValueError, match="ahead must be at least 1"):
        fit.forecast(0)
    with pytest.raises(ValueError, match="unknown hyperparameter 'sigma'"):
        fit.hyper_cdf("sigma", 1)


def test_a_fit_that_fails_its_check_is_refused(platform, monkeypatch):
    monkeypatch.setattr("hbm.drift.posterior.MAX_INTERVALS", 0)
    monkeypatch.setattr("hbm.drift.posterior.FIRST_INTERVALS", 8)
    with pytest.raises(DiagnosticsError, match="quadrature error of"):
        fit_drift_model(platform)
    assert not fit_drift_model(platform, check=False).diagnostics.ok
