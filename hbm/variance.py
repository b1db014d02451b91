"""Standard errors of the creators' differences, from the moments of their arms."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import optimize, special

#: Known ways to get a creator's standard error.
METHODS = ("welch", "moderated", "pooled")

#: Known ways to get it from clusters.
CLUSTER_METHODS = ("own", "moderated", "pooled")

_ARMS = ("treatment", "control")

_NO_VARIATION = "revenue does not vary between clusters: no standard error can be had"

#: A variance this small relative to the squared mean is rounding, not variation.
_ROUNDING = 1e-24


def standard_errors(arms: pd.DataFrame, method: str = "welch") -> pd.DataFrame:
    """Return the standard error of each creator's difference of means.

    Parameters
    ----------
    arms : DataFrame
        One row a creator: ``n_*``, ``mean_*`` and ``var_*`` for ``treatment`` and ``control``;
        at least two users an arm.
    method : {"welch", "moderated", "pooled"}
        * ``welch``: the creator's own two variances, with the Welch-Satterthwaite degrees of
          freedom. An arm without any variation (every user paid $0) takes the variance pooled
          over all creators' same arms: with its own, it would count as known exactly.
        * ``moderated``: each arm's variance is first moderated across creators (Smyth 2004).
        * ``pooled``: one variance for both arms of a creator, their mean weighted by users,
          moderated across creators. If both arms have the same third moment, it is uncorrelated
          with the difference however few users and however unequal the arms.

        Moderated variances are inflated by nu / (nu - 2), so that a normal with this variance
        stands for the t distribution of the mean (for the sum of two arms: each its own nu).

    Returns
    -------
    DataFrame
        ``se`` (unit of revenue), ``df`` (degrees of freedom for a t test; infinite where the
        inflation stands for them) and ``variance_borrowed`` (bool), indexed like `arms`.

    Raises
    ------
    ValueError
        If the method is unknown, or no creator's users differ at all.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    n = arms[["n_treatment", "n_control"]].to_numpy(float)
    var = arms[["var_treatment", "var_control"]].to_numpy(float)
    mean = arms[["mean_treatment", "mean_control"]].to_numpy(float)
    constant = var <= _ROUNDING * np.square(mean)
    var = np.where(constant, 0.0, var)
    if constant.all():
        raise ValueError("revenue does not vary within any arm: no standard error can be had")
    if method == "welch":
        pooled = ((n - 1) * var).sum(axis=0) / (n - 1).sum(axis=0)
        pooled = np.where(pooled > 0, pooled, pooled.max())
        squared = np.where(constant, pooled, var) / n
        df = np.square(squared.sum(axis=1)) / (np.square(squared) / (n - 1)).sum(axis=1)
        se, borrowed = np.sqrt(squared.sum(axis=1)), constant.any(axis=1)
    elif method == "moderated":
        moderated, nu = moderate_variances(var.ravel(), (n - 1).ravel())
        squared = (moderated * _inflation(nu)).reshape(n.shape) / n
        se, df = np.sqrt(squared.sum(axis=1)), np.full(len(arms), np.inf)
        borrowed = constant.any(axis=1)
    else:
        # Each arm's variance counts by its users, not its degrees of freedom: cov(mean, variance)
        # is the third moment / n, so only then do the arms' covariances cancel exactly.
        own = (n * var).sum(axis=1) / n.sum(axis=1)
        df = np.square(n.sum(axis=1)) / (np.square(n) / (n - 1)).sum(axis=1)
        moderated, nu = moderate_variances(own, df)
        se = np.sqrt(moderated * _inflation(nu) * (1 / n).sum(axis=1))
        df, borrowed = np.full(len(arms), np.inf), constant.all(axis=1)
    return pd.DataFrame({"se": se, "df": df, "variance_borrowed": borrowed}, index=arms.index)


def _inflation(nu: np.ndarray) -> np.ndarray:
    """Variance of Student's t with `nu` degrees of freedom, nu / (nu - 2)."""
    # With two degrees of freedom or fewer a t distribution has no variance; 2.5 caps the factor.
    return 1 / (1 - 2 / np.maximum(nu, 2.5))


def moderate_variances(var: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shrink sample variances toward a common value (Smyth 2004, section 6.2).

    The true variances are taken as scaled inverse chi-squared with scale s0² and d0 degrees of
    freedom, both found by matching the moments of the log sample variances. Variances of 0 say
    nothing on the log scale: they take no part in finding s0² and d0, and are shrunk like all.

    Parameters
    ----------
    var : ndarray
        Sample variances.
    df : ndarray
        Their degrees of freedom, at least 1.

    Returns
    -------
    moderated, nu : ndarray
        (d0 s0² + df var) / (d0 + df), and d0 + df (infinite where all variances agree).
    """
    var, df = np.asarray(var, dtype=float), np.asarray(df, dtype=float)
    positive = var > 0
    half = df[positive] / 2
    e = np.log(var[positive]) - special.digamma(half) + np.log(half)
    excess = e.var(ddof=1) - special.polygamma(1, half).mean() if len(e) > 1 else 0.0
    if excess <= 0:
        pooled = np.average(var, weights=df)
        return np.full_like(var, pooled), np.full_like(df, np.inf)
    log_half_d0 = optimize.brentq(
        lambda x: np.log(special.polygamma(1, np.exp(x))) - np.log(excess), -20, 30
    )
    d0 = 2 * np.exp(log_half_d0)
    s0_squared = np.exp(e.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))
    return (d0 * s0_squared + df * var) / (d0 + df), d0 + df


def variance_ratio(arms: pd.DataFrame) -> tuple[float, float]:
    """Estimate by what factor treatment multiplies the variance of revenue.

    Parameters
    ----------
    arms : DataFrame
        As for `standard_errors`.

    Returns
    -------
    ratio : float
        Mean treated variance over creators divided by the mean control variance; creators count
        by the information of their two arms.
    z : float
        Its distance from 1 in standard errors over creators; NaN for fewer than two creators.
    """
    n_treatment, n_control = (arms[f"n_{group}"].to_numpy(float) for group in _ARMS)
    weight = n_treatment * n_control / (n_treatment + n_control)
    treated, control = (arms[f"var_{group}"].to_numpy(float) for group in _ARMS)
    total = (weight * control).sum()
    if len(arms) < 2 or not total > 0:
        return np.nan, np.nan
    # Sums, not logarithms: with skewed revenue the log variance of few users is biased.
    ratio = (weight * treated).sum() / total
    influence = weight * (treated - ratio * control) / total
    return float(ratio), float((ratio - 1) / np.sqrt(np.square(influence).sum()))


def cluster_standard_errors(clusters: pd.DataFrame, method: str = "own") -> pd.DataFrame:
    """Return standard errors that hold when whole clusters of users were randomised.

    Parameters
    ----------
    clusters : DataFrame
        One row a cluster of an arm: ``creator_id, group, n, mean, var`` (variance of the users
        within the cluster; missing for a cluster of one).
    method : {"own", "moderated", "pooled"}
        * ``own``: each arm's own clusters, var(mean) = G / (G - 1) Σ (n_c / n)² (y_c - y)²
          (Cameron & Miller 2015); an arm whose clusters do not differ at all takes the pooled
          variance. With few clusters it is itself mostly noise.
        * ``moderated``: the same, but G times each arm's variance, that of one cluster, is first
          moderated across creators and inflated, as in `standard_errors`.
        * ``pooled``: a variance between clusters and one within, each pooled over all creators
          (analysis of variance within creator and arm), so that an arm of one cluster has a
          standard error too.

    Returns
    -------
    DataFrame
        ``se``; ``df``, which counts the clusters (infinite where an inflation stands for them);
        and ``variance_borrowed``, an arm's clusters do not differ; by ``creator_id``.

    Raises
    ------
    ValueError
        If the method is unknown, an arm has a single cluster (but for pooled), no arm has two
        (pooled), or no arm's clusters differ.
    """
    if method not in CLUSTER_METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(CLUSTER_METHODS)}")
    arm = ["creator_id", "group"]
    by = clusters.groupby(arm, observed=True)
    cells = clusters.assign(
        share=clusters["n"] / by["n"].transform("sum"), size=by["n"].transform("size")
    )
    single = cells["size"] < 2
    if method != "pooled" and single.any():
        few = cells.loc[single, "creator_id"].unique()
        raise ValueError(
            f"{len(few)} creators have an arm of a single cluster, first: "
            f"{', '.join(map(repr, few[:5]))}; cluster-robust standard errors need two an arm, "
            "unless the variance between clusters is pooled over all creators"
        )
    cells["center"] = cells["share"] * cells["mean"]
    cells["center"] = cells.groupby(arm, observed=True)["center"].transform("sum")
    cells["squared"] = np.square(cells["mean"] - cells["center"])
    largest = cells.groupby(arm, observed=True)["squared"].transform("max")
    cells["borrowed"] = largest <= _ROUNDING * np.square(cells["center"])
    cells["part"] = _parts(cells, method)
    by_creator = cells.groupby("creator_id", observed=True)
    df = {"own": by_creator.size() - 2.0, "moderated": np.inf, "pooled": _df_between(cells)}
    return pd.DataFrame(
        {
            "se": np.sqrt(by_creator["part"].sum()),
            "df": df[method],
            "variance_borrowed": by_creator["borrowed"].any(),
        }
    )


def _parts(cells: pd.DataFrame, method: str) -> pd.Series:
    """Each cluster's part of the variance of its arm's mean."""
    if method == "pooled":
        return _pooled_cluster_variances(cells)
    own = np.square(cells["share"]) * cells["squared"] * cells["size"] / (cells["size"] - 1)
    borrowed = cells["borrowed"]
    if method == "own":
        return own.mask(borrowed, _pooled_cluster_variances(cells)) if borrowed.any() else own
    if borrowed.all():
        raise ValueError(_NO_VARIATION)
    arms = [cells["creator_id"], cells["group"]]
    first = ~cells.duplicated(["creator_id", "group"])
    own = own.mask(borrowed, 0.0).groupby(arms, observed=True).transform("sum")[first]
    size = cells.loc[first, "size"]
    moderated, nu = moderate_variances(size * own, size - 1)
    return pd.Series(moderated * _inflation(nu) / size, size.index).reindex(
        cells.index, fill_value=0
    )


def _df_between(cells: pd.DataFrame) -> float:
    return float(len(cells) - cells.groupby(["creator_id", "group"], observed=True).ngroups)


def _pooled_cluster_variances(cells: pd.DataFrame) -> pd.Series:
    """Each cluster's part of its arm's variance, from components pooled over all arms."""
    df_between = _df_between(cells)
    if not df_between:
        raise ValueError("a pooled variance between clusters needs an arm of two clusters")
    df_within = (cells["n"] - 1).sum()
    within = ((cells["n"] - 1) * cells["var"].fillna(0)).sum() / max(df_within, 1)
    between = (cells["n"] * cells["squared"]).sum() / df_between
    n0 = (cells["n"].sum() - (cells["n"] * cells["share"]).sum()) / df_between
    component = max(0.0, (between - within) / n0)
    if not component + within > 0:
        raise ValueError(_NO_VARIATION)
    return np.square(cells["share"]) * (component + within / cells["n"])
