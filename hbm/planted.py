"""Would calibration notice? Errors planted into the fit, and the smallest that is noticed."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from hbm.intervals import LEVEL
from hbm.priors import Prior, Priors
from hbm.sbc import QUANTITIES, Fault, run_sbc
from hbm.uniform import uniform_band

#: Standard error of a creator whose data are ignored: of no weight, in the unit of the priors.
_IGNORED = 1e3

#: Simulated runs from which a power is estimated.
_SETS = 300

#: Normal score beyond which a rank lies in the tails.
_TAIL = 2.0


def variance_for_sd(design: pd.DataFrame, priors: Priors):
    """Give the fit the square of each standard error."""
    return design.assign(se=np.square(design["se"])), priors


def scaled_se(design: pd.DataFrame, priors: Priors, factor: float):
    """Give the fit standard errors that are wrong by a factor."""
    return design.assign(se=factor * design["se"]), priors


def wrong_genres(design: pd.DataFrame, priors: Priors):
    """Move the genre indices on by half a genre, as an unsorted join would."""
    genre_idx = design["genre_idx"].to_numpy()
    shift = max(1, len(design) // (2 * (genre_idx.max() + 1)))
    return design.assign(genre_idx=np.roll(genre_idx, shift)), priors


def swapped_genres(design: pd.DataFrame, priors: Priors):
    """Give every genre the index of the next: the groups are right and their names wrong."""
    genre_idx = design["genre_idx"]
    return design.assign(genre_idx=(genre_idx + 1) % (genre_idx.max() + 1)), priors


def wide_priors(design: pd.DataFrame, priors: Priors):
    """Make the priors of both standard deviations twice as wide."""
    sigma_genre, sigma_creator = (_twice(p) for p in (priors.sigma_genre, priors.sigma_creator))
    return design, replace(priors, sigma_genre=sigma_genre, sigma_creator=sigma_creator)


def half_ignored(design: pd.DataFrame, priors: Priors):
    """Ignore the estimate of every other creator."""
    return design.assign(se=design["se"].where(np.arange(len(design)) % 2 == 0, _IGNORED)), priors


def all_ignored(design: pd.DataFrame, priors: Priors):
    """Ignore all estimates, so that the posterior is the prior."""
    return design.assign(se=_IGNORED), priors


def _twice(prior: Prior) -> Prior:
    return type(prior)(**{name: 2 * value for name, value in asdict(prior).items()})


#: The planted errors that are reported.
FAULTS: dict[str, Fault] = {
    "variance for sd": variance_for_sd,
    "wrong genre index": wrong_genres,
    "genre names swapped": swapped_genres,
    "priors too wide": wide_priors,
    "half of the data ignored": half_ignored,
    "posterior = prior": all_ignored,
}


def smallest_detectable_error(
    design: pd.DataFrame,
    factors: tuple[float, ...] = (1.01, 1.05, 1.2, 1.5, 2.0),
    *,
    n_pairs: int = 200,
    n_replications: int = 1000,
    power: float = 0.8,
    priors: Priors = Priors(),
    seed: int = 42,
) -> pd.DataFrame:
    """Measure by how much standard errors have to be too large to be noticed by `run_sbc`.

    The same replications are run without the error and with it, and what it does to a rank
    is carried over to simulated uniform ranks: on the normal scale each is shifted and
    stretched as the pairs were (least squares), and moved as one of them, at random, was moved
    beyond that. So power does not hang on the luck of the pairs' own ranks. Pairs in the tails
    are left out, where a rank among few draws jumps. Between the factors moves are interpolated
    along log(factor).

    Parameters
    ----------
    design : DataFrame
        As for `run_sbc`.
    factors : tuple of float
        By which the fit's standard errors are too large, ascending, above 1.
    n_pairs : int
        Replications that are run with and without the error.
    n_replications : int
        Of the run that is to notice.
    power : float
        Probability that the quantity alone fails `sbc_verdicts`.
    priors, seed
        As for `run_sbc`.

    Returns
    -------
    DataFrame
        One row a quantity: ``quantity, error`` (factor - 1 at which the power is reached;
        missing where the largest factor does not reach it) and ``error_se``, its Monte Carlo
        error by a jackknife over tenths of the pairs and of the simulated runs (missing where
        the largest factor reaches it only just).
    """
    right, *wrong = (
        run_sbc(design, n_pairs, fault=fault, priors=priors, seed=seed).ranks
        for fault in (None, *(partial(scaled_se, factor=factor) for factor in factors))
    )
    log_factors = np.log([1.0, *factors])
    scores = np.random.default_rng(seed).standard_normal((_SETS, n_replications))
    pair, simulated = np.arange(n_pairs) % 10, np.arange(_SETS) % 10
    rows = []
    for name in right:
        pairs = np.array([_normal_score(frame[name]) for frame in [right, *wrong]])
        error = _error_with_power(log_factors, pairs, scores, power)
        without = range(10) if np.isfinite(error) else ()
        parts = [
            _error_with_power(log_factors, pairs[:, pair != k], scores[simulated != k], power)
            for k in without
        ]
        rows.append((name, error, np.sqrt(9.0 * np.var(parts)) if parts else np.nan))
    return pd.DataFrame(rows, columns=["quantity", "error", "error_se"])


def _normal_score(rank: pd.Series) -> np.ndarray:
    return ndtri(np.clip(rank.to_numpy(), 1e-9, 1 - 1e-9))


def _error_with_power(log_factors, pairs: np.ndarray, scores: np.ndarray, power: float) -> float:
    """Return the factor - 1 at which uniform ranks, moved as those of the pairs, are noticed.

    `pairs` has the shape (factor, pair), the normal scores of each pair's ranks; `scores`, those
    of uniform ranks, the shape (set, replication).
    """
    pairs = pairs[:, np.abs(pairs[0]) < _TAIL]
    moves = pairs - pairs[0]
    slope, level = np.polyfit(pairs[0], moves.T, 1)
    beyond = moves - level[:, None] - slope[:, None] * pairs[0]
    picked = np.random.default_rng(0).integers(pairs.shape[1], size=scores.shape)

    def reached(log_factor: float) -> bool:
        above = np.clip(np.searchsorted(log_factors, log_factor), 1, len(log_factors) - 1)
        share = (log_factor - log_factors[above - 1]) / (
            log_factors[above] - log_factors[above - 1]
        )
        a, b, c = (
            (1 - share) * part[above - 1] + share * part[above] for part in (level, slope, beyond)
        )
        return _share_outside(ndtr(scores + a + b * scores + c[picked])) >= power

    low, high = 0.0, log_factors[-1]
    if not reached(high):
        return np.nan
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return float(np.expm1(high))


def _share_outside(ranks: np.ndarray) -> float:
    """Share of samples, one a row, that leave the band in which a quantity has to stay."""
    n_sets, n = ranks.shape
    _, low, high = uniform_band(n, 1 - (1 - LEVEL) / len(QUANTITIES))
    place = np.minimum((ranks * n).astype(int), n - 1) + n * np.arange(n_sets)[:, None]
    counts = np.bincount(place.ravel(), minlength=n_sets * n).reshape(n_sets, n)
    share = counts.cumsum(axis=1)[:, :-1] / n
    slack = 0.5 / n
    return float(((share < low - slack) | (share > high + slack)).any(axis=1).mean())
