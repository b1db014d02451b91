"""Figures of what learned priors gain, and of what they do when the world changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from hbm.intervals import LEVEL
from hbm.plots import look

#: Colour, marker and line of each way to meet a batch, in the order in which they are drawn.
_POLICIES = {
    "each batch alone": (look.SOFT, "^", (0, (1, 1))),
    "undiscounted": (look.ORANGE, "D", (0, (5, 1.5))),
    "discounted": (look.BLUE, "o", "-"),
    "discounted, with the check": (look.GREEN, "s", (0, (5, 1.5, 1, 1.5))),
}


@look.house
def plot_weeks(table: pd.DataFrame, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw the errors of a new genre's readouts and of its mean by week.

    Parameters
    ----------
    table : DataFrame
        From `hbm.learned.study.summarize_policies` by ``policy`` and ``batch``, for the new
        genre alone.
    """
    table = table.assign(rmse=np.sqrt(table["genre_mse"]))
    table["rmse_se"] = table["genre_mse_se"] / (2 * table["rmse"])
    fig, axes = look.subplots(1, 2, figsize=figsize)
    for ax, measure in zip(axes, ("ratio", "rmse"), strict=True):
        _lines(ax, table, measure)
        ax.set_xlabel("Week of the new genre")
    axes[0].axhline(1, color=look.FAINT, linewidth=0.9, zorder=1)
    axes[0].set_ylabel("Mean squared error of its readouts\n(1: that of the oracle)")
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel(f"Root mean squared error of its mean\n({unit})")
    _key(fig, table)
    return fig


@look.house
def plot_change(table: pd.DataFrame, *, at: int, figsize=None) -> Figure:
    """Draw errors and coverage of a genre's readouts before and after its mean has jumped.

    Parameters
    ----------
    table : DataFrame
        From `hbm.learned.study.summarize_policies` by ``policy`` and ``batch``, for the genre
        that jumps.
    at : int
        The first batch after the jump.
    """
    fig, axes = look.subplots(1, 2, figsize=figsize)
    for ax, measure, wanted in zip(axes, ("ratio", "coverage"), (1.0, LEVEL), strict=True):
        ax.axhline(wanted, color=look.FAINT, linewidth=0.9, zorder=1)
        ax.axvline(at - 0.5, **look.TRUTH)
        _lines(ax, table, measure)
        ax.set_xlabel("Batch (dashed: the jump)")
    axes[0].set_ylabel("Mean squared error of the readouts\n(1: that of the oracle)")
    axes[1].set_ylabel(f"Coverage of {LEVEL:.0%} intervals")
    axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _key(fig, table)
    return fig


def _lines(ax, table: pd.DataFrame, measure: str) -> None:
    """Draw one line a policy, with two Monte Carlo errors either way, side by side."""
    policies = [name for name in _POLICIES if name in set(table["policy"])]
    for place, name in enumerate(policies):
        colour, marker, dash = _POLICIES[name]
        own = table[table["policy"] == name].sort_values("batch")
        ax.errorbar(
            own["batch"] + 0.08 * (place - (len(policies) - 1) / 2),
            own[measure],
            2 * own[f"{measure}_se"],
            color=colour,
            marker=marker,
            linestyle=dash,
            markersize=4,
            linewidth=1.3,
            elinewidth=0.9,
        )
    batches = sorted(table["batch"].unique())
    ax.set_xticks(batches, [f"{batch}" for batch in batches])
    ax.xaxis.set_minor_locator(NullLocator())


def _key(fig: Figure, table: pd.DataFrame) -> None:
    used = {name: style for name, style in _POLICIES.items() if name in set(table["policy"])}
    handles = [
        look.key(name, color=colour, marker=marker, linestyle=dash, markersize=4)
        for name, (colour, marker, dash) in used.items()
    ]
    look.below(fig, handles, ncols=min(len(handles), 4))
