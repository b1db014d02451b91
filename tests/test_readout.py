"""Readouts: coherent verdicts, honest error rates, nothing dropped, any valid table."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hbm import (
    DataError,
    Priors,
    creator_readouts,
    extract_hbm_estimates,
    fit_hierarchical_model,
    generate_experiment_data,
    join_truth,
    learn_priors,
    read_users,
    readout_report,
    sample_ratio_mismatch,
    simulate_summaries,
    summarize_creators,
)
from hbm.data import GROUPS
from hbm.readout import SIGN_ERROR

K = 4  # Monte Carlo errors

EFFECTS = [f"{k}{s}" for k in ("plain", "pooled") for s in ("", "_se", "_lower", "_upper")]


@pytest.fixture(scope="module")
def users():
    return generate_experiment_data(7, n_creators_per_genre=12)[0]


@pytest.fixture(scope="module")
def report(users):
    return readout_report(users)


def one_arm(users, creator, group, keep):
    """Leave `keep` users of one arm of a creator."""
    theirs = (users["creator_id"] == creator) & (users["group"] == group)
    return users.drop(index=users.index[theirs][keep:])


def test_one_row_a_creator_sorted_by_id(users, report):
    readouts = report.readouts
    assert readouts["creator_id"].tolist() == sorted(users["creator_id"].unique())
    assert readouts[EFFECTS].notna().all().all()


def test_verdict_is_the_interval_and_the_probability(report):
    r = report.readouts
    above, below = r["pooled_lower"] > 0, r["pooled_upper"] < 0
    assert (r["verdict"].eq("up") == above).all()
    assert (r["verdict"].eq("down") == below).all()
    assert (r["p_wrong_sign"].le(SIGN_ERROR) == (above | below)).all()
    assert {"up", "unclear"} <= set(r["verdict"])
    np.testing.assert_allclose(r["p_wrong_sign"], np.minimum(r["p_positive"], 1 - r["p_positive"]))


def test_counts_and_expected_wrong_signs_add_up(report):
    r = report.readouts
    assert sum(report.verdicts.values()) == len(r)
    called = r["verdict"].isin(["up", "down"])
    assert report.expected_wrong_signs == pytest.approx(r.loc[called, "p_wrong_sign"].sum())


def test_reason_says_which_of_the_two_weighs_more(report):
    r = report.readouts
    assert (r["reason"].eq("genre") == r["shrinkage"].ge(0.5)).all()
    genre = report.genres.set_index("genre")["mean"].loc[r["genre"]].to_numpy()
    moved = (r["pooled"] - r["plain"]) / (genre - r["plain"])
    mostly = np.abs(genre - r["plain"]) > 0.3  # elsewhere the ratio is noise over noise
    assert (moved[mostly].gt(0.5) == r["reason"].eq("genre")[mostly]).mean() > 0.95


def test_rate_of_wrong_signs_is_the_promised_one():
    """Over many platforms as many wrong signs among the called as were expected."""
    excess, called = [], 0
    priors = Priors()
    for seed in range(120):
        summaries, truth = simulate_summaries(seed, n_creators_per_genre=40)
        report = readout_report(summaries, priors=priors)
        r = join_truth(report.readouts, truth)
        wrong = (r["verdict"].eq("up") & r["effect_true"].lt(0)) | (
            r["verdict"].eq("down") & r["effect_true"].gt(0)
        )
        called += r["verdict"].isin(["up", "down"]).sum()
        excess.append(wrong.sum() - report.expected_wrong_signs)
    assert called > 5000
    error = np.std(excess, ddof=1) / np.sqrt(len(excess))
    assert abs(np.mean(excess)) < 4 * error


@pytest.mark.parametrize("factor", [100.0, 1e-9, 1e9])
def test_units_do_not_matter(users, report, factor):
    scaled = creator_readouts(users.assign(revenue=users["revenue"] * factor))
    np.testing.assert_allclose(scaled[EFFECTS], report.readouts[EFFECTS] * factor, rtol=1e-6)
    assert scaled["verdict"].equals(report.readouts["verdict"])
    np.testing.assert_allclose(scaled["p_positive"], report.readouts["p_positive"], atol=1e-6)


def test_order_of_users_does_not_matter(users, report):
    shuffled = users.sample(frac=1, random_state=1)
    np.testing.assert_allclose(
        creator_readouts(shuffled)[EFFECTS], report.readouts[EFFECTS], rtol=1e-9
    )


@pytest.mark.parametrize(
    "rename",
    [
        lambda i: i,
        lambda i: f"crëator {i:03d} 日本",
        lambda i: f"<script>{i:03d}</script>",
        lambda i: f"{i:03d}",
    ],
    ids=["integers", "unicode", "html", "leading zeros"],
)
def test_ids_may_be_anything(users, report, rename):
    ids = {name: rename(i) for i, name in enumerate(sorted(users["creator_id"].unique()))}
    renamed = users.assign(creator_id=users["creator_id"].astype(object).map(ids))
    readouts = creator_readouts(renamed)
    assert readouts["creator_id"].tolist() == list(ids.values())
    np.testing.assert_allclose(readouts["pooled"], report.readouts["pooled"], rtol=1e-9)


def test_swapping_the_arms_turns_every_sign(users, report):
    swapped = users.assign(group=users["group"].map(dict(zip(GROUPS, GROUPS[::-1], strict=True))))
    np.testing.assert_allclose(
        creator_readouts(swapped)["pooled"], -report.readouts["pooled"], atol=1e-6
    )


def test_incomplete_creators_are_listed_not_dropped(users):
    table = one_arm(one_arm(users, "c01", "treatment", 0), "c02", "control", 1)
    report = readout_report(table)
    r = report.readouts.set_index("creator_id")
    assert len(r) == users["creator_id"].nunique()
    assert r.loc[["c01", "c02"], "verdict"].tolist() == ["not estimated"] * 2
    assert r.loc["c01", "note"] == "no user in treatment"
    assert r.loc["c02", "note"] == "one user in control"
    assert r.loc[["c01", "c02"], EFFECTS].isna().all().all()
    finding = report.findings.iloc[0]
    assert (finding["status"], finding["n_creators"]) == ("look", 2)
    assert "c01" in finding["detail"]


def test_arms_without_variation_are_kept_and_named(users):
    table = users.copy()
    table.loc[(table["creator_id"] == "c03") & (table["group"] == "control"), "revenue"] = 0.0
    table.loc[table["creator_id"] == "c04", "revenue"] = 0.0
    report = readout_report(table)
    r = report.readouts.set_index("creator_id")
    assert r.loc[["c03", "c04"], "plain_se"].gt(0).all()
    finding = report.findings.set_index("check").loc["no variation in an arm"]
    assert "c04" in finding["detail"]


def test_one_genre_only(users):
    table = users[users["genre"] == "music"]
    report = readout_report(table)
    assert len(report.genres) == 1
    assert report.idata.attrs["fixed"] == ["sigma_genre"]
    assert report.readouts["pooled"].notna().all()


def test_one_creator_in_a_genre_and_two_creators_in_all(users):
    lonely = users[(users["genre"] == "music") | (users["creator_id"] == "c01")]
    report = readout_report(lonely)
    assert report.genres["n_creators"].tolist() == [1, 12]
    finding = report.findings.set_index("check").loc["genre of fewer than 5 creators"]
    assert finding["n_creators"] == 1
    two = creator_readouts(users[users["creator_id"].isin(["c01", "c60"])])
    assert two["pooled"].notna().all()
    assert (two["pooled_upper"] > two["pooled_lower"]).all()


def test_an_outlying_creator_is_named(users):
    table = users.copy()
    far = (table["creator_id"] == "c05") & (table["group"] == "treatment")
    table.loc[far, "revenue"] += 40
    findings = readout_report(table).findings.set_index("check")
    row = findings[findings.index.str.contains("predictive sd")].iloc[0]
    assert row["n_creators"] == 1
    assert "c05" in row["detail"]


def test_nothing_found_is_said_too(report):
    findings = report.findings.set_index("check")
    assert findings.loc["fewer than two users in an arm", "status"] == "ok"


def test_summaries_can_be_read_out(report, users):
    summaries = summarize_creators(users, variance="pooled")
    again = creator_readouts(summaries)
    np.testing.assert_allclose(again["pooled"], report.readouts["pooled"], rtol=1e-9)


@pytest.mark.parametrize(
    "setting", [{"variance": "welch"}, {"cluster": "x"}, {"cluster_variance": "pooled"}]
)
def test_settings_that_cannot_apply_to_summaries_are_refused(users, setting):
    with pytest.raises(ValueError, match="cannot apply to summaries"):
        readout_report(summarize_creators(users), **setting)


def test_the_promised_share_is_tested_for_summaries_too(users):
    summaries = summarize_creators(users)
    told = readout_report(summaries, expected_share=0.9).findings
    by_users = readout_report(users, expected_share=0.9).findings
    assert told.iloc[-1].equals(by_users.iloc[-1].rename(told.index[-1]))
    with pytest.raises(ValueError, match="n_treatment and n_control of every summary"):
        readout_report(summaries.drop(columns="n_control"), expected_share=0.5)


def test_one_genre_keeps_what_was_learned(users):
    alone = users[users["genre"] == users["genre"].iloc[0]]
    before = fit_hierarchical_model(summarize_creators(users), engine="exact", draws=0)
    priors = learn_priors(before)
    made = readout_report(alone, priors=priors)
    fit = fit_hierarchical_model(made.summaries, engine="exact", draws=0, priors=priors)
    expected = extract_hbm_estimates(fit, made.summaries)
    np.testing.assert_allclose(made.readouts["pooled_se"], expected["se"], rtol=1e-12)


def test_a_spread_that_was_counted_is_not_reported(users):
    for variance, said in (("pooled", True), ("moderated", False), ("welch", False)):
        checks = readout_report(users, variance=variance).findings["check"]
        assert checks.str.contains("spread of revenue").any() == said


def test_readouts_are_ready_to_send_from_a_bare_summary():
    bare = pd.DataFrame(
        {"creator_id": [1, 2, 3], "genre_idx": [0, 0, 1], "effect_hat": [1.0, 2, 3], "se": 1.0}
    )
    readouts = creator_readouts(bare)
    assert readouts["genre"].tolist() == ["0", "0", "1"]
    assert readouts["verdict"].isin(["up", "down", "unclear"]).all()


@pytest.fixture(scope="module")
def star():
    return read_users("data/star.csv")


class TestClusters:
    def test_an_arm_of_one_cluster_is_refused(self, star):
        with pytest.raises(DataError, match=r"64 creators have an arm of a single cluster"):
            readout_report(star, cluster="cluster")

    def test_pooled_variance_between_clusters_is_larger_than_by_pupil(self, star):
        by_class = readout_report(star, cluster="cluster", cluster_variance="pooled")
        by_pupil = readout_report(star)
        ratio = by_class.summaries["se"] / by_pupil.summaries["se"]
        assert ratio.median() > 1.3
        called = [sum(r.verdicts[v] for v in ("up", "down")) for r in (by_class, by_pupil)]
        assert called[0] < called[1]

    def test_dollar_priors_pull_points_to_zero(self, star):
        cluster = {"cluster": "cluster", "cluster_variance": "pooled"}
        free = creator_readouts(star, **cluster)["pooled"].mean()
        dollars = creator_readouts(star, **cluster, priors=Priors())["pooled"].mean()
        assert dollars < 0.7 * free

    @pytest.mark.parametrize("cluster_variance", ["moderated", "own"])
    def test_wrong_signs_with_two_clusters_an_arm(self, cluster_variance):
        """As rare as promised with moderated variances; own ones promise what they cannot keep."""
        rng = np.random.default_rng(1)
        cell = np.repeat(np.arange(800), 5)
        users = pd.DataFrame({"creator_id": cell // 4, "genre": "all", "cell": cell})
        treated = cell % 2
        users["group"] = np.where(treated, "treatment", "control")
        excess = []
        for _ in range(20):
            effect = rng.normal(0.2, 0.2, 200)
            noise = rng.normal(0, 0.3, 800)[cell] + rng.normal(0, 1, len(cell))
            users["revenue"] = noise + treated * effect[users["creator_id"]]
            report = readout_report(users, cluster="cell", cluster_variance=cluster_variance)
            sign = report.readouts["verdict"].map({"up": 1, "down": -1}).fillna(0)
            excess.append((sign * effect < 0).sum() - report.expected_wrong_signs)
        z = np.mean(excess) / stats.sem(excess)
        assert abs(z) < K if cluster_variance == "moderated" else z > K

    def test_findings_count_clusters(self, star):
        report = readout_report(star, cluster="cluster", cluster_variance="pooled")
        findings = report.findings.set_index("check")["n_creators"]
        assert findings["no variation between clusters in an arm"] == 64
        assert findings["fewer than 10 clusters in an arm"] == len(report.summaries)
        assert not findings.index.str.contains("spread of revenue").any()

    def test_a_cluster_in_both_arms_is_refused(self, users):
        with pytest.raises(DataError, match="within one arm"):
            readout_report(users.assign(household="one"), cluster="household")


class TestSampleRatio:
    def arms(self, n_treatment, n_control):
        return pd.DataFrame(
            {
                "creator_id": np.arange(len(n_treatment)),
                "n_treatment": n_treatment,
                "n_control": n_control,
            }
        )

    def test_p_values_are_binomial_and_holm_adjusted(self):
        table = sample_ratio_mismatch(self.arms([50, 80, 60], [50, 20, 40]), 0.5)
        expected = [stats.binomtest(k, 100, 0.5).pvalue for k in (50, 80, 60)]
        np.testing.assert_allclose(table["p_value"], expected)
        np.testing.assert_allclose(table["p_holm"], [1.0, 3 * expected[1], 2 * expected[2]])

    def test_family_wise_error_rate(self):
        rng = np.random.default_rng(11)
        false, runs = 0, 100
        for _ in range(runs):
            n = rng.integers(50, 2000, 20)
            k = rng.binomial(n, 0.3)
            false += (sample_ratio_mismatch(self.arms(k, n - k), 0.3)["p_holm"] < 0.05).any()
        assert false <= stats.binom(runs, 0.05).ppf(1 - 1e-4)

    def test_reported_only_when_a_share_is_promised(self, users):
        largest = users["creator_id"].value_counts().index[0]
        table = one_arm(users, largest, "control", 3)
        silent = readout_report(table).findings
        assert not silent["check"].str.contains("promised share").any()
        told = readout_report(table, expected_share=0.5).findings
        row = told[told["check"].str.contains("promised share")].iloc[0]
        assert row["n_creators"] == 1
        assert largest in row["detail"]

    def test_share_out_of_range(self, users):
        with pytest.raises(ValueError, match="expected_share"):
            sample_ratio_mismatch(users, 1.0)


def test_thornton_reads_out_with_every_village():
    users = read_users("data/thornton.csv")
    report = readout_report(users)
    assert len(report.readouts) == 119
    assert report.verdicts["not estimated"] == 25
    assert report.verdicts["up"] > 0


@pytest.mark.parametrize(
    ("factor", "share", "found"), [(1.0, 0.1, 0), (1.6, 0.5, 0), (1.6, 0.1, 36)]
)
def test_a_treatment_that_changes_the_spread_is_reported_where_it_matters(factor, share, found):
    users, truth = generate_experiment_data(
        4, n_creators_per_genre=12, genres=("a", "b", "c"), treatment_share=share,
        size_mixture=((1.0, 200, 300),),
    )  # fmt: skip
    treated = (users["group"] == "treatment").to_numpy()
    center = truth["creator_effects"][users["creator_id"].cat.codes] * treated + 5
    revenue = center + (users["revenue"] - center) * np.where(treated, factor, 1)
    findings = readout_report(users.assign(revenue=revenue)).findings.set_index("check")
    row = findings[findings.index.str.startswith("treatment changes the spread")].iloc[0]
    assert row["n_creators"] == found
