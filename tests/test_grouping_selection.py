"""Comparing, checking, deciding: leave-one-out with its controls, and the decision tree."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats

from hbm.checks import DataError
from hbm.diagnostics import DiagnosticsError
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact.loo import loo_exact
from hbm.grouping import compare, select
from hbm.grouping.candidates import create_grouping
from hbm.grouping.checks import (
    HeldOutCoverage,
    analyze_shrinkage,
    check_posterior_separation,
    held_out_coverage,
)
from hbm.grouping.compare import (
    NO_GROUPING,
    compare_groupings_empirical,
    elpd_difference,
    leave_group_out,
    permuted_elpd,
    shuffle_labels,
    stacking_weights,
    without_grouping,
)
from hbm.grouping.select import FAIL, PASS, PERSON, coverage_status, select_grouping
from hbm.grouping.thresholds import THRESHOLDS
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors


def platform(seed=0, n=200, between=0.4, within=0.3):
    """Effects that `kind` structures, `proxy` in part, and `coin` not at all."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    proxy = np.where(rng.random(n) < 0.7, kind, rng.integers(0, 4, n))
    mean = between * np.array([-1.2, -0.4, 0.4, 1.2])
    se = rng.choice([0.1, 0.3, 0.6], n)
    features = pd.DataFrame({"creator_id": [f"c{i:03d}" for i in range(n)]})
    features["kind"] = np.array(list("abcd"))[kind]
    features["twin"] = np.array(list("wxyz"))[kind]
    features["proxy"] = np.array(list("abcd"))[proxy]
    features["coin"] = np.where(rng.random(n) < 0.5, "heads", "tails")
    tau = rng.normal(mean[kind], within)
    ites = features[["creator_id"]].assign(effect_hat=rng.normal(tau, se), se=se, tau=tau)
    return ites, features


def fit(summaries, priors):
    return fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)


@pytest.fixture(scope="module")
def data():
    return platform()


@pytest.fixture(scope="module")
def comparison(data):
    ites, features = data
    return compare_groupings_empirical(ites, features, ["coin", "proxy", "kind"], n_permutations=40)


# --- comparing -------------------------------------------------------------------------------


def test_every_model_is_left_out_exactly_on_the_same_creators(data, comparison):
    ites, features = data
    assert comparison.pointwise.index.tolist() == ites["creator_id"].tolist()
    assert set(comparison.pointwise) == {NO_GROUPING, "coin", "proxy", "kind"}
    assert comparison.pointwise.notna().all(axis=None)
    for name in ("kind", NO_GROUPING):
        grouping = None if name == NO_GROUPING else name
        summaries = create_grouping(ites, features, grouping)
        priors = Priors.weakly_informative(ites)
        own = fit(summaries, priors if grouping else without_grouping(priors))
        left_out = loo_exact(own).pointwise
        np.testing.assert_allclose(comparison.pointwise[name], left_out["elpd"])
        np.testing.assert_allclose(comparison.pit[name], left_out["pit"])


def test_the_table_says_what_the_pointwise_densities_say(comparison):
    table = comparison.table.set_index("candidate")
    points = comparison.pointwise
    assert table.index[0] == "kind"
    assert table["elpd"].is_monotonic_decreasing
    assert table.loc[NO_GROUPING, ["elpd_diff", "dse"]].tolist() == [0, 0]
    assert table.loc["kind", ["behind", "behind_dse"]].tolist() == [0, 0]
    difference = points["proxy"] - points[NO_GROUPING]
    assert table["elpd_diff"]["proxy"] == pytest.approx(difference.sum())
    assert table["dse"]["proxy"] == pytest.approx(difference.std() * np.sqrt(len(points)))
    behind = points["proxy"] - points["kind"]
    assert table["behind"]["proxy"] == pytest.approx(behind.sum())
    assert table["behind_dse"]["proxy"] == pytest.approx(behind.std() * np.sqrt(len(points)))
    assert table["verdict"].to_dict() == {
        name: THRESHOLDS.elpd(*elpd_difference(points[name], points[NO_GROUPING]))
        for name in table.index
    }
    assert table["verdict"]["kind"] == "clear"
    assert table["n_groups"].to_dict() == {"kind": 4, "proxy": 4, "coin": 2, NO_GROUPING: 1}


def test_a_grouping_that_misleads_is_called_worse():
    pointwise = pd.DataFrame({NO_GROUPING: np.zeros(50), "bad": np.full(50, -0.2)})
    pointwise["bad"] += np.linspace(-0.01, 0.01, 50)
    groups = {
        name: pd.DataFrame({"genre": ["a"] * 25 + ["b"] * 25}) for name in (NO_GROUPING, "bad")
    }
    from hbm.grouping.compare import _table

    assert _table(pointwise, groups).set_index("candidate")["verdict"]["bad"] == "worse"


def test_stacking_weights_solve_their_problem(comparison):
    weights = stacking_weights(comparison.pointwise)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= -1e-9
    density = np.exp(comparison.pointwise)
    score = density.div(density @ weights, axis=0).mean()
    # Karush-Kuhn-Tucker: the derivative is 1 for what is used and at most 1 for the rest.
    np.testing.assert_allclose(score[weights > 0.01], 1, atol=2e-3)
    assert score.max() < 1 + 2e-3
    expected = comparison.table.set_index("candidate")["weight"]
    np.testing.assert_allclose(weights, expected[weights.index])


def test_order_and_names_do_not_matter(data, comparison):
    ites, features = data
    mixed = ites.sample(frac=1, random_state=3)
    renamed = features.sample(frac=1, random_state=4)
    renamed = renamed.assign(kind=renamed["kind"].map({"a": "z", "b": "m", "c": "b", "d": "a"}))
    again = compare_groupings_empirical(mixed, renamed, ["kind"], n_permutations=0)
    assert again.pointwise.index.tolist() == mixed["creator_id"].tolist()
    np.testing.assert_allclose(
        again.pointwise["kind"].loc[ites["creator_id"]], comparison.pointwise["kind"], atol=1e-6
    )


def test_a_grouping_with_a_tiny_group_is_skipped_reported_and_retried(data):
    ites, features = data
    features = features.assign(tiny=features["kind"], all="one", alone=features["kind"])
    features.loc[:3, "tiny"] = "four"
    found = compare_groupings_empirical(ites, features, ["tiny", "all"], n_permutations=0)
    assert found.skipped["candidate"].tolist() == ["tiny", "all"]
    assert "1 of 5 groups have fewer than 5 creators, the smallest 4" in found.skipped["reason"][0]
    assert found.skipped["retried_as"].tolist()[0] == "tiny (merged)"
    assert found.skipped["reason"][1] == "there is one group only"
    assert set(found.models) == {NO_GROUPING, "tiny (merged)"}
    assert found.groupings["tiny (merged)"]["genre"].value_counts().min() >= 10
    assert len(found.pointwise) == len(ites)
    features.loc[4, "tiny"] = "four"  # five are enough
    again = compare_groupings_empirical(ites, features, ["tiny"], n_permutations=0)
    assert again.skipped.empty
    assert "tiny" in again.models


def test_what_cannot_be_merged_is_dropped_and_said_so(data):
    ites, features = data
    few, features = ites.head(12), features.assign(pairs=np.arange(len(features)) // 2)
    found = compare_groupings_empirical(few, features, ["pairs", "kind"], n_permutations=0)
    assert "merged, there is one group left" in found.skipped["reason"][0]
    assert set(found.models) == set(found.table["candidate"]) == {NO_GROUPING}
    with pytest.raises(DataError, match=r"two groups of 15 creators.*create_grouping\(…, None\)"):
        select_grouping(few, features, ["pairs", "kind"])


def test_bad_candidates_are_refused(data):
    ites, features = data
    with pytest.raises(ValueError, match="candidates must be columns"):
        compare_groupings_empirical(ites, features, [])
    with pytest.raises(ValueError, match="candidates must be columns"):
        compare_groupings_empirical(ites, features, ["kind", NO_GROUPING])
    with pytest.raises(DataError, match="missing column colour"):
        compare_groupings_empirical(ites, features, ["colour"])


def test_few_nodes_are_nearly_as_good():
    for seed, between in ((1, 0.0), (2, 0.4)):
        ites, features = platform(seed, n=60, between=between)
        full, quick = (
            compare_groupings_empirical(ites, features, ["kind"], n_permutations=0, quick=quick)
            for quick in (False, True)
        )
        np.testing.assert_allclose(quick.pointwise, full.pointwise, atol=1e-3)
        assert quick.table["elpd_diff"].sum() == pytest.approx(
            full.table["elpd_diff"].sum(), abs=2e-3
        )
        assert not np.array_equal(quick.pointwise, full.pointwise)


def test_a_group_not_yet_seen_is_predicted_from_the_others(data, comparison):
    ites, features = data
    found = leave_group_out(comparison, "kind").set_index("group")
    assert found["n_creators"].sum() == len(ites)
    priors = comparison.priors
    for name, own in (("elpd", priors), ("elpd_none", without_grouping(priors))):
        summaries = create_grouping(ites, features, "kind")
        rest = summaries[summaries["genre"] != "b"].drop(columns="genre")
        rest["genre_idx"] = np.unique(rest["genre_idx"], return_inverse=True)[1]
        whole, without = (
            fit(frame, own).attrs["log_marginal_likelihood"] for frame in (summaries, rest)
        )
        assert found.loc["b", name] == pytest.approx(whole - without, abs=1e-6)
    np.testing.assert_allclose(found["elpd_diff"], found["elpd"] - found["elpd_none"])
    assert found["elpd_diff"].sum() > 0  # the others tell how far a group may lie


def test_a_fit_that_failed_its_diagnostics_decides_nothing(data, comparison, monkeypatch):
    ites, features = data
    coarse = comparison.models["kind"].copy()
    coarse.attrs["quadrature_errors"] = {"mu_global": 1e-3}
    with pytest.raises(DiagnosticsError, match="quadrature error of mu_global"):
        check_posterior_separation(coarse, "kind")
    monkeypatch.setattr(compare, "fit_hierarchical_model", lambda *_, **how: coarse)
    for engine in ("exact", "nuts"):
        with pytest.raises(DiagnosticsError, match="quadrature error of mu_global"):
            compare_groupings_empirical(ites, features, ["kind"], engine=engine)
    with pytest.raises(DiagnosticsError, match="quadrature error of mu_global"):
        leave_group_out(comparison, "kind")


@pytest.mark.slow
def test_sampling_agrees_with_the_exact_engine(data, comparison):
    ites, features = data
    sampled = compare_groupings_empirical(
        ites, features, ["kind"], engine="nuts", n_permutations=20, draws=1000, chains=4
    )
    exact = comparison.table.set_index("candidate")
    found = sampled.table.set_index("candidate")
    for name in ("kind", NO_GROUPING):
        # An elpd of 4,000 draws errs by about sqrt(p / 4,000), p some 5 effective parameters.
        assert found["elpd"][name] == pytest.approx(exact["elpd"][name], abs=K * 0.04)
    np.testing.assert_allclose(sampled.pit["kind"], comparison.pit["kind"], atol=0.02)
    assert found["p_permutation"]["kind"] == pytest.approx(1 / 21)


# --- shuffled labels ---------------------------------------------------------------------------


def test_shuffled_labels_have_the_elpd_of_refits(data, comparison):
    _, features = data
    summaries = comparison.groupings["coin"]
    none, priors = comparison.models[NO_GROUPING], comparison.priors
    found = permuted_elpd(summaries, none, priors, 6, np.random.default_rng(4))
    rng, labels = np.random.default_rng(4), summaries["genre_idx"].to_numpy()
    for k in range(7):
        shuffled = summaries.drop(columns="genre")
        shuffled["genre_idx"] = labels if k == 0 else rng.permutation(labels)
        elpd = loo_exact(fit(shuffled, priors)).elpd - comparison.pointwise[NO_GROUPING].sum()
        assert found[k] == pytest.approx(elpd, abs=0.02)
    assert features["coin"].nunique() == 2


def test_labels_that_matter_beat_all_their_shuffles(comparison):
    table = comparison.table.set_index("candidate")
    assert table["p_permutation"]["kind"] == pytest.approx(1 / 41)
    assert np.isnan(table["p_permutation"][NO_GROUPING])
    assert comparison.shuffled.shape == (40, 3)
    assert comparison.shuffled["kind"].max() < table["elpd_diff"]["kind"]


def test_shuffles_do_not_hang_on_what_else_is_compared(comparison):
    one = shuffle_labels(comparison, ["kind"], 10, seed=7)
    again = shuffle_labels(comparison, ["kind"], 10, seed=7)
    pd.testing.assert_frame_equal(one.shuffled, again.shuffled)
    assert list(one.shuffled) == ["kind"]


def test_the_permutation_test_has_the_right_size():
    """P-values of labels that mean nothing are uniform on 1/20, …, 1."""
    p_values = []
    for seed in range(150):
        ites, features = platform([seed, 3], n=60, between=0.0)
        summaries = create_grouping(ites, features, "kind")
        priors = Priors.weakly_informative(ites)
        none = fit(create_grouping(ites, features, None), without_grouping(priors))
        found = permuted_elpd(summaries, none, priors, 19, np.random.default_rng(seed))
        p_values.append(np.mean(found >= found[0]))
    p_values = np.array(p_values)
    assert stats.kstest(p_values - 0.025, "uniform").pvalue > 1e-4
    rejected = np.mean(p_values <= 0.05)
    assert abs(rejected - 0.05) < K * np.sqrt(0.05 * 0.95 / len(p_values))


# --- checks -----------------------------------------------------------------------------------


def test_separation_is_spread_over_uncertainty(comparison):
    found = check_posterior_separation(comparison.models["kind"], "kind")
    table = extract_genre_estimates(comparison.models["kind"])
    pd.testing.assert_frame_equal(found.table, table)
    assert found.ratio == pytest.approx(np.std(table["mean"]) / table["se"].mean())
    assert found.grade == THRESHOLDS.separation(found.ratio) == "strong"
    coin = check_posterior_separation(comparison.models["coin"], "coin")
    assert coin.ratio < found.ratio / 2
    with pytest.raises(ValueError, match="a single group"):
        check_posterior_separation(comparison.models[NO_GROUPING], NO_GROUPING)


def test_shrinkage_by_hand(data):
    ites = pd.DataFrame(
        {"creator_id": list("abcd"), "effect_hat": [2.0, 0, -4, 1], "se": [1.0, 1, 0.5, 0.2]}
    )
    pooled = pd.DataFrame({"creator_id": list("dcba"), "effect_hat": [1.0, -3, 1, 1]})
    features = pd.DataFrame({"creator_id": list("abcd"), "g": ["x", "x", "y", "y"]})
    found = analyze_shrinkage(ites, pooled, features, "g")
    assert found.creators["shrinkage"].tolist() == [1, 1, 1, 0]
    assert found.creators["precision"].tolist() == [1, 1, 2, 5]
    np.testing.assert_allclose(found.creators["shrinkage_pct"], [50, np.nan, 25, 0])
    assert found.n_undefined == 1
    assert found.median_pct == 25
    assert found.by_group["median_pct"].tolist() == [50, 12.5]
    expected = np.corrcoef([1, 1, 2, 5], [1, 1, 1, 0])[0, 1]
    assert found.correlation == pytest.approx(expected)
    assert found.sensible is True
    with pytest.raises(ValueError, match="different creators"):
        analyze_shrinkage(ites, pooled.head(3), features, "g")


def test_shrinkage_without_a_spread_of_errors_says_nothing():
    ites = pd.DataFrame({"creator_id": list("abc"), "effect_hat": [2.0, 0, -4], "se": 1.0})
    features = pd.DataFrame({"creator_id": list("abc"), "g": ["x", "x", "y"]})
    found = analyze_shrinkage(ites, ites.assign(effect_hat=[1.0, 0, -1]), features, "g")
    assert np.isnan(found.correlation)
    assert found.sensible is None


def test_partial_pooling_shrinks_the_noisy_ones(data, comparison):
    ites, features = data
    pooled = extract_hbm_estimates(comparison.models["kind"], comparison.groupings["kind"])
    found = analyze_shrinkage(ites, pooled, features, "kind")
    assert found.correlation < -0.3
    assert found.rank_correlation < -0.3
    assert found.by_group["group"].tolist() == list("abcd")


def test_coverage_and_its_binomial_interval():
    found = held_out_coverage(np.r_[[0.0249, 0.9751, 0.5], np.linspace(0.0251, 0.9749, 97)])
    assert (found.coverage, found.n_creators) == (0.98, 100)
    none = held_out_coverage([0.0] * 20)
    assert none.lower == 0
    assert none.upper == pytest.approx(1 - 0.025 ** (1 / 20))
    assert none.p_value == pytest.approx(0.05**20)
    most = held_out_coverage([0.5] * 45 + [1.0] * 5)
    assert most.p_value == pytest.approx(stats.binom.cdf(45, 50, 0.95))
    assert most.lower == pytest.approx(stats.beta.ppf(0.025, 45, 6))


# --- deciding ---------------------------------------------------------------------------------


NAMES = ["coin", "proxy", "kind"]


@pytest.fixture(scope="module")
def decision(data):
    ites, features = data
    return select_grouping(ites, features, NAMES, n_permutations=40, monitoring="nightly job")


def test_the_grouping_that_structures_the_effects_is_chosen(decision, data):
    assert decision.grouping == decision.candidate == "kind"
    assert decision.summaries["genre"].tolist() == data[1]["kind"].tolist()
    assert decision.model is decision.comparison.models["kind"]
    assert decision.steps["question"].iloc[-1] == "Decision"
    assert decision.steps["answer"].iloc[-1] == "kind"
    assert "the experiment itself" in decision.steps["evidence"][2]
    assert decision.separation.grade == "strong"


def test_the_checklist_has_ten_points_and_leaves_two_to_people(decision, data):
    checklist = decision.checklist
    assert len(checklist) == 10
    assert set(checklist["status"]) <= {PASS, FAIL, PERSON}
    assert checklist["status"][0] == checklist["status"][8] == PERSON
    assert checklist["status"].drop([0, 8]).eq(PASS).all()
    assert checklist["evidence"].str.len().min() > 0
    ites, features = data
    unplanned = select_grouping(ites, features, NAMES, n_permutations=0)
    assert unplanned.checklist["status"][9] == PERSON


def test_history_makes_the_shortlist_and_the_experiment_decides(data):
    ites, features = data
    history = features[["creator_id"]].assign(lift=0.0, lift_se=0.1)
    heads = features["coin"] == "heads"
    history["lift"] = np.where(heads, 1.0, -1.0) + np.random.default_rng(1).normal(0, 0.2, 200)
    found = select_grouping(ites, features, NAMES, history=history.head(150), n_permutations=0)
    assert found.steps["evidence"][2] == "lift of 150 creators"
    assert found.exploration["candidate"][0] == "coin"
    assert found.exploration.set_index("candidate")["shortlisted"].to_dict() == {
        "coin": True,
        "proxy": False,
        "kind": False,
    }
    # What looks like structure in history predicts nothing: no grouping, and still pooling.
    assert found.grouping is None
    assert found.candidate == "coin"
    assert found.checklist.set_index("point")["status"].filter(like="predicts").tolist() == [FAIL]


def test_whom_history_does_not_know_is_counted_and_twice_is_refused(data):
    ites, features = data
    history = features[["creator_id"]].assign(lift=np.linspace(0, 1, 200))
    history.loc[:2, "lift"] = np.nan
    history.loc[199, "creator_id"] = "stranger"
    found = select_grouping(
        ites, features, NAMES, history=history, outcome_se=None, n_permutations=0
    )
    assert found.steps["evidence"][2] == (
        "lift of 196 creators; 4 without features or lift set aside"
    )
    history["lift_se"] = np.where(history.index == 5, np.nan, 0.1)
    found = select_grouping(ites, features, NAMES, history=history, n_permutations=0)
    assert found.steps["evidence"][2] == (
        "lift of 195 creators; 5 without features or lift or lift_se set aside"
    )
    with pytest.raises(DataError, match=r"history: column 'creator_id' must be unique.*'c004'"):
        select_grouping(ites, features, NAMES, history=history.iloc[[3, 4, 4]], outcome_se=None)


def test_effects_and_history_may_have_columns_of_the_same_names_as_features(data):
    ites, features = data
    features = features.rename(columns={"kind": "genre"}).assign(lift=0.0, se=1.0)
    history = ites[["creator_id"]].assign(lift=ites["effect_hat"], lift_se=ites["se"])
    for past in (None, history):
        plain = select_grouping(ites, features, ["genre"], history=past, n_permutations=0)
        labelled = select_grouping(
            ites.assign(genre="as it was", genre_idx=0),
            features,
            ["genre"],
            history=None if past is None else past.assign(genre="as it was"),
            n_permutations=0,
        )
        pd.testing.assert_frame_equal(labelled.exploration, plain.exploration)
        assert labelled.grouping == plain.grouping == "genre"


def test_a_column_that_is_named_and_not_there_is_refused(data):
    ites, features = data
    history = ites[["creator_id"]].assign(lift=ites["effect_hat"], lift_se=ites["se"])
    with pytest.raises(DataError, match="history: missing column lift_sd; columns found: creator"):
        select_grouping(ites, features, ["kind"], history=history, outcome_se="lift_sd")
    with pytest.raises(DataError, match="ite_estimates: missing column se"):
        select_grouping(ites.drop(columns="se"), features, ["kind"])
    with pytest.raises(DataError, match="creator_features: missing columns creator_id, kinds"):
        select_grouping(ites, features.drop(columns="creator_id"), ["kinds"])


def test_without_structure_the_answer_is_no_grouping_and_never_no_pooling():
    ites, features = platform(5, between=0.0)
    found = select_grouping(ites, features, NAMES, n_permutations=0)
    assert found.grouping is None
    assert found.steps["answer"].iloc[-1] == NO_GROUPING
    assert "pool all creators" in found.steps["evidence"].iloc[-1]
    assert set(found.summaries["genre"]) == {"all creators"}
    pooled = extract_hbm_estimates(found.model, found.summaries)
    assert (pooled["shrinkage"] > 0).all()
    error = [np.mean((e - ites["tau"]) ** 2) for e in (pooled["effect_hat"], ites["effect_hat"])]
    assert error[0] < error[1]


@pytest.mark.parametrize("order", [["twin", "kind"], ["kind", "twin"]])
def test_of_equals_the_one_that_was_declared_first_is_taken(data, order):
    ites, features = data
    found = select_grouping(ites, features, order, n_permutations=0)
    assert found.grouping == order[0]
    ahead = found.steps["question"].str.contains("ahead of all others")
    assert ahead.any()


def test_small_groups_are_merged_before_anything_else(data):
    ites, features = data
    features = features.assign(kind=features["kind"].where(features.index >= 14, "rare"))
    found = select_grouping(ites, features, ["kind"], n_permutations=0)
    assert found.grouping == "kind (merged)"
    assert "merged" in found.steps["evidence"][1]
    assert found.summaries["genre"].value_counts().min() >= 15
    features.loc[14, "kind"] = "rare"  # 15 are enough
    assert select_grouping(ites, features, ["kind"], n_permutations=0).grouping == "kind"


def test_without_domain_knowledge_features_are_clustered_and_cut(data):
    ites, features = data
    rng = np.random.default_rng(2)
    codes = features["kind"].map({"a": 0, "b": 1, "c": 2, "d": 3})
    features = features[["creator_id"]].assign(
        score=10.0 * codes + rng.normal(size=200), other=rng.normal(size=200)
    )
    found = select_grouping(ites, features, numeric_features=["score", "other"], n_permutations=0)
    assert found.steps["answer"][0] == "no"
    assert found.grouping in ("score (bins)", "cluster")
    assert set(found.exploration["candidate"]) == {"score (bins)", "other (bins)", "cluster"}
    features["same"] = 1.0
    again = select_grouping(ites, features, numeric_features=["score", "same"], n_permutations=0)
    assert again.steps["evidence"][0].endswith("; same cannot be cut")
    with pytest.raises(ValueError, match="either candidates or numeric_features"):
        select_grouping(ites, features)


def test_a_candidate_that_fails_its_checks_makes_room_for_the_next(data, monkeypatch):
    ites, features = data
    real = select._checks

    def weak(comparison, features, name):
        separation, *others = real(comparison, features, name)
        return (separation._replace(grade="weak") if name == "kind" else separation, *others)

    monkeypatch.setattr(select, "_checks", weak)
    found = select_grouping(ites, features, ["kind", "proxy"], n_permutations=0)
    assert found.grouping == "proxy"
    asked = found.steps.set_index("question")["answer"]
    assert asked["Does kind pass its checks?"] == "no"
    assert asked["Does proxy pass its checks?"] == "yes"
    monkeypatch.setattr(select, "_problems", lambda *checks: ["everything"])
    assert select_grouping(ites, features, ["kind", "proxy"], n_permutations=0).grouping is None


@pytest.mark.parametrize(
    ("upper", "expected"), [(0.2, ["kind"]), (np.nextafter(0.2, 0), []), (np.nan, ["kind"])]
)
def test_the_shortlist_ends_where_the_interval_lies_below_its_threshold(upper, expected):
    row = {"candidate": "kind", "quality": 0.1, "lower": 0.0, "upper": upper}
    assert select._shortlist(pd.DataFrame([row]), ["kind"], select._Path(), "") == expected


@pytest.mark.parametrize(
    ("coverage", "upper", "expected"),
    [
        (0.93, 0.95, PASS),
        (np.nextafter(0.93, 0), 0.93, PERSON),
        (0.91, np.nextafter(0.93, 0), FAIL),
    ],
)
def test_coverage_fails_only_where_chance_does_not_explain_it(coverage, upper, expected):
    assert coverage_status(HeldOutCoverage(coverage, 0.5, upper, 0.5, 100)) == expected


def checklist_status(point, **changed):
    """Status of the point of the checklist that contains a text, at given values."""
    explored = pd.DataFrame(
        [{"candidate": "kind", "anova_p": 0.01, "eta_corrected": 0.3, "eta_squared": 0.1}]
    )
    row = {"candidate": "kind", "n_groups": 4, "smallest": 20, "elpd_diff": 9.0, "dse": 2.0}
    table = pd.DataFrame([row | {"behind": 0.0, "verdict": "clear"}])
    for frame in (explored, table):
        for name in set(changed) & set(frame):
            frame[name] = changed[name]

    class comparison:
        pass

    comparison.table = table
    groups = pd.DataFrame({"genre": ["a", "b"]})
    separation = select.Separation("kind", groups, 1.0, 1.0, changed.get("ratio", 3.0), "strong")
    shrinkage = type("shrinkage", (), {"sensible": True, "correlation": -0.5})
    checks = separation, shrinkage, HeldOutCoverage(0.95, 0.9, 0.97, 0.5, 100)
    points = select._checklist("kind", explored, comparison, checks, None)
    (status,) = points.loc[points["point"].str.contains(point), "status"]
    return status


@pytest.mark.parametrize(
    ("point", "name", "passes", "fails"),
    [
        ("groups differ", "anova_p", np.nextafter(0.05, 0), 0.05),
        ("explains more", "eta_corrected", np.nextafter(0.2, 1), 0.2),
        ("every group", "smallest", 15, 14),
        ("predicts better", "behind", -2.0, np.nextafter(-2, -3)),
        ("predicts better", "verdict", "likely", "equal"),
        ("separated", "ratio", np.nextafter(1.5, 2), 1.5),
    ],
)
def test_points_of_the_checklist_turn_at_their_thresholds(point, name, passes, fails):
    assert checklist_status(point, **{name: passes}) == PASS
    assert checklist_status(point, **{name: fails}) == FAIL
