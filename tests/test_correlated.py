"""The fit with correlated errors agrees with dense normals, the exact engine, and simulation."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from scipy.special import logsumexp

from hbm.checks import DataError
from hbm.covariance import StructuredCovariance
from hbm.diagnostics import DiagnosticsError, check_diagnostics
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact.correlated import (
    CorrelatedLikelihood,
    extract_correlated_estimates,
    extract_correlated_genres,
    fit_correlated_model,
)
from hbm.exact.draws import extract_hyper_estimates
from hbm.gaussian import Estimates
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, HalfCauchy, HalfNormal, Normal, Priors
from hbm.replicate import replicate

NUMBERS = ["effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage"]


def random_covariance(rng, n, rank=3, size=0.5):
    """A covariance with positive and negative shared parts, and its ids."""
    factor = size * rng.normal(size=(n, rank)) / np.sqrt(n)
    lean = 0.2 * rng.normal(size=(n, rank)) / np.sqrt(n)
    period = np.eye(rank) * 3
    zero = np.zeros((rank, rank))
    core = np.block([[period, -np.eye(rank)], [-np.eye(rank), zero]])
    ids = np.array([f"c{i}" for i in range(n)])
    parts = (rng.uniform(0.05, 0.4, n), np.hstack([factor, lean]), core)
    return StructuredCovariance.from_parts(ids, *parts), np.diag(parts[0]) + parts[1] @ core @ (
        parts[1].T
    )


def simulated(rng, shape=(6, 9, 5), **how):
    idx = rng.permutation(np.repeat(np.arange(len(shape)), shape))
    covariance, dense = random_covariance(rng, len(idx), **how)
    tau = rng.normal(rng.normal(0.4, 0.5, len(shape))[idx], 0.5)
    frame = pd.DataFrame(
        {
            "creator_id": covariance.creator_id,
            "genre_idx": idx,
            "effect_hat": rng.multivariate_normal(tau, dense),
            "se": np.sqrt(covariance.variance),
        }
    )
    return frame, covariance, tau


# ---------------------------------------------------------------------------- covariance


def test_structured_covariance_is_the_matrix_it_stands_for(rng):
    covariance, dense = random_covariance(rng, 12)
    np.testing.assert_allclose(covariance.dense(), dense, atol=1e-14)
    np.testing.assert_allclose(covariance.variance, dense.diagonal(), atol=1e-14)
    assert covariance.rank == 6
    assert (covariance.core < 0).any()
    some = np.array([7, 2, 5])
    np.testing.assert_allclose(covariance.take(some).dense(), dense[np.ix_(some, some)], atol=1e-14)
    assert list(covariance.take(some).creator_id) == ["c7", "c2", "c5"]
    np.testing.assert_allclose(covariance.scaled(3).dense(), 9 * dense, atol=1e-13)


def test_woodbury_inverts(rng):
    covariance, dense = random_covariance(rng, 12)
    v = 1 / (covariance.diagonal + 0.7)
    middle, log_ratio = covariance.woodbury(v)
    scaled = v[:, None] * covariance.factor
    whole = dense + 0.7 * np.eye(12)
    np.testing.assert_allclose(
        np.diag(v) - scaled @ middle @ scaled.T, np.linalg.inv(whole), atol=1e-12
    )
    assert log_ratio - np.log(v).sum() == pytest.approx(np.linalg.slogdet(whole)[1])


def test_redundant_columns_are_dropped(rng):
    factor = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 8))
    core = np.eye(8)
    covariance = StructuredCovariance.from_parts(np.arange(30), np.ones(30), factor, core)
    assert covariance.rank == 2
    np.testing.assert_allclose(covariance.dense(), np.eye(30) + factor @ factor.T, atol=1e-12)


def test_independent_estimates_share_nothing():
    covariance = StructuredCovariance.independent(["a", "b"], [0.5, 2.0])
    np.testing.assert_allclose(covariance.dense(), np.diag([0.25, 4.0]))
    assert covariance.rank == 0


def test_a_large_matrix_is_never_made():
    covariance = StructuredCovariance.independent(np.arange(6000), np.ones(6000))
    with pytest.raises(ValueError, match=r"6,000 creators give a matrix of 0\.3 GB"):
        covariance.dense()
    with pytest.raises(ValueError, match="diagonal: every value must be finite and greater"):
        StructuredCovariance.from_parts([1, 2], [1.0, 0.0], np.zeros((2, 0)), np.zeros((0, 0)))


# --------------------------------------------------------------------------------- exact


class Dense:
    """Everything given the two standard deviations, from one large normal."""

    def __init__(self, frame, covariance, priors):
        n, idx = len(frame), frame["genre_idx"].to_numpy()
        self.y, self.covariance, self.prior = frame["effect_hat"].to_numpy(), covariance, priors
        self.same, self.n = (idx[:, None] == idx).astype(float), n
        self.member = (idx[:, None] == np.arange(idx.max() + 1)).astype(float)

    def given(self, sigma_genre, sigma_creator):
        """Return log density, and mean and covariance of (tau, mu_genre, mu_global)."""
        mu = self.prior.mu_global
        genre, everyone = self.member, np.ones((self.n, 1))
        n_genres = genre.shape[1]
        mix = np.vstack(
            [
                np.hstack([np.eye(self.n), genre, everyone]),
                np.hstack([np.zeros((n_genres, self.n)), np.eye(n_genres), np.ones((n_genres, 1))]),
                np.hstack([np.zeros((1, self.n + n_genres)), np.ones((1, 1))]),
            ]
        )
        spread = np.repeat([sigma_creator**2, sigma_genre**2, mu.sigma**2], [self.n, n_genres, 1])
        prior = (mix * spread) @ mix.T
        total = prior[: self.n, : self.n] + self.covariance
        gain = prior[:, : self.n] @ np.linalg.inv(total)
        log_density = stats.multivariate_normal(np.full(self.n, mu.mu), total).logpdf(self.y)
        return log_density, mu.mu + gain @ (self.y - mu.mu), prior - gain @ prior[: self.n]


@pytest.mark.parametrize("sigmas", [(0.5, 0.4), (1e-6, 0.3), (0.7, 1e-4), (30.0, 20.0)])
def test_density_and_platform_mean_agree_with_a_dense_normal(rng, sigmas):
    frame, covariance, _ = simulated(rng)
    priors = Priors(Normal(0.2, 1.5))
    data = Estimates.from_frame(frame)
    likelihood = CorrelatedLikelihood(data, priors.mu_global, covariance.take(data.order))
    sums = likelihood.sums(np.array([sigmas[1]]))
    found = [float(part[0, 0]) for part in likelihood.given(sums, np.array([[sigmas[0]]]))]
    log_density, mean, var = Dense(frame, covariance.dense(), priors).given(*sigmas)
    assert found == pytest.approx([log_density, mean[-1], var[-1, -1]], rel=1e-8)


@pytest.mark.parametrize(
    "priors",
    [
        Priors(Normal(0.2, 1.5), Fixed(0.5), Fixed(0.4)),
        Priors(Normal(0.2, 1.5), Fixed(0.0), Fixed(0.7)),
    ],
)
def test_creators_and_genres_agree_with_a_dense_normal_where_sigmas_are_known(rng, priors):
    frame, covariance, _ = simulated(rng)
    idata = fit_correlated_model(frame, covariance, priors=priors)
    dense = Dense(frame, covariance.dense(), priors)
    _, mean, var = dense.given(priors.sigma_genre.value, priors.sigma_creator.value)
    estimates = extract_correlated_estimates(idata, frame)
    np.testing.assert_allclose(estimates["effect_hat"], mean[:20], atol=1e-9)
    np.testing.assert_allclose(estimates["se"], np.sqrt(var.diagonal()[:20]), rtol=1e-9)
    half = 1.959963984540054 * estimates["se"]
    np.testing.assert_allclose(estimates["ci_lower"], mean[:20] - half, atol=1e-8)
    p_positive = stats.norm.cdf(mean[:20] / np.sqrt(var.diagonal()[:20]))
    np.testing.assert_allclose(estimates["p_positive"], p_positive, atol=1e-9)
    genres = extract_correlated_genres(idata)
    np.testing.assert_allclose(genres["mean"], mean[20:23], atol=1e-9)
    np.testing.assert_allclose(genres["se"], np.sqrt(var.diagonal()[20:23]), rtol=1e-9)


def test_the_whole_posterior_agrees_with_brute_force(rng):
    """A fine grid over both sigmas, dense normals at its nodes."""
    frame, covariance, _ = simulated(rng)
    priors = Priors(Normal(0, 1), HalfNormal(0.8), HalfCauchy(0.6))
    idata = fit_correlated_model(frame, covariance, priors=priors)
    # All is even in both sigmas, so that the trapezoidal rule converges fast from 0 on.
    genre, creator = np.linspace(0, 6, 61), np.linspace(0, 4, 51)
    dense, matrix, moments = Dense(frame, covariance.dense(), priors), [], []
    for x in genre:
        for y in creator:
            log_density, mean, var = dense.given(x, y)
            prior = priors.sigma_genre.scipy().logpdf(x) + priors.sigma_creator.scipy().logpdf(y)
            half = np.log(2) * (int(x == 0) + int(y == 0))
            matrix.append(log_density + prior - half)
            moments.append((mean, var.diagonal()))
    matrix = np.array(matrix) + np.log(genre[1] * creator[1])
    evidence = logsumexp(matrix)
    weight = np.exp(matrix - evidence)
    mean, var = (np.array(part) for part in zip(*moments, strict=True))
    overall = weight @ mean
    sd = np.sqrt(weight @ (var + np.square(mean - overall)))
    assert idata.attrs["log_marginal_likelihood"] == pytest.approx(evidence, abs=1e-6)
    estimates = extract_correlated_estimates(idata, frame)
    np.testing.assert_allclose(estimates["effect_hat"], overall[:20], atol=1e-6)
    np.testing.assert_allclose(estimates["se"], sd[:20], rtol=1e-6)
    genres = extract_correlated_genres(idata)
    np.testing.assert_allclose(genres["mean"], overall[20:23], atol=1e-6)
    np.testing.assert_allclose(genres["se"], sd[20:23], rtol=1e-6)
    hyper = extract_hyper_estimates(idata).set_index("parameter")
    assert hyper.loc["mu_global", "mean"] == pytest.approx(overall[-1], abs=1e-6)
    assert hyper.loc["mu_global", "se"] == pytest.approx(sd[-1], rel=1e-6)


@pytest.mark.parametrize(
    "shape", [(6, 9, 5), (100,) * 5, (1,) * 30, (40,)], ids=["small", "default", "alone", "one"]
)
def test_without_correlation_it_is_the_exact_engine(rng, shape):
    frame, _, _ = simulated(rng, shape)
    frame["genre"] = [f"g{i:02d}" for i in frame["genre_idx"]]
    priors = Priors() if len(shape) > 1 else Priors(sigma_genre=Fixed(0))
    independent = StructuredCovariance.independent(frame["creator_id"], frame["se"])
    ours = fit_correlated_model(frame, independent, priors=priors)
    theirs = fit_hierarchical_model(frame, engine="exact", draws=0, priors=priors)
    mine, exact = extract_correlated_estimates(ours, frame), extract_hbm_estimates(theirs, frame)
    np.testing.assert_allclose(mine[NUMBERS], exact[NUMBERS], atol=2e-6)
    assert list(mine.columns) == list(exact.columns)
    assert list(mine["genre"]) == list(exact["genre"])
    mine, exact = extract_correlated_genres(ours), extract_genre_estimates(theirs)
    assert list(mine.columns) == list(exact.columns)
    np.testing.assert_allclose(mine.iloc[:, 1:], exact.iloc[:, 1:].astype(float), atol=2e-6)
    evidence = [fit.attrs["log_marginal_likelihood"] for fit in (ours, theirs)]
    assert evidence[0] == pytest.approx(evidence[1], abs=1e-6)


def test_order_names_and_units_change_nothing(rng):
    frame, covariance, _ = simulated(rng)
    base = extract_correlated_estimates(fit_correlated_model(frame, covariance), frame)
    mixed = frame.sample(frac=1, random_state=1)
    mixed = mixed.assign(
        genre_idx=2 - mixed["genre_idx"],
        effect_hat=100 * mixed["effect_hat"],
        se=100 * mixed["se"],
    )
    priors = Priors(Normal(0, 100), HalfNormal(100), HalfNormal(100))
    idata = fit_correlated_model(mixed, covariance.scaled(100), priors=priors)
    other = extract_correlated_estimates(idata, mixed).set_index("creator_id")
    other = other.loc[base["creator_id"]]
    for name in ("effect_hat", "se", "ci_lower", "ci_upper"):
        np.testing.assert_allclose(other[name], 100 * base[name], atol=1e-4)
    np.testing.assert_allclose(other["p_positive"], base["p_positive"], atol=1e-6)


def test_far_from_zero_no_digit_is_lost(rng):
    frame, covariance, _ = simulated(rng)
    base = extract_correlated_estimates(fit_correlated_model(frame, covariance), frame)
    far = frame.assign(effect_hat=frame["effect_hat"] + 1e6)
    idata = fit_correlated_model(far, covariance, priors=Priors(Normal(1e6, 1.0)))
    other = extract_correlated_estimates(idata, far)
    np.testing.assert_allclose(other["effect_hat"] - 1e6, base["effect_hat"], atol=1e-6)
    np.testing.assert_allclose(other["se"], base["se"], rtol=1e-6)


# --------------------------------------------------------------------- readouts and refusals


def _held(rng, correlated):
    """Two genres of 12 creators whose errors have a part in common."""
    genre_idx, ids = np.repeat([0, 1], 12), np.arange(24)
    diagonal, shared = rng.uniform(0.05, 0.4, 24), rng.uniform(0.2, 0.4, (24, 1))
    covariance = StructuredCovariance.from_parts(ids, diagonal, shared, [[1.0]])
    mu = rng.normal(0.0, 0.5, 2)
    tau = rng.normal(mu[genre_idx], 0.4)
    errors = rng.normal(size=24) * np.sqrt(diagonal) + shared[:, 0] * rng.normal()
    frame = pd.DataFrame({"creator_id": ids, "genre_idx": genre_idx, "effect_hat": tau + errors})
    frame["se"] = np.sqrt(covariance.variance)
    if not correlated:
        covariance = StructuredCovariance.independent(ids, frame["se"])
    priors = Priors(Normal(0, 0.01), Fixed(0.5), Fixed(0.4))  # the truth, so that 95% is exact
    idata = fit_correlated_model(frame, covariance, priors=priors)
    creators, genres = extract_correlated_estimates(idata, frame), extract_correlated_genres(idata)
    own = (creators["ci_lower"] <= tau) & (tau <= creators["ci_upper"])
    return own.mean(), np.mean((genres["lower"] <= mu) & (mu <= genres["upper"]))


def test_intervals_cover_with_the_correlation_and_not_without():
    with_it = np.array(replicate(_held, 250, seed=3, correlated=True))
    error = with_it.std(axis=0, ddof=1) / np.sqrt(250)
    assert np.all(np.abs(with_it.mean(axis=0) - 0.95) < K * error)
    without = np.array(replicate(_held, 250, seed=3, correlated=False))
    assert without[:, 1].mean() < 0.9
    assert without[:, 0].mean() < 0.95 - K * error[0]


def test_creators_are_matched_by_id(rng):
    frame, covariance, _ = simulated(rng)
    base = extract_correlated_estimates(fit_correlated_model(frame, covariance), frame)
    shuffled = covariance.take(rng.permutation(20))
    other = extract_correlated_estimates(fit_correlated_model(frame, shuffled), frame)
    np.testing.assert_allclose(other[NUMBERS], base[NUMBERS], atol=1e-9)
    fewer = frame.iloc[:12].assign(genre_idx=pd.factorize(frame["genre_idx"].iloc[:12])[0])
    assert len(extract_correlated_estimates(fit_correlated_model(fewer, covariance), fewer)) == 12


def test_what_does_not_fit_is_refused(rng):
    frame, covariance, _ = simulated(rng)
    stranger = frame.assign(creator_id=frame["creator_id"].replace("c3", "x"))
    with pytest.raises(DataError, match="1 creators of the summaries have none, first: 'x'"):
        fit_correlated_model(stranger, covariance)
    # A variance passed for a standard error, or errors that were scaled and their matrix not.
    for wrong in (frame["se"] ** 2, 1.5 * frame["se"]):
        with pytest.raises(DataError, match="'se' must be the square root of the covariance's"):
            fit_correlated_model(frame.assign(se=wrong), covariance)
    idata = fit_correlated_model(frame, covariance)
    for name, value in (
        ("effect_hat", frame["effect_hat"] + 1),
        ("se", 3 * frame["se"]),
        ("genre_idx", np.roll(frame["genre_idx"], 1)),
    ):
        with pytest.raises(ValueError, match=f"fitted to another {name} than the summaries hold"):
            extract_correlated_estimates(idata, frame.assign(**{name: value}))
    with pytest.raises(ValueError, match="belongs to other creators"):
        extract_correlated_estimates(idata, stranger)


def test_diagnostics_check_the_quadrature(rng):
    frame, covariance, _ = simulated(rng)
    idata = fit_correlated_model(frame, covariance)
    assert check_diagnostics(idata).ok
    idata.attrs["quadrature_errors"] = {"mu_global": 1e-3}
    with pytest.raises(DiagnosticsError, match="quadrature error of mu_global"):
        extract_correlated_estimates(idata, frame)
    assert len(extract_correlated_estimates(idata, frame, check=False)) == 20


@pytest.mark.slow
def test_many_creators_go_without_their_matrix(rng):
    """20,000 creators: the matrix would take 3.2 GB."""
    n = 20_000
    factor = rng.normal(size=(n, 4)) * 0.05
    covariance = StructuredCovariance.from_parts(
        np.arange(n), rng.uniform(0.05, 0.4, n), factor, np.eye(4)
    )
    idx = np.arange(n) % 10
    tau = rng.normal(rng.normal(0.4, 0.3, 10)[idx], 0.4)
    noise = rng.normal(size=n) * np.sqrt(covariance.diagonal) + factor @ rng.normal(size=4)
    frame = pd.DataFrame(
        {
            "creator_id": np.arange(n),
            "genre_idx": idx,
            "effect_hat": tau + noise,
            "se": np.sqrt(covariance.variance),
        }
    )
    tracemalloc.start()
    idata = fit_correlated_model(frame, covariance)
    found = extract_correlated_estimates(idata, frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e9
    # What creators share is known from so many of them that their errors are next to independent,
    # but for sigma_creator, with which all widths vary: at most in proportion.
    covered = np.mean((found["ci_lower"] <= tau) & (tau <= found["ci_upper"]))
    sigma = extract_hyper_estimates(idata).set_index("parameter").loc["sigma_creator"]
    end = stats.norm.isf(0.025)
    by_width = 2 * end * stats.norm.pdf(end) * sigma["se"] / sigma["mean"]
    assert abs(covered - 0.95) < K * np.hypot(np.sqrt(0.95 * 0.05 / n), by_width)
