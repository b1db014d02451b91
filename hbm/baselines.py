"""The two extremes: every creator alone, and every creator like its genre."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special

from hbm.data import summarize_creators, validate_summaries
from hbm.intervals import LEVEL, normal_factor


def _as_summaries(data: pd.DataFrame) -> pd.DataFrame:
    return validate_summaries(data) if "effect_hat" in data else summarize_creators(data)


def _estimates(summaries: pd.DataFrame, effect, se, p_value) -> pd.DataFrame:
    half = normal_factor(LEVEL) * se
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
            "p_value": p_value,
        }
    )


def no_pooling_estimates(data: pd.DataFrame) -> pd.DataFrame:
    """Estimate every creator from its own users alone.

    The estimate is the difference of the arms' means, the interval ± 1.96 standard errors, the
    p-value two-sided from Welch's t-test (Welch 1947), or from a normal where the summaries
    carry no degrees of freedom ``df``.

    Parameters
    ----------
    data : DataFrame
        A users frame or a summaries frame.

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
    df = summaries["df"].to_numpy(float) if "df" in summaries else np.full(len(se), np.inf)
    return _estimates(summaries, effect, se, 2 * special.stdtr(df, -np.abs(effect / se)))


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
    return _estimates(summaries, mean[idx], se[idx], p_value[idx])
