"""Effects that move in time: genre means as processes, integrated out exactly.

mu_genre[g, t] moves by a random walk or an autoregression (`hbm.drift.process`); an experiment of
period t is one of a creator with tau[i] ~ Normal(mu_genre[g_i, t_i], sigma_creator) and
effect_hat[i] ~ Normal(tau[i], se[i]). The hyperparameters are integrated by quadrature
(`hbm.drift.grid`), everything else in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from hbm.data import DataError, _is_real, _refuse, require_columns, validate_summaries
from hbm.diagnostics import Diagnostics, _check_quadrature
from hbm.drift.grid import DriftGrid, DriftLikelihood, integrate_drift
from hbm.drift.marginals import Marginals
from hbm.drift.process import STATIC, AutoRegression, Process, RandomWalk
from hbm.drift.rule import DriftRule, drift_rule
from hbm.gaussian import (
    Moments,
    mixture_cdf,
    mixture_moments,
    mixture_quantile,
    shrinkage_factor,
)
from hbm.intervals import LEVEL, tail_probabilities
from hbm.model import _coords
from hbm.priors import Priors

__all__ = ["STATIC", "AutoRegression", "DriftFit", "RandomWalk", "fit_drift_model"]

#: Values (nodes x creators) that are worked on at a time, within the processor's cache.
_BLOCK = 100_000

#: The most periods from the first to the last.
MAX_PERIODS = 2000


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
    process : RandomWalk or AutoRegression
    priors : Priors
    grid : DriftGrid
        The posterior of the hyperparameters, and what was measured of its accuracy.
    """

    data: pd.DataFrame
    genres: np.ndarray
    process: Process
    priors: Priors
    grid: DriftGrid

    @property
    def log_evidence(self) -> float:
        """Log marginal density of all estimates."""
        return self.grid.log_evidence

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """The check of the quadrature, which is what can go wrong without a sampler."""
        return _check_quadrature(self.grid.errors)

    @cached_property
    def rule(self) -> DriftRule:
        """The nodes over which effects are integrated."""
        return drift_rule(self.grid)

    @cached_property
    def marginals(self) -> Marginals:
        """The distributions of the hyperparameters."""
        return Marginals(self.rule)

    @cached_property
    def periods(self) -> np.ndarray:
        """All periods from the first to the last of the data, with data or without."""
        return np.arange(self.data["period"].min(), self.data["period"].max() + 1)

    @cached_property
    def hyper(self) -> pd.DataFrame:
        """The hyperparameters: ``parameter, mean, se, lower, upper`` (equal-tailed 95%)."""
        return self.marginals.frame()

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """The creators, in the columns of `hbm.extract_hbm_estimates` and ``period``."""
        cells, weight = self.grid.box.likelihood.cells.data, self.rule.weight
        step = max(1, _BLOCK // len(weight))
        blocks = [slice(i, i + step) for i in range(0, len(cells.se), step)]
        sigma = self.rule.sigma_creator
        parts = [
            _described(self.rule.effects(block), weight)
            | {"shrinkage": weight @ shrinkage_factor(cells.se[block], sigma)}
            for block in blocks
        ]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        found = {name: cells.unsort(values) for name, values in found.items()}
        return pd.DataFrame(
            {
                **{name: self.data[name] for name in ("creator_id", "genre", "period")},
                "effect_hat": found["mean"],
                "se": found["se"],
                "ci_lower": found["lower"],
                "ci_upper": found["upper"],
                "n_total": self.data["n_total"],
                "p_positive": found["p_positive"],
                "shrinkage": found["shrinkage"],
            }
        )

    @cached_property
    def paths(self) -> pd.DataFrame:
        """Every genre in every period from the first to the last, given all data.

        ``genre, period, n_creators``; ``plain``, the mean of its creators' plain estimates in the
        period, each weighted by 1 / se²; and ``mean, se, lower, upper, p_positive``.
        """
        weight = 1 / np.square(self.data["se"])
        cells = pd.DataFrame({"n": 1, "w": weight, "wd": weight * self.data["effect_hat"]})
        cells = cells.groupby([self.data["genre_idx"], self.data["period"]]).sum()
        every = pd.MultiIndex.from_product([range(len(self.genres)), self.periods])
        cells = cells.reindex(every)
        frame = self._path_frame(self.periods)
        frame.insert(2, "n_creators", cells["n"].fillna(0).to_numpy(int))
        frame.insert(3, "plain", (cells["wd"] / cells["w"]).to_numpy())
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
        new = self.periods[-1] + 1 + np.arange(ahead)
        frame = self._path_frame(new)
        creator = self.predict(frame["genre"], frame["period"])
        return frame.assign(
            creator_se=creator["se"],
            creator_lower=creator["ci_lower"],
            creator_upper=creator["ci_upper"],
        )

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
        found = _described(self.predictive_moments(genres, periods, se), self.rule.weight)
        names = {"mean": "effect_hat", "lower": "ci_lower", "upper": "ci_upper"}
        frame = pd.DataFrame(found).rename(columns=names)
        frame.insert(0, "genre", pd.Series(list(genres), dtype=object))
        frame.insert(1, "period", np.asarray(periods))
        return frame

    def draw_paths(self, draws: int = 2000, seed: int = 42) -> np.ndarray:
        """Draw the genres' means jointly, for questions about changes.

        Parameters
        ----------
        draws : int
        seed : int or Generator

        Returns
        -------
        ndarray, shape (draw, genre, period)
            By `genres` and `periods`.
        """
        rng = np.random.default_rng(seed)
        return np.swapaxes(self.rule.draw_paths(rng, self.periods, draws), 1, 2)

    def path_moments(self, periods) -> Moments:
        """Return the moments of mu_genre given the node, (node, period, genre + 1).

        The last genre is one that is not in the data.

        Parameters
        ----------
        periods : ndarray of int
            Not before the first of the data.
        """
        every = np.union1d(self.grid.box.likelihood.periods, periods)
        place = np.searchsorted(every, periods)
        return Moments(*(part[:, place] for part in self.rule.paths(every)))

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
        mean, var = (part[:, which, place] for part in self.path_moments(wanted))
        return Moments(mean, var + np.square(self.rule.sigma_creator)[:, None] + np.square(se))

    def _path_frame(self, periods: np.ndarray) -> pd.DataFrame:
        """Describe the genres' means, one row a genre and period."""
        n = len(self.genres)
        moments = Moments(
            *(
                np.swapaxes(part[:, :, :n], 1, 2).reshape(len(part), -1)
                for part in self.path_moments(periods)
            )
        )
        keys = {"genre": np.repeat(self.genres, len(periods)), "period": np.tile(periods, n)}
        return pd.DataFrame(keys | _described(moments, self.rule.weight))


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
    DiagnosticsError
        If the fit failed its check.
    """
    when = validate_periods(summaries, period)
    names = _coords(summaries)["genre"]
    idx = summaries["genre_idx"].to_numpy(int)
    n_total = summaries["n_total"].to_numpy() if "n_total" in summaries else np.nan
    data = pd.DataFrame(
        {
            "creator_id": summaries["creator_id"].to_numpy(),
            "genre": names[idx],
            "genre_idx": idx,
            "period": when,
            "effect_hat": summaries["effect_hat"].to_numpy(float),
            "se": summaries["se"].to_numpy(float),
            "n_total": n_total,
        }
    )
    likelihood = DriftLikelihood(data, priors.mu_global, process)
    fit = DriftFit(data, names, process, priors, integrate_drift(likelihood, priors))
    if check:
        fit.diagnostics.raise_if_failed()
    return fit


def validate_periods(summaries: pd.DataFrame, period: str) -> np.ndarray:
    """Return the periods as integers, or say what is wrong with them."""
    validate_summaries(summaries)
    source, rule = "summaries", "must be a whole number, such as months counted from 0"
    require_columns(summaries, (period,), source)
    values = summaries[period]
    _refuse(summaries, values.isna(), period, "must not be missing", source)
    if not _is_real(values):
        raise DataError(f"{source}: column '{period}' {rule}; its type is {values.dtype}")
    number = values.to_numpy(float)
    _refuse(summaries, ~(number % 1 == 0), period, rule, source)
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


def _described(moments: Moments, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean, sd, interval and probability of a positive value of mixtures of normals."""
    overall = mixture_moments(moments, weight)
    # Without any spread between genres a mean is known given the node: a point.
    moments = Moments(moments.mean, np.maximum(moments.var, 1e-12 * overall.var))
    lower, upper = tail_probabilities(LEVEL)
    return {
        "mean": overall.mean,
        "se": np.sqrt(overall.var),
        "lower": mixture_quantile(moments, lower, weight),
        "upper": mixture_quantile(moments, upper, weight),
        # The upper tail by symmetry: 1 - cdf would lose the small probabilities.
        "p_positive": mixture_cdf(Moments(-moments.mean, moments.var), 0.0, weight),
    }
