"""Simulation-based calibration of the drift model: are its posteriors what the model defines?

As `hbm.sbc`, with truths drawn from the priors and motions from the process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.special import ndtr
from scipy.stats import norm

from hbm.data import require_columns
from hbm.drift import DriftFit, fit_drift_model
from hbm.drift.grid import DriftLikelihood
from hbm.drift.process import Process, RandomWalk, simulate
from hbm.priors import Fixed, Priors
from hbm.replicate import replicate
from hbm.sbc import Calibration, _rank, _require_densities

#: What is ranked besides the hyperparameters: the mean of the first genre in the first period, in
#: the last and in the one after it; the effects of the creators with the largest and the smallest
#: standard error; the log density of all estimates, given the hyperparameters (everything else
#: integrated out) and given the paths of the genres.
RANKED = (
    "mu_first",
    "mu_last",
    "mu_next",
    "tau_smallest",
    "tau_largest",
    "log_p_given_hyper",
    "log_p_given_paths",
)

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
        What is fixed of it is not ranked.
    priors : Priors
        All three with a density.
    fault : callable, optional
        An error planted into the fit.
    draws : int
        Of the paths, among which the log density given them is ranked.
    seed : int

    Returns
    -------
    Calibration
        Ranks of the hyperparameters and of `RANKED`; for `hbm.sbc_verdicts`.
    """
    _require_densities(priors)
    columns = ["creator_id", "genre_idx", "period", "se"]
    require_columns(design, columns, "design")
    design = design[columns].reset_index(drop=True)
    settings = {"design": design, "process": process, "priors": priors}
    settings |= {"fault": fault, "draws": draws}
    results = replicate(_replication, n_replications, seed=seed, **settings)
    return Calibration(*(pd.DataFrame(list(part)) for part in zip(*results, strict=True)))


def _replication(rng, *, design, process, priors, fault, draws):
    names = ("mu_global", "sigma_genre", "sigma_creator")
    hyper = {n: float(getattr(priors, n).scipy().rvs(random_state=rng)) for n in names}
    for name in process.names:
        prior = getattr(process, name)
        fixed = isinstance(prior, Fixed)
        hyper[name] = prior.value if fixed else float(prior.scipy().rvs(random_state=rng))
    paths, tau = _truth(rng, design, process, hyper)
    data = design.assign(effect_hat=rng.normal(tau, design["se"]))
    given = data if fault is None else fault(data)
    fit = fit_drift_model(given, process=process, priors=priors, check=False)
    ranks = {
        name: fit.marginals.cdf(name, value)
        for name, value in hyper.items()
        if name in names or not isinstance(getattr(process, name), Fixed)
    }
    last = fit.periods[-1]
    for name, when in (("mu_first", fit.periods[0]), ("mu_last", last), ("mu_next", last + 1)):
        mean, var = (part[:, 0, 0] for part in fit.path_moments(np.array([when])))
        true = paths[0, when - design["period"].min()]
        ranks[name] = float(fit.rule.weight @ ndtr((true - mean) / np.sqrt(var)))
    cells, effects = fit.grid.box.likelihood.cells.data, fit.rule.effects()
    extremes = {"tau_smallest": design["se"].argmax(), "tau_largest": design["se"].argmin()}
    for name, i in extremes.items():
        mean, var = (part[:, np.argmax(cells.order == i)] for part in effects)
        ranks[name] = float(fit.rule.weight @ ndtr((tau[i] - mean) / np.sqrt(var)))
    ranks["log_p_given_hyper"] = _rank_given_hyper(fit, data, hyper)
    density = [_log_p_given_paths(data, p) for p in (paths, fit.draw_paths(draws, rng))]
    ranks["log_p_given_paths"] = _rank(rng, density[1], density[0])
    ranks = {name: min(max(rank, 0.0), 1.0) for name, rank in ranks.items()}
    return ranks, {"quadrature_error": max(fit.grid.errors.values())}


def _truth(rng, design: pd.DataFrame, process: Process, hyper: dict[str, float]):
    """Draw the paths of the genres, (genre, period) with one period more, and the effects."""
    idx, when = design["genre_idx"].to_numpy(), design["period"].to_numpy()
    n_genres, n_periods = idx.max() + 1, np.ptp(when) + 2
    parameters = np.array([[hyper[name] for name in process.names]])
    away = simulate(process, parameters, np.ones(n_periods, int), n_genres, rng)[0]
    level = rng.normal(hyper["mu_global"], hyper["sigma_genre"], n_genres)
    paths = (level + away).T
    return paths, rng.normal(paths[idx, when - when.min()], hyper["sigma_creator"])


def _rank_given_hyper(fit: DriftFit, data: pd.DataFrame, hyper: dict[str, float]) -> float:
    """Posterior probability that the data are less likely than given the true hyperparameters."""
    likelihood = DriftLikelihood(data, fit.priors.mu_global, fit.process)
    values = np.array([[hyper[name] for name in ("sigma_creator", *fit.process.names)]])
    nodes = fit.grid.nodes.sigma_genre
    drawn = likelihood.given(likelihood.sums(fit.grid.values), nodes)[0]
    true = likelihood.given(likelihood.sums(values), np.array([[hyper["sigma_genre"]]]))[0]
    return float(np.exp(fit.grid.log_weight)[drawn < true].sum())


def _log_p_given_paths(data: pd.DataFrame, paths: np.ndarray) -> np.ndarray:
    """Log density of the estimates around paths (…, genre, period), creators spread by 1 dollar.

    The spread is the same whatever the hyperparameters: this is a function of paths and data.
    """
    idx, when = data["genre_idx"].to_numpy(), data["period"].to_numpy()
    center = paths[..., idx, when - when.min()]
    return norm.logpdf(data["effect_hat"], center, np.hypot(1.0, data["se"])).sum(axis=-1)
