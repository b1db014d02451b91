"""Trustworthy readouts of small A/B experiments by partial pooling.

Public names are imported from here: ``from hbm import creator_readouts``. A name's module is
loaded when the name is first used, so ``import hbm`` itself costs next to nothing.
"""

from importlib import import_module

_PUBLIC = {
    "checks": "DataError",
    "data": (
        "generate_experiment_data incomplete_creators read_users summarize_arms "
        "summarize_creators validate_users"
    ),
    "warehouse": "arms_from_warehouse",
    "baselines": (
        "complete_pooling_estimates empirical_bayes_estimates james_stein_estimates "
        "no_pooling_estimates"
    ),
    "priors": "Fixed Gamma HalfCauchy HalfNormal LogNormal Normal Priors TruncatedNormal",
    "model": "fit_hierarchical_model",
    "learned": (
        "PriorsFileError compare_discounts learn_priors load_priors prior_mixture "
        "remember_batch save_priors"
    ),
    "learned.conflict": "PriorConflict prior_conflict resolve_conflict",
    "robust": "fit_hierarchical_model_robust outlier_study robust_estimates",
    "estimates": "effect_cdf extract_genre_estimates extract_hbm_estimates",
    "diagnostics": "DiagnosticsError check_diagnostics",
    "exact": "extract_slope_estimates predict_effects",
    "exact.draws": "draw_effects extract_hyper_estimates",
    "exact.loo": "leave_one_genre_out loo_exact",
    "validation": (
        "compare_estimators comparison_table compute_avg_interval_width compute_coverage "
        "compute_mse coverage_by_distance join_truth oracle_estimates selection_scores"
    ),
    "replicate": "sized",
    "studies": "platform_study simulate_summaries summarize_study",
    "sbc": "run_sbc run_user_sbc sbc_verdicts",
    "planted": "smallest_detectable_error",
    "predictive": (
        "leave_one_out loo_pit posterior_predictive predictive_pvalues prior_predictive"
    ),
    "sensitivity": "prior_sensitivity",
    "halves": "split_half split_half_summary",
    "readout": "creator_readouts readout_report sample_ratio_mismatch",
    "rollouts.panels": "generate_rollout_data validate_panel",
    "covariance": "StructuredCovariance",
    "rollouts": "RolloutEstimates borusyak_imputation_estimator",
    "rollouts.placebos": (
        "PretrendTest borusyak_imputation_estimator_calibrated placebo_effects placebo_test "
        "pretrend_test"
    ),
    "exact.correlated": (
        "extract_correlated_estimates extract_correlated_genres fit_correlated_model"
    ),
    "rollouts.study": "drift_study rollout_seconds rollout_study",
    "grouping.thresholds": "Thresholds",
    "grouping.candidates": (
        "bin_feature check_group_sizes coarser_bins create_grouping cross_groupings "
        "discover_clusters merge_small_groups"
    ),
    "grouping.history": "historical_lift simulate_platform_history simulate_quarters",
    "grouping.explore": (
        "analyze_grouping_candidate anova_test compute_eta_squared explore_groupings kruskal_test"
    ),
    "grouping.compare": "compare_groupings_empirical leave_group_out",
    "grouping.checks": "analyze_shrinkage check_posterior_separation",
    "grouping.select": "select_grouping",
    "grouping.monitor": "GroupingAlert monitor_grouping",
    "crossed.posterior": "CrossedPriors",
    "crossed": (
        "crossed_effect_cdf draw_crossed extract_cell_estimates extract_crossed_estimates "
        "extract_sigma_estimates fit_crossed_model"
    ),
    "crossed.loo": "compare_crossed loo_crossed",
    "drift": "fit_drift_model",
    "drift.process": "AutoRegression RandomWalk",
    "drift.future": "compare_futures leave_future_out",
    "drift.study": "fit_seconds forecast_study simulate_drift summarize_forecasts",
    "drift.calibration": "run_drift_sbc",
    "revenue.simulate": "Spread generate_count_data generate_revenue_data",
    "revenue.arms": "adjust_for_past summarize_counts summarize_payments winsorize_users",
    "revenue.model": "PartPriors fit_count_model fit_revenue_model",
    "revenue.dollars": "extract_count_estimates extract_revenue_estimates",
    "revenue.study": "anchor_study revenue_sbc revenue_study skew_study",
    "production.instant": "Night instant_estimates",
    "production.nightly": (
        "NightBusyError NightError fit_night last_night load_night run_night save_night"
    ),
    "production.variational": "variational_comparison variational_table",
    "production.study": (
        "agreement_study confidence_table instant_seconds production_study run_instant_sbc "
        "score_study"
    ),
    "store": "kept",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hbm' has no attribute {name!r}")
    return getattr(import_module(f"hbm.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
