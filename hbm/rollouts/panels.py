"""Panels of a staggered rollout: checked once where they enter, or simulated with known truth.

A panel has one row a creator and period. Creators get the feature at different times, and keep
it; some never get it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from hbm.checks import DataError, is_real, numbers, refuse, require_columns
from hbm.data import GENRES
from hbm.sizes import SIZE_MIXTURE, draw_sizes

_SOURCE = "panel"


@dataclass(frozen=True)
class Panel:
    """A checked panel as arrays, rows sorted by creator and period.

    Attributes
    ----------
    creator : ndarray of int, shape (row,)
        Position of the row's creator in `ids`.
    period : ndarray of int, shape (row,)
        Periods since `start`.
    outcome : ndarray, shape (row,)
    weight : ndarray, shape (row,)
        Precision of the outcome: its error variance is proportional to 1 / weight.
    first : ndarray, shape (creator,)
        First treated period, since `start`; infinite for creators that are never treated.
    ids : ndarray, shape (creator,)
    start : int
        The first period of the panel.
    n_periods : int
    """

    creator: np.ndarray
    period: np.ndarray
    outcome: np.ndarray
    weight: np.ndarray
    first: np.ndarray
    ids: np.ndarray
    start: int
    n_periods: int

    @classmethod
    def from_frame(
        cls,
        panel: pd.DataFrame,
        *,
        unit: str = "creator_id",
        period: str = "period",
        outcome: str = "revenue",
        first_treated: str = "first_treated",
        weights: str | None = None,
        treated: str | None = None,
        gaps: str = "raise",
    ) -> Panel:
        """Check a panel and take its columns; `validate_panel` has the rules."""
        if gaps not in ("raise", "allow"):
            raise ValueError(f"gaps must be 'raise' or 'allow', got {gaps!r}")
        optional = [name for name in (weights, treated) if name is not None]
        columns = [unit, period, outcome, first_treated, *optional]
        require_columns(panel, columns, _SOURCE)
        if panel.empty:
            raise DataError(f"{_SOURCE}: the table has no rows")
        _refuse_values(panel, unit, panel[unit].isna(), unit, "must not be missing")

        time = _whole_numbers(panel, unit, period)
        first = _whole_numbers(panel, unit, first_treated, missing=True)
        values = _finite(panel, unit, outcome)
        weight = np.ones(len(panel)) if weights is None else _finite(panel, unit, weights)
        if weights is not None:
            _refuse_values(panel, unit, weight <= 0, weights, "must be greater than 0")

        creator, ids = pd.factorize(panel[unit], sort=True)
        order = np.lexsort((time, creator))
        table, creator = panel.iloc[order], creator[order]
        time, first, values, weight = (x[order] for x in (time, first, values, weight))

        same = np.diff(creator, prepend=-1) == 0
        step = np.diff(time, prepend=time[0] - 1)
        again = same & (step == 0)
        again |= np.append(again[1:], False)
        _refuse_values(table, unit, again, period, "must not repeat within a creator")
        changed = same & ~np.isclose(first, np.roll(first, 1), equal_nan=True)
        rule = (
            "must be the same in all rows of a creator (a treatment that switches off, or on "
            "twice, is no staggered rollout)"
        )
        _refuse_values(table, unit, changed, first_treated, rule)
        if treated is not None:
            _refuse_disagreement(table, unit, treated, time, first)
        if gaps == "raise":
            rule = "must have no gaps between a creator's first and last (gaps='allow' takes them)"
            _refuse_values(table, unit, same & (step > 1), period, rule)

        start = int(time.min())
        return cls(
            creator=creator,
            period=(time - start).astype(np.int64),
            outcome=values,
            weight=weight,
            first=np.nan_to_num(first[~same] - start, nan=np.inf),
            ids=np.asarray(ids),
            start=start,
            n_periods=int(time.max()) - start + 1,
        )

    @property
    def n_creators(self) -> int:
        """Number of creators."""
        return len(self.ids)

    @cached_property
    def horizon(self) -> np.ndarray:
        """Periods since the creator's treatment began, -inf for one never treated."""
        return self.period - self.first[self.creator]

    @cached_property
    def treated(self) -> np.ndarray:
        """Whether the creator has the feature in the row's period."""
        return self.horizon >= 0

    def rows(self, kept: np.ndarray, first: np.ndarray | None = None) -> Panel:
        """Return some rows, on request with other dates of treatment; creators keep their ids."""
        parts = {
            name: getattr(self, name)[kept] for name in ("creator", "period", "outcome", "weight")
        }
        return replace(self, first=self.first if first is None else first, **parts)

    def label(self, period: np.ndarray) -> np.ndarray:
        """Return periods as the table calls them."""
        return (np.asarray(period) + self.start).astype(np.int64)


def validate_panel(panel: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """Check a panel once, where it enters.

    Rules: the columns exist and there is a row; no id is missing; periods are whole numbers, none
    twice for a creator and none skipped between a creator's first and last; the outcome is
    finite; `first_treated` is a whole number, or missing for a creator that is never treated, and
    the same in all rows of a creator; weights, where there are any, are greater than 0; a
    treatment, where it is recorded, begins at `first_treated` and stays on.

    Parameters
    ----------
    panel : DataFrame
        One row a creator and period, in any order.
    **columns
        ``unit, period, outcome, first_treated, weights, treated`` and ``gaps``, as
        `hbm.borusyak_imputation_estimator` takes them.

    Returns
    -------
    DataFrame
        The same frame.

    Raises
    ------
    DataError
        Names column, rule, number of offending rows and first offending creators.
    """
    Panel.from_frame(panel, **columns)
    return panel


def _refuse_values(panel: pd.DataFrame, unit: str, wrong, column: str, rule: str) -> None:
    """Raise if any row is marked wrong, naming the creators by the column of their ids."""
    if np.any(wrong):
        named = panel[list(dict.fromkeys([unit, column]))].assign(creator_id=panel[unit])
        refuse(named, wrong, column, rule, _SOURCE)


def _finite(panel: pd.DataFrame, unit: str, column: str) -> np.ndarray:
    values = numbers(panel, column, _SOURCE)
    _refuse_values(panel, unit, ~np.isfinite(values), column, "must be a finite number")
    return values


def _whole_numbers(
    panel: pd.DataFrame, unit: str, column: str, missing: bool = False
) -> np.ndarray:
    """Return a column of periods as floats, NaN where it may be missing."""
    if missing and panel[column].isna().all():
        return np.full(len(panel), np.nan)
    if not is_real(panel[column]):
        dtype = panel[column].dtype
        raise DataError(
            f"{_SOURCE}: column '{column}' must hold whole numbers, its type is {dtype}; "
            "number the periods 1, 2, 3, …"
        )
    values = panel[column].to_numpy(float, na_value=np.nan)
    wrong = ~np.isfinite(values) | (np.nan_to_num(values) % 1 != 0)
    wrong &= ~(np.isnan(values) & missing)
    rule = "must be a whole number" + (", or missing for a creator never treated" * missing)
    _refuse_values(panel, unit, wrong, column, rule)
    return values


def _refuse_disagreement(table: pd.DataFrame, unit: str, treated: str, time, first) -> None:
    """Raise unless the recorded treatment is on from `first` and never before."""
    on = table[treated].to_numpy(float, na_value=np.nan)
    _refuse_values(table, unit, ~np.isin(on, (0.0, 1.0)), treated, "must be 0 or 1")
    due = time >= first
    rule = "must stay on from first_treated: a treatment that switches off is no staggered rollout"
    _refuse_values(table, unit, due & (on == 0), treated, rule)
    _refuse_values(table, unit, ~due & (on == 1), treated, "must be 0 before first_treated")


def generate_rollout_data(
    seed: int | np.random.Generator = 42,
    *,
    genres: Sequence[str] = GENRES,
    n_creators_per_genre: int = 100,
    n_periods: int = 24,
    rollout: tuple[int, int] = (9, 21),
    never_share: float = 0.2,
    genre_mean: float = 0.5,
    genre_sd: float = 0.3,
    sigma_creator: float = 0.4,
    sigma_obs: float = 2.0,
    baseline: float = 5.0,
    level_sd: float = 1.0,
    period_sd: float = 0.3,
    rho: float = 0.0,
    trend_sd: float = 0.0,
    drift: float = 0.0,
    ramp: int = 1,
    size_mixture: Sequence[tuple[float, int, int]] = SIZE_MIXTURE,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate a staggered rollout without a randomised control, with the truth kept apart.

    Effects are drawn as in `hbm.generate_experiment_data`. A creator's users, as many as there,
    are spread evenly over the periods, and its mean revenue in a period is its own level, plus
    what all creators share in that period, plus the effect if it has the feature, plus an error of
    standard deviation sigma_obs / sqrt(users). With these defaults a creator's effect is known
    about as well as from an A/B experiment on the same users.

    Parameters
    ----------
    seed : int or Generator
        The same seed gives the same bytes.
    genres, n_creators_per_genre, genre_mean, genre_sd, sigma_creator, sigma_obs, baseline
        As for `hbm.generate_experiment_data`.
    n_periods : int
        Periods are numbered from 1.
    rollout : (int, int)
        Treatment begins in a period drawn uniformly from [low, high).
    never_share : float
        Share of creators of each genre that are never treated (rounded).
    level_sd, period_sd : float
        Standard deviations of the creators' levels and of the periods' shared ups and downs.
    rho : float
        Correlation of a creator's errors in successive periods (AR(1)).
    trend_sd : float
        Standard deviation of a creator's own trend per period, in units of its error's standard
        deviation: a departure from the model that no term of it can express.
    drift : float
        Trend per period that creators who will be treated have in common, and the others have
        not: the one thing that the estimator cannot survive.
    ramp : int
        Periods until the effect is full: at horizon h it is min(1, (h + 1) / ramp) of it.
    size_mixture : sequence of (share, low, high)
        Users of a creator over all periods.

    Returns
    -------
    panel : DataFrame
        One row a creator and period: ``creator_id, genre, period, n_users, revenue`` (mean per
        user), ``first_treated`` (NaN for never).
    truth : dict
        As of `hbm.generate_experiment_data`, for the treated creators alone; an effect is the
        mean over the creator's treated periods.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """
    low, high = rollout
    if not 1 < low < high <= n_periods + 1:
        raise ValueError(f"rollout must lie within periods 2 to {n_periods}, got [{low}, {high})")
    if not -1 < rho < 1:
        raise ValueError(f"rho must lie between -1 and 1, got {rho}")
    if not 0 <= never_share < 1:
        raise ValueError(f"never_share must lie in [0, 1), got {never_share}")
    if ramp < 1:
        raise ValueError(f"ramp must be at least 1, got {ramp}")
    rng = np.random.default_rng(seed)
    n_creators = len(genres) * n_creators_per_genre
    genre_idx = np.repeat(np.arange(len(genres)), n_creators_per_genre)
    genre_effects = rng.normal(genre_mean, genre_sd, len(genres))
    effects = rng.normal(genre_effects[genre_idx], sigma_creator)
    total, _ = draw_sizes(rng, n_creators, size_mixture)
    n_users = np.maximum(np.rint(total / n_periods), 1).astype(np.int64)

    first = rng.integers(low, high, n_creators).astype(float)
    place = np.tile(np.arange(n_creators_per_genre), len(genres))
    first[place < round(never_share * n_creators_per_genre)] = np.nan
    period = np.arange(1, n_periods + 1)
    horizon = period - first[:, None]
    share = np.where(horizon >= 0, np.minimum(1.0, (horizon + 1) / ramp), 0.0)

    noise = rng.standard_normal((n_creators, n_periods))
    for t in range(1, n_periods):
        noise[:, t] = rho * noise[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    noise += trend_sd * rng.standard_normal((n_creators, 1)) * (period - period.mean())
    revenue = baseline + rng.normal(0, level_sd, (n_creators, 1))
    revenue = revenue + rng.normal(0, period_sd, n_periods) + share * effects[:, None]
    revenue += drift * ~np.isnan(first)[:, None] * (period - period.mean())
    revenue += noise * (sigma_obs / np.sqrt(n_users))[:, None]

    width = len(str(n_creators))
    ids = np.array([f"c{i + 1:0{width}d}" for i in range(n_creators)], dtype=object)
    panel = pd.DataFrame(
        {
            "creator_id": np.repeat(ids, n_periods),
            "genre": np.repeat(np.array(genres, dtype=object)[genre_idx], n_periods),
            "period": np.tile(period, n_creators),
            "n_users": np.repeat(n_users, n_periods),
            "revenue": revenue.ravel(),
            "first_treated": np.repeat(first, n_periods),
        }
    )
    reached = ~np.isnan(first)
    mean_share = share[reached].sum(axis=1) / (share[reached] > 0).sum(axis=1)
    truth = {
        "mu_global": genre_mean,
        "sigma_genre": genre_sd,
        "sigma_creator": sigma_creator,
        "sigma_obs": sigma_obs,
        "genre_effects": genre_effects,
        "creator_effects": effects[reached] * mean_share,
        "creator_genre": genre_idx[reached],
        "creator_n": n_users[reached] * n_periods,
        "creator_id": ids[reached],
        "genres": tuple(genres),
    }
    return panel, truth
