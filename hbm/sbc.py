"""Simulation-based calibration: is what is computed the posterior that the model defines?

Parameters are drawn from the priors and estimates from the model; then the rank of every true
value among the draws of its posterior is uniform, and so is the rank of any function of
parameters and data (Talts et al. 2018, arXiv:1804.06788). Which functions are ranked decides what
is noticed: the density of the data is needed, for a "posterior" that has ignored the data keeps
every rank of a parameter uniform (Modrák et al. 2025, Bayesian Analysis 20, 461-488).

The library simuk does not serve: it compiles the model anew for each data set, ranks the free
variables only (here neither mu_global nor any effect is one), and does not thin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from hbm.checks import require_columns
from hbm.data import validate_summaries
from hbm.diagnostics import HYPERPARAMETERS, hyper_draws
from hbm.estimates import effect_cdf, mixture
from hbm.exact.draws import draw_effects, hyper_cdf
from hbm.gaussian import Estimates, Hyper, log_density, mixture_cdf
from hbm.intervals import LEVEL
from hbm.model import ENGINES, fit_hierarchical_model
from hbm.priors import Fixed, Priors
from hbm.replicate import replicate
from hbm.studies import simulate_summaries
from hbm.uniform import uniform_pvalue

#: What is ranked: the hyperparameters, the mean of the first genre, the effects of the creators
#: with the largest and the smallest standard error, and the log density of all estimates, given
#: the hyperparameters (effects integrated out) and given the creators' effects.
QUANTITIES = (
    *HYPERPARAMETERS,
    "mu_genre",
    "tau_smallest",
    "tau_largest",
    "log_p_given_hyper",
    "log_p_given_tau",
)

#: A planted error: takes the design and the priors, returns what the fit is given instead.
Fault = Callable[[pd.DataFrame, Priors], tuple[pd.DataFrame, Priors]]


@dataclass(frozen=True)
class Calibration:
    """The ranks of true values in their posteriors.

    Attributes
    ----------
    ranks : DataFrame
        One row a replication, one column for each of `QUANTITIES`: the posterior probability of
        a smaller value, in (0, 1); uniform if the posterior is right. A rank r among n draws
        stands as (r + u) / (n + 1) with u uniform, which is uniform where the rank is.
    fits : DataFrame
        One row a replication: ``ranked_draws`` (number of draws that were ranked), and
        ``quadrature_error`` of an exact fit or ``min_ess, max_rhat, divergences`` of a sampled
        one, over all ranked quantities.
    """

    ranks: pd.DataFrame
    fits: pd.DataFrame


class Joint(NamedTuple):
    """Draws of all parameters: `mu_genre` (draw, genre), `tau` (draw, creator of the frame)."""

    hyper: Hyper
    mu_genre: np.ndarray
    tau: np.ndarray


def run_sbc(
    design: pd.DataFrame,
    n_replications: int = 1000,
    *,
    engine: str = "exact",
    priors: Priors = Priors(),
    fault: Fault | None = None,
    draws: int = 250,
    tune: int = 400,
    chains: int = 4,
    seed: int = 42,
) -> Calibration:
    """Rank true values, drawn from the priors, in the posteriors of data simulated from them.

    Parameters
    ----------
    design : DataFrame
        ``creator_id, genre_idx, se``: the same creators and standard errors in each replication.
    n_replications : int
    engine : {"exact", "nuts"}
        ``exact`` takes the parameters' distribution functions, and ranks the log densities
        among independent draws. ``nuts`` compiles the marginal model once, and ranks draws
        that are thinned by the smallest effective sample size, bulk or tail, of what is ranked.
    priors : Priors
        All three with a density.
    fault : callable, optional
        An error planted into the fit, such as those of `hbm.planted.FAULTS`.
    draws : int
        Draws of a chain (``nuts``), or in all (``exact``).
    tune, chains : int
        Warm-up draws and chains (``nuts``).
    seed : int
        The truths and data are the same whatever engine, fault and number of replications.

    Returns
    -------
    Calibration

    Raises
    ------
    DataError
        If the design breaks a rule of `validate_summaries`.
    ValueError
        If the engine is unknown or a hyperparameter is fixed.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    require_densities(priors)
    design = _as_design(design)
    given, given_priors = fault(design, priors) if fault else (design, priors)
    settings = {"design": design, "priors": priors}
    if engine == "exact":
        settings |= {"given": given, "given_priors": given_priors, "draws": draws}
        return collect_ranks(replicate(_exact_replication, n_replications, seed=seed, **settings))
    settings |= {"given": given, "given_priors": given_priors}
    settings |= {"draws": draws, "tune": tune, "chains": chains}
    # The model is compiled once, in this process, and its chains are parallel already.
    settings |= {"jobs": 1}
    return collect_ranks(replicate(_nuts_replication, n_replications, seed=seed, **settings))


def run_user_sbc(
    n_replications: int = 300,
    *,
    variance: str = "welch",
    priors: Priors = Priors(),
    draws: int = 250,
    seed: int = 42,
    **platform,
) -> Calibration:
    """Do the same where the standard errors are estimated from users, as they are in use.

    The model takes standard errors as known. Here they are not, so this measures how far from
    calibrated that leaves the posterior, not whether it was computed rightly.

    Parameters
    ----------
    n_replications : int
    variance : {"welch", "moderated", "pooled"}
        As for `hbm.variance.standard_errors`; the users are the same whichever is chosen.
    priors : Priors
    draws : int
        Draws among which the log densities are ranked.
    seed : int
    **platform
        As for `hbm.studies.simulate_summaries`, but for what the priors give.

    Returns
    -------
    Calibration
        From the exact engine; the densities are those given the estimated standard errors.
    """
    require_densities(priors)
    settings = {"variance": variance, "priors": priors, "draws": draws, "platform": platform}
    return collect_ranks(replicate(_user_replication, n_replications, seed=seed, **settings))


def sbc_verdicts(calibration: Calibration, level: float = LEVEL) -> pd.DataFrame:
    """Judge whether the ranks of each quantity are uniform.

    Parameters
    ----------
    calibration : Calibration
    level : float
        Probability that a right posterior passes on all quantities together, at least.

    Returns
    -------
    DataFrame
        One row a quantity: ``quantity, n_replications, departure`` (largest difference between
        the share of ranks up to a place and the uniform share), ``p_value`` (of that quantity
        alone), ``p_adjusted`` (times the number of quantities: Bonferroni), ``uniform``
        (p_adjusted > 1 - level). The last says whether the line stays within the band of level
        ``1 - (1 - level) / n_quantities``.
    """
    from scipy.stats import kstest

    ranks = calibration.ranks
    p_value = np.array([uniform_pvalue(ranks[name]) for name in ranks])
    p_adjusted = np.minimum(1.0, len(p_value) * p_value)
    return pd.DataFrame(
        {
            "quantity": ranks.columns,
            "n_replications": len(ranks),
            "departure": [kstest(ranks[name], "uniform").statistic for name in ranks],
            "p_value": p_value,
            "p_adjusted": p_adjusted,
            "uniform": p_adjusted > 1 - level,
        }
    )


# ------------------------------------------------------------------------- replications


def require_densities(priors: Priors) -> None:
    """Raise ValueError where a prior is fixed: truths cannot be drawn from it."""
    fixed = [name for name in HYPERPARAMETERS if isinstance(getattr(priors, name), Fixed)]
    if fixed:
        raise ValueError(f"truths are drawn from the priors: {', '.join(fixed)} is fixed")


def _as_design(design: pd.DataFrame) -> pd.DataFrame:
    columns = ["creator_id", "genre_idx", "se"]
    require_columns(design, columns, "design")
    design = design[columns].reset_index(drop=True)
    validate_summaries(design.assign(effect_hat=0.0))
    return design


def _draw_hyper(rng: np.random.Generator, priors: Priors) -> Hyper:
    return Hyper(*(density.rvs(1, random_state=rng) for density in _densities(priors)))


@cache
def _densities(priors: Priors) -> list:
    """SciPy's distributions of the hyperparameters: they take long to make."""
    return [getattr(priors, name).scipy() for name in HYPERPARAMETERS]


def simulate_joint(rng, design: pd.DataFrame, priors: Priors) -> tuple[Joint, pd.DataFrame]:
    """Draw all parameters from the priors, and the estimates from them."""
    hyper = _draw_hyper(rng, priors)
    genre_idx = design["genre_idx"].to_numpy()
    mu_genre = rng.normal(hyper.mu_global, hyper.sigma_genre, (1, genre_idx.max() + 1))
    tau = rng.normal(mu_genre[:, genre_idx], hyper.sigma_creator)
    return Joint(hyper, mu_genre, tau), design.assign(effect_hat=rng.normal(tau[0], design["se"]))


def _quantities(data: pd.DataFrame, joint: Joint) -> dict[str, np.ndarray]:
    """Return the ranked quantities of each draw, shape (draw,)."""
    smallest, largest = _extremes(data)
    z = (data["effect_hat"].to_numpy() - joint.tau) / data["se"].to_numpy()
    values = (
        *joint.hyper,
        joint.mu_genre[:, 0],
        joint.tau[:, smallest],
        joint.tau[:, largest],
        log_density(Estimates.from_frame(data), joint.hyper),
        -0.5 * np.square(z).sum(axis=1),  # but for a constant
    )
    return dict(zip(QUANTITIES, values, strict=True))


def _extremes(data: pd.DataFrame) -> tuple[int, int]:
    """Positions of the creators with the largest and with the smallest standard error."""
    se = data["se"].to_numpy()
    return int(se.argmax()), int(se.argmin())


def rank_among(rng: np.random.Generator, drawn: np.ndarray, true: float) -> float:
    """Return the share of draws below a true value, uniform in (0, 1) where the rank is."""
    return ((drawn < true).sum() + rng.random()) / (drawn.size + 1)


def collect_ranks(results: list[tuple[dict, dict]]) -> Calibration:
    """Gather what the replications returned: ranks, and what is told of each fit."""
    ranks, fits = (pd.DataFrame(list(part)) for part in zip(*results, strict=True))
    return Calibration(ranks[list(QUANTITIES)], fits)


def _exact_replication(rng, *, design, priors, given, given_priors, draws):
    truth, data = simulate_joint(rng, design, priors)
    return rank_exactly(rng, truth, data, given, given_priors, draws)


def _user_replication(rng, *, variance, priors, draws, platform):
    hyper = _draw_hyper(rng, priors)
    mean, sd, sigma_creator = (float(values[0]) for values in hyper)
    data, truth = simulate_summaries(
        rng,
        variance=variance,
        genre_mean=mean,
        genre_sd=sd,
        sigma_creator=sigma_creator,
        **platform,
    )
    joint = Joint(hyper, truth["genre_effects"][None], truth["creator_effects"][None])
    return rank_exactly(rng, joint, data, data, priors, draws)


def rank_exactly(rng, truth: Joint, data, given, priors: Priors, draws: int):
    """Fit `given` to the estimates of `data` with the exact engine, and rank the truth."""
    given = given.assign(effect_hat=data["effect_hat"])
    idata = fit_hierarchical_model(given, engine="exact", priors=priors, draws=0)
    seed = int(rng.integers(2**31))
    drawn = draw_effects(idata, draws=draws, chains=1, random_seed=seed)
    joint = Joint(hyper_draws(drawn), drawn["mu_genre"].values[0], drawn["tau"].values[0])
    true, drawn = _quantities(data, truth), _quantities(data, joint)
    ranks = {name: rank_among(rng, drawn[name], true[name]) for name in QUANTITIES[-2:]}
    ranks |= {name: hyper_cdf(idata, name, float(true[name][0])) for name in HYPERPARAMETERS}
    genre, _, weights = mixture(idata)
    ranks["mu_genre"] = mixture_cdf(genre, truth.mu_genre[0], weights)[0]
    effects = effect_cdf(idata, truth.tau[0])
    ranks["tau_smallest"], ranks["tau_largest"] = effects[list(_extremes(data))]
    # Sums of weights are 1 but for rounding.
    ranks = {name: min(max(rank, 0.0), 1.0) for name, rank in ranks.items()}
    return ranks, {"ranked_draws": draws, "quadrature_error": idata.attrs["quadrature_error"]}


def _nuts_replication(rng, *, design, priors, given, given_priors, draws, tune, chains):
    import arviz as az
    import xarray as xr

    truth, data = simulate_joint(rng, design, priors)
    given = given.assign(effect_hat=data["effect_hat"])
    sampled = fit_hierarchical_model(
        given,
        priors=given_priors,
        draws=draws,
        tune=tune,
        chains=chains,
        random_seed=int(rng.integers(2**31)),
    )
    posterior = sampled["posterior"].dataset
    effects = (posterior[name].values for name in ("mu_genre", "tau"))
    flat = (values.reshape(chains * draws, -1) for values in effects)
    true = _quantities(data, truth)
    drawn = _quantities(data, Joint(hyper_draws(posterior), *flat))
    shape = chains, draws
    drawn = xr.Dataset(
        {name: (("chain", "draw"), values.reshape(shape)) for name, values in drawn.items()}
    )
    ess = min(float(az.ess(drawn, method=kind).to_array().min()) for kind in ("bulk", "tail"))
    step = int(np.ceil(drawn["tau_largest"].size / ess))
    thinned = drawn.isel(draw=slice(None, None, step))
    ranks = {name: rank_among(rng, thinned[name].values, true[name]) for name in QUANTITIES}
    fit = {
        "ranked_draws": thinned["tau_largest"].size,
        "min_ess": ess,
        "max_rhat": float(az.rhat(drawn).to_array().max()),
        "divergences": int(sampled["sample_stats"]["diverging"].values.sum()),
    }
    return ranks, fit
