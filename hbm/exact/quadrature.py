"""The posterior of the two standard deviations by deterministic quadrature.

Given sigma_genre and sigma_creator everything in the model is normal, so the whole posterior is
an integral over these two numbers. It is taken by the trapezoidal rule, which converges
exponentially for an analytic function that has died away at both ends (Trefethen & Weideman
2014, SIAM Review 56, 385-458):

- Each standard deviation is written as c exp(y - exp(-y)), with c its finest scale in the data:
  logarithmic far from 0, and near 0 so steep that any density has died away by y = -4
  (a double-exponential rule: Mori 2005).
- The inner nodes are placed given the outer one, between the points where the log density has
  fallen by `DROP` from its largest value.
- Where most genres have one creator, only the sum of the two variances is known: a ridge. There
  the outer coordinate is the total standard deviation and the inner one the angle.

Halving the steps while dropping the outermost nodes must change nothing; what it does change is
the error that is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logsumexp, wrightomega

from hbm.exact.likelihood import Likelihood, Sums
from hbm.priors import Fixed, HalfCauchy, HalfNormal, Prior, Priors

#: How far the log density has to fall before it is cut off; the error is measured against
#: a cut at `NARROW`.
DROP, NARROW = 36.0, 30.0

#: The quadrature error that is aimed at, the first grid (outer, inner: enough for many creators
#: in several genres), and the finest that is tried.
TOLERANCE = 1e-6
FIRST_INTERVALS = 40, 48
MAX_INTERVALS = 256

#: Inner intervals while the ends of the outer coordinate are being found.
_ROUGH = 24

#: Ends of the coordinate (sigma is e^-153 and e^150 times its finest scale), and the number
#: of rounds of zooming in.
FLOOR, CEILING, MAX_ROUNDS = -5.0, 150.0, 60
TINY = 1e-300


class Nodes(NamedTuple):
    """Points of the grid; all of one shape, (outer, inner).

    `mu_mean` and `mu_var` are the moments of mu_global given the data and the two standard
    deviations; `log_density` is that of data and standard deviations in the grid's coordinates.
    """

    sigma_genre: np.ndarray
    sigma_creator: np.ndarray
    mu_mean: np.ndarray
    mu_var: np.ndarray
    log_density: np.ndarray


@dataclass(frozen=True)
class Grid:
    """The posterior of the standard deviations on the nodes of a quadrature rule.

    Attributes
    ----------
    nodes : Nodes, arrays of shape (outer, inner)
    log_weight : ndarray, shape (outer, inner)
        Logarithm of the posterior probability of the nodes.
    plane : Cartesian or Polar
        The coordinates, and the likelihood behind them.
    log_evidence : float
        Log marginal density of the estimates.
    errors : dict
        What a grid half as fine and less wide would change: the log evidence by, and the mean
        and standard deviation of each hyperparameter in units of its standard deviation.
    """

    nodes: Nodes
    log_weight: np.ndarray
    plane: Cartesian | Polar
    log_evidence: float
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())


class Scale:
    """A standard deviation as a function of the coordinate that is integrated over.

    Parameters
    ----------
    prior : Prior, optional
        Without one, the density of the coordinate is its Jacobian alone.
    """

    def __init__(self, prior: Prior | None):
        self.fixed = prior.value if isinstance(prior, Fixed) else None
        self.log_prior = np.zeros_like if prior is None else log_density_of(prior)

    def value(self, y: np.ndarray, unit) -> np.ndarray:
        """Return the standard deviation at coordinate `y`."""
        if self.fixed is not None:
            return np.full(y.shape, float(self.fixed))
        return unit * np.exp(y - np.exp(-y))

    def coordinate(self, value: np.ndarray, unit) -> np.ndarray:
        """Return the coordinate of a standard deviation."""
        if self.fixed is not None:
            return np.zeros(value.shape)
        x = np.log(value / unit)
        return x + wrightomega(-x)

    def log_density(self, y: np.ndarray, unit) -> np.ndarray:
        """Return the log prior density of the coordinate."""
        if self.fixed is not None:
            return np.zeros(y.shape)
        value = self.value(y, unit)
        return np.log(value) + np.log1p(np.exp(-y)) + self.log_prior(value)

    def start(self, reach: float, unit) -> tuple[np.ndarray, np.ndarray]:
        """Return a first guess of the ends; without any width where nothing varies."""
        if self.fixed is not None:
            return np.zeros_like(unit), np.zeros_like(unit)
        return np.full_like(unit, FLOOR), 1 + np.log(np.maximum(reach / unit, 1))


def log_density_of(prior: Prior) -> Callable:
    """Return the log density of a prior; SciPy's own costs more than the likelihood."""
    if isinstance(prior, HalfNormal):
        constant = 0.5 * np.log(2 / np.pi) - np.log(prior.sigma)
        return lambda x: constant - 0.5 * np.square(x / prior.sigma)
    if isinstance(prior, HalfCauchy):
        constant = np.log(2 / np.pi) - np.log(prior.beta)
        return lambda x: constant - np.log1p(np.square(x / prior.beta))
    return np.zeros_like if isinstance(prior, Fixed) else prior.scipy().logpdf


class Cartesian:
    """Outer coordinate sigma_creator, inner coordinate sigma_genre."""

    polar = False
    inner_scale = None  # of the values; None if it depends on them
    bounds = FLOOR, CEILING

    def __init__(self, likelihood: Likelihood, priors: Priors):
        self.likelihood = likelihood
        self.creator, self.genre = Scale(priors.sigma_creator), Scale(priors.sigma_genre)
        self.outer, self.unit = self.creator, likelihood.data.se.min()
        self.free = self.creator.fixed is None, self.genre.fixed is None

    def rows(self, y: np.ndarray):
        """Return what all inner nodes of the outer coordinates `y`, shape (outer,), share."""
        sigma = self.creator.value(y, self.unit)
        sums = self.likelihood.sums(sigma)
        finest = 1 / np.sqrt(sums.weight.max(axis=1, keepdims=True))
        return sigma[:, None], sums, finest, self.creator.log_density(y, self.unit)[:, None]

    def start(self, rows):
        """Return a first guess of the ends of the inner coordinate, each (outer, 1)."""
        return self.genre.start(self.likelihood.reach, rows[2])

    def nodes(self, rows, y: np.ndarray) -> Nodes:
        """Evaluate the posterior at inner coordinates `y`, shape (outer, inner)."""
        sigma, sums, finest, log_outer = rows
        sigma_genre = self.genre.value(y, finest)
        density, mu_mean, mu_var = self.likelihood.given(sums, sigma_genre)
        density += log_outer + self.genre.log_density(y, finest)
        return Nodes(sigma_genre, np.broadcast_to(sigma, y.shape), mu_mean, mu_var, density)

    def sums(self, rows, nodes: Nodes) -> Sums:
        """Return the sums over creators at every node, (node, genre)."""
        parts = (np.repeat(part, nodes.mu_mean.shape[1], axis=0) for part in rows[1])
        return type(rows[1])(*parts)

    def values(self, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
        """Return what the outer and the inner coordinates of the nodes stand for."""
        return nodes.sigma_creator, nodes.sigma_genre

    def inner_coordinate(self, rows, value: np.ndarray) -> np.ndarray:
        """Return the inner coordinate of a value."""
        return self.genre.coordinate(value, rows[2])


class Polar:
    """Outer coordinate the total standard deviation, inner coordinate the angle."""

    polar = True
    inner_scale = 1.0
    bounds = -3.5, 3.5
    free = True, True

    def __init__(self, likelihood: Likelihood, priors: Priors):
        self.likelihood = likelihood
        self.creator, self.genre = Scale(priors.sigma_creator), Scale(priors.sigma_genre)
        self.outer, self.unit = Scale(None), likelihood.data.se.min()

    def rows(self, y: np.ndarray):
        """Return what all inner nodes of the outer coordinates `y`, shape (outer,), share."""
        total = self.outer.value(y, self.unit)[:, None]
        log_outer = self.outer.log_density(y, self.unit)[:, None] + np.log(total)
        if not self.likelihood.alone:
            return total, log_outer, None
        # One creator a genre: the data know the sum of the variances and nothing else.
        sums = self.likelihood.sums(total[:, 0])
        return total, log_outer, self.likelihood.given(sums, np.zeros_like(total))

    def start(self, rows):
        """Return the ends of the inner coordinate, each (outer, 1)."""
        return tuple(np.full_like(rows[0], end) for end in self.bounds)

    def nodes(self, rows, y: np.ndarray) -> Nodes:
        """Evaluate the posterior at inner coordinates `y`, shape (outer, inner)."""
        total, log_outer, known = rows
        # Tanh-sinh (Takahasi & Mori 1974), with sine and cosine accurate at both ends.
        t = 0.5 * np.pi * np.sinh(y)
        genre = total * np.sin(0.5 * np.pi * expit(2 * t))
        creator = total * np.sin(0.5 * np.pi * expit(-2 * t))
        log_angle = np.log(0.125 * np.pi**2 * np.cosh(y)) - 2 * np.log(np.cosh(t))
        if known is None:
            sums = self.likelihood.sums(creator.ravel())
            known = self.likelihood.given(sums, genre.reshape(-1, 1))
            density, mu_mean, mu_var = (part.reshape(y.shape) for part in known)
        else:
            density, mu_mean, mu_var = (np.broadcast_to(part, y.shape) for part in known)
        prior = self.genre.log_prior(genre) + self.creator.log_prior(creator)
        log_density = density + prior + log_outer + log_angle
        return Nodes(genre, creator, mu_mean, mu_var, log_density)

    def sums(self, rows, nodes: Nodes) -> Sums:
        """Return the sums over creators at every node, (node, genre)."""
        return self.likelihood.sums(nodes.sigma_creator.ravel())

    def values(self, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
        """Return what the outer and the inner coordinates of the nodes stand for."""
        total = np.hypot(nodes.sigma_genre, nodes.sigma_creator)
        return total, nodes.sigma_genre / nodes.sigma_creator

    def inner_coordinate(self, rows, value: np.ndarray) -> np.ndarray:
        """Return the inner coordinate of a value, the tangent of the angle."""
        t = 0.5 * np.log(np.arctan(value) / np.arctan(1 / value))
        return np.arcsinh(2 / np.pi * t)


def integrate(likelihood: Likelihood, priors: Priors, tolerance: float = TOLERANCE) -> Grid:
    """Place a grid over (sigma_genre, sigma_creator) and refine it until nothing changes.

    Parameters
    ----------
    likelihood : Likelihood
    priors : Priors
    tolerance : float
        Refine until every one of `Grid.errors` is below, or `MAX_INTERVALS` is reached.

    Returns
    -------
    Grid
        Its `error` says what was achieved.
    """
    kinds = [Cartesian, Polar]
    if any(isinstance(p, Fixed) for p in (priors.sigma_genre, priors.sigma_creator)):
        kinds = [Cartesian]
    elif np.mean(likelihood.counts == 1) > 0.5:
        kinds = [Polar, Cartesian]
    best = None
    for kind in kinds:
        plane = kind(likelihood, priors)
        grid = _refine(plane, _outer_ends(plane, priors), tolerance)
        if best is None or grid.error < best.error:
            best = grid
        if best.error <= tolerance:
            break
    return best


def _outer_ends(plane, priors: Priors):
    """Find the ends of the outer coordinate, at first by a sample where there is much data."""
    low, high = plane.outer.start(plane.likelihood.reach, np.full((1, 1), plane.unit))
    if not plane.free[0]:
        return low, high
    n_points = 25
    sample = plane.likelihood.sample()
    if sample is not None:
        small = type(plane)(sample, priors)
        ends = (small.outer.value(y, small.unit) for y in _outer_ends(small, priors))
        low, high = (np.maximum(plane.outer.coordinate(end, plane.unit), FLOOR) for end in ends)
        n_points = 13
    return _ends(lambda y: _outer_density(plane, y), low, high, (FLOOR, CEILING), n_points)


def _refine(plane, ends, tolerance: float) -> Grid:
    """Halve the steps of whichever coordinate needs it until nothing changes."""
    low, high = ends
    intervals = [n if free else 0 for n, free in zip(FIRST_INTERVALS, plane.free, strict=True)]
    while True:
        outer, log_outer = _trapezoid(low, high, intervals[0])
        _, nodes, log_weight = inner_grid(plane, outer[0], intervals[1])
        log_weight = log_weight + log_outer.T
        parts = np.s_[::2, :], np.s_[:, ::2]
        changes = [_changes(nodes, log_weight, part) for part in parts]
        coarse = [
            bool(n and max(c.values()) > tolerance) for n, c in zip(intervals, changes, strict=True)
        ]
        if not any(coarse) or max(intervals) >= MAX_INTERVALS:
            break
        intervals = [n * (1 + c) for n, c in zip(intervals, coarse, strict=True)]
    log_evidence = float(logsumexp(log_weight))
    return Grid(
        nodes=nodes,
        log_weight=log_weight - log_evidence,
        plane=plane,
        log_evidence=log_evidence,
        errors={name: max(change[name] for change in changes) for name in changes[0]},
    )


def inner_grid(plane, y: np.ndarray, intervals: int):
    """Place inner nodes at outer coordinates `y`; return rows, nodes and log weights."""
    rows = plane.rows(y)
    low, high = plane.start(rows)

    def density(y):
        nodes = plane.nodes(rows, y)
        return nodes.log_density, np.log(np.maximum(nodes.sigma_genre, TINY))

    if plane.free[1]:
        low, high = _ends(density, low, high, plane.bounds)
    inner, log_step = _trapezoid(low, high, intervals)
    nodes = plane.nodes(rows, inner)
    return rows, nodes, nodes.log_density + log_step


def _outer_density(plane, y: np.ndarray):
    """Log density of outer coordinates, shape (1, point), and the log of what they stand for."""
    _, _, log_weight = inner_grid(plane, y[0], _ROUGH if plane.free[1] else 0)
    value = plane.outer.value(y, plane.unit)
    return logsumexp(log_weight, axis=1)[None], np.log(np.maximum(value, TINY))


def _ends(density: Callable, low, high, bounds: tuple[float, float], n_points: int = 25):
    """Zoom in on where a density is not negligible, every row for itself.

    Negligible is what has fallen by `DROP`, both as it stands and times the square of what the
    coordinate stands for, so that second moments are safe; a tail so heavy that the latter
    never falls is cut where the density has fallen by twice `DROP`.

    Parameters
    ----------
    density : callable
        Log density and log value at coordinates of shape (row, point).
    low, high : ndarray, shape (row, 1)
        First guess; extended where it turns out too narrow.
    bounds : (float, float)
        Where the coordinate ends.
    n_points : int
        Points of a round; the interval shrinks until half of them are inside.
    """
    share = np.linspace(0, 1, n_points)
    rows = np.arange(len(low))[:, None]
    for _ in range(MAX_ROUNDS):
        y = low + (high - low) * share
        height = _height(*density(y))
        inside = height > -DROP
        first = inside.argmax(axis=1)[:, None]
        last = n_points - 1 - inside[:, ::-1].argmax(axis=1)[:, None]
        before, after = np.maximum(first - 1, 0), np.minimum(last + 1, n_points - 1)
        below, above = (first == 0) & (low > bounds[0]), (last == after) & (high < bounds[1])
        if np.all((last - first > n_points // 2) & ~below & ~above):
            break
        wide = high - low
        low = np.maximum(y[rows, before] - np.where(below, wide, 0), bounds[0])
        high = np.minimum(y[rows, after] + np.where(above, wide, 0), bounds[1])

    def crossing(outside, inside):
        drop = height[rows, inside] - np.maximum(height[rows, outside], -10 * DROP)
        part = (height[rows, inside] + DROP) / np.where(inside == outside, 1, drop)
        return y[rows, inside] + (y[rows, outside] - y[rows, inside]) * part

    return crossing(before, first), crossing(after, last)


def _height(value: np.ndarray, log_size: np.ndarray) -> np.ndarray:
    """Log density relative to its maximum, or times the squared size, whichever is larger."""
    value = value - value.max(axis=1, keepdims=True)
    tilted = value + 2 * log_size
    tilted -= tilted.max(axis=1, keepdims=True)
    return np.maximum(value, np.where(value > -2 * DROP, tilted, -np.inf))


def _trapezoid(low, high, intervals: int):
    """Return nodes of shape (row, node) and log weights; one node of weight 1 without any."""
    if not intervals:
        return low, np.zeros_like(low)
    share = np.linspace(0, 1, intervals + 1)
    return low + (high - low) * share, np.log((high - low) / intervals)


def _summary(nodes: Nodes, log_weight: np.ndarray, scales=None):
    """Return the log evidence, and mean and sd of each hyperparameter, of a weighted grid.

    The standard deviations go in as x / (x + mean), which has all moments whatever the prior.
    """
    log_evidence = logsumexp(log_weight)
    weight = np.exp(log_weight - log_evidence)
    if scales is None:
        scales = [max((weight * x).sum(), TINY) for x in nodes[:2]]
    genre, creator = (x / (x + scale) for x, scale in zip(nodes[:2], scales, strict=True))
    moments = {}
    for name, x, var in (
        ("mu_global", nodes.mu_mean, nodes.mu_var),
        ("sigma_genre", genre, 0.0),
        ("sigma_creator", creator, 0.0),
    ):
        mean = (weight * x).sum()
        moments[name] = mean, np.sqrt((weight * (np.square(x - mean) + var)).sum())
    return log_evidence, moments, scales


def _changes(nodes: Nodes, log_weight: np.ndarray, part) -> dict[str, float]:
    """Return what every second node, and nothing below `NARROW`, would change."""
    log_evidence, moments, scales = _summary(nodes, log_weight)
    some = Nodes(*(values[part] for values in nodes))
    density = some.log_density
    kept = np.where(density > density.max() - NARROW, log_weight[part], -np.inf)
    kept += np.log(2) if density.size < log_weight.size else 0.0
    coarse_evidence, coarse, _ = _summary(some, kept, scales)
    changes = {"log_evidence": abs(coarse_evidence - log_evidence)}
    for name, (mean, sd) in moments.items():
        other_mean, other_sd = coarse[name]
        scale = max(sd, 1e-7 * abs(mean), TINY)  # what is fixed has no sd but rounding
        changes[name] = max(abs(mean - other_mean), abs(sd - other_sd)) / scale
    return {name: float(change) for name, change in changes.items()}
