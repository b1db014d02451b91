"""Crossed groupings against simpler ones, on many simulated platforms."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hbm.crossed import fit_crossed_model
from hbm.crossed.loo import loo_crossed
from hbm.crossed.posterior import CrossedPriors, nodes_of, space_of
from hbm.data import GENRES
from hbm.diagnostics import check_diagnostics
from hbm.estimates import effect_cdf, extract_genre_estimates, extract_hbm_estimates
from hbm.exact.draws import extract_hyper_estimates
from hbm.exact.loo import loo_exact
from hbm.gaussian import Moments, creator_moments, mixture_cdf, mixture_moments
from hbm.intervals import LEVEL
from hbm.model import fit_hierarchical_model
from hbm.priors import HalfNormal
from hbm.replicate import replicate
from hbm.studies import simulate_summaries

#: The audience segments of the simulated platform.
SEGMENTS = ("teens", "students", "workers", "parents", "retirees", "tourists")

#: The two factors of the simulated platform.
FACTORS = ("genre", "segment")

#: Creators with fewer users than this are small.
SMALL = 100

#: Platforms on which models are compared: what `simulate_crossed` takes.
WORLDS: dict[str, dict[str, Any]] = {
    "genre and segment": {"sigma_factors": (0.3, 0.3), "sigma_interaction": 0.1},
    "genre alone": {"sigma_factors": (0.3, 0.0), "sigma_interaction": 0.0},
    "every cell its own": {"sigma_factors": (0.1, 0.1), "sigma_interaction": 0.4},
}


def simulate_crossed(
    seed: int | np.random.Generator = 42,
    *,
    shape: tuple[int, int] = (5, 6),
    n_creators: int = 300,
    mean: float = 0.5,
    sigma_factors: tuple[float, float] = (0.3, 0.3),
    sigma_interaction: float = 0.1,
    sigma_creator: float = 0.4,
    evenness: float = 0.5,
    **platform,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate the summaries of a platform whose creators have a genre and an audience segment.

    tau[i] ~ Normal(mean + a[j_i] + b[k_i] + c[j_i, k_i], sigma_creator), with normal a, b, c.
    The shares of the cells are Dirichlet, so that some cells are large and some are empty.

    Parameters
    ----------
    seed : int or Generator
    shape : (int, int)
        Numbers of genres and segments.
    n_creators : int
    mean, sigma_factors, sigma_interaction, sigma_creator : float
        In dollars per user.
    evenness : float
        Parameter of the Dirichlet distribution: small values make more cells empty.
    **platform
        As for `hbm.simulate_summaries`, but for genres and effects.

    Returns
    -------
    summaries : DataFrame
        As `hbm.summarize_creators` returns them, with a column ``segment``.
    truth : dict
        As of `hbm.generate_experiment_data`, where ``genre_effects`` is the mean of a genre over
        all segments there might be; and ``cell_effects`` (genre, segment), the mean of each cell,
        ``creator_cell`` (creator, 2), ``segments``, and the standard deviations.
    """
    rng = np.random.default_rng(seed)
    n_genres, n_segments = shape
    share = rng.dirichlet(np.full(n_genres * n_segments, evenness))
    cell = np.column_stack(np.divmod(rng.choice(len(share), n_creators, p=share), n_segments))
    a, b = (rng.normal(0, s, n) for s, n in zip(sigma_factors, shape, strict=True))
    cells = mean + a[:, None] + b + rng.normal(0, sigma_interaction, shape)
    tau = rng.normal(cells[*cell.T], sigma_creator)
    # Only the noise is taken from the simple platform: there all effects are 0.
    nothing = {"genre_mean": 0.0, "genre_sd": 0.0, "sigma_creator": 0.0}
    summaries, truth = simulate_summaries(
        rng, genres=("all",), n_creators_per_genre=n_creators, **nothing, **platform
    )
    genres, segments = names_of(GENRES, n_genres), names_of(SEGMENTS, n_segments)
    summaries = summaries.assign(
        genre=genres[cell[:, 0]],
        genre_idx=np.unique(cell[:, 0], return_inverse=True)[1],
        effect_hat=summaries["effect_hat"] + tau,
    )
    summaries.insert(2, "segment", segments[cell[:, 1]])
    return summaries, truth | {
        "mu_global": mean,
        "sigma_genre": sigma_factors[0],
        "sigma_segment": sigma_factors[1],
        "sigma_interaction": sigma_interaction,
        "sigma_creator": sigma_creator,
        "genre_effects": mean + a,
        "cell_effects": cells,
        "creator_effects": tau,
        "creator_genre": cell[:, 0],
        "creator_cell": cell,
        "genres": tuple(genres),
        "segments": tuple(segments),
    }


def names_of(known: Sequence[str], n: int) -> np.ndarray:
    """Return `n` names: the known ones, then numbers."""
    return np.array([*known[:n], *(f"level {k + 1}" for k in range(len(known), n))], dtype=object)


# --------------------------------------------------------------------------------- models


class Fitted(NamedTuple):
    """What a model says of a platform.

    Attributes
    ----------
    mean, pit : ndarray, shape (creator,)
        Posterior mean of each effect, and the probability of a smaller one than the true one.
    cells : ndarray, shape (genre, segment)
        Estimated mean of each cell.
    elpd : ndarray, shape (creator,)
        Log density of each creator's estimate, predicted from all others.
    ok : bool
        Whether the fit passed its diagnostics.
    """

    mean: np.ndarray
    pit: np.ndarray
    cells: np.ndarray
    elpd: np.ndarray
    ok: bool


def crossed(summaries: pd.DataFrame, truth: dict[str, Any], **settings: Any) -> Fitted:
    """Fit both groupings, crossed."""
    fit = fit_crossed_model(summaries, FACTORS, draws=0, quick=True, **settings)
    likelihood, nodes = space_of(fit).likelihood, nodes_of(fit)
    data, cell = likelihood.data, likelihood.effects(nodes.sigmas).cell
    there = Moments(*(part[:, *likelihood.cells.T] for part in cell))
    tau = creator_moments(data, there, nodes.sigma_creator)
    pit = mixture_cdf(tau, truth["creator_effects"][data.order], nodes.weight)
    means = pd.DataFrame(
        np.tensordot(nodes.weight, cell.mean, 1), *(fit["posterior"][name] for name in FACTORS)
    )
    return Fitted(
        data.unsort(mixture_moments(tau, nodes.weight).mean),
        data.unsort(pit),
        means.reindex(index=truth["genres"], columns=truth["segments"]).to_numpy(),
        loo_crossed(fit, quick=True).pointwise["elpd"].to_numpy(),
        check_diagnostics(fit).ok,
    )


def single(summaries: pd.DataFrame, truth: dict[str, Any], by: Sequence[str]) -> Fitted:
    """Fit one grouping: one factor, or the cells of both as one (the single crossed factor)."""
    idx, groups = pd.MultiIndex.from_frame(summaries[list(by)]).factorize()
    simple = summaries.drop(columns=["genre", "segment"]).assign(genre_idx=idx)
    fit = fit_hierarchical_model(simple, engine="exact", draws=0)
    levels = {"genre": truth["genres"], "segment": truth["segments"]}
    every = pd.MultiIndex.from_product([levels[name] for name in by])
    means = pd.Series(extract_genre_estimates(fit)["mean"].to_numpy(), groups)
    # Of a group without creators the platform's mean is known, and nothing else.
    empty = extract_hyper_estimates(fit).set_index("parameter").loc["mu_global", "mean"]
    means = means.reindex(every).fillna(empty).to_numpy()
    shape = [len(levels[name]) if name in by else 1 for name in FACTORS]
    return Fitted(
        extract_hbm_estimates(fit, simple, check=False)["effect_hat"].to_numpy(),
        effect_cdf(fit, truth["creator_effects"]),
        np.broadcast_to(means.reshape(shape), truth["cell_effects"].shape),
        loo_exact(fit, quick=True).pointwise["elpd"].to_numpy(),
        check_diagnostics(fit).ok,
    )


#: The models of a study.
MODELS: dict[str, Callable[[pd.DataFrame, dict[str, Any]], Fitted]] = {
    "Genre only": partial(single, by=("genre",)),
    "Cells as one factor": partial(single, by=FACTORS),
    "Crossed, no interaction": partial(crossed, interaction=False),
    "Crossed": crossed,
}

#: Crossed models that differ in the scale of the half-normal prior of sigma_interaction.
BY_PRIOR: dict[str, Callable[[pd.DataFrame, dict[str, Any]], Fitted]] = {
    f"{scale:g}": partial(crossed, priors=CrossedPriors(sigma_interaction=HalfNormal(scale)))
    for scale in (0.05, 0.25, 1.0)
}


def crossed_study(
    n_platforms: int,
    *,
    models: Mapping[str, Callable[..., Fitted]] | None = None,
    seed: int = 42,
    **world,
) -> pd.DataFrame:
    """Score crossed and simpler models on many simulated platforms.

    Parameters
    ----------
    n_platforms : int
    models : dict of str to function, optional
        Functions of (summaries, truth) that return a `Fitted`; `MODELS` when omitted.
    seed : int
        The same platforms whichever models are scored.
    **world
        As for `simulate_crossed`.

    Returns
    -------
    DataFrame
        One row a platform and model: ``platform, model``; ``mse`` of the creators' effects, and
        ``small_mse`` of those with fewer than `SMALL` users; ``cell_mse`` and ``empty_mse`` of
        the means of cells with and without creators; ``coverage`` of the creators' 95% intervals;
        ``elpd``; ``seconds`` of a processor; ``failed``, whether the fit failed its diagnostics.
    """
    models = MODELS if models is None else models
    platforms = replicate(_one_platform, n_platforms, seed=seed, models=models, world=world)
    return pd.concat(
        [frame.assign(platform=place) for place, frame in enumerate(platforms)], ignore_index=True
    )


def _one_platform(rng: np.random.Generator, *, models, world) -> pd.DataFrame:
    summaries, truth = simulate_crossed(rng, **world)
    small = summaries["n_total"].to_numpy() < SMALL
    there = np.zeros(truth["cell_effects"].shape, bool)
    there[*truth["creator_cell"].T] = True
    rows = []
    for name, fit in models.items():
        start = time.process_time()
        fitted = fit(summaries, truth)
        seconds = time.process_time() - start
        error = np.square(fitted.mean - truth["creator_effects"])
        cell_error = np.square(fitted.cells - truth["cell_effects"])
        # A level without any creator is none of the model's: its cells are not counted.
        empty = ~there & ~np.isnan(cell_error)
        rows.append(
            {
                "model": name,
                "mse": error.mean(),
                "small_mse": error[small].mean() if small.any() else np.nan,
                "cell_mse": cell_error[there].mean(),
                "empty_mse": cell_error[empty].mean() if empty.any() else np.nan,
                "coverage": np.mean(np.abs(fitted.pit - 0.5) <= LEVEL / 2),
                "elpd": fitted.elpd.sum(),
                "seconds": seconds,
                "failed": not fitted.ok,
            }
        )
    return pd.DataFrame(rows)


#: Errors that `summarize_crossed` compares with those of the reference.
ERRORS = ("mse", "small_mse", "cell_mse", "empty_mse")


def summarize_crossed(study: pd.DataFrame, reference: str = "Crossed") -> pd.DataFrame:
    """Average a study over its platforms, with Monte Carlo errors by platform.

    Parameters
    ----------
    study : DataFrame
        From `crossed_study`.
    reference : str
        The model that the others are compared with, platform by platform.

    Returns
    -------
    DataFrame
        One row a model: ``model``; for each of `ERRORS` the mean over that of the reference,
        ``<error>_ratio``, with ``<error>_ratio_se``; ``lead``, the elpd less the reference's, and
        ``lead_se``; ``coverage, coverage_se``; ``mse, seconds``, means; ``failed``, a count.
    """
    wide = study.pivot(index="platform", columns="model")
    rows = []
    for model in study["model"].unique():
        row: dict[str, Any] = {"model": model}
        for error in ERRORS:
            pair = wide[error][[model, reference]].dropna().to_numpy()
            ratio, base = pair[:, 0].mean() / pair[:, 1].mean(), pair[:, 1].mean()
            row[f"{error}_ratio"] = ratio
            # The error of a ratio of two means, to first order.
            row[f"{error}_ratio_se"] = pd.Series(pair @ [1.0, -ratio]).sem() / base
        lead = wide["elpd"][model] - wide["elpd"][reference]
        row |= {"lead": lead.mean(), "lead_se": lead.sem()}
        coverage = wide["coverage"][model]
        row |= {"coverage": coverage.mean(), "coverage_se": coverage.sem()}
        row |= {name: wide[name][model].mean() for name in ("mse", "seconds")}
        rows.append(row | {"failed": int(wide["failed"][model].sum())})
    return pd.DataFrame(rows)
