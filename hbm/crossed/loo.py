"""Leaving creators out of a crossed fit.

As `hbm.exact.loo` does it: given the standard deviations a creator is removed from a normal
posterior by subtracting its precision, so that all creators are left out by one pass over the
lattice. Where leaving a creator out moves the posterior off the lattice, it is integrated anew.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import logsumexp, ndtr

from hbm.crossed.posterior import (
    CrossedPriors,
    Nodes,
    Space,
    cell_moments,
    effect_nodes,
    lattice_of,
    nodes_of,
    space_of,
)
from hbm.exact.lattice import NARROW, TOLERANCE, Lattice
from hbm.exact.loo import ExactLoo, density_without

#: Probability that nodes near the cut may gain without a creator before the lattice is placed anew.
MAX_LOST = 1e-3

#: Above so many nodes x creators (or cells) the few nodes for effects take the lattice's place.
MAX_WORK = 3 * 10**7

_BLOCK = 200_000


def loo_crossed(idata: xr.DataTree, *, quick: bool = False) -> ExactLoo:
    """Predict each creator's estimate from all others.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_crossed_model`.
    quick : bool
        Integrate nothing anew. For studies of many data sets.

    Returns
    -------
    ExactLoo
        As of `hbm.loo_exact`, so that models can be compared creator by creator.
    """
    space, lattice = space_of(idata), lattice_of(idata)
    likelihood = space.likelihood
    data = likelihood.data
    size = max(len(data.se), likelihood.long * likelihood.short)
    whole = len(lattice.index) * size <= MAX_WORK
    nodes = nodes_of(idata)
    if whole:
        nodes = Nodes(space.sigmas(lattice.points), np.exp(lattice.log_weight))
    elpd, pit, lost = _left_out(space, nodes, _edge(lattice) if whole else None)
    again = np.zeros(len(data.se), bool) if quick else lost > MAX_LOST
    for i in np.flatnonzero(again):
        elpd[i], pit[i] = _refitted(idata, space, i)
    pointwise = pd.DataFrame(
        {
            "creator_id": idata["posterior"].dataset["creator"].values,
            "elpd": data.unsort(elpd),
            "pit": data.unsort(pit),
            "refitted": data.unsort(again),
        }
    )
    se = np.sqrt(len(elpd)) * elpd.std(ddof=1)
    return ExactLoo(float(elpd.sum()), float(se), pointwise)


def _edge(lattice: Lattice) -> np.ndarray:
    log_density = lattice.values.log_density
    return log_density < log_density.max() - NARROW


def _left_out(space: Space, nodes: Nodes, edge: np.ndarray | None):
    """Return log density and probability of each estimate, and the weight of the edge without it."""
    likelihood, data = space.likelihood, space.likelihood.data
    n_nodes, n_creators = len(nodes.weight), len(data.se)
    cells = cell_moments(likelihood, nodes.sigmas)
    elpd, pit, lost = np.zeros((3, n_creators))
    step = max(1, _BLOCK // n_nodes)
    log_weight = np.log(np.maximum(nodes.weight, np.finfo(float).tiny))[:, None]
    for start in range(0, n_creators, step):
        block = slice(start, start + step)
        log_density, residual = density_without(nodes, data.take(block), cells)
        without = log_weight - log_density
        log_sum = logsumexp(without, axis=0)
        share = np.exp(without - log_sum)
        elpd[block], pit[block] = -log_sum, (share * ndtr(residual)).sum(axis=0)
        if edge is not None:
            lost[block] = share[edge].sum(axis=0)
    return elpd, pit, lost


def _refitted(idata: xr.DataTree, space: Space, i: int) -> tuple[float, float]:
    """Log density and probability of one estimate, by an integration without it."""
    likelihood = space.likelihood
    data = likelihood.data
    others = np.arange(len(data.se)) != i
    rest = Space(likelihood.subset(others), CrossedPriors.from_json(idata.attrs["prior_parameters"]))
    lattice = rest.integrate(TOLERANCE)
    nodes = effect_nodes(rest, lattice, TOLERANCE)
    first, second = likelihood.cells[data.genre_idx[i]]
    cell = rest.likelihood.effects(nodes.sigmas).cell
    mean, var = (part[:, first, second] for part in cell)
    sd = np.sqrt(var + np.square(nodes.sigma_creator) + data.se[i] ** 2)
    pit = nodes.weight @ ndtr((data.effect_hat[i] - mean) / sd)
    return idata.attrs["log_marginal_likelihood"] - lattice.log_evidence, float(pit)
