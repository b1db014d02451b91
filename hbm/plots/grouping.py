"""Figures of candidate groupings: exploration, comparison, checks, monitoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hbm.grouping.thresholds import THRESHOLDS
from hbm.intervals import LEVEL, normal_factor
from hbm.plots import look

#: Shrinkage in percent is drawn up to here: near 0 a percentage means nothing.
_MOST_PERCENT = 150

_QUALITIES = (
    THRESHOLDS.quality_moderate,
    THRESHOLDS.quality_shown,
    THRESHOLDS.quality_good,
)

_CHECKS = {
    "quality": "Share of variance\nbetween groups",
    "elpd": "elpd difference\nfrom no grouping",
    "coverage": "Coverage of\nheld-out estimates",
    "shrinkage": "Mean\nshrinkage",
}


@look.house
def plot_grouping_exploration(
    df: pd.DataFrame,
    exploration: pd.DataFrame,
    candidates: Sequence[str],
    *,
    outcome: str = "lift",
    unit: str = "share of revenue",
    figsize=None,
) -> Figure:
    """Draw an outcome by group for four candidates, with their naive and corrected quality.

    Parameters
    ----------
    df : DataFrame
        One row a creator: the outcome and the candidates.
    exploration : DataFrame
        From `hbm.explore_groupings`.
    candidates : sequence of str
        Columns, a panel each.
    outcome, unit : str
        The outcome and its unit; values beyond the axis' ends are counted in the figure.
    """
    quality = exploration.set_index("candidate")
    rows = -(-len(candidates) // 2)
    fig, axes = look.subplots(
        rows, 2, figsize=figsize, taller=0.25 + 0.65 * rows, sharex=True, squeeze=False
    )
    values = df[outcome].dropna()
    ends = np.quantile(values, [0.01, 0.99])
    for ax, name in zip(axes.flat, candidates, strict=False):
        used = df.dropna(subset=[outcome, name])
        groups = used.groupby(name, observed=True, sort=True)[outcome]
        names, data = zip(*((look.label(k, 20), v.to_numpy()) for k, v in groups), strict=True)
        _boxes(ax, data)
        ax.plot(
            [x.mean() for x in data],
            np.arange(len(data)),
            color=look.VERMILLION,
            marker="D",
            markersize=4,
            linestyle="",
            zorder=4,
        )
        ax.axvline(values.mean(), color=look.FAINT, linewidth=0.9, zorder=1)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlim(*ends)
        ax.grid(False, axis="y")
        found = quality.loc[name]
        naive, corrected = (_signed(found[c]) for c in ("naive_quality", "quality"))
        ax.set_title(f"{look.label(name, 30)}\nnaive {naive}, corrected {corrected}")
    for ax in axes[-1]:
        ax.set_xlabel(f"{outcome.capitalize()} ({unit})")
    fig.supylabel("Group", size=8.5)
    beyond = int(((values < ends[0]) | (values > ends[1])).sum())
    keys = [
        look.key("quartiles, and 1.5 times their distance", color=look.BLUE, linewidth=1.4),
        look.key("mean of the group", color=look.VERMILLION, marker="D", linestyle=""),
        look.key(f"mean of all; {beyond} creators lie beyond the axis", color=look.FAINT),
    ]
    look.below(fig, keys, ncols=2)
    return fig


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _boxes(ax, data) -> None:
    line = {"color": look.BLUE, "linewidth": 1.2}
    ax.boxplot(
        data,
        positions=range(len(data)),
        orientation="horizontal",
        widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": look.PAPER, "edgecolor": look.BLUE},
        medianprops={"color": look.BLUE, "linewidth": 1.8},
        whiskerprops=line,
        capprops=line,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": look.FAINT},
        manage_ticks=False,
    )


@look.house
def plot_elbow(clusters, *, figsize=None) -> Figure:
    """Draw inertia, silhouette and stability against the number of clusters.

    Parameters
    ----------
    clusters : Clusters
        From `hbm.discover_clusters`.
    """
    table = clusters.table
    panels = (
        ("inertia", "Inertia (squared sd)", look.BLUE, "o", (clusters.elbow, "elbow")),
        ("silhouette", "Mean silhouette", look.ORANGE, "D", (clusters.k, "chosen")),
        ("stability", "Agreement between seeds", look.GREEN, "s", None),
    )
    fig, axes = look.subplots(1, 3, figsize=figsize, taller=0.7)
    for ax, (column, name, colour, marker, mark) in zip(axes, panels, strict=True):
        ax.plot(table["k"], table[column], color=colour, marker=marker, markersize=4, linewidth=1.2)
        if mark is not None:
            ax.axvline(mark[0], color=look.SOFT, linestyle="--", linewidth=1)
            ax.set_title(f"{mark[1]}: k = {mark[0]}")
        ax.set_xlabel("Clusters k")
        ax.set_ylabel(name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(bottom=0)
    return fig


@look.house
def plot_quality(studies: Mapping[str, pd.DataFrame], *, figsize=None) -> Figure:
    """Draw naive and corrected quality over platforms, a panel for each truth.

    Parameters
    ----------
    studies : mapping of str to DataFrame
        From `hbm.grouping.study.quality_study`, by what the truth is called.
    """
    fig, axes = look.subplots(
        1, len(studies), figsize=figsize, taller=0.8, squeeze=False, sharey=True
    )
    rng = np.random.default_rng(0)
    kinds = (("naive", look.VERMILLION, "v"), ("quality", look.BLUE, "o"))
    for ax, (name, study) in zip(axes[0], studies.items(), strict=True):
        for x, (column, colour, marker) in enumerate(kinds):
            jitter = x + rng.uniform(-0.3, 0.3, len(study))
            look.dots(ax, jitter, study[column], (colour, marker), 8, 0.5)
            ax.plot([x - 0.36, x + 0.36], [study[column].mean()] * 2, color=look.INK, linewidth=1.8)
        for threshold in _QUALITIES:
            ax.axhline(threshold, color=look.FAINT, linestyle=(0, (1, 2)), linewidth=1, zorder=1)
        ax.axhline(study["share"].mean(), **look.TRUTH)
        ax.set_xticks([0, 1], ["naive", "corrected"])
        ax.set_xlim(-0.6, 1.6)
        ax.grid(False, axis="x")
        ax.set_title(name)
        ax.set_xlabel("Quality")
    axes[0, 0].set_ylabel("Share of variance between genres")
    keys = [
        look.key("a platform", color=look.SOFT, marker="o", linestyle="", markersize=4),
        look.key("mean", color=look.INK, linewidth=1.8),
        look.key("mean of the true shares", **look.TRUTH),
        look.key("thresholds", color=look.FAINT, linestyle=(0, (1, 2))),
    ]
    look.below(fig, keys)
    return fig


@look.house
def plot_grouping_comparison(comparison, *, figsize=None) -> Figure:
    """Draw each candidate's elpd difference from no grouping, and those of shuffled labels.

    Parameters
    ----------
    comparison : GroupingComparison
        From `hbm.compare_groupings_empirical`.
    """
    table = comparison.table[comparison.table["n_groups"] > 1]
    fig, ax = look.subplots(figsize=figsize, taller=0.4 + 0.08 * len(table))
    look.no_effect(ax)
    for y, row in enumerate(table.itertuples()):
        if row.candidate in comparison.shuffled:
            shuffled = comparison.shuffled[row.candidate]
            look.dots(ax, shuffled, np.full(len(shuffled), y + 0.22), (look.FAINT, "|"), 30, 0.6,
                      linewidth=0.7)  # fmt: skip
        reach = normal_factor(LEVEL) * row.dse
        colour = look.BLUE if row.verdict in ("likely", "clear") else look.SOFT
        ax.plot([row.elpd_diff - reach, row.elpd_diff + reach], [y, y], color=colour, linewidth=1.6)
        ax.plot(row.elpd_diff, y, color=colour, marker="o", markersize=5)
    ax.set_yticks(range(len(table)), [look.label(name, 34) for name in table["candidate"]])
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xscale("symlog", linthresh=5)
    ticks = [-5, -2, 0, 2, 5, 10, 20, 50, 100, 200, 500]
    ax.set_xticks(ticks, [f"{x:+d}".replace("-", "−") if x else "0" for x in ticks])
    ax.set_xlim(*_room(table, comparison.shuffled))
    ax.grid(False, axis="y")
    ax.set_xlabel("elpd difference from no grouping (linear up to 5, then logarithmic)")
    ax.set_ylabel("Candidate")
    keys = [
        look.key(f"better than no grouping, {LEVEL:.0%} interval", color=look.BLUE, marker="o"),
        look.key("not shown to be better", color=look.SOFT, marker="o"),
        look.key("its labels shuffled", color=look.FAINT, marker="|", linestyle="", markersize=8),
    ]
    look.below(fig, keys, ncols=3)
    return fig


def _room(table: pd.DataFrame, shuffled: pd.DataFrame) -> tuple[float, float]:
    """Ends of the axis that hold all intervals and all shuffles."""
    reach = normal_factor(LEVEL) * table["dse"]
    low, high = (table["elpd_diff"] - reach).min(), (table["elpd_diff"] + reach).max()
    if shuffled.size:
        low, high = min(low, shuffled.min().min()), max(high, shuffled.max().max())
    return min(1.3 * low, -2.5), max(1.3 * high, 5.5)


@look.house
def plot_separation(separations: Sequence, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw the mean effects of the groups with their intervals, a panel for each grouping.

    Parameters
    ----------
    separations : sequence of Separation
        From `hbm.check_posterior_separation`.
    """
    most = max(len(s.table) for s in separations)
    fig, axes = look.subplots(
        1, len(separations), figsize=figsize, taller=0.35 + 0.09 * most, sharex=True, squeeze=False
    )
    for ax, separation in zip(axes[0], separations, strict=True):
        table = separation.table
        y = np.arange(len(table))
        look.no_effect(ax)
        ax.hlines(y, table["lower"], table["upper"], color=look.ORANGE, linewidth=1.8)
        look.dots(ax, table["mean"], y, (look.ORANGE, "D"), 26, 1)
        ax.set_yticks(y, [look.label(name, 20) for name in table["genre"]])
        ax.set_ylim(len(table) - 0.4, -0.6)
        ax.grid(False, axis="y")
        name = look.label(separation.grouping_name, 30)
        ax.set_title(f"{name}: ratio {separation.ratio:.1f}, {separation.grade}")
        ax.set_xlabel(f"Mean effect of the group,\n{LEVEL:.0%} interval ({unit})")
    axes[0, 0].set_ylabel("Group")
    return fig


@look.house
def plot_shrinkage_analysis(analysis, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw how far estimates were moved, against their precision and by group.

    Parameters
    ----------
    analysis : ShrinkageAnalysis
        From `hbm.analyze_shrinkage`. Percentages are drawn up to 150; larger ones are counted.
    """
    creators = analysis.creators
    fig, (left, right) = look.subplots(1, 2, figsize=figsize, taller=0.9)
    styles = look.genre_styles(creators["group"])
    for group, style in styles.items():
        own = creators[creators["group"] == group]
        look.dots(left, own["precision"], own["shrinkage"], style)
    look.log_x(left, f"Precision, 1 / standard error\n(1 / {unit})")
    left.set_ylabel(f"Distance moved ({unit})")
    left.set_title(f"correlation {_signed(analysis.correlation)}")
    left.set_ylim(bottom=0)
    percent = creators.dropna(subset=["shrinkage_pct"])
    beyond = int((percent["shrinkage_pct"] > _MOST_PERCENT).sum())
    data = [percent.loc[percent["group"] == g, "shrinkage_pct"].to_numpy() for g in styles]
    _boxes(right, [np.minimum(values, _MOST_PERCENT) for values in data])
    right.set_yticks(range(len(styles)), [look.label(group, 18) for group in styles])
    right.set_ylim(len(styles) - 0.4, -0.6)
    right.set_xlim(0, _MOST_PERCENT)
    right.grid(False, axis="y")
    right.set_xlabel(f"Distance moved (% of the estimate;\n{beyond} creators at {_MOST_PERCENT}+)")
    right.set_title(f"median {analysis.median_pct:.0f}%")
    keys = [
        look.key(look.label(group, 20), color=colour, marker=marker, linestyle="", markersize=5)
        for group, (colour, marker) in styles.items()
    ]
    look.below(fig, keys, ncols=5)
    return fig


@look.house
def plot_monitoring(report, *, figsize=None) -> Figure:
    """Draw the four checks over the quarters, with intervals, limits and alerts.

    Parameters
    ----------
    report : MonitorReport
        From `hbm.monitor_grouping`.
    """
    fig, axes = look.subplots(2, 2, figsize=figsize, taller=1.25, sharex=True)
    quarters = list(pd.unique(report.table["quarter"]))
    x = np.arange(len(quarters))
    for ax, (check, name) in zip(axes.flat, _CHECKS.items(), strict=True):
        rows = report.table[report.table["check"] == check].set_index("quarter").loc[quarters]
        limit = ax.axhline(rows["limit"].iloc[0], color=look.INK, linestyle="--", linewidth=1)
        for colour, marker, here in (
            (look.BLUE, "o", ~rows["alert"]),
            (look.VERMILLION, "X", rows["alert"]),
        ):
            here = here.to_numpy(bool)
            ax.vlines(
                x[here], rows["lower"][here], rows["upper"][here], color=colour, linewidth=1.6
            )
            look.dots(ax, x[here], rows["value"][here], (colour, marker), 34, 1)
        ax.set_xticks(x, [look.label(q, 12) for q in quarters], rotation=90 if len(x) > 8 else 0)
        ax.tick_params(axis="x", labelsize=7)
        ax.grid(False, axis="x")
        ax.set_ylabel(name)
        if check == "coverage":
            ax.yaxis.set_major_formatter(PercentFormatter(1))
    for ax in axes[1]:
        ax.set_xlabel("Quarter")
    limit.set_label("limit; of shrinkage, the baseline's value")
    keys = [
        look.key(f"value with {LEVEL:.0%} interval", color=look.BLUE, marker="o", linewidth=1.6),
        look.key("alert", color=look.VERMILLION, marker="X", linewidth=1.6),
        limit,
    ]
    look.below(fig, keys, ncols=3)
    return fig
