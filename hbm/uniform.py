"""Is a sample uniform? The simultaneous band of its distribution function, and its p-value.

Band and p-value are two views of one test (Säilynoja, Bürkner & Vehtari 2022): at n - 1 places
the number of values up to there is binomial, and the smallest of all its tail probabilities is
the statistic. How small it gets by chance is computed exactly: given their total, the counts are
those of a Poisson process, whose steps are independent, so that the probability of staying within
limits is a product of convolutions (Moscovich & Nadler 2017, Statistics & Probability Letters
123, 177-182).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import bdtr
from scipy.stats import binom, poisson

from hbm.intervals import LEVEL

#: Probabilities of a step of the Poisson process; what is left out is below 1e-40.
_STEP = poisson.pmf(np.arange(36), 1.0)

#: Tail probabilities below this make no difference to a p-value, in double precision.
_SMALLEST = 1e-16


def uniform_pvalue(sample: np.ndarray) -> float:
    """Return the p-value of the hypothesis that a sample is independent and uniform on (0, 1).

    Parameters
    ----------
    sample : array-like, shape (n,)
        At least two values.

    Returns
    -------
    float
        Exact, but for rounding below 1e-12. At most ``1 - level`` exactly if the distribution
        function of the sample leaves `uniform_band` of that level.

    Raises
    ------
    ValueError
        If there are fewer than two values, or one lies outside of [0, 1].
    """
    values = np.sort(np.ravel(sample))
    n = len(values)
    if n < 2 or not (values[0] >= 0 and values[-1] <= 1):
        raise ValueError("a test of uniformity needs two or more values, all of them in [0, 1]")
    z = np.arange(1, n) / n
    count = np.searchsorted(values, z, side="right")
    tail = np.minimum(bdtr(count, n, z), bdtr(n - count, n, 1 - z)).min()
    return _outside(n, tail)


@cache
def uniform_band(n: int, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the band in which the distribution function of a uniform sample lies as a whole.

    Parameters
    ----------
    n : int
        Number of values, at least 2.
    level : float
        Probability that the whole function stays within the band, at least.

    Returns
    -------
    z, low, high : ndarray, shape (n - 1,)
        Places, and the smallest and largest share of values up to there that is inside.
    """
    if n < 2 or not 0 < level < 1:
        raise ValueError(f"a band needs n >= 2 and 0 < level < 1, got {n} and {level}")
    tail, above = (1 - level) / (4 * n), 0.5
    while above / tail > 1 + 1e-4:
        middle = np.sqrt(tail * above)
        if _outside(n, middle) <= 1 - level:
            tail = middle
        else:
            above = middle
    low = _lowest(n, tail)
    return np.arange(1, n) / n, low / n, 1 - low[::-1] / n


def _lowest(n: int, tail: float) -> np.ndarray:
    """Smallest counts up to each place whose lower tail probability is larger than `tail`.

    The largest whose upper tail is larger are their mirror image, n - lowest[::-1].
    """
    z = np.arange(1, n) / n
    low = binom.ppf(tail, n, z)
    return (low + (bdtr(low, n, z) <= tail * (1 + 1e-9))).astype(int)


def _outside(n: int, tail: float) -> float:
    """Probability that some tail probability of a uniform sample is at most `tail`."""
    low = _lowest(n, max(tail, _SMALLEST))
    high = n - low[::-1]
    if np.any(low > high):
        return 1.0
    first, inside = 0, np.ones(1)
    for lowest, highest in zip(low, high, strict=True):
        inside = np.convolve(inside, _STEP)[lowest - first : highest - first + 1]
        first = lowest
    last = n - first - np.arange(len(inside))
    return float(max(0.0, 1 - inside @ poisson.pmf(last, 1.0) / poisson.pmf(n, n)))
