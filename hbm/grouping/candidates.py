"""Candidate groupings: declared, cut, crossed, clustered, merged, and joined to the effects."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hbm.checks import DataError, refuse, require_columns
from hbm.grouping.thresholds import THRESHOLDS


class GroupSizes(NamedTuple):
    """What `check_group_sizes` found.

    Attributes
    ----------
    sizes : Series
        Creators by group, in the order of the groups.
    smallest, largest : int
    median : float
    small : tuple of str
        Groups with fewer creators than asked for.
    warnings : tuple of str
        What is wrong and how to mend it; empty if nothing is.
    """

    sizes: pd.Series
    smallest: int
    largest: int
    median: float
    small: tuple[str, ...]
    warnings: tuple[str, ...]


class Merged(NamedTuple):
    """Labels without small groups, and which groups went where: ``group, n_creators, into``.

    `apply` does the same to the labels of other creators.
    """

    labels: pd.Series
    merged: pd.DataFrame

    def apply(self, labels: pd.Series) -> pd.Series:
        """Merge the same groups of other labels; groups that were not seen stay as they are."""
        into = dict(zip(self.merged["group"], self.merged["into"], strict=True))
        known = labels_of(labels.to_frame("group"), "group")
        kinds = list(dict.fromkeys(into.get(kind, kind) for kind in known.cat.categories))
        return (
            known.astype(object)
            .replace(into)
            .astype(pd.CategoricalDtype(kinds, ordered=_is_ordered(labels)))
        )


class Crossed(NamedTuple):
    """A crossed grouping: its labels, all cells as a table of counts, and what was merged."""

    labels: pd.Series
    cells: pd.DataFrame
    merged: pd.DataFrame


class Clusters(NamedTuple):
    """What `discover_clusters` found.

    Attributes
    ----------
    labels : Series
        ``cluster 1, cluster 2, …`` by creator, the largest first.
    k : int
        Number of clusters: that of the best silhouette unless it was given.
    table : DataFrame
        One row a number of clusters: ``k, inertia, silhouette, stability`` (mean adjusted Rand
        index between runs from different seeds: 1 if all agree).
    elbow : int
        Where the curve of inertia lies farthest under the straight line between its ends.
    profiles : DataFrame
        Median of each feature by cluster, in its unit.
    n_imputed : dict
        Missing values by feature; they were set to the median.
    """

    labels: pd.Series
    k: int
    table: pd.DataFrame
    elbow: int
    profiles: pd.DataFrame
    n_imputed: dict[str, int]


# ----------------------------------------------------------------------------------- sizes


def check_group_sizes(
    df: pd.DataFrame, grouping_var: str, min_size: int = THRESHOLDS.size_warn
) -> GroupSizes:
    """Count the creators of each group and say how to mend groups that are too small.

    Parameters
    ----------
    df : DataFrame
        One row a creator.
    grouping_var : str
        Column of the groups.
    min_size : int
        Smallest number of creators that is not warned of.

    Returns
    -------
    GroupSizes
        `merge_small_groups` and `coarser_bins` carry out its remedies.

    Raises
    ------
    DataError
        If the column or a value is missing, or there are no creators.
    """
    sizes = labels_of(df, grouping_var).value_counts(sort=False).rename("n_creators")
    small = sizes[sizes < min_size]
    warnings = ()
    if len(small):
        ordered = _is_ordered(df[grouping_var])
        remedies = "merge them with their neighbours" if ordered else "merge the smallest groups"
        more = ", or cut into fewer groups" if ordered else ""
        named = ", ".join(f"{g} ({n})" for g, n in small.items())
        warnings = (
            f"{grouping_var}: {len(small)} of {len(sizes)} groups have fewer than {min_size} "
            f"creators: {named}; {remedies}{more}",
        )
    return GroupSizes(
        sizes=sizes,
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        median=float(sizes.median()),
        small=tuple(small.index),
        warnings=warnings,
    )


def merge_small_groups(labels: pd.Series, min_size: int = THRESHOLDS.size_warn) -> Merged:
    """Merge groups until every one has at least `min_size` creators.

    The smallest group joins the next smallest; where the labels are an ordered categorical, the
    smaller one of its neighbours. Names are joined with a plus.

    Parameters
    ----------
    labels : Series
        Group of each creator.
    min_size : int

    Returns
    -------
    Merged
        Its labels are a categorical, ordered where `labels` is.
    """
    ordered = _is_ordered(labels)
    sizes = _counts(labels)
    groups = [([name], n) for name, n in sizes.items()]
    if not ordered:
        groups.sort(key=lambda group: group[1])
    while len(groups) > 1 and min(n for _, n in groups) < min_size:
        i = int(np.argmin([n for _, n in groups]))
        near = [j for j in ((i - 1, i + 1) if ordered else range(len(groups)))
                if 0 <= j < len(groups) and j != i]  # fmt: skip
        j = min(near, key=lambda j: groups[j][1])
        first, second = sorted((i, j))
        both = groups[first][0] + groups[second][0], groups[first][1] + groups[second][1]
        groups = [*groups[:first], both, *groups[first + 1 : second], *groups[second + 1 :]]
    place = list(sizes).index
    into = {name: " + ".join(sorted(names, key=place)) for names, _ in groups for name in names}
    changed = [(name, n, into[name]) for name, n in sizes.items() if into[name] != name]
    merged = pd.DataFrame(changed, columns=["group", "n_creators", "into"])
    return Merged(Merged(labels, merged).apply(labels), merged)


def coarser_bins(
    values: pd.Series, n_bins: int = 5, min_size: int = THRESHOLDS.size_shortlist
) -> pd.Series:
    """Cut a numeric feature into as many groups of equal size as keep `min_size` creators each.

    Parameters
    ----------
    values : Series
    n_bins : int
        The largest number of groups; fewer are taken where equal values or few creators ask
        for it.
    min_size : int

    Returns
    -------
    Series
        Ordered categorical, ``Q1 (low)`` up to ``Qk (high)``.

    Raises
    ------
    DataError
        If values are missing, or not even two groups are possible.
    """
    for n in range(n_bins, 1, -1):
        with contextlib.suppress(DataError):
            bins = bin_feature(values, n)
            if bins.value_counts().min() >= min_size:
                return bins
    raise DataError(f"column '{values.name}': no two groups of {min_size} creators are possible")


def bin_feature(values: pd.Series, n_bins: int) -> pd.Series:
    """Cut a numeric feature into groups of equal size, as an ordered categorical.

    Parameters
    ----------
    values : Series
    n_bins : int

    Returns
    -------
    Series
        ``Q1 (low), Q2, …, Qk (high)``.

    Raises
    ------
    DataError
        If values are missing, or so many are equal that groups would be empty.
    """
    if values.isna().any():
        raise DataError(f"column '{values.name}': {values.isna().sum()} values are missing")
    edges = values.quantile(np.linspace(0, 1, n_bins + 1)).to_numpy()
    if (np.diff(edges) <= 0).any():
        raise DataError(
            f"column '{values.name}': too many equal values for {n_bins} groups of equal size"
        )
    return pd.cut(values, edges, labels=quantile_names(n_bins), include_lowest=True)


def quantile_names(n_bins: int) -> list[str]:
    """Names of groups of equal size, from low to high."""
    return ["Q1 (low)", *(f"Q{k}" for k in range(2, n_bins)), f"Q{n_bins} (high)"]


# ------------------------------------------------------------------------------ candidates


def cross_groupings(
    features: pd.DataFrame, first: str, second: str, min_cell: int = THRESHOLDS.cell_min
) -> Crossed:
    """Cross two groupings, and merge cells that are too small within the first grouping.

    Parameters
    ----------
    features : DataFrame
        One row a creator.
    first, second : str
        Columns. A group of `first` whose cells are all too small becomes one cell.
    min_cell : int

    Returns
    -------
    Crossed
    """
    outer, inner = (labels_of(features, name) for name in (first, second))
    cells = pd.crosstab(outer, inner).rename_axis(index=first, columns=second)
    labels, merged = pd.Series("", index=features.index, dtype=object), []
    for group in cells.index:
        own = features.loc[outer == group, second]
        if isinstance(own.dtype, pd.CategoricalDtype):
            own = own.cat.remove_unused_categories()
        kept, changes = merge_small_groups(own, min_cell)
        labels[own.index] = f"{group} x " + kept.astype(str)
        changes[["group", "into"]] = f"{group} x " + changes[["group", "into"]].astype(str)
        merged.append(changes)
    labels.name = f"{first}_x_{second}"
    return Crossed(labels, cells, pd.concat(merged, ignore_index=True))


def discover_clusters(
    features: pd.DataFrame,
    columns: Sequence[str],
    *,
    k: int | None = None,
    k_range: Sequence[int] = range(2, 9),
    n_seeds: int = 5,
    seed: int = 42,
) -> Clusters:
    """Cluster creators by their numeric features from before treatment (K-means).

    Every feature is brought to one scale: positive ones whose logarithm is less skewed than they
    are themselves by their logarithm, then all to mean 0 and standard deviation 1. Without that
    the feature with the largest numbers, and its largest creators, decide alone.

    Parameters
    ----------
    features : DataFrame
        One row a creator.
    columns : sequence of str
        Numeric columns; missing values are set to the median, and counted.
    k : int, optional
        Number of clusters; that of the largest mean silhouette when omitted.
    k_range : sequence of int
        Numbers of clusters to try.
    n_seeds : int
        Runs from different seeds, for the stability.
    seed : int

    Returns
    -------
    Clusters

    Raises
    ------
    DataError
        If a column is missing or holds no value.
    ValueError
        If a number of clusters is not from 2 to one less than the creators, or `k` is none of
        `k_range`.

    References
    ----------
    Rousseeuw (1987), Silhouettes, J. Comput. Appl. Math. 20, 53-65. Hubert & Arabie (1985),
    Comparing partitions, J. Classification 2, 193-218.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, silhouette_score
    from threadpoolctl import threadpool_limits

    require_columns(features, tuple(columns), "features")
    numbers = list(k_range)
    if not numbers or min(numbers) < 2 or max(numbers) >= len(features):
        raise ValueError(
            f"k_range must be numbers from 2 to {len(features) - 1}, one less than the creators, "
            f"got {numbers}"
        )
    if k is not None and k not in numbers:
        raise ValueError(f"k must be one of {numbers}, got {k}")
    values = features[list(columns)].astype(float)
    if (empty := values.columns[values.isna().all()]).size:
        raise DataError(f"features: column '{empty[0]}' has no value")
    n_imputed = {c: int(n) for c, n in values.isna().sum().items() if n}
    scaled = _scaled(values.fillna(values.median()))
    rows, best = [], {}
    for n in numbers:
        # On data as small as these, threads cost more than they save.
        with threadpool_limits(1):
            runs = [KMeans(n, n_init=3, random_state=seed + s).fit(scaled) for s in range(n_seeds)]
            best[n] = min(runs, key=lambda run: run.inertia_)
            silhouette = silhouette_score(scaled, best[n].labels_)
        pairs = [(a, b) for i, a in enumerate(runs) for b in runs[:i]]
        agreement = [adjusted_rand_score(a.labels_, b.labels_) for a, b in pairs]
        rows.append((n, best[n].inertia_, silhouette, np.mean(agreement) if pairs else np.nan))
    table = pd.DataFrame(rows, columns=["k", "inertia", "silhouette", "stability"])
    chosen = int(table["k"][table["silhouette"].argmax()]) if k is None else k
    codes = pd.Series(best[chosen].labels_, index=features.index)
    names = {c: f"cluster {i + 1}" for i, c in enumerate(codes.value_counts().index)}
    labels = codes.map(names).rename("cluster")
    return Clusters(
        labels=labels,
        k=chosen,
        table=table,
        elbow=_elbow(table),
        profiles=values.groupby(labels).median(),
        n_imputed=n_imputed,
    )


def _scaled(values: pd.DataFrame) -> np.ndarray:
    scaled = values.copy()
    for column, x in values.items():
        log_x = np.log(x.where(x > 0))
        if log_x.notna().mean() > 0.5 and abs(log_x.skew()) < abs(x.skew()):
            # Zeros (no revenue yet) go to the smallest positive value.
            scaled[column] = log_x.fillna(log_x.min()) if (x >= 0).all() else x
    spread = scaled.std(ddof=0)
    return ((scaled - scaled.mean()) / spread.where(spread > 0, 1)).to_numpy()


def _elbow(table: pd.DataFrame) -> int:
    """The k farthest under the chord of the curve of inertia."""
    x, y = (
        (table[c] - table[c].iloc[0]) / (table[c].iloc[-1] - table[c].iloc[0])
        for c in ("k", "inertia")
    )
    # A curve of a single k, or a flat one, has no bend.
    return int(table["k"][(y - x).abs().fillna(0).argmax()])


# -------------------------------------------------------------------------------- the join


def create_grouping(
    ite_estimates: pd.DataFrame, creator_features: pd.DataFrame, grouping_var: str | None
) -> pd.DataFrame:
    """Join a grouping to the effects, ready for the hierarchical model.

    Parameters
    ----------
    ite_estimates : DataFrame
        One row a creator: at least ``creator_id, effect_hat, se``, from wherever.
    creator_features : DataFrame
        One row a creator: ``creator_id`` and the grouping; other creators may be there too.
    grouping_var : str or None
        Column of the groups; None puts all creators into one.

    Returns
    -------
    DataFrame
        `ite_estimates` in its order, with ``genre`` (the group, as text) and ``genre_idx``
        (numbered in the order of the categories, or of the names), replaced if they were there.

    Raises
    ------
    DataError
        If a creator has no features, no group, or two rows.
    """
    require_columns(ite_estimates, ("creator_id", "effect_hat", "se"), "ite_estimates")
    twice = ite_estimates["creator_id"].duplicated(keep=False)
    refuse(ite_estimates, twice, "creator_id", "must be unique", "ite_estimates")
    if grouping_var is None:
        return _with_genre(ite_estimates, pd.Series("all creators", index=ite_estimates.index))
    source = "creator_features"
    require_columns(creator_features, ("creator_id", grouping_var), source)
    ids = creator_features["creator_id"]
    refuse(creator_features, ids.duplicated(keep=False), "creator_id", "must be unique", source)
    place = pd.Index(ids).get_indexer(pd.Index(ite_estimates["creator_id"]))
    rule = f"must be one of those of {source}"
    refuse(ite_estimates, place < 0, "creator_id", rule, "ite_estimates")
    labels = creator_features[grouping_var].iloc[place]
    missing = creator_features.iloc[place][["creator_id", grouping_var]]
    rule = "must not be missing (name a group for those whose value is unknown)"
    refuse(missing, labels.isna(), grouping_var, rule, source)
    return _with_genre(ite_estimates, labels.set_axis(ite_estimates.index))


def _with_genre(effects: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    if isinstance(labels.dtype, pd.CategoricalDtype):
        codes = labels.cat.remove_unused_categories().cat.codes
    else:
        codes = labels.astype(str).astype("category").cat.codes
    rest = effects.drop(columns=["genre", "genre_idx"], errors="ignore")
    place = rest.columns.get_loc("creator_id") + 1
    rest.insert(place, "genre", labels.astype(str).astype(object))
    rest.insert(place + 1, "genre_idx", codes.to_numpy(np.int64))
    return rest


def labels_of(df: pd.DataFrame, grouping_var: str) -> pd.Series:
    """The groups as text, in a categorical that keeps their order."""
    require_columns(df, (grouping_var,), "features")
    labels = df[grouping_var]
    if labels.empty:
        raise DataError(f"features: column '{grouping_var}' is empty, there are no creators")
    if labels.isna().any():
        raise DataError(f"features: column '{grouping_var}': {labels.isna().sum()} are missing")
    if isinstance(labels.dtype, pd.CategoricalDtype):
        labels = labels.cat.remove_unused_categories()
        kinds = labels.cat.categories.astype(str)
    else:
        kinds = np.unique(labels.astype(str))
    return labels.astype(str).astype(pd.CategoricalDtype(kinds))


def _counts(labels: pd.Series) -> dict[str, int]:
    return labels_of(labels.to_frame("group"), "group").value_counts(sort=False).to_dict()


def _is_ordered(labels: pd.Series) -> bool:
    return isinstance(labels.dtype, pd.CategoricalDtype) and bool(labels.cat.ordered)
