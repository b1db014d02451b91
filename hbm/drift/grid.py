"""The posterior of the hyperparameters of a moving platform, by deterministic quadrature.

The exact engine's quadrature (`hbm.exact.quadrature`) with one or two coordinates more: given the
spread of the creators and the process, the periods of every genre boil down to an estimate of its
level, and from there on the model is the static one. sigma_genre is integrated as there, its
nodes placed anew for each value of the others; the others have a grid of equidistant nodes in
coordinates in which any density dies away at both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp, roots_jacobi

from hbm.drift.process import Process, levels
from hbm.exact.likelihood import Likelihood, Sums
from hbm.exact.quadrature import (
    CEILING,
    DROP,
    MAX_ROUNDS,
    NARROW,
    TINY,
    Cartesian,
    Nodes,
    Scale,
    _height,
    inner_grid,
)
from hbm.exact.rule import _Gauss
from hbm.gaussian import Estimates
from hbm.priors import Beta, Fixed, Normal, Prior, Priors

#: Intervals of the first grid: of sigma_creator, of the parameters of the process, of
#: sigma_genre; and the most that are tried.
FIRST_INTERVALS, FIRST_INNER, MAX_INTERVALS = (32, 24, 16), 18, 192

#: Points by coordinate while the ends of the grid are being found, and inner intervals there.
_ROUGH, _ROUGH_INNER = 14, 8

#: Halving the steps of one coordinate may change the results by no more than this. The error of
#: the trapezoidal rule falls at least as exp(-c / step) here, so that the finer grid's error is
#: at most about the square of the change (Trefethen & Weideman 2014, SIAM Review 56, 385-458).
MAX_CHANGE = 5e-4

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
        super().__init__(
            Estimates(
                by_cell.effect_hat,
                by_cell.se,
                self.cell_genre[by_cell.genre_idx],
                by_cell.order,
                int(self.cell_genre.max()) + 1,
            ),
            mu_global,
        )

    def panel(self, sigma_creator: np.ndarray, periods: np.ndarray, n_genres: int):
        """Return precisions and centred means of the cells, (node, period, genre), and residuals.

        Parameters
        ----------
        sigma_creator : ndarray, shape (node,)
        periods : ndarray of int, shape (period,)
            Sorted, all periods of the data among them.
        n_genres : int
            Of the data, or more: the last are without data.
        """
        sums = self.cells.sums(sigma_creator)
        weight, effect = np.zeros((2, len(sigma_creator), len(periods), n_genres))
        place = np.searchsorted(periods, self.periods)[self.cell_period], self.cell_genre
        weight[:, *place] = sums.weight
        effect[:, *place] = sums.mean - self.center[self.cell_genre]
        return weight, effect, sums.residual

    def sums(self, points: np.ndarray) -> Sums:
        """Return what the estimates say of the levels.

        Parameters
        ----------
        points : ndarray, shape (node, 1 + parameter)
            sigma_creator, and the parameters of the process.
        """
        sigma, where = np.unique(points[:, 0], return_inverse=True)
        weight, effect, residual = self.panel(sigma, self.periods, self.data.n_genres)
        gaps = np.diff(self.periods, prepend=self.periods[:1])
        parts, step = [], max(1, _BLOCK // self.data.n_genres)
        for start in range(0, len(points), step):
            block = slice(start, start + step)
            at = where[block]
            parts.append(
                levels(
                    self.process,
                    points[block, 1:],
                    gaps,
                    lambda t, at=at: weight[:, t][at],
                    lambda t, at=at: effect[:, t][at],
                )
            )
        mean, total, within = (np.concatenate(part) for part in zip(*parts, strict=True))
        constant = 0.5 * (len(self.cell_genre) - self.data.n_genres) * np.log(2 * np.pi)
        return Sums(mean + self.center, total, residual[where] + within.sum(axis=1) - constant)


class EvenScale(Scale):
    """A standard deviation as unit · sinh(y), y >= 0: linear near 0, logarithmic far from it.

    Everything depends on the square of a standard deviation, so that the density is an even
    function of y, and the end of the trapezoidal rule at 0 is no end. As a function of a standard
    deviation it has its poles on the imaginary axis, beyond `unit`: none has an imaginary part
    below π/2 as a function of y. So a few nodes do. It needs a prior that is even, or dies away
    at 0.
    """

    def value(self, y: np.ndarray, unit) -> np.ndarray:
        return super().value(y, unit) if self.fixed is not None else unit * np.sinh(y)

    def coordinate(self, value: np.ndarray, unit) -> np.ndarray:
        return np.zeros(value.shape) if self.fixed is not None else np.arcsinh(value / unit)

    def log_density(self, y: np.ndarray, unit) -> np.ndarray:
        """Return the log prior density of the coordinate, half of it at 0."""
        if self.fixed is not None:
            return np.zeros(y.shape)
        half = np.where(y == 0, np.log(0.5), 0.0)
        return np.log(unit * np.cosh(y)) + self.log_prior(self.value(y, unit)) + half

    def start(self, reach: float, unit) -> tuple[np.ndarray, np.ndarray]:
        low, high = super().start(reach, unit)
        return np.zeros_like(low), high


class ScaleAxis:
    """A standard deviation as one coordinate of the grid, equidistant nodes between two ends."""

    nested = True

    def __init__(self, prior: Prior, unit: float, reach: float):
        self.scale, self.unit = EvenScale(prior), unit
        self.free = self.scale.fixed is None
        self.low, self.high = (float(end[0]) for end in self.scale.start(reach, np.array([unit])))

    def nodes(self, intervals: int) -> tuple[np.ndarray, np.ndarray]:
        """Return values and log weights, prior included."""
        y = np.linspace(self.low, self.high, intervals + 1) if self.free else np.zeros(1)
        log_weight = self.scale.log_density(y, self.unit)
        if self.free:
            log_weight += np.log(y[1] - y[0])
        return self.scale.value(y, self.unit), log_weight

    def zoom(self, profile: np.ndarray) -> bool:
        """Move the ends to where a log density at the nodes has died away; return if it has."""
        y = np.linspace(self.low, self.high, len(profile))
        log_size = np.log(np.maximum(self.scale.value(y, self.unit), TINY))
        inside = np.flatnonzero(_height(profile[None], log_size[None])[0] > -DROP)
        first, last = inside[0], inside[-1]
        wide = y[-1] - y[0]
        below, above = first == 0 and self.low > 0, last == len(y) - 1 and self.high < CEILING
        self.low = max(self.low - wide / 2, 0.0) if below else y[max(first - 1, 0)]
        self.high = min(self.high + wide / 2, CEILING) if above else y[min(last + 1, len(y) - 1)]
        return bool(last - first > len(y) // 2 and not below and not above)

    def rules(self, value: np.ndarray, weight: np.ndarray) -> Callable:
        """Return the Gauss rules of rows of nodes, by their order."""
        return _Gauss(value, weight)


class ShareAxis:
    """A correlation rho between 0 and 1 as x = rho / (rho + span^½ (1 - rho)), by a Gauss rule.

    What it does to a path changes around 1, and again around 1 - 1 / span: x is about halfway.

    Parameters
    ----------
    prior : Beta or Fixed
    span : int
        Periods from the first to the last.
    """

    nested = False

    def __init__(self, prior: Beta | Fixed, span: int):
        self.prior, self.scale = prior, np.sqrt(span)
        self.free = not isinstance(prior, Fixed)

    def nodes(self, intervals: int) -> tuple[np.ndarray, np.ndarray]:
        """Return values and log weights, prior included."""
        if not self.free:
            return np.array([float(self.prior.value)]), np.zeros(1)
        alpha, beta = self.prior.alpha, self.prior.beta
        x, weight = roots_jacobi(intervals, beta - 1, alpha - 1)
        x = (1 + x) / 2
        below = 1 - x + self.scale * x
        # What the change of the variable has left of the prior is smooth.
        rest = alpha * np.log(self.scale) - (alpha + beta) * np.log(below)
        return self.scale * x / below, np.log(weight / weight.sum()) + rest

    def coordinate(self, value: np.ndarray) -> np.ndarray:
        """Return x."""
        return value / (value + self.scale * (1 - value))

    def zoom(self, profile: np.ndarray) -> bool:
        """Leave the ends where they are."""
        return True

    def rules(self, value: np.ndarray, weight: np.ndarray) -> Callable:
        """Return the Gauss rules of rows of nodes, by their order: polynomials of x."""
        rules = _Gauss(np.sqrt(value / (1 - value)), weight, self.scale)

        def rule(order: int) -> tuple[np.ndarray, np.ndarray]:
            odds, part = rules(order)
            return np.square(odds) / (1 + np.square(odds)), part

        return rule


class Box(Cartesian):
    """The coordinates of the grid: those of `axes`, and sigma_genre within.

    Parameters
    ----------
    likelihood : DriftLikelihood
    priors : Priors
    """

    bounds = 0.0, CEILING

    def __init__(self, likelihood: DriftLikelihood, priors: Priors):
        self.likelihood = likelihood
        self.genre = EvenScale(priors.sigma_genre)
        process, data = likelihood.process, likelihood.cells.data
        finest = 1 / np.sqrt(data.by_genre(1 / np.square(data.se)).max())
        span = np.ptp(likelihood.periods) + 1
        self.axes = [
            ScaleAxis(priors.sigma_creator, data.se.min(), likelihood.reach),
            ScaleAxis(getattr(process, process.names[0]), finest / np.sqrt(span), likelihood.reach),
            *(ShareAxis(getattr(process, name), span) for name in process.names[1:]),
        ]
        self.free = True, self.genre.fixed is None

    def rows(self, values: np.ndarray):
        """Return what all inner nodes of the outer parameters, shape (row, axis), share."""
        sums = self.likelihood.sums(values)
        finest = 1 / np.sqrt(sums.weight.max(axis=1, keepdims=True))
        return values[:, :1], sums, finest, 0.0

    def within(self, values: np.ndarray, intervals: int):
        """Place nodes of sigma_genre at outer parameters, (row, axis); as `inner_grid` returns."""
        return inner_grid(self, values, intervals if self.free[1] else 0)

    def evaluate(self, intervals: Sequence[int]):
        """Return a grid: outer values (row, axis), nodes, log weights (row, inner), and shape."""
        values, log_weights = zip(
            *(axis.nodes(n) for axis, n in zip(self.axes, intervals[:-1], strict=True)), strict=True
        )
        rows = product(values)
        _, nodes, log_weight = self.within(rows, intervals[-1])
        log_weight = log_weight + product(log_weights).sum(axis=1, keepdims=True)
        return rows, nodes, log_weight, [*map(len, values), log_weight.shape[1]]

    def find_ends(self) -> None:
        """Find the ends outside of which the density is negligible, on all axes at once."""
        for _ in range(MAX_ROUNDS):
            rough = [_ROUGH if axis.nested else _ROUGH // 2 for axis in self.axes]
            *_, log_weight, shape = self.evaluate([*rough, _ROUGH_INNER])
            # Ends are for the density of the coordinate: without the steps, which are the same.
            height = logsumexp(log_weight, axis=1).reshape(shape[:-1])
            settled = [
                axis.zoom(height.max(axis=tuple(m for m in range(height.ndim) if m != k)))
                for k, axis in enumerate(self.axes)
                if axis.free
            ]
            if all(settled):
                break


@dataclass(frozen=True)
class DriftGrid:
    """The posterior of the hyperparameters on the nodes of a quadrature rule.

    Attributes
    ----------
    box : Box
    values : ndarray, shape (row, axis)
        sigma_creator and the parameters of the process, at all combinations of their nodes.
    nodes : Nodes, arrays of shape (row, inner)
    log_weight : ndarray, shape (row, inner)
        Logarithm of the posterior probability of the nodes.
    intervals : list of int
        By outer axis, and last of sigma_genre.
    log_evidence : float
        Log marginal density of the estimates.
    errors : dict
        Estimated quadrature errors: of the log evidence, and of the mean and standard deviation
        of each hyperparameter in units of its standard deviation.
    """

    box: Box
    values: np.ndarray
    nodes: Nodes
    log_weight: np.ndarray
    intervals: list[int]
    log_evidence: float
    errors: dict[str, float]


def integrate_drift(likelihood: DriftLikelihood, priors: Priors) -> DriftGrid:
    """Place a grid over all hyperparameters and refine it until nothing changes.

    Parameters
    ----------
    likelihood : DriftLikelihood
    priors : Priors
    """
    box = Box(likelihood, priors)
    box.find_ends()
    intervals = [*FIRST_INTERVALS[: len(box.axes)], FIRST_INNER]
    while True:
        values, nodes, log_weight, shape = box.evaluate(intervals)
        *halved, cut = _changes(box, intervals, values, nodes, log_weight, shape)
        coarse = [max(change.values()) > MAX_CHANGE for change in halved]
        if not any(coarse) or max(intervals) >= MAX_INTERVALS:
            break
        intervals = [n + c * 2 * (n // 4) for n, c in zip(intervals, coarse, strict=True)]
    log_evidence = float(logsumexp(log_weight))
    errors = {name: max([cut[name], *(change[name] ** 2 for change in halved)]) for name in cut}
    return DriftGrid(box, values, nodes, log_weight - log_evidence, intervals, log_evidence, errors)


def product(axes) -> np.ndarray:
    """Return all combinations of the values along each axis, shape (row, axis)."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _summary(names, values, nodes: Nodes, log_weight, scales=None):
    """Return the log evidence, and mean and sd of each hyperparameter, of a weighted grid.

    Standard deviations go in as x² / (x² + mean²), which is even and has all moments whatever the
    prior.
    """
    log_evidence = logsumexp(log_weight)
    weight = np.exp(log_weight - log_evidence)
    by_row = weight.sum(axis=1)
    sigmas = {"sigma_genre": (nodes.sigma_genre, weight)}
    sigmas |= {"sigma_creator": (values[:, 0], by_row), names[0]: (values[:, 1], by_row)}
    if scales is None:
        scales = {name: max((w * x).sum() ** 2, TINY) for name, (x, w) in sigmas.items()}
    shares = {name: (x**2 / (x**2 + scales[name]), w) for name, (x, w) in sigmas.items()}
    shares |= {name: (values[:, k], by_row) for k, name in enumerate(names[1:], 2)}
    moments = {}
    mean = (weight * nodes.mu_mean).sum()
    spread = (weight * (np.square(nodes.mu_mean - mean) + nodes.mu_var)).sum()
    moments["mu_global"] = mean, np.sqrt(spread)
    for name, (x, w) in shares.items():
        mean = (w * x).sum()
        moments[name] = mean, np.sqrt((w * np.square(x - mean)).sum())
    return log_evidence, moments, scales


def _changes(box: Box, intervals, values, nodes, log_weight, shape) -> list[dict[str, float]]:
    """Return what half the nodes of each coordinate would change, and last a narrower cut."""
    names = box.likelihood.process.names
    whole = _summary(names, values, nodes, log_weight)
    index = np.arange(log_weight.size).reshape(shape)
    changes = []
    for k, size in enumerate(shape):
        if size == 1:
            part = whole
        elif k < len(box.axes) and not box.axes[k].nested:
            fewer = [n // 2 if m == k else n for m, n in enumerate(intervals)]
            part = _summary(names, *box.evaluate(fewer)[:3], whole[2])
        else:
            kept = np.full(log_weight.size, -np.inf)
            chosen = index.take(np.arange(0, size, 2), axis=k).ravel()
            kept[chosen] = log_weight.ravel()[chosen] + np.log(2)
            part = _summary(names, values, nodes, kept.reshape(log_weight.shape), whole[2])
        changes.append(_difference(whole, part))
    cut = np.where(log_weight > log_weight.max() - NARROW, log_weight, -np.inf)
    return [*changes, _difference(whole, _summary(names, values, nodes, cut, whole[2]))]


def _difference(whole, part) -> dict[str, float]:
    (evidence, moments, _), (other_evidence, other, _) = whole, part
    change = {"log_evidence": float(abs(other_evidence - evidence))}
    for name, (mean, sd) in moments.items():
        scale = max(sd, 1e-7 * abs(mean), TINY)  # what is fixed has no sd but rounding
        away = abs(other[name][0] - mean), abs(other[name][1] - sd)
        change[name] = float(max(away) / scale)
    return change
