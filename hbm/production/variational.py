"""Variational inference, measured against the exact posterior.

Two ways to put a normal distribution in the place of a posterior: ADVI (Kucukelbir et al. 2017)
climbs the evidence lower bound by stochastic gradients, Pathfinder (Zhang et al. 2022) takes the
normal of highest bound that a quasi-Newton optimiser meets on its way. Each is tried on the model
with every effect a parameter, written in both ways, and on the three parameters that are left
when the effects are integrated out.

The libraries that have them do not serve here: PyMC's ADVI compiles for longer than it computes,
and anew for each data set; its Pathfinder needs an older PyMC, and BlackJAX a second array library.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.linalg import cholesky
from scipy.optimize import minimize

from hbm.diagnostics import HYPERPARAMETERS
from hbm.estimates import mixture
from hbm.exact.draws import extract_hyper_estimates
from hbm.gaussian import (
    Estimates,
    Hyper,
    Moments,
    creator_moments,
    genre_moments,
    log_density,
    mixture_moments,
)
from hbm.model import fit_hierarchical_model
from hbm.priors import HalfNormal, Priors
from hbm.replicate import replicate
from hbm.studies import simulate_summaries

#: Draws from each approximation: means are good to about a hundredth of a standard deviation.
DRAWS = 8000

#: Steps of ADVI, draws a step, and its learning rate; the second half of the steps is averaged.
STEPS, STEP_DRAWS, RATE = 4000, 10, 0.02

#: Paths of Pathfinder, pairs that its curvature is made of, and draws that a bound is made of.
PATHS, PAIRS, BOUND_DRAWS = 4, 10, 50

#: Step of numerical derivatives, in the logarithm of a standard deviation.
_STEP = 1e-4


class Target(NamedTuple):
    """A posterior on unbounded coordinates: the first three are mu_global and the log sigmas.

    `density` and `gradient` take coordinates (draw, coordinate); `effects` turns draws of them
    into draws or moments of the genres' means and the creators' effects.
    """

    size: int
    density: Callable[[np.ndarray], np.ndarray]
    gradient: Callable[[np.ndarray], np.ndarray]
    effects: Callable[[np.ndarray], tuple[Moments, Moments]]


# --------------------------------------------------------------------------- the three targets


def _hyper(z: np.ndarray) -> Hyper:
    return Hyper(z[:, 0], np.exp(z[:, 1]), np.exp(z[:, 2]))


def _log_prior(z: np.ndarray, priors: Priors) -> np.ndarray:
    """Log density of the hyperparameters' coordinates, but for a constant."""
    mu, (genre, creator) = priors.mu_global, _scales(priors)
    hyper = _hyper(z)
    squares = [(hyper.mu_global - mu.mu) / mu.sigma, hyper.sigma_genre / genre]
    squares += [hyper.sigma_creator / creator]
    return z[:, 1] + z[:, 2] - 0.5 * sum(np.square(part) for part in squares)


def _prior_gradient(z: np.ndarray, priors: Priors) -> np.ndarray:
    mu, (genre, creator) = priors.mu_global, _scales(priors)
    hyper = _hyper(z)
    parts = [-(hyper.mu_global - mu.mu) / mu.sigma**2]
    parts += [1 - np.square(hyper.sigma_genre / genre)]
    parts += [1 - np.square(hyper.sigma_creator / creator)]
    return np.column_stack(parts)


def _scales(priors: Priors) -> tuple[float, float]:
    both = priors.sigma_genre, priors.sigma_creator
    if not all(isinstance(prior, HalfNormal) for prior in both):
        raise ValueError("variational fits are made for half-normal priors of both sigmas")
    return both[0].sigma, both[1].sigma


def marginal(data: Estimates, priors: Priors) -> Target:
    """The three hyperparameters; effects are integrated out and come back in closed form."""

    def density(z):
        return log_density(data, _hyper(z)) + _log_prior(z, priors)

    def gradient(z):
        steps = _STEP * np.concatenate([np.eye(3), -np.eye(3)])
        value = density((z[:, None] + steps).reshape(-1, 3)).reshape(-1, 6)
        return (value[:, :3] - value[:, 3:]) / (2 * _STEP)

    def effects(z):
        hyper = _hyper(z)
        genre = genre_moments(data, hyper)
        return genre, creator_moments(data, genre, hyper.sigma_creator)

    return Target(3, density, gradient, effects)


def centred(data: Estimates, priors: Priors) -> Target:
    """Every effect a parameter, as the model is written down."""
    n_genres, n = data.n_genres, len(data.se)

    def parts(z):
        hyper, genre, tau = _hyper(z), z[:, 3 : 3 + n_genres], z[:, 3 + n_genres :]
        away = (genre - hyper.mu_global[:, None]) / hyper.sigma_genre[:, None]
        deviation = (tau - genre[:, data.genre_idx]) / hyper.sigma_creator[:, None]
        return hyper, away, deviation, (data.effect_hat - tau) / data.se

    def density(z):
        _, *residuals = parts(z)
        squares = sum(np.square(part).sum(axis=1) for part in residuals)
        return _log_prior(z, priors) - n_genres * z[:, 1] - n * z[:, 2] - 0.5 * squares

    def gradient(z):
        hyper, away, deviation, noise = parts(z)
        result = np.empty_like(z)
        result[:, :3] = _prior_gradient(z, priors)
        pull = away / hyper.sigma_genre[:, None]
        push = deviation / hyper.sigma_creator[:, None]
        result[:, 0] += pull.sum(axis=1)
        result[:, 1] += np.square(away).sum(axis=1) - n_genres
        result[:, 2] += np.square(deviation).sum(axis=1) - n
        result[:, 3 : 3 + n_genres] = data.by_genre(push) - pull
        result[:, 3 + n_genres :] = noise / data.se - push
        return result

    def effects(z):
        return tuple(_points(part) for part in np.split(z[:, 3:], [n_genres], axis=1))

    return Target(3 + n_genres + n, density, gradient, effects)


def noncentred(data: Estimates, priors: Priors) -> Target:
    """Every effect an offset from its mean, in units of its standard deviation."""
    n_genres, n = data.n_genres, len(data.se)

    def parts(z):
        hyper, a, b = _hyper(z), z[:, 3 : 3 + n_genres], z[:, 3 + n_genres :]
        genre = hyper.mu_global[:, None] + hyper.sigma_genre[:, None] * a
        tau = genre[:, data.genre_idx] + hyper.sigma_creator[:, None] * b
        return hyper, a, b, genre, tau

    def density(z):
        tau = parts(z)[-1]
        squares = np.square(z[:, 3:]).sum(axis=1)
        squares += np.square((data.effect_hat - tau) / data.se).sum(axis=1)
        return _log_prior(z, priors) - 0.5 * squares

    def gradient(z):
        hyper, a, b, _, tau = parts(z)
        result = np.empty_like(z)
        result[:, :3] = _prior_gradient(z, priors)
        push = (data.effect_hat - tau) / np.square(data.se)
        by_genre = data.by_genre(push)
        result[:, 0] += push.sum(axis=1)
        result[:, 1] += hyper.sigma_genre * (a * by_genre).sum(axis=1)
        result[:, 2] += hyper.sigma_creator * (b * push).sum(axis=1)
        result[:, 3 : 3 + n_genres] = hyper.sigma_genre[:, None] * by_genre - a
        result[:, 3 + n_genres :] = hyper.sigma_creator[:, None] * push - b
        return result

    def effects(z):
        *_, genre, tau = parts(z)
        return _points(genre), _points(tau)

    return Target(3 + n_genres + n, density, gradient, effects)


def _points(values: np.ndarray) -> Moments:
    return Moments(values, np.zeros_like(values))


# ------------------------------------------------------------------------------ the methods


def advi(target: Target, rng: np.random.Generator, *, full_rank: bool = False) -> np.ndarray:
    """Return draws from the normal that ADVI ends with, (draw, coordinate).

    Mean-field: independent coordinates; full-rank: any covariance. Adam (Kingma & Ba 2015) with
    reparameterised gradients, and the average of the second half of the steps.
    """
    d = target.size
    mean, root = _start(d), 0.1 * np.eye(d) if full_rank else np.full(d, np.log(0.1))
    lower = np.tril(np.ones((d, d))) if full_rank else None
    moments = [[np.zeros_like(x), np.zeros_like(x)] for x in (mean, root)]
    averages, averaged = [np.zeros_like(mean), np.zeros_like(root)], 0
    for step in range(1, STEPS + 1):
        noise = rng.standard_normal((STEP_DRAWS, d))
        if full_rank:
            gradient = target.gradient(mean + noise @ root.T)
            steep = gradient.T @ noise / STEP_DRAWS * lower + np.diag(1 / np.diag(root))
        else:
            scale = np.exp(root)
            gradient = target.gradient(mean + scale * noise)
            steep = (gradient * noise).mean(axis=0) * scale + 1
        for value, slope, memory in zip(
            (mean, root), (gradient.mean(axis=0), steep), moments, strict=True
        ):
            memory[0] = 0.9 * memory[0] + 0.1 * slope
            memory[1] = 0.999 * memory[1] + 0.001 * np.square(slope)
            first, second = memory[0] / (1 - 0.9**step), memory[1] / (1 - 0.999**step)
            value += RATE * first / (np.sqrt(second) + 1e-8)
        if step > STEPS // 2:
            averaged += 1
            for average, value in zip(averages, (mean, root), strict=True):
                average += (value - average) / averaged
    mean, root = averages
    noise = rng.standard_normal((DRAWS, d))
    return mean + (noise @ root.T if full_rank else noise * np.exp(root))


def pathfinder(target: Target, rng: np.random.Generator) -> np.ndarray:
    """Return draws from the best normal on the way of several quasi-Newton paths.

    Along each path of L-BFGS the last pairs of steps and changes of the gradient make an inverse
    Hessian, from a diagonal that is updated after Gilbert & Lemaréchal (1989); of all normals so
    made the one with the highest evidence lower bound is drawn from.
    """
    best, bound = None, -np.inf
    for _ in range(PATHS):
        path = _path(target, _start(target.size) + rng.uniform(-1, 1, target.size))
        for point, gradient, covariance in _curvatures(path):
            try:
                root = cholesky(covariance, lower=True)
            except np.linalg.LinAlgError:  # rounding has made it indefinite
                continue
            noise = rng.standard_normal((BOUND_DRAWS, target.size))
            mean = point + covariance @ gradient
            drawn = target.density(mean + noise @ root.T)
            entropy = np.log(np.diag(root)).sum() + 0.5 * np.square(noise).sum(axis=1).mean()
            if drawn.mean() + entropy > bound:
                best, bound = (mean, root), drawn.mean() + entropy
    mean, root = best
    return mean + rng.standard_normal((DRAWS, target.size)) @ root.T


def _start(size: int) -> np.ndarray:
    """Where optimisation begins: no effects, and sigmas of about a third of a dollar."""
    start = np.zeros(size)
    start[1:3] = -1.0
    return start


def _path(target: Target, start: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the points of an optimisation and the gradients of the log density there."""

    def loss(x):
        return -target.density(x[None])[0], -target.gradient(x[None])[0]

    points = [start]
    minimize(
        loss, start, jac=True, method="L-BFGS-B", callback=lambda x: points.append(x.copy()),
        options={"maxcor": PAIRS, "maxiter": 200},
    )  # fmt: skip
    return [(x, target.gradient(x[None])[0]) for x in points]


def _curvatures(path):
    """Yield each point with its gradient and the inverse Hessian of the pairs so far."""
    diagonal, pairs = np.ones(len(path[0][0])), []
    for (before, old), (point, gradient) in pairwise(path):
        s, y = point - before, old - gradient  # of the negative log density
        if s @ y <= 1e-10 * (y @ y):
            continue
        a, b, c = y @ (diagonal * y), y @ s, s @ (s / diagonal)
        diagonal = 1 / (a / (b * diagonal) + y**2 / b - a * s**2 / (b * c * diagonal**2))
        pairs = [*pairs[1 - PAIRS :], (s, y)]
        inverse = np.diag(diagonal)
        for s, y in pairs:
            image, curvature = inverse @ y, s @ y
            cross = np.outer(image, s)
            inverse = inverse - (cross + cross.T) / curvature
            inverse += (1 + y @ image / curvature) / curvature * np.outer(s, s)
        yield point, gradient, inverse


#: What is compared: method, and the model it is given.
METHODS: dict[tuple[str, str], tuple[Callable, Callable]] = {
    ("ADVI, mean-field", "every effect, non-centred"): (advi, noncentred),
    ("ADVI, mean-field", "every effect, centred"): (advi, centred),
    ("Pathfinder", "every effect, non-centred"): (pathfinder, noncentred),
    ("Pathfinder", "every effect, centred"): (pathfinder, centred),
    ("ADVI, full-rank", "effects integrated out"): (partial(advi, full_rank=True), marginal),
    ("Pathfinder", "effects integrated out"): (pathfinder, marginal),
}


# ---------------------------------------------------------------------------- the comparison


def variational_comparison(
    n_platforms: int, *, priors: Priors = Priors(), seed: int = 42, **platform
) -> pd.DataFrame:
    """Compare variational fits with the exact posterior on simulated platforms.

    Parameters
    ----------
    n_platforms : int
    priors : Priors
        Half-normal for both standard deviations.
    seed : int
    **platform
        As for `hbm.studies.simulate_summaries`.

    Returns
    -------
    DataFrame
        One row a platform, method and quantity: ``platform, method, model, quantity`` (a
        hyperparameter, ``genre means`` or ``effects``); ``error``, the root mean square over the
        quantity's values of the error of the mean, in exact standard deviations; ``sd_ratio``,
        the geometric mean of the approximate standard deviations relative to the exact ones;
        ``seconds`` of processor time of the whole fit. The exact engine has rows too, by
        definition without error.
    """
    platforms = replicate(_compare, n_platforms, seed=seed, priors=priors, platform=platform)
    return pd.concat(
        [frame.assign(platform=k) for k, frame in enumerate(platforms)], ignore_index=True
    )


def variational_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Average a comparison over its platforms, ready to be shown.

    Returns
    -------
    DataFrame
        One row a fit: ``method, model``; for the standard deviation of creators and for the
        effects the mean error and its Monte Carlo error, as text; the geometric mean of the ratio
        of standard deviations for these and for sigma_genre; the median of the seconds of
        processor time.
    """
    rows = []
    for (method, model), fits in comparison.groupby(["method", "model"], sort=False):
        row = {"method": method, "model": model}
        for quantity, name in (("sigma_creator", "σ creator"), ("effects", "effects")):
            error = fits.loc[fits["quantity"] == quantity, "error"]
            row[f"error, {name}"] = f"{error.mean():.3f} ± {error.sem():.3f}"
        ratio = np.exp(np.log(fits["sd_ratio"]).groupby(fits["quantity"]).mean())
        for quantity in ("sigma_creator", "sigma_genre", "effects"):
            row[f"sd, {quantity.replace('sigma_', 'σ ')}"] = ratio[quantity]
        rows.append(row | {"seconds": fits["seconds"].median()})
    return pd.DataFrame(rows)


def _compare(rng: np.random.Generator, *, priors: Priors, platform: dict) -> pd.DataFrame:
    summaries, _ = simulate_summaries(rng, **platform)
    data = Estimates.from_frame(summaries)
    start = time.process_time()
    exact = _exact(summaries, data, priors)
    rows = _rows(("exact engine", "effects integrated out"), exact, exact, start)
    for name, (method, model) in METHODS.items():
        start = time.process_time()
        target = model(data, priors)
        drawn = method(target, rng)
        hyper = Moments(*(np.array(part) for part in _hyper_moments(_hyper(drawn))))
        genre, tau = (mixture_moments(part) for part in target.effects(drawn))
        rows += _rows(name, (hyper, genre, tau), exact, start)
    return pd.DataFrame(rows)


def _hyper_moments(hyper: Hyper) -> tuple[list[float], list[float]]:
    return [values.mean() for values in hyper], [values.var() for values in hyper]


def _exact(summaries: pd.DataFrame, data: Estimates, priors: Priors):
    """Return the exact moments of hyperparameters, genre means and effects."""
    fit = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)
    table = extract_hyper_estimates(fit).set_index("parameter").loc[list(HYPERPARAMETERS)]
    genre, sigma_creator, weights = mixture(fit)
    tau = mixture_moments(creator_moments(data, genre, sigma_creator), weights)
    hyper = Moments(table["mean"].to_numpy(), np.square(table["se"].to_numpy()))
    return hyper, mixture_moments(genre, weights), tau


def _rows(name: tuple[str, str], found, exact, start: float) -> list[dict]:
    seconds = time.process_time() - start
    quantities = [(label, 0, k) for k, label in enumerate(HYPERPARAMETERS)]
    quantities += [("genre means", 1, slice(None)), ("effects", 2, slice(None))]
    rows = []
    for label, part, where in quantities:
        (mean, var), (true_mean, true_var) = found[part], exact[part]
        z = (mean[where] - true_mean[where]) / np.sqrt(true_var[where])
        log_ratio = 0.5 * np.log(var[where] / true_var[where])
        rows.append(
            {
                "method": name[0],
                "model": name[1],
                "quantity": label,
                "error": float(np.sqrt(np.mean(np.square(z)))),
                "sd_ratio": float(np.exp(np.mean(log_ratio))),
                "seconds": seconds,
            }
        )
    return rows
