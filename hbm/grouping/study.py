"""The selection and the monitor, marked on simulated platforms where the right answer is known."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hbm.estimates import extract_hbm_estimates
from hbm.grouping.candidates import create_grouping, discover_clusters
from hbm.grouping.compare import NO_GROUPING, without_grouping
from hbm.grouping.explore import (
    analyze_grouping_candidate,
    anova_test,
    compute_eta_squared,
    kruskal_test,
)
from hbm.grouping.history import (
    CANDIDATES,
    NUMERIC_FEATURES,
    Platform,
    historical_lift,
    simulate_platform_history,
    simulate_quarters,
)
from hbm.grouping.monitor import CHECKS, monitor_grouping
from hbm.grouping.select import select_grouping
from hbm.intervals import share_error
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors
from hbm.replicate import replicate
from hbm.validation import compute_coverage, compute_mse, join_truth


class World(NamedTuple):
    """A structure of the effects; the grouping that is `right` there, and those `related` to it."""

    structure: dict[str, float]
    right: str
    related: tuple[str, ...] = ()


#: The worlds of `mark_selection`.
WORLDS = {
    "genre": World({"genre": 0.36}, "genre", ("content_type",)),
    "weak genre": World({"genre": 0.15}, "genre", ("content_type",)),
    "hidden types": World({"archetype": 0.36}, "cluster", ("engagement_quartile",)),
    "nothing": World({}, NO_GROUPING),
}

#: What `monitor_study` lets happen after the baseline.
SCENARIOS: dict[str, dict[str, Any]] = {
    "nothing changes": {},
    "structure fades": {"changes_at": 1},
    "structure moves": {"changes_at": 1, "changes_to": {"monetization_method": 0.36}},
    "noise understated": {"understated": 1.5},
}


def mark_selection(
    n_platforms: int, worlds=tuple(WORLDS), *, n_permutations: int = 100, seed: int = 42
) -> pd.DataFrame:
    """Let `select_grouping` decide on many platforms, and mark it.

    Parameters
    ----------
    n_platforms : int
        In each world.
    worlds : sequence of str
        Names in `WORLDS`.
    n_permutations, seed : int

    Returns
    -------
    DataFrame
        One row a platform: ``world, platform, chosen``; ``mark`` (``right, related, wrong`` or
        ``none``: no grouping where there is one); ``shortlisted``, whether the right one was;
        ``naive_top``, the candidate with the largest naive quality, and ``naive_quality,
        quality, eta_squared`` of the right one in the history (NaN where there is none); mean
        squared errors ``mse_no_pooling``, and ``mse_chosen, mse_right, mse_none, mse_naive`` of
        partial pooling with each grouping; ``coverage_chosen``.
    """
    frames = []
    for place, world in enumerate(worlds):
        rows = replicate(
            _mark, n_platforms, seed=seed + place, world=world, n_permutations=n_permutations
        )
        frame = pd.DataFrame(rows)
        frame.insert(0, "world", world)
        frame.insert(1, "platform", np.arange(n_platforms))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def summarize_marks(marks: pd.DataFrame) -> pd.DataFrame:
    """Score card of `mark_selection`: shares of platforms, and what choices cost.

    Returns
    -------
    DataFrame
        One row a world: ``world, n_platforms``; shares ``right, related, wrong, none``, each
        with its binomial ``*_se``; ``naive_right``, how often the largest naive quality is the
        right one's; and mean squared errors relative to the right grouping's, ``cost_chosen,
        cost_none, cost_naive, cost_no_pooling``, each with its Monte Carlo error ``*_se``.
    """
    rows = []
    for world, own in marks.groupby("world", sort=False):
        row: dict[str, Any] = {"world": world, "n_platforms": len(own)}
        shares = {mark: own["mark"] == mark for mark in ("right", "related", "wrong", "none")}
        shares["naive_right"] = own["naive_top"] == WORLDS[world].right
        for name, hit in shares.items():
            row |= {name: hit.mean(), f"{name}_se": share_error(hit.sum(), len(hit))}
        for name in ("chosen", "none", "naive", "no_pooling"):
            ratio = own[f"mse_{name}"] / own["mse_right"]
            row |= {f"cost_{name}": ratio.mean(), f"cost_{name}_se": ratio.sem()}
        rows.append(row)
    return pd.DataFrame(rows)


def quality_study(n_platforms: int, share: float, *, seed: int = 42, **platform) -> pd.DataFrame:
    """Naive and corrected quality of genre where the truth is known, from experiments.

    Parameters
    ----------
    n_platforms : int
    share : float
        Expected share of the variance of the true effects between genres.
    seed : int
    **platform
        As for `simulate_platform_history`.

    Returns
    -------
    DataFrame
        One row a platform: ``share``, that of the genres that were drawn (variance of their
        means with divisor G - 1); ``naive, quality, lower, upper``; ``eta_squared,
        omega_squared, eta_corrected``; ``anova_p`` (weighted) and ``kruskal_p``.
    """
    structure = {"structure": {"genre": share}}
    rows = replicate(_quality, n_platforms, seed=seed, **structure, **platform)
    return pd.DataFrame(rows)


def monitor_study(
    n_platforms: int, scenario: str, n_creators: int = 500, *, n_quarters: int = 3, seed: int = 42
) -> pd.DataFrame:
    """Monitor platforms on which it is known what happened.

    The baseline has 500 creators, as the experiment on which a grouping is chosen; platforms on
    which it would not have been chosen, since it does not beat no grouping, are left out.

    Parameters
    ----------
    n_platforms : int
    scenario : str
        Name in `SCENARIOS`; what happens does so in all quarters after the baseline.
    n_creators : int
        In each later quarter, at most 500.
    n_quarters : int
        Quarters after the baseline.
    seed : int

    Returns
    -------
    DataFrame
        One row a platform and later quarter: ``platform, quarter``, an alert (bool) for each of
        `hbm.grouping.monitor.CHECKS`, and ``any``.
    """
    settings = {"scenario": scenario, "n_creators": n_creators, "n_quarters": n_quarters}
    frames = replicate(_monitored, n_platforms, seed=seed, **settings)
    kept = [f.assign(platform=i) for i, f in enumerate(frames) if f is not None]
    return pd.concat(kept, ignore_index=True)


# ----------------------------------------------------------------------------- one platform


def pooled_scores(summaries: pd.DataFrame, model, truth) -> tuple[float, float]:
    """Mean squared error and coverage of partial pooling."""
    joined = join_truth(extract_hbm_estimates(model, summaries), truth)
    return (
        compute_mse(joined["effect_hat"], joined["effect_true"]),
        compute_coverage(joined["ci_lower"], joined["ci_upper"], joined["effect_true"]),
    )


def fit_grouping(ite_estimates, features, grouping: str | None):
    """Summaries with a grouping (None: without) and their exact fit."""
    summaries = create_grouping(ite_estimates, features, grouping)
    priors = Priors.weakly_informative(summaries)
    priors = priors if grouping else without_grouping(priors)
    return summaries, fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)


def with_clusters(platform: Platform) -> pd.DataFrame:
    """Features with a column ``cluster``, found among them."""
    found = discover_clusters(platform.features, NUMERIC_FEATURES, k_range=range(3, 6), n_seeds=1)
    return platform.features.assign(cluster=found.labels)


def _mark(rng: np.random.Generator, *, world: str, n_permutations: int) -> dict[str, Any]:
    structure, right, related = WORLDS[world]
    platform = simulate_platform_history(rng, structure=structure)
    features, ites = with_clusters(platform), platform.ite_estimates
    decision = select_grouping(
        ites,
        features,
        [*CANDIDATES, "cluster"],
        history=historical_lift(platform.history).table,
        n_permutations=n_permutations,
        quick=True,
    )
    chosen = (decision.grouping or NO_GROUPING).removesuffix(" (merged)")
    marks = {NO_GROUPING: "none", **dict.fromkeys(related, "related"), right: "right"}
    explored = decision.exploration
    top = explored.loc[explored["naive_quality"].idxmax(), "candidate"]
    truth = platform.truth

    def mse(grouping: str) -> float:
        name = None if grouping == NO_GROUPING else grouping
        return pooled_scores(*fit_grouping(ites, decision.features, name), truth)[0]

    mse_chosen, coverage = pooled_scores(decision.summaries, decision.model, truth)
    effects = join_truth(ites, truth)
    row = explored.set_index("candidate").reindex([right]).iloc[0]
    shortlisted = explored.loc[explored["shortlisted"], "candidate"]
    return {
        "chosen": chosen,
        "mark": marks.get(chosen, "wrong"),
        "shortlisted": right in set(shortlisted),
        "naive_top": top.removesuffix(" (merged)"),
        **{name: row[name] for name in ("naive_quality", "quality", "eta_squared")},
        "mse_no_pooling": compute_mse(effects["effect_hat"], effects["effect_true"]),
        "mse_chosen": mse_chosen,
        "mse_right": mse(right),
        "mse_none": mse(NO_GROUPING),
        "mse_naive": mse(top),
        "coverage_chosen": coverage,
    }


def _quality(rng: np.random.Generator, **settings) -> dict[str, float]:
    platform = simulate_platform_history(rng, **settings)
    truth = platform.truth
    data = create_grouping(platform.ite_estimates, platform.features, "genre")
    columns = "genre", "effect_hat"
    found = analyze_grouping_candidate(data, *columns, se="se")
    effect = compute_eta_squared(data, *columns, se="se")
    between = np.var(truth["genre_effects"], ddof=1)
    return {
        "share": between / (between + truth["sigma_creator"] ** 2),
        "naive": found.naive_quality,
        "quality": found.quality,
        "lower": found.lower,
        "upper": found.upper,
        "eta_squared": effect.eta_squared,
        "omega_squared": effect.omega_squared,
        "eta_corrected": effect.corrected,
        "anova_p": anova_test(data, *columns, se="se").p_value,
        "kruskal_p": kruskal_test(data, *columns).p_value,
    }


def _monitored(rng: np.random.Generator, *, scenario: str, n_creators: int, n_quarters: int):
    change = dict(SCENARIOS[scenario])
    understated = change.pop("understated", 1.0)
    batches = simulate_quarters(rng, n_quarters=n_quarters + 1, **change)
    quarters = {}
    for k, batch in enumerate(batches):
        data = create_grouping(batch.ite_estimates, batch.features, "genre")
        if k:
            truth = batch.truth["creator_effects"]
            data["effect_hat"] = truth + understated * (data["effect_hat"] - truth)
            data = create_grouping(data.head(n_creators), batch.features, "genre")
        quarters[f"quarter {k}"] = data
    table = monitor_grouping(quarters, quick=True).table
    base = table[(table["quarter"] == "quarter 0") & (table["check"] == "elpd")].iloc[0]
    if not (base["value"] > base["limit"] and base["lower"] > 0):
        return None
    later = table[table["quarter"] != "quarter 0"]
    alerts = later.pivot(index="quarter", columns="check", values="alert")[list(CHECKS)]
    return alerts.assign(any=alerts.any(axis=1)).reset_index()
