"""Figures of studies over many simulated platforms."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hbm.intervals import LEVEL
from hbm.plots import look

_METHODS = {
    "Welch": (look.BLUE, "o"),
    "moderated": (look.GREEN, "s"),
    "two arms pooled, moderated": (look.ORANGE, "D"),
    "t likelihood": (look.PURPLE, "v"),
    "known": (look.SOFT, "^"),
}


@look.house
def plot_standard_errors(table: pd.DataFrame, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw bias and coverage of pooled estimates by size, split and skewness of the arms.

    Parameters
    ----------
    table : DataFrame
        From `hbm.arms.standard_error_study`.
    """
    settings = list(table[["revenue", "share"]].drop_duplicates().itertuples(index=False))
    fig, axes = look.subplots(
        2, len(settings), figsize=figsize, taller=1.35, sharex=True, sharey="row", squeeze=False
    )
    sizes = sorted(table["n"].unique())
    methods = [name for name in _METHODS if name in set(table["method"])]
    for column, (revenue, share) in enumerate(settings):
        here = table[(table["revenue"] == revenue) & (table["share"] == share)]
        for row, (measure, wanted) in enumerate((("bias", 0.0), ("coverage", LEVEL))):
            ax = axes[row, column]
            ax.axhline(wanted, color=look.FAINT, linewidth=0.9, zorder=1)
            for place, name in enumerate(methods):
                colour, marker = _METHODS[name]
                own = here[here["method"] == name].sort_values("n")
                ax.errorbar(
                    own["n"] * 1.03 ** (place - (len(methods) - 1) / 2),
                    own[measure],
                    2 * own[f"{measure}_se"],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.2,
                    elinewidth=0.9,
                )
            ax.set_xscale("log")
            ax.set_xticks(sizes, [f"{n}" for n in sizes])
            ax.xaxis.set_minor_locator(NullLocator())
        axes[0, column].set_title(f"{revenue}, {share:.0%} treated")
        axes[1, column].set_xlabel("Users per creator")
    axes[0, 0].set_ylabel(f"Bias of pooled estimates\n({unit})")
    axes[1, 0].set_ylabel(f"Coverage of\n{LEVEL:.0%} intervals")
    keys = [look.key(name, color=_METHODS[name][0], marker=_METHODS[name][1]) for name in methods]
    look.below(fig, keys, ncols=3)
    return fig
