"""Which grouping? Candidates, exploration, comparison, checks, the decision, and its monitoring.

Each step has a module; what a caller needs is imported from here.
"""

from hbm.grouping.candidates import (
    bin_feature,
    check_group_sizes,
    coarser_bins,
    create_grouping,
    cross_groupings,
    discover_clusters,
    merge_small_groups,
)
from hbm.grouping.checks import analyze_shrinkage, check_posterior_separation
from hbm.grouping.compare import compare_groupings_empirical, leave_group_out
from hbm.grouping.explore import (
    analyze_grouping_candidate,
    anova_test,
    compute_eta_squared,
    explore_groupings,
    kruskal_test,
)
from hbm.grouping.history import (
    historical_lift,
    simulate_platform_history,
    simulate_quarters,
)
from hbm.grouping.monitor import GroupingAlert, monitor_grouping
from hbm.grouping.select import select_grouping
from hbm.grouping.thresholds import THRESHOLDS

__all__ = [
    "THRESHOLDS",
    "GroupingAlert",
    "analyze_grouping_candidate",
    "analyze_shrinkage",
    "anova_test",
    "bin_feature",
    "check_group_sizes",
    "check_posterior_separation",
    "coarser_bins",
    "compare_groupings_empirical",
    "compute_eta_squared",
    "create_grouping",
    "cross_groupings",
    "discover_clusters",
    "explore_groupings",
    "historical_lift",
    "kruskal_test",
    "leave_group_out",
    "merge_small_groups",
    "monitor_grouping",
    "select_grouping",
    "simulate_platform_history",
    "simulate_quarters",
]
