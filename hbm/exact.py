"""The exact engine: the whole posterior from a quadrature over two standard deviations.

No sampling is involved: moments, quantiles and probabilities are those of a mixture of normals
over the nodes of the grid (`hbm.quadrature`). Draws are made on request.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import xarray as xr
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp

from hbm.diagnostics import HYPERPARAMETERS, estimates_of
from hbm.gauss import RULE, Rule, gauss_rule, genre_moments
from hbm.gaussian import Estimates, Moments, creator_moments
from hbm.priors import Fixed, Normal, Priors
from hbm.quadrature import Likelihood, Sums, integrate

#: A request for more drawn values than this has to be explicit: 10^7 doubles are 80 MB.
MAX_VALUES = 10**7


def fit_exact(
    summaries: pd.DataFrame,
    coords: dict[str, np.ndarray],
    *,
    priors: Priors,
    draws: int,
    chains: int,
    random_seed: int,
) -> xr.DataTree:
    """Integrate the posterior; `hbm.model.fit_hierarchical_model` is the way in.

    Parameters
    ----------
    summaries : DataFrame
        Valid summaries.
    coords : dict
        Coordinates ``creator`` and ``genre``.
    priors : Priors
    draws, chains, random_seed : int
        As `draw_effects` takes them; no draws at all with ``draws=0``.

    Returns
    -------
    DataTree
        Groups ``posterior`` (draws, if any), ``observed_data``, ``constant_data`` and
        ``quadrature``: dims ``outer, inner``; ``sigma_genre, sigma_creator, log_weight`` of the
        nodes and ``mu_global_mean, mu_global_var`` given the node. ``mixture`` holds the same
        by ``node`` for the few nodes of the Gauss rule (`hbm.gauss`) that smooth functions need.
    """
    start = time.perf_counter()
    data = Estimates.from_frame(summaries)
    grid = integrate(data, priors)
    rule = gauss_rule(grid)
    errors = grid.errors | {"effects": rule.error}
    nodes = grid.nodes
    variables = {
        "sigma_genre": nodes.sigma_genre,
        "sigma_creator": nodes.sigma_creator,
        "mu_global_mean": nodes.mu_mean,
        "mu_global_var": nodes.mu_var,
        "log_weight": grid.log_weight,
    }
    creator = {"creator": coords["creator"]}
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(coords=coords),
            "quadrature": xr.Dataset(
                {name: (("outer", "inner"), values) for name, values in variables.items()}
            ),
            "mixture": xr.Dataset({name: ("node", getattr(rule, name)) for name in RULE}),
            "observed_data": xr.Dataset(
                {"effect_hat": ("creator", summaries["effect_hat"].to_numpy(float))}, creator
            ),
            "constant_data": xr.Dataset(
                {
                    "se": ("creator", summaries["se"].to_numpy(float)),
                    "genre_idx": ("creator", summaries["genre_idx"].to_numpy()),
                },
                creator,
            ),
        }
    )
    tree.attrs.update(
        engine="exact",
        polar=grid.plane.polar,
        quadrature_error=max(errors.values()),
        quadrature_errors=errors,
        log_marginal_likelihood=grid.log_evidence,
        priors=json.dumps(priors.describe()),
        prior_mu_global=(priors.mu_global.mu, priors.mu_global.sigma),
        fixed=[name for name in HYPERPARAMETERS if isinstance(getattr(priors, name), Fixed)],
        random_seed=random_seed,
    )
    if draws:
        drawn = draw_effects(tree, draws=draws, chains=chains, random_seed=random_seed)
        tree["posterior"] = xr.DataTree(drawn)
    tree.attrs["seconds"] = time.perf_counter() - start
    return tree


def components(idata: xr.DataTree) -> tuple[Moments, np.ndarray, np.ndarray]:
    """Return the posterior as a mixture over the nodes of the Gauss rule.

    Returns
    -------
    genre : Moments, shape (node, genre)
        Moments of mu_genre given the node.
    sigma_creator, weight : ndarray, shape (node,)
    """
    rule = Rule.from_dataset(idata["mixture"].dataset)
    sums = rule.sums(_likelihood(idata))
    return rule.genre_moments(sums), rule.sigma_creator, rule.weight


def draw_effects(
    idata: xr.DataTree,
    creators=None,
    *,
    draws: int = 2000,
    chains: int = 4,
    random_seed: int = 42,
    max_values: int = MAX_VALUES,
) -> xr.Dataset:
    """Draw independently from the joint posterior of an exact fit.

    Parameters
    ----------
    idata : DataTree
        From ``fit_hierarchical_model(…, engine="exact")``.
    creators : sequence, optional
        Ids of the creators whose effects are wanted; all when omitted.
    draws, chains : int
        The draws are independent; chains only give them the shape that NUTS has.
    random_seed : int
        The same seed gives the same hyperparameters and genre means, whichever creators are
        asked for.
    max_values : int
        The largest number of values of ``tau``; raise it to draw more on purpose.

    Returns
    -------
    Dataset
        ``mu_global, sigma_genre, sigma_creator`` (chain, draw), ``mu_genre`` (chain, draw,
        genre) and ``tau`` (chain, draw, creator), in the unit of the effects.

    Raises
    ------
    ValueError
        If the draws are more than `max_values`.
    KeyError
        If a creator is unknown.
    """
    coords = idata["posterior"].dataset.coords
    ids = coords["creator"].values
    position = np.arange(len(ids))
    if creators is not None:
        position = pd.Index(ids).get_indexer(pd.Index(creators))
        if (position < 0).any():
            unknown = [c for c, p in zip(creators, position, strict=True) if p < 0]
            raise KeyError(f"unknown creators, first: {unknown[:5]}")
    n_draws, n_genres = draws * chains, len(coords["genre"])
    if n_draws * max(len(position), n_genres) > max_values:
        raise ValueError(
            f"{n_draws:,} draws of {len(position):,} creators and {n_genres:,} genres are more "
            f"than {max_values:,} values: ask for fewer draws or creators (draws=0 leaves them "
            "out: readouts need none), or raise max_values of draw_effects"
        )
    rng = np.random.default_rng(random_seed)
    likelihood = _likelihood(idata)
    sigma_genre, sigma_creator = _draw_sigmas(idata, rng, n_draws)
    sums = _interpolated_sums(likelihood, sigma_creator)
    _, mean, var = (part[:, 0] for part in likelihood.given(sums, sigma_genre[:, None]))
    mu_global = rng.normal(mean, np.sqrt(var))
    genre = genre_moments(sums, sigma_genre, Moments(mu_global, np.zeros(n_draws)))
    mu_genre = rng.normal(genre.mean, np.sqrt(genre.var))
    wanted = _in_frame_order(idata).take(position)
    tau = creator_moments(wanted, mu_genre, sigma_creator)
    tau = rng.standard_normal(tau.mean.shape) * np.sqrt(tau.var) + tau.mean
    shape = chains, draws
    sampled = ("chain", "draw")
    return xr.Dataset(
        {
            "mu_global": (sampled, mu_global.reshape(shape)),
            "sigma_genre": (sampled, sigma_genre.reshape(shape)),
            "sigma_creator": (sampled, sigma_creator.reshape(shape)),
            "mu_genre": ((*sampled, "genre"), mu_genre.reshape(*shape, -1)),
            "tau": ((*sampled, "creator"), tau.reshape(*shape, -1)),
        },
        {
            "chain": np.arange(chains),
            "draw": np.arange(draws),
            "creator": ids[position],
            "genre": coords["genre"].values,
        },
    )


def _likelihood(idata: xr.DataTree) -> Likelihood:
    return Likelihood(estimates_of(idata), Normal(*idata.attrs["prior_mu_global"]))


def _in_frame_order(idata: xr.DataTree) -> Estimates:
    """The data as they stand in the frame; good for indexing, not for sums by genre."""
    constant = idata["constant_data"].dataset
    return Estimates(
        effect_hat=idata["observed_data"]["effect_hat"].values,
        se=constant["se"].values,
        genre_idx=constant["genre_idx"].values.astype(np.int64),
        order=np.arange(constant.sizes["creator"]),
        n_genres=idata["posterior"].dataset.sizes["genre"],
    )


def _interpolated_sums(likelihood: Likelihood, sigma_creator: np.ndarray) -> Sums:
    """Sums over creators at every draw, by a spline through 129 values of sigma_creator."""
    x = np.log(sigma_creator)
    if np.ptp(x) == 0:
        return Sums(
            *(np.repeat(part, len(x), axis=0) for part in likelihood.sums(sigma_creator[:1]))
        )
    knots = np.linspace(x.min(), x.max(), 129)
    at_knots = likelihood.sums(np.exp(knots))
    mean = CubicSpline(knots, at_knots.mean)(x)
    return Sums(mean, np.exp(CubicSpline(knots, np.log(at_knots.weight))(x)), np.zeros(len(x)))


def _draw_sigmas(idata: xr.DataTree, rng: np.random.Generator, n_draws: int):
    """Draw both standard deviations by inverting their distribution between the nodes.

    The outer coordinate comes from its marginal distribution; the quantile function of the
    inner one is interpolated between the four nearest outer nodes.
    """
    nodes = idata["quadrature"].dataset
    genre, creator = nodes["sigma_genre"].values, nodes["sigma_creator"].values
    log_weight = nodes["log_weight"].values
    polar = idata.attrs["polar"]
    with np.errstate(divide="ignore"):
        outer = np.log(np.hypot(genre, creator)[:, 0] if polar else creator[:, 0])
        inner = np.log(genre / creator if polar else genre)
    place = _quantiles(
        np.arange(len(outer), dtype=float)[None], logsumexp(log_weight, axis=1)[None]
    )
    where = place(np.zeros(n_draws, int), rng.random(n_draws))
    quantile = _quantiles(inner, log_weight)
    share = rng.random(n_draws)
    if len(outer) < 4:  # a fixed sigma_creator
        row, x, y = np.zeros(n_draws, int), np.full(n_draws, outer[0]), 0.0
        y = quantile(row, share)
    else:
        x = CubicSpline(np.arange(len(outer)), outer)(where)
        first = np.clip(where.astype(int) - 1, 0, len(outer) - 4)
        y = sum(
            weight * quantile(first + k, share) for k, weight in enumerate(_lagrange(where - first))
        )
    if not polar:
        return np.exp(y), np.exp(x)
    angle = np.arctan(np.exp(y))
    return np.exp(x) * np.sin(angle), np.exp(x) * np.cos(angle)


def _lagrange(t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weights of the values at 0, 1, 2, 3 in their cubic at `t`."""
    a, b, c, d = t, t - 1, t - 2, t - 3
    return -b * c * d / 6, a * c * d / 2, -a * b * d / 2, a * b * c / 6


def _quantiles(value: np.ndarray, log_weight: np.ndarray):
    """Return a quantile function for each row of values at equidistant nodes.

    Parameters
    ----------
    value, log_weight : ndarray, shape (row, node)
    """
    n = log_weight.shape[1]
    if n == 1:
        return lambda row, share: value[row, 0]
    fine = np.linspace(0, n - 1, 16 * (n - 1) + 1)
    log_density = CubicSpline(np.arange(n), log_weight, axis=1)(fine)
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    cdf = np.zeros_like(density)
    np.cumsum(density[:, 1:] + density[:, :-1], axis=1, out=cdf[:, 1:])
    cdf /= cdf[:, -1:]
    values = CubicSpline(np.arange(n), value, axis=1)(fine)

    def quantile(row: np.ndarray, share: np.ndarray) -> np.ndarray:
        result = np.empty(len(share))
        for k in np.unique(row):
            here = row == k
            result[here] = np.interp(share[here], cdf[k], values[k])
        return result

    return quantile
