"""A covariance of many estimates that is almost diagonal: D + Z B Zᵀ with few columns of Z.

Estimates that share something estimated (here: period effects) have correlated errors. With N
creators the matrix is never formed: it is kept, and inverted (Woodbury), by its parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

#: Parts of the low-rank term that are smaller than this share of the diagonal are left out.
NEGLIGIBLE = 1e-12

#: `StructuredCovariance.dense` refuses more creators than this.
MAX_DENSE = 5000


@dataclass(frozen=True)
class StructuredCovariance:
    """The matrix diag(diagonal) + factor · diag(core) · factorᵀ.

    Attributes
    ----------
    creator_id : ndarray, shape (creator,)
    diagonal : ndarray, shape (creator,)
        Greater than 0.
    factor : ndarray, shape (creator, rank)
    core : ndarray, shape (rank,)
        Not 0; negative where sharing makes errors cancel.
    """

    creator_id: np.ndarray
    diagonal: np.ndarray
    factor: np.ndarray
    core: np.ndarray

    @classmethod
    def from_parts(cls, creator_id, diagonal, factor, core) -> StructuredCovariance:
        """Reduce diag(diagonal) + factor · core · factorᵀ to as few columns as there need be.

        Parameters
        ----------
        creator_id, diagonal : array_like, shape (creator,)
        factor : array_like, shape (creator, k)
        core : array_like, shape (k, k)
            Symmetric.
        """
        creator_id, diagonal = np.asarray(creator_id), np.asarray(diagonal, float)
        if not (np.isfinite(diagonal).all() and (diagonal > 0).all()):
            raise ValueError("diagonal: every value must be finite and greater than 0")
        scale = np.sqrt(diagonal)[:, None]
        basis, triangle = np.linalg.qr(np.asarray(factor, float) / scale)
        inner = triangle @ np.asarray(core, float) @ triangle.T
        value, vector = np.linalg.eigh((inner + inner.T) / 2)
        kept = np.abs(value) > NEGLIGIBLE
        return cls(creator_id, diagonal, scale * (basis @ vector[:, kept]), value[kept])

    @classmethod
    def independent(cls, creator_id, se) -> StructuredCovariance:
        """Return the covariance of estimates that share nothing."""
        se = np.asarray(se, float)
        none = np.zeros((len(se), 0))
        return cls(np.asarray(creator_id), np.square(se), none, np.zeros(0))

    @property
    def rank(self) -> int:
        """Number of columns of the factor."""
        return len(self.core)

    @property
    def variance(self) -> np.ndarray:
        """The diagonal of the whole matrix."""
        return self.diagonal + np.square(self.factor) @ self.core

    def take(self, place: np.ndarray) -> StructuredCovariance:
        """Return the covariance of some creators, by position or mask."""
        return replace(
            self,
            creator_id=self.creator_id[place],
            diagonal=self.diagonal[place],
            factor=self.factor[place],
        )

    def scaled(self, factor: float) -> StructuredCovariance:
        """Return the covariance with all standard errors multiplied by `factor`."""
        square = factor * factor
        return replace(self, diagonal=self.diagonal * square, core=self.core * square)

    def dense(self, max_creators: int = MAX_DENSE) -> np.ndarray:
        """Return the whole matrix, (creator, creator); for few creators only.

        Raises
        ------
        ValueError
            If there are more than `max_creators`.
        """
        n = len(self.diagonal)
        if n > max_creators:
            raise ValueError(
                f"{n:,} creators give a matrix of {n * n * 8 / 1e9:.1f} GB; take() some, or raise "
                "max_creators"
            )
        return np.diag(self.diagonal) + (self.factor * self.core) @ self.factor.T

    def woodbury(self, v: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the middle matrix of the inverse, and log(det / det of the diagonal).

        With extra variance on the diagonal and v = 1 / (diagonal + extra), the inverse is
        diag(v) - (v · factor) · middle · (v · factor)ᵀ.

        Parameters
        ----------
        v : ndarray, shape (creator,)

        Returns
        -------
        middle : ndarray, shape (rank, rank)
        log_ratio : float
        """
        inner = np.eye(self.rank) + self.core[:, None] * (
            self.factor.T @ (v[:, None] * self.factor)
        )
        middle = np.linalg.solve(inner, np.diag(self.core))
        return (middle + middle.T) / 2, float(np.linalg.slogdet(inner)[1])
