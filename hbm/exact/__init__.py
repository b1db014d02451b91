"""The exact engine: the whole posterior from a quadrature over two standard deviations.

No sampling is involved: moments, quantiles and probabilities are those of a mixture of normals
over the nodes of the grid (`hbm.exact.quadrature`). Draws are made on request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from hbm.checks import FIRST, DataError, require_columns
from hbm.diagnostics import HYPERPARAMETERS
from hbm.exact.covariates import likelihood_for
from hbm.exact.draws import MAX_VALUES, draw_effects, likelihood_of
from hbm.exact.quadrature import integrate
from hbm.exact.rule import RULE, Rule, effect_rule
from hbm.gaussian import Estimates, Moments, mean_columns
from hbm.priors import Fixed, Priors, refuse_memory

__all__ = [
    "MAX_VALUES",
    "components",
    "draw_effects",
    "extract_slope_estimates",
    "fit_exact",
    "predict_effects",
    "predictive_moments",
]


def fit_exact(
    summaries: pd.DataFrame,
    coords: dict[str, np.ndarray],
    *,
    priors: Priors,
    draws: int,
    chains: int,
    random_seed: int,
    covariates: Sequence[str] = (),
) -> xr.DataTree:
    """Integrate the posterior; `hbm.model.fit_hierarchical_model` is the way in.

    Parameters
    ----------
    summaries : DataFrame
        Valid summaries.
    coords : dict
        Coordinates ``creator`` and ``genre``, those that are only remembered last.
    priors : Priors
    draws, chains, random_seed : int
        As `draw_effects` takes them; no draws at all with ``draws=0``.
    covariates : sequence of str
        Columns of `summaries` that effects may go with.

    Returns
    -------
    DataTree
        Groups ``posterior`` (draws, if any), ``observed_data``, ``constant_data`` and
        ``quadrature``: dims ``outer, inner``; ``sigma_genre, sigma_creator, log_weight`` of the
        nodes and ``mu_global_mean, mu_global_var`` given the node. ``mixture`` holds the same
        by ``node`` for the few nodes of the Gauss rule (`hbm.exact.rule`) that smooth functions
        need.
    """
    start = time.perf_counter()
    known = _standardised(summaries, covariates)
    if covariates:
        refuse_memory(priors, "a model with covariates")
    data = Estimates.from_frame(summaries, known["covariates"][1] if known else None)
    data = data.remembering(priors.memory, coords["genre"])
    grid = integrate(likelihood_for(data, priors.mu_global, priors.slope), priors)
    rule = effect_rule(grid)
    errors = grid.errors | {"effects": rule.error}
    nodes = grid.nodes
    variables = {
        "sigma_genre": nodes.sigma_genre,
        "sigma_creator": nodes.sigma_creator,
        "mu_global_mean": nodes.mu_mean,
        "mu_global_var": nodes.mu_var,
        "log_weight": grid.log_weight,
    }
    posterior = xr.Dataset(coords=coords)
    # One index for all groups: a million ids take a third of a second to index.
    creator = xr.Coordinates(
        {"creator": posterior.variables["creator"]}, {"creator": posterior.xindexes["creator"]}
    )
    constant = {
        "se": ("creator", summaries["se"].to_numpy(float)),
        "genre_idx": ("creator", summaries["genre_idx"].to_numpy()),
    }
    tree = xr.DataTree.from_dict(
        {
            "posterior": posterior,
            "quadrature": xr.Dataset(
                {name: (("outer", "inner"), values) for name, values in variables.items()}
            ),
            "mixture": xr.Dataset({name: ("node", getattr(rule, name)) for name in RULE}),
            "observed_data": xr.Dataset(
                {"effect_hat": ("creator", summaries["effect_hat"].to_numpy(float))}, creator
            ),
            "constant_data": xr.Dataset(constant | known, creator),
        }
    )
    tree.attrs.update(
        engine="exact",
        polar=grid.plane.polar,
        quadrature_error=max(errors.values()),
        quadrature_errors=errors,
        log_marginal_likelihood=grid.log_evidence,
        priors=json.dumps(priors.describe()),
        prior_parameters=json.dumps(priors.parameters()),
        fixed=[name for name in HYPERPARAMETERS if isinstance(getattr(priors, name), Fixed)],
        random_seed=random_seed,
    )
    if draws:
        drawn = draw_effects(tree, draws=draws, chains=chains, random_seed=random_seed)
        tree["posterior"] = xr.DataTree(drawn)
    tree.attrs["seconds"] = time.perf_counter() - start
    return tree


def _standardised(summaries: pd.DataFrame, covariates: Sequence[str]) -> dict[str, tuple]:
    """Covariates with mean 0 and sd 1, and what they were, as variables of a dataset."""
    if not covariates:
        return {}
    values = _finite_covariates(summaries, covariates, "summaries", summaries["creator_id"])
    for name, column in zip(covariates, values.T, strict=True):
        if not np.ptp(column) > 0:
            raise DataError(f"summaries: covariate '{name}' must not be the same for all creators")
    mean, sd = values.mean(axis=0), values.std(axis=0)
    return {
        "covariates": (("creator", "covariate"), (values - mean) / sd),
        "covariate_mean": ("covariate", mean),
        "covariate_sd": ("covariate", sd),
        "covariate": ("covariate", list(covariates)),
    }


def _finite_covariates(frame: pd.DataFrame, covariates, source: str, creators) -> np.ndarray:
    """Return the covariates, shape (creator, covariate); raise unless all are finite numbers."""
    require_columns(frame, covariates, source)
    values = frame[list(covariates)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    for name, wrong in zip(covariates, ~np.isfinite(values.T), strict=True):
        if wrong.any():
            first = ", ".join(map(repr, creators[wrong][:FIRST]))
            raise DataError(
                f"{source}: covariate '{name}' must be a finite number; {wrong.sum()} creators "
                f"break it, first: {first}"
            )
    return values


def components(idata: xr.DataTree) -> tuple[Moments, np.ndarray, np.ndarray]:
    """Return the posterior as a mixture over the nodes of the Gauss rule.

    Returns
    -------
    genre : Moments, shape (node, genre)
        Moments of mu_genre given the node; with covariates, `hbm.exact.covariates.Centers`.
    sigma_creator, weight : ndarray, shape (node,)
    """
    rule = Rule.from_dataset(idata["mixture"].dataset)
    return rule.centers(likelihood_of(idata)), rule.sigma_creator, rule.weight


def extract_slope_estimates(idata: xr.DataTree) -> pd.DataFrame:
    """Return the posterior of the slopes of an exact fit with covariates.

    Returns
    -------
    DataFrame
        One row a covariate: ``covariate``; ``mean, se`` (posterior standard deviation), ``lower,
        upper`` (equal-tailed 95% interval), in dollars per user and standard deviation of the
        covariate; ``p_positive``; ``covariate_mean, covariate_sd``, in the covariate's unit.

    Raises
    ------
    ValueError
        If the fit has no covariates.
    """
    constant = idata["constant_data"].dataset
    if "covariates" not in constant:
        raise ValueError("the fit has no covariates")
    centers, _, weight = components(idata)
    return pd.DataFrame(
        {
            "covariate": constant["covariate"].values,
            **mean_columns(centers.slope, weight),
            "covariate_mean": constant["covariate_mean"].values,
            "covariate_sd": constant["covariate_sd"].values,
        }
    )


def predict_effects(idata: xr.DataTree, genres, *, se=0.0, covariates=None) -> pd.DataFrame:
    """Predict the effects of creators who are not in the data.

    A new creator of a known genre is drawn around that genre's mean; the genre of a new one is
    itself drawn around the platform's mean first.

    Parameters
    ----------
    idata : DataTree
        From ``fit_hierarchical_model(…, engine="exact")``.
    genres : sequence
        Name of the genre of each new creator; None for a genre that is not in the data.
    se : float or sequence of float
        0 predicts the true effect; a standard error predicts the estimate that an experiment
        of that precision would give.
    covariates : DataFrame, optional
        One row a new creator, in the order of `genres` and the unit of the data; needed by a
        fit with covariates, and by no other.

    Returns
    -------
    DataFrame
        One row a new creator: ``genre, effect_hat`` (mean of the prediction), ``se`` (its
        standard deviation), ``ci_lower, ci_upper`` (equal-tailed 95% interval), ``p_positive``.

    Raises
    ------
    KeyError
        If a genre is neither known nor None.
    ValueError
        If a standard error is negative, or there are covariates that the fit has not.
    DataError
        If a covariate is missing or no finite number, or the covariates have not one row a
        creator.
    """
    found = pd.DataFrame(mean_columns(*predictive_moments(idata, genres, se, covariates)))
    found.insert(0, "genre", pd.Series(list(genres), dtype=object))
    return found.rename(columns={"mean": "effect_hat", "lower": "ci_lower", "upper": "ci_upper"})


def predictive_moments(
    idata: xr.DataTree, genres, se=0.0, covariates=None
) -> tuple[Moments, np.ndarray]:
    """Return the predictions of `predict_effects` as mixtures of normals.

    Parameters
    ----------
    idata, genres, se, covariates
        As for `predict_effects`.

    Returns
    -------
    moments : Moments, shape (node, creator)
    weight : ndarray, shape (node,)
    """
    se = np.broadcast_to(np.asarray(se, float), len(genres))
    if not np.all(se >= 0):
        raise ValueError(f"se must not be negative, got {se.min()}")
    names = idata["posterior"].dataset["genre"].values
    known = {name: k for k, name in enumerate(names)} | {None: len(names)}
    place = np.array([known.get(g, -1) for g in genres])
    if np.any(place < 0):
        unknown = [g for g, k in zip(genres, place, strict=True) if k < 0]
        raise KeyError(f"unknown genres: {unknown}")
    rule = Rule.from_dataset(idata["mixture"].dataset)
    x = _new_covariates(idata["constant_data"].dataset, covariates, len(place))
    new = Estimates(np.zeros(len(place)), se, place, np.arange(len(place)), len(names) + 1, x)
    mean, var = rule.centers(likelihood_of(idata), new_genre=True).of(new)
    var = var + np.square(rule.sigma_creator)[:, None] + np.square(se)
    return Moments(mean, var), rule.weight


def _new_covariates(constant: xr.Dataset, covariates, n_creators: int) -> np.ndarray | None:
    """Covariates of new creators as the fit has standardised its own; None if it has none."""
    if "covariates" not in constant:
        if covariates is not None:
            raise ValueError("covariates: the fit has none")
        return None
    wanted = list(constant["covariate"].values)
    require_columns(covariates, wanted, "covariates")
    if len(covariates) != n_creators:
        raise DataError(
            f"covariates: one row a new creator is needed, got {len(covariates)} rows for "
            f"{n_creators} creators"
        )
    values = _finite_covariates(covariates, wanted, "covariates", covariates.index)
    return (values - constant["covariate_mean"].values) / constant["covariate_sd"].values
