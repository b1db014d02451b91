"""The posterior of the hyperparameters of a moving platform, by deterministic quadrature.

Given the spread of the creators and the process, the periods of every genre boil down to an
estimate of its level (`hbm.drift.process.levels`), and from there on the model is the static one,
which is normal given sigma_genre. So the whole posterior is an integral over three numbers. Each
is written as a coordinate in which any density dies away at both ends, and there the trapezoidal
rule converges exponentially (Trefethen & Weideman 2014, SIAM Review 56, 385-458).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from hbm.drift.axes import Axis
from hbm.drift.process import Process, levels, smooth
from hbm.exact.likelihood import Likelihood, Sums
from hbm.exact.rule import Gauss, without_negligible
from hbm.gaussian import Estimates, Moments
from hbm.priors import Normal, Priors

#: Points by coordinate while the ends are being found, and rounds of zooming in; intervals of the
#: first grid, and the most that are tried.
ROUGH, MAX_ROUNDS = 12, 60
FIRST_INTERVALS, MAX_INTERVALS = 20, 160

#: Halving the steps of one coordinate may change the results by no more than this. The error of
#: the trapezoidal rule falls at least as exp(-c / step) here, so that the finer grid's error is
#: at most about the square of the change.
MAX_CHANGE = 1e-3

#: Nodes of the Gauss rule over which effects are averaged, by axis: of up to `FEW` creators, who
#: leave much unknown, and of more. Probabilities and standard deviations of effects are good to
#: 5e-5 with these.
FEW, ORDERS, ORDERS_OF_FEW = 100, (8, 14, 12), (16, 16, 16)

_BLOCK = 40_000


class DriftLikelihood(Likelihood):
    """The density of the estimates given all standard deviations, mu_global integrated out.

    Parameters
    ----------
    data : DataFrame
        ``genre_idx, period, effect_hat, se``.
    mu_global : Normal
    process : Process

    Attributes
    ----------
    cells : Likelihood
        Of the same creators, with genres in periods in the place of genres.
    periods : ndarray of int, shape (period,)
        Those with data.
    cell_genre, cell_period : ndarray of int, shape (cell,)
        Genre of each cell, and place of its period among `periods`.
    """

    def __init__(self, data: pd.DataFrame, mu_global: Normal, process: Process):
        self.process = process
        cells, cell_idx = np.unique(
            data[["genre_idx", "period"]].to_numpy(), axis=0, return_inverse=True
        )
        by_cell = Estimates.from_arrays(data["effect_hat"], data["se"], cell_idx.ravel())
        self.cells = Likelihood(by_cell, mu_global)
        self.cell_genre = cells[:, 0]
        self.periods, self.cell_period = np.unique(cells[:, 1], return_inverse=True)
        by_genre = self.cell_genre[by_cell.genre_idx], by_cell.order
        n_genres = int(self.cell_genre.max()) + 1
        super().__init__(Estimates(by_cell.effect_hat, by_cell.se, *by_genre, n_genres), mu_global)

    def panel(self, sigma_creator: np.ndarray, periods: np.ndarray, n_genres: int):
        """Return gaps, precisions and centred means by period, and residuals (row,).

        Parameters
        ----------
        sigma_creator : ndarray, shape (row,)
        periods : ndarray of int, shape (period,)
            Sorted, all periods of the data among them.
        n_genres : int
            Of the data, or more: the last are without data.

        Returns
        -------
        gaps : ndarray of int, shape (period,)
        weight, effect : callable
            Of the number of a period and optionally of rows; shapes (row, genre).
        residual : ndarray, shape (row,)
        """
        sigma, where = np.unique(sigma_creator, return_inverse=True)
        sums = self.cells.sums(sigma)
        weight, effect = np.zeros((2, len(sigma), len(periods), n_genres))
        place = np.searchsorted(periods, self.periods)[self.cell_period], self.cell_genre
        weight[:, *place] = sums.weight
        effect[:, *place] = sums.mean - self.center[self.cell_genre]

        def taken(panel):
            return lambda t, rows=slice(None): panel[:, t][where[rows]]

        gaps = np.diff(periods, prepend=periods[:1])
        return gaps, taken(weight), taken(effect), sums.residual[where]

    def sums(self, rows: np.ndarray) -> Sums:
        """Return what the estimates say of the genres' levels.

        Parameters
        ----------
        rows : ndarray, shape (row, 2)
            sigma_creator, and the size of the motion.
        """
        gaps, weight, effect, residual = self.panel(rows[:, 0], self.periods, self.data.n_genres)
        parts, step = [], max(1, _BLOCK // self.data.n_genres)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            of_block = (lambda t, f=f, b=block: f(t, b) for f in (weight, effect))
            parts.append(levels(self.process, rows[block, 1:], gaps, *of_block))
        mean, total, within = (np.concatenate(part) for part in zip(*parts, strict=True))
        constant = 0.5 * (len(self.cell_genre) - self.data.n_genres) * np.log(2 * np.pi)
        return Sums(mean + self.center, total, residual + within.sum(axis=1) - constant)

    def log_density(self, values: np.ndarray) -> np.ndarray:
        """Return the log density of the estimates given all hyperparameters but mu_global.

        Parameters
        ----------
        values : ndarray, shape (draw, axis)
            sigma_creator, the size of the motion, and sigma_genre.
        """
        sums = self.sums(values[:, :-1])
        return self.given(sums, values[:, -1:])[0][:, 0]


@dataclass(frozen=True)
class Grid:
    """Equidistant nodes of all axes.

    Attributes
    ----------
    coordinates, even_parts : list of ndarray
        Of the nodes of each axis, and what is averaged to see whether they are enough.
    rows : ndarray, shape (row, axis - 1)
        Values of all axes but the last, at all combinations of their nodes.
    sigma_genre : ndarray
        Values of the last axis.
    log_weight : ndarray, one dimension an axis
    mu_global : Moments, shape (row, node of the last axis)
    """

    coordinates: list[np.ndarray]
    even_parts: list[np.ndarray]
    rows: np.ndarray
    sigma_genre: np.ndarray
    log_weight: np.ndarray
    mu_global: Moments

    def summary(self, log_weight: np.ndarray):
        """Return the log evidence, and mean and sd of mu_global and of each even part."""
        log_evidence = logsumexp(log_weight)
        weight = np.exp(log_weight - log_evidence)
        means, var = (part.reshape(weight.shape) for part in self.mu_global)
        center = (weight * means).sum()
        moments = [(center, np.sqrt((weight * (np.square(means - center) + var)).sum()))]
        for k, y in enumerate(self.even_parts):
            share = weight.sum(axis=_but(k, weight.ndim))
            moments.append((share @ y, np.sqrt(share @ np.square(y - share @ y))))
        return log_evidence, np.array(moments)

    def halved(self, k: int) -> np.ndarray:
        """Return the log weights of a grid of every second node of one coordinate."""
        odd = np.arange(self.log_weight.shape[k]) % 2
        shape = [-1 if m == k else 1 for m in range(self.log_weight.ndim)]
        return self.log_weight + np.where(odd, -np.inf, np.log(2)).reshape(shape)


class Rule(NamedTuple):
    """Few nodes for many: a Gauss rule of the posterior of all hyperparameters.

    `rows` (row, axis - 1) are values of all axes but the last; `row` (node,) says which is a
    node's, `sigma_genre, weight` (node,) the rest, and `mu_global` has moments of that shape.
    """

    rows: np.ndarray
    row: np.ndarray
    sigma_genre: np.ndarray
    weight: np.ndarray
    mu_global: Moments


@dataclass(frozen=True)
class DriftPosterior:
    """The posterior of the hyperparameters.

    Attributes
    ----------
    likelihood : DriftLikelihood
    axes : list of Axis
        Of sigma_creator, of the size of the motion, and of sigma_genre.
    grid : Grid
    log_evidence : float
        Log marginal density of the estimates.
    errors : dict of str to float
        Estimated quadrature errors: of the log evidence, and of the mean and standard deviation
        of each hyperparameter (of a function of it) in units of its standard deviation.
    """

    likelihood: DriftLikelihood
    axes: list[Axis]
    grid: Grid
    log_evidence: float
    errors: dict[str, float]

    @cached_property
    def shares(self) -> dict[str, np.ndarray]:
        """Probabilities of the nodes of each axis, twice as many as for the integral.

        To interpolate a function takes twice the nodes that its integral takes.
        """
        shares, sizes = {}, np.array(self.grid.log_weight.shape) - 1
        for k, axis in enumerate(self.axes):
            finer = np.where(np.arange(len(sizes)) == k, 2 * sizes, sizes)
            log_weight = _evaluate(self.likelihood, self.axes, finer).log_weight
            weight = np.exp(log_weight - self.log_evidence)
            shares[axis.name] = weight.sum(axis=_but(k, weight.ndim))
        return shares

    @cached_property
    def rule(self) -> Rule:
        """The nodes over which effects are averaged."""
        few = len(self.likelihood.effect) <= FEW
        return self.reduced(ORDERS_OF_FEW if few else ORDERS)

    @property
    def weight(self) -> np.ndarray:
        """The weights of the nodes, shape (node,)."""
        return self.rule.weight

    @cached_property
    def sigma_creator(self) -> np.ndarray:
        """The spread of the creators, shape (node,)."""
        return self.rule.rows[self.rule.row, 0]

    @cached_property
    def level(self) -> Moments:
        """Moments of the genres' levels, shape (node, genre + 1); the last is one never seen."""
        sums = self.likelihood.sums(self.rule.rows).with_new_genre()
        sums = Sums(*(part[self.rule.row] for part in sums))
        return self.likelihood.centers(sums, self.rule.sigma_genre, self.rule.mu_global)

    def paths(self, periods: np.ndarray) -> Moments:
        """Return the moments of mu_genre given the node, shape (node, period, genre + 1).

        Parameters
        ----------
        periods : ndarray of int, shape (period,)
            Sorted, none before the first of the data.
        """
        every = np.union1d(self.likelihood.periods, periods)
        n_genres, rows = self.likelihood.data.n_genres + 1, self.rule.rows
        gaps, weight, effect, _ = self.likelihood.panel(rows[:, 0], every, n_genres)
        away = smooth(self.likelihood.process, rows[:, 1:], gaps, weight, effect)
        wanted = np.searchsorted(every, periods)
        mean, pull, var = (part[:, wanted][self.rule.row] for part in away)
        center = np.append(self.likelihood.center, 0.0)
        mean = mean + (self.level.mean - center)[:, None] * (1 - pull) + center
        return Moments(mean, var + self.level.var[:, None] * np.square(1 - pull))

    def reduced(self, orders: Sequence[int]) -> Rule:
        """Return a Gauss rule of so many nodes by axis.

        One hyperparameter after the other: a Gauss rule of the first one's posterior, at each of
        its nodes one of the second's given the first, and so on.
        """
        sizes = self.grid.log_weight.shape
        parts = [axis.nodes(size - 1) for axis, size in zip(self.axes, sizes, strict=True)]
        values, weight = np.empty((1, 0)), np.ones(1)
        for k, (axis, order) in enumerate(zip(self.axes, orders, strict=True)):
            log_weight = self.grid.log_weight
            if k:
                log_weight = _log_weights(self.likelihood, parts[k:], values)[2]
            by_node = logsumexp(log_weight.reshape(len(values), sizes[k], -1), axis=2)
            share = np.exp(by_node - logsumexp(by_node, axis=1, keepdims=True))
            nodes = np.broadcast_to(parts[k][1], share.shape)
            nodes, part = Gauss(nodes, share)(order if axis.free else 1)
            values = np.column_stack([np.repeat(values, nodes.shape[1], axis=0), nodes.ravel()])
            weight = (weight[:, None] * part).ravel()
        kept = without_negligible(weight)
        rows, row = np.unique(values[kept, :-1], axis=0, return_inverse=True)
        sigma_genre, weight, row = values[kept, -1], weight[kept], row.ravel()
        sums = Sums(*(part[row] for part in self.likelihood.sums(rows)))
        mu = self.likelihood.given(sums, sigma_genre[:, None])[1:]
        mu_global = Moments(*(part[:, 0] for part in mu))
        return Rule(rows, row, sigma_genre, weight / weight.sum(), mu_global)

    def draw(self, rng: np.random.Generator, draws: int) -> np.ndarray:
        """Draw the hyperparameters but mu_global, shape (draw, axis).

        Points within a step of a node are drawn, 8 for each that is wanted, and then chosen by how
        much denser the posterior is there than the node said.
        """
        weight = np.exp(self.grid.log_weight - self.log_evidence)
        node = rng.choice(weight.size, 8 * draws, p=weight.ravel() / weight.sum())
        places = np.unravel_index(node, weight.shape)
        log_ratio, values = -np.log(weight.ravel()[node]), []
        for axis, y, place in zip(self.axes, self.grid.coordinates, places, strict=True):
            if not axis.free:
                values.append(np.full(len(node), float(axis.prior.value)))
                continue
            at = y[place] + (y[1] - y[0]) * rng.uniform(-0.5, 0.5, len(node))
            # Half of the cell of a node at 0 is folded back.
            log_ratio -= np.where(y[place] == 0, np.log(2), 0.0)
            at = np.abs(at)
            values.append(axis.value(at))
            log_ratio += axis.log_density(at)
        values = np.column_stack(values)
        log_ratio += self.likelihood.log_density(values)
        ratio = np.exp(log_ratio - log_ratio.max())
        return values[rng.choice(len(values), draws, replace=False, p=ratio / ratio.sum())]


def integrate(likelihood: DriftLikelihood, priors: Priors) -> DriftPosterior:
    """Place a grid over all hyperparameters and refine it until nothing changes.

    Parameters
    ----------
    likelihood : DriftLikelihood
    priors : Priors
    """
    axes = _axes(likelihood, priors)
    for _ in range(MAX_ROUNDS):
        height = _evaluate(likelihood, axes, [ROUGH - 1] * len(axes)).log_weight
        profiles = [height.max(axis=_but(k, len(axes))) for k in range(len(axes))]
        settled = [a.zoom(p) for a, p in zip(axes, profiles, strict=True) if a.free]
        if all(settled):
            break
    intervals = [FIRST_INTERVALS] * len(axes)
    while True:
        grid = _evaluate(likelihood, axes, intervals)
        log_evidence, moments = grid.summary(grid.log_weight)
        changes = np.zeros((len(axes), len(axes) + 2))
        for k in (k for k, axis in enumerate(axes) if axis.free):
            other_evidence, other = grid.summary(grid.halved(k))
            # What is known has no sd but rounding.
            scale = np.maximum(moments[:, 1], 1e-7 * np.abs(moments[:, 0]) + 1e-300)
            away = np.abs(moments - other).max(axis=1) / scale
            changes[k] = np.append(abs(other_evidence - log_evidence), away)
        coarse = changes.max(axis=1) > MAX_CHANGE
        if not any(coarse) or max(intervals) >= MAX_INTERVALS:
            break
        intervals = [int(n + c * 2 * (n // 4)) for n, c in zip(intervals, coarse, strict=True)]
    names = ["log_evidence", "mu_global", *(axis.name for axis in axes)]
    errors = dict(zip(names, np.square(changes).max(axis=0).tolist(), strict=True))
    return DriftPosterior(likelihood, axes, grid, float(log_evidence), errors)


def _axes(likelihood: DriftLikelihood, priors: Priors) -> list[Axis]:
    process, reach, data = likelihood.process, likelihood.reach, likelihood.data
    finest = 1 / np.sqrt(data.by_genre(1 / np.square(data.se)).max())
    step = finest / np.sqrt(np.ptp(likelihood.periods) + 1)
    return [
        Axis("sigma_creator", priors.sigma_creator, data.se.min(), reach),
        Axis(process.name, process.prior, step, reach),
        Axis("sigma_genre", priors.sigma_genre, finest, reach),
    ]


def _evaluate(likelihood: DriftLikelihood, axes: list[Axis], intervals: Sequence[int]) -> Grid:
    parts = [axis.nodes(n) for axis, n in zip(axes, intervals, strict=True)]
    coordinates, values, _ = zip(*parts, strict=True)
    rows, mu_global, log_weight = _log_weights(likelihood, parts, np.empty((1, 0)))
    log_weight = log_weight.reshape([len(value) for value in values])
    even_parts = [a.even_part(y) for a, y in zip(axes, coordinates, strict=True)]
    return Grid(list(coordinates), even_parts, rows, values[-1], log_weight, mu_global)


def _log_weights(likelihood: DriftLikelihood, parts, given: np.ndarray):
    """Evaluate the posterior at values of the first axes, (row, axis), times nodes of the others.

    Returns
    -------
    rows : ndarray, shape (row, axis - 1)
    mu_global : Moments, shape (row, node of the last axis)
    log_weight : ndarray, of that shape
    """
    _, values, log_weights = zip(*parts, strict=True)
    rest = _product(values[:-1])
    rows = np.column_stack([np.repeat(given, len(rest), axis=0), np.tile(rest, (len(given), 1))])
    sigma_genre = np.broadcast_to(values[-1], (len(rows), len(values[-1])))
    log_density, *mu_global = likelihood.given(likelihood.sums(rows), sigma_genre)
    log_prior = _product(log_weights).sum(axis=1).reshape(len(rest), -1)
    return rows, Moments(*mu_global), log_density + np.tile(log_prior, (len(given), 1))


def _product(axes) -> np.ndarray:
    """Return all combinations of the values along each axis, shape (row, axis)."""
    if not axes:
        return np.empty((1, 0))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _but(k: int, n: int) -> tuple[int, ...]:
    return tuple(m for m in range(n) if m != k)
