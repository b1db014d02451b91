"""Figures of effects that move in time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from hbm.plots import look

_MODELS = {
    "static": (look.SOFT, "s"),
    "static, last six months": (look.ORANGE, "^"),
    "random walk": (look.BLUE, "o"),
}


@look.house
def plot_paths(
    paths: pd.DataFrame,
    forecast: pd.DataFrame,
    static: pd.DataFrame | None = None,
    truth: Mapping | None = None,
    *,
    period: str = "Month",
    unit: str = look.UNIT,
    figsize=None,
) -> Figure:
    """Draw each genre's mean through time with its interval, and what is forecast.

    Parameters
    ----------
    paths, forecast : DataFrame
        From a `hbm.drift.DriftFit`.
    static : DataFrame, optional
        ``paths`` of a static fit, to compare with.
    truth : dict, optional
        From `hbm.simulate_drift`: ``genres``, and ``paths`` by period from 0.
    period : str
        Name of the periods, for the axis.
    """
    genres = list(dict.fromkeys(paths["genre"]))
    cols = min(2, len(genres))
    rows = -(-len(genres) // cols)
    fig, axes = look.subplots(
        rows,
        cols,
        figsize=figsize,
        taller=0.3 + 0.45 * rows,
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax in axes.ravel()[len(genres) :]:
        ax.set_visible(False)
    biggest = paths["n_creators"].max()
    for ax, genre in zip(axes.ravel(), genres, strict=False):
        own, ahead = (frame[frame["genre"] == genre] for frame in (paths, forecast))
        ahead = pd.concat([own.tail(1), ahead])
        look.no_effect(ax, "y")
        for part, alpha in ((own, 0.3), (ahead, 0.14)):
            band = part["period"], part["lower"], part["upper"]
            ax.fill_between(*band, color=look.BLUE, alpha=alpha, linewidth=0)
        ax.plot(own["period"], own["mean"], color=look.BLUE, linewidth=1.5)
        ax.plot(ahead["period"], ahead["mean"], color=look.BLUE, linewidth=1.2, linestyle=":")
        seen = own[own["n_creators"] > 0]
        size = 22 * seen["n_creators"] / biggest
        look.dots(ax, seen["period"], seen["plain"], (look.SOFT, "o"), size, alpha=0.7)
        if static is not None:
            same = static[static["genre"] == genre]
            for end in ("lower", "upper"):
                ax.plot(same["period"], same[end], color=look.ORANGE, linewidth=1)
        if truth is not None:
            true = truth["paths"][list(truth["genres"]).index(genre)]
            shown = np.arange(len(true)) <= ahead["period"].max()
            ax.plot(np.arange(len(true))[shown], true[shown], **look.TRUTH)
        ax.set_title(look.label(genre))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax in axes[:, 0]:
        ax.set_ylabel(f"Mean effect\n({unit})")
    for column in range(cols):
        below = [ax for ax in axes[:, column] if ax.get_visible()][-1]
        below.set_xlabel(period)
        below.tick_params(labelbottom=True)
    keys = [
        look.key("mean and 95% interval", color=look.BLUE, linewidth=1.5),
        Patch(color=look.BLUE, alpha=0.2, label="forecast"),
        look.key("plain mean", color=look.SOFT, marker="o", markersize=4, linestyle="none"),
    ]
    if static is not None:
        keys.append(look.key("interval of the static model", color=look.ORANGE))
    if truth is not None:
        keys.append(look.key("truth", **look.TRUTH))
    look.below(fig, keys, ncols=3)
    return fig


@look.house
def plot_forecast_gain(
    table: pd.DataFrame, targets, x: str = "size", *, label: str, figsize=None
) -> Figure:
    """Draw mean squared errors relative to the static model's against how much genres move.

    Parameters
    ----------
    table : DataFrame
        From `hbm.summarize_forecasts` for several sizes: ``model, target, ratio, ratio_se`` and
        the column `x`.
    targets : sequence of str
        One panel each.
    x : str
        What runs along the axis, at equal distances.
    label : str
        Of the axis.
    """
    fig, axes = look.subplots(
        1, len(targets), figsize=figsize, taller=0.85, sharey=True, squeeze=False
    )
    places = sorted(table[x].unique())
    for ax, target in zip(axes[0], targets, strict=True):
        ax.axhline(1, color=look.FAINT, linewidth=0.9, zorder=1)
        for k, (model, (colour, marker)) in enumerate(_MODELS.items()):
            own = table[(table["target"] == target) & (table["model"] == model)].sort_values(x)
            at = np.searchsorted(places, own[x]) + 0.08 * (k - 1)
            style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.2}
            ax.errorbar(at, own["ratio"], 2 * own["ratio_se"], elinewidth=0.9, **style)
        ax.set_xticks(range(len(places)), [f"{value:g}" for value in places])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(target)
        ax.set_xlabel(label)
    axes[0, 0].set_yscale("log")
    ticks = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5]
    axes[0, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0, 0].yaxis.set_minor_locator(NullLocator())
    shown = table.loc[table["target"].isin(targets), "ratio"]
    axes[0, 0].set_ylim(0.85 * shown.min(), 1.2 * shown.max())
    axes[0, 0].set_ylabel("Mean squared error,\nstatic model = 1")
    keys = [look.key(name, color=c, marker=m) for name, (c, m) in _MODELS.items()]
    look.below(fig, keys, ncols=3)
    return fig
