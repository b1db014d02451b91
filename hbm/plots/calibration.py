"""Figures of simulation-based calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hbm.intervals import LEVEL
from hbm.plots import look
from hbm.uniform import uniform_band

#: Label, colour, dashes and width of each quantity: log densities stand out.
_LINES = {
    "mu_global": ("platform mean", look.BLUE, "-", 1.0),
    "sigma_genre": ("sd of genres", look.ORANGE, "-", 1.0),
    "sigma_creator": ("sd of creators", look.GREEN, "-", 1.0),
    "sigma_first": ("sd of genres", look.ORANGE, "-", 1.0),
    "sigma_second": ("sd of segments", look.PURPLE, "-", 1.0),
    "sigma_interaction": ("sd of interactions", look.SKY, "-", 1.0),
    "effect_first": ("effect of one genre", look.ORANGE, (0, (1, 1)), 1.0),
    "effect_second": ("effect of one segment", look.PURPLE, (0, (1, 1)), 1.0),
    "mu_cell": ("mean of one cell", look.GREEN, (0, (1, 1)), 1.0),
    "mu_cell_empty": ("mean of the empty cell", look.BLUE, (0, (1, 1)), 1.0),
    "mu_genre": ("mean of one genre", look.PURPLE, (0, (5, 1.5)), 1.0),
    "tau_smallest": ("effect, smallest creator", look.SKY, (0, (5, 1.5)), 1.0),
    "tau_largest": ("effect, largest creator", look.VERMILLION, (0, (5, 1.5)), 1.0),
    "sigma_step": ("sd of a month's step", look.RED, "-", 1.0),
    "sigma_drift": ("sd of the drift", look.RED, "-", 1.0),
    "mu_first": ("a genre, first month", look.BLUE, (0, (5, 1.5)), 1.0),
    "mu_last": ("a genre, last month", look.PURPLE, (0, (5, 1.5)), 1.0),
    "mu_next": ("a genre, next month", look.GREEN, (0, (5, 1.5)), 1.0),
    "log_p_given_hyper": ("log density | hyperparameters", look.INK, (0, (1, 0.7)), 1.9),
    "log_p_given_tau": ("log density | effects", look.INK, "-", 1.9),
}


@look.house
def plot_sbc(ranks: Mapping[str, pd.DataFrame], *, figsize=None) -> Figure:
    """Draw how the distributions of ranks depart from uniform.

    Parameters
    ----------
    ranks : dict of str to DataFrame
        By the title of the panel: ``ranks`` of an `hbm.sbc.Calibration`. The band is the one
        that all lines of a panel keep together with 95% probability: a line leaves it exactly
        where `hbm.sbc_verdicts` does not call the quantity uniform.
    """
    cols = min(2, len(ranks))
    rows = -(-len(ranks) // cols)
    fig, axes = look.subplots(
        rows, cols, figsize=figsize, taller=0.45 + 0.6 * rows, squeeze=False, sharex=True
    )
    for ax in axes.ravel()[len(ranks) :]:
        ax.set_visible(False)
    for ax, (title, frame) in zip(axes.ravel(), ranks.items(), strict=False):
        n = len(frame)
        z, low, high = uniform_band(n, 1 - (1 - LEVEL) / frame.shape[1])
        ax.fill_between(z, low - z, high - z, color=look.FAINT, alpha=0.3, linewidth=0)
        look.no_effect(ax, "y")
        for name in frame:
            label, colour, dashes, width = _LINES[name]
            share = np.searchsorted(np.sort(frame[name]), z, side="right") / n
            ax.plot(z, share - z, color=colour, linestyle=dashes, linewidth=width, label=label)
        ax.set_title(f"{title}\n{n:,} replications")
        ax.set_xlim(0, 1)
    for ax in axes[:, 0]:
        ax.set_ylabel("Share of ranks up to here\n− uniform share")
    for ax in axes[-1]:
        ax.set_xlabel("Rank of the truth (share of the posterior)")
    handles, _ = axes[0, 0].get_legend_handles_labels()
    band = Patch(color=look.FAINT, alpha=0.4, label=f"{LEVEL:.0%} band for all lines together")
    look.below(fig, [*handles, band], ncols=3)
    return fig
