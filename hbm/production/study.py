"""Instant readouts on many simulated platforms: what they gain, and whether they are right.

On every platform some creators are part of a night's fit, and the experiments of the others
complete the day after.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hbm.baselines import no_pooling_estimates
from hbm.diagnostics import HYPERPARAMETERS
from hbm.estimates import extract_hbm_estimates
from hbm.gaussian import Hyper, mixture_cdf
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors
from hbm.production.instant import Night, instant_estimates, instant_mixture
from hbm.production.nightly import fit_night
from hbm.replicate import replicate
from hbm.sbc import Calibration
from hbm.studies import simulate_summaries

#: Creators that complete today, by genre.
TODAY = 10

#: What a creator of today can be sent.
ESTIMATORS = ("No pooling", "Today alone", "Instant, plug-in", "Instant", "Full refit")

#: Wild creators lie this many times further from their genre's mean than others.
WILD = 4.0


def production_study(
    n_platforms: int, *, wild: float = 0.0, seed: int = 42, **platform: Any
) -> pd.DataFrame:
    """Estimate today's creators in every way, on many simulated platforms.

    Parameters
    ----------
    n_platforms : int
    wild : float
        Share of creators whose true effects lie `WILD` times further from their genre's mean.
    seed : int
    **platform
        As for `hbm.studies.simulate_summaries`; of each genre, `TODAY` creators complete today.

    Returns
    -------
    DataFrame
        One row a platform, creator of today and estimator of `ESTIMATORS`: ``platform,
        estimator, creator_id, n_total, effect_true, plain, effect_hat, ci_lower, ci_upper``, and
        for the instant readouts ``change, confidence, surprise``.
    """
    made = replicate(_day, n_platforms, seed=seed, wild=wild, platform=platform)
    frames = [frame.assign(platform=k) for k, frame in enumerate(made)]
    return pd.concat(frames, ignore_index=True)


def _day(rng: np.random.Generator, *, wild: float, platform: dict) -> pd.DataFrame:
    summaries, truth = simulate_summaries(rng, **platform)
    effect = truth["creator_effects"].copy()
    if wild:
        away = effect - np.asarray(truth["genre_effects"])[truth["creator_genre"]]
        extra = np.where(rng.random(len(effect)) < wild, (WILD - 1) * away, 0.0)
        effect, moved = effect + extra, summaries["effect_hat"] + extra
        summaries = summaries.assign(effect_hat=moved)
    last = summaries.groupby("genre_idx").cumcount(ascending=False) < TODAY
    today, before = summaries[last], summaries[~last].reset_index(drop=True)
    night = fit_night(before)
    priors = replace(night.priors, memory=None)
    fits = {"Today alone": today.reset_index(drop=True), "Full refit": summaries}
    estimates = {"No pooling": no_pooling_estimates(today.reset_index(drop=True))}
    for name, frame in fits.items():
        fit = fit_hierarchical_model(frame, engine="exact", draws=0, priors=priors)
        estimates[name] = extract_hbm_estimates(fit, frame)
    estimates["Full refit"] = estimates["Full refit"][last.to_numpy()]
    estimates["Instant, plug-in"] = instant_estimates(night, today, method="plug-in")
    estimates["Instant"] = instant_estimates(night, today)
    columns = ["creator_id", "n_total", "effect_hat", "ci_lower", "ci_upper"]
    columns += ["change", "confidence", "surprise"]
    truth_of_today = {
        "effect_true": effect[last.to_numpy()],
        "plain": today["effect_hat"].to_numpy(),
    }
    return pd.concat(
        estimates[name].reindex(columns=columns).assign(estimator=name, **truth_of_today)
        for name in ESTIMATORS
    )


def score_study(study: pd.DataFrame) -> pd.DataFrame:
    """Score each estimator of a `production_study`, with Monte Carlo errors by platform.

    Returns
    -------
    DataFrame
        One row an estimator: ``mse, mse_small`` (creators with fewer than 100 users),
        ``mse_large`` (500 and more), ``coverage``, ``width``, each with its ``_se``; and
        ``ratio, ratio_se``, of the mse to that of the full refit, platform by platform.
    """
    squared = np.square(study["effect_hat"] - study["effect_true"])
    inside = study["effect_true"].between(study["ci_lower"], study["ci_upper"])
    parts = {
        "mse": squared,
        "mse_small": squared.where(study["n_total"] < 100),
        "mse_large": squared.where(study["n_total"] >= 500),
        "coverage": inside.astype(float),
        "width": study["ci_upper"] - study["ci_lower"],
    }
    frame = study[["platform", "estimator"]].assign(**parts)
    by_platform = frame.groupby(["platform", "estimator"], sort=False).mean()
    mse = by_platform["mse"]
    full = mse.xs("Full refit", level="estimator")
    by_platform["ratio"] = mse / full.reindex(mse.index.get_level_values("platform")).to_numpy()
    groups = by_platform.groupby("estimator", sort=False)
    errors = groups.sem().add_suffix("_se")
    return pd.concat([groups.mean(), errors], axis=1).loc[list(ESTIMATORS)].reset_index()


def confidence_table(study: pd.DataFrame, n_bins: int = 8) -> pd.DataFrame:
    """Hold the confidence of instant readouts against what came true.

    Parameters
    ----------
    study : DataFrame
        From `production_study`, or some of its rows.
    n_bins : int
        Bins of confidence with equally many creators.

    Returns
    -------
    DataFrame
        One row a bin: ``n_creators``; ``confidence``, its mean; ``closer``, the share of creators
        whose truth lies nearer to the pooled than to the plain estimate; ``promised``, the mean
        of change², which the posterior expects to be saved of the squared error; ``saved``, by
        how much the squared error of the pooled estimate is truly smaller; ``closer_se`` and
        ``saved_se``, standard errors of the differences from what was promised, by platform.
    """
    rows = study[study["estimator"] == "Instant"]
    error = rows["effect_hat"] - rows["effect_true"], rows["plain"] - rows["effect_true"]
    frame = pd.DataFrame(
        {
            "platform": rows["platform"],
            "confidence": rows["confidence"],
            "closer": (error[0].abs() < error[1].abs()).astype(float),
            "promised": np.square(rows["change"]),
            "saved": np.square(error[1]) - np.square(error[0]),
        }
    )
    place = pd.qcut(frame["confidence"], n_bins, labels=False)
    table = frame.groupby(place)[["confidence", "closer", "promised", "saved"]].mean()
    table.insert(0, "n_creators", frame.groupby(place).size())
    for name, promise in (("closer", "confidence"), ("saved", "promised")):
        surplus = (frame[name] - frame[promise]).groupby([place, frame["platform"]]).sum()
        table[f"{name}_se"] = np.sqrt(np.square(surplus).groupby(level=0).sum())
        table[f"{name}_se"] /= table["n_creators"]
    return table.reset_index(drop=True)


# ------------------------------------------------------------------- agreement with the refit


def agreement_study(
    n_platforms: int, sizes: tuple[int, ...], *, seed: int = 42, **platform: Any
) -> pd.DataFrame:
    """Compare instant readouts with full refits, by the size of the night.

    Parameters
    ----------
    n_platforms : int
    sizes : tuple of int
        Creators a genre in the night's fit.
    seed : int
    **platform
        As for `hbm.studies.simulate_summaries`.

    Returns
    -------
    DataFrame
        One row a platform, size and comparison: ``n_night`` (creators of the night); ``case``:
        ``one new creator`` with the refit to the night and that creator, ``plug-in`` the same
        with the plug-in, ``counted twice`` a creator of the night entered once more without being
        taken out, ``a day of new creators``, a tenth of the night, with one refit to all;
        ``mean``, the largest difference of means in standard deviations of the refit, ``sd``,
        the largest relative difference of standard deviations.
    """
    settings = {"sizes": sizes, "platform": platform}
    made = replicate(_agree, n_platforms, seed=seed, **settings)
    return pd.concat([f.assign(platform=k) for k, f in enumerate(made)], ignore_index=True)


def _agree(rng: np.random.Generator, *, sizes: tuple[int, ...], platform: dict) -> pd.DataFrame:
    rows = []
    for size in sizes:
        extra = max(1, size // 10)
        summaries, _ = simulate_summaries(rng, n_creators_per_genre=size + extra, **platform)
        late = summaries.groupby("genre_idx").cumcount(ascending=False) < extra
        before, today = summaries[~late].reset_index(drop=True), summaries[late]
        night, one = fit_night(before), today.iloc[[0]]
        forgetful = replace(night, counted=night.counted.iloc[:0])
        with_one = pd.concat([before, one], ignore_index=True)
        cases = {
            "one new creator": (instant_estimates(night, one), with_one),
            "plug-in": (instant_estimates(night, one, method="plug-in"), with_one),
            "counted twice": (instant_estimates(forgetful, before.iloc[[0]]), before),
            "a day of new creators": (instant_estimates(night, today), summaries),
        }
        for case, (found, frame) in cases.items():
            rows.append({"n_night": len(before), "case": case, **_apart(night, found, frame)})
    return pd.DataFrame(rows)


def _apart(night: Night, found: pd.DataFrame, frame: pd.DataFrame) -> dict[str, float]:
    """Return the largest differences of estimates from a refit to a frame."""
    priors = replace(night.priors, memory=None)
    fit = fit_hierarchical_model(frame, engine="exact", draws=0, priors=priors)
    refit = extract_hbm_estimates(fit, frame).set_index("creator_id").loc[found["creator_id"]]
    mean, sd = (refit[name].to_numpy() for name in ("effect_hat", "se"))
    return {
        "mean": float(np.max(np.abs(found["effect_hat"] - mean) / sd)),
        "sd": float(np.max(np.abs(found["se"] / sd - 1))),
    }


# ------------------------------------------------------------------------------- calibration

#: Who is ranked: a new creator of a known genre, one of a genre never seen, and one whom the
#: night has counted with half of the data.
RANKED = ("new creator", "new genre", "counted creator")


def run_instant_sbc(
    n_replications: int, *, n_per_genre: int = 6, n_genres: int = 4, ignore: bool = False,
    seed: int = 42,
) -> Calibration:  # fmt: skip
    """Rank true effects in instant readouts of data simulated from the priors.

    Parameters
    ----------
    n_replications : int
    n_per_genre, n_genres : int
        The night's creators.
    ignore : bool
        A planted error: the readout ignores the creator's own data and returns its prior.
    seed : int

    Returns
    -------
    Calibration
        Ranks of the effect, and of the log density of the estimate given the effect, of each
        of `RANKED`. Without the latter a readout that ignores the data would pass.
    """
    settings = {"n_per_genre": n_per_genre, "n_genres": n_genres, "ignore": ignore}
    made = replicate(_instant_replication, n_replications, seed=seed, **settings)
    return Calibration(pd.DataFrame(made), pd.DataFrame(index=range(len(made))))


def _instant_replication(rng, *, n_per_genre: int, n_genres: int, ignore: bool, draws=250):
    priors = Priors()
    hyper = Hyper(
        *(getattr(priors, name).scipy().rvs(random_state=rng) for name in HYPERPARAMETERS)
    )
    genre_idx = np.append(np.repeat(np.arange(n_genres), n_per_genre + 1), n_genres)
    mu = rng.normal(hyper.mu_global, hyper.sigma_genre, n_genres + 1)
    tau = rng.normal(mu[genre_idx], hyper.sigma_creator)
    se = np.exp(rng.uniform(np.log(0.1), np.log(1.0), len(tau)))
    frame = pd.DataFrame(
        {
            "creator_id": [f"c{i}" for i in range(len(tau))],
            "genre": [f"g{g}" for g in genre_idx],
            "genre_idx": genre_idx,
            "effect_hat": rng.normal(tau, se),
            "se": se,
        }
    )
    # New is the last of the first genre, and the only one of the last; the night knows the rest.
    new, lone, counted = n_per_genre, len(tau) - 1, 0
    night = fit_night(frame.drop(index=[new, lone]).reset_index(drop=True), past=priors)
    # As much again is learned of the creator that was counted.
    more = frame.loc[counted, "effect_hat"] + rng.normal(tau[counted], se[counted])
    today = frame.loc[[new, lone, counted]].reset_index(drop=True)
    today.loc[2, ["effect_hat", "se"]] = more / 2, se[counted] / np.sqrt(2)
    given = today.assign(se=1e6) if ignore else today
    moments, weight = instant_mixture(night, given)
    true = tau[[new, lone, counted]]
    ranks = dict(zip(RANKED, mixture_cdf(moments, true, weight), strict=True))
    for k, name in enumerate(RANKED):
        node = rng.choice(len(weight), draws, p=weight[:, k] / weight[:, k].sum())
        drawn = rng.normal(moments.mean[node, k], np.sqrt(moments.var[node, k]))
        # Nearer to the estimate is the higher density.
        d = today.loc[k, "effect_hat"]
        below = (np.abs(drawn - d) > np.abs(true[k] - d)).sum()
        ranks[f"log density, {name}"] = (below + rng.random()) / (draws + 1)
    return {name: float(np.clip(rank, 0, 1)) for name, rank in ranks.items()}


# ------------------------------------------------------------------------------------- speed


def instant_seconds(n_creators: int, *, seed: int = 42) -> pd.DataFrame:
    """Time instant readouts of many creators, and of one, after a night of 500.

    Returns
    -------
    DataFrame
        One row a method: ``method, n_nodes``; ``microseconds`` of processor time a creator when
        all are read out in one call; ``one_call``, seconds of it for a call with one creator,
        median of 20.
    """
    night = fit_night(simulate_summaries(seed)[0])
    size = -(-n_creators // 5)
    new, _ = simulate_summaries(seed + 1, n_creators_per_genre=size)
    new["creator_id"] = [f"new {i}" for i in range(len(new))]
    rows = []
    for method, nodes in (("mixture", night.nodes), ("plug-in", night.plug_in)):
        instant_estimates(night, new.head(), method=method)
        together = _seconds(night, new, method)
        alone = np.median([_seconds(night, new.iloc[[k]], method) for k in range(20)])
        row = {"method": method, "n_nodes": len(nodes.weights)}
        rows.append(row | {"microseconds": 1e6 * together / len(new), "one_call": alone})
    return pd.DataFrame(rows)


def _seconds(night: Night, new: pd.DataFrame, method: str) -> float:
    start = time.process_time()
    instant_estimates(night, new, method=method)
    return time.process_time() - start
