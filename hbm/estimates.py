"""What a posterior says of every creator and every genre.

Everything is Rao-Blackwellised: given the hyperparameters effects are normal with known moments,
so means, quantiles and probabilities are those of a mixture of normals over the draws of the
hyperparameters or, without any sampling noise, over the nodes of the exact engine. In a robust
fit the same holds given the genres' means too and a node of the Student-t (`hbm.student`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from hbm import student
from hbm.diagnostics import check_diagnostics, estimates_of, hyper_draws
from hbm.exact import components
from hbm.gaussian import (
    Estimates,
    Moments,
    creator_moments,
    for_creators,
    genre_moments,
    mean_columns,
    mixture_cdf,
    mixture_moments,
    mixture_quantile,
    shrinkage_factor,
)
from hbm.intervals import LEVEL, tail_probabilities

#: Values (draws or nodes x creators) that a thread works on at a time, within its cache.
_BLOCK = 100_000


class Mixture(NamedTuple):
    """The posterior as a mixture of normals over draws or nodes of the hyperparameters.

    `genre` holds the moments of mu_genre, shape ``(component, genre)``; `sigma_creator` (by
    genre where genres have their own) and `weights` (equal where ``None``) have the shape
    ``(component,)``.
    """

    genre: Moments
    sigma_creator: np.ndarray
    weights: np.ndarray | None


def extract_hbm_estimates(idata, summaries: pd.DataFrame, *, check: bool = True) -> pd.DataFrame:
    """Return each creator's pooled estimate from the posterior.

    The interval excludes 0 exactly if min(P(tau > 0), P(tau < 0)) <= .025, since both come from
    the same distribution function.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model` or `hbm.fit_hierarchical_model_robust`.
    summaries : DataFrame
        The frame it was fitted to.
    check : bool
        Refuse a fit that fails `check_diagnostics`.

    Returns
    -------
    DataFrame
        One row a creator, in the order of `summaries`: ``creator_id, genre, effect_hat``
        (posterior mean), ``se`` (posterior standard deviation), ``ci_lower, ci_upper``
        (equal-tailed 95% interval), ``n_total, p_positive, shrinkage``
        (E[se² / (se² + sigma_creator²)], of a robust fit averaged over the creator's own scale
        too: E[se² / (se² + sigma_creator² / w)]).

    Raises
    ------
    DiagnosticsError
        If the fit failed its diagnostics.
    ValueError
        If the posterior belongs to other creators or other data.
    """
    require_same_estimates(idata, summaries)
    if not np.array_equal(idata["constant_data"]["genre_idx"].values, summaries["genre_idx"]):
        raise ValueError("the posterior was fitted to another genre_idx than the summaries hold")
    if check:
        check_diagnostics(idata).raise_if_failed()
    columns = effect_columns(estimates_of(idata), _effects(idata))
    genres = pd.Index(idata["posterior"].dataset["genre"].values, dtype=object)
    genre = genres.take(summaries["genre_idx"].to_numpy(int))
    return estimates_frame(summaries, {"genre": genre}, columns)


def estimates_frame(
    summaries: pd.DataFrame, groups: dict[str, np.ndarray], columns: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Return what is known of each creator as a frame of estimates.

    Parameters
    ----------
    summaries : DataFrame
    groups : dict of str to ndarray, shape (creator,)
        The columns that say which group a creator belongs to.
    columns : dict of str to ndarray, shape (creator,)
        From `effect_columns`.
    """
    last = ("p_positive", "shrinkage")
    return pd.DataFrame(
        {
            "creator_id": summaries["creator_id"].to_numpy(),
            **groups,
            **{name: values for name, values in columns.items() if name not in last},
            "n_total": summaries["n_total"].to_numpy() if "n_total" in summaries else np.nan,
            **{name: columns[name] for name in last},
        }
    )


def effect_columns(data: Estimates, effects: EffectMixture) -> dict[str, np.ndarray]:
    """Return what a mixture says of each creator, in the order of the frame.

    Parameters
    ----------
    data : Estimates
    effects : EffectMixture

    Returns
    -------
    dict of str to ndarray, shape (creator,)
        ``effect_hat, se, ci_lower, ci_upper, p_positive, shrinkage``.
    """
    lower, upper = tail_probabilities(LEVEL)
    columns = {name: np.empty(len(data.se)) for name in _ESTIMATED}

    def fill(block: slice) -> None:
        moments, weights, pull = effects.of(data.take(block))
        overall = mixture_moments(moments, weights)
        columns["effect_hat"][block] = overall.mean
        columns["se"][block] = np.sqrt(overall.var)
        columns["ci_lower"][block] = mixture_quantile(moments, lower, weights)
        columns["ci_upper"][block] = mixture_quantile(moments, upper, weights)
        # The upper tail by symmetry: 1 - cdf would lose the small probabilities.
        mirrored = moments._replace(mean=-moments.mean)
        columns["p_positive"][block] = mixture_cdf(mirrored, 0.0, weights)
        columns["shrinkage"][block] = np.average(pull, axis=0, weights=weights)

    step = max(1, _BLOCK // effects.size)
    blocks = [slice(i, i + step) for i in range(0, len(data.se), step)]
    with ThreadPoolExecutor() as threads:
        list((threads.map if len(blocks) > 1 else map)(fill, blocks))
    return {name: data.unsort(values) for name, values in columns.items()}


def effect_cdf(idata, x) -> np.ndarray:
    """Return the posterior probability that each creator's effect is at most `x`.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model` or `hbm.fit_hierarchical_model_robust`.
    x : float or ndarray, shape (creator,)
        In the unit of the effects, by creator in the order of the data.

    Returns
    -------
    ndarray, shape (creator,)
    """
    return mixture_effect_cdf(estimates_of(idata), _effects(idata), x)


def mixture_effect_cdf(data: Estimates, effects: EffectMixture, x) -> np.ndarray:
    """Do the same for a mixture; `x` by creator in the order of the frame."""
    x = np.broadcast_to(np.asarray(x, float), len(data.se))[data.order]
    below, step = np.empty(len(x)), max(1, _BLOCK // effects.size)
    for start in range(0, len(x), step):
        block = slice(start, start + step)
        moments, weights, _ = effects.of(data.take(block))
        below[block] = mixture_cdf(moments, x[block], weights)
    return data.unsort(below)


def mixture(idata) -> Mixture:
    """Return the posterior of genre and creator effects as a mixture of normals.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model`, with either engine, or from
        `hbm.fit_hierarchical_model_robust`, where `sigma_creator` is the scale of the Student-t
        and the genres' means are points.
    """
    if "quadrature" in idata.children:
        return Mixture(*components(idata))
    posterior = idata["posterior"].dataset
    hyper = hyper_draws(posterior)
    if "nu" in posterior:
        mu_genre = student.student_draws(posterior).mu_genre
        return Mixture(Moments(mu_genre, np.zeros_like(mu_genre)), hyper.sigma_creator, None)
    return Mixture(genre_moments(estimates_of(idata), hyper), hyper.sigma_creator, None)


class EffectMixture(NamedTuple):
    """The posterior of creators' effects as a mixture of normals.

    Attributes
    ----------
    size : int
        Number of components: draws, nodes of the exact engine, or draws times the nodes of the
        Student-t.
    of : callable
        From `Estimates` to moments (component, creator), weights (component,) or (component,
        creator), equal where None, and the weight of the genre's mean (component, creator).
    """

    size: int
    of: Callable[[Estimates], tuple[Moments, np.ndarray | None, np.ndarray]]


def _effects(idata) -> EffectMixture:
    """Return the posterior of effects; of a robust fit, from `student.MAX_DRAWS` of its draws."""
    posterior = idata["posterior"].dataset
    if "nu" in posterior:
        draws = student.student_draws(posterior).thinned()
        nodes = student.nodes_for(estimates_of(idata))
        size = len(draws.nu) * nodes.size
        return EffectMixture(size, partial(student.components, draws=draws, nodes=nodes))
    return normal_effects(mixture(idata))


def normal_effects(posterior: Mixture) -> EffectMixture:
    """Return the posterior of effects that are normal around their genre's mean."""
    genre, sigma_creator, weights = posterior

    def of(data: Estimates):
        pull = shrinkage_factor(data.se, for_creators(sigma_creator, data))
        return creator_moments(data, genre, sigma_creator), weights, pull

    return EffectMixture(len(sigma_creator), of)


def extract_genre_estimates(idata) -> pd.DataFrame:
    """Return the posterior of each genre's mean effect.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model` or `hbm.fit_hierarchical_model_robust`.

    Returns
    -------
    DataFrame
        One row a genre: ``genre, n_creators`` (of this fit; 0 where a genre is only known from
        past batches), ``mean, se`` (posterior standard deviation), ``lower, upper``
        (equal-tailed 95% interval), ``p_positive``.
    """
    genre, _, weights = mixture(idata)
    return pd.DataFrame(
        {
            "genre": idata["posterior"].dataset["genre"].values,
            "n_creators": np.bincount(
                idata["constant_data"]["genre_idx"].values.astype(int),
                minlength=genre.mean.shape[-1],
            ),
            **mean_columns(genre, weights),
        }
    )


_ESTIMATED = ("effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage")


def require_same_estimates(idata, summaries: pd.DataFrame) -> None:
    """Raise ValueError if a posterior belongs to other creators or to other estimates."""
    if not idata["posterior"].dataset.indexes["creator"].equals(pd.Index(summaries["creator_id"])):
        raise ValueError("the posterior belongs to other creators than the summaries")
    for group, name in (("observed_data", "effect_hat"), ("constant_data", "se")):
        if not np.array_equal(idata[group][name].values, summaries[name].to_numpy(float)):
            raise ValueError(f"the posterior was fitted to another {name} than the summaries hold")
