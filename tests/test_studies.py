"""Many platforms: their simulation, their Monte Carlo errors, the claims, and bugs caught."""

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from test_validation import ALL, LARGE, MEDIUM, SMALL, SMALL_SIZES, oracle_coverage, z_coverage

from hbm.baselines import complete_pooling_estimates, no_pooling_estimates
from hbm.data import generate_experiment_data, summarize_creators
from hbm.learned.study import draw_batch
from hbm.revenue.simulate import generate_count_data, generate_revenue_data
from hbm.rollouts.panels import generate_rollout_data
from hbm.sizes import SIZE_MIXTURE
from hbm.studies import ESTIMATORS, RIVALS, platform_study, simulate_summaries, summarize_study
from hbm.validation import (
    DISTANCE_BINS,
    SIZE_BINS,
    compare_estimators,
    coverage_by_distance,
    join_truth,
    selection_scores,
)

#: What "about 95%" means in the plan's table of expectations, beside Monte Carlo error.
ABOUT = 0.01
N_PLATFORMS = 25
N_REPEATED = 240


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


@pytest.mark.parametrize(
    ("simulate", "has_arms"),
    [
        (generate_experiment_data, True),
        (simulate_summaries, True),
        (generate_revenue_data, True),
        (generate_count_data, True),
        (generate_rollout_data, False),
        (partial(draw_batch, mu_genre=np.zeros(2), counts=np.ones(2, int)), False),
    ],
)
def test_every_simulator_refuses_sizes_that_cannot_be(simulate, has_arms, rng):
    for mixture, message in (
        (((1.0, 3, 9),), "4 <= low < high"),
        (((1.0, 9, 9),), "4 <= low < high"),
        (((0.5, 30, 60),), "shares must be >= 0 and sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate(rng, size_mixture=mixture)
    for share in (0.0, 1.5) if has_arms else ():
        with pytest.raises(ValueError, match="treatment_share must lie between 0 and 1"):
            simulate(rng, treatment_share=share)


def test_where_creators_do_not_differ_the_oracle_knows_all():
    few = {name: ESTIMATORS[name] for name in ("Complete pooling", "Oracle")}
    study = platform_study(
        2, estimators=few, sigma_creator=0.0, n_creators_per_genre=5, genres=("a", "b")
    )
    oracle = study[study["estimator"] == "Oracle"].dropna()
    assert len(oracle)
    assert (oracle[["mse", "width"]] == 0).all(axis=None)
    assert (oracle[["coverage", "coverage_50", "coverage_80"]] == 1).all(axis=None)


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


# --- rivals, levels and selection ------------------------------------------------------------


@pytest.fixture(scope="module")
def rivals():
    names = ("No pooling", "Partial pooling", "Oracle")
    chosen = {name: ESTIMATORS[name] for name in names} | RIVALS
    return chosen, platform_study(N_PLATFORMS, estimators=chosen, seed=77)


def test_coverage_is_nominal_at_every_level(rivals):
    _, study = rivals
    for name in ("Partial pooling", "Oracle", "No pooling, Student's t"):
        for level in (50, 80):
            found = of(study, name, f"coverage_{level}")
            assert abs(found.mean() - level / 100) < K * found.sem() + ABOUT, (name, level)


def test_rivals_stand_where_theory_puts_them(rivals):
    _, study = rivals
    order = ["Partial pooling", "Empirical Bayes, no genres", "James–Stein", "No pooling"]
    for better, worse in itertools.pairwise(order):
        gain = of(study, worse, "mse") - of(study, better, "mse")
        assert gain.mean() > K * gain.sem(), (better, worse)
    gap = of(study, "Empirical Bayes", "mse") / of(study, "Partial pooling", "mse")
    assert abs(gap.mean() - 1) < 0.01  # with five genres of a hundred, plugging in costs nothing


def test_the_plug_in_undercovers_where_creators_are_few():
    chosen = {name: (ESTIMATORS | RIVALS)[name] for name in ("Partial pooling", "Empirical Bayes")}
    study = platform_study(
        60, estimators=chosen, seed=5, genres=("a", "b"), n_creators_per_genre=6,
        size_mixture=((1.0, 30, 60),),
    )  # fmt: skip
    gap = of(study, "Partial pooling", "coverage") - of(study, "Empirical Bayes", "coverage")
    assert gap.mean() > K * gap.sem()
    assert of(study, "Empirical Bayes", "coverage").mean() < 0.9


def test_the_winners_curse_is_no_poolings(rivals):
    chosen, _ = rivals
    study = platform_study(12, estimators=chosen, compare=selection_scores, seed=78)
    top = study[study["selected"] == 10].set_index(["estimator", "platform"])
    plain, pooled, oracle = (top.loc[name] for name in ("No pooling", "Partial pooling", "Oracle"))
    assert plain["bias"].mean() > K * plain["bias"].sem()
    assert abs(pooled["bias"].mean()) < K * pooled["bias"].sem() + 0.03
    regret = plain["regret"] - pooled["regret"]
    assert regret.mean() > K * regret.sem()
    assert pooled["regret"].mean() < 1.3 * oracle["regret"].mean()
    summary = summarize_study(study)
    assert set(summary["selected"]) == {10, 25, 50}


def test_several_scores_are_of_the_same_estimates():
    settings = {"estimators": {"Oracle": ESTIMATORS["Oracle"]}, "n_creators_per_genre": 12}
    scores = {"size": compare_estimators, "distance": coverage_by_distance}
    both = platform_study(2, compare=scores, seed=1, **settings)
    for name, compare in scores.items():
        pd.testing.assert_frame_equal(
            both[name], platform_study(2, compare=compare, seed=1, **settings)
        )
