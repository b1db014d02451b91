"""Does a fitted grouping hold up? Separation of its groups, shrinkage, coverage of estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from hbm.checks import require_columns
from hbm.diagnostics import check_diagnostics
from hbm.estimates import extract_genre_estimates
from hbm.grouping.candidates import create_grouping
from hbm.grouping.thresholds import THRESHOLDS
from hbm.intervals import LEVEL, tail_probabilities


class Separation(NamedTuple):
    """How far the groups' mean effects lie apart, compared with how well they are known.

    Attributes
    ----------
    grouping_name : str
    table : DataFrame
        One row a group: ``genre, n_creators, mean, se, lower, upper, p_positive``, of the
        posterior of its mean effect.
    between_sd : float
        Standard deviation of the posterior means over groups.
    mean_se : float
        Mean of the posterior standard deviations.
    ratio : float
        ``between_sd / mean_se``.
    grade : str
        ``weak, moderate`` or ``strong``.
    """

    grouping_name: str
    table: pd.DataFrame
    between_sd: float
    mean_se: float
    ratio: float
    grade: str


@dataclass(frozen=True)
class ShrinkageAnalysis:
    """How far partial pooling moved the estimates, and which of them.

    Attributes
    ----------
    creators : DataFrame
        One row a creator: ``creator_id, group, plain, pooled, se, precision`` (1 / se),
        ``shrinkage`` (distance moved) and ``shrinkage_pct`` (in percent of the plain estimate;
        missing where that is 0).
    by_group : DataFrame
        One row a group: ``group, n_creators, median_shrinkage, median_pct``.
    median_shrinkage, median_pct : float
    n_undefined : int
        Creators without a percentage.
    correlation, rank_correlation : float
        Of precision and shrinkage: Pearson's, which decides, and Spearman's. NaN where all
        standard errors are equal.
    sensible : bool or None
        Whether less precise estimates shrink more, as they should; None if it cannot be said.
    """

    creators: pd.DataFrame
    by_group: pd.DataFrame
    median_shrinkage: float
    median_pct: float
    n_undefined: int
    correlation: float
    rank_correlation: float
    sensible: bool | None


class HeldOutCoverage(NamedTuple):
    """Share of held-out estimates inside their 95% predictive intervals.

    `lower, upper` is the exact binomial interval (Clopper & Pearson 1934) of the coverage;
    `p_value` that of so few or fewer hits if the coverage were .95.
    """

    coverage: float
    lower: float
    upper: float
    p_value: float
    n_creators: int


def check_posterior_separation(idata, grouping_name: str) -> Separation:
    """Ask whether the groups' mean effects really differ.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model`, with either engine.
    grouping_name : str

    Returns
    -------
    Separation

    Raises
    ------
    DiagnosticsError
        If the fit failed its diagnostics.
    ValueError
        If there is one group only.
    """
    check_diagnostics(idata, effects=False).raise_if_failed()
    table = extract_genre_estimates(idata)
    if len(table) < 2:
        raise ValueError(f"{grouping_name}: a single group has nothing to be separated from")
    between, uncertainty = float(table["mean"].std(ddof=0)), float(table["se"].mean())
    ratio = between / uncertainty
    return Separation(
        grouping_name, table, between, uncertainty, ratio, THRESHOLDS.separation(ratio)
    )


def analyze_shrinkage(
    ite_estimates: pd.DataFrame,
    hbm_estimates: pd.DataFrame,
    creator_features: pd.DataFrame,
    grouping_var: str,
) -> ShrinkageAnalysis:
    """Describe how far each estimate was moved, by its precision and by group.

    Parameters
    ----------
    ite_estimates : DataFrame
        Plain estimates: ``creator_id, effect_hat, se``.
    hbm_estimates : DataFrame
        Pooled estimates of the same creators: ``creator_id, effect_hat``.
    creator_features : DataFrame
        ``creator_id`` and the grouping.
    grouping_var : str

    Returns
    -------
    ShrinkageAnalysis

    Raises
    ------
    DataError
        If a column is missing, or a creator has no group.
    ValueError
        If the two frames of estimates hold different creators.
    """
    require_columns(hbm_estimates, ("creator_id", "effect_hat"), "hbm_estimates")
    plain = create_grouping(ite_estimates, creator_features, grouping_var)
    pooled = hbm_estimates.set_index("creator_id")["effect_hat"]
    if not pooled.index.is_unique or set(pooled.index) != set(plain["creator_id"]):
        raise ValueError("ite_estimates and hbm_estimates hold different creators")
    creators = pd.DataFrame(
        {
            "creator_id": plain["creator_id"],
            "group": plain["genre"],
            "plain": plain["effect_hat"],
            "pooled": pooled.loc[plain["creator_id"]].to_numpy(),
            "se": plain["se"],
            "precision": 1 / plain["se"],
        }
    )
    creators["shrinkage"] = (creators["pooled"] - creators["plain"]).abs()
    size = creators["plain"].abs()
    creators["shrinkage_pct"] = 100 * creators["shrinkage"] / size.where(size > 0)
    groups = creators.groupby("group", sort=True)
    by_group = groups.agg(
        n_creators=("creator_id", "size"),
        median_shrinkage=("shrinkage", "median"),
        median_pct=("shrinkage_pct", "median"),
    )
    pair = creators["precision"], creators["shrinkage"]
    varies = all(np.ptp(x) > 1e-12 * np.abs(x).max() for x in pair) and len(creators) > 2
    correlation = float(np.corrcoef(*pair)[0, 1]) if varies else np.nan
    return ShrinkageAnalysis(
        creators=creators,
        by_group=by_group.reset_index(),
        median_shrinkage=float(creators["shrinkage"].median()),
        median_pct=float(creators["shrinkage_pct"].median()),
        n_undefined=int(creators["shrinkage_pct"].isna().sum()),
        correlation=correlation,
        rank_correlation=float(stats.spearmanr(*pair).statistic) if varies else np.nan,
        sensible=THRESHOLDS.shrinkage(correlation),
    )


def held_out_coverage(pit) -> HeldOutCoverage:
    """Coverage of estimates by predictions that have not seen them.

    Parameters
    ----------
    pit : array-like, shape (creator,)
        Probability of a smaller estimate: of `hbm.exact.loo.loo_exact` or `hbm.loo_pit`.
    """
    lower, upper = tail_probabilities(LEVEL)
    pit = np.asarray(pit, float)
    hits, n = int(np.sum((pit >= lower) & (pit <= upper))), len(pit)
    few = stats.binomtest(hits, n, LEVEL, alternative="less")
    ends = stats.binomtest(hits, n, LEVEL).proportion_ci(LEVEL)
    return HeldOutCoverage(hits / n, float(ends.low), float(ends.high), float(few.pvalue), n)
