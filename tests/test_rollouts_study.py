"""Studies score the readouts they say, platform by platform."""

import numpy as np
import pytest
from conftest import K

from hbm.rollouts import borusyak_imputation_estimator
from hbm.rollouts.panels import generate_rollout_data
from hbm.rollouts.placebos import borusyak_imputation_estimator_calibrated, pretrend_test
from hbm.rollouts.study import ERRORS, drift_study, rollout_seconds, rollout_study

PLATFORM = {"n_creators_per_genre": 12, "n_periods": 12, "rollout": (5, 11), "never_share": 0.5}


@pytest.fixture(scope="module")
def study():
    return rollout_study(2, seed=3, rho=0.4, **PLATFORM)


def first_platform(seed, **platform):
    stream = np.random.SeedSequence(seed).spawn(1)[0]
    return generate_rollout_data(np.random.default_rng(stream), **platform)


def test_every_error_model_and_readout_is_scored(study):
    everyone = study[(study["size_bin"] == "all creators") & (study["platform"] == 0)]
    found = list(zip(everyone["errors"], everyone["estimator"], strict=True))
    pooled = ["plain", "pooled", "pooled, shared errors"]
    assert found == [
        ("independent", "plain"),
        *(("AR(1)", how) for how in pooled),
        *(("calibrated", how) for how in pooled),
        *(("factor 2.5", how) for how in pooled),
    ]
    assert (everyone["n_creators"] == 30).all()
    assert everyone["genre_coverage"].isna().sum() == 4
    assert not [column for column in study if column.endswith("_se")]


def test_plain_scores_are_those_of_the_estimator(study):
    panel, truth = first_platform(3, rho=0.4, **PLATFORM)
    plain = study[(study["estimator"] == "plain") & (study["size_bin"] == "all creators")]
    plain = plain[plain["platform"] == 0].set_index("errors")
    results = {
        "independent": borusyak_imputation_estimator(panel, weights="n_users", rho=0),
        "AR(1)": borusyak_imputation_estimator(panel, weights="n_users"),
        "calibrated": borusyak_imputation_estimator_calibrated(panel, weights="n_users"),
        "factor 2.5": borusyak_imputation_estimator_calibrated(
            panel, weights="n_users", calibration_factor=2.5
        ),
    }
    assert set(results) == set(ERRORS)
    for name, result in results.items():
        error = np.abs(result.ite["effect_hat"] - truth["creator_effects"])
        covered = np.mean(error <= 1.959963984540054 * result.ite["se"])
        assert plain.loc[name, "coverage"] == pytest.approx(covered)
        assert plain.loc[name, "mse"] == pytest.approx(np.mean(np.square(error)))
        assert plain.loc[name, "factor"] == pytest.approx(result.factor)


def test_pooling_beats_the_plain_estimates():
    study = rollout_study(8, errors=("AR(1)",), seed=3, rho=0.4, **PLATFORM)
    everyone = study[study["size_bin"] == "all creators"]
    mse = everyone.pivot(index="platform", columns="estimator", values="mse")
    lead = np.log(mse["plain"] / mse["pooled, shared errors"])
    assert lead.mean() > K * lead.sem()


def test_drift_is_what_is_added():
    found = drift_study(2, (0.0, 0.05), seed=4, **PLATFORM)
    panel, truth = first_platform(4, drift=0.05, **PLATFORM)
    result = borusyak_imputation_estimator(panel, weights="n_users")
    weight = result.ite["n_periods"] * truth["creator_n"]
    error = result.att - np.average(truth["creator_effects"], weights=weight)
    row = found[(found["drift"] == 0.05) & (found["platform"] == 0)].iloc[0]
    assert row["error"] == pytest.approx(error)
    assert row["noticed"] == (pretrend_test(panel, weights="n_users").p_value < 0.05)
    pairs = found.pivot(index="platform", columns="drift", values="error")
    assert (pairs[0.05] > pairs[0.0]).all()


def test_unknown_error_models_are_refused():
    with pytest.raises(ValueError, match=r"unknown error models \['magic'\]; known: independent"):
        rollout_study(1, errors=("magic",))


@pytest.mark.parametrize("observed", [1.0, 0.7])
def test_large_panels_are_as_large_as_asked(observed):
    found = rollout_seconds(6000, 12, observed=observed)
    assert found["rows"] == pytest.approx(6000 * observed, rel=0.05)
    assert (found["creators"], found["periods"]) == (500, 12)
    assert 350 < found["treated"] <= 400
    assert 0 < found["rank"] < 24
    assert 0 < found["seconds"] < 60
