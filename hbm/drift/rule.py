"""Few nodes for many: a Gauss rule for the posterior of all hyperparameters of a drift model.

As `hbm.exact.rule`, one hyperparameter after the other: a Gauss rule of the first one's
posterior, at each of its nodes one of the second's given the first, and so on to sigma_genre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp

from hbm.drift.grid import DriftGrid, product
from hbm.drift.process import Process, simulate, smooth
from hbm.exact.quadrature import inner_grid
from hbm.exact.rule import _Gauss, _without_the_negligible
from hbm.gaussian import Moments

#: Nodes of sigma_creator and of the parameters of the process; of sigma_genre, and of it where
#: nothing moves. Probabilities and standard deviations of effects are good to 1e-5 with these.
ORDERS, INNER_ORDER, STATIC_INNER_ORDER = (6, 14, 12), 12, 20


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
    """Reduce a grid to a Gauss rule."""
    box, inner = grid.box, grid.intervals[-1]
    axes = [axis.nodes(n) for axis, n in zip(box.axes, grid.intervals, strict=False)]
    values, weight = np.empty((1, 0)), np.ones(1)
    for k, axis in enumerate(box.axes):
        log_weight = logsumexp(grid.log_weight, axis=1)
        if k:
            rest, log_prior = (product([part[m] for part in axes[k:]]) for m in (0, 1))
            rows = np.repeat(values, len(rest), axis=0), np.tile(rest, (len(values), 1))
            log_weight = logsumexp(inner_grid(box, np.hstack(rows), inner)[2], axis=1)
            log_weight += np.tile(log_prior.sum(axis=1), len(values))
        shape = len(values), len(axes[k][0]), -1
        share = _shares(logsumexp(log_weight.reshape(shape), axis=2))
        nodes = np.broadcast_to(axes[k][0], share.shape)
        nodes, part = _Gauss(nodes, share)(ORDERS[k] if axis.free else 1)
        values = np.column_stack([np.repeat(values, nodes.shape[1], axis=0), nodes.ravel()])
        weight = (weight[:, None] * part).ravel()
    rows, nodes, log_weight = inner_grid(box, values, inner)
    order = INNER_ORDER if len(values) > ORDERS[0] else STATIC_INNER_ORDER
    sigma_genre, part = _Gauss(nodes.sigma_genre, _shares(log_weight))(order if box.free[1] else 1)
    weight = (weight[:, None] * part).ravel()
    kept = _without_the_negligible(weight)
    row = np.repeat(np.arange(len(values)), sigma_genre.shape[1])[kept]
    sigma_genre, weight = sigma_genre.ravel()[kept], weight[kept] / weight[kept].sum()
    sums = type(rows[1])(*(part[row] for part in rows[1]))
    mu_global = Moments(*(x[:, 0] for x in box.likelihood.given(sums, sigma_genre[:, None])[1:]))
    level = box.likelihood.centers(sums.with_new_genre(), sigma_genre, mu_global)
    return DriftRule(grid, values, row, sigma_genre, weight, mu_global, level)


def _shares(log_weight: np.ndarray) -> np.ndarray:
    """Return the probabilities of the nodes of each row."""
    return np.exp(log_weight - logsumexp(log_weight, axis=1, keepdims=True))
