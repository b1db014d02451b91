"""Platforms whose genres move, many of them: what modelling the motion gains, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from hbm.drift import STATIC, AutoRegression, RandomWalk, fit_drift_model
from hbm.drift.process import simulate
from hbm.gaussian import Moments, mixture_moments
from hbm.intervals import LEVEL, normal_factor
from hbm.priors import Fixed, Normal, Priors
from hbm.replicate import replicate
from hbm.studies import simulate_summaries
from hbm.validation import compute_mse, join_truth

#: What the estimators are scored on: effects of all creators, genre means of the last month with
#: data, genre means of the month after it, effects of its creators before they have any data,
#: and their estimates.
TARGETS = ("creators", "genres now", "genres next", "new creators", "next estimates")


def _none(rng, n_periods, n_genres, size):
    return np.zeros((n_periods, n_genres))


def _walk(rng, n_periods, n_genres, size):
    return simulate(RandomWalk(), np.array([[size]]), np.ones(n_periods, int), n_genres, rng)[0]


def _autoregression(rng, n_periods, n_genres, size):
    parameters = np.array([[size, 0.8]])
    return simulate(AutoRegression(), parameters, np.ones(n_periods, int), n_genres, rng)[0]


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


#: Models by name: what is fitted to the past.
MODELS: dict[str, dict[str, Any]] = {
    "static": {"process": STATIC},
    "last six months": {"process": STATIC, "months": 6},
    "each month by itself": {"process": AutoRegression(rho=Fixed(0))},
    "random walk": {"process": RandomWalk()},
}


def drift_study(
    n_platforms: int,
    *,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    oracle: bool = False,
    halves: bool = False,
    seed: int = 42,
    **platform,
) -> pd.DataFrame:
    """Score models on many simulated platforms, the last month of which they have not seen.

    Parameters
    ----------
    n_platforms : int
    models : dict, optional
        By name, ``process`` and optionally ``months``, the number of last months that it is
        given; `MODELS` when omitted.
    oracle : bool
        Score a random walk with the true hyperparameters too; the motion has to be one.
    halves : bool
        Score how well the first half of the months predicts the second, too.
    seed : int
        Each platform has its own stream, whatever the number of platforms.
    **platform
        As for `simulate_drift`.

    Returns
    -------
    DataFrame
        One row a platform, model and target of `TARGETS`: ``platform, model, target, n, mse,
        coverage, width``. The width is that of a normal interval with the posterior's standard
        deviation. A model that is given some months only is not scored on the creators. With
        `halves` there is a target ``second half`` with ``elpd``, the log density of the second half
        of the months given the first; ``quadrature_error`` is the largest of each fit.
    """
    models = MODELS if models is None else models
    settings = {"models": dict(models), "oracle": oracle, "halves": halves, "platform": platform}
    scored = replicate(_score, n_platforms, seed=seed, **settings)
    frames = [frame.assign(platform=place) for place, frame in enumerate(scored)]
    study = pd.concat(frames, ignore_index=True)
    study.insert(0, "platform", study.pop("platform"))
    return study


def summarize_drift(study: pd.DataFrame) -> pd.DataFrame:
    """Average a study over its platforms.

    Returns
    -------
    DataFrame
        One row a model and target: ``model, target, n_platforms``, and each measure with its
        Monte Carlo error by platform, ``*_se``.
    """
    groups = study.drop(columns="platform").groupby(["model", "target"], sort=False)
    mean, error = groups.mean(), groups.sem()
    summary = pd.DataFrame({"n_platforms": groups.size()})
    for name in mean.columns.drop(["n", "quadrature_error"]):
        summary[name], summary[f"{name}_se"] = mean[name], error[name]
    return summary.reset_index()


def relative_mse(study: pd.DataFrame, reference: str = "static") -> pd.DataFrame:
    """Divide each model's mean squared error by that of a reference on the same platforms.

    Returns
    -------
    DataFrame
        One row a model and target: ``model, target, ratio`` of the means over platforms, and its
        Monte Carlo error ``ratio_se`` (that of the mean of mse - ratio x reference's mse, in
        units of the reference's mean).
    """
    rows = []
    for target, part in study[study["target"] != "second half"].groupby("target", sort=False):
        wide = part.pivot(index="platform", columns="model", values="mse")
        for model in part["model"].unique():
            ratio = wide[model].mean() / wide[reference].mean()
            away = wide[model] - ratio * wide[reference]
            row = {"model": model, "target": target, "ratio": ratio}
            rows.append(row | {"ratio_se": away.sem() / wide[reference].mean()})
    return pd.DataFrame(rows)


def _score(rng, *, models, oracle, halves, platform) -> pd.DataFrame:
    """Score all models on one platform."""
    summaries, truth = simulate_drift(rng, **platform)
    summaries = join_truth(summaries, truth)
    now = summaries["period"].max() - 1
    models = models | ({"oracle": _oracle(truth, platform)} if oracle else {})
    scores = [
        {"model": name} | row
        for name, model in models.items()
        for row in _scores(summaries, truth["paths"], now, halves, **model)
    ]
    return pd.DataFrame(scores)


def _oracle(truth: dict[str, Any], platform: dict[str, Any]) -> dict[str, Any]:
    """Return the model that knows all hyperparameters."""
    sizes = {"none": 0.0, "random walk": platform.get("size", 0.1)}
    priors = Priors(
        mu_global=Normal(truth["mu_global"], 1e-3),
        sigma_genre=Fixed(truth["sigma_genre"]),
        sigma_creator=Fixed(truth["sigma_creator"]),
    )
    step = sizes[platform.get("motion", "random walk")]
    return {"process": RandomWalk(Fixed(step)), "priors": priors}


def _scores(summaries, paths, now, halves, *, process, priors=Priors(), months=None):
    """Yield the scores of one model."""
    period = summaries["period"]
    past, new = summaries[period <= now], summaries[period > now]
    given = past if months is None else past[past["period"] > now - months]
    fit = fit_drift_model(given, process=process, priors=priors)
    weight = fit.rule.weight
    error = {"quadrature_error": max(fit.grid.errors.values())}
    if months is None:
        cells = fit.grid.box.likelihood.cells.data
        effects = past["effect_true"].to_numpy()[cells.order]
        yield {"target": "creators"} | error | _against(fit.rule.effects(), weight, effects)
    genres = fit.path_moments(np.array([now, now + 1]))
    for place, target in enumerate(("genres now", "genres next")):
        means = Moments(*(part[:, place, :-1] for part in genres))
        yield {"target": target} | error | _against(means, weight, paths[:, now + place])
    for target, se, true in (
        ("new creators", 0.0, new["effect_true"]),
        ("next estimates", new["se"], new["effect_hat"]),
    ):
        moments = fit.predictive_moments(new["genre"], new["period"], se)
        yield {"target": target} | error | _against(moments, weight, true.to_numpy())
    if halves and months is None:
        half = past[past["period"] <= now // 2]
        before = fit_drift_model(half, process=process, priors=priors)
        yield {"target": "second half", "elpd": fit.log_evidence - before.log_evidence} | error


def _against(moments: Moments, weight: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Score a mixture of normals, (node, unit), against the truth, (unit,)."""
    overall = mixture_moments(moments, weight)
    below = weight @ ndtr((true - moments.mean) / np.sqrt(moments.var))
    return {
        "n": len(true),
        "mse": compute_mse(overall.mean, true),
        "coverage": float(np.mean(np.abs(below - 0.5) <= LEVEL / 2)),
        "width": float(2 * normal_factor() * np.sqrt(overall.var).mean()),
    }
