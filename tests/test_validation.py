"""Scores against the truth: the arithmetic, the Monte Carlo errors, the claims, and bugs caught."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hbm.baselines import complete_pooling_estimates, no_pooling_estimates
from hbm.data import SIZE_MIXTURE, DataError, generate_experiment_data, summarize_creators
from hbm.validation import (
    DISTANCE_BINS,
    ESTIMATORS,
    SIZE_BINS,
    compare_estimators,
    comparison_table,
    compute_avg_interval_width,
    compute_coverage,
    compute_mse,
    coverage_by_distance,
    join_truth,
    oracle_estimates,
    platform_study,
    simulate_summaries,
    summarize_study,
)

#: Every statistical tolerance is this many Monte Carlo errors: missed once in 16,000 by chance.
K = 4
#: What "about 95%" means in the plan's table of expectations, beside Monte Carlo error.
ABOUT = 0.01
N_PLATFORMS = 25
N_REPEATED = 240

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


# --- simulating without users ---------------------------------------------------------------


def test_summaries_without_users_are_distributed_as_with_users():
    settings = {"n_creators_per_genre": 400, "size_mixture": ((0.5, 6, 20), (0.5, 30, 60))}
    settings |= {"treatment_share": 0.3, "sigma_obs": 3.0}
    users, truth = generate_experiment_data(5, **settings)
    from_users = join_truth(summarize_creators(users), truth)
    without = join_truth(*simulate_summaries(6, **settings))
    quantities = {
        "t": lambda s: (s["effect_hat"] - s["effect_true"]) / s["se"],
        "scaled se": lambda s: s["se"] / np.sqrt(1 / s["n_treatment"] + 1 / s["n_control"]),
        "df": lambda s: s["df"] / s["n_total"],
        "n": lambda s: s["n_total"],
        "share": lambda s: s["n_treatment"] / s["n_total"],
        "spread of truth": lambda s: s["effect_true"] - s["genre_mean_true"],
    }
    for name, quantity in quantities.items():
        p_value = stats.ks_2samp(quantity(from_users), quantity(without)).pvalue
        assert p_value > 1e-4, name


def test_summaries_without_users_have_the_same_truth_and_columns():
    users, truth = generate_experiment_data(3, n_creators_per_genre=5)
    summaries, same = simulate_summaries(3, n_creators_per_genre=5)
    for name in ("genre_effects", "creator_effects", "creator_id", "creator_genre"):
        np.testing.assert_array_equal(truth[name], same[name])
    assert set(truth) == set(same)
    expected = summarize_creators(users)
    assert summaries.columns.tolist() == expected.columns.tolist()
    assert summaries["genre"].tolist() == expected["genre"].tolist()
    np.testing.assert_array_equal(summaries["n_total"], same["creator_n"])
    again, _ = simulate_summaries(3, n_creators_per_genre=5)
    pd.testing.assert_frame_equal(summaries, again)
    with pytest.raises(ValueError, match="4 <= low < high"):
        simulate_summaries(3, size_mixture=((1.0, 3, 9),))


# --- Monte Carlo errors ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def cheap_platforms():
    """No pooling on many small platforms, with the errors each states for itself."""
    rows = []
    for seed in range(N_REPEATED):
        summaries, truth = simulate_summaries(
            [seed, 9], genres=("a", "b"), n_creators_per_genre=50, size_mixture=((1.0, 20, 60),)
        )
        table = compare_estimators({"No pooling": no_pooling_estimates(summaries)}, truth)
        rows.append(table.iloc[[0]].assign(platform=seed))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize("measure", ["mse", "coverage"])
def test_errors_on_one_platform_agree_with_repetition(cheap_platforms, measure):
    values, stated = cheap_platforms[measure], cheap_platforms[f"{measure}_se"]
    squared = np.square(values - values.mean())
    # The stated variances are unbiased up to Jeffreys' half a creator: compare the means.
    difference = squared.mean() * len(values) / (len(values) - 1) - np.square(stated).mean()
    assert abs(difference) < K * np.hypot(stats.sem(squared), stats.sem(np.square(stated)))


def test_errors_by_platform_agree_with_repetition(cheap_platforms):
    study = cheap_platforms.drop(columns=["mse_se", "coverage_se"])
    studies, size = 12, N_REPEATED // 12
    of_study = study["platform"] % studies
    repeated = pd.DataFrame([summarize_study(study[of_study == k]).iloc[0] for k in range(studies)])
    assert (repeated["n_platforms"] == size).all()
    for measure in ("mse", "coverage", "width"):
        ratio = np.square(repeated[f"{measure}_se"].astype(float)).mean() / repeated[measure].var()
        ratios = stats.f(studies * (size - 1), studies - 1)  # of a pooled to a single variance
        low, high = ratios.ppf(stats.norm.cdf([-K, K]))
        assert low < ratio < high


def test_a_summary_needs_two_platforms():
    study = platform_study(1, estimators={"No pooling": ESTIMATORS["No pooling"]})
    with pytest.raises(ValueError, match="at least two platforms"):
        summarize_study(study)


def test_a_platform_does_not_depend_on_how_many_follow():
    settings = {"estimators": {"No pooling": ESTIMATORS["No pooling"]}, "n_creators_per_genre": 9}
    few, more = (platform_study(n, seed=1, **settings) for n in (2, 3))
    pd.testing.assert_frame_equal(few, more[more["platform"] < 2])
    assert not few.equals(platform_study(2, seed=2, **settings))


# --- would it notice? -----------------------------------------------------------------------


def swap_arms(summaries):
    swapped = {"n_treatment": summaries["n_control"], "n_control": summaries["n_treatment"]}
    return summaries.assign(effect_hat=-summaries["effect_hat"], **swapped)


def variance_for_sd(summaries):
    return summaries.assign(se=np.square(summaries["se"]))


def wrong_genres(summaries):
    rolled = np.roll(summaries["genre_idx"], len(summaries) // 10)  # half of each genre moves
    return summaries.assign(genre_idx=rolled).drop(columns="genre")


def scores_with(bug):
    """Overall scores of no and complete pooling over 20 platforms, with a bug put in."""
    estimators = {
        "No pooling": lambda summaries, truth: no_pooling_estimates(bug(summaries)),
        "Complete pooling": lambda summaries, truth: complete_pooling_estimates(bug(summaries)),
    }
    study = platform_study(20, estimators=estimators, seed=11)
    return study[study["size_bin"] == ALL].set_index(["estimator", "platform"])


@pytest.fixture(scope="module")
def sound():
    return scores_with(lambda summaries: summaries)


def test_swapped_arms_show_as_bias(sound):
    bias, swapped = (s.loc["No pooling", "bias"] for s in (sound, scores_with(swap_arms)))
    assert abs(bias.mean()) < K * bias.sem()
    assert abs(swapped.mean()) > K * swapped.sem()


def test_a_variance_for_a_standard_deviation_shows_as_coverage(sound):
    coverage, wrong = (
        s.loc["No pooling", "coverage"] for s in (sound, scores_with(variance_for_sd))
    )
    expected = sum(p * z_coverage(np.arange(low, high)) for p, low, high in SIZE_MIXTURE)
    assert abs(coverage.mean() - expected) < K * coverage.sem()
    assert abs(wrong.mean() - expected) > K * wrong.sem()


def test_a_wrong_genre_index_shows_as_squared_error(sound):
    worse = scores_with(wrong_genres).loc["Complete pooling", "mse"]
    difference = worse - sound.loc["Complete pooling", "mse"]
    assert difference.mean() > K * difference.sem()


# --- the plan's expectations, over many platforms -------------------------------------------


@pytest.fixture(scope="module")
def study():
    return platform_study(N_PLATFORMS, seed=2024)


def of(study, estimator, measure, size_bin=ALL):
    rows = study[(study["estimator"] == estimator) & (study["size_bin"] == size_bin)]
    return rows.set_index("platform")[measure]


def test_hbm_has_the_lowest_mse_overall_and_for_small_creators(study):
    for size_bin in (ALL, SMALL, MEDIUM):
        for other in ("No pooling", "Complete pooling", "Partial pooling, no genres"):
            gain = of(study, other, "mse", size_bin) - of(study, "Partial pooling", "mse", size_bin)
            assert gain.mean() > K * gain.sem(), (size_bin, other)


def test_for_large_creators_hbm_is_about_no_pooling_and_no_worse(study):
    plain, pooled = (of(study, name, "mse", LARGE) for name in ("No pooling", "Partial pooling"))
    assert (plain - pooled).mean() > K * (plain - pooled).sem()
    assert 0.8 < pooled.mean() / plain.mean() < 1


def test_complete_pooling_is_not_medium_but_worse_than_no_pooling(study):
    excess = of(study, "Complete pooling", "mse") - of(study, "No pooling", "mse")
    assert excess.mean() > K * excess.sem()
    small = of(study, "Complete pooling", "mse", SMALL) - of(study, "No pooling", "mse", SMALL)
    assert small.mean() < -K * small.sem()  # there, and only there, it is the medium


def test_hbm_stands_close_to_the_floor(study):
    ratio = of(study, "Partial pooling", "mse") / of(study, "Oracle", "mse")
    assert ratio.mean() > 1
    assert ratio.mean() < 1.03


def test_coverage_of_no_pooling_is_a_little_below_nominal(study):
    coverage = of(study, "No pooling", "coverage", SMALL)  # ± 1.96 where Student's t is due
    assert abs(coverage.mean() - z_coverage(SMALL_SIZES)) < K * coverage.sem()
    assert 0.95 - ABOUT < z_coverage(SMALL_SIZES) < 0.95


def test_coverage_of_complete_pooling_is_far_below_nominal(study):
    assert of(study, "Complete pooling", "coverage").mean() < 0.3


def test_coverage_of_hbm_is_nominal(study):
    for size_bin in SIZE_BINS:
        coverage = of(study, "Partial pooling", "coverage", size_bin)
        assert abs(coverage.mean() - 0.95) < K * coverage.sem() + ABOUT, size_bin


def test_width_is_very_wide_medium_and_narrow(study):
    plain, pooled, complete = (
        of(study, name, "width") for name in ("No pooling", "Partial pooling", "Complete pooling")
    )
    assert (plain > pooled).all()
    assert (pooled > complete).all()


def test_95_percent_is_an_average_over_distances():
    estimators = {"No pooling": ESTIMATORS["No pooling"], "Oracle": ESTIMATORS["Oracle"]}
    study = platform_study(60, estimators=estimators, compare=coverage_by_distance, seed=8)
    summary = summarize_study(study).set_index(["estimator", "size_bin", "distance_bin"])
    for distance_bin, ends in DISTANCE_BINS.items():
        oracle = summary.loc[("Oracle", SMALL, distance_bin)]
        expected = oracle_coverage(SMALL_SIZES, *ends)
        assert abs(oracle["coverage"] - expected) < K * oracle["coverage_se"], distance_bin
        plain = summary.loc[("No pooling", SMALL, distance_bin)]
        assert abs(plain["coverage"] - z_coverage(SMALL_SIZES)) < K * plain["coverage_se"]
    assert oracle_coverage(SMALL_SIZES, 0, np.inf) == pytest.approx(0.95, abs=1e-4)
    assert 0.55 < oracle_coverage(SMALL_SIZES, 2, np.inf) < 0.57
