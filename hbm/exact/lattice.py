"""A posterior of few dimensions on a lattice that grows from its mode.

The trapezoidal rule converges exponentially for a smooth density that dies away in all directions,
in several dimensions as in one (Trefethen & Weideman 2014, SIAM Review 56, 385-458). What it costs
is nodes where there is nothing: so the lattice starts at the mode and grows into the neighbours of
every node whose log density lies within `drop` of the largest. It follows ridges and skewed tails
by itself, and there are no ends to be placed.

Each direction is then refined by a second lattice between the nodes of the first (both thinned out
in other directions, for that costs less and hardly matters). What that changes is the error that
is returned, and a direction in which it is too large gets smaller steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator, make_interp_spline
from scipy.optimize import minimize, nnls
from scipy.special import logsumexp

#: How far the log density has to fall before it is cut off; the error is measured against a cut
#: that is so much earlier.
DROP, EARLIER = 18.0, 4.0

#: The error that is aimed at: of the log evidence, and of means and standard deviations in units
#: of the standard deviation.
TOLERANCE = 1e-3

#: The first steps: in units of the distance at which the log density has fallen by 1/2, and at
#: most so long (where a standard deviation may be 0 its logarithm has a long tail).
FIRST_STEP, LONGEST_STEP = 1.3, 0.8

#: More nodes than this are not tried.
MAX_NODES = 200_000

#: Bits of a coordinate in the key of a node, which limits the dimensions to 4.
_BITS = 15
_HALF = 1 << (_BITS - 1)


class Values(NamedTuple):
    """What is known at some points.

    `log_density` (point,) is that of the coordinates; `mean` and `var` (point, quantity) are the
    moments of the quantities of interest given the point.
    """

    log_density: np.ndarray
    mean: np.ndarray
    var: np.ndarray

    def take(self, kept: np.ndarray) -> Values:
        """Return the values at some of the points."""
        return Values(*(part[kept] for part in self))


@dataclass(frozen=True)
class Lattice:
    """A density on the nodes of a lattice.

    Attributes
    ----------
    index : ndarray of int, shape (node, dimension)
        Steps from the origin.
    origin, steps : ndarray, shape (dimension,)
    values : Values
    log_weight : ndarray, shape (node,)
        Logarithm of the probability of the nodes.
    log_evidence : float
        Logarithm of the integral of the density.
    errors : ndarray, shape (1 + quantity,)
        What a lattice twice as fine in one direction, or one that is cut off earlier, would
        change, at the worst: the log evidence by, and mean and standard deviation of each
        quantity in units of its standard deviation.
    """

    index: np.ndarray
    origin: np.ndarray
    steps: np.ndarray
    values: Values
    log_weight: np.ndarray
    log_evidence: float
    errors: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Coordinates of the nodes, shape (node, dimension)."""
        return self.origin + self.steps * self.index


def integrate_on_lattice(
    evaluate: Callable[[np.ndarray], Values],
    start: np.ndarray,
    bounds: tuple[float, float],
    tolerance: float = TOLERANCE,
    drop: float = DROP,
) -> Lattice:
    """Place a lattice over a density and refine it until nothing changes.

    Parameters
    ----------
    evaluate : function
        Of points, shape (point, dimension).
    start : ndarray, shape (dimension,)
        Where the search for the mode begins; without any dimension there is one node.
    bounds : (float, float)
        Where the search for the mode ends, in every direction.
    tolerance : float
        Refine until no direction's error is larger, or there are `MAX_NODES`. The error of the
        cut, below 1e-4 with the usual `drop`, is not refined.
    drop : float
        By how much the log density falls within the lattice.

    Returns
    -------
    Lattice
        Its `errors` say what was achieved.
    """
    origin = _mode(evaluate, start, bounds)
    steps = _first_steps(evaluate, origin)
    while True:
        index, values = _grown(evaluate, origin, steps, drop)
        whole = _summary(values, steps)
        near = values.log_density > values.log_density.max() - drop + EARLIER
        cut = _changed(_summary(values.take(near), steps), whole)
        errors = [
            _refined(evaluate, origin, steps, index, values, direction, drop)
            for direction in range(len(steps))
        ]
        worst = np.array([error.max() for error in errors])
        # The error falls exponentially with 1 / step, and what lies within is aimed at twice over.
        finer = 1 + 0.1 * np.log(2 * np.maximum(worst, tolerance) / tolerance)
        finer = np.where(worst > tolerance, finer, 1.0)
        if np.all(finer == 1) or len(index) * finer.prod() > MAX_NODES:
            break
        steps = steps / finer
    return Lattice(
        index=index,
        origin=origin,
        steps=steps,
        values=values,
        log_weight=values.log_density + np.log(steps).sum() - whole[0],
        log_evidence=float(whole[0]),
        errors=np.max([cut, *errors], axis=0),
    )


def _mode(evaluate, start: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Return a point near the mode: it is only where the lattice starts to grow."""
    if not len(start):
        return start

    def surface(y):
        return -evaluate(y[None]).log_density[0]

    options = {"gtol": 1e-2, "ftol": 1e-6}
    found = minimize(
        surface, start, method="L-BFGS-B", bounds=[bounds] * len(start), options=options
    )
    return found.x


def _first_steps(evaluate, mode: np.ndarray) -> np.ndarray:
    """Return steps by how fast the log density falls along each axis."""
    steps = np.full(len(mode), LONGEST_STEP)
    top = evaluate(mode[None]).log_density[0]
    for j, axis in enumerate(np.eye(len(mode))):
        for _ in range(60):
            both = mode + steps[j] * np.outer([-1.0, 1.0], axis)
            fall = top - evaluate(both).log_density.mean()
            if fall <= 1.0:
                break
            # Of a parabola; no further than a tenth, for far out it is none.
            steps[j] *= max(np.sqrt(0.5 / fall), 0.1)
        if fall > 0.05:
            steps[j] *= np.sqrt(0.5 / fall)
    return np.minimum(FIRST_STEP * steps, LONGEST_STEP)


def _grown(evaluate, origin, steps: np.ndarray, drop: float) -> tuple[np.ndarray, Values]:
    """Return the index and values of all nodes within `drop` that are connected to the origin."""
    unit = np.int64(1) << _BITS * np.arange(len(steps))
    moves = np.concatenate([unit, -unit])
    front = seen = np.array([_HALF * unit.sum()], dtype=np.int64)
    keys, values, top = [], [], -np.inf
    while front.size:
        found = evaluate(origin + steps * _index_of(front, len(steps)))
        top = max(top, found.log_density.max())
        keys.append(front)
        values.append(found)
        inside = front[found.log_density > top - drop]
        front = np.setdiff1d((inside[:, None] + moves).ravel(), seen)
        seen = np.union1d(seen, front)
        if (
            len(seen) > 20 * MAX_NODES
            or np.abs(_index_of(seen, len(steps))).max(initial=0) > _HALF // 3
        ):
            raise ValueError("the posterior is too wide for a lattice: are the priors in the unit?")
    whole = Values(*(np.concatenate(parts) for parts in zip(*values, strict=True)))
    inside = whole.log_density > top - drop
    keys = np.concatenate(keys)[inside]
    order = np.argsort(keys)
    return _index_of(keys[order], len(steps)), whole.take(inside).take(order)


def _index_of(keys: np.ndarray, n_dims: int) -> np.ndarray:
    return (keys[:, None] >> _BITS * np.arange(n_dims) & (1 << _BITS) - 1) - _HALF


def _key_of(index: np.ndarray) -> np.ndarray:
    return ((index + _HALF) << _BITS * np.arange(index.shape[1])).sum(axis=1)


def _refined(evaluate, origin, steps, index, values: Values, direction, drop) -> np.ndarray:
    """Return what nodes half a step on in one direction change."""
    n_dims = len(steps)
    others = [(direction + k) % n_dims for k in range(1, min(n_dims, 3))]
    thin = np.all(index[:, others] % 2 == 0, axis=1)
    some, unit, keys = values.take(thin), np.int64(1) << _BITS * direction, _key_of(2 * index[thin])
    half = _index_of(np.unique(np.concatenate([keys - unit, keys + unit])), n_dims)
    found = evaluate(origin + 0.5 * steps * half)
    found = found.take(found.log_density > values.log_density.max() - drop)
    both = Values(*(np.concatenate(pair) for pair in zip(some, found, strict=True)))
    halved = np.where(np.arange(n_dims) == direction, 0.5 * steps, steps)
    return _changed(_summary(both, halved), _summary(some, steps))


def _summary(values: Values, steps: np.ndarray):
    """Return log evidence, and means and standard deviations of the quantities."""
    log_weight = values.log_density + np.log(steps).sum()
    log_evidence = logsumexp(log_weight)
    weight = np.exp(log_weight - log_evidence)
    mean = weight @ values.mean
    return log_evidence, mean, np.sqrt(weight @ (np.square(values.mean - mean) + values.var))


def _changed(one, other) -> np.ndarray:
    sd = np.maximum(other[2], 1e-7 * np.abs(other[1]) + 1e-300)  # what is fixed has no sd
    moments = np.maximum(np.abs(one[1] - other[1]), np.abs(one[2] - other[2])) / sd
    return np.concatenate([[abs(one[0] - other[0])], moments])


# ---------------------------------------------------------------------------- fewer nodes


def reduced(values: np.ndarray, weight: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce many nodes to few that give the same mean to every polynomial up to a degree.

    As many nodes as there are monomials always do (Tchakaloff); non-negative least squares finds
    them.

    Parameters
    ----------
    values : ndarray, shape (node, variable)
    weight : ndarray, shape (node,)
        Summing to 1.
    degree : int

    Returns
    -------
    kept : ndarray of int
        Positions of the nodes that are left.
    weight : ndarray
        Their weights, positive and summing to 1.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    varies = high > low
    inside = (2 * values - low - high)[:, varies] / (high - low)[varies]
    # Products of Legendre polynomials: monomials would lose digits.
    single = np.polynomial.legendre.legvander(inside, degree)
    powers = [k for k in np.ndindex(*[degree + 1] * varies.sum()) if sum(k) <= degree]
    variables = np.arange(varies.sum())
    basis = np.array([single[:, variables, k].prod(axis=1) for k in powers])
    found = nnls(basis, basis @ weight, maxiter=100 * len(powers))[0]
    kept = np.flatnonzero(found)
    return kept, found[kept] / found[kept].sum()


# ------------------------------------------------------------------------- between the nodes


class Marginal:
    """The distribution of one coordinate of a lattice, between its nodes too.

    Parameters
    ----------
    lattice : Lattice
    dimension : int
    known : function
        Of the coordinate: the logarithm of a factor of the density that need not be interpolated,
        such as a prior.

    Attributes
    ----------
    points, weight : ndarray
        A fine table of the coordinate, and the probabilities of its values.
    quantile : function
        Of probabilities.
    """

    def __init__(self, lattice: Lattice, dimension: int, known: Callable = np.zeros_like):
        index = lattice.index[:, dimension] - lattice.index[:, dimension].min()
        weight = np.bincount(index, np.exp(lattice.log_weight))
        node = lattice.points[:, dimension].min() + lattice.steps[dimension] * np.arange(
            len(weight)
        )
        self.points = np.linspace(node[0], node[-1], 16 * (len(node) - 1) + 1)
        rest = np.log(weight) - known(node)
        # Cubic: the ends are rough, and higher degrees would carry that inward.
        smooth = make_interp_spline(node, rest, k=min(3, len(node) - 1))
        density = np.exp(smooth(self.points) + known(self.points))
        self.weight = density / density.sum()
        self._below = CubicSpline(self.points, density).antiderivative()
        share = self.cdf(self.points)
        distinct = np.concatenate([[True], np.diff(share) > 0])
        self.quantile = PchipInterpolator(share[distinct], self.points[distinct])

    def cdf(self, y) -> np.ndarray:
        """Return the probability of at most `y`."""
        ends = self.points[[0, -1]]
        return np.clip(self._below(np.clip(y, *ends)) / self._below(ends[1]), 0.0, 1.0)


def draw_between(
    lattice: Lattice,
    log_density: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    n: int,
) -> np.ndarray:
    """Draw independently from the density itself, not from its nodes.

    Proposals come from the density interpolated linearly between the nodes (a node, and a
    triangular deviation from it), and are kept with a probability proportional to the density
    over its interpolation: rejection sampling, exact but for the largest ratio, which is taken
    from the proposals.

    Parameters
    ----------
    lattice : Lattice
    log_density : function
        Of points, shape (point, dimension).
    rng : Generator
    n : int

    Returns
    -------
    ndarray, shape (n, dimension)
    """
    n_dims = len(lattice.steps)
    if not n_dims:
        return np.zeros((n, 0))
    ratios, points = np.empty(0), np.empty((0, n_dims))
    while True:
        new = _proposals(lattice, rng, 2 * n)
        ratio = log_density(lattice.origin + lattice.steps * new) - _interpolated(lattice, new)
        ratios, points = np.concatenate([ratios, ratio]), np.concatenate([points, new])
        # All proposals stand the same test: a larger ratio found later counts for earlier ones.
        kept = points[-rng.exponential(size=len(ratios)) < ratios - ratios.max()]
        if len(kept) >= n:
            return lattice.origin + lattice.steps * kept[:n]


def _proposals(lattice: Lattice, rng: np.random.Generator, n: int) -> np.ndarray:
    node = rng.choice(len(lattice.log_weight), n, p=np.exp(lattice.log_weight))
    u = rng.random((2, n, len(lattice.steps)))
    return lattice.index[node] + u[0] - u[1]


def _interpolated(lattice: Lattice, index: np.ndarray) -> np.ndarray:
    """Logarithm of the density interpolated linearly between the nodes."""
    keys, top = _key_of(lattice.index), lattice.values.log_density.max()
    density = np.exp(lattice.values.log_density - top)
    low = np.floor(index).astype(np.int64)
    part = index - low
    total = np.zeros(len(index))
    n_dims = index.shape[1]
    for corner in np.ndindex(*[2] * n_dims):
        corner = np.array(corner)
        key = _key_of(low + corner)
        place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        weight = np.where(corner, part, 1 - part).prod(axis=1)
        total += np.where(keys[place] == key, density[place], 0.0) * weight
    return np.log(total) + top
