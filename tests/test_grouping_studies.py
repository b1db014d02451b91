"""The simulated history, the monitor, and the studies that mark selection and pitfalls."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats

from hbm.checks import DataError
from hbm.estimates import extract_hbm_estimates
from hbm.gaussian import Moments
from hbm.grouping import monitor
from hbm.grouping.candidates import create_grouping
from hbm.grouping.compare import without_grouping
from hbm.grouping.explore import analyze_grouping_candidate
from hbm.grouping.history import (
    CANDIDATES,
    LEVELS,
    NUMERIC_FEATURES,
    historical_lift,
    simulate_platform_history,
    simulate_quarters,
)
from hbm.grouping.monitor import ALERT, CHECKS, OK, GroupingAlert, monitor_grouping
from hbm.grouping.pitfalls import pitfall_costs, summarize_pitfalls
from hbm.grouping.study import (
    WORLDS,
    mark_selection,
    monitor_study,
    quality_study,
    summarize_marks,
)
from hbm.grouping.thresholds import THRESHOLDS
from hbm.intervals import normal_factor
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors

# --- the simulated platform --------------------------------------------------------------------


def test_a_platform_has_one_row_a_creator_everywhere():
    platform = simulate_platform_history(3, n_creators=80)
    assert platform.features.columns.tolist() == [
        "creator_id", *CANDIDATES, *NUMERIC_FEATURES, "sub_genre",
    ]  # fmt: skip
    for frame in platform[:3]:
        assert frame["creator_id"].tolist() == platform.truth["creator_id"].tolist()
    assert platform.features.notna().all(axis=None)
    again = simulate_platform_history(3, n_creators=80)
    for one, other in zip(platform[:3], again[:3], strict=True):
        pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize("column", ["genre", "size_quartile", "archetype", "sub_genre"])
def test_effects_are_structured_as_asked(column):
    platform = simulate_platform_history(1, n_creators=20_000, structure={column: 0.5})
    truth = platform.truth
    labels = truth["archetype"] if column == "archetype" else platform.features[column]
    tau = pd.Series(truth["creator_effects"])
    own = tau.groupby(np.asarray(labels)).transform("mean")
    n_groups = pd.Series(np.asarray(labels)).nunique()
    within = np.var(tau - own) * len(tau) / (len(tau) - n_groups)
    assert truth["sigma_creator"] == pytest.approx(0.5**1.5)
    assert within == pytest.approx(0.125, abs=K * 0.125 * np.sqrt(2 / len(tau)))
    between = np.var(own)
    assert between / (between + within) == pytest.approx(truth["share"], abs=0.02)


def test_without_structure_nothing_but_the_mean_is_shared():
    truth = simulate_platform_history(1, n_creators=20_000, structure={}).truth
    tau = truth["creator_effects"]
    assert truth["genre_effects"].tolist() == [0.5]
    assert abs(tau.mean() - 0.5) < K * stats.sem(tau)
    assert tau.std() == pytest.approx(0.5, abs=K * 0.5 / np.sqrt(2 * len(tau)))


def test_the_experiment_is_unbiased_and_as_precise_as_it_says():
    platform = simulate_platform_history(2, n_creators=5000)
    ites, truth = platform.ite_estimates, platform.truth
    z = (ites["effect_hat"] - truth["creator_effects"]) / ites["se"]
    assert abs(z.mean()) < K * stats.sem(z)
    large = z[ites["n_total"] > 200]
    assert large.var() == pytest.approx(1, abs=K * np.sqrt(2 / len(large)))
    followers = platform.features["follower_count"]
    assert stats.spearmanr(ites["n_total"], followers).statistic > 0.3
    np.testing.assert_array_equal(truth["creator_n"], ites["n_total"])


def test_content_type_is_a_proxy_of_genre_and_nothing_else_is():
    features = simulate_platform_history(2, n_creators=4000).features
    for column in ("monetization_method", "posting_frequency", "platform_tenure"):
        table = pd.crosstab(features["genre"], features[column])
        assert stats.chi2_contingency(table).pvalue > 1e-4
    table = pd.crosstab(features["genre"], features["content_type"])
    assert stats.chi2_contingency(table).pvalue < 1e-12


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"genre": 1.0}, "sum to less than 1"),
        ({"genre": -0.1}, "must be >= 0"),
        ({"colour": 0.1}, "unknown column 'colour'"),
        ({"avg_views_pre": 0.1}, "unknown column"),
    ],
)
def test_impossible_structures_are_refused(structure, message):
    with pytest.raises(ValueError, match=message):
        simulate_platform_history(1, structure=structure)


def test_quarters_share_their_groups_effects_until_they_change():
    quarters = simulate_quarters(
        4, n_quarters=4, n_creators=60, changes_at=2, changes_to={"content_type": 0.2}
    )
    means = [dict(zip(q.truth["genres"], q.truth["genre_effects"], strict=True)) for q in quarters]
    assert means[0] == means[1]
    assert set(means[0]) == set(LEVELS["genre"])
    assert means[2] == means[3]
    assert set(means[2]) == set(LEVELS["content_type"])
    ids = [c for q in quarters for c in q.features["creator_id"]]
    assert len(set(ids)) == 240
    spread = {np.round(q.truth["sigma_creator"] ** 2, 12) for q in quarters}
    assert spread == {0.16, 0.2}  # all effects keep their variance of .25


# --- lift ----------------------------------------------------------------------------------------


def test_lift_and_its_standard_error_by_hand():
    history = pd.DataFrame(
        {
            "creator_id": list("abcde"),
            "revenue_pre": [10.0, 0.0, 20.0, np.nan, -1.0],
            "revenue_post": [15.0, 5.0, 10.0, 1.0, 2.0],
            "revenue_pre_se": [1.0, 0.0, 4.0, 1.0, 1.0],
            "revenue_post_se": [2.0, 1.0, 1.0, 1.0, 1.0],
        }
    )
    found = historical_lift(history)
    assert found.table["creator_id"].tolist() == ["a", "c"]
    assert found.table["lift"].tolist() == [0.5, -0.5]
    np.testing.assert_allclose(
        found.table["lift_se"], [np.hypot(1.5 * 0.1, 0.2), np.hypot(0.5 * 0.2, 0.05)]
    )
    assert dict(found.set_aside.to_numpy()) == {
        "b": "no revenue before the rollout",
        "d": "revenue is missing",
        "e": "revenue is negative",
    }
    assert "lift_se" not in historical_lift(history[list(history)[:3]]).table
    with pytest.raises(DataError, match="no creator has revenue before"):
        historical_lift(history.iloc[[1]])


@pytest.fixture(scope="module")
def lifts():
    """Quality by candidate where nothing structures the effects: of lift, and in the experiment."""
    rows = []
    for seed in range(25):
        platform = simulate_platform_history([seed, 6], structure={})
        data = historical_lift(platform.history).table.merge(platform.features, on="creator_id")
        fresh = platform.ite_estimates.merge(platform.features, on="creator_id")
        for name in CANDIDATES:
            quality = analyze_grouping_candidate(data, name, se="lift_se").quality
            again = analyze_grouping_candidate(fresh, name, "effect_hat", se="se").quality
            rows.append((seed, name, quality, again))
    table = pd.DataFrame(rows, columns=["seed", "candidate", "lift", "experiment"])
    return table.pivot(index="seed", columns="candidate")


NOISY = ["arpu_quintile", "size_quartile"]


def test_groups_of_noisy_features_look_structured_in_lift(lifts):
    lift = lifts["lift"]
    assert (lift[NOISY].mean() > 0.1 + K * lift[NOISY].sem()).all()  # regression to the mean
    # Averaged over candidates first: single ones are skewed. Tiers have a group of a few.
    others = lift.drop(columns=[*NOISY, "audience_size_tier"]).mean(axis=1)
    assert abs(others.mean()) < K * others.sem()


def test_in_the_experiment_nothing_looks_structured(lifts):
    every = lifts["experiment"].drop(columns="audience_size_tier").mean(axis=1)
    assert abs(every.mean()) < K * every.sem()


# --- monitoring --------------------------------------------------------------------------------


def quarters(**change):
    structure = {"genre": 0.6}  # so much that any draw of the genres shows it
    found = simulate_quarters(12, n_quarters=3, n_creators=300, structure=structure, **change)
    return {
        f"Q{k + 1}": create_grouping(q.ite_estimates, q.features, "genre")
        for k, q in enumerate(found)
    }


@pytest.fixture(scope="module")
def steady():
    return monitor_grouping(quarters())


@pytest.fixture(scope="module")
def faded():
    return monitor_grouping(quarters(changes_at=2))


def test_a_grouping_that_holds_raises_nothing(steady):
    assert steady.ok
    assert steady.exit_code == OK == 0
    assert steady.alerts.empty
    steady.raise_if_alert()
    assert steady.baseline == "Q1"
    assert steady.table["quarter"].tolist() == [q for q in ("Q1", "Q2", "Q3") for _ in CHECKS]
    assert (steady.table["lower"] <= steady.table["value"]).all()
    assert (steady.table["value"] <= steady.table["upper"]).all()


def test_a_structure_that_fades_is_noticed_in_its_quarter(faded, steady):
    assert not faded.ok
    assert faded.exit_code == ALERT == 1
    assert set(faded.alerts["quarter"]) == {"Q3"}
    assert {"quality", "elpd"} <= set(faded.alerts["check"])
    with pytest.raises(GroupingAlert, match=r"needs a review: Q3, quality: quality .*; Q3, elpd"):
        faded.raise_if_alert()
    before = [report.table[report.table["quarter"] == "Q2"] for report in (steady, faded)]
    pd.testing.assert_frame_equal(*before)


def test_the_baseline_is_never_an_alert_and_one_quarter_is_not_enough(faded):
    assert not faded.table.loc[faded.table["quarter"] == "Q1", "alert"].any()
    with pytest.raises(ValueError, match="at least one later quarter"):
        monitor_grouping({"Q1": pd.DataFrame()})


def test_new_groups_are_predicted_from_the_platform():
    data = quarters()
    late = data["Q3"].assign(genre=data["Q3"]["genre"].replace("Other", "Podcasts"))
    late["genre_idx"] = late["genre"].astype("category").cat.codes
    report = monitor_grouping({"Q1": data["Q1"], "Q3": late})
    row = report.table.set_index(["quarter", "check"]).loc[("Q3", "coverage")]
    assert row["value"] > 0.9


class Fake:
    """A quarter with given numbers, for the rules of the alerts."""

    def __init__(
        self,
        n=500,
        elpd=50.0,
        dse=8.0,
        quality=(0.35, 0.1),
        shrinkage=(0.35, 0.01),
        variance=(0.5, 0.03),
    ):
        self.elpd, self.dse, self.variance = elpd, dse, variance
        value, reach = quality
        self.quality = type("q", (), dict(quality=value, lower=value - reach, upper=value + reach))
        self.pull = shrinkage
        self.summaries = pd.DataFrame({"se": [1.0]})
        self.gains = np.full(n, elpd / n) + 0.3 * np.resize([-1, 1], n)

    def shrinkage(self, se):
        return self.pull

    def gains_of(self, other):
        return other.gains


def alert(check, quarter, baseline):
    return getattr(monitor, f"_{check}")(quarter, baseline)[4]


def test_quality_alerts_below_its_threshold_and_beyond_chance():
    base = Fake()
    assert alert("quality", Fake(quality=(0.1, 0.0999)), base)
    assert not alert("quality", Fake(quality=(0.1, 0.1001)), base)  # may still reach 20 %
    assert not alert("quality", Fake(quality=(0.1, 0.05)), Fake(quality=(0.15, 0.05)))


def test_an_undefined_quality_alerts_where_variance_has_gone_and_chance_does_not_explain_it():
    base, undefined = Fake(), (np.nan, np.nan)
    reach = normal_factor(0.95) * 0.05  # of errors 0.03 and 0.04
    for variance, expected in ((0.5 - 1.001 * reach, True), (0.5 - 0.999 * reach, False)):
        quarter = Fake(quality=undefined, variance=(variance, 0.04))
        assert alert("quality", quarter, base) is expected
    gone = Fake(quality=undefined, variance=(-0.1, 0.04))
    assert not alert("quality", gone, Fake(quality=undefined))
    assert not alert("quality", base, gone)


def test_a_quarter_of_pure_noise_is_an_alert_and_says_why():
    """Every estimate is the same but for half of the noise that it states."""
    noise = quarters()["Q2"]
    sign = np.resize([-0.5, 0.5], len(noise))
    report = monitor_grouping(
        {"Q1": quarters()["Q1"], "Q2": noise.assign(effect_hat=0.5 + sign * noise["se"])}
    )
    row = report.alerts.set_index("check").loc["quality"]
    assert np.isnan(row["value"])
    assert row["detail"].startswith("quality undefined: variance of true effects -")


def test_the_variance_of_true_effects_is_without_noise(rng):
    """Over many quarters the estimate has no bias, and the spread that it states."""
    found = []
    for _ in range(400):
        se = rng.uniform(0.2, 1.0, 100)
        effect = rng.normal(0.3, 0.5, 100) + rng.normal(0, se)
        found.append(monitor._variance(pd.DataFrame({"effect_hat": effect, "se": se})))
    value, error = np.array(found).T
    assert abs(value.mean() - 0.25) < K * value.std(ddof=1) / 20
    ratio = np.square((value - 0.25) / np.sqrt(np.square(error).mean()))
    assert abs(ratio.mean() - 1) < K * ratio.std(ddof=1) / 20


def test_elpd_alerts_where_the_grouping_no_longer_helps_and_helped_before():
    base = Fake()
    assert alert("elpd", Fake(elpd=2.0, dse=0.5), base)
    assert not alert("elpd", Fake(elpd=np.nextafter(2, 3), dse=0.5), base)
    assert alert("elpd", Fake(elpd=-30.0, dse=3.0), base)  # clearly worse
    few = Fake(n=50, elpd=2.0, dse=0.5)
    few.gains += 0.05  # the baseline's fit still predicts them better with the grouping
    assert not alert("elpd", few, base)


def test_gains_are_those_of_leaving_out_and_of_predicting(steady):
    """The log density of estimates that a fit has not seen, against refits that have."""
    data = quarters()
    priors = Priors.weakly_informative(data["Q1"])
    quarter = monitor._Quarter(data["Q1"].head(60), priors, quick=False)
    assert quarter.gains.sum() == pytest.approx(quarter.elpd)
    for i in (0, 1, 2):
        new = data["Q2"].iloc[[i]]
        both = pd.concat([data["Q1"].head(60), new], ignore_index=True)
        evidence = [
            [
                fit_hierarchical_model(frame, engine="exact", draws=0, priors=own).attrs[
                    "log_marginal_likelihood"
                ]
                for frame in (both, data["Q1"].head(60))
            ]
            for own in (priors, without_grouping(priors))
        ]
        expected = (evidence[0][0] - evidence[0][1]) - (evidence[1][0] - evidence[1][1])
        seen = type("q", (), {"summaries": new})
        assert quarter.gains_of(seen)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("hits", "n", "expected"),
    [(44, 50, False), (42, 50, True), (450, 500, False), (449, 500, True), (90, 100, False)],
)
def test_coverage_alerts_below_its_threshold_and_beyond_chance(monkeypatch, hits, n, expected):
    """44 of 50 is 88%, and no wonder; 449 of 500 is 89.8%, and one."""
    one = Moments(np.zeros((1, n)), np.ones((1, n)))
    monkeypatch.setattr(monitor, "predictive_moments", lambda *a, **k: (one, np.ones(1)))
    quarter, base = Fake(), Fake()
    values = np.r_[np.full(hits, 1.9), np.full(n - hits, 2.0)]
    quarter.summaries = pd.DataFrame({"genre": "a", "se": 1.0, "effect_hat": values})
    base.model = {"posterior": type("p", (), {"dataset": {"genre": pd.Series(["a"])}})}
    assert alert("coverage", quarter, base) is expected


def test_shrinkage_alerts_beyond_three_standard_errors_of_the_difference():
    base = Fake(shrinkage=(0.35, 0.03))
    assert not alert("shrinkage", Fake(shrinkage=(0.50, 0.04)), base)
    assert alert("shrinkage", Fake(shrinkage=(0.5001, 0.04)), base)
    assert alert("shrinkage", Fake(shrinkage=(0.1999, 0.04)), base)


def test_the_mean_shrinkage_is_that_of_the_posterior(steady):
    data = quarters()["Q1"]
    priors = Priors.weakly_informative(data)
    model = fit_hierarchical_model(data, engine="exact", draws=0, priors=priors)
    expected = extract_hbm_estimates(model, data)["shrinkage"].mean()
    table = steady.table.set_index(["quarter", "check"])
    assert table.loc[("Q1", "shrinkage"), "value"] == pytest.approx(expected)
    assert table.loc[("Q2", "shrinkage"), "limit"] == pytest.approx(expected)
    assert table.loc[("Q1", "elpd"), "limit"] == THRESHOLDS.elpd_likely


# --- studies -----------------------------------------------------------------------------------


def test_marks_say_what_was_chosen_and_what_it_costs():
    marks = mark_selection(1, ["genre", "nothing"], n_permutations=20, seed=1)
    assert marks["world"].tolist() == ["genre", "nothing"]
    for row in marks.itertuples():
        right, related = WORLDS[row.world].right, WORLDS[row.world].related
        kinds = {right: "right", "no grouping": "none" if row.world == "genre" else "right"}
        assert row.mark == kinds.get(row.chosen, "related" if row.chosen in related else "wrong")
        if row.mark == "right":
            assert row.mse_chosen == pytest.approx(row.mse_right, rel=1e-6)
        assert row.mse_no_pooling > 1.5 * row.mse_none
    alone = mark_selection(1, ["nothing"], n_permutations=20, seed=2)
    pd.testing.assert_frame_equal(
        alone.drop(columns="world"), marks[marks["world"] == "nothing"].head(1)
        .drop(columns="world").reset_index(drop=True)
    )  # fmt: skip


def test_a_score_card_adds_up():
    n = 8
    marks = pd.DataFrame(
        {
            "world": "genre",
            "mark": ["right"] * 5 + ["related", "wrong", "none"],
            "naive_top": ["genre"] * 2 + ["arpu_quintile"] * 6,
            "mse_right": 1.0,
            "mse_chosen": np.linspace(1, 2, n),
            "mse_none": 1.2,
            "mse_naive": 1.1,
            "mse_no_pooling": 2.0,
        }
    )
    row = summarize_marks(marks).iloc[0]
    assert row[["right", "related", "wrong", "none"]].tolist() == [5 / 8, 1 / 8, 1 / 8, 1 / 8]
    assert row["naive_right"] == 2 / 8
    assert row["cost_chosen"] == pytest.approx(1.5)
    assert row["cost_chosen_se"] == pytest.approx(stats.sem(marks["mse_chosen"]))
    a, b = 5.5, 3.5
    assert row["right_se"] == pytest.approx(stats.beta(a, b).std())


def test_corrected_quality_is_right_where_naive_quality_is_not():
    nothing, true = (quality_study(30, share, n_creators=300) for share in (0.0, 0.36))
    assert (nothing["share"] == 0).all()
    assert abs(nothing["quality"].mean()) < K * nothing["quality"].sem()
    assert nothing["naive"].mean() > K * nothing["naive"].sem()
    error = true["quality"] - true["share"]
    assert abs(error.mean()) < K * error.sem()
    low = true["naive"] - true["share"]
    assert low.mean() < -K * low.sem()


@pytest.mark.slow
def test_the_monitor_is_quiet_when_it_should_be_and_not_otherwise():
    calm, small = (monitor_study(30, "nothing changes", n, n_quarters=2) for n in (300, 50))
    for study in (calm, small):
        assert study["any"].mean() < 0.1 + K * np.sqrt(0.1 * 0.9 / len(study))
    for scenario, check in (
        ("structure fades", "elpd"),
        ("structure moves", "quality"),
        ("noise understated", "coverage"),
    ):
        study = monitor_study(15, scenario, 300, n_quarters=1)
        assert study[check].mean() > 0.3
        assert study["any"].mean() > calm["any"].mean()


def test_each_pitfall_has_its_cost():
    table = summarize_pitfalls(pitfall_costs(10)).set_index("way")
    excess = (table["mse"] - 1) / table["mse_se"]
    own = "5 groups of own estimates"
    assert excess[own] > K
    assert table.loc[own, "coverage"] < 0.7
    assert table.loc[own, "elpd_diff"] > 100  # leave-one-out does not see it
    assert excess["sub-genre, its mean for all its creators"] > K
    assert table.loc["sub-genre, partial pooling", "mse"] < 1.2
    assert excess["the old fit, frozen"] > K
    honest = table.loc[["genre", "clusters", "selected anew", "no grouping"], "coverage"]
    assert (honest - 0.95).abs().max() < 0.02
