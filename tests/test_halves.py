"""Users held out: one half of each creator's users predicts the other."""

import numpy as np
import pandas as pd
import pytest
from conftest import K

from hbm.baselines import no_pooling_estimates
from hbm.checks import DataError
from hbm.data import generate_experiment_data, summarize_creators
from hbm.halves import split_half, split_half_summary


def plug_in(summaries):
    """Shrink to the mean with the true sd of the simulated effects: quick, for mechanics."""
    plain = no_pooling_estimates(summaries)
    pull = plain["se"] ** 2 / (plain["se"] ** 2 + 0.5**2)
    effect = plain["effect_hat"] + pull * (0.5 - plain["effect_hat"])
    return plain.assign(effect_hat=effect, se=plain["se"] * np.sqrt(1 - pull))


@pytest.fixture(scope="module")
def users():
    settings = {"n_creators_per_genre": 60, "size_mixture": ((0.7, 30, 100), (0.3, 100, 400))}
    return generate_experiment_data(12, **settings)[0]


def test_pooled_predicts_held_out_users_better_than_plain(users):
    table = split_half(users, n_splits=2)
    assert table["split"].nunique() == 2
    summary = split_half_summary(table).set_index("estimator")
    assert summary.index.tolist() == ["Partial pooling", "No pooling", "Complete pooling"]
    assert (summary["n_creators"] == 300).all()
    gain = summary.loc["Partial pooling"]
    assert gain["versus_plain"] < -K * gain["versus_plain_se"]
    assert abs(gain["coverage"] - 0.95) < K * gain["coverage_se"] + 0.01
    assert summary.loc["No pooling", "versus_plain"] == 0


def test_split_error_estimates_the_error_against_the_truth(users):
    """Subtracting held_out_se² leaves the squared error of the first half's estimates."""
    table = split_half(users, fit=plug_in)
    plain = split_half_summary(table).set_index("estimator").loc["No pooling"]
    expected = np.square(table["predicted_plain_se"]).mean()
    assert abs(plain["mse"] - expected) < K * plain["mse_se"]


def test_halves_are_disjoint_even_and_predict_with_the_first(users):
    seen = []

    def spy(summaries):
        seen.append(summaries)
        return plug_in(summaries)

    table = split_half(users, fit=spy, n_splits=2, random_seed=3)
    whole = summarize_creators(users).set_index("creator_id")
    for split, first in enumerate(seen):
        first = first.set_index("creator_id")
        for arm in ("n_treatment", "n_control"):
            assert (np.abs(2 * first[arm] - whole[arm]) <= 1).all()
        rows = table[table["split"] == split].set_index("creator_id")
        np.testing.assert_array_equal(rows["predicted_plain"], first["effect_hat"])
    assert not np.allclose(seen[0]["effect_hat"], seen[1]["effect_hat"])
    pd.testing.assert_frame_equal(table, split_half(users, fit=plug_in, n_splits=2, random_seed=3))


def test_the_two_halves_make_the_whole():
    """With even arms the mean of both halves' estimates is the estimate from all users."""
    rows = [("a", g, v) for g, c in (("treatment", 1), ("control", 3)) for v in c**2 * np.arange(8)]
    table = pd.DataFrame(rows, columns=["creator_id", "group", "revenue"]).assign(genre="g")
    users = pd.concat([table, table.assign(creator_id="b", revenue=table["revenue"] ** 2)])
    halves = split_half(users, fit=plug_in)
    together = (halves["predicted_plain"] + halves["held_out"]) / 2
    np.testing.assert_allclose(together, summarize_creators(users)["effect_hat"])


def clustered_users(n_clusters=8, size=5, n_creators=6, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        (f"s{i}", f"type {i % 2}", group, f"{i}-{group}-{c}", 1000.0 * c + k)
        for i in range(n_creators)
        for group in ("treatment", "control")
        for c in range(n_clusters)
        for k in range(size)
    ]
    table = pd.DataFrame(rows, columns=["creator_id", "genre", "group", "class", "revenue"])
    return table.sample(frac=1, random_state=rng.integers(2**31)).reset_index(drop=True)


def test_clusters_are_never_split(monkeypatch):
    import hbm.halves as halves_module

    halves, real = [], summarize_creators

    def spy(users, **settings):
        halves.append(users)
        return real(users, **settings)

    monkeypatch.setattr(halves_module, "summarize_creators", spy)
    table = split_half(clustered_users(), cluster="class", fit=plug_in)
    first, second = halves
    assert not set(first["class"]) & set(second["class"])
    assert len(first) + len(second) == 6 * 2 * 8 * 5
    assert (first.groupby(["creator_id", "group"])["class"].nunique() == 4).all()
    assert (table["set_aside"] == "").all()


def test_small_creators_are_set_aside_counted_and_named(users):
    few = users.groupby(["creator_id", "group"], observed=True).cumcount()
    names = users["creator_id"].astype(str)
    small = users[~((names == "c001") & (users["group"] == "control") & (few >= 3))]
    small = small[~((small["creator_id"] == "c002") & (small["group"] == "treatment"))]
    table = split_half(small, fit=plug_in).set_index("creator_id")
    assert table.loc["c001", "set_aside"] == "too few users in a half of control"
    assert table.loc["c002", "set_aside"] == "too few users in a half of treatment"
    assert table.loc["c001"].drop(["split", "set_aside"]).isna().all()
    assert (table["set_aside"] != "").sum() == 2
    summary = split_half_summary(table.reset_index())
    assert (summary["n_set_aside"] == 2).all()
    assert (summary["n_creators"] == 298).all()
    with pytest.raises(DataError, match="no creator can be split in halves; too few users"):
        split_half(users[few < 2], fit=plug_in)


def test_creators_with_few_clusters_are_set_aside_unless_the_variance_is_pooled():
    users = clustered_users(n_clusters=3)
    with pytest.raises(DataError, match="split in halves; too few clusters in a half"):
        split_half(users, cluster="class", fit=plug_in)
    table = split_half(users, cluster="class", fit=plug_in, cluster_variance="pooled")
    assert (table["set_aside"] == "").all()


def test_clusters_must_be_there_and_lie_within_an_arm():
    users = clustered_users()
    with pytest.raises(DataError, match="missing column room"):
        split_half(users, cluster="room", fit=plug_in)
    with pytest.raises(DataError, match="'class' must not be missing"):
        split_half(users.assign(**{"class": None}), cluster="class", fit=plug_in)
    with pytest.raises(DataError, match="within one arm of a creator; 'x' of 's0' lies in both"):
        split_half(users.assign(**{"class": "x"}), cluster="class", fit=plug_in)
    with pytest.raises(ValueError, match="n_splits must be at least 1"):
        split_half(users, fit=plug_in, n_splits=0)


def test_a_summary_needs_two_creators():
    one = clustered_users(n_creators=1).assign(genre="g")
    with pytest.raises(ValueError, match="at least two creators, got 1"):
        split_half_summary(split_half(one, fit=plug_in))
