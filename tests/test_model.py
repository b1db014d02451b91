"""The three parameterizations are one model, and it is the one that was meant."""

import numpy as np
import pandas as pd
import pytest
from conftest import K

from hbm.checks import DataError
from hbm.data import generate_experiment_data, summarize_creators
from hbm.diagnostics import DiagnosticsError, check_diagnostics
from hbm.estimates import extract_hbm_estimates
from hbm.gaussian import Estimates, Hyper, creator_moments, genre_moments, log_density
from hbm.model import TARGET_ACCEPT, _centered, _marginal, _noncentered, fit_hierarchical_model
from hbm.priors import Fixed, HalfCauchy, HalfNormal, Normal, Priors

HYPER = ("mu_global", "sigma_genre", "sigma_creator")
ESTIMATES = [
    "creator_id",
    "genre",
    "effect_hat",
    "se",
    "ci_lower",
    "ci_upper",
    "n_total",
    "p_positive",
    "shrinkage",
]
#: Monte Carlo errors allowed to the largest of some hundred deviations: once in 20,000 by chance.
K_MANY = 5


@pytest.fixture(scope="module")
def small():
    """Four genres of 12 creators, in no order, so that a wrong unsorting shows."""
    users, _ = generate_experiment_data(
        11, genres=["comedy", "music", "gaming", "education"], n_creators_per_genre=12
    )
    return summarize_creators(users).sample(frac=1, random_state=3).reset_index(drop=True)


@pytest.fixture(scope="module")
def fits(small):
    return {name: fit_hierarchical_model(small, parameterization=name) for name in TARGET_ACCEPT}


def brute_force(summaries, priors, mu, sigma_genre, sigma_creator):
    """Posterior means, variances and marginals on a grid, from `log_density` alone."""
    data = Estimates.from_frame(summaries)
    mesh = np.meshgrid(mu, sigma_genre, sigma_creator, indexing="ij")
    theta = Hyper(*(axis.reshape(-1) for axis in mesh))
    log_p = priors.mu_global.scipy().logpdf(theta.mu_global)
    for name in ("sigma_genre", "sigma_creator"):
        if not isinstance(getattr(priors, name), Fixed):
            log_p += getattr(priors, name).scipy().logpdf(getattr(theta, name))
    blocks = [Hyper(*part) for part in zip(*(np.array_split(a, 40) for a in theta), strict=True)]
    log_p += np.concatenate([log_density(data, block) for block in blocks])
    weight = np.exp(log_p - log_p.max())
    weight /= weight.sum()
    kept = weight > 1e-12
    theta, weight = Hyper(*(axis[kept] for axis in theta)), weight[kept]
    genre = genre_moments(data, theta)
    creator = creator_moments(data, genre, theta.sigma_creator)
    found = {name: (weight @ axis, weight @ axis**2) for name, axis in theta._asdict().items()}
    found["mu_genre"] = weight @ genre.mean, weight @ (genre.var + genre.mean**2)
    tau = weight @ creator.mean, weight @ (creator.var + creator.mean**2)
    found["tau"] = tuple(data.unsort(moment) for moment in tau)
    return {name: (mean, np.sqrt(square - mean**2)) for name, (mean, square) in found.items()}


@pytest.fixture(scope="module")
def grid(small):
    return brute_force(
        small,
        Priors(),
        np.linspace(-2.5, 3.5, 61),
        np.arange(0.025, 4.5, 0.05),
        np.arange(0.13, 0.9, 0.02),
    )


def assert_agrees(idata, expected, names, k=K_MANY):
    """Means and standard deviations within k Monte Carlo errors."""
    import arviz as az

    posterior = idata["posterior"].dataset
    for name in names:
        mean, sd = expected[name]
        for found, truth, method in (
            (posterior[name].mean(("chain", "draw")), mean, "mean"),
            (posterior[name].std(("chain", "draw")), sd, "sd"),
        ):
            error = az.mcse(posterior[name], method=method)
            z = np.abs(found.values - truth) / error.values
            assert np.max(z) < k, (name, method, np.max(z))


# --- one model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", TARGET_ACCEPT)
def test_every_parameterization_has_the_posterior_of_brute_force(fits, grid, parameterization):
    assert_agrees(fits[parameterization], grid, [*HYPER, "mu_genre", "tau"])


@pytest.mark.parametrize("parameterization", TARGET_ACCEPT)
def test_every_parameterization_gives_the_same_estimates(fits, grid, small, parameterization):
    """The Rao-Blackwell means carry less noise than the draws they replace."""
    import arviz as az

    idata = fits[parameterization]
    estimates = extract_hbm_estimates(idata, small, check=False)
    mean, sd = grid["tau"]
    error = az.mcse(idata["posterior"].dataset["tau"], method="mean").values
    assert np.max(np.abs(estimates["effect_hat"] - mean) / error) < K_MANY
    error = az.mcse(idata["posterior"].dataset["tau"], method="sd").values
    assert np.max(np.abs(estimates["se"] - sd) / error) < K_MANY


PRIORS = {
    "dollars": Priors(),
    "shifted": Priors(Normal(3.0, 0.2), HalfNormal(0.5), HalfCauchy(5.0)),
    "no grouping": Priors(sigma_genre=Fixed(0)),
}


def one_effect_each(rng, shape, offset=0.0):
    idx = rng.permutation(np.repeat(np.arange(len(shape)), shape))
    n = len(idx)
    return Estimates.from_arrays(offset + rng.normal(0.5, 1, n), rng.uniform(0.1, 2, n), idx)


@pytest.mark.parametrize("priors", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("shape", [[3, 1, 7], [9], [1, 1]], ids=str)
def test_the_marginal_model_has_the_closed_form_as_density(rng, priors, shape):
    """p(offset, sigmas | d) = p(d | theta) p(theta) |d mu_global / d offset| at any point."""
    assert_marginal_density(one_effect_each(rng, shape), priors, rng, rtol=1e-10)


def test_the_marginal_density_keeps_its_digits_far_from_zero(rng):
    data = one_effect_each(rng, [3, 1, 7], offset=1e6)
    assert_marginal_density(data, Priors(mu_global=Normal(1e6, 2.0)), rng, rtol=1e-6)


def assert_marginal_density(data, priors, rng, rtol):
    model = _marginal(data, priors)
    free = {variable.name for variable in model.free_RVs}
    assert free == {"mu_offset", "sigma_genre", "sigma_creator"} - {
        name for name in HYPER if isinstance(getattr(priors, name), Fixed)
    }
    density = model.compile_logp(jacobian=False, mode="FAST_COMPILE")
    mu_global = model.compile_fn(
        model.replace_rvs_by_values([model["mu_global"]])[0],
        inputs=model.value_vars,
        on_unused_input="ignore",
        mode="FAST_COMPILE",
    )
    for offset, log_genre, log_creator in rng.normal(0, 1, (4, 3)):
        point = {
            "mu_offset": np.array(offset),
            "sigma_genre_log__": np.array(log_genre),
            "sigma_creator_log__": np.array(log_creator),
        }
        point = {v.name: point[v.name] for v in model.value_vars}
        mu = float(mu_global(point))
        slope = float(mu_global(point | {"mu_offset": np.array(offset + 1)})) - mu
        sigma_genre = 0.0 if "sigma_genre" not in free else np.exp(log_genre)
        theta = Hyper(*np.array([[mu], [sigma_genre], [np.exp(log_creator)]]))
        expected = log_density(data, theta)[0] + np.log(slope)
        for name, value in zip(HYPER, theta, strict=True):
            if not isinstance(getattr(priors, name), Fixed):
                expected += getattr(priors, name).scipy().logpdf(value[0])
        # The potentials leave out the constants of the creators within genres and of the offset;
        # PyTensor keeps the logarithms of some constants in single precision.
        expected += 0.5 * (len(data.se) - data.n_genres - 1) * np.log(2 * np.pi)
        assert float(density(point)) == pytest.approx(expected, rel=rtol, abs=2e-7)


@pytest.mark.parametrize("build", [_centered, _noncentered])
def test_the_other_models_are_the_stated_hierarchy(rng, build):
    from scipy import stats

    data, priors = one_effect_each(rng, [3, 1, 4]), PRIORS["shifted"]
    model = build(data, priors)
    density = model.compile_logp(jacobian=False, mode="FAST_COMPILE")
    mu, sigma_genre, sigma_creator = 2.5, 0.7, 1.3
    genre_offset, creator_offset = rng.normal(size=3), rng.normal(size=8)
    mu_genre = mu + sigma_genre * genre_offset
    tau = mu_genre[data.genre_idx] + sigma_creator * creator_offset
    point = {
        "mu_global": mu,
        "sigma_genre_log__": np.log(sigma_genre),
        "sigma_creator_log__": np.log(sigma_creator),
        "mu_genre": mu_genre,
        "tau": tau,
        "genre_offset": genre_offset,
        "creator_offset": creator_offset,
    }
    expected = sum(
        getattr(priors, name).scipy().logpdf(value)
        for name, value in zip(HYPER, (mu, sigma_genre, sigma_creator), strict=True)
    )
    expected += stats.norm(tau, data.se).logpdf(data.effect_hat).sum()
    if build is _centered:
        expected += stats.norm(mu, sigma_genre).logpdf(mu_genre).sum()
        expected += stats.norm(mu_genre[data.genre_idx], sigma_creator).logpdf(tau).sum()
    else:
        expected += stats.norm().logpdf(np.r_[genre_offset, creator_offset]).sum()
    point = {v.name: np.asarray(point[v.name], float) for v in model.value_vars}
    assert float(density(point)) == pytest.approx(expected, rel=1e-9, abs=2e-7)


def test_eight_schools():
    """Published: posteriordb's reference draws, and quadrature to all digits."""
    schools = pd.DataFrame(
        {
            "creator_id": list("ABCDEFGH"),
            "genre_idx": 0,
            "effect_hat": [28.0, 8, -3, 7, -1, 1, 18, 12],
            "se": [15.0, 10, 16, 11, 9, 11, 10, 18],
        }
    )
    priors = Priors(Normal(0, 5), Fixed(0), HalfCauchy(5))
    idata = fit_hierarchical_model(schools, priors=priors)
    published = {"mu_global": (4.3968, 3.3177), "sigma_creator": (3.5977, 3.2200)}
    assert_agrees(idata, published, published, K)
    check_diagnostics(idata).raise_if_failed()


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", TARGET_ACCEPT)
def test_dims_and_coordinates_are_those_of_the_data(fits, small, parameterization):
    idata = fits[parameterization]
    posterior = idata["posterior"].dataset
    assert set(posterior.data_vars) == {*HYPER, "mu_genre", "tau"}
    assert posterior["tau"].dims == ("chain", "draw", "creator")
    assert posterior["mu_genre"].dims == ("chain", "draw", "genre")
    assert dict(posterior.sizes) == {"chain": 4, "draw": 2000, "genre": 4, "creator": 48}
    assert posterior["creator"].values.tolist() == small["creator_id"].tolist()
    names = small.groupby("genre_idx")["genre"].first().tolist()
    assert posterior["genre"].values.tolist() == names
    observed = idata["observed_data"].dataset["effect_hat"]
    assert observed.dims == ("creator",)
    np.testing.assert_array_equal(observed, small["effect_hat"])
    np.testing.assert_array_equal(idata["constant_data"]["se"], small["se"])
    assert {"diverging", "energy", "tree_depth", "lp"} <= set(idata["sample_stats"].data_vars)
    assert idata.attrs["parameterization"] == parameterization
    assert idata.attrs["engine"] == "nuts"
    assert idata.attrs["random_seed"] == 42
    assert idata.attrs["seconds"] > 0


def test_without_grouping_every_genre_has_the_platforms_mean(small, grid):
    priors = Priors(sigma_genre=Fixed(0))
    idata = fit_hierarchical_model(small, priors=priors)
    posterior = idata["posterior"].dataset
    assert (posterior["sigma_genre"] == 0).all()
    assert idata.attrs["fixed"] == ["sigma_genre"]
    difference = posterior["mu_genre"] - posterior["mu_global"]
    assert np.abs(difference).max() == 0
    check_diagnostics(idata).raise_if_failed()
    expected = brute_force(
        small, priors, np.linspace(-0.5, 1.5, 301), [0.0], np.arange(0.005, 1.5, 0.01)
    )
    assert_agrees(idata, expected, ["mu_global", "sigma_creator", "tau"])


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_revenue_of_any_scale_is_sampled_alike(small, scale):
    """Under scale-aware priors the posterior is the same but for its unit."""
    scaled = small.assign(effect_hat=scale * small["effect_hat"], se=scale * small["se"])
    idata = fit_hierarchical_model(scaled, priors=Priors.weakly_informative(scaled))
    check_diagnostics(idata).raise_if_failed()
    exact = fit_hierarchical_model(
        small, engine="exact", priors=Priors.weakly_informative(small), draws=0
    )
    expected = extract_hbm_estimates(exact, small)
    found = extract_hbm_estimates(idata, scaled)
    import arviz as az

    error = az.mcse(idata["posterior"].dataset["tau"], method="mean").values
    assert np.max(np.abs(found["effect_hat"] - scale * expected["effect_hat"]) / error) < K_MANY
    error = az.mcse(idata["posterior"].dataset["tau"], method="sd").values
    assert np.max(np.abs(found["se"] - scale * expected["se"]) / error) < K_MANY


def test_hundredfold_data_give_hundredfold_readouts(small):
    cents = small.assign(effect_hat=100 * small["effect_hat"], se=100 * small["se"])
    dollars, cents = (
        extract_hbm_estimates(
            fit_hierarchical_model(
                table, engine="exact", priors=Priors.weakly_informative(table), draws=0
            ),
            table,
        )
        for table in (small, cents)
    )
    for column in ("effect_hat", "se", "ci_lower", "ci_upper"):
        np.testing.assert_allclose(cents[column], 100 * dollars[column], rtol=1e-7)
    for column in ("p_positive", "shrinkage"):
        np.testing.assert_allclose(cents[column], dollars[column], rtol=1e-7)


# --- estimates ----------------------------------------------------------------------------------


def test_estimates_agree_with_the_draws_they_replace(fits, small):
    import arviz as az

    idata = fits["marginal"]
    estimates = extract_hbm_estimates(idata, small)
    assert list(estimates.columns) == ESTIMATES
    assert estimates["creator_id"].tolist() == small["creator_id"].tolist()
    assert estimates["genre"].tolist() == small["genre"].tolist()
    assert estimates["n_total"].tolist() == small["n_total"].tolist()
    tau = idata["posterior"].dataset["tau"]

    def share(below, probability):
        error = np.sqrt(probability * (1 - probability) / az.ess(below.astype(float)).values)
        return np.abs(below.mean(("chain", "draw")).values - probability) / np.fmax(error, 1e-4)

    for column, probability in (("ci_lower", 0.025), ("ci_upper", 0.975)):
        limit = estimates[column].to_numpy()
        assert share(tau <= limit, probability).max() < K_MANY
    p_positive = estimates["p_positive"].to_numpy()
    unclear = (p_positive > 0.01) & (p_positive < 0.99)
    assert share(tau[..., unclear] > 0, p_positive[unclear]).max() < K_MANY
    sigma = idata["posterior"].dataset["sigma_creator"].values.reshape(-1, 1)
    pull = small["se"].to_numpy() ** 2 / (small["se"].to_numpy() ** 2 + sigma**2)
    np.testing.assert_allclose(estimates["shrinkage"], pull.mean(axis=0), rtol=1e-10)


@pytest.fixture(scope="module")
def many(fabricate):
    """A posterior of 3,000 creators with effects on both sides of 0."""
    rng = np.random.default_rng(5)
    n = 3000
    summaries = pd.DataFrame(
        {
            "creator_id": np.arange(n),
            "genre_idx": rng.permutation(np.arange(n) % 7),
            "effect_hat": rng.normal(0.1, 1.0, n),
            "se": rng.uniform(0.05, 1.5, n),
        }
    )
    shape = (2, 60)
    hyper = rng.normal(0.1, 0.1, shape), rng.gamma(4, 0.1, shape), rng.gamma(9, 0.06, shape)
    return fabricate(summaries, *hyper), summaries


def test_the_interval_excludes_zero_exactly_if_the_tail_is_small(many):
    estimates = extract_hbm_estimates(*many, check=False)
    excludes = (estimates["ci_lower"] > 0) | (estimates["ci_upper"] < 0)
    tail = np.minimum(estimates["p_positive"], 1 - estimates["p_positive"])
    assert 300 < excludes.sum() < 2700
    pd.testing.assert_series_equal(excludes, tail <= 0.025, check_names=False)
    assert ((estimates["ci_lower"] < 0) | (estimates["p_positive"] > 0.975)).all()
    assert (estimates["ci_lower"] < estimates["effect_hat"]).all()
    assert (estimates["effect_hat"] < estimates["ci_upper"]).all()


def test_small_probabilities_keep_their_digits(fabricate):
    summaries = pd.DataFrame(
        {"creator_id": ["a", "b"], "genre_idx": 0, "effect_hat": [-9.0, 9.0], "se": 0.5}
    )
    idata = fabricate(summaries, np.zeros((2, 4)), np.zeros((2, 4)), np.full((2, 4), 2.0))
    low = extract_hbm_estimates(idata, summaries, check=False)["p_positive"][0]
    assert 0 < low < 1e-60


def test_estimates_do_not_depend_on_the_size_of_the_blocks(many, monkeypatch):
    whole = extract_hbm_estimates(*many, check=False)
    monkeypatch.setattr("hbm.estimates._BLOCK", 1000)
    pd.testing.assert_frame_equal(extract_hbm_estimates(*many, check=False), whole)


def test_a_posterior_is_not_read_out_for_other_summaries(many):
    idata, summaries = many
    swapped = summaries.assign(genre_idx=(summaries["genre_idx"] + 1) % 7)
    for other, message in (
        (summaries.iloc[::-1], "other creators"),
        (summaries.head(10), "other creators"),
        (summaries.assign(creator_id=summaries["creator_id"] + 1), "other creators"),
        (summaries.assign(effect_hat=summaries["effect_hat"] + 1e-9), "another effect_hat"),
        (summaries.assign(se=1.1 * summaries["se"]), "another se"),
        (swapped, "another genre_idx"),
    ):
        with pytest.raises(ValueError, match=message):
            extract_hbm_estimates(idata, other, check=False)


def test_a_failed_fit_is_not_read_out_unless_told_to(small, fabricate):
    idata = fabricate(small, *np.full((3, 2, 50), 0.4))
    with pytest.raises(DiagnosticsError, match="ESS"):
        extract_hbm_estimates(idata, small)
    assert len(extract_hbm_estimates(idata, small, check=False)) == 48


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "hmc"}, "unknown engine 'hmc'; known: nuts, exact"),
        ({"parameterization": "non-centred"}, "'non-centred'; known: marginal, centered"),
        ({"draws": 0}, "draws, tune and chains must be >= 1"),
        ({"chains": 0}, "draws, tune and chains must be >= 1"),
        ({"tune": -1}, "draws, tune and chains must be >= 1"),
        ({"target_accept": 0.0}, "target_accept must lie between 0 and 1, got 0.0"),
        ({"target_accept": 1.0}, "target_accept must lie between 0 and 1"),
        ({"draws": 10**7}, r"40,000,000 draws of 48 creators would take 15\.4 GB"),
        (
            {"parameterization": "centered", "priors": Priors(sigma_genre=Fixed(0))},
            "centered needs sigma_genre > 0",
        ),
    ],
)
def test_impossible_settings_are_refused(small, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_hierarchical_model(small, **settings)


def test_bad_summaries_are_refused_before_sampling(small):
    with pytest.raises(DataError, match="'se' must be greater than 0"):
        fit_hierarchical_model(small.assign(se=0.0))
    with pytest.raises(DataError, match="missing column genre_idx"):
        fit_hierarchical_model(small.drop(columns="genre_idx"))


# --- the default fit is green -------------------------------------------------------------------

QUICK = [(3, 20, 42), (1, 20, 42)]
SLOW = [(5, 100, seed) for seed in range(20)]


def platform(n_genres, n_creators, seed):
    users, _ = generate_experiment_data(
        seed, genres=[f"genre {g}" for g in range(n_genres)], n_creators_per_genre=n_creators
    )
    return summarize_creators(users)


@pytest.mark.parametrize(
    ("n_genres", "n_creators", "seed"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_the_default_fit_is_green(n_genres, n_creators, seed):
    idata = fit_hierarchical_model(platform(n_genres, n_creators, seed))
    check_diagnostics(idata).raise_if_failed()


def test_a_compiled_model_serves_other_data_of_its_shape(rng):
    """The same draws, whether the model was compiled for these data or filled with them."""
    from test_exact import simulated

    from hbm import model

    first, second = simulated(rng, [8, 5, 9]), simulated(rng, [4, 9, 9])
    settings = {"draws": 60, "tune": 150, "chains": 2, "random_seed": 5}
    model._compiled.cache_clear()
    fresh = fit_hierarchical_model(second, **settings)
    model._compiled.cache_clear()
    fit_hierarchical_model(first, **settings)
    filled = fit_hierarchical_model(second, **settings)
    assert model._compiled.cache_info().hits == 1
    for name in (*HYPER, "mu_genre", "tau"):
        np.testing.assert_array_equal(filled["posterior"][name], fresh["posterior"][name])
