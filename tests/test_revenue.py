"""Skewed revenue: what is simulated, what it is reduced to, the fits, and the dollars they give."""

import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import integrate, optimize, special, stats

from hbm.checks import DataError
from hbm.data import GROUPS, summarize_creators
from hbm.diagnostics import check_diagnostics
from hbm.priors import Fixed, Normal, Priors
from hbm.revenue import study
from hbm.revenue.arms import (
    adjust_for_past,
    summarize_counts,
    summarize_payments,
    winsorize_users,
)
from hbm.revenue.dollars import (
    draw_dollars,
    extract_count_estimates,
    extract_revenue_estimates,
    linear_predictor,
)
from hbm.revenue.families import PAYMENTS, Counts, Gamma, Lognormal, Payers
from hbm.revenue.laplace import approximate
from hbm.revenue.model import PartPriors, fit_count_model, fit_part, fit_revenue_model
from hbm.revenue.simulate import (
    TAILS,
    Spread,
    generate_count_data,
    generate_revenue_data,
    split_effect,
)

#: So wide that nothing is pooled.
WIDE = Priors(Normal(0.0, 30.0), Fixed(0.0), Fixed(30.0))
UNPOOLED = PartPriors(level=WIDE, effect=WIDE)
HIERARCHIES = {"level": PartPriors().level, "effect": PartPriors().effect}


@pytest.fixture(scope="module")
def small():
    """A platform with creators of all sizes, some of them without a payer in an arm."""
    return generate_revenue_data(3, n_creators_per_genre=6, genres=("a", "b", "c"))


@pytest.fixture(scope="module")
def arms(small):
    return summarize_payments(small[0])


# -------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("log_sd", [0.4, 1.2])
def test_payments_have_mean_1_and_the_lognormals_variance(tail, log_sd):
    def moment(power):
        def integrand(z):
            return TAILS[tail](np.array([z]), log_sd)[0] ** power * stats.norm.pdf(z)

        # A power tail holds a part of its variance far out.
        ends = (-9, 0, 9, 36)
        return sum(integrate.quad(integrand, *pair)[0] for pair in itertools.pairwise(ends))

    assert moment(1) == pytest.approx(1, rel=1e-6)
    assert moment(2) == pytest.approx(np.exp(log_sd**2), rel=1e-5)


def test_users_follow_the_truth():
    users, truth = generate_revenue_data(
        1, n_creators_per_genre=20, size_mixture=((1.0, 2000, 2001),), pre_period=0.6
    )
    by = users.groupby(["creator_id", "group"], observed=True)["revenue"]
    pays = by.agg(lambda x: (x > 0).mean()).unstack()[list(GROUPS)].to_numpy()
    p = truth["payer_share"]
    z = (pays - p) / np.sqrt(p * (1 - p) / 1000)
    assert abs(np.square(z).mean() - 1) < K * np.sqrt(2 / z.size)
    mean = by.mean().unstack()[list(GROUPS)].to_numpy()
    error = mean - p * truth["payment"]
    for arm in range(2):
        assert abs(error[:, arm].mean()) < K * stats.sem(error[:, arm])
    effects = p[:, 1] * truth["payment"][:, 1] - p[:, 0] * truth["payment"][:, 0]
    np.testing.assert_allclose(truth["creator_effects"], effects)
    # The past is that of control users, whatever the arm.
    past = users.groupby(["creator_id", "group"], observed=True)["revenue_before"].mean().unstack()
    before = past[list(GROUPS)].to_numpy() - (p * truth["payment"])[:, :1]
    for arm in range(2):
        assert abs(before[:, arm].mean()) < K * stats.sem(before[:, arm])


def test_the_parts_add_up_and_neither_comes_first(rng):
    share, mean = rng.random((50, 2)), rng.lognormal(size=(50, 2))
    parts = split_effect(share, mean)
    np.testing.assert_allclose(sum(parts), (share * mean)[:, 1] - (share * mean)[:, 0])
    swapped = split_effect(mean, share)
    np.testing.assert_allclose(parts, swapped[::-1])


def test_unknown_tails_are_refused():
    with pytest.raises(ValueError, match="unknown tail 'pareto'; known: lognormal"):
        generate_revenue_data(tail="pareto")


# ------------------------------------------------------------------ sufficient statistics


def test_statistics_are_those_of_the_payers(small, arms):
    users, _ = small
    shuffled = summarize_payments(users.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(arms, shuffled, check_exact=False, rtol=1e-9)
    for row in arms.itertuples():
        for group in GROUPS:
            own = users[(users["creator_id"] == row.creator_id) & (users["group"] == group)]
            logs = np.log(own["revenue"][own["revenue"] > 0])
            assert getattr(row, f"n_{group}") == len(own)
            assert getattr(row, f"payers_{group}") == len(logs)
            ss = np.square(logs - logs.mean()).sum()
            assert getattr(row, f"log_ss_{group}") == pytest.approx(ss, abs=1e-9)
            if len(logs):
                assert getattr(row, f"log_mean_{group}") == pytest.approx(logs.mean())
    summarize_creators(arms)  # the normal model takes the same frame


def test_bad_revenue_is_refused(small):
    users = small[0].copy()
    users.loc[5, "revenue"] = -1.0
    with pytest.raises(DataError, match=r"'revenue' must not be negative .* 'c01'"):
        summarize_payments(users)
    with pytest.raises(DataError, match="nobody pays"):
        summarize_payments(small[0].assign(revenue=0.0))
    with pytest.raises(DataError, match="must be 0, 1, 2"):
        summarize_counts(small[0].assign(revenue=0.5))


def test_a_count_table_holds_every_user():
    users, _ = generate_count_data(2, n_creators_per_genre=2)
    table = summarize_counts(users)
    assert table["n_users"].sum() == len(users)
    assert len(table) < len(users) / 20
    total = (table["count"] * table["n_users"]).groupby([table["creator_id"], table["group"]]).sum()
    direct = users.groupby(["creator_id", "group"], observed=True)["revenue"].sum()
    assert total.to_dict() == direct.to_dict()
    counts = Counts.of(table)
    assert counts.n.sum() == len(users)
    assert counts.total.sum() == users["revenue"].sum()


def test_winsorised_means_estimate_what_is_left_below_the_cap():
    world = {
        "genres": ("all",),
        "n_creators_per_genre": 1,
        "size_mixture": ((1.0, 10**6, 10**6 + 1),),
    }
    users, truth = generate_revenue_data(5, **world, more_per_payer=Spread(0.3, 0, 0))
    capped, cap = winsorize_users(users, 0.99)
    assert capped["revenue"].max() == cap
    mean, s = truth["payment"][0], 1.2
    z = (np.log(cap / mean) - 0.5 * s**2) / s  # E[y; y < cap] = m Phi(z) for a lognormal
    below = mean * stats.norm.cdf(z) + cap * stats.norm.sf(z + s)
    expected = np.diff(truth["payer_share"][0] * below)[0]
    found = summarize_creators(capped).iloc[0]
    assert abs(found["effect_hat"] - expected) < K * found["se"]
    # And that is far from the effect in dollars.
    assert truth["creator_effects"][0] - expected > 10 * found["se"]
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1"):
        winsorize_users(users, 1.0)


def test_the_past_takes_variance_and_leaves_the_effect():
    users, _ = generate_revenue_data(7, n_creators_per_genre=10, pre_period=0.9)
    adjusted, theta = adjust_for_past(users)
    cells = users.groupby(["creator_id", "group"], observed=True).ngroup().to_numpy()
    columns = np.column_stack([users["revenue_before"], np.eye(cells.max() + 1)[cells]])
    slope = np.linalg.lstsq(columns, users["revenue"], rcond=None)[0][0]
    assert theta == pytest.approx(slope)
    plain, better = summarize_creators(users), summarize_creators(adjusted)
    assert np.mean(better["se"] ** 2) < 0.8 * np.mean(plain["se"] ** 2)
    difference = better["effect_hat"] - plain["effect_hat"]
    se = np.sqrt(np.abs(plain["se"] ** 2 - better["se"] ** 2))
    assert abs((difference / se).mean()) < K * (difference / se).sem()
    with pytest.raises(DataError, match="missing column past"):
        adjust_for_past(users, "past")
    with pytest.raises(DataError, match="must vary within"):
        adjust_for_past(users.assign(revenue_before=1.0))


# ------------------------------------------------------------------------- likelihoods


def _count_table():
    return summarize_counts(generate_count_data(2, n_creators_per_genre=2)[0])


@pytest.mark.parametrize("family", [Payers, Lognormal, Gamma, Counts])
def test_gradient_and_curvature_are_those_of_the_likelihood(family, arms, rng):
    part = family.of(_count_table() if family is Counts else arms)
    eta, spread, h = part.start() + rng.normal(0, 0.3, part.n.shape), 1.3, 1e-4
    up, middle, down = (part.log_likelihood(eta + x, spread) for x in (h, 0, -h))
    gradient, curvature = part.curvature(eta, spread)
    np.testing.assert_allclose(gradient, (up - down) / (2 * h), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(curvature, -(up - 2 * middle + down) / h**2, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("payments", PAYMENTS)
def test_the_likelihood_of_payments_is_that_of_the_users(payments, small, arms):
    """But for what does not hang on the parameters, which drops out of a difference."""
    paid = small[0][small[0]["revenue"] > 0]
    ids = dict(zip(arms["creator_id"], range(len(arms)), strict=True))
    where = paid["creator_id"].map(ids).astype(int), paid["group"].map(GROUPS.index).astype(int)
    part = PAYMENTS[payments].of(arms)

    def direct(eta, spread):
        own, y = eta[where[0], where[1]], paid["revenue"].to_numpy()
        if payments == "lognormal":
            return stats.lognorm(spread, scale=np.exp(own)).logpdf(y).sum()
        shape = spread**-2
        return stats.gamma(shape, scale=np.exp(own) / shape).logpdf(y).sum()

    one, other = part.start(), part.start() * 0.9 + 0.2
    expected = direct(one, 1.1) - direct(other, 0.8)
    found = part.log_likelihood(one, 1.1).sum() - part.log_likelihood(other, 0.8).sum()
    assert found == pytest.approx(expected, rel=1e-8)


def test_the_likelihood_of_counts_is_that_of_the_users():
    table = _count_table()
    part = Counts.of(table)
    ids = {name: i for i, name in enumerate(sorted(table["creator_id"].unique()))}
    i, a = table["creator_id"].map(ids), table["group"].map(GROUPS.index)

    def direct(eta, spread):
        size = spread**-2
        rate = np.exp(eta[i, a.astype(int)])
        return (
            table["n_users"] * stats.nbinom(size, size / (size + rate)).logpmf(table["count"])
        ).sum()

    def ours(eta, spread):
        return part.log_likelihood(eta, spread).sum() + part.common(spread)

    one, other = part.start(), part.start() * 0.9 + 0.2
    expected = direct(one, 1.5) - direct(other, 2.1)
    assert ours(one, 1.5) - ours(other, 2.1) == pytest.approx(expected, rel=1e-8)


# -------------------------------------------------------- the parts and maximum likelihood


@pytest.fixture(scope="module")
def large():
    return generate_revenue_data(
        11, n_creators_per_genre=4, genres=("a", "b"), size_mixture=((1.0, 40_000, 40_001),)
    )


def _posterior(part):
    eta = linear_predictor(part)
    return eta.mean(axis=0), eta.std(axis=0)


def test_the_payers_part_agrees_with_maximum_likelihood(large):
    arms = summarize_payments(large[0])
    family = Payers.of(arms)
    mean, sd = _posterior(fit_part(family, arms, engine="laplace", priors=UNPOOLED))
    share = family.k / family.n
    np.testing.assert_allclose(sd, 1 / np.sqrt(family.n * share * (1 - share)), rtol=0.05)
    # 4,000 independent draws know a mean to sd / 63; pooling is next to nothing.
    assert np.abs((mean - special.logit(share)) / sd).max() < K / 63 + 0.01


@pytest.mark.parametrize("payments", PAYMENTS)
def test_the_payments_part_agrees_with_maximum_likelihood(payments, large):
    users, _ = large
    arms = summarize_payments(users)
    part = fit_part(PAYMENTS[payments].of(arms), arms, engine="laplace", priors=UNPOOLED)
    mean, sd = _posterior(part)
    paid = users[users["revenue"] > 0].groupby(["creator_id", "group"], observed=True)["revenue"]
    if payments == "lognormal":
        best = paid.apply(lambda y: stats.lognorm.fit(y, floc=0)[2])
    else:
        best = paid.apply(lambda y: np.prod(stats.gamma.fit(y, floc=0)[::2]))
    best = np.log(best.unstack()[list(GROUPS)].to_numpy())
    assert np.abs((mean - best) / sd).max() < K / 63 + 0.02
    spread = part["posterior"]["spread"].values
    if payments == "lognormal":
        assert abs(spread.mean() - 1.2) < K * spread.std()
    else:
        # Pearson's estimate is that of the variance, whatever the tail.
        ratio = paid.std() / paid.mean()
        assert spread.mean() == pytest.approx(np.sqrt(np.mean(ratio**2)), rel=0.02)


def test_the_counts_agree_with_maximum_likelihood():
    users, truth = generate_count_data(
        4, n_creators_per_genre=3, genres=("a", "b"), size_mixture=((1.0, 40_000, 40_001),)
    )
    table = summarize_counts(users)
    fit = fit_count_model(table, engine="laplace", priors=UNPOOLED)
    mean, sd = _posterior(fit)
    best = np.log(users.groupby(["creator_id", "group"], observed=True)["revenue"].mean().unstack())
    assert np.abs((mean - best[list(GROUPS)].to_numpy()) / sd).max() < K / 63 + 0.02
    own = users[(users["creator_id"] == "c1") & (users["group"] == "control")]["revenue"]

    def minus(theta):
        size = np.exp(-2 * theta[1])
        return -stats.nbinom(size, size / (size + np.exp(theta[0]))).logpmf(own).sum()

    found = optimize.minimize(minus, [0.0, 0.5], method="Nelder-Mead").x
    assert found[0] == pytest.approx(mean[0, 0], abs=0.2 * sd[0, 0])
    spread = float(fit["posterior"]["spread"].values[0, 0])
    assert abs(spread - np.exp(found[1])) < 0.1 * spread  # one arm of twelve against all
    made = extract_count_estimates(fit, table)
    assert (np.abs(made["effect_hat"] - truth["creator_effects"]) < K * made["se"]).all()


# ------------------------------------------------------------------- dollars per user

MILLION = {
    "n_creators_per_genre": 5,
    "genres": ("a", "b"),
    "size_mixture": ((1.0, 100_000, 100_001),),
}


@pytest.fixture(scope="module", params=TAILS)
def million(request):
    users, truth = generate_revenue_data(21, tail=request.param, **MILLION)
    return request.param, summarize_payments(users), truth


@pytest.mark.parametrize("payments", PAYMENTS)
def test_dollars_at_a_million_users(payments, million):
    """Also where the tail is not the model's."""
    _, arms, truth = million
    fit = fit_revenue_model(arms, payments=payments, engine="laplace")
    made = extract_revenue_estimates(fit, arms)
    z = (made["effect_hat"] - truth["creator_effects"]) / made["se"]
    assert np.abs(z).max() < 4
    assert np.square(z).mean() < stats.chi2.ppf(0.9999, 10) / 10  # they add up, too
    for part in ("more_payers", "more_per_payer"):
        assert (truth[part] > made[f"{part}_lower"] - made["se"]).all()
        assert (truth[part] < made[f"{part}_upper"] + made["se"]).all()
    np.testing.assert_allclose(made["more_payers"] + made["more_per_payer"], made["effect_hat"])


@pytest.mark.parametrize(("tail", "right"), [("lognormal", True), ("gamma", False)])
def test_without_smearing_a_wrong_tail_shows(tail, right):
    users, truth = generate_revenue_data(21, tail=tail, **MILLION)
    fit = fit_revenue_model(summarize_payments(users), engine="laplace")
    share, eta = (linear_predictor(fit[part])[:, :, 0] for part in ("payers", "payments"))
    spread = fit["payments"]["posterior"]["spread"].values.reshape(-1, 1)
    level = (truth["payer_share"] * truth["payment"])[:, 0].sum()

    def found(payment):
        return (special.expit(share) * payment).mean(axis=0).sum() / level

    assert (abs(found(Lognormal.mean(eta, spread)) - 1) < 0.03) == right
    assert found(np.exp(eta)) < 0.6  # exp(mu) is a median, not a mean


def test_a_changed_tail_misleads_the_lognormal_and_not_the_gamma():
    users, truth = generate_revenue_data(22, treated_log_sd=1.5, **MILLION)
    arms = summarize_payments(users)
    z = {}
    for payments in PAYMENTS:
        made = extract_revenue_estimates(
            fit_revenue_model(arms, payments=payments, engine="laplace"), arms
        )
        z[payments] = (made["effect_hat"] - truth["creator_effects"]) / made["se"]
    assert np.abs(z["gamma"]).max() < 4
    assert z["lognormal"].mean() < -4


# -------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("family", [Payers, Lognormal, Gamma])
def test_swapping_the_arms_changes_the_sign(family, arms):
    names = {f"{c}_{a}": f"{c}_{b}" for c in ("n", "mean", "var", "payers", "log_mean", "log_ss")
             for a, b in (GROUPS, GROUPS[::-1])}  # fmt: skip
    genre_idx = arms["genre_idx"].to_numpy()
    there, back = (
        approximate(family.of(frame), genre_idx, HIERARCHIES, 1e-8).fits
        for frame in (arms, arms.rename(columns=names))
    )
    for name, sign in (("level", 1), ("effect", -1)):
        one, other = (fit[name]["observed_data"]["effect_hat"].values for fit in (there, back))
        np.testing.assert_allclose(one, sign * other, rtol=1e-4, atol=1e-4)


def test_the_currency_does_not_matter(small, arms):
    cents = summarize_payments(small[0].assign(revenue=small[0]["revenue"] * 100))
    one, other = (
        extract_revenue_estimates(fit_revenue_model(data, engine="laplace"), data)
        for data in (arms, cents)
    )
    difference = (other["effect_hat"] / 100 - one["effect_hat"]) / one["se"]
    assert np.abs(difference).max() < 0.02


def test_creators_and_genres_can_be_in_any_order(arms):
    order = np.random.default_rng(1).permutation(len(arms))
    moved = arms.iloc[order].reset_index(drop=True)
    renamed = moved.assign(genre_idx=2 - moved["genre_idx"])
    one, other = (
        extract_revenue_estimates(fit_revenue_model(data, engine="laplace", draws=4000), data)
        .set_index("creator_id")
        .loc[arms["creator_id"]]
        for data in (arms, renamed)
    )
    difference = (one["effect_hat"] - other["effect_hat"]) / one["se"]
    assert np.abs(difference).max() < K * np.sqrt(2 / 16_000)


def test_arms_and_genres_without_a_payer_are_no_obstacle(arms):
    none = arms.copy()
    genre = none["genre_idx"] == 0
    for name in ("payers", "log_mean", "log_ss", "mean", "var"):
        for group in GROUPS:
            none.loc[genre, f"{name}_{group}"] = 0
    fit = fit_revenue_model(none, engine="laplace")
    made = extract_revenue_estimates(fit, none)
    assert np.isfinite(made.select_dtypes(float)).all(axis=None)
    assert (made.loc[genre, "se"] > 0).all()


def test_settings_and_foreign_data_are_refused(arms):
    with pytest.raises(ValueError, match="unknown payments 'weibull'; known: lognormal, gamma"):
        fit_revenue_model(arms, payments="weibull")
    with pytest.raises(ValueError, match="unknown engine 'exact'"):
        fit_revenue_model(arms, engine="exact")
    with pytest.raises(ValueError, match="anchor must be greater than 0"):
        fit_revenue_model(arms, anchor=0)
    with pytest.raises(DataError, match="missing columns payers_control"):
        fit_revenue_model(arms.drop(columns=["payers_control", "payers_treatment"]))
    with pytest.raises(ValueError, match="unknown estimators: median"):
        study.revenue_estimates(None, ["median"])
    fit = fit_revenue_model(arms, engine="laplace")
    with pytest.raises(ValueError, match="other creators"):
        extract_revenue_estimates(fit, arms.iloc[::-1])
    assert check_diagnostics(fit["payers"], effects=False).ok


# ------------------------------------------------------------------------------ studies


def test_a_study_scores_every_estimator():
    made = study.revenue_study(
        1,
        estimators=study.ESTIMATORS,
        n_creators_per_genre=4,
        size_mixture=((1.0, 200, 400),),
        pre_period=0.5,
    )
    assert set(made["estimator"]) == set(study.ESTIMATORS)
    assert made.loc[made["size_bin"] == "all creators", "mse"].notna().all()


def test_the_parts_are_drawn_independently(small, arms):
    """With one seed for both, their draws go together, and dollars scatter far too widely."""
    fit = fit_revenue_model(arms, payments="gamma", engine="laplace")
    draws = [fit[part]["posterior"]["effect_mu_global"].values.ravel() for part in fit.children]
    assert abs(np.corrcoef(draws)[0, 1]) < K / np.sqrt(len(draws[0]))
    direct = extract_revenue_estimates(fit, arms)
    studied = study.revenue_estimates(small[0], ["hurdle-gamma"])["hurdle-gamma"]
    assert np.mean(studied["se"] / direct["se"]) == pytest.approx(1, abs=0.04)


def test_a_ratio_of_means_has_the_error_of_the_delta_method(rng):
    top, bottom = (pd.Series(rng.gamma(4, 1, 200_000) + x) for x in (1.0, 0.0))
    parts = [slice(i, i + 200) for i in range(0, 200_000, 200)]
    single = [study.ratio_of_means(top[p], bottom[p]) for p in parts]
    ratios, errors = np.array(single).T
    assert errors.mean() == pytest.approx(ratios.std(), rel=K / np.sqrt(2 * len(parts)))
    assert abs(ratios.mean() - 5 / 4) < K * stats.sem(ratios) + 1e-3


@pytest.mark.slow
def test_both_engines_find_the_same_posterior():
    """On data drawn from the priors, ranks of both are uniform and their dollars agree."""
    found = study.revenue_sbc(24, nuts=True, n_genres=3, n_creators_per_genre=6)
    for calibration in found.values():
        assert ((calibration.ranks > 0) & (calibration.ranks < 1)).all(axis=None)
        # A mean of 24 uniform ranks, all of them together, within four standard errors.
        z = (calibration.ranks.mean() - 0.5) * np.sqrt(12 * 24)
        assert np.abs(z).max() < K
    nuts, fast = found["nuts"].fits, found["laplace"].fits
    assert nuts["divergences"].sum() <= 2
    assert fast["mean_distance"].median() < 0.1
    assert fast["sd_ratio"].median() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_counts_by_nuts_and_by_normal_approximation_agree():
    users, _ = generate_count_data(9, n_creators_per_genre=4)
    table = summarize_counts(users)
    one, other = (
        fit_count_model(table, engine=engine, draws=1000, tune=500)
        for engine in ("nuts", "laplace")
    )
    for name in ("level", "effect"):
        a, b = (fit["posterior"][name].values for fit in (one, other))
        distance = (a.mean(axis=(0, 1)) - b.mean(axis=(0, 1))) / a.std(axis=(0, 1))
        assert np.abs(distance).max() < 0.15
    spread = one["posterior"]["spread"].values
    assert abs(spread.mean() - other["posterior"]["spread"].values.mean()) < 0.5 * spread.std()
    far = fit_count_model(table, anchor=1000.0, draws=1000, tune=1000)
    distance = far["posterior"]["effect"].values.mean() - one["posterior"]["effect"].values.mean()
    assert abs(distance) < 0.2 * one["posterior"]["effect_mu_global"].values.std()


def test_dollars_can_be_drawn(arms):
    fit = fit_revenue_model(arms, engine="laplace", draws=50, chains=2)
    more_payers, more_per_payer = draw_dollars(fit, arms)
    assert more_payers.shape == more_per_payer.shape == (100, len(arms))
