"""The distributions of the single hyperparameters of a drift model."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.integrate import cumulative_simpson, simpson
from scipy.interpolate import BarycentricInterpolator, PchipInterpolator
from scipy.optimize import brentq
from scipy.special import logsumexp

from hbm.drift.grid import ShareAxis
from hbm.drift.rule import DriftRule
from hbm.exact.draws import _Table
from hbm.gaussian import Moments, mixture_cdf, mixture_moments, mixture_quantile
from hbm.intervals import LEVEL, tail_probabilities


class Marginals:
    """The posterior of each hyperparameter by itself.

    Parameters
    ----------
    rule : DriftRule
    """

    def __init__(self, rule: DriftRule):
        self.rule, self.grid = rule, rule.grid
        process = self.grid.box.likelihood.process
        self.names = ("mu_global", "sigma_genre", "sigma_creator", *process.names)
        self.mu_global = Moments(*(part[:, None] for part in rule.mu_global))

    def cdf(self, name: str, x: float) -> float:
        """Return the posterior probability that a hyperparameter is at most `x`."""
        if name not in self.names:
            raise ValueError(f"unknown hyperparameter {name!r}; known: {', '.join(self.names)}")
        if name == "mu_global":
            return min(1.0, float(mixture_cdf(self.mu_global, x, self.rule.weight)[0]))
        return self._distribution(name).cdf(x)

    def frame(self) -> pd.DataFrame:
        """Return ``parameter, mean, se, lower, upper`` of each, the interval equal-tailed 95%."""
        tails, weight = tail_probabilities(LEVEL), self.rule.weight
        overall = mixture_moments(self.mu_global, weight)
        interval = (mixture_quantile(self.mu_global, p, weight)[0] for p in tails)
        rows = [("mu_global", overall.mean[0], np.sqrt(overall.var[0]), *interval)]
        for name in self.names[1:]:
            found = self._distribution(name)
            rows.append((name, found.mean, found.sd, *map(found.quantile, tails)))
        return pd.DataFrame(rows, columns=["parameter", "mean", "se", "lower", "upper"])

    def _distribution(self, name: str) -> _Point | _Scale | _Share:
        box, intervals = self.grid.box, self.grid.intervals
        if name == "sigma_genre":
            if not box.free[1]:
                return _Point(float(box.genre.fixed))
            _, nodes, log_weight = box.within(self.rule.values, intervals[-1])
            share = np.bincount(self.rule.row, self.rule.weight, len(log_weight))
            return _Scale(nodes.sigma_genre, log_weight, share)
        k = self.names.index(name) - 2
        axis = box.axes[k]
        value, log_prior = axis.nodes(intervals[k])
        if not axis.free:
            return _Point(float(value[0]))
        sizes = [len(a.nodes(n)[0]) for a, n in zip(box.axes, intervals, strict=False)]
        by_row = logsumexp(self.grid.log_weight, axis=1).reshape(sizes)
        log_weight = logsumexp(by_row, axis=tuple(m for m in range(len(sizes)) if m != k))
        if not axis.nested:
            return _Share(axis, value, log_weight - log_prior)
        return _Scale(value[None], log_weight[None], np.ones(1))


class _Continuous:
    """What has a distribution function between two ends."""

    def quantile(self, probability: float) -> float:
        return brentq(lambda x: self.cdf(x) - probability, *self.ends, xtol=1e-12)


class _Point:
    """A value that is known."""

    def __init__(self, value: float):
        self.mean, self.sd = value, 0.0

    def cdf(self, x: float) -> float:
        return float(x >= self.mean)

    def quantile(self, probability: float) -> float:
        return self.mean


class _Scale(_Continuous):
    """A standard deviation, mixed over rows of equidistant nodes.

    Parameters
    ----------
    value, log_weight : ndarray, shape (row, node)
        Of which a node at 0 has half.
    share : ndarray, shape (row,)
    """

    def __init__(self, value: np.ndarray, log_weight: np.ndarray, share: np.ndarray):
        log_density = log_weight + np.where(value == 0, np.log(2), 0.0)
        self.table, self.share_of_row = _Table(value, log_density), share
        x, density = self.table.value, self.table.slope
        first, second = (share @ simpson(x**power * density, x=x) for power in (1, 2))
        self.mean, self.sd = float(first), float(np.sqrt(max(second - first**2, 0.0)))
        self.ends = 0.0, float(value.max())

    def cdf(self, x: float) -> float:
        rows = np.arange(len(self.share_of_row))
        return float(self.share_of_row @ self.table.cdf(x, rows))


class _Share(_Continuous):
    """A value between 0 and 1, whose likelihood is known at the nodes of its prior's Gauss rule."""

    ends = 0.0, 1.0

    def __init__(self, axis: ShareAxis, value: np.ndarray, log_likelihood: np.ndarray):
        likelihood = np.exp(log_likelihood - log_likelihood.max())
        t = np.linspace(0, 1, 2001)
        x = t**3 * (10 - 15 * t + 6 * t**2)  # flat at both ends, where a prior may be steep
        between = BarycentricInterpolator(axis.coordinate(value), likelihood)
        density = np.maximum(between(axis.coordinate(x)), 0.0) * np.square(t * (1 - t))
        density[1:-1] *= axis.prior.scipy().pdf(x[1:-1])
        below = cumulative_simpson(density, x=t, initial=0.0)
        total = below[-1]
        first, second = (simpson(x**power * density, x=t) / total for power in (1, 2))
        self.mean, self.sd = float(first), float(np.sqrt(max(second - first**2, 0.0)))
        self.table = PchipInterpolator(x, np.clip(below / total, 0, 1))

    def cdf(self, x: float) -> float:
        return float(self.table(np.clip(x, 0, 1)))
