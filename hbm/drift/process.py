"""How a genre's effect moves in time, and the Kalman filter and smoother for it.

mu_genre[g, t] = level[g] + away[g, t]. The level is the genre's mean of the static model; what
the genre is away from it is a scalar Markov process, the same for all genres but independent.
Everything is linear, so the filter runs once for the estimates and once, beside it, for a column
of ones: the level is a regression coefficient (Rosenberg 1973, Annals of Economic and Social
Measurement 2, 399-428; de Jong 1991, Annals of Statistics 19, 1073-1083), and a genre's months
boil down to an estimate of its level and that estimate's precision.

Arrays have the shape (row, genre), or (row, period, genre): a row is one set of hyperparameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from hbm.priors import Fixed, HalfNormal, Prior


@dataclass(frozen=True)
class RandomWalk:
    """A genre's effect changes by Normal(0, sigma_step) from each period to the next.

    The level is the effect in the first period of the data.

    Attributes
    ----------
    sigma_step : HalfNormal, HalfCauchy or Fixed
        In the unit of the effects; ``Fixed(0)`` is the static model.
    """

    sigma_step: Prior = field(default_factory=lambda: HalfNormal(0.2))
    name: ClassVar = "sigma_step"

    @property
    def prior(self) -> Prior:
        """The prior of the size of the motion, which `name` names."""
        return self.sigma_step

    def start(self, sigma: np.ndarray) -> np.ndarray:
        """Return the variance in the first period, given the size, shape (row, 1)."""
        return np.zeros_like(sigma)

    def step(self, sigma: np.ndarray, gap: int) -> tuple[float, np.ndarray]:
        """Return slope and variance of the step over `gap` periods."""
        return 1.0, gap * np.square(sigma)


@dataclass(frozen=True)
class AutoRegression:
    """A genre's effect wanders around its level and returns to it, as an AR(1) process.

    Seen at whole periods this is the Ornstein-Uhlenbeck process, a Gaussian process with
    covariance sigma_drift² rho^|t - s|.

    Attributes
    ----------
    rho : float
        Correlation from one period to the next, at least 0 and below 1. It is given, not learned:
        compare several by their log evidence.
    sigma_drift : HalfNormal, HalfCauchy or Fixed
        Standard deviation around the level, in the unit of the effects.
    """

    rho: float = 0.8
    sigma_drift: Prior = field(default_factory=lambda: HalfNormal(0.3))
    name: ClassVar = "sigma_drift"

    def __post_init__(self) -> None:
        if not 0 <= self.rho < 1:
            raise ValueError(f"rho must be at least 0 and below 1, got {self.rho!r}")

    @property
    def prior(self) -> Prior:
        """The prior of the size of the motion, which `name` names."""
        return self.sigma_drift

    def start(self, sigma: np.ndarray) -> np.ndarray:
        """Return the variance in the first period, given the size, shape (row, 1)."""
        return np.square(sigma)

    def step(self, sigma: np.ndarray, gap: int) -> tuple[float, np.ndarray]:
        """Return slope and variance of the step over `gap` periods."""
        slope = self.rho**gap
        return slope, np.square(sigma) * (1 - slope) * (1 + slope)


#: Any process of a genre's effect in time.
Process = RandomWalk | AutoRegression

#: Genre means that do not move.
STATIC = RandomWalk(Fixed(0))


class Levels(NamedTuple):
    """What the periods of each genre say about its level, shapes (row, genre).

    `residual` is the log density, but for the constant, of the deviations from `mean`.
    """

    mean: np.ndarray
    weight: np.ndarray
    residual: np.ndarray


class Away(NamedTuple):
    """Where the genres are, given their levels: shapes (row, period, genre).

    Given the level l, mu_genre is normal with mean `mean` + l (1 - `pull`) and variance `var`.
    """

    mean: np.ndarray
    pull: np.ndarray
    var: np.ndarray


def levels(process: Process, sigma: np.ndarray, gaps: Sequence[int], weight, effect) -> Levels:
    """Reduce the periods of each genre to an estimate of its level, by a pass forward.

    Parameters
    ----------
    process : Process
    sigma : ndarray, shape (row, 1)
        Sizes of the motion.
    gaps : sequence of int
        Periods since the period before; the first is not used.
    weight, effect : callable
        Of the number of the period: the precision of each genre's mean estimate in it, 0 without
        data, and the mean estimate, shapes (row, genre).
    """
    mean = ones = 0.0
    var = process.start(sigma)
    total = xy = yy = log_weight = 0.0
    for t, gap in enumerate(gaps):
        if t:
            slope, noise = process.step(sigma, gap)
            mean, ones, var = slope * mean, slope * ones, slope**2 * var + noise
        w, y = weight(t), effect(t)
        growth = 1 + var * w
        precision = w / growth
        surprise, regressor = y - mean, 1 - ones
        weighted = precision * regressor
        total = total + weighted * regressor
        xy = xy + weighted * surprise
        yy = yy + precision * np.square(surprise)
        log_weight = log_weight + np.log(np.where(w > 0, precision, 1.0))
        gain = var * precision
        mean, ones, var = mean + gain * surprise, ones + gain * regressor, var / growth
    estimate = xy / total
    residual = 0.5 * (log_weight - np.log(total) - (yy - xy * estimate))
    return Levels(estimate, total, residual)


def smooth(process: Process, sigma: np.ndarray, gaps: Sequence[int], weight, effect) -> Away:
    """Return where the genres are in every period, given all periods, by a pass back.

    Parameters are those of `levels`. The pass back divides by no variance (de Jong 1989, Journal
    of the American Statistical Association 84, 1085-1088), for a random walk begins with none.
    """
    seen = []
    mean = ones = np.zeros_like(effect(0))
    var = np.broadcast_to(process.start(sigma), mean.shape)
    for t, gap in enumerate(gaps):
        slope, noise = process.step(sigma, gap) if t else (1.0, 0.0)
        mean, ones, var = slope * mean, slope * ones, slope**2 * var + noise
        w = weight(t)
        growth = 1 + var * w
        precision = w / growth
        weighted = precision * (effect(t) - mean), precision * (1 - ones)
        mean, ones, var = mean + var * weighted[0], ones + var * weighted[1], var / growth
        seen.append((slope, growth, precision, *weighted, mean, ones, var))
    result = Away(*np.empty((3, len(mean), len(seen), mean.shape[1])))
    later = later_ones = information = next_slope = 0.0
    for t in reversed(range(len(seen))):
        slope, growth, precision, surprise, regressor, mean, ones, var = seen[t]
        reach = next_slope * var
        result.mean[:, t] = mean + reach * later
        result.pull[:, t] = ones + reach * later_ones
        result.var[:, t] = np.maximum(var - np.square(reach) * information, 0.0)
        keep = next_slope / growth
        later = surprise + keep * later
        later_ones = regressor + keep * later_ones
        information = precision + np.square(keep) * information
        next_slope = slope
    return result


def simulate(
    process: Process,
    sigma: np.ndarray,
    gaps: Sequence[int],
    n_genres: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw how far the genres are away from their levels, shape (row, period, genre)."""
    paths = np.empty((len(sigma), len(gaps), n_genres))
    shape = paths[:, 0].shape
    paths[:, 0] = rng.normal(0.0, np.sqrt(process.start(sigma)), shape)
    for t, gap in enumerate(gaps[1:], 1):
        slope, noise = process.step(sigma, gap)
        paths[:, t] = rng.normal(slope * paths[:, t - 1], np.sqrt(noise), shape)
    return paths
