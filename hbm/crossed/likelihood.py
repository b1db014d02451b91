"""Two crossed groupings given their standard deviations, in closed form.

Given sigma_creator the creators of a cell boil down to a weighted mean y and its precision W
(`hbm.exact.likelihood`), and sigma_interaction turns the precision into w = W / (1 + sigma² W).
What is left is a table of independent normals y_jk ~ Normal(mu + a_j + b_k, 1 / sqrt(w_jk)) with
normal effects a, b and mu. The effects of the factor with more levels are integrated out one by
one, since given the others they are independent; the others together with mu are as many unknowns
as the smaller factor has levels, and one: a Cholesky factor of that size for each node.

The unknowns are in units of their prior standard deviations, so that a standard deviation of 0
needs no case of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hbm.exact.draws import sums_between
from hbm.exact.likelihood import Likelihood, renumbered
from hbm.gaussian import Estimates, Moments

_BLOCK = 200_000


class Sigmas(NamedTuple):
    """Nodes or draws of the standard deviations, each of shape ``(node,)``."""

    creator: np.ndarray
    first: np.ndarray
    second: np.ndarray
    interaction: np.ndarray

    def take(self, block) -> Sigmas:
        """Return some of the nodes."""
        return Sigmas(*(part[block] for part in self))


@dataclass(frozen=True)
class CellEffects:
    """Moments of everything but the creators, given the data and the node.

    Attributes
    ----------
    mu_global : Moments, shape (node,)
    first, second : Moments, shape (node, level)
        Effects of the levels of either factor.
    interaction, cell : Moments, shape (node, first, second)
        Interactions, and means of the cells: the sum of mu and the three effects.
    """

    mu_global: Moments
    first: Moments
    second: Moments
    interaction: Moments
    cell: Moments


class _Table(NamedTuple):
    """Precision and mean of each cell by node, (long, short, node), and their log density."""

    weight: np.ndarray
    mean: np.ndarray
    residual: np.ndarray


class _System(NamedTuple):
    """The normal equations of the unknowns (the short factor's effects, then mu) by node.

    `precision` (unknown, unknown, node), `toward` (unknown, node) and `squared` (node,), the sum
    of squares where all unknowns are 0. `shrink` = 1 / (1 + sigma_interaction² W) and `w` have
    the shape (long, short, node); `keep` = 1 / (1 + sigma_long² sum w), `var` = sigma_long² keep
    and `own` = sum w y have the shape (long, node).
    """

    precision: np.ndarray
    toward: np.ndarray
    squared: np.ndarray
    shrink: np.ndarray
    w: np.ndarray
    keep: np.ndarray
    var: np.ndarray
    own: np.ndarray


class CrossedLikelihood:
    """The density of the estimates given the standard deviations, all effects integrated out.

    Parameters
    ----------
    data : Estimates
        Its genres are the cells that have creators.
    cells : ndarray of int, shape (cell, 2)
        Levels of these cells, of the first and the second factor.
    shape : (int, int)
        Numbers of levels.
    mu_global : Normal
    """

    def __init__(self, data: Estimates, cells: np.ndarray, shape: tuple[int, int], mu_global):
        self.data, self.cells, self.shape, self.prior = data, cells, shape, mu_global
        self.by_cell = Likelihood(data, mu_global)
        precision = np.zeros(shape)
        precision[tuple(cells.T)] = data.by_genre(1 / self.by_cell.variance)
        most = precision.sum(axis=1).max(), precision.sum(axis=0).max()
        #: The finest scale in the data of each standard deviation, in the order of `Sigmas`.
        self.finest = np.array([data.se.min(), *(1 / np.sqrt([*most, precision.max()]))])
        # By what does not depend on which factor comes first, so that swapping changes nothing.
        self.swapped = (shape[0], most[0]) < (shape[1], most[1])
        self.long, self.short = (max(shape), min(shape))
        place = cells[:, ::-1] if self.swapped else cells
        self.place = tuple(place.T)
        # Everything is relative to one origin, so that effects far from 0 lose no digits.
        self.origin = np.average(data.effect_hat, weights=1 / self.by_cell.variance)
        self.prior_mean = (mu_global.mu - self.origin) / mu_global.sigma
        self._known: dict[float, tuple] = {}

    def subset(self, kept: np.ndarray) -> CrossedLikelihood:
        """Return the likelihood of some of the sorted creators; the levels stay."""
        cells = self.cells[np.unique(self.data.genre_idx[kept])]
        return CrossedLikelihood(renumbered(self.data, kept), cells, self.shape, self.prior)

    def given(self, sigmas: Sigmas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return log density and the moments of mu_global at each node, shape (node,).

        Few distinct values of `sigmas.creator` cost little: only they touch the creators.
        """
        return self._in_blocks(sigmas, self._from_creators)

    def between(self, sigmas: Sigmas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Do the same where no two values of `sigmas.creator` are the same, as in draws."""
        return self._in_blocks(sigmas, self._interpolated)

    def _in_blocks(self, sigmas: Sigmas, table):
        step = max(1, _BLOCK // (self.long * self.short))
        result = np.empty((3, len(sigmas.creator)))
        for start in range(0, result.shape[1], step):
            block = slice(start, start + step)
            some = sigmas.take(block)
            cells = table(some.creator)
            result[:, block] = self._given(cells, self._system(cells, some))
        return tuple(result)

    def _from_creators(self, sigma_creator: np.ndarray) -> _Table:
        """Return the sums over creators, computed once for each sigma_creator."""
        distinct, where = np.unique(sigma_creator, return_inverse=True)
        new = np.array([sigma for sigma in distinct if sigma not in self._known])
        if len(new):
            table = self._table(self.by_cell.sums(new))
            for k, sigma in enumerate(new):
                self._known[sigma] = tuple(part[..., k] for part in table)
        parts = zip(*(self._known[sigma] for sigma in distinct), strict=True)
        return _Table(*(np.stack(part, axis=-1)[..., where] for part in parts))

    def _interpolated(self, sigma_creator: np.ndarray) -> _Table:
        return self._table(sums_between(self.by_cell, sigma_creator))

    def _table(self, sums) -> _Table:
        weight, mean = np.zeros((2, self.long, self.short, len(sums.mean)))
        weight[self.place], mean[self.place] = sums.weight.T, sums.mean.T - self.origin
        constant = 0.5 * sums.mean.shape[1] * np.log(2 * np.pi)
        return _Table(
            weight, mean, sums.residual + 0.5 * np.log(sums.weight).sum(axis=1) - constant
        )

    def _system(self, table: _Table, sigmas: Sigmas) -> _System:
        long, short = sigmas.first, sigmas.second
        if self.swapped:
            long, short = short, long
        shrink = 1 / (1 + np.square(sigmas.interaction) * table.weight)
        w = table.weight * shrink
        wy = w * table.mean
        total, own = w.sum(axis=1), wy.sum(axis=1)
        keep = 1 / (1 + np.square(long) * total)
        var = np.square(long) * keep
        n, scale = self.short, self.prior.sigma
        precision = np.empty((n + 1, n + 1, len(long)))
        precision[:n, :n] = -short * short * np.einsum("jkn,jn,jln->kln", w, var, w)
        diagonal = np.arange(n)
        precision[diagonal, diagonal] += short * short * w.sum(axis=0)
        precision[n, :n] = precision[:n, n] = scale * short * np.einsum("jkn,jn->kn", w, keep)
        precision[n, n] = scale**2 * (total * keep).sum(axis=0)
        diagonal = np.arange(n + 1)
        precision[diagonal, diagonal] += 1
        toward = np.empty((n + 1, len(long)))
        toward[:n] = short * (wy.sum(axis=0) - np.einsum("jkn,jn->kn", w, var * own))
        toward[n] = scale * (own * keep).sum(axis=0) + self.prior_mean
        squared = (wy * table.mean).sum(axis=(0, 1)) - (var * own * own).sum(axis=0)
        squared += self.prior_mean**2
        return _System(precision, toward, squared, shrink, w, keep, var, own)

    def _given(self, table: _Table, system: _System):
        n = self.short + 1
        both = np.empty((n + 1, n + 1, len(system.squared)))
        both[:n, :n], both[n, n] = system.precision, system.squared + 1
        both[n, :n] = both[:n, n] = system.toward
        factor = _cholesky(both)
        log_det = np.log(factor[np.arange(n), np.arange(n)]).sum(axis=0)
        squared = np.square(factor[n, n]) - 1
        log_density = table.residual - log_det - 0.5 * squared
        log_density += 0.5 * (np.log(system.shrink).sum(axis=(0, 1)) + np.log(system.keep).sum(0))
        last = factor[n - 1, n - 1]
        mu = self.origin + self.prior.sigma * factor[n, n - 1] / last
        return log_density, mu, np.square(self.prior.sigma / last)

    def effects(self, sigmas: Sigmas) -> CellEffects:
        """Return the moments of all effects at each node."""
        table = self._from_creators(sigmas.creator)
        system = self._system(table, sigmas)
        short, mu_scale = self._short(sigmas)[:, None], self.prior.sigma
        covariance = np.linalg.inv(np.moveaxis(system.precision, 2, 0))
        x = np.einsum("npq,qn->np", covariance, system.toward)
        # Given the unknowns, mu + a_j is var_j own_j + lean_j . x, with variance var_j.
        var, keep, w = system.var.T, system.keep.T, np.moveaxis(system.w, 2, 0)
        lean = np.empty((*var.shape, self.short + 1))
        lean[..., :-1] = -short[..., None] * var[..., None] * w
        lean[..., -1] = mu_scale * keep
        spread = lean @ covariance
        level = var * system.own.T + (lean @ x[..., None])[..., 0]
        level_var = var + (spread * lean).sum(axis=2)
        diagonal = np.diagonal(covariance, axis1=1, axis2=2)
        line = self.origin + level[..., None] + (short * x[:, :-1])[:, None, :]
        line_var = level_var[..., None] + 2 * short[..., None] * spread[..., :-1]
        line_var = np.maximum(line_var + (short**2 * diagonal[:, :-1])[:, None, :], 0.0)
        # Without mu the lean is less by mu's scale.
        without = lean.copy()
        without[..., -1] -= mu_scale
        long_var = var + ((without @ covariance) * without).sum(axis=2)
        shrink, y = np.moveaxis(system.shrink, 2, 0), self.origin + np.moveaxis(table.mean, 2, 0)
        own_var = np.square(sigmas.interaction)[:, None, None] * shrink
        pull = 1 - shrink
        both = (
            Moments(level - mu_scale * x[:, -1:], long_var),
            Moments(short * x[:, :-1], short**2 * diagonal[:, :-1]),
        )
        return self._in_order(
            Moments(self.origin + mu_scale * x[:, -1], mu_scale**2 * diagonal[:, -1]),
            *both,
            Moments(pull * (y - line), np.square(pull) * line_var + own_var),
            Moments(line + pull * (y - line), np.square(shrink) * line_var + own_var),
        )

    def draw(self, rng: np.random.Generator, sigmas: Sigmas) -> CellEffects:
        """Draw all effects at each draw of the standard deviations; the variances are 0."""
        table = self._interpolated(sigmas.creator)
        system = self._system(table, sigmas)
        factor = np.linalg.cholesky(np.moveaxis(system.precision, 2, 0))
        toward = system.toward.T[..., None]
        # With L L' the precision, L'^-1 (L^-1 toward + noise) has the mean and the covariance.
        noisy = np.linalg.solve(factor, toward) + rng.standard_normal(toward.shape)
        x = np.linalg.solve(factor.mT, noisy)[..., 0]
        short, mu = self._short(sigmas)[:, None] * x[:, :-1], self.prior.sigma * x[:, -1]
        w, var = np.moveaxis(system.w, 2, 0), system.var.T
        known = (w @ short[..., None])[..., 0] + w.sum(axis=2) * mu[:, None]
        long = rng.normal(var * (system.own.T - known), np.sqrt(var))
        line = mu[:, None, None] + long[..., None] + short[:, None, :]
        shrink = np.moveaxis(system.shrink, 2, 0)
        sd = sigmas.interaction[:, None, None] * np.sqrt(shrink)
        interaction = rng.normal((1 - shrink) * (np.moveaxis(table.mean, 2, 0) - line), sd)
        drawn = self.origin + mu, long, short, interaction, self.origin + line + interaction
        return self._in_order(*(Moments(part, np.zeros_like(part)) for part in drawn))

    def _short(self, sigmas: Sigmas) -> np.ndarray:
        return sigmas.first if self.swapped else sigmas.second

    def _in_order(self, mu, long, short, interaction, cell) -> CellEffects:
        """Bring (long, short) back to (first, second)."""
        if not self.swapped:
            return CellEffects(mu, long, short, interaction, cell)
        tables = (Moments(*(part.mT for part in table)) for table in (interaction, cell))
        return CellEffects(mu, short, long, *tables)


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """Overwrite symmetric matrices (row, column, node) by their lower factors, and return them.

    LAPACK takes one small matrix at a time; here a step is done for all of them at once.
    """
    for k in range(len(matrix)):
        matrix[k, k] = np.sqrt(matrix[k, k])
        matrix[k + 1 :, k] /= matrix[k, k]
        below = matrix[k + 1 :, k]
        matrix[k + 1 :, k + 1 :] -= below[:, None] * below[None, :]
    return matrix
