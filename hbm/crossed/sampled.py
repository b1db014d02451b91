"""The crossed model as one would write it for a sampler, to measure the exact fit against.

Creators are integrated out and every other effect is a parameter; three ways to write the same.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from hbm.crossed import _levels
from hbm.crossed.posterior import CrossedPriors
from hbm.model import compile_model, sample

#: How the effects of levels and cells are given to the sampler.
PARAMETERIZATIONS = ("centered", "noncentered", "zerosum")


def sample_crossed(
    summaries: pd.DataFrame,
    factors: tuple[str, str] = ("genre", "segment"),
    *,
    parameterization: str = "noncentered",
    priors: CrossedPriors = CrossedPriors(),
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    random_seed: int = 42,
    target_accept: float = 0.95,
):
    """Sample the crossed model with PyMC and nutpie's No-U-Turn sampler.

    Parameters
    ----------
    summaries, factors, priors
        As for `hbm.fit_crossed_model`.
    parameterization : {"centered", "noncentered", "zerosum"}
        ``zerosum`` is another model: the effects of each factor sum to 0, and the interactions of
        each row and of each column, with the same priors on what are then other sigmas.
    draws, tune, chains : int
        Kept and warm-up draws a chain, and chains.
    random_seed : int
    target_accept : float

    Returns
    -------
    DataTree
        ``posterior``: ``mu_global, sigma_creator, sigma_interaction``, ``sigma_factor`` (factor),
        ``effect_<factor>`` and ``mu_cell``; ``sample_stats``; seconds, with those of compiling, in
        its attributes.

    Raises
    ------
    DataError
        As `hbm.fit_crossed_model`.
    ValueError
        If the parameterization is unknown.
    """
    import pymc as pm

    if parameterization not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"unknown parameterization {parameterization!r}; known: {known}")
    start = time.perf_counter()
    names, level_idx = _levels(summaries, factors)
    coords = {"factor": list(factors)} | dict(zip(factors, names, strict=True))

    def effects(name, sigma, dims):
        if parameterization == "centered":
            return pm.Normal(name, 0, sigma, dims=dims)
        if parameterization == "zerosum":
            offset = pm.ZeroSumNormal(f"{name}_offset", n_zerosum_axes=len(dims), dims=dims)
        else:
            offset = pm.Normal(f"{name}_offset", dims=dims)
        return pm.Deterministic(name, sigma * offset, dims=dims)

    with pm.Model(coords=coords):
        mu = priors.mu_global.pymc("mu_global")
        creator, interaction = (
            getattr(priors, name).pymc(name) for name in ("sigma_creator", "sigma_interaction")
        )
        sigmas = [
            prior.pymc(f"sigma_{name}")
            for prior, name in zip(priors.sigma_factors, factors, strict=True)
        ]
        pm.Deterministic("sigma_factor", pm.math.stack(sigmas), dims="factor")
        first, second = (
            effects(f"effect_{name}", sigma, (name,))
            for name, sigma in zip(factors, sigmas, strict=True)
        )
        cells = mu + first[:, None] + second[None, :] + effects("interaction", interaction, factors)
        pm.Deterministic("mu_cell", cells, dims=factors)
        spread = pm.math.sqrt(creator**2 + summaries["se"].to_numpy(float) ** 2)
        observed = summaries["effect_hat"].to_numpy(float)
        pm.Normal("effect_hat", cells[*level_idx.T], spread, observed=observed)
        model = pm.modelcontext(None)
    sampled = sample(
        compile_model(model),
        draws=draws,
        tune=tune,
        chains=chains,
        random_seed=random_seed,
        target_accept=target_accept,
    )
    sampled.attrs.update(
        parameterization=parameterization,
        random_seed=random_seed,
        seconds=time.perf_counter() - start,
    )
    return sampled


def sampling_summary(sampled) -> dict[str, float]:
    """Return seconds, divergences, and the worst R-hat and effective sample size.

    They are those of the hyperparameters and of the means of the cells, which are the conditional
    means toward which creators are pulled.
    """
    import arviz as az

    names = ["mu_global", "sigma_creator", "sigma_interaction", "sigma_factor", "mu_cell"]
    watched = sampled["posterior"].dataset[names]
    ess = [az.ess(watched, method=kind).to_array().values for kind in ("bulk", "tail")]
    return {
        "seconds": sampled.attrs["seconds"],
        "divergences": int(sampled["sample_stats"]["diverging"].values.sum()),
        "max_rhat": float(np.nanmax(az.rhat(watched).to_array().values)),
        "min_ess": float(min(np.nanmin(values) for values in ess)),
    }


def prior_scales(
    shape: tuple[int, int], sigma_factors: tuple[float, float], sigma_interaction: float
) -> pd.DataFrame:
    """Compare what the same sigmas mean for independent effects and for effects that sum to 0.

    Independent normals are the sum of a mean and of deviations from it that sum to 0, all of them
    independent. So the two models are one, with other names: a factor's sigma² of effects that
    sum to 0 is sigma² + sigma_interaction² / (levels of the other factor) of independent ones.

    Parameters
    ----------
    shape : (int, int)
        Numbers of levels.
    sigma_factors : (float, float)
    sigma_interaction : float

    Returns
    -------
    DataFrame
        One row a quantity: ``quantity``; ``independent, sum_to_zero``, its prior standard
        deviation given the sigmas, all around mu_global.
    """
    (j, k), (a, b), c = shape, np.square(sigma_factors), sigma_interaction**2
    left, other = 1 - 1 / j, 1 - 1 / k
    variances = {
        "effect of a level of the first factor": (a, a * left),
        "difference of two such effects": (2 * a, 2 * a),
        "difference of two rows' means": (2 * (a + c / k), 2 * a),
        "interaction": (c, c * left * other),
        "mean of a cell": (a + b + c, a * left + b * other + c * left * other),
        "mean of all cells": (a / j + b / k + c / (j * k), 0.0),
    }
    rows = [(name, np.sqrt(one), np.sqrt(two)) for name, (one, two) in variances.items()]
    return pd.DataFrame(rows, columns=["quantity", "independent", "sum_to_zero"])
