"""In which form should a batch be remembered? Families and the function itself, compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from hbm.data import GENRES
from hbm.gaussian import Estimates
from hbm.learned import remember_batch
from hbm.learned.study import (
    GENRE_MEAN,
    GENRE_SD,
    Batch,
    Fitted,
    against,
    draw_batch,
    equal_counts,
    gathered,
)
from hbm.memory import Past
from hbm.priors import HalfNormal, LogNormal, Priors, TruncatedNormal
from hbm.replicate import replicate
from hbm.sizes import SIZE_MIXTURE


@dataclass(frozen=True)
class _Normals:
    """Genre means remembered as independent normals, whatever sigma_creator may be."""

    mean: np.ndarray
    weight: np.ndarray

    def at(self, sigma_creator: np.ndarray) -> Past:
        shape = len(sigma_creator), len(self.mean)
        known = (np.broadcast_to(part, shape) for part in (self.mean, self.weight))
        return Past(*known, np.zeros(len(sigma_creator)))


def _half_normal(mean: float, sd: float) -> HalfNormal:
    """Of the same mean square; it has no second parameter to say how sure it is."""
    return HalfNormal(float(np.hypot(mean, sd)))


def _truncated_normal(mean: float, sd: float) -> TruncatedNormal:
    return TruncatedNormal(mean, sd)


def _log_normal(mean: float, sd: float) -> LogNormal:
    """Of the same mean and standard deviation."""
    var = np.log1p((sd / mean) ** 2)
    return LogNormal(float(np.log(mean) - var / 2), float(np.sqrt(var)))


EXACT = "the function itself"

#: Families for sigma_creator that a batch's posterior is squeezed into; genre means are normal.
FORMS = {
    "half-normal": _half_normal,
    "truncated normal": _truncated_normal,
    "log-normal": _log_normal,
    EXACT: None,
}


def form_study(
    n_sequences: int, *, batches: tuple[int, ...] = (200, 10), seed: int = 42
) -> pd.DataFrame:
    """Remember batches in several forms, and compare with the joint fit of all of them.

    Parameters
    ----------
    n_sequences : int
    batches : tuple of int
        Creators of each batch. The last is scored; its experiments are small (30 to 100 users),
        so that what is remembered matters.
    seed : int

    Returns
    -------
    DataFrame
        One row a form: ``form``; ``sigma_creator``, the mean of its posterior after the last
        batch; ``coverage`` and ``mse`` of the last batch's readouts, with Monte Carlo errors
        ``*_se``; ``mean_error, sd_error``, the error of the posterior mean of sigma_creator in
        its standard deviations, and of the latter relative to itself, and ``genre_error``, the
        largest error of a genre's mean in its standard deviations: root mean squares over
        sequences of the differences from the joint fit.
    """
    found = gathered(replicate(_forms, n_sequences, seed=seed, batches=batches))
    groups = found.drop(columns="sequence").groupby("form", sort=False)
    mean, error = groups.mean(), groups.sem()
    table = pd.DataFrame(index=mean.index)
    for name in ("sigma_creator", "coverage", "mse"):
        table[name], table[f"{name}_se"] = mean[name], error[name]
    for name in ("mean_error", "sd_error", "genre_error"):
        table[name] = groups[name].apply(lambda values: np.sqrt(np.square(values).mean()))
    return table.reset_index()


def _forms(rng: np.random.Generator, *, batches: tuple[int, ...]) -> pd.DataFrame:
    mu = rng.normal(GENRE_MEAN, GENRE_SD, len(GENRES))
    small = ((1.0, 30, 100),)
    mixtures = [SIZE_MIXTURE] * (len(batches) - 1) + [small]
    drawn = [
        draw_batch(rng, mu, equal_counts(len(mu), n), size_mixture=sizes)
        for n, sizes in zip(batches, mixtures, strict=True)
    ]
    together = pd.concat([batch.summaries for batch in drawn])
    joint = Fitted(Estimates.from_frame(together), Priors())
    found = []
    for form, family in FORMS.items():
        fitted = _chain(drawn, family)
        error, inside = against(drawn[-1].tau, fitted.effects, fitted.rule.weight)
        found.append(
            {
                "form": form,
                "sigma_creator": fitted.mean,
                "coverage": inside.mean(),
                "mse": error.mean(),
                "mean_error": (fitted.mean - joint.mean) / joint.sd,
                "sd_error": fitted.sd / joint.sd - 1,
                "genre_error": np.abs(
                    (fitted.genre.mean - joint.genre.mean) / np.sqrt(joint.genre.var)
                ).max(),
            }
        )
    return pd.DataFrame(found)


def _chain(batches: list[Batch], family) -> Fitted:
    """Fit batch after batch, each with what was remembered of those before it."""
    priors, normals = Priors(), None
    for batch in batches:
        data = Estimates.from_frame(batch.summaries)
        if normals is not None:
            data = replace(data, memory=normals, places=np.arange(data.n_genres))
        fitted = Fitted(data.remembering(priors.memory, GENRES), priors)
        if family is None:
            priors = remember_batch(priors, batch.summaries, discount=1)
        else:
            sums = fitted.likelihood.sums(np.array([fitted.mean]))
            normals = _Normals(sums.mean[0], sums.weight[0])
            priors = replace(priors, sigma_creator=family(fitted.mean, fitted.sd))
    return fitted
