"""Leave the future out: how well the past of a platform predicts its next period.

Everything is estimated anew from the past alone, hyperparameters too, so that a forecast cannot
know what it is scored by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import norm

from hbm.drift import DriftFit, describe_mixtures, fit_drift_model, validate_periods
from hbm.drift.process import Process, RandomWalk
from hbm.gaussian import Moments, mixture_cdf
from hbm.priors import Priors


@dataclass(frozen=True)
class Future:
    """What `leave_future_out` found.

    Attributes
    ----------
    periods : DataFrame
        One row a predicted period: ``period, n_creators``; ``elpd``, the log density of all its
        estimates together given all earlier periods; ``elpd_summed``, the sum of the log densities
        of each by itself.
    genres : DataFrame
        Forecasts of the genre means, one row a predicted period and genre with a past:
        ``genre, period, mean, se, lower, upper, p_positive``.
    estimates : DataFrame
        Forecasts of the estimates, one row a predicted creator: ``creator_id, genre, period,
        effect_hat, mean, se, lower, upper`` (of the forecast), ``elpd``, and ``pit``, the
        probability of a smaller estimate.
    """

    periods: pd.DataFrame
    genres: pd.DataFrame
    estimates: pd.DataFrame

    @property
    def elpd(self) -> float:
        """Log density of all predicted periods, each given the ones before."""
        return float(self.periods["elpd"].sum())


def leave_future_out(
    summaries: pd.DataFrame,
    *,
    period: str = "period",
    process: Process = RandomWalk(),
    priors: Priors = Priors(),
    first: int | None = None,
) -> Future:
    """Predict each period from the ones before, with a new fit for each.

    Parameters
    ----------
    summaries, period, process, priors
        As for `fit_drift_model`.
    first : int, optional
        Number of periods with data before the first that is predicted; half of them if omitted.

    Returns
    -------
    Future

    Raises
    ------
    DataError
        If the summaries break a rule.
    ValueError
        If there is no period left to be predicted, or none before it.
    """
    when = validate_periods(summaries, period)
    known = np.unique(when)
    first = len(known) // 2 if first is None else first
    if not 0 < first < len(known):
        raise ValueError(
            f"of {len(known)} periods with data, {first} cannot be the past of the first one "
            "predicted: first must be at least 1 and leave a period"
        )
    names = summaries["genre" if "genre" in summaries else "genre_idx"].to_numpy(dtype=object)
    settings = {"period": period, "process": process, "priors": priors}

    def fitted(before: int) -> DriftFit:
        past = summaries.assign(genre=names)[when < before]
        idx = np.unique(past["genre_idx"], return_inverse=True)[1]
        return fit_drift_model(past.assign(genre_idx=idx), **settings)

    parts: list[tuple] = []
    fit = fitted(known[first])
    for now, then in zip(known[first:], [*known[first + 1 :], known[-1] + 1], strict=True):
        new = summaries.assign(genre=names)[when == now]
        genres, estimates = _forecast(fit, new, now)
        following = fitted(then)
        row = {
            "period": now,
            "n_creators": len(new),
            "elpd": following.log_evidence - fit.log_evidence,
            "elpd_summed": estimates["elpd"].sum(),
        }
        parts.append((pd.DataFrame([row]), genres, estimates))
        fit = following
    return Future(*(pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True)))


def compare_futures(futures: Mapping[str, Future]) -> pd.DataFrame:
    """Compare models by how well they predicted.

    Parameters
    ----------
    futures : dict of str to Future
        By model, of the same data.

    Returns
    -------
    DataFrame
        One row a model, the best first: ``model, elpd``; ``elpd_diff``, the difference to the
        best; ``dse``, the standard error of the difference over the predicted periods, whose
        scores are uncorrelated given the past. It is a rough one where they are few.
    """
    scores = pd.DataFrame(
        {name: f.periods.set_index("period")["elpd"] for name, f in futures.items()}
    )
    if scores.isna().any(axis=None):
        raise ValueError("the models predicted different periods")
    best = scores.sum().idxmax()
    away = scores.sub(scores[best], axis=0)
    frame = pd.DataFrame(
        {
            "model": scores.columns,
            "elpd": scores.sum().to_numpy(),
            "elpd_diff": away.sum().to_numpy(),
            "dse": (away.std() * np.sqrt(len(away))).to_numpy(),
        }
    )
    return frame.sort_values("elpd", ascending=False, ignore_index=True)


def log_densities(moments: Moments, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the log densities of mixtures of normals, (node, unit), at `x`, shape (unit,)."""
    log_density = norm.logpdf(x, moments.mean, np.sqrt(moments.var))
    return logsumexp(log_density, axis=0, b=weight[:, None])


def _forecast(fit: DriftFit, new: pd.DataFrame, now: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict the means of the genres and the estimates of the creators of a period."""
    known, weight = set(fit.genres), fit.posterior.weight
    genre = [g if g in known else None for g in new["genre"]]
    moments = fit.predictive_moments(genre, np.full(len(new), now), new["se"].to_numpy(float))
    effect = new["effect_hat"].to_numpy(float)
    found = describe_mixtures(moments, weight)
    estimates = pd.DataFrame(
        {
            "creator_id": new["creator_id"].to_numpy(),
            "genre": new["genre"].to_numpy(),
            "period": now,
            "effect_hat": effect,
            **{name: found[name] for name in ("mean", "se", "lower", "upper")},
            "elpd": log_densities(moments, weight, effect),
            "pit": mixture_cdf(moments, effect, weight),
        }
    )
    return fit.path_frame(np.array([now])), estimates
