"""Standard errors are those of the textbooks, and say what they borrow."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import special, stats

from hbm.data import summarize_arms, summarize_creators
from hbm.variance import (
    METHODS,
    cluster_standard_errors,
    moderate_variances,
    standard_errors,
    variance_ratio,
)


def arms_of(rng, n_creators, n_treatment, n_control, draw):
    """Moments of simulated arms; `draw(rng, shape)` gives the revenue of one arm's users."""
    moments = {}
    for group, n in (("treatment", n_treatment), ("control", n_control)):
        revenue = draw(rng, (n_creators, n))
        moments |= {
            f"n_{group}": n,
            f"mean_{group}": revenue.mean(axis=1),
            f"var_{group}": revenue.var(axis=1, ddof=1),
        }
    return pd.DataFrame(moments)


def normal(scale=2.0):
    return lambda rng, shape: rng.normal(5, scale, shape)


# --- Welch --------------------------------------------------------------------------------------


def test_welch_is_scipys(users):
    summaries = summarize_creators(users).set_index("creator_id")
    for creator, own in users.groupby("creator_id"):
        treated, control = (own.loc[own["group"] == g, "revenue"] for g in ("treatment", "control"))
        welch = stats.ttest_ind(treated, control, equal_var=False)
        row = summaries.loc[creator]
        assert row["effect_hat"] / row["se"] == pytest.approx(welch.statistic, rel=1e-12)
        assert row["df"] == pytest.approx(welch.df, rel=1e-12)


def test_welch_knows_the_size_of_its_own_error(rng):
    """Squared errors average to the mean squared standard error, also with unequal arms."""
    arms = arms_of(rng, 4000, 7, 40, normal())
    error = arms["mean_treatment"] - arms["mean_control"]
    ratio = error**2 - standard_errors(arms)["se"] ** 2
    assert abs(ratio.mean()) < K * ratio.std() / np.sqrt(len(ratio))


# --- moderation across creators -----------------------------------------------------------------


def limma_fit(var, df):
    """limma's fitFDist without a covariate: Smyth (2004), section 6.2, with its Newton step."""
    e = np.log(var) - special.digamma(df / 2) + np.log(df / 2)
    excess = np.sum((e - e.mean()) ** 2) / (len(e) - 1) - special.polygamma(1, df / 2).mean()
    y = 0.5 + 1 / excess
    for _ in range(50):
        trigamma = special.polygamma(1, y)
        y += trigamma * (1 - trigamma / excess) / special.polygamma(2, y)
    return 2 * y, np.exp(e.mean() + special.digamma(y) - np.log(y))


def test_moderation_on_a_worked_example():
    var, df = np.array([0.5, 1.0, 2.0, 8.0, 40.0]), np.array([4.0, 8.0, 8.0, 20.0, 3.0])
    d0, s0_squared = limma_fit(var, df)
    moderated, nu = moderate_variances(var, df)
    np.testing.assert_allclose(nu, d0 + df, rtol=1e-9)
    np.testing.assert_allclose(moderated, (d0 * s0_squared + df * var) / (d0 + df), rtol=1e-9)
    assert (np.abs(np.log(moderated / s0_squared)) < np.abs(np.log(var / s0_squared))).all()


def test_moderation_takes_whole_numbers_and_lists():
    expected = moderate_variances(np.array([1.0, 2.0, 9.0]), np.array([4.0, 8.0, 2.0]))
    np.testing.assert_allclose(moderate_variances([1, 2, 9], [4, 8, 2]), expected)
    np.testing.assert_allclose(moderate_variances(np.array([3, 3]), np.array([4, 4]))[1], np.inf)


@pytest.mark.parametrize(("d0", "s0_squared"), [(4.0, 2.5), (20.0, 0.01)])
def test_moderation_recovers_the_spread_of_the_variances(rng, d0, s0_squared):
    """Both estimating equations are unbiased: log s² and its excess variance."""
    df, found = rng.integers(5, 60, 2000).astype(float), []
    for _ in range(60):
        true = d0 * s0_squared / rng.chisquare(d0, len(df))
        var = true * rng.chisquare(df) / df
        moderated, nu = moderate_variances(var, df)
        own_d0 = nu[0] - df[0]
        own_s0 = (moderated[0] * nu[0] - df[0] * var[0]) / own_d0
        level = np.log(own_s0) - special.digamma(own_d0 / 2) + np.log(own_d0 / 2)
        found.append((special.polygamma(1, own_d0 / 2), level))
    expected = (
        special.polygamma(1, d0 / 2),
        np.log(s0_squared) - special.digamma(d0 / 2) + np.log(d0 / 2),
    )
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - expected) < K * error).all()


def test_equal_variances_are_pooled_completely():
    moderated, nu = moderate_variances(np.full(6, 3.0), np.array([2.0, 5, 5, 9, 9, 40]))
    np.testing.assert_allclose(moderated, 3.0)
    assert np.isinf(nu).all()
    one, nu = moderate_variances(np.array([7.0]), np.array([5.0]))
    assert (one, nu) == (7.0, np.inf)


def test_variances_of_zero_are_shrunk_and_do_not_move_the_others():
    var, df = np.array([0.5, 1.0, 2.0, 8.0, 40.0]), np.full(5, 8.0)
    moderated, nu = moderate_variances(var, df)
    with_zero, nu_with_zero = moderate_variances(np.append(var, 0.0), np.full(6, 8.0))
    np.testing.assert_allclose(with_zero[:-1], moderated)
    np.testing.assert_allclose(nu_with_zero[:-1], nu)
    d0, s0_squared = limma_fit(var, df)
    assert with_zero[-1] == pytest.approx(d0 * s0_squared / (d0 + 8), rel=1e-9)


@pytest.mark.parametrize("method", ["moderated", "pooled"])
@pytest.mark.parametrize("d0", [6.0, 15.0])
def test_moderated_errors_have_the_variance_they_state(rng, method, d0):
    """Tiny arms whose true variances differ: squared errors average to se²."""
    ratios = []
    for _ in range(20):
        sd = np.sqrt(4 * d0 / rng.chisquare(d0, (3000, 2, 1)))
        if method == "pooled":  # one variance for both arms of a creator
            sd[:, 1] = sd[:, 0]
        revenue = rng.normal(0, np.broadcast_to(sd, (3000, 2, 5)))
        mean, var = revenue.mean(axis=2), revenue.var(axis=2, ddof=1)
        groups = ("treatment", "control")
        arms = pd.DataFrame({f"mean_{g}": mean[:, k] for k, g in enumerate(groups)})
        arms = arms.assign(**{f"var_{g}": var[:, k] for k, g in enumerate(groups)})
        errors = standard_errors(arms.assign(n_treatment=5, n_control=5), method)
        ratios.append(np.mean(((mean[:, 0] - mean[:, 1]) / errors["se"]) ** 2))
    assert abs(np.mean(ratios) - 1) < K * np.std(ratios, ddof=1) / np.sqrt(len(ratios))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_agrees_where_there_is_much_data(rng, method):
    arms = arms_of(rng, 50, 20_000, 10_000, normal(2.0))
    expected = 2.0 * np.sqrt(1 / 20_000 + 1 / 10_000)
    np.testing.assert_allclose(standard_errors(arms, method)["se"], expected, rtol=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_standard_errors_carry_the_unit_of_revenue(rng, method):
    arms = arms_of(rng, 30, 6, 9, normal())
    scale = {"mean": 1e-9, "var": 1e-18, "n_treatment": 1, "n_control": 1}
    scaled = arms * [scale.get(name, scale.get(name.split("_")[0])) for name in arms]
    plain, small = standard_errors(arms, method), standard_errors(scaled, method)
    np.testing.assert_allclose(small["se"], 1e-9 * plain["se"], rtol=1e-9)
    np.testing.assert_allclose(small["df"], plain["df"], rtol=1e-9)


def skewed(rng, shape):
    return rng.lognormal(0.0, 1.0, shape)


def test_skewed_revenue_and_unequal_arms_bias_all_but_the_pooled_variance(rng):
    """Welch: where treated users happened to pay little, the error looks small, too."""
    arms = arms_of(rng, 4000, 20, 180, skewed)
    error = arms["mean_treatment"] - arms["mean_control"]

    def correlation(method):
        return stats.spearmanr(error, standard_errors(arms, method)["se"]).statistic

    assert correlation("welch") > 0.5
    # Of the two-arm variance the covariance with the difference is 0 in expectation.
    own = (20 * arms["var_treatment"] + 180 * arms["var_control"]) / 200
    product = (error - error.mean()) * (own - own.mean())
    assert abs(product.mean()) < K * product.std() / np.sqrt(len(product))
    pooled = standard_errors(arms, "pooled")["se"] ** 2
    product = (error - error.mean()) * (pooled - pooled.mean())
    assert abs(product.mean()) < K * product.std() / np.sqrt(len(product))


def test_the_pooled_variance_is_uncorrelated_however_small_the_arms(rng):
    """Weights by degrees of freedom instead of users would leave a covariance here."""
    arms = arms_of(rng, 200_000, 2, 8, lambda rng, shape: rng.gamma(1.0, 1.0, shape))
    error = arms["mean_treatment"] - arms["mean_control"]
    by_df = (arms["var_treatment"] + 7 * arms["var_control"]) / 8
    z = {}
    for name, var in (("users", standard_errors(arms, "pooled")["se"] ** 2), ("df", by_df)):
        product = (error - error.mean()) * (var - var.mean())
        z[name] = product.mean() / (product.std() / np.sqrt(len(product)))
    assert abs(z["users"]) < K
    assert z["df"] < -K


def test_standard_errors_refuse_what_they_cannot_do(users):
    arms = summarize_arms(users)
    with pytest.raises(ValueError, match="unknown method 'HC3'; known: welch, moderated, pooled"):
        standard_errors(arms, "HC3")
    flat = arms.assign(var_treatment=0.0, var_control=0.0)
    for method in METHODS:
        with pytest.raises(ValueError, match="does not vary within any arm"):
            standard_errors(flat, method)


def test_one_arm_constant_for_all_creators_borrows_from_the_other(users):
    arms = summarize_arms(users).assign(var_control=0.0)
    errors = standard_errors(arms)
    assert errors["variance_borrowed"].all()
    assert (errors["se"] ** 2 > arms["var_treatment"] / arms["n_treatment"]).all()


# --- clusters -----------------------------------------------------------------------------------


def clusters_of(users, unit):
    by = users.groupby(["creator_id", "group", unit])["revenue"]
    return by.agg(n="size", mean="mean", var="var").reset_index()


def clustered(rng, n_creators, sizes, between=1.5, within=3.0):
    """Users of `n_creators`, one cluster an entry of `sizes` in each arm."""
    n_clusters = n_creators * 2 * len(sizes)
    cluster = np.repeat(np.arange(n_clusters), np.tile(sizes, n_creators * 2))
    arm = cluster // len(sizes)
    level = rng.normal(0, between, n_clusters)
    return pd.DataFrame(
        {
            "creator_id": arm // 2,
            "group": np.where(arm % 2, "treatment", "control"),
            "room": cluster,
            "revenue": 10 + level[cluster] + rng.normal(0, within, len(cluster)),
        }
    )


def test_clusters_by_hand():
    table = pd.DataFrame(
        [
            ("a", "treatment", 2, 10.0, 1.0),
            ("a", "treatment", 6, 14.0, 1.0),
            ("a", "control", 1, 3.0, np.nan),
            ("a", "control", 3, 7.0, 4.0),
            ("a", "control", 4, 5.0, 2.0),
        ],
        columns=["creator_id", "group", "n", "mean", "var"],
    )
    # Treatment: mean 13, shares 1/4 and 3/4, 2/1 [(1/4)² 9 + (3/4)² 1] = 2.25.
    # Control: mean 5.5, shares 1/8, 3/8, 1/2, 3/2 [2.5²/64 + (3/8)² 1.5² + 0.5²/4] = 0.71484375.
    errors = cluster_standard_errors(table)
    assert errors.loc["a", "se"] == pytest.approx(np.sqrt(2.25 + 0.71484375), rel=1e-14)
    assert errors.loc["a", "df"] == 3
    assert not errors.loc["a", "variance_borrowed"]


def test_clusters_of_one_user_are_welch(users):
    alone = users.assign(room=np.arange(len(users)))
    errors = cluster_standard_errors(clusters_of(alone, "room"))
    np.testing.assert_allclose(errors["se"], summarize_creators(users)["se"], rtol=1e-12)


def test_moderated_clusters_of_one_user_are_moderated_users(users):
    alone = users.assign(room=np.arange(len(users)))
    errors = cluster_standard_errors(clusters_of(alone, "room"), "moderated")
    by_user = summarize_creators(users, variance="moderated")
    np.testing.assert_allclose(errors["se"], by_user["se"], rtol=1e-12)
    assert np.isinf(errors["df"]).all()


@pytest.mark.parametrize("n_clusters", [2, 3, 6])
def test_moderated_clusters_cover_however_few_an_arm_has(rng, n_clusters):
    users = clustered(rng, 2000, [4] * n_clusters).assign(genre="g")
    pull = {
        method: np.abs(made["effect_hat"] / made["se"])
        for method in ("own", "moderated")
        for made in [summarize_creators(users, cluster="room", cluster_variance=method)]
    }
    covered = {method: np.mean(z < stats.norm.ppf(0.975)) for method, z in pull.items()}
    error = np.sqrt(0.95 * 0.05 / 2000)
    assert abs(covered["moderated"] - 0.95) < K * error
    assert covered["own"] < 0.95 - K * error


def test_clusters_refuse_an_unknown_method(users):
    with pytest.raises(ValueError, match="unknown method 'x'; known: own, moderated, pooled"):
        cluster_standard_errors(clusters_of(users.assign(room=1), "room"), "x")


def test_clusters_of_equal_size_give_the_sandwich_of_least_squares(rng):
    """Regression on an intercept and the arm, cluster-robust, times G / (G - 1) an arm."""
    users = clustered(rng, 5, [4] * 6)
    errors = cluster_standard_errors(clusters_of(users, "room"))
    for creator, own in users.groupby("creator_id"):
        x = np.column_stack([np.ones(len(own)), own["group"] == "treatment"]).astype(float)
        beta, *_ = np.linalg.lstsq(x, own["revenue"], rcond=None)
        scores = x * (own["revenue"].to_numpy() - x @ beta)[:, None]
        sums = pd.DataFrame(scores).groupby(own["room"].to_numpy()).sum().to_numpy()
        bread = np.linalg.inv(x.T @ x)
        sandwich = bread @ (sums.T @ sums) @ bread
        assert errors.loc[creator, "se"] == pytest.approx(np.sqrt(sandwich[1, 1] * 6 / 5))
        means = own.groupby(["group", "room"])["revenue"].mean()
        welch = stats.ttest_ind(means["treatment"], means["control"], equal_var=False)
        difference = means["treatment"].mean() - means["control"].mean()
        assert errors.loc[creator, "se"] == pytest.approx(difference / welch.statistic)


def test_pooled_components_recover_the_simulated_ones(rng):
    sizes = np.array([2, 5, 9, 16])
    shares, found = sizes / sizes.sum(), []
    design = 2 * np.array([np.sum(shares**2), np.sum(shares**2 / sizes)])
    for _ in range(50):
        users = clustered(rng, 40, sizes)
        errors = cluster_standard_errors(clusters_of(users, "room"), "pooled")
        assert errors["se"].nunique() == 1
        assert not errors["variance_borrowed"].any()
        assert (errors["df"] == 40 * 2 * 3).all()
        found.append(errors["se"].iloc[0] ** 2)
    true = design @ [1.5**2, 3.0**2]
    assert abs(np.mean(found) - true) < K * np.std(found, ddof=1) / np.sqrt(len(found))


def test_pooled_components_are_those_of_the_analysis_of_variance(rng):
    """Balanced: component = (between - within) / size, so se² = 2 between / n."""
    users = clustered(rng, 30, [5, 5, 5])
    arm = [users["creator_id"], users["group"]]
    of_arm = users.groupby(arm)["revenue"].transform("mean")
    of_room = users.groupby("room")["revenue"].transform("mean")
    between = ((of_room - of_arm) ** 2).sum() / (180 - 60)
    errors = cluster_standard_errors(clusters_of(users, "room"), "pooled")
    np.testing.assert_allclose(errors["se"] ** 2, 2 * between / 15, rtol=1e-10)


def test_pooled_components_without_variation_between_clusters_are_plain_variances(rng):
    users = clustered(rng, 30, [5, 5], between=0.0)
    # Each cluster is given its arm's mean: less variation between than within explains.
    of_room = users.groupby("room")["revenue"].transform("mean")
    users["revenue"] += 10 - of_room
    within = users.groupby("room")["revenue"].var().mean()
    errors = cluster_standard_errors(clusters_of(users, "room"), "pooled")
    np.testing.assert_allclose(errors["se"] ** 2, 2 * within / 10, rtol=1e-10)


def test_pooled_gives_an_arm_of_one_cluster_its_standard_error(rng):
    users = clustered(rng, 6, [4, 4, 4])
    single = users[(users["creator_id"] > 0) | (users["room"] % 3 == 0)]
    with pytest.raises(ValueError, match=r"1 creators have an arm of a single cluster, first: .*0"):
        cluster_standard_errors(clusters_of(single, "room"))
    errors = cluster_standard_errors(clusters_of(single, "room"), "pooled")
    ratio = errors["se"] / errors["se"].iloc[1]
    assert ratio.iloc[0] == pytest.approx(np.sqrt(3), rel=1e-9)
    assert (errors["df"] == 5 * 2 * 2).all()


def test_pooled_works_where_every_cluster_is_one_user(rng):
    users = clustered(rng, 10, [1, 1, 1])
    errors = cluster_standard_errors(clusters_of(users, "room"), "pooled")
    pooled = users.groupby(["creator_id", "group"])["revenue"].var().mean()
    np.testing.assert_allclose(errors["se"] ** 2, 2 * pooled / 3, rtol=1e-10)


def test_clusters_that_do_not_differ_borrow_and_are_flagged(rng):
    """A village whose clusters are all at $0 is not known exactly."""
    users = clustered(rng, 8, [3, 3])
    silent = (users["creator_id"] == 2) & (users["group"] == "control")
    users["revenue"] = users["revenue"].mask(silent, 0.0)
    table = clusters_of(users, "room")
    own, pooled, moderated = (
        cluster_standard_errors(table, method) for method in ("own", "pooled", "moderated")
    )
    for errors in (own, pooled, moderated):
        assert errors["variance_borrowed"].tolist() == [i == 2 for i in range(8)]
    assert moderated.loc[2, "se"] > 0
    arm = table[(table["creator_id"] == 2) & (table["group"] == "treatment")]["mean"]
    borrowed = pooled.loc[2, "se"] ** 2 / 2
    assert own.loc[2, "se"] ** 2 == pytest.approx(arm.var() / 2 + borrowed)
    for method in ("own", "moderated"):
        with pytest.raises(ValueError, match="does not vary between clusters"):
            cluster_standard_errors(table.assign(mean=5.0, var=0.0), method)


def test_without_two_clusters_in_any_arm_there_is_no_standard_error(users):
    table = clusters_of(users.assign(room=1), "room")
    with pytest.raises(ValueError, match="needs an arm of two clusters"):
        cluster_standard_errors(table, "pooled")
    with pytest.raises(ValueError, match="6 creators have an arm of a single cluster"):
        cluster_standard_errors(table)


def test_clusters_matter_where_whole_rooms_are_treated(rng):
    """Users' own variances take the rooms' noise for effects; the cluster's do not."""
    users = clustered(rng, 400, [10] * 8).assign(genre="g")
    z = {
        name: summaries["effect_hat"] / summaries["se"]
        for name, summaries in {
            "users": summarize_creators(users),
            "own": summarize_creators(users, cluster="room"),
            "pooled": summarize_creators(users, cluster="room", cluster_variance="pooled"),
        }.items()
    }
    assert np.mean(z["users"] ** 2) > 2
    for name, df in (("own", 14), ("pooled", np.inf)):
        expected = 1 / (1 - 2 / df)
        assert abs(np.mean(z[name] ** 2) - expected) < K * np.std(z[name] ** 2) / np.sqrt(400)


@pytest.mark.parametrize("draw", [normal(1.0), skewed], ids=["normal", "lognormal"])
@pytest.mark.parametrize("n_treatment", [4, 40])
def test_the_ratio_of_variances_is_estimated_without_bias(rng, draw, n_treatment):
    """Also with skewed revenue in unequal arms, where log variances would be biased."""
    found = []
    for _ in range(100):
        arms = arms_of(rng, 400, n_treatment, 40, draw)
        arms["var_treatment"] *= 2
        found.append(variance_ratio(arms))
    ratio, z = np.transpose(found)
    assert abs(ratio.mean() - 2) < K * stats.sem(ratio) + 0.02  # a ratio of means
    assert (z > 2).mean() > 0.8
    assert np.isnan(variance_ratio(arms.head(1))[1])


def test_an_unchanged_variance_is_left_in_peace(rng):
    z = [variance_ratio(arms_of(rng, 300, 10, 90, normal(1.0)))[1] for _ in range(300)]
    assert abs(np.std(z) - 1) < K / np.sqrt(2 * len(z))
    assert abs(np.mean(z)) < K / np.sqrt(len(z))
