"""The studies of learned priors measure what they say, and their figures draw it."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats
from test_sbc import LEVEL

from hbm import plots
from hbm.diagnostics import MAX_QUADRATURE_ERROR
from hbm.learned.conflict import ALARM
from hbm.learned.forms import EXACT, form_study
from hbm.learned.study import (
    CANDIDATES,
    CHANGES,
    CHECKED,
    GENRES,
    NEW,
    ORACLE,
    POLICIES,
    alarm_study,
    chained_sbc,
    change_study,
    draw_batch,
    summarize_policies,
    wandering_study,
    weeks_study,
)
from hbm.sbc import QUANTITIES, sbc_verdicts

BY = ["policy", "batch"]


def most_false_alarms(n):
    """So many of n batches may raise an alarm by chance, to be exceeded as rarely as K errors."""
    return stats.binom(n, ALARM).ppf(stats.norm.cdf(K))


def test_a_batch_is_drawn_around_its_genres(rng):
    batch = draw_batch(rng, np.array([0.0, 3.0]), np.array([4000, 2000]), sigma_creator=0.5)
    data = batch.summaries
    assert data["genre"].value_counts().to_dict() == {GENRES[0]: 4000, GENRES[1]: 2000}
    for genre, mean, n in ((0, 0.0, 4000), (1, 3.0, 2000)):
        own = batch.tau[data["genre_idx"] == genre]
        assert abs(own.mean() - mean) < K * 0.5 / np.sqrt(n)
        assert abs(own.std() - 0.5) < K * 0.5 / np.sqrt(2 * n)
    z = (data["effect_hat"] - batch.tau) / data["se"]
    assert abs(z.std() - 1) < K / np.sqrt(2 * len(z))
    np.testing.assert_allclose(data["se"], 4 / np.sqrt(data["n_total"]))


def test_policies_are_summarised_by_hand():
    rows = [
        (0, "a", "x", 1, 2.0), (0, "a", "y", 3, 4.0), (0, ORACLE, "x", 1, 1.0),
        (0, ORACLE, "y", 3, 3.0), (1, "a", "x", 1, 3.0), (1, "a", "y", 3, 3.0),
        (1, ORACLE, "x", 1, 2.0), (1, ORACLE, "y", 3, 2.0),
    ]  # fmt: skip
    names = ["sequence", "policy", "genre", "n_creators", "squared_error"]
    study = pd.DataFrame(rows, columns=names).assign(
        batch=1, coverage=1.0, genre_squared_error=0.5, genre_coverage=0.0
    )
    row = summarize_policies(study, BY).set_index("policy").loc["a"]
    # By sequence: 3.5 and 3 against the oracle's 2.5 and 2.
    assert row["mse"] == pytest.approx(3.25)
    assert row["mse_se"] == pytest.approx(0.25)
    assert row["ratio"] == pytest.approx(3.25 / 2.25)
    left = np.array([3.5, 3.0]) - row["ratio"] * np.array([2.5, 2.0])
    assert row["ratio_se"] == pytest.approx(left.std(ddof=1) / np.sqrt(2) / 2.25)
    assert row["genre_mse"] == 0.5


@pytest.fixture(scope="module")
def weeks():
    return weeks_study(2, weeks=(1, 3))


@pytest.fixture(scope="module")
def change():
    return change_study(6, jump=1.0, at=3, scored=(2, 3))


def test_the_studies_have_every_policy_and_genre(weeks, change):
    assert set(weeks["policy"]) == {*POLICIES, ORACLE}
    assert set(weeks["genre"]) == set(GENRES)
    assert set(weeks["batch"]) == {1, 3}
    assert set(change["policy"]) == {*POLICIES, CHECKED, ORACLE}
    assert len(weeks) == 2 * 2 * 4 * 5
    for study in (weeks, change):
        assert study["quadrature_error"].max() <= MAX_QUADRATURE_ERROR
        assert (study["policy"] == ORACLE).sum() == study["genre_coverage"].isna().sum()


def test_a_longer_study_begins_with_the_shorter(weeks):
    one = weeks_study(1, weeks=(1, 3))
    pd.testing.assert_frame_equal(one, weeks[weeks["sequence"] == 0].reset_index(drop=True))


def test_a_jump_is_met_by_the_check_alone(change):
    after = change[(change["batch"] == 3) & (change["genre"] == GENRES[2])]
    assert after["alarm"].all()
    assert after["named"].all()
    error = after.pivot(index="sequence", columns="policy", values="genre_squared_error")
    for worse, better in (("undiscounted", "discounted"), ("discounted", CHECKED)):
        lead = error[worse] - error[better]
        assert lead.mean() > K * lead.sem(), worse
    before = change[change["batch"] == 2].groupby("sequence")["alarm"].first()
    assert before.sum() <= most_false_alarms(len(before))


def test_forms_are_compared_with_the_joint_fit():
    table = form_study(4, batches=(40, 10)).set_index("form")
    for column in ("mean_error", "sd_error", "genre_error"):
        assert table.loc[EXACT, column] < MAX_QUADRATURE_ERROR
        assert (table[column].drop(EXACT) > 1e-4).all()
    assert table["mean_error"].idxmax() == "half-normal"


def test_wandering_is_scored_by_discount():
    study = wandering_study(8, step=0.3, n_batches=4)
    assert set(study["policy"]) == {*CANDIDATES, ORACLE}
    table = summarize_policies(study, ["policy"]).set_index("policy")
    assert table.loc["each batch alone", "elpd"] == 0
    error = study.groupby(["sequence", "policy"])["genre_squared_error"].mean().unstack()
    lead = np.log(error["1"] / error["0.5"])
    assert lead.mean() > K * lead.sem()


def test_alarms_are_counted_by_change():
    n = 10
    table = alarm_study(n).set_index("change")
    assert list(table.index) == list(CHANGES)
    share = (n * table["alarm"] + 0.5) / (n + 1)
    np.testing.assert_allclose(table["alarm_se"], np.sqrt(share * (1 - share) / (n + 2)))
    nothing, change = table.loc["nothing"], table.loc["sigma_creator by a half"]
    assert n * nothing["alarm"] <= most_false_alarms(n)
    error = np.hypot(nothing["alarm_se"], change["alarm_se"])
    assert change["alarm"] - nothing["alarm"] > K * error


def test_a_chain_is_ranked_like_any_fit():
    calibration = chained_sbc(3)
    assert list(calibration.ranks) == list(QUANTITIES)
    assert calibration.ranks.to_numpy().min() >= 0
    assert calibration.ranks.to_numpy().max() <= 1


@pytest.mark.slow
def test_the_chain_is_calibrated():
    assert sbc_verdicts(chained_sbc(200), LEVEL)["uniform"].all()


def test_figures_draw_every_policy(weeks, change):
    table = summarize_policies(weeks[weeks["genre"] == NEW], BY)
    left, right = plots.plot_weeks(table[table["policy"] != ORACLE]).axes
    assert len(left.containers) == len(right.containers) == len(POLICIES)
    drawn = np.asarray(left.containers[0].lines[0].get_ydata(), float)
    alone = table[table["policy"] == "each batch alone"].sort_values("batch")
    np.testing.assert_allclose(drawn, alone["ratio"])
    drawn = np.asarray(right.containers[0].lines[0].get_ydata(), float)
    np.testing.assert_allclose(drawn, np.sqrt(alone["genre_mse"]))
    table = summarize_policies(change[change["genre"] == GENRES[2]], BY)
    figure = plots.plot_change(table[table["policy"] != ORACLE], at=3)
    assert [len(ax.containers) for ax in figure.axes] == [4, 4]
    assert len(figure.legends[0].get_texts()) == 4
