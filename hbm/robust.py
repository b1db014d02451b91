"""The robust model: creators' effects with heavier tails than a normal, as heavy as the data say.

mu_genre[g] ~ Normal(mu_global, sigma_genre), tau[i] ~ Student-t(nu, mu_genre[g_i], sigma_creator),
effect_hat[i] ~ Normal(tau[i], se[i]) with se known. sigma_creator is the *scale* of the Student-t:
the standard deviation of the effects is sigma_creator sqrt(nu / (nu - 2)).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from hbm import student
from hbm.data import validate_summaries
from hbm.diagnostics import HYPERPARAMETERS, check_diagnostics, estimates_of
from hbm.estimates import effect_cdf, extract_genre_estimates, extract_hbm_estimates
from hbm.exact.draws import extract_hyper_estimates
from hbm.gaussian import Estimates
from hbm.model import (
    SAMPLE_STATS,
    as_datatree,
    between_genres,
    check_sampling,
    compile_model,
    fit_hierarchical_model,
    sample,
)
from hbm.priors import Fixed, Priors, refuse_memory
from hbm.student import genre_centers, nodes_for, student_draws
from hbm.validation import join_truth

#: What `robust_estimates` samples, and how many of the draws it averages over.
FAST = {"draws": 1000, "tune": 400, "chains": 2}
FAST_STEP = 16


def fit_hierarchical_model_robust(
    summaries: pd.DataFrame,
    *,
    priors: Priors = Priors(),
    draws: int = 2000,
    tune: int = 1000,
    chains: int = 4,
    random_seed: int = 42,
    target_accept: float = 0.9,
    effects: bool = True,
):
    """Fit the model whose creators have a Student-t around their genre's mean.

    Each creator's effect is integrated out (`hbm.student.log_density`), so that nutpie's No-U-Turn
    sampler sees the genres' means and four hyperparameters, and is drawn exactly afterwards. The
    model is compiled once in a process for data of one shape; later fits begin at once.

    Parameters
    ----------
    summaries : DataFrame
        One row a creator: ``creator_id, genre_idx, effect_hat, se`` (and ``genre`` for names).
    priors : Priors
        In the unit of the effects. ``priors.nu`` is that of the degrees of freedom: by default
        2 + Gamma(2, 0.1), after Juárez & Steel (2010). ``Fixed(1e6)`` gives normal effects.
    draws, tune, chains : int
        Kept and warm-up draws a chain, and chains.
    random_seed : int
    target_accept : float
        Target acceptance rate.
    effects : bool
        Draw the creators' effects too; `hbm.extract_hbm_estimates` needs none.

    Returns
    -------
    DataTree
        As from `hbm.fit_hierarchical_model`, with ``nu`` in the ``posterior``. What takes that
        takes this: `hbm.check_diagnostics`, `hbm.extract_hbm_estimates`,
        `hbm.extract_genre_estimates`, `hbm.leave_one_out`.

    Raises
    ------
    DataError
        If the summaries break a rule.
    ValueError
        If the draws would not fit into memory, or the priors hold what past batches said.
    """
    validate_summaries(summaries)
    check_sampling(len(summaries), draws, tune, chains, target_accept)
    refuse_memory(priors, "the robust model")
    start = time.perf_counter()
    data = Estimates.from_frame(summaries)
    nodes = nodes_for(data)
    model = _compiled(len(data.se), data.n_genres, nodes.size, priors).with_data(
        effect_hat=data.effect_hat,
        se=data.se,
        genre_idx=data.genre_idx,
        center=genre_centers(data)[0],
        reach=nodes.reach,
    )
    sampled = sample(
        model,
        draws=draws,
        tune=tune,
        chains=chains,
        random_seed=random_seed,
        target_accept=target_accept,
    )
    found = sampled["posterior"].dataset
    posterior = {name: found[name].values for name in (*HYPERPARAMETERS, "nu", "mu_genre")}
    if effects:
        rng = np.random.default_rng([random_seed, 1])
        tau = student.draw_effects(data, student_draws(found), nodes, rng)
        posterior["tau"] = data.unsort(tau).reshape(chains, draws, -1)
    stats = sampled["sample_stats"]
    tree = as_datatree(
        summaries,
        posterior,
        {ours: stats[theirs].values for theirs, ours in SAMPLE_STATS.items()},
        attrs={
            "engine": "nuts",
            "parameterization": "marginal",
            "priors": json.dumps(priors.describe()),
            "prior_parameters": json.dumps(priors.parameters()),
            "fixed": [n for n in (*HYPERPARAMETERS, "nu") if isinstance(getattr(priors, n), Fixed)],
            "random_seed": random_seed,
            "tune": tune,
            "seconds": time.perf_counter() - start,
        },
    )
    ids = summaries["creator_id"].to_numpy()
    tree["posterior"].dataset = tree["posterior"].dataset.assign_coords(creator=ids)
    return tree


@lru_cache(maxsize=8)
def _compiled(n_creators: int, n_genres: int, n_nodes: int, priors: Priors):
    return compile_model(_model(n_creators, n_genres, n_nodes, priors))


def _model(n_creators: int, n_genres: int, n_nodes: int, priors: Priors):
    """The model for data of one shape, to be filled in.

    Given a normal stand-in for what the creators of a genre say about its mean (a center and a
    precision), the genres' means have the closed form of the normal model, and are sampled as
    distances from it in its standard deviations: centred where a genre has much data, non-centred
    where it has little. The potential of the creators then puts their density in the place of
    the stand-in's, so that it decides how fast the sampler is, and nothing else.
    """
    import pymc as pm
    import pytensor.tensor as pt

    with pm.Model() as model:
        effect_hat = pm.Data("effect_hat", np.zeros(n_creators))
        se = pm.Data("se", np.ones(n_creators))
        genre_idx = pm.Data("genre_idx", np.arange(n_creators) % n_genres)
        center = pm.Data("center", np.zeros(n_genres))
        reach = pm.Data("reach", 10.0)

        sigma_genre = priors.sigma_genre.pymc("sigma_genre")
        sigma_creator = priors.sigma_creator.pymc("sigma_creator")
        nu = priors.nu.pymc("nu")

        # The information of an estimate about the location of a Student-t without noise.
        information = 1 / (sigma_creator**2 * (nu + 3) / (nu + 1) + se**2)
        precision = pt.zeros(n_genres)[genre_idx].inc(information)
        mu_global = between_genres(center, precision, sigma_genre, priors)
        ratio = sigma_genre**2 * precision
        offset = pm.Normal("genre_offset", shape=n_genres)
        mu_genre = pm.Deterministic(
            "mu_genre",
            mu_global
            + (center - mu_global) * ratio / (1 + ratio)
            + offset * sigma_genre / pt.sqrt(1 + ratio),
        )
        density = student.log_density(
            effect_hat, se, mu_genre[genre_idx], sigma_creator, nu, reach, n_nodes, xp=pt
        )
        stand_in = pm.logp(pm.Normal.dist(mu_genre, 1 / pt.sqrt(precision)), center)
        pm.Potential("creators", pt.sum(density) - pt.sum(stand_in))
    return model


def robust_estimates(
    summaries: pd.DataFrame,
    truth: Mapping[str, Any] | None = None,
    *,
    priors: Priors = Priors(),
    random_seed: int = 42,
) -> pd.DataFrame:
    """Return each creator's estimate under the robust model, as fast as can be trusted.

    For studies of many platforms (`hbm.platform_study`): two chains of `FAST` length, checked by
    ``check_diagnostics(…, effects=False)``; one that fails is sampled anew at full length. The
    estimates are averages over every `FAST_STEP`-th draw, which leaves them a Monte Carlo error of
    about a hundredth of a posterior standard deviation.

    Parameters
    ----------
    summaries : DataFrame
    truth : dict, optional
        When given, the estimates carry ``pit``, the posterior probability of effects up to the
        true one.
    priors : Priors
    random_seed : int

    Returns
    -------
    DataFrame
        Estimates, as from `hbm.extract_hbm_estimates`.

    Raises
    ------
    DiagnosticsError
        If the fit at full length failed its diagnostics too.
    """
    settings = {"priors": priors, "random_seed": random_seed, "effects": False}
    idata = fit_hierarchical_model_robust(summaries, **settings, **FAST)
    if not check_diagnostics(idata, effects=False).ok:
        idata = fit_hierarchical_model_robust(summaries, **settings)
        check_diagnostics(idata, effects=False).raise_if_failed()
    idata = thinned(idata)
    made = extract_hbm_estimates(idata, summaries, check=False)
    if truth is None:
        return made
    return made.assign(pit=effect_cdf(idata, join_truth(made, truth)["effect_true"].to_numpy()))


def thinned(idata):
    """Keep every `FAST_STEP`-th draw of the hyperparameters: enough to average estimates over."""
    return idata.isel(draw=slice(None, None, FAST_STEP), missing_dims="ignore")


def outlier_study(
    summaries: pd.DataFrame,
    creator_id,
    distances: Sequence[float],
    *,
    se: float | None = None,
    priors: Priors = Priors(),
    random_seed: int = 42,
) -> pd.DataFrame:
    """Move one creator's plain estimate away from its genre, and see what both models make of it.

    Parameters
    ----------
    summaries : DataFrame
    creator_id
        The creator to move.
    distances : sequence of float
        Of its estimate from the mean of its genre, in standard deviations of creators; both
        are those of the normal model fitted to all others.
    se : float, optional
        Standard error to give it; its own when omitted.
    priors : Priors
    random_seed : int

    Returns
    -------
    DataFrame
        One row a distance and model (``normal``, ``robust``): ``model, distance, se, plain``; the
        creator's ``effect_hat, ci_lower, ci_upper, shrinkage``; ``others``, the mean pooled
        estimate of its genre's other creators; ``width``, the mean width of the intervals of all
        other creators; ``sigma_creator`` and ``nu``, posterior means (a scale in the robust
        model; no ``nu`` in the normal one).

    Raises
    ------
    KeyError
        If there is no such creator.
    ValueError
        If it is the only one of its genre.
    DiagnosticsError
        If a robust fit failed its diagnostics.
    """
    chosen = (summaries["creator_id"] == creator_id).to_numpy()
    if not chosen.any():
        raise KeyError(f"no creator {creator_id!r}")
    se = float(summaries.loc[chosen, "se"].iloc[0]) if se is None else se
    genre_idx = summaries["genre_idx"].to_numpy()
    in_genre = (genre_idx == genre_idx[chosen][0]) & ~chosen
    if not in_genre.any():
        raise ValueError(f"creator {creator_id!r} is the only one of its genre")
    rest = fit_hierarchical_model(summaries[~chosen], engine="exact", draws=0, priors=priors)
    center = extract_genre_estimates(rest)["mean"].iloc[genre_idx[chosen][0]]
    spread = _hyper_means(rest)["sigma_creator"]
    rows = []
    for distance in distances:
        plain = float(center + distance * spread)
        moved = summaries.assign(
            effect_hat=np.where(chosen, plain, summaries["effect_hat"]),
            se=np.where(chosen, se, summaries["se"]),
        )
        normal = fit_hierarchical_model(moved, engine="exact", draws=0, priors=priors)
        robust = fit_hierarchical_model_robust(
            moved, priors=priors, random_seed=random_seed, effects=False
        )
        check_diagnostics(robust, effects=False).raise_if_failed()
        for model, fit in (("normal", normal), ("robust", robust)):
            made = extract_hbm_estimates(thinned(fit), moved, check=False)
            own, width = made[chosen].iloc[0], made["ci_upper"] - made["ci_lower"]
            rows.append(
                {"model": model, "distance": float(distance), "se": se, "plain": plain}
                | own[["effect_hat", "ci_lower", "ci_upper", "shrinkage"]].to_dict()
                | {
                    "others": _pooled_means(fit, made)[in_genre].mean(),
                    "width": width[~chosen].mean(),
                    **_hyper_means(fit),
                }
            )
    return pd.DataFrame(rows)


def _pooled_means(fit, made: pd.DataFrame) -> np.ndarray:
    """Posterior means of the effects, of a robust fit from all of its draws."""
    posterior = fit["posterior"].dataset
    if "nu" not in posterior:
        return made["effect_hat"].to_numpy()
    data = estimates_of(fit)
    means = student.conditional_means(data, student_draws(posterior), nodes_for(data))
    return data.unsort(means.mean(axis=0))


def _hyper_means(fit) -> dict[str, float]:
    posterior = fit["posterior"].dataset
    if "nu" in posterior:
        return {name: float(posterior[name].mean()) for name in ("sigma_creator", "nu")}
    means = extract_hyper_estimates(fit).set_index("parameter")["mean"]
    return {"sigma_creator": means["sigma_creator"], "nu": np.nan}
