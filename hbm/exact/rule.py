"""Few nodes for many: Gauss rules for the posterior of the two standard deviations.

The grid of `hbm.exact.quadrature` needs hundreds of nodes to find out how large the posterior is
and where. Once that is known, expectations of smooth functions (moments and distribution functions
of the effects) need far fewer: a Gauss rule with respect to the posterior itself, which is exact
for polynomials (Golub & Welsch 1969). The variables are sigma² / (sigma² + its mean), in which
the shrinkage factors are ratios of linear functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import xarray as xr
from scipy.linalg import lapack
from scipy.special import logsumexp

from hbm.exact.likelihood import Likelihood
from hbm.exact.quadrature import TINY, Grid, inner_grid
from hbm.gaussian import (
    Moments,
    creator_moments,
    mixture_cdf,
    mixture_moments,
    shrinkage_factor,
)

#: Largest change of a probability, of a mean in standard deviations, or of a standard deviation
#: relative to itself, that doubling the number of nodes may make.
TOLERANCE = 2e-7

#: Probability of the nodes that are left out altogether.
NEGLIGIBLE = 1e-10

#: Nodes x creators below which the grid itself is the cheaper rule.
_SMALL = 100_000

_MAX_ORDER = 64

#: The variables of a rule.
RULE = ("sigma_genre", "sigma_creator", "mu_global_mean", "mu_global_var", "weight")


@dataclass(frozen=True)
class Rule:
    """Nodes and weights, arrays of shape (node,).

    Attributes
    ----------
    sigma_genre, sigma_creator : ndarray
    mu_global_mean, mu_global_var : ndarray
        Moments of mu_global given the data and the node.
    weight : ndarray
        Summing to 1.
    error : float
        Largest change of a probability, mean or standard deviation when the number of nodes is
        doubled.
    """

    sigma_genre: np.ndarray
    sigma_creator: np.ndarray
    mu_global_mean: np.ndarray
    mu_global_var: np.ndarray
    weight: np.ndarray
    error: float = np.nan

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Rule:
        """Take the variables of a ``mixture`` group."""
        return cls(*(dataset[name].values for name in RULE))

    def centers(self, likelihood: Likelihood, new_genre: bool = False):
        """Return the moments of mu_genre given the node, shape (node, genre).

        With `new_genre` a last genre is appended, of which nothing has been seen. What comes
        back gives the centers of creators by its ``of(data)``.
        """
        distinct, where = np.unique(self.sigma_creator, return_inverse=True)
        sums = likelihood.sums(distinct)
        sums = type(sums)(*(part[where] for part in sums))
        if new_genre:
            sums = sums.with_new_genre()
        return likelihood.centers(sums, self.sigma_genre, self.mu_global)

    @property
    def mu_global(self) -> Moments:
        """Moments of mu_global given the node, shape (node,)."""
        return Moments(self.mu_global_mean, self.mu_global_var)


def effect_rule(grid: Grid) -> Rule:
    """Return the nodes over which effects are integrated.

    The grid's own, where there are so few creators that this costs less than finding a Gauss
    rule; else a Gauss rule.

    Parameters
    ----------
    grid : Grid
    """
    weight = np.exp(grid.log_weight.ravel())
    kept = without_negligible(weight)
    if len(kept) * len(grid.plane.likelihood.effect) > _SMALL:
        return gauss_rule(grid)
    parts = (part.ravel()[kept] for part in grid.nodes[:4])
    return Rule(*parts, weight[kept] / weight[kept].sum(), error=NEGLIGIBLE)


def gauss_rule(grid: Grid) -> Rule:
    """Reduce a grid to a Gauss rule with as few nodes as the effects need.

    Nodes are added until doubling their number, outer or inner, changes the moments and
    probabilities of the probed creators and genres by no more than `TOLERANCE`.
    """
    sizes = grid.log_weight.shape
    candidate = _Candidates(grid)
    # Where there are many creators the posterior is narrow and a few nodes do; and they cost.
    first = (4, 14) if len(candidate.plane.likelihood.effect) < 10_000 else (2, 2)
    orders = tuple(min(pair) for pair in zip(first, sizes, strict=True))
    reference = candidate.overall(orders)
    while True:
        value = candidate.summary(orders, reference)
        errors = []
        for axis in range(2):
            doubled = list(orders)
            doubled[axis] = min(2 * orders[axis], sizes[axis])
            errors.append(np.abs(candidate.summary(tuple(doubled), reference) - value).max())
        finer = tuple(
            min(max(order + 1, 3 * order // 2), size) if error > TOLERANCE else order
            for order, size, error in zip(orders, sizes, errors, strict=True)
        )
        if finer == orders or max(finer) > _MAX_ORDER:
            break
        orders = finer
    rule = candidate.rule(orders)[0]
    kept = without_negligible(rule.weight)
    parts = [getattr(rule, name)[kept] for name in RULE]
    return Rule(*parts[:-1], parts[-1] / parts[-1].sum(), error=float(max(errors)))


def without_negligible(weight: np.ndarray) -> np.ndarray:
    """Positions of all nodes but the lightest, which together weigh `NEGLIGIBLE`."""
    order = np.argsort(weight)
    return np.sort(order[np.cumsum(weight[order]) > NEGLIGIBLE])


class _Candidates:
    """Gauss rules of different orders, and what they say of the probed creators.

    Probed are the creators in whom too few nodes would show first: with the extreme standard
    errors and estimates, and their centers.
    """

    def __init__(self, grid: Grid):
        self.plane, self.n_inner = grid.plane, grid.log_weight.shape[1]
        value = self.plane.values(grid.nodes)[0][:, 0]
        marginal = np.exp(logsumexp(grid.log_weight, axis=1))
        self.outer_rule = Gauss(value[None], marginal[None])
        self.outer = cache(self._outer)
        self.rule = cache(self._rule)
        likelihood = self.plane.likelihood
        data, away = likelihood.data, np.abs(likelihood.effect)
        middle = np.argpartition(data.se, len(data.se) // 2)[len(data.se) // 2]
        picked = {data.se.argmin(), data.se.argmax(), middle, away.argmax()}
        picked |= {data.effect_hat.argmin(), data.effect_hat.argmax(), (away / data.se).argmax()}
        picked = np.array(sorted(picked))
        self.probes = data.take(picked)

    def _outer(self, order: int):
        """Weights and rows of the outer nodes, and the inner rules at each of them."""
        plane = self.plane
        value, weight = (part[0] for part in self.outer_rule(order))
        y = plane.outer.coordinate(value, plane.unit)
        rows, nodes, log_weight = inner_grid(plane, y, self.n_inner - 1)
        conditional = np.exp(log_weight - logsumexp(log_weight, axis=1, keepdims=True))
        return weight, rows, Gauss(plane.values(nodes)[1], conditional, plane.inner_scale)

    def _rule(self, orders: tuple[int, int]) -> tuple[Rule, Moments]:
        """Return a rule and the moments of the probes and their centers."""
        weight, rows, inner_rule = self.outer(orders[0])
        plane = self.plane
        inner, inner_weight = inner_rule(orders[1])
        nodes = plane.nodes(rows, plane.inner_coordinate(rows, inner))
        weight = (weight[:, None] * inner_weight).ravel()
        rule = Rule(*(part.ravel() for part in nodes[:4]), weight)
        centers = plane.likelihood.centers(
            plane.sums(rows, nodes), rule.sigma_genre, rule.mu_global
        )
        creator = creator_moments(self.probes, centers, rule.sigma_creator)
        both = zip(centers.of(self.probes), creator, strict=True)
        return rule, Moments(*(np.concatenate(pair, axis=1) for pair in both))

    def overall(self, orders: tuple[int, int]) -> Moments:
        """Return the posterior moments of the probes."""
        rule, moments = self.rule(orders)
        return mixture_moments(moments, rule.weight)

    def summary(self, orders: tuple[int, int], reference: Moments) -> np.ndarray:
        """Return moments, probabilities and shrinkage of the probes, scaled by `reference`."""
        rule, moments = self.rule(orders)
        overall, sd = mixture_moments(moments, rule.weight), np.sqrt(reference.var)
        places = (reference.mean + z * sd for z in (-2.0, 0.0, 2.0))
        return np.concatenate(
            [
                (overall.mean - reference.mean) / sd,
                np.sqrt(overall.var) / sd,
                *(mixture_cdf(moments, x, rule.weight) for x in places),
                rule.weight @ shrinkage_factor(self.probes.se, rule.sigma_creator),
            ]
        )


class Gauss:
    """Gauss rules of discrete distributions, one a row, of any order (Lanczos).

    Parameters
    ----------
    value, weight : ndarray, shape (row, node)
        Positive values, and their probabilities.
    scale : float, optional
        The rules are taken in x = value² / (value² + scale), where scale is the mean of value²
        if omitted.
    """

    def __init__(self, value: np.ndarray, weight: np.ndarray, scale: float | None = None):
        squared = np.square(value)
        self.first = value[:, :1]
        self.scale = (weight * squared).sum(axis=1, keepdims=True) if scale is None else scale
        x = squared / np.maximum(squared + self.scale, TINY)
        self.center = (weight * x).sum(axis=1, keepdims=True)
        self.spread = np.sqrt((weight * np.square(x - self.center)).sum(axis=1, keepdims=True))
        self.standard = (x - self.center) / np.maximum(self.spread, TINY)
        self.basis = [np.sqrt(weight)]
        self.diagonal, self.beside = [], []

    def __call__(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """Return nodes and weights, each of shape (row, order)."""
        if order == 1:
            return self.first, np.ones_like(self.first)
        while len(self.diagonal) < order:
            self._extend()
        rows = zip(np.array(self.diagonal[:order]).T, np.array(self.beside[:order]).T, strict=True)
        pairs = [lapack.dstev(diagonal, beside[:-1])[:2] for diagonal, beside in rows]
        standard, vectors = (np.array(part) for part in zip(*pairs, strict=True))
        x = np.clip(self.center + self.spread * standard, TINY, 1 - 1e-15)
        return np.sqrt(self.scale * x / (1 - x)), np.square(vectors[:, 0, :])

    def _extend(self) -> None:
        """Add a row to the tridiagonal matrices of the recurrence."""
        image = self.standard * self.basis[-1]
        self.diagonal.append((image * self.basis[-1]).sum(axis=1))
        known = np.stack(self.basis)
        for _ in range(2):  # twice is enough to stay orthogonal
            image -= np.einsum("kr,krn->rn", np.einsum("krn,rn->kr", known, image), known)
        self.beside.append(np.sqrt(np.square(image).sum(axis=1)))
        self.basis.append(image / np.maximum(self.beside[-1], TINY)[:, None])
