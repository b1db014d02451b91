"""The density of the estimates given both standard deviations, in closed form.

Given sigma_creator the creators of a genre boil down to a weighted mean and its precision; given
sigma_genre too, the genres' means are normal around mu_global, which has a normal prior and is
integrated out. Only the first step touches every creator.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hbm.gaussian import Estimates, Moments, renumbered
from hbm.priors import Normal

_BLOCK = 400_000
LOG_2PI = np.log(2 * np.pi)


class Sums(NamedTuple):
    """What the creators say at each sigma_creator: `mean, weight` (node, genre) of the genres.

    `residual` (node,) is the log density of the deviations of the creators' estimates from
    the weighted means of their genres.
    """

    mean: np.ndarray
    weight: np.ndarray
    residual: np.ndarray

    def with_new_genre(self) -> Sums:
        """Append a genre without creators."""
        none = np.zeros_like(self.mean[:, :1])
        mean, weight = (np.concatenate([part, none], axis=1) for part in self[:2])
        return self._replace(mean=mean, weight=weight)


class Likelihood:
    """The density of the estimates given both standard deviations, mu_global integrated out."""

    def __init__(self, data: Estimates, mu_global: Normal):
        self.data, self.prior = data, mu_global
        self.prior_mean, self.prior_var = mu_global.mu, mu_global.sigma**2
        self.variance = np.square(data.se)
        self.counts = np.diff(data.starts, append=len(data.se))
        self.alone = bool(np.all(self.counts == 1)) and data.n_genres > 1 and data.memory is None
        self.reach = max(np.ptp(data.effect_hat), data.se.max())
        # Centred once by genre, so that effects far from 0 lose no digits.
        self.center = data.by_genre(data.effect_hat / self.variance) / data.by_genre(
            1 / self.variance
        )
        self.effect = data.effect_hat - self.center[data.genre_idx]

    def sample(self) -> Likelihood | None:
        """Take every so many genres, and creators of each; return None where there are few."""
        data = self.data
        by_genre = -(-data.n_genres // 1000)
        by_creator = max(1, len(data.se) // by_genre // 20_000)
        if by_genre == by_creator == 1:
            return None
        place = np.arange(len(data.se)) - data.starts[data.genre_idx]
        kept = (data.genre_idx % by_genre == 0) & (place % by_creator == 0)
        return self.subset(kept)

    def subset(self, kept: np.ndarray) -> Likelihood:
        """Return the likelihood of some creators, their genres numbered anew without gaps."""
        return Likelihood(renumbered(self.data, kept), self.prior)

    def sums(self, sigma_creator: np.ndarray) -> Sums:
        """Return the sums over creators, `sigma_creator` of shape (node,)."""
        data, n_nodes = self.data, len(sigma_creator)
        mean, weight = np.empty((2, n_nodes, data.n_genres))
        residual = np.empty(n_nodes)
        step = max(1, _BLOCK // len(self.effect))
        for start in range(0, n_nodes, step):
            block = slice(start, start + step)
            total = np.square(sigma_creator[block])[:, None] + self.variance
            v = 1 / total
            weight[block] = data.by_genre(v)
            mean[block] = data.by_genre(v * self.effect) / weight[block]
            deviation = self.effect - mean[block][:, data.genre_idx]
            v *= np.square(deviation, out=deviation)
            v += np.log(total, out=total)
            residual[block] = v.sum(axis=1) + np.log(weight[block]).sum(axis=1)
        constant = (len(self.effect) - data.n_genres) * LOG_2PI
        mean, residual = mean + self.center, -0.5 * (residual + constant)
        if data.memory is None:
            return Sums(mean, weight, residual)
        both = data.with_memory(sigma_creator, mean, weight)
        return Sums(both.mean, both.weight, residual + both.residual)

    def given(self, sums: Sums, sigma_genre: np.ndarray):
        """Return log density and the moments of mu_global, shape (node, inner).

        Parameters
        ----------
        sums : Sums
        sigma_genre : ndarray, shape (node, inner)
        """
        log_density, mu_mean, mu_var = np.empty((3, *sigma_genre.shape))
        step = max(1, _BLOCK // (sums.mean.shape[1] * sigma_genre.shape[1]))
        for start in range(0, len(sigma_genre), step):
            block = slice(start, start + step)
            some = type(sums)(*(part[block] for part in sums))
            result = self._given(some, sigma_genre[block])
            log_density[block], mu_mean[block], mu_var[block] = result
        return log_density, mu_mean, mu_var

    def _given(self, sums: Sums, sigma_genre: np.ndarray):
        # The genres come first: sums over a short last axis are slow.
        weight = sums.weight.T[:, :, None]
        w = weight / (1 + np.square(sigma_genre) * weight)
        total = w.sum(axis=0)
        origin = sums.mean[:, :1]
        offset = (sums.mean - origin).T[:, :, None]
        mean = (w * offset).sum(axis=0) / total
        squared = (w * np.square(offset - mean)).sum(axis=0)
        var = self.prior_var + 1 / total
        away = origin + mean - self.prior_mean
        log_density = 0.5 * (
            2 * sums.residual[:, None]
            + np.log(w).sum(axis=0)
            - np.log(total)
            - squared
            - np.log(var)
            - np.square(away) / var
            - len(weight) * LOG_2PI
        )
        mu_mean = origin + mean - away / (var * total)
        return log_density, mu_mean, self.prior_var / (var * total)

    def centers(self, sums: Sums, sigma_genre: np.ndarray, mu: Moments) -> Moments:
        """Return the moments of mu_genre given both standard deviations, shape (node, genre).

        Parameters
        ----------
        sums : Sums, shape (node, genre)
        sigma_genre : ndarray, shape (node,)
        mu : Moments, shape (node,)
            What is known of mu_global; with variance 0 it is conditioned on.
        """
        ratio = np.square(sigma_genre)[:, None] * sums.weight
        mean = mu.mean[:, None] + (sums.mean - mu.mean[:, None]) * ratio / (1 + ratio)
        var = np.square(sigma_genre)[:, None] / (1 + ratio) + mu.var[:, None] / np.square(1 + ratio)
        return Moments(mean, var)

    def draw(self, rng: np.random.Generator, sums: Sums, sigma_genre: np.ndarray):
        """Draw mu_global (draw,) and mu_genre (draw, genre) given both standard deviations.

        The third result gives the centers of the creators by its ``of(data)``.
        """
        _, mean, var = (part[:, 0] for part in self.given(sums, sigma_genre[:, None]))
        mu_global = rng.normal(mean, np.sqrt(var))
        genre = self.centers(sums, sigma_genre, Moments(mu_global, np.zeros_like(mu_global)))
        mu_genre = rng.normal(genre.mean, np.sqrt(genre.var))
        return mu_global, mu_genre, Moments(mu_genre, np.zeros_like(mu_genre))
