"""Every threshold that a decision about a grouping hangs on, in one table."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd


def _rule(value: float, meaning: str):
    return field(default=value, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Thresholds:
    """The thresholds; `table` says what each one decides."""

    quality_moderate: float = _rule(0.20, "corrected quality: moderate if greater, else poor")
    quality_shown: float = _rule(0.30, "corrected quality: marked in figures and tables")
    quality_good: float = _rule(0.40, "corrected quality: good if greater")
    size_skip: int = _rule(5, "creators: a grouping with a smaller group is not compared as it is")
    size_warn: int = _rule(10, "creators: a smaller group is warned of")
    size_shortlist: int = _rule(15, "creators: a grouping with a smaller group is not shortlisted")
    cell_min: int = _rule(10, "creators: a smaller cell of a crossed grouping is merged")
    anova_level: float = _rule(0.05, "p-value: groups differ if smaller")
    anova_strong: float = _rule(0.001, "p-value: strong evidence if smaller")
    eta_medium: float = _rule(0.06, "eta squared: medium if greater, else small")
    eta_large: float = _rule(0.14, "eta squared: large if greater")
    eta_min: float = _rule(0.20, "corrected eta squared: passes the checklist if greater")
    elpd_likely: float = _rule(2.0, "elpd difference: likely better if greater, and beyond its dse")
    elpd_clear: float = _rule(4.0, "elpd difference: clearly better if greater, and beyond its dse")
    elpd_dse: float = _rule(2.0, "standard errors that an elpd difference must exceed")
    separation_moderate: float = _rule(1.0, "separation ratio: moderate if greater, else weak")
    separation_min: float = _rule(1.5, "separation ratio: passes the checklist if greater")
    separation_strong: float = _rule(2.0, "separation ratio: strong if greater")
    correlation_max: float = _rule(-0.3, "correlation of shrinkage and precision: good if smaller")
    coverage_min: float = _rule(0.93, "coverage of held-out estimates: passes if at least this")
    coverage_alert: float = _rule(0.90, "coverage of held-out estimates: alert if smaller")

    def table(self) -> pd.DataFrame:
        """Return ``threshold, value, meaning``, one row a threshold."""
        return pd.DataFrame(
            [(f.name, getattr(self, f.name), f.metadata["meaning"]) for f in fields(self)],
            columns=["threshold", "value", "meaning"],
        ).astype({"value": object})

    def quality(self, value: float) -> str:
        """Grade a noise-corrected quality: poor, moderate or good."""
        return _grade(value, (self.quality_moderate, self.quality_good), "poor moderate good")

    def eta(self, value: float) -> str:
        """Grade an eta squared: small, medium or large."""
        return _grade(value, (self.eta_medium, self.eta_large), "small medium large")

    def separation(self, value: float) -> str:
        """Grade a separation ratio: weak, moderate or strong."""
        cuts = (self.separation_moderate, self.separation_strong)
        return _grade(value, cuts, "weak moderate strong")

    def p_value(self, value: float) -> str:
        """Grade a p-value: none, some or strong evidence that groups differ."""
        # The smaller, the stronger: the same rule with the sign turned.
        return _grade(-value, (-self.anova_level, -self.anova_strong), "none some strong")

    def shrinkage(self, correlation: float) -> bool | None:
        """Say whether less precise estimates shrink more; None where it is undefined."""
        return None if np.isnan(correlation) else bool(correlation < self.correlation_max)

    def elpd(self, difference: float, dse: float) -> str:
        """Grade an elpd difference: equal, likely or clear. It must exceed its dse as well."""
        if not abs(difference) > self.elpd_dse * dse:
            return "equal"
        return _grade(abs(difference), (self.elpd_likely, self.elpd_clear), "equal likely clear")


def _grade(value: float, cuts: tuple[float, ...], names: str) -> str:
    """Return the name above as many cuts as `value` exceeds; undefined for NaN."""
    if np.isnan(value):
        return "undefined"
    return names.split()[sum(value > cut for cut in cuts)]


#: The thresholds that are used unless others are given.
THRESHOLDS = Thresholds()
