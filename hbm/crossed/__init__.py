"""Two groupings that cross: genre and audience segment, or any two that are not nested.

tau[i] ~ Normal(mu + a[j_i] + b[k_i] + c[j_i, k_i], sigma_creator), with a, b and c independent
normals around 0, each with a standard deviation of its own, and effect_hat[i] ~ Normal(tau[i],
se[i]) with se known. Given the four standard deviations everything is normal and is integrated in
closed form (`hbm.crossed.likelihood`); they are integrated on a lattice (`hbm.exact.lattice`).
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from hbm.checks import DataError, refuse, require_columns
from hbm.crossed.posterior import (
    CrossedPriors,
    Nodes,
    Space,
    cell_moments,
    effect_nodes,
    lattice_of,
    make_likelihood,
    nodes_of,
    space_of,
)
from hbm.data import validate_summaries
from hbm.diagnostics import check_diagnostics
from hbm.estimates import (
    EffectMixture,
    Mixture,
    effect_columns,
    estimates_frame,
    mixture_effect_cdf,
    normal_effects,
    require_same_estimates,
)
from hbm.exact.draws import MAX_VALUES
from hbm.exact.lattice import DROP, TOLERANCE, Lattice, draw_between
from hbm.gaussian import (
    Estimates,
    Moments,
    creator_moments,
    mean_columns,
    mixture_cdf,
    mixture_moments,
    mixture_quantile,
)
from hbm.intervals import LEVEL, tail_probabilities
from hbm.priors import Fixed

#: Where a quick lattice ends; what lies beyond has a probability of about 1e-6.
QUICK_DROP = 16.0

#: Names that are dimensions of a posterior already.
_TAKEN = {"chain", "draw", "creator", "factor", "node", "dimension"}


def fit_crossed_model(
    summaries: pd.DataFrame,
    factors: tuple[str, str] = ("genre", "segment"),
    *,
    interaction: bool = True,
    priors: CrossedPriors = CrossedPriors(),
    draws: int = 2000,
    chains: int = 4,
    random_seed: int = 42,
    quick: bool = False,
) -> xr.DataTree:
    """Fit two crossed groupings and return their posterior.

    Parameters
    ----------
    summaries : DataFrame
        One row a creator: ``creator_id, effect_hat, se`` and the two columns of `factors`.
    factors : (str, str)
        Columns of the groupings. Each needs two levels at least, and neither may be nested in
        the other. Swapping them, or renaming their levels, changes nothing.
    interaction : bool
        False leaves the interactions out: as many standard deviations less one.
    priors : CrossedPriors
        In the unit of the effects.
    draws, chains, random_seed : int
        The draws are independent; ``draws=0`` leaves them out: estimates need none.
    quick : bool
        Aim at an error of the quadrature four times as large, still within what the diagnostics
        allow. For studies of many data sets.

    Returns
    -------
    DataTree
        Groups ``posterior`` (draws, if any, as `draw_crossed` returns them); ``lattice``, the
        nodes of the quadrature; ``mixture``, those over which effects are integrated;
        ``observed_data`` and ``constant_data``; settings and seconds in its attributes.

    Raises
    ------
    DataError
        If a column is missing or breaks a rule, a factor has a single level, or one factor is
        nested in the other.
    ValueError
        If the draws would not fit into memory.
    """
    start = time.perf_counter()
    names, level_idx = _levels(summaries, factors)
    if not interaction:
        priors = replace(priors, sigma_interaction=Fixed(0.0))
    effect_hat, se = (summaries[name].to_numpy(float) for name in ("effect_hat", "se"))
    shape = tuple(map(len, names))
    space = Space(make_likelihood(effect_hat, se, level_idx, shape, priors), priors)
    tolerance, drop = (4 * TOLERANCE, QUICK_DROP) if quick else (TOLERANCE, DROP)
    lattice = space.integrate(tolerance, drop)
    nodes = effect_nodes(space, lattice, tolerance)
    tree = _as_datatree(summaries, factors, names, level_idx, lattice, nodes)
    free = [_sigma_names(factors)[k] for k in space.free]
    errors = dict(zip(["log_evidence", *free, "mu_global"], lattice.errors.tolist(), strict=True))
    errors["effects"] = nodes.error
    tree.attrs.update(
        engine="lattice",
        factors=list(factors),
        quadrature_error=max(errors.values()),
        quadrature_errors=errors,
        log_marginal_likelihood=lattice.log_evidence,
        priors=str(priors.describe()),
        prior_parameters=priors.to_json(),
        fixed=[name for name in _sigma_names(factors) if name not in free],
        random_seed=random_seed,
    )
    if draws:
        drawn = draw_crossed(tree, draws=draws, chains=chains, random_seed=random_seed)
        tree["posterior"] = xr.DataTree(drawn)
    tree.attrs["seconds"] = time.perf_counter() - start
    return tree


def _levels(summaries: pd.DataFrame, factors) -> tuple[list[np.ndarray], np.ndarray]:
    """Check summaries and factors; return the names of the levels and each creator's levels."""
    source = "summaries"
    if isinstance(factors, str) or len(factors) != 2 or factors[0] == factors[1]:
        raise ValueError(f"factors must be two different columns, got {factors!r}")
    if taken := _TAKEN & set(factors):
        raise ValueError(f"a factor must not be called {', '.join(sorted(taken))}")
    require_columns(summaries, ("creator_id", "effect_hat", "se", *factors), source)
    needed = summaries[["creator_id", "effect_hat", "se"]]
    validate_summaries(needed.assign(genre_idx=0))
    names, level_idx = [], np.empty((len(summaries), 2), np.int64)
    for place, name in enumerate(factors):
        refuse(summaries, summaries[name].isna(), name, "must not be missing", source)
        column = summaries[name].astype("category").cat.remove_unused_categories()
        if len(column.cat.categories) < 2:
            raise DataError(
                f"{source}: column '{name}' has a single level, {column.cat.categories[0]!r}: "
                "fit_hierarchical_model takes the other grouping alone"
            )
        names.append(column.cat.categories.to_numpy(dtype=object))
        level_idx[:, place] = column.cat.codes
    pairs = np.unique(level_idx, axis=0)
    alone = [len(pairs) == len(levels) for levels in names]
    if all(alone):
        raise DataError(
            f"{source}: columns '{factors[0]}' and '{factors[1]}' are the same grouping under two "
            "names: fit_hierarchical_model takes one of them"
        )
    if any(alone):
        inner, outer = factors if alone[0] else factors[::-1]
        raise DataError(
            f"{source}: column '{inner}' is nested in '{outer}': each {inner} has one {outer}, so "
            f"they do not cross; fit_hierarchical_model takes '{inner}' as its grouping"
        )
    return names, level_idx


def _sigma_names(factors) -> list[str]:
    return ["sigma_creator", *(f"sigma_{name}" for name in factors), "sigma_interaction"]


def _as_datatree(summaries, factors, names, level_idx, lattice: Lattice, nodes: Nodes):
    creator = {"creator": pd.Index(summaries["creator_id"], name="creator")}
    factor = {"factor": list(factors)}
    stored = {
        "index": (("node", "dimension"), lattice.index),
        "log_density": ("node", lattice.values.log_density),
        "log_weight": ("node", lattice.log_weight),
        "mu_global_mean": ("node", lattice.values.mean[:, -1]),
        "mu_global_var": ("node", lattice.values.var[:, -1]),
        "origin": ("dimension", lattice.origin),
        "steps": ("dimension", lattice.steps),
    }
    sigmas = nodes.sigmas
    mixture = {
        "sigma_creator": ("node", sigmas.creator),
        "sigma_factor": (("node", "factor"), np.column_stack([sigmas.first, sigmas.second])),
        "sigma_interaction": ("node", sigmas.interaction),
        "weight": ("node", nodes.weight),
    }
    observed = {"effect_hat": ("creator", summaries["effect_hat"].to_numpy(float))}
    constant = {
        "se": ("creator", summaries["se"].to_numpy(float)),
        "level_idx": (("creator", "factor"), level_idx),
    }
    levels = dict(zip(factors, names, strict=True))
    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(coords=creator | levels),
            "lattice": xr.Dataset(stored),
            "mixture": xr.Dataset(mixture, factor),
            "observed_data": xr.Dataset(observed, creator),
            "constant_data": xr.Dataset(constant, creator | factor),
        }
    )


# ------------------------------------------------------------------------------ estimates


def extract_crossed_estimates(
    idata: xr.DataTree, summaries: pd.DataFrame, *, check: bool = True
) -> pd.DataFrame:
    """Return each creator's pooled estimate.

    Parameters
    ----------
    idata : DataTree
        From `fit_crossed_model`.
    summaries : DataFrame
        The frame it was fitted to.
    check : bool
        Refuse a fit that fails `hbm.check_diagnostics`.

    Returns
    -------
    DataFrame
        As `hbm.extract_hbm_estimates`, with the two factors in the place of ``genre``: one row a
        creator, ``shrinkage`` being the weight of its cell's mean.

    Raises
    ------
    DiagnosticsError
        If the fit failed its diagnostics.
    ValueError
        If the posterior belongs to other creators or other data.
    """
    require_same_estimates(idata, summaries)
    if not np.array_equal(
        idata["constant_data"]["level_idx"].values, _levels(summaries, idata.attrs["factors"])[1]
    ):
        raise ValueError("the posterior was fitted to other levels than the summaries hold")
    if check:
        check_diagnostics(idata).raise_if_failed()
    groups = {name: summaries[name].to_numpy() for name in idata.attrs["factors"]}
    return estimates_frame(summaries, groups, effect_columns(*_effects(idata)))


def _effects(idata: xr.DataTree) -> tuple[Estimates, EffectMixture]:
    likelihood, nodes = space_of(idata).likelihood, nodes_of(idata)
    cells = cell_moments(likelihood, nodes.sigmas)
    return likelihood.data, normal_effects(Mixture(cells, nodes.sigmas.creator, nodes.weight))


def crossed_effect_cdf(idata: xr.DataTree, x) -> np.ndarray:
    """Return the posterior probability that each creator's effect is at most `x`.

    Parameters
    ----------
    idata : DataTree
        From `fit_crossed_model`.
    x : float or ndarray, shape (creator,)

    Returns
    -------
    ndarray, shape (creator,)
    """
    return mixture_effect_cdf(*_effects(idata), x)


def extract_cell_estimates(idata: xr.DataTree) -> pd.DataFrame:
    """Return the posterior of each cell's mean effect, of empty cells too.

    Parameters
    ----------
    idata : DataTree
        From `fit_crossed_model`.

    Returns
    -------
    DataFrame
        One row a cell: its levels, in the columns of the factors; ``n_creators``; ``mean, se``
        (posterior standard deviation), ``lower, upper`` (equal-tailed 95% interval),
        ``p_positive``.
    """
    nodes = nodes_of(idata)
    cell = space_of(idata).likelihood.effects(nodes.sigmas).cell
    names = idata.attrs["factors"]
    levels = [idata["posterior"].dataset[name].values for name in names]
    count = np.zeros(cell.mean.shape[1:], int)
    np.add.at(count, tuple(idata["constant_data"]["level_idx"].values.T), 1)
    first, second = np.meshgrid(*levels, indexing="ij")
    flat = Moments(*(part.reshape(len(part), -1) for part in cell))
    return pd.DataFrame(
        {
            names[0]: first.ravel(),
            names[1]: second.ravel(),
            "n_creators": count.ravel(),
            **mean_columns(flat, nodes.weight),
        }
    )


def extract_sigma_estimates(idata: xr.DataTree) -> pd.DataFrame:
    """Return the posterior of the hyperparameters.

    Parameters
    ----------
    idata : DataTree
        From `fit_crossed_model`.

    Returns
    -------
    DataFrame
        One row a hyperparameter: ``parameter, mean, se`` (posterior standard deviation),
        ``lower, upper`` (equal-tailed 95% interval), in the unit of the effects.
    """
    space, lattice = space_of(idata), lattice_of(idata)
    weight = np.exp(lattice.log_weight)
    tails = tail_probabilities(LEVEL)
    mu = _mu_global(idata)
    overall = mixture_moments(mu, weight)
    interval = (mixture_quantile(mu, p, weight)[0] for p in tails)
    rows = [("mu_global", overall.mean[0], np.sqrt(overall.var[0]), *interval)]
    for k, name in enumerate(_sigma_names(idata.attrs["factors"])):
        if k not in space.free:
            fixed = space.scales[k].fixed
            rows.append((name, fixed, 0.0, fixed, fixed))
            continue
        marginal = space.marginal(lattice, k)
        value = space.scales[k].value(marginal.points, space.units[k])
        mean = marginal.weight @ value
        se = np.sqrt(marginal.weight @ np.square(value - mean))
        ends = marginal.quantile(np.array(tails))
        rows.append((name, mean, se, *space.scales[k].value(ends, space.units[k])))
    return pd.DataFrame(rows, columns=["parameter", "mean", "se", "lower", "upper"])


def crossed_hyper_cdf(idata: xr.DataTree, name: str, x: float) -> float:
    """Return the posterior probability that a hyperparameter is at most `x`.

    Parameters
    ----------
    idata : DataTree
        From `fit_crossed_model`.
    name : str
        ``mu_global, sigma_creator, sigma_interaction`` or ``sigma_<factor>``.
    x : float
    """
    if name == "mu_global":
        weight = np.exp(lattice_of(idata).log_weight)
        return min(1.0, float(mixture_cdf(_mu_global(idata), x, weight)[0]))
    names = _sigma_names(idata.attrs["factors"])
    if name not in names:
        raise ValueError(f"unknown hyperparameter {name!r}; known: mu_global, {', '.join(names)}")
    space, k = space_of(idata), names.index(name)
    if k not in space.free:
        return float(x >= space.scales[k].fixed)
    if x <= 0:
        return 0.0
    y = space.scales[k].coordinate(np.float64(x), space.units[k])
    return float(space.marginal(lattice_of(idata), k).cdf(y))


def _mu_global(idata: xr.DataTree) -> Moments:
    nodes = idata["lattice"].dataset
    return Moments(*(nodes[f"mu_global_{part}"].values[:, None] for part in ("mean", "var")))


# ---------------------------------------------------------------------------------- draws


def draw_crossed(
    idata: xr.DataTree,
    *,
    draws: int = 2000,
    chains: int = 4,
    random_seed: int = 42,
    max_values: int = MAX_VALUES,
) -> xr.Dataset:
    """Draw independently from the joint posterior.

    Parameters
    ----------
    idata : DataTree
        From `fit_crossed_model`.
    draws, chains : int
        The draws are independent; chains only give them the shape that NUTS has.
    random_seed : int
    max_values : int
        The largest number of values of ``tau`` or ``mu_cell``.

    Returns
    -------
    Dataset
        ``mu_global, sigma_creator, sigma_interaction`` (chain, draw), ``sigma_factor`` (chain,
        draw, factor), ``effect_<factor>`` (chain, draw, level) for both factors, ``interaction``
        and ``mu_cell`` (chain, draw, level, level), ``tau`` (chain, draw, creator).

    Raises
    ------
    ValueError
        If the draws are more than `max_values`.
    """
    space, lattice = space_of(idata), lattice_of(idata)
    likelihood, n = space.likelihood, draws * chains
    data = likelihood.data
    size = max(len(data.se), likelihood.long * likelihood.short)
    if n * size > max_values:
        raise ValueError(
            f"{n:,} draws of {size:,} creators or cells are more than {max_values:,} values: ask "
            "for fewer draws (draws=0 leaves them out: estimates need none), or raise max_values "
            "of draw_crossed"
        )
    rng = np.random.default_rng(random_seed)
    sigmas = space.sigmas(draw_between(lattice, space.log_density, rng, n))
    effects = likelihood.draw(rng, sigmas)
    cells = effects.cell.mean[:, *likelihood.cells.T]
    tau = creator_moments(data, cells, sigmas.creator)
    first, second = idata.attrs["factors"]
    drawn = {
        "mu_global": ((), effects.mu_global.mean),
        "sigma_creator": ((), sigmas.creator),
        "sigma_factor": (("factor",), np.column_stack([sigmas.first, sigmas.second])),
        "sigma_interaction": ((), sigmas.interaction),
        f"effect_{first}": ((first,), effects.first.mean),
        f"effect_{second}": ((second,), effects.second.mean),
        "interaction": ((first, second), effects.interaction.mean),
        "mu_cell": ((first, second), effects.cell.mean),
        "tau": (("creator",), data.unsort(rng.normal(tau.mean, np.sqrt(tau.var)))),
    }
    coords = idata["posterior"].dataset.coords
    return xr.Dataset(
        {
            name: (("chain", "draw", *dims), values.reshape(chains, draws, *values.shape[1:]))
            for name, (dims, values) in drawn.items()
        },
        {"chain": np.arange(chains), "draw": np.arange(draws), "factor": [first, second]}
        | {name: coords[name] for name in ("creator", first, second)},
    )
