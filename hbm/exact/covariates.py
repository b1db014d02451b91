"""Creators whose effects go with what is known of them: a regression inside the hierarchy.

tau[i] ~ Normal(mu_genre[g_i] + x_i · slope, sigma_creator), slope[k] ~ Normal. Given both
standard deviations, mu_global and the slopes are jointly normal, so they are integrated out
like mu_global alone. Covariates are standardised, so that mu_genre stays the mean of an average
creator and slopes are in dollars per user and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hbm.exact.likelihood import Likelihood, Sums
from hbm.gaussian import Estimates, Moments, renumbered
from hbm.priors import Normal


class CovariateSums(NamedTuple):
    """`Sums`, and what the creators say of the slopes.

    `x` (node, genre, covariate) are the weighted means of the covariates; `xx` (node, covariate,
    covariate) and `xd` (node, covariate) the weighted products within genres, of the covariates
    with each other and with the estimates.
    """

    mean: np.ndarray
    weight: np.ndarray
    residual: np.ndarray
    x: np.ndarray
    xx: np.ndarray
    xd: np.ndarray

    def with_new_genre(self) -> CovariateSums:
        """Append a genre without creators."""
        x = np.concatenate([self.x, np.zeros_like(self.x[:, :1])], axis=1)
        padded = Sums(*self[:3]).with_new_genre()
        return self._replace(mean=padded.mean, weight=padded.weight, x=x)


@dataclass(frozen=True)
class Centers:
    """Moments of mu_genre + x · slope, for genres (where x is 0) and for creators.

    Attributes
    ----------
    mean, var : ndarray, shape (node, genre)
    slope : Moments, shape (node, covariate)
    covariance : ndarray, shape (node, genre, covariate)
        Of mu_genre and the slopes.
    slopes : ndarray, shape (node, covariate, covariate)
        Covariance of the slopes with each other.
    """

    mean: np.ndarray
    var: np.ndarray
    slope: Moments
    covariance: np.ndarray
    slopes: np.ndarray

    def of(self, data: Estimates) -> Moments:
        """Return the moments of each creator's center, shape (node, creator)."""
        x, idx = data.covariates, data.genre_idx
        mean = self.mean[:, idx] + self.slope.mean @ x.T
        cross = np.einsum("kip,ip->ki", self.covariance[:, idx], x)
        own = np.einsum("ip,kpq,iq->ki", x, self.slopes, x, optimize=True)
        return Moments(mean, np.maximum(self.var[:, idx] + 2 * cross + own, 0.0))


class CovariateLikelihood(Likelihood):
    """The density of the estimates given both standard deviations, slopes integrated out.

    Parameters
    ----------
    data : Estimates
        With standardised covariates.
    mu_global, slope : Normal
        Priors; all slopes have the same.
    """

    def __init__(self, data: Estimates, mu_global: Normal, slope: Normal):
        super().__init__(data, mu_global)
        self.slope = slope
        n_slopes = data.covariates.shape[1]
        # Everything below is relative to one origin, so that effects far from 0 lose no digits.
        self.origin = self.center[0]
        self.prior_means = np.array([mu_global.mu - self.origin] + [slope.mu] * n_slopes)
        self.prior_precisions = np.array([mu_global.sigma] + [slope.sigma] * n_slopes) ** -2.0

    def subset(self, kept: np.ndarray) -> CovariateLikelihood:
        return CovariateLikelihood(renumbered(self.data, kept), self.prior, self.slope)

    def sums(self, sigma_creator: np.ndarray) -> CovariateSums:
        plain = super().sums(sigma_creator)
        covariates, idx = self.data.covariates, self.data.genre_idx
        n_nodes, (_, n_slopes) = len(sigma_creator), covariates.shape
        x = np.empty((n_nodes, self.data.n_genres, n_slopes))
        xx, xd = np.empty((n_nodes, n_slopes, n_slopes)), np.empty((n_nodes, n_slopes))
        for k, sigma in enumerate(sigma_creator):
            v = 1 / (sigma**2 + self.variance)
            x[k] = self.data.by_genre(v * covariates.T).T / plain.weight[k][:, None]
            away = covariates - x[k][idx]
            deviation = self.effect - (plain.mean[k] - self.center)[idx]
            weighted = v[:, None] * away
            xx[k], xd[k] = weighted.T @ away, weighted.T @ deviation
        return CovariateSums(*plain, x, xx, xd)

    def coefficients(self, sums: CovariateSums, sigma_genre: np.ndarray):
        """Return mean, covariance and precision of (mu_global - origin, slopes) given the data.

        Parameters
        ----------
        sums : CovariateSums, shape (node, …)
        sigma_genre : ndarray, shape (node, inner)
        """
        w, z, d = self._by_genre(sums, sigma_genre)
        precision = np.einsum("njg,ngp,ngq->njpq", w, z, z, optimize=True)
        precision[..., 1:, 1:] += sums.xx[:, None]
        toward = np.einsum("njg,ngp->njp", w * d, z)
        toward[..., 1:] += sums.xd[:, None]
        diagonal = np.arange(len(self.prior_means))
        precision[..., diagonal, diagonal] += self.prior_precisions
        toward += self.prior_precisions * self.prior_means
        covariance = np.linalg.inv(precision)
        return np.einsum("njpq,njq->njp", covariance, toward), covariance, precision

    def _by_genre(self, sums: CovariateSums, sigma_genre: np.ndarray):
        """Precision, design and mean of what each genre says of the coefficients."""
        weight = sums.weight[:, None, :]
        w = weight / (1 + np.square(sigma_genre)[:, :, None] * weight)
        z = np.concatenate([np.ones_like(sums.x[..., :1]), sums.x], axis=2)
        return w, z, (sums.mean - self.origin)[:, None, :]

    def _given(self, sums: CovariateSums, sigma_genre: np.ndarray):
        w, z, d = self._by_genre(sums, sigma_genre)
        mean, covariance, precision = self.coefficients(sums, sigma_genre)
        slope = mean[..., 1:]
        # The sum of squares at the mean of the coefficients: within genres, between, prior.
        squared = (
            np.einsum("njp,npq,njq->nj", slope, sums.xx, slope, optimize=True)
            - 2 * np.einsum("njp,np->nj", slope, sums.xd)
            + (w * np.square(d - np.einsum("njp,ngp->njg", mean, z))).sum(axis=2)
            + (self.prior_precisions * np.square(mean - self.prior_means)).sum(axis=2)
        )
        log_density = sums.residual[:, None] + 0.5 * (
            np.log(w).sum(axis=2)
            - self.data.n_genres * np.log(2 * np.pi)
            + np.log(self.prior_precisions).sum()
            - np.linalg.slogdet(precision)[1]
            - squared
        )
        return log_density, mean[..., 0] + self.origin, covariance[..., 0, 0]

    def centers(self, sums: CovariateSums, sigma_genre: np.ndarray, mu: Moments) -> Centers:
        """Return the moments of mu_genre + x · slope; `mu` is found anew with the slopes."""
        mean, covariance = self._at(sums, sigma_genre)
        return self._centers(sums, sigma_genre, mean, covariance)

    def _at(self, sums: CovariateSums, sigma_genre: np.ndarray):
        return (part[:, 0] for part in self.coefficients(sums, sigma_genre[:, None])[:2])

    def _centers(self, sums, sigma_genre, mean, covariance) -> Centers:
        """The genre's mean leans on its creators by `pull`, and on the coefficients otherwise."""
        ratio = np.square(sigma_genre)[:, None] * sums.weight
        pull = ratio / (1 + ratio)
        # mu_genre = pull * own mean + lean · coefficients + noise
        lean = np.concatenate([(1 - pull)[..., None], -pull[..., None] * sums.x], axis=2)
        genre = pull * (sums.mean - self.origin) + np.einsum("ngp,np->ng", lean, mean)
        spread = np.einsum("ngp,npq->ngq", lean, covariance)
        return Centers(
            mean=genre + self.origin,
            var=np.square(sigma_genre)[:, None] / (1 + ratio) + (spread * lean).sum(axis=2),
            slope=Moments(mean[:, 1:], np.einsum("npp->np", covariance)[:, 1:]),
            covariance=spread[..., 1:],
            slopes=covariance[:, 1:, 1:],
        )

    def draw(self, rng: np.random.Generator, sums: CovariateSums, sigma_genre: np.ndarray):
        mean, covariance = self._at(sums, sigma_genre)
        noise = rng.standard_normal(mean.shape)
        drawn = mean + np.einsum("npq,nq->np", np.linalg.cholesky(covariance), noise)
        genre = self._centers(sums, sigma_genre, drawn, np.zeros_like(covariance))
        mu_genre = rng.normal(genre.mean, np.sqrt(genre.var))
        known = Centers(
            mu_genre,
            np.zeros_like(mu_genre),
            Moments(drawn[:, 1:], np.zeros_like(drawn[:, 1:])),
            np.zeros_like(genre.covariance),
            np.zeros_like(genre.slopes),
        )
        return drawn[:, 0] + self.origin, mu_genre, known


def likelihood_for(data: Estimates, mu_global: Normal, slope: Normal) -> Likelihood:
    """Return the likelihood of the data, with slopes where there are covariates."""
    if data.covariates is None:
        return Likelihood(data, mu_global)
    return CovariateLikelihood(data, mu_global, slope)
