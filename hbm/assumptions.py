"""The model's assumptions, broken one at a time: what it costs, and what cures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hbm.diagnostics import check_diagnostics
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.model import fit_hierarchical_model
from hbm.replicate import replicate
from hbm.robust import FAST, fit_hierarchical_model_robust, thinned
from hbm.studies import simulate_summaries
from hbm.validation import join_truth

#: How far the assumptions are broken: degrees of freedom of the effects, what they change with a
#: standard deviation of log users or of noise, correlation of errors, share of wrong genres.
DF, SLOPE, CORRELATION, MISLABELLED = 3, 0.2, 0.1, 0.2

#: A platform on which an assumption is broken: summaries, truth, and the creators it concerns.
Broken = tuple[pd.DataFrame, dict[str, Any], np.ndarray]


@dataclass(frozen=True)
class Assumption:
    """One assumption, how it is broken, and the fit that does without it.

    Attributes
    ----------
    broken : str
        How it is broken, in words.
    concerned : str
        The creators whom it concerns most, in words.
    simulate : function
        From a Generator to a `Broken` platform.
    cure : str
        What helps, in words; empty where nothing in the data does.
    fit : function or None
        From summaries to a posterior that does without the assumption.
    """

    broken: str
    concerned: str
    simulate: Callable[[np.random.Generator], Broken]
    cure: str = ""
    fit: Callable[[pd.DataFrame], Any] | None = None


def with_effects(summaries: pd.DataFrame, truth: dict[str, Any], effects: np.ndarray):
    """Return the same platform and the same errors, with other true effects."""
    moved = summaries["effect_hat"] + effects - truth["creator_effects"]
    return summaries.assign(effect_hat=moved), truth | {"creator_effects": effects}


def _parts(truth: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Genre mean of each creator, and its deviation from it."""
    mean = truth["genre_effects"][truth["creator_genre"]]
    return mean, truth["creator_effects"] - mean


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def heavy_tails(rng: np.random.Generator) -> Broken:
    """Deviations from the genre are Student's t with `DF`, and the standard deviation of before."""
    summaries, truth = simulate_summaries(rng)
    mean, _ = _parts(truth)
    scale = truth["sigma_creator"] * np.sqrt((DF - 2) / DF)
    away = scale * rng.standard_t(DF, len(mean))
    far = np.abs(away) > 3 * truth["sigma_creator"]
    return *with_effects(summaries, truth, mean + away), far


def falling_with_size(rng: np.random.Generator) -> Broken:
    """Effects fall by `SLOPE` dollars with each standard deviation of log users."""
    summaries, truth = simulate_summaries(rng)
    log_n = np.log(truth["creator_n"])
    effects = truth["creator_effects"] - SLOPE * _standardised(log_n)
    summaries, truth = with_effects(summaries.assign(log_n=log_n), truth, effects)
    return summaries, truth, truth["creator_n"] < 100


def going_with_noise(rng: np.random.Generator) -> Broken:
    """Where users' revenue varies more, effects are larger; log standard deviations vary by 0.5."""
    z = rng.standard_normal(500)
    summaries, truth = simulate_summaries(rng)
    factor = np.exp(0.5 * z)
    error = factor * (summaries["effect_hat"] - truth["creator_effects"])
    effects = truth["creator_effects"] + SLOPE * z
    summaries = summaries.assign(
        effect_hat=effects + error,
        se=factor * summaries["se"],
        log_sd=np.log(factor * summaries["se"] / np.sqrt(_inverse_sizes(summaries))),
    )
    return summaries, truth | {"creator_effects": effects}, z > 1


def _inverse_sizes(summaries: pd.DataFrame) -> pd.Series:
    return 1 / summaries["n_treatment"] + 1 / summaries["n_control"]


#: Standard deviations of the creators by genre where genres differ.
SPREADS = (0.10, 0.2375, 0.375, 0.5125, 0.65)


def different_spreads(rng: np.random.Generator) -> Broken:
    """The standard deviation between creators grows from genre to genre."""
    summaries, truth = simulate_summaries(rng)
    mean, away = _parts(truth)
    scale = np.array(SPREADS)[truth["creator_genre"]] / truth["sigma_creator"]
    last = truth["creator_genre"] == len(SPREADS) - 1
    return *with_effects(summaries, truth, mean + away * scale), last


def shared_errors(rng: np.random.Generator) -> Broken:
    """Any two creators' errors have `CORRELATION`, as where they share users or a bad day."""
    summaries, truth = simulate_summaries(rng)
    own = summaries["effect_hat"] - truth["creator_effects"]
    shock = rng.normal() * summaries["se"]
    error = np.sqrt(1 - CORRELATION) * own + np.sqrt(CORRELATION) * shock
    summaries = summaries.assign(effect_hat=truth["creator_effects"] + error)
    return summaries, truth, truth["creator_n"] < 100


def mislabelled(rng: np.random.Generator) -> Broken:
    """A share `MISLABELLED` of the creators stands under a genre drawn at random."""
    summaries, truth = simulate_summaries(rng)
    wrong = rng.random(len(summaries)) < MISLABELLED
    label = np.where(wrong, rng.integers(0, 5, len(summaries)), truth["creator_genre"])
    names = np.array(truth["genres"], dtype=object)
    return summaries.assign(genre_idx=label, genre=names[label]), truth, wrong


def tiny_genre(rng: np.random.Generator) -> Broken:
    """All but two creators of the last genre are missing."""
    summaries, truth = simulate_summaries(rng)
    last = np.flatnonzero(truth["creator_genre"] == 4)
    kept = np.setdiff1d(np.arange(len(summaries)), last[2:])
    names = ("creator_effects", "creator_genre", "creator_id", "creator_n")
    truth = truth | {name: truth[name][kept] for name in names}
    return summaries.iloc[kept].reset_index(drop=True), truth, truth["creator_genre"] == 4


def _exact(summaries: pd.DataFrame, **settings: Any):
    return fit_hierarchical_model(summaries, engine="exact", draws=0, **settings)


#: Every assumption that is broken here, by what the model assumes.
ASSUMPTIONS = {
    "normal effects": Assumption(
        "heavy tails (t with 3 degrees of freedom)",
        "beyond 3 sd of their genre",
        heavy_tails,
        "a Student's t for effects",
        lambda summaries: fit_hierarchical_model_robust(summaries, effects=False, **FAST),
    ),
    "effects do not go with size": Assumption(
        "they fall with log users",
        "fewer than 100 users",
        falling_with_size,
        "log users as a covariate",
        lambda summaries: _exact(summaries, covariates=["log_n"]),
    ),
    "effects do not go with noise": Assumption(
        "they grow with the sd of revenue",
        "noisy revenue (1 sd and more)",
        going_with_noise,
        "log sd of revenue as a covariate",
        lambda summaries: _exact(summaries, covariates=["log_sd"]),
    ),
    "one spread for all genres": Assumption(
        "from 0.10 to 0.65",
        "the widest genre",
        different_spreads,
        "a spread for each genre",
        lambda summaries: fit_hierarchical_model(
            summaries, sigma_by_genre=True, draws=2500, chains=2
        ),
    ),
    "independent errors": Assumption("correlated at 0.1", "fewer than 100 users", shared_errors),
    "true genres": Assumption("one in five at random", "the mislabelled", mislabelled),
    "enough creators a genre": Assumption("a genre of two", "these two", tiny_genre),
}


def assumption_study(assumption: str, n_platforms: int, *, seed: int = 42) -> pd.DataFrame:
    """Measure what one broken assumption does to pooled estimates, with and without its cure.

    Parameters
    ----------
    assumption : str
        One of `ASSUMPTIONS`.
    n_platforms : int
    seed : int

    Returns
    -------
    DataFrame
        One row a model ("as it is", "cured") and group of creators ("all", "concerned"):
        ``model, group, n_platforms, n_failed`` (fits that failed their diagnostics) and, each
        with its ``*_se`` by platform: ``mse, bias, coverage`` of the pooled estimates and
        ``genre_coverage`` of the genre means' intervals.
    """
    if assumption not in ASSUMPTIONS:
        raise ValueError(f"unknown assumption {assumption!r}; known: {', '.join(ASSUMPTIONS)}")
    platforms = replicate(_one_platform, n_platforms, seed=seed, assumption=assumption)
    rows = pd.DataFrame([row for platform in platforms for row in platform])
    groups = rows.groupby(["model", "group"], sort=False)
    mean, error = groups.mean(), groups.sem()
    table = pd.DataFrame({"n_platforms": groups.size(), "n_failed": groups["failed"].sum()})
    for column in ("mse", "bias", "coverage", "genre_coverage"):
        table[column], table[f"{column}_se"] = mean[column], error[column]
    return table.reset_index()


def _one_platform(rng: np.random.Generator, *, assumption: str) -> list[dict]:
    how = ASSUMPTIONS[assumption]
    summaries, truth, concerned = how.simulate(rng)
    fits = {"as it is": _exact} | ({"cured": how.fit} if how.fit else {})
    rows = []
    for model, fit in fits.items():
        posterior = fit(summaries)
        estimates = extract_hbm_estimates(thinned(posterior), summaries, check=False)
        joined = join_truth(estimates, truth)
        error = joined["effect_hat"] - joined["effect_true"]
        hit = joined["effect_true"].between(joined["ci_lower"], joined["ci_upper"])
        means = extract_genre_estimates(posterior)
        shared = {
            "failed": not check_diagnostics(posterior, effects=False).ok,
            "genre_coverage": np.mean(
                (means["lower"] <= truth["genre_effects"])
                & (truth["genre_effects"] <= means["upper"])
            ),
        }
        for group, who in (("all", slice(None)), ("concerned", np.asarray(concerned))):
            rows.append(
                {"model": model, "group": group}
                | shared
                | {
                    "mse": np.square(error[who]).mean(),
                    "bias": error[who].mean(),
                    "coverage": hit[who].mean(),
                }
            )
    return rows
