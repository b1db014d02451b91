"""Users of whom most pay nothing and some pay a lot, simulated with known truth.

A user of creator i in arm a pays with probability p[i, a], and a payer pays m[i, a] dollars on
average: revenue per user is p m. On the scales of log odds and of logarithms an arm lies half an
effect below (control) or above (treatment) the creator's level, and levels and effects vary
around the mean of their genre, which varies around that of the platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, gammainccinv, gammaincinv, ndtr, ndtri

from hbm.data import GENRES, GROUPS
from hbm.sizes import SIZE_MIXTURE, draw_sizes

#: How far each arm, control and treatment, lies from the creator's level, in effects.
ARMS = np.array([-0.5, 0.5])


class Spread(NamedTuple):
    """Mean over the platform, and standard deviations of the genres and of the creators."""

    mean: float
    genre: float
    creator: float


#: Log odds of paying, log dollars of a payer, and what treatment adds to each of them.
PAYERS = Spread(-2.0, 0.2, 0.5)
PAYMENT = Spread(3.0, 0.2, 0.4)
MORE_PAYERS = Spread(0.15, 0.10, 0.15)
MORE_PER_PAYER = Spread(0.05, 0.08, 0.10)


def lognormal_tail(z: np.ndarray, log_sd) -> np.ndarray:
    """Turn standard normals into lognormal payments of mean 1."""
    return np.exp(log_sd * z - 0.5 * np.square(log_sd))


def gamma_tail(z: np.ndarray, log_sd: float) -> np.ndarray:
    """Turn standard normals into gamma payments with the lognormal's mean and variance."""
    shape = 1 / np.expm1(log_sd**2)
    low, high = gammaincinv(shape, ndtr(z)), gammainccinv(shape, ndtr(-z))
    return np.where(z < 0, low, high) / shape


def loglogistic_tail(z: np.ndarray, log_sd: float) -> np.ndarray:
    """Turn standard normals into log-logistic payments with the lognormal's mean and variance.

    Their tail falls like a power of the payment, P(y > x) ~ x^(-1/b), not exponentially.
    """
    b = brentq(lambda b: np.tan(np.pi * b) / (np.pi * b) - np.exp(log_sd**2), 1e-6, 0.5 - 1e-9)
    log_odds = np.log(ndtr(z)) - np.log(ndtr(-z))
    return np.exp(b * log_odds) * np.sin(np.pi * b) / (np.pi * b)


#: Payments relative to their mean: functions of standard normals and the log standard deviation.
TAILS = {"lognormal": lognormal_tail, "gamma": gamma_tail, "loglogistic": loglogistic_tail}


def generate_revenue_data(
    seed: int | np.random.Generator = 42,
    *,
    genres: Sequence[str] = GENRES,
    n_creators_per_genre: int = 40,
    size_mixture=SIZE_MIXTURE,
    treatment_share: float = 0.5,
    payers: Spread = PAYERS,
    payment: Spread = PAYMENT,
    more_payers: Spread = MORE_PAYERS,
    more_per_payer: Spread = MORE_PER_PAYER,
    tail: str = "lognormal",
    log_sd: float = 1.2,
    treated_log_sd: float | None = None,
    pre_period: float | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate one experiment a creator whose users pay nothing or a skewed amount.

    Parameters
    ----------
    seed : int or Generator
    genres, n_creators_per_genre, size_mixture, treatment_share
        As for `hbm.generate_experiment_data`.
    payers, payment : Spread
        Levels: log odds of paying, and logarithm of a payer's mean payment in dollars.
    more_payers, more_per_payer : Spread
        Effects of treatment on the two.
    tail : {"lognormal", "gamma", "loglogistic"}
        How payments spread around their mean; all three have the same variance.
    log_sd : float
        Log standard deviation of the lognormal with that variance.
    treated_log_sd : float, optional
        Another one for treated payers, whose mean payment stays what it is.
    pre_period : float, optional
        Correlation of each user's two normal scores (whether they pay, how much) with those of
        the period before the experiment; adds the column ``revenue_before``.

    Returns
    -------
    users : DataFrame
        One row a user: ``creator_id, genre, group, revenue`` (dollars).
    truth : dict
        ``creator_effects`` (creator,) in dollars per user and their parts ``more_payers`` and
        ``more_per_payer``; ``payer_share, payment`` (creator, arm); ``genre_effects`` (genre,),
        means of the effects; ``creator_genre, creator_n, creator_id, genres``.

    Raises
    ------
    ValueError
        If the tail is unknown, or a size or share out of its range.
    """
    if tail not in TAILS:
        raise ValueError(f"unknown tail {tail!r}; known: {', '.join(TAILS)}")
    rng = np.random.default_rng(seed)
    genre = np.repeat(np.arange(len(genres)), n_creators_per_genre)
    level, effect = draw_creators(rng, genre, payers), draw_creators(rng, genre, more_payers)
    share = expit(level[:, None] + ARMS * effect[:, None])
    level, effect = draw_creators(rng, genre, payment), draw_creators(rng, genre, more_per_payer)
    mean = np.exp(level[:, None] + ARMS * effect[:, None])
    parts = split_effect(share, mean)

    creator, treated, n = _place_users(rng, len(genre), size_mixture, treatment_share)
    arm = treated.astype(int)
    scores = rng.standard_normal((2, len(creator)))
    sd = np.array([log_sd, treated_log_sd or log_sd])
    columns = {"revenue": _pay(scores, share[creator, arm], mean[creator, arm], tail, sd, arm)}
    if pre_period is not None:
        noise = rng.standard_normal(scores.shape)
        before = pre_period * scores + np.sqrt(1 - pre_period**2) * noise
        none = np.zeros_like(arm)
        columns["revenue_before"] = _pay(
            before, share[creator, 0], mean[creator, 0], tail, sd, none
        )
    users, ids = _as_users(creator, genre, treated, genres, columns)
    effects = sum(parts)
    truth = {
        "creator_effects": effects,
        "more_payers": parts[0],
        "more_per_payer": parts[1],
        "payer_share": share,
        "payment": mean,
        "genre_effects": np.bincount(genre, effects) / np.bincount(genre),
        "creator_genre": genre,
        "creator_n": n,
        "creator_id": ids,
        "genres": tuple(genres),
    }
    return users, truth


def generate_count_data(
    seed: int | np.random.Generator = 42,
    *,
    genres: Sequence[str] = GENRES,
    n_creators_per_genre: int = 40,
    size_mixture=SIZE_MIXTURE,
    treatment_share: float = 0.5,
    count: Spread = Spread(-1.0, 0.2, 0.5),
    more: Spread = Spread(0.10, 0.08, 0.12),
    spread: float = 2.0,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate counts a user, such as purchases: negative binomial, so most of them are 0.

    Parameters
    ----------
    seed, genres, n_creators_per_genre, size_mixture, treatment_share
        As for `generate_revenue_data`.
    count, more : Spread
        Logarithm of the mean count, and what treatment adds to it.
    spread : float
        Coefficient of variation of the users' own rates: the variance is m + (spread m)².

    Returns
    -------
    users : DataFrame
        One row a user; the count stands in ``revenue``.
    truth : dict
        As from `generate_revenue_data`, with ``mean`` (creator, arm) in place of the two parts.

    Raises
    ------
    ValueError
        If a size or share is out of its range.
    """
    rng = np.random.default_rng(seed)
    genre = np.repeat(np.arange(len(genres)), n_creators_per_genre)
    level, effect = draw_creators(rng, genre, count), draw_creators(rng, genre, more)
    mean = np.exp(level[:, None] + ARMS * effect[:, None])
    creator, treated, n = _place_users(rng, len(genre), size_mixture, treatment_share)
    size = 1 / spread**2
    rate = mean[creator, treated.astype(int)]
    users, ids = _as_users(
        creator,
        genre,
        treated,
        genres,
        {"revenue": rng.negative_binomial(size, size / (size + rate))},
    )
    effects = mean[:, 1] - mean[:, 0]
    truth = {
        "creator_effects": effects,
        "mean": mean,
        "genre_effects": np.bincount(genre, effects) / np.bincount(genre),
        "creator_genre": genre,
        "creator_n": n,
        "creator_id": ids,
        "genres": tuple(genres),
    }
    return users, truth


def draw_creators(rng: np.random.Generator, genre: np.ndarray, spread: Spread) -> np.ndarray:
    """Draw a value for each creator around the mean of its genre, shape ``(creator,)``."""
    means = rng.normal(spread.mean, spread.genre, genre.max() + 1)
    return rng.normal(means[genre], spread.creator)


def split_effect(share: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split the effect in dollars per user into more payers and more per payer.

    p₁ m₁ - p₀ m₀ = (p₁ - p₀) (m₀ + m₁) / 2 + (m₁ - m₀) (p₀ + p₁) / 2: each part at the other's
    average over the arms, so that they add up and neither comes first.

    Parameters
    ----------
    share, mean : ndarray, shape (…, 2)
        Share of payers and mean payment, control and treatment.
    """
    return (
        (share[..., 1] - share[..., 0]) * mean.mean(axis=-1),
        (mean[..., 1] - mean[..., 0]) * share.mean(axis=-1),
    )


def _place_users(rng, n_creators: int, size_mixture, treatment_share: float):
    """Return creator and arm of every user, and the users of each creator."""
    n, n_treatment = draw_sizes(rng, n_creators, size_mixture, treatment_share)
    creator = np.repeat(np.arange(n_creators), n)
    place = np.arange(len(creator)) - np.repeat(np.cumsum(n) - n, n)
    return creator, place < n_treatment[creator], n


def _pay(scores, share, mean, tail: str, log_sd: np.ndarray, arm: np.ndarray) -> np.ndarray:
    """Return what each user pays, from their two normal scores."""
    revenue = np.zeros(len(share))
    pays = scores[0] < ndtri(share)
    for which, sd in enumerate(log_sd):
        those = pays & (arm == which)
        revenue[those] = mean[those] * TAILS[tail](scores[1][those], sd)
    return revenue


def _as_users(creator, genre, treated, genres, columns: dict) -> tuple[pd.DataFrame, np.ndarray]:
    width = len(str(len(genre)))
    ids = np.array([f"c{i + 1:0{width}d}" for i in range(len(genre))], dtype=object)
    users = pd.DataFrame(
        {
            "creator_id": pd.Categorical.from_codes(creator, ids),
            "genre": pd.Categorical.from_codes(genre[creator], list(genres)),
            "group": pd.Categorical.from_codes(treated.astype(int), list(GROUPS)),
            **columns,
        }
    )
    return users, ids
