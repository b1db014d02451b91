"""Figures of posteriors and of what they predict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from hbm.intervals import LEVEL
from hbm.plots import look
from hbm.uniform import uniform_band

_HYPERPARAMETERS = {
    "mu_global": "platform mean, mu_global",
    "sigma_genre": "sd of genres, sigma_genre",
    "sigma_creator": "sd of creators, sigma_creator",
    "nu": "degrees of freedom, nu",
}


def _density(ax, draws, *, positive: bool = False, fill: bool = True, **line) -> None:
    """Draw a kernel density of draws; `positive` ones stop at 0, `line` goes to the curve."""
    import arviz as az

    draws = np.ravel(draws)
    if positive:
        ends = {"custom_lims": (0.0, draws.max() + 0.05 * np.ptp(draws))}
    else:
        ends = {"bound_correction": False, "extend": True}
    x, y, *_ = az.kde(draws, **ends)
    if fill:
        ax.fill_between(x, y, color=line.get("color"), alpha=0.18, linewidth=0)
    ax.plot(x, y, **{"linewidth": 1.4, **line})


def _density_axis(ax) -> None:
    """A density's height means nothing by itself: no ticks."""
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(NullLocator())
    ax.spines["left"].set_visible(False)


def _free_hyperparameters(posterior) -> list[str]:
    """Names of the hyperparameters that were not fixed."""
    names = [n for n in _HYPERPARAMETERS if n in posterior and np.ptp(posterior[n].values) > 0]
    if not names:
        raise ValueError("the posterior holds no draws of hyperparameters: fit with draws > 0")
    return names


def _with_unit(name: str, text: str, unit: str) -> str:
    return text if name == "nu" else f"{text}\n({unit})"


@look.house
def plot_genre_posteriors(
    idata,
    complete_pooling: pd.DataFrame,
    truth: Mapping | None = None,
    *,
    unit: str = look.UNIT,
    figsize=None,
) -> Figure:
    """Draw the posterior of each genre's mean, with the plain estimate and the truth.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model`.
    complete_pooling : DataFrame
        From `hbm.complete_pooling_estimates`.
    truth : dict, optional
    """
    mu_genre = idata["posterior"]["mu_genre"]
    genres = [str(genre) for genre in mu_genre["genre"].values]
    plain = complete_pooling.assign(genre=complete_pooling["genre"].astype(str))
    plain = plain.groupby("genre")["effect_hat"].first()
    true = {} if truth is None else truth
    true = dict(zip(map(str, true.get("genres", ())), true.get("genre_effects", ()), strict=True))
    styles = look.genre_styles(genres)
    tall = max(1.0, len(genres) / 6)
    fig, axes = look.subplots(
        len(genres), figsize=figsize, taller=tall, sharex=True, sharey=True, squeeze=False
    )
    for i, (ax, genre) in enumerate(zip(axes[:, 0], genres, strict=True)):
        _density(ax, mu_genre.values[..., i], color=styles[genre][0])
        ax.axvline(plain[genre], color=look.INK, linestyle=(0, (1, 1)), linewidth=1.5)
        if genre in true:
            ax.axvline(true[genre], **look.TRUTH)
        ax.set_ylabel(look.label(genre, 18), rotation=0, ha="right", va="center")
        _density_axis(ax)
    axes[-1, 0].set_xlabel(f"Mean effect of the genre ({unit})")
    fig.supylabel("Density by genre", size=8.5)
    keys = [
        Patch(color=look.SOFT, alpha=0.4, label="posterior"),
        look.key("complete pooling", color=look.INK, linestyle=(0, (1, 1)), linewidth=1.5),
        *([look.key("true mean", **look.TRUTH)] if true else []),
    ]
    look.below(fig, keys)
    return fig


@look.house
def plot_hyperparameters(
    idata, truth: Mapping | None = None, priors=None, *, unit: str = look.UNIT, figsize=None
) -> Figure:
    """Draw the posteriors of the hyperparameters, with the truth and the priors if given.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model`; a hyperparameter that was fixed is left out.
    truth : dict, optional
        ``mu_global, sigma_genre, sigma_creator``.
    priors : Priors, optional
        What the fit was given.
    """
    posterior = idata["posterior"].dataset
    names = _free_hyperparameters(posterior)
    fig, axes = look.subplots(1, len(names), figsize=figsize, taller=0.75, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        draws = posterior[name].values
        _density(ax, draws, positive=name != "mu_global", color=look.ORANGE)
        if name != "mu_global":
            ax.set_xlim(left=0)
        if priors is not None:
            x = np.linspace(*ax.get_xlim(), 300)
            ax.plot(x, getattr(priors, name).scipy().pdf(x), color=look.SOFT, linestyle=(0, (1, 1)))
        if truth is not None and name in truth:
            ax.axvline(truth[name], **look.TRUTH)
        ax.set_xlabel(_with_unit(name, _HYPERPARAMETERS[name], unit))
        _density_axis(ax)
    axes[0, 0].set_ylabel("Density")
    keys = [
        Patch(color=look.ORANGE, alpha=0.5, label="posterior"),
        *(
            [look.key("prior", color=look.SOFT, linestyle=(0, (1, 1)))]
            if priors is not None
            else []
        ),
        *([look.key("truth", **look.TRUTH)] if truth is not None else []),
    ]
    look.below(fig, keys)
    return fig


@look.house
def plot_trace(idata, *, unit: str = look.UNIT, figsize=None) -> Figure:
    """Draw each chain's density and course for the hyperparameters."""
    posterior = idata["posterior"].dataset
    names = _free_hyperparameters(posterior)
    fig, axes = look.subplots(
        len(names), 2, figsize=figsize, taller=1.2, squeeze=False, width_ratios=(1, 1.6)
    )
    for (left, right), name in zip(axes, names, strict=True):
        positive = name != "mu_global"
        for i, draws in enumerate(posterior[name].values):
            line = _chain_line(i)
            _density(left, draws, positive=positive, fill=False, **line)
            right.plot(draws, color=line["color"], linewidth=0.35, alpha=0.6)
        left.set_ylabel("Density", fontsize=7)
        left.set_xlim(right.get_ylim())
        left.set_xlabel(_with_unit(name, _HYPERPARAMETERS[name], unit))
        right.set_ylabel(_with_unit(name, name, unit), fontsize=7)
        right.tick_params(labelbottom=name == names[-1])
        right.set_xlim(0, posterior.sizes["draw"])
        _density_axis(left)
    axes[-1, 1].set_xlabel("Draw after warm-up")
    look.below(fig, _chain_keys(posterior), ncols=8)
    return fig


def _chain_line(i: int) -> dict:
    colour, dash = look.COLOURS[i % len(look.COLOURS)], look.DASHES[i % len(look.DASHES)]
    return {"color": colour, "linestyle": dash, "linewidth": 1.1}


def _chain_keys(posterior) -> list[Line2D]:
    chains = posterior["chain"].values
    return [look.key(f"chain {chain}", **_chain_line(i)) for i, chain in enumerate(chains)]


@look.house
def plot_rank(idata, *, bins: int = 10, figsize=None) -> Figure:
    """Draw how the ranks of each chain's draws among all draws are spread (Vehtari et al. 2021).

    Chains that explore the same distribution have the same number of draws in every tenth, but
    for chance: all bars of a panel stay inside the band with a probability of 95% or more
    (hypergeometric, Bonferroni). Draws are thinned first, since the band is one for
    independent draws; by the effective sample size within chains, since that over all chains
    falls when they disagree, and would thin away what is to be seen.
    """
    import arviz as az
    from scipy.stats import hypergeom, rankdata

    posterior = idata["posterior"].dataset
    names = _free_hyperparameters(posterior)
    each = [posterior[names].isel(chain=[i]) for i in range(posterior.sizes["chain"])]
    ess = min(float(az.ess(chain).to_array().min()) for chain in each)
    step = int(np.ceil(posterior.sizes["draw"] / max(ess, 1)))
    thinned = posterior[names].isel(draw=slice(None, None, step))
    chains, draws = thinned.sizes["chain"], thinned.sizes["draw"]
    edges = np.linspace(0, chains * draws, bins + 1).astype(int)
    tail = (1 - LEVEL) / (2 * bins * chains)
    low, high = (hypergeom.ppf(p, chains * draws, np.diff(edges), draws) for p in (tail, 1 - tail))
    share = edges / edges[-1]
    middle = (share[1:] + share[:-1]) / 2
    fig, axes = look.subplots(
        1, len(names), figsize=figsize, taller=0.75, squeeze=False, sharey=True, sharex=True
    )
    for ax, name in zip(axes[0], names, strict=True):
        values = thinned[name].transpose("chain", "draw").values
        ranks = rankdata(values, method="ordinal").reshape(values.shape)
        ax.stairs(high, share, baseline=low, fill=True, color=look.FAINT, alpha=0.3)
        ax.axhline(draws / bins, color=look.FAINT, linewidth=0.9)
        for i, own in enumerate(ranks):
            counts = np.histogram(own, edges + 0.5)[0]
            marker = {"marker": look.MARKERS[i % len(look.MARKERS)], "markersize": 3}
            ax.plot(middle, counts, **marker, **_chain_line(i))
        ax.set_title(_HYPERPARAMETERS[name])
        ax.set_xlabel("Rank among all draws (share)")
    axes[0, 0].set_ylabel(f"Draws of the chain\nin each of {bins} bins")
    band = Patch(color=look.FAINT, alpha=0.4, label=f"{LEVEL:.0%} band")
    look.below(fig, [*_chain_keys(posterior), band], ncols=5)
    return fig


@look.house
def plot_ppc(
    idata,
    *,
    group: str = "posterior_predictive",
    n_lines: int = 60,
    unit: str = look.UNIT,
    figsize=None,
) -> Figure:
    """Draw the observed estimates' distribution among replicated data sets.

    Parameters
    ----------
    idata : DataTree
        With ``observed_data`` and the group, each with ``effect_hat``.
    group : {"posterior_predictive", "prior_predictive"}
    n_lines : int
        Replicated data sets to draw, evenly spaced among the draws.
    """
    observed = idata["observed_data"]["effect_hat"].values
    sample = idata[group]["effect_hat"].transpose("chain", "draw", "creator").values
    sample = sample.reshape(-1, sample.shape[-1])
    sample = sample[np.linspace(0, len(sample) - 1, min(n_lines, len(sample))).astype(int)]
    fig, ax = look.subplots(figsize=figsize)
    for draws in sample:
        _density(ax, draws, fill=False, color=look.SKY, linewidth=0.7, alpha=0.5)
    _density(ax, observed, fill=False, color=look.INK, linewidth=2)
    ends = np.quantile(sample, [0.002, 0.998])
    pad = 0.08 * np.ptp([*ends, *observed])
    ax.set_xlim(min(ends[0], observed.min()) - pad, max(ends[1], observed.max()) + pad)
    _density_axis(ax)
    ax.set_xlabel(f"Plain estimate of a creator ({unit})")
    ax.set_ylabel("Density")
    kind = group.partition("_")[0]
    keys = [
        look.key("observed", color=look.INK, linewidth=2),
        look.key(f"{len(sample)} data sets replicated from the {kind}", color=look.SKY),
    ]
    look.below(fig, keys)
    return fig


@look.house
def plot_loo_pit(pit, *, figsize=None) -> Figure:
    """Draw how the leave-one-out probability integral transforms depart from uniform.

    Parameters
    ----------
    pit : array-like, shape (creator,)
        P(replicated estimate <= observed estimate | all other creators); two or more. The line
        leaves the band exactly where `hbm.uniform.uniform_pvalue` is below 5%.
    """
    pit = np.sort(np.ravel(pit))
    z, low, high = uniform_band(len(pit), LEVEL)
    x, low, high = (np.r_[0, part, 1] for part in (z, low, high))
    ecdf = np.searchsorted(pit, x, side="right") / len(pit)
    fig, ax = look.subplots(figsize=figsize)
    band = ax.fill_between(
        x, low - x, high - x, step="mid", color=look.FAINT, alpha=0.3, linewidth=0
    )
    look.no_effect(ax, "y")
    (line,) = ax.plot(x, ecdf - x, color=look.BLUE, linewidth=1.4, drawstyle="steps-mid")
    ax.set_xlabel("LOO-PIT (probability)")
    ax.set_ylabel("Share of creators up to here − uniform share")
    look.below(fig, [line, band], ["creators", f"{LEVEL:.0%} simultaneous band"], ncols=2)
    return fig
