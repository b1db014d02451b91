"""Many simulated platforms instead of one: every figure with its Monte Carlo error by platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtr

from hbm.baselines import (
    complete_pooling_estimates,
    degrees_of_freedom,
    empirical_bayes_estimates,
    james_stein_estimates,
    no_pooling_estimates,
)
from hbm.data import GROUPS, generate_experiment_data, summarize_creators
from hbm.estimates import effect_cdf, extract_hbm_estimates
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, Priors
from hbm.replicate import replicate
from hbm.sizes import SIZE_MIXTURE, draw_sizes
from hbm.validation import compare_estimators, join_truth, oracle_estimates


def simulate_summaries(
    seed: int | np.random.Generator = 42,
    *,
    size_mixture=SIZE_MIXTURE,
    treatment_share: float = 0.5,
    variance: str = "welch",
    **platform,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate the summaries of a platform without its users, hundreds of times faster.

    The mean of an arm of n users is Normal(its expectation, sigma_obs / sqrt(n)) and its variance
    sigma_obs² chi²(n - 1) / (n - 1), independent of the mean: exactly what the users of
    `generate_experiment_data` would give. The same seed gives the same genre and creator effects
    as there, but other users.

    Parameters
    ----------
    seed : int or Generator
    size_mixture, treatment_share, **platform
        As for `generate_experiment_data`.
    variance : str
        As for `summarize_creators`.

    Returns
    -------
    summaries : DataFrame
    truth : dict

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """
    rng = np.random.default_rng(seed)
    # Four users a creator: the smallest platform, for its truth alone.
    _, truth = generate_experiment_data(rng, size_mixture=((1.0, 4, 5),), **platform)
    genre_idx = truth["creator_genre"]
    n_total, n_treatment = draw_sizes(rng, len(genre_idx), size_mixture, treatment_share)
    truth["creator_n"] = n_total
    arms = {
        "creator_id": truth["creator_id"],
        "genre": np.array(truth["genres"], dtype=object)[genre_idx],
        "genre_idx": genre_idx,
    }
    sigma = truth["sigma_obs"]
    # Means without the baseline, which drops out of every difference.
    for group, n, mean in zip(
        GROUPS, (n_total - n_treatment, n_treatment), (0.0, truth["creator_effects"]), strict=True
    ):
        arms[f"n_{group}"] = n
        arms[f"mean_{group}"] = rng.normal(mean, sigma / np.sqrt(n))
        arms[f"var_{group}"] = sigma**2 * rng.chisquare(n - 1) / (n - 1)
    return summarize_creators(pd.DataFrame(arms), variance=variance), truth


def _classical(
    summaries: pd.DataFrame,
    truth: dict[str, Any],
    estimator: Callable[..., pd.DataFrame],
    **settings,
) -> pd.DataFrame:
    """Estimate without a posterior: `pit` is normal around the estimate, whatever its interval."""
    made = estimator(summaries, **settings)
    gap, se = join_truth(made, truth)["effect_true"] - made["effect_hat"], made["se"]
    # Where an effect is known exactly, as much lies below it as above.
    z = np.divide(gap, se, out=np.zeros(len(gap)), where=gap != 0)
    return made.assign(pit=ndtr(z))


def _student(summaries: pd.DataFrame, truth: dict[str, Any]) -> pd.DataFrame:
    made = no_pooling_estimates(summaries, student=True)
    t = (join_truth(made, truth)["effect_true"] - made["effect_hat"]) / made["se"]
    return made.assign(pit=stdtr(degrees_of_freedom(summaries), t))


def _oracle(summaries: pd.DataFrame, truth: dict[str, Any]) -> pd.DataFrame:
    return _classical(summaries, truth, partial(oracle_estimates, truth=truth))


def pooled(
    summaries: pd.DataFrame, truth: dict[str, Any], priors: Priors = Priors(), **settings: Any
) -> pd.DataFrame:
    """Estimate with the exact engine; `pit` comes from the posterior itself."""
    fit = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors, **settings)
    made = extract_hbm_estimates(fit, summaries)
    return made.assign(pit=effect_cdf(fit, join_truth(made, truth)["effect_true"].to_numpy()))


#: The estimators of a study: name and function of summaries and truth that returns estimates.
ESTIMATORS: dict[str, Callable[[pd.DataFrame, dict[str, Any]], pd.DataFrame]] = {
    "No pooling": partial(_classical, estimator=no_pooling_estimates),
    "Complete pooling": partial(_classical, estimator=complete_pooling_estimates),
    "Partial pooling, no genres": partial(pooled, priors=Priors(sigma_genre=Fixed(0))),
    "Partial pooling": pooled,
    "Oracle": _oracle,
}

#: Further estimators that partial pooling is measured against.
RIVALS: dict[str, Callable[[pd.DataFrame, dict[str, Any]], pd.DataFrame]] = {
    "No pooling, Student's t": _student,
    "James–Stein": partial(_classical, estimator=james_stein_estimates),
    "Empirical Bayes, no genres": partial(
        _classical, estimator=empirical_bayes_estimates, grouping=False
    ),
    "Empirical Bayes": partial(_classical, estimator=empirical_bayes_estimates),
}


#: What the rows of a study may be by, besides the platform.
KEYS = ("distance_bin", "estimator", "size_bin", "selected")


def platform_study(
    n_platforms: int,
    *,
    estimators: Mapping[str, Callable] | None = None,
    compare: Callable[..., pd.DataFrame] | Mapping[str, Callable] = compare_estimators,
    seed: int = 42,
    **platform,
) -> pd.DataFrame | dict[str, pd.DataFrame]:
    """Score estimators on many simulated platforms.

    Parameters
    ----------
    n_platforms : int
    estimators : dict of str to function, optional
        Functions of (summaries, truth) that return estimates; `ESTIMATORS` when omitted.
    compare : function, or dict of str to function
        `compare_estimators`, `coverage_by_distance` or `selection_scores`; several score the
        same estimates.
    seed : int
        Each platform has its own stream, whatever the number of platforms.
    **platform
        As for `simulate_summaries`.

    Returns
    -------
    DataFrame, or dict of str to DataFrame
        ``platform`` and the columns of `compare`, but for the errors on one platform; one row a
        platform, estimator and bin. Reduce it with `summarize_study`.
    """
    several = compare if isinstance(compare, Mapping) else {"": compare}
    platforms = replicate(
        _score_platform,
        n_platforms,
        seed=seed,
        estimators=ESTIMATORS if estimators is None else estimators,
        compare=several,
        **platform,
    )
    tables = {}
    for name in several:
        frames = [made[name].assign(platform=place) for place, made in enumerate(platforms)]
        table = pd.concat(frames, ignore_index=True)
        table.insert(0, "platform", table.pop("platform"))
        tables[name] = table
    return tables if isinstance(compare, Mapping) else tables[""]


def _score_platform(rng, *, estimators, compare, **platform) -> dict[str, pd.DataFrame]:
    summaries, truth = simulate_summaries(rng, **platform)
    made = {name: estimate(summaries, truth) for name, estimate in estimators.items()}
    scores = {name: score(made, truth) for name, score in compare.items()}
    return {
        name: frame.drop(columns=[c for c in frame if c.endswith("_se")])
        for name, frame in scores.items()
    }


def summarize_study(study: pd.DataFrame) -> pd.DataFrame:
    """Average a study over its platforms, with Monte Carlo errors by platform.

    Parameters
    ----------
    study : DataFrame
        From `platform_study`.

    Returns
    -------
    DataFrame
        One row an estimator and bin: the keys, ``n_platforms``, and each measure with its
        ``*_se``, the sd over platforms / sqrt(platforms). Platforms with an empty bin do not
        count for it. All estimators meet the same platforms, so differences between them are
        known better than the errors of the two suggest: take them platform by platform.
    """
    if study["platform"].nunique() < 2:
        raise ValueError("Monte Carlo errors by platform need at least two platforms")
    keys = [key for key in KEYS if key in study]
    groups = study.drop(columns="platform").groupby(keys, sort=False)
    mean, error, count = groups.mean(), groups.sem(), groups.count()
    summary = pd.DataFrame({"n_platforms": count.iloc[:, -1]})
    if "n_creators" in mean:
        summary["n_creators"] = mean.pop("n_creators")
    for column in mean:
        summary[column] = mean[column]
        summary[f"{column}_se"] = error[column]
    return summary.reset_index()
