"""Figures of summaries, estimates and readouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from hbm.intervals import LEVEL, normal_factor
from hbm.plots import look
from hbm.validation import SIZE_BINS, join_truth

#: Colour and marker of each method, the same in all figures.
_METHODS = {
    "no pooling": (look.BLUE, "o"),
    "complete pooling": (look.GREEN, "s"),
    "partial pooling": (look.ORANGE, "D"),
    "partial pooling, no genres": (look.PURPLE, "v"),
    "oracle": (look.SOFT, "^"),
}
_OTHERS = ((look.SKY, "P"), (look.VERMILLION, "X"), (look.INK, "*"))
_VERDICTS = {"up": (look.BLUE, "^"), "down": (look.VERMILLION, "v"), "unclear": (look.SOFT, "o")}


def _method_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method."""
    others = cycle(_OTHERS)
    return {name: _METHODS.get(str(name).lower()) or next(others) for name in names}


def _matched(plain: pd.DataFrame, pooled: pd.DataFrame) -> pd.DataFrame:
    """Join two frames of estimates by id."""
    both = plain.merge(
        pooled, on="creator_id", suffixes=("_plain", "_pooled"), validate="one_to_one"
    )
    if not len(both) == len(plain) == len(pooled):
        raise ValueError("the two frames of estimates hold different creators")
    return both.assign(genre=both["genre_pooled"].astype(str), n_total=both["n_total_plain"])


def _three_digits(largest: float) -> str:
    """Return a format that shows three digits of the largest number, as many decimals of all."""
    exponent = int(np.floor(np.log10(largest))) if largest > 0 else 0
    return f"{{:,.{max(2 - exponent, 0)}f}}" if -4 < exponent < 6 else "{:.2e}"


def _means(genre_means) -> dict[str, float]:
    return {str(genre): float(mean) for genre, mean in dict(genre_means).items()}


@look.house
def plot_sample_sizes(summaries: pd.DataFrame, *, figsize=None) -> Figure:
    """Draw how many users the creators have, with the three size bins marked."""
    n = summaries["n_total"].to_numpy(float)
    fig, ax = look.subplots(figsize=figsize)
    low, high = min(n.min(), 40) * 0.9, max(n.max(), 1200) * 1.1
    # Bars of equal width on the log axis, so placed that none straddles 100 or 500.
    steps = np.log(np.array([n.min(), n.max()]) / 100) / np.log(5) * 7
    bars = 100 * 5 ** (np.arange(np.floor(steps[0]), np.floor(steps[1]) + 2) / 7)
    ax.hist(n, bins=bars, color=look.BLUE, edgecolor=look.PAPER)
    ax.set_xlim(low, high)
    look.log_x(ax, "Users per creator")
    ax.set_ylabel("Creators")
    ax.grid(False, axis="x")
    for name, (left, right) in list(SIZE_BINS.items())[1:]:
        count = int(((n >= left) & (n < right)).sum())
        if left > 0:
            ax.axvline(left, color=look.INK, linestyle="--", linewidth=1)
        ax.text(
            np.sqrt(max(left, low) * min(right, high)),
            1.02,
            f"{name}\n{count:,} creators ({count / len(n):.0%})",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
        )
    return fig


@look.house
def plot_true_effects(truth: Mapping, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw the true effects of the creators by genre, and the genres' means."""
    genres = [str(genre) for genre in truth["genres"]]
    effects, idx = np.asarray(truth["creator_effects"]), np.asarray(truth["creator_genre"])
    styles, rng = look.genre_styles(genres), np.random.default_rng(0)
    fig, ax = look.subplots(figsize=figsize)
    look.no_effect(ax)
    for row, genre in enumerate(genres):
        own = effects[idx == row]
        y = row + rng.uniform(-0.28, 0.28, len(own))
        look.dots(ax, own, y, styles[genre])
        mean = truth["genre_effects"][row]
        ax.plot([mean, mean], [row - 0.38, row + 0.38], color=look.INK, linewidth=2.2)
    ax.set_yticks(range(len(genres)), [look.label(genre) for genre in genres])
    ax.set_ylim(len(genres) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"True effect of the treatment ({unit})")
    ax.set_ylabel("Genre")
    bar = {"marker": "|", "markersize": 12, "markeredgewidth": 2.2}
    keys = [
        look.key("a creator", color=look.SOFT, marker="o", linestyle="", markersize=4),
        look.key("the genre's mean", color=look.INK, linestyle="", **bar),
    ]
    look.below(fig, keys)
    return fig


@look.house
def plot_error_by_size(
    estimates: pd.DataFrame, truth: Mapping, *, unit: str = look.UNIT, figsize=None
) -> Figure:
    """Draw the errors of estimates against the number of users, with ±1.96 standard errors."""
    error = estimates["effect_hat"] - join_truth(estimates, truth)["effect_true"]
    n = estimates["n_total"].to_numpy(float)
    # One smooth band for all: the typical se times sqrt(n), divided by sqrt(n).
    scale = normal_factor(LEVEL) * np.median(estimates["se"] * np.sqrt(n))
    grid = np.geomspace(n.min(), n.max(), 200)
    fig, ax = look.subplots(figsize=figsize)
    look.no_effect(ax, "y")
    band = ax.fill_between(
        grid, -scale / np.sqrt(grid), scale / np.sqrt(grid), color=look.SKY, alpha=0.3, linewidth=0
    )
    dots = look.dots(ax, n, error, _METHODS["no pooling"])
    look.log_x(ax, "Users per creator")
    ax.set_ylabel(f"Estimate − true effect ({unit})")
    look.below(fig, [dots, band], ["a creator", "±1.96 typical standard errors"], ncols=2)
    return fig


@look.house
def plot_shrinkage(
    plain: pd.DataFrame, pooled: pd.DataFrame, genre_means, *, unit: str = look.UNIT, figsize=None
) -> Figure:
    """Draw pooled against plain estimates: points are pulled from y = x to their genre's mean.

    Parameters
    ----------
    plain, pooled : DataFrame
        Estimates of the same creators.
    genre_means : Series or dict
        Posterior mean of each genre, by name.
    """
    both = _matched(plain, pooled)
    means = _means(genre_means)
    styles = look.genre_styles([*both["genre"], *means])
    known = both["n_total"].notna().any()
    most = both["n_total"].max() if known else 1.0
    both["area"] = _area(both["n_total"].fillna(most) / most)

    fig, ax = look.subplots(figsize=figsize)
    middle = both["effect_hat_pooled"].median()
    no_pull = ax.axline((middle, middle), slope=1, color=look.INK, linewidth=1)
    handles = []
    for genre, (colour, marker) in styles.items():
        own = both[both["genre"] == genre].sort_values("area", ascending=False)
        look.dots(
            ax,
            own["effect_hat_plain"],
            own["effect_hat_pooled"],
            (colour, marker),
            own["area"],
            alpha=0.75,
            edgecolor=look.PAPER,
            linewidth=0.4,
        )
        if genre in means:
            ax.axhline(means[genre], color=colour, linestyle=(0, (5, 2)), linewidth=1.1, zorder=2)
        handles.append(
            look.key(look.label(genre), color=colour, marker=marker, linestyle=(0, (5, 2)))
        )
    ax.set_xlabel(f"Plain estimate ({unit})")
    ax.set_ylabel(f"Pooled estimate, posterior mean ({unit})")
    handles = [_heading("Genre and its mean"), *handles, _heading(""), no_pull]
    no_pull.set_label("no pooling: y = x")
    if known:
        handles += [_heading(""), _heading("Users")]
        for n in _round_sizes(both["n_total"]):
            size = np.sqrt(_area(n / most))
            handles.append(
                look.key(f"{n:,}", color=look.SOFT, marker="o", linestyle="", markersize=size)
            )
    fig.legend(handles=handles, loc="outside right upper", handlelength=2.6)
    return fig


def _area(share_of_most):
    return np.maximum(90 * np.sqrt(share_of_most), 9)


def _heading(text: str) -> Line2D:
    """An entry of a legend without a sign."""
    return Line2D([], [], linestyle="", label=text)


def _round_sizes(n_total: pd.Series) -> list[int]:
    """Up to three round numbers that span the sizes."""
    low, high = n_total.min(), n_total.max()
    round_numbers = [d * 10**k for k in range(9) for d in (1, 3)]
    inside = [n for n in round_numbers if low <= n <= high] or [int(n_total.median())]
    return [inside[i] for i in sorted({0, len(inside) // 2, len(inside) - 1})]


@look.house
def plot_mse(comparison: pd.DataFrame, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw the mean squared error of each method by size of creator, with standard errors.

    Parameters
    ----------
    comparison : DataFrame
        From `hbm.compare_estimators`: ``estimator, size_bin, mse, mse_se``.
    """
    everyone, *by_size = SIZE_BINS
    bins = [name for name in (*by_size, everyone) if name in set(comparison["size_bin"])]
    names = list(pd.unique(comparison["estimator"]))
    styles, width = _method_styles(names), 0.84 / len(names)
    table = comparison.set_index(["estimator", "size_bin"])
    number = _three_digits(comparison["mse"].max())
    fig, ax = look.subplots(figsize=figsize)
    for i, name in enumerate(names):
        rows = table.loc[name].reindex(bins)
        x = np.arange(len(bins)) + (i - (len(names) - 1) / 2) * width
        ax.bar(x, rows["mse"], width * 0.92, color=styles[name][0], label=look.label(name, 40))
        error = rows["mse_se"].fillna(0).to_numpy(float) if "mse_se" in rows else np.zeros(len(x))
        shown = error > 0
        ax.errorbar(
            x[shown], rows["mse"][shown], error[shown], fmt="none", ecolor=look.INK, elinewidth=1
        )
        for at, mse, se in zip(x, rows["mse"], error, strict=True):
            if np.isfinite(mse):
                ax.annotate(
                    number.format(mse),
                    (at, mse + se),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=6,
                    rotation=90 if len(names) * len(bins) > 16 else 0,
                )
    ax.set_xticks(range(len(bins)), bins)
    ax.tick_params(axis="x", length=0)
    ax.margins(y=0.12)
    ax.grid(False, axis="x")
    ax.set_xlabel("Creators by number of users n")
    ax.set_ylabel(f"Mean squared error, ({unit})²")
    look.below(fig, ncols=3 if len(names) in (5, 6) else 4)
    return fig


@look.house
def plot_coverage_width(
    estimates_by_name: Mapping[str, pd.DataFrame],
    truth: Mapping,
    *,
    unit: str = look.UNIT,
    figsize=None,
) -> Figure:
    """Draw for each creator and method the interval's width and whether it holds the truth.

    At the right stand each method's coverage and mean width; the tick in each row of points is
    at the mean width.
    """
    styles, rng = _method_styles(estimates_by_name), np.random.default_rng(0)
    k = len(styles)
    widths = [(f["ci_upper"] - f["ci_lower"]).mean() for f in estimates_by_name.values()]
    number = _three_digits(max(widths))
    lanes = np.linspace(0.3, -0.3, k) if k > 1 else np.zeros(1)
    fig, ax = look.subplots(figsize=figsize)
    for (name, frame), lane in zip(estimates_by_name.items(), lanes, strict=True):
        effects = join_truth(frame, truth)["effect_true"]
        covered = (effects >= frame["ci_lower"]) & (effects <= frame["ci_upper"])
        width = frame["ci_upper"] - frame["ci_lower"]
        y = covered + lane + rng.uniform(-0.2, 0.2, len(frame)) / k
        look.dots(ax, width, y, styles[name], 11, 0.5, label=str(name))
        for level in (0, 1):
            at = level + lane
            ax.plot([width.mean()] * 2, [at - 0.3 / k, at + 0.3 / k], color=look.INK, linewidth=1.8)
        margin = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 7.5}
        rate = f"{covered.mean():.1%} covered\nmean width {number.format(width.mean())}"
        ax.text(1.02, 1 + lane, f"{look.label(name)}\n{rate}", **margin)
        ax.text(1.02, lane, f"{(~covered).sum():,} of {len(frame):,} missed", **margin)
    ax.axhline(0.5, color=look.FAINT, linewidth=0.8)
    ax.set_ylim(-0.5, 1.5)
    ax.set_yticks([0, 1], ["missed (0)", "covered (1)"], rotation=90, va="center")
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    look.log_x(ax, f"Width of the {LEVEL:.0%} interval ({unit})")
    ax.set_ylabel("Is the true effect inside the interval?")
    tick = {"color": look.INK, "marker": "|", "markeredgewidth": 1.8}
    keys = [(look.label(n), {"color": c, "marker": m}) for n, (c, m) in styles.items()]
    keys = [look.key(n, linestyle="", **how) for n, how in (*keys, ("mean width", tick))]
    look.below(fig, keys, ncols=min(len(keys), 4))
    return fig


@look.house
def plot_creators(
    plain: pd.DataFrame,
    pooled: pd.DataFrame,
    genre_means,
    truth: Mapping | None = None,
    n_creators: int = 12,
    *,
    unit: str = look.UNIT,
    figsize=None,
) -> Figure:
    """Draw single creators from small to large: plain and pooled estimates with intervals.

    The creators are evenly spaced by rank of size, so that they span all sizes.
    """
    both = _matched(plain, pooled)
    if truth is not None:
        both = join_truth(both, truth)
    both = both.sort_values("n_total", kind="stable", ignore_index=True)
    count = min(n_creators, len(both))
    both = both.loc[np.linspace(0, len(both) - 1, count).round().astype(int)]
    means = _means(genre_means)
    cols = count if count <= 6 else next((c for c in (6, 5, 4) if count % c == 0), 6)
    rows, share = -(-count // cols), {"sharex": True, "sharey": True, "squeeze": False}
    fig, axes = look.subplots(rows, cols, figsize=figsize, taller=0.45 + 0.4 * rows, **share)
    kinds = (("plain", 0, look.BLUE, "o"), ("pooled", 1, look.ORANGE, "D"))
    for ax, (_, row) in zip(axes.flat, both.iterrows(), strict=False):
        ax.axhline(means[row["genre"]], color=look.SOFT, linestyle=(0, (4, 2)), linewidth=1)
        if truth is not None:
            ax.axhline(row["effect_true"], **look.TRUTH)
        for kind, x, colour, marker in kinds:
            low, high = row[f"ci_lower_{kind}"], row[f"ci_upper_{kind}"]
            ax.plot([x, x], [low, high], color=colour, linewidth=1.8, zorder=3)
            ax.plot(x, row[f"effect_hat_{kind}"], color=colour, marker=marker, ms=5, zorder=4)
        lines = [look.label(row["creator_id"], 15), look.label(row["genre"], 15)]
        lines += [] if pd.isna(row["n_total"]) else [f"n = {row['n_total']:,.0f}"]
        ax.set_title("\n".join(lines), size=7)
        ax.grid(False, axis="x")
    axes[0, 0].set_xlim(-0.6, 1.6)
    axes[0, 0].set_xticks([0, 1], ["plain", "pooled"])
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < count)
        ax.tick_params(axis="x", labelbottom=i + cols >= count, labelsize=7)
    fig.supylabel(f"Effect of the treatment ({unit})", size=8.5)
    keys = [
        look.key(f"plain, {LEVEL:.0%} CI", color=look.BLUE, marker="o", linewidth=1.8),
        look.key(f"pooled, {LEVEL:.0%} CrI", color=look.ORANGE, marker="D", linewidth=1.8),
        *([look.key("true effect", **look.TRUTH)] if truth is not None else []),
        look.key("genre mean", color=look.SOFT, linestyle=(0, (4, 2))),
    ]
    look.below(fig, keys)
    return fig


@look.house
def plot_coverage_by_distance(table: pd.DataFrame, *, figsize=None) -> Figure:
    """Draw coverage by how far a creator's true effect lies from its genre's mean.

    Parameters
    ----------
    table : DataFrame
        From `hbm.coverage_by_distance`: ``distance_bin, estimator, coverage, coverage_se,
        n_creators``.
    """
    if "size_bin" in table and table["size_bin"].nunique() > 1:
        table = table[table["size_bin"] == "all creators"]
    bins, names = list(pd.unique(table["distance_bin"])), list(pd.unique(table["estimator"]))
    styles = _method_styles(names)
    fig, ax = look.subplots(figsize=figsize)
    goal = ax.axhline(LEVEL, color=look.INK, linestyle="--", linewidth=1)
    keys = []
    for i, name in enumerate(names):
        rows = table[table["estimator"] == name].set_index("distance_bin").reindex(bins)
        x = np.arange(len(bins)) + (i - (len(names) - 1) / 2) * min(0.16, 0.8 / len(names))
        colour, marker = styles[name]
        half = normal_factor(LEVEL) * rows["coverage_se"].fillna(0)
        ends = (rows["coverage"] - half).clip(0), (rows["coverage"] + half).clip(upper=1)
        ax.vlines(x, *ends, color=colour, linewidth=1.4)
        ax.plot(x, rows["coverage"], color=colour, marker=marker, markersize=6, linestyle="")
        keys.append(look.key(look.label(name, 40), color=colour, marker=marker, linestyle=""))
    counts = table.groupby("distance_bin", sort=False)["n_creators"].max()
    labels = [f"{look.label(name)}\n{counts[name]:,.0f} creators" for name in bins]
    ax.set_xticks(range(len(bins)), labels)
    ax.set_xlim(-0.5, len(bins) - 0.5)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(False, axis="x")
    ax.set_xlabel("|true effect − genre mean| in units of σ_creator")
    ax.set_ylabel(f"Coverage of the {LEVEL:.0%} intervals")
    goal.set_label(f"{LEVEL:.0%}")
    look.below(fig, [*keys, goal], ncols=min(len(keys) + 1, 4))
    return fig


@look.house
def plot_readouts(
    readouts: pd.DataFrame, max_creators: int = 40, *, unit: str = look.UNIT, figsize=None
) -> Figure:
    """Draw the readouts as a forest, sorted by pooled effect.

    Parameters
    ----------
    readouts : DataFrame
        From `hbm.creator_readouts`; creators without an estimate are left out and counted.
    max_creators : int
        Of a longer list an evenly spaced selection is drawn, and the figure says so.
    """
    have = readouts.dropna(subset=["pooled", "pooled_lower", "pooled_upper"])
    have = have.sort_values("pooled", ascending=False, kind="stable", ignore_index=True)
    count = min(max_creators, len(have))
    shown = have.loc[np.linspace(0, len(have) - 1, count).round().astype(int)]
    y = np.arange(count)
    width = matplotlib.rcParams["figure.figsize"][0]
    fig, ax = look.subplots(figsize=figsize or (width, 1.3 + 0.165 * max(count, 8)))
    look.no_effect(ax)
    plain = ax.scatter(
        shown["plain"], y, s=16, marker="x", color=look.FAINT, linewidth=1, zorder=2.5
    )
    keys = []
    for verdict, (colour, marker) in _VERDICTS.items():
        mine = (shown["verdict"] == verdict).to_numpy()
        ends = shown["pooled_lower"][mine], shown["pooled_upper"][mine]
        ax.hlines(y[mine], *ends, color=colour, linewidth=1.5)
        look.dots(ax, shown["pooled"][mine], y[mine], (colour, marker), 26, 1)
        total = int((have["verdict"] == verdict).sum())
        keys.append(look.key(f"{verdict} ({total:,})", color=colour, marker=marker))
    labels = [
        look.label(row.creator_id, 20) + f" · {look.label(row.genre, 16)} · n = {row.n_total:,.0f}"
        for row in shown.itertuples()
    ]
    ax.set_yticks(y, labels, fontsize=6.5)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(count - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"Effect of the treatment with {LEVEL:.0%} interval ({unit})")
    ax.set_ylabel("Creator")
    notes = []
    if count < len(have):
        notes.append(f"{count} of {len(have):,} creators, evenly spaced by pooled effect")
    if len(have) < len(readouts):
        notes.append(f"{len(readouts) - len(have):,} that could not be estimated left out")
    ax.set_title("\n".join(notes), loc="left", fontsize=7.5, color=look.SOFT)
    plain.set_label("plain estimate")
    look.below(fig, [*keys, plain], ncols=4)
    return fig


@look.house
def plot_halves(table: pd.DataFrame, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw what one half of the users predicts against what the other half shows.

    Parameters
    ----------
    table : DataFrame
        From `hbm.split_half`: ``creator_id, predicted, predicted_plain, held_out,
        held_out_se``.
    """
    table = table.dropna(subset=["predicted", "predicted_plain", "held_out"])
    if "split" in table:
        table = table[table["split"] == table["split"].min()]
    fig, axes = look.subplots(1, 2, figsize=figsize, sharex=True, sharey=True)
    middle = table["held_out"].median()
    kinds = (
        ("predicted_plain", "Plain estimate", _METHODS["no pooling"]),
        ("predicted", "Pooled estimate", _METHODS["partial pooling"]),
    )
    for ax, (column, name, style) in zip(axes, kinds, strict=True):
        same = ax.axline((middle, middle), slope=1, color=look.INK, linewidth=1)
        bars = ax.vlines(
            table[column],
            table["held_out"] - table["held_out_se"],
            table["held_out"] + table["held_out_se"],
            color=look.FAINT,
            linewidth=0.6,
            alpha=0.5,
            zorder=1,
        )
        look.dots(ax, table[column], table["held_out"], style)
        ax.set_xlabel(f"{name} of one half\n({unit})")
    axes[0].set_ylabel(f"Plain estimate of the other half ({unit})")
    names = ["prediction = outcome", "± 1 standard error of the outcome"]
    look.below(fig, [same, bars], names, ncols=2)
    return fig
