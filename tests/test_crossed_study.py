"""Simulated crossed platforms, what models score on them, and the calibration of the fit."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy.stats import multivariate_normal

from hbm.crossed.calibration import QUANTITIES, log_density_given, run_crossed_sbc, small_design
from hbm.crossed.likelihood import Sigmas
from hbm.crossed.loo import compare_crossed
from hbm.crossed.posterior import CrossedPriors, make_likelihood
from hbm.crossed.study import (
    FACTORS,
    MODELS,
    Fitted,
    crossed_study,
    simulate_crossed,
    summarize_crossed,
)
from hbm.priors import HalfNormal, Normal
from hbm.sbc import sbc_verdicts


def test_a_platform_is_what_it_says():
    summaries, truth = simulate_crossed(4, n_creators=20_000, shape=(4, 3), evenness=5.0)
    cell = truth["creator_cell"]
    assert (summaries["genre"] == np.array(truth["genres"])[cell[:, 0]]).all()
    assert (summaries["segment"] == np.array(truth["segments"])[cell[:, 1]]).all()
    away = truth["creator_effects"] - truth["cell_effects"][*cell.T]
    n = len(away)
    assert abs(away.mean()) < K * 0.4 / n**0.5
    assert abs(away.std() - 0.4) < K * 0.4 / (2 * n) ** 0.5
    z = (summaries["effect_hat"] - truth["creator_effects"]) / summaries["se"]
    assert abs(z.mean()) < K / n**0.5
    again, _ = simulate_crossed(4, n_creators=20_000, shape=(4, 3), evenness=5.0)
    pd.testing.assert_frame_equal(summaries, again)


def test_effects_of_platforms_have_the_stated_variances():
    """Over platforms: rows, columns and interactions, by the analysis of variance."""
    shape, sigmas = (4, 6), (0.5, 0.2, 0.3)
    cells = np.array(
        [
            simulate_crossed(
                seed,
                shape=shape,
                n_creators=2,
                sigma_factors=sigmas[:2],
                sigma_interaction=sigmas[2],
            )[1]["cell_effects"]
            for seed in range(300)
        ]
    )
    row, column = cells.mean(axis=2), cells.mean(axis=1)
    rest = cells - row[:, :, None] - column[:, None] + cells.mean(axis=(1, 2))[:, None, None]
    a, b, c = np.square(sigmas)
    found = [
        row.var(axis=1, ddof=1),
        column.var(axis=1, ddof=1),
        np.square(rest).sum(axis=(1, 2)) / (3 * 5),
    ]
    expected = [a + c / shape[1], b + c / shape[0], c]
    for values, variance in zip(found, expected, strict=True):
        assert abs(values.mean() - variance) < K * values.std(ddof=1) / len(values) ** 0.5


def _half_right(summaries, truth, shift=0.0):
    """Tell the truth, but for a shift of every effect and of every cell."""
    pit = np.where(np.arange(len(summaries)) % 2, 0.5, 0.99)
    mean = truth["creator_effects"] + shift
    return Fitted(
        mean, pit, truth["cell_effects"] + 2 * shift, np.full(len(summaries), -shift), True
    )


def test_scores_are_those_of_what_models_say():
    models = {"Crossed": partial(_half_right, shift=0.1), "worse": partial(_half_right, shift=0.3)}
    study = crossed_study(5, models=models, n_creators=40)
    assert study["platform"].tolist() == [k for k in range(5) for _ in range(2)]
    np.testing.assert_allclose(study["mse"], np.tile([0.01, 0.09], 5))
    np.testing.assert_allclose(study["cell_mse"], np.tile([0.04, 0.36], 5))
    np.testing.assert_allclose(study["empty_mse"], np.tile([0.04, 0.36], 5))
    np.testing.assert_allclose(study["coverage"], 0.5)
    table = summarize_crossed(study).set_index("model")
    assert table.loc["worse", "mse_ratio"] == pytest.approx(9)
    assert table.loc["worse", "cell_mse_ratio"] == pytest.approx(9)
    assert table.loc["worse", "mse_ratio_se"] == pytest.approx(0, abs=1e-12)
    assert table.loc["worse", "lead"] == pytest.approx(-0.2 * 40)
    assert table.loc["Crossed", "mse_ratio"] == 1


def test_monte_carlo_errors_of_ratios(rng):
    """Against the spread of the ratio over a hundred studies."""
    n, ratios, errors = 30, [], []
    for _ in range(100):
        base = rng.gamma(4.0, 0.25, n)
        frame = pd.DataFrame(
            {"platform": np.arange(n), "coverage": 1.0, "elpd": 0.0, "seconds": 1.0}
        )
        frame = frame.assign(failed=False)
        scores = {"Crossed": base, "other": base * rng.uniform(1.0, 1.6, n)}
        study = pd.concat(
            [
                frame.assign(model=m, mse=e, small_mse=e, cell_mse=e, empty_mse=e)
                for m, e in scores.items()
            ]
        )
        row = summarize_crossed(study).set_index("model").loc["other"]
        ratios.append(row["mse_ratio"])
        errors.append(row["mse_ratio_se"])
    assert np.mean(ratios) == pytest.approx(1.3, abs=K * np.std(ratios) / 100**0.5)
    # The spread of 100 values is known to a part of 1 / sqrt(200).
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=K / 200**0.5)


def test_the_crossed_model_beats_the_simpler_ones_where_it_should():
    study = crossed_study(20, n_creators=200, sigma_factors=(0.3, 0.5))
    table = summarize_crossed(study).set_index("model")
    assert table["failed"].sum() == 0
    for model, error in (
        ("Genre only", "mse"),
        ("Genre only", "cell_mse"),
        ("Cells as one factor", "cell_mse"),
        ("Cells as one factor", "empty_mse"),
    ):
        by_platform = study.pivot(index="platform", columns="model", values=error)
        lead = np.log(by_platform[model] / by_platform["Crossed"])
        assert lead.mean() > K * lead.sem(), (model, error)
    assert table.loc["Genre only", "lead"] < -K * table.loc["Genre only", "lead_se"]
    coverage = table.loc["Crossed"]
    assert abs(coverage["coverage"] - 0.95) < K * coverage["coverage_se"]


def test_models_are_compared_by_what_they_predict():
    summaries, truth = simulate_crossed(5, n_creators=150, shape=(3, 4))
    table = compare_crossed(summaries).set_index("model")
    assert table["elpd"].is_monotonic_decreasing
    assert (table.loc["crossed", ["elpd_diff", "dse"]] == 0).all()
    for name, model in (
        ("genre only", "Genre only"),
        ("cells as one factor", "Cells as one factor"),
        ("crossed", "Crossed"),
        ("crossed, no interaction", "Crossed, no interaction"),
    ):
        quick = MODELS[model](summaries, truth).elpd.sum()
        assert table.loc[name, "elpd"] == pytest.approx(quick, abs=0.05), name
    difference = table["elpd"] - table.loc["crossed", "elpd"]
    np.testing.assert_allclose(table["elpd_diff"], difference, atol=1e-9)


# ---------------------------------------------------------------------------- calibration


def test_a_design_for_calibration():
    design = small_design()
    cells = design.groupby(list(FACTORS)).size()
    assert (len(design), len(cells)) == (60, 11)
    assert design["creator_id"].is_unique


def test_density_given_the_platform_mean_by_the_dense_normal(rng):
    design = small_design(n_creators=15)
    codes = [design[name].astype("category").cat.codes.to_numpy(int) for name in FACTORS]
    d, se = rng.normal(0.5, 0.5, 15), design["se"].to_numpy()
    priors = CrossedPriors(Normal(0.2, 0.7))
    likelihood = make_likelihood(d, se, np.column_stack(codes), (4, 3), priors)
    sigmas, mu = (0.4, 0.3, 0.2, 0.1), np.array([-0.4, 0.5, 1.3])
    same = [np.equal.outer(code, code) for code in codes]
    covariance = sigmas[1] ** 2 * same[0] + sigmas[2] ** 2 * same[1]
    covariance = covariance + sigmas[3] ** 2 * same[0] * same[1]
    covariance += np.diag(sigmas[0] ** 2 + se**2)
    expected = [multivariate_normal(np.full(15, m), covariance).logpdf(d) for m in mu]
    found = log_density_given(likelihood, Sigmas(*(np.full(3, s) for s in sigmas)), mu)
    # Both but for one constant.
    np.testing.assert_allclose(np.diff(found), np.diff(expected), atol=1e-8)


def ignored(data, priors):
    return data.assign(se=1e3), priors


def wide_interaction(data, priors):
    return data, replace(priors, sigma_interaction=HalfNormal(2.0))


def test_ranks_are_uniform():
    found = run_crossed_sbc(small_design(n_creators=40), 30, draws=99)
    assert found.ranks.columns.tolist() == list(QUANTITIES)
    assert found.fits["quadrature_error"].max() < 1e-2
    # A level at which one right run in 16,000 fails, as at K errors.
    assert sbc_verdicts(found, level=1 - 6e-5)["uniform"].all()


@pytest.mark.slow
def test_faults_are_noticed():
    design = small_design(n_creators=40)
    wide = sbc_verdicts(run_crossed_sbc(design, 60, draws=99, fault=wide_interaction))
    assert not wide.set_index("quantity").loc["sigma_interaction", "uniform"]
    # A posterior that is the prior is noticed by the densities alone.
    prior = sbc_verdicts(run_crossed_sbc(design, 60, draws=99, fault=ignored), level=1 - 6e-5)
    assert set(prior.loc[~prior["uniform"], "quantity"]) == {"log_p_given_hyper", "log_p_given_tau"}
