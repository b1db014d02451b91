"""The two extremes, every creator alone and every creator like its genre, and plug-in pooling."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import optimize, special

from hbm.data import summarize_creators, validate_summaries
from hbm.gaussian import (
    Estimates,
    Hyper,
    Moments,
    creator_moments,
    genre_moments,
    genre_sums,
    log_density,
    shrinkage_factor,
)
from hbm.intervals import LEVEL, normal_factor, tail_probabilities


def _as_summaries(data: pd.DataFrame) -> pd.DataFrame:
    return validate_summaries(data) if "effect_hat" in data else summarize_creators(data)


def _estimates(summaries: pd.DataFrame, effect, se, half=None, **more) -> pd.DataFrame:
    half = normal_factor(LEVEL) * se if half is None else half
    genre = summaries["genre"] if "genre" in summaries else summaries["genre_idx"].astype(str)
    n_total = summaries["n_total"].to_numpy() if "n_total" in summaries else np.nan
    return pd.DataFrame(
        {
            "creator_id": summaries["creator_id"].to_numpy(),
            "genre": genre.to_numpy(),
            "effect_hat": effect,
            "se": se,
            "ci_lower": effect - half,
            "ci_upper": effect + half,
            "n_total": n_total,
            **more,
        }
    )


def no_pooling_estimates(data: pd.DataFrame, *, student: bool = False) -> pd.DataFrame:
    """Estimate every creator from its own users alone.

    The estimate is the difference of the arms' means, the interval ± 1.96 standard errors, the
    p-value two-sided from Welch's t-test (Welch 1947), or from a normal where the summaries
    carry no degrees of freedom ``df``.

    Parameters
    ----------
    data : DataFrame
        A users frame or a summaries frame.
    student : bool
        Take the width of the interval from Student's t with ``df`` degrees of freedom, as the
        p-value does.

    Returns
    -------
    DataFrame
        Estimates, one row a creator: ``creator_id, genre, effect_hat, se, ci_lower, ci_upper,
        n_total, p_value``; effects in the unit of revenue.

    Raises
    ------
    DataError
        If the table breaks a rule.
    """
    summaries = _as_summaries(data)
    effect, se = (summaries[name].to_numpy(float) for name in ("effect_hat", "se"))
    df = degrees_of_freedom(summaries)
    half = -special.stdtrit(df, tail_probabilities(LEVEL)[0]) * se if student else None
    p_value = 2 * special.stdtr(df, -np.abs(effect / se))
    return _estimates(summaries, effect, se, half, p_value=p_value)


def degrees_of_freedom(summaries: pd.DataFrame) -> np.ndarray:
    """Return the degrees of freedom of the standard errors, infinite where none are stated."""
    if "df" not in summaries:
        return np.full(len(summaries), np.inf)
    return summaries["df"].to_numpy(float)


def complete_pooling_estimates(data: pd.DataFrame) -> pd.DataFrame:
    """Give every creator of a genre the genre's one estimate.

    The inverse-variance weighted mean of the creators' own effects, so that each creator is
    compared with itself and differences of level between creators play no part. Its standard
    error assumes that all creators of a genre have the same effect; where they have not, the
    interval is far too narrow for a single creator.

    Parameters
    ----------
    data : DataFrame
        A users frame or a summaries frame.

    Returns
    -------
    DataFrame
        Estimates with the columns of `no_pooling_estimates`, one row a creator; the p-value is
        that of the genre's mean, from a normal.

    Raises
    ------
    DataError
        If the table breaks a rule.
    """
    summaries = _as_summaries(data)
    idx = summaries["genre_idx"].to_numpy(int)
    effects = summaries["effect_hat"].to_numpy(float)
    weight = 1 / np.square(summaries["se"].to_numpy(float))
    total = np.bincount(idx, weight)
    # Centred first, so that effects far from 0 lose no digits.
    center = np.bincount(idx, effects) / np.bincount(idx)
    mean = center + np.bincount(idx, weight * (effects - center[idx])) / total
    se = 1 / np.sqrt(total)
    p_value = 2 * special.ndtr(-np.abs(mean / se))
    return _estimates(summaries, mean[idx], se[idx], p_value=p_value[idx])


def james_stein_estimates(data: pd.DataFrame) -> pd.DataFrame:
    """Shrink every creator by one factor toward the weighted mean of all (James & Stein 1961).

    The positive-part estimator of the standardised effects z = (d - mean) / se: all are
    multiplied by max(0, 1 - (N - 3) / Σ z²). One factor for all creators is right where they
    have one standard error; here small creators need more of it than large ones.

    Parameters
    ----------
    data : DataFrame
        A users frame or a summaries frame, of four creators at least.

    Returns
    -------
    DataFrame
        Estimates, one row a creator; ``shrinkage`` is the common factor. The estimator has no
        interval of its own: ``se, ci_lower, ci_upper`` are those of a normal posterior with
        this factor, sqrt(1 - shrinkage) se.

    Raises
    ------
    DataError
        If the table breaks a rule.
    ValueError
        If there are fewer than four creators.
    """
    summaries = _as_summaries(data)
    if len(summaries) < 4:
        raise ValueError(f"James and Stein's estimator needs 4 creators, got {len(summaries)}")
    effect, se = (summaries[name].to_numpy(float) for name in ("effect_hat", "se"))
    mean = effect.mean() + np.average(effect - effect.mean(), weights=se**-2)
    squared = np.square((effect - mean) / se).sum()
    pull = min(1.0, (len(se) - 3) / squared) if squared else 1.0
    return _estimates(
        summaries, effect + pull * (mean - effect), se * np.sqrt(1 - pull), shrinkage=pull
    )


def empirical_bayes_estimates(data: pd.DataFrame, *, grouping: bool = True) -> pd.DataFrame:
    """Partial pooling with plugged-in standard deviations, as if they were known.

    mu_global, sigma_genre and sigma_creator are those that make all estimates together most
    probable (marginal maximum likelihood; Efron & Morris 1973), and everything else follows in
    closed form. The intervals hold what is not known of mu_global (Morris 1983, J. Am. Stat.
    Assoc. 78, 47); what is not known of the standard deviations is missing from them.

    Parameters
    ----------
    data : DataFrame
        A users frame or a summaries frame.
    grouping : bool
        False: one global mean, sigma_genre = 0.

    Returns
    -------
    DataFrame
        Estimates, one row a creator, with ``shrinkage`` = se² / (se² + sigma_creator²). Where
        sigma_creator is estimated as 0, intervals are those of the genre's mean, and where
        sigma_genre is too, those of the platform's mean.

    Raises
    ------
    DataError
        If the table breaks a rule.
    """
    summaries = _as_summaries(data)
    estimates = Estimates.from_frame(summaries)
    hyper = _most_probable(estimates, grouping)
    creator = creator_moments(estimates, _genre_moments(estimates, hyper), hyper.sigma_creator)
    effect, var = (estimates.unsort(part[0]) for part in creator)
    pull = shrinkage_factor(summaries["se"].to_numpy(float), hyper.sigma_creator)[0]
    return _estimates(summaries, effect, np.sqrt(var), shrinkage=pull)


def _genre_moments(data: Estimates, hyper: Hyper) -> Moments:
    """Moments of mu_genre with mu_global estimated, under a flat prior, instead of known."""
    known = genre_moments(data, hyper)
    var = np.square(hyper.sigma_genre)[:, None]
    weight = genre_sums(data, hyper.sigma_creator).weight
    of_mu = 1 / np.sum(1 / (var + 1 / weight), axis=1, keepdims=True)
    return known._replace(var=known.var + of_mu / np.square(1 + var * weight))


def _most_probable(data: Estimates, grouping: bool) -> Hyper:
    """Hyperparameters of maximum marginal likelihood, each of shape (1,)."""

    def hyper(scaled) -> Hyper:
        sigma_creator, sigma_genre = unit * np.square(np.append(scaled, 0.0)[:2])
        sums = genre_sums(data, np.array([sigma_creator]))
        precision = 1 / (sigma_genre**2 + 1 / sums.weight[0])
        mu = np.average(sums.mean[0] - sums.mean[0, 0], weights=precision) + sums.mean[0, 0]
        return Hyper(*np.array([[mu], [sigma_genre], [sigma_creator]]))

    # Squares of the parameters, so that 0 is no boundary.
    unit = max(np.std(data.effect_hat), data.se.min())
    starts = [(1.0, 1.0), (1.0, 0.3), (0.3, 1.0)] if grouping else [(1.0,), (0.3,)]
    found = [
        optimize.minimize(
            lambda x: -log_density(data, hyper(x))[0],
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-6, "fatol": 1e-8},
        )
        for start in starts
    ]
    return hyper(min(found, key=lambda result: result.fun).x)
