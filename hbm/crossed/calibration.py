"""Simulation-based calibration of the crossed fit: is it the posterior that the model defines?

As `hbm.sbc`, whose verdicts and figure take what this returns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from hbm.crossed import fit_crossed_model
from hbm.crossed.likelihood import CrossedLikelihood, Sigmas
from hbm.crossed.posterior import CrossedPriors, make_likelihood
from hbm.crossed.study import FACTORS, SEGMENTS, names_of
from hbm.data import GENRES
from hbm.replicate import replicate
from hbm.sbc import Calibration

#: What is ranked: the hyperparameters, the effect of the first level of either factor, the means
#: of a cell that has creators and of one that has none, the effects of the creators with the
#: largest and the smallest standard error, and the log density of all estimates, given the
#: hyperparameters (effects integrated out) and given the creators' effects.
QUANTITIES = (
    "mu_global",
    "sigma_first",
    "sigma_second",
    "sigma_interaction",
    "sigma_creator",
    "effect_first",
    "effect_second",
    "mu_cell",
    "mu_cell_empty",
    "tau_smallest",
    "tau_largest",
    "log_p_given_hyper",
    "log_p_given_tau",
)

#: A planted error: takes the data and the priors, returns what the fit is given instead.
Fault = Callable[[pd.DataFrame, CrossedPriors], tuple[pd.DataFrame, CrossedPriors]]


def run_crossed_sbc(
    design: pd.DataFrame,
    n_replications: int = 500,
    *,
    priors: CrossedPriors = CrossedPriors(),
    fault: Fault | None = None,
    draws: int = 250,
    seed: int = 42,
) -> Calibration:
    """Rank true values, drawn from the priors, among draws of the posterior of simulated data.

    Parameters
    ----------
    design : DataFrame
        ``creator_id, genre, segment, se``, with an empty cell at least: the same creators and
        standard errors in each replication.
    n_replications : int
    priors : CrossedPriors
        All with a density.
    fault : callable, optional
        An error planted into the fit.
    draws : int
        Independent draws among which the truth is ranked.
    seed : int

    Returns
    -------
    Calibration
        Ranks of `QUANTITIES`, for `hbm.sbc_verdicts`.
    """
    settings = {"design": design, "priors": priors, "fault": fault, "draws": draws}
    results = replicate(_replication, n_replications, seed=seed, **settings)
    ranks, fits = (pd.DataFrame(list(part)) for part in zip(*results, strict=True))
    return Calibration(ranks[list(QUANTITIES)], fits)


def _replication(rng, *, design, priors: CrossedPriors, fault, draws: int):
    codes = [design[name].astype("category").cat.codes.to_numpy(int) for name in FACTORS]
    shape = tuple(code.max() + 1 for code in codes)
    mu, creator, first, second, interaction = (
        prior.scipy().rvs(1, random_state=rng) for prior in (priors.mu_global, *priors.sigmas)
    )
    a, b = rng.normal(0, first, (1, shape[0])), rng.normal(0, second, (1, shape[1]))
    cells = mu + a[:, :, None] + b[:, None] + rng.normal(0, interaction, (1, *shape))
    tau = rng.normal(cells[:, *codes], creator)
    data = design.assign(effect_hat=rng.normal(tau[0], design["se"]))
    given, given_priors = fault(data, priors) if fault else (data, priors)
    fit = fit_crossed_model(
        given,
        FACTORS,
        priors=given_priors,
        draws=draws,
        chains=1,
        random_seed=int(rng.integers(2**31)),
        quick=True,
    )
    drawn = fit["posterior"].dataset.isel(chain=0)
    sigmas = (
        drawn["sigma_creator"].values,
        *drawn["sigma_factor"].values.T,
        drawn["sigma_interaction"].values,
    )
    effects = (drawn[f"effect_{name}"].values for name in FACTORS)
    joint = Sigmas(*sigmas), drawn["mu_global"].values, *effects
    joint = *joint, drawn["mu_cell"].values, drawn["tau"].values
    truth = Sigmas(creator, first, second, interaction), mu, a, b, cells, tau
    parts = data["effect_hat"].to_numpy(), data["se"].to_numpy(float)
    likelihood = make_likelihood(*parts, np.column_stack(codes), shape, priors)
    true, among = (_quantities(data, likelihood, codes, *one) for one in (truth, joint))
    ranks = {
        name: ((among[name] < true[name]).sum() + rng.random()) / (draws + 1) for name in QUANTITIES
    }
    return ranks, {"ranked_draws": draws, "quadrature_error": fit.attrs["quadrature_error"]}


def _quantities(data, likelihood, codes, sigmas: Sigmas, mu, a, b, cells, tau):
    """Return `QUANTITIES` of each draw, shape (draw,)."""
    effect_hat, se = data["effect_hat"].to_numpy(), data["se"].to_numpy(float)
    there = np.zeros(cells.shape[1:], bool)
    there[*codes] = True
    values = (
        mu,
        sigmas.first,
        sigmas.second,
        sigmas.interaction,
        sigmas.creator,
        a[:, 0],
        b[:, 0],
        cells[:, there][:, 0],
        cells[:, ~there][:, 0],
        tau[:, se.argmax()],
        tau[:, se.argmin()],
        log_density_given(likelihood, sigmas, mu),
        -0.5 * np.square((effect_hat - tau) / se).sum(axis=1),  # but for a constant
    )
    return dict(zip(QUANTITIES, values, strict=True))


def log_density_given(likelihood: CrossedLikelihood, sigmas: Sigmas, mu: np.ndarray) -> np.ndarray:
    """Return the log density of the estimates given mu_global too, by Bayes' rule.

    p(d | sigmas, mu) = p(d | sigmas) p(mu | d, sigmas) / p(mu).

    Parameters
    ----------
    likelihood : CrossedLikelihood
    sigmas : Sigmas, shape (draw,)
    mu : ndarray, shape (draw,)

    Returns
    -------
    ndarray, shape (draw,)
    """
    log_density, mean, var = likelihood.between(sigmas)
    prior = likelihood.prior
    after = -0.5 * (np.square(mu - mean) / var + np.log(var))
    before = -0.5 * (np.square((mu - prior.mu) / prior.sigma) + 2 * np.log(prior.sigma))
    return log_density + after - before


def small_design(seed: int = 7, shape: tuple[int, int] = (4, 3), n_creators: int = 60):
    """Return a design for calibration: few creators, uneven cells, one of them empty."""
    rng = np.random.default_rng(seed)
    n_cells = shape[0] * shape[1] - 1
    share = rng.dirichlet(np.full(n_cells, 2.0))
    # Every cell but the last has a creator, so that no level is lost.
    more = rng.choice(n_cells, n_creators - n_cells, p=share)
    first, second = np.divmod(np.concatenate([np.arange(n_cells), more]), shape[1])
    return pd.DataFrame(
        {
            "creator_id": [f"c{i:03d}" for i in range(n_creators)],
            # In alphabetical order, in which a fit numbers the levels.
            "genre": np.sort(names_of(GENRES, shape[0]))[first],
            "segment": np.sort(names_of(SEGMENTS, shape[1]))[second],
            "se": np.exp(rng.uniform(np.log(0.1), np.log(1.0), n_creators)),
        }
    )
