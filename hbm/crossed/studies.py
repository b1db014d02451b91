"""Crossed groupings against simpler ones, on many simulated platforms, and their calibration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hbm.crossed import (
    crossed_effect_cdf,
    crossed_effect_moments,
    crossed_hyper_cdf,
    draw_crossed,
    extract_cell_estimates,
    fit_crossed_model,
)
from hbm.crossed.likelihood import Sigmas
from hbm.crossed.loo import loo_crossed
from hbm.crossed.posterior import CrossedPriors, nodes_of, space_of
from hbm.data import GENRES
from hbm.diagnostics import check_diagnostics
from hbm.estimates import effect_cdf, extract_genre_estimates, extract_hbm_estimates
from hbm.exact.draws import extract_hyper_estimates
from hbm.exact.loo import loo_exact
from hbm.gaussian import Moments, mixture_cdf
from hbm.intervals import LEVEL
from hbm.model import fit_hierarchical_model
from hbm.priors import HalfNormal
from hbm.replicate import replicate
from hbm.sbc import Calibration
from hbm.studies import simulate_summaries

#: The audience segments of the simulated platform.
SEGMENTS = ("teens", "students", "workers", "parents")

#: The two factors of the simulated platform.
FACTORS = ("genre", "segment")

#: Platforms on which models are compared: what `simulate_crossed` takes.
WORLDS: dict[str, dict[str, Any]] = {
    "both matter": {"sigma_factors": (0.3, 0.3), "sigma_interaction": 0.1},
    "only the genre matters": {"sigma_factors": (0.3, 0.0), "sigma_interaction": 0.0},
    "every cell is its own": {"sigma_factors": (0.1, 0.1), "sigma_interaction": 0.4},
    "nothing matters": {"sigma_factors": (0.0, 0.0), "sigma_interaction": 0.0},
}


def simulate_crossed(
    seed: int | np.random.Generator = 42,
    *,
    shape: tuple[int, int] = (5, 4),
    n_creators: int = 300,
    mean: float = 0.5,
    sigma_factors: tuple[float, float] = (0.3, 0.3),
    sigma_interaction: float = 0.1,
    sigma_creator: float = 0.4,
    evenness: float = 1.0,
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
    genres, segments = _names(GENRES, n_genres, "genre"), _names(SEGMENTS, n_segments, "segment")
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


def _names(known: Sequence[str], n: int, kind: str) -> np.ndarray:
    names = [*known[:n], *(f"{kind} {k + 1}" for k in range(len(known), n))]
    return np.array(names, dtype=object)


# --------------------------------------------------------------------------------- models


class Fitted(NamedTuple):
    """What a model says of a platform.

    Attributes
    ----------
    mean, sd, pit : ndarray, shape (creator,)
        Posterior mean and standard deviation of each effect, and the probability of a smaller one
        than the true one.
    cells : ndarray, shape (genre, segment)
        Estimated mean of each cell.
    elpd : ndarray, shape (creator,)
        Log density of each creator's estimate, predicted from all others.
    ok : bool
        Whether the fit passed its diagnostics.
    """

    mean: np.ndarray
    sd: np.ndarray
    pit: np.ndarray
    cells: np.ndarray
    elpd: np.ndarray
    ok: bool


def crossed(summaries: pd.DataFrame, truth: dict[str, Any], **settings: Any) -> Fitted:
    """Fit both groupings, crossed."""
    fit = fit_crossed_model(summaries, FACTORS, draws=0, quick=True, **settings)
    moments, pit = crossed_effect_moments(fit), crossed_effect_cdf(fit, truth["creator_effects"])
    table = extract_cell_estimates(fit).pivot(index="genre", columns="segment", values="mean")
    cells = table.reindex(index=truth["genres"], columns=truth["segments"]).to_numpy()
    elpd = loo_crossed(fit, quick=True).pointwise["elpd"].to_numpy()
    return Fitted(moments.mean, np.sqrt(moments.var), pit, cells, elpd, check_diagnostics(fit).ok)


def single(summaries: pd.DataFrame, truth: dict[str, Any], by: Sequence[str]) -> Fitted:
    """Fit one grouping: one factor, or the cells of both as one (the single crossed factor)."""
    idx, groups = pd.MultiIndex.from_frame(summaries[list(by)]).factorize()
    simple = summaries.drop(columns=["genre", "segment"]).assign(genre_idx=idx)
    fit = fit_hierarchical_model(simple, engine="exact", draws=0)
    estimates = extract_hbm_estimates(fit, simple, check=False)
    levels = {"genre": truth["genres"], "segment": truth["segments"]}
    every = pd.MultiIndex.from_product([levels[name] for name in by])
    means = pd.Series(extract_genre_estimates(fit)["mean"].to_numpy(), groups)
    # Of a group without creators the platform's mean is known, and nothing else.
    empty = extract_hyper_estimates(fit).set_index("parameter").loc["mu_global", "mean"]
    means = means.reindex(every).fillna(empty).to_numpy()
    shape = [len(levels[name]) if name in by else 1 for name in FACTORS]
    return Fitted(
        estimates["effect_hat"].to_numpy(),
        estimates["se"].to_numpy(),
        effect_cdf(fit, truth["creator_effects"]),
        np.broadcast_to(means.reshape(shape), truth["cell_effects"].shape),
        loo_exact(fit, quick=True).pointwise["elpd"].to_numpy(),
        check_diagnostics(fit).ok,
    )


#: The models of a study.
MODELS: dict[str, Callable[[pd.DataFrame, dict[str, Any]], Fitted]] = {
    "Genre only": partial(single, by=("genre",)),
    "Genre × segment as one": partial(single, by=FACTORS),
    "Crossed, no interaction": partial(crossed, interaction=False),
    "Crossed, wide interaction": partial(
        crossed, priors=CrossedPriors(sigma_interaction=HalfNormal(1.0))
    ),
    "Crossed": crossed,
}


def crossed_study(
    n_platforms: int,
    *,
    models: dict[str, Callable[..., Fitted]] | None = None,
    reference: str = "Crossed",
    seed: int = 42,
    **world,
) -> pd.DataFrame:
    """Score crossed and simpler models on many simulated platforms.

    Parameters
    ----------
    n_platforms : int
    models : dict of str to function, optional
        Functions of (summaries, truth) that return a `Fitted`; `MODELS` when omitted.
    reference : str
        The model whose elpd the others are compared with.
    seed : int
        The same platforms whichever models are scored.
    **world
        As for `simulate_crossed`.

    Returns
    -------
    DataFrame
        One row a platform and model: ``platform, model``; ``mse`` and ``coverage`` (of 95%
        intervals) of the creators' effects, and ``sd``, their mean posterior sd; ``mse_to_floor``, the mse over that of an oracle who knows the means
        of the cells and sigma_creator; ``cell_mse`` and ``empty_mse`` of the means of cells with
        and without creators; ``lead``, the elpd of the reference less the model's, and
        ``lead_se``, its standard error over creators; ``seconds``; ``failed``, whether the fit
        failed its diagnostics.
    """
    models = MODELS if models is None else models
    platforms = replicate(
        _one_platform, n_platforms, seed=seed, models=models, reference=reference, world=world
    )
    frames = [frame.assign(platform=place) for place, frame in enumerate(platforms)]
    study = pd.concat(frames, ignore_index=True)
    study.insert(0, "platform", study.pop("platform"))
    return study


def _one_platform(rng: np.random.Generator, *, models, reference, world) -> pd.DataFrame:
    summaries, truth = simulate_crossed(rng, **world)
    true, center = truth["creator_effects"], truth["cell_effects"][*truth["creator_cell"].T]
    n = summaries["n_treatment"], summaries["n_control"]
    variance = truth["sigma_obs"] ** 2 * (1 / n[0] + 1 / n[1]).to_numpy()
    pull = variance / (variance + truth["sigma_creator"] ** 2)
    floor = np.mean(np.square((1 - pull) * summaries["effect_hat"] + pull * center - true))
    there = np.zeros(truth["cell_effects"].shape, bool)
    there[tuple(truth["creator_cell"].T)] = True
    rows, elpd = [], {}
    for name, fit in models.items():
        start = time.perf_counter()
        fitted = fit(summaries, truth)
        seconds = time.perf_counter() - start
        cell_error = np.square(fitted.cells - truth["cell_effects"])
        known = ~np.isnan(cell_error)
        mse = np.mean(np.square(fitted.mean - true))
        elpd[name] = fitted.elpd
        rows.append(
            {
                "model": name,
                "mse": mse,
                "mse_to_floor": mse / floor,
                "coverage": np.mean(np.abs(fitted.pit - 0.5) <= LEVEL / 2),
                "sd": fitted.sd.mean(),
                "cell_mse": cell_error[there].mean(),
                "empty_mse": np.mean(cell_error[~there & known]) if np.any(~there) else np.nan,
                "seconds": seconds,
                "failed": not fitted.ok,
            }
        )
    frame = pd.DataFrame(rows)
    lead = [elpd[reference] - elpd[name] for name in frame["model"]]
    frame["lead"] = [values.sum() for values in lead]
    frame["lead_se"] = [np.sqrt(len(values)) * values.std(ddof=1) for values in lead]
    return frame


# ---------------------------------------------------------------------------- calibration

#: What is ranked, besides the hyperparameters: the effect of the first level of each factor, the
#: mean of the first cell and that of an empty one, the effects of the creators with the largest
#: and the smallest standard error, and the log density of all estimates given the standard
#: deviations (effects integrated out) and given the creators' effects.
QUANTITIES = (
    "mu_global",
    "sigma_first",
    "sigma_second",
    "sigma_interaction",
    "sigma_creator",
    "effect_first",
    "effect_second",
    "mu_cell",
    "mu_cell_empty",
    "tau_smallest",
    "tau_largest",
    "log_p_given_hyper",
    "log_p_given_tau",
)


def run_crossed_sbc(
    design: pd.DataFrame,
    n_replications: int = 500,
    *,
    priors: CrossedPriors = CrossedPriors(),
    given: CrossedPriors | None = None,
    draws: int = 250,
    seed: int = 42,
) -> Calibration:
    """Rank true values, drawn from the priors, in the posteriors of data simulated from them.

    Parameters
    ----------
    design : DataFrame
        ``creator_id, genre, segment, se``, with an empty cell at least: the same creators and
        standard errors in each replication.
    n_replications : int
    priors : CrossedPriors
        All with a density.
    given : CrossedPriors, optional
        Wrong priors, to see that they are noticed; those of the truth when omitted.
    draws : int
        Draws among which the log densities are ranked; for the rest the posterior's own
        distribution functions are taken.
    seed : int

    Returns
    -------
    Calibration
        Ranks of `QUANTITIES`, for `hbm.sbc_verdicts`.
    """
    settings = {"design": design, "priors": priors, "given": given or priors, "draws": draws}
    results = replicate(_sbc_replication, n_replications, seed=seed, **settings)
    ranks, fits = (pd.DataFrame(list(part)) for part in zip(*results, strict=True))
    return Calibration(ranks[list(QUANTITIES)], fits)


def _sbc_replication(rng, *, design, priors, given, draws):
    codes = [design[name].astype("category").cat.codes.to_numpy(int) for name in FACTORS]
    shape = tuple(code.max() + 1 for code in codes)
    mu = priors.mu_global.scipy().rvs(random_state=rng)
    creator, first, second, interaction = (
        prior.scipy().rvs(random_state=rng) for prior in priors.sigmas
    )
    a, b = rng.normal(0, first, shape[0]), rng.normal(0, second, shape[1])
    cells = mu + a[:, None] + b + rng.normal(0, interaction, shape)
    tau = rng.normal(cells[*codes], creator)
    se = design["se"].to_numpy(float)
    data = design.assign(effect_hat=rng.normal(tau, se))
    fit = fit_crossed_model(data, FACTORS, priors=given, draws=0, quick=True)
    hyper = {
        "mu_global": mu,
        "sigma_genre": first,
        "sigma_segment": second,
        "sigma_interaction": interaction,
        "sigma_creator": creator,
    }
    names = dict(zip(hyper, QUANTITIES, strict=False))
    ranks = {names[name]: crossed_hyper_cdf(fit, name, x) for name, x in hyper.items()}
    ranks |= _effect_ranks(fit, a, b, cells, codes)
    effect_ranks = crossed_effect_cdf(fit, tau)
    ranks["tau_smallest"], ranks["tau_largest"] = effect_ranks[[se.argmax(), se.argmin()]]
    ranks |= _density_ranks(rng, fit, Sigmas(creator, first, second, interaction), mu, tau, draws)
    ranks = {name: min(max(rank, 0.0), 1.0) for name, rank in ranks.items()}
    return ranks, {"ranked_draws": draws, "quadrature_error": fit.attrs["quadrature_error"]}


def _effect_ranks(fit, a, b, cells, codes) -> dict[str, float]:
    nodes, likelihood = nodes_of(fit), space_of(fit).likelihood
    effects = likelihood.effects(nodes.sigmas)
    there = np.zeros(cells.shape, bool)
    there[*codes] = True
    empty = tuple(np.argwhere(~there)[0])
    places = {
        "effect_first": (effects.first, (0,), a),
        "effect_second": (effects.second, (0,), b),
        "mu_cell": (effects.cell, tuple(np.argwhere(there)[0]), cells),
        "mu_cell_empty": (effects.cell, empty, cells),
    }
    return {
        name: float(
            mixture_cdf(
                Moments(*(part[:, *place][:, None] for part in moments)),
                true[place],
                nodes.weight,
            )[0]
        )
        for name, (moments, place, true) in places.items()
    }


def _density_ranks(rng, fit, sigmas: Sigmas, mu, tau, draws: int) -> dict[str, float]:
    """Ranks of the log densities among independent draws of all parameters."""
    drawn = draw_crossed(fit, draws=draws, chains=1, random_seed=int(rng.integers(2**31)))
    effect_hat, se = fit["observed_data"]["effect_hat"].values, fit["constant_data"]["se"].values
    likelihood = space_of(fit).likelihood
    first, second = drawn["sigma_factor"].values[0].T
    own = drawn["sigma_creator"].values[0], first, second, drawn["sigma_interaction"].values[0]
    values = {
        "log_p_given_hyper": (
            _given_hyper(likelihood, Sigmas(*map(np.atleast_1d, sigmas)), np.atleast_1d(mu)),
            _given_hyper(likelihood, Sigmas(*own), drawn["mu_global"].values[0]),
        ),
        "log_p_given_tau": tuple(
            -0.5 * np.square((effect_hat - effects) / se).sum(axis=1)
            for effects in (tau[None], drawn["tau"].values[0])
        ),
    }
    return {
        name: ((among < true).sum() + rng.random()) / (draws + 1)
        for name, (true, among) in values.items()
    }


def _given_hyper(likelihood, sigmas: Sigmas, mu: np.ndarray) -> np.ndarray:
    """Log density of the estimates given mu_global too, by Bayes' rule.

    p(d | sigmas, mu) = p(d | sigmas) p(mu | d, sigmas) / p(mu).
    """
    log_density, mean, var = likelihood.between(sigmas)
    prior = likelihood.prior
    after = -0.5 * (np.square(mu - mean) / var + np.log(var))
    before = -0.5 * (np.square((mu - prior.mu) / prior.sigma) + 2 * np.log(prior.sigma))
    return log_density + after - before


def small_design(seed: int = 7, shape: tuple[int, int] = (4, 3), n_creators: int = 60):
    """Return a design for calibration: few creators, uneven cells, one of them empty."""
    rng = np.random.default_rng(seed)
    n_cells = shape[0] * shape[1]
    share = rng.dirichlet(np.full(n_cells - 1, 2.0))
    # Every cell but the last has a creator, so that levels are many and none is lost.
    cell = np.concatenate([np.arange(n_cells - 1), rng.choice(n_cells - 1, n_creators - n_cells + 1, p=share)])
    first, second = np.divmod(cell, shape[1])
    return pd.DataFrame(
        {
            "creator_id": [f"c{i:03d}" for i in range(n_creators)],
            "genre": _names(GENRES, shape[0], "genre")[first],
            "segment": _names(SEGMENTS, shape[1], "segment")[second],
            "se": np.exp(rng.uniform(np.log(0.1), np.log(1.0), n_creators)),
        }
    )
