"""Platforms whose genres move, many of them: what modelling the motion gains, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from hbm.drift import STATIC, AutoRegression, RandomWalk, fit_drift_model
from hbm.drift.future import log_densities
from hbm.drift.process import simulate
from hbm.gaussian import Moments, mixture_moments
from hbm.intervals import LEVEL, normal_factor
from hbm.replicate import replicate
from hbm.studies import simulate_summaries
from hbm.validation import compute_mse, join_truth

#: What the models are scored on: effects of all creators, genre means of the last month with
#: data and of the month after it, and effects of that month's creators, who have no data yet.
TARGETS = ("creators", "genres now", "genres next month", "new creators")

#: Models by name: the process, and the number of last months that it is fitted to, if not all.
MODELS: dict[str, tuple] = {
    "static": (STATIC, None),
    "static, last six months": (STATIC, 6),
    "random walk": (RandomWalk(), None),
}


def _none(rng, n_periods, n_genres, size):
    return np.zeros((n_periods, n_genres))


def _walk(rng, n_periods, n_genres, size):
    return simulate(RandomWalk(), np.array([[size]]), np.ones(n_periods, int), n_genres, rng)[0]


def _autoregression(rng, n_periods, n_genres, size):
    process = AutoRegression(rho=0.8)
    return simulate(process, np.array([[size]]), np.ones(n_periods, int), n_genres, rng)[0]


def _season(rng, n_periods, n_genres, size):
    phase = rng.uniform(0, 2 * np.pi, n_genres)
    return size * np.sqrt(2) * np.sin(2 * np.pi * np.arange(n_periods)[:, None] / 12 + phase)


def _jump(rng, n_periods, n_genres, size):
    when = rng.integers(1, n_periods, n_genres)
    return np.where(np.arange(n_periods)[:, None] >= when, rng.normal(0, size, n_genres), 0.0)


def _together(rng, n_periods, n_genres, size):
    return np.repeat(_walk(rng, n_periods, 1, size), n_genres, axis=1)


#: How genres can move: name, and function of (rng, n_periods, n_genres, size). The size is the
#: standard deviation of a month's step (walks), of the genre around its mean (autoregression,
#: season), or of the jump.
MOTIONS: dict[str, Callable[..., np.ndarray]] = {
    "none": _none,
    "random walk": _walk,
    "autoregression": _autoregression,
    "season": _season,
    "one jump": _jump,
    "all genres together": _together,
}


def simulate_drift(
    seed: int | np.random.Generator = 42,
    *,
    n_periods: int = 25,
    motion: str = "random walk",
    size: float = 0.1,
    **platform,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate a platform whose experiments take place in different months.

    Each creator runs one experiment, in a month drawn so that the creators of a genre are spread
    evenly; its effect is that of `simulate_summaries` plus how far its genre has moved.

    Parameters
    ----------
    seed : int or Generator
    n_periods : int
        Months, counted from 0.
    motion : str
        One of `MOTIONS`.
    size : float
        Of the motion, in dollars per user.
    **platform
        As for `simulate_summaries`.

    Returns
    -------
    summaries : DataFrame
        With a column ``period``.
    truth : dict
        As there; ``creator_effects`` with the motion, and ``paths`` (genre, period), the mean of
        each genre in each month. ``genre_effects`` are the genres' levels.
    """
    if motion not in MOTIONS:
        raise ValueError(f"unknown motion {motion!r}; known: {', '.join(MOTIONS)}")
    rng = np.random.default_rng(seed)
    summaries, truth = simulate_summaries(rng, **platform)
    idx, n_genres = truth["creator_genre"], len(truth["genres"])
    moved = MOTIONS[motion](rng, n_periods, n_genres, size)
    period = np.empty(len(idx), int)
    for g in range(n_genres):
        own = np.flatnonzero(idx == g)
        period[own] = rng.permutation(np.arange(len(own)) % n_periods)
    shift = moved[period, idx]
    truth |= {
        "creator_effects": truth["creator_effects"] + shift,
        "paths": truth["genre_effects"][:, None] + moved.T,
    }
    return summaries.assign(effect_hat=summaries["effect_hat"] + shift, period=period), truth


def forecast_study(
    n_platforms: int,
    *,
    models: Mapping[str, tuple] | None = None,
    seed: int = 42,
    **platform,
) -> pd.DataFrame:
    """Score models on many simulated platforms, the last month of which they have not seen.

    Parameters
    ----------
    n_platforms : int
    models : dict, optional
        By name, the process, and the number of last months that it is given or None for all;
        `MODELS` when omitted.
    seed : int
        Each platform has its own stream, whatever the number of platforms.
    **platform
        As for `simulate_drift`.

    Returns
    -------
    DataFrame
        One row a platform, model and target of `TARGETS`: ``platform, model, target, mse,
        coverage, width`` (of a normal interval with the posterior's standard deviation), ``elpd``
        (mean log density of the new creators' estimates), and ``quadrature_error``, the largest
        of the fit. A model that is given some months only is not scored on all creators.
    """
    models = dict(MODELS if models is None else models)
    scored = replicate(_score, n_platforms, seed=seed, models=models, platform=platform)
    return pd.concat(
        [pd.DataFrame(rows).assign(platform=place) for place, rows in enumerate(scored)],
        ignore_index=True,
    )


def summarize_forecasts(study: pd.DataFrame, reference: str = "static") -> pd.DataFrame:
    """Average a study over its platforms, with Monte Carlo errors by platform.

    Parameters
    ----------
    study : DataFrame
        From `forecast_study`.
    reference : str
        The model that others are compared with, on the same platforms.

    Returns
    -------
    DataFrame
        One row a model and target: ``model, target, n_platforms``; ``mse, coverage, width`` and
        ``ratio`` (mean mse divided by the reference's), ``gain`` (of elpd over the reference),
        each with its Monte Carlo error ``*_se``; that of the ratio is of the mean of
        mse - ratio x reference's mse, in units of the reference's mean.
    """
    rows = []
    for target, part in study.groupby("target", sort=False):
        wide = part.pivot(index="platform", columns="model")
        other = wide.xs(reference, axis=1, level="model") if reference in wide["mse"] else None
        for model in part["model"].unique():
            own = wide.xs(model, axis=1, level="model")
            row = {"model": model, "target": target, "n_platforms": len(own)}
            for name in ("mse", "coverage", "width"):
                row |= {name: own[name].mean(), f"{name}_se": own[name].sem()}
            if other is not None:
                scale, gain = other["mse"].mean(), own["elpd"] - other["elpd"]
                ratio = row["mse"] / scale
                row |= {
                    "ratio": ratio,
                    "ratio_se": (own["mse"] - ratio * other["mse"]).sem() / scale,
                }
                row |= {"gain": gain.mean(), "gain_se": gain.sem()}
            rows.append(row)
    return pd.DataFrame(rows)


def fit_seconds(summaries: pd.DataFrame, models: Mapping[str, Any], repeats: int = 3):
    """Return the median seconds of a fit, of its estimates, paths and a forecast, by process.

    Parameters
    ----------
    summaries : DataFrame
    models : dict
        Processes by name.
    repeats : int

    Returns
    -------
    DataFrame
        ``model, seconds``.
    """

    def timed(process):
        start = perf_counter()
        fit = fit_drift_model(summaries, process=process)
        _ = fit.estimates, fit.paths, fit.forecast()
        return perf_counter() - start

    rows = [(name, np.median([timed(p) for _ in range(repeats)])) for name, p in models.items()]
    return pd.DataFrame(rows, columns=["model", "seconds"])


def _score(rng, *, models, platform) -> list[dict[str, Any]]:
    """Score all models on one platform."""
    summaries, truth = simulate_drift(rng, **platform)
    summaries = join_truth(summaries, truth)
    now = summaries["period"].max() - 1
    rows = []
    for name, (process, months) in models.items():
        for row in _scores(summaries, truth["paths"], now, process, months):
            rows.append({"model": name} | row)
    return rows


def _scores(summaries, paths, now, process, months):
    """Yield the scores of one model."""
    period = summaries["period"]
    past, new = summaries[period <= now], summaries[period > now]
    given = past if months is None else past[past["period"] > now - months]
    fit = fit_drift_model(given, process=process)
    weight = fit.posterior.weight
    same = {"quadrature_error": max(fit.posterior.errors.values())}
    if months is None:
        scores = _against(fit.effect_moments(), weight, past["effect_true"].to_numpy())
        yield {"target": "creators"} | scores | same
    genres = fit.posterior.paths(np.array([now, now + 1]))
    for place, target in enumerate(("genres now", "genres next month")):
        means = Moments(*(part[:, place, :-1] for part in genres))
        yield {"target": target} | _against(means, weight, paths[:, now + place]) | same
    effects = fit.predictive_moments(new["genre"], new["period"], 0.0)
    estimates = effects._replace(var=effects.var + np.square(new["se"].to_numpy()))
    same["elpd"] = log_densities(estimates, weight, new["effect_hat"].to_numpy()).mean()
    scores = _against(effects, weight, new["effect_true"].to_numpy())
    yield {"target": "new creators"} | scores | same


def _against(moments: Moments, weight: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Score a mixture of normals, (node, unit), against the truth, (unit,)."""
    overall = mixture_moments(moments, weight)
    below = weight @ ndtr((true - moments.mean) / np.sqrt(moments.var))
    return {
        "mse": compute_mse(overall.mean, true),
        "coverage": float(np.mean(np.abs(below - 0.5) <= LEVEL / 2)),
        "width": float(2 * normal_factor() * np.sqrt(overall.var).mean()),
        "elpd": np.nan,
    }
