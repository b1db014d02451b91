"""Effects of a staggered rollout, without a randomised control: the imputation estimator.

Creator and period effects are fitted on untreated observations only, what a treated creator would
have earned is imputed from them, and an effect is an average of what was earned minus what was
imputed (Borusyak, Jaravel & Spiess 2024). Averages over many creators get the authors'
conservative clustered variance. A single creator cannot be clustered: its standard error is that
of a weighted sum of errors whose covariance is pooled from all untreated residuals, and because
all creators lean on the same period effects, their estimates' errors are correlated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from hbm.checks import DataError
from hbm.covariance import StructuredCovariance
from hbm.intervals import LEVEL, normal_factor
from hbm.rollouts.panels import Panel
from hbm.rollouts.twoway import Errors, TwoWay, correlation, estimate_errors

#: Rules by which effects are averaged before their spread counts as variance.
AVERAGES = ("cohort_horizon", "horizon", "all")

_FIRST = 5

#: What is left of a group without a creator, below which there is nothing to compare with.
_ALONE = 1e-9


@dataclass(frozen=True)
class RolloutEstimates:
    """What the imputation estimator found, in the unit of the outcome.

    Attributes
    ----------
    att : float
        Mean effect over all treated observations.
    att_se : float
        Its standard error, clustered by creator.
    event_study : DataFrame
        One row a horizon (periods since treatment began): ``horizon, effect, se, ci_lower,
        ci_upper`` (95%), ``n_creators``; with `leave_one_out`, a horizon of one creator has no
        standard error.
    ite : DataFrame
        One row a treated creator, sorted by id: ``creator_id, first_treated, effect_hat, se,
        n_periods`` (treated), ``n_before`` (untreated).
    covariance : StructuredCovariance
        Of the errors of ``ite.effect_hat``, in that order.
    effects : DataFrame
        One row a treated creator and period: ``creator_id, period, horizon, imputed`` (what it
        would have earned untreated), ``effect_hat``.
    errors : Errors
        The error model of single creators: ``sigma, rho, df``.
    factor, factor_se : float
        What the standard errors of ``ite`` were multiplied by, and its standard error where it
        was estimated.
    excluded : DataFrame
        Treated rows without an effect: ``creator_id, period, reason``.
    """

    att: float
    att_se: float
    event_study: pd.DataFrame
    ite: pd.DataFrame
    covariance: StructuredCovariance
    effects: pd.DataFrame
    errors: Errors
    factor: float
    factor_se: float
    excluded: pd.DataFrame


def borusyak_imputation_estimator(
    panel: pd.DataFrame,
    *,
    unit: str = "creator_id",
    period: str = "period",
    outcome: str = "revenue",
    first_treated: str = "first_treated",
    weights: str | None = None,
    treated: str | None = None,
    gaps: str = "raise",
    unidentified: str = "raise",
    rho: float | None = None,
    leave_one_out: bool = False,
    average_by: str = "cohort_horizon",
) -> RolloutEstimates:
    """Estimate the effects of a staggered rollout by imputation [1]_.

    Parameters
    ----------
    panel : DataFrame
        One row a creator and period, balanced or not.
    unit, period, outcome, first_treated : str
        Columns. Periods are whole numbers; `first_treated` is missing for creators that are never
        treated, and may lie beyond the panel for those that are not treated yet.
    weights : str, optional
        Column of precision weights, such as the users behind a mean: observations count in
        proportion, in the regression and in all averages.
    treated : str, optional
        Column of 0 and 1, checked against `first_treated`: a treatment that switches off is
        refused.
    gaps : {"raise", "allow"}
        What to do where a creator skips periods.
    unidentified : {"raise", "exclude"}
        What to do with treated observations whose counterfactual nobody untreated can tell: refuse
        the panel, or set them aside in ``excluded``.
    rho : float, optional
        Autocorrelation of a creator's errors; estimated when omitted, 0 for independent errors.
    leave_one_out : bool
        Take each creator out of the average that its own effect is compared with, which makes
        the standard errors of `att` and of the event study larger and less biased where cohorts
        are small.
    average_by : {"cohort_horizon", "horizon", "all"}
        The groups over which effects are averaged for these standard errors. Effects that differ
        within a group make them conservative, groups of few creators too small.

    Returns
    -------
    RolloutEstimates

    Raises
    ------
    DataError
        If the panel breaks a rule (`hbm.validate_panel`); if nobody is treated, or nobody
        untreated; if a creator is treated in its first period, or a period has no untreated
        creator (unless ``unidentified="exclude"``); with `leave_one_out`, if a group has one
        creator.
    ValueError
        If a setting is unknown.

    References
    ----------
    .. [1] Borusyak, K., Jaravel, X. and Spiess, J. (2024). Revisiting event-study designs: robust
       and efficient estimation. Review of Economic Studies 91, 3253-3285. Conservative variance:
       section 4.3; leave-one-out: supplementary appendix A.9.
    """
    checked = Panel.from_frame(
        panel,
        unit=unit,
        period=period,
        outcome=outcome,
        first_treated=first_treated,
        weights=weights,
        treated=treated,
        gaps=gaps,
    )
    return estimate_rollout(
        checked,
        unidentified=unidentified,
        rho=rho,
        leave_one_out=leave_one_out,
        average_by=average_by,
    )


def estimate_rollout(
    panel: Panel,
    *,
    unidentified: str = "raise",
    rho: float | None = None,
    leave_one_out: bool = False,
    average_by: str = "cohort_horizon",
) -> RolloutEstimates:
    """Estimate effects from a checked panel; see `borusyak_imputation_estimator`."""
    if unidentified not in ("raise", "exclude"):
        raise ValueError(f"unidentified must be 'raise' or 'exclude', got {unidentified!r}")
    if average_by not in AVERAGES:
        raise ValueError(f"average_by must be one of {AVERAGES}, got {average_by!r}")
    if rho is not None and not -1 < rho < 1:
        raise ValueError(f"rho must lie between -1 and 1, got {rho}")
    controls, fit = fit_untreated(panel)
    cases = panel.rows(panel.treated)
    excluded = _unidentified(cases, fit)
    if len(excluded):
        if unidentified == "raise":
            raise DataError(_why_unidentified(excluded))
        cases = cases.rows(_identified(cases, fit))
        if not len(cases.creator):
            raise DataError("panel: no treated row has an untreated one to compare it with")

    alpha, beta = fit.fit(controls.outcome)
    residual = controls.outcome - alpha[controls.creator] - beta[controls.period]
    effect = cases.outcome - alpha[cases.creator] - beta[cases.period]
    standard_error = _ConservativeVariance(
        controls, residual, cases, effect, fit, average_by, leave_one_out
    )
    if leave_one_out and len(alone := standard_error.alone()):
        raise DataError(
            f"panel: leave_one_out needs two creators in every group of average_by={average_by!r}; "
            f"alone in theirs: {', '.join(map(repr, alone[:_FIRST]))}; a coarser average_by makes "
            "larger groups"
        )
    errors = estimate_errors(fit, residual, rho)
    covariance = _covariance(controls, cases, fit, errors)
    treated = np.unique(cases.creator)
    weight = np.bincount(cases.creator, cases.weight)[treated]
    ite = pd.DataFrame(
        {
            "creator_id": panel.ids[treated],
            "first_treated": panel.label(panel.first[treated]),
            "effect_hat": np.bincount(cases.creator, cases.weight * effect)[treated] / weight,
            "se": np.sqrt(covariance.variance),
            "n_periods": np.bincount(cases.creator)[treated],
            "n_before": np.bincount(controls.creator, minlength=panel.n_creators)[treated],
        }
    )
    return RolloutEstimates(
        att=float(np.average(effect, weights=cases.weight)),
        att_se=standard_error(np.ones(len(effect), bool)),
        event_study=_event_study(cases, effect, standard_error),
        ite=ite,
        covariance=covariance,
        effects=pd.DataFrame(
            {
                "creator_id": panel.ids[cases.creator],
                "period": panel.label(cases.period),
                "horizon": cases.horizon.astype(np.int64),
                "imputed": cases.outcome - effect,
                "effect_hat": effect,
            }
        ),
        errors=errors,
        factor=1.0,
        factor_se=np.nan,
        excluded=excluded,
    )


def fit_untreated(panel: Panel) -> tuple[Panel, TwoWay]:
    """Return the untreated rows and the two-way fit to them; refuse a panel without."""
    if not panel.treated.any():
        raise DataError("panel: no row is treated; first_treated lies beyond every creator's rows")
    if panel.treated.all():
        raise DataError(
            "panel: there are no never-treated and no not-yet-treated rows, so nothing to impute "
            "from; first_treated must be missing for creators that are never treated"
        )
    controls = panel.rows(~panel.treated)
    fit = TwoWay(
        controls.creator, controls.period, controls.weight, panel.n_creators, panel.n_periods
    )
    return controls, fit


def _identified(cases: Panel, fit: TwoWay) -> np.ndarray:
    """Whether creator and period of a row are joined by untreated observations."""
    return fit.part[cases.creator] == fit.part[fit.n_creators + cases.period]


def _unidentified(cases: Panel, fit: TwoWay) -> pd.DataFrame:
    """List the treated rows whose counterfactual cannot be imputed, with the reason."""
    wrong = ~_identified(cases, fit)
    creator, period = cases.creator[wrong], cases.period[wrong]
    open_periods = np.bincount(fit.period, minlength=fit.n_periods) > 0
    reason = np.where(
        fit.total[creator] == 0,
        "treated in its first period: it has no untreated one",
        np.where(
            open_periods[period],
            "no chain of untreated rows joins the creator to the period",
            "no creator is untreated in the period",
        ),
    )
    return pd.DataFrame(
        {
            "creator_id": cases.ids[creator],
            "period": cases.label(period),
            "reason": reason.astype(object),
        }
    )


def _why_unidentified(excluded: pd.DataFrame) -> str:
    parts = []
    for reason, rows in excluded.groupby("reason", sort=False):
        by = "period" if "no creator" in reason else "creator_id"
        shown = list(dict.fromkeys(rows[by]))
        first = ", ".join(f"{value!r}" if by == "creator_id" else str(value) for value in shown[:5])
        named = "creators" if by == "creator_id" else "periods"
        parts.append(f"{reason} ({len(rows):,} rows; {len(shown):,} {named}, first: {first})")
    return (
        "panel: the untreated rows do not tell what some treated rows would have been: "
        + "; ".join(parts)
        + ". unidentified='exclude' sets these rows aside"
    )


class _ConservativeVariance:
    """Standard errors of averages of effects, clustered by creator."""

    def __init__(
        self,
        controls: Panel,
        residual,
        cases: Panel,
        effect,
        fit: TwoWay,
        average_by,
        leave_one_out,
    ):
        self.controls, self.residual = controls, residual
        self.cases, self.effect, self.fit = cases, effect, fit
        self.average_by, self.leave_one_out = average_by, leave_one_out
        group = {
            "cohort_horizon": cases.first[cases.creator] * cases.n_periods + cases.horizon,
            "horizon": cases.horizon,
            "all": np.zeros(len(effect)),
        }[average_by]
        _, self.group = np.unique(group, return_inverse=True)
        # A creator may have several rows in a group: together they are one observation.
        pair, self.member = np.unique(
            self.group * fit.n_creators + cases.creator, return_inverse=True
        )
        self.group_of_pair, self.creator_of_pair = np.divmod(pair, fit.n_creators)

    def __call__(self, chosen: np.ndarray) -> float:
        """Return the standard error of the weighted mean effect of the chosen treated rows."""
        cases, fit = self.cases, self.fit
        weight = np.where(chosen, cases.weight, 0.0)
        weight /= weight.sum()
        by_creator = np.bincount(cases.creator, weight, fit.n_creators)
        by_period = np.bincount(cases.period, weight, fit.n_periods)
        influence = -fit.influence(by_creator, by_period)
        score = np.bincount(self.controls.creator, influence * self.residual, fit.n_creators)
        own = np.where(chosen, weight * self._deviation(weight), 0.0)
        score += np.bincount(cases.creator, own, fit.n_creators)
        return float(np.sqrt(np.square(score).sum()))

    def _deviation(self, weight: np.ndarray) -> np.ndarray:
        """Return effects minus the average of their group that makes the variance smallest."""
        own = np.bincount(self.member, weight)
        square = np.bincount(self.group_of_pair, own * own)
        square[square == 0] = 1.0
        effect = np.bincount(self.member, weight * self.effect)
        average = np.bincount(self.group_of_pair, own * effect) / square
        deviation = self.effect - average[self.group]
        if not self.leave_one_out:
            return deviation
        left = 1 - np.square(own) / square[self.group_of_pair]
        return deviation / np.where(left > _ALONE, left, np.nan)[self.member]

    def alone(self) -> np.ndarray:
        """Return the ids of creators who have no one to be compared with in their group."""
        pairs = np.bincount(self.group_of_pair)
        return self.cases.ids[np.unique(self.creator_of_pair[pairs[self.group_of_pair] == 1])]


def _event_study(cases: Panel, effect, standard_error: _ConservativeVariance) -> pd.DataFrame:
    rows = []
    for horizon in np.unique(cases.horizon):
        chosen = cases.horizon == horizon
        mean = np.average(effect[chosen], weights=cases.weight[chosen])
        rows.append((int(horizon), mean, standard_error(chosen), int(chosen.sum())))
    return with_intervals(pd.DataFrame(rows, columns=["horizon", "effect", "se", "n_creators"]))


def with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """Insert the 95% intervals after the columns ``effect`` and ``se``."""
    half = normal_factor(LEVEL) * frame["se"]
    frame.insert(3, "ci_lower", frame["effect"] - half)
    frame.insert(4, "ci_upper", frame["effect"] + half)
    return frame


def _covariance(controls: Panel, cases: Panel, fit: TwoWay, errors: Errors) -> StructuredCovariance:
    """Covariance of the creators' mean effects.

    The error of a mean effect is the creator's own (a weighted sum of its errors) minus
    z · (error of the period effects), z the difference of its treated and untreated weights by
    period. The period effects' errors are shared, and lean on the creator's own untreated ones.
    """
    treated = np.unique(cases.creator)
    place = np.full(fit.n_creators, -1)
    place[treated] = np.arange(len(treated))
    shape = len(treated), fit.n_periods

    def grid(values, panel, kept):
        where = place[panel.creator[kept]], panel.period[kept]
        return sparse.csr_array((values[kept], where), shape=shape).toarray()

    own, everyone = place[controls.creator] >= 0, np.ones(len(cases.creator), bool)
    total = np.bincount(cases.creator, cases.weight, fit.n_creators)
    after = grid(cases.weight / total[cases.creator], cases, everyone)
    before = grid(controls.weight / fit.total[controls.creator], controls, own)
    root = grid(np.sqrt(controls.weight), controls, own)
    # Weights of the standardised errors, whose correlation is `around`.
    weight = grid(np.sqrt(cases.weight) / total[cases.creator], cases, everyone)
    weight -= grid(np.sqrt(controls.weight) / fit.total[controls.creator], controls, own)
    around = correlation(fit.n_periods, errors.rho)
    spread = weight @ around
    diagonal = (weight * spread).sum(axis=1)
    difference = after - before
    period = fit.period_covariance(errors.rho)
    if errors.rho == 0:
        factor, core = difference, period
    else:
        spread *= root
        lean = (spread - before * spread.sum(axis=1, keepdims=True)) @ fit.inverse
        minus = -np.eye(fit.n_periods)
        factor = np.hstack([difference, lean])
        core = np.block([[period, minus], [minus, np.zeros_like(minus)]])
    unscaled = StructuredCovariance.from_parts(cases.ids[treated], diagonal, factor, core)
    return unscaled.scaled(errors.sigma)
