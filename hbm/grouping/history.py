"""A simulated platform with a history: features of creators, an earlier rollout, an experiment.

What structures the effects is known, so a selection can be marked. Some features look as if they
did: users and revenue per user before the rollout are measured with noise, and whoever was lucky
then falls back later, so that groups of them differ in lift without any effect (regression to
the mean).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hbm.checks import DataError, require_columns
from hbm.grouping.candidates import bin_feature, quantile_names
from hbm.studies import simulate_summaries

#: Features by which creators may be grouped, declared from domain knowledge.
CANDIDATES = (
    "genre",
    "content_type",
    "monetization_method",
    "posting_frequency",
    "platform_tenure",
    "audience_size_tier",
    "size_quartile",
    "arpu_quintile",
    "engagement_quartile",
)

#: Numeric features from before any treatment, for clustering.
NUMERIC_FEATURES = (
    "avg_revenue_pre",
    "avg_views_pre",
    "avg_engagement_pre",
    "follower_count",
    "content_diversity_score",
    "posting_consistency",
)

#: Levels of the drawn features, with their shares.
LEVELS = {
    "genre": {"Gaming": 0.28, "Education": 0.22, "Entertainment": 0.2, "Lifestyle": 0.18,
              "Other": 0.12},
    "content_type": {"Video": 0.4, "Livestream": 0.25, "Shorts": 0.25, "Mixed": 0.1},
    "monetization_method": {"Ads": 0.4, "Subscriptions": 0.25, "Donations": 0.2, "Mixed": 0.15},
    "posting_frequency": {"Daily": 0.3, "Weekly": 0.35, "Monthly": 0.2, "Irregular": 0.15},
    "platform_tenure": {"New (<6mo)": 0.2, "Growing (6mo-2y)": 0.35, "Established (2y+)": 0.45},
    "archetype": {"A": 0.3, "B": 0.3, "C": 0.2, "D": 0.2},
}  # fmt: skip

#: What creators of a genre make, unless (with `OWN_CHOICE`) they choose freely: content type is
#: a proxy of genre.
USUAL_TYPE = {"Gaming": "Livestream", "Education": "Video", "Entertainment": "Shorts",
              "Lifestyle": "Video", "Other": "Mixed"}  # fmt: skip
OWN_CHOICE = 0.5

_TIERS = {"Micro (<10K)": 0, "Mid (10K-100K)": 1e4, "Macro (100K-1M)": 1e5, "Mega (1M+)": 1e6}
_MICRO_SEGMENTS = 12

#: Dollars of revenue per user, and weeks of each period of the history.
BASELINE, WEEKS = 2.0, 13

#: Spread of creators in log users and log revenue per user, and noise of a period's mean.
_USERS_SD, _ARPU_SD, _USERS_NOISE, _ARPU_NOISE = 0.25, 0.15, 0.15, 0.13

#: Share of new creators that had no revenue before the rollout.
_NO_REVENUE = 0.08


class Platform(NamedTuple):
    """A simulated platform; all frames have one row a creator, in one order.

    `features` holds ``creator_id``, `CANDIDATES`, `NUMERIC_FEATURES` and ``sub_genre``;
    `history` an earlier rollout of a similar feature, ``creator_id, revenue_pre, revenue_post``
    (mean revenue a week, in dollars) with ``revenue_pre_se, revenue_post_se`` from the weeks;
    `ite_estimates` the experiment: ``creator_id, n_treatment, n_control, n_total, effect_hat, se``.

    `truth` is that of `hbm.generate_experiment_data`, its genres the groups that structure the
    effects, with ``structure`` (expected share of variance by column), ``archetype`` (the hidden
    column) and ``share``, the share of the variance between the groups that was drawn.
    """

    features: pd.DataFrame
    history: pd.DataFrame
    ite_estimates: pd.DataFrame
    truth: dict[str, Any]


class Lifts(NamedTuple):
    """Lifts of a history: `table` with ``lift, lift_se`` added, and who was `set_aside` and why."""

    table: pd.DataFrame
    set_aside: pd.DataFrame


def simulate_platform_history(
    seed: int | np.random.Generator = 42,
    *,
    n_creators: int = 500,
    structure: Mapping[str, float] | None = None,
    effect_mean: float = 0.5,
    effect_sd: float = 0.5,
    **experiment,
) -> Platform:
    """Simulate a platform whose effects are structured by known features.

    A column with share s has group effects drawn from Normal(0, effect_sd sqrt(s)); creators
    scatter around the sum of theirs with the rest of the variance. The earlier rollout changed
    revenue by tau / `BASELINE`, with the same group effects and creators' own parts drawn anew.

    Parameters
    ----------
    seed : int or Generator
    n_creators : int
    structure : dict of str to float, optional
        Expected share of the variance of the effects by column: any of `CANDIDATES`,
        ``sub_genre``, or the hidden ``archetype``, which shows in three numeric features.
        ``{"genre": 0.36}`` when omitted; empty for effects without any structure.
    effect_mean, effect_sd : float
        Mean and standard deviation of all effects, in dollars per user.
    **experiment
        ``size_mixture, sigma_obs, treatment_share, variance`` of `hbm.simulate_summaries`.

    Returns
    -------
    Platform

    Raises
    ------
    ValueError
        If a share is negative, they sum to 1 or more, or a column is unknown.
    """
    structure = {"genre": 0.36} if structure is None else dict(structure)
    rng = np.random.default_rng(seed)
    effects = _draw_structure(rng, structure, effect_sd)
    moments = effect_mean, effect_sd
    return _platform(rng, n_creators, structure, effects, moments, experiment)


def simulate_quarters(
    seed: int | np.random.Generator = 42,
    *,
    n_quarters: int = 8,
    n_creators: int = 500,
    structure: Mapping[str, float] | None = None,
    changes_to: Mapping[str, float] | None = None,
    changes_at: int | None = None,
    effect_mean: float = 0.5,
    effect_sd: float = 0.5,
    **experiment,
) -> list[Platform]:
    """Simulate an experiment a quarter, each with creators of its own, on one platform.

    The group effects are those of the platform and stay, until the structure changes.

    Parameters
    ----------
    seed : int or Generator
    n_quarters, n_creators : int
        Quarters, and creators a quarter.
    structure, effect_mean, effect_sd, **experiment
        As for `simulate_platform_history`.
    changes_to : dict, optional
        Structure from quarter `changes_at` on (counted from 0), its group effects drawn anew;
        the variance of all effects stays.
    changes_at : int, optional
        No change when omitted.

    Returns
    -------
    list of Platform
        The quarters in order.
    """
    structure = {"genre": 0.36} if structure is None else dict(structure)
    rng = np.random.default_rng(seed)
    effects = _draw_structure(rng, structure, effect_sd)
    quarters = []
    for quarter in range(n_quarters):
        if quarter == changes_at:
            structure = dict(changes_to or {})
            effects = _draw_structure(rng, structure, effect_sd)
        prefix, moments = f"q{quarter + 1}-", (effect_mean, effect_sd)
        batch = _platform(rng, n_creators, structure, effects, moments, experiment, prefix)
        quarters.append(batch)
    return quarters


def historical_lift(history: pd.DataFrame) -> Lifts:
    """Return each creator's relative change of revenue over a rollout.

    Parameters
    ----------
    history : DataFrame
        ``creator_id, revenue_pre, revenue_post``; where ``revenue_pre_se, revenue_post_se`` are
        there, the lift gets a standard error too (delta method).

    Returns
    -------
    Lifts
        Creators without revenue before have no lift: they are set aside, with the reason.

    Raises
    ------
    DataError
        If a column is missing, or no creator had revenue before.
    """
    require_columns(history, ("creator_id", "revenue_pre", "revenue_post"), "history")
    pre, post = history["revenue_pre"], history["revenue_post"]
    reasons = pd.Series("", index=history.index)
    reasons[~(np.isfinite(pre) & np.isfinite(post))] = "revenue is missing"
    reasons[(pre < 0) | (post < 0)] = "revenue is negative"
    reasons[pre == 0] = "no revenue before the rollout"
    aside = reasons != ""
    if aside.all():
        raise DataError("history: no creator has revenue before the rollout, so there is no lift")
    set_aside = history.loc[aside, ["creator_id"]].assign(reason=reasons[aside])
    table = history[~aside].assign(lift=(post / pre - 1)[~aside])
    if {"revenue_pre_se", "revenue_post_se"} <= set(history):
        ratio = table["lift"] + 1
        before = ratio * table["revenue_pre_se"] / table["revenue_pre"]
        after = table["revenue_post_se"] / table["revenue_pre"]
        table["lift_se"] = np.hypot(before, after)
    return Lifts(table.reset_index(drop=True), set_aside.reset_index(drop=True))


# ------------------------------------------------------------------------------ simulation


def _platform(rng, n, structure, effects, moments, experiment, prefix="c") -> Platform:
    traits = _traits(rng, n, prefix)
    history = _history(rng, traits)
    features = _features(rng, traits, history)
    past = _true_effects(rng, features, traits, effects, structure, moments)
    for column in ("revenue_post", "revenue_post_se"):
        history[column] *= 1 + past["creator_effects"] / BASELINE
    truth = _true_effects(rng, features, traits, effects, structure, moments)
    ites = _experiment(rng, traits, truth, experiment)
    return Platform(features, history.drop(columns=["users_pre", "users_post"]), ites, truth)


def _draw_structure(rng, structure: Mapping[str, float], effect_sd: float):
    """Group effects by column and level."""
    shares = list(structure.values())
    if min(shares, default=0) < 0 or sum(shares) >= 1:
        raise ValueError(f"structure: shares must be >= 0 and sum to less than 1, got {structure}")
    effects = {}
    for column, share in structure.items():
        levels = _levels(column)
        effects[column] = pd.Series(rng.normal(0, effect_sd * share**0.5, len(levels)), levels)
    return effects


def _levels(column: str) -> list[str]:
    if column in LEVELS:
        return list(LEVELS[column])
    if column == "audience_size_tier":
        return list(_TIERS)
    if column == "sub_genre":
        return [f"{g} {k + 1:02d}" for g in LEVELS["genre"] for k in range(_MICRO_SEGMENTS)]
    if column.endswith(("_quartile", "_quintile")) and column in CANDIDATES:
        return quantile_names(_n_bins(column))
    raise ValueError(f"structure: unknown column {column!r}")


def _n_bins(column: str) -> int:
    return 4 if column.endswith("_quartile") else 5


def _traits(rng, n: int, prefix: str) -> pd.DataFrame:
    """What creators are: drawn levels, long-run log users and revenue, users in the experiment."""
    traits = pd.DataFrame({"creator_id": [f"{prefix}{i:0{len(str(n - 1))}d}" for i in range(n)]})
    for column, shares in LEVELS.items():
        traits[column] = rng.choice(list(shares), size=n, p=list(shares.values()))
    own = rng.random(n) < OWN_CHOICE
    traits["content_type"] = traits["content_type"].where(own, traits["genre"].map(USUAL_TYPE))
    segment = np.minimum(rng.geometric(0.2, n), _MICRO_SEGMENTS)
    traits["sub_genre"] = traits["genre"] + pd.Series(segment).map(" {:02d}".format)
    traits["log_users"] = rng.normal(0, _USERS_SD, n)
    traits["log_arpu"] = rng.normal(0, _ARPU_SD, n)
    # Users in the experiment follow the audience, in rank and not exactly.
    place = 0.8 * traits["log_users"] / _USERS_SD + 0.6 * rng.standard_normal(n)
    traits["size_rank"] = place.rank().astype(int) - 1
    return traits


def _history(rng, traits: pd.DataFrame) -> pd.DataFrame:
    """Weeks before and after a rollout that changed nothing yet, reduced to their means."""
    n, scale = len(traits), np.sqrt(WEEKS)
    columns = {"creator_id": traits["creator_id"]}
    for period in ("pre", "post"):
        users_noise = rng.normal(0, _USERS_NOISE * scale, (n, WEEKS))
        arpu_noise = rng.normal(0, _ARPU_NOISE * scale, (n, WEEKS))
        users = 1000 * np.exp(traits["log_users"].to_numpy()[:, None] + users_noise)
        arpu = BASELINE * np.exp(traits["log_arpu"].to_numpy()[:, None] + arpu_noise)
        revenue = users * arpu
        columns[f"users_{period}"] = users.mean(axis=1)
        columns[f"revenue_{period}"] = revenue.mean(axis=1)
        columns[f"revenue_{period}_se"] = revenue.std(axis=1, ddof=1) / scale
    history = pd.DataFrame(columns)
    new = traits["platform_tenure"] == "New (<6mo)"
    nothing = new & (rng.random(n) < _NO_REVENUE)
    history.loc[nothing, ["revenue_pre", "revenue_pre_se"]] = 0.0
    return history


def _features(rng, traits: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """What the platform knows of its creators before the experiment."""
    n = len(traits)
    drawn = [c for c in LEVELS if c != "archetype"]
    features = traits[["creator_id", *drawn, "sub_genre"]].copy()
    shift = {"A": (0, 0, 0), "B": (5, 0, 5), "C": (0, 5, 5), "D": (5, 5, 0)}
    center = np.array(traits["archetype"].map(shift).tolist())
    score = center + rng.standard_normal((n, 3))
    features["avg_revenue_pre"] = history["revenue_pre"]
    features["avg_views_pre"] = history["users_pre"] * np.exp(rng.normal(3, 0.5, n))
    features["avg_engagement_pre"] = 0.05 * np.exp(0.2 * score[:, 0])
    followers = np.exp(1.2 * traits["log_users"] / _USERS_SD + rng.normal(0, 0.7, n))
    features["follower_count"] = np.rint(4e4 * followers).astype(int)
    features["content_diversity_score"] = score[:, 1]
    features["posting_consistency"] = score[:, 2]
    features["audience_size_tier"] = pd.cut(
        features["follower_count"], [*_TIERS.values(), np.inf], labels=list(_TIERS), right=False
    )
    arpu = history["revenue_pre"] / history["users_pre"]
    for column, values in {
        "size_quartile": history["users_pre"],
        "arpu_quintile": arpu,
        "engagement_quartile": features["avg_engagement_pre"],
    }.items():
        features[column] = bin_feature(values, _n_bins(column))
    return features[["creator_id", *CANDIDATES, *NUMERIC_FEATURES, "sub_genre"]]


def _true_effects(rng, features, traits, effects, structure, moments) -> dict[str, Any]:
    """Effects drawn around the sum of their groups' effects, and the truth as a dict."""
    mean, sd = moments
    known = features.assign(archetype=traits["archetype"])
    sums = np.full(len(known), float(mean))
    keys = pd.Series("", index=known.index)
    for column, by_level in effects.items():
        labels = known[column].astype(str)
        sums += labels.map(by_level).to_numpy(float)
        keys += " | " + labels
    codes, names = pd.factorize(keys.str.removeprefix(" | "))
    sigma = float(sd * np.sqrt(1 - sum(structure.values())))
    tau = rng.normal(sums, sigma)
    genre_effects = pd.Series(sums).groupby(codes).first().to_numpy()
    between = float(np.var(sums))
    return {
        "genre_effects": genre_effects,
        "creator_effects": tau,
        "sigma_creator": sigma,
        "sigma_genre": float(sd * np.sqrt(sum(structure.values()))),
        "mu_global": float(mean),
        "creator_genre": codes,
        "creator_id": known["creator_id"].to_numpy(),
        "genres": [str(name) or "all creators" for name in names],
        "structure": dict(structure),
        "share": between / (between + sigma**2),
        "archetype": traits["archetype"].to_numpy(),
    }


def _experiment(rng, traits, truth: dict[str, Any], settings) -> pd.DataFrame:
    """Estimates of an experiment on each creator, without simulating its users."""
    alone = {"genres": ("all",), "genre_mean": 0.0, "genre_sd": 0.0, "sigma_creator": 0.0}
    errors, known = simulate_summaries(rng, n_creators_per_genre=len(traits), **alone, **settings)
    errors = errors.sort_values("n_total", kind="stable").iloc[traits["size_rank"]]
    ites = errors.drop(columns=["genre", "genre_idx"]).reset_index(drop=True)
    ites["creator_id"] = traits["creator_id"]
    # The errors do not depend on the effects: they were drawn around 0.
    ites["effect_hat"] += truth["creator_effects"]
    truth |= {"sigma_obs": known["sigma_obs"], "creator_n": ites["n_total"].to_numpy()}
    return ites
