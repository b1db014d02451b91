"""The robust model is the one that is stated, and does what it promises with outliers."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import integrate, stats
from scipy.special import gammaln
from test_model import ESTIMATES, K_MANY, assert_agrees

import hbm.robust
from hbm.checks import DataError
from hbm.diagnostics import DiagnosticsError, check_diagnostics
from hbm.estimates import effect_cdf, extract_genre_estimates, extract_hbm_estimates
from hbm.gaussian import Estimates
from hbm.model import fit_hierarchical_model
from hbm.predictive import leave_one_out, loo_pit, posterior_predictive, with_log_likelihood
from hbm.priors import Fixed, HalfNormal, Normal, Priors
from hbm.robust import (
    FAST,
    _model,
    fit_hierarchical_model_robust,
    outlier_study,
    robust_estimates,
)
from hbm.student import genre_centers, nodes_for


def mcse(values, method):
    import arviz as az

    return az.mcse(values, method=method)


HYPER = ("mu_global", "sigma_genre", "sigma_creator", "nu")


def heavy(seed, sizes, nu=3.0, sigma=0.4, se=(0.05, 0.6)):
    """Creators whose effects are a Student-t around their genre's mean, in no order."""
    rng = np.random.default_rng(seed)
    idx = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(idx)
    tau = rng.normal(0.5, 0.3, len(sizes))[idx] + sigma * rng.standard_t(nu, n)
    errors = rng.uniform(*se, n)
    names = np.array(["music", "comedy", "gaming", "education", "lifestyle"])[idx]
    return pd.DataFrame(
        {
            "creator_id": [f"c{i:03d}" for i in rng.permutation(n)],
            "genre": names,
            "genre_idx": idx,
            "effect_hat": rng.normal(tau, errors),
            "se": errors,
            "n_total": rng.integers(30, 900, n),
        }
    )


#: Three genres of 16: most tests share its shape, so that one model is compiled.
SIZES = (16, 16, 16)


@pytest.fixture(scope="module")
def small():
    return heavy(5, SIZES)


@pytest.fixture(scope="module")
def fit(small):
    return fit_hierarchical_model_robust(small)


def with_draws(idata, **variables):
    """The same fit with some variables of the posterior exchanged."""
    changed = idata.copy(deep=True)
    posterior = changed["posterior"].dataset
    new = {name: (posterior[name].dims, values) for name, values in variables.items()}
    changed["posterior"].dataset = posterior.assign(new)
    return changed


# --- the model that was meant -------------------------------------------------------------------


def brute_density(summaries, mu_genre, sigma, nu):
    """Log density of the estimates given the genres' means, by adaptive integration."""
    total = 0.0
    for row in summaries.itertuples():
        prior, noise = (
            stats.t(nu, mu_genre[row.genre_idx], sigma),
            stats.norm(row.effect_hat, row.se),
        )
        ends = row.effect_hat - 12 * row.se, row.effect_hat + 12 * row.se
        inside = [x for x in (mu_genre[row.genre_idx],) if ends[0] < x < ends[1]]
        found = integrate.quad(
            lambda x, p=prior, e=noise: p.pdf(x) * e.pdf(x), *ends, points=inside, limit=200
        )
        total += np.log(found[0])
    return total


@pytest.mark.parametrize(
    "priors",
    [
        Priors(),
        Priors(Normal(3.0, 0.2), HalfNormal(0.5), HalfNormal(2.0), nu=Fixed(4.0)),
        Priors(sigma_genre=Fixed(0)),
    ],
    ids=["default", "nu known", "no grouping"],
)
def test_the_density_is_the_stated_hierarchy(priors, rng):
    """p(offsets, sigmas, nu | d) = prior x likelihood x |d (mu, mu_genre) / d offsets|."""
    import pymc as pm

    summaries = heavy(1, (3, 1, 2))
    data = Estimates.from_frame(summaries)
    nodes = nodes_for(data)
    model = _model(len(summaries), 3, nodes.size, priors)
    with model:
        pm.set_data(
            {
                "effect_hat": data.effect_hat,
                "se": data.se,
                "genre_idx": data.genre_idx,
                "center": genre_centers(data)[0],
                "reach": nodes.reach,
            }
        )
    density = model.compile_logp(jacobian=False, mode="FAST_COMPILE")
    outputs = model.replace_rvs_by_values([model["mu_global"], model["mu_genre"]])
    means = model.compile_fn(
        outputs, inputs=model.value_vars, on_unused_input="ignore", mode="FAST_COMPILE"
    )
    names = [variable.name for variable in model.value_vars]
    differences = []
    for _ in range(4):
        point = {
            "mu_offset": rng.normal(),
            "genre_offset": rng.normal(size=3),
            "sigma_genre_log__": rng.normal(-1, 0.5),
            "sigma_creator_log__": rng.normal(-1, 0.5),
            "nu_above_lower_log__": rng.normal(2, 0.7),
        }
        point = {name: np.asarray(point[name]) for name in names}
        theta = {
            "sigma_genre": np.exp(point.get("sigma_genre_log__", -np.inf)),
            "sigma_creator": np.exp(point["sigma_creator_log__"]),
            "nu": 2 + np.exp(point["nu_above_lower_log__"])
            if "nu_above_lower_log__" in point
            else 4.0,
        }
        mu_global, mu_genre = means(point)
        expected = priors.mu_global.scipy().logpdf(mu_global)
        for name, value in theta.items():
            if not isinstance(getattr(priors, name), Fixed):
                expected += getattr(priors, name).scipy().logpdf(value)
        shifted = means(point | {"mu_offset": point["mu_offset"] + 1})
        expected += np.log(shifted[0] - mu_global)
        if theta["sigma_genre"] > 0:
            expected += stats.norm(mu_global, theta["sigma_genre"]).logpdf(mu_genre).sum()
            shifted = means(point | {"genre_offset": point["genre_offset"] + 1})
            expected += np.log(shifted[1] - mu_genre).sum()
        else:
            np.testing.assert_array_equal(mu_genre, mu_global)
            expected += stats.norm.logpdf(point["genre_offset"]).sum()
        expected += brute_density(summaries, mu_genre, theta["sigma_creator"], theta["nu"])
        differences.append(float(density(point)) - expected)
    # Densities need no constant, so only their differences are compared.
    assert np.ptp(differences) < 1e-4


def grid_posterior(summaries, priors):
    """Mean and sd of mu_global, sigma_creator, nu and tau, where there is no grouping."""
    effect, se = summaries["effect_hat"].to_numpy(), summaries["se"].to_numpy()
    z, w = np.polynomial.hermite_e.hermegauss(61)
    w = w / w.sum()
    mu, log_sigma, log_above = (
        np.linspace(*ends, n) for *ends, n in ((-1.2, 2.2, 45), (-4.0, 1.0, 45), (-4.0, 5.0, 35))
    )
    sigma, nu = np.meshgrid(np.exp(log_sigma), 2 + np.exp(log_above), indexing="ij")
    log_p = (
        priors.mu_global.scipy().logpdf(mu)[:, None, None]
        + (priors.sigma_creator.scipy().logpdf(sigma) + np.log(sigma))
        + (priors.nu.scipy().logpdf(nu) + np.log(nu - 2))
    )
    constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * np.log(nu * np.pi) - np.log(sigma)
    moments = np.empty((2, len(effect), *log_p.shape))
    for i in range(len(effect)):
        total = np.zeros(log_p.shape)
        moments[:, i] = 0
        for tau, weight in zip(effect[i] + se[i] * z, w, strict=True):
            away = np.square((tau - mu)[:, None, None] / sigma)
            density = weight * np.exp(constant - (nu + 1) / 2 * np.log1p(away / nu))
            total += density
            moments[0, i] += tau * density
            moments[1, i] += tau**2 * density
        moments[:, i] /= total
        log_p += np.log(total)
    weight = np.exp(log_p - log_p.max())
    weight /= weight.sum()
    found = {}
    for name, values in {"mu_global": mu[:, None, None], "sigma_creator": sigma, "nu": nu}.items():
        mean = (weight * values).sum()
        found[name] = mean, np.sqrt((weight * np.square(values - mean)).sum())
    mean, square = (weight * moments).sum(axis=(2, 3, 4))
    found["tau"] = mean, np.sqrt(square - mean**2)
    return found


def test_the_posterior_is_that_of_brute_force():
    """A grid over all three parameters, and the creators' effects by Gauss-Hermite."""
    summaries = heavy(3, (10,), sigma=0.5, se=(0.05, 0.2))
    priors = Priors(sigma_genre=Fixed(0))
    idata = fit_hierarchical_model_robust(summaries, priors=priors)
    check_diagnostics(idata).raise_if_failed()
    expected = grid_posterior(summaries, priors)
    assert_agrees(idata, expected, expected)
    estimates = extract_hbm_estimates(idata, summaries)
    error = mcse(idata["posterior"]["tau"], method="mean").values
    assert np.max(np.abs(estimates["effect_hat"] - expected["tau"][0]) / error) < K_MANY


def test_with_many_degrees_of_freedom_it_is_the_normal_model(small):
    import arviz as az

    robust = fit_hierarchical_model_robust(small, priors=Priors(nu=Fixed(1e6)))
    check_diagnostics(robust).raise_if_failed()
    assert (robust["posterior"]["nu"] == 1e6).all()
    exact = fit_hierarchical_model(small, engine="exact", draws=20_000 // 4)
    posterior, normal = robust["posterior"].dataset, exact["posterior"].dataset
    for name in ("mu_global", "sigma_genre", "sigma_creator", "mu_genre", "tau"):
        for method in ("mean", "sd"):
            values = [getattr(p[name], method.replace("sd", "std"))(("chain", "draw")).values
                      for p in (posterior, normal)]  # fmt: skip
            errors = [az.mcse(p[name], method=method).values for p in (posterior, normal)]
            z = np.abs(values[0] - values[1]) / np.hypot(*errors)
            assert np.max(z) < (K if z.ndim == 0 else K_MANY), (name, method, np.max(z))
    ours, theirs = (extract_hbm_estimates(i, small) for i in (robust, exact))
    error = az.mcse(posterior["tau"], method="mean").values
    for column in ("effect_hat", "ci_lower", "ci_upper"):
        assert (np.abs(ours[column] - theirs[column]) < K_MANY * error).all(), column
    np.testing.assert_allclose(ours["shrinkage"], theirs["shrinkage"], atol=0.01)


@pytest.mark.slow
def test_the_same_model_written_plainly_agrees(small, fit):
    """PyMC's own Student-t with every effect sampled, an independent implementation."""
    import arviz as az
    import pymc as pm

    priors, data = Priors(), Estimates.from_frame(small)
    with pm.Model():
        nu = priors.nu.pymc("nu")
        sigma = {n: getattr(priors, n).pymc(n) for n in ("sigma_genre", "sigma_creator")}
        mu_global = priors.mu_global.pymc("mu_global")
        mu_genre = pm.Normal("mu_genre", mu_global, sigma["sigma_genre"], shape=3)
        tau = pm.StudentT(
            "tau",
            nu=nu,
            mu=mu_genre[data.genre_idx],
            sigma=sigma["sigma_creator"],
            shape=len(data.se),
        )
        pm.Normal("effect_hat", tau, data.se, observed=data.effect_hat)
        plain = pm.sample(
            4000, tune=2000, chains=4, random_seed=1, target_accept=0.99, nuts_sampler="nutpie",
            progressbar=False, quiet=True, compute_convergence_checks=False,
        )["posterior"].dataset  # fmt: skip
    posterior = fit["posterior"].dataset
    for name in ("mu_global", "sigma_creator", "nu", "mu_genre", "tau"):
        ours, theirs = posterior[name].mean(("chain", "draw")), plain[name].mean(("chain", "draw"))
        theirs = data.unsort(theirs.values) if name == "tau" else theirs.values
        errors = [az.mcse(p[name]).values for p in (posterior, plain)]
        errors[1] = data.unsort(errors[1]) if name == "tau" else errors[1]
        z = np.abs(ours.values - theirs) / np.hypot(*errors)
        assert np.max(z) < K_MANY, (name, np.max(z))


# --- what comes back ----------------------------------------------------------------------------


def test_the_layout_is_that_of_the_normal_model(fit, small):
    normal = fit_hierarchical_model(small, draws=50, tune=200, chains=2)
    ours, theirs = fit["posterior"].dataset, normal["posterior"].dataset
    assert set(ours.data_vars) == {*theirs.data_vars, "nu"}
    for name in theirs.data_vars:
        assert ours[name].dims == theirs[name].dims
    assert dict(ours.sizes) == {"chain": 4, "draw": 2000, "genre": 3, "creator": 48}
    assert ours["creator"].values.tolist() == small["creator_id"].tolist()
    assert ours["genre"].values.tolist() == theirs["genre"].values.tolist()
    assert set(fit.children) == set(normal.children)
    assert set(fit["sample_stats"].data_vars) == set(normal["sample_stats"].data_vars)
    assert set(fit.attrs) >= set(normal.attrs)
    assert fit.attrs["fixed"] == []
    assert "Gamma(alpha=2, beta=0.1, lower=2)" in fit.attrs["priors"]


def test_the_diagnostics_watch_nu_and_the_conditional_means(fit):
    found = check_diagnostics(fit)
    assert found.ok
    assert set(found.table.index) == {*HYPER, "mu_genre", "tau", "E[tau | hyper]"}
    few = check_diagnostics(fit, effects=False)
    assert set(few.table.index) == {*HYPER, "mu_genre"}
    apart = np.linspace(0.6, 1.5, 4)[:, None]
    stuck = with_draws(fit, nu=2 + (fit["posterior"]["nu"].values - 2) * apart)
    assert any("R-hat of nu" in failure for failure in check_diagnostics(stuck).failures)


def test_stuck_hyperparameters_show_in_the_conditional_means_not_in_the_draws(small, fit):
    """Taus drawn exactly look well mixed, whatever they were drawn from."""
    from hbm.student import draw_effects, student_draws

    scale = fit["posterior"]["sigma_creator"].values * np.linspace(0.92, 1.08, 4)[:, None]
    stuck = with_draws(fit, sigma_creator=scale)
    data = Estimates.from_frame(small)
    tau = draw_effects(
        data, student_draws(stuck["posterior"].dataset), nodes_for(data), np.random.default_rng(0)
    )
    stuck = with_draws(stuck, tau=data.unsort(tau).reshape(fit["posterior"]["tau"].shape))
    table = check_diagnostics(stuck).table
    assert table.loc["tau", "max_rhat"] < 1.01
    assert table.loc["E[tau | hyper]", "max_rhat"] > 1.02


def test_estimates_are_the_posterior_of_the_drawn_effects(fit, small):
    import arviz as az

    estimates = extract_hbm_estimates(fit, small)
    assert estimates.columns.tolist() == ESTIMATES
    assert estimates["creator_id"].tolist() == small["creator_id"].tolist()
    assert estimates["genre"].tolist() == small["genre"].tolist()
    tau = fit["posterior"]["tau"]
    error = az.mcse(tau, method="mean").values
    assert np.max(np.abs(estimates["effect_hat"] - tau.mean(("chain", "draw"))) / error) < K_MANY
    error = az.mcse(tau, method="sd").values
    assert np.max(np.abs(estimates["se"] - tau.std(("chain", "draw"))) / error) < K_MANY
    for column, probability in (("ci_lower", 0.025), ("ci_upper", 0.975)):
        below = (tau < estimates[column].to_numpy()).mean(("chain", "draw"))
        share = np.sqrt(0.025 * 0.975 / float(az.ess(tau, method="tail").min()))
        assert np.max(np.abs(below.values - probability)) < K_MANY * share
    positive = (tau > 0).mean(("chain", "draw")).values
    np.testing.assert_allclose(estimates["p_positive"], positive, atol=0.03)
    assert estimates["shrinkage"].between(0, 1).all()
    np.testing.assert_allclose(effect_cdf(fit, 0.0), 1 - estimates["p_positive"], atol=1e-9)
    excludes = (estimates["ci_lower"] > 0) | (estimates["ci_upper"] < 0)
    p_wrong = np.minimum(estimates["p_positive"], 1 - estimates["p_positive"])
    assert (excludes == (p_wrong <= 0.025)).all()
    genres = extract_genre_estimates(fit)
    mu_genre = fit["posterior"]["mu_genre"]
    np.testing.assert_allclose(genres["mean"], mu_genre.mean(("chain", "draw")))
    below = (mu_genre.values <= genres["lower"].to_numpy()).mean(axis=(0, 1))
    np.testing.assert_allclose(below, 0.025, atol=1e-3)


@pytest.mark.slow
def test_units_do_not_matter(small):
    """Priors that follow the data, effects in millionths: the estimates follow."""
    tiny = small.assign(effect_hat=small["effect_hat"] * 1e-6, se=small["se"] * 1e-6)
    one, other = (
        fit_hierarchical_model_robust(s, priors=Priors.weakly_informative(s)) for s in (small, tiny)
    )
    ours, theirs = (extract_hbm_estimates(i, s) for i, s in ((one, small), (other, tiny)))
    np.testing.assert_allclose(theirs["effect_hat"] * 1e6, ours["effect_hat"], atol=0.03)
    np.testing.assert_allclose(theirs["shrinkage"], ours["shrinkage"], atol=0.03)


def test_a_compiled_model_takes_new_data(small):
    """The second fit of the same shape must not see the first one's data."""
    moved = small.assign(effect_hat=small["effect_hat"] + 2.0)
    short = {"draws": 500, "tune": 400, "chains": 2, "effects": False}
    first, second = (fit_hierarchical_model_robust(s, **short) for s in (small, moved))
    difference = second["posterior"]["mu_genre"].mean() - first["posterior"]["mu_genre"].mean()
    assert abs(float(difference) - 2.0) < 0.2
    again = fit_hierarchical_model_robust(small, **short)
    np.testing.assert_array_equal(again["posterior"]["nu"], first["posterior"]["nu"])


def test_bad_input_is_refused(small):
    with pytest.raises(DataError, match="'se' must be greater than 0"):
        fit_hierarchical_model_robust(small.assign(se=0.0))
    with pytest.raises(ValueError, match="draws, tune and chains must be >= 1"):
        fit_hierarchical_model_robust(small, draws=0)
    with pytest.raises(ValueError, match="target_accept must lie between 0 and 1"):
        fit_hierarchical_model_robust(small, target_accept=1.0)
    with pytest.raises(ValueError, match="GB; ask for fewer draws"):
        fit_hierarchical_model_robust(small, draws=10**7)


# --- many platforms -----------------------------------------------------------------------------


def test_fast_estimates_are_those_of_the_full_fit(fit, small):
    full, fast = extract_hbm_estimates(fit, small), robust_estimates(small)
    assert fast.columns.tolist() == ESTIMATES
    for column in ("effect_hat", "ci_lower", "ci_upper"):
        assert np.max(np.abs(fast[column] - full[column]) / full["se"]) < 0.15, column
    assert (
        np.sqrt(np.mean(np.square((fast["effect_hat"] - full["effect_hat"]) / full["se"]))) < 0.04
    )


def test_with_a_truth_the_estimates_carry_its_probability(fit, small):
    rng = np.random.default_rng(0)
    effects = rng.normal(0.5, 0.5, len(small))
    truth = {
        "creator_effects": effects,
        "creator_id": small["creator_id"].to_numpy(),
        "creator_genre": small["genre_idx"].to_numpy(),
        "genre_effects": np.zeros(3),
    }
    pit = robust_estimates(small, truth)["pit"]
    np.testing.assert_allclose(pit, effect_cdf(fit, effects), atol=0.03)


def test_a_fast_fit_that_fails_is_sampled_at_full_length(small, monkeypatch):
    used = []
    real = fit_hierarchical_model_robust

    def spy(summaries, **settings):
        used.append(settings.get("draws", 2000))
        return real(summaries, **settings)

    monkeypatch.setattr(hbm.robust, "fit_hierarchical_model_robust", spy)
    monkeypatch.setattr(hbm.robust, "FAST", {"draws": 60, "tune": 100, "chains": 2})
    robust_estimates(small)
    assert used == [60, 2000]
    monkeypatch.setattr(hbm.diagnostics, "MAX_RHAT", 0.9)
    with pytest.raises(DiagnosticsError, match="R-hat"):
        robust_estimates(small)


def test_fast_settings_can_pass():
    assert FAST["draws"] > 2 * hbm.diagnostics.MIN_ESS_PER_CHAIN


# --- outliers ----------------------------------------------------------------


@pytest.fixture(scope="module")
def outliers(small):
    """A creator with little noise, and the same with much, at its genre and far from it."""
    creator = small["creator_id"].iloc[7]
    return {se: outlier_study(small, creator, [0, 3, 8], se=se) for se in (0.08, 0.5)}


def columns(study, model):
    return study[study["model"] == model].set_index("distance")


def test_an_outlier_is_put_where_it_was_asked_for(small, outliers):
    study, creator = outliers[0.5], small["creator_id"].iloc[7]
    assert study["model"].tolist() == ["normal", "robust"] * 3
    assert (study["se"] == 0.5).all()
    rest = fit_hierarchical_model(small[small["creator_id"] != creator], engine="exact")
    center = extract_genre_estimates(rest).set_index("genre")["mean"][small["genre"].iloc[7]]
    plain = columns(study, "normal")["plain"]
    assert plain[0] == pytest.approx(center)
    spread = float(rest["posterior"]["sigma_creator"].mean())
    assert plain[8] - plain[0] == pytest.approx(8 * spread, rel=0.02)
    moved = small.assign(
        effect_hat=small["effect_hat"].where(small["creator_id"] != creator, plain[8]),
        se=small["se"].where(small["creator_id"] != creator, 0.5),
    )
    made = extract_hbm_estimates(fit_hierarchical_model(moved, engine="exact"), moved)
    own = made.set_index("creator_id").loc[creator]
    normal = columns(study, "normal").loc[8]
    assert normal["effect_hat"] == pytest.approx(own["effect_hat"])
    others = made[(made["genre"] == own["genre"]) & (made["creator_id"] != creator)]
    assert normal["others"] == pytest.approx(others["effect_hat"].mean())


def test_far_out_the_robust_model_pulls_less_and_the_normal_one_never_lets_go(outliers):
    study = outliers[0.5]
    normal, robust = (columns(study, model)["shrinkage"] for model in ("normal", "robust"))
    assert robust[8] < 0.8 * robust[0]
    assert robust[8] < 0.9 * normal[8]
    assert abs(robust[0] - normal[0]) < 0.1


def test_a_sure_outlier_moves_and_widens_the_others_less_in_the_robust_model(outliers):
    study = outliers[0.08]
    normal, robust = (columns(study, model) for model in ("normal", "robust"))
    assert robust["others"][8] - robust["others"][0] < 0.5 * (
        normal["others"][8] - normal["others"][0]
    )
    growth = [frame["width"][8] / frame["width"][0] for frame in (normal, robust)]
    assert growth[1] - 1 < 0.7 * (growth[0] - 1)
    assert robust["nu"][8] < 0.7 * robust["nu"][0]
    assert normal["nu"].isna().all()
    for frame in (normal, robust):  # and both believe its own estimate
        assert frame["shrinkage"][8] < 0.1


def test_only_a_creator_with_company_can_be_moved(small):
    with pytest.raises(KeyError, match="no creator 'nobody'"):
        outlier_study(small, "nobody", [0])
    lonely = small.assign(genre_idx=np.where(np.arange(48) == 7, 1, 0)).drop(columns="genre")
    with pytest.raises(ValueError, match="is the only one of its genre"):
        outlier_study(lonely, lonely["creator_id"].iloc[7], [0])


# --- predictive checks --------------------------------------------------------------------------


def test_the_integrated_likelihood_is_that_of_the_student(fit, small):
    tree = with_log_likelihood(fit)
    found = tree["log_likelihood"]["effect_hat"]
    assert found.dims == ("chain", "draw", "creator")
    posterior = fit["posterior"].dataset.isel(chain=1, draw=17)
    for i in (0, 20, 47):
        row = small.iloc[[i]].assign(genre_idx=0)
        mu = posterior["mu_genre"].values[[small["genre_idx"].iloc[i]]]
        exact = brute_density(row, mu, float(posterior["sigma_creator"]), float(posterior["nu"]))
        assert float(found[1, 17, i]) == pytest.approx(exact, abs=2e-5)


def test_heavy_tails_are_predicted_better_by_the_robust_model():
    summaries = heavy(8, SIZES, nu=2.2, se=(0.05, 0.2))
    robust = leave_one_out(fit_hierarchical_model_robust(summaries))
    with pytest.warns(UserWarning, match="Pareto"):
        normal = leave_one_out(fit_hierarchical_model(summaries, engine="exact"))
    assert robust.pareto_k["max_k"].item() < normal.pareto_k["max_k"].item()
    difference = robust.elpd.elpd_i - normal.elpd.elpd_i
    error = float(difference.std()) * np.sqrt(len(summaries))
    assert float(difference.sum()) > 2 * error


def test_pit_and_replicated_creators_are_those_of_the_model(fit, small):
    pit = loo_pit(fit)["pit"]
    assert stats.kstest(pit, "uniform").pvalue > 1e-4
    replicated = posterior_predictive(fit, draws=4000, seed=1)["posterior_predictive"]["effect_hat"]
    posterior = fit["posterior"].dataset
    i = int(small["se"].argmin())
    sd = float(np.hypot(posterior["sigma_creator"].mean(), small["se"].iloc[i]))
    mean = float(posterior["mu_genre"].mean(("chain", "draw"))[small["genre_idx"].iloc[i]])
    far = np.abs(replicated.values[0, :, i] - mean) > 4 * sd
    assert far.mean() > 4 * 2 * stats.norm.sf(4)  # many times what a normal would give
    assert abs(np.median(replicated.values[0, :, i]) - mean) < 0.1
