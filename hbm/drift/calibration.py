"""Simulation-based calibration of the drift model: are its posteriors what the model defines?

As `hbm.sbc`, with truths drawn from the priors and motions from the process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from hbm.checks import require_columns
from hbm.drift import fit_drift_model
from hbm.drift.posterior import DriftLikelihood
from hbm.drift.process import Process, RandomWalk, simulate
from hbm.gaussian import Moments, mixture_cdf
from hbm.priors import Fixed, Priors
from hbm.replicate import replicate
from hbm.sbc import Calibration, rank_among, require_densities

#: What is ranked besides the hyperparameters: the mean of the first genre in the first period, in
#: the last and in the one after it; the effects of the creators with the largest and the smallest
#: standard error; the log density of all estimates given the hyperparameters but mu_global.
RANKED = ("mu_first", "mu_last", "mu_next", "tau_smallest", "tau_largest", "log_p_given_hyper")

#: A planted error: takes the design, returns what the fit is given instead.
Fault = Callable[[pd.DataFrame], pd.DataFrame]


def run_drift_sbc(
    design: pd.DataFrame,
    n_replications: int = 1000,
    *,
    process: Process = RandomWalk(),
    priors: Priors = Priors(),
    fault: Fault | None = None,
    draws: int = 250,
    seed: int = 42,
) -> Calibration:
    """Rank true values, drawn from the priors, in the posteriors of data simulated from them.

    Parameters
    ----------
    design : DataFrame
        ``creator_id, genre_idx, period, se``: the same in each replication.
    n_replications : int
    process : RandomWalk or AutoRegression
        A fixed size is not ranked.
    priors : Priors
        All three with a density.
    fault : callable, optional
        An error planted into the fit.
    draws : int
        Of the hyperparameters, among which the log density is ranked.
    seed : int

    Returns
    -------
    Calibration
        Ranks of the hyperparameters and of `RANKED`; for `hbm.sbc_verdicts`.
    """
    require_densities(priors)
    columns = ["creator_id", "genre_idx", "period", "se"]
    require_columns(design, columns, "design")
    design = design[columns].reset_index(drop=True)
    settings = {"design": design, "process": process, "priors": priors}
    settings |= {"fault": fault, "draws": draws}
    results = replicate(_replication, n_replications, seed=seed, **settings)
    return Calibration(*(pd.DataFrame(list(part)) for part in zip(*results, strict=True)))


def _replication(rng, *, design, process, priors, fault, draws):
    own = {name: getattr(priors, name) for name in ("mu_global", "sigma_genre", "sigma_creator")}
    own[process.name] = process.prior
    hyper = {
        name: prior.value if isinstance(prior, Fixed) else prior.scipy().rvs(random_state=rng)
        for name, prior in own.items()
    }
    paths, tau = _truth(rng, design, process, hyper)
    data = design.assign(effect_hat=rng.normal(tau, design["se"]))
    given = data if fault is None else fault(data)
    fit = fit_drift_model(given, process=process, priors=priors, check=False)
    found = fit.posterior
    ranks = {
        name: fit.hyper_cdf(name, hyper[name])
        for name, prior in own.items()
        if not isinstance(prior, Fixed)
    }
    first, last = fit.periods[0], fit.periods[-1]
    at, effects = np.array([first, last, last + 1]), fit.effect_moments()
    genre = Moments(*(part[:, :, 0] for part in found.paths(at)))
    who = [design["se"].argmax(), design["se"].argmin()]
    truths = np.concatenate([paths[0, at - design["period"].min()], tau[who]])
    moments = (np.hstack([g, e[:, who]]) for g, e in zip(genre, effects, strict=True))
    below = mixture_cdf(Moments(*moments), truths, found.weight)
    ranks |= dict(zip(RANKED[:-1], np.clip(below, 0, 1), strict=True))
    drawn = np.vstack([found.draw(rng, draws), [hyper[axis.name] for axis in found.axes]])
    # The data as they are, so that a fit to other data is noticed.
    *drawn, true = DriftLikelihood(data, priors.mu_global, process).log_density(drawn)
    ranks[RANKED[-1]] = rank_among(rng, np.array(drawn), true)
    return ranks, {"quadrature_error": max(found.errors.values())}


def _truth(rng, design: pd.DataFrame, process: Process, hyper: dict[str, float]):
    """Draw the paths of the genres, (genre, period) with one period more, and the effects."""
    idx, when = design["genre_idx"].to_numpy(), design["period"].to_numpy()
    n_genres, n_periods = idx.max() + 1, np.ptp(when) + 2
    size = np.array([[hyper[process.name]]])
    away = simulate(process, size, np.ones(n_periods, int), n_genres, rng)[0]
    level = rng.normal(hyper["mu_global"], hyper["sigma_genre"], n_genres)
    paths = (level + away).T
    return paths, rng.normal(paths[idx, when - when.min()], hyper["sigma_creator"])
