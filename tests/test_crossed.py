"""Two crossed groupings: against the dense normal, against simpler fits, and their invariances."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from scipy.special import logsumexp
from test_sbc import LEVEL

from hbm import crossed
from hbm.checks import DataError
from hbm.crossed import (
    crossed_effect_cdf,
    crossed_hyper_cdf,
    draw_crossed,
    extract_cell_estimates,
    extract_crossed_estimates,
    extract_sigma_estimates,
    fit_crossed_model,
)
from hbm.crossed import posterior as crossed_posterior
from hbm.crossed.loo import loo_crossed
from hbm.crossed.posterior import CrossedPriors, cell_moments, nodes_of, prior_scales, space_of
from hbm.diagnostics import DiagnosticsError, check_diagnostics
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact.draws import extract_hyper_estimates
from hbm.exact.loo import loo_exact
from hbm.gaussian import creator_moments
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, HalfCauchy, HalfNormal, Normal, Priors

#: A fit aims at 1e-3 standard deviations of the hyperparameters (`hbm.exact.lattice.TOLERANCE`);
#: what creators and cells take from it is smaller.
CLOSE = 2e-3

#: Sizes of the cells: empty ones, single creators, a row and a column with one cell.
SIZES = np.array([[3, 0, 1], [2, 4, 0], [0, 1, 0], [1, 5, 2]])


def table_of(rng, sizes=SIZES, sigmas=(0.3, 0.2, 0.1, 0.4), mean=0.5, se=(0.05, 0.6)):
    """Summaries with so many creators in each cell, in mixed order."""
    first, second, interaction, creator = sigmas
    shape = sizes.shape
    cells = mean + rng.normal(0, first, shape[0])[:, None] + rng.normal(0, second, shape[1])
    cells = cells + rng.normal(0, interaction, shape)
    cell = rng.permutation(np.repeat(np.arange(sizes.size), sizes.ravel()))
    error = rng.uniform(*se, len(cell))
    tau = rng.normal(cells.ravel()[cell], creator)
    j, k = np.divmod(cell, shape[1])
    return pd.DataFrame(
        {
            "creator_id": [f"c{i:02d}" for i in range(len(cell))],
            "genre": np.array([f"g{a}" for a in range(shape[0])], dtype=object)[j],
            "segment": np.array([f"s{b}" for b in range(shape[1])], dtype=object)[k],
            "effect_hat": rng.normal(tau, error),
            "se": error,
            "n_total": 100,
        }
    )


class Dense:
    """The joint normal of everything given the standard deviations, as the model states it."""

    def __init__(self, summaries, sigmas, mu_global=Normal()):
        creator, first, second, interaction = sigmas
        genres, segments = (np.unique(summaries[name]) for name in ("genre", "segment"))
        j, k = (
            np.searchsorted(levels, summaries[name])
            for levels, name in ((genres, "genre"), (segments, "segment"))
        )
        n, (n_j, n_k) = len(summaries), (len(genres), len(segments))
        # mu, the effects of both factors and of all cells, and the creators' own deviations
        prior = [mu_global.sigma**2, *[first**2] * n_j, *[second**2] * n_k]
        prior = np.diag([*prior, *[interaction**2] * (n_j * n_k), *[creator**2] * n])
        self.mean = np.zeros(len(prior))
        self.mean[0] = mu_global.mu
        place = np.arange(n)
        effects = np.zeros((n, len(prior)))
        effects[:, 0] = 1
        effects[place, 1 + j] = effects[place, 1 + n_j + k] = 1
        effects[place, 1 + n_j + n_k + j * n_k + k] = 1
        effects[place, 1 + n_j + n_k + n_j * n_k + place] = 1
        covariance = effects @ prior @ effects.T + np.diag(np.square(summaries["se"]))
        observed = summaries["effect_hat"].to_numpy()
        self.normal = stats.multivariate_normal(effects @ self.mean, covariance)
        self.log_density = self.normal.logpdf(observed)
        gain = np.linalg.solve(covariance, effects @ prior).T
        mean = self.mean + gain @ (observed - effects @ self.mean)
        covariance = prior - gain @ effects @ prior
        cells = np.zeros((n_j * n_k, len(prior)))
        cells[:, 0] = 1
        a, b = np.divmod(np.arange(n_j * n_k), n_k)
        for column in (1 + a, 1 + n_j + b, 1 + n_j + n_k + np.arange(n_j * n_k)):
            cells[np.arange(n_j * n_k), column] = 1
        parts = {
            "mu_global": np.eye(len(prior))[:1],
            "first": np.eye(len(prior))[1 : 1 + n_j],
            "second": np.eye(len(prior))[1 + n_j : 1 + n_j + n_k],
            "interaction": np.eye(len(prior))[1 + n_j + n_k :][: n_j * n_k],
            "cell": cells,
            "tau": effects,
        }
        self.moments = {
            name: (part @ mean, np.einsum("ip,pq,iq->i", part, covariance, part))
            for name, part in parts.items()
        }
        self.joint = {name: part @ covariance @ effects.T for name, part in parts.items()}


def fixed(sigmas, mu_global=Normal()):
    creator, first, second, interaction = map(Fixed, sigmas)
    return CrossedPriors(mu_global, (first, second), interaction, creator)


GIVEN = [
    (0.4, 0.3, 0.2, 0.1),
    (0.4, 0.3, 0.2, 0.0),
    (0.4, 0.0, 0.7, 0.1),
    (0.05, 3.0, 0.0, 0.0),
    (2.0, 0.0, 0.0, 0.0),
    (0.3, 0.1, 5.0, 2.0),
]


@pytest.fixture(params=["more genres", "more segments"])
def small(request, rng):
    return table_of(rng, SIZES if request.param == "more genres" else SIZES.T)


# --------------------------------------------------------------- given the standard deviations


@pytest.mark.parametrize("sigmas", GIVEN)
def test_everything_given_the_sigmas_against_the_dense_normal(small, sigmas):
    mu_global = Normal(-0.3, 0.8)
    dense = Dense(small, sigmas, mu_global)
    fit = fit_crossed_model(small, priors=fixed(sigmas, mu_global), draws=0)
    assert fit.attrs["log_marginal_likelihood"] == pytest.approx(dense.log_density, abs=1e-9)
    assert fit["lattice"].sizes["node"] == 1
    likelihood, nodes = space_of(fit).likelihood, nodes_of(fit)
    effects = likelihood.effects(nodes.sigmas)
    for name in ("mu_global", "first", "second", "interaction", "cell"):
        found = getattr(effects, name)
        for part, expected in zip(found, dense.moments[name], strict=True):
            np.testing.assert_allclose(part.ravel(), expected, rtol=1e-8, atol=1e-10)
    cells = cell_moments(likelihood, nodes.sigmas)
    tau = creator_moments(likelihood.data, cells, nodes.sigma_creator)
    for part, expected in zip(tau, dense.moments["tau"], strict=True):
        np.testing.assert_allclose(likelihood.data.unsort(part[0]), expected, rtol=1e-8, atol=1e-10)


def test_far_from_zero_no_digits_are_lost(small):
    sigmas, away = GIVEN[0], 1e6
    near = fit_crossed_model(small, priors=fixed(sigmas), draws=0)
    moved = small.assign(effect_hat=small["effect_hat"] + away)
    far = fit_crossed_model(moved, priors=fixed(sigmas, Normal(away, 1.0)), draws=0)
    for fit in (near, far):
        assert fit.attrs["log_marginal_likelihood"] == pytest.approx(
            near.attrs["log_marginal_likelihood"], abs=1e-7
        )
    np.testing.assert_allclose(
        extract_cell_estimates(far)["mean"] - away, extract_cell_estimates(near)["mean"], atol=1e-8
    )


@pytest.mark.parametrize("sigmas", [GIVEN[0], GIVEN[3]])
def test_draws_given_the_sigmas_have_the_dense_moments(small, sigmas):
    dense = Dense(small, sigmas)
    fit = fit_crossed_model(small, priors=fixed(sigmas), draws=3000, chains=1)
    drawn = fit["posterior"].dataset.squeeze("chain")
    names = {
        "mu_global": "mu_global", "effect_genre": "first", "effect_segment": "second",
        "interaction": "interaction", "mu_cell": "cell", "tau": "tau",
    }  # fmt: skip
    tau = drawn["tau"].values
    for ours, theirs in names.items():
        values = drawn[ours].values.reshape(3000, -1)
        mean, var = dense.moments[theirs]
        sd = np.sqrt(np.maximum(var, 1e-14))
        z = (values.mean(axis=0) - mean) / sd * np.sqrt(3000)
        assert np.abs(z[var > 1e-12]).max(initial=0) < K
        # Draws are joint: their covariance with the creators' effects is right, too.
        away, tau_away = values - values.mean(axis=0), tau - tau.mean(axis=0)
        scale = np.sqrt(np.outer(np.maximum(var, 1e-14), dense.moments["tau"][1]))
        found = away.T @ tau_away / 3000
        # A product of normals with correlation r has the variance 1 + r² <= 2.
        gap = np.abs((found - dense.joint[theirs]) / scale)[var > 1e-12]
        assert gap.max(initial=0) < (K + 1) * np.sqrt(2 / 3000)


# --------------------------------------------------------------------- against other integrals


def test_the_integral_against_draws_from_the_prior(rng):
    """Importance sampling with dense normals shares nothing with the lattice."""
    summaries = table_of(rng, np.array([[3, 2, 2], [2, 0, 3]]))
    priors = CrossedPriors(sigma_factors=(HalfNormal(0.5), HalfCauchy(0.3)))
    n = 40_000
    draws = np.column_stack([p.scipy().rvs(n, random_state=rng) for p in priors.sigmas])
    same = {
        name: np.equal.outer(summaries[name].to_numpy(), summaries[name].to_numpy()).astype(float)
        for name in ("genre", "segment")
    }
    parts = np.eye(len(summaries)), same["genre"], same["segment"], same["genre"] * same["segment"]
    covariance = np.einsum("ns,sij->nij", np.square(draws), np.array(parts))
    covariance += np.diag(np.square(summaries["se"])) + 1.0
    factor = np.linalg.cholesky(covariance)
    d = np.broadcast_to(summaries["effect_hat"].to_numpy()[:, None], (n, len(summaries), 1))
    z = np.linalg.solve(factor, d)[..., 0]
    log_density = -0.5 * np.square(z).sum(axis=1) - 0.5 * len(summaries) * np.log(2 * np.pi)
    log_density -= np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    fit = fit_crossed_model(summaries, priors=priors, draws=0)
    weight = np.exp(log_density - logsumexp(log_density))
    error = np.sqrt(np.square(weight - 1 / n).sum())
    evidence = logsumexp(log_density) - np.log(n)
    assert abs(fit.attrs["log_marginal_likelihood"] - evidence) < K * error
    assert error < 0.02  # the referee is sharp enough to mean something
    names = ["sigma_creator", "sigma_genre", "sigma_segment", "sigma_interaction"]
    for name, values in zip(names, draws.T, strict=True):
        for x in (0.1, 0.3, 0.8):
            below = values <= x
            p = weight @ below
            se = np.sqrt(np.square(weight) @ np.square(below - p))
            assert abs(crossed_hyper_cdf(fit, name, x) - p) < K * se + CLOSE, (name, x)


@pytest.mark.parametrize("factor", ["genre", "segment", "cell"])
def test_one_grouping_alone_is_what_the_exact_engine_finds(rng, factor):
    summaries = table_of(rng, 2 * SIZES)
    none, free = Fixed(0.0), HalfNormal(0.7)
    priors = {
        "genre": CrossedPriors(sigma_factors=(free, none), sigma_interaction=none),
        "segment": CrossedPriors(sigma_factors=(none, free), sigma_interaction=none),
        "cell": CrossedPriors(sigma_factors=(none, none), sigma_interaction=free),
    }[factor]
    group = summaries["genre"] + summaries["segment"] if factor == "cell" else summaries[factor]
    simple = summaries.drop(columns="genre").assign(genre_idx=pd.factorize(group, sort=True)[0])
    exact = fit_hierarchical_model(simple, engine="exact", draws=0, priors=Priors(sigma_genre=free))
    fit = fit_crossed_model(summaries, priors=priors, draws=0)
    assert fit.attrs["log_marginal_likelihood"] == pytest.approx(
        exact.attrs["log_marginal_likelihood"], abs=CLOSE
    )
    one, two = extract_crossed_estimates(fit, summaries), extract_hbm_estimates(exact, simple)
    for name in ("effect_hat", "se", "ci_lower", "ci_upper"):
        assert np.abs(one[name] - two[name]).max() < CLOSE * two["se"].min(), name
    for name in ("p_positive", "shrinkage"):
        np.testing.assert_allclose(one[name], two[name], atol=CLOSE)
    hyper = extract_hyper_estimates(exact).set_index("parameter")
    own = extract_sigma_estimates(fit).set_index("parameter")
    named = "sigma_interaction" if factor == "cell" else f"sigma_{factor}"
    for ours, theirs in (("mu_global",) * 2, (named, "sigma_genre"), ("sigma_creator",) * 2):
        gap = np.abs(own.loc[ours] - hyper.loc[theirs]) / hyper.loc[theirs, "se"]
        assert gap[["mean", "se"]].max() < CLOSE, ours
        assert gap[["lower", "upper"]].max() < 10 * CLOSE, ours  # between few nodes
    left, right = loo_crossed(fit), loo_exact(exact)
    np.testing.assert_allclose(left.pointwise["elpd"], right.pointwise["elpd"], atol=CLOSE)
    np.testing.assert_allclose(left.pointwise["pit"], right.pointwise["pit"], atol=CLOSE)
    if factor != "cell":
        means = extract_genre_estimates(exact)
        cells = extract_cell_estimates(fit).drop_duplicates(factor).sort_values(factor)
        np.testing.assert_allclose(cells["mean"], means["mean"], atol=CLOSE * means["se"].min())


def test_a_finer_lattice_changes_no_more_than_was_said(rng, monkeypatch):
    for sizes in (SIZES, np.full((2, 2), 20)):
        summaries = table_of(rng, sizes)
        quick, usual = (fit_crossed_model(summaries, draws=0, quick=q) for q in (True, False))
        with monkeypatch.context() as finer:
            finer.setattr(crossed, "TOLERANCE", 2e-5)
            best = fit_crossed_model(summaries, draws=0)
        assert best["lattice"].sizes["node"] > usual["lattice"].sizes["node"]
        reference = extract_crossed_estimates(best, summaries)
        for fit in (quick, usual):
            stated = fit.attrs["quadrature_error"]
            assert stated < (1e-2 if fit is quick else 2e-3)
            evidence = fit.attrs["log_marginal_likelihood"] - best.attrs["log_marginal_likelihood"]
            assert abs(evidence) < 2 * stated
            found = extract_crossed_estimates(fit, summaries)
            for name, times in (("effect_hat", 2), ("se", 2), ("ci_lower", 5), ("ci_upper", 5)):
                gap = np.abs(found[name] - reference[name]) / reference["se"]
                assert gap.max() < times * stated, name


def test_few_nodes_do_where_there_are_many_creators(rng, monkeypatch):
    summaries = table_of(rng, 3 * SIZES)
    whole = fit_crossed_model(summaries, draws=0)
    monkeypatch.setattr(crossed_posterior, "MAX_WORK", 0)
    few = fit_crossed_model(summaries, draws=0)
    assert few["mixture"].sizes["node"] <= 126 < whole["mixture"].sizes["node"]
    one, two = (extract_crossed_estimates(fit, summaries) for fit in (few, whole))
    stated = few.attrs["quadrature_errors"]["effects"]
    assert 0 < stated < 5e-3
    for name in ("effect_hat", "ci_lower", "ci_upper"):
        assert np.abs(one[name] - two[name]).max() < 3 * stated * two["se"].max(), name


# --------------------------------------------------------------------------------- invariances


@pytest.fixture(scope="module")
def usual():
    summaries = table_of(np.random.default_rng(11), 2 * SIZES)
    return summaries, fit_crossed_model(summaries, draws=500)


def same_estimates(one, two):
    one, two = (frame.set_index("creator_id").sort_index() for frame in (one, two))
    for name in ("effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-8, atol=1e-9, err_msg=name)


def test_relabelling_the_levels_changes_nothing(usual):
    summaries, fit = usual
    # The new names sort in another order, and one factor is numbers.
    names = {"g0": "z", "g1": "b", "g2": "y", "g3": "a"}, {"s0": 7, "s1": 3, "s2": 5}
    renamed = summaries.assign(
        genre=summaries["genre"].map(names[0]), segment=summaries["segment"].map(names[1])
    )
    other = fit_crossed_model(renamed, draws=0)
    assert other.attrs["log_marginal_likelihood"] == pytest.approx(
        fit.attrs["log_marginal_likelihood"], abs=1e-10
    )
    same_estimates(
        extract_crossed_estimates(fit, summaries), extract_crossed_estimates(other, renamed)
    )
    cells = extract_cell_estimates(fit).replace({"genre": names[0], "segment": names[1]})
    pd.testing.assert_frame_equal(
        cells.sort_values(["genre", "segment"], ignore_index=True),
        extract_cell_estimates(other).astype({"segment": cells["segment"].dtype}),
        rtol=1e-7,
    )


def test_swapping_the_factors_changes_nothing(usual):
    summaries, _ = usual
    priors = CrossedPriors(sigma_factors=(HalfNormal(0.5), HalfNormal(2.0)))
    turned = CrossedPriors(sigma_factors=priors.sigma_factors[::-1])
    one = fit_crossed_model(summaries, priors=priors, draws=0)
    two = fit_crossed_model(summaries, ("segment", "genre"), priors=turned, draws=0)
    # The lattice is another one: the order of its directions decides how it is refined.
    assert one.attrs["log_marginal_likelihood"] == pytest.approx(
        two.attrs["log_marginal_likelihood"], abs=1e-6
    )
    same = [extract_crossed_estimates(fit, summaries) for fit in (one, two)]
    np.testing.assert_allclose(same[0]["effect_hat"], same[1]["effect_hat"], atol=1e-6)
    np.testing.assert_allclose(same[0]["ci_upper"], same[1]["ci_upper"], atol=1e-6)
    by = ["genre", "segment"]
    cells = [extract_cell_estimates(fit).sort_values(by) for fit in (one, two)]
    np.testing.assert_array_equal(cells[0]["n_creators"], cells[1]["n_creators"])
    np.testing.assert_allclose(cells[0]["mean"], cells[1]["mean"], atol=1e-6)
    sigmas = [
        extract_sigma_estimates(fit).set_index("parameter").sort_index() for fit in (one, two)
    ]
    np.testing.assert_allclose(sigmas[0], sigmas[1], atol=1e-6)
    elpd = [loo_crossed(fit).pointwise["elpd"] for fit in (one, two)]
    np.testing.assert_allclose(elpd[0], elpd[1], atol=1e-6)


def test_the_order_of_the_creators_changes_nothing(usual, rng):
    summaries, fit = usual
    mixed = summaries.sample(frac=1, random_state=3)
    same_estimates(
        extract_crossed_estimates(fit, summaries),
        extract_crossed_estimates(fit_crossed_model(mixed, draws=0), mixed),
    )


def test_units_do_not_matter_with_priors_from_the_data(usual):
    summaries, _ = usual
    fits = []
    for unit in (1.0, 1000.0):
        scaled = summaries.assign(
            effect_hat=unit * summaries["effect_hat"], se=unit * summaries["se"]
        )
        priors = CrossedPriors.weakly_informative(scaled)
        fits.append(
            extract_crossed_estimates(fit_crossed_model(scaled, priors=priors, draws=0), scaled)
        )
    for name in ("effect_hat", "se", "ci_lower"):
        np.testing.assert_allclose(1000 * fits[0][name], fits[1][name], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(fits[0]["p_positive"], fits[1]["p_positive"], atol=1e-6)


# ------------------------------------------------------------------------- what comes out of it


def test_estimates_are_frames_as_everywhere(usual):
    summaries, fit = usual
    estimates = extract_crossed_estimates(fit, summaries)
    assert estimates.columns.tolist() == [
        "creator_id", "genre", "segment", "effect_hat", "se", "ci_lower", "ci_upper", "n_total",
        "p_positive", "shrinkage",
    ]  # fmt: skip
    assert estimates["creator_id"].tolist() == summaries["creator_id"].tolist()
    declared = (estimates["ci_lower"] > 0) | (estimates["ci_upper"] < 0)
    tail = np.minimum(estimates["p_positive"], 1 - estimates["p_positive"])
    np.testing.assert_array_equal(declared, tail < 0.025)
    np.testing.assert_allclose(crossed_effect_cdf(fit, estimates["ci_lower"]), 0.025, atol=1e-9)
    cells = extract_cell_estimates(fit)
    np.testing.assert_array_equal(cells["n_creators"].to_numpy().reshape(4, 3), 2 * SIZES)


def test_draws_agree_with_the_estimates(usual):
    summaries, fit = usual
    drawn = fit["posterior"].dataset
    assert drawn["tau"].dims == ("chain", "draw", "creator")
    n = drawn.sizes["chain"] * drawn.sizes["draw"]
    estimates = extract_crossed_estimates(fit, summaries)
    tau = drawn["tau"].values.reshape(n, -1)
    z = (tau.mean(axis=0) - estimates["effect_hat"]) / estimates["se"] * np.sqrt(n)
    assert np.abs(z).max() < K
    for name in ("mu_global", "sigma_creator", "sigma_interaction", "sigma_genre", "sigma_segment"):
        factor = name.removeprefix("sigma_")
        chosen = (
            drawn["sigma_factor"].sel(factor=factor)
            if factor in ("genre", "segment")
            else drawn[name]
        )
        values = chosen.values.ravel()
        ranks = [crossed_hyper_cdf(fit, name, x) for x in values[:200]]
        assert stats.kstest(ranks, "uniform").pvalue > 1 - LEVEL, name
    cells = extract_cell_estimates(fit)
    z = drawn["mu_cell"].values.reshape(n, -1).mean(axis=0) - cells["mean"]
    assert np.abs(z / cells["se"] * np.sqrt(n)).max() < K
    parts = drawn["mu_global"] + drawn["effect_genre"] + drawn["effect_segment"]
    np.testing.assert_allclose(parts + drawn["interaction"], drawn["mu_cell"], atol=1e-12)


def test_an_empty_cell_is_known_from_its_row_and_column(rng):
    sizes = np.full((5, 5), 30)
    sizes[0, 0] = 0
    # Effects of ±1 without interaction: the empty cell lies far outside of all others.
    summaries = table_of(rng, sizes, sigmas=(0, 0, 0, 0.2), se=(0.05, 0.1))
    for column, level in (("genre", "g0"), ("segment", "s0")):
        summaries.loc[summaries[column] == level, "effect_hat"] += 1.0
    cells = extract_cell_estimates(fit_crossed_model(summaries, draws=0))
    empty = cells[cells["n_creators"] == 0].squeeze()
    assert (empty["genre"], empty["segment"]) == ("g0", "s0")
    assert abs(empty["mean"] - 2.5) < K * empty["se"]
    assert empty["se"] > cells.loc[cells["n_creators"] > 0, "se"].max()


def test_a_narrow_prior_holds_the_interaction_back(rng):
    summaries = table_of(rng, np.array([[2, 1], [1, 2], [1, 1]]))
    widths = [0.05, 0.25, 1.0, 4.0]
    fits = [
        fit_crossed_model(
            summaries, priors=CrossedPriors(sigma_interaction=HalfNormal(width)), draws=0
        )
        for width in widths
    ]
    means = [extract_sigma_estimates(fit).set_index("parameter")["mean"] for fit in fits]
    interaction = [mean["sigma_interaction"] for mean in means]
    assert np.all(np.diff(interaction) > 0)
    without = fit_crossed_model(summaries, interaction=False, draws=0)
    # The narrower the prior, the nearer to no interaction at all.
    elpd = [fit.attrs["log_marginal_likelihood"] for fit in (without, *fits)]
    assert abs(elpd[1] - elpd[0]) < 0.2
    sigma = extract_sigma_estimates(without).set_index("parameter").loc["sigma_interaction"]
    assert (sigma == 0).all()


def test_diagnostics_gate_the_estimates(usual, rng):
    summaries, _ = usual
    fit = fit_crossed_model(summaries, draws=0)
    checked = check_diagnostics(fit)
    assert checked.ok
    assert set(checked.table.index) == {
        "log_evidence", "mu_global", "sigma_creator", "sigma_genre", "sigma_segment",
        "sigma_interaction", "effects",
    }  # fmt: skip
    fit.attrs["quadrature_errors"]["sigma_segment"] = 0.02
    assert not check_diagnostics(fit).ok
    with pytest.raises(DiagnosticsError, match=r"sigma_segment is 2\.0e-02, not below 0\.01"):
        extract_crossed_estimates(fit, summaries)
    extract_crossed_estimates(fit, summaries, check=False)


# ------------------------------------------------------------------------------- leave-one-out


def test_each_creator_as_if_fitted_without_it(rng, monkeypatch):
    monkeypatch.setattr(crossed, "TOLERANCE", 1e-4)
    summaries = table_of(rng)
    fit = fit_crossed_model(summaries, draws=0)
    found = loo_crossed(fit)
    alone = summaries.groupby(["genre", "segment"])["creator_id"].transform("size") == 1
    for i in [0, 1, 2, *np.flatnonzero(alone)[:2], summaries["se"].argmin()]:
        rest = summaries.drop(index=i).reset_index(drop=True)
        if rest["genre"].nunique() < 4:
            continue  # a level is lost: the model without it is the same, but has other coordinates
        without = fit_crossed_model(rest, draws=0)
        expected = fit.attrs["log_marginal_likelihood"] - without.attrs["log_marginal_likelihood"]
        assert found.pointwise["elpd"][i] == pytest.approx(expected, abs=5e-4)
    assert found.elpd == pytest.approx(found.pointwise["elpd"].sum())


def test_an_outlier_is_integrated_anew(rng):
    summaries = table_of(rng, 4 * SIZES)
    summaries.loc[3, "effect_hat"] = 9.0
    fit = fit_crossed_model(summaries, draws=0)
    found = loo_crossed(fit).pointwise
    assert found["refitted"][3]
    assert found["refitted"].sum() < 4
    rest = summaries.drop(index=3).reset_index(drop=True)
    without = fit_crossed_model(rest, draws=0)
    expected = fit.attrs["log_marginal_likelihood"] - without.attrs["log_marginal_likelihood"]
    assert found["elpd"][3] == pytest.approx(expected, abs=CLOSE)
    assert found["pit"][3] > 1 - 1e-9
    quick = loo_crossed(fit, quick=True).pointwise
    assert not quick["refitted"].any()


def test_probability_of_a_smaller_estimate(rng, monkeypatch):
    """By the derivative of the predictive's distribution function: its density."""
    monkeypatch.setattr(crossed, "TOLERANCE", 1e-4)
    summaries = table_of(rng)
    step, near = 0.02 * summaries["se"][4], []
    for shift in (-step, 0.0, step):
        moved = summaries.copy()
        moved.loc[4, "effect_hat"] += shift
        near.append(loo_crossed(fit_crossed_model(moved, draws=0)).pointwise.loc[4])
    slope = (near[2]["pit"] - near[0]["pit"]) / (2 * step)
    assert np.log(slope) == pytest.approx(near[1]["elpd"], abs=0.01)


# ---------------------------------------------------------------------------------- bad input


def bad(summaries, **columns):
    return summaries.assign(**columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns="segment"), "missing column segment; columns found: creator_id"),
        (lambda s: s.drop(columns=["se", "genre"]), "missing columns se, genre"),
        (lambda s: s.assign(segment="all"), "column 'segment' has a single level, 'all'"),
        (lambda s: s.assign(segment=s["genre"].str.upper()), "the same grouping under two names"),
        (
            lambda s: s.assign(
                segment=s["genre"].map(dict.fromkeys(("g0", "g1"), "x")).fillna("y")
            ),
            "column 'genre' is nested in 'segment': each genre has one segment",
        ),
        (
            lambda s: s.assign(segment=s["genre"] + s["segment"]),
            "column 'segment' is nested in 'genre'",
        ),
        (
            lambda s: s.assign(segment=s["segment"].where(s.index != 1)),
            "column 'segment' must not be missing; 1 row breaks it, first creators: 'c01'",
        ),
        (lambda s: s.assign(se=0.0), "column 'se' must be greater than 0"),
        (lambda s: s.assign(creator_id="c"), "column 'creator_id' must be unique"),
        (lambda s: s.iloc[:0], "no rows"),
    ],
)
def test_tables_that_break_a_rule(rng, change, message):
    with pytest.raises(DataError, match=message):
        fit_crossed_model(change(table_of(rng)))


@pytest.mark.parametrize("factors", ["genre", ("genre",), ("genre", "genre"), ("a", "b", "c")])
def test_factors_are_two_columns(rng, factors):
    with pytest.raises(ValueError, match="two different columns"):
        fit_crossed_model(table_of(rng), factors)


def test_names_that_are_taken(rng):
    with pytest.raises(ValueError, match="must not be called creator"):
        fit_crossed_model(
            table_of(rng).rename(columns={"genre": "creator"}), ("creator", "segment")
        )


def test_other_columns_serve_as_well(rng):
    summaries = table_of(rng).rename(columns={"genre": "country", "segment": "device"})
    fit = fit_crossed_model(summaries, ("country", "device"), draws=20)
    assert {"effect_country", "effect_device", "mu_cell"} <= set(fit["posterior"].dataset)
    assert "sigma_country" in extract_sigma_estimates(fit)["parameter"].tolist()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"mu_global": HalfNormal()}, TypeError, "mu_global needs a Normal prior"),
        ({"sigma_factors": (HalfNormal(),)}, TypeError, "a pair of priors"),
        ({"sigma_factors": HalfNormal()}, TypeError, "a pair of priors"),
        ({"sigma_interaction": Normal()}, TypeError, "priors on positive values"),
        ({"sigma_creator": Fixed(0)}, ValueError, "complete pooling"),
    ],
)
def test_priors_that_are_none(settings, error, message):
    with pytest.raises(error, match=message):
        CrossedPriors(**settings)


def test_priors_survive_being_stored():
    priors = CrossedPriors(Normal(0.1, 2.0), (HalfCauchy(0.3), HalfNormal(2.0)), Fixed(0.2))
    assert CrossedPriors.from_json(priors.to_json()) == priors
    assert priors.describe()["sigma_interaction"] == "Fixed(value=0.2)"


def test_estimates_of_other_data_are_refused(usual):
    summaries, fit = usual
    for other, message in (
        (summaries.assign(creator_id=summaries["creator_id"] + "x"), "other creators"),
        (summaries.assign(se=2 * summaries["se"]), "another se"),
        (summaries.assign(genre=summaries["genre"].to_numpy()[::-1]), "other levels"),
    ):
        with pytest.raises(ValueError, match=message):
            extract_crossed_estimates(fit, other)
    with pytest.raises(ValueError, match="more than 10 values"):
        draw_crossed(fit, max_values=10)
    with pytest.raises(ValueError, match="unknown hyperparameter 'sigma_moon'"):
        crossed_hyper_cdf(fit, "sigma_moon", 1.0)
    assert crossed_hyper_cdf(fit, "sigma_genre", -1.0) == 0


# ------------------------------------------------------------------- what identifies the effects


def test_independent_effects_are_a_mean_and_effects_that_sum_to_zero():
    """The covariance of the cells, from independent effects and from projected ones."""
    j, k, a, b, c = 5, 4, 0.3, 0.2, 0.1
    ones = [np.full((n, n), 1 / n) for n in (j, k)]
    rest = [np.eye(n) - one for n, one in zip((j, k), ones, strict=True)]
    independent = (
        a**2 * np.kron(np.eye(j), np.ones((k, k)))
        + b**2 * np.kron(np.ones((j, j)), np.eye(k))
        + c**2 * np.eye(j * k)
    )
    row, column = a**2 + c**2 / k, b**2 + c**2 / j
    zero_sum = (
        (a**2 / j + b**2 / k + c**2 / (j * k)) * np.ones((j * k, j * k))
        + row * np.kron(rest[0], np.ones((k, k)))
        + column * np.kron(np.ones((j, j)), rest[1])
        + c**2 * np.kron(*rest)
    )
    np.testing.assert_allclose(independent, zero_sum, atol=1e-15)
    scales = prior_scales((j, k), (a, b), c).set_index("quantity")
    assert scales.loc["mean of a cell", "independent"] == pytest.approx(independent[0, 0] ** 0.5)
    contrast = np.kron(np.eye(j)[0] - np.eye(j)[1], np.full(k, 1 / k))
    found = (contrast @ independent @ contrast) ** 0.5
    assert scales.loc["difference of two rows' means", "independent"] == pytest.approx(found)
    grand = np.full(j * k, 1 / (j * k))
    assert scales.loc["mean of all cells", "independent"] == pytest.approx(
        (grand @ independent @ grand) ** 0.5
    )
    # The same sigmas under sum-to-zero, by PyMC's definition of its covariance.
    cells = a**2 * np.kron(rest[0], np.ones((k, k))) + b**2 * np.kron(np.ones((j, j)), rest[1])
    cells += c**2 * np.kron(*rest)
    assert scales.loc["mean of a cell", "sum_to_zero"] == pytest.approx(cells[0, 0] ** 0.5)
    assert scales.loc["interaction", "sum_to_zero"] == pytest.approx(
        c * np.kron(*rest)[0, 0] ** 0.5
    )
    assert scales.loc["effect of a level of the first factor", "sum_to_zero"] == pytest.approx(
        a * rest[0][0, 0] ** 0.5
    )
    contrast = (contrast @ cells @ contrast) ** 0.5
    assert scales.loc["difference of two rows' means", "sum_to_zero"] == pytest.approx(contrast)


@pytest.mark.slow
def test_sampling_finds_the_same_posterior(rng):
    """A second implementation, by PyMC from the model as it is stated."""
    import arviz as az
    import pymc as pm

    summaries, priors = table_of(rng, 3 * SIZES, se=(0.2, 0.6)), CrossedPriors()
    codes = [np.unique(summaries[name], return_inverse=True)[1] for name in ("genre", "segment")]
    with pm.Model():
        mu = priors.mu_global.pymc("mu_global")
        names = ("sigma_creator", "sigma_genre", "sigma_segment", "sigma_interaction")
        creator, first, second, interaction = (
            prior.pymc(name) for prior, name in zip(priors.sigmas, names, strict=True)
        )
        a = first * pm.Normal("a", shape=(SIZES.shape[0], 1))
        b = second * pm.Normal("b", shape=(1, SIZES.shape[1]))
        c = interaction * pm.Normal("c", shape=SIZES.shape)
        cells = pm.Deterministic("mu_cell", mu + a + b + c)
        spread = pm.math.sqrt(creator**2 + summaries["se"].to_numpy() ** 2)
        pm.Normal("d", cells[*codes], spread, observed=summaries["effect_hat"].to_numpy())
        sampled = pm.sample(
            3000, nuts_sampler="nutpie", target_accept=0.99, random_seed=1, progressbar=False
        )
    posterior = sampled["posterior"].dataset[["mu_global", *names, "mu_cell"]]
    assert az.ess(posterior).to_array().min() > 100
    fit = fit_crossed_model(summaries, draws=0)
    own = extract_sigma_estimates(fit).set_index("parameter")["mean"]
    error, mean = az.mcse(posterior), posterior.mean(("chain", "draw"))
    for name in ("mu_global", *names):
        assert abs(float(mean[name]) - own[name]) < K * float(error[name]), name
    gap = mean["mu_cell"].values.ravel() - extract_cell_estimates(fit)["mean"]
    assert np.abs(gap / error["mu_cell"].values.ravel()).max() < K
