"""Scores against the truth: the arithmetic, the Monte Carlo errors, the claims, and bugs caught."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats

from hbm.baselines import no_pooling_estimates
from hbm.checks import DataError
from hbm.studies import simulate_summaries
from hbm.validation import (
    SIZE_BINS,
    compare_estimators,
    comparison_table,
    compute_avg_interval_width,
    compute_coverage,
    compute_mse,
    coverage_by_distance,
    join_truth,
    oracle_estimates,
    selection_scores,
)

ALL, SMALL, MEDIUM, LARGE = SIZE_BINS


def truth_of(effects, genres=(0.0,), creator_genre=None, sigma_creator=1.0, **more):
    n = len(effects)
    return {
        "genre_effects": np.array(genres, float),
        "creator_effects": np.array(effects, float),
        "creator_genre": np.zeros(n, int) if creator_genre is None else np.array(creator_genre),
        "creator_id": np.array([f"c{i}" for i in range(n)], dtype=object),
        "sigma_creator": sigma_creator,
        **more,
    }


def estimates_of(effects, half=1.0, n_total=50):
    effects, half = np.array(effects, float), np.array(half, float)
    return pd.DataFrame(
        {
            "creator_id": [f"c{i}" for i in range(len(effects))],
            "genre": "g",
            "effect_hat": effects,
            "se": half / 1.96,
            "ci_lower": effects - half,
            "ci_upper": effects + half,
            "n_total": n_total,
        }
    )


def z_coverage(n_total):
    """Coverage of effect ± 1.96 se: t with n - 2 degrees of freedom, the arms being equal."""
    return np.mean(1 - 2 * stats.t.sf(1.96, n_total - 2))


def oracle_coverage(n_total, near, far, sigma=0.4, sigma_obs=2.0):
    """Coverage of the oracle for creators `near` to `far` sds from their genre's mean."""
    probability = np.linspace(*stats.halfnorm.cdf([near, far]), 2001)
    distance = sigma * stats.halfnorm.ppf((probability[1:] + probability[:-1]) / 2)[:, None]
    n_treatment = np.rint(n_total / 2)
    se = sigma_obs * np.sqrt(1 / n_treatment + 1 / (n_total - n_treatment))
    pull = se**2 / (se**2 + sigma**2)
    half, noise = 1.96 * sigma * np.sqrt(pull), (1 - pull) * se
    upper, lower = (pull * distance + half) / noise, (pull * distance - half) / noise
    return np.mean(stats.norm.cdf(upper) - stats.norm.cdf(lower))


SMALL_SIZES = np.arange(30, 100)


# --- the three measures ---------------------------------------------------------------------


def test_measures_by_hand():
    assert compute_mse([1, 2, 4], [1, 0, 1]) == pytest.approx(13 / 3)
    assert compute_coverage([0, 0, 0], [1, 1, 1], [1, 0.5, 1.1]) == pytest.approx(2 / 3)
    assert compute_avg_interval_width(pd.Series([0, 1]), pd.Series([1, 4])) == 2
    assert isinstance(compute_mse(np.ones(2), pd.Series([1, 1])), float)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute_mse([1, 2], [1]), r"lengths must agree: estimates \(2,\), truth \(1,\)"),
        (lambda: compute_mse([1, np.nan], [1, 2]), "estimates: 1 of 2 values are NaN"),
        (lambda: compute_mse([], []), "no values"),
        (lambda: compute_coverage([0], [1], [np.nan]), "truth: 1 of 1"),
        (lambda: compute_coverage([1, 0], [0, 1], [0, 0]), "ci_lower lies above ci_upper in 1"),
        (lambda: compute_avg_interval_width([0, 1], [1]), "lengths must agree"),
    ],
)
def test_measures_refuse_what_they_cannot_score(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- joining by id --------------------------------------------------------------------------


def test_join_goes_by_id_and_keeps_the_order_of_the_estimates():
    truth = truth_of([1, 2, 3], genres=[10, 20], creator_genre=[0, 1, 1])
    shuffled = estimates_of([1, 2, 3]).iloc[[2, 0, 1]]
    joined = join_truth(shuffled, truth)
    assert joined["effect_true"].tolist() == [3, 1, 2]
    assert joined["genre_mean_true"].tolist() == [20, 10, 20]
    assert joined.index.tolist() == [2, 0, 1]


def test_shuffling_rows_changes_no_score():
    summaries, truth = simulate_summaries(1, n_creators_per_genre=20)
    estimates = no_pooling_estimates(summaries)
    shuffled = estimates.sample(frac=1, random_state=0)
    expected = compare_estimators({"a": estimates}, truth)
    pd.testing.assert_frame_equal(compare_estimators({"a": shuffled}, truth), expected)
    by_distance = coverage_by_distance({"a": estimates}, truth)
    pd.testing.assert_frame_equal(coverage_by_distance({"a": shuffled}, truth), by_distance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.iloc[1:], r"1 creator in the truth only \('c0'\)"),
        (lambda e: e.replace({"creator_id": {"c1": "x"}}), r"in the estimates only \('x'\)"),
        (lambda e: pd.concat([e, e.iloc[[2]]]), r"1 creator twice in the estimates \('c2'\)"),
        (lambda e: e.assign(creator_id=[0, 1, 2]), r"3 creators in the estimates only \(0, 1, 2\)"),
        (lambda e: e.drop(columns="creator_id"), "missing column creator_id"),
    ],
)
def test_a_mismatch_of_ids_raises_and_names_them(change, message):
    with pytest.raises(ValueError, match=message):
        join_truth(change(estimates_of([1, 2, 3])), truth_of([1, 2, 3]))


def test_an_id_twice_in_the_truth_raises():
    truth = truth_of([1, 2])
    truth["creator_id"] = np.array(["c0", "c0"], dtype=object)
    with pytest.raises(ValueError, match=r"twice in the truth \('c0'\)"):
        join_truth(estimates_of([1]), truth)


# --- the comparison -------------------------------------------------------------------------


def test_comparison_by_hand():
    truth = truth_of([0, 0, 0, 0])
    estimates = estimates_of([0, 2, 1, -1], half=[1, 1, 2, 0.5], n_total=[10, 20, 100, 1000])
    table = compare_estimators({"it": estimates}, truth).set_index("size_bin")
    assert table.loc[ALL, "mse"] == 1.5
    assert table.loc[ALL, "mse_se"] == pytest.approx(np.std([0, 4, 1, 1], ddof=1) / 2)
    assert table.loc[ALL, "bias"] == 0.5
    assert table.loc[ALL, "coverage"] == 0.5
    assert table.loc[ALL, "width"] == 2.25
    assert table.loc[SMALL, ["mse", "coverage", "width"]].tolist() == [2, 0.5, 2]
    assert table.loc[LARGE, "coverage"] == 0
    assert table.loc[LARGE, "coverage_se"] > 0
    columns = [
        "estimator",
        "size_bin",
        "n_creators",
        "mse",
        "mse_se",
        "bias",
        "coverage",
        "coverage_se",
        "width",
    ]
    assert compare_estimators({"it": estimates}, truth).columns.tolist() == columns


def test_bins_begin_at_100_and_at_500():
    estimates = estimates_of(np.zeros(5), n_total=[99, 100, 499, 500, 4])
    table = compare_estimators({"it": estimates}, truth_of(np.zeros(5)))
    assert table.set_index("size_bin")["n_creators"].to_dict() == {
        ALL: 5,
        SMALL: 2,
        MEDIUM: 2,
        LARGE: 1,
    }


def test_an_empty_bin_is_shown_as_empty():
    comparison = compare_estimators({"it": estimates_of([1, 2])}, truth_of([1, 2]))
    large = comparison.set_index("size_bin").loc[LARGE]
    assert large["n_creators"] == 0
    assert np.isnan(large["mse"])
    assert comparison_table(comparison).loc["MSE, n ≥ 500", "it"] == "–"


def test_comparison_needs_sizes_and_estimators():
    with pytest.raises(ValueError, match="n_total: 2 of 2 values are NaN"):
        compare_estimators({"it": estimates_of([1, 2], n_total=np.nan)}, truth_of([1, 2]))
    with pytest.raises(DataError, match="estimates of 'it': missing column ci_upper"):
        compare_estimators({"it": estimates_of([1]).drop(columns="ci_upper")}, truth_of([1]))
    with pytest.raises(ValueError, match="no estimator"):
        compare_estimators({}, truth_of([1]))


def test_the_table_has_the_plans_rows_and_text_cells():
    truth = truth_of([0, 0, 0, 0])
    estimates = estimates_of([0, 2, 1, -1], n_total=[10, 20, 100, 1000])
    table = comparison_table(compare_estimators({"b": estimates, "a": estimates}, truth))
    assert table.columns.tolist() == ["b", "a"]
    assert table.index.tolist() == [
        "MSE, all creators",
        "MSE, n < 100",
        "MSE, 100 ≤ n < 500",
        "MSE, n ≥ 500",
        "Coverage of 95% intervals",
        "Mean width of 95% intervals",
    ]
    assert table.loc["MSE, all creators", "a"] == "1.5000 ± 0.8660"
    assert table.loc["Mean width of 95% intervals", "a"] == "2.000"
    assert "| MSE, all creators" in table.to_markdown()


def test_distance_bins_begin_at_one_and_two_sds():
    truth = truth_of([0.99, -1.0, 1.99, 2.0, 5], sigma_creator=1.0)
    estimates = estimates_of([0.99, 9, 1.99, 9, 5], n_total=[50, 50, 500, 50, 50])
    table = coverage_by_distance({"it": estimates}, truth)
    assert ", ".join(table) == (
        "distance_bin, estimator, size_bin, n_creators, coverage, coverage_se"
    )
    overall = table[table["size_bin"] == ALL].set_index("distance_bin")
    assert overall["n_creators"].to_dict() == {"< 1 sd": 1, "1 to 2 sd": 2, "≥ 2 sd": 2}
    assert overall["coverage"].to_dict() == {"< 1 sd": 1, "1 to 2 sd": 0.5, "≥ 2 sd": 0.5}
    small = table[table["size_bin"] == SMALL].set_index("distance_bin")
    assert small.loc["1 to 2 sd", ["n_creators", "coverage"]].tolist() == [1, 0]
    with pytest.raises(ValueError, match="sigma_creator > 0"):
        coverage_by_distance({"it": estimates}, truth | {"sigma_creator": 0.0})


# --- the oracle -----------------------------------------------------------------------------


def test_oracle_by_hand():
    truth = truth_of([1, 2], genres=[0, 4], creator_genre=[0, 1], sigma_creator=3, sigma_obs=2.0)
    summaries = pd.DataFrame(
        {
            "creator_id": ["c1", "c0"],
            "genre_idx": [1, 0],
            "effect_hat": [8.0, 10.0],
            "se": [3.0, 3.0],
            "n_treatment": [2, 2],
            "n_control": [2, 2],
        }
    )
    oracle = oracle_estimates(summaries, truth)  # the true se is 2: pull 4 / (4 + 9)
    np.testing.assert_allclose(oracle["effect_hat"], [8 - 4 * 4 / 13, 10 - 10 * 4 / 13])
    np.testing.assert_allclose(oracle["se"], np.sqrt(36 / 13))
    np.testing.assert_allclose(oracle["shrinkage"], 4 / 13)
    as_estimated = oracle_estimates(summaries, truth, known_se=False)
    np.testing.assert_allclose(as_estimated["effect_hat"], [6, 5])
    ungrouped = oracle_estimates(summaries, truth, grouping=False)  # mean 2, variance 9 + 4
    np.testing.assert_allclose(ungrouped["effect_hat"], [8 - 6 * 4 / 17, 10 - 8 * 4 / 17])
    np.testing.assert_allclose(ungrouped["se"], np.sqrt(13 * 4 / 17))
    alike = truth | {"sigma_creator": 0, "creator_effects": np.array([0.0, 4.0])}
    known = oracle_estimates(summaries, alike)
    for column in ("effect_hat", "ci_lower", "ci_upper"):
        assert known[column].tolist() == [4, 0]
    assert known["se"].tolist() == [0, 0]
    assert known["p_positive"].tolist() == [1, 0]


@pytest.fixture(scope="module")
def oracle_platforms():
    """Oracle's squared errors less their expectation, and hits, over 20 platforms."""
    excess, hits = [], []
    for seed in range(20):
        summaries, truth = simulate_summaries([seed, 7])
        joined = join_truth(oracle_estimates(summaries, truth), truth)
        floor = joined["shrinkage"] * truth["sigma_creator"] ** 2
        excess.append(np.square(joined["effect_hat"] - joined["effect_true"]) - floor)
        hits.append(joined["effect_true"].between(joined["ci_lower"], joined["ci_upper"]))
    return np.concatenate(excess), np.concatenate(hits)


def test_oracle_mse_is_what_theory_says(oracle_platforms):
    excess, _ = oracle_platforms  # sigma² se² / (sigma² + se²) is the variance of tau given all
    assert abs(excess.mean()) < K * stats.sem(excess)


def test_oracle_coverage_is_nominal(oracle_platforms):
    _, hits = oracle_platforms
    assert abs(hits.mean() - 0.95) < K * np.sqrt(0.95 * 0.05 / len(hits))


# --- selection and inner levels ----------------------------------------------------------------


def test_selection_by_hand():
    truth = truth_of([3, -1, 2, 0])
    estimates = estimates_of([2, 5, 4, 0], half=[2, 1, 2.5, 1])
    first, second = selection_scores({"a": estimates}, truth, sizes=(1, 2)).to_dict("records")
    assert first == {
        "estimator": "a", "selected": 1, "bias": 6.0, "coverage": 0.0, "wrong_sign": 1.0,
        "true_effect": -1.0, "regret": 4.0,
    }  # fmt: skip
    assert second["bias"] == (6 + 2) / 2
    assert second["coverage"] == second["wrong_sign"] == 0.5
    assert second["regret"] == (3 + 2) / 2 - (-1 + 2) / 2
    with pytest.raises(ValueError, match="5 of 4 creators cannot be selected"):
        selection_scores({"a": estimates}, truth, sizes=(5,))


def test_inner_levels_come_from_the_probabilities():
    truth = truth_of(np.zeros(4))
    estimates = estimates_of(np.zeros(4)).assign(pit=[0.5, 0.2, 0.95, 0.76])
    overall = compare_estimators({"a": estimates}, truth).iloc[0]
    assert overall["coverage_50"] == 0.25
    assert overall["coverage_80"] == 0.75
    assert "coverage_50" not in compare_estimators({"a": estimates.drop(columns="pit")}, truth)
