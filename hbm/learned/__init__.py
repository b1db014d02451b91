"""Tomorrow's priors from today's fit: learned, discounted, saved, and confronted with new data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from hbm.data import require_columns, validate_summaries
from hbm.diagnostics import estimates_of, priors_of
from hbm.estimates import Mixture
from hbm.exact.likelihood import Likelihood, Sums
from hbm.exact.quadrature import integrate
from hbm.exact.rule import Rule, gauss_rule
from hbm.files import written_whole
from hbm.gaussian import Estimates, Moments, genre_sums
from hbm.memory import Memory, Past
from hbm.priors import Priors

#: What is left of everything learned by the time of the next batch: in the long run nine
#: batches count, whatever their number.
DISCOUNT = 0.9

#: What a file of priors says it is.
FORMAT, VERSION = "hbm-priors", 1

#: Creators x nodes that are summed at a time.
_BLOCK = 2_000_000


class PriorsFileError(ValueError):
    """A file holds no priors that can be used; the message names the file and what is wrong."""


def learn_priors(fit: xr.DataTree, *, discount: float = DISCOUNT) -> Priors:
    """Return the priors for the next batch: the fit's own, and what its data say.

    What the batch and those before it say of the genres' means and of sigma_creator is carried as
    a function (`hbm.memory`), so that nothing is lost: with ``discount=1`` a chain of batches
    gives the posterior of all of them together, in any order. The discount is a power prior
    (Ibrahim & Chen 2000): the log density of all past estimates is multiplied by it at every
    step. Of equal batches no more than discount / (1 - discount) ever count, so the priors
    cannot grow surer than that, and what the world was long ago fades.

    Parameters
    ----------
    fit : DataTree
        From `hbm.fit_hierarchical_model`, with either engine, with any priors; without
        covariates and ``sigma_by_genre``. The creators must be others in each batch: one who is
        in two of them would count as two.
    discount : float
        Between 0 (forget everything) and 1 (the world never changes).

    Returns
    -------
    Priors
        With a `memory`, unless the discount is 0.

    Raises
    ------
    ValueError
        If the discount lies outside 0 and 1, or the fit is of another model.

    References
    ----------
    Ibrahim & Chen (2000), Power prior distributions for regression models, Statistical Science
    15, 46-60.
    """
    others = {"covariate", "nu", "sigma_by_genre"} & set(_variables(fit))
    if others or "factor" in fit["constant_data"].dataset:
        raise ValueError("priors are learned from the plain model: normal, without covariates")
    genres = fit["posterior"].dataset["genre"].values
    return _learned(priors_of(fit), estimates_of(fit), genres, discount)


def remember_batch(
    priors: Priors, summaries: pd.DataFrame, *, discount: float = DISCOUNT
) -> Priors:
    """Return what `learn_priors` would of a fit to the batch: what it says needs no posterior.

    Parameters
    ----------
    priors : Priors
        Those the batch was met with.
    summaries : DataFrame
        The batch, with ``creator_id, genre, genre_idx, effect_hat, se``.
    discount : float
        As for `learn_priors`.
    """
    data, genres = as_batch(summaries)
    return _learned(priors, data, genres, discount)


def as_batch(summaries: pd.DataFrame) -> tuple[Estimates, np.ndarray]:
    """Return the estimates of a batch and the names of its genres."""
    validate_summaries(summaries)
    require_columns(summaries, ["genre"], "summaries")
    genres = summaries.groupby("genre_idx")["genre"].first().to_numpy(object)
    return Estimates.from_frame(summaries), genres


def _learned(priors: Priors, data: Estimates, genres: np.ndarray, discount: float) -> Priors:
    batch = _remember(data, genres, priors.memory)
    both = batch if priors.memory is None else priors.memory.plus(batch)
    return replace(priors, memory=both.discounted(discount))


def _variables(fit: xr.DataTree) -> list:
    return [*fit["posterior"].dataset.variables, *fit["constant_data"].dataset.variables]


def _remember(data: Estimates, genres: np.ndarray, past: Memory | None) -> Memory:
    """Return what the creators of a batch say, on the scale and centers of the past."""
    names = [str(genre) for genre in genres[: data.n_genres]]
    scale = float(np.sqrt(data.se.min() * data.se.max())) if past is None else past.scale
    weight = 1 / (np.square(data.se) + scale**2)
    center = data.by_genre(weight * data.effect_hat) / data.by_genre(weight)
    if past is not None:
        center = np.array([past.centers.get(g, c) for g, c in zip(names, center, strict=True)])
    data = replace(data, effect_hat=data.effect_hat - center[data.genre_idx])
    step = max(1, _BLOCK // len(data.se))
    constant = 0.5 * (len(data.se) - data.n_genres) * np.log(2 * np.pi)

    def sums(sigma_creator: np.ndarray) -> Past:
        blocks = (sigma_creator[i : i + step] for i in range(0, len(sigma_creator), step))
        parts = zip(*(genre_sums(data, block) for block in blocks), strict=True)
        mean, weight, residual = (np.concatenate(part) for part in parts)
        return Past(mean, weight, residual.sum(axis=1) - constant)

    counts = np.bincount(data.genre_idx).astype(float)
    return Memory.of(sums, names, center, counts, scale)


class _Remembered(Likelihood):
    """The density of what is remembered, by itself.

    Its data are creators to be predicted, very large, middling and very small ones of each genre:
    from them the quadrature takes its units, and by them it is judged how many nodes are needed.
    """

    def __init__(self, priors: Priors):
        self.memory = priors.memory
        n_genres = len(self.memory.genres)
        middle = self.memory.at(np.array([self.memory.scale])).mean[0]
        genre_idx = np.repeat(np.arange(n_genres), 3)
        se = np.tile(self.memory.scale * np.array([0.1, 1.0, 10.0]), n_genres)
        data = Estimates.from_arrays(middle[genre_idx], se, genre_idx)
        super().__init__(data, priors.mu_global)

    def sums(self, sigma_creator: np.ndarray) -> Sums:
        return Sums(*self.memory.at(sigma_creator))

    def sample(self) -> None:
        return None


@lru_cache(maxsize=4)
def _integrated(priors: Priors) -> tuple[_Remembered, Rule]:
    """What is remembered, integrated; kept, since the same priors meet many experiments."""
    if priors.memory is None:
        raise ValueError("nothing has been learned yet: priors.memory is None")
    likelihood = _Remembered(priors)
    return likelihood, gauss_rule(integrate(likelihood, priors))


def log_predictive_density(priors: Priors, summaries: pd.DataFrame) -> float:
    """Return the log density of a batch's estimates given the priors, learned or not.

    Parameters
    ----------
    priors : Priors
    summaries : DataFrame
        The batch, with ``creator_id, genre, genre_idx, effect_hat, se``.
    """
    data, genres = as_batch(summaries)
    data = data.remembering(priors.memory, genres)
    both = integrate(Likelihood(data, priors.mu_global), priors).log_evidence
    if priors.memory is None:
        return both
    return both - integrate(_Remembered(priors), priors).log_evidence


def compare_discounts(
    batches: Sequence[pd.DataFrame],
    discounts: Sequence[float] = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0),
    *,
    priors: Priors = Priors(),
) -> pd.DataFrame:
    """Score discounts by how well each batch was predicted by those before it.

    Parameters
    ----------
    batches : sequence of DataFrame
        Past batches in their order, 2 at least.
    discounts : sequence of float
    priors : Priors
        Those that the first batch was met with.

    Returns
    -------
    DataFrame
        One row a discount: ``discount``; ``elpd``, the sum over all batches but the first of the
        log predictive density; ``difference`` from the best and its standard error
        ``difference_se``, from the differences batch by batch (missing with 2 batches).

    Raises
    ------
    ValueError
        If there are fewer than two batches.
    """
    if len(batches) < 2:
        raise ValueError("two batches at least are needed, to predict one by the other")
    scores = np.empty((len(discounts), len(batches) - 1))
    for row, discount in zip(scores, discounts, strict=True):
        known = priors
        for place, batch in enumerate(batches):
            if place:
                row[place - 1] = log_predictive_density(known, batch)
            known = remember_batch(known, batch, discount=discount)
    elpd = scores.sum(axis=1)
    away = scores - scores[elpd.argmax()]
    n = away.shape[1]
    error = np.sqrt(n) * away.std(axis=1, ddof=1) if n > 1 else np.full(len(away), np.nan)
    return pd.DataFrame(
        {
            "discount": list(discounts),
            "elpd": elpd,
            "difference": away.sum(axis=1),
            "difference_se": error,
        }
    )


def prior_mixture(priors: Priors, genres: Sequence[str] | None = None) -> Mixture:
    """Return what learned priors expect, before any new data, as a mixture of normals.

    Parameters
    ----------
    priors : Priors
        With a memory.
    genres : sequence of str, optional
        Names of the genres wanted; all that are remembered when omitted. A genre that is not
        remembered is drawn around mu_global.

    Returns
    -------
    Mixture
        Over the nodes of a Gauss rule: ``genre``, the moments of mu_genre, (node, genre);
        ``sigma_creator`` and ``weights``, (node,).

    Raises
    ------
    ValueError
        If nothing has been learned yet.
    """
    likelihood, rule = _integrated(priors)
    remembered = priors.memory.genres
    known = {genre: place for place, genre in enumerate(remembered)}
    wanted = [known.get(str(g), len(known)) for g in (remembered if genres is None else genres)]
    centers = rule.centers(likelihood, new_genre=True)
    return Mixture(Moments(*(part[:, wanted] for part in centers)), rule.sigma_creator, rule.weight)


def save_priors(priors: Priors, path: str | os.PathLike) -> Path:
    """Write priors as a small JSON file, at once or not at all.

    The file is written beside its place and then moved there, so that a reader, a full disk or a
    kill never meets half a file: whatever happens, `path` holds the old priors or the new ones.

    Parameters
    ----------
    priors : Priors
    path : path
        Its folder is made if it is not there.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        If the file cannot be written; what was there stays.
    """
    path = Path(path)
    content = {"format": FORMAT, "version": VERSION, "priors": priors.parameters()}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with written_whole(path) as part:
        part.write_text(text, "utf-8")
    return path


def load_priors(path: str | os.PathLike) -> Priors:
    """Read priors that `save_priors` wrote, exactly as they were.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    PriorsFileError
        If the file is damaged, of another kind or of a version that this code does not know.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise PriorsFileError(f"{path}: no JSON, perhaps cut short: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PriorsFileError(f'{path}: the file does not say "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise PriorsFileError(
            f"{path}: version {content.get('version')!r} of the file; this code knows {VERSION}"
        )
    try:
        return Priors.from_parameters(content["priors"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise PriorsFileError(f"{path}: damaged priors: {reason}") from error
