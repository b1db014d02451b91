"""Figures of instant readouts, of confidence, and of variational fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from hbm.plots import look

_CASES = {
    "a day of new creators": ("a day of new creators, one refit to all", look.BLUE, "o"),
    "counted twice": ("one creator counted twice", look.VERMILLION, "^"),
    "plug-in": ("one new creator, plug-in", look.ORANGE, "D"),
    "one new creator": ("one new creator, mixture", look.GREEN, "s"),
}

_WORLDS = ((look.BLUE, "o"), (look.ORANGE, "D"))

_QUANTITIES = {
    "mu_global": "platform mean",
    "sigma_genre": "sd of genres",
    "sigma_creator": "sd of creators",
}

_FITS = ((look.BLUE, "o"), (look.SKY, "s"), (look.VERMILLION, "^"), (look.ORANGE, "v"),
         (look.GREEN, "D"), (look.PURPLE, "P"))  # fmt: skip


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(value: float, _) -> str:
    return "10" + f"{np.log10(value):.0f}".translate(_RAISED)


@look.house
def plot_agreement(study: pd.DataFrame, *, figsize=None) -> Figure:
    """Draw how far instant readouts lie from full refits, by the size of the night.

    Parameters
    ----------
    study : DataFrame
        From `hbm.agreement_study`; drawn are the medians over platforms, and the range of the
        middle 90%.
    """
    fig, ax = look.subplots(figsize=figsize)
    for case, (label, colour, marker) in _CASES.items():
        groups = study[study["case"] == case].groupby("n_night")["mean"]
        middle, low, high = (np.maximum(groups.quantile(q), 1e-16) for q in (0.5, 0.05, 0.95))
        ax.fill_between(middle.index, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(middle.index, middle, color=colour, marker=marker, markersize=5, label=label)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(_power))
    look.log_x(ax, "creators in the night's fit")
    ax.set_xticks(sizes := sorted(study["n_night"].unique()), [f"{n:,}" for n in sizes])
    ax.set_xticks([], minor=True)
    ax.set_ylabel("largest difference from the refit\n(posterior sd, log scale)")
    look.below(fig, ncols=2)
    return fig


@look.house
def plot_confidence(tables: dict[str, pd.DataFrame], *, figsize=None) -> Figure:
    """Draw whether confidence comes true, and whether the promised gain does.

    Parameters
    ----------
    tables : dict of str to DataFrame
        By name of the world: `hbm.confidence_table`.
    """
    fig, (left, right) = look.subplots(1, 2, figsize=figsize, taller=1.1)
    for (name, table), (colour, marker) in zip(tables.items(), _WORLDS, strict=False):
        style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.1}
        style |= {"elinewidth": 0.9}
        left.errorbar(table["confidence"], table["closer"], 2 * table["closer_se"], **style)
        right.errorbar(
            table["promised"], table["saved"], 2 * table["saved_se"], label=name, **style
        )
    for ax in (left, right):
        ends = ax.get_xlim(), ax.get_ylim()
        ax.axline((0, 0), slope=1, color=look.FAINT, linestyle="--", linewidth=1, zorder=1)
        ax.set(xlim=ends[0], ylim=ends[1])
    left.set_xlabel("confidence")
    left.set_ylabel("share nearer to the truth\nthan the plain estimate")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set_xlabel("squared error promised to be saved")
    right.set_ylabel("squared error saved")
    handles, labels = right.get_legend_handles_labels()
    look.below(fig, handles, labels, ncols=2)
    return fig


@look.house
def plot_variational(comparison: pd.DataFrame, *, figsize=None) -> Figure:
    """Draw the standard deviations of variational fits relative to the exact ones.

    Parameters
    ----------
    comparison : DataFrame
        From `hbm.variational_comparison`; drawn are geometric means over platforms, and the range
        of the middle 90%.
    """
    some = comparison[comparison["method"] != "exact engine"]
    quantities = list(dict.fromkeys(some["quantity"]))
    fits = list(dict.fromkeys(zip(some["method"], some["model"], strict=True)))
    fig, ax = look.subplots(figsize=figsize, taller=1.25)
    for place, ((method, model), (colour, marker)) in enumerate(zip(fits, _FITS, strict=True)):
        own = some[(some["method"] == method) & (some["model"] == model)]
        groups = own.groupby("quantity")["sd_ratio"]
        middle, low, high = (groups.quantile(q).loc[quantities] for q in (0.5, 0.05, 0.95))
        y = np.arange(len(quantities)) + 0.13 * (place - (len(fits) - 1) / 2)
        ax.hlines(y, low, high, color=colour, linewidth=1.1)
        ax.plot(middle, y, marker, color=colour, markersize=5, label=f"{method}: {model}")
    ax.axvline(1, color=look.FAINT, linewidth=1, zorder=1)
    ax.set_xscale("log")
    ax.set_xticks(ticks := [0.03, 0.1, 0.3, 1, 3], [f"{x:g}" for x in ticks])
    ax.set_xticks([], minor=True)
    ax.set_yticks(range(len(quantities)), [_QUANTITIES.get(q, q) for q in quantities])
    ax.invert_yaxis()
    ax.set_xlabel("standard deviation / exact standard deviation (log scale)")
    look.below(fig, ncols=2)
    return fig
