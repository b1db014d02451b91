"""Figures of rollouts: imputed outcomes, event studies, placebos, and what intervals hold."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hbm.intervals import LEVEL, normal_factor
from hbm.plots import look

_DOT = {"marker": "o", "markersize": 5, "linestyle": ""}
_READOUTS = {
    "plain": (look.BLUE, "o"),
    "pooled": (look.ORANGE, "D"),
    "pooled, shared errors": (look.GREEN, "s"),
}


@look.house
def plot_imputation(
    panel: pd.DataFrame, effects: pd.DataFrame, creators, *, unit: str = look.UNIT, figsize=None
) -> Figure:
    """Draw what creators earned, and what they would have earned untreated.

    Parameters
    ----------
    panel : DataFrame
        ``creator_id, period, revenue, first_treated``.
    effects : DataFrame
        From `hbm.RolloutEstimates`: ``creator_id, period, imputed``.
    creators : sequence
        Ids of the creators to show, one panel each.
    """
    width = matplotlib.rcParams["figure.figsize"][0]
    size = figsize or (width, 0.4 * width)
    fig, axes = look.subplots(1, len(creators), figsize=size, squeeze=False)
    shown = panel[panel["creator_id"].isin(creators)].groupby("creator_id")["revenue"]
    reach = 0.55 * (shown.max() - shown.min()).max()  # one scale for all, each at its level
    for ax, creator in zip(axes[0], creators, strict=True):
        own = panel[panel["creator_id"] == creator].sort_values("period")
        imputed = effects[effects["creator_id"] == creator].sort_values("period")
        earned = own.set_index("period")["revenue"].loc[imputed["period"]]
        ax.axvline(own["first_treated"].iloc[0] - 0.5, color=look.FAINT, linewidth=1)
        gap = ax.fill_between(
            imputed["period"], imputed["imputed"], earned, color=look.SKY, alpha=0.4, linewidth=0
        )
        seen = ax.plot(own["period"], own["revenue"], color=look.BLUE, linewidth=1.4)[0]
        dashed = {"color": look.ORANGE, "linestyle": look.DASHES[1], "linewidth": 1.4}
        would = ax.plot(imputed["period"], imputed["imputed"], **dashed)[0]
        middle = (own["revenue"].min() + own["revenue"].max()) / 2
        ax.set_ylim(middle - reach, middle + reach)
        ax.set_title(look.label(creator))
        ax.set_xlabel("Period")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0, 0].set_ylabel(f"Mean revenue ({unit})")
    names = ["earned", "imputed: would have earned untreated", "effect"]
    look.below(fig, [seen, would, gap], names, ncols=3)
    return fig


@look.house
def plot_event_study(
    event_study: pd.DataFrame,
    leads: pd.DataFrame | None = None,
    *,
    unit: str = look.UNIT,
    figsize=None,
) -> Figure:
    """Draw effects by the time since treatment began, with 95% intervals.

    Parameters
    ----------
    event_study : DataFrame
        From `hbm.RolloutEstimates`: ``horizon, effect, ci_lower, ci_upper, n_creators``.
    leads : DataFrame, optional
        From `hbm.PretrendTest`: the same of the periods before treatment.
    """
    fig, ax = look.subplots(figsize=figsize)
    look.no_effect(ax, "y")
    shown = [(event_study, look.BLUE, "o", "effect")]
    if leads is not None:
        shown.insert(0, (leads, look.ORANGE, "D", "before treatment (pre-trend test)"))
        ax.axvline(-0.5, color=look.FAINT, linewidth=1)
    keys = []
    for frame, colour, marker, name in shown:
        ax.vlines(
            frame["horizon"], frame["ci_lower"], frame["ci_upper"], color=colour, linewidth=1.4
        )
        ax.plot(frame["horizon"], frame["effect"], color=colour, **{**_DOT, "marker": marker})
        keys.append(look.key(f"{name}, {LEVEL:.0%} interval", color=colour, marker=marker))
    counts = event_study.set_index("horizon")["n_creators"]
    every = np.concatenate([frame["horizon"] for frame, *_ in shown])
    ticks = np.sort(np.unique(every)).astype(int)
    ticks = ticks[ticks % -(-len(ticks) // 14) == 0]
    labels = [f"{t}\n({counts[t]:,})" if t in counts.index else str(t) for t in ticks]
    ax.set_xticks(ticks, labels)
    ax.grid(False, axis="x")
    ax.set_xlabel("Periods since treatment began (creators)")
    ax.set_ylabel(f"Mean effect ({unit})")
    look.below(fig, keys, ncols=2)
    return fig


@look.house
def plot_placebos(placebos: Mapping[str, pd.DataFrame], *, figsize=None) -> Figure:
    """Draw placebo effects in their standard errors against the normal they should follow.

    Parameters
    ----------
    placebos : dict of str to DataFrame
        From `hbm.placebo_effects`, by the name of the panel.
    """
    width = matplotlib.rcParams["figure.figsize"][0]
    size = figsize or (width, 0.46 * width)
    fig, axes = look.subplots(1, len(placebos), figsize=size, sharey=True, squeeze=False)
    reach = max(4.0, max(np.abs(frame["z"]).quantile(0.99) for frame in placebos.values()))
    grid, bins = np.linspace(-reach, reach, 200), np.linspace(-reach, reach, 33)
    for ax, (name, frame) in zip(axes[0], placebos.items(), strict=True):
        factor = np.sqrt(np.mean(np.square(frame["z"])))
        inside = np.clip(frame["z"], -reach, reach)
        bars = ax.hist(inside, bins, density=True, color=look.SKY, alpha=0.6)[2]
        lines = [
            ax.plot(grid, _normal(grid, sd), color=colour, linestyle=style, linewidth=1.4)[0]
            for sd, colour, style in (
                (1.0, look.INK, "-"),
                (factor, look.VERMILLION, look.DASHES[1]),
            )
        ]
        ax.set_title(f"{name}: factor {factor:.2f}")
        ax.set_xlabel("Placebo effect / standard error")
        ax.grid(False, axis="x")
    axes[0, 0].set_ylabel("Density")
    names = ["placebo creators", "as the errors promise", "as calibrated"]
    look.below(fig, [bars[0], *lines], names, ncols=3)
    return fig


def _normal(x: np.ndarray, sd: float) -> np.ndarray:
    return np.exp(-0.5 * np.square(x / sd)) / (sd * np.sqrt(2 * np.pi))


@look.house
def plot_rollout_coverage(studies: Mapping[str, pd.DataFrame], *, figsize=None) -> Figure:
    """Draw the coverage of creators' intervals, with Monte Carlo intervals, by world and errors.

    Parameters
    ----------
    studies : dict of str to DataFrame
        By the name of the simulated world: ``errors, estimator, coverage, coverage_se``.
    """
    width = matplotlib.rcParams["figure.figsize"][0]
    first = next(iter(studies.values()))
    rows = list(dict.fromkeys(zip(first["errors"], first["estimator"], strict=True)))
    size = figsize or (width, 1.2 + 0.3 * len(rows))
    fig, axes = look.subplots(
        1, len(studies), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for ax, (name, table) in zip(axes[0], studies.items(), strict=True):
        goal = ax.axvline(LEVEL, color=look.INK, linestyle="--", linewidth=1)
        found = table.set_index(["errors", "estimator"])
        for y, row in enumerate(rows):
            colour, marker = _READOUTS[row[1]]
            half = normal_factor(LEVEL) * found.loc[row, "coverage_se"]
            at = found.loc[row, "coverage"]
            ax.hlines(y, max(at - half, 0), min(at + half, 1), color=colour, linewidth=1.4)
            ax.plot([at], [y], color=colour, **{**_DOT, "marker": marker})
        ax.set_title(look.label(name, 32))
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(False, axis="y")
        ax.set_xlabel("Coverage")
    names = [errors for errors, _ in rows]
    starts = [y for y, name in enumerate(names) if y == 0 or names[y - 1] != name]
    for ax in axes[0]:
        for y in starts[1:]:
            ax.axhline(y - 0.5, color=look.GRID, linewidth=0.8)
    axes[0, 0].set_yticks(starts, [names[y] for y in starts])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0, 0].set_ylabel("Standard errors from")
    used = dict.fromkeys(how for _, how in rows)
    keys = [
        look.key(how, color=_READOUTS[how][0], marker=_READOUTS[how][1], linestyle="")
        for how in used
    ]
    goal.set_label(f"{LEVEL:.0%}")
    look.below(fig, [*keys, goal], ncols=len(keys) + 1)
    return fig


@look.house
def plot_shared_errors(table: pd.DataFrame, *, figsize=None) -> Figure:
    """Draw the coverage of genre means and of creators against the number never treated.

    Parameters
    ----------
    table : DataFrame
        ``n_never, estimator, coverage, coverage_se, genre_coverage, genre_coverage_se``.
    """
    width = matplotlib.rcParams["figure.figsize"][0]
    size = figsize or (width, 0.5 * width)
    fig, axes = look.subplots(1, 2, figsize=size, sharey=True)
    columns = {"genre_coverage": "Means of genres", "coverage": "Single creators"}
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        goal = ax.axhline(LEVEL, color=look.INK, linestyle="--", linewidth=1)
        keys = []
        for i, (how, rows) in enumerate(table.groupby("estimator", sort=False)):
            colour, marker = _READOUTS[how]
            x = rows["n_never"] * (1 + 0.06 * i)
            half = normal_factor(LEVEL) * rows[f"{column}_se"]
            ends = (rows[column] - half).clip(0), (rows[column] + half).clip(upper=1)
            ax.vlines(x, *ends, color=colour, linewidth=1.4)
            ax.plot(x, rows[column], color=colour, marker=marker, markersize=5, linewidth=0.8)
            keys.append(look.key(how, color=colour, marker=marker))
        ax.set_title(title)
        look.log_x(ax, "Creators never treated")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid(False, axis="x")
    axes[0].set_ylabel(f"Coverage of the {LEVEL:.0%} intervals")
    goal.set_label(f"{LEVEL:.0%}")
    look.below(fig, [*keys, goal], ncols=len(keys) + 1)
    return fig
