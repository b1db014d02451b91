"""Can the posterior be trusted where no truth is known? Predictive checks and held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import ndtr

from hbm.baselines import complete_pooling_estimates
from hbm.data import (
    GROUPS,
    DataError,
    require_columns,
    summarize_creators,
    validate_summaries,
    validate_users,
)
from hbm.diagnostics import HYPERPARAMETERS
from hbm.estimates import extract_hbm_estimates
from hbm.exact.draws import MAX_VALUES, draw_effects
from hbm.intervals import LEVEL, normal_factor, tail_probabilities
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, Priors

#: Test statistics of `predictive_pvalues`, each of effects of shape ``(…, creator)``.
STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sd": lambda effects: effects.std(axis=-1, ddof=1),
    "min": lambda effects: effects.min(axis=-1),
    "max": lambda effects: effects.max(axis=-1),
    "skew": lambda effects: stats.skew(effects, axis=-1),
    "share negative": lambda effects: (effects < 0).mean(axis=-1),
}

#: An exact fit without draws is asked for this many, if their taus fit into `MAX_VALUES`.
MAX_DRAWS = 4000

#: What the estimators of `split_half` are called: column of the prediction, and name.
_PREDICTIONS = {
    "predicted": "Partial pooling",
    "predicted_plain": "No pooling",
    "predicted_genre": "Complete pooling",
}


def prior_predictive(
    summaries: pd.DataFrame,
    priors: Priors = Priors(),
    *,
    draws: int = 1000,
    seed: int | np.random.Generator = 42,
):
    """Draw data sets from the model before it has seen any effect.

    Parameters
    ----------
    summaries : DataFrame
        The creators: their genres and standard errors are used.
    priors : Priors
    draws : int
    seed : int or Generator

    Returns
    -------
    DataTree
        Groups ``prior`` (the hyperparameters), ``prior_predictive`` and ``observed_data``, the
        last two with ``effect_hat``; dims ``chain`` (of length 1), ``draw``, ``creator``.
    """
    import arviz as az

    validate_summaries(summaries)
    rng = np.random.default_rng(seed)
    hyper = {}
    for name in HYPERPARAMETERS:
        prior = getattr(priors, name)
        fixed = isinstance(prior, Fixed)
        hyper[name] = (
            np.full(draws, prior.value) if fixed else prior.scipy().rvs(draws, random_state=rng)
        )
    genre_idx, se = summaries["genre_idx"].to_numpy(int), summaries["se"].to_numpy(float)
    shape = (draws, genre_idx.max() + 1)
    mu_genre = rng.normal(hyper["mu_global"][:, None], hyper["sigma_genre"][:, None], shape)
    effects = rng.normal(mu_genre[:, genre_idx], np.hypot(hyper["sigma_creator"][:, None], se))
    return az.from_dict(
        {
            "prior": {name: values[None] for name, values in hyper.items()},
            "prior_predictive": {"effect_hat": effects[None]},
            "observed_data": {"effect_hat": summaries["effect_hat"].to_numpy(float)},
        },
        coords={"creator": summaries["creator_id"].to_numpy()},
        dims={"effect_hat": ["creator"]},
    )


def posterior_predictive(
    idata,
    *,
    draws: int = 1000,
    replicate: str = "creator",
    seed: int | np.random.Generator = 42,
):
    """Draw replicated data sets from the fitted model.

    Parameters
    ----------
    idata : DataTree
        From `fit_hierarchical_model`.
    draws : int
        Draws of the posterior to replicate, taken at random, without replacement while there
        are enough.
    replicate : {"creator", "estimate"}
        ``creator``: other creators of the same genres, with the same standard errors; each tau
        is drawn anew from Normal(mu_genre, sigma_creator). ``estimate``: the same creators
        measured again, each tau from its own posterior. The first is the default because it can
        fail: taus that follow the data reproduce heavy tails or a second mode, however wrong
        the hierarchy that is to be checked.
    seed : int or Generator

    Returns
    -------
    DataTree
        The posterior with a group ``posterior_predictive`` added: ``effect_hat`` with dims
        ``chain`` (of length 1), ``draw``, ``creator``. `idata` itself is not changed.
    """
    import xarray as xr

    if replicate not in ("creator", "estimate"):
        raise ValueError(f"replicate must be 'creator' or 'estimate', got {replicate!r}")
    rng = np.random.default_rng(seed)
    posterior = _draws_of(idata).stack(sample=("chain", "draw"))
    n = posterior.sizes["sample"]
    chosen = posterior.isel(sample=rng.choice(n, draws, replace=draws > n))
    se = idata["constant_data"]["se"].values
    if replicate == "creator":
        mean, sd = _predictive(chosen, idata["constant_data"].dataset)
        effects = rng.normal(*(part.transpose("sample", "creator").values for part in (mean, sd)))
    else:
        effects = rng.normal(chosen["tau"].transpose("sample", "creator").values, se)
    replicated = xr.Dataset(
        {"effect_hat": (("chain", "draw", "creator"), effects[None])},
        coords={"chain": [0], "draw": np.arange(draws), "creator": posterior["creator"].values},
    )
    return _with_group(idata, "posterior_predictive", replicated)


def _draws_of(idata):
    """Return the posterior dataset; an exact fit without draws is asked for some."""
    posterior = idata["posterior"].dataset
    if posterior.sizes.get("draw"):
        return posterior
    size = max(posterior.sizes["creator"], posterior.sizes["genre"])
    chains = 4
    draws = min(MAX_DRAWS, MAX_VALUES // size) // chains
    if not draws:
        raise ValueError(f"{size:,} creators are too many to draw their effects")
    seed = idata.attrs["random_seed"]
    return draw_effects(idata, draws=draws, chains=chains, random_seed=seed)


def _with_group(idata, name: str, dataset):
    import xarray as xr

    tree = idata.copy()
    tree[name] = xr.DataTree(dataset)
    return tree


def predictive_pvalues(
    idata,
    *,
    statistics: Mapping[str, Callable[[np.ndarray], np.ndarray]] = STATISTICS,
    group: str = "posterior_predictive",
) -> pd.DataFrame:
    """Compare test statistics of the data with those of replicated data.

    Parameters
    ----------
    idata : DataTree
        From `posterior_predictive` or `prior_predictive`.
    statistics : dict of str to function
        Functions that reduce the last axis, creators.
    group : str
        Group of the replicated data.

    Returns
    -------
    DataFrame
        One row a statistic: ``statistic, observed, replicated, lower, upper, p_value``. The
        middle three are mean and equal-tailed 95% interval of the replicated, p_value is
        P(replicated >= observed), ties counted half: near 0 or near 1 is a misfit. A fit to the
        same data makes values near 1/2 commoner than uniform (Gelman et al. 2013, 6.3).
    """
    if group not in idata.children:
        raise ValueError(f"the posterior has no group {group!r}; there are {list(idata.children)}")
    observed = idata["observed_data"]["effect_hat"].values
    effects = idata[group]["effect_hat"].transpose("chain", "draw", "creator").values
    rows = []
    for name, statistic in statistics.items():
        value, replicated = float(statistic(observed)), np.ravel(statistic(effects))
        lower, upper = np.quantile(replicated, tail_probabilities(LEVEL))
        p_value = np.mean(replicated > value) + np.mean(replicated == value) / 2
        rows.append((name, value, replicated.mean(), lower, upper, p_value))
    columns = ["statistic", "observed", "replicated", "lower", "upper", "p_value"]
    return pd.DataFrame(rows, columns=columns)


class LeaveOneOut(NamedTuple):
    """What `leave_one_out` found.

    Attributes
    ----------
    elpd : ELPDData
        ArviZ's result: ``elpd, se, p``, and by creator ``elpd_i, pareto_k, log_weights``.
    pareto_k : DataFrame
        One row: ``n_creators, good_k, n_above, max_k, worst``: the largest k that can be
        trusted, how many creators lie above it, the largest k and the creator that has it.
    """

    elpd: Any
    pareto_k: pd.DataFrame


def with_log_likelihood(idata, *, conditional: bool = False):
    """Return the posterior with a group ``log_likelihood`` for ArviZ, ``effect_hat`` by creator.

    Parameters
    ----------
    idata : DataTree
        From `fit_hierarchical_model`.
    conditional : bool
        False: tau integrated out, Normal(mu_genre, sqrt(sigma_creator² + se²)). True: given
        tau, Normal(tau, se).
    """
    posterior, constant = _draws_of(idata), idata["constant_data"].dataset
    mean, sd = _predictive(posterior, constant, conditional=conditional)
    observed = idata["observed_data"]["effect_hat"]
    density = -0.5 * np.square((observed - mean) / sd) - np.log(sd * np.sqrt(2 * np.pi))
    dims = ("chain", "draw", "creator")
    group = density.transpose(*dims).to_dataset(name="effect_hat")
    tree = _with_group(idata, "posterior", posterior)
    return _with_group(tree, "log_likelihood", group.drop_vars("genre", errors="ignore"))


def _predictive(posterior, constant, *, conditional: bool = False):
    """Mean and sd of each creator's estimate, by draw."""
    if conditional:
        return posterior["tau"], constant["se"]
    genre = constant["genre_idx"].astype(int)
    mean, sigma = posterior["mu_genre"].isel(genre=genre), posterior["sigma_creator"]
    if "slope" in posterior:
        mean = mean + (posterior["slope"] * constant["covariates"]).sum("covariate")
    if "sigma_by_genre" in posterior:
        sigma = posterior["sigma_by_genre"].isel(genre=genre)
    return mean, np.hypot(sigma, constant["se"])


def leave_one_out(idata, *, conditional: bool = False) -> LeaveOneOut:
    """Estimate how well each creator is predicted from all others (PSIS-LOO).

    With one parameter an observation, leaving it out changes that parameter's posterior beyond
    what importance sampling can bridge, and Pareto k says so (Vehtari, Gelman & Gabry 2017).
    With tau integrated out each creator leans on a handful of shared parameters, and it works.

    Parameters
    ----------
    idata : DataTree
        From `fit_hierarchical_model`.
    conditional : bool
        True uses the likelihood given tau, to show it fail.

    Returns
    -------
    LeaveOneOut

    Warns
    -----
    UserWarning
        From ArviZ, if a Pareto k is too high.
    """
    import arviz as az

    tree = with_log_likelihood(idata, conditional=conditional)
    elpd = az.loo(tree, var_name="effect_hat", pointwise=True)
    k = elpd.pareto_k
    row = {
        "n_creators": k.size,
        "good_k": float(elpd.good_k),
        "n_above": int((k > elpd.good_k).sum()),
        "max_k": float(k.max()),
        "worst": k["creator"].values[np.argmax(k.values)],
    }
    return LeaveOneOut(elpd, pd.DataFrame([row]))


def loo_pit(idata, loo: LeaveOneOut | None = None) -> pd.DataFrame:
    """Return P(effect_hat_i <= observed | all other creators), uniform if the model holds.

    The weights are those of PSIS, the probabilities those of the integrated likelihood's normal,
    so nothing is drawn.

    Parameters
    ----------
    idata : DataTree
        From `fit_hierarchical_model`.
    loo : LeaveOneOut, optional
        From `leave_one_out` of the same posterior, to save its time.

    Returns
    -------
    DataFrame
        ``creator_id, pit, pareto_k``.
    """
    elpd = (leave_one_out(idata) if loo is None else loo).elpd
    mean, sd = _predictive(_draws_of(idata), idata["constant_data"].dataset)
    z = (idata["observed_data"]["effect_hat"] - mean) / sd
    below = z.copy(data=ndtr(z.values))
    weights = np.exp(elpd.log_weights - elpd.log_weights.max(("chain", "draw")))
    pit = (weights * below).sum(("chain", "draw")) / weights.sum(("chain", "draw"))
    columns = {"creator_id": pit["creator"], "pit": pit, "pareto_k": elpd.pareto_k}
    return pd.DataFrame({name: values.values for name, values in columns.items()})


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
