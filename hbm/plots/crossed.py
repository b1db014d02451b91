"""Figures of crossed groupings: cells, models on many platforms, the interaction's prior."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from hbm.intervals import LEVEL
from hbm.plots import look

_STYLES = ((look.BLUE, "o"), (look.ORANGE, "s"), (look.GREEN, "^"), (look.PURPLE, "D"))


@look.house
def plot_cells(
    cells: pd.DataFrame,
    factors: tuple[str, str] = ("genre", "segment"),
    *,
    unit: str = look.UNIT,
    figsize=None,
) -> Figure:
    """Draw the mean effect of each cell, with a panel for each level of the first factor.

    Parameters
    ----------
    cells : DataFrame
        From `hbm.extract_cell_estimates`, with two columns more: ``own``, the mean of the cell's
        own estimates, missing where it has none, and ``truth``, missing where unknown.
    factors : (str, str)
        Columns of the levels.
    """
    panels = cells[factors[0]].unique()
    rows = -(-len(panels) // 3)
    fig, axes = look.subplots(
        rows, 3, figsize=figsize, taller=0.25 + 0.5 * rows, sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, panels, strict=False):
        own = cells[cells[factors[0]] == name]
        y = np.arange(len(own))
        look.no_effect(ax)
        ax.hlines(y, own["lower"], own["upper"], color=look.BLUE, linewidth=1.6)
        look.dots(ax, own["mean"], y, (look.BLUE, "o"), size=20, alpha=1)
        look.dots(ax, own["own"], y, (look.ORANGE, "D"), size=13, alpha=1)
        look.dots(ax, own["truth"], y, (look.RED, "|"), size=60, alpha=1, linewidth=1.6)
        for place, (level, n) in enumerate(zip(own[factors[1]], own["n_creators"], strict=True)):
            ax.annotate(
                f"{look.label(level, 14)} ({n})",
                (0.01, place - 0.34),
                xycoords=ax.get_yaxis_transform(),
                size=6.5,
                color=look.SOFT,
                va="center",
            )
        ax.set_title(look.label(name))
        ax.set_yticks([])
        ax.set_ylim(len(own) - 0.5, -0.8)
    for ax in axes[-1]:
        ax.set_xlabel(unit)
    for hidden in range(len(panels), axes.size):  # the panel over it ends its column
        last = axes.flat[hidden - 3]
        last.set_xlabel(unit)
        last.tick_params(labelbottom=True)
    fig.supylabel(f"{factors[1].capitalize()} (creators)", size=8.5)
    keys = [
        look.key(f"crossed model, {LEVEL:.0%} interval", color=look.BLUE, marker="o"),
        look.key("the cell's own creators alone", color=look.ORANGE, marker="D", linestyle=""),
        look.key("truth", color=look.RED, marker="|", markersize=9, linestyle=""),
    ]
    look.below(fig, keys)
    return fig


@look.house
def plot_crossed_study(summaries: Mapping[str, pd.DataFrame], *, figsize=None) -> Figure:
    """Draw the errors of simpler models over those of the crossed one, by world.

    Parameters
    ----------
    summaries : dict of str to DataFrame
        From `hbm.crossed.study.summarize_crossed`, by the name of the world; the model whose
        ratios are all 1 is the reference and is not drawn.
    """
    panels = {
        "mse_ratio": "effects of creators",
        "cell_mse_ratio": "means of cells",
        "empty_mse_ratio": "means of empty cells",
    }
    fig, axes = look.subplots(1, 3, figsize=figsize, taller=0.9, sharey=True)
    worlds = list(summaries)
    models = next(iter(summaries.values()))
    models = models.loc[models["mse_ratio"] != 1, "model"].tolist()
    for ax, (measure, title) in zip(axes, panels.items(), strict=True):
        ax.axvline(1, color=look.FAINT, linewidth=0.9, zorder=1)
        for place, model in enumerate(models):
            colour, marker = _STYLES[place]
            rows = [table.set_index("model").loc[model] for table in summaries.values()]
            ax.errorbar(
                [row[measure] for row in rows],
                np.arange(len(worlds)) + 0.22 * (place - (len(models) - 1) / 2),
                xerr=[2 * row[f"{measure}_se"] for row in rows],
                color=colour,
                marker=marker,
                markersize=5,
                linestyle="",
                elinewidth=1.1,
                label=model,
            )
        ax.set_title(title)
        if measure != "mse_ratio":
            _log_ratio(ax)
        ax.grid(False, axis="y")
    axes[0].set_yticks(range(len(worlds)), [name.replace(" ", "\n", 1) for name in worlds])
    axes[0].set_ylim(len(worlds) - 0.5, -0.5)
    for ax in axes:
        ax.set_xlabel("MSE / MSE of crossed")
    look.below(fig, *axes[0].get_legend_handles_labels())
    return fig


def _log_ratio(ax, axis: str = "x") -> None:
    getattr(ax, f"set_{axis}scale")("log")
    ends = getattr(ax, f"get_{axis}lim")()
    ticks = [t for t in (0.25, 0.5, 0.7, 1, 1.5, 2, 4, 8, 16) if ends[0] < t < ends[1]]
    if len(ticks) > 4:
        ticks = [t for t in ticks if t not in (0.7, 1.5)]
    ax = getattr(ax, f"{axis}axis")
    ax.set_ticks(ticks)
    ax.set_minor_locator(NullLocator())
    ax.set_major_formatter(StrMethodFormatter("{x:g}"))


@look.house
def plot_interaction_prior(
    summaries: Mapping[str, pd.DataFrame], *, unit: str = look.UNIT, figsize=None
) -> Figure:
    """Draw what the scale of the interaction's prior does to the means of cells.

    Parameters
    ----------
    summaries : dict of str to DataFrame
        From `summarize_crossed`, by what the truth is called; the models are named by the scale
        of their prior.
    """
    panels = {
        "cell_mse_ratio": "means of cells with creators",
        "empty_mse_ratio": "means of empty cells",
    }
    fig, axes = look.subplots(1, 2, figsize=figsize, taller=0.8, sharey=True)
    for ax, (measure, title) in zip(axes, panels.items(), strict=True):
        ax.axhline(1, color=look.FAINT, linewidth=0.9, zorder=1)
        for place, (truth, table) in enumerate(summaries.items()):
            colour, marker = _STYLES[place]
            scale = table["model"].astype(float).to_numpy()
            ax.errorbar(
                scale * 1.06 ** (place - (len(summaries) - 1) / 2),
                table[measure],
                2 * table[f"{measure}_se"],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.2,
                elinewidth=1.0,
                label=truth,
            )
        ax.set_xscale("log")
        ax.set_xticks(scale, table["model"])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(title)
        ax.set_xlabel(f"Scale of the prior ({unit})")
    _log_ratio(axes[0], "y")
    axes[0].set_ylabel("MSE / MSE with\nthe default prior")
    look.below(fig, *axes[0].get_legend_handles_labels())
    return fig
