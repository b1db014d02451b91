"""Closed forms of the normal-normal hierarchy, given its hyperparameters.

With v_i = 1 / (sigma_creator² + se_i²), W_g the sum of v_i over the creators of genre g and
y_g their v-weighted mean effect, everything below follows from two facts: given the
hyperparameters the creators' estimates are normal around their genre's mean, and the genre
means are normal around the platform's mean (Gelman et al., *Bayesian Data Analysis*, 3rd ed.,
section 5.4).

Arrays of hyperparameters have the shape ``(draw,)``; results ``(draw, genre)`` or
``(draw, creator)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from hbm.intervals import LEVEL, tail_probabilities
from hbm.memory import Memory, Past, behind, merged


class Moments(NamedTuple):
    """Means and variances of independent normals, two arrays of one shape."""

    mean: np.ndarray
    var: np.ndarray

    def of(self, data: Estimates) -> Moments:
        """Return moments by genre, shape (draw, genre), for each creator of `data`."""
        return Moments(self.mean[:, data.genre_idx], self.var[:, data.genre_idx])


class Hyper(NamedTuple):
    """Draws of the hyperparameters, each of shape ``(draw,)``, in the unit of the effects.

    `sigma_creator` may have the shape ``(draw, genre)``, where genres have their own.
    """

    mu_global: np.ndarray
    sigma_genre: np.ndarray
    sigma_creator: np.ndarray


@dataclass(frozen=True)
class Estimates:
    """The data of the model as arrays, creators sorted by genre.

    Attributes
    ----------
    effect_hat, se : ndarray, shape (creator,)
        Estimates and their standard errors, in the order of `order`.
    genre_idx : ndarray of int, shape (creator,)
        Genre of each creator, ascending.
    order : ndarray of int, shape (creator,)
        Position of each sorted creator in the frame.
    n_genres : int
    covariates : ndarray, shape (creator, covariate), optional
        Standardised properties of the creators.
    memory : Memory, optional
        What past batches say of the same genres and of others.
    places : ndarray of int, shape (remembered genre,), optional
        Where the remembered genres stand; those without creators stand behind the others.
    """

    effect_hat: np.ndarray
    se: np.ndarray
    genre_idx: np.ndarray
    order: np.ndarray
    n_genres: int
    covariates: np.ndarray | None = None
    memory: Memory | None = None
    places: np.ndarray | None = None

    @classmethod
    def from_arrays(cls, effect_hat, se, genre_idx, covariates=None) -> Estimates:
        """Sort by genre; every genre from 0 to the largest needs a creator."""
        genre_idx = np.asarray(genre_idx, dtype=np.int64)
        order = np.argsort(genre_idx, kind="stable")
        return cls(
            effect_hat=np.asarray(effect_hat, float)[order],
            se=np.asarray(se, float)[order],
            genre_idx=genre_idx[order],
            order=order,
            n_genres=int(genre_idx.max()) + 1,
            covariates=None if covariates is None else np.asarray(covariates, float)[order],
        )

    @classmethod
    def from_frame(cls, summaries: pd.DataFrame, covariates=None) -> Estimates:
        """Take `effect_hat`, `se` and `genre_idx` of a valid summaries frame."""
        columns = (summaries[name] for name in ("effect_hat", "se", "genre_idx"))
        return cls.from_arrays(*columns, covariates=covariates)

    def remembering(self, memory: Memory | None, genres: Sequence[str]) -> Estimates:
        """Add what past batches say; `genres` are the names of this one's genres."""
        if memory is None:
            return self
        return replace(self, memory=memory, places=memory.places(genres[: self.n_genres]))

    @property
    def n_all(self) -> int:
        """Number of genres, with those that are only remembered."""
        return self.n_genres if self.memory is None else max(self.n_genres, *(self.places + 1))

    def take(self, block: slice | np.ndarray) -> Estimates:
        """Return some of the sorted creators; their genres keep their numbers."""
        return replace(
            self,
            effect_hat=self.effect_hat[block],
            se=self.se[block],
            genre_idx=self.genre_idx[block],
            order=self.order[block],
            covariates=None if self.covariates is None else self.covariates[block],
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """Position of the first creator of each genre."""
        return np.searchsorted(self.genre_idx, np.arange(self.n_genres))

    def by_genre(self, values: np.ndarray) -> np.ndarray:
        """Sum values of shape ``(…, creator)`` to shape ``(…, genre)``."""
        return np.add.reduceat(values, self.starts, axis=-1)

    def with_memory(self, sigma_creator: np.ndarray, mean: np.ndarray, weight: np.ndarray) -> Past:
        """Add what is remembered to what the creators say of their genres, (draw, genre)."""
        return merged(self.memory.at(sigma_creator), self.places, mean, weight, self.n_genres)

    def unsort(self, values: np.ndarray) -> np.ndarray:
        """Bring the last axis from genre order back to the order of the frame."""
        result = np.empty_like(values)
        result[..., self.order] = values
        return result


def renumbered(data: Estimates, kept: np.ndarray) -> Estimates:
    """Return some of the sorted creators, their genres numbered anew without gaps."""
    known, genre_idx = np.unique(data.genre_idx[kept], return_inverse=True)
    covariates = None if data.covariates is None else data.covariates[kept]
    some = Estimates.from_arrays(
        data.effect_hat[kept], data.se[kept], genre_idx, covariates=covariates
    )
    if data.memory is None:
        return some
    number = np.full(data.n_all, -1)
    number[known] = np.arange(len(known))
    return replace(some, memory=data.memory, places=behind(number[data.places], len(known)))


class GenreSums(NamedTuple):
    """What the creators of each genre say about its mean, shapes ``(draw, genre)``.

    `residual` is ½ Σ log v - ½ Σ v (d - mean)² - ½ log(weight), the part of the log density
    of the genre's estimates that does not depend on the genre's mean.
    """

    mean: np.ndarray
    weight: np.ndarray
    residual: np.ndarray


def genre_sums(data: Estimates, sigma_creator: np.ndarray) -> GenreSums:
    """Return weighted means, their precisions and the within-genre log density.

    The sums are centred at the genre's weighted mean: uncentred ones lose all digits when the
    effects lie far from 0.

    Parameters
    ----------
    data : Estimates
    sigma_creator : ndarray, shape (draw,) or (draw, genre)
    """
    v = 1.0 / (np.square(for_creators(sigma_creator, data)) + np.square(data.se))
    weight = data.by_genre(v)
    mean = data.by_genre(v * data.effect_hat) / weight
    deviation = data.effect_hat - mean[:, data.genre_idx]
    mean_correction = data.by_genre(v * deviation) / weight
    deviation -= mean_correction[:, data.genre_idx]
    residual = 0.5 * (data.by_genre(np.log(v) - v * np.square(deviation)) - np.log(weight))
    return GenreSums(mean + mean_correction, weight, residual)


def log_density(data: Estimates, hyper: Hyper) -> np.ndarray:
    """Log density of all estimates given the hyperparameters, shape ``(draw,)``.

    Genre and creator effects are integrated out; what is remembered counts as estimates do:
    log p(d | theta) = Σ_g residual_g + Σ_g log N(y_g | mu_global, sigma_genre² + 1/W_g)
    - ½ (N - G) log 2π.
    """
    sums = genre_sums(data, hyper.sigma_creator)
    residual = sums.residual.sum(axis=1)
    if data.memory is not None:
        sums = data.with_memory(hyper.sigma_creator, sums.mean, sums.weight)
        residual += sums.residual
    var = np.square(hyper.sigma_genre)[:, None] + 1.0 / sums.weight
    between = -0.5 * (
        np.log(2 * np.pi * var) + np.square(sums.mean - hyper.mu_global[:, None]) / var
    )
    n_within = len(data.effect_hat) - data.n_genres
    return residual + between.sum(axis=1) - 0.5 * n_within * np.log(2 * np.pi)


def genre_moments(data: Estimates, hyper: Hyper) -> Moments:
    """Moments of mu_genre given the hyperparameters and the data, shape ``(draw, genre)``.

    Genres that are only remembered come last.
    """
    sums = genre_sums(data, hyper.sigma_creator)
    if data.memory is not None:
        sums = data.with_memory(hyper.sigma_creator, sums.mean, sums.weight)
    # Written so that sigma_genre = 0 gives mean mu_global and variance 0.
    ratio = np.square(hyper.sigma_genre)[:, None] * sums.weight
    mu = hyper.mu_global[:, None]
    return Moments(
        mean=mu + (sums.mean - mu) * ratio / (1 + ratio),
        var=np.square(hyper.sigma_genre)[:, None] / (1 + ratio),
    )


def for_creators(sigma_creator: np.ndarray, data: Estimates) -> np.ndarray:
    """Bring sigma_creator, (draw,) or (draw, genre), to the shape (draw, 1) or (draw, creator)."""
    return sigma_creator[:, None] if sigma_creator.ndim == 1 else sigma_creator[:, data.genre_idx]


def shrinkage_factor(se: np.ndarray, sigma_creator: np.ndarray) -> np.ndarray:
    """Weight of the genre's mean, se² / (se² + sigma_creator²), shape ``(draw, creator)``.

    Parameters
    ----------
    se : ndarray, shape (creator,)
    sigma_creator : ndarray, shape (draw,) or (draw, creator)
    """
    return np.square(se) / (
        np.square(se) + np.square(sigma_creator.reshape(len(sigma_creator), -1))
    )


def creator_moments(
    data: Estimates, genre: Moments | np.ndarray, sigma_creator: np.ndarray
) -> Moments:
    """Moments of tau in the order of `data`, shape ``(draw, creator)``.

    Parameters
    ----------
    data : Estimates
    genre : Moments or ndarray, shape (draw, genre)
        Moments of mu_genre (integrated over), or its values (conditioned on); or anything else
        that gives the moments of each creator's center by ``genre.of(data)``.
    sigma_creator : ndarray, shape (draw,) or (draw, genre)
    """
    if isinstance(genre, np.ndarray):
        genre = Moments(genre, np.zeros_like(genre))
    center = genre.of(data)
    sigma = for_creators(sigma_creator, data)
    pull = shrinkage_factor(data.se, sigma)
    return Moments(
        mean=data.effect_hat + pull * (center.mean - data.effect_hat),
        var=np.square(sigma) * pull + np.square(pull) * center.var,
    )


def mixture_moments(moments: Moments, weights: np.ndarray | None = None) -> Moments:
    """Return mean and variance of a mixture over the first axis, by total expectation.

    Parameters
    ----------
    moments : Moments, shape (draw, unit)
    weights : ndarray, shape (draw,) or (draw, unit), optional
        Weights of the components, summing to 1; equal when omitted.
    """
    weights = _equal_unless_given(weights, moments)
    # Centred at a component, so that means far from 0 lose no digits.
    away = moments.mean - moments.mean[0]
    mean = _average(weights, away)
    spread = _average(weights, np.square(away - mean))
    return Moments(mean + moments.mean[0], _average(weights, moments.var) + spread)


def _equal_unless_given(weights: np.ndarray | None, moments: Moments) -> np.ndarray:
    n = len(moments.mean)
    return np.full(n, 1 / n) if weights is None else np.asarray(weights, float)


def _average(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return weights @ values if weights.ndim == 1 else np.einsum("du,du->u", weights, values)


def mixture_cdf(
    moments: Moments, x: np.ndarray | float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return P(unit <= x) under a mixture of normals over the first axis, shape ``(unit,)``."""
    z = (x - moments.mean) / np.sqrt(moments.var)
    return _average(_equal_unless_given(weights, moments), ndtr(z))


def mixture_quantile(
    moments: Moments, probability: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the quantile of a mixture of normals over the first axis, shape ``(unit,)``.

    Halley's method on the distribution function from the Cornish-Fisher expansion, kept inside
    a bracket that shrinks at every step, so that it cannot run away. Every step triples the
    digits, so a step below 1e-4 standard deviations of the narrowest component is the last: the
    result is good to about 1e-10 of them.
    """
    mean, sd = moments.mean, np.sqrt(moments.var)
    weights = _equal_unless_given(weights, moments)
    overall, z = mixture_moments(moments, weights), ndtri(probability)
    scale = np.sqrt(overall.var)
    enough = 1e-4 * sd.min(axis=0)
    offset = sd * z
    low, high = (mean + offset).min(axis=0), (mean + offset).max(axis=0)
    x = np.clip(overall.mean + scale * _cornish_fisher(moments, overall, weights, z), low, high)
    active = np.arange(len(x))
    for _ in range(100):
        m, s, at = mean[:, active], sd[:, active], x[active]
        weight = weights if weights.ndim == 1 else weights[:, active]
        z = (at - m) / s
        error = _average(weight, ndtr(z)) - probability
        error[np.abs(error) < 1e-15] = 0.0  # rounding; in a gap any point is the quantile
        high[active] = np.where(error > 0, at, high[active])
        low[active] = np.where(error > 0, low[active], at)
        density = np.exp(-0.5 * z * z) / (s * np.sqrt(2 * np.pi))
        slope = np.maximum(_average(weight, density), np.finfo(float).tiny)
        newton = error / slope
        bend = -0.5 * newton * _average(weight, density * z / s) / slope
        step = at - newton / np.clip(1 - bend, 0.5, 2.0)
        outside = (step < low[active]) | (step > high[active])
        x[active] = np.where(outside, 0.5 * (low[active] + high[active]), step)
        move = np.abs(x[active] - at)
        done = (move <= enough[active]) & ~outside & (np.abs(bend) < 1e-3)
        active = active[~done & (move > 1e-10 * scale[active])]
        if not len(active):
            break
    return x


def _cornish_fisher(
    moments: Moments, overall: Moments, weights: np.ndarray, z: float
) -> np.ndarray:
    """Quantile of the standardised mixture at the normal quantile `z`, by its four moments."""
    away, var = moments.mean - overall.mean, moments.var
    squared = np.square(away)
    skewness = _average(weights, away * (squared + 3 * var)) / overall.var**1.5
    fourth = _average(weights, squared * (squared + 6 * var) + 3 * var * var)
    kurtosis = fourth / overall.var**2 - 3
    return (
        z
        + (z * z - 1) * skewness / 6
        + (z**3 - 3 * z) * kurtosis / 24
        - (2 * z**3 - 5 * z) * np.square(skewness) / 36
    )


def mean_columns(moments: Moments, weights: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return what a mixture says of means, or of anything that is normal given the component.

    Parameters
    ----------
    moments : Moments, shape (component, unit)
    weights : ndarray, shape (component,), or None

    Returns
    -------
    dict of str to ndarray, shape (unit,)
        ``mean, se, lower, upper, p_positive``.
    """
    overall = mixture_moments(moments, weights)
    # Without grouping a sampled genre mean is its draw of mu_global, a point.
    moments = Moments(moments.mean, np.maximum(moments.var, 1e-12 * overall.var))
    lower, upper = tail_probabilities(LEVEL)
    return {
        "mean": overall.mean,
        "se": np.sqrt(overall.var),
        "lower": mixture_quantile(moments, lower, weights),
        "upper": mixture_quantile(moments, upper, weights),
        "p_positive": mixture_cdf(moments._replace(mean=-moments.mean), 0.0, weights),
    }
