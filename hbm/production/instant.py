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
from hbm.learned import prior_mixture
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
    task = _Task(night, summaries, method)
    columns = {name: np.empty(len(summaries)) for name in _COLUMNS}

    def fill(block: slice) -> None:
        for name, values in task.read_out(block).items():
            columns[name][block] = values

    step = max(1, _BLOCK // len(task.nodes.sigma_creator))
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
    return pd.DataFrame(
        head | estimated | {"n_total": n_total} | columns | {"counted": task.counted}
    )


_COLUMNS = (
    "effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage", "expected",
    "expected_sd", "surprise", "change", "confidence",
)  # fmt: skip


def instant_mixture(
    night: Night, summaries: pd.DataFrame, *, method: str = "mixture"
) -> tuple[Moments, np.ndarray]:
    """Return the posteriors behind `instant_estimates` as mixtures of normals.

    Returns
    -------
    moments : Moments, shape (node, creator)
    weight : ndarray, shape (node, creator)
    """
    task = _Task(night, summaries, method)
    everyone = slice(0, len(summaries))
    return task.update(everyone, *task.expect(everyone))[:2]


class _Task:
    """The creators to be read out, and the nodes of the night, place by place."""

    def __init__(self, night: Night, summaries: pd.DataFrame, method: str):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        require_columns(summaries, ["creator_id", "genre", "effect_hat", "se"], "summaries")
        validate_summaries(summaries.assign(genre_idx=pd.factorize(summaries["genre"])[0]))
        self.nodes = night.nodes if method == "mixture" else night.plug_in
        genres = pd.Index(night.priors.memory.genres)
        place = genres.get_indexer(pd.Index(summaries["genre"].astype(str)))
        self.data = _data(summaries, np.where(place < 0, len(genres), place))
        before = night._known.get_indexer(pd.Index(summaries["creator_id"].astype(str)))
        self.counted = before >= 0
        old = night.counted.iloc[before[self.counted]]
        self.earlier = _data(old, genres.get_indexer(pd.Index(old["genre"])))
        self.position = np.cumsum(self.counted) - 1

    def expect(self, block: slice) -> tuple[Moments, np.ndarray]:
        """Return effects as expected without the creators' own data, and log weights.

        Taking an estimate d of precision 1/t from a normal of mean m and variance P leaves the
        variance P t / (t - P) and the mean m - P (d - m) / (t - P). The weight of the node is
        divided by the density of d there.
        """
        nodes, data = self.nodes, self.data.take(block)
        squared = np.square(nodes.sigma_creator)[:, None]
        mean, var = nodes.genre.of(data)
        log_weight = np.repeat(np.log(nodes.weights)[:, None], len(data.se), axis=1)
        mine = np.flatnonzero(self.counted[block])
        if len(mine):
            earlier = self.earlier.take(self.position[block][mine])
            m, p = nodes.genre.of(earlier)
            t = squared + np.square(earlier.se)
            left = np.maximum(t - p, 1e-15 * t)
            away = earlier.effect_hat - m
            log_weight[:, mine] -= 0.5 * (np.log(left) - np.square(away) / left) - np.log(t)
            # One who has moved to another genre leaves that one's mean as it was.
            same = earlier.genre_idx == data.genre_idx[mine]
            mean[:, mine] = np.where(same, m - p * away / left, mean[:, mine])
            var[:, mine] = np.where(same, p * t / left, var[:, mine])
        return Moments(mean, var + squared), log_weight - logsumexp(log_weight, axis=0)

    def update(self, block: slice, prior: Moments, log_weight: np.ndarray):
        """Return the posterior moments and weights, and both tails of the data, given `expect`."""
        data = self.data.take(block)
        spread = np.sqrt(prior.var + np.square(data.se))
        residual = (data.effect_hat - prior.mean) / spread
        weight = np.exp(log_weight)
        tails = [(weight * ndtr(side * residual)).sum(axis=0) for side in (1, -1)]
        log_weight = log_weight - 0.5 * np.square(residual) - np.log(spread)
        pull = np.square(data.se / spread)
        mean = data.effect_hat + pull * (prior.mean - data.effect_hat)
        weight = np.exp(log_weight - logsumexp(log_weight, axis=0))
        return Moments(mean, prior.var * pull), weight, np.minimum(*tails)

    def read_out(self, block: slice) -> dict[str, np.ndarray]:
        """Return everything that is said of some creators."""
        prior, log_weight = self.expect(block)
        expected = mixture_moments(prior, np.exp(log_weight))
        moments, weight, tail = self.update(block, prior, log_weight)
        overall, plain = mixture_moments(moments, weight), self.data.effect_hat[block]
        lower, upper = tail_probabilities(LEVEL)
        change = overall.mean - plain
        side = np.where(change < 0, 1.0, -1.0)  # as if the pooled estimate were the smaller one
        turned = moments._replace(mean=side * moments.mean)
        pull = shrinkage_factor(self.data.se[block], self.nodes.sigma_creator)
        return {
            "effect_hat": overall.mean,
            "se": np.sqrt(overall.var),
            "ci_lower": mixture_quantile(moments, lower, weight),
            "ci_upper": mixture_quantile(moments, upper, weight),
            "p_positive": mixture_cdf(moments._replace(mean=-moments.mean), 0.0, weight),
            "shrinkage": (weight * pull).sum(axis=0),
            "expected": expected.mean,
            "expected_sd": np.sqrt(expected.var),
            "surprise": np.minimum(1.0, 2 * tail),
            "change": change,
            "confidence": mixture_cdf(turned, side * (plain + 0.5 * change), weight),
        }


def _data(frame: pd.DataFrame, place: np.ndarray) -> Estimates:
    """Take creators in the order of the frame; sums by genre are not needed."""
    columns = (frame[name].to_numpy(float) for name in ("effect_hat", "se"))
    return Estimates(*columns, place, np.arange(len(frame)), int(place.max(initial=0)) + 1)
