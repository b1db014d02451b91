"""Effects that move in time: genre means as processes, integrated out exactly.

mu_genre[g, t] moves by a random walk or an autoregression (`hbm.drift.process`); an experiment of
period t is one of a creator with tau[i] ~ Normal(mu_genre[g_i, t_i], sigma_creator) and
effect_hat[i] ~ Normal(tau[i], se[i]). The hyperparameters are integrated by quadrature
(`hbm.drift.posterior`), everything else in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from hbm.checks import DataError, is_real, refuse, require_columns
from hbm.data import validate_summaries
from hbm.diagnostics import MAX_QUADRATURE_ERROR, Diagnostics, check_quadrature
from hbm.drift.posterior import DriftLikelihood, DriftPosterior, integrate
from hbm.drift.process import STATIC, AutoRegression, Process, RandomWalk
from hbm.gaussian import (
    Moments,
    creator_moments,
    mean_columns,
    mixture_cdf,
    shrinkage_factor,
)
from hbm.intervals import LEVEL, tail_probabilities
from hbm.model import coords_of
from hbm.priors import Priors, refuse_memory

__all__ = ["STATIC", "AutoRegression", "DriftFit", "RandomWalk", "fit_drift_model"]

#: The most periods from the first to the last.
MAX_PERIODS = 2000

_BLOCK = 2_000_000


@dataclass(frozen=True)
class DriftFit:
    """The posterior of a model whose genre means move.

    Attributes
    ----------
    data : DataFrame
        One row a creator, in the order of the summaries: ``creator_id, genre, genre_idx, period,
        effect_hat, se, n_total``.
    genres : ndarray
        Names of the genres.
    priors : Priors
    posterior : DriftPosterior
        The posterior of the hyperparameters, and what was measured of its accuracy.
    """

    data: pd.DataFrame
    genres: np.ndarray
    priors: Priors
    posterior: DriftPosterior

    @property
    def log_evidence(self) -> float:
        """Log marginal density of all estimates."""
        return self.posterior.log_evidence

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """The check of the quadrature, which is what can go wrong without a sampler."""
        return check_quadrature(self.posterior.errors, MAX_QUADRATURE_ERROR)

    @cached_property
    def periods(self) -> np.ndarray:
        """All periods from the first to the last of the data, with data or without."""
        return np.arange(self.data["period"].min(), self.data["period"].max() + 1)

    @cached_property
    def hyper(self) -> pd.DataFrame:
        """The hyperparameters: ``parameter, mean, se, lower, upper`` (equal-tailed 95%)."""
        found, tails = self.posterior, tail_probabilities(LEVEL)
        mu = describe_mixtures(
            Moments(*(part[:, None] for part in found.rule.mu_global)), found.weight
        )
        rows = [("mu_global", *(float(mu[key][0]) for key in ("mean", "se", "lower", "upper")))]
        for axis in found.axes:
            share = found.shares[axis.name]
            ends = (axis.quantile(share, p) for p in tails)
            rows.append((axis.name, *axis.moments(share), *ends))
        return pd.DataFrame(rows, columns=["parameter", "mean", "se", "lower", "upper"])

    def hyper_cdf(self, name: str, x: float) -> float:
        """Return the posterior probability that a hyperparameter is at most `x`."""
        found = self.posterior
        if name == "mu_global":
            moments = Moments(*(part[:, None] for part in found.rule.mu_global))
            return float(mixture_cdf(moments, x, found.weight)[0])
        axes = {axis.name: axis for axis in found.axes}
        if name not in axes:
            known = ", ".join(["mu_global", *axes])
            raise ValueError(f"unknown hyperparameter {name!r}; known: {known}")
        return axes[name].cdf(found.shares[name], x)

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """The creators, in the columns of `hbm.extract_hbm_estimates` and ``period``."""
        weight, se = self.posterior.weight, self.data["se"].to_numpy()
        found = describe_mixtures(self.effect_moments(), weight)
        return pd.DataFrame(
            {
                "creator_id": self.data["creator_id"],
                "genre": self.data["genre"],
                "period": self.data["period"],
                "effect_hat": found["mean"],
                "se": found["se"],
                "ci_lower": found["lower"],
                "ci_upper": found["upper"],
                "n_total": self.data["n_total"],
                "p_positive": found["p_positive"],
                "shrinkage": weight @ shrinkage_factor(se, self.posterior.sigma_creator),
            }
        )

    @cached_property
    def paths(self) -> pd.DataFrame:
        """Every genre in every period from the first to the last, given all data.

        ``genre, period, n_creators, plain`` (mean of its estimates there, by precision; missing
        without any), ``mean, se, lower, upper, p_positive``.
        """
        weight = 1 / np.square(self.data["se"])
        parts = {"n_creators": 1, "weight": weight, "sum": weight * self.data["effect_hat"]}
        cells = self.data.assign(**parts).groupby(["genre_idx", "period"])[list(parts)].sum()
        places = pd.MultiIndex.from_product([range(len(self.genres)), self.periods])
        cells = cells.reindex(places)
        frame = self.path_frame(self.periods)
        frame.insert(2, "n_creators", cells["n_creators"].fillna(0).to_numpy(int))
        frame.insert(3, "plain", (cells["sum"] / cells["weight"]).to_numpy())
        return frame

    def forecast(self, ahead: int = 1) -> pd.DataFrame:
        """Predict the genres in the next periods.

        Parameters
        ----------
        ahead : int
            Number of periods after the last of the data.

        Returns
        -------
        DataFrame
            One row a genre and period: ``genre, period, mean, se, lower, upper, p_positive`` of
            the genre's mean; ``creator_se, creator_lower, creator_upper`` of the effect of a new
            creator, whose mean is the same.
        """
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1, got {ahead}")
        frame = self.path_frame(self.periods[-1] + 1 + np.arange(ahead))
        creator = self.predict(frame["genre"], frame["period"])
        names = {"se": "creator_se", "ci_lower": "creator_lower", "ci_upper": "creator_upper"}
        return frame.join(creator[list(names)].rename(columns=names))

    def predict(self, genres, periods, se=0.0) -> pd.DataFrame:
        """Predict creators who are not in the data.

        Parameters
        ----------
        genres : sequence
            Name of each new creator's genre; None for a genre that is not in the data.
        periods : sequence of int
            When its experiment takes place; not before the first period of the data.
        se : float or sequence of float
            0 predicts the true effect; a standard error predicts the estimate that an experiment
            of that precision would give.

        Returns
        -------
        DataFrame
            One row a new creator: ``genre, period, effect_hat`` (mean of the prediction), ``se``
            (its standard deviation), ``ci_lower, ci_upper`` (equal-tailed 95% interval),
            ``p_positive``.

        Raises
        ------
        KeyError
            If a genre is neither known nor None.
        ValueError
            If a standard error is negative, or a period is before the first.
        """
        found = describe_mixtures(
            self.predictive_moments(genres, periods, se), self.posterior.weight
        )
        names = {"mean": "effect_hat", "lower": "ci_lower", "upper": "ci_upper"}
        frame = pd.DataFrame(found).rename(columns=names)
        frame.insert(0, "genre", pd.Series(list(genres), dtype=object))
        frame.insert(1, "period", np.asarray(periods))
        return frame

    def effect_moments(self) -> Moments:
        """Return the moments of tau given the node, shape (node, creator)."""
        likelihood = self.posterior.likelihood
        cells, paths = likelihood.cells.data, self.posterior.paths(likelihood.periods)
        center = Moments(*(p[:, likelihood.cell_period, likelihood.cell_genre] for p in paths))
        moments = creator_moments(cells, center, self.posterior.sigma_creator)
        return Moments(*(cells.unsort(part) for part in moments))

    def predictive_moments(self, genres, periods, se) -> Moments:
        """Return what `predict` predicts given the node, shape (node, new creator)."""
        periods = np.asarray(periods)
        se = np.broadcast_to(np.asarray(se, float), len(periods))
        if not np.all(se >= 0):
            raise ValueError(f"se must not be negative, got {se.min()}")
        if not np.all(periods >= self.periods[0]):
            raise ValueError(f"the first period of the data is {self.periods[0]}, got earlier ones")
        names = pd.Index(self.genres)
        place = np.array([len(names) if g is None else names.get_indexer([g])[0] for g in genres])
        if np.any(place < 0):
            unknown = [g for g, k in zip(genres, place, strict=True) if k < 0]
            raise KeyError(f"unknown genres: {unknown}")
        wanted, which = np.unique(periods, return_inverse=True)
        mean, var = (part[:, which, place] for part in self.posterior.paths(wanted))
        spread = np.square(self.posterior.sigma_creator)[:, None] + np.square(se)
        return Moments(mean, var + spread)

    def path_frame(self, periods: np.ndarray) -> pd.DataFrame:
        """Describe the genres' means in some periods, sorted, not before the first.

        ``genre, period, mean, se, lower, upper, p_positive``, one row a genre and period.
        """
        paths, n = self.posterior.paths(periods), len(self.genres)
        flat = (np.swapaxes(part[:, :, :n], 1, 2).reshape(len(part), -1) for part in paths)
        keys = {"genre": np.repeat(self.genres, len(periods)), "period": np.tile(periods, n)}
        return pd.DataFrame(keys | describe_mixtures(Moments(*flat), self.posterior.weight))


def fit_drift_model(
    summaries: pd.DataFrame,
    *,
    period: str = "period",
    process: Process = RandomWalk(),
    priors: Priors = Priors(),
    check: bool = True,
) -> DriftFit:
    """Fit a model whose genre means move in time, exactly.

    Parameters
    ----------
    summaries : DataFrame
        One row a creator: ``creator_id, genre_idx, effect_hat, se`` and the period of its
        experiment (and ``genre`` for names, ``n_total``).
    period : str
        Column of the periods: whole numbers that count equal stretches of time, such as months
        from 0. Periods without data may lie between.
    process : RandomWalk or AutoRegression
        How the means move; `STATIC` for means that stay.
    priors : Priors
        In the unit of the effects; those of the process are its own.
    check : bool
        Refuse a fit whose quadrature error is too large.

    Returns
    -------
    DriftFit

    Raises
    ------
    DataError
        If the summaries break a rule.
    TypeError
        If a standard deviation has another prior than HalfNormal, HalfCauchy or Fixed.
    ValueError
        If the priors hold what past batches said.
    DiagnosticsError
        If the fit failed its check.
    """
    refuse_memory(priors, "a model of drift")
    when = validate_periods(summaries, period)
    names = coords_of(summaries)["genre"]
    idx = summaries["genre_idx"].to_numpy(int)
    data = pd.DataFrame(
        {
            "creator_id": summaries["creator_id"].to_numpy(),
            "genre": names[idx],
            "genre_idx": idx,
            "period": when,
            "effect_hat": summaries["effect_hat"].to_numpy(float),
            "se": summaries["se"].to_numpy(float),
            "n_total": summaries["n_total"].to_numpy() if "n_total" in summaries else np.nan,
        }
    )
    likelihood = DriftLikelihood(data, priors.mu_global, process)
    fit = DriftFit(data, names, priors, integrate(likelihood, priors))
    if check:
        fit.diagnostics.raise_if_failed()
    return fit


def validate_periods(summaries: pd.DataFrame, period: str) -> np.ndarray:
    """Return the periods as integers, or say what is wrong with them."""
    validate_summaries(summaries)
    source, rule = "summaries", "must be a whole number, such as months counted from 0"
    require_columns(summaries, (period,), source)
    values = summaries[period]
    refuse(summaries, values.isna(), period, "must not be missing", source)
    if not is_real(values):
        raise DataError(f"{source}: column '{period}' {rule}; its type is {values.dtype}")
    number = values.to_numpy(float)
    whole = np.isfinite(number) & (number == np.floor(number))
    refuse(summaries, ~whole, period, rule, source)
    when = number.astype(np.int64)
    calendar = (when > 190000) & (when < 220000) & (when % 100 >= 1) & (when % 100 <= 12)
    if calendar.all() and np.ptp(when // 100):
        raise DataError(
            f"{source}: column '{period}' looks like calendar months ({when.min()} to "
            f"{when.max()}), which jump at the turn of the year; count them: year * 12 + month"
        )
    if np.ptp(when) >= MAX_PERIODS:
        raise DataError(
            f"{source}: column '{period}' runs from {when.min()} to {when.max()}, more than "
            f"{MAX_PERIODS:,} periods; count longer ones"
        )
    return when


def describe_mixtures(moments: Moments, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Return `hbm.gaussian.mean_columns`, so many values at a time as memory allows."""
    step = max(1, _BLOCK // len(weight))
    parts = [
        mean_columns(Moments(*(part[:, start : start + step] for part in moments)), weight)
        for start in range(0, moments.mean.shape[1], step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
