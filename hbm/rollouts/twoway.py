"""Two-way fixed effects by sparse least squares, and the errors that they leave.

y = alpha[creator] + beta[period] + error, error variance proportional to 1 / weight. The normal
equations are sparse: creators meet in periods only. Eliminating the creators leaves one equation
a period, whose matrix is the Laplacian of the graph that joins periods by shared creators. So a
million rows need no iteration, and the same small inverse gives the weights of every estimate
that is linear in the outcomes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import toeplitz
from scipy.optimize import minimize_scalar

#: The autocorrelation is sought between these bounds.
MAX_RHO = 0.999

_BLOCK = 2_000_000


class Errors(NamedTuple):
    """Error of an observation of weight w: Normal(0, sigma / sqrt(w)), correlated within creators.

    The standardised errors of a creator are AR(1): observations k periods apart have the
    correlation rho^k. `df` are the degrees of freedom behind `sigma`.
    """

    sigma: float
    rho: float
    df: int


class TwoWay:
    """Least squares of outcomes on creator and period effects.

    Parameters
    ----------
    creator, period : ndarray of int, shape (row,)
        Rows sorted by creator and period.
    weight : ndarray, shape (row,)
    n_creators, n_periods : int

    Attributes
    ----------
    share : csr_array, shape (creator, period)
        Weights of a creator's rows, summing to 1; a creator without rows has none.
    total : ndarray, shape (creator,)
        Sum of weights.
    inverse : ndarray, shape (period, period)
        Pseudo-inverse of the Laplacian.
    part : ndarray of int, shape (creator + period,)
        Connected component: effects can be compared within a component only.
    """

    def __init__(self, creator, period, weight, n_creators: int, n_periods: int):
        self.creator, self.period, self.weight = creator, period, weight
        self.n_creators, self.n_periods = n_creators, n_periods
        shape = n_creators, n_periods
        weights = sparse.csr_array((weight, (creator, period)), shape=shape)
        self.total = np.bincount(creator, weight, n_creators)
        self.share = sparse.csr_array(
            (weight / self.total[creator], (creator, period)), shape=shape
        )
        graph = sparse.block_array([[None, weights], [weights.T, None]])
        self.part = sparse.csgraph.connected_components(graph, directed=False)[1]
        # Parts with a period; the effects of each are known up to a constant.
        n_null = len(np.unique(self.part[n_creators:]))
        laplacian = -(weights.T @ self.share).toarray()
        laplacian[np.diag_indices(n_periods)] += np.bincount(period, weight, n_periods)
        value, vector = np.linalg.eigh((laplacian + laplacian.T) / 2)
        value, vector = value[n_null:], vector[:, n_null:]
        self.inverse = (vector / value) @ vector.T
        self.df = len(creator) - int((self.total > 0).sum()) - (n_periods - n_null)

    def demean(self, values: np.ndarray) -> np.ndarray:
        """Subtract each creator's weighted mean."""
        total = np.bincount(self.creator, self.weight * values, self.n_creators)
        return values - (total / np.where(self.total > 0, self.total, 1))[self.creator]

    def fit(self, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return creator effects (creator,) and period effects (period,).

        Only sums of the two within one component are determined.
        """
        right = np.bincount(self.period, self.weight * self.demean(outcome), self.n_periods)
        beta = self.inverse @ right
        mean = np.bincount(self.creator, self.weight * outcome, self.n_creators)
        return mean / np.where(self.total > 0, self.total, 1) - self.share @ beta, beta

    def residual(self, outcome: np.ndarray) -> np.ndarray:
        """Return what the two effects leave, shape (row,)."""
        alpha, beta = self.fit(outcome)
        return outcome - alpha[self.creator] - beta[self.period]

    def influence(self, by_creator: np.ndarray, by_period: np.ndarray) -> np.ndarray:
        """Return the weight of each row's outcome in Σ by_creator · alpha + Σ by_period · beta.

        Parameters
        ----------
        by_creator : ndarray, shape (creator,)
        by_period : ndarray, shape (period,)
        """
        slope = self.inverse @ (by_period - self.share.T @ by_creator)
        level = by_creator / np.where(self.total > 0, self.total, 1) - self.share @ slope
        return self.weight * (level[self.creator] + slope[self.period])

    def period_covariance(self, rho: float) -> np.ndarray:
        """Covariance of the period effects for sigma = 1, shape (period, period).

        With independent errors that is the pseudo-inverse itself.
        """
        if rho == 0:
            return self.inverse
        shape = self.n_creators, self.n_periods
        root = np.sqrt(self.weight)
        roots = sparse.csr_array((root, (self.creator, self.period)), shape=shape)
        around = correlation(self.n_periods, rho)
        spread = root * self._smooth(roots, around)
        spreads = sparse.csr_array((spread, (self.creator, self.period)), shape=shape)
        total = np.bincount(self.creator, spread, self.n_creators)
        cross = (spreads.T @ self.share).toarray()
        middle = (roots.T @ roots).toarray() * around - cross - cross.T
        middle += (self.share.T @ (total[:, None] * self.share)).toarray()
        return self.inverse @ middle @ self.inverse

    def _smooth(self, roots: sparse.csr_array, around: np.ndarray) -> np.ndarray:
        """Return the entries of roots · around at the rows, a block of creators at a time."""
        result = np.empty(len(self.creator))
        step = max(1, _BLOCK // self.n_periods)
        for first in range(0, self.n_creators, step):
            low, high = np.searchsorted(self.creator, [first, first + step])
            block = roots[first : first + step] @ around
            result[low:high] = block[self.creator[low:high] - first, self.period[low:high]]
        return result


def correlation(n_periods: int, rho: float) -> np.ndarray:
    """Return the correlations rho^|s - t| of AR(1) errors, shape (period, period)."""
    return toeplitz(np.power(float(rho), np.arange(n_periods)))


def estimate_errors(fit: TwoWay, residual: np.ndarray, rho: float | None = None) -> Errors:
    """Estimate one error model for all creators from the residuals of a fit.

    Residuals are correlated among themselves because the creator's mean was taken from them, which
    biases the plain autocorrelation of short series downward. Restricted maximum likelihood
    [1]_ uses only contrasts within creators and is free of that.

    Parameters
    ----------
    fit : TwoWay
    residual : ndarray, shape (row,)
    rho : float, optional
        Autocorrelation, taken as known; estimated when omitted.

    Raises
    ------
    ValueError
        If no degree of freedom or no residual is left.

    References
    ----------
    .. [1] Patterson, H. D. and Thompson, R. (1971). Recovery of inter-block information when
       block sizes are unequal. Biometrika 58, 545-554.
    """
    if fit.df < 1:
        raise ValueError(
            "no degrees of freedom are left to estimate the errors: more untreated rows are needed"
        )
    scale = np.sqrt(np.average(np.square(residual), weights=fit.weight))
    if not scale > 0:
        raise ValueError("the untreated outcomes leave no residuals: there is no error to estimate")
    contrasts = _Contrasts(fit, residual)
    if rho is None:
        repeated = np.bincount(fit.creator, minlength=fit.n_creators).max() > 2
        rho = contrasts.best_rho() if repeated else 0.0
    squares, *_ = contrasts(rho)
    return Errors(float(np.sqrt(squares / fit.df)), float(rho), fit.df)


class _Contrasts:
    """The restricted likelihood of residuals whose creators have unknown levels."""

    def __init__(self, fit: TwoWay, residual: np.ndarray):
        root = np.sqrt(fit.weight)
        self.values = np.stack([residual * root, root])
        self.opens = np.flatnonzero(np.diff(fit.creator, prepend=-1))
        self.gap = np.diff(fit.period, prepend=0)
        self.gap[self.opens] = 1
        self.n = len(residual) - len(self.opens)

    def __call__(self, rho: float) -> tuple[float, float]:
        """Return the sum of squares, and minus twice the log likelihood with sigma profiled."""
        pull = np.power(rho, self.gap)
        pull[self.opens] = 0.0
        var = 1 - np.square(pull)
        before = np.roll(self.values, 1, axis=1)
        y, one = (self.values - pull * before) / np.sqrt(var)
        yy, y1, oo = (np.add.reduceat(part, self.opens) for part in (y * y, y * one, one * one))
        squares = float((yy - y1 * y1 / oo).sum())
        # A creator with one row says nothing of sigma or rho: its terms cancel.
        log_det = np.log(var).sum() + np.log(oo / self.values[1, self.opens] ** 2).sum()
        return squares, self.n * np.log(squares) + log_det

    def best_rho(self) -> float:
        """Return the autocorrelation of the largest likelihood."""
        found = minimize_scalar(
            lambda rho: self(rho)[1],
            bounds=(-MAX_RHO, MAX_RHO),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return float(found.x)
