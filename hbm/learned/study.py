"""Do priors learned from past batches help, and what do they do when the world changes?

Each data set is a sequence of batches of new creators in the same genres. Standard errors are
known, so that what is measured is the carrying of knowledge and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hbm.data import GENRES
from hbm.exact.likelihood import Likelihood
from hbm.exact.quadrature import integrate
from hbm.exact.rule import effect_rule
from hbm.gaussian import Estimates, Moments, creator_moments, mixture_cdf, mixture_moments
from hbm.intervals import share_error, tail_probabilities
from hbm.learned import DISCOUNT, log_predictive_density, remember_batch
from hbm.learned.conflict import SPREAD, prior_conflict, resolve_conflict
from hbm.priors import Priors
from hbm.replicate import replicate
from hbm.sbc import Calibration, Joint, collect_ranks, rank_exactly, simulate_joint
from hbm.sizes import SIZE_MIXTURE, draw_sizes

#: The world of the studies, that of `hbm.generate_experiment_data`.
GENRE_MEAN, GENRE_SD, SIGMA_CREATOR, SIGMA_OBS = 0.5, 0.3, 0.4, 2.0

#: Creators of a batch, and how many of them are of the new genre where there is one.
N_CREATORS, N_NEW = 200, 4
NEW = GENRES[-1]

#: How a batch is met: discount of what was learned from those before it; None for nothing.
POLICIES = {"each batch alone": None, "undiscounted": 1.0, "discounted": DISCOUNT}
CHECKED = "discounted, with the check"
ORACLE = "oracle"

#: The same by discount, for the study of wandering means.
CANDIDATES = {"each batch alone": None, "0.5": 0.5, "0.7": 0.7, "0.9": 0.9, "1": 1.0}


@dataclass(frozen=True)
class Batch:
    """A batch and its truth: `tau` by creator, `mu_genre` by genre of the batch."""

    summaries: pd.DataFrame
    tau: np.ndarray
    mu_genre: np.ndarray
    sigma_creator: float


def draw_batch(
    rng: np.random.Generator,
    mu_genre: np.ndarray,
    counts: np.ndarray,
    sigma_creator: float = SIGMA_CREATOR,
    size_mixture=SIZE_MIXTURE,
) -> Batch:
    """Draw creators around their genres' means, and an experiment for each.

    Parameters
    ----------
    rng : Generator
    mu_genre : ndarray, shape (genre,)
        Means of the first genres of `GENRES`.
    counts : ndarray of int, shape (genre,)
        Creators of each genre, 1 at least.
    sigma_creator : float
    size_mixture
        As for `hbm.generate_experiment_data`.
    """
    genre_idx = np.repeat(np.arange(len(counts)), counts)
    n_total, _ = draw_sizes(rng, len(genre_idx), size_mixture)
    tau = rng.normal(np.asarray(mu_genre)[genre_idx], sigma_creator)
    se = 2 * SIGMA_OBS / np.sqrt(n_total)
    summaries = pd.DataFrame(
        {
            "creator_id": [f"creator_{i:04d}" for i in range(len(tau))],
            "genre": np.array(GENRES, dtype=object)[genre_idx],
            "genre_idx": genre_idx,
            "n_total": n_total,
            "effect_hat": rng.normal(tau, se),
            "se": se,
        }
    )
    return Batch(summaries, tau, np.asarray(mu_genre), sigma_creator)


def equal_counts(n_genres: int, n_creators: int = N_CREATORS) -> np.ndarray:
    """Return the creators of each genre where all have as many."""
    return np.full(n_genres, n_creators // n_genres)


# ------------------------------------------------------------------------------ scoring


def _scores(batch: Batch, policy: str, priors: Priors | None) -> pd.DataFrame:
    """Score the readouts of a batch, one row a genre; without priors those of the oracle."""
    data = Estimates.from_frame(batch.summaries)
    if priors is None:
        known = batch.mu_genre[None], np.array([batch.sigma_creator])
        fitted, moments, weight = None, creator_moments(data, *known), np.ones(1)
    else:
        fitted = Fitted(data.remembering(priors.memory, GENRES), priors)
        moments, weight = fitted.effects, fitted.rule.weight
    error, inside = against(batch.tau[data.order], moments, weight)
    n_creators = np.bincount(data.genre_idx)
    table = {
        "policy": policy,
        "genre": GENRES[: data.n_genres],
        "n_creators": n_creators,
        "squared_error": data.by_genre(error) / n_creators,
        "coverage": data.by_genre(inside) / n_creators,
        "quadrature_error": 0.0 if fitted is None else fitted.error,
    }
    if fitted is not None:
        own = slice(data.n_genres)
        genre = Moments(*(part[:, own] for part in fitted.centers))
        error, inside = against(batch.mu_genre, genre, weight)
        table |= {"genre_squared_error": error, "genre_coverage": inside}
    return pd.DataFrame(table)


def against(truth: np.ndarray, moments: Moments, weight: np.ndarray):
    """Return squared errors of means, and whether equal-tailed intervals hold the truth."""
    below = mixture_cdf(moments, truth, weight)
    lower, upper = tail_probabilities()
    inside = ((below >= lower) & (below <= upper)).astype(float)
    return np.square(mixture_moments(moments, weight).mean - truth), inside


class Fitted:
    """A fit by the exact engine, with what the studies need of it and nothing else."""

    def __init__(self, data: Estimates, priors: Priors):
        self.likelihood = Likelihood(data, priors.mu_global)
        grid = integrate(self.likelihood, priors)
        weight, sigma = np.exp(grid.log_weight), grid.nodes.sigma_creator
        self.mean = float((weight * sigma).sum())
        self.sd = float(np.sqrt((weight * np.square(sigma - self.mean)).sum()))
        self.rule = effect_rule(grid)
        self.error = max(grid.error, self.rule.error)
        self.centers = self.rule.centers(self.likelihood)
        self.genre = mixture_moments(self.centers, self.rule.weight)
        self.effects = creator_moments(data, self.centers, self.rule.sigma_creator)


def summarize_policies(study: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Average a study over its sequences, with Monte Carlo errors by sequence.

    Parameters
    ----------
    study : DataFrame
        From a study of this module: one row a sequence, batch, policy and genre.
    by : list of str
        ``policy`` and what else the rows are by.

    Returns
    -------
    DataFrame
        `by`, ``n_sequences, mse, coverage, genre_mse, genre_coverage`` (and ``elpd`` where the
        study has it) with ``*_se``; ``ratio``, the mean squared error of the readouts over the
        oracle's, with ``ratio_se``, from the differences sequence by sequence.
    """
    measures = ["squared_error", "coverage"]
    weighted = study.assign(**{m: study[m] * study["n_creators"] for m in measures})
    keys = ["sequence", *by]
    groups = weighted.groupby(keys, sort=False)
    one = groups[[*measures, "n_creators"]].sum()
    one = one[measures].div(one["n_creators"], axis=0)
    extra = {"genre_squared_error", "genre_coverage", "elpd"} & set(study)
    one = one.join(groups[sorted(extra)].mean())
    one = one.rename(columns=lambda name: name.replace("squared_error", "mse")).reset_index()
    rest = [key for key in keys if key != "policy"]
    oracle = one[one["policy"] == ORACLE].set_index(rest)["mse"].rename("oracle")
    one = one.join(oracle, on=rest)
    grouped = one.drop(columns="sequence").groupby(by, sort=False)
    mean, error = grouped.mean(), grouped.sem()
    summary = pd.DataFrame({"n_sequences": grouped.size()})
    for name in mean.columns.drop("oracle"):
        summary[name], summary[f"{name}_se"] = mean[name], error[name]
    ratio = (mean["mse"] / mean["oracle"]).rename("ratio")
    one = one.join(ratio, on=by)
    one["left"] = (one["mse"] - one["ratio"] * one["oracle"]) / one["oracle"].mean()
    summary["ratio"] = ratio
    summary["ratio_se"] = one.groupby(by, sort=False)["left"].sem()
    return summary.reset_index()


def gathered(results: list[pd.DataFrame]) -> pd.DataFrame:
    """Put the results of many sequences into one frame, numbered by ``sequence``."""
    frames = (frame.assign(sequence=place) for place, frame in enumerate(results))
    return pd.concat(frames, ignore_index=True)


# ------------------------------------------------------------------- the weeks of a genre


def weeks_study(
    n_sequences: int, *, weeks: tuple[int, ...] = (1, 2, 4, 8), seed: int = 42
) -> pd.DataFrame:
    """Follow a genre from its first week on a platform whose other genres are known.

    Four batches of `N_CREATORS` creators of four genres come first. Then every week `N_NEW` of
    the creators are of a new genre.

    Returns
    -------
    DataFrame
        One row a sequence, scored week (``batch``), policy and genre, as `summarize_policies`
        takes it.
    """
    return gathered(replicate(_weeks, n_sequences, seed=seed, weeks=weeks))


def _weeks(rng: np.random.Generator, *, weeks: tuple[int, ...]) -> pd.DataFrame:
    mu = rng.normal(GENRE_MEAN, GENRE_SD, len(GENRES))
    old = equal_counts(len(GENRES) - 1)
    known = dict.fromkeys(POLICIES, Priors())
    known = _after(known, [draw_batch(rng, mu[:-1], old) for _ in range(4)])
    frames = []
    for week in range(1, max(weeks) + 1):
        batch = draw_batch(rng, mu, np.append(equal_counts(len(mu) - 1, N_CREATORS - N_NEW), N_NEW))
        if week in weeks:
            scored = [_scores(batch, policy, priors) for policy, priors in known.items()]
            frames += [f.assign(batch=week) for f in (*scored, _scores(batch, ORACLE, None))]
        known = _after(known, [batch])
    return pd.concat(frames, ignore_index=True)


def _after(known: dict[str, Priors], batches: list[Batch], policies=POLICIES) -> dict:
    """Let every policy learn from some batches."""
    for batch in batches:
        known = {
            policy: priors
            if policies[policy] is None
            else remember_batch(priors, batch.summaries, discount=policies[policy])
            for policy, priors in known.items()
        }
    return known


# ------------------------------------------------------------------------ a world changes


def change_study(
    n_sequences: int,
    *,
    jump: float = 0.6,
    at: int = 4,
    scored: tuple[int, ...] = (3, 4, 5, 6),
    seed: int = 42,
) -> pd.DataFrame:
    """Let the mean of one genre jump, once, and go on.

    Returns
    -------
    DataFrame
        As of `weeks_study`; ``alarm`` says whether the check found a conflict in that batch,
        and ``named`` whether it named the genre that had jumped, `GENRES`[2].
    """
    settings = {"jump": jump, "at": at, "scored": scored}
    return gathered(replicate(_change, n_sequences, seed=seed, **settings))


def _change(rng: np.random.Generator, *, jump, at, scored) -> pd.DataFrame:
    mu = rng.normal(GENRE_MEAN, GENRE_SD, len(GENRES))
    known, checked = dict.fromkeys(POLICIES, Priors()), Priors()
    frames = []
    for place in range(1, max(scored) + 1):
        if place == at:
            mu = mu + jump * (np.arange(len(mu)) == 2)
        batch = draw_batch(rng, mu, equal_counts(len(mu)))
        told = {"alarm": False, "named": False}
        if checked.memory is not None:
            conflict = prior_conflict(checked, batch.summaries)
            told = {"alarm": conflict.alarm, "named": GENRES[2] in conflict.surprises}
            checked = resolve_conflict(checked, conflict)
        if place in scored:
            met = known | {CHECKED: checked, ORACLE: None}
            frames += [_scores(batch, *item).assign(batch=place, **told) for item in met.items()]
        known = _after(known, [batch])
        checked = remember_batch(checked, batch.summaries)
    return pd.concat(frames, ignore_index=True)


def wandering_study(
    n_sequences: int, *, step: float = 0.05, n_batches: int = 8, seed: int = 42
) -> pd.DataFrame:
    """Let all genres' means wander, by a little with every batch, and score the last batch.

    Returns
    -------
    DataFrame
        As of `weeks_study`, by the discounts of `CANDIDATES`; ``elpd`` is the log density of
        the last batch's estimates given what was remembered, less that without any memory.
    """
    settings = {"step": step, "n_batches": n_batches}
    return gathered(replicate(_wander, n_sequences, seed=seed, **settings))


def _wander(rng: np.random.Generator, *, step: float, n_batches: int) -> pd.DataFrame:
    mu = rng.normal(GENRE_MEAN, GENRE_SD, len(GENRES))
    known = dict.fromkeys(CANDIDATES, Priors())
    for _ in range(n_batches - 1):
        batch = draw_batch(rng, mu, equal_counts(len(mu)))
        known = _after(known, [batch], CANDIDATES)
        mu = mu + rng.normal(0, step, len(mu))
    batch = draw_batch(rng, mu, equal_counts(len(mu)))
    plain = log_predictive_density(Priors(), batch.summaries)
    frames = [_scores(batch, ORACLE, None)]
    for policy, priors in known.items():
        elpd = log_predictive_density(priors, batch.summaries) - plain
        frames.append(_scores(batch, policy, priors).assign(elpd=elpd))
    return pd.concat(frames, ignore_index=True).assign(batch=n_batches)


#: What may change between two batches: shift of one genre, shift of all, factor of sigma_creator.
CHANGES = {
    "nothing": (0.0, 0.0, 1.0),
    "one genre by $0.20": (0.2, 0.0, 1.0),
    "one genre by $0.40": (0.4, 0.0, 1.0),
    "all genres by $0.20": (0.0, 0.2, 1.0),
    "sigma_creator by a quarter": (0.0, 0.0, 1.25),
    "sigma_creator by a half": (0.0, 0.0, 1.5),
}


def alarm_study(n_sequences: int, *, discount: float = DISCOUNT, seed: int = 42) -> pd.DataFrame:
    """Count how often a change is noticed in the first batch after it.

    Returns
    -------
    DataFrame
        One row a change of `CHANGES`: ``change, alarm`` and ``alarm_se``, the share of sequences
        with an alarm after four batches of memory; ``named`` and ``named_se``, the share in
        which the alarm named what had changed. The errors are those of Jeffreys' posterior of
        the share, which are not 0 where all or none were noticed.
    """
    found = gathered(replicate(_alarms, n_sequences, seed=seed, discount=discount))
    groups = found.groupby("change", sort=False)[["alarm", "named"]]
    errors = share_error(groups.sum(), n_sequences).add_suffix("_se")
    table = pd.concat([groups.mean(), errors], axis=1)
    return table[["alarm", "alarm_se", "named", "named_se"]].reset_index()


def _alarms(rng: np.random.Generator, *, discount: float) -> pd.DataFrame:
    mu = rng.normal(GENRE_MEAN, GENRE_SD, len(GENRES))
    counts, priors = equal_counts(len(mu)), Priors()
    for _ in range(4):
        priors = remember_batch(priors, draw_batch(rng, mu, counts).summaries, discount=discount)
    rows = []
    for change, (one, every, factor) in CHANGES.items():
        moved = mu + every + one * (np.arange(len(mu)) == 2)
        batch = draw_batch(rng, moved, counts, SIGMA_CREATOR * factor)
        conflict = prior_conflict(priors, batch.summaries)
        wanted = {SPREAD} if factor != 1 else set(np.array(GENRES)[moved != mu])
        named = bool(wanted & set(conflict.surprises))
        rows.append({"change": change, "alarm": float(conflict.alarm), "named": float(named)})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------- calibration


def chained_sbc(
    n_replications: int = 500, *, batches: int = 3, draws: int = 250, seed: int = 42
) -> Calibration:
    """Rank the truth in the posterior of the last of several batches, learned one by one.

    Everything is drawn from the default priors once, and shared by the batches of `N_CREATORS`
    creators; undiscounted, so the ranks must be uniform. The last genre comes with the last
    batch only.

    Parameters
    ----------
    n_replications : int
    batches : int
    draws : int
        Draws among which the log densities are ranked.
    seed : int

    Returns
    -------
    Calibration
        To be judged by `hbm.sbc_verdicts`.
    """
    settings = {"batches": batches, "draws": draws}
    return collect_ranks(replicate(_chained_replication, n_replications, seed=seed, **settings))


def _chained_replication(rng: np.random.Generator, *, batches: int, draws: int):
    n_genres = len(GENRES)
    counts = [equal_counts(n_genres - 1)] * (batches - 1) + [equal_counts(n_genres)]
    designs = [draw_batch(rng, np.zeros(len(c)), c).summaries for c in counts]
    truth, data = simulate_joint(rng, pd.concat(designs, ignore_index=True), Priors())
    priors, end = Priors(), 0
    for design in designs:
        rows = slice(end, end := end + len(design))
        batch = data.iloc[rows].reset_index(drop=True)
        if len(design) and end < len(data):
            priors = remember_batch(priors, batch, discount=1)
    own = Joint(truth.hyper, truth.mu_genre, truth.tau[:, rows])
    return rank_exactly(rng, own, batch, batch, priors, draws)
