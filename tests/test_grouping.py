"""Candidates and their exploration: thresholds, sizes, joins, variance, tests of equal groups."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.api as sm
from conftest import K
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import adjusted_rand_score
from statsmodels.stats.multitest import multipletests

from hbm.checks import DataError
from hbm.grouping import explore
from hbm.grouping.candidates import (
    bin_feature,
    check_group_sizes,
    coarser_bins,
    create_grouping,
    cross_groupings,
    discover_clusters,
    merge_small_groups,
)
from hbm.grouping.explore import (
    analyze_grouping_candidate,
    anova_test,
    compute_eta_squared,
    explore_groupings,
    kruskal_test,
)
from hbm.grouping.thresholds import THRESHOLDS

NIST = Path(scipy.stats.__file__).parent / "tests" / "data" / "nist_anova"


def grouped(sizes, ordered=False):
    """A frame with one column ``group`` of the given sizes."""
    labels = pd.Series(np.repeat(list(sizes), list(sizes.values())), dtype=object)
    if ordered:
        labels = labels.astype(pd.CategoricalDtype(list(sizes), ordered=True))
    return pd.DataFrame({"creator_id": [f"c{i}" for i in range(len(labels))], "group": labels})


def noisy_groups(rng, n=200, between=0.0, within=0.4, n_groups=5):
    """Noisy estimates of effects in groups of unequal size; returns the frame and the means."""
    group = rng.choice(n_groups, n, p=np.arange(1, n_groups + 1) / np.arange(1, n_groups + 1).sum())
    mean = rng.normal(0, between, n_groups)
    se = rng.choice([0.1, 0.3, 0.7], n)
    tau = rng.normal(mean[group], within)
    frame = pd.DataFrame({"group": group.astype(str), "y": rng.normal(tau, se), "se": se})
    return frame, mean


# --- thresholds ------------------------------------------------------------------------------


def test_the_thresholds_are_those_of_the_playbook_and_stand_in_one_table():
    table = THRESHOLDS.table()
    assert table["threshold"].tolist() == [f.name for f in fields(THRESHOLDS)]
    assert table["meaning"].str.len().min() > 10
    assert dict(zip(table["threshold"], table["value"], strict=True)) == {
        "quality_moderate": 0.20,
        "quality_shown": 0.30,
        "quality_good": 0.40,
        "size_skip": 5,
        "size_warn": 10,
        "size_shortlist": 15,
        "cell_min": 10,
        "anova_level": 0.05,
        "anova_strong": 0.001,
        "eta_medium": 0.06,
        "eta_large": 0.14,
        "eta_min": 0.20,
        "elpd_likely": 2,
        "elpd_clear": 4,
        "elpd_dse": 2,
        "separation_moderate": 1,
        "separation_min": 1.5,
        "separation_strong": 2,
        "correlation_max": -0.3,
        "coverage_min": 0.93,
        "coverage_alert": 0.90,
    }


UP, DOWN = np.inf, -np.inf


@pytest.mark.parametrize(
    ("method", "at", "expected"),
    [
        ("quality", (0.2, DOWN), "poor"),
        ("quality", (0.2, 0), "poor"),
        ("quality", (0.2, UP), "moderate"),
        ("quality", (0.4, 0), "moderate"),
        ("quality", (0.4, UP), "good"),
        ("quality", (np.nan, 0), "undefined"),
        ("eta", (0.06, 0), "small"),
        ("eta", (0.06, UP), "medium"),
        ("eta", (0.14, 0), "medium"),
        ("eta", (0.14, UP), "large"),
        ("separation", (1.0, 0), "weak"),
        ("separation", (1.0, UP), "moderate"),
        ("separation", (2.0, 0), "moderate"),
        ("separation", (2.0, UP), "strong"),
        ("p_value", (0.05, UP), "none"),
        ("p_value", (0.05, 0), "none"),
        ("p_value", (0.05, DOWN), "some"),
        ("p_value", (0.001, 0), "some"),
        ("p_value", (0.001, DOWN), "strong"),
        ("shrinkage", (-0.3, 0), False),
        ("shrinkage", (-0.3, DOWN), True),
        ("shrinkage", (np.nan, 0), None),
    ],
)
def test_grades_change_at_their_thresholds(method, at, expected):
    value, side = at
    value = np.nextafter(value, side) if side else value
    assert getattr(THRESHOLDS, method)(value) == expected


@pytest.mark.parametrize(
    ("difference", "dse", "expected"),
    [
        (2.0, 0.1, "equal"),
        (np.nextafter(2, 3), 0.1, "likely"),
        (4.0, 0.1, "likely"),
        (np.nextafter(4, 5), 0.1, "clear"),
        (8.0, 4.0, "equal"),  # four points and more, and yet within two standard errors
        (8.0, np.nextafter(4, 3), "clear"),
        (3.0, np.nextafter(1.5, 1), "likely"),
        (-5.0, 1.0, "clear"),
    ],
)
def test_an_elpd_difference_must_exceed_its_threshold_and_its_errors(difference, dse, expected):
    assert THRESHOLDS.elpd(difference, dse) == expected


# --- sizes -----------------------------------------------------------------------------------


def test_sizes_are_counted_and_small_groups_named():
    found = check_group_sizes(grouped({"a": 10, "b": 9, "c": 30}), "group")
    assert found.sizes.to_dict() == {"a": 10, "b": 9, "c": 30}
    assert (found.smallest, found.largest, found.median) == (9, 30, 10)
    assert found.small == ("b",)
    assert "1 of 3 groups have fewer than 10 creators: b (9)" in found.warnings[0]
    assert "merge the smallest" in found.warnings[0]
    assert not check_group_sizes(grouped({"a": 10, "c": 10}), "group").warnings


def test_sizes_of_nobody_are_refused():
    with pytest.raises(DataError, match="features: column 'group' is empty"):
        check_group_sizes(grouped({"a": 10}).head(0), "group")


def test_ordered_groups_are_told_to_merge_with_neighbours():
    found = check_group_sizes(grouped({"low": 3, "high": 12}, ordered=True), "group", 5)
    assert "neighbours" in found.warnings[0]
    assert "fewer groups" in found.warnings[0]


def test_small_groups_join_the_next_smallest():
    merged = merge_small_groups(grouped({"a": 50, "b": 4, "c": 7, "d": 20})["group"], 10)
    assert merged.labels.value_counts().to_dict() == {"a": 50, "d": 20, "b + c": 11}
    assert merged.merged.to_dict("list") == {
        "group": ["b", "c"],
        "n_creators": [4, 7],
        "into": ["b + c", "b + c"],
    }


def test_ordered_groups_join_a_neighbour_and_stay_ordered():
    labels = grouped({"micro": 40, "mid": 9, "macro": 12, "mega": 2}, ordered=True)["group"]
    merged = merge_small_groups(labels, 10)
    assert merged.labels.cat.ordered
    assert merged.labels.cat.categories.tolist() == ["micro", "mid + macro + mega"]
    assert merge_small_groups(labels, 5).labels.cat.categories.tolist() == [
        "micro",
        "mid",
        "macro + mega",
    ]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 30), st.booleans())
@settings(deadline=None, max_examples=60)
def test_after_merging_no_group_is_small_and_nobody_is_lost(counts, least, ordered):
    labels = grouped({f"g{i}": n for i, n in enumerate(counts)}, ordered)["group"]
    merged = merge_small_groups(labels, least).labels
    sizes = merged.value_counts()
    assert sizes.sum() == len(labels)
    assert merged.notna().all()
    assert sizes.min() >= least or len(sizes) == 1
    if ordered:  # only neighbours join
        assert [g for name in merged.cat.categories for g in name.split(" + ")] == [
            f"g{i}" for i in range(len(counts))
        ]


def test_merging_can_be_done_again_for_other_creators():
    merged = merge_small_groups(grouped({"a": 50, "b": 4, "c": 7})["group"], 10)
    others = pd.Series(["c", "a", "b", "new"])
    assert merged.apply(others).tolist() == ["b + c", "a", "b + c", "new"]


# --- bins, crossings, clusters -----------------------------------------------------------------


def test_bins_have_equal_sizes_and_an_order(rng):
    bins = bin_feature(pd.Series(rng.normal(size=100), name="x"), 4)
    assert bins.value_counts().tolist() == [25, 25, 25, 25]
    assert bins.cat.categories.tolist() == ["Q1 (low)", "Q2", "Q3", "Q4 (high)"]
    assert bins.cat.ordered


def test_bins_refuse_ties_and_gaps():
    tied = pd.Series([0] * 60 + list(range(1, 41)), name="revenue")
    with pytest.raises(DataError, match="'revenue': too many equal values for 4 groups"):
        bin_feature(tied, 4)
    with pytest.raises(DataError, match="'revenue': 1 values are missing"):
        bin_feature(pd.Series([1.0, np.nan], name="revenue"), 2)


@pytest.mark.parametrize(("n", "expected"), [(75, 5), (74, 4), (59, 3), (30, 2)])
def test_coarser_bins_are_as_fine_as_sizes_allow(n, expected):
    bins = coarser_bins(pd.Series(np.arange(n), name="x"), 5, min_size=15)
    assert bins.nunique() == expected
    assert bins.value_counts().min() >= 14 + (n != 74)


def test_coarser_bins_give_way_to_ties_and_say_when_nothing_is_left():
    tied = pd.Series([0] * 40 + list(range(1, 61)), name="revenue")
    assert coarser_bins(tied, 5).nunique() == 2
    with pytest.raises(DataError, match="no two groups of 15 creators"):
        coarser_bins(pd.Series(np.arange(29), name="x"), 5, min_size=15)


def test_crossed_cells_are_counted_and_small_ones_merged_within_the_first():
    features = pd.DataFrame(
        {
            "genre": ["a"] * 35 + ["b"] * 21,
            "tier": ["x"] * 10 + ["y"] * 16 + ["z"] * 9 + ["x"] * 21,
        }
    )
    crossed = cross_groupings(features, "genre", "tier")
    assert crossed.cells.loc["a"].to_dict() == {"x": 10, "y": 16, "z": 9}
    assert crossed.labels.value_counts().to_dict() == {"b x x": 21, "a x x + z": 19, "a x y": 16}
    assert crossed.labels.name == "genre_x_tier"
    assert crossed.merged["group"].tolist() == ["a x x", "a x z"]
    assert cross_groupings(features, "genre", "tier", 9).merged.empty


@pytest.fixture
def blobs(rng):
    """Three clouds in two features of very different scale, one of them skewed."""
    true = np.repeat([0, 1, 2], [60, 40, 30])
    center = np.array([[0, 0], [6, 0], [0, 6]])[true]
    noise = rng.normal(size=(130, 2))
    x = pd.DataFrame(center + noise, columns=["score", "log"])
    return pd.DataFrame({"score": x["score"], "money": 1000 * np.exp(x["log"])}), true


def test_clusters_are_found_whatever_the_units(blobs):
    features, true = blobs
    found = discover_clusters(features, ["score", "money"], k_range=range(2, 6))
    assert found.k == 3
    assert adjusted_rand_score(found.labels, true) > 0.97
    assert found.labels.value_counts().index.tolist() == ["cluster 1", "cluster 2", "cluster 3"]
    assert found.table["inertia"].is_monotonic_decreasing
    assert found.elbow == 3
    assert found.table.set_index("k").loc[3, "stability"] == pytest.approx(1)
    again = discover_clusters(features.assign(money=features["money"] / 1e6), ["score", "money"])
    assert adjusted_rand_score(again.labels, found.labels) == 1


def test_clusters_bear_gaps_zeros_and_constants_and_count_the_gaps(blobs):
    features, true = blobs
    features.loc[:2, "score"] = np.nan
    features.loc[5, "money"] = 0.0
    features["same"] = 1.0
    found = discover_clusters(features, list(features), k=3)
    assert found.n_imputed == {"score": 3}
    assert adjusted_rand_score(found.labels, true) > 0.9
    with pytest.raises(ValueError, match="k must be one of"):
        discover_clusters(features, list(features), k=99)


def test_a_single_number_of_clusters_is_enough_and_impossible_ones_are_refused(blobs):
    features, true = blobs
    found = discover_clusters(features, ["score", "money"], k=3, k_range=[3])
    assert (found.k, found.elbow) == (3, 3)
    assert adjusted_rand_score(found.labels, true) > 0.97
    for numbers in ([], [1, 2], [2, 130]):
        with pytest.raises(ValueError, match="k_range must be numbers from 2 to 129"):
            discover_clusters(features, ["score"], k_range=numbers)
    with pytest.raises(DataError, match="column 'score' has no value"):
        discover_clusters(features.assign(score=np.nan), ["money", "score"])


# --- the join ----------------------------------------------------------------------------------


@pytest.fixture
def ites():
    return pd.DataFrame(
        {
            "creator_id": ["c", "a", "b"],
            "genre": ["old"] * 3,
            "genre_idx": 0,
            "effect_hat": [3.0, 1.0, 2.0],
            "se": [0.3, 0.1, 0.2],
        }
    )


@pytest.fixture
def features():
    tier = pd.CategoricalDtype(["small", "never", "large"], ordered=True)
    return pd.DataFrame(
        {
            "creator_id": ["a", "b", "c", "d"],
            "tier": pd.Series(["large", "small", "small", "large"], dtype=tier),
            "kind": ["y", "x", "y", "z"],
        }
    )


def test_a_grouping_is_joined_by_id_in_the_order_of_the_effects(ites, features):
    found = create_grouping(ites, features, "kind")
    assert found.columns.tolist() == ["creator_id", "genre", "genre_idx", "effect_hat", "se"]
    assert found["genre"].tolist() == ["y", "y", "x"]
    assert found["genre_idx"].tolist() == [1, 1, 0]
    assert found["effect_hat"].tolist() == [3.0, 1.0, 2.0]
    assert ites["genre"].tolist() == ["old"] * 3


def test_ordered_groups_keep_their_order_without_gaps(ites, features):
    found = create_grouping(ites, features, "tier")
    assert found["genre"].tolist() == ["small", "large", "small"]
    assert found["genre_idx"].tolist() == [0, 1, 0]


def test_no_grouping_is_one_group(ites, features):
    found = create_grouping(ites, features, None)
    assert found["genre"].tolist() == ["all creators"] * 3
    assert found["genre_idx"].tolist() == [0, 0, 0]


def test_the_join_names_who_is_missing(ites, features):
    with pytest.raises(DataError, match=r"'creator_id' must be one of those of .*'c'"):
        create_grouping(ites, features[features["creator_id"] != "c"], "kind")
    with pytest.raises(DataError, match=r"'creator_id' must be unique.*'a'"):
        create_grouping(ites, pd.concat([features, features.head(1)]), "kind")
    for grouping in ("kind", None):
        with pytest.raises(DataError, match=r"ite_estimates: .*'creator_id' must be unique.*'c'"):
            create_grouping(pd.concat([ites, ites.head(1)]), features, grouping)
    features.loc[1, "kind"] = None
    with pytest.raises(DataError, match=r"'kind' must not be missing.*'b'"):
        create_grouping(ites, features, "kind")
    with pytest.raises(DataError, match="missing column colour"):
        create_grouping(ites, features, "colour")


# --- variance ------------------------------------------------------------------------------------


def test_the_decomposition_by_hand():
    df = pd.DataFrame(
        {"g": list("aaabbb"), "y": [1.0, 2, 3, 5, 6, 10], "s": [0.5, 0.5, 0.5, 0.5, 0.5, 1.0]}
    )
    found = analyze_grouping_candidate(df, "g", "y", se="s")
    assert found.table["group"].tolist() == ["a", "b"]
    assert found.table["count"].tolist() == [3, 3]
    assert found.table["mean"].tolist() == [2, 7]
    np.testing.assert_allclose(found.table["std"], [1, 7**0.5])
    assert found.table[["min", "max"]].to_numpy().tolist() == [[1, 3], [5, 10]]
    assert found.between_var == pytest.approx(12.5)
    assert found.within_var == pytest.approx((1 + 7) / 2)
    assert found.total_var == pytest.approx(df["y"].var())
    assert found.naive_quality == pytest.approx(12.5 / df["y"].var())
    between = 12.5 - (1 / 3 + 7 / 3) / 2
    within = 4 - (5 * 0.25 + 1) / 6
    assert found.between == pytest.approx(between)
    assert found.within == pytest.approx(within)
    assert found.quality == pytest.approx(between / (between + within))
    assert found.lower < found.quality < found.upper


def test_the_corrected_quality_is_not_truncated():
    df = pd.DataFrame({"g": list("aabb"), "y": [0.0, 2, 0.5, 1.6]})
    found = analyze_grouping_candidate(df, "g", "y")
    assert found.quality < 0 < found.naive_quality
    assert found.grade == "poor"


def test_where_noise_explains_everything_the_quality_is_undefined():
    df = pd.DataFrame({"g": list("aabb"), "y": [0.0, 2, 0.5, 1.6], "s": 9.0})
    found = analyze_grouping_candidate(df, "g", "y", se="s")
    assert np.isnan([found.quality, found.lower, found.upper]).all()
    assert found.grade == "undefined"


def test_groups_of_one_take_the_pooled_variance():
    df = pd.DataFrame({"g": list("aaabbbc"), "y": [1.0, 2, 3, 5, 6, 10, 4]})
    found = analyze_grouping_candidate(df, "g", "y")
    noise = (1 / 3 + 7 / 3 + 4) / 3
    assert found.between == pytest.approx(np.var([2, 7, 4], ddof=1) - noise)


def test_who_cannot_be_used_is_counted():
    df = pd.DataFrame({"g": ["a", "a", "b", "b", None], "y": [1.0, 2, 3, np.nan, 5]})
    found = analyze_grouping_candidate(df, "g", "y")
    assert (found.n_creators, found.n_set_aside) == (3, 2)
    assert anova_test(df, "g", "y").n_set_aside == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s": [1.0, 1, 1, -1]}, r"'s' must be a number greater than 0.*'3'|'s' must be .*3"),
        ({"y": [1.0, 2, 3, np.inf]}, "'y' must be a finite number"),
        ({"g": ["a"] * 4}, "'g' has a single group"),
        ({"g": list("abcd")}, "'g' has no group of two creators"),
        ({"y": [np.nan] * 4}, "no creator has both g and y"),
    ],
)
def test_what_cannot_be_analysed_is_refused(change, message):
    df = pd.DataFrame({"g": list("aabb"), "y": [1.0, 2, 3, 4], "s": 1.0}).assign(**change)
    with pytest.raises(DataError, match=message):
        analyze_grouping_candidate(df, "g", "y", se="s")


@pytest.fixture(scope="module", params=[0.0, 0.3])
def repeated(request):
    """Many samples of noisy groups, analysed, with the share that is true for their groups."""
    rows = []
    for seed in range(300):
        df, mean = noisy_groups(np.random.default_rng([seed, 5]), between=request.param)
        found = analyze_grouping_candidate(df, "group", "y", se="se")
        between = np.var(mean, ddof=1)
        share = between / (between + 0.16)
        ours = found.between, found.within, found.quality, found.lower, found.upper
        rows.append((between, share, found.naive_quality, *ours))
    columns = ["true", "share", "naive", "between", "within", "quality", "lower", "upper"]
    return pd.DataFrame(rows, columns=columns)


def test_both_variances_are_unbiased(repeated):
    error = repeated["between"] - repeated["true"]
    assert abs(error.mean()) < K * error.sem()
    assert abs(repeated["within"].mean() - 0.16) < K * repeated["within"].sem()


def test_the_interval_covers_the_share_of_the_groups_at_hand(repeated):
    covered = repeated["share"].between(repeated["lower"], repeated["upper"])
    # By the delta method: nominal at best, and a little less where the groups are few.
    assert covered.mean() > 0.92 - K * np.sqrt(0.92 * 0.08 / len(covered))


def test_the_naive_quality_sees_structure_where_there_is_none(repeated):
    if repeated["true"].max() == 0:
        assert repeated["naive"].mean() > K * repeated["naive"].sem()
        assert abs(repeated["quality"].mean()) < K * repeated["quality"].sem()


# --- tests of equal groups ---------------------------------------------------------------------


def nist(name):
    """Data, certified F and certified R squared of a NIST reference data set."""
    lines = (NIST / f"{name}.dat").read_text("utf-8").splitlines()
    f = next(line for line in lines if line.startswith("Between")).split()[-1]
    r2 = next(line for line in lines if "R-Squared" in line).split()[-1]
    rows = [line.split() for line in lines[60:] if line.strip()]
    df = pd.DataFrame(rows, columns=["group", "y"]).astype({"y": float})
    return df, float(f), float(r2)


# Difficulty is the number of constant leading digits: 3, 7, and 1, 7 and 13 of 16.
@pytest.mark.parametrize(
    ("name", "digits"), [("SiRstv", 11), ("AtmWtAg", 8), ("SmLs01", 12), ("SmLs04", 8)]
)
def test_the_certified_values_of_nist(name, digits):
    df, f, r2 = nist(name)
    assert anova_test(df, "group", "y").statistic == pytest.approx(f, rel=10.0**-digits)
    effect = compute_eta_squared(df, "group", "y")
    assert effect.eta_squared == pytest.approx(r2, rel=10.0**-digits)


def test_the_certified_values_are_those_that_are_quoted():
    _, f, r2 = nist("SiRstv")
    assert (f, r2) == (1.18046237440255, 0.190999039051129)


def test_weighted_analysis_of_variance_is_that_of_statsmodels(rng):
    df, _ = noisy_groups(rng, between=0.2)
    dummies = pd.get_dummies(df["group"], dtype=float)
    ours = anova_test(df, "group", "y", se="se", sigma_creator=0.4)
    fit = sm.WLS(df["y"], dummies, weights=1 / (df["se"] ** 2 + 0.16)).fit()
    assert ours.statistic == pytest.approx(fit.fvalue)
    assert ours.p_value == pytest.approx(fit.f_pvalue)
    assert (ours.df_between, ours.df_within) == (4, 195)
    plain = sm.OLS(df["y"], dummies).fit()
    assert anova_test(df, "group", "y").statistic == pytest.approx(plain.fvalue)
    assert anova_test(df, "group", "y").statistic == pytest.approx(
        stats.f_oneway(*(own["y"] for _, own in df.groupby("group"))).statistic
    )
    effect = compute_eta_squared(df, "group", "y")
    assert effect.eta_squared == pytest.approx(plain.rsquared)
    omega = (plain.ess - 4 * plain.mse_resid) / (plain.centered_tss + plain.mse_resid)
    assert effect.omega_squared == pytest.approx(omega)


def test_kruskal_wallis_takes_every_creator_alike(rng):
    df, _ = noisy_groups(rng, between=0.2)
    expected = stats.kruskal(*(own["y"] for _, own in df.groupby("group")))
    found = kruskal_test(df, "group", "y")
    assert (found.statistic, found.p_value) == pytest.approx(tuple(expected))
    assert found.df_between == 4


def test_the_spread_within_groups_is_estimated(rng):
    df, _ = noisy_groups(rng, n=20_000, between=0.5, within=0.4)
    found = explore._sigma_within(explore._clean(df, "group", "y", "se"))
    # Weighted squares have variance 2, and the sum of them falls by the weights.
    weight = 1 / (df["se"] ** 2 + 0.16)
    assert found == pytest.approx(0.16, abs=K * np.sqrt(2 * len(df)) / weight.sum())
    exact = df.assign(y=df["group"].astype(float))
    assert explore._sigma_within(explore._clean(exact, "group", "y", "se")) == 0.0


def test_the_corrected_eta_squared_is_the_share_of_the_true_effects():
    """Omega squared is that of the estimates: their noise stays in the denominator."""
    errors = []
    for seed in range(100):
        df, mean = noisy_groups(np.random.default_rng([seed, 6]), n=4000, between=0.3)
        between = mean[df["group"].astype(int)].var()
        noise = np.square(df["se"]).mean()
        effect = compute_eta_squared(df, "group", "y", se="se")
        assert effect.omega_squared < effect.eta_squared
        corrected = effect.corrected - between / (between + 0.16)
        errors.append((corrected, effect.omega_squared - between / (between + 0.16 + noise)))
    assert (np.abs(np.mean(errors, axis=0)) < K * stats.sem(errors)).all()


def test_random_groups_are_rejected_as_often_as_promised():
    """Type I error: weights that are estimated, unequal errors, heavy ones, tiny groups."""
    n = 400
    rejected = np.zeros((n, 3))
    for seed in range(n):
        df, _ = noisy_groups(np.random.default_rng([seed, 8]), n=60)
        rejected[seed] = [
            anova_test(df, "group", "y", se="se").p_value < 0.05,
            anova_test(df, "group", "y").p_value < 0.05,
            kruskal_test(df, "group", "y").p_value < 0.05,
        ]
    error = np.sqrt(0.05 * 0.95 / n)
    assert (np.abs(rejected.mean(axis=0) - 0.05) < K * error).all()


def test_weights_find_more_than_equal_weights():
    found = np.zeros((100, 2))
    for seed in range(100):
        df, _ = noisy_groups(np.random.default_rng([seed, 9]), n=100, between=0.2, within=0.2)
        weighted, plain = anova_test(df, "group", "y", se="se"), anova_test(df, "group", "y")
        found[seed] = weighted.p_value < 0.05, plain.p_value < 0.05
    gain = found[:, 0] - found[:, 1]
    assert gain.mean() > K * stats.sem(gain)


# --- all candidates ---------------------------------------------------------------------------


def test_exploring_adjusts_for_the_number_of_candidates(rng):
    df, _ = noisy_groups(rng, between=0.3)
    df["coin"], df["die"] = rng.integers(0, 2, len(df)), rng.integers(0, 6, len(df))
    names = ["coin", "group", "die"]
    table = explore_groupings(df, names, "y", se="se")
    assert table["candidate"][0] == "group"
    assert table["quality"].is_monotonic_decreasing
    for test, column in ((anova_test, "anova_p"), (kruskal_test, "kruskal_p")):
        how = {"se": "se"} if test is anova_test else {}
        raw = [test(df, name, "y", **how).p_value for name in table["candidate"]]
        np.testing.assert_allclose(table[column], multipletests(raw, method="holm")[1])
    alone = analyze_grouping_candidate(df, "die", "y", se="se")
    row = table.set_index("candidate").loc["die"]
    assert (row["quality"], row["lower"], row["upper"]) == (alone.quality, alone.lower, alone.upper)
    assert row["smallest"] == df["die"].value_counts().min()


@pytest.mark.parametrize("function", [analyze_grouping_candidate, compute_eta_squared])
def test_order_names_and_units_do_not_matter(function, rng):
    df, _ = noisy_groups(rng, between=0.3)
    shares = {
        analyze_grouping_candidate: ("naive_quality", "quality", "lower", "upper"),
        compute_eta_squared: ("eta_squared", "omega_squared", "corrected"),
    }[function]
    moved = df.sample(frac=1, random_state=1)
    moved = moved.assign(group="x" + moved["group"], y=100 * moved["y"] + 1e6, se=100 * moved["se"])
    before, after = (function(frame, "group", "y", se="se") for frame in (df, moved))
    for name in shares:
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-6)
