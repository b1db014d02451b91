"""How well does a candidate explain the effects? Variance decomposition and tests.

Group means of *noisy* estimates differ by chance, and their total variance holds the sampling
noise, so the naive share var(group means) / var(all) answers another question than the one that
is asked. Here both parts are corrected for noise; nothing is truncated at 0, so that averages
over candidates or platforms are unbiased, and every share comes with an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from hbm.checks import DataError, refuse, require_columns
from hbm.grouping.candidates import labels_of
from hbm.grouping.thresholds import THRESHOLDS
from hbm.intervals import LEVEL, normal_factor
from hbm.readout import holm


@dataclass(frozen=True)
class GroupingAnalysis:
    """What `analyze_grouping_candidate` found.

    Attributes
    ----------
    grouping_var, outcome : str
    table : DataFrame
        One row a group: ``group, count, mean, std, min, max`` of the outcome.
    total_var, between_var, within_var : float
        Of the outcome as it is: all creators, group means, mean of the groups' variances.
    naive_quality, naive_lower, naive_upper : float
        ``between_var / total_var`` with its 95% interval.
    between, within : float
        Variance of the true group means, and of true effects within groups: noise removed.
    quality, lower, upper : float
        ``between / (between + within)`` with its 95% interval. Negative values are possible:
        they say that the groups differ less than chance would have it. NaN where noise leaves
        no variance at all.
    grade : str
        ``poor``, ``moderate``, ``good`` or ``undefined``, of the corrected quality.
    n_creators, n_set_aside : int
        Creators used, and those without outcome or group.
    """

    grouping_var: str
    outcome: str
    table: pd.DataFrame
    total_var: float
    between_var: float
    within_var: float
    naive_quality: float
    naive_lower: float
    naive_upper: float
    between: float
    within: float
    quality: float
    lower: float
    upper: float
    grade: str
    n_creators: int
    n_set_aside: int


class GroupTest(NamedTuple):
    """A test of equal groups: statistic, p-value, degrees of freedom, and who was counted.

    `evidence` is ``none, some`` or ``strong``; `df_within` is NaN for Kruskal-Wallis.
    """

    statistic: float
    p_value: float
    df_between: float
    df_within: float
    evidence: str
    n_creators: int
    n_set_aside: int


class EffectSize(NamedTuple):
    """Shares of variance that a grouping explains, all weighted by the groups' sizes.

    `eta_squared` is that of the sample, `omega_squared` corrects it for noise in the group means
    only, and `corrected` for the noise in the creators' outcomes as well: the share of the true
    effects. `grade` and `corrected_grade` are ``small, medium`` or ``large``.
    """

    eta_squared: float
    omega_squared: float
    corrected: float
    grade: str
    corrected_grade: str
    n_creators: int
    n_set_aside: int


def analyze_grouping_candidate(
    df: pd.DataFrame,
    grouping_var: str,
    outcome: str = "lift",
    *,
    se: str | None = None,
) -> GroupingAnalysis:
    """Decompose the variance of an outcome into between and within groups.

    With ȳ_g, s_g² and n_g the mean, variance and size of group g:
    between = var(ȳ_g) - mean(s_g² / n_g) and within = pooled s_g² - mean(se²).
    The standard errors of both follow from the variance of a quadratic form and from the
    residuals, that of their ratio by the delta method. The interval is for these groups, not for
    groups that could have been drawn.

    Parameters
    ----------
    df : DataFrame
        One row a creator.
    grouping_var, outcome : str
        Columns; creators without either are set aside, and counted.
    se : str, optional
        Column of the outcome's standard errors. Without it the outcome is taken as known
        exactly, and only the noise of the group means is removed.

    Returns
    -------
    GroupingAnalysis

    Raises
    ------
    DataError
        If a column is missing, a standard error is not a positive number, there are fewer than
        two groups, or no group has two creators.
    """
    return _analysis(_clean(df, grouping_var, outcome, se), grouping_var, outcome)


def _analysis(data: _Data, grouping_var: str, outcome: str) -> GroupingAnalysis:
    mean, var, n = data.means(), data.variances(), data.n
    total, between_var = data.y.var(ddof=1), mean.var(ddof=1)
    noise = var / n
    between = between_var - noise.mean()
    within = data.pooled_variance() - data.se2.mean()
    between_se = _between_se(mean, noise)
    squared = np.square(data.residuals()) * (n / np.maximum(n - 1, 1))[data.code]
    within_se = np.std(squared - data.se2, ddof=1) / np.sqrt(len(data.y))
    total_se = np.std(np.square(data.y - data.y.mean()), ddof=1) / np.sqrt(len(data.y))
    naive = _share(between_var, between_se, total - between_var, total_se)
    corrected = _share(between, between_se, within, within_se)
    table = pd.DataFrame({"group": data.names, "count": n, "mean": mean})
    grouped = pd.Series(data.y).groupby(data.code)
    table["std"] = grouped.std().to_numpy()
    table["min"], table["max"] = grouped.min().to_numpy(), grouped.max().to_numpy()
    return GroupingAnalysis(
        grouping_var=grouping_var,
        outcome=outcome,
        table=table,
        total_var=float(total),
        between_var=float(between_var),
        within_var=float(var.mean()),
        naive_quality=naive[0],
        naive_lower=naive[1],
        naive_upper=naive[2],
        between=float(between),
        within=float(within),
        quality=corrected[0],
        lower=corrected[1],
        upper=corrected[2],
        grade=THRESHOLDS.quality(corrected[0]),
        n_creators=len(data.y),
        n_set_aside=data.n_set_aside,
    )


def anova_test(
    df: pd.DataFrame,
    grouping_var: str,
    outcome: str = "lift",
    *,
    se: str | None = None,
    sigma_creator: float | None = None,
) -> GroupTest:
    """Test whether group means differ by one-way analysis of variance.

    Parameters
    ----------
    df : DataFrame
        One row a creator.
    grouping_var, outcome : str
        Columns; creators without either are set aside, and counted.
    se : str, optional
        Column of standard errors. Creators are then weighted by 1 / (se² + sigma_creator²):
        unweighted, the noisiest creators decide.
    sigma_creator : float, optional
        Standard deviation of true effects within groups. When omitted it is the value at which
        the weighted squares within groups are as large as they should be (Paule & Mandel 1982),
        or 0 where noise alone explains more.

    Returns
    -------
    GroupTest

    Raises
    ------
    DataError
        As for `analyze_grouping_candidate`.
    """
    return _anova(_clean(df, grouping_var, outcome, se), sigma_creator)


def _anova(data: _Data, sigma_creator: float | None = None) -> GroupTest:
    weight = np.ones(len(data.y))
    if data.se2.any():
        sigma2 = _sigma_within(data) if sigma_creator is None else sigma_creator**2
        weight = 1 / (data.se2 + sigma2)
    df_between, df_within = len(data.n) - 1, len(data.y) - len(data.n)
    between, within = _weighted_squares(data, weight)
    if within == 0:
        statistic = np.inf if between > 0 else np.nan
    else:
        statistic = (between / df_between) / (within / df_within)
    p_value = float(stats.f.sf(statistic, df_between, df_within))
    return GroupTest(
        float(statistic),
        p_value,
        float(df_between),
        float(df_within),
        THRESHOLDS.p_value(p_value),
        len(data.y),
        data.n_set_aside,
    )


def kruskal_test(df: pd.DataFrame, grouping_var: str, outcome: str = "lift") -> GroupTest:
    """Test whether groups differ by the Kruskal-Wallis rank test, every creator alike.

    Parameters
    ----------
    df, grouping_var, outcome
        As for `anova_test`.

    Returns
    -------
    GroupTest

    Raises
    ------
    DataError
        As for `analyze_grouping_candidate`.
    """
    return _kruskal(_clean(df, grouping_var, outcome, None))


def _kruskal(data: _Data) -> GroupTest:
    groups = [data.y[data.code == g] for g in range(len(data.n))]
    result = stats.kruskal(*groups)
    return GroupTest(
        float(result.statistic),
        float(result.pvalue),
        float(len(groups) - 1),
        np.nan,
        THRESHOLDS.p_value(result.pvalue),
        len(data.y),
        data.n_set_aside,
    )


def compute_eta_squared(
    df: pd.DataFrame, grouping_var: str, outcome: str = "lift", *, se: str | None = None
) -> EffectSize:
    """Share of the variance that a grouping explains, in the sample and in truth.

    Parameters
    ----------
    df, grouping_var, outcome, se
        As for `analyze_grouping_candidate`.

    Returns
    -------
    EffectSize

    Raises
    ------
    DataError
        As for `analyze_grouping_candidate`.

    References
    ----------
    Hays (1963), Statistics for Psychologists, for omega squared.
    """
    return _effect_size(_clean(df, grouping_var, outcome, se))


def _effect_size(data: _Data) -> EffectSize:
    between, within = _weighted_squares(data, np.ones(len(data.y)))
    total = between + within
    mean_within = within / (len(data.y) - len(data.n))
    explained = between - (len(data.n) - 1) * mean_within
    left = len(data.y) * (mean_within - data.se2.mean())
    eta = between / total if total > 0 else np.nan
    corrected = explained / (explained + left) if explained + left > 0 else np.nan
    return EffectSize(
        float(eta),
        float(explained / (total + mean_within)) if total > 0 else np.nan,
        float(corrected),
        THRESHOLDS.eta(eta),
        THRESHOLDS.eta(corrected),
        len(data.y),
        data.n_set_aside,
    )


def explore_groupings(
    df: pd.DataFrame,
    candidates: Sequence[str],
    outcome: str = "lift",
    *,
    se: str | None = None,
) -> pd.DataFrame:
    """Describe and test all candidates, best corrected quality first.

    Parameters
    ----------
    df : DataFrame
        One row a creator.
    candidates : sequence of str
        Columns.
    outcome, se : str
        As for `analyze_grouping_candidate`.

    Returns
    -------
    DataFrame
        One row a candidate: ``candidate, n_groups, smallest, naive_quality, quality, lower,
        upper, grade, anova_p, kruskal_p`` (both adjusted for the number of candidates, Holm
        1979), ``eta_squared, omega_squared, eta_corrected``.

    Raises
    ------
    DataError
        As for `analyze_grouping_candidate`.
    """
    rows = []
    for name in candidates:
        data = _clean(df, name, outcome, se)
        found, effect = _analysis(data, name, outcome), _effect_size(data)
        rows.append(
            {
                "candidate": name,
                "n_groups": len(found.table),
                "smallest": int(data.n.min()),
                "naive_quality": found.naive_quality,
                "quality": found.quality,
                "lower": found.lower,
                "upper": found.upper,
                "grade": found.grade,
                "anova_p": _anova(data).p_value,
                "kruskal_p": _kruskal(data).p_value,
                "eta_squared": effect.eta_squared,
                "omega_squared": effect.omega_squared,
                "eta_corrected": effect.corrected,
            }
        )
    table = pd.DataFrame(rows)
    for column in ("anova_p", "kruskal_p"):
        table[column] = holm(table[column].to_numpy())
    return table.sort_values("quality", ascending=False, ignore_index=True)


# ------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class _Data:
    """Outcome `y` and its `se2`, group `code` (all by creator); `names` and sizes `n` by group."""

    y: np.ndarray
    se2: np.ndarray
    code: np.ndarray
    names: np.ndarray
    n: np.ndarray
    n_set_aside: int

    def means(self, weight: np.ndarray | None = None) -> np.ndarray:
        weight = np.ones(len(self.y)) if weight is None else weight
        center = np.average(self.y, weights=weight)
        sums = np.bincount(self.code, weight * (self.y - center))
        return center + sums / np.bincount(self.code, weight)

    def residuals(self) -> np.ndarray:
        return self.y - self.means()[self.code]

    def pooled_variance(self) -> float:
        return float(np.square(self.residuals()).sum() / (len(self.y) - len(self.n)))

    def variances(self) -> np.ndarray:
        """By group; a group of one creator has the pooled variance."""
        squares = np.bincount(self.code, np.square(self.residuals()))
        own = squares / np.maximum(self.n - 1, 1)
        return np.where(self.n > 1, own, self.pooled_variance())


def _clean(df: pd.DataFrame, grouping_var: str, outcome: str, se: str | None) -> _Data:
    columns = [grouping_var, outcome] + ([] if se is None else [se])
    require_columns(df, columns, "df")
    there = df[columns].notna().all(axis=1)
    used = df[there]
    if used.empty:
        raise DataError(f"df: no creator has both {grouping_var} and {outcome}")
    y = used[outcome].to_numpy(float)
    named = used if "creator_id" in used else used.assign(creator_id=used.index)
    refuse(named, ~np.isfinite(y), outcome, "must be a finite number", "df")
    se2 = np.zeros(len(y))
    if se is not None:
        wrong = ~(np.isfinite(used[se]) & (used[se] > 0))
        refuse(named, wrong, se, "must be a number greater than 0", "df")
        se2 = np.square(used[se].to_numpy(float))
    labels = labels_of(used, grouping_var)
    code = labels.cat.codes.to_numpy(np.int64)
    names = labels.cat.categories.to_numpy()
    n = np.bincount(code, minlength=len(names))
    if len(names) < 2:
        raise DataError(f"df: column '{grouping_var}' has a single group, there is no between")
    if len(y) == len(names):
        raise DataError(f"df: column '{grouping_var}' has no group of two creators")
    return _Data(y, se2, code, names, n, int((~there).sum()))


def _weighted_squares(data: _Data, weight: np.ndarray) -> tuple[float, float]:
    """Weighted sums of squares between and within groups."""
    means = data.means(weight)
    by_group = np.bincount(data.code, weight)
    grand = np.average(means, weights=by_group)
    within = (weight * np.square(data.y - means[data.code])).sum()
    return float((by_group * np.square(means - grand)).sum()), float(within)


def _sigma_within(data: _Data) -> float:
    """Variance of the true effects within groups (Paule & Mandel 1982, J. Res. NBS 87, 377)."""
    expected = len(data.y) - len(data.n)

    def excess(sigma2: float) -> float:
        return _weighted_squares(data, 1 / (data.se2 + sigma2))[1] - expected

    if excess(0.0) <= 0:
        return 0.0
    upper = data.pooled_variance()
    while excess(upper) > 0:
        upper *= 2
    return brentq(excess, 0.0, upper, xtol=1e-12 * upper)


def _between_se(mean: np.ndarray, noise: np.ndarray) -> float:
    """Standard error of the variance of independent group means with variances `noise`.

    Of a quadratic form in normals, 2 tr(ACAC) + 4 m'ACAm with A = (I - J/G) / (G - 1),
    C = diag(noise), m the true means; the second term without its own noise.
    """
    g = len(mean)
    centering = (np.eye(g) - 1 / g) / (g - 1)
    spread = centering * noise
    trace = np.einsum("ij,ji->", spread, spread)
    signal = (noise * np.square(centering @ mean)).sum() - trace
    return float(np.sqrt(2 * trace + 4 * max(signal, 0.0)))


def _share(part: float, part_se: float, rest: float, rest_se: float) -> tuple[float, ...]:
    """Return part / (part + rest) and its interval by the delta method."""
    whole = part + rest
    if not whole > 0:
        return np.nan, np.nan, np.nan
    reach = normal_factor(LEVEL) * np.hypot(rest * part_se, part * rest_se) / whole**2
    share = part / whole
    return float(share), float(share - reach), float(share + reach)
