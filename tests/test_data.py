"""The simulated platform is the planned one, summaries are exact, and bad tables are refused."""

import gzip
import hashlib
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats

from hbm.data import (
    GENRES,
    SIZE_MIXTURE,
    DataError,
    generate_experiment_data,
    incomplete_creators,
    read_users,
    summarize_arms,
    summarize_creators,
    validate_summaries,
    validate_users,
)

COLUMNS = ["creator_id", "genre", "group", "revenue"]
SUMMARY_COLUMNS = [
    "creator_id",
    "genre",
    "genre_idx",
    "n_treatment",
    "n_control",
    "n_total",
    "effect_hat",
    "se",
    "df",
    "variance_borrowed",
]


# --- the platform -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform():
    return generate_experiment_data()


def share_within(count, total, share):
    return abs(count / total - share) < K * np.sqrt(share * (1 - share) / total)


def test_the_users_frame_has_the_planned_shape(platform):
    users, truth = platform
    assert list(users.columns) == COLUMNS
    assert len(users) == truth["creator_n"].sum()
    assert tuple(users["genre"].cat.categories) == GENRES == truth["genres"]
    assert set(users["group"]) == {"treatment", "control"}
    assert users["revenue"].dtype == np.float64
    per_genre = users.groupby("genre", observed=True)["creator_id"].nunique()
    assert (per_genre == 100).all()
    assert len(per_genre) == 5


def test_truth_holds_what_is_promised_and_in_the_order_of_its_ids(platform):
    users, truth = platform
    promised = {
        "genre_effects",
        "creator_effects",
        "sigma_creator",
        "sigma_obs",
        "creator_genre",
        "creator_n",
        "creator_id",
    }
    assert promised <= set(truth)
    assert truth["genre_effects"].shape == (5,)
    for name in ("creator_effects", "creator_genre", "creator_n", "creator_id"):
        assert truth[name].shape == (500,)
    of_creator = users.groupby("creator_id", observed=True)
    assert (of_creator.size()[truth["creator_id"]].to_numpy() == truth["creator_n"]).all()
    genre = of_creator["genre"].first()[truth["creator_id"]].cat.codes.to_numpy()
    assert (genre == truth["creator_genre"]).all()


def test_defaults_are_the_planned_numbers(platform):
    _, truth = platform
    planned = {"mu_global": 0.5, "sigma_genre": 0.3, "sigma_creator": 0.4, "sigma_obs": 2.0}
    assert {name: truth[name] for name in planned} == planned
    assert SIZE_MIXTURE == ((0.40, 30, 100), (0.35, 100, 500), (0.25, 500, 5000))


def test_sizes_follow_the_planned_mixture():
    _, truth = generate_experiment_data(1, n_creators_per_genre=500)
    sizes = truth["creator_n"]
    assert sizes.min() >= 30
    assert sizes.max() < 5000
    for share, low, high in SIZE_MIXTURE:
        inside = sizes[(sizes >= low) & (sizes < high)]
        assert share_within(len(inside), len(sizes), share)
        error = (high - low) / np.sqrt(12 * len(inside))
        assert abs(inside.mean() - (low + high - 1) / 2) < K * error
        assert inside.var() == pytest.approx((high - low) ** 2 / 12, rel=0.15)


def test_users_are_split_half_and_half(platform):
    users, _ = platform
    arms = users.groupby(["creator_id", "group"], observed=True).size().unstack()
    assert (arms["treatment"] - arms["control"]).abs().max() <= 1


def test_revenue_is_normal_around_baseline_plus_effect(platform):
    users, truth = platform
    effect = truth["creator_effects"][users["creator_id"].cat.codes]
    for group, mean in (("control", 5.0), ("treatment", 5.0 + effect)):
        z = ((users["revenue"] - mean) / 2.0)[users["group"] == group].to_numpy()
        n = len(z)
        assert abs(z.mean()) < K / np.sqrt(n)
        assert abs(z.var() - 1) < K * np.sqrt(2 / n)
        assert abs(stats.skew(z)) < K * np.sqrt(6 / n)
        assert abs(stats.kurtosis(z)) < K * np.sqrt(24 / n)


def test_genre_and_creator_effects_have_the_planned_spread():
    genres = [f"g{i}" for i in range(800)]
    _, truth = generate_experiment_data(
        2, genres=genres, n_creators_per_genre=10, size_mixture=[(1.0, 4, 5)]
    )
    means = truth["genre_effects"]
    assert abs(means.mean() - 0.5) < K * 0.3 / np.sqrt(800)
    assert abs(means.std() / 0.3 - 1) < K / np.sqrt(2 * 800)
    within = truth["creator_effects"] - means[truth["creator_genre"]]
    assert abs(within.mean()) < K * 0.4 / np.sqrt(8000)
    assert abs(within.std() / 0.4 - 1) < K / np.sqrt(2 * 8000)


def test_every_number_is_a_parameter():
    small = {"genres": ["a", "b"], "n_creators_per_genre": 3, "size_mixture": [(1.0, 50, 51)]}
    plain, truth = generate_experiment_data(3, **small)
    assert plain["creator_id"].nunique() == 6
    assert set(plain["genre"]) == {"a", "b"}
    assert (truth["creator_n"] == 50).all()

    def changed(**kwargs):
        return generate_experiment_data(3, **small, **kwargs)

    assert changed(genre_mean=7.5)[1]["genre_effects"] == pytest.approx(
        truth["genre_effects"] + 7.0
    )
    assert changed(genre_sd=0)[1]["genre_effects"] == pytest.approx([0.5, 0.5])
    _, flat = changed(sigma_creator=0)
    assert flat["creator_effects"] == pytest.approx(flat["genre_effects"][flat["creator_genre"]])
    assert changed(baseline=105.0)[0]["revenue"].to_numpy() == pytest.approx(
        plain["revenue"].to_numpy() + 100
    )
    louder, _ = changed(sigma_obs=20.0)
    control = plain["group"] == "control"
    assert (louder["revenue"] - 5)[control].to_numpy() == pytest.approx(
        10 * (plain["revenue"] - 5)[control].to_numpy()
    )
    arms = changed(treatment_share=0.1)[0].groupby("creator_id", observed=True)["group"]
    assert (arms.agg(lambda g: (g == "treatment").sum()) == 5).all()


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_arms_keep_two_users_however_unequal_the_split(share):
    users, _ = generate_experiment_data(
        4, n_creators_per_genre=5, size_mixture=[(1.0, 4, 40)], treatment_share=share
    )
    assert len(incomplete_creators(users)) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size_mixture": [(0.5, 30, 100)]}, "sum to 1"),
        ({"size_mixture": [(1.5, 30, 100), (-0.5, 30, 100)]}, "shares"),
        ({"size_mixture": [(1.0, 3, 100)]}, "4 <= low"),
        ({"size_mixture": [(1.0, 100, 100)]}, "low < high"),
        ({"treatment_share": 0.0}, "treatment_share"),
        ({"treatment_share": 1.0}, "treatment_share"),
        ({"genres": []}, "at least one genre"),
        ({"n_creators_per_genre": 0}, "one creator"),
        ({"genre_sd": -1}, "genre_sd"),
        ({"sigma_creator": -1}, "sigma_creator"),
        ({"sigma_obs": 0}, "sigma_obs"),
    ],
)
def test_impossible_platforms_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        generate_experiment_data(**wrong)


_HASH = (
    "import hashlib; from hbm.data import generate_experiment_data as g; "
    "u, t = g(7, n_creators_per_genre=4); "
    "print(hashlib.sha256(u.to_csv(index=False).encode() + t['creator_effects'].tobytes())"
    ".hexdigest())"
)


def test_same_seed_same_bytes_also_in_a_fresh_process():
    users, truth = generate_experiment_data(7, n_creators_per_genre=4)
    content = users.to_csv(index=False).encode() + truth["creator_effects"].tobytes()
    here = hashlib.sha256(content).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", _HASH], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here
    again, _ = generate_experiment_data(np.random.default_rng(7), n_creators_per_genre=4)
    pd.testing.assert_frame_equal(users, again)
    other, _ = generate_experiment_data(8, n_creators_per_genre=4)
    assert not users["revenue"].head(100).equals(other["revenue"].head(100))


# --- summaries ----------------------------------------------------------------------------------


def naive_summaries(users):
    """The definitions of the plan, one creator at a time."""
    rows = []
    for creator in sorted(users["creator_id"].unique()):
        own = users[users["creator_id"] == creator]
        treated = own.loc[own["group"] == "treatment", "revenue"].to_numpy(float)
        control = own.loc[own["group"] == "control", "revenue"].to_numpy(float)
        rows.append(
            {
                "creator_id": creator,
                "genre": own["genre"].iloc[0],
                "n_treatment": len(treated),
                "n_control": len(control),
                "n_total": len(own),
                "effect_hat": treated.mean() - control.mean(),
                "se": np.sqrt(
                    treated.var(ddof=1) / len(treated) + control.var(ddof=1) / len(control)
                ),
            }
        )
    return pd.DataFrame(rows)


def assert_same_numbers(left, right, rtol=1e-12):
    for column in ("n_treatment", "n_control", "n_total", "effect_hat", "se"):
        np.testing.assert_allclose(left[column].to_numpy(float), right[column], rtol=rtol)


def test_summaries_equal_a_loop_over_creators(users):
    summaries = summarize_creators(users)
    naive = naive_summaries(users)
    assert list(summaries.columns) == SUMMARY_COLUMNS
    assert summaries["creator_id"].tolist() == naive["creator_id"].tolist()
    assert summaries["genre"].tolist() == naive["genre"].tolist()
    assert_same_numbers(summaries, naive)
    assert not summaries["variance_borrowed"].any()
    names = summaries.groupby("genre_idx")["genre"].agg(["first", "nunique"])
    assert names["first"].tolist() == sorted(users["genre"].unique())
    assert (names["nunique"] == 1).all()


def test_the_effect_is_treatment_minus_control(users):
    shifted = users.assign(revenue=users["revenue"] + 100 * (users["group"] == "treatment"))
    gain = summarize_creators(shifted)["effect_hat"] - summarize_creators(users)["effect_hat"]
    np.testing.assert_allclose(gain, 100, rtol=1e-12)


def test_the_platform_is_summarised_around_its_truth(platform):
    users, truth = platform
    summaries = summarize_creators(users)
    assert summaries["creator_id"].tolist() == truth["creator_id"].tolist()
    assert summaries["genre_idx"].tolist() == truth["creator_genre"].tolist()
    z = (summaries["effect_hat"] - truth["creator_effects"]) / summaries["se"]
    assert abs(z.mean()) < K / np.sqrt(500)
    assert abs(np.mean(z**2) - 1) < K * np.sqrt(2 / 500) + 0.02  # t, not z: 2% wider


def test_row_order_and_index_do_not_matter(users, rng):
    expected = summarize_creators(users)
    shuffled = users.iloc[rng.permutation(len(users))]
    for table in (
        shuffled,
        shuffled.set_index(np.zeros(len(users), int)),
        shuffled.set_index("creator_id", drop=False),
        shuffled[COLUMNS[::-1]],
    ):
        pd.testing.assert_frame_equal(summarize_creators(table), expected, rtol=1e-12)


_RENAMED = {
    "integers": [3, 10, 20, 100, 1000, 1001],
    "text": ["a", "b", "c", "d", "e", "f"],
    "unicode": ["Zoë", "Ωmega", "音楽", "🎮", "\N{NO-BREAK SPACE}x", "ß"],
    "html": ["<script>alert(1)</script>", "a&b", "<b>", "'; --", "{{x}}", "%s"],
    "big": [2**63 - 1 - i for i in range(6)],
    "zeros": ["007", "7", "07", " 7", "7.0", "7e0"],
    "mixed": [1, "1", "b", 2, "2", "a"],
}


@pytest.mark.parametrize("kind", _RENAMED)
def test_the_kind_of_id_does_not_matter(users, kind):
    names = dict(zip([f"c{i}" for i in range(6)], _RENAMED[kind], strict=True))
    expected = summarize_creators(users).set_index("creator_id")
    summaries = summarize_creators(users.assign(creator_id=users["creator_id"].map(names)))
    assert_same_numbers(
        summaries.set_index("creator_id").loc[[names[i] for i in expected.index]], expected
    )


@pytest.mark.parametrize(
    "dtype",
    [
        "object",
        "str",
        "string[python]",
        "string[pyarrow]",
        "category",
        pd.CategoricalDtype(["c5", "c0", "c4", "c1", "c3", "c2", "unused"]),
    ],
    ids=str,
)
def test_the_type_of_the_id_column_does_not_matter(users, dtype):
    summaries = summarize_creators(users.astype({"creator_id": dtype}))
    expected = summarize_creators(users)
    assert summaries["creator_id"].tolist() == expected["creator_id"].tolist()
    assert_same_numbers(summaries, expected)
    assert summaries["genre_idx"].tolist() == expected["genre_idx"].tolist()


@pytest.mark.parametrize("dtype", ["object", "string[pyarrow]", "category"])
def test_the_type_of_genre_and_group_does_not_matter(users, dtype):
    pd.testing.assert_frame_equal(
        summarize_creators(users.astype({"genre": dtype, "group": dtype})),
        summarize_creators(users),
        check_dtype=False,
    )


def test_genres_are_numbered_by_category_or_else_by_name(users):
    by_name = summarize_creators(users)
    assert by_name.groupby("genre")["genre_idx"].first().to_dict() == {
        "comedy": 0,
        "gaming": 1,
        "music": 2,
    }
    order = ["music", "unused", "gaming", "comedy"]
    by_category = summarize_creators(users.astype({"genre": pd.CategoricalDtype(order)}))
    assert by_category.groupby("genre")["genre_idx"].first().to_dict() == {
        "music": 0,
        "gaming": 1,
        "comedy": 2,
    }


@pytest.mark.parametrize(
    "dtype",
    [
        "int8",
        "uint8",
        "int64",
        "Int64",
        "UInt16",
        "float32",
        "Float32",
        "Float64",
        "double[pyarrow]",
        "int64[pyarrow]",
    ],
)
def test_every_type_of_number_is_accepted_and_counted_in_doubles(users, dtype):
    whole = users.assign(revenue=users["revenue"].round())
    summaries = summarize_creators(whole.astype({"revenue": dtype}))
    assert_same_numbers(summaries, naive_summaries(whole))
    assert summaries["effect_hat"].dtype == np.float64


def test_moments_of_32_bit_revenue_are_doubles(users):
    far = users.assign(revenue=(users["revenue"] + 1e6).astype("float32"))
    assert_same_numbers(summarize_creators(far), naive_summaries(far), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_revenue_does_not_matter(users, scale):
    plain, scaled = (
        summarize_creators(users.assign(revenue=factor * users["revenue"])) for factor in (1, scale)
    )
    np.testing.assert_allclose(scaled["effect_hat"], scale * plain["effect_hat"], rtol=1e-9)
    np.testing.assert_allclose(scaled["se"], scale * plain["se"], rtol=1e-12)
    np.testing.assert_allclose(scaled["df"], plain["df"], rtol=1e-12)


def test_a_large_offset_of_revenue_costs_only_the_digits_it_must(users):
    far = summarize_creators(users.assign(revenue=users["revenue"] + 1e9))
    plain = summarize_creators(users)
    rounding = np.spacing(1e9)
    np.testing.assert_allclose(far["effect_hat"], plain["effect_hat"], rtol=0, atol=4 * rounding)
    np.testing.assert_allclose(far["se"], plain["se"], rtol=0, atol=4 * rounding)


@pytest.mark.parametrize("name", ["n", "mean", "n_treatment", "effect_hat", "level_0"])
def test_further_columns_do_not_disturb(users, name):
    pd.testing.assert_frame_equal(
        summarize_creators(users.assign(**{name: 1})), summarize_creators(users)
    )


def test_arms_from_a_database_give_the_same_summaries(users):
    arms = summarize_arms(users)
    pd.testing.assert_frame_equal(summarize_creators(arms), summarize_creators(users))
    with pytest.raises(DataError, match="missing column var_control"):
        summarize_creators(arms.drop(columns="var_control"))


def test_summarising_costs_a_small_multiple_of_one_grouping(rng):
    """So that 10 million rows take seconds: the ratio holds on any machine."""
    n = 500_000
    creator = rng.integers(0, 5000, n)
    table = pd.DataFrame(
        {
            "creator_id": creator,
            "genre": pd.Categorical.from_codes(creator % 5, list("abcde")),
            "group": pd.Categorical.from_codes(rng.integers(0, 2, n), ["control", "treatment"]),
            "revenue": rng.normal(5, 2, n),
        }
    )

    def fastest(function, times=5):
        seconds = []
        for _ in range(times):
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
        return min(seconds)

    def grouped():
        by_arm = table.groupby(["creator_id", "group"], observed=True)["revenue"]
        return by_arm.agg(["size", "mean", "var"])

    assert fastest(lambda: summarize_creators(table)) < 6 * fastest(grouped)


# --- creators whose effect cannot be estimated ---------------------------------------------------


def rows(creator, genre="music", treatment=(), control=()):
    revenue = [*treatment, *control]
    group = ["treatment"] * len(treatment) + ["control"] * len(control)
    return pd.DataFrame(
        {"creator_id": creator, "genre": genre, "group": group, "revenue": np.array(revenue, float)}
    )


@pytest.fixture
def incomplete(users):
    added = [
        rows("one_arm", treatment=[1, 2, 3]),
        rows("single", treatment=[1], control=[1, 2]),
        rows("lonely", genre="folk", treatment=[1], control=[2]),  # between the others
    ]
    return pd.concat([users, *added], ignore_index=True)


def test_incomplete_creators_are_listed_with_the_reason(users, incomplete):
    assert len(incomplete_creators(users)) == 0
    few = incomplete_creators(incomplete).set_index("creator_id")
    assert few["reason"].to_dict() == {
        "lonely": "one user in treatment and one user in control",
        "one_arm": "no user in control",
        "single": "one user in treatment",
    }
    assert few.loc["one_arm", ["n_treatment", "n_control"]].tolist() == [3, 0]
    assert few.loc["lonely", "genre"] == "folk"


def test_incomplete_creators_raise_unless_asked_to_be_set_aside(incomplete):
    with pytest.raises(DataError, match=r"3 creators.*'lonely' \(one user in tr.*incomplete_creat"):
        summarize_creators(incomplete)


@pytest.mark.parametrize("dtype", ["float64", "Float64", "double[pyarrow]"])
def test_excluding_incomplete_creators_leaves_the_others_as_they_were(users, incomplete, dtype):
    kept = summarize_creators(incomplete.astype({"revenue": dtype}), incomplete="exclude")
    pd.testing.assert_frame_equal(kept, summarize_creators(users))
    validate_summaries(kept)


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="no creator has two users in both arms"):
        summarize_creators(rows("a", treatment=[1, 2], control=[3]), incomplete="exclude")
    with pytest.raises(DataError, match="no creator has two users in both arms"):
        summarize_creators(rows("a", control=[1.0, 3.0]), incomplete="exclude")


def test_unknown_settings_are_refused(users):
    with pytest.raises(ValueError, match="'drop'"):
        summarize_creators(users, incomplete="drop")
    with pytest.raises(ValueError, match=r"'hc3'.*welch"):
        summarize_creators(users, variance="hc3")
    with pytest.raises(ValueError, match="cluster_variance 'x'; known: own, moderated, pooled"):
        summarize_creators(users, cluster_variance="x")


@pytest.mark.parametrize("method", ["welch", "moderated", "pooled"])
def test_an_arm_without_variation_is_kept_and_flagged(users, method):
    """All users of the arm paid $0: dropping such creators would bias the rest."""
    silent = users["revenue"].mask(
        (users["creator_id"] == "c2") & (users["group"] == "control"), 0.0
    )
    summaries = summarize_creators(users.assign(revenue=silent), variance=method)
    assert len(summaries) == 6
    assert (summaries["se"] > 0).all()
    flagged = summaries.set_index("creator_id")["variance_borrowed"]
    # Both arms' users share one variance in "pooled", and c2's treated users do vary.
    assert flagged.sum() == (0 if method == "pooled" else 1)
    assert flagged["c2"] == (method != "pooled")


def test_the_borrowed_variance_is_pooled_over_the_same_arms(users):
    silent = users["revenue"].mask(
        (users["creator_id"] == "c2") & (users["group"] == "control"), 0.0
    )
    users = users.assign(revenue=silent)
    control = users[users["group"] == "control"].groupby("creator_id")["revenue"]
    pooled = ((control.size() - 1) * control.var()).sum() / (control.size() - 1).sum()
    treated = users[(users["group"] == "treatment") & (users["creator_id"] == "c2")]["revenue"]
    expected = np.sqrt(treated.var() / len(treated) + pooled / control.size()["c2"])
    summaries = summarize_creators(users).set_index("creator_id")
    assert summaries.loc["c2", "se"] == pytest.approx(expected, rel=1e-12)


def test_rounding_in_a_constant_arm_counts_as_no_variation(users):
    constant = (users["creator_id"] == "c2") & (users["group"] == "control")
    tenth = users["revenue"].mask(constant, 0.1) + 1e3
    flagged = summarize_creators(users.assign(revenue=tenth))["variance_borrowed"]
    assert flagged.tolist() == [False, False, True, False, False, False]


def test_revenue_without_any_variation_has_no_standard_error(users):
    with pytest.raises(ValueError, match="does not vary"):
        summarize_creators(users.assign(revenue=5.0))


def test_the_smallest_tables_are_summarised():
    pair = pd.concat([rows("a", "x", [1, 2], [3, 5]), rows("b", "y", [1, 2], [4, 5])])
    two = summarize_creators(pair)
    assert two["genre_idx"].tolist() == [0, 1]  # one creator in each genre
    one_genre = summarize_creators(pair.assign(genre="x"))
    assert one_genre["genre_idx"].tolist() == [0, 0]
    for summaries in (two, one_genre, summarize_creators(rows("a", "x", [1, 2], [3, 5]))):
        validate_summaries(summaries)


# --- tables that are refused --------------------------------------------------------------------


def refused(table, *parts):
    with pytest.raises(DataError) as caught:
        summarize_creators(table)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(users, column):
    message = refused(users.drop(columns=column), f"missing column {column}", "columns found")
    assert all(other in message for other in COLUMNS)
    refused(users[["group"]], "missing columns creator_id, genre, revenue")


def test_a_column_that_is_there_twice_is_named(users):
    refused(pd.concat([users, users[["revenue"]]], axis=1), "more than one column", "revenue")


@pytest.mark.parametrize("wrong", [None, [1, 2], "users.csv", {"revenue": [1]}], ids=repr)
def test_what_is_no_frame_is_refused(wrong):
    with pytest.raises(DataError, match=f"DataFrame is needed, got {type(wrong).__name__}"):
        validate_users(wrong)


def test_an_empty_table_is_refused(users):
    refused(users.head(0), "no rows")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_revenue_that_is_not_finite_is_refused(users, value):
    revenue = users["revenue"].copy()
    revenue.iloc[[3, 4, -1]] = value
    message = refused(
        users.assign(revenue=revenue), "'revenue' must be finite", "3 rows break it", "'c0'", "'c5'"
    )
    assert str(value) in message


@pytest.mark.parametrize("dtype", ["Float64", "double[pyarrow]", "Int64"])
def test_a_missing_number_of_an_extension_type_is_refused(users, dtype):
    revenue = users["revenue"].round().astype(dtype)
    revenue.iloc[3] = pd.NA
    refused(users.assign(revenue=revenue), "'revenue' must be finite; 1 row breaks it", "'c0'")


@pytest.mark.parametrize("column", ["creator_id", "genre", "group"])
@pytest.mark.parametrize("dtype", ["object", "str", "category", "string[pyarrow]"])
def test_a_missing_label_is_refused(users, column, dtype):
    labels = users[column].astype(dtype)
    labels.iloc[[0, 1]] = None
    refused(users.assign(**{column: labels}), f"'{column}' must not be missing; 2 rows")


@pytest.mark.parametrize("dtype", ["object", "category", "string[pyarrow]"])
def test_an_unknown_group_is_named(users, dtype):
    group = users["group"].mask(users["creator_id"] == "c3", "placebo").astype(dtype)
    refused(users.assign(group=group), "'group' must be one of", "'c3' ('placebo')", "treatment")


@pytest.mark.parametrize("label", ["Treatment", " treatment", "T", 1, True])
def test_labels_are_not_guessed(users, label):
    group = users["group"].astype(object).where(users["group"] == "control", label)
    refused(users.assign(group=group), "'group' must be one of", repr(label))


@pytest.mark.parametrize(
    ("revenue", "part"),
    [
        (lambda r: r > 5, "its type is bool"),
        (lambda r: (r > 5).astype("boolean"), "its type is boolean"),
        (lambda r: r.astype(str), "its type is str"),
        (lambda r: r.astype(object), "its type is object"),
        (lambda r: r.astype(complex), "its type is complex"),
        (lambda r: pd.to_datetime(r, unit="D"), "its type is datetime64"),
        (lambda r: r.astype(str).where(r.index != 2, "$5"), "'c0' ('$5')"),
        (lambda r: r.astype(str).where(r.index != 2, None), "must be a number; 1 row breaks"),
    ],
    ids=["bool", "boolean", "text", "object", "complex", "date", "dollars", "none"],
)
def test_revenue_of_the_wrong_type_is_refused(users, revenue, part):
    refused(users.assign(revenue=revenue(users["revenue"])), "'revenue'", part)


@pytest.mark.parametrize("dtype", ["object", "category"])
def test_a_creator_in_two_genres_is_refused(users, dtype):
    genre = users["genre"].copy()
    genre.iloc[0] = "gaming"
    refused(
        users.assign(genre=genre).astype({"genre": dtype, "creator_id": dtype}),
        "'genre' must be the same",
        "'c0' ('music')",
        "'c0' ('gaming')",
    )


def test_a_user_counted_twice_is_refused_where_users_have_ids(users):
    refused(
        users.assign(user_id=[0, 0, *range(2, len(users))]),
        "'user_id' must not repeat within a creator; 2 rows",
        "'c0' (0)",
    )
    # The same user may meet several creators; without ids equal rows are different users.
    per_creator = users.groupby("creator_id").cumcount()
    assert len(summarize_creators(users.assign(user_id=per_creator))) == 6
    assert summarize_creators(pd.concat([users, users]))["n_total"].sum() == 2 * len(users)


def test_at_most_five_offenders_are_named(rng):
    users, _ = generate_experiment_data(rng, n_creators_per_genre=4, size_mixture=[(1.0, 4, 5)])
    message = refused(users.assign(revenue=np.nan), "80 rows break it")
    assert message.count("'c") == 5


def test_validation_returns_the_frame_untouched(users):
    before = users.copy()
    assert validate_users(users) is users
    summarize_creators(users)
    pd.testing.assert_frame_equal(users, before)


# --- summaries from elsewhere -------------------------------------------------------------------


@pytest.fixture
def summaries():
    return pd.DataFrame(
        {
            "creator_id": ["a", "b", "c"],
            "genre_idx": [0, 1, 1],
            "effect_hat": [1.0, 2, 3],
            "se": 1.0,
        }
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"creator_id": ["a", "a", "b"]}, "'creator_id' must be unique; 2 rows.*'a'"),
        ({"creator_id": ["a", None, "b"]}, "'creator_id' must not be missing"),
        ({"effect_hat": [1, np.nan, 2]}, r"'effect_hat' must be a finite.*'b' \(nan\)"),
        ({"effect_hat": [1, 2, -np.inf]}, "'effect_hat' must be a finite number.*'c'"),
        ({"effect_hat": ["1", "2", "3"]}, "'effect_hat' must be numeric, its type is str"),
        ({"se": [1, 0, 1]}, r"'se' must be greater than 0; 1 row breaks it, .*'b' \(0\)"),
        ({"se": [1, -1, 1]}, "'se' must be greater than 0"),
        ({"se": [1, np.inf, 1]}, "'se' must be a finite number"),
        ({"se": [True, True, True]}, "'se' must be numeric, its type is bool"),
        ({"genre_idx": [0, 2, 2]}, "'genre_idx' must have no gaps; without a creator: 1"),
        ({"genre_idx": [1, 2, 2]}, "'genre_idx' must have no gaps; without a creator: 0"),
        ({"genre_idx": [0, -1, 1]}, r"'genre_idx' must be 0, 1, 2, ….*'b' \(-1\)"),
        ({"genre_idx": [0, 0.5, 1]}, "'genre_idx' must be 0, 1, 2, …"),
        ({"genre_idx": [0, np.nan, 1]}, "'genre_idx' must be a finite number"),
        ({"genre": ["x", "y", "z"]}, "genre_idx 1 has more than one genre name"),
        ({"genre": ["x", "x", "x"]}, "genre 'x' has more than one genre_idx"),
    ],
)
def test_wrong_summaries_are_refused(summaries, change, message):
    with pytest.raises(DataError, match=message):
        validate_summaries(summaries.assign(**change))


def test_summaries_need_four_columns_and_a_row(summaries):
    assert validate_summaries(summaries) is summaries
    for column in summaries:
        with pytest.raises(DataError, match=f"missing column {column}"):
            validate_summaries(summaries.drop(columns=column))
    with pytest.raises(DataError, match="no rows"):
        validate_summaries(summaries.head(0))


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def csv(users):
    return users.to_csv(index=False).encode()


@pytest.fixture
def parquet(users, tmp_path):
    users.to_parquet(tmp_path / "source.parquet")
    return (tmp_path / "source.parquet").read_bytes()


@pytest.mark.parametrize("name", ["u.csv", "U.CSV", "u.csv.gz", "u.parquet"])
def test_files_are_read_back_as_they_were(users, csv, parquet, tmp_path, name):
    kind = name.lower().rpartition(".")[2]
    content = {"csv": csv, "gz": gzip.compress(csv), "parquet": parquet}[kind]
    (tmp_path / name).write_bytes(content)
    pd.testing.assert_frame_equal(read_users(tmp_path / name), users, check_dtype=False)
    pd.testing.assert_frame_equal(read_users(str(tmp_path / name)), users, check_dtype=False)


def test_labels_stay_text_and_a_genre_may_be_called_na(tmp_path):
    path = tmp_path / "u.csv"
    path.write_text(
        "creator_id,genre,group,revenue,user_id,country\n"
        "007,NA,control,1,01,NA\n007,NA,treatment,2,1,NA\n"
        "7,None,control,1,01,NA\n1e3,<script>,control,1e-9,2,NA\n",
        "utf-8",
    )
    users = read_users(path)
    assert users["creator_id"].tolist() == ["007", "007", "7", "1e3"]
    assert users["genre"].tolist() == ["NA", "NA", "None", "<script>"]
    assert users["user_id"].tolist() == ["01", "1", "01", "2"]
    assert users["country"].tolist() == ["NA"] * 4
    assert users["revenue"].tolist() == [1, 2, 1, 1e-9]


def test_a_byte_order_mark_does_no_harm(csv, tmp_path):
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbf" + csv)
    assert read_users(tmp_path / "excel.csv").columns[0] == "creator_id"


def zipped(content):
    return gzip.compress(content, mtime=0)


def row(text):
    return lambda csv, parquet: csv + text + b"\n"


BAD_FILES = {
    "parquet.csv": (lambda csv, parquet: parquet, "is Parquet, not CSV"),
    "parquet.csv.gz": (lambda csv, parquet: parquet, "is Parquet, not CSV"),
    "csv.parquet": (lambda csv, parquet: csv, "is not Parquet"),
    "csv.csv.gz": (lambda csv, parquet: csv, "is not CSV"),
    "gzip.csv": (lambda csv, parquet: zipped(csv), "is not CSV"),
    "gzip.parquet": (lambda csv, parquet: zipped(csv), "is not Parquet"),
    "cut.csv.gz": (lambda csv, parquet: zipped(csv)[:-20], "is not CSV"),
    "damaged.csv.gz": (
        lambda csv, parquet: zipped(csv)[:40] + bytes(20) + zipped(csv)[60:],
        "is not CSV",
    ),
    "cut.parquet": (lambda csv, parquet: parquet[:-30], "is not Parquet"),
    "damaged.parquet": (
        lambda csv, parquet: parquet[:100] + bytes(200) + parquet[300:],
        "is not Parquet",
    ),
    "empty.csv": (lambda csv, parquet: b"", "the file is empty"),
    "blank.csv": (lambda csv, parquet: b"\n\n", "the file is empty"),
    "empty.csv.gz": (lambda csv, parquet: zipped(b""), "the file is empty"),
    "empty.parquet": (lambda csv, parquet: b"", "is not Parquet"),
    "header.csv": (lambda csv, parquet: csv.splitlines()[0], "the table has no rows"),
    "latin1.csv": (lambda csv, parquet: csv.replace(b"music", b"m\xfcsic"), "is not CSV"),
    "utf16.csv": (lambda csv, parquet: csv.decode().encode("utf-16"), "is not CSV"),
    "semicolon.csv": (lambda csv, parquet: csv.replace(b",", b";"), "missing columns creator_id"),
    "page.csv": (lambda csv, parquet: b"<html><body>log in</body></html>", "missing columns"),
    "ragged.csv": (row(b"c9,music,control,1,2,3"), "is not CSV"),
    "quote.csv": (row(b'"c9,music,control,1'), "is not CSV"),
    "short.csv": (row(b"c9,music,control"), "'revenue' must be finite; 1 row.*'c9'"),
    "shifted.csv": (
        lambda csv, parquet: csv.replace(b"\n", b",\n").replace(b"revenue,", b"revenue"),
        "'group' must be one of",
    ),
    "nan.csv": (row(b"c9,music,control,NaN"), r"'revenue' must be.*'c9' \('NaN'\)"),
    "null.csv": (row(b"c9,music,control,NULL"), r"'revenue' must be.*'c9' \('NULL'\)"),
    "infinite.csv": (row(b"c9,music,control,inf"), r"'revenue' must be finite.*'c9' \(inf\)"),
    "thousands.csv": (row(b'c9,music,control,"1,000"'), "must be a number.*'1,000'"),
    "nogenre.csv": (row(b"c9,,control,1"), "'genre' must not be missing; 1 row.*'c9'"),
    "users.xlsx": (lambda csv, parquet: b"PK", r"known endings are \.csv, \.csv\.gz and \.parquet"),
    "users": (lambda csv, parquet: csv, "known endings"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_by_name(name, csv, parquet, tmp_path):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content(csv, parquet))
    with pytest.raises(DataError, match=message) as caught:
        read_users(tmp_path / name)
    assert str(caught.value).startswith(f"{name}: ")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_users(tmp_path / "nowhere.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_users(tmp_path)


def test_a_file_with_two_columns_of_one_name_is_refused(tmp_path):
    path = tmp_path / "users.csv"
    path.write_text("creator_id,genre,group,revenue,revenue\na,g,control,1,2\n", "utf-8")
    with pytest.raises(DataError, match=r"users\.csv: more than one column is called revenue"):
        read_users(path)


# --- arms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("creator_id", None, "must not be missing"),
        ("creator_id", "c1", "must be unique"),
        ("genre", None, "must not be missing"),
        ("n_control", -5, "must be 0, 1, 2, …"),
        ("n_control", 7.5, "must be 0, 1, 2, …"),
        ("n_treatment", np.nan, "must be 0, 1, 2, …"),
        ("mean_treatment", np.inf, "must be finite where there is a user"),
        ("mean_control", np.nan, "must be finite where there is a user"),
        ("var_treatment", -4.0, "must be at least 0 where there are two users"),
        ("var_treatment", np.nan, "must be at least 0 where there are two users"),
        ("var_control", np.inf, "must be at least 0 where there are two users"),
    ],
)
def test_arms_of_ones_own_are_checked_and_the_first_offender_named(users, column, value, rule):
    arms = summarize_arms(users)
    kind = object if isinstance(value, str | None) else float
    arms[column] = arms[column].astype(kind).where(arms.index != 2, value)
    with pytest.raises(DataError, match=f"arms: column '{column}' {rule}") as refused:
        summarize_creators(arms)
    if column != "creator_id":
        assert f"first creators: {arms['creator_id'][2]!r}" in str(refused.value)


def test_arms_with_text_for_numbers_are_refused(users):
    arms = summarize_arms(users).astype({"var_control": str})
    with pytest.raises(DataError, match="arms: column 'var_control' must be numeric"):
        summarize_creators(arms)


def test_arms_of_absent_groups_need_no_moments():
    users = rows("a", treatment=[1.0, 2.0], control=[3.0, 5.0])
    both = pd.concat([users, rows("b", treatment=[1.0])], ignore_index=True)
    arms = summarize_arms(both)
    assert summarize_creators(arms, incomplete="exclude")["creator_id"].tolist() == ["a"]


# --- clusters -----------------------------------------------------------------------------------


def test_clusters_need_a_column_within_one_arm(users):
    clusters = users.assign(room=users["group"].str[0] + (users.index % 2).astype(str))
    summaries = summarize_creators(clusters, cluster="room")
    assert list(summaries.columns) == SUMMARY_COLUMNS
    np.testing.assert_allclose(
        summaries["effect_hat"], summarize_creators(users)["effect_hat"], rtol=1e-12
    )
    with pytest.raises(DataError, match="missing column room"):
        summarize_creators(users, cluster="room")
    with pytest.raises(DataError, match=r"'room' must not be missing; 1 row"):
        summarize_creators(
            clusters.assign(room=clusters["room"].where(users.index != 0)), cluster="room"
        )
    with pytest.raises(DataError, match=r"'room' must lie within one arm.*'c0'"):
        summarize_creators(users.assign(room=users.index % 2), cluster="room")
    with pytest.raises(DataError, match=r"'room'.*6 creators have an arm of a single cluster"):
        summarize_creators(users.assign(room=users["group"]), cluster="room")
