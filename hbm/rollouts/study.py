"""Many simulated rollouts: do intervals of creators and genres keep their promise?"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hbm.baselines import no_pooling_estimates
from hbm.covariance import StructuredCovariance
from hbm.exact.correlated import (
    extract_correlated_estimates,
    extract_correlated_genres,
    fit_correlated_model,
)
from hbm.intervals import normal_factor
from hbm.replicate import replicate
from hbm.rollouts import RolloutEstimates, borusyak_imputation_estimator
from hbm.rollouts.panels import generate_rollout_data
from hbm.rollouts.placebos import borusyak_imputation_estimator_calibrated, pretrend_test
from hbm.validation import compare_estimators

#: What may be taken for the errors of single creators: name and settings.
ERRORS = {
    "independent": {"rho": 0.0},
    "AR(1)": {},
    "calibrated": {"calibration_factor": None},
    "factor 2.5": {"calibration_factor": 2.5},
}


def rollout_study(
    n_platforms: int,
    *,
    errors: Sequence[str] = tuple(ERRORS),
    pooled: Sequence[str] = ("AR(1)", "calibrated", "factor 2.5"),
    seed: int = 42,
    **platform,
) -> pd.DataFrame:
    """Score plain and pooled readouts of many simulated rollouts.

    Parameters
    ----------
    n_platforms : int
    errors : sequence of str
        Error models, of `ERRORS`.
    pooled : sequence of str
        Those that go on into the hierarchical model, once with their correlation and once
        without.
    seed : int
    **platform
        As for `hbm.generate_rollout_data`.

    Returns
    -------
    DataFrame
        ``platform, errors`` and the columns of `hbm.compare_estimators`, where ``estimator`` is
        ``plain``, ``pooled`` (correlation ignored) or ``pooled, shared errors``;
        ``genre_coverage, genre_width`` of the genres' means, and ``factor``.
    """
    unknown = {*errors, *pooled} - set(ERRORS)
    if unknown:
        raise ValueError(f"unknown error models {sorted(unknown)}; known: {', '.join(ERRORS)}")
    scores = replicate(
        _score_rollout, n_platforms, seed=seed, errors=errors, pooled=pooled, **platform
    )
    for place, frame in enumerate(scores):
        frame.insert(0, "platform", place)
    return pd.concat(scores, ignore_index=True)


def _score_rollout(rng, *, errors, pooled, **platform) -> pd.DataFrame:
    panel, truth = generate_rollout_data(rng, **platform)
    creators = panel.groupby("creator_id").agg(genre=("genre", "first"), n_total=("n_users", "sum"))
    scores = []
    for name in errors:
        settings = {"weights": "n_users", **ERRORS[name]}
        calibrated = "calibration_factor" in settings
        estimate = borusyak_imputation_estimator
        if calibrated:
            estimate = borusyak_imputation_estimator_calibrated
        result = estimate(panel, **settings)
        summaries = result.ite.join(creators, on="creator_id")
        summaries["genre_idx"] = pd.factorize(summaries["genre"], sort=True)[0]
        readouts, genres = {"plain": no_pooling_estimates(summaries)}, {}
        if name in pooled:
            for how, covariance in _covariances(result).items():
                idata = fit_correlated_model(summaries, covariance)
                readouts[how] = extract_correlated_estimates(idata, summaries)
                genres[how] = _genre_scores(extract_correlated_genres(idata), truth)
        found = compare_estimators(readouts, truth).assign(errors=name, factor=result.factor)
        empty = (np.nan, np.nan)
        found[["genre_coverage", "genre_width"]] = [
            genres.get(how, empty) for how in found["estimator"]
        ]
        scores.append(found)
    scores = pd.concat(scores, ignore_index=True)
    return scores.drop(columns=[c for c in scores if c.endswith("_se")])


def _covariances(result: RolloutEstimates) -> dict[str, StructuredCovariance]:
    ite = result.ite
    return {
        "pooled": StructuredCovariance.independent(ite["creator_id"], ite["se"]),
        "pooled, shared errors": result.covariance,
    }


def _genre_scores(genres: pd.DataFrame, truth) -> tuple[float, float]:
    true = pd.Series(truth["genre_effects"], index=list(truth["genres"]))
    true = true.loc[genres["genre"]].to_numpy()
    held = (genres["lower"] <= true) & (true <= genres["upper"])
    return held.mean(), (genres["upper"] - genres["lower"]).mean()


def drift_study(
    n_platforms: int, drifts: Sequence[float], *, leads: int = 3, seed: int = 42, **platform
) -> pd.DataFrame:
    """Give creators who will be treated a trend of their own, and see who notices.

    Parameters
    ----------
    n_platforms : int
        Of each drift.
    drifts : sequence of float
        In dollars per user and period.
    leads : int
        As for `hbm.pretrend_test`.
    seed : int
    **platform
        As for `hbm.generate_rollout_data`.

    Returns
    -------
    DataFrame
        One row a drift and platform: ``drift, platform, error`` (of the overall effect),
        ``covered`` (by its 95% interval), ``noticed`` (pre-trend test at 5%).
    """
    frames = []
    for drift in drifts:
        rows = replicate(_score_drift, n_platforms, seed=seed, drift=drift, leads=leads, **platform)
        frames.append(pd.DataFrame(rows).assign(drift=drift, platform=range(n_platforms)))
    return pd.concat(frames, ignore_index=True)


def _score_drift(rng, *, drift, leads, **platform) -> dict[str, float]:
    panel, truth = generate_rollout_data(rng, drift=drift, **platform)
    result = borusyak_imputation_estimator(panel, weights="n_users")
    weight = result.ite["n_periods"] * truth["creator_n"]
    error = result.att - np.average(truth["creator_effects"], weights=weight)
    return {
        "error": error,
        "covered": float(abs(error) <= normal_factor() * result.att_se),
        "noticed": float(pretrend_test(panel, leads, weights="n_users").p_value < 0.05),
    }


def rollout_seconds(
    n_rows: int, n_periods: int, *, observed: float = 1.0, seed: int = 42
) -> dict[str, float]:
    """Time the imputation estimator on a large panel.

    Parameters
    ----------
    n_rows : int
        Of the balanced panel, about.
    n_periods : int
        Creators are treated from the second half on.
    observed : float
        Share of the rows that are there; the others are missing at random.
    seed : int

    Returns
    -------
    dict
        ``rows, creators, periods``; ``treated`` creators; ``rank`` of what their errors share;
        ``seconds`` from the table to everything that `hbm.RolloutEstimates` holds.
    """
    rng = np.random.default_rng(seed)
    panel, _ = generate_rollout_data(
        rng,
        n_creators_per_genre=max(1, n_rows // (5 * n_periods)),
        n_periods=n_periods,
        rollout=(n_periods // 2 + 1, n_periods),
        rho=0.6,
    )
    if observed < 1:
        panel = panel[rng.random(len(panel)) < observed]
    start = time.perf_counter()
    result = borusyak_imputation_estimator(
        panel, weights="n_users", gaps="allow", unidentified="exclude"
    )
    return {
        "rows": len(panel),
        "creators": panel["creator_id"].nunique(),
        "periods": n_periods,
        "treated": len(result.ite),
        "rank": result.covariance.rank,
        "seconds": time.perf_counter() - start,
    }
