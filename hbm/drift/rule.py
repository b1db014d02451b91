"""Few nodes for many: a Gauss rule for the posterior of all hyperparameters of a drift model.

As `hbm.exact.rule`, one hyperparameter after the other: a Gauss rule of the first one's
posterior, at each of its nodes one of the second's given the first, and so on to sigma_genre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.special import logsumexp

from hbm.drift.grid import DriftGrid, product
from hbm.drift.process import Process, simulate, smooth
from hbm.exact.likelihood import Sums
from hbm.exact.rule import _Gauss, _without_the_negligible
from hbm.gaussian import Moments, creator_moments, mixture_moments

#: Nodes of the first rule that is tried: of sigma_creator, of the parameters of the process, and
#: of sigma_genre; and how many times as many the next one has.
ORDERS, INNER_ORDER, GROWTH = (3, 8, 6), 8, 1.5

#: Largest change of means and standard deviations, in posterior standard deviations, that more
#: nodes of one hyperparameter may make.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class DriftRule:
    """Nodes and weights; an outer row is shared by the nodes that differ in sigma_genre only.

    Attributes
    ----------
    grid : DriftGrid
    values : ndarray, shape (row, axis)
        sigma_creator and the parameters of the process.
    row : ndarray of int, shape (node,)
    sigma_genre, weight : ndarray, shape (node,)
        The weights sum to 1.
    mu_global : Moments, shape (node,)
    level : Moments, shape (node, genre + 1)
        Moments of the genres' levels given the node; the last genre is one never seen.
    """

    grid: DriftGrid
    values: np.ndarray
    row: np.ndarray
    sigma_genre: np.ndarray
    weight: np.ndarray
    mu_global: Moments
    level: Moments

    @property
    def process(self) -> Process:
        """How the genres move."""
        return self.grid.box.likelihood.process

    @cached_property
    def sigma_creator(self) -> np.ndarray:
        """The spread of the creators, shape (node,)."""
        return self.values[self.row, 0]

    def paths(self, periods: np.ndarray) -> Moments:
        """Return the moments of mu_genre given the node, shape (node, period, genre + 1).

        Parameters
        ----------
        periods : ndarray of int, shape (period,)
            Sorted, all periods of the data among them.
        """
        n_genres = self.grid.box.likelihood.data.n_genres + 1
        gaps, weight, effect, center = self._panel(self.values, periods, n_genres)
        away = smooth(self.process, self.values[:, 1:], gaps, weight, effect)
        level, kept = self.level.mean - center, 1 - away.pull[self.row]
        mean = away.mean[self.row] + level[:, None] * kept + center
        return Moments(mean, away.var[self.row] + self.level.var[:, None] * np.square(kept))

    @cached_property
    def cells(self) -> Moments:
        """Moments of mu_genre where and when there are creators, shape (node, cell)."""
        likelihood = self.grid.box.likelihood
        paths = self.paths(likelihood.periods)
        return Moments(*(p[:, likelihood.cell_period, likelihood.cell_genre] for p in paths))

    def effects(self, creators: np.ndarray | slice = slice(None)) -> Moments:
        """Return the moments of tau given the node, shape (node, creator).

        Parameters
        ----------
        creators : slice or ndarray of int
            In the order of the cells of the likelihood.
        """
        data = self.grid.box.likelihood.cells.data.take(creators)
        return creator_moments(data, self.cells, self.sigma_creator)

    def draw_paths(self, rng: np.random.Generator, periods: np.ndarray, draws: int) -> np.ndarray:
        """Draw mu_genre jointly over periods and genres, shape (draw, period, genre).

        Given the hyperparameters a path is what the data say of it plus the error that they would
        leave in a simulated one (Durbin & Koopman 2002, Biometrika 89, 603-615).

        Parameters
        ----------
        rng : Generator
        periods : ndarray of int, shape (period,)
            As `paths` takes them.
        draws : int
        """
        likelihood = self.grid.box.likelihood
        node = rng.choice(len(self.weight), draws, p=self.weight)
        values, n_genres = self.values[self.row[node]], likelihood.data.n_genres
        mu = rng.normal(self.mu_global.mean[node], np.sqrt(self.mu_global.var[node]))
        known = Moments(mu, np.zeros(draws))
        level = likelihood.centers(likelihood.sums(values), self.sigma_genre[node], known)
        level = rng.normal(level.mean, np.sqrt(level.var))[:, None]
        gaps, weight, effect, center = self._panel(values, periods, n_genres)
        found = smooth(self.process, values[:, 1:], gaps, weight, effect)
        paths = simulate(self.process, values[:, 1:], gaps, n_genres, rng)
        noise = rng.standard_normal(paths.shape)

        def simulated(t: int) -> np.ndarray:
            w = weight(t)
            return np.where(w > 0, paths[:, t] + noise[:, t] / np.sqrt(np.where(w > 0, w, 1)), 0)

        again = smooth(self.process, values[:, 1:], gaps, weight, simulated)
        center = center[:n_genres]
        return found.mean + center + (level - center) * (1 - found.pull) + paths - again.mean

    def _panel(self, values: np.ndarray, periods: np.ndarray, n_genres: int):
        """Return gaps, precisions and centred means by period, and the centers of the genres."""
        likelihood = self.grid.box.likelihood
        sigma, where = np.unique(values[:, 0], return_inverse=True)
        weight, effect, _ = likelihood.panel(sigma, periods, n_genres)
        gaps = np.diff(periods, prepend=periods[:1])
        center = np.append(likelihood.center, 0.0)
        return gaps, lambda t: weight[:, t][where], lambda t: effect[:, t][where], center


def drift_rule(grid: DriftGrid) -> DriftRule:
    """Reduce a grid to a Gauss rule, with as many nodes as the effects need."""
    candidate = _Candidates(grid)
    orders = tuple(min(pair) for pair in zip(candidate.first, candidate.most, strict=True))
    while True:
        value = candidate.probe(orders)
        finer = list(orders)
        for k, most in enumerate(candidate.most):
            more = list(orders)
            more[k] = min(int(np.ceil(GROWTH * orders[k])), most)
            if more[k] > orders[k] and _change(value, candidate.probe(tuple(more))) > TOLERANCE:
                finer[k] = more[k]
        if tuple(finer) == orders:
            return candidate.rule(orders)
        orders = tuple(finer)


def _change(value: Moments, other: Moments) -> float:
    """Largest difference of means and standard deviations, in standard deviations."""
    sd = np.sqrt(other.var)
    away = np.abs(value.mean - other.mean) / sd, np.abs(np.sqrt(value.var) / sd - 1)
    return float(np.max(away))


class _Candidates:
    """Gauss rules of different orders, and what they say of genres and of extreme creators.

    Parameters
    ----------
    grid : DriftGrid
    """

    def __init__(self, grid: DriftGrid):
        self.grid, self.box, self.inner = grid, grid.box, grid.intervals[-1]
        self.axes = [axis.nodes(n) for axis, n in zip(self.box.axes, grid.intervals, strict=False)]
        free = [axis.free for axis in self.box.axes] + [self.box.free[1]]
        sizes = [len(values) for values, _ in self.axes] + [self.inner + 1]
        # A rule with nearly all nodes of the grid cannot be computed stably, and is not needed.
        self.most = [1 + 2 * size // 3 if f else 1 for size, f in zip(sizes, free, strict=True)]
        self.first = [*ORDERS[: len(self.axes)], INNER_ORDER]
        data = self.box.likelihood.cells.data
        ends = np.argmin, np.argmax
        self.extremes = np.unique([end(x) for x in (data.se, data.effect_hat) for end in ends])
        self.given, self.probe = cache(self._given), cache(self._probe)

    def _given(self, orders: tuple[int, ...]):
        """Return outer nodes and weights, and the Gauss rules of what comes next given them.

        Parameters
        ----------
        orders : tuple of int
            Of the first outer coordinates, or of all.
        """
        k = len(orders)
        values, weight = np.empty((1, 0)), np.ones(1)
        if k:
            before, share, rules = self.given(orders[:-1])
            nodes, part = rules(orders[-1])
            values = np.column_stack([np.repeat(before, nodes.shape[1], axis=0), nodes.ravel()])
            weight = (share[:, None] * part).ravel()
        if k == len(self.axes):
            _, nodes, log_weight = self.box.within(values, self.inner)
            return values, weight, _Gauss(nodes.sigma_genre, _shares(log_weight))
        log_weight = logsumexp(self.grid.log_weight, axis=1)
        if k:
            rest, log_prior = (product([part[m] for part in self.axes[k:]]) for m in (0, 1))
            rows = np.repeat(values, len(rest), axis=0), np.tile(rest, (len(values), 1))
            log_weight = logsumexp(self.box.within(np.hstack(rows), self.inner)[2], axis=1)
            log_weight += np.tile(log_prior.sum(axis=1), len(values))
        by_node = log_weight.reshape(len(values), len(self.axes[k][0]), -1)
        share = _shares(logsumexp(by_node, axis=2))
        nodes = np.broadcast_to(self.axes[k][0], share.shape)
        return values, weight, self.box.axes[k].rules(nodes, share)

    def rule(self, orders: tuple[int, ...]) -> DriftRule:
        """Return the rule of these orders, that of sigma_genre last."""
        likelihood = self.box.likelihood
        values, weight, rules = self.given(orders[:-1])
        sigma_genre, part = rules(orders[-1])
        weight = (weight[:, None] * part).ravel()
        kept = _without_the_negligible(weight)
        row = np.repeat(np.arange(len(values)), sigma_genre.shape[1])[kept]
        sigma_genre, weight = sigma_genre.ravel()[kept], weight[kept] / weight[kept].sum()
        sums = Sums(*(part[row] for part in likelihood.sums(values)))
        mu_global = Moments(*(x[:, 0] for x in likelihood.given(sums, sigma_genre[:, None])[1:]))
        level = likelihood.centers(sums.with_new_genre(), sigma_genre, mu_global)
        return DriftRule(self.grid, values, row, sigma_genre, weight, mu_global, level)

    def _probe(self, orders: tuple[int, ...]) -> Moments:
        """Return moments of all genres in all periods and the next, and of extreme creators."""
        rule, periods = self.rule(orders), self.box.likelihood.periods
        paths = rule.paths(np.append(periods, periods[-1] + 1))
        paths = (part[:, :, :-1].reshape(len(part), -1) for part in paths)
        both = zip(paths, rule.effects(self.extremes), strict=True)
        return mixture_moments(Moments(*(np.hstack(pair) for pair in both)), rule.weight)


def _shares(log_weight: np.ndarray) -> np.ndarray:
    """Return the probabilities of the nodes of each row."""
    return np.exp(log_weight - logsumexp(log_weight, axis=1, keepdims=True))
