"""Readouts without a fit: last night's posterior meets one creator's data, in closed form.

The night's fit leaves a mixture of normals: at every node of a quadrature over the two standard
deviations the means of the genres are normal. One creator's estimate changes the weights of the
nodes by the density it has there, and given the node its effect is normal. That is Bayes'
theorem without an approximation: the readout is the one that a fit to all creators of the night
and this one would give.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp, ndtr

from hbm.checks import require_columns
from hbm.data import validate_summaries
from hbm.estimates import Mixture
from hbm.gaussian import (
    Estimates,
    Moments,
    mixture_cdf,
    mixture_moments,
    mixture_quantile,
    shrinkage_factor,
)
from hbm.intervals import LEVEL, tail_probabilities
from hbm.learned_priors import prior_mixture
from hbm.priors import Priors

#: Values (nodes x creators) that a thread works on at a time, within its cache.
_BLOCK = 100_000

#: What the plug-in is called, and the way that is right.
METHODS = ("mixture", "plug-in")

#: Estimates with less surprise than this, divided by the number of creators, are pointed out:
#: pooling trusts that creators are as alike as they have been.
SURPRISING = 0.05

#: A name that no genre has: the prior of a genre of which nothing has been seen.
_NEW = "\0"


@dataclass(frozen=True)
class Night:
    """What a night's fit leaves for the day.

    Attributes
    ----------
    priors : Priors
        With a memory of all that was learned up to that night.
    counted : DataFrame
        Whose data are part of the memory: ``creator_id`` (as text), ``genre, effect_hat, se``.
    record : dict
        What is to be known about the night: see `hbm.run_night`.
    """

    priors: Priors
    counted: pd.DataFrame
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> Mixture:
        """The posterior of genre means and sigma_creator; a genre never seen comes last."""
        return prior_mixture(self.priors, (*self.priors.memory.genres, _NEW))

    @cached_property
    def plug_in(self) -> Mixture:
        """The same as one normal with the mixture's moments, and the mean of sigma_creator."""
        genre, sigma_creator, weights = self.nodes
        overall = mixture_moments(genre, weights)
        one = Moments(overall.mean[None], overall.var[None])
        return Mixture(one, np.array([weights @ sigma_creator]), np.ones(1))

    @cached_property
    def _known(self) -> pd.Index:
        return pd.Index(self.counted["creator_id"])


def instant_estimates(
    night: Night, summaries: pd.DataFrame, *, method: str = "mixture"
) -> pd.DataFrame:
    """Return pooled estimates of creators without fitting anything.

    Each creator is estimated as if it were the only one that is new since the night. One that
    the night has counted already is taken out of the night's posterior first, by subtracting its
    precision at every node, and then enters with the estimate given here: never twice.

    Parameters
    ----------
    night : Night
        From `hbm.fit_night` or `hbm.load_night`.
    summaries : DataFrame
        One row a creator: ``creator_id, genre, effect_hat, se``. A genre that the night does not
        know is one more draw around the platform's mean.
    method : {"mixture", "plug-in"}
        ``plug-in`` takes sigma_creator as known: quicker, and too sure of itself after nights
        with few creators. It exists to be measured.

    Returns
    -------
    DataFrame
        One row a creator, in the order of `summaries`, with the columns of
        `hbm.extract_hbm_estimates` and

        - ``expected, expected_sd``: the effect as the night expects it, without the creator;
        - ``surprise``: two-sided probability of an estimate as far from that as this one;
        - ``change``: pooled minus plain estimate;
        - ``confidence``: probability that the truth lies nearer to the pooled than to the plain
          estimate, which is P(effect on the pooled side of the midpoint): between 1/2, where
          they agree, and 1;
        - ``counted``: whether the night had counted the creator already.

    Raises
    ------
    DataError
        If the summaries break a rule.
    ValueError
        If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    require_columns(summaries, ["creator_id", "genre", "effect_hat", "se"], "summaries")
    validate_summaries(summaries.assign(genre_idx=pd.factorize(summaries["genre"])[0]))
    nodes = night.nodes if method == "mixture" else night.plug_in
    genres = pd.Index(night.priors.memory.genres)
    place = genres.get_indexer(pd.Index(summaries["genre"].astype(str)))
    data = _data(summaries, np.where(place < 0, len(genres), place))
    before = night._known.get_indexer(pd.Index(summaries["creator_id"].astype(str)))
    counted = before >= 0
    old = night.counted.iloc[before[counted]]
    was = genres.get_indexer(pd.Index(old["genre"]))
    earlier = _data(old, was)
    position = np.cumsum(counted) - 1
    columns = {name: np.empty(len(summaries)) for name in _COLUMNS}

    def fill(block: slice) -> None:
        some = data.take(block)
        mine = np.flatnonzero(counted[block])
        given = _expect(nodes, some, mine, earlier.take(position[block][mine]))
        for name, values in _update(nodes, some, *given).items():
            columns[name][block] = values

    step = max(1, _BLOCK // len(nodes.sigma_creator))
    blocks = [slice(i, i + step) for i in range(0, len(summaries), step)]
    if len(blocks) > 1:
        with ThreadPoolExecutor() as threads:
            list(threads.map(fill, blocks))
    else:
        fill(blocks[0])
    head = {
        "creator_id": summaries["creator_id"].to_numpy(),
        "genre": summaries["genre"].to_numpy(),
    }
    n_total = summaries["n_total"].to_numpy() if "n_total" in summaries else np.nan
    estimated = {name: columns.pop(name) for name in ("effect_hat", "se", "ci_lower", "ci_upper")}
    return pd.DataFrame(head | estimated | {"n_total": n_total} | columns | {"counted": counted})


_COLUMNS = (
    "effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage", "expected",
    "expected_sd", "surprise", "change", "confidence",
)  # fmt: skip


def _data(frame: pd.DataFrame, place: np.ndarray) -> Estimates:
    """Take creators in the order of the frame; sums by genre are not needed."""
    columns = (frame[name].to_numpy(float) for name in ("effect_hat", "se"))
    return Estimates(*columns, place, np.arange(len(frame)), int(place.max(initial=0)) + 1)


def _expect(
    nodes: Mixture, data: Estimates, counted: np.ndarray, earlier: Estimates
) -> tuple[Moments, np.ndarray]:
    """Return the centers of creators without their own data, and log weights, (node, creator).

    Taking an estimate d of precision 1/t from a normal of mean m and variance P leaves the
    variance P t / (t - P) and the mean m - P (d - m) / (t - P). The weight of the node is
    divided by the density of d there.
    """
    mean, var = nodes.genre.of(data)
    log_weight = np.repeat(np.log(nodes.weights)[:, None], len(data.se), axis=1)
    if len(counted):
        # By its genre of that night: it may have moved since.
        m, p = nodes.genre.of(earlier)
        t = np.square(nodes.sigma_creator)[:, None] + np.square(earlier.se)
        left = np.maximum(t - p, 1e-15 * t)
        away = earlier.effect_hat - m
        log_weight[:, counted] -= 0.5 * (np.log(left) - np.square(away) / left) - np.log(t)
        same = earlier.genre_idx == data.genre_idx[counted]
        mean[:, counted] = np.where(same, m - p * away / left, mean[:, counted])
        var[:, counted] = np.where(same, p * t / left, var[:, counted])
    return Moments(mean, var), log_weight - logsumexp(log_weight, axis=0)


def _update(
    nodes: Mixture, data: Estimates, centers: Moments, log_weight: np.ndarray
) -> dict[str, np.ndarray]:
    """Return everything that is said of creators, given their centers and their own data."""
    sigma = nodes.sigma_creator
    prior = Moments(centers.mean, centers.var + np.square(sigma)[:, None])
    weight = np.exp(log_weight)
    expected = mixture_moments(prior, weight)
    spread = np.sqrt(prior.var + np.square(data.se))
    residual = (data.effect_hat - prior.mean) / spread
    tail = (weight * ndtr(residual)).sum(axis=0), (weight * ndtr(-residual)).sum(axis=0)
    log_weight = log_weight - 0.5 * np.square(residual) - np.log(spread)
    weight = np.exp(log_weight - logsumexp(log_weight, axis=0))
    pull = np.square(data.se / spread)
    moments = Moments(data.effect_hat + pull * (prior.mean - data.effect_hat), prior.var * pull)
    mirrored = moments._replace(mean=-moments.mean)
    overall = mixture_moments(moments, weight)
    lower, upper = tail_probabilities(LEVEL)
    change = overall.mean - data.effect_hat
    side = np.where(change < 0, 1.0, -1.0)  # as if the pooled estimate were the smaller one
    turned = moments._replace(mean=side * moments.mean)
    return {
        "effect_hat": overall.mean,
        "se": np.sqrt(overall.var),
        "ci_lower": mixture_quantile(moments, lower, weight),
        "ci_upper": mixture_quantile(moments, upper, weight),
        "p_positive": mixture_cdf(mirrored, 0.0, weight),
        "shrinkage": (weight * shrinkage_factor(data.se, sigma)).sum(axis=0),
        "expected": expected.mean,
        "expected_sd": np.sqrt(expected.var),
        "surprise": np.minimum(1.0, 2 * np.minimum(*tail)),
        "change": change,
        "confidence": mixture_cdf(turned, side * (data.effect_hat + 0.5 * change), weight),
    }
