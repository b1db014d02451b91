"""The hierarchical model: creators within genres within the platform.

mu_genre[g] ~ Normal(mu_global, sigma_genre), tau[i] ~ Normal(mu_genre[g_i], sigma_creator),
effect_hat[i] ~ Normal(tau[i], se[i]) with se known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from hbm.checks import DataError
from hbm.data import validate_summaries
from hbm.diagnostics import HYPERPARAMETERS, hyper_draws
from hbm.exact import fit_exact
from hbm.gaussian import (
    Estimates,
    creator_moments,
    genre_moments,
)
from hbm.memory import merged
from hbm.priors import Fixed, Priors, refuse_memory

#: Target acceptance rates: without the creators the posterior is cheap, so small steps are too.
TARGET_ACCEPT = {"marginal": 0.99, "centered": 0.9, "noncentered": 0.9}

ENGINES = ("nuts", "exact")

#: Draws of tau larger than this many values are refused: 10^8 doubles are 0.8 GB.
MAX_VALUES = 10**8

SAMPLE_STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "logp": "lp",
    "depth": "tree_depth",
    "maxdepth_reached": "reached_max_tree_depth",
    "n_steps": "n_steps",
    "step_size": "step_size",
    "mean_tree_accept": "acceptance_rate",
}


def fit_hierarchical_model(
    summaries: pd.DataFrame,
    *,
    engine: str = "nuts",
    parameterization: str = "marginal",
    priors: Priors = Priors(),
    draws: int = 2000,
    tune: int = 1000,
    chains: int = 4,
    random_seed: int = 42,
    target_accept: float | None = None,
    covariates: Sequence[str] = (),
    sigma_by_genre: bool = False,
):
    """Fit the hierarchical model and return its posterior.

    Parameters
    ----------
    summaries : DataFrame
        One row a creator: ``creator_id, genre_idx, effect_hat, se`` (and ``genre`` for names).
    engine : {"nuts", "exact"}
        ``nuts`` samples with PyMC and nutpie's No-U-Turn sampler. ``exact`` integrates over
        the two standard deviations by quadrature and everything else in closed form.
    parameterization : {"marginal", "centered", "noncentered"}
        ``marginal`` integrates creator and genre effects out, samples the three
        hyperparameters, and draws genre and creator effects exactly afterwards. ``centered``
        and ``noncentered`` sample every effect.
    priors : Priors
        In the unit of the effects. With a memory of past batches (`hbm.learn_priors`), the
        posterior holds the genres that are only remembered too, behind those of the data.
    draws, tune, chains : int
        Kept and warm-up draws a chain, and chains. With ``engine="exact"`` the draws are
        independent, and ``draws=0`` leaves them out: `extract_hbm_estimates` needs none.
    random_seed : int
    target_accept : float, optional
        Target acceptance rate; when omitted .99 for ``marginal`` and .9 for the others.
    covariates : sequence of str
        Columns of `summaries` that effects may go with, such as the logarithm of a creator's
        users; with ``engine="exact"`` only (`hbm.exact.covariates`).
    sigma_by_genre : bool
        Give each genre its own standard deviation of creators, log-normal around sigma_creator:
        ``log sigma_by_genre[g] ~ Normal(log sigma_creator, sigma_spread)``; with NUTS and
        ``marginal`` only.

    Returns
    -------
    DataTree
        Groups ``posterior`` (``mu_global, sigma_genre, sigma_creator``; ``mu_genre`` by genre;
        ``tau`` by creator; where asked for, ``sigma_spread`` and ``sigma_by_genre``),
        ``sample_stats``, ``observed_data`` and ``constant_data``; dims
        ``chain, draw, creator, genre``; settings and seconds in its attributes. With
        ``engine="exact"`` a group ``quadrature`` takes the place of ``sample_stats``
        (`hbm.exact.fit_exact`).

    Raises
    ------
    DataError
        If the summaries break a rule.
    ValueError
        If a setting is unknown, or the draws would not fit into memory.
    """
    validate_summaries(summaries)
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if parameterization not in TARGET_ACCEPT:
        known = ", ".join(TARGET_ACCEPT)
        raise ValueError(f"unknown parameterization {parameterization!r}; known: {known}")
    if sigma_by_genre and (engine, parameterization) != ("nuts", "marginal"):
        raise ValueError('sigma_by_genre needs engine="nuts" and parameterization="marginal"')
    if sigma_by_genre and isinstance(priors.sigma_creator, Fixed):
        raise ValueError("sigma_by_genre needs a prior of sigma_creator that is not Fixed")
    coords = coords_of(summaries, priors)
    if engine == "exact":
        return fit_exact(
            summaries,
            coords,
            priors=priors,
            draws=draws,
            chains=chains,
            random_seed=random_seed,
            covariates=covariates,
        )
    if covariates:
        raise ValueError('covariates need engine="exact"')
    check_sampling(len(summaries), draws, tune, chains, target_accept)
    if parameterization == "centered" and priors.sigma_genre == Fixed(0):
        raise ValueError(
            "centered needs sigma_genre > 0: genre effects without spread have no density"
        )
    if parameterization != "marginal" or sigma_by_genre:
        refuse_memory(priors, f"parameterization={parameterization!r}, {sigma_by_genre=}")
    data = Estimates.from_frame(summaries).remembering(priors.memory, coords["genre"])
    start = time.perf_counter()
    if parameterization == "marginal":
        places = None if data.places is None else tuple(data.places)
        compiled = _compiled(len(data.se), data.n_genres, priors, sigma_by_genre, places)
        compiled = compiled.with_data(
            effect_hat=data.effect_hat, se=data.se, genre_idx=data.genre_idx
        )
    else:
        build = {"centered": _centered, "noncentered": _noncentered}[parameterization]
        compiled = compile_model(build(data, priors))
    sampled = sample(
        compiled,
        draws=draws,
        tune=tune,
        chains=chains,
        random_seed=random_seed,
        target_accept=target_accept or TARGET_ACCEPT[parameterization],
    )
    names = (*HYPERPARAMETERS, *(("sigma_spread", "sigma_by_genre") if sigma_by_genre else ()))
    posterior = {name: sampled["posterior"][name].values for name in names}
    if parameterization == "marginal":
        posterior |= _draw_effects(data, sampled, random_seed)
    else:
        posterior["mu_genre"] = sampled["posterior"]["mu_genre"].values
        posterior["tau"] = data.unsort(sampled["posterior"]["tau"].values)
    stats = sampled["sample_stats"]
    return as_datatree(
        summaries,
        posterior,
        {ours: stats[theirs].values for theirs, ours in SAMPLE_STATS.items()},
        attrs={
            "engine": engine,
            "parameterization": parameterization,
            "priors": json.dumps(priors.describe()),
            "prior_parameters": json.dumps(priors.parameters()),
            "fixed": [n for n in names if isinstance(getattr(priors, n, None), Fixed)],
            "random_seed": random_seed,
            "tune": tune,
            "seconds": time.perf_counter() - start,
        },
        coords=coords,
    )


def check_sampling(n_creators: int, draws: int, tune: int, chains: int, target_accept) -> None:
    """Refuse settings that cannot be sampled, and draws that would not fit into memory."""
    if min(draws, tune, chains) < 1:
        raise ValueError(f"draws, tune and chains must be >= 1, got {draws}, {tune}, {chains}")
    if target_accept is not None and not 0 < target_accept < 1:
        raise ValueError(f"target_accept must lie between 0 and 1, got {target_accept}")
    if draws * chains * n_creators > MAX_VALUES:
        raise ValueError(
            f"{draws * chains:,} draws of {n_creators:,} creators would take "
            f"{draws * chains * n_creators * 8 / 1e9:.1f} GB; ask for fewer draws"
        )


@lru_cache(maxsize=8)
def _compiled(
    n_creators: int, n_genres: int, priors: Priors, sigma_by_genre: bool, places: tuple | None
):
    """Compile the marginal model once in a process for all data of one shape."""
    shape = np.arange(n_creators) * n_genres // n_creators
    data = Estimates.from_arrays(np.zeros(n_creators), np.ones(n_creators), shape)
    if places is not None:
        data = replace(data, memory=priors.memory, places=np.array(places))
    return compile_model(_marginal(data, priors, sigma_by_genre=sigma_by_genre))


def _marginal(data: Estimates, priors: Priors, *, sigma_by_genre: bool = False):
    """Three parameters; the density of the estimates is `hbm.gaussian.log_density`.

    mu_global is sampled as its distance from its mean given the two standard deviations and the
    data, in its standard deviations: as itself it is a funnel where the genres are few.
    """
    import pymc as pm
    import pytensor.tensor as pt

    with pm.Model() as model:
        effect_hat, se = pm.Data("effect_hat", data.effect_hat), pm.Data("se", data.se)
        genre_idx = pm.Data("genre_idx", data.genre_idx)

        def by_genre(values):
            return pt.zeros(data.n_genres)[genre_idx].inc(values)

        sigma_genre = priors.sigma_genre.pymc("sigma_genre")
        if sigma_by_genre:
            sigma_creator = _own_sigmas(data.n_genres, priors)[genre_idx]
        else:
            sigma_creator = priors.sigma_creator.pymc("sigma_creator")
        v = 1 / (sigma_creator**2 + se**2)
        weight = by_genre(v)
        mean = by_genre(v * effect_hat) / weight
        residual = by_genre(pt.log(v) - v * (effect_hat - mean[genre_idx]) ** 2)
        pm.Potential("within_genres", 0.5 * pt.sum(residual - pt.log(weight)))
        if data.memory is not None:
            past = data.memory.pymc(sigma_creator)
            mean, weight, more = merged(past, data.places, mean, weight, data.n_genres, pt)
            pm.Potential("past_batches", more)
        between_genres(mean, weight, sigma_genre, priors)
    return model


def between_genres(mean, weight, sigma_genre, priors: Priors):
    """Add mu_global to the PyMC model on the stack, and how genres lie around it; return it.

    Parameters
    ----------
    mean, weight : tensor, shape (genre,)
        What the creators say about their genre's mean, and how precisely.
    sigma_genre : tensor
    priors : Priors
    """
    import pymc as pm
    import pytensor.tensor as pt

    var, mu = sigma_genre**2 + 1 / weight, priors.mu_global
    precision = 1 / mu.sigma**2 + pt.sum(1 / var)
    center = (mu.mu / mu.sigma**2 + pt.sum(mean / var)) / precision
    offset = pm.Normal("mu_offset")
    mu_global = pm.Deterministic("mu_global", center + offset / pt.sqrt(precision))
    at_center = pt.sum(pm.logp(pm.Normal.dist(center, pt.sqrt(var)), mean))
    prior = pm.logp(pm.Normal.dist(mu.mu, mu.sigma), center)
    pm.Potential("between_genres", at_center + prior - 0.5 * pt.log(precision))
    return mu_global


def _own_sigmas(n: int, priors: Priors):
    """Standard deviations by genre, sampled as their mean logarithm and deviations from it.

    The mean is what the data know well; how far sigma_creator lies from it is next to prior.
    """
    import pymc as pm
    import pytensor.tensor as pt

    spread = priors.sigma_spread.pymc("sigma_spread")
    mean = pm.Flat("log_sigma_mean")
    away = pm.Normal("log_sigma_away", 0, 1 / np.sqrt(n))
    log_sigma = mean - spread * away
    deviation = pm.ZeroSumNormal("log_sigma_deviation", shape=n) if n > 1 else pt.zeros(1)
    sigma = pm.Deterministic("sigma_creator", pt.exp(log_sigma))
    density = pm.logp(priors.sigma_creator.pymc(None), sigma)
    pm.Potential("sigma_creator_prior", density + log_sigma)
    return pm.Deterministic("sigma_by_genre", pt.exp(mean + spread * deviation))


def _centered(data: Estimates, priors: Priors):
    """Every effect is a parameter, stated as it stands in the model."""
    import pymc as pm

    with pm.Model() as model:
        hyper = {name: getattr(priors, name).pymc(name) for name in HYPERPARAMETERS}
        mu_genre = pm.Normal(
            "mu_genre", hyper["mu_global"], hyper["sigma_genre"], shape=data.n_genres
        )
        tau = pm.Normal("tau", mu_genre[data.genre_idx], hyper["sigma_creator"], shape=len(data.se))
        pm.Normal("effect_hat", tau, data.se, observed=data.effect_hat)
    return model


def _noncentered(data: Estimates, priors: Priors):
    """Every effect is an offset from its mean, in units of its standard deviation."""
    import pymc as pm

    with pm.Model() as model:
        hyper = {name: getattr(priors, name).pymc(name) for name in HYPERPARAMETERS}
        genre_offset = pm.Normal("genre_offset", shape=data.n_genres)
        creator_offset = pm.Normal("creator_offset", shape=len(data.se))
        mu_genre = pm.Deterministic(
            "mu_genre", hyper["mu_global"] + hyper["sigma_genre"] * genre_offset
        )
        tau = pm.Deterministic(
            "tau", mu_genre[data.genre_idx] + hyper["sigma_creator"] * creator_offset
        )
        pm.Normal("effect_hat", tau, data.se, observed=data.effect_hat)
    return model


def compile_model(model):
    """Compile a PyMC model for `sample`; its data can be exchanged by ``with_data(…)``."""
    import nutpie

    return nutpie.compile_pymc_model(model)


def sample(compiled, *, draws: int, tune: int, chains: int, random_seed: int, target_accept: float):
    """Sample with nutpie's No-U-Turn sampler, on all cores and without a word."""
    import nutpie

    return nutpie.sample(
        compiled,
        draws=draws,
        tune=tune,
        chains=chains,
        seed=random_seed,
        target_accept=target_accept,
        save_warmup=False,
        progress_bar=False,
    )


def _draw_effects(data: Estimates, sampled, random_seed: int) -> dict[str, np.ndarray]:
    """Draw genre and creator effects exactly, given each draw of the hyperparameters."""
    rng = np.random.default_rng([random_seed, 1])
    posterior = sampled["posterior"].dataset
    hyper = hyper_draws(posterior)
    genre = genre_moments(data, hyper)
    mu_genre = rng.normal(genre.mean, np.sqrt(genre.var))
    creator = creator_moments(data, mu_genre, hyper.sigma_creator)
    tau = rng.normal(creator.mean, np.sqrt(creator.var))
    shape = (posterior.sizes["chain"], posterior.sizes["draw"], -1)
    return {"mu_genre": mu_genre.reshape(shape), "tau": data.unsort(tau).reshape(shape)}


def coords_of(summaries: pd.DataFrame, priors: Priors = Priors()) -> dict[str, np.ndarray]:
    """Return the ids and names of the data as coordinates; what is only remembered comes last."""
    genres = np.arange(int(summaries["genre_idx"].max()) + 1).astype(str)
    if "genre" in summaries:
        first = np.unique(summaries["genre_idx"].to_numpy(int), return_index=True)[1]
        genres = summaries["genre"].iloc[first].to_numpy(dtype=object)
    if priors.memory is not None:
        if "genre" not in summaries:
            raise DataError("summaries: column 'genre' is needed to know genres of past batches by")
        known = set(map(str, genres))
        more = [genre for genre in priors.memory.genres if genre not in known]
        genres = np.array([*genres, *more], dtype=object)
    return {"creator": pd.Index(summaries["creator_id"], name="creator"), "genre": genres}


def as_datatree(summaries: pd.DataFrame, posterior, sample_stats, attrs, coords=None):
    """Return draws and data as ArviZ wants them."""
    import arviz as az

    tree = az.from_dict(
        {
            "posterior": posterior,
            "sample_stats": sample_stats,
            "observed_data": {"effect_hat": summaries["effect_hat"].to_numpy(float)},
            "constant_data": {
                "se": summaries["se"].to_numpy(float),
                "genre_idx": summaries["genre_idx"].to_numpy(),
            },
        },
        coords=coords or coords_of(summaries),
        dims={
            "mu_genre": ["genre"],
            "sigma_by_genre": ["genre"],
            "tau": ["creator"],
            "effect_hat": ["creator"],
            "se": ["creator"],
            "genre_idx": ["creator"],
        },
    )
    tree.attrs.update(attrs)
    return tree
