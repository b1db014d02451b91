"""From users to what the models need: sufficient statistics, and two ways to tame means.

Everything is reduced once to a row a creator (or, for counts, to a table of them), so that no
model meets a user.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from hbm.checks import DataError, refuse, require_columns
from hbm.data import GROUPS, summarize_arms, validate_users


def summarize_payments(users: pd.DataFrame) -> pd.DataFrame:
    """Reduce users to the sufficient statistics of the hurdle models.

    Parameters
    ----------
    users : DataFrame
        One row a user; revenue of 0 or more.

    Returns
    -------
    DataFrame
        The arms of `hbm.data.summarize_arms`, which `hbm.summarize_creators` takes too, and of
        each arm's payers ``payers_*``, their number, ``log_mean_*`` and ``log_ss_*``, mean and
        sum of squared deviations of the logarithm of their payments (0 without a payer).

    Raises
    ------
    DataError
        If the table breaks a rule, revenue is negative, or nobody pays.
    """
    arms = summarize_arms(users)
    revenue = users["revenue"].to_numpy(float)
    refuse(users, revenue < 0, "revenue", "must not be negative in a hurdle model", "users")
    paid = revenue > 0
    if not paid.any():
        raise DataError("users: column 'revenue' must be greater than 0 for somebody; nobody pays")
    payers = users.loc[paid, ["creator_id", "group"]].assign(log=np.log(revenue[paid]))
    log = payers.groupby(["creator_id", "group"], observed=True)["log"]
    moments = pd.DataFrame({"payers": log.size(), "log_mean": log.mean()})
    moments["log_ss"] = log.var(ddof=0) * moments["payers"]
    for group in GROUPS:
        here = moments[moments.index.get_level_values("group") == group].droplevel("group")
        here.index = here.index.astype(arms["creator_id"].dtype)
        here = here.reindex(arms["creator_id"]).fillna(0.0)
        for name in moments:
            arms[f"{name}_{group}"] = here[name].to_numpy()
        arms[f"payers_{group}"] = arms[f"payers_{group}"].astype(np.int64)
    return arms


def summarize_counts(users: pd.DataFrame) -> pd.DataFrame:
    """Reduce users to a count table: how many users of each creator and arm have each count.

    Parameters
    ----------
    users : DataFrame
        One row a user; ``revenue`` holds the count.

    Returns
    -------
    DataFrame
        One row a creator, arm and count that occurs: ``creator_id, genre, genre_idx, group,
        count, n_users``.

    Raises
    ------
    DataError
        If the table breaks a rule, or a count is no whole number of 0 or more.
    """
    validate_users(users)
    count = users["revenue"].to_numpy(float)
    refuse(users, (count < 0) | (count % 1 != 0), "revenue", "must be 0, 1, 2, …", "users")
    genre = users["genre"].astype("category").cat.remove_unused_categories()
    keys = users[["creator_id", "group"]].assign(
        genre=genre.astype(object), genre_idx=genre.cat.codes.astype(int), count=count.astype(int)
    )
    columns = ["creator_id", "genre", "genre_idx", "group", "count"]
    return keys.groupby(columns, observed=True).size().rename("n_users").reset_index()


def winsorize_users(users: pd.DataFrame, quantile: float = 0.999) -> tuple[pd.DataFrame, float]:
    """Cap every user's revenue at a quantile over the whole platform, both arms together.

    The means of capped revenue are less noisy, and they are means of something else: what
    treatment does to dollars beyond the cap is no longer part of the effect.

    Parameters
    ----------
    users : DataFrame
    quantile : float
        Share of the users who stay as they are.

    Returns
    -------
    users : DataFrame
        A copy with capped revenue.
    cap : float
        In dollars.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
    validate_users(users)
    cap = float(users["revenue"].quantile(quantile))
    return users.assign(revenue=users["revenue"].clip(upper=cap)), cap


def adjust_for_past(
    users: pd.DataFrame, covariate: str = "revenue_before"
) -> tuple[pd.DataFrame, float]:
    """Take out of revenue what the period before the experiment explains (CUPED).

    y - theta (x - mean of x over the creator), with theta the slope of revenue on the covariate
    within creators' arms, pooled over all of them (Deng et al. 2013). Treatment cannot change
    the past, so the expected difference of the arms stays what it is.

    Parameters
    ----------
    users : DataFrame
    covariate : str
        Column known before the experiment began.

    Returns
    -------
    users : DataFrame
        A copy with adjusted revenue, which can be negative: for means, not for hurdle models.
    theta : float

    Raises
    ------
    DataError
        If the covariate is missing, not finite, or does not vary.
    """
    validate_users(users)
    require_columns(users, (covariate,), "users")
    x = users[covariate].to_numpy(float)
    refuse(users, ~np.isfinite(x), covariate, "must be a finite number", "users")
    keys = [users["creator_id"], users["group"]]
    within = pd.DataFrame({"x": x, "y": users["revenue"].to_numpy(float)}, index=users.index)
    within -= within.groupby(keys, observed=True).transform("mean")
    variance = np.square(within["x"]).sum()
    if not variance > 0:
        raise DataError(f"users: column '{covariate}' must vary within some creator's arm")
    theta = float((within["x"] * within["y"]).sum() / variance)
    past = users[covariate] - users.groupby("creator_id", observed=True)[covariate].transform(
        "mean"
    )
    return users.assign(revenue=users["revenue"] - theta * past), theta
