"""The posterior of an exact fit between its nodes: distribution functions and draws.

The nodes alone would not do: draws from them put quantiles on nodes. Log density and
coordinates are smooth along the grid, so splines through the nodes give them in between.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr
from scipy.interpolate import CubicSpline, make_interp_spline
from scipy.optimize import brentq
from scipy.special import logsumexp

from hbm.diagnostics import HYPERPARAMETERS, estimates_of, priors_of
from hbm.exact.covariates import likelihood_for
from hbm.exact.likelihood import Likelihood
from hbm.exact.quadrature import TINY
from hbm.gaussian import Estimates, Moments, creator_moments, mixture_cdf, mixture_quantile
from hbm.intervals import LEVEL, tail_probabilities

#: A request for more drawn values than this has to be explicit: 10^7 doubles are 80 MB.
MAX_VALUES = 10**7

#: Points of a table between two nodes.
_FINE = 16


def likelihood_of(idata: xr.DataTree) -> Likelihood:
    """Return the likelihood of an exact fit."""
    priors = priors_of(idata)
    return likelihood_for(estimates_of(idata), priors.mu_global, priors.slope)


def hyper_cdf(idata: xr.DataTree, name: str, x: float) -> float:
    """Return the posterior probability that a hyperparameter is at most `x`.

    Parameters
    ----------
    idata : DataTree
        From ``fit_hierarchical_model(…, engine="exact")``.
    name : {"mu_global", "sigma_genre", "sigma_creator"}
    x : float
        In the unit of the effects.
    """
    if name == "mu_global":
        moments, weight = _mu_global(idata)
        return min(1.0, float(mixture_cdf(moments, x, weight)[0]))
    if name not in HYPERPARAMETERS:
        raise ValueError(f"unknown hyperparameter {name!r}; known: {', '.join(HYPERPARAMETERS)}")
    return float(_Between(idata).cdf(name, x))


def extract_hyper_estimates(idata: xr.DataTree) -> pd.DataFrame:
    """Return the posterior of the hyperparameters of an exact fit.

    Returns
    -------
    DataFrame
        One row a hyperparameter: ``parameter, mean, se`` (posterior standard deviation),
        ``lower, upper`` (equal-tailed 95% interval), in the unit of the effects.
    """
    nodes = idata["quadrature"].dataset
    weight = np.exp(nodes["log_weight"].values)
    between, tails = _Between(idata), tail_probabilities(LEVEL)
    rows = []
    for name in HYPERPARAMETERS:
        if name == "mu_global":
            moments, node_weight = _mu_global(idata)
            x, var = nodes["mu_global_mean"].values, nodes["mu_global_var"].values
            interval = [mixture_quantile(moments, p, node_weight)[0] for p in tails]
        else:
            x, var = nodes[name].values, 0.0
            interval = [between.quantile(name, p) for p in tails]
        mean = (weight * x).sum()
        se = np.sqrt((weight * (np.square(x - mean) + var)).sum())
        rows.append((name, mean, se, *interval))
    return pd.DataFrame(rows, columns=["parameter", "mean", "se", "lower", "upper"])


def _mu_global(idata: xr.DataTree) -> tuple[Moments, np.ndarray]:
    nodes = idata["quadrature"].dataset
    parts = (nodes[f"mu_global_{part}"].values.reshape(-1, 1) for part in ("mean", "var"))
    return Moments(*parts), np.exp(nodes["log_weight"].values.ravel())


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
        The largest number of values of ``tau`` or ``mu_genre``; raise it to draw more on
        purpose.

    Returns
    -------
    Dataset
        ``mu_global, sigma_genre, sigma_creator`` (chain, draw), ``mu_genre`` (chain, draw,
        genre), ``tau`` (chain, draw, creator) and, with covariates, ``slope`` (chain, draw,
        covariate), in the unit of the effects.

    Raises
    ------
    ValueError
        If the draws are more than `max_values`.
    KeyError
        If a creator is unknown.
    """
    coords = idata["posterior"].dataset.coords
    ids, genres = coords["creator"].values, coords["genre"].values
    position = np.arange(len(ids)) if creators is None else _positions(ids, creators)
    n_draws = draws * chains
    if n_draws * max(len(position), len(genres)) > max_values:
        raise ValueError(
            f"{n_draws:,} draws of {len(position):,} creators and {len(genres):,} genres are "
            f"more than {max_values:,} values: ask for fewer draws or creators (draws=0 leaves "
            "them out: readouts need none), or raise max_values of draw_effects"
        )
    rng = np.random.default_rng(random_seed)
    likelihood = likelihood_of(idata)
    sigma_genre, sigma_creator = _Between(idata).draw(rng, n_draws)
    sums = sums_between(likelihood, sigma_creator)
    mu_global, mu_genre, centers = likelihood.draw(rng, sums, sigma_genre)
    tau = creator_moments(_in_frame_order(idata).take(position), centers, sigma_creator)
    noise = rng.standard_normal(tau.mean.shape)
    noise *= np.sqrt(tau.var, out=tau.var)
    drawn = {
        "mu_global": mu_global,
        "sigma_genre": sigma_genre,
        "sigma_creator": sigma_creator,
        "mu_genre": mu_genre,
        "tau": np.add(noise, tau.mean, out=noise),
    }
    last = {"mu_genre": ("genre",), "tau": ("creator",), "slope": ("covariate",)}
    coords = {
        "chain": np.arange(chains),
        "draw": np.arange(draws),
        "creator": ids[position],
        "genre": genres,
    }
    if likelihood.data.covariates is not None:
        drawn["slope"] = centers.slope.mean
        coords["covariate"] = idata["constant_data"]["covariate"].values
    return xr.Dataset(
        {
            name: (("chain", "draw", *last.get(name, ())), v.reshape(chains, draws, *v.shape[1:]))
            for name, v in drawn.items()
        },
        coords,
    )


def _positions(ids: np.ndarray, creators) -> np.ndarray:
    position = pd.Index(ids).get_indexer(pd.Index(creators))
    if (position < 0).any():
        unknown = [c for c, p in zip(creators, position, strict=True) if p < 0]
        raise KeyError(f"{len(unknown)} unknown creators, first: {unknown[:5]}")
    return position


def _in_frame_order(idata: xr.DataTree) -> Estimates:
    """The data as they stand in the frame; good for picking creators, not for sums by genre."""
    constant = idata["constant_data"].dataset
    return Estimates(
        effect_hat=idata["observed_data"]["effect_hat"].values,
        se=constant["se"].values,
        genre_idx=constant["genre_idx"].values.astype(np.int64),
        order=np.arange(constant.sizes["creator"]),
        n_genres=idata["posterior"].dataset.sizes["genre"],
        covariates=constant["covariates"].values if "covariates" in constant else None,
    )


def sums_between(likelihood: Likelihood, sigma_creator: np.ndarray):
    """Return sums over creators at every draw, by a spline through 129 values of sigma_creator."""
    x = np.log(sigma_creator)
    if np.ptp(x) == 0:
        sums = likelihood.sums(sigma_creator[:1])
        return type(sums)(*(np.repeat(part, len(x), axis=0) for part in sums))
    knots = np.linspace(x.min(), x.max(), 129)
    sums = likelihood.sums(np.exp(knots))
    between = type(sums)(*(CubicSpline(knots, part)(x) for part in sums))
    weight = np.exp(CubicSpline(knots, np.log(sums.weight))(x))
    return between._replace(weight=weight)


class _Between:
    """The joint distribution of both standard deviations, interpolated between the nodes.

    The outer coordinate has its marginal distribution; given it, the inner one's distribution
    function is known at the outer nodes, and its quantiles between the four nearest of them.
    """

    def __init__(self, idata: xr.DataTree):
        nodes = idata["quadrature"].dataset
        self.genre, self.creator = nodes["sigma_genre"].values, nodes["sigma_creator"].values
        self.polar = idata.attrs["polar"]
        self.log_weight = nodes["log_weight"].values
        self.log_marginal = logsumexp(self.log_weight, axis=1)
        self.log_outer = np.log(np.hypot(self.genre, self.creator) if self.polar else self.creator)
        self.log_outer = self.log_outer[:, 0]
        self.fixed = idata.attrs["fixed"]

    @cached_property
    def outer(self) -> _Table:
        """The logarithm of the outer coordinate."""
        return _Table(self.log_outer[None], self.log_marginal[None])

    @cached_property
    def inner(self) -> _Table:
        """The logarithm of sigma_genre, or of its ratio to sigma_creator, by outer node."""
        ratio = self.genre / self.creator if self.polar else self.genre
        return _Table(np.log(ratio), self.log_weight)

    def cdf(self, name: str, x: float) -> float:
        """Return P(name <= x)."""
        if name in self.fixed:
            return float(x >= self._fixed(name))
        if x <= 0:
            return 0.0
        if self.polar:
            return self._polar_cdf(name, x)
        if name == "sigma_creator":
            return float(self.outer.cdf(np.log(x), 0))
        rows = np.arange(len(self.log_outer))
        return float(np.exp(self.log_marginal) @ self.inner.cdf(np.log(x), rows))

    def _polar_cdf(self, name: str, x: float) -> float:
        """P(total <= x), and what lies above with an angle such that ``name <= x``.

        The total is written as x cosh(v), with which the angle's bound is smooth at total = x.
        """
        low, high = (np.arccosh(max(np.exp(end) / x, 1.0)) for end in self.log_outer[[0, -1]])
        if not high:
            return 1.0
        node, weight = np.polynomial.legendre.leggauss(200)
        v = low + (high - low) * (node + 1) / 2
        log_total = np.log(x * np.cosh(v))
        index = np.arange(len(self.log_outer), dtype=float)
        place = CubicSpline(self.log_outer, index)
        where = place(log_total)
        density = np.exp(CubicSpline(index, self.log_marginal)(where)) * place(log_total, 1)
        weight = weight * (high - low) / 2 * density * np.tanh(v)
        log_ratio = np.log(np.sinh(v)) * (1 if name == "sigma_creator" else -1)
        rows, parts = _neighbours(where, len(index))
        below = sum(p * self.inner.cdf(log_ratio, row) for row, p in zip(rows, parts, strict=True))
        below = 1 - below if name == "sigma_creator" else below
        return float(self.outer.cdf(np.log(x), 0) + weight @ below)

    def _fixed(self, name: str) -> float:
        return getattr(self, name.removeprefix("sigma_"))[0, 0]

    def quantile(self, name: str, probability: float) -> float:
        """Return the value that `name` does not exceed with this probability."""
        if name in self.fixed:
            return float(self._fixed(name))
        # The grid's ends lie e^-30 out in either tail.
        value = np.log(getattr(self, name.removeprefix("sigma_")))
        return np.exp(
            brentq(
                lambda x: self.cdf(name, np.exp(x)) - probability,
                value.min(),
                value.max(),
                xtol=1e-12,
            )
        )

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return draws of sigma_genre and sigma_creator."""
        shares = rng.random((2, n))
        x = np.full(n, self.log_outer[0])
        rows, parts = np.zeros((1, n), int), np.ones((1, n))
        if "sigma_creator" not in self.fixed:
            index = np.arange(len(self.log_outer), dtype=float)
            where = _Table(index[None], self.log_marginal[None]).quantile(rows[0], shares[0])
            x = CubicSpline(index, self.log_outer)(where)
            rows, parts = _neighbours(where, len(index))
        if "sigma_genre" in self.fixed:
            return np.full(n, self._fixed("sigma_genre")), np.exp(x)
        known = (self.inner.quantile(row, shares[1]) for row in rows)
        y = sum(part * quantile for part, quantile in zip(parts, known, strict=True))
        if not self.polar:
            return np.exp(y), np.exp(x)
        angle = np.arctan(np.exp(y))
        return np.exp(x) * np.sin(angle), np.exp(x) * np.cos(angle)


def _neighbours(where: np.ndarray, n: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the four nodes around each place, and their weights in the cubic through them."""
    first = np.clip(where.astype(int) - 1, 0, n - 4)
    a, b, c, d = (where - first - k for k in range(4))
    parts = -b * c * d / 6, a * c * d / 2, -a * b * d / 2, a * b * c / 6
    return first + np.arange(4)[:, None], parts


class _Table:
    """Distribution functions of rows of values at equidistant nodes, on a fine table.

    Parameters
    ----------
    value, log_weight : ndarray, shape (row, node)
        `value` increases along the row.
    """

    def __init__(self, value: np.ndarray, log_weight: np.ndarray):
        n = log_weight.shape[1]
        node, fine = np.arange(n), np.linspace(0, n - 1, _FINE * (n - 1) + 1)
        log_density = make_interp_spline(node, log_weight, k=7, axis=1)(fine)
        density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
        below = CubicSpline(fine, density, axis=1).antiderivative()(fine)
        smooth = make_interp_spline(node, value, k=7, axis=1)
        self.value, slope = smooth(fine), smooth(fine, 1)
        self.share = below / below[:, -1:]
        # A spline through values near 0 can dip below it.
        self.share = np.maximum.accumulate(np.clip(self.share, 0, 1), axis=1)
        self.slope = density / below[:, -1:] / slope

    def cdf(self, x: np.ndarray | float, row: np.ndarray | int) -> np.ndarray:
        """Return the probability of at most `x` in each row, by cubic Hermite interpolation."""
        x, rows = np.broadcast_arrays(x, row)
        after = (self.value[rows] < x[..., None]).sum(axis=-1)
        after = np.clip(after, 1, self.value.shape[1] - 1)
        low, high = self.value[rows, after - 1], self.value[rows, after]
        width = high - low
        t = np.clip((x - low) / np.maximum(width, TINY), 0, 1)
        start, end = self.share[rows, after - 1], self.share[rows, after]
        rise, fall = self.slope[rows, after - 1] * width, self.slope[rows, after] * width
        bend = 3 * (end - start)
        return (
            start + t * rise + t**2 * (bend - 2 * rise - fall) + t**3 * (rise + fall - bend * 2 / 3)
        )

    def quantile(self, row: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return the quantile at each `share` of the row that stands beside it."""
        result = np.empty(len(share))
        for k in np.unique(row):
            here = row == k
            result[here] = np.interp(share[here], self.share[k], self.value[k])
        return result
