"""Calibration: right posteriors pass, planted errors are caught, and each number is checked."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats

from hbm import planted, sbc
from hbm.checks import DataError
from hbm.exact import draw_effects
from hbm.gaussian import Hyper
from hbm.model import fit_hierarchical_model
from hbm.planted import FAULTS, scaled_se, smallest_detectable_error
from hbm.priors import Fixed, HalfCauchy, Normal, Priors
from hbm.sbc import QUANTITIES, Calibration, run_sbc, run_user_sbc, sbc_verdicts
from hbm.studies import simulate_summaries

#: Probability of K Monte Carlo errors: as rarely does a right posterior fail here.
LEVEL = 1 - 2 * stats.norm.sf(K)
PARAMETERS, DENSITIES = QUANTITIES[:-2], QUANTITIES[-2:]


def failed(calibration, level=LEVEL):
    table = sbc_verdicts(calibration, level)
    return set(table.loc[~table["uniform"], "quantity"])


@pytest.fixture(scope="module")
def design():
    """Three genres of two creators, in no order, so that a wrong unsorting shows."""
    summaries, _ = simulate_summaries(42, genres=("a", "b", "c"), n_creators_per_genre=2)
    return summaries.sample(frac=1, random_state=4).reset_index(drop=True)


@pytest.fixture(scope="module")
def large():
    return simulate_summaries(42)[0]


@pytest.fixture(scope="module")
def right(design):
    return run_sbc(design, 100)


@pytest.fixture(scope="module")
def compiled():
    """Every model that a run of NUTS has compiled."""
    return []


@pytest.fixture(scope="module")
def sampled(design, compiled):
    import nutpie

    def compile_model(*args):
        compiled.append(compile_as_ever(*args))
        return compiled[-1]

    compile_as_ever = nutpie.compile_pymc_model
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nutpie, "compile_pymc_model", compile_model)
        return run_sbc(design, 40, engine="nuts")


# --- right posteriors -----------------------------------------------------------------------


def test_the_exact_engine_is_calibrated_at_3_genres_x_2(right):
    assert failed(right) == set()
    assert right.fits["quadrature_error"].max() <= 1e-6


def test_the_exact_engine_is_calibrated_at_500_creators(large):
    assert failed(run_sbc(large, 40)) == set()


def test_nuts_is_calibrated(sampled):
    assert failed(sampled) == set()
    assert sampled.fits["divergences"].sum() == 0


@pytest.mark.slow
def test_nuts_is_calibrated_at_500_creators(large):
    assert failed(run_sbc(large, 100, engine="nuts")) == set()


def test_both_engines_rank_the_same_truths_alike(right, sampled):
    """Distribution functions against shares of draws, for the same truths and data."""
    exact, nuts = right.ranks.head(len(sampled.ranks)), sampled.ranks
    error = np.sqrt(exact * (1 - exact)).div(np.sqrt(sampled.fits["ranked_draws"]), axis=0)
    z = (nuts - exact)[list(PARAMETERS)] / (error + 1 / 200)[list(PARAMETERS)]
    assert np.abs(z.to_numpy()).max() < K
    # Both densities are ranked among draws of the exact engine too.
    z = (nuts - exact)[list(DENSITIES)] / (1.5 * error + 1 / 200)[list(DENSITIES)]
    assert np.abs(z.to_numpy()).max() < K


# --- planted errors -------------------------------------------------------------------------


def assert_caught(design, name, by, *, n=40, only=None, engine="exact"):
    """Some quantities notice the error at 95%; others, if only some can, do not fail."""
    calibration = run_sbc(design, n, fault=FAULTS[name], engine=engine)
    assert set(by) <= failed(calibration, 0.95)
    assert failed(calibration) <= set(QUANTITIES if only is None else only)


def test_a_variance_for_a_standard_deviation_is_caught(design, large):
    for some in (design, large):
        assert_caught(some, "variance for sd", ["tau_largest", "log_p_given_tau"])


def test_a_wrong_genre_index_is_caught(design, large):
    for some in (design, large):
        assert_caught(some, "wrong genre index", ["sigma_creator", "log_p_given_hyper"])


def test_swapped_genre_names_are_caught_by_the_genre_mean_alone(design, large):
    for some in (design, large):
        assert_caught(some, "genre names swapped", ["mu_genre"], only=["mu_genre"])


def test_a_prior_off_by_a_factor_is_caught(design):
    assert_caught(design, "priors too wide", ["sigma_genre"], n=250)


def test_half_of_the_data_ignored_is_caught_by_the_densities_alone(design, large):
    assert_caught(design, "half of the data ignored", DENSITIES, only=DENSITIES)
    assert_caught(large, "half of the data ignored", ["log_p_given_tau"], only=DENSITIES)


def test_a_posterior_that_is_the_prior_is_caught_by_the_densities_alone(design):
    assert_caught(design, "posterior = prior", DENSITIES, only=DENSITIES)


@pytest.mark.slow
def test_an_error_is_caught_in_nuts_too(design):
    name = "half of the data ignored"
    assert_caught(design, name, DENSITIES, only=DENSITIES, engine="nuts")


def test_ignored_data_are_those_that_are_not_there(design):
    priors = Priors()
    half, _ = planted.half_ignored(design, priors)
    kept = design[["creator_id", "genre_idx", "se"]].iloc[::2].reset_index(drop=True)
    if set(kept["genre_idx"]) != {0, 1, 2}:
        kept["genre_idx"] = pd.factorize(kept["genre_idx"], sort=True)[0]
    effects = np.random.default_rng(1).normal(0.5, 0.7, len(design))
    some, fewer = (
        fit_hierarchical_model(frame.assign(effect_hat=values), engine="exact", draws=0)
        for frame, values in ((half.drop(columns="genre"), effects), (kept, effects[::2]))
    )
    nothing, _ = planted.all_ignored(design, priors)
    nothing = fit_hierarchical_model(nothing.assign(effect_hat=effects), engine="exact", draws=0)
    for name in ("mu_global", "sigma_genre", "sigma_creator"):
        density = getattr(priors, name).scipy()
        for x in density.ppf([0.1, 0.5, 0.9]):
            assert sbc.hyper_cdf(some, name, x) == pytest.approx(
                sbc.hyper_cdf(fewer, name, x), abs=1e-5
            )
            assert sbc.hyper_cdf(nothing, name, x) == pytest.approx(density.cdf(x), abs=1e-5)


def test_the_other_errors_are_what_they_are_called(large):
    priors = Priors()
    se = large["se"].to_numpy()
    np.testing.assert_allclose(planted.variance_for_sd(large, priors)[0]["se"], se**2)
    np.testing.assert_allclose(scaled_se(large, priors, 1.1)[0]["se"], 1.1 * se)
    moved = planted.wrong_genres(large, priors)[0]["genre_idx"] != large["genre_idx"]
    assert moved.mean() == 0.5
    swapped = planted.swapped_genres(large, priors)[0]["genre_idx"]
    assert pd.crosstab(swapped, large["genre_idx"]).to_numpy().max(axis=1).tolist() == [100] * 5
    assert (swapped != large["genre_idx"]).all()
    unequal = Priors(sigma_genre=HalfCauchy(3.0))
    same, wide = planted.wide_priors(large, unequal)
    assert same is large
    assert (wide.sigma_genre, wide.sigma_creator.sigma) == (HalfCauchy(6.0), 2.0)
    assert wide.mu_global == unequal.mu_global


# --- every number ---------------------------------------------------------------------------


def test_truths_and_data_are_those_of_the_model(design):
    priors = Priors(mu_global=Normal(3.0, 0.5))
    data = sbc._as_design(design)
    pairs = [sbc.simulate_joint(np.random.default_rng([7, i]), data, priors) for i in range(2000)]
    truths = [truth for truth, _ in pairs]
    hyper = Hyper(
        *(np.concatenate(values) for values in zip(*(t.hyper for t in truths), strict=True))
    )
    mu_genre, tau = (np.concatenate([t[i] for t in truths]) for i in (1, 2))
    effect_hat = np.array([frame["effect_hat"] for _, frame in pairs])
    for name, values in hyper._asdict().items():
        assert stats.kstest(values, getattr(priors, name).scipy().cdf).pvalue > 1e-4
    within = mu_genre[:, design["genre_idx"]]
    for z in (
        (mu_genre - hyper.mu_global[:, None]) / hyper.sigma_genre[:, None],
        (tau - within) / hyper.sigma_creator[:, None],
        (effect_hat - tau) / design["se"].to_numpy(),
    ):
        assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4
        off_diagonal = np.corrcoef(z.T)[np.triu_indices(z.shape[1], 1)]
        assert np.abs(off_diagonal).max() < K / np.sqrt(2000)


def test_the_log_densities_are_those_of_the_model(design):
    data = sbc._as_design(design)
    truth, data = sbc.simulate_joint(np.random.default_rng(3), data, Priors())
    other, _ = sbc.simulate_joint(np.random.default_rng(4), data, Priors())
    d, se, genre_idx = (data[name].to_numpy() for name in ("effect_hat", "se", "genre_idx"))
    found, expected = {}, {}
    for key, joint in (("truth", truth), ("other", other)):
        mu, sigma_genre, sigma_creator = (float(value[0]) for value in joint.hyper)
        same = genre_idx[:, None] == genre_idx
        covariance = np.diag(sigma_creator**2 + se**2) + sigma_genre**2 * same
        given_hyper = stats.multivariate_normal(np.full(len(d), mu), covariance).logpdf(d)
        expected[key] = given_hyper, stats.norm(joint.tau[0], se).logpdf(d).sum()
        values = sbc._quantities(data, joint)
        found[key] = tuple(float(values[name][0]) for name in DENSITIES)
    assert found["truth"][0] == pytest.approx(expected["truth"][0])
    difference = np.subtract(found["truth"], found["other"])
    np.testing.assert_allclose(difference, np.subtract(expected["truth"], expected["other"]))


def test_distribution_functions_agree_with_draws(design, large):
    n = 4000
    for some in (design, large.groupby("genre_idx").head(20)):
        data = sbc._as_design(some)
        rng = np.random.default_rng(11)
        truth, data = sbc.simulate_joint(rng, data, Priors())
        ranks, _ = sbc.rank_exactly(rng, truth, data, data, Priors(), 50)
        idata = fit_hierarchical_model(data, engine="exact", draws=0)
        drawn = draw_effects(idata, draws=n, chains=1, random_seed=1)
        joint = sbc.Joint(
            sbc.hyper_draws(drawn), drawn["mu_genre"].values[0], drawn["tau"].values[0]
        )
        true, draws = sbc._quantities(data, truth), sbc._quantities(data, joint)
        for name in PARAMETERS:
            share = (draws[name] < true[name]).mean()
            error = np.sqrt(ranks[name] * (1 - ranks[name]) / n)
            assert abs(share - ranks[name]) < K * error + 1 / n, name


def test_smallest_and_largest_creator_are_those_of_the_design(design):
    smallest, largest = sbc._extremes(design)
    assert design["n_total"].idxmin() == smallest
    assert design["n_total"].idxmax() == largest


def test_a_longer_study_begins_with_the_shorter_one(design, right):
    pd.testing.assert_frame_equal(run_sbc(design, 3).ranks, right.ranks.head(3))
    assert not run_sbc(design, 3, seed=1).ranks.equals(right.ranks.head(3))


# --- NUTS -----------------------------------------------------------------------------------


def test_the_model_is_compiled_once(sampled, compiled):
    assert len(sampled.ranks) == 40
    assert len(compiled) == 1


def test_draws_are_thinned_to_effectively_independent_ones(design, monkeypatch):
    """Exact draws, each repeated five times: ranks among all would be those of a fifth."""
    import xarray as xr

    def sticky(frame, *, random_seed, **settings):
        idata = fit_hierarchical_model(frame, engine="exact", draws=0)
        drawn = draw_effects(idata, draws=100, chains=4, random_seed=random_seed)
        drawn = drawn.isel(draw=np.repeat(np.arange(100), 5))
        stats_ = xr.Dataset({"diverging": (("chain", "draw"), np.zeros((4, 500), bool))})
        return xr.DataTree.from_dict({"posterior": drawn, "sample_stats": stats_})

    monkeypatch.setattr(sbc, "fit_hierarchical_model", sticky)
    data, rng = sbc._as_design(design), np.random.default_rng(2)
    settings = {"design": data, "given": data, "draws": 500, "tune": 1, "chains": 4}
    settings |= {"priors": Priors(), "given_priors": Priors()}
    fits = [sbc._nuts_replication(rng, **settings)[1] for _ in range(5)]
    for fit in fits:
        assert 200 < fit["min_ess"] < 500
        assert fit["ranked_draws"] <= fit["min_ess"] + 4
        assert fit["max_rhat"] < 1.05


# --- estimated standard errors --------------------------------------------------------------


@pytest.fixture(scope="module")
def by_variance():
    sizes = {"size_mixture": ((1.0, 20, 21),), "n_creators_per_genre": 40}
    return {name: run_user_sbc(40, variance=name, **sizes) for name in ("welch", "pooled")}


def test_small_arms_with_their_own_variances_are_not_calibrated(by_variance):
    assert {"sigma_creator", "log_p_given_tau"} <= failed(by_variance["welch"], 0.95)
    assert by_variance["welch"].ranks["sigma_creator"].mean() < 0.4  # it is estimated too large


def test_variances_pooled_over_arms_and_creators_are(by_variance):
    assert failed(by_variance["pooled"]) == set()


def test_the_users_are_the_same_whatever_the_standard_errors(by_variance):
    means = [calibration.ranks["mu_global"] for calibration in by_variance.values()]
    assert np.corrcoef(means)[0, 1] > 0.98


# --- verdicts and the smallest detectable error ---------------------------------------------


def test_verdicts_count_all_quantities():
    rng = np.random.default_rng(6)
    ranks = pd.DataFrame(rng.random((500, len(QUANTITIES))), columns=list(QUANTITIES))
    ranks["mu_genre"] = ranks["mu_genre"] ** 1.5
    table = sbc_verdicts(Calibration(ranks, pd.DataFrame())).set_index("quantity")
    assert table.index.tolist() == list(QUANTITIES)
    assert (table["n_replications"] == 500).all()
    np.testing.assert_allclose(table["p_adjusted"], np.minimum(1, 8 * table["p_value"]))
    assert table.index[~table["uniform"]].tolist() == ["mu_genre"]
    grid = np.linspace(0, 1, 100_001)
    share = np.searchsorted(np.sort(ranks["mu_genre"]), grid, side="right") / 500
    assert table.loc["mu_genre", "departure"] == pytest.approx(np.abs(share - grid).max(), abs=1e-4)


def test_right_posteriors_pass_as_often_as_they_should(rng):
    outside = np.array([planted._share_outside(rng.random((1000, 100))) for _ in range(8)])
    level = 0.05 / len(QUANTITIES)
    assert outside.mean() < level + K * np.sqrt(level / 8000)
    samples = rng.random((300, 100)) ** 1.2
    alone = [sbc.uniform_pvalue(sample) <= level for sample in samples]
    assert planted._share_outside(samples) == np.mean(alone)


@pytest.mark.parametrize("kind", ["shift", "spread"])
def test_the_smallest_detectable_error_is_detected_with_the_power_it_should(monkeypatch, kind):
    """With errors whose effect on ranks is known, power is measured at what is returned."""

    def moved(score, log_factor, rng):
        """The same error hits some replications harder, and ranks are those among 250 draws."""
        strength = log_factor * rng.normal(1.0, 0.5, score.shape)
        score = score + 3 * strength if kind == "shift" else score * np.exp(-strength)
        rank = np.floor(251 * stats.norm.cdf(score))
        return (rank + rng.random(score.shape)) / 251

    def known(design, n, *, fault, priors, seed):
        rng = np.random.default_rng(seed)
        score = rng.normal(size=(n, len(QUANTITIES)))
        log_factor = np.log(fault.keywords["factor"]) if fault else 0.0
        ranks = moved(score, np.append(0.0, np.full(len(QUANTITIES) - 1, log_factor)), rng)
        return Calibration(pd.DataFrame(ranks, columns=list(QUANTITIES)), pd.DataFrame())

    monkeypatch.setattr(planted, "run_sbc", known)
    factors = (1.02, 1.05, 1.1, 1.3)
    table = smallest_detectable_error(None, factors, n_pairs=200, n_replications=400)
    assert np.isnan(table.loc[0, "error"])
    rng = np.random.default_rng(99)
    for row in table[1:].itertuples():
        fresh = moved(rng.normal(size=(1000, 400)), np.log1p(row.error), rng)
        power = planted._share_outside(fresh)
        # The power at an error of this relative size rises by about 1.3 times that size.
        tolerance = np.hypot(1.3 * row.error_se / row.error, np.sqrt(0.16 / 1000))
        assert abs(power - 0.8) < K * tolerance, row


def test_the_smallest_detectable_error_of_a_fit(design):
    table = smallest_detectable_error(design, (1.4,), n_pairs=30).set_index("quantity")
    assert 0.01 < table.loc["log_p_given_tau", "error"] < 0.15
    assert np.isnan(table.loc["mu_global", "error"])
    assert table.loc["log_p_given_tau", "error"] < table.loc["tau_smallest", "error"]


# --- bad input ------------------------------------------------------------------------------


def test_bad_settings_are_refused(design):
    with pytest.raises(ValueError, match="unknown engine 'stan'; known: nuts, exact"):
        run_sbc(design, 2, engine="stan")
    with pytest.raises(ValueError, match="sigma_genre is fixed"):
        run_sbc(design, 2, priors=Priors(sigma_genre=Fixed(0)))
    with pytest.raises(ValueError, match="sigma_genre is fixed"):
        run_user_sbc(2, priors=Priors(sigma_genre=Fixed(0)))
    with pytest.raises(DataError, match="design: missing column se"):
        run_sbc(design.drop(columns="se"), 2)
    with pytest.raises(DataError, match="'se' must be greater than 0"):
        run_sbc(design.assign(se=0.0), 2)
