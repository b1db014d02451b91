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

from hbm.crossed import fit_crossed_model
from hbm.crossed.posterior import (
    CrossedPriors,
    Nodes,
    Space,
    cell_moments,
    lattice_of,
    space_of,
    whole,
)
from hbm.exact.lattice import DROP, EARLIER
from hbm.exact.loo import ExactLoo, density_without, loo_exact
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors

#: Probability that nodes near the cut may gain without a creator before the lattice is placed anew.
MAX_LOST = 1e-3

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
    data = space.likelihood.data
    nodes = whole(space, lattice)
    log_density = lattice.values.log_density
    elpd, pit, lost = _left_out(space, nodes, log_density < log_density.max() - DROP + EARLIER)
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


def compare_crossed(
    summaries: pd.DataFrame,
    factors: tuple[str, str] = ("genre", "segment"),
    *,
    priors: CrossedPriors = CrossedPriors(),
) -> pd.DataFrame:
    """Compare crossed groupings with simpler ones, by integrated leave-one-out.

    Parameters
    ----------
    summaries, factors, priors
        As for `hbm.fit_crossed_model`. A single factor keeps its prior; the cells as one factor
        get that of the first.

    Returns
    -------
    DataFrame
        One row a model, best first: ``model``; ``elpd``, the sum over creators of the log density
        of their estimates given all others; ``elpd_diff``, that less the crossed model's,
        creator by creator (below 0 for a worse model), and ``dse``, its standard error.
    """
    first, second = factors
    loos = {"crossed": loo_crossed(fit_crossed_model(summaries, factors, priors=priors, draws=0))}
    plain = fit_crossed_model(summaries, factors, priors=priors, interaction=False, draws=0)
    loos["crossed, no interaction"] = loo_crossed(plain)
    for name, by, sigma in (
        (f"{first} only", [first], priors.sigma_factors[0]),
        (f"{second} only", [second], priors.sigma_factors[1]),
        ("cells as one factor", [first, second], priors.sigma_factors[0]),
    ):
        simple = summaries[["creator_id", "effect_hat", "se"]].assign(
            genre_idx=summaries.groupby(by, observed=True).ngroup()
        )
        own = Priors(priors.mu_global, sigma, priors.sigma_creator)
        loos[name] = loo_exact(fit_hierarchical_model(simple, engine="exact", priors=own, draws=0))
    rows = []
    for name, loo in loos.items():
        lead = loo.pointwise["elpd"] - loos["crossed"].pointwise["elpd"]
        dse = np.sqrt(len(lead)) * lead.std(ddof=1)
        rows.append({"model": name, "elpd": loo.elpd, "elpd_diff": lead.sum(), "dse": dse})
    return pd.DataFrame(rows).sort_values("elpd", ascending=False, ignore_index=True)


def _left_out(space: Space, nodes: Nodes, edge: np.ndarray):
    """Return log density and probability of each estimate, and the edge's weight without it."""
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
        lost[block] = share[edge].sum(axis=0)
    return elpd, pit, lost


def _refitted(idata: xr.DataTree, space: Space, i: int) -> tuple[float, float]:
    """Log density and probability of one estimate, by an integration without it."""
    likelihood = space.likelihood
    data = likelihood.data
    others = np.arange(len(data.se)) != i
    rest = Space(
        likelihood.subset(others), CrossedPriors.from_json(idata.attrs["prior_parameters"])
    )
    lattice = rest.integrate()
    nodes = whole(rest, lattice)
    first, second = likelihood.cells[data.genre_idx[i]]
    cell = rest.likelihood.effects(nodes.sigmas).cell
    mean, var = (part[:, first, second] for part in cell)
    sd = np.sqrt(var + np.square(nodes.sigma_creator) + data.se[i] ** 2)
    pit = nodes.weight @ ndtr((data.effect_hat[i] - mean) / sd)
    return idata.attrs["log_marginal_likelihood"] - lattice.log_evidence, float(pit)
