"""One half of each creator's users predicts the other half: validation without a truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from hbm.baselines import complete_pooling_estimates
from hbm.checks import DataError, require_columns
from hbm.data import GROUPS, summarize_creators, validate_users
from hbm.estimates import extract_hbm_estimates
from hbm.intervals import LEVEL, normal_factor
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors

#: What the estimators of `split_half` are called: column of the prediction, and name.
_PREDICTIONS = {
    "predicted": "Partial pooling",
    "predicted_plain": "No pooling",
    "predicted_genre": "Complete pooling",
}


def _fit(summaries: pd.DataFrame) -> pd.DataFrame:
    priors = Priors.weakly_informative(summaries)
    posterior = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)
    return extract_hbm_estimates(posterior, summaries)


def split_half(
    users: pd.DataFrame,
    *,
    cluster: str | None = None,
    fit: Callable[[pd.DataFrame], pd.DataFrame] = _fit,
    n_splits: int = 1,
    random_seed: int | np.random.Generator = 42,
    **summarize,
) -> pd.DataFrame:
    """Predict one half of each creator's users from the other half: validation without a truth.

    The users of each creator and arm are split in two at random; an odd one goes to either
    half by a coin. Estimates from the first half predict the plain estimates of the second.

    Parameters
    ----------
    users : DataFrame
        One row a user.
    cluster : str, optional
        Column of the unit that was randomised; whole clusters are split.
    fit : function
        From summaries to estimates (``creator_id, effect_hat, se``); the default is the exact
        hierarchical model with weakly informative priors.
    n_splits : int
        How often to split at random.
    random_seed : int or Generator
    **summarize
        For `summarize_creators`: ``variance``, ``cluster_variance``.

    Returns
    -------
    DataFrame
        One row a split and creator: ``split, creator_id, predicted, predicted_se`` (posterior
        mean and sd), the same for ``predicted_plain`` (the first half's own estimate) and
        ``predicted_genre`` (complete pooling), ``held_out, held_out_se``, and ``set_aside``:
        empty, or why the creator could not be split (its other columns are NaN). The rule: two
        users in every half of an arm, and two clusters, or one if the variance between clusters
        is pooled.

    Raises
    ------
    DataError
        If the table breaks a rule, or no creator can be split.
    """
    validate_users(users)
    if n_splits < 1:
        raise ValueError(f"n_splits must be at least 1, got {n_splits}")
    if cluster is not None:
        _check_clusters(users, cluster)
    rng = np.random.default_rng(random_seed)
    splits = [_one_split(users, cluster, fit, summarize, rng) for _ in range(n_splits)]
    for place, table in enumerate(splits):
        table.insert(0, "split", place)
    return pd.concat(splits, ignore_index=True)


def _check_clusters(users: pd.DataFrame, cluster: str) -> None:
    require_columns(users, (cluster,), "users")
    if users[cluster].isna().any():
        raise DataError(f"users: column '{cluster}' must not be missing")
    arms = users.groupby(["creator_id", cluster], observed=True)["group"].nunique()
    if (arms > 1).any():
        creator, name = arms.idxmax()
        raise DataError(
            f"users: column '{cluster}' must lie within one arm of a creator; "
            f"{name!r} of {creator!r} lies in both"
        )


def _one_split(users, cluster, fit, summarize, rng) -> pd.DataFrame:
    half = _random_halves(users, cluster, rng)
    min_clusters = 1 if summarize.get("cluster_variance") == "pooled" else 2
    reasons = _set_aside(users, half, cluster, min_clusters)
    kept = users["creator_id"].isin(reasons.index[reasons == ""]).to_numpy()
    if not kept.any():
        raise DataError(f"users: no creator can be split in halves; {reasons.iloc[0]}")
    first, second = (
        summarize_creators(users[kept & (half == side)], cluster=cluster, **summarize)
        for side in (0, 1)
    )
    frames = {
        "predicted": fit(first),
        "predicted_plain": first,
        "predicted_genre": complete_pooling_estimates(first),
        "held_out": second,
    }
    table = pd.DataFrame({"creator_id": reasons.index.to_numpy()})
    for name, frame in frames.items():
        values = frame.set_index("creator_id")[["effect_hat", "se"]].reindex(reasons.index)
        table[[name, f"{name}_se"]] = values.to_numpy()
    return table.assign(set_aside=reasons.to_numpy())


def _random_halves(users: pd.DataFrame, cluster, rng: np.random.Generator) -> np.ndarray:
    """Return 0 or 1 for each user; the units of an arm are halved as evenly as can be."""
    arm = users.groupby(["creator_id", "group"], observed=True).ngroup().to_numpy()
    unit = np.arange(len(users))
    if cluster is not None:
        unit = users.groupby(["creator_id", "group", cluster], observed=True).ngroup().to_numpy()
    arm_of = np.empty(unit.max() + 1, dtype=int)
    arm_of[unit] = arm
    order = rng.permutation(len(arm_of))
    place = np.empty(len(arm_of), dtype=int)
    place[order] = pd.Series(order).groupby(arm_of[order]).cumcount()
    coin = rng.integers(0, 2, arm.max() + 1)
    return ((place + coin[arm_of]) % 2)[unit]


def _set_aside(users, half, cluster, min_clusters: int) -> pd.Series:
    """Return why each creator cannot be split, or an empty text, by creator."""
    cells = users.assign(half=half).groupby(["creator_id", "half", "group"], observed=True)
    # Clusters first: where they are too few, a half has no users either.
    counts = {} if cluster is None else {"clusters": (cells[cluster].nunique(), min_clusters)}
    counts["users"] = (cells.size(), 2)
    arms = pd.MultiIndex.from_product([(0, 1), GROUPS])
    ids = cells.size().index.unique("creator_id")
    reasons = pd.Series("", index=pd.Index(ids.to_numpy())).sort_index()
    for unit, (count, least) in counts.items():
        table = count.unstack(["half", "group"]).reindex(columns=arms).fillna(0).astype(int)
        for (_, arm), column in table.items():
            few = column[column < least]
            reasons[few[reasons[few.index] == ""].index] = f"too few {unit} in a half of {arm}"
    return reasons


def split_half_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Score the predictions of `split_half`.

    The squared error of a prediction holds the noise of the held-out estimate; its variance,
    held_out_se², is subtracted. What is left estimates the error against the true effect,
    without bias, so it can come out below 0. The splits of a creator are averaged first;
    standard errors are over creators.

    Parameters
    ----------
    table : DataFrame
        From `split_half`.

    Returns
    -------
    DataFrame
        One row an estimator: ``estimator, n_creators, n_set_aside, mse, mse_se, versus_plain,
        versus_plain_se, coverage, coverage_se``. Set aside counts those of any split;
        versus_plain is the mse minus that of no pooling, creator by creator; the coverage is
        that of the predictive interval, prediction ± 1.96 sqrt(predicted_se² + held_out_se²).
    """
    used = table[table["set_aside"] == ""]
    n_creators = used["creator_id"].nunique()
    if n_creators < 2:
        raise ValueError(f"standard errors need at least two creators, got {n_creators}")
    noise = np.square(used["held_out_se"])
    errors, covered = {}, {}
    for column, name in _PREDICTIONS.items():
        squared = np.square(used["held_out"] - used[column])
        reach = normal_factor(LEVEL) * np.sqrt(np.square(used[f"{column}_se"]) + noise)
        by_creator = pd.DataFrame({"error": squared - noise, "hit": squared <= np.square(reach)})
        means = by_creator.groupby(used["creator_id"], observed=True).mean()
        errors[name], covered[name] = means["error"], means["hit"]
    n_set_aside = table.loc[table["set_aside"] != "", "creator_id"].nunique()
    rows = []
    for name, error in errors.items():
        measures = {"mse": error, "versus_plain": error - errors["No pooling"]}
        row = {"estimator": name, "n_creators": n_creators, "n_set_aside": n_set_aside}
        for measure, values in (measures | {"coverage": covered[name]}).items():
            row |= {measure: values.mean(), f"{measure}_se": values.sem()}
        rows.append(row)
    return pd.DataFrame(rows)
