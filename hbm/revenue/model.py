"""The hurdle model: who pays, and how much, each with creators within genres.

Both parts have the same form. A creator's level, and its effect, lie around the mean of the
genre; control lies half an effect below the level and treatment half an effect above it. The
parts share no parameter, so the posterior is the product of theirs and each is fitted alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from hbm.checks import refuse, require_columns
from hbm.model import check_sampling, compile_model, sample
from hbm.priors import HalfNormal, Normal, Prior, Priors
from hbm.revenue.families import PAYMENTS, Counts, Family, Payers
from hbm.revenue.laplace import Approximation, approximate, draw_approximation
from hbm.revenue.simulate import ARMS

ENGINES = ("nuts", "laplace")

#: The two hierarchies of a part, in the order of the arrays of the PyMC model.
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
    anchor: float = 1.0,
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
    anchor : float
        How ``nuts`` describes the creators: as offsets from where the hyperparameters and a
        normal estimate of each creator put them, with that estimate's standard error times
        `anchor`. Towards 0 this becomes the centered, towards infinity the noncentered
        parameterization; the posterior is the same.
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
        "anchor": anchor,
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
    return combine(*parts.values(), payments)


def combine(payers: xr.DataTree, payments: xr.DataTree, family: str) -> xr.DataTree:
    """Put the two parts side by side, as `fit_revenue_model` returns them."""
    tree = xr.DataTree.from_dict({"payers": payers, "payments": payments})
    tree.attrs.update(payments=family, engine=payers.attrs["engine"])
    return tree


def fit_count_model(table: pd.DataFrame, **settings) -> xr.DataTree:
    """Fit the negative binomial model to a count table.

    Parameters
    ----------
    table : DataFrame
        From `summarize_counts`.
    **settings
        As for `fit_revenue_model`, but for `payments`.

    Returns
    -------
    DataTree
        As `fit_part` returns it.
    """
    creators = table.drop_duplicates("creator_id").sort_values("creator_id")
    return fit_part(Counts.of(table), creators, **settings)


def fit_part(
    family: Family,
    creators: pd.DataFrame,
    *,
    engine: str = "nuts",
    anchor: float = 1.0,
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
    engine, anchor, priors, draws, tune, chains, random_seed, target_accept
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
    if not anchor > 0:
        raise ValueError(f"anchor must be greater than 0, got {anchor}")
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
        anchors = _anchors(approximate(family, genre_idx, of, 0.1), anchor)
        compiled = _compiled(type(family), _shapes(family), len(genres), priors)
        compiled = compiled.with_data(**anchors._asdict(), **family.arrays())
        sampled = sample(compiled, tune=tune, target_accept=target_accept, **how)
        posterior = _named(sampled["posterior"].dataset, anchors, priors)
        stats = sampled["sample_stats"]
        groups["sample_stats"] = xr.Dataset(
            {ours: (("chain", "draw"), stats[theirs].values) for theirs, ours in _STATS.items()}
        )
        attrs = {"anchor": anchor}
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


class _Anchors(NamedTuple):
    """Normal estimates of level and effect: `estimate, variance` (2, creator), `member` (creator,
    genre), which is 1 where a creator is of a genre."""

    estimate: Any
    variance: Any
    member: Any


def _anchors(found: Approximation, scale: float) -> _Anchors:
    fits = [found.fits[name] for name in _HIERARCHIES]
    estimate, se = (
        np.array([fit[group][key].values for fit in fits])
        for group, key in (("observed_data", "effect_hat"), ("constant_data", "se"))
    )
    genre_idx = fits[0]["constant_data"]["genre_idx"].values
    return _Anchors(estimate, np.square(se * scale), np.eye(genre_idx.max() + 1)[genre_idx])


def _shapes(family: Family) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, values.shape) for name, values in family.arrays().items())


@lru_cache(maxsize=8)
def _compiled(family: type[Family], shapes, n_genres: int, priors: PartPriors):
    """Compile the model of a family once in a process for all data of one shape."""
    import pymc as pm
    import pytensor.tensor as pt

    n_creators = dict(shapes)["n"][0]
    member = np.eye(n_genres)[np.arange(n_creators) * n_genres // n_creators]
    start = _Anchors(np.zeros((2, n_creators)), np.ones((2, n_creators)), member)
    with pm.Model() as model:
        statistics = family(**{name: pm.Data(name, np.ones(shape)) for name, shape in shapes})
        anchors = _Anchors(*(pm.Data(name, value) for name, value in start._asdict().items()))
        sigmas = [
            pt.stack([getattr(getattr(priors, h), name).pymc(f"{h}_{name}") for h in _HIERARCHIES])
            for name in ("sigma_genre", "sigma_creator")
        ]
        shapes = {"mu_global": 2, "mu_genre": (2, n_genres), "creator": (2, n_creators)}
        offsets = [pm.Normal(f"offset_{name}", shape=shape) for name, shape in shapes.items()]
        *_, value, log_density = _place(anchors, sigmas, offsets, priors, pt)
        pm.Potential("log_density", log_density)
        spread = priors.spread.pymc("spread") if family.has_spread else None
        eta = value[0][:, None] + ARMS * value[1][:, None]
        total = statistics.log_likelihood(eta, spread, pt).sum() + statistics.common(spread, pt)
        pm.Potential("log_likelihood", total)
    return compile_model(model)


def _place(anchors: _Anchors, sigmas, offsets, priors: PartPriors, xp):
    """Turn standard normal offsets into the platform's, the genres' and the creators' values.

    Each is its mean plus its standard deviation times its offset, given what stands over it and
    the anchors, normal estimates of the creators. Under these the offsets would be independent
    and standard normal, and the hyperparameters would have the density of
    `hbm.gaussian.log_density`; the last term takes the estimates out again, so that they decide
    how the posterior is described, and not what it is.

    Parameters
    ----------
    anchors : _Anchors
    sigmas : sequence
        sigma_genre and sigma_creator, shapes (…, 2).
    offsets : sequence
        Of mu_global (…, 2), mu_genre (…, 2, genre) and the creators (…, 2, creator).
    priors : PartPriors
    xp : module
        NumPy, or PyTensor's tensors.

    Returns
    -------
    mu_global, mu_genre, value, log_density
        The last summed over everything but for the offsets' own and the sigmas'.
    """
    estimate, variance, member = anchors
    sigma_genre, sigma = (s[..., None] for s in sigmas)
    mus = [getattr(priors, name).mu_global for name in _HIERARCHIES]
    prior_mean, prior_var = np.array([m.mu for m in mus]), np.array([m.sigma**2 for m in mus])
    v = 1 / (sigma**2 + variance)
    weight = v @ member
    mean = (v * estimate) @ member / weight
    squares = (xp.log(v) - v * (estimate - mean @ member.T) ** 2).sum() - xp.log(weight).sum()
    between = 1 / (sigma_genre**2 + 1 / weight)
    precision = 1 / prior_var + between.sum(axis=-1)
    center = (prior_mean / prior_var + (between * mean).sum(axis=-1)) / precision
    squares += (xp.log(between) - between * (mean - center[..., None]) ** 2).sum()
    squares -= ((center - prior_mean) ** 2 / prior_var).sum() + xp.log(precision).sum()
    mu_global = center + offsets[0] / xp.sqrt(precision)
    ratio = sigma_genre**2 * weight
    mu_genre = mu_global[..., None] + (mean - mu_global[..., None]) * ratio / (1 + ratio)
    mu_genre = mu_genre + sigma_genre / xp.sqrt(1 + ratio) * offsets[1]
    pull = variance * v
    value = estimate + pull * (mu_genre @ member.T - estimate)
    value = value + sigma * xp.sqrt(pull) * offsets[2]
    squares += ((estimate - value) ** 2 / variance).sum()
    return mu_global, mu_genre, value, 0.5 * squares


def _named(sampled: xr.Dataset, anchors: _Anchors, priors: PartPriors) -> dict[str, np.ndarray]:
    """Return the draws by our names."""
    sigmas = [
        np.stack([sampled[f"{name}_{key}"].values for name in _HIERARCHIES], axis=-1)
        for key in ("sigma_genre", "sigma_creator")
    ]
    offsets = [sampled[f"offset_{key}"].values for key in ("mu_global", "mu_genre", "creator")]
    *placed, _ = _place(anchors, sigmas, offsets, priors, np)
    keys = ("sigma_genre", "sigma_creator", "mu_global", "mu_genre")
    posterior = {}
    for place, name in enumerate(_HIERARCHIES):
        posterior[name] = placed[2][:, :, place]
        values = (*(s[..., place] for s in sigmas), placed[0][..., place], placed[1][:, :, place])
        posterior |= {f"{name}_{key}": value for key, value in zip(keys, values, strict=True)}
    if "spread" in sampled:
        posterior["spread"] = sampled["spread"].values
    return posterior
