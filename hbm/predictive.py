"""Can the posterior be trusted where no truth is known? Predictive checks, creators left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import ndtr

from hbm import student
from hbm.data import validate_summaries
from hbm.diagnostics import HYPERPARAMETERS, estimates_of
from hbm.exact.draws import MAX_VALUES, draw_effects
from hbm.intervals import LEVEL, tail_probabilities
from hbm.priors import Fixed, Priors, refuse_memory

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
        Without a memory; what learned priors expect: `hbm.prior_mixture`.
    draws : int
    seed : int or Generator

    Returns
    -------
    DataTree
        Groups ``prior`` (the hyperparameters), ``prior_predictive`` and ``observed_data``, the
        last two with ``effect_hat``; dims ``chain`` (of length 1), ``draw``, ``creator``.

    Raises
    ------
    DataError
        If the summaries break a rule.
    ValueError
        If the priors hold a memory.
    """
    import arviz as az

    validate_summaries(summaries)
    refuse_memory(priors, "the prior predictive distribution")
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
        is drawn anew from Normal(mu_genre, sigma_creator), or the Student-t of a robust fit.
        ``estimate``: the same creators
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
        if "nu" in chosen:
            chosen = _with_own_scales(chosen, rng)
        mean, sd = _predictive(chosen, idata["constant_data"].dataset)
        effects = rng.normal(*(part.transpose("sample", "creator").values for part in (mean, sd)))
    else:
        effects = rng.normal(chosen["tau"].transpose("sample", "creator").values, se)
    replicated = xr.Dataset(
        {"effect_hat": (("chain", "draw", "creator"), effects[None])},
        coords={"chain": [0], "draw": np.arange(draws), "creator": posterior["creator"].values},
    )
    return with_group(idata, "posterior_predictive", replicated)


def _with_own_scales(chosen, rng: np.random.Generator):
    """Give each creator of each sample a scale of its own: a Student-t is normal given that."""
    nu = chosen["nu"].values[:, None]
    w = rng.chisquare(nu, (chosen.sizes["sample"], chosen.sizes["creator"])) / nu
    scale = chosen["sigma_creator"].values[:, None] / np.sqrt(w)
    return chosen.assign(sigma_creator=(("sample", "creator"), scale))


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


def with_group(idata, name: str, dataset):
    """Return the posterior with a group added or replaced."""
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
        False: tau integrated out, Normal(mu_genre, sqrt(sigma_creator² + se²)), or in a robust
        fit the Student-t with the normal noise of the estimate. True: given tau,
        Normal(tau, se).
    """
    posterior, constant = _draws_of(idata), idata["constant_data"].dataset
    if "nu" in posterior and not conditional:
        density = _by_nodes(idata, posterior, student.estimate_log_density)
    else:
        mean, sd = _predictive(posterior, constant, conditional=conditional)
        z = (idata["observed_data"]["effect_hat"] - mean) / sd
        density = -0.5 * np.square(z) - np.log(sd * np.sqrt(2 * np.pi))
    dims = ("chain", "draw", "creator")
    group = density.transpose(*dims).to_dataset(name="effect_hat")
    tree = with_group(idata, "posterior", posterior)
    return with_group(tree, "log_likelihood", group.drop_vars("genre", errors="ignore"))


def _by_nodes(idata, posterior, function):
    """What a function of `hbm.student` says of each observed estimate, by draw."""
    data = estimates_of(idata)
    values = data.unsort(function(data, student.student_draws(posterior), student.nodes_for(data)))
    like = posterior["sigma_creator"] * idata["observed_data"]["effect_hat"]
    return like.copy(data=values.reshape(like.shape))


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

    The weights are those of PSIS, the probabilities those of the integrated likelihood, so
    nothing is drawn.

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
    posterior = _draws_of(idata)
    if "nu" in posterior:
        below = _by_nodes(idata, posterior, student.estimate_cdf)
    else:
        mean, sd = _predictive(posterior, idata["constant_data"].dataset)
        z = (idata["observed_data"]["effect_hat"] - mean) / sd
        below = z.copy(data=ndtr(z.values))
    weights = np.exp(elpd.log_weights - elpd.log_weights.max(("chain", "draw")))
    pit = (weights * below).sum(("chain", "draw")) / weights.sum(("chain", "draw"))
    columns = {"creator_id": pit["creator"], "pit": pit, "pareto_k": elpd.pareto_k}
    return pd.DataFrame({name: values.values for name, values in columns.items()})
