"""The one level and kind of interval, equal-tailed, 95%, and the one error of a share."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

#: Probability that every interval of the book is meant to hold.
LEVEL = 0.95


def tail_probabilities(level: float = LEVEL) -> tuple[float, float]:
    """Return the lower and upper probabilities of the equal-tailed interval."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return (1 - level) / 2, (1 + level) / 2


def normal_factor(level: float = LEVEL) -> float:
    """Return the half width of a normal interval in standard errors (1.96 for 95%)."""
    return float(ndtri(tail_probabilities(level)[1]))


def share_error(hits, n):
    """Return the standard error of the share of `hits` in `n`, not 0 where it is all or none.

    That of Jeffreys' posterior: the standard deviation of Beta(hits + 1/2, n - hits + 1/2).

    Parameters
    ----------
    hits, n : float or array-like
    """
    return np.sqrt((hits + 0.5) * (n - hits + 0.5) / (n + 2)) / (n + 1)
