"""One part of the model by normal approximations and the exact engine, without sampling.

At the current best guess each arm's likelihood is replaced by the normal that touches it there.
Then a creator's level, with its effect integrated out, is a normal estimate with a standard
error, and so is its effect: each is what `hbm.exact` takes. Its answers move the guess, and the
two steps are repeated until nothing moves (Breslow & Clayton 1993, with all uncertainty of the
hyperparameters kept; Rue, Martino & Chopin 2009 is the general form).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from hbm.exact import draw_effects
from hbm.exact.covariates import likelihood_for
from hbm.exact.quadrature import integrate
from hbm.exact.rule import Rule
from hbm.gaussian import Estimates, mixture_moments
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors
from hbm.revenue.families import Family
from hbm.revenue.simulate import ARMS

#: The guess is settled when no arm moves by more, in its posterior standard deviations.
TOLERANCE = 0.01

MAX_ROUNDS = 60

#: Tolerance of the quadrature, and weight of a node that is left out, until the guess settles.
_ROUGH = 1e-3

#: Metropolis-Hastings steps of a creator that follow the normal draw.
_STEPS = 3

#: Creators without any information count as known this badly, on the scale of logarithms.
_NOTHING = 100.0


class _Centers(NamedTuple):
    """What a creator's value is drawn from: means (…, creator) and variances (…, 1)."""

    mean: np.ndarray
    var: np.ndarray


class Approximation(NamedTuple):
    """A settled normal approximation.

    Attributes
    ----------
    fits : dict of str to DataTree
        The exact fits of ``level`` and ``effect``; their data are what each creator says of its
        own value once the other is integrated out.
    weight, shifted : ndarray, shape (creator, arm)
        Precision of each arm's normal, and precision times its center.
    spread : float
        The family's spread, estimated.
    rounds : int
        How many it took.
    """

    fits: dict[str, xr.DataTree]
    weight: np.ndarray
    shifted: np.ndarray
    spread: float
    rounds: int


def approximate(
    family: Family, genre_idx: np.ndarray, priors: dict[str, Priors], tolerance: float = TOLERANCE
) -> Approximation:
    """Repeat approximation and exact fits until nothing moves.

    Parameters
    ----------
    family : Family
    genre_idx : ndarray, shape (creator,)
    priors : dict
        Of ``level`` and ``effect``.
    tolerance : float
        As `TOLERANCE`.

    Raises
    ------
    RuntimeError
        If the guess has not settled after `MAX_ROUNDS` rounds.
    """
    eta = family.start()
    level = _Centers(np.full(len(eta), eta.mean()), np.array([1.0]))
    effect = _Centers(np.zeros(len(eta)), np.array([0.1]))
    for rounds in range(1, MAX_ROUNDS + 1):
        spread = family.plug_in(eta)
        gradient, weight = family.curvature(eta, spread)
        shifted = weight * eta + gradient
        summaries = {
            "level": _summarize(weight, shifted, np.ones(2), ARMS, effect, genre_idx),
            "effect": _summarize(weight, shifted, ARMS, np.ones(2), level, genre_idx),
        }
        level, effect = (_plug_in(made, priors[name]) for name, made in summaries.items())
        new = _mode(family, eta, spread, level, effect)
        moved = np.abs(new - eta) * np.sqrt(weight + 1 / level.var[:, None])
        eta = new
        if moved.max() < tolerance:
            fits = {
                name: fit_hierarchical_model(made, engine="exact", priors=priors[name], draws=0)
                for name, made in summaries.items()
            }
            return Approximation(fits, weight, shifted, spread, rounds)
    raise RuntimeError(f"the normal approximation has not settled after {MAX_ROUNDS} rounds")


def draw_approximation(
    family: Family, found: Approximation, genre_idx: np.ndarray, n: int, random_seed: int
) -> dict[str, np.ndarray]:
    """Draw independently: the hyperparameters exactly, then each creator given them.

    Parameters
    ----------
    family : Family
    found : Approximation
    genre_idx : ndarray, shape (creator,)
    n : int
        Number of draws.
    random_seed : int

    Returns
    -------
    dict of str to ndarray
        Draws first; named as `hbm.revenue.model.fit_part` says.
    """
    rng = np.random.default_rng(random_seed)
    posterior, centers = {}, []
    for name, fit in found.fits.items():
        seed = int(rng.integers(2**31))
        drawn = draw_effects(fit, [0], draws=n, chains=1, random_seed=seed)
        for key in ("mu_global", "sigma_genre", "sigma_creator", "mu_genre"):
            posterior[f"{name}_{key}"] = drawn[key].values[0]
        sigma = drawn["sigma_creator"].values[0][:, None]
        centers.append(_Centers(drawn["mu_genre"].values[0][:, genre_idx], np.square(sigma)))
    posterior["level"], posterior["effect"] = _draw_creators(rng, family, found, centers)
    if family.has_spread:
        posterior["spread"] = family.draw_spread(rng, found.spread, n)
    return posterior


def _draw_creators(rng, family: Family, found: Approximation, centers) -> np.ndarray:
    """Draw level and effect of each creator given the hyperparameters, (2, draw, creator).

    At first from the normal approximation; where the family is not normal these are proposals,
    of which Metropolis and Hastings' rule makes draws from what the likelihood itself gives.
    """
    mean, var, cov = _creators(found.weight, found.shifted, *centers)
    first = np.sqrt(var[0])
    slope, rest = cov / first, np.sqrt(np.maximum(var[1] - np.square(cov / first), 0.0))

    def propose() -> np.ndarray:
        noise = rng.standard_normal((2, *mean[0].shape))
        return np.array([mean[0] + first * noise[0], mean[1] + slope * noise[0] + rest * noise[1]])

    def log_ratio(value: np.ndarray) -> np.ndarray:
        eta = value[0][..., None] + ARMS * value[1][..., None]
        likelihood = family.log_likelihood(eta, found.spread)
        return (likelihood - found.shifted * eta + 0.5 * found.weight * eta**2).sum(axis=-1)

    value = propose()
    if family.normal:
        return value
    ratio = log_ratio(value)
    for _ in range(_STEPS):
        new = propose()
        new_ratio = log_ratio(new)
        accepted = -rng.standard_exponential(ratio.shape) < new_ratio - ratio
        value, ratio = np.where(accepted, new, value), np.where(accepted, new_ratio, ratio)
    return value


def _summarize(weight, shifted, own, other, centers: _Centers, genre_idx) -> pd.DataFrame:
    """Return what the arms say of one value of each creator, the other value integrated out.

    The arms are own x value + other x (other value) + Normal(0, 1 / weight).
    """
    cross = (weight * own * other).sum(axis=1)
    precision = (weight * other**2).sum(axis=1) + 1 / centers.var
    sum_other = (shifted * other).sum(axis=1) + centers.mean / centers.var
    known = (weight * own**2).sum(axis=1) - cross**2 / precision
    value = (shifted * own).sum(axis=1) - cross * sum_other / precision
    se = 1 / np.sqrt(np.maximum(known, _NOTHING**-2))
    return pd.DataFrame(
        {
            "creator_id": np.arange(len(se)),
            "genre_idx": genre_idx,
            "effect_hat": value * np.square(se),
            "se": se,
        }
    )


def _plug_in(summaries: pd.DataFrame, priors: Priors) -> _Centers:
    """Return what the data say of a creator of each genre, before its own; to a thousandth."""
    data = Estimates.from_frame(summaries)
    grid = integrate(likelihood_for(data, priors.mu_global, priors.slope), priors, _ROUGH)
    weight = np.exp(grid.log_weight)
    kept = weight > _ROUGH * weight.max()
    weight = weight[kept] / weight[kept].sum()
    rule = Rule(*(part[kept] for part in grid.nodes[:4]), weight, error=_ROUGH)
    genre = mixture_moments(rule.centers(grid.plane.likelihood), weight)
    genre_idx = summaries["genre_idx"].to_numpy()
    var = genre.var + weight @ np.square(rule.sigma_creator)
    return _Centers(genre.mean[genre_idx], var[genre_idx])


def _mode(family: Family, eta, spread: float, level: _Centers, effect: _Centers) -> np.ndarray:
    """Return where each creator's posterior is highest given the centers, by Newton's method."""
    for _ in range(50):
        gradient, weight = family.curvature(eta, spread)
        mean, *_ = _creators(weight, weight * eta + gradient, level, effect)
        # A step too far is a step into the flat part of an exponential.
        step = np.clip(mean[0][:, None] + ARMS * mean[1][:, None] - eta, -2, 2)
        eta = eta + step
        if np.abs(step).max() < 1e-8:
            break
    return eta


def _creators(weight, shifted, level: _Centers, effect: _Centers):
    """Return means and variances of level and effect, and their covariance, (…, creator)."""
    a = weight.sum(axis=1) + 1 / level.var
    b = (weight * ARMS).sum(axis=1)
    c = (weight * ARMS**2).sum(axis=1) + 1 / effect.var
    u = shifted.sum(axis=1) + level.mean / level.var
    v = (shifted * ARMS).sum(axis=1) + effect.mean / effect.var
    det = a * c - np.square(b)
    return ((c * u - b * v) / det, (a * v - b * u) / det), (c / det, a / det), -b / det
