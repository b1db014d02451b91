"""Standard deviations as coordinates in which any posterior density dies away at both ends."""

from __future__ import annotations

import numpy as np
from scipy.integrate import simpson
from scipy.optimize import brentq
from scipy.special import sici

from hbm.exact.quadrature import log_density_of
from hbm.priors import Fixed, HalfCauchy, HalfNormal, Prior

#: How far a log density has to fall before it is cut off.
DROP = 20.0

#: Where a coordinate ends: the size is e^100 times its unit.
CEILING = 100.0

#: Points for each node where a density is interpolated.
_FINE = 20


class Axis:
    """A standard deviation as unit · sinh(y), y >= 0: linear near 0, logarithmic far from it.

    Everything depends on the square of a standard deviation, so the density is an even function
    of y if the prior is, and the end of the trapezoidal rule at 0 is no end. A value that is known
    is one node.

    Parameters
    ----------
    name : str
    prior : Prior
    unit, reach : float
        Finest and largest size that the data can tell.

    Raises
    ------
    TypeError
        If the prior is not one of those whose density is even.
    """

    def __init__(self, name: str, prior: Prior, unit: float = 1.0, reach: float = 1.0):
        if not isinstance(prior, HalfNormal | HalfCauchy | Fixed):
            raise TypeError(f"{name} needs a HalfNormal, HalfCauchy or Fixed prior, got {prior!r}")
        self.name, self.prior, self.unit = name, prior, unit
        self.free = not isinstance(prior, Fixed)
        self.low, self.high = 0.0, 1 + np.arcsinh(max(reach / unit, 1))
        self._log_prior = log_density_of(prior)

    def value(self, y):
        """Return the parameter at coordinates `y`."""
        return self.unit * np.sinh(y)

    def coordinate(self, value):
        """Return the coordinate of a value."""
        return np.arcsinh(np.maximum(value, 0) / self.unit)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Return the log prior density of the coordinate, half of it at the end at 0."""
        half = np.where(y == 0, np.log(0.5), 0.0)
        return np.log(self.unit * np.cosh(y)) + self._log_prior(self.value(y)) + half

    def nodes(self, intervals: int):
        """Return coordinates, values and log weights of equidistant nodes, prior included."""
        if not self.free:
            return np.zeros(1), np.array([float(self.prior.value)]), np.zeros(1)
        y = np.linspace(self.low, self.high, intervals + 1)
        return y, self.value(y), self.log_density(y) + np.log(y[1] - y[0])

    def zoom(self, profile: np.ndarray) -> bool:
        """Move the ends to where a log density at the nodes has died away; return if it has."""
        y = np.linspace(self.low, self.high, len(profile))
        inside = np.flatnonzero(profile > profile.max() - DROP)
        first, last, wide = inside[0], inside[-1], (y[-1] - y[0]) / 2
        below = first == 0 and self.low > 0.0
        above = last == len(y) - 1 and self.high < CEILING
        self.low = max(self.low - wide, 0.0) if below else y[max(first - 1, 0)]
        self.high = min(self.high + wide, CEILING) if above else y[min(last + 1, len(y) - 1)]
        return bool(last - first > len(y) // 2 and not below and not above)

    def even_part(self, y: np.ndarray) -> np.ndarray:
        """Return a measure of the coordinate whose average has no error from the end at 0."""
        return y * np.tanh(y)

    def moments(self, share: np.ndarray) -> tuple[float, float]:
        """Return mean and standard deviation of the parameter."""
        if not self.free:
            return float(self.prior.value), 0.0
        y, step = self._places(share)
        fine = np.linspace(self.low, self.high, _FINE * (len(share) - 1) + 1)
        density = np.sinc((fine[:, None] - y) / step) @ share
        if self.low == 0:  # beyond 0 is its mirror image
            density += np.sinc((fine[:, None] + y) / step) @ share
        x = self.value(fine)
        mean = simpson(x * density, x=fine) / step
        return mean, np.sqrt(simpson(np.square(x - mean) * density, x=fine) / step)

    def _places(self, share: np.ndarray) -> tuple[np.ndarray, float]:
        y = np.linspace(self.low, self.high, len(share))
        return y, y[1] - y[0]

    def cdf(self, share: np.ndarray, x: float) -> float:
        """Return the probability of a value of at most `x`, from the probabilities of the nodes.

        A density that the trapezoidal rule integrates is a sum of sinc functions at its nodes.
        """
        if not self.free:
            return float(x >= self.prior.value)
        (y, step), at = self._places(share), self.coordinate(x)
        below = share @ _sinc_cdf((at - y) / step)
        if self.low == 0:
            below += share @ _sinc_cdf((at + y) / step) - share.sum()
        return float(np.clip(below, 0, 1))

    def quantile(self, share: np.ndarray, probability: float) -> float:
        """Return the value below which so much probability lies."""
        if not self.free:
            return float(self.prior.value)

        def excess(y):
            return self.cdf(share, self.value(y)) - probability

        return float(self.value(brentq(excess, self.low, self.high, xtol=1e-12)))


def _sinc_cdf(x: np.ndarray) -> np.ndarray:
    """Integral of sinc from minus infinity to `x`."""
    return 0.5 + sici(np.pi * x)[0] / np.pi
