"""Do today's experiments agree with yesterday's priors? And what to do if they do not.

Each genre's mean and the spread of its creators are compared with their prior predictive
distributions (Box 1980): exact mixtures of normals for the means, and for the spread mixtures of
scaled chi-squared distributions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import gammainc, gammaincc

from hbm.gaussian import Moments, mixture_cdf, mixture_moments
from hbm.learned import as_batch, prior_mixture
from hbm.priors import Priors
from hbm.readout import holm

#: Probability of an alarm, at most, when the world has not changed.
ALARM = 0.01

#: What the row is called that compares the spread of the creators around their genres.
SPREAD = "spread of creators"


@dataclass(frozen=True)
class PriorConflict:
    """What `prior_conflict` found.

    Attributes
    ----------
    table : DataFrame
        One row a genre of the batch: ``what`` (its name), ``n_creators, remembered``;
        ``expected, sd``, the prior predictive of the genre's weighted mean, and ``observed``, in
        dollars per user; ``p_value``, two-sided; ``p_adjusted`` (Holm). The last row is the
        `SPREAD`: the mean squared deviation of estimates from their genre's mean, in units of
        its expectation if sigma_creator were the mean of its prior; missing where no genre has
        two creators.
    level : float
        Alarm if any adjusted p-value is at most this.
    """

    table: pd.DataFrame
    level: float

    @property
    def p_value(self) -> float:
        """The smallest adjusted p-value."""
        return float(self.table["p_adjusted"].min())

    @property
    def alarm(self) -> bool:
        """Whether batch and priors disagree."""
        return self.p_value <= self.level

    @property
    def surprises(self) -> tuple[str, ...]:
        """What disagrees: names of genres, and `SPREAD`."""
        return tuple(self.table.loc[self.table["p_adjusted"] <= self.level, "what"])


def prior_conflict(
    priors: Priors, summaries: pd.DataFrame, *, level: float = ALARM
) -> PriorConflict:
    """Compare a new batch with what learned priors expect of it.

    If nothing was discounted and the world is as the model says, every p-value is uniform, and an
    alarm has at most the probability `level`. Discounted priors expect less precisely, so their
    alarms are rarer.

    Parameters
    ----------
    priors : Priors
        With a memory, from before the batch.
    summaries : DataFrame
        The batch: ``creator_id, genre, genre_idx, effect_hat, se``.
    level : float

    Returns
    -------
    PriorConflict

    Raises
    ------
    ValueError
        If nothing has been learned yet.
    DataError
        If the summaries break a rule.

    References
    ----------
    Box (1980), Sampling and Bayes' inference in scientific modelling and robustness, JRSS A 143,
    383-430. Evans & Moshonov (2006), Checking for prior-data conflict, Bayesian Analysis 1,
    893-914.
    """
    data, genres = as_batch(summaries)
    genre, sigma_creator, weights = prior_mixture(priors, genres)
    typical = float(weights @ sigma_creator)
    v = 1 / (np.square(data.se) + typical**2)
    total = data.by_genre(v)
    observed = data.by_genre(v * data.effect_hat) / total
    noise = data.by_genre(np.square(v * data.se)) / total**2
    own = data.by_genre(np.square(v)) / total**2
    predicted = Moments(genre.mean, genre.var + noise + np.square(sigma_creator)[:, None] * own)
    overall = mixture_moments(predicted, weights)
    mirrored = predicted._replace(mean=-predicted.mean)
    tails = mixture_cdf(predicted, observed, weights), mixture_cdf(mirrored, -observed, weights)
    table = pd.DataFrame(
        {
            "what": [str(name) for name in genres],
            "n_creators": np.bincount(data.genre_idx),
            "remembered": [str(name) in priors.memory.genres for name in genres],
            "expected": overall.mean,
            "sd": np.sqrt(overall.var),
            "observed": observed,
            "p_value": 2 * np.minimum(*tails),
        }
    )
    spread = _spread(data, observed, v, sigma_creator, weights)
    if spread:
        row = {"what": SPREAD, "n_creators": len(data.se), "remembered": True} | spread
        table.loc[len(table)] = row
    table["p_value"] = table["p_value"].clip(upper=1.0)
    table["p_adjusted"] = holm(table["p_value"].to_numpy())
    return PriorConflict(table, level)


def _spread(data, center, v, sigma_creator, weights) -> dict[str, float]:
    """Compare Q = Σ v (d - center)² with its expectation.

    Given sigma_creator Q is a weighted sum of chi-squared variables with nearly equal weights;
    it is taken as the scaled chi-squared variable of the same mean and variance (Satterthwaite),
    exact where sigma_creator is what v was made with.
    """
    degrees = len(data.se) - data.n_genres
    if not degrees:
        return {}
    q = (v * np.square(data.effect_hat - center[data.genre_idx])).sum()
    share = v * v / data.by_genre(v)[data.genre_idx]
    t = np.square(sigma_creator)[:, None] + np.square(data.se)
    mean = ((v - share) * t).sum(axis=1)
    half_var = (v * (v - 2 * share) * np.square(t)).sum(axis=1)
    half_var += np.square(data.by_genre(share * t)).sum(axis=1)
    shape, scaled = mean**2 / (2 * half_var), q * mean / (2 * half_var)
    tails = weights @ gammainc(shape, scaled), weights @ gammaincc(shape, scaled)
    overall = mixture_moments(Moments(mean[:, None], 2 * half_var[:, None]), weights)
    return {
        "expected": float(overall.mean[0]) / degrees,
        "sd": float(np.sqrt(overall.var[0])) / degrees,
        "observed": float(q) / degrees,
        "p_value": 2 * float(min(tails)),
    }


def resolve_conflict(priors: Priors, conflict: PriorConflict) -> Priors:
    """Return priors that no longer hold on to what a batch has refuted.

    A genre that has surprised is remembered under another name, as a genre of the past: its own
    mean is learned anew, from where the hierarchy puts a new genre, while what its creators said
    of the platform stays. If the spread has surprised, nothing is left that could be trusted, and
    all is forgotten.

    Parameters
    ----------
    priors : Priors
    conflict : PriorConflict
        From `prior_conflict` with these priors.
    """
    if SPREAD in conflict.surprises:
        return replace(priors, memory=None)
    memory = priors.memory
    names = list(memory.genres)
    for genre in set(conflict.surprises) & set(names):
        ends = sum(name.startswith(f"{genre} (until change ") for name in names) + 1
        names[names.index(genre)] = f"{genre} (until change {ends})"
    return replace(priors, memory=replace(memory, genres=tuple(names)))
