"""Figures of what things cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from hbm.plots import look

_SERIES = ((look.BLUE, "o"), (look.ORANGE, "D"), (look.GREEN, "s"))
_OTHERS = ((look.VERMILLION, "^"), (look.PURPLE, "v"), (look.SOFT, "X"))


@look.house
def plot_scaling(
    times: Mapping[str, pd.DataFrame],
    others: Mapping[str, tuple[float, float]] | None = None,
    *,
    figsize=None,
) -> Figure:
    """Draw seconds by number of creators, on log scales, beside a line of equal cost a creator.

    Parameters
    ----------
    times : mapping
        By label: ``size`` (creators), ``median, smallest, largest`` (seconds).
    others : mapping, optional
        Single points for comparison, by label: creators and seconds.
    """
    fig, ax = look.subplots(figsize=figsize)
    ax.set_yscale("log")
    for (name, frame), (colour, marker) in zip(times.items(), _SERIES, strict=False):
        frame = frame.sort_values("size")
        spread = np.abs(frame[["smallest", "largest"]].sub(frame["median"], axis=0)).to_numpy().T
        style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.3}
        ax.errorbar(frame["size"], frame["median"], spread, elinewidth=1, label=name, **style)
    for (name, point), (colour, marker) in zip((others or {}).items(), _OTHERS, strict=False):
        ax.plot(*point, marker, color=colour, markersize=7, label=name)
    together = pd.concat(times.values())
    slowest = together.iloc[together["median"].to_numpy().argmax()][["size", "median"]]
    share = np.array([together["size"].min() / slowest["size"], 1.0])
    line = {"color": look.FAINT, "linestyle": "--", "linewidth": 1, "zorder": 1}
    ax.plot(*np.outer(slowest, share), label="the same for each creator", **line)
    ax.set_ylim(bottom=together["smallest"].min() / 2)
    look.log_x(ax, "creators")
    ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set_ylabel("seconds, log scale")
    look.below(fig, ncols=2)
    return fig
