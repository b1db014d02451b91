"""Creators with heavy tails: the Student-t as a mixture of normals, and its closed forms.

tau_i ~ Student-t(nu, mu_genre, sigma_creator) is the same as tau_i ~ Normal(mu_genre, sigma_creator
/ sqrt(w_i)) with w_i ~ Gamma(nu / 2, nu / 2) (West 1987). The integral over w is one-dimensional:
the trapezoidal rule in log w, whose integrand falls to nothing on both sides, turns it into a
finite mixture whose weights and nodes are smooth in nu. So, given the genre means, everything
is a mixture of normals: the density of an estimate, and the posterior of its effect.

Functions of an array module `xp` serve NumPy and PyTensor alike: one formula, sampled and tested.
Draws have the shape ``(draw,)``; nodes come last but one, ``(…, node, creator)``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from hbm.gaussian import Estimates, Moments

_LOG_2PI = np.log(2 * np.pi)
_TINY = np.finfo(float).tiny

#: The nodes are close enough for an error of the log density of 1e-5 (a test has the figures).
_SPACING = 0.61

#: Genre means are first guessed with a t of this many degrees of freedom.
_GUESS_NU = 4.0

#: Draws that posterior mixtures are averaged over, evenly spaced among all.
MAX_DRAWS = 1000

#: Values that are worked on at a time, within the cache.
_BLOCK = 50_000


class Nodes(NamedTuple):
    """How the mixture is laid out.

    Attributes
    ----------
    reach : float
        How far the farthest estimate lies from its genre's center, in standard deviations.
    size : int
        Number of nodes.
    """

    reach: float
    size: int


class Draws(NamedTuple):
    """Draws of what the effects hang on: `mu_genre` (draw, genre), the others (draw,)."""

    mu_genre: np.ndarray
    sigma_creator: np.ndarray
    nu: np.ndarray

    def thinned(self, n: int = MAX_DRAWS) -> Draws:
        """Return at most `n` of the draws, evenly spaced."""
        size = len(self.nu)
        kept = np.unique(np.linspace(0, size - 1, min(n, size)).astype(int))
        return Draws(*(values[kept] for values in self))

    def blocks(self, values_per_draw: int):
        """Yield slices of the draws, as many at a time as fit into the cache."""
        step = max(1, _BLOCK // values_per_draw)
        for start in range(0, len(self.nu), step):
            yield slice(start, start + step)

    def take(self, block: slice) -> Draws:
        """Return a block of the draws."""
        return Draws(*(values[block] for values in self))


def student_draws(posterior) -> Draws:
    """Return the draws of a posterior dataset, chains one after the other."""
    mu_genre = posterior["mu_genre"].values
    sigma_creator, nu = (posterior[name].values.reshape(-1) for name in ("sigma_creator", "nu"))
    return Draws(mu_genre.reshape(-1, mu_genre.shape[-1]), sigma_creator, nu)


def genre_centers(data: Estimates) -> tuple[np.ndarray, float]:
    """Guess each genre's center and the scale around it, unmoved by outliers.

    Medians, then Student-t estimates by iterated weights; only where nodes lie and how fast the
    sampler is hangs on them.

    Returns
    -------
    center : ndarray, shape (genre,)
    scale : float
        Of estimates around centers, noise included.
    """
    groups = np.split(data.effect_hat, data.starts[1:])
    center = np.array([np.median(group) for group in groups])
    away = data.effect_hat - center[data.genre_idx]
    scale = 1.4826 * float(np.median(np.abs(away)))
    var = np.square(data.se) + 0.5 * scale**2
    for _ in range(20):
        pull = (_GUESS_NU + 1) / (_GUESS_NU + np.square(away) / var) / var
        center = center + data.by_genre(pull * away) / data.by_genre(pull)
        away = data.effect_hat - center[data.genre_idx]
    return center, scale


def nodes_for(data: Estimates) -> Nodes:
    """Lay the nodes out so that they reach the farthest estimate."""
    center, scale = genre_centers(data)
    away = np.abs(data.effect_hat - center[data.genre_idx]) / np.hypot(data.se, scale)
    reach = max(10.0, float(away.max()))
    low, high = _ends(np.float64(2.0), reach)
    # In steps, so that few models are compiled.
    return Nodes(reach, 8 * int(np.ceil((high - low) / _SPACING / 8)))


def _ends(nu, reach, xp=np):
    """Return the values of log w between which the mixture has all but 1e-5 of its mass.

    The upper end is that of the Gamma distribution. An estimate far out pulls w down, to about
    (nu + 1) / (nu + reach²), and below that the mass falls like w^((nu + 1) / 2).
    """
    low = -xp.log1p(reach**2 / nu) - 13 / xp.sqrt(nu + 1)
    return low, xp.log1p(6.5 / xp.sqrt(nu) + 18 / nu)


def mixture(nu, reach, size: int, xp=np):
    """Return the variances of the nodes, 1 / w, and the logarithms of their weights.

    Parameters
    ----------
    nu : array, shape (…)
    reach : float
    size : int
    xp : module
        NumPy or ``pytensor.tensor``.

    Returns
    -------
    variance, log_weight : array, shape (…, node, 1)
        In units of sigma_creator²; the weights sum to 1.
    """
    nu = nu[..., None, None]
    low, high = _ends(nu, reach, xp)
    log_w = low + (high - low) * np.linspace(0, 1, size)[:, None]
    log_weight = 0.5 * nu * (log_w - xp.expm1(log_w))
    total = xp.sum(xp.exp(log_weight), axis=-2, keepdims=True)
    return xp.exp(-log_w), log_weight - xp.log(total)


def log_density(effect_hat, se, center, sigma_creator, nu, reach, size: int, xp=np):
    """Log density of estimates whose effects are integrated out.

    Parameters
    ----------
    effect_hat, se : array, shape (creator,)
    center : array, shape (…, creator)
        Mean of each creator's genre.
    sigma_creator, nu : array, shape (…)
        Scale (not standard deviation) and degrees of freedom of the Student-t.
    reach, size
        See `Nodes`.
    xp : module
        NumPy or ``pytensor.tensor``.

    Returns
    -------
    array, shape (…, creator)
    """
    variance, log_weight = mixture(nu, reach, size, xp)
    total = sigma_creator[..., None, None] ** 2 * variance + se**2
    exponent = -0.5 * (effect_hat - center[..., None, :]) ** 2 / total
    # The first node is the widest and has the largest exponent.
    top = exponent[..., :1, :]
    density = xp.exp(log_weight) * xp.exp(exponent - top) / xp.sqrt(total)
    return xp.log(xp.sum(density, axis=-2) + _TINY) + top[..., 0, :] - 0.5 * _LOG_2PI


class Effects(NamedTuple):
    """The posterior of effects given draws, node by node.

    Attributes
    ----------
    weight : ndarray, shape (draw, node, creator)
        Probability of the node given the estimate, summing to 1 over nodes.
    pull : ndarray, shape (draw, node, creator)
        Weight of the genre's mean, se² / (se² + sigma_creator² / w).
    mean, var : ndarray, shape (draw, node, creator)
    """

    weight: np.ndarray
    pull: np.ndarray
    mean: np.ndarray
    var: np.ndarray


def effects_given(data: Estimates, draws: Draws, nodes: Nodes) -> Effects:
    """Return the posterior of the effects of `data` given each draw."""
    variance, log_weight = mixture(draws.nu, *nodes)
    total = np.square(draws.sigma_creator)[:, None, None] * variance + np.square(data.se)
    toward = draws.mu_genre[:, None, data.genre_idx] - data.effect_hat
    weight = log_weight - 0.5 * (np.square(toward) / total + np.log(total))
    weight = np.exp(weight - weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    pull = np.square(data.se) / total
    var = pull * np.square(draws.sigma_creator)[:, None, None] * variance
    return Effects(weight, pull, data.effect_hat + pull * toward, var)


def components(data: Estimates, draws: Draws, nodes: Nodes):
    """Return the posterior of the effects of `data` as one mixture over draws and nodes.

    Returns
    -------
    moments : Moments, shape (draw * node, creator)
    weight, pull : ndarray, shape (draw * node, creator)
        The weights sum to 1 for each creator.
    """
    effects = effects_given(data, draws, nodes)
    weight, pull, mean, var = (part.reshape(-1, len(data.se)) for part in effects)
    return Moments(mean, var), weight / len(draws.nu), pull


def conditional_means(data: Estimates, draws: Draws, nodes: Nodes) -> np.ndarray:
    """Return E[tau | mu_genre, sigma_creator, nu, data], shape (draw, creator)."""
    means = np.empty((len(draws.nu), len(data.se)))
    for block in draws.blocks(nodes.size * len(data.se)):
        effects = effects_given(data, draws.take(block), nodes)
        means[block] = (effects.weight * effects.mean).sum(axis=1)
    return means


def draw_effects(
    data: Estimates, draws: Draws, nodes: Nodes, rng: np.random.Generator
) -> np.ndarray:
    """Draw tau exactly given each draw, shape (draw, creator)."""
    tau = np.empty((len(draws.nu), len(data.se)))
    for block in draws.blocks(nodes.size * len(data.se)):
        effects = effects_given(data, draws.take(block), nodes)
        reached = np.cumsum(effects.weight, axis=1)
        below = reached < rng.uniform(size=reached[:, :1].shape) * reached[:, -1:]
        node = below.sum(axis=1, keepdims=True)
        mean, var = (np.take_along_axis(part, node, 1)[:, 0] for part in effects[2:])
        tau[block] = rng.normal(mean, np.sqrt(var))
    return tau


def estimate_log_density(data: Estimates, draws: Draws, nodes: Nodes) -> np.ndarray:
    """Log density of each estimate given each draw, its effect integrated out."""
    density = np.empty((len(draws.nu), len(data.se)))
    for block in draws.blocks(nodes.size * len(data.se)):
        some = draws.take(block)
        center = some.mu_genre[:, data.genre_idx]
        density[block] = log_density(
            data.effect_hat, data.se, center, some.sigma_creator, some.nu, *nodes
        )
    return density


def estimate_cdf(data: Estimates, draws: Draws, nodes: Nodes) -> np.ndarray:
    """P(an estimate is at most the observed one) given each draw, shape (draw, creator)."""
    below = np.empty((len(draws.nu), len(data.se)))
    for block in draws.blocks(nodes.size * len(data.se)):
        some = draws.take(block)
        variance, log_weight = mixture(some.nu, *nodes)
        total = np.square(some.sigma_creator)[:, None, None] * variance + np.square(data.se)
        away = data.effect_hat - some.mu_genre[:, None, data.genre_idx]
        below[block] = (np.exp(log_weight) * ndtr(away / np.sqrt(total))).sum(axis=1)
    return below
