"""What untreated observations say of a rollout's estimates: pre-trends, placebos, calibration.

Where nobody was treated the effect is 0, so an estimate of it shows its error. Nothing here looks
at a treated outcome, and nothing at a truth that only a simulation knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hbm.checks import DataError
from hbm.rollouts import (
    RolloutEstimates,
    borusyak_imputation_estimator,
    estimate_rollout,
    fit_untreated,
    with_intervals,
)
from hbm.rollouts.panels import Panel

SOURCES = ("auto", "never", "before")

#: With fewer placebo creators no calibration factor is estimated, and never-treated creators give
#: way to the periods before treatment.
MIN_PLACEBOS = 20


@dataclass(frozen=True)
class PretrendTest:
    """Do creators about to be treated already differ?

    Attributes
    ----------
    leads : DataFrame
        One row a lead: ``horizon`` (-1 is the last period before treatment), ``effect, se,
        ci_lower, ci_upper``.
    statistic : float
        Wald statistic of all leads over their number.
    df : (int, int)
        Degrees of freedom of its F distribution: leads, and creators minus 1.
    p_value : float
    """

    leads: pd.DataFrame
    statistic: float
    df: tuple[int, int]
    p_value: float


def pretrend_test(panel: pd.DataFrame, leads: int = 3, **columns: Any) -> PretrendTest:
    """Test whether creators about to be treated already move apart from the others.

    Untreated outcomes are regressed on creator and period effects and on an indicator for each of
    the last `leads` periods before treatment; the Wald test of all indicators is clustered by
    creator. Only untreated rows enter, so that passing it says nothing of, and does nothing to,
    the estimates of the effects [1]_.

    Parameters
    ----------
    panel : DataFrame
    leads : int
        Few have more power than many.
    **columns
        ``unit, period, outcome, first_treated, weights, gaps``: as for
        `hbm.borusyak_imputation_estimator`.

    Returns
    -------
    PretrendTest

    Raises
    ------
    DataError
        If the panel breaks a rule, or a lead has no rows or cannot be told from the other effects.

    References
    ----------
    .. [1] Borusyak, K., Jaravel, X. and Spiess, J. (2024). Revisiting event-study designs: robust
       and efficient estimation. Review of Economic Studies 91, 3253-3285, section 4.4.
    """
    if leads < 1:
        raise ValueError(f"leads must be at least 1, got {leads}")
    controls, fit = fit_untreated(Panel.from_frame(panel, **columns))
    horizons = -np.arange(1, leads + 1)
    indicators = (controls.horizon[:, None] == horizons).astype(float)
    empty = [int(h) for h in horizons[indicators.sum(axis=0) == 0]]
    if empty:
        raise DataError(f"panel: no untreated row lies at horizon {', '.join(map(str, empty))}")
    x = np.column_stack([fit.residual(column) for column in indicators.T])
    y = fit.residual(controls.outcome)
    gram = (x * fit.weight[:, None]).T @ x
    if np.linalg.cond(gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))) > 1e10:
        raise DataError(
            f"panel: {leads} leads cannot be told apart from creator and period effects; ask for "
            "fewer"
        )
    inverse = np.linalg.inv(gram)
    effect = inverse @ (x.T @ (fit.weight * y))
    rest = fit.weight * (y - x @ effect)
    score = np.column_stack(
        [np.bincount(fit.creator, column * rest, fit.n_creators) for column in x.T]
    )
    n, n_clusters = len(y), len(np.unique(fit.creator))
    # Creators are nested in clusters of themselves and cost no degrees of freedom.
    n_effects = leads + len(np.unique(fit.period))
    small = n_clusters / (n_clusters - 1) * (n - 1) / (n - n_effects)
    covariance = small * inverse @ (score.T @ score) @ inverse
    statistic = float(effect @ np.linalg.solve(covariance, effect)) / leads
    frame = pd.DataFrame(
        {"horizon": horizons, "effect": effect, "se": np.sqrt(covariance.diagonal())}
    )
    return PretrendTest(
        leads=with_intervals(frame).iloc[::-1].reset_index(drop=True),
        statistic=statistic,
        df=(leads, n_clusters - 1),
        p_value=float(stats.f.sf(statistic, leads, n_clusters - 1)),
    )


def placebo_test(
    panel: pd.DataFrame, periods: int = 3, *, rho: float | None = None, **columns: Any
) -> RolloutEstimates:
    """Pretend that treatment began earlier, and look at untreated rows only.

    Parameters
    ----------
    panel : DataFrame
    periods : int
        How much earlier, at least 1.
    rho : float, optional
    **columns
        As for `pretrend_test`.

    Returns
    -------
    RolloutEstimates
        Of an effect that is 0: `att` should lie within two or three `att_se`. Creators with too
        few untreated periods stand in `excluded`.

    Raises
    ------
    DataError
        If the panel breaks a rule.
    """
    if periods < 1:
        raise ValueError(f"periods must be at least 1, got {periods}")
    checked = Panel.from_frame(panel, **columns)
    kept = checked.rows(~checked.treated, first=checked.first - periods)
    return estimate_rollout(kept, rho=rho, unidentified="exclude")


def placebo_effects(
    panel: pd.DataFrame,
    *,
    source: str = "auto",
    n_folds: int = 5,
    rho: float | None = None,
    random_seed: int = 42,
    **columns: Any,
) -> pd.DataFrame:
    """Estimate the effects of treatments that never happened.

    Creators are dealt into folds at random. Those of one fold at a time pretend to be treated,
    everything untreated of all others is what they are compared with, and the error model is
    estimated anew without them.

    Parameters
    ----------
    panel : DataFrame
    source : {"auto", "never", "before"}
        Who pretends: creators never treated, from dates drawn among the real ones; or creators
        before their treatment, over as large a share of their untreated periods as the real
        treatment has of all. ``auto`` takes ``never`` if there are at least `MIN_PLACEBOS`.
    n_folds : int
    rho : float, optional
    random_seed : int
    **columns
        As for `pretrend_test`.

    Returns
    -------
    DataFrame
        One row a pretending creator: ``creator_id, first_treated, effect_hat, se, n_periods,
        n_before, z`` (= effect_hat / se).

    Raises
    ------
    DataError
        If the panel breaks a rule, or nobody can pretend.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {SOURCES}, got {source!r}")
    if n_folds < 2:
        raise ValueError(f"n_folds must be at least 2, got {n_folds}")
    checked = Panel.from_frame(panel, **columns)
    fit_untreated(checked)  # refuses panels without treated or untreated rows
    rng = np.random.default_rng(random_seed)
    never = _pretend_never(checked, rng)
    use_never = source == "never" or (source == "auto" and np.isfinite(never).sum() >= MIN_PLACEBOS)
    first = never if use_never else _pretend_before(checked)
    pretending = rng.permutation(np.flatnonzero(np.isfinite(first)))
    if len(pretending) < n_folds:
        raise DataError(
            f"panel: {len(pretending)} creators can pretend to be treated, too few for {n_folds} "
            "folds"
        )
    untreated = checked.rows(~checked.treated)
    everyone = np.ones(len(untreated.creator), bool)
    found = []
    for fold in np.array_split(pretending, n_folds):
        date = np.full(checked.n_creators, np.inf)
        date[fold] = first[fold]
        pretended = untreated.rows(everyone, first=date)
        found.append(estimate_rollout(pretended, rho=rho, unidentified="exclude").ite)
    placebos = pd.concat(found).sort_values("creator_id", ignore_index=True)
    return placebos.assign(z=placebos["effect_hat"] / placebos["se"])


def _pretend_never(panel: Panel, rng: np.random.Generator) -> np.ndarray:
    """Draw dates of creators without a treated row, so that rows lie before and after them."""
    first, last = _span(panel)
    real = np.sort(panel.first[np.unique(panel.creator[panel.treated])])
    low = np.searchsorted(real, first, side="right")
    high = np.searchsorted(real, last, side="right")
    never = (panel.first > last) & (high > low)
    return np.where(
        never, real[np.where(never, rng.integers(low, np.maximum(high, low + 1)), 0)], np.inf
    )


def _pretend_before(panel: Panel) -> np.ndarray:
    """Date the end of each treated creator's untreated periods as its treatment."""
    before = np.bincount(panel.creator[~panel.treated], minlength=panel.n_creators)
    after = np.bincount(panel.creator[panel.treated], minlength=panel.n_creators)
    usable = (before >= 2) & (after > 0)
    share = after / np.maximum(before + after, 1)
    length = np.clip(np.rint(before * share), 1, np.maximum(before - 1, 1))
    return np.where(usable, panel.first - length, np.inf)


def _span(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    opens = np.flatnonzero(np.diff(panel.creator, prepend=-1))
    closes = np.append(opens[1:], len(panel.creator)) - 1
    return panel.period[opens], panel.period[closes]


def borusyak_imputation_estimator_calibrated(
    panel: pd.DataFrame,
    *,
    calibration_factor: float | None = None,
    source: str = "auto",
    n_folds: int = 5,
    random_seed: int = 42,
    **settings: Any,
) -> RolloutEstimates:
    """Estimate effects by imputation, the standard errors of creators scaled to fit placebos.

    A model of the errors can be wrong: creators drift apart, or remember longer than AR(1). The
    factor is the root mean square of `placebo_effects` in their standard errors, 1 if the errors
    are as large as the model says. It multiplies the standard errors of ``ite`` and its covariance;
    those of `att` and of the event study need no error model and stay.

    Parameters
    ----------
    panel : DataFrame
    calibration_factor : float, optional
        A fixed factor, from elsewhere; nothing is estimated then.
    source, n_folds, random_seed
        As for `placebo_effects`.
    **settings
        As for `hbm.borusyak_imputation_estimator`.

    Returns
    -------
    RolloutEstimates
        With `factor` and `factor_se` (NaN for a fixed factor).

    Raises
    ------
    DataError
        If the panel breaks a rule, or fewer than `MIN_PLACEBOS` creators can pretend.
    ValueError
        If the factor is not greater than 0.
    """
    if calibration_factor is not None and not 0 < calibration_factor < np.inf:
        raise ValueError(f"calibration_factor must be greater than 0, got {calibration_factor}")
    plain = borusyak_imputation_estimator(panel, **settings)
    factor, factor_se = calibration_factor, np.nan
    if factor is None:
        known = ("unit", "period", "outcome", "first_treated", "weights", "gaps", "rho")
        z = placebo_effects(
            panel,
            source=source,
            n_folds=n_folds,
            random_seed=random_seed,
            **{name: settings[name] for name in known if name in settings},
        )["z"].to_numpy()
        if len(z) < MIN_PLACEBOS:
            raise DataError(
                f"panel: {len(z)} placebo creators are too few for a calibration factor, at least "
                f"{MIN_PLACEBOS} are needed; pass calibration_factor"
            )
        factor = float(np.sqrt(np.mean(np.square(z))))
        factor_se = float(np.std(np.square(z), ddof=1) / (2 * factor * np.sqrt(len(z))))
    return replace(
        plain,
        ite=plain.ite.assign(se=plain.ite["se"] * factor),
        covariance=plain.covariance.scaled(factor),
        factor=factor,
        factor_se=factor_se,
    )
