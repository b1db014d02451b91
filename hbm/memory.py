"""What past batches say of the genres' means and of sigma_creator, without their creators.

Given a genre's mean mu and sigma_creator s, the log density of its estimates d_i is quadratic in
mu: with v_i = 1 / (s² + se_i²) it is -½ W (mu - c)² + B (mu - c) + S, where W = Σ v_i,
B = Σ v_i (d_i - c), and S is the log density at any fixed center c. That is all a batch can ever
say. All three are sums over creators, so that batches are added by adding them, and functions of
s alone. Times s² + scale² (S plus half its logarithm for each creator) they are smooth in
x = (s² - scale²) / (s² + scale²) on [-1, 1]: a few dozen Chebyshev coefficients hold them to
rounding, whatever s turns out to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

#: Coefficients at most: enough for standard errors that differ by a factor of 10,000.
MAX_COEFFICIENTS = 1024

#: What is left out of a series, relative to its size.
_TAIL = 1e-13

_LOG_2PI = float(np.log(2 * np.pi))


class Past(NamedTuple):
    """What is known at each sigma_creator: mean and weight (node, genre), residual (node,).

    The log density of the estimates given the genres' means mu is
    residual + Σ_g log Normal(mean_g | mu_g, 1 / weight_g).
    """

    mean: np.ndarray
    weight: np.ndarray
    residual: np.ndarray


@dataclass(frozen=True)
class Memory:
    """The density of past estimates as a function of sigma_creator and of the genres' means.

    Attributes
    ----------
    genres : tuple of str
        Names of the genres that are remembered.
    center : tuple of float
        The centers c, by genre, in the unit of the effects.
    n_creators : tuple of float
        How many creators the memory of each genre is worth, after all discounts.
    scale : float
        Where x is 0; a typical standard error.
    weight, toward : tuple of tuple of float
        Chebyshev coefficients in x, by genre, of (s² + scale²) W and of (s² + scale²) B.
    density : tuple of float
        Those of S + ½ n log(s² + scale²), summed over genres.
    """

    genres: tuple[str, ...]
    center: tuple[float, ...]
    n_creators: tuple[float, ...]
    scale: float
    weight: tuple[tuple[float, ...], ...]
    toward: tuple[tuple[float, ...], ...]
    density: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        names = self.genres
        if not names or len(set(names)) < len(names) or {type(name) for name in names} != {str}:
            raise ValueError(f"Memory: genres must be distinct names, got {names}")
        if {len(getattr(self, name)) for name in ("center", *_ADDED[:-1])} != {len(names)}:
            raise ValueError("Memory: center, n_creators, weight and toward need an entry a genre")
        rows = [self.center, self.n_creators, (self.scale,), self.density]
        if not all(row and np.isfinite(row).all() for row in (*rows, *self.weight, *self.toward)):
            raise ValueError("Memory: every entry must be a finite number")
        if not min(self.scale, *self.n_creators) > 0:
            raise ValueError("Memory: scale and n_creators must be greater than 0")
        if not (chebyshev.chebval(np.linspace(-1, 1, 65), self._series("weight")) > 0).all():
            raise ValueError("Memory: every weight must be greater than 0")

    @classmethod
    def of(
        cls,
        sums: Callable[[np.ndarray], Past],
        genres: Sequence[str],
        center: np.ndarray,
        n_creators: np.ndarray,
        scale: float,
    ) -> Memory:
        """Remember a batch.

        Parameters
        ----------
        sums : callable
            What the batch says at values of sigma_creator, shape (node,); means are distances
            from the centers, so that effects far from 0 lose no digits.
        genres : sequence of str
        center, n_creators : ndarray, shape (genre,)
        scale : float
            As in `Memory`.

        Raises
        ------
        ValueError
            If the standard errors differ by so much that `MAX_COEFFICIENTS` do not do.
        """
        order = 16
        while order <= MAX_COEFFICIENTS:
            # Chebyshev's points of the first kind, x = cos(angle); x = -1 is s = 0.
            angle = np.pi * (np.arange(order) + 0.5) / order
            sigma = scale / np.tan(angle / 2)
            total = np.square(sigma) + scale**2
            away, weight, residual = sums(sigma)
            toward = weight * away
            density = residual + 0.5 * (np.log(weight) - _LOG_2PI - toward * away).sum(axis=1)
            density += 0.5 * np.sum(n_creators) * np.log(total)
            values = np.column_stack([weight * total[:, None], toward * total[:, None], density])
            series = np.cos(np.outer(np.arange(order), angle)) @ values * (2 / order)
            series[0] /= 2
            size = np.abs(series).max(axis=0)
            # B can be next to 0 everywhere: what matters is its size in standard errors.
            n_genres = len(genres)
            unit = np.abs(away).max(axis=0) + 1 / np.sqrt(weight.max(axis=0))
            size[n_genres:-1] = size[:n_genres] * unit
            large = (np.abs(series) > _TAIL * size).any(axis=1)
            kept = order - int(large[::-1].argmax())
            if kept <= order - 8:
                parts = series[:kept].T
                names = {"weight": parts[:n_genres], "toward": parts[n_genres:-1]}
                return cls(genres, center, n_creators, scale, density=parts[-1], **names)
            order *= 2
        raise ValueError(
            "the standard errors differ by so much that a memory cannot hold them; look at the "
            "smallest and the largest"
        )

    def at(self, sigma_creator: np.ndarray) -> Past:
        """Return what is remembered at values of sigma_creator, shape (node,)."""
        total = np.square(sigma_creator) + self.scale**2
        x = 1 - 2 * self.scale**2 / total
        weight, toward = (
            chebyshev.chebval(x, self._series(name)).T / total[:, None]
            for name in ("weight", "toward")
        )
        density = chebyshev.chebval(x, self._series("density"))
        return self._past(weight, toward, density - 0.5 * sum(self.n_creators) * np.log(total), np)

    def pymc(self, sigma_creator) -> Past:
        """Return the same for a PyTensor scalar, shapes (genre,), (genre,) and ()."""
        import pytensor.tensor as pt

        total = sigma_creator**2 + self.scale**2
        angle = 2 * pt.arctan2(self.scale, sigma_creator)  # x is its cosine

        def value(name):
            series = self._series(name)
            return pt.dot(pt.cos(np.arange(len(series)) * angle), series)

        density = value("density") - 0.5 * sum(self.n_creators) * pt.log(total)
        return self._past(value("weight") / total, value("toward") / total, density, pt)

    def _past(self, weight, toward, density, library) -> Past:
        half = toward**2 / weight - library.log(weight) + _LOG_2PI
        mean = np.array(self.center) + toward / weight
        return Past(mean, weight, density + 0.5 * half.sum(axis=-1))

    @cached_property
    def _coefficients(self) -> dict[str, np.ndarray]:
        return {
            "weight": _padded(self.weight).T,
            "toward": _padded(self.toward).T,
            "density": np.array(self.density),
        }

    def _series(self, name: str) -> np.ndarray:
        """Coefficients in the order that NumPy wants them: one row a power."""
        return self._coefficients[name]

    def discounted(self, discount: float) -> Memory | None:
        """Return the memory with its log density times `discount`; None if nothing is left."""
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must lie between 0 and 1, got {discount}")
        if not discount:
            return None
        return replace(
            self,
            n_creators=discount * np.array(self.n_creators),
            **{name: (discount * self._series(name)).T for name in ("weight", "toward", "density")},
        )

    def plus(self, other: Memory) -> Memory:
        """Return the memory of both.

        Raises
        ------
        ValueError
            If their scales differ, or the centers of a genre that both know.
        """
        center = dict(zip(other.genres, other.center, strict=True)) | self.centers
        if self.scale != other.scale or any(
            center[genre] != c for genre, c in zip(other.genres, other.center, strict=True)
        ):
            raise ValueError("memories with other scales or centers cannot be added")
        genres = (*self.genres, *(genre for genre in other.genres if genre not in self.centers))

        def both(name: str) -> list:
            by_genre = [dict(zip(m.genres, getattr(m, name), strict=True)) for m in (self, other)]
            return [_sum(*(known[g] for known in by_genre if g in known)) for g in genres]

        return Memory(
            genres=genres,
            center=[center[genre] for genre in genres],
            scale=self.scale,
            density=_sum(self.density, other.density),
            **{name: both(name) for name in _ADDED[:-1]},
        )

    @property
    def centers(self) -> dict[str, float]:
        """The center of each genre."""
        return dict(zip(self.genres, self.center, strict=True))

    def places(self, genres: Sequence[str]) -> np.ndarray:
        """Return where each remembered genre stands in `genres`, or else behind them, in order."""
        known = {str(genre): place for place, genre in enumerate(genres)}
        return behind(np.array([known.get(genre, -1) for genre in self.genres]), len(known))


#: What is added when batches are; the last is by sigma_creator only.
_ADDED = ("n_creators", "weight", "toward", "density")


def behind(places: np.ndarray, n_genres: int) -> np.ndarray:
    """Give whoever has no place (-1) one behind the `n_genres`, in order."""
    missing = places < 0
    return np.where(missing, n_genres - 1 + np.cumsum(missing), places)


def merged(past: Past, places: np.ndarray, mean, weight, n_genres: int, library=np) -> Past:
    """Add what a batch says to what is remembered.

    Parameters
    ----------
    past : Past
    places : ndarray of int, shape (remembered genre,)
        Where the remembered genres stand among those of the batch (`Memory.places`).
    mean, weight : ndarray, shape (…, genre)
        What the batch says, as `Past` does.
    n_genres : int
        Number of genres of the batch.
    library : module
        NumPy or ``pytensor.tensor``.

    Returns
    -------
    Past
        Of all genres, those of the batch first. Its residual comes on top of the batch's own.
    """
    n_all = max(n_genres, int(places.max()) + 1)
    old, new = np.eye(n_all)[places], np.eye(n_genres, n_all)
    old_weight, new_weight, new_mean = past.weight @ old, weight @ new, mean @ new
    total = old_weight + new_weight
    gap = past.mean @ old - new_mean
    shared = places[places < n_genres]
    precision = (old_weight * new_weight / total)[..., shared]
    agreement = library.log(precision) - _LOG_2PI - precision * gap[..., shared] ** 2
    return Past(
        new_mean + gap * old_weight / total, total, past.residual + 0.5 * agreement.sum(axis=-1)
    )


def _frozen(value):
    """Numbers and names as they are, and anything longer as nested tuples of Python's own."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_frozen(part) for part in value)
    return value


def _padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    padded = np.zeros((len(rows), max(map(len, rows))))
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _sum(*parts):
    """Sum numbers, or series of any length."""
    if not isinstance(parts[0], tuple):
        return sum(parts)
    return _padded(parts).sum(axis=0)
