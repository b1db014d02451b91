"""Does the grouping still hold? Quarterly checks that a scheduler can run.

Every quarter is compared with the quarter in which the grouping was chosen. An alert needs both a
value on the wrong side of its limit and a difference that chance does not explain, so that a
small quarter raises no alarm by being small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from hbm.estimates import mixture
from hbm.exact import predictive_moments
from hbm.exact.loo import loo_exact
from hbm.gaussian import mixture_cdf, shrinkage_factor
from hbm.grouping.checks import held_out_coverage
from hbm.grouping.compare import checked_fit, elpd_difference, without_grouping
from hbm.grouping.explore import analyze_grouping_candidate
from hbm.grouping.thresholds import THRESHOLDS
from hbm.intervals import LEVEL, normal_factor, tail_probabilities
from hbm.priors import Priors

#: A change of the mean shrinkage is an alert beyond this many standard errors.
SHRINKAGE_SD = 3.0

CHECKS = ("quality", "elpd", "coverage", "shrinkage")

#: Exit codes of a scheduled run: nothing to report; the grouping needs a review.
OK, ALERT = 0, 1


class GroupingAlert(RuntimeError):
    """A grouping needs a review; the message lists every alert."""


@dataclass(frozen=True)
class MonitorReport:
    """What `monitor_grouping` found.

    Attributes
    ----------
    table : DataFrame
        One row a quarter and check: ``quarter, check, value, lower, upper`` (95% interval),
        ``limit`` (what the value is held against), ``alert`` and ``detail``.
    baseline : str
        The quarter that all others are compared with.
    """

    table: pd.DataFrame
    baseline: str

    @property
    def alerts(self) -> pd.DataFrame:
        """The rows with an alert."""
        return self.table[self.table["alert"]].reset_index(drop=True)

    @property
    def ok(self) -> bool:
        """Whether there is no alert."""
        return not self.table["alert"].any()

    @property
    def exit_code(self) -> int:
        """0 if there is no alert, else 1: what a scheduled run should exit with."""
        return OK if self.ok else ALERT

    def raise_if_alert(self) -> None:
        """Raise `GroupingAlert` if there is an alert."""
        if not self.ok:
            listed = "; ".join(
                f"{row.quarter}, {row.check}: {row.detail}" for row in self.alerts.itertuples()
            )
            raise GroupingAlert(f"the grouping needs a review: {listed}")


def monitor_grouping(
    quarters: Mapping[str, pd.DataFrame], *, priors: Priors | None = None, quick: bool = False
) -> MonitorReport:
    """Check whether a grouping holds in later quarters as it did when it was chosen.

    - **quality**: the corrected share of variance between groups; alert if the whole interval
      lies under the threshold, and it has fallen by more than chance. It is undefined (NaN) where
      the estimates vary no more than their noise; then alert if the variance of true effects has
      fallen by more than chance, from a baseline whose quality was defined.
    - **elpd**: the difference from no grouping within the quarter; alert if it no longer exceeds
      its threshold and its standard errors, as in a small quarter it may, and the baseline's fits
      too predict the quarter's estimates with a smaller gain from the grouping than chance
      explains.
    - **coverage**: of the quarter's estimates by predictions from the baseline's fit; alert if
      it lies under the threshold and so few hits are improbable (exact binomial test). For the
      baseline itself: of each estimate by all others.
    - **shrinkage**: the mean shrinkage factor at the baseline's standard errors; alert if it has
      changed by more than `SHRINKAGE_SD` standard errors of the difference. Nothing is sampled,
      so there is no Monte Carlo error to add.

    Parameters
    ----------
    quarters : mapping of str to DataFrame
        Summaries by quarter, as `create_grouping` makes them; the first is the baseline. Groups
        may come and go: a new one is predicted from the platform.
    priors : Priors, optional
        `Priors.weakly_informative` of the baseline when omitted.
    quick : bool
        Leave out on fewer nodes, for studies of many platforms: `hbm.exact.loo.loo_exact`.

    Returns
    -------
    MonitorReport

    Raises
    ------
    ValueError
        If there is no quarter beside the baseline.
    """
    if len(quarters) < 2:
        raise ValueError("monitoring needs the baseline and at least one later quarter")
    name = next(iter(quarters))
    priors = priors or Priors.weakly_informative(quarters[name])
    baseline = _Quarter(quarters[name], priors, quick)
    rows = []
    for q, summaries in quarters.items():
        quarter = baseline if q == name else _Quarter(summaries, priors, quick)
        rows += _rows(q, quarter, baseline)
    columns = ["quarter", "check", "value", "lower", "upper", "limit", "alert", "detail"]
    return MonitorReport(pd.DataFrame(rows, columns=columns), name)


class _Quarter:
    """A quarter's fits with and without the grouping."""

    def __init__(self, summaries: pd.DataFrame, priors: Priors, quick: bool):
        self.summaries = summaries
        self.model = _fit(summaries, priors)
        self.none = _fit(summaries, without_grouping(priors))
        left_out, without = (
            loo_exact(fit, quick=quick).pointwise for fit in (self.model, self.none)
        )
        self.pit, self.gains = left_out["pit"], (left_out["elpd"] - without["elpd"]).to_numpy()
        self.elpd, self.dse = elpd_difference(left_out["elpd"], without["elpd"])
        self.quality = analyze_grouping_candidate(summaries, "genre", "effect_hat", se="se")
        self.variance = _variance(summaries)

    def gains_of(self, other: _Quarter) -> np.ndarray:
        """Gain of the grouping in the log density with which these fits predict other creators."""
        with_groups, without = (_log_density(fit, other) for fit in (self.model, self.none))
        return with_groups - without

    def shrinkage(self, se: np.ndarray) -> tuple[float, float]:
        """Posterior mean and standard deviation of the mean shrinkage factor at `se`."""
        _, sigma_creator, weight = mixture(self.model)
        pull = shrinkage_factor(se, sigma_creator).mean(axis=1)
        mean = np.average(pull, weights=weight)
        return float(mean), float(np.sqrt(np.average(np.square(pull - mean), weights=weight)))


def _fit(summaries: pd.DataFrame, priors: Priors):
    return checked_fit(summaries, engine="exact", draws=0, priors=priors)


def _variance(summaries: pd.DataFrame) -> tuple[float, float]:
    """Estimate the variance of true effects, noise removed, and its standard error."""
    effect, se = (summaries[name].to_numpy(float) for name in ("effect_hat", "se"))
    n = len(effect)
    parts = np.square(effect - effect.mean()) * n / (n - 1) - np.square(se)
    return float(parts.mean()), float(parts.std(ddof=1) / np.sqrt(n))


def _prediction(model, quarter: _Quarter):
    """Estimates of a quarter, and how a fit that has not seen them predicts them."""
    known = set(model["posterior"].dataset["genre"].values)
    genres = [g if g in known else None for g in quarter.summaries["genre"]]
    moments, weight = predictive_moments(model, genres, quarter.summaries["se"])
    return quarter.summaries["effect_hat"].to_numpy(float), moments, weight


def _log_density(model, quarter: _Quarter) -> np.ndarray:
    estimate, moments, weight = _prediction(model, quarter)
    squared = np.square(estimate - moments.mean) / moments.var
    log_normal = -0.5 * (np.log(2 * np.pi * moments.var) + squared)
    return logsumexp(log_normal, axis=0, b=weight[:, None])


def _rows(name: str, quarter: _Quarter, baseline: _Quarter):
    for check, function in zip(CHECKS, (_quality, _elpd, _coverage, _shrinkage), strict=True):
        value, lower, upper, limit, alert, detail = function(quarter, baseline)
        # The baseline is what the others are held against.
        yield name, check, value, lower, upper, limit, alert and quarter is not baseline, detail


def _quality(quarter: _Quarter, baseline: _Quarter):
    found, before = quarter.quality, baseline.quality
    limit = THRESHOLDS.quality_moderate
    if np.isnan(found.quality):
        (now, error), (was, error_before) = quarter.variance, baseline.variance
        fallen = now - was < -normal_factor(LEVEL) * np.hypot(error, error_before)
        alert = bool(fallen and not np.isnan(before.quality))
        detail = f"quality undefined: variance of true effects {now:.2g}, was {was:.2g}"
        return found.quality, found.lower, found.upper, limit, alert, detail
    reach = np.hypot(found.upper - found.quality, before.upper - before.quality)
    alert = bool(found.upper < limit and found.quality - before.quality < -reach)
    detail = f"quality {found.quality:.2f} [{found.lower:.2f}, {found.upper:.2f}]"
    return found.quality, found.lower, found.upper, limit, alert, detail


def _elpd(quarter: _Quarter, baseline: _Quarter):
    before, now = baseline.gains, baseline.gains_of(quarter)
    error = before.std(ddof=1) * np.sqrt(1 / len(before) + 1 / len(now))
    fallen = now.mean() - before.mean() < -normal_factor(LEVEL) * error
    grade = THRESHOLDS.elpd(quarter.elpd, quarter.dse)
    alert = bool(fallen and (grade == "equal" or quarter.elpd < 0))
    reach = normal_factor(LEVEL) * quarter.dse
    detail = f"elpd {quarter.elpd:+.1f} ± {quarter.dse:.1f} from no grouping"
    ends = quarter.elpd - reach, quarter.elpd + reach
    return quarter.elpd, *ends, THRESHOLDS.elpd_likely, alert, detail


def _coverage(quarter: _Quarter, baseline: _Quarter):
    if quarter is baseline:
        found = held_out_coverage(quarter.pit)
    else:
        estimate, moments, weight = _prediction(baseline.model, quarter)
        found = held_out_coverage(mixture_cdf(moments, estimate, weight))
    limit = THRESHOLDS.coverage_alert
    alert = bool(found.coverage < limit and found.p_value < tail_probabilities(LEVEL)[0])
    detail = f"coverage {found.coverage:.1%} of {found.n_creators} estimates"
    return found.coverage, found.lower, found.upper, limit, alert, detail


def _shrinkage(quarter: _Quarter, baseline: _Quarter):
    se = baseline.summaries["se"].to_numpy(float)
    (value, sd), (before, before_sd) = quarter.shrinkage(se), baseline.shrinkage(se)
    alert = bool(abs(value - before) > SHRINKAGE_SD * np.hypot(sd, before_sd))
    reach = normal_factor(LEVEL) * sd
    detail = f"mean shrinkage {value:.2f}, was {before:.2f}"
    return value, value - reach, value + reach, before, alert, detail
