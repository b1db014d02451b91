"""Figures of what outlying creators do to a fit."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hbm.intervals import LEVEL
from hbm.plots import look

#: Colour, marker and line of each model.
_MODELS = {
    "normal": (look.ORANGE, "D", "-"),
    "robust": (look.BLUE, "o", (0, (5, 1.5))),
}


@look.house
def plot_outlier(study: pd.DataFrame, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw what a creator far from its genre does to its own readout and to those of others.

    Parameters
    ----------
    study : DataFrame
        From `hbm.outlier_study`, for one standard error of the creator or for several.
    """
    errors = sorted(study["se"].unique())
    fig, axes = look.subplots(
        len(errors),
        2,
        figsize=figsize,
        taller=0.72 * len(errors),
        squeeze=False,
        sharex=True,
        sharey="col",
    )
    for (own, others), se in zip(axes, errors, strict=True):
        rows = study[study["se"] == se]
        plain = rows.drop_duplicates("distance").sort_values("distance")
        own.plot(
            plain["distance"],
            plain["plain"],
            color=look.FAINT,
            linewidth=1.1,
            linestyle=(0, (1, 1)),
        )
        for model, (colour, marker, dash) in _MODELS.items():
            curve = rows[rows["model"] == model].sort_values("distance")
            line = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 3.2}
            line |= {"linewidth": 1.3}
            own.fill_between(
                curve["distance"],
                curve["ci_lower"],
                curve["ci_upper"],
                color=colour,
                alpha=0.14,
                linewidth=0,
            )
            own.plot(curve["distance"], curve["effect_hat"], **line)
            moved = curve["others"] - curve["others"].iloc[0]
            others.plot(curve["distance"], moved, **line)
        look.no_effect(others, "y")
        own.set_ylabel(f"Pooled estimate\n({unit})")
        others.set_ylabel(f"Shift of its genre's others\n({unit})")
        own.set_title(f"Its own estimate, standard error {se:.2g}")
        others.set_title("The others of its genre, mean")
    fig.supxlabel(
        "Distance of the plain estimate from its genre (standard deviations of creators)", size=8.5
    )
    keys = [
        look.key(f"{model} model", color=colour, marker=marker, linestyle=dash, markersize=4)
        for model, (colour, marker, dash) in _MODELS.items()
    ]
    keys.append(Patch(color=look.SOFT, alpha=0.3, label=f"{LEVEL:.0%} interval"))
    keys.append(look.key("plain estimate", color=look.FAINT, linestyle=(0, (1, 1))))
    look.below(fig, keys, ncols=2)
    return fig
