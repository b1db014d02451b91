"""The hierarchical model for estimates whose errors are correlated: d ~ Normal(tau, D + Z B Zᵀ).

As in the exact engine everything is normal given the two standard deviations, and the same
quadrature goes over them. Given sigma_creator the covariance is inverted by its parts (Woodbury),
the creators boil down to the genres' means with a dense precision among them, and its
eigenvectors make the rest as simple as with independent errors.
"""

from __future__ import annotations

import json
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from hbm.checks import DataError
from hbm.covariance import StructuredCovariance
from hbm.data import validate_summaries
from hbm.diagnostics import HYPERPARAMETERS, check_diagnostics, estimates_of, priors_of
from hbm.estimates import require_same_estimates
from hbm.exact.likelihood import LOG_2PI, Likelihood
from hbm.exact.quadrature import integrate
from hbm.gaussian import (
    Estimates,
    Moments,
    mean_columns,
    shrinkage_factor,
)
from hbm.priors import Fixed, Normal, Priors, refuse_memory

#: Probability of the nodes that are left out of mixtures.
_NEGLIGIBLE = 1e-10

#: How much thinning the grid may change the hyperparameters, in their standard deviations.
_THIN = 2e-7

#: Values (nodes x creators) that are worked on at a time.
_BLOCK = 1_000_000

#: A standard error may differ from the covariance's by this share of itself.
_AGREE = 1e-6


class RotatedSums(NamedTuple):
    """What the creators say of the genres' means at each sigma_creator, shapes (node, genre).

    In the coordinates of the eigenvectors of their precision: `mean`, its precision `weight`, and
    the image `ones` of a mean that is the same in all genres. `residual` (node,) is the log density
    of the deviations of the estimates from the genres' means, `basis` (node, genre, genre) has
    the eigenvectors in its columns.
    """

    mean: np.ndarray
    weight: np.ndarray
    residual: np.ndarray
    ones: np.ndarray
    basis: np.ndarray


class CorrelatedLikelihood(Likelihood):
    """The density of correlated estimates given both standard deviations.

    Parameters
    ----------
    data : Estimates
    mu_global : Normal
    covariance : StructuredCovariance
        In the order of `data`.
    """

    def __init__(self, data: Estimates, mu_global: Normal, covariance: StructuredCovariance):
        super().__init__(data, mu_global)
        self.covariance = covariance
        self.alone = False  # what creators share tells the two variances apart

    def subset(self, kept: np.ndarray) -> CorrelatedLikelihood:
        """Return the likelihood of some creators, their genres numbered anew without gaps."""
        data = super().subset(kept).data
        return CorrelatedLikelihood(data, self.prior, self.covariance.take(kept))

    def solve(self, sigma_creator: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return v, the middle matrix of the inverse, factor sums by genre, and log det.

        The covariance of the estimates around their genres' means has the inverse
        diag(v) - (v · factor) · middle · (v · factor)ᵀ.
        """
        v = 1 / (sigma_creator**2 + self.covariance.diagonal)
        middle, log_ratio = self.covariance.woodbury(v)
        by_genre = self.data.by_genre((v[:, None] * self.covariance.factor).T).T
        return v, middle, by_genre, log_ratio - np.log(v).sum()

    def sums(self, sigma_creator: np.ndarray) -> RotatedSums:
        """Return the sums over creators, `sigma_creator` of shape (node,)."""
        nodes = [self._node(sigma) for sigma in sigma_creator]
        return RotatedSums(*(np.array(part) for part in zip(*nodes, strict=True)))

    def _node(self, sigma_creator: float):
        data, factor = self.data, self.covariance.factor
        v, middle, by_genre, log_det = self.solve(sigma_creator)
        precision = np.diag(data.by_genre(v)) - by_genre @ middle @ by_genre.T
        weight, basis = np.linalg.eigh((precision + precision.T) / 2)
        # The generalised mean, and once more from its residuals, so that no digit is lost.
        offset = np.zeros(data.n_genres)
        for _ in range(2):
            rest = self.effect - offset[data.genre_idx]
            along = factor.T @ (v * rest)
            right = data.by_genre(v * rest) - by_genre @ (middle @ along)
            offset = offset + basis @ ((basis.T @ right) / weight)
        rest = self.effect - offset[data.genre_idx]
        along = factor.T @ (v * rest)
        squares = (v * np.square(rest)).sum() - along @ middle @ along
        constant = (len(v) - data.n_genres) * LOG_2PI
        residual = -0.5 * (log_det + np.log(weight).sum() + squares + constant)
        return basis.T @ (offset + self.center), weight, residual, basis.sum(axis=0), basis

    def _given(self, sums: RotatedSums, sigma_genre: np.ndarray):
        weight, ones = sums.weight[:, None, :], sums.ones[:, None, :]
        w = weight / (1 + np.square(sigma_genre)[:, :, None] * weight)
        total = (w * np.square(ones)).sum(axis=2)
        # Relative to the mean of the genres, so that effects far from 0 lose no digits.
        origin = (sums.mean * sums.ones).mean(axis=1, keepdims=True)
        offset = (sums.mean - origin * sums.ones)[:, None, :]
        mean = (w * ones * offset).sum(axis=2) / total
        squared = (w * np.square(offset - mean[:, :, None] * ones)).sum(axis=2)
        var = self.prior_var + 1 / total
        away = origin + mean - self.prior_mean
        log_density = 0.5 * (
            2 * sums.residual[:, None]
            + np.log(w).sum(axis=2)
            - np.log(total)
            - squared
            - np.log(var)
            - np.square(away) / var
            - self.data.n_genres * LOG_2PI
        )
        return log_density, origin + mean - away / (var * total), self.prior_var / (var * total)


def fit_correlated_model(
    summaries: pd.DataFrame, covariance: StructuredCovariance, *, priors: Priors = Priors()
) -> xr.DataTree:
    """Fit the hierarchical model to estimates with correlated errors.

    mu_genre[g] ~ Normal(mu_global, sigma_genre), tau[i] ~ Normal(mu_genre[g_i], sigma_creator),
    effect_hat ~ Normal(tau, covariance): exact but for a quadrature over the two standard
    deviations.

    Parameters
    ----------
    summaries : DataFrame
        One row a creator: ``creator_id, genre_idx, effect_hat, se`` (and ``genre`` for names).
    covariance : StructuredCovariance
        Of the errors; its creators are matched by id, and those not in `summaries` left out.
        `hbm.RolloutEstimates` has one.
    priors : Priors
        In the unit of the effects.

    Returns
    -------
    DataTree
        Groups ``quadrature`` (as of `hbm.exact.fit_exact`), ``observed_data`` and
        ``constant_data`` (with the parts of the covariance), and coordinates in ``posterior``.
        `extract_correlated_estimates` gives the estimates.

    Raises
    ------
    DataError
        If the summaries break a rule, a creator has no covariance, or a standard error is another
        than the covariance's.
    ValueError
        If the priors hold what past batches said.
    """
    validate_summaries(summaries)
    start = time.perf_counter()
    refuse_memory(priors, "a model with correlated errors")
    covariance = _matched(summaries, covariance)
    data = Estimates.from_frame(summaries)
    likelihood = CorrelatedLikelihood(data, priors.mu_global, covariance.take(data.order))
    grid = integrate(likelihood, priors)
    names = summaries.groupby("genre_idx")["genre" if "genre" in summaries else "genre_idx"].first()
    creator = {"creator": summaries["creator_id"].to_numpy()}
    coords = creator | {"genre": names.astype(str).to_numpy(dtype=object)}
    nodes = {
        "sigma_genre": grid.nodes.sigma_genre,
        "sigma_creator": grid.nodes.sigma_creator,
        "mu_global_mean": grid.nodes.mu_mean,
        "mu_global_var": grid.nodes.mu_var,
        "log_weight": grid.log_weight,
    }
    constant = {
        "se": ("creator", summaries["se"].to_numpy(float)),
        "genre_idx": ("creator", summaries["genre_idx"].to_numpy()),
        "diagonal": ("creator", covariance.diagonal),
        "factor": (("creator", "rank"), covariance.factor),
        "core": ("rank", covariance.core),
    }
    observed = {"effect_hat": ("creator", summaries["effect_hat"].to_numpy(float))}
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(coords=coords),
            "quadrature": xr.Dataset({k: (("outer", "inner"), v) for k, v in nodes.items()}),
            "observed_data": xr.Dataset(observed, creator),
            "constant_data": xr.Dataset(constant, creator),
        }
    )
    tree.attrs.update(
        engine="correlated",
        polar=grid.plane.polar,
        quadrature_error=grid.error,
        quadrature_errors=grid.errors,
        log_marginal_likelihood=grid.log_evidence,
        priors=json.dumps(priors.describe()),
        prior_parameters=json.dumps(priors.parameters()),
        fixed=[name for name in HYPERPARAMETERS if isinstance(getattr(priors, name), Fixed)],
        rank=covariance.rank,
        seconds=time.perf_counter() - start,
    )
    return tree


def _matched(summaries: pd.DataFrame, covariance: StructuredCovariance) -> StructuredCovariance:
    """Return the covariance in the order of the summaries; refuse what does not fit."""
    ids = pd.Index(covariance.creator_id)
    place = ids.get_indexer(pd.Index(summaries["creator_id"].to_numpy()))
    if (place < 0).any():
        missing = summaries.loc[place < 0, "creator_id"]
        first = ", ".join(map(repr, missing.head()))
        raise DataError(
            f"covariance: {len(missing):,} creators of the summaries have none, first: {first}"
        )
    covariance = covariance.take(place)
    se = np.sqrt(covariance.variance)
    wrong = np.abs(se / summaries["se"].to_numpy(float) - 1) > _AGREE
    if wrong.any():
        first = summaries.loc[wrong, "creator_id"].head().map(repr)
        raise DataError(
            "summaries: column 'se' must be the square root of the covariance's diagonal; "
            f"{wrong.sum():,} rows break it, first creators: {', '.join(first)}"
        )
    return covariance


class _Component(NamedTuple):
    """What one sigma_creator contributes: everything but the creators themselves."""

    sigma_creator: float
    v: np.ndarray
    middle: np.ndarray
    by_genre: np.ndarray
    sums: RotatedSums
    along: np.ndarray
    genre: Moments  # of the rotated genre means given mu_global's moments, (inner, genre)
    pull: np.ndarray  # weight of mu_global in them, (inner, genre)
    mu_var: np.ndarray
    weight: np.ndarray


def _components(idata: xr.DataTree) -> tuple[CorrelatedLikelihood, list[_Component]]:
    """Return the likelihood and the posterior as a mixture, node by node."""
    data, constant = estimates_of(idata), idata["constant_data"].dataset
    covariance = StructuredCovariance(
        constant["creator"].values,
        *(constant[name].values for name in ("diagonal", "factor", "core")),
    ).take(data.order)
    likelihood = CorrelatedLikelihood(data, priors_of(idata).mu_global, covariance)
    nodes = {name: part.values for name, part in idata["quadrature"].dataset.items()}
    if not idata.attrs["polar"]:  # on a ridge the effects need more nodes than their parameters
        nodes = _thinned(nodes)
    weight = np.exp(nodes["log_weight"])
    lightest = np.sort(weight, axis=None)
    floor = lightest[np.searchsorted(np.cumsum(lightest), _NEGLIGIBLE)]
    found = []
    for outer, row in enumerate(weight):
        inner = np.flatnonzero(row >= floor)
        # Polar grids have another sigma_creator at every node.
        for some in np.split(inner, len(inner)) if idata.attrs["polar"] and len(inner) else [inner]:
            if len(some):
                at = {name: part[outer, some] for name, part in nodes.items()}
                found.append(_component(likelihood, at, row[some]))
    return likelihood, found


def _thinned(nodes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return every so many nodes, as few as leave the hyperparameters' moments as they are.

    The grid is fine enough for half of it to do; often far fewer nodes do as well.
    """
    reference = _node_moments(nodes)
    scale = np.maximum(reference[1], 1e-7 * np.abs(reference[0]))  # what is fixed has no sd
    for step in (8, 4, 2):
        some = {name: part[::step, ::step] for name, part in nodes.items()}
        if (np.abs(_node_moments(some) - reference) / scale).max() < _THIN:
            total = np.exp(some["log_weight"]).sum()
            return some | {"log_weight": some["log_weight"] - np.log(total)}
    return nodes


def _node_moments(nodes: dict[str, np.ndarray]) -> np.ndarray:
    """Means and standard deviations of the hyperparameters, shape (2, hyperparameter)."""
    weight = np.exp(nodes["log_weight"])
    weight = weight / weight.sum()
    values = np.array([nodes[n] for n in ("sigma_genre", "sigma_creator", "mu_global_mean")])
    mean = (weight * values).sum(axis=(1, 2))
    var = (weight * np.square(values - mean[:, None, None])).sum(axis=(1, 2))
    var[2] += (weight * nodes["mu_global_var"]).sum()
    return np.array([mean, np.sqrt(np.maximum(var, np.finfo(float).tiny))])


def _component(likelihood: CorrelatedLikelihood, at, weight: np.ndarray) -> _Component:
    sigma_creator = float(at["sigma_creator"][0])
    v, middle, by_genre, _ = likelihood.solve(sigma_creator)
    sums = RotatedSums(*likelihood._node(sigma_creator))
    ratio = np.square(at["sigma_genre"])[:, None] * sums.weight
    pull = sums.ones / (1 + ratio)
    mean = at["mu_global_mean"][:, None] * pull + sums.mean * ratio / (1 + ratio)
    var = np.square(at["sigma_genre"])[:, None] / (1 + ratio)
    along = likelihood.covariance.factor.T @ (v * likelihood.effect)
    return _Component(
        sigma_creator, v, middle, by_genre, sums, along, Moments(mean, var), pull,
        at["mu_global_var"], weight,
    )  # fmt: skip


def _creator_moments(likelihood: CorrelatedLikelihood, part: _Component, block: slice) -> Moments:
    """Moments of tau given the node, shape (inner, creator).

    tau | mu_genre has mean X mu_genre + sigma² S⁻¹ (d - X mu_genre) and covariance
    sigma² - sigma⁴ S⁻¹, S the covariance of the estimates around X mu_genre.
    """
    data, square = likelihood.data, part.sigma_creator**2
    v, genre_idx = part.v[block], data.genre_idx[block]
    factor = v[:, None] * likelihood.covariance.factor[block]
    solved = factor @ part.middle
    # X - sigma² S⁻¹ X; 1 - sigma² v without loss of digits.
    toward = square * (solved @ part.by_genre.T)
    toward[np.arange(len(v)), genre_idx] += likelihood.covariance.diagonal[block] * v
    effect = likelihood.effect[block]
    own = likelihood.center[genre_idx] + square * (v * effect - solved @ part.along)
    rotated = toward @ part.sums.basis
    center = part.sums.basis.T @ likelihood.center
    mean = own + (part.genre.mean - center) @ rotated.T
    var = square * (1 - square * v) + square**2 * (solved * factor).sum(axis=1)
    var = var + part.genre.var @ np.square(rotated).T
    var = var + part.mu_var[:, None] * np.square(part.pull @ rotated.T)
    return Moments(mean, var)


def extract_correlated_estimates(
    idata: xr.DataTree, summaries: pd.DataFrame, *, check: bool = True
) -> pd.DataFrame:
    """Return each creator's pooled estimate from a fit with correlated errors.

    Parameters
    ----------
    idata : DataTree
        From `fit_correlated_model`.
    summaries : DataFrame
        The frame it was fitted to.
    check : bool
        Refuse a fit that fails `hbm.check_diagnostics`.

    Returns
    -------
    DataFrame
        The columns of `hbm.extract_hbm_estimates`, one row a creator in the order of `summaries`.

    Raises
    ------
    DiagnosticsError
        If the fit failed its diagnostics.
    ValueError
        If the posterior belongs to other creators or other data.
    """
    require_same_estimates(idata, summaries)
    if not np.array_equal(idata["constant_data"]["genre_idx"].values, summaries["genre_idx"]):
        raise ValueError("the posterior was fitted to another genre_idx than the summaries hold")
    if check:
        check_diagnostics(idata).raise_if_failed()
    likelihood, parts = _components(idata)
    data, weight = likelihood.data, np.concatenate([part.weight for part in parts])
    weight /= weight.sum()
    sigma = np.repeat([p.sigma_creator for p in parts], [len(p.weight) for p in parts])
    columns = {}
    step = max(1, _BLOCK // len(weight))
    for start in range(0, len(data.se), step):
        block = slice(start, start + step)
        moments = [_creator_moments(likelihood, part, block) for part in parts]
        moments = Moments(*(np.concatenate(pair) for pair in zip(*moments, strict=True)))
        found = mean_columns(moments, weight)
        found["shrinkage"] = weight @ shrinkage_factor(data.se[block], sigma)
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    estimates = pd.DataFrame({k: data.unsort(np.concatenate(v)) for k, v in columns.items()})
    estimates = estimates.rename(
        columns={"mean": "effect_hat", "lower": "ci_lower", "upper": "ci_upper"}
    )
    genres = idata["posterior"].dataset["genre"].values
    estimates.insert(0, "creator_id", summaries["creator_id"].to_numpy())
    estimates.insert(1, "genre", genres[summaries["genre_idx"].to_numpy(int)])
    n_total = summaries["n_total"].to_numpy() if "n_total" in summaries else np.nan
    estimates.insert(6, "n_total", n_total)
    return estimates


def extract_correlated_genres(idata: xr.DataTree) -> pd.DataFrame:
    """Return the posterior of each genre's mean from a fit with correlated errors.

    Returns
    -------
    DataFrame
        The columns of `hbm.extract_genre_estimates`.
    """
    likelihood, parts = _components(idata)
    weight = np.concatenate([part.weight for part in parts])
    means, variances = [], []
    for part in parts:
        basis = part.sums.basis
        means.append(part.genre.mean @ basis.T)
        shared = part.mu_var[:, None] * np.square(part.pull @ basis.T)
        variances.append(part.genre.var @ np.square(basis).T + shared)
    moments = Moments(np.concatenate(means), np.concatenate(variances))
    found = pd.DataFrame(mean_columns(moments, weight / weight.sum()))
    found.insert(0, "genre", idata["posterior"].dataset["genre"].values)
    found.insert(1, "n_creators", likelihood.counts)
    return found
