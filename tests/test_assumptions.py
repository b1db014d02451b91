"""Each assumption is broken as stated, its damage is seen, and its cure cures."""

import numpy as np
import pytest
from conftest import K
from scipy import stats

from hbm.assumptions import ASSUMPTIONS, SPREADS, assumption_study
from hbm.data import validate_summaries
from hbm.validation import join_truth


def several(name, n=8):
    return [ASSUMPTIONS[name].simulate(np.random.default_rng([i, 6])) for i in range(n)]


@pytest.mark.parametrize("name", ASSUMPTIONS)
def test_broken_platforms_are_valid_and_concern_somebody(name):
    summaries, truth, concerned = ASSUMPTIONS[name].simulate(np.random.default_rng(1))
    validate_summaries(summaries)
    assert len(concerned) == len(summaries) == len(join_truth(summaries, truth))
    assert 0 < np.sum(concerned) < len(summaries)
    assert bool(ASSUMPTIONS[name].cure) == (ASSUMPTIONS[name].fit is not None)


@pytest.mark.parametrize("name", [n for n in ASSUMPTIONS if n != "independent errors"])
def test_errors_are_those_of_the_stated_standard_errors(name):
    """Only effects and labels are changed: the plain estimates stay sound."""
    squared = []
    for summaries, truth, _ in several(name):
        z = (summaries["effect_hat"] - truth["creator_effects"]) / summaries["se"]
        squared.append(np.square(z[truth["creator_n"] > 300]).mean())
    assert abs(np.mean(squared) - 1) < K * stats.sem(squared)


def test_effects_are_broken_as_stated():
    kurtosis = []
    for _, truth, _ in several("normal effects", 20):
        away = truth["creator_effects"] - truth["genre_effects"][truth["creator_genre"]]
        kurtosis.append(stats.kurtosis(away))
    assert np.median(kurtosis) > 1
    slopes = {"effects do not go with size": [], "effects do not go with noise": []}
    for name, found in slopes.items():
        for summaries, truth, _ in several(name):
            x = summaries["log_n" if "log_n" in summaries else "log_sd"]
            away = truth["creator_effects"] - truth["genre_effects"][truth["creator_genre"]]
            found.append(np.polyfit((x - x.mean()) / x.std(), away, 1)[0])
    size, noise = slopes.values()
    assert abs(np.mean(size) + 0.2) < K * stats.sem(size)
    assert 0.15 < np.mean(noise) < 0.2  # the measured sd of revenue carries its own error
    spreads = np.mean(
        [
            [
                (truth["creator_effects"] - truth["genre_effects"][truth["creator_genre"]])[
                    truth["creator_genre"] == g
                ].std()
                for g in range(5)
            ]
            for _, truth, _ in several("one spread for all genres", 20)
        ],
        axis=0,
    )
    np.testing.assert_allclose(spreads, SPREADS, rtol=4 / np.sqrt(2 * 2000) + 0.01)


def test_shared_errors_have_the_stated_correlation():
    means = []
    for summaries, truth, _ in several("independent errors", 60):
        z = (summaries["effect_hat"] - truth["creator_effects"]) / summaries["se"]
        means.append(z[truth["creator_n"] > 300].mean())
    squared = np.square(means)
    assert abs(squared.mean() - 0.1) < K * stats.sem(squared)


@pytest.fixture(
    scope="module", params=["effects do not go with size", "effects do not go with noise"]
)
def study(request):
    return assumption_study(request.param, 10, seed=7).set_index(["model", "group"])


def test_a_covariate_cures_bias_and_error(study):
    before, after = (study.loc[(model, "concerned")] for model in ("as it is", "cured"))
    assert abs(before["bias"]) > K * before["bias_se"]
    assert abs(after["bias"]) < K * after["bias_se"]
    assert after["mse"] < before["mse"]
    assert (study["n_failed"] == 0).all()


def test_shared_errors_ruin_the_genre_means_and_hardly_the_creators():
    found = assumption_study("independent errors", 30, seed=8).set_index("group").loc["all"]
    assert found["genre_coverage"] < 0.95 - K * found["genre_coverage_se"]
    assert abs(found["coverage"] - 0.95) < K * found["coverage_se"] + 0.01


def test_a_genre_of_two_is_covered():
    found = assumption_study("enough creators a genre", 60, seed=9).set_index("group")
    row = found.loc["concerned"]
    assert abs(row["coverage"] - 0.95) < K * row["coverage_se"]


def test_unknown_assumptions_are_errors():
    with pytest.raises(ValueError, match="unknown assumption 'honesty'; known: normal effects"):
        assumption_study("honesty", 2)
