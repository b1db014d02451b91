"""Users' tables: simulated with known truth, read from disk, checked, and summarised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hbm import variance as _variance
from hbm.checks import FIRST, DataError, is_real, numbers, refuse, require_columns
from hbm.files import read_table
from hbm.sizes import SIZE_MIXTURE, draw_sizes

#: The five genres of the simulated platform.
GENRES = ("comedy", "music", "gaming", "education", "lifestyle")

#: The two arms.
GROUPS = ("control", "treatment")

#: The columns of a users frame.
USER_COLUMNS = ("creator_id", "genre", "group", "revenue")


def generate_experiment_data(
    seed: int | np.random.Generator = 42,
    *,
    genres: Sequence[str] = GENRES,
    n_creators_per_genre: int = 100,
    genre_mean: float = 0.5,
    genre_sd: float = 0.3,
    sigma_creator: float = 0.4,
    sigma_obs: float = 2.0,
    baseline: float = 5.0,
    size_mixture: Sequence[tuple[float, int, int]] = SIZE_MIXTURE,
    treatment_share: float = 0.5,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate one A/B experiment a creator, with the truth kept apart.

    mu_genre[g] ~ Normal(genre_mean, genre_sd); tau[i] ~ Normal(mu_genre[g_i], sigma_creator);
    control revenue ~ Normal(baseline, sigma_obs), treatment revenue ~ Normal(baseline + tau[i],
    sigma_obs). The number of users of a creator is uniform within a range that is drawn from
    `size_mixture`, so sizes are heavy-tailed.

    Parameters
    ----------
    seed : int or Generator
        The same seed gives the same bytes.
    genres : sequence of str
        Names of the genres.
    n_creators_per_genre : int
    genre_mean, genre_sd, sigma_creator, sigma_obs, baseline : float
        In dollars per user.
    size_mixture : sequence of (share, low, high)
        Shares sum to 1; sizes are integers in [low, high), at least 4 users.
    treatment_share : float
        Share of a creator's users in treatment; both arms keep at least two users.

    Returns
    -------
    users : DataFrame
        One row a user: ``creator_id, genre, group, revenue`` (dollars).
    truth : dict
        ``genre_effects`` (genre,), ``creator_effects`` (creator,), ``sigma_creator``,
        ``sigma_genre``, ``mu_global``, ``sigma_obs``, ``creator_genre`` (creator,) genre index,
        ``creator_n`` (creator,) users, ``creator_id`` (creator,), ``genres``.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """
    if len(genres) < 1 or n_creators_per_genre < 1:
        raise ValueError("at least one genre and one creator per genre are needed")
    if min(genre_sd, sigma_creator) < 0 or sigma_obs <= 0:
        raise ValueError("genre_sd and sigma_creator must be >= 0, sigma_obs > 0")

    rng = np.random.default_rng(seed)
    creator_genre = np.repeat(np.arange(len(genres)), n_creators_per_genre)
    n_creators = len(creator_genre)
    genre_effects = rng.normal(genre_mean, genre_sd, len(genres))
    creator_effects = rng.normal(genre_effects[creator_genre], sigma_creator)
    creator_n, n_treatment = draw_sizes(rng, n_creators, size_mixture, treatment_share)
    width = len(str(n_creators))
    creator_id = np.array([f"c{i + 1:0{width}d}" for i in range(n_creators)], dtype=object)
    creator = np.repeat(np.arange(n_creators), creator_n)
    place = np.arange(len(creator)) - np.repeat(np.cumsum(creator_n) - creator_n, creator_n)
    treated = place < n_treatment[creator]
    revenue = rng.normal(baseline + np.where(treated, creator_effects[creator], 0.0), sigma_obs)

    users = pd.DataFrame(
        {
            "creator_id": pd.Categorical.from_codes(creator, creator_id),
            "genre": pd.Categorical.from_codes(creator_genre[creator], list(genres)),
            "group": pd.Categorical.from_codes(treated.astype(int), list(GROUPS)),
            "revenue": revenue,
        }
    )
    truth = {
        "mu_global": genre_mean,
        "sigma_genre": genre_sd,
        "sigma_creator": sigma_creator,
        "sigma_obs": sigma_obs,
        "genre_effects": genre_effects,
        "creator_effects": creator_effects,
        "creator_genre": creator_genre,
        "creator_n": creator_n,
        "creator_id": creator_id,
        "genres": tuple(genres),
    }
    return users, truth


def read_users(path: str | Path) -> pd.DataFrame:
    """Read a users' table from ``.csv``, ``.csv.gz`` or ``.parquet`` and check it.

    Ids, genres and groups are read from CSV as text, so ``007`` stays ``007`` and a genre may
    be called ``NA``; an empty cell is missing.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    DataFrame
        A valid users frame; further columns are kept.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If the ending is unknown, the content is not what the ending says, or the table breaks
        a rule of `validate_users`.
    """
    return validate_users(read_table(path), source=Path(path).name)


def validate_users(users: pd.DataFrame, *, source: str = "users") -> pd.DataFrame:
    """Check a users frame once, where it enters.

    Rules: the columns ``creator_id, genre, group, revenue`` exist; there is a row; nothing is
    missing; ``group`` is ``treatment`` or ``control``; ``revenue`` is a finite number; a creator
    has one genre; where there is a ``user_id``, a creator has each user once.

    Parameters
    ----------
    users : DataFrame
        One row a user.
    source : str
        What the message calls the table.

    Returns
    -------
    DataFrame
        The same frame.

    Raises
    ------
    DataError
        Names column, rule, number of offending rows and first offending creators.
    """
    require_columns(users, USER_COLUMNS, source)
    if users.empty:
        raise DataError(f"{source}: the table has no rows")
    for column in ("creator_id", "genre", "group"):
        refuse(users, users[column].isna(), column, "must not be missing", source)
    refuse(users, ~users["group"].isin(GROUPS), "group", f"must be one of {GROUPS}", source)
    revenue = users["revenue"]
    if not is_real(revenue):
        wrong = pd.to_numeric(revenue, errors="coerce").isna() & revenue.notna()
        refuse(users, wrong | revenue.isna(), "revenue", "must be a number", source)
        raise DataError(f"{source}: column 'revenue' must be numeric, its type is {revenue.dtype}")
    finite = np.isfinite(revenue.to_numpy(float, na_value=np.nan))
    refuse(users, ~finite, "revenue", "must be finite", source)
    pairs = users[["creator_id", "genre"]].drop_duplicates()
    twice = pairs["creator_id"].duplicated(keep=False)
    refuse(pairs, twice, "genre", "must be the same for all users of a creator", source)
    if "user_id" in users:
        again = users.duplicated(["creator_id", "user_id"], keep=False)
        refuse(users, again, "user_id", "must not repeat within a creator", source)
    return users


def summarize_arms(users: pd.DataFrame) -> pd.DataFrame:
    """Reduce users to the moments of each creator's two arms, by one grouped aggregation.

    Parameters
    ----------
    users : DataFrame
        One row a user; checked by `validate_users`.

    Returns
    -------
    DataFrame
        One row a creator, sorted by id: ``creator_id, genre, genre_idx``, and ``n_*, mean_*,
        var_*`` for ``treatment`` and ``control``. Genres are numbered in the order of their
        category, or of their names where the column is no categorical. An absent arm has
        ``n = 0``.

    Raises
    ------
    DataError
        If the table breaks a rule.
    """
    validate_users(users)
    # Numbers as doubles: the moments of 32-bit floats would themselves be 32-bit floats.
    columns = {name: users[name].array for name in ("creator_id", "group", "genre")}
    users = pd.DataFrame({**columns, "revenue": users["revenue"].to_numpy(float)}, copy=False)
    by_arm = users.groupby(["creator_id", "group"], observed=True)["revenue"]
    genre = users.drop_duplicates("creator_id").set_index("creator_id")["genre"]
    return arrange_arms(by_arm.agg(n="size", mean="mean", var="var"), genre)


def arrange_arms(moments: pd.DataFrame, genre: pd.Series) -> pd.DataFrame:
    """Put the arms of `summarize_arms` side by side.

    `moments` holds ``n, mean, var`` by ``creator_id, group``; `genre` stands by ``creator_id``.
    """
    moments = moments.unstack("group")
    moments.columns = [f"{moment}_{group}" for moment, group in moments.columns]
    arms = moments.reindex(columns=[f"{m}_{g}" for m in ("n", "mean", "var") for g in GROUPS])
    counts = ["n_control", "n_treatment"]
    arms[counts] = arms[counts].fillna(0).astype(np.int64)
    genre = genre.reindex(arms.index)
    if not isinstance(genre.dtype, pd.CategoricalDtype):
        genre = genre.astype("category")
    genre = genre.cat.remove_unused_categories()
    arms.insert(0, "genre", genre.astype(object))
    arms.insert(1, "genre_idx", genre.cat.codes.astype(np.int64))
    arms = arms.reset_index()
    if isinstance(arms["creator_id"].dtype, pd.CategoricalDtype):
        arms["creator_id"] = arms["creator_id"].astype(arms["creator_id"].cat.categories.dtype)
        if not arms["creator_id"].is_monotonic_increasing:
            arms = arms.sort_values("creator_id", ignore_index=True)
    return arms


def _as_arms(data: pd.DataFrame) -> pd.DataFrame:
    if not isinstance(data, pd.DataFrame) or "revenue" in data or "n_treatment" not in data:
        return summarize_arms(data)
    return validate_arms(data)


def validate_arms(arms: pd.DataFrame) -> pd.DataFrame:
    """Check arms that were made elsewhere.

    Rules: ``creator_id`` unique; ``genre`` known, and one to one with ``genre_idx``; counts are
    whole; a mean is finite where the arm has a user, a variance finite and at least 0 where it
    has two.

    Parameters
    ----------
    arms : DataFrame
        As from `summarize_arms`.

    Returns
    -------
    DataFrame
        The same frame.

    Raises
    ------
    DataError
        Names column, rule and first offending creators.
    """
    source = "arms"
    moments = [f"{moment}_{group}" for moment in ("n", "mean", "var") for group in GROUPS]
    require_columns(arms, ("creator_id", "genre", "genre_idx", *moments), source)
    _refuse_repeated_creators(arms, source)
    refuse(arms, arms["genre"].isna(), "genre", "must not be missing", source)
    values = {column: numbers(arms, column, source) for column in ("genre_idx", *moments)}
    for column in ("genre_idx", "n_treatment", "n_control"):
        whole = (values[column] >= 0) & (values[column] % 1 == 0)
        refuse(arms, ~whole, column, "must be 0, 1, 2, …", source)
    _refuse_renamed_genres(arms["genre"], values["genre_idx"].astype(int), source)
    for group in GROUPS:
        n, mean, var = (values[f"{moment}_{group}"] for moment in ("n", "mean", "var"))
        wrong = (n > 0) & ~np.isfinite(mean)
        refuse(arms, wrong, f"mean_{group}", "must be finite where there is a user", source)
        wrong = (n > 1) & ~(np.isfinite(var) & (var >= 0))
        refuse(arms, wrong, f"var_{group}", "must be at least 0 where there are two users", source)
    return arms


def incomplete_creators(users: pd.DataFrame) -> pd.DataFrame:
    """List the creators whose effect cannot be estimated, with the reason.

    Parameters
    ----------
    users : DataFrame
        One row a user (or the arms of `summarize_arms`).

    Returns
    -------
    DataFrame
        ``creator_id, genre, n_treatment, n_control, reason``; empty if there is none.
    """
    return _incomplete(_as_arms(users))


def _incomplete(arms: pd.DataFrame) -> pd.DataFrame:
    columns = ["creator_id", "genre", "n_treatment", "n_control"]
    few = arms.loc[(arms[["n_treatment", "n_control"]] < 2).any(axis=1), columns].copy()
    few["reason"] = [
        " and ".join(
            f"{'one user' if n else 'no user'} in {group}"
            for group, n in (("treatment", row.n_treatment), ("control", row.n_control))
            if n < 2
        )
        for row in few.itertuples()
    ]
    return few.reset_index(drop=True)


def summarize_creators(
    users: pd.DataFrame,
    *,
    variance: str = "welch",
    incomplete: str = "raise",
    cluster: str | None = None,
    cluster_variance: str = "own",
) -> pd.DataFrame:
    """Estimate each creator's effect, the difference of mean revenue per user.

    Parameters
    ----------
    users : DataFrame
        One row a user; or their arms (`summarize_arms`; of tables too large to load,
        `hbm.arms_from_warehouse`).
    variance : {"welch", "moderated", "pooled"}
        Where the standard error comes from: `hbm.variance.standard_errors`.
    incomplete : {"raise", "exclude"}
        What to do with creators that have fewer than two users in an arm;
        `incomplete_creators` lists them.
    cluster : str, optional
        Column of the unit that was randomised (a class, a household), nested in creator and
        arm. The standard errors are then cluster-robust, and `variance` is not used.
    cluster_variance : {"own", "moderated", "pooled"}
        Where those come from: `hbm.variance.cluster_standard_errors`. All but ``pooled`` refuse
        an arm of a single cluster.

    Returns
    -------
    DataFrame
        Summaries, one row a creator: ``creator_id, genre, genre_idx, n_treatment, n_control,
        n_total, effect_hat, se, df, variance_borrowed``; effects in the unit of revenue.

    Raises
    ------
    DataError
        If the table breaks a rule, or a creator is incomplete and `incomplete` is ``"raise"``.
    """
    if incomplete not in ("raise", "exclude"):
        raise ValueError(f"incomplete must be 'raise' or 'exclude', got {incomplete!r}")
    if cluster_variance not in _variance.CLUSTER_METHODS:
        known = ", ".join(_variance.CLUSTER_METHODS)
        raise ValueError(f"unknown cluster_variance {cluster_variance!r}; known: {known}")
    arms = _as_arms(users)
    few = _incomplete(arms)
    if len(few) and incomplete == "raise":
        first = ", ".join(f"{r.creator_id!r} ({r.reason})" for r in few.head(FIRST).itertuples())
        raise DataError(
            f"users: {len(few):,} creators have fewer than two users in an arm, first: {first}; "
            "incomplete='exclude' sets them aside, incomplete_creators(users) lists them"
        )
    arms = arms[~arms["creator_id"].isin(few["creator_id"])].reset_index(drop=True)
    if arms.empty:
        raise DataError("users: no creator has two users in both arms")
    if cluster is None:
        errors = _variance.standard_errors(arms, variance)
    else:
        errors = _cluster_errors(users, arms, cluster, cluster_variance)
    # A genre may have lost all its creators: number those that are left without gaps.
    genre_idx = np.unique(arms["genre_idx"], return_inverse=True)[1]
    return pd.DataFrame(
        {
            "creator_id": arms["creator_id"],
            "genre": arms["genre"],
            "genre_idx": genre_idx.astype(np.int64),
            "n_treatment": arms["n_treatment"],
            "n_control": arms["n_control"],
            "n_total": arms["n_treatment"] + arms["n_control"],
            "effect_hat": arms["mean_treatment"] - arms["mean_control"],
            "se": errors["se"],
            "df": errors["df"],
            "variance_borrowed": errors["variance_borrowed"],
        }
    )


def _cluster_errors(
    users: pd.DataFrame, arms: pd.DataFrame, cluster: str, cluster_variance: str
) -> pd.DataFrame:
    """Standard errors of `arms` from clusters of users, in the order of `arms`."""
    if "n_treatment" in users:
        raise DataError(f"users: column '{cluster}' needs one row a user, not arms")
    require_columns(users, (cluster,), "users")
    refuse(users, users[cluster].isna(), cluster, "must not be missing", "users")
    kept = users[users["creator_id"].isin(arms["creator_id"])]
    in_arms = kept[["creator_id", "group", cluster]].drop_duplicates()
    both = in_arms.duplicated(["creator_id", cluster], keep=False)
    refuse(in_arms, both, cluster, "must lie within one arm of a creator", "users")
    clusters = (
        kept.groupby(["creator_id", "group", cluster], observed=True)["revenue"]
        .agg(n="size", mean="mean", var="var")
        .reset_index()
    )
    try:
        errors = _variance.cluster_standard_errors(clusters, cluster_variance)
    except ValueError as error:
        raise DataError(f"users: column '{cluster}': {error}") from None
    return errors.reindex(arms["creator_id"]).reset_index(drop=True)


def validate_summaries(summaries: pd.DataFrame) -> pd.DataFrame:
    """Check a summaries frame: what the models need, wherever the effects come from.

    Rules: ``creator_id`` unique; ``genre_idx`` whole numbers from 0 without gaps; ``effect_hat``
    finite; ``se`` finite and greater than 0.

    Parameters
    ----------
    summaries : DataFrame
        At least ``creator_id, genre_idx, effect_hat, se``.

    Returns
    -------
    DataFrame
        The same frame.

    Raises
    ------
    DataError
        Names column, rule and first offending creators.
    """
    source = "summaries"
    require_columns(summaries, ("creator_id", "genre_idx", "effect_hat", "se"), source)
    if summaries.empty:
        raise DataError(f"{source}: the table has no rows")
    _refuse_repeated_creators(summaries, source)
    for column in ("genre_idx", "effect_hat", "se"):
        values = numbers(summaries, column, source)
        refuse(summaries, ~np.isfinite(values), column, "must be a finite number", source)
    refuse(summaries, summaries["se"] <= 0, "se", "must be greater than 0", source)
    idx = summaries["genre_idx"].to_numpy(float)
    refuse(summaries, (idx < 0) | (idx % 1 != 0), "genre_idx", "must be 0, 1, 2, …", source)
    empty = np.setdiff1d(np.arange(idx.max() + 1), idx).astype(int)
    if len(empty):
        raise DataError(
            f"{source}: column 'genre_idx' must have no gaps; without a creator: "
            f"{', '.join(map(str, empty[:FIRST]))}"
        )
    if "genre" in summaries:
        _refuse_renamed_genres(summaries["genre"], idx.astype(int), source)
    return summaries


def _refuse_repeated_creators(frame: pd.DataFrame, source: str) -> None:
    """Raise unless every row has a creator of its own."""
    ids = frame["creator_id"]
    refuse(frame, ids.isna(), "creator_id", "must not be missing", source)
    refuse(frame, ids.duplicated(keep=False), "creator_id", "must be unique", source)


def _refuse_renamed_genres(genre: pd.Series, idx: np.ndarray, source: str) -> None:
    """Raise unless every genre has one number, and every number one genre."""
    code, names = pd.factorize(genre, use_na_sentinel=False)
    pairs = np.unique(code * (idx.max(initial=0) + 1) + idx)
    if len(pairs) == len(names) == len(np.unique(idx)):
        return
    pairs = pd.DataFrame({"genre": genre.to_numpy(), "genre_idx": idx}).drop_duplicates()
    number = pairs.loc[pairs["genre_idx"].duplicated(), "genre_idx"]
    if len(number):
        raise DataError(f"{source}: genre_idx {number.iloc[0]} has more than one genre name")
    name = pairs.loc[pairs["genre"].duplicated(), "genre"].iloc[0]
    raise DataError(f"{source}: genre {name!r} has more than one genre_idx")
