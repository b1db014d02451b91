"""Can the posterior be trusted as a readout? Estimates against a truth that is known.

On many platforms instead of one: `hbm.studies`. What can be checked where no truth is known
(predictive checks, creators left out) stands in `hbm.predictive`, users held out in `hbm.halves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from hbm.baselines import no_pooling_estimates
from hbm.data import (
    require_columns,
)
from hbm.gaussian import shrinkage_factor
from hbm.intervals import LEVEL, normal_factor, share_error

#: Bins of creators by their users, ``n_total``: name and range [low, high).
SIZE_BINS = {
    "all creators": (0, np.inf),
    "n < 100": (0, 100),
    "100 ≤ n < 500": (100, 500),
    "n ≥ 500": (500, np.inf),
}

#: Bins of creators by |tau - mu_genre| / sigma_creator: name and range [low, high).
DISTANCE_BINS = {"< 1 sd": (0, 1), "1 to 2 sd": (1, 2), "≥ 2 sd": (2, np.inf)}

_SCORED = ("effect_hat", "ci_lower", "ci_upper", "n_total")

#: How many of the creators with the largest estimates `selection_scores` selects.
SELECTED = (10, 25, 50)

#: Levels at which coverage is scored besides `LEVEL`, where estimates carry `pit`.
INNER_LEVELS = (0.5, 0.8)


def _arrays(**named) -> list[np.ndarray]:
    """Return the values as float arrays of one length, without NaN."""
    arrays = {name: np.asarray(values, float) for name, values in named.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the lengths must agree: {shapes}")
    for name, array in arrays.items():
        if not array.size:
            raise ValueError(f"{name}: there are no values")
        if np.isnan(array).any():
            raise ValueError(f"{name}: {np.isnan(array).sum()} of {array.size} values are NaN")
    return list(arrays.values())


def compute_mse(estimates, truth) -> float:
    """Mean squared error; values are matched by position (by id: `join_truth`)."""
    estimates, truth = _arrays(estimates=estimates, truth=truth)
    return float(np.mean(np.square(estimates - truth)))


def compute_coverage(ci_lower, ci_upper, truth) -> float:
    """Share of intervals, ends included, that hold the truth; matched by position."""
    lower, upper, truth = _arrays(ci_lower=ci_lower, ci_upper=ci_upper, truth=truth)
    if (lower > upper).any():
        raise ValueError(f"ci_lower lies above ci_upper in {(lower > upper).sum()} intervals")
    return float(np.mean((lower <= truth) & (truth <= upper)))


def compute_avg_interval_width(ci_lower, ci_upper) -> float:
    """Mean width of the intervals, in the unit of the effects; matched by position."""
    lower, upper = _arrays(ci_lower=ci_lower, ci_upper=ci_upper)
    return float(np.mean(upper - lower))


def join_truth(estimates: pd.DataFrame, truth: Mapping[str, Any]) -> pd.DataFrame:
    """Return the frame with ``effect_true`` and ``genre_mean_true`` added, joined by id.

    Parameters
    ----------
    estimates : DataFrame
        Estimates or summaries, one row a creator in any order; the order is kept.
    truth : dict
        From `generate_experiment_data`.

    Raises
    ------
    ValueError
        If an id is missing, unknown or twice there, on either side; the message names the first.
    """
    require_columns(estimates, ("creator_id",), "estimates")
    genre_mean = np.asarray(truth["genre_effects"])[truth["creator_genre"]]
    known = pd.DataFrame(
        {"effect_true": truth["creator_effects"], "genre_mean_true": genre_mean},
        index=pd.Index(np.asarray(truth["creator_id"], dtype=object)),
    )
    ids = pd.Index(estimates["creator_id"].to_numpy(dtype=object))
    problems = {
        "twice in the estimates": ids[ids.duplicated()].unique(),
        "twice in the truth": known.index[known.index.duplicated()].unique(),
        "in the truth only": known.index.difference(ids, sort=False),
        "in the estimates only": ids.difference(known.index, sort=False),
    }
    found = [
        f"{len(those)} creator{'s' * (len(those) > 1)} {where} ({', '.join(map(repr, those[:5]))}"
        f"{', …' * (len(those) > 5)})"
        for where, those in problems.items()
        if len(those)
    ]
    if found:
        raise ValueError("estimates and truth do not match by creator_id: " + "; ".join(found))
    return estimates.assign(**{name: known[name].loc[ids].to_numpy() for name in known})


def oracle_estimates(
    summaries: pd.DataFrame,
    truth: Mapping[str, Any],
    grouping: bool = True,
    *,
    known_se: bool = True,
) -> pd.DataFrame:
    """Pool with the true hyperparameters: the floor that no estimator can get below.

    Parameters
    ----------
    summaries : DataFrame
        One row a creator.
    truth : dict
        From `generate_experiment_data`.
    grouping : bool
        True: shrink to the true genre means, with the true sigma_creator. False: shrink to the
        platform's mean, with the sd of all effects (the best that can be done without genres).
    known_se : bool
        Take the standard error from the true ``sigma_obs`` and ``n_treatment, n_control``;
        False takes ``se`` as estimated.

    Returns
    -------
    DataFrame
        Estimates: ``creator_id, genre, effect_hat, se, ci_lower, ci_upper, n_total, p_positive,
        shrinkage``.
    """
    joined = join_truth(summaries, truth)
    mean = joined["genre_mean_true"].to_numpy(float)
    sigma = float(truth["sigma_creator"])
    if not grouping:
        sigma = float(np.hypot(sigma, mean.std()))
        mean = np.full_like(mean, mean.mean())
    se = joined["se"].to_numpy(float)
    if known_se:
        require_columns(summaries, ("n_treatment", "n_control"), "summaries")
        se = truth["sigma_obs"] * np.sqrt(1 / joined["n_treatment"] + 1 / joined["n_control"])
        se = se.to_numpy(float)
    pull = shrinkage_factor(se, np.array([sigma]))[0]
    # Without any spread all is known: exactly the mean, an interval of width 0 around it.
    effect = mean + (1 - pull) * (joined["effect_hat"].to_numpy(float) - mean)
    sd = se * np.sqrt(1 - pull)
    half = normal_factor(LEVEL) * sd
    known = np.where(effect > 0, np.inf, -np.inf)
    return (
        no_pooling_estimates(summaries)
        .drop(columns="p_value")
        .assign(effect_hat=effect, se=sd, ci_lower=effect - half, ci_upper=effect + half)
        .assign(p_positive=ndtr(np.divide(effect, sd, out=known, where=sd > 0)), shrinkage=pull)
    )


def compare_estimators(
    estimates: Mapping[str, pd.DataFrame], truth: Mapping[str, Any]
) -> pd.DataFrame:
    """Score estimators against the truth of one platform, by size of creator.

    Parameters
    ----------
    estimates : dict of str to DataFrame
        Estimates by the estimator's name.
    truth : dict
        From `generate_experiment_data`.

    Returns
    -------
    DataFrame
        One row an estimator and bin of `SIZE_BINS`: ``estimator, size_bin, n_creators, mse,
        mse_se, bias, coverage, coverage_se, width``; the bias is the mean of estimate minus
        truth, and a bin without creators has NaN. Where all estimates carry ``pit``, the
        probability they give to effects up to the true one, also ``coverage_50`` and
        ``coverage_80``, of central intervals. The ``*_se`` are Monte Carlo errors over the
        creators of this one platform, taken as independent: they say nothing about other
        platforms (for those: `platform_study`).
    """
    return pd.DataFrame(
        [
            {"estimator": name, "size_bin": size_bin} | _scores(chosen)
            for name, joined in _joined(estimates, truth).items()
            for size_bin, chosen in _by_size(joined)
        ]
    )


def coverage_by_distance(
    estimates: Mapping[str, pd.DataFrame], truth: Mapping[str, Any]
) -> pd.DataFrame:
    """Coverage by how far a creator's effect lies from its genre's mean.

    95% is an average over creators: an interval that was pulled toward the genre misses those
    that are unlike their genre more often, and the others less often.

    Parameters
    ----------
    estimates : dict of str to DataFrame
    truth : dict

    Returns
    -------
    DataFrame
        One row a bin of |tau - mu_genre| / sigma_creator (`DISTANCE_BINS`), estimator and bin of
        `SIZE_BINS`: ``distance_bin, estimator, size_bin, n_creators, coverage, coverage_se``.
    """
    if not truth["sigma_creator"] > 0:
        raise ValueError("distances from the genre's mean need sigma_creator > 0 in the truth")
    rows = []
    everything = _joined(estimates, truth)
    for distance_bin, (near, far) in DISTANCE_BINS.items():
        for name, joined in everything.items():
            gap = np.abs(joined["effect_true"] - joined["genre_mean_true"])
            distance = gap / truth["sigma_creator"]
            for size_bin, chosen in _by_size(joined[(distance >= near) & (distance < far)]):
                keys = {"distance_bin": distance_bin, "estimator": name, "size_bin": size_bin}
                rows.append(keys | _scores(chosen))
    return pd.DataFrame(rows).drop(columns=["mse", "mse_se", "bias", "width"])


def selection_scores(
    estimates: Mapping[str, pd.DataFrame],
    truth: Mapping[str, Any],
    *,
    sizes: Sequence[int] = SELECTED,
) -> pd.DataFrame:
    """Score what happens to the creators with the largest estimates of all.

    Parameters
    ----------
    estimates : dict of str to DataFrame
        Estimates by the estimator's name.
    truth : dict
        From `generate_experiment_data`.
    sizes : sequence of int
        Numbers of creators to select; equal estimates are taken in the order of the frame.

    Returns
    -------
    DataFrame
        One row an estimator and number of selected creators: ``estimator, selected``; ``bias``,
        the mean of estimate minus truth among them (the winner's curse); ``coverage`` of their
        intervals; ``wrong_sign``, the share of them whose effect is below 0; ``true_effect``,
        their mean effect; ``regret``, by how much the mean effect of the truly best is larger.
    """
    rows = []
    for name, joined in _joined(estimates, truth).items():
        best = np.sort(joined["effect_true"])[::-1]
        order = np.argsort(-joined["effect_hat"], kind="stable")
        for size in sizes:
            if not 0 < size <= len(order):
                raise ValueError(f"{size} of {len(order)} creators cannot be selected")
            top = joined[order[:size]]
            true = top["effect_true"]
            rows.append(
                {
                    "estimator": name,
                    "selected": size,
                    "bias": float(np.mean(top["effect_hat"] - true)),
                    "coverage": compute_coverage(top["ci_lower"], top["ci_upper"], true),
                    "wrong_sign": float(np.mean(true < 0)),
                    "true_effect": float(true.mean()),
                    "regret": float(best[:size].mean() - true.mean()),
                }
            )
    return pd.DataFrame(rows)


def _joined(estimates: Mapping[str, pd.DataFrame], truth) -> dict[str, np.ndarray]:
    """Return what is scored as a structured array for each estimator."""
    if not estimates:
        raise ValueError("there is no estimator to compare")
    columns = [*_SCORED, "effect_true", "genre_mean_true"]
    columns += ["pit"] if all("pit" in frame for frame in estimates.values()) else []
    joined = {}
    for name, frame in estimates.items():
        require_columns(frame, _SCORED, f"estimates of {name!r}")
        _arrays(n_total=frame["n_total"])
        joined[name] = join_truth(frame, truth)[columns].to_records(index=False)
    return joined


def _by_size(joined: np.ndarray):
    for size_bin, (low, high) in SIZE_BINS.items():
        yield size_bin, joined[(joined["n_total"] >= low) & (joined["n_total"] < high)]


def _scores(joined: np.ndarray) -> dict[str, float]:
    n = len(joined)
    inner = [level for level in INNER_LEVELS if "pit" in joined.dtype.names]
    if not n:
        names = ["mse", "mse_se", "bias", "coverage", "coverage_se", "width"]
        names += [f"coverage_{100 * level:.0f}" for level in inner]
        return {"n_creators": 0} | dict.fromkeys(names, np.nan)
    error = joined["effect_hat"] - joined["effect_true"]
    bounds = joined["ci_lower"], joined["ci_upper"]
    coverage = compute_coverage(*bounds, joined["effect_true"])
    return {
        "n_creators": n,
        "mse": compute_mse(joined["effect_hat"], joined["effect_true"]),
        "mse_se": float(np.std(error**2, ddof=1) / np.sqrt(n)) if n > 1 else np.nan,
        "bias": float(error.mean()),
        "coverage": coverage,
        "coverage_se": float(share_error(n * coverage, n)),
        "width": compute_avg_interval_width(*bounds),
    } | {
        f"coverage_{100 * level:.0f}": float(np.mean(np.abs(joined["pit"] - 0.5) <= level / 2))
        for level in inner
    }


def comparison_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Lay out a comparison for reading: measures as rows, estimators as columns, text cells.

    Parameters
    ----------
    comparison : DataFrame
        From `compare_estimators` or `summarize_study`.

    Returns
    -------
    DataFrame
        Mean squared error by bin of size, coverage and mean width over all creators; cells like
        ``0.0582 ± 0.0041`` (Monte Carlo error), ready for ``.to_markdown()``.
    """
    overall = next(iter(SIZE_BINS))
    level = f"{100 * LEVEL:g}% intervals"
    rows = {f"MSE, {size_bin}": ("mse", size_bin, 4) for size_bin in SIZE_BINS}
    rows |= {
        f"Coverage of {level}": ("coverage", overall, 3),
        f"Mean width of {level}": ("width", overall, 3),
    }
    cells = comparison.set_index(["estimator", "size_bin"])

    def cell(estimator: str, column: str, size_bin: str, digits: int) -> str:
        row = cells.loc[(estimator, size_bin)]
        if np.isnan(row[column]):
            return "–"
        error = row.get(f"{column}_se", np.nan)
        return f"{row[column]:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")

    return pd.DataFrame(
        {
            name: [cell(name, *row) for row in rows.values()]
            for name in comparison["estimator"].unique()
        },
        index=pd.Index(rows, name="measure"),
    )
