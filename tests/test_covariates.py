"""Slopes integrated out are what one dense normal with the slopes as sources gives."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from test_exact import PROMISED, WIDE, Dense, exact, simulated

from hbm.checks import DataError
from hbm.diagnostics import check_diagnostics
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact import extract_slope_estimates, predict_effects
from hbm.exact.draws import draw_effects, extract_hyper_estimates
from hbm.exact.loo import leave_one_genre_out, loo_exact
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, Normal, Priors
from hbm.studies import simulate_summaries
from hbm.validation import compare_estimators

COVARIATES = ["size", "age"]
CLOSE = 1e-6


class DenseWithSlopes(Dense):
    """The dense normal with two more sources, the slopes."""

    def __init__(self, summaries, priors, rows=slice(None)):
        x = summaries[COVARIATES].to_numpy()
        self.x = ((x - x.mean(axis=0)) / x.std(axis=0))[rows]
        self.slope = priors.slope.sigma
        kept = summaries[rows]
        idx = np.unique(kept["genre_idx"], return_inverse=True)[1]
        super().__init__(kept.assign(genre_idx=idx), priors, step=0.15)

    def sources(self, block):
        slopes = np.full((len(self.sigma_genre[block]), self.x.shape[1]), self.slope**2)
        return np.hstack([super().sources(block), slopes])

    @property
    def tau_rows(self):
        return np.hstack([super().tau_rows, self.x])

    @property
    def mu_rows(self):
        rows = super().mu_rows
        return np.hstack([rows, np.zeros((len(rows), self.x.shape[1]))])

    @property
    def slope_rows(self):
        return np.eye(self.tau_rows.shape[1])[-self.x.shape[1] :]


def with_covariates(rng, shape, slopes=(0.7, -0.3)):
    summaries = simulated(rng, shape)
    x = rng.normal(size=(len(summaries), 2))
    x[:, 1] += 0.5 * summaries["genre_idx"]  # goes with the genre too
    return summaries.assign(
        size=3 + 2 * x[:, 0], age=x[:, 1], effect_hat=summaries["effect_hat"] + x @ slopes
    )


CASES = {
    "three genres": ([4, 1, 7], Priors()),
    "one genre": ([9], replace(WIDE, slope=Normal(0, 0.3))),
    "one creator a genre": ([1] * 9, Priors()),
    "no grouping": ([3, 2, 6], Priors(sigma_genre=Fixed(0))),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    shape, priors = CASES[request.param]
    rng = np.random.default_rng(sorted(CASES).index(request.param))
    summaries = with_covariates(rng, shape)
    fit = exact(summaries, priors=priors, covariates=COVARIATES)
    return summaries, fit, DenseWithSlopes(summaries, priors)


def test_effects_equal_the_dense_normal(case):
    summaries, fit, dense = case
    mean, sd, cdf = dense.overall(dense.tau_rows)
    found = extract_hbm_estimates(fit, summaries)
    np.testing.assert_allclose((found["effect_hat"] - mean) / sd, 0, atol=PROMISED)
    np.testing.assert_allclose(found["se"] / sd, 1, atol=PROMISED)
    np.testing.assert_allclose(cdf(found["ci_lower"].to_numpy()), 0.025, atol=PROMISED)
    np.testing.assert_allclose(cdf(found["ci_upper"].to_numpy()), 0.975, atol=PROMISED)
    np.testing.assert_allclose(found["p_positive"], 1 - cdf(0.0), atol=PROMISED)


def test_genres_and_hyperparameters_and_evidence_equal_the_dense_normal(case):
    _, fit, dense = case
    assert check_diagnostics(fit).ok
    assert fit.attrs["log_marginal_likelihood"] == pytest.approx(dense.log_evidence, abs=PROMISED)
    genres = extract_genre_estimates(fit)
    mean, sd, cdf = dense.overall(dense.mu_rows)
    np.testing.assert_allclose((genres["mean"] - mean) / sd, 0, atol=PROMISED)
    np.testing.assert_allclose(genres["se"] / sd, 1, atol=PROMISED)
    np.testing.assert_allclose(cdf(genres["upper"].to_numpy()), 0.975, atol=PROMISED)
    hyper = extract_hyper_estimates(fit).set_index("parameter")
    mean, sd = dense.of(dense.sigma_creator)
    assert hyper["mean"]["sigma_creator"] == pytest.approx(mean, abs=PROMISED * sd)
    assert hyper["se"]["sigma_creator"] == pytest.approx(sd, abs=PROMISED * sd)


def test_slopes_equal_the_dense_normal(case):
    summaries, fit, dense = case
    found = extract_slope_estimates(fit)
    mean, sd, cdf = dense.overall(dense.slope_rows)
    assert found["covariate"].tolist() == COVARIATES
    np.testing.assert_allclose((found["mean"] - mean) / sd, 0, atol=PROMISED)
    np.testing.assert_allclose(found["se"] / sd, 1, atol=PROMISED)
    np.testing.assert_allclose(cdf(found["lower"].to_numpy()), 0.025, atol=PROMISED)
    np.testing.assert_allclose(found["p_positive"], 1 - cdf(0.0), atol=PROMISED)
    np.testing.assert_allclose(found["covariate_sd"], summaries[COVARIATES].std(ddof=0))


def test_draws_have_the_exact_moments(case):
    _, fit, dense = case
    drawn = draw_effects(fit, draws=5000, chains=2, random_seed=1)
    for name, rows in (("tau", dense.tau_rows), ("mu_genre", dense.mu_rows)):
        mean, sd, _ = dense.overall(rows)
        values = drawn[name].values.reshape(10_000, -1)
        assert np.all(np.abs(values.mean(axis=0) - mean) < K * sd / 100)
        squared = np.square(values - mean)
        error = squared.std(axis=0) / 100
        assert np.all(np.abs(squared.mean(axis=0) - sd**2) < K * error)


def test_leaving_out_equals_fitting_without(rng):
    priors, summaries = Priors(), with_covariates(rng, [3, 1, 5])
    fit = exact(summaries, priors=priors, covariates=COVARIATES)
    whole = DenseWithSlopes(summaries, priors)
    found = loo_exact(fit).pointwise["elpd"]
    alone = int(np.flatnonzero(summaries["genre_idx"] == 1)[0])
    for i in {0, alone}:
        rest = DenseWithSlopes(summaries, priors, rows=summaries.index != i)
        assert found[i] == pytest.approx(whole.log_evidence - rest.log_evidence, abs=CLOSE)
    by_genre = leave_one_genre_out(fit)
    rest = DenseWithSlopes(summaries, priors, rows=(summaries["genre_idx"] != 2).to_numpy())
    assert by_genre["elpd_joint"][2] == pytest.approx(
        whole.log_evidence - rest.log_evidence, abs=CLOSE
    )


def test_predictions_are_those_of_a_creator_without_data(rng):
    summaries = with_covariates(rng, [4, 5])
    fit = exact(summaries, covariates=COVARIATES)
    new = pd.DataFrame({"size": [5.0, 1.0], "age": [0.2, -1.0]})
    found = predict_effects(fit, ["1", None], covariates=new)
    x = summaries[COVARIATES]
    z = ((new - x.mean()) / x.std(ddof=0)).to_numpy()
    dense = DenseWithSlopes(summaries, Priors())
    g, n = 2, len(summaries)
    rows = np.zeros((2, dense.tau_rows.shape[1]))
    rows[:, 0], rows[0, 1 + 1], rows[:, -2:] = 1, 1, z
    mean, var = dense.moments(rows)
    var = var + dense.sigma_creator[:, None] ** 2
    var[:, 1] += dense.sigma_genre**2
    center = dense.weight @ mean
    np.testing.assert_allclose(found["effect_hat"], center, atol=1e-6)
    spread = dense.weight @ (np.square(mean - center) + var)
    np.testing.assert_allclose(found["se"], np.sqrt(spread), rtol=1e-6)
    assert rows.shape[1] == 1 + g + n + 2
    with pytest.raises(DataError, match="missing column age"):
        predict_effects(fit, ["1"], covariates=new[["size"]])
    with pytest.raises(DataError, match="one row a new creator is needed, got 1 rows for 2"):
        predict_effects(fit, ["1", None], covariates=new.head(1))
    with pytest.raises(DataError, match=r"'age' must be a finite number; 1 creators .* first: 1$"):
        predict_effects(fit, ["1", None], covariates=new.assign(age=[0.2, np.nan]))
    with pytest.raises(ValueError, match="covariates: the fit has none"):
        predict_effects(exact(summaries), ["1", None], covariates=new)


def test_units_and_origins_of_covariates_and_effects_do_not_matter(rng):
    summaries = with_covariates(rng, [6, 5, 7])
    base = extract_hbm_estimates(exact(summaries, covariates=COVARIATES), summaries)
    moved = summaries.assign(size=-1e4 * summaries["size"] + 1e7)
    again = extract_hbm_estimates(exact(moved, covariates=COVARIATES), moved)
    np.testing.assert_allclose(again["effect_hat"], base["effect_hat"], atol=1e-9)
    far = summaries.assign(effect_hat=summaries["effect_hat"] + 1e6)
    priors = Priors(mu_global=Normal(1e6, 1))
    shifted = extract_hbm_estimates(exact(far, covariates=COVARIATES, priors=priors), far)
    np.testing.assert_allclose(shifted["effect_hat"] - 1e6, base["effect_hat"], atol=1e-7)
    np.testing.assert_allclose(shifted["se"], base["se"], atol=1e-7)


def test_a_slope_of_prior_zero_is_the_model_without(rng):
    summaries = with_covariates(rng, [6, 5, 7])
    nailed = exact(summaries, covariates=COVARIATES, priors=Priors(slope=Normal(0, 1e-9)))
    plain = exact(summaries)
    assert nailed.attrs["log_marginal_likelihood"] == pytest.approx(
        plain.attrs["log_marginal_likelihood"], abs=1e-9
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": np.nan}, "covariate 'size' must be a finite number; 9 creators break it, first"),
        ({"age": "young"}, "covariate 'age' must be a finite number"),
        ({"size": 2.0}, "covariate 'size' must not be the same for all creators"),
    ],
)
def test_bad_covariates_are_named(rng, change, message):
    summaries = with_covariates(rng, [4, 5]).assign(**change)
    with pytest.raises(DataError, match=message):
        exact(summaries, covariates=COVARIATES)


def test_what_cannot_be_asked(rng):
    summaries = with_covariates(rng, [4, 5])
    with pytest.raises(DataError, match="missing column followers"):
        exact(summaries, covariates=["followers"])
    with pytest.raises(ValueError, match='need engine="exact"'):
        fit_hierarchical_model(summaries, covariates=COVARIATES)
    with pytest.raises(ValueError, match="no covariates"):
        extract_slope_estimates(exact(summaries))


def falling_with_size(rng, slope=-0.2, n=100):
    summaries, truth = simulate_summaries(rng, n_creators_per_genre=n)
    log_n = np.log(summaries["n_total"].to_numpy())
    moved = slope * (log_n - log_n.mean()) / log_n.std()
    summaries = summaries.assign(effect_hat=summaries["effect_hat"] + moved, log_n=log_n)
    return summaries, truth | {"creator_effects": truth["creator_effects"] + moved}


def test_a_covariate_cures_the_bias_of_small_creators():
    bias = {"without": [], "with log n": []}
    for seed in range(8):
        summaries, truth = falling_with_size(np.random.default_rng([seed, 5]))
        for name, covariates in (("without", ()), ("with log n", ["log_n"])):
            fit = exact(summaries, covariates=covariates)
            scores = compare_estimators({name: extract_hbm_estimates(fit, summaries)}, truth)
            bias[name].append(scores.set_index("size_bin")["bias"]["n < 100"])
    sem = {name: stats.sem(values) for name, values in bias.items()}
    assert abs(np.mean(bias["with log n"])) < K * sem["with log n"]
    assert np.mean(bias["without"]) < -K * sem["without"]  # pulled to the large ones' lower mean
