"""Figures only: they draw finished tables and posteriors and compute nothing.

Every function returns a Matplotlib `Figure` that pyplot does not know, so that a notebook shows
it once. Everywhere `unit` is the unit of the effects, and `figsize` is in inches; when omitted,
the size the notebook asks for.
"""

from hbm.plots.calibration import plot_sbc
from hbm.plots.crossed import plot_cells, plot_crossed_study, plot_interaction_prior
from hbm.plots.drift import plot_forecast_gain, plot_paths
from hbm.plots.estimates import (
    plot_coverage_by_distance,
    plot_coverage_width,
    plot_creators,
    plot_error_by_size,
    plot_halves,
    plot_mse,
    plot_readouts,
    plot_sample_sizes,
    plot_shrinkage,
    plot_true_effects,
)
from hbm.plots.grouping import (
    plot_elbow,
    plot_grouping_comparison,
    plot_grouping_exploration,
    plot_monitoring,
    plot_quality,
    plot_separation,
    plot_shrinkage_analysis,
)
from hbm.plots.hover import hover_shrinkage
from hbm.plots.look import enable_themes, themed
from hbm.plots.posterior import (
    plot_genre_posteriors,
    plot_hyperparameters,
    plot_loo_pit,
    plot_ppc,
    plot_rank,
    plot_trace,
)
from hbm.plots.priors import plot_change, plot_weeks
from hbm.plots.production import plot_agreement, plot_confidence, plot_variational
from hbm.plots.revenue import plot_revenue_parts, plot_skew
from hbm.plots.robust import plot_outlier
from hbm.plots.rollouts import (
    plot_event_study,
    plot_imputation,
    plot_placebos,
    plot_rollout_coverage,
    plot_shared_errors,
)
from hbm.plots.scale import plot_scaling
from hbm.plots.studies import plot_standard_errors

__all__ = [
    "enable_themes",
    "hover_shrinkage",
    "plot_agreement",
    "plot_cells",
    "plot_change",
    "plot_confidence",
    "plot_coverage_by_distance",
    "plot_coverage_width",
    "plot_creators",
    "plot_crossed_study",
    "plot_elbow",
    "plot_error_by_size",
    "plot_event_study",
    "plot_forecast_gain",
    "plot_genre_posteriors",
    "plot_grouping_comparison",
    "plot_grouping_exploration",
    "plot_halves",
    "plot_hyperparameters",
    "plot_imputation",
    "plot_interaction_prior",
    "plot_loo_pit",
    "plot_monitoring",
    "plot_mse",
    "plot_outlier",
    "plot_paths",
    "plot_placebos",
    "plot_ppc",
    "plot_quality",
    "plot_rank",
    "plot_readouts",
    "plot_revenue_parts",
    "plot_rollout_coverage",
    "plot_sample_sizes",
    "plot_sbc",
    "plot_scaling",
    "plot_separation",
    "plot_shared_errors",
    "plot_shrinkage",
    "plot_shrinkage_analysis",
    "plot_skew",
    "plot_standard_errors",
    "plot_trace",
    "plot_true_effects",
    "plot_variational",
    "plot_weeks",
    "themed",
]
