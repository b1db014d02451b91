"""The hurdle model: who pays, and how much, each with creators within genres.

Both parts have the same form. A creator's level, and its effect, lie around the mean of the
genre; control lies half an effect below the level and treatment half an effect above it. The
parts share no parameter, so the posterior is the product of theirs and each is fitted alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pandas as pd
import xarray as xr

from hbm.checks import refuse, require_columns
from hbm.data import GROUPS
from hbm.model import between_genres, check_sampling, compile_model, sample
from hbm.priors import HalfNormal, Normal, Prior, Priors
from hbm.revenue.families import PAYMENTS, Counts, Family, Payers
from hbm.revenue.laplace import Approximation, approximate, draw_approximation
from hbm.revenue.simulate import ARMS

ENGINES = ("nuts", "laplace")

PARAMETERIZATIONS = ("conditional", "centered", "noncentered")

_HIERARCHIES = ("level", "effect")

_STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "maxdepth_reached": "reached_max_tree_depth",
}


@dataclass(frozen=True)
class PartPriors:
    """Priors of one part of the model, on the scale of log odds or of logarithms.

    Attributes
    ----------
    level : Priors
        Of the creators' levels; wide enough for payments in any currency.
    effect : Priors
        Of the effects: an effect of .7 doubles what it acts on.
    spread : HalfNormal
        Of the log standard deviation (lognormal) or the coefficient of variation (gamma,
        negative binomial).
    """

    level: Priors = field(default_factory=lambda: Priors(mu_global=Normal(0.0, 5.0)))
    effect: Priors = field(
        default_factory=lambda: Priors(Normal(0.0, 0.5), HalfNormal(0.25), HalfNormal(0.25))
    )
    spread: Prior = field(default_factory=lambda: HalfNormal(2.0))


def fit_revenue_model(
    arms: pd.DataFrame,
    *,
    payments: str = "lognormal",
    engine: str = "nuts",
    parameterization: str = "conditional",
    priors: PartPriors = PartPriors(),
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    random_seed: int = 42,
    target_accept: float = 0.9,
) -> xr.DataTree:
    """Fit the hurdle model to the sufficient statistics of each creator and arm.

    Parameters
    ----------
    arms : DataFrame
        From `summarize_payments`.
    payments : {"lognormal", "gamma"}
        The family of what payers pay.
    engine : {"nuts", "laplace"}
        ``nuts`` samples every creator's level and effect with PyMC. ``laplace`` replaces the
        likelihood of each arm by a normal and uses the exact engine (`hbm.revenue.laplace`).
    parameterization : {"conditional", "centered", "noncentered"}
        Of ``nuts``: levels and effects as themselves (with the genres' means integrated out), as
        offsets from their genre's mean, or as offsets from where the hyperparameters and a
        normal approximation of the data put them. All three have the same posterior.
    priors : PartPriors
        Of both parts alike.
    draws, tune, chains, random_seed, target_accept
        As for `hbm.fit_hierarchical_model`; ``laplace`` needs no warm-up.

    Returns
    -------
    DataTree
        Groups ``payers`` and ``payments``, each a posterior as `fit_part` returns it.

    Raises
    ------
    DataError
        If a column is missing.
    ValueError
        If a setting is unknown.
    """
    if payments not in PAYMENTS:
        raise ValueError(f"unknown payments {payments!r}; known: {', '.join(PAYMENTS)}")
    settings = {
        "engine": engine,
        "parameterization": parameterization,
        "priors": priors,
        "draws": draws,
        "tune": tune,
        "chains": chains,
        "target_accept": target_accept,
    }
    parts = {}
    for place, (name, family) in enumerate(
        {"payers": Payers, "payments": PAYMENTS[payments]}.items()
    ):
        parts[name] = fit_part(family.of(arms), arms, random_seed=random_seed + place, **settings)
    tree = xr.DataTree.from_dict(parts)
    tree.attrs.update(payments=payments, engine=engine)
    return tree


def fit_count_model(table: pd.DataFrame, *, engine: str = "nuts", **settings) -> xr.DataTree:
    """Fit the negative binomial model to a count table.

    Parameters
    ----------
    table : DataFrame
        From `summarize_counts`.
    engine : {"nuts"}
    **settings
        As for `fit_revenue_model`.

    Returns
    -------
    DataTree
        As `fit_part` returns it.
    """
    if engine != "nuts":
        raise ValueError(f'counts need engine="nuts", got {engine!r}')
    creators = table.drop_duplicates("creator_id").sort_values("creator_id")
    return fit_part(Counts.of(table), creators, engine=engine, **settings)


def fit_part(
    family: Family,
    creators: pd.DataFrame,
    *,
    engine: str = "nuts",
    parameterization: str = "conditional",
    priors: PartPriors = PartPriors(),
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    random_seed: int = 42,
    target_accept: float = 0.9,
) -> xr.DataTree:
    """Fit the hierarchy of one part.

    Parameters
    ----------
    family : Family
        Its statistics, creators in the order of `creators`.
    creators : DataFrame
        ``creator_id, genre_idx`` and, for names, ``genre``.
    engine, parameterization, priors, draws, tune, chains, random_seed, target_accept
        As for `fit_revenue_model`.

    Returns
    -------
    DataTree
        ``posterior``: ``level`` and ``effect`` (chain, draw, creator); of both ``*_mu_global,
        *_sigma_genre, *_sigma_creator`` (chain, draw) and ``*_mu_genre`` (chain, draw, genre);
        ``spread`` where the family has one. With NUTS also ``sample_stats``, else ``quadrature``,
        which is what `hbm.check_diagnostics` with ``effects=False`` reads.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if parameterization not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"unknown parameterization {parameterization!r}; known: {known}")
    check_sampling(len(creators), draws, tune, chains, target_accept)
    require_columns(creators, ("creator_id", "genre_idx"), "arms")
    refuse(creators, creators["creator_id"].duplicated(), "creator_id", "must be unique", "arms")
    genre_idx = creators["genre_idx"].to_numpy(int)
    genres = np.arange(genre_idx.max() + 1)
    if "genre" in creators:
        genres = creators["genre"].to_numpy(object)[np.unique(genre_idx, return_index=True)[1]]
    coords = {"creator": creators["creator_id"].to_numpy(), "genre": genres}
    how = {"draws": draws, "chains": chains, "random_seed": random_seed}
    groups = {}
    start = time.perf_counter()
    of = {name: getattr(priors, name) for name in _HIERARCHIES}
    if engine == "laplace":
        found = approximate(family, genre_idx, of)
        posterior = draw_approximation(family, found, genre_idx, draws * chains, random_seed)
        posterior = {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in posterior.items()}
        groups["quadrature"] = xr.Dataset()
        attrs = {"rounds": found.rounds, "quadrature_errors": _errors(found)}
    else:
        compiled = _compiled(type(family), _shapes(family), len(genres), parameterization, priors)
        compiled = compiled.with_data(genre_idx=genre_idx, **family.arrays())
        if parameterization == "conditional":
            compiled = compiled.with_data(**_anchors(approximate(family, genre_idx, of, 0.1)))
        sampled = sample(compiled, tune=tune, target_accept=target_accept, **how)
        posterior = _named(sampled["posterior"].dataset, genre_idx, random_seed)
        stats = sampled["sample_stats"]
        groups["sample_stats"] = xr.Dataset(
            {ours: (("chain", "draw"), stats[theirs].values) for theirs, ours in _STATS.items()}
        )
        attrs = {"parameterization": parameterization}
    last = {"level": ("creator",), "effect": ("creator",)}
    last |= {f"{name}_mu_genre": ("genre",) for name in last}
    variables = {
        name: (("chain", "draw", *last.get(name, ())), values) for name, values in posterior.items()
    }
    groups["posterior"] = xr.Dataset(variables, coords)
    tree = xr.DataTree.from_dict(groups)
    tree.attrs.update(engine=engine, family=type(family).__name__, fixed=[], **attrs)
    tree.attrs["seconds"] = time.perf_counter() - start
    return tree


def _errors(found: Approximation) -> dict[str, float]:
    return {
        f"{name}_{key}": error
        for name, fit in found.fits.items()
        for key, error in fit.attrs["quadrature_errors"].items()
    }


def _anchors(found: Approximation) -> dict[str, np.ndarray]:
    """Return what each creator says of its level and effect, as data of the PyMC model."""
    return {
        f"{name}::{key}": fit[group][key].values
        for name, fit in found.fits.items()
        for group, key in (("observed_data", "effect_hat"), ("constant_data", "se"))
    }


def _shapes(family: Family) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, values.shape) for name, values in family.arrays().items())


@lru_cache(maxsize=8)
def _compiled(family: type[Family], shapes, n_genres: int, parameterization: str, priors):
    """Compile the model of a family once in a process for all data of one shape."""
    import pymc as pm
    import pytensor.tensor as pt

    n_creators = dict(shapes)["n"][0]
    with pm.Model() as model:
        genre_idx = pm.Data("genre_idx", np.arange(n_creators) * n_genres // n_creators)
        statistics = family(**{name: pm.Data(name, np.ones(shape)) for name, shape in shapes})
        build = {"conditional": _conditional, "centered": _centered, "noncentered": _noncentered}
        value = {}
        for name in _HIERARCHIES:
            with pm.Model(name=name):
                shape = n_creators, n_genres
                value[name] = build[parameterization](genre_idx, shape, getattr(priors, name))
        spread = priors.spread.pymc("spread") if family.has_spread else None
        eta = value["level"][:, None] + ARMS * value["effect"][:, None]
        total = statistics.log_likelihood(eta, spread, pt).sum() + statistics.common(spread, pt)
        pm.Potential("log_likelihood", total)
    return compile_model(model)


def _sum_by_genre(values, genre_idx, n_genres: int):
    import pytensor.tensor as pt

    return pt.zeros(n_genres)[genre_idx].inc(values)


def _sigmas(priors: Priors):
    return priors.sigma_genre.pymc("sigma_genre"), priors.sigma_creator.pymc("sigma_creator")


def _centered(genre_idx, shape: tuple[int, int], priors: Priors):
    """Values are sampled as themselves, and the genres' means are integrated out."""
    import pymc as pm
    import pytensor.tensor as pt

    n_creators, n_genres = shape
    sigma_genre, sigma = _sigmas(priors)
    value = pm.Flat("value", shape=n_creators)
    size = _sum_by_genre(1.0, genre_idx, n_genres)
    mean = _sum_by_genre(value, genre_idx, n_genres) / size
    within = pt.sum((value - mean[genre_idx]) ** 2) / sigma**2
    pm.Potential("within", -0.5 * within - (n_creators - n_genres) * pt.log(sigma))
    between_genres(mean, size / sigma**2, sigma_genre, priors)
    return value


def _noncentered(genre_idx, shape: tuple[int, int], priors: Priors):
    """Values are offsets from their genre's mean, and those from the platform's."""
    import pymc as pm

    n_creators, n_genres = shape
    sigma_genre, sigma = _sigmas(priors)
    mu_global = priors.mu_global.pymc("mu_global")
    offset = pm.Normal("offset_genre", shape=n_genres)
    mu_genre = pm.Deterministic("mu_genre", mu_global + sigma_genre * offset)
    offset = pm.Normal("offset", shape=n_creators)
    return pm.Deterministic("value", mu_genre[genre_idx] + sigma * offset)


def _conditional(genre_idx, shape: tuple[int, int], priors: Priors):
    """Values are offsets from their conditional means, in conditional standard deviations.

    Conditional on the hyperparameters and on a normal estimate with its standard error, under
    which the offsets would be independent and standard normal, and the hyperparameters would have
    the density of `hbm.gaussian.log_density`. The potential ``released`` takes the estimates out
    again: they decide how the posterior is described and not what it is.
    """
    import pymc as pm
    import pytensor.tensor as pt

    n_creators, n_genres = shape
    sigma_genre, sigma = _sigmas(priors)
    estimate = pm.Data("effect_hat", np.zeros(n_creators))
    variance = pm.Data("se", np.ones(n_creators)) ** 2
    v = 1 / (sigma**2 + variance)
    weight = _sum_by_genre(v, genre_idx, n_genres)
    mean = _sum_by_genre(v * estimate, genre_idx, n_genres) / weight
    residual = pt.sum(pt.log(v) - v * (estimate - mean[genre_idx]) ** 2) - pt.sum(pt.log(weight))
    pm.Potential("within", 0.5 * residual)
    mu_global = between_genres(mean, weight, sigma_genre, priors)
    ratio = sigma_genre**2 * weight
    offset = pm.Normal("offset_genre", shape=n_genres)
    center = mu_global + (mean - mu_global) * ratio / (1 + ratio)
    mu_genre = center + sigma_genre / pt.sqrt(1 + ratio) * offset
    mu_genre = pm.Deterministic("mu_genre", mu_genre)
    pull = variance * v
    offset = pm.Normal("offset", shape=n_creators)
    value = estimate + pull * (mu_genre[genre_idx] - estimate) + sigma * pt.sqrt(pull) * offset
    pm.Potential("released", 0.5 * pt.sum((estimate - value) ** 2 / variance))
    return pm.Deterministic("value", value)


def _named(sampled: xr.Dataset, genre_idx: np.ndarray, random_seed: int) -> dict[str, np.ndarray]:
    """Return the draws by our names; the genres' means that were integrated out are drawn."""
    rng = np.random.default_rng([random_seed, 1])
    posterior = {}
    for name in ("level", "effect"):
        own = {
            key: sampled[f"{name}::{key}"].values
            for key in ("mu_global", "sigma_genre", "sigma_creator", "mu_genre", "value")
            if f"{name}::{key}" in sampled
        }
        posterior[name] = own.pop("value")
        if "mu_genre" not in own:
            own["mu_genre"] = _draw_genres(rng, posterior[name], genre_idx, own)
        posterior |= {f"{name}_{key}": values for key, values in own.items()}
    if "spread" in sampled:
        posterior["spread"] = sampled["spread"].values
    return posterior


def _draw_genres(rng, value: np.ndarray, genre_idx: np.ndarray, hyper: dict) -> np.ndarray:
    """Draw the genres' means given their creators' values, shape (chain, draw, genre)."""
    size = np.bincount(genre_idx)
    mean = value @ np.eye(len(size))[genre_idx] / size
    mu, sigma_genre, sigma = (
        hyper[key][..., None] for key in ("mu_global", "sigma_genre", "sigma_creator")
    )
    ratio = np.square(sigma_genre / sigma) * size
    sd = sigma_genre / np.sqrt(1 + ratio)
    return rng.normal(mu + (mean - mu) * ratio / (1 + ratio), sd)
