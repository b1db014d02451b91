"""Figures of skewed revenue."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hbm.intervals import LEVEL
from hbm.plots import look

_SKEWS = ((look.GREEN, "o"), (look.BLUE, "s"), (look.VERMILLION, "D"), (look.PURPLE, "v"))


@look.house
def plot_skew(table: pd.DataFrame, *, figsize=None) -> Figure:
    """Draw by size and skew what the normal model on means costs, and what it covers.

    Parameters
    ----------
    table : DataFrame
        From `hbm.revenue.study.skew_study`.
    """
    fig, axes = look.subplots(1, 2, figsize=figsize)
    sizes = sorted(table["n"].unique())
    panels = (
        ("mse_ratio", 1.0, "Mean squared error, normal model\nover hurdle model"),
        ("coverage", LEVEL, f"Coverage of the normal model's\n{LEVEL:.0%} intervals"),
    )
    keys = []
    for place, (log_sd, own) in enumerate(table.groupby("log_sd")):
        colour, marker = _SKEWS[place % len(_SKEWS)]
        style = {"color": colour, "marker": marker, "markersize": 4}
        for ax, (measure, *_) in zip(axes, panels, strict=True):
            ax.errorbar(
                own["n"] * 1.03 ** (place - 1),
                own[measure],
                2 * own[f"{measure}_se"],
                linewidth=1.2,
                elinewidth=0.9,
                **style,
            )
        keys.append(look.key(f"log sd {log_sd:g}", **style))
    for ax, (_, wanted, label) in zip(axes, panels, strict=True):
        ax.axhline(wanted, color=look.FAINT, linewidth=0.9, zorder=1)
        ax.set_xscale("log")
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("Users per creator, log scale")
        ax.set_ylabel(label)
    look.below(fig, keys, ncols=len(keys))
    return fig


@look.house
def plot_revenue_parts(
    estimates: pd.DataFrame, truth=None, *, unit: str = look.UNIT, figsize=None
) -> Figure:
    """Draw each creator's effect as the sum of more payers and more per payer.

    Parameters
    ----------
    estimates : DataFrame
        From `hbm.revenue.dollars.extract_revenue_estimates`; some two dozen rows can be read.
    truth : array-like, optional
        True effects, in the order of the rows.
    """
    fig, ax = look.subplots(figsize=figsize, taller=max(0.5, 0.065 * len(estimates)) + 0.25)
    y = np.arange(len(estimates))[::-1]
    parts = (
        ("more_payers", look.SKY, None, "more payers"),
        ("more_per_payer", look.ORANGE, "////", "more per payer"),
    )
    for shift, (name, colour, hatch, label) in zip((0.19, -0.19), parts, strict=True):
        ax.barh(
            y + shift,
            estimates[name],
            height=0.36,
            color=colour,
            hatch=hatch,
            edgecolor=look.PAPER,
            linewidth=0,
            label=label,
        )
    look.no_effect(ax)
    ax.hlines(y, estimates["ci_lower"], estimates["ci_upper"], color=look.INK, linewidth=1.1)
    ax.plot(estimates["effect_hat"], y, "o", color=look.INK, markersize=4.5, label="effect")
    if truth is not None:
        ax.plot(truth, y, "d", color=look.RED, markersize=4.5, label="truth")
    names = zip(estimates["creator_id"], estimates["n_total"], strict=True)
    ax.set_yticks(y, [f"{look.label(creator, 14)}, {n:,} users" for creator, n in names])
    ax.set_xlabel(f"Effect, {unit}")
    ax.grid(axis="y", visible=False)
    look.below(fig)
    return fig
