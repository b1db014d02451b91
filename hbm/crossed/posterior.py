"""The posterior of a crossed model: four standard deviations on a lattice, the rest exactly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import pandas as pd
import xarray as xr

from hbm import priors as families
from hbm.crossed.likelihood import CrossedLikelihood, Sigmas
from hbm.exact.lattice import (
    DROP,
    TOLERANCE,
    Lattice,
    Marginal,
    Values,
    integrate_on_lattice,
    reduced,
)
from hbm.exact.quadrature import FLOOR, Scale
from hbm.gaussian import Estimates, Moments, creator_moments, mixture_moments
from hbm.priors import Fixed, HalfNormal, Normal, Prior, Priors

#: Coordinates end here while the mode is searched: e^20 times the finest scale in the data.
_CEILING = 20.0

#: Probability of the nodes that are left out when effects are read from the lattice.
_NEGLIGIBLE = 1e-5

#: Above so many nodes x creators (or cells) the lattice is reduced to fewer nodes for them.
MAX_WORK = 4 * 10**6

#: Nodes x levels x levels of effects that are computed at a time.
_BLOCK = 2 * 10**6


@dataclass(frozen=True)
class CrossedPriors:
    """Priors of a crossed model, in the unit of the effects.

    Attributes
    ----------
    mu_global : Normal
        Platform mean of the effects.
    sigma_factors : pair of HalfNormal, HalfCauchy or Fixed
        Standard deviations of the levels' effects, of the first and of the second factor.
    sigma_interaction : HalfNormal, HalfCauchy or Fixed
        Standard deviation of the interactions. The default is narrower than the others: an
        interaction is estimated from a cell's creators alone, and is seldom larger than what it
        modifies.
    sigma_creator : HalfNormal, HalfCauchy or Fixed
        Standard deviation of the creators' effects within a cell.
    """

    mu_global: Normal = field(default_factory=Normal)
    sigma_factors: tuple[Prior, Prior] = (HalfNormal(), HalfNormal())
    sigma_interaction: Prior = HalfNormal(0.25)
    sigma_creator: Prior = HalfNormal()

    def __post_init__(self) -> None:
        if not isinstance(self.mu_global, Normal):
            raise TypeError(f"mu_global needs a Normal prior, got {self.mu_global!r}")
        if not isinstance(self.sigma_factors, tuple) or len(self.sigma_factors) != 2:
            raise TypeError(f"sigma_factors needs a pair of priors, got {self.sigma_factors!r}")
        for prior in self.sigmas:
            if not isinstance(prior, Prior) or isinstance(prior, Normal):
                raise TypeError(
                    f"standard deviations need priors on positive values, got {prior!r}"
                )
        if isinstance(self.sigma_creator, Fixed) and self.sigma_creator.value == 0:
            raise ValueError("sigma_creator fixed at 0 is complete pooling, not a hierarchy")

    @property
    def sigmas(self) -> tuple[Prior, ...]:
        """Priors in the order of `Sigmas`."""
        return (self.sigma_creator, *self.sigma_factors, self.sigma_interaction)

    @classmethod
    def weakly_informative(cls, summaries: pd.DataFrame) -> CrossedPriors:
        """Return priors whose scales are those of the data, so that units do not matter.

        As `hbm.Priors.weakly_informative`, with a quarter of its scale for the interaction.
        """
        simple = Priors.weakly_informative(summaries)
        return cls(
            mu_global=simple.mu_global,
            sigma_factors=(simple.sigma_genre, simple.sigma_genre),
            sigma_interaction=HalfNormal(simple.sigma_genre.sigma / 4),
            sigma_creator=simple.sigma_creator,
        )

    def describe(self) -> dict[str, str]:
        """Return one short text a parameter, such as ``HalfNormal(sigma=1)``."""
        return {f.name: repr(getattr(self, f.name)) for f in fields(self)}

    def to_json(self) -> str:
        """Return the priors as text that `from_json` reads."""
        every = (self.mu_global, *self.sigmas)
        return json.dumps([(type(prior).__name__, asdict(prior)) for prior in every])

    @classmethod
    def from_json(cls, text: str) -> CrossedPriors:
        """Return the priors of `to_json`; they have to be of a family of `hbm.priors`."""
        mu, creator, first, second, interaction = (
            getattr(families, family)(**values) for family, values in json.loads(text)
        )
        return cls(mu, (first, second), interaction, creator)


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


class Space:
    """The coordinates in which the standard deviations are integrated: one for each free one.

    A coordinate y stands for c exp(y - exp(-y)), with c the finest scale in the data: logarithmic
    far from 0, and near 0 so steep that any density has died away (`hbm.exact.quadrature`).
    """

    def __init__(self, likelihood: CrossedLikelihood, priors: CrossedPriors):
        self.likelihood = likelihood
        self.scales = [Scale(prior) for prior in priors.sigmas]
        self.units = likelihood.finest
        order = (0, 2, 1, 3) if likelihood.swapped else (0, 1, 2, 3)
        self.free = [k for k in order if self.scales[k].fixed is None]

    def sigmas(self, points: np.ndarray) -> Sigmas:
        """Return the standard deviations at points of the space."""
        values = [np.full(len(points), float(scale.fixed or 0)) for scale in self.scales]
        for k, y in zip(self.free, points.T, strict=True):
            values[k] = self.scales[k].value(y, self.units[k])
        return Sigmas(*values)

    def _log_prior(self, points: np.ndarray) -> np.ndarray:
        parts = zip(self.free, points.T, strict=True)
        densities = (self.scales[k].log_density(y, self.units[k]) for k, y in parts)
        return sum(densities, np.zeros(len(points)))

    def evaluate(self, points: np.ndarray) -> Values:
        """Return log density, and the moments of the coordinates and of mu_global."""
        log_density, mu, var = self.likelihood.given(self.sigmas(points))
        known = np.zeros_like(points)
        mean, var = np.column_stack([points, mu]), np.column_stack([known, var])
        return Values(log_density + self._log_prior(points), mean, var)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Return the log density where all points differ in sigma_creator."""
        return self.likelihood.between(self.sigmas(points))[0] + self._log_prior(points)

    def marginal(self, lattice: Lattice, k: int) -> Marginal:
        """Return the distribution of the coordinate of one standard deviation."""
        scale, unit = self.scales[k], self.units[k]
        return Marginal(lattice, self.free.index(k), lambda y: scale.log_density(y, unit))

    def integrate(self, tolerance: float = TOLERANCE, drop: float = DROP) -> Lattice:
        """Return the posterior on a lattice."""
        spread = max(np.std(self.likelihood.data.effect_hat), self.units.max())
        start = [float(self.scales[k].coordinate(spread / 2, self.units[k])) for k in self.free]
        bounds = FLOOR, _CEILING
        return integrate_on_lattice(self.evaluate, np.array(start), bounds, tolerance, drop)


@dataclass(frozen=True)
class Nodes:
    """Nodes over which effects are integrated.

    Attributes
    ----------
    sigmas : Sigmas, shape (node,)
    weight : ndarray, shape (node,)
        Summing to 1.
    error : float
        By how much the reduction has changed the mean or the standard deviation of the probed
        creators, at the worst, in standard deviations; 0 without any reduction.
    """

    sigmas: Sigmas
    weight: np.ndarray
    error: float = 0.0

    @property
    def sigma_creator(self) -> np.ndarray:
        """Standard deviation of the creators, shape (node,)."""
        return self.sigmas.creator


def whole(space: Space, lattice: Lattice) -> Nodes:
    """Return all nodes of a lattice."""
    return Nodes(space.sigmas(lattice.points), np.exp(lattice.log_weight))


def effect_nodes(space: Space, lattice: Lattice, tolerance: float) -> Nodes:
    """Return the lattice's own nodes for effects, or where there are many creators fewer.

    Parameters
    ----------
    space : Space
    lattice : Lattice
    tolerance : float
        The error that is aimed at.
    """
    weight = np.exp(lattice.log_weight)
    order = np.argsort(weight)
    kept = np.sort(order[np.cumsum(weight[order]) > _NEGLIGIBLE * weight.sum()])
    every = Nodes(space.sigmas(lattice.points[kept]), weight[kept] / weight[kept].sum())
    likelihood = space.likelihood
    size = max(len(likelihood.data.se), likelihood.long * likelihood.short)
    if len(kept) * size <= MAX_WORK:
        return every
    # Ratios of variances, in which shrinkage factors are ratios of linear functions.
    squared = np.square(np.column_stack(every.sigmas))
    ratios = squared / np.maximum(squared + every.weight @ squared, np.finfo(float).tiny)
    exact = _probe(likelihood, every)
    sd = np.sqrt(exact.var)
    for degree in (3, 4, 5):
        some, some_weight = reduced(ratios, every.weight, degree)
        nodes = Nodes(every.sigmas.take(some), some_weight)
        mean, var = _probe(likelihood, nodes)
        changes = np.abs(mean - exact.mean) / sd, np.abs(np.sqrt(var) / sd - 1)
        nodes = replace(nodes, error=float(np.max(changes)))
        if nodes.error <= tolerance:
            break
    return nodes


def _probe(likelihood: CrossedLikelihood, nodes: Nodes) -> Moments:
    """Return the moments of some creators: the extreme ones, and up to 300 others."""
    data = likelihood.data
    among = np.arange(0, len(data.se), max(1, len(data.se) // 300))
    ends = [data.se.argmin(), data.se.argmax(), data.effect_hat.argmin(), data.effect_hat.argmax()]
    probed = data.take(np.unique(np.concatenate([among, ends])))
    step = max(1, _BLOCK // (likelihood.long * likelihood.short))
    parts = []
    for start in range(0, len(nodes.weight), step):
        sigmas = nodes.sigmas.take(slice(start, start + step))
        parts.append(creator_moments(probed, cell_moments(likelihood, sigmas), sigmas.creator))
    moments = Moments(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return mixture_moments(moments, nodes.weight)


def cell_moments(likelihood: CrossedLikelihood, sigmas: Sigmas) -> Moments:
    """Return the moments of the means of the cells that have creators, shape (node, cell)."""
    cell = likelihood.effects(sigmas).cell
    return Moments(*(part[:, *likelihood.cells.T] for part in cell))


# --------------------------------------------------------------------- from and to a DataTree


def make_likelihood(effect_hat, se, level_idx: np.ndarray, shape, priors: CrossedPriors):
    """Return the likelihood of creators whose levels are `level_idx`, shape (creator, 2)."""
    flat = level_idx[:, 0] * shape[1] + level_idx[:, 1]
    there, cell = np.unique(flat, return_inverse=True)
    cells = np.column_stack(np.divmod(there, shape[1]))
    data = Estimates.from_arrays(effect_hat, se, cell)
    return CrossedLikelihood(data, cells, shape, priors.mu_global)


def space_of(idata: xr.DataTree) -> Space:
    """Return likelihood, priors and coordinates of a crossed fit."""
    constant = idata["constant_data"].dataset
    priors = CrossedPriors.from_json(idata.attrs["prior_parameters"])
    coords = idata["posterior"].dataset.coords
    shape = tuple(coords.sizes[name] for name in idata.attrs["factors"])
    effect_hat = idata["observed_data"]["effect_hat"].values
    parts = effect_hat, constant["se"].values, constant["level_idx"].values
    return Space(make_likelihood(*parts, shape, priors), priors)


def lattice_of(idata: xr.DataTree) -> Lattice:
    """Return the lattice of a crossed fit, without the moments of mu_global."""
    stored = idata["lattice"].dataset
    index, log_density = stored["index"].values, stored["log_density"].values
    none = np.zeros((len(index), 0))
    return Lattice(
        index=index,
        origin=stored["origin"].values,
        steps=stored["steps"].values,
        values=Values(log_density, none, none),
        log_weight=stored["log_weight"].values,
        log_evidence=idata.attrs["log_marginal_likelihood"],
        errors=np.array(list(idata.attrs["quadrature_errors"].values())),
    )


def nodes_of(idata: xr.DataTree) -> Nodes:
    """Return the nodes over which effects are integrated."""
    stored = idata["mixture"].dataset
    first, second = stored["sigma_factor"].values.T
    sigmas = stored["sigma_creator"].values, first, second, stored["sigma_interaction"].values
    return Nodes(Sigmas(*sigmas), stored["weight"].values)
