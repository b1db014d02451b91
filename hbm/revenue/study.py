"""The proof: hurdle models, the normal model and its tamed relatives on many platforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from hbm.baselines import no_pooling_estimates
from hbm.data import summarize_creators
from hbm.diagnostics import check_diagnostics
from hbm.estimates import extract_hbm_estimates
from hbm.model import fit_hierarchical_model
from hbm.priors import HalfNormal, Normal, Priors
from hbm.replicate import replicate
from hbm.revenue.arms import adjust_for_past, summarize_payments, winsorize_users
from hbm.revenue.dollars import draw_dollars, extract_revenue_estimates, linear_predictor
from hbm.revenue.families import PAYMENTS, Lognormal, Payers
from hbm.revenue.model import PartPriors, combine, fit_part, fit_revenue_model
from hbm.revenue.simulate import ARMS, Spread, draw_creators, generate_revenue_data, split_effect
from hbm.sbc import Calibration
from hbm.validation import SIZE_BINS, compare_estimators

#: The estimators of a study. Plain means stand alone, normal and hurdle models pool; "past taken
#: out" needs ``revenue_before``.
ESTIMATORS = (
    "plain",
    "normal",
    "hurdle-lognormal",
    "hurdle-gamma",
    "hurdle-lognormal, exp(sd²/2)",
    "plain, past taken out",
    "plain, winsorised at 99.9%",
    "plain, winsorised at 99%",
    "normal, past taken out",
    "normal, winsorised at 99.9%",
    "normal, winsorised at 99%",
)


def revenue_estimates(
    users: pd.DataFrame, estimators: Sequence[str], random_seed: int = 42
) -> dict[str, pd.DataFrame]:
    """Estimate one platform in several ways, with the fast engine.

    Parameters
    ----------
    users : DataFrame
    estimators : sequence of str
        Of `ESTIMATORS`. The normal model takes the pooled variance of both arms, and priors
        scaled to the data, as readouts do.
    random_seed : int

    Returns
    -------
    dict of str to DataFrame
    """
    unknown = sorted(set(estimators) - set(ESTIMATORS))
    if unknown:
        raise ValueError(f"unknown estimators: {', '.join(unknown)}")
    arms = summarize_payments(users)
    made, payers = {}, None
    for name in estimators:
        model, _, how = name.partition(", ")
        if model.startswith("hurdle"):
            settings = {"engine": "laplace", "draws": 500, "chains": 1}
            payers = payers or fit_part(Payers.of(arms), arms, random_seed=random_seed, **settings)
            payments = model.removeprefix("hurdle-")
            # Another seed: with the same, the draws of the two parts would go together.
            part = fit_part(
                PAYMENTS[payments].of(arms), arms, random_seed=random_seed + 1, **settings
            )
            fit = combine(payers, part, payments)
            made[name] = extract_revenue_estimates(fit, arms, smearing=not how)
        else:
            data = arms if not how else _tamed(users, how)
            made[name] = (plain_estimates if model == "plain" else normal_estimates)(data)
    return made


def _tamed(users: pd.DataFrame, how: str) -> pd.DataFrame:
    if how == "past taken out":
        return adjust_for_past(users)[0]
    return winsorize_users(users, float(how.rpartition(" ")[2].rstrip("%")) / 100)[0]


def plain_estimates(data: pd.DataFrame) -> pd.DataFrame:
    """Return every creator's difference of means as it stands, from users or arms."""
    return no_pooling_estimates(summarize_creators(data, variance="pooled"))


def normal_estimates(data: pd.DataFrame) -> pd.DataFrame:
    """Pool the differences of means as the other chapters do, from users or arms."""
    summaries = summarize_creators(data, variance="pooled")
    priors = Priors.weakly_informative(summaries)
    fit = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)
    return extract_hbm_estimates(fit, summaries)


def revenue_study(
    n_platforms: int,
    *,
    estimators: Sequence[str] = ESTIMATORS[:3],
    seed: int = 42,
    **world: Any,
) -> pd.DataFrame:
    """Score estimators of dollars per user on many simulated platforms.

    Parameters
    ----------
    n_platforms : int
    estimators : sequence of str
        Of `ESTIMATORS`.
    seed : int
    **world
        As for `generate_revenue_data`.

    Returns
    -------
    DataFrame
        As from `hbm.platform_study`: ``platform, estimator, size_bin`` and the scores; with
        ``effect``, the mean true effect of the platform. Reduce it with `hbm.summarize_study`.
    """
    platforms = replicate(_score, n_platforms, seed=seed, estimators=tuple(estimators), world=world)
    study = pd.concat(
        [frame.assign(platform=i) for i, frame in enumerate(platforms)], ignore_index=True
    )
    study.insert(0, "platform", study.pop("platform"))
    return study


def _score(rng: np.random.Generator, *, estimators, world) -> pd.DataFrame:
    users, truth = generate_revenue_data(rng, **world)
    made = revenue_estimates(users, estimators, int(rng.integers(2**31)))
    scores = compare_estimators(made, truth)
    scores["effect"] = truth["creator_effects"].mean()
    return scores.drop(columns=[c for c in scores if c.endswith("_se")])


def skew_study(
    n_platforms: int,
    *,
    sizes: Sequence[int] = (100, 400, 1600, 6400),
    log_sds: Sequence[float] = (0.5, 1.0, 1.5),
    seed: int = 42,
    **world: Any,
) -> pd.DataFrame:
    """Find out from which size on the normal model on means is good enough, by skew.

    Parameters
    ----------
    n_platforms : int
        For each size and skew.
    sizes : sequence of int
        Users of every creator.
    log_sds : sequence of float
        Log standard deviations of payments.
    seed : int
    **world
        As for `generate_revenue_data`.

    Returns
    -------
    DataFrame
        One row a size and skew: ``n, log_sd, n_platforms``; ``mse_ratio``, mean squared error of
        the normal model over that of the lognormal hurdle model (of their means over platforms);
        ``coverage`` and ``hurdle_coverage`` of the two; each with its ``*_se`` by platform.
    """
    everyone = next(iter(SIZE_BINS))
    rows = []
    for log_sd in log_sds:
        for n in sizes:
            study = revenue_study(
                n_platforms,
                estimators=("normal", "hurdle-lognormal"),
                seed=seed,
                size_mixture=((1.0, n, n + 1),),
                log_sd=log_sd,
                **world,
            )
            wide = study[study["size_bin"] == everyone].pivot(
                index="platform", columns="estimator", values=["mse", "coverage"]
            )
            ratio, error = ratio_of_means(wide["mse"]["normal"], wide["mse"]["hurdle-lognormal"])
            coverage = wide["coverage"].rename(
                columns={"normal": "coverage", "hurdle-lognormal": "hurdle_coverage"}
            )
            rows.append(
                {"n": n, "log_sd": log_sd, "n_platforms": n_platforms}
                | {"mse_ratio": ratio, "mse_ratio_se": error}
                | coverage.mean().to_dict()
                | coverage.sem().add_suffix("_se").to_dict()
            )
    return pd.DataFrame(rows)


def ratio_of_means(top: pd.Series, bottom: pd.Series) -> tuple[float, float]:
    """Return the ratio of two means over the same platforms, and its Monte Carlo error."""
    ratio = top.mean() / bottom.mean()
    return float(ratio), float((top - ratio * bottom).sem() / bottom.mean())


# ---------------------------------------------------------------------------- calibration

#: Priors of the calibration: wide, and such that on every platform somebody pays.
SBC_PRIORS = PartPriors(
    level=Priors(Normal(-2.0, 0.5), HalfNormal(0.5), HalfNormal(0.5)), spread=HalfNormal(1.0)
)

_RANKED = ("level_mu_global", "level_sigma_creator", "effect_mu_global", "effect_sigma_creator")


def revenue_sbc(
    n_replications: int,
    *,
    nuts: bool = False,
    n_genres: int = 5,
    n_creators_per_genre: int = 6,
    draws: int = 200,
    tune: int = 300,
    chains: int = 4,
    seed: int = 42,
) -> dict[str, Calibration]:
    """Rank true values, drawn from the priors, in the posteriors of the lognormal hurdle model.

    Parameters
    ----------
    n_replications : int
    nuts : bool
        Fit the same data with both engines, in this process; otherwise only the fast one.
    n_genres, n_creators_per_genre : int
        Creators have 20 to 2,000 users in each arm.
    draws, tune, chains : int
    seed : int
        The truths are the same whatever the engine.

    Returns
    -------
    dict of str to Calibration
        By engine. Ranked are of both parts the platform's mean and the sd of creators, of levels
        and effects, and the log likelihood given the creators; the spread; and the effects in
        dollars per user of the smallest and the largest creator. ``fits`` has, of the fast engine
        beside NUTS, ``mean_distance`` (root mean squared distance of the posterior means of all
        effects in dollars, in NUTS' standard deviations) and ``sd_ratio``, their mean ratio.
    """
    engines = ("laplace", "nuts") if nuts else ("laplace",)
    results = replicate(
        _sbc_replication,
        n_replications,
        seed=seed,
        jobs=1 if nuts else None,
        engines=engines,
        genre_idx=np.repeat(np.arange(n_genres), n_creators_per_genre),
        sampling={"draws": draws, "tune": tune, "chains": chains},
    )
    return {
        engine: Calibration(
            *(pd.DataFrame([result[engine][part] for result in results]) for part in range(2))
        )
        for engine in engines
    }


def _sbc_replication(rng, *, engines, genre_idx, sampling) -> dict[str, tuple[dict, dict]]:
    truth, arms = _simulate_from_priors(rng, genre_idx)
    seed = int(rng.integers(2**31))
    drawn = {
        engine: fit_revenue_model(
            arms, engine=engine, priors=SBC_PRIORS, random_seed=seed, **sampling
        )
        for engine in engines
    }
    dollars = {
        engine: sum(draw_dollars(fit, arms, smearing=False)) for engine, fit in drawn.items()
    }
    found = {}
    for engine, fit in drawn.items():
        values = _ranked(fit, dollars[engine], arms)
        thinned, record = _thin(values, sampling["chains"], engine)
        ranks = {
            name: ((thinned[name] < true).sum() + rng.random()) / (len(thinned[name]) + 1)
            for name, true in truth.items()
        }
        if engine == "nuts":
            record |= _convergence(fit)
        found[engine] = ranks, record
    if len(engines) == 2:
        fast, slow = dollars["laplace"], dollars["nuts"]
        distance = (fast.mean(axis=0) - slow.mean(axis=0)) / slow.std(axis=0)
        found["laplace"][1]["mean_distance"] = float(np.sqrt(np.square(distance).mean()))
        found["laplace"][1]["sd_ratio"] = float((fast.std(axis=0) / slow.std(axis=0)).mean())
    return found


def _simulate_from_priors(rng, genre_idx: np.ndarray) -> tuple[dict[str, float], pd.DataFrame]:
    """Draw everything from the priors; return the ranked true values and the statistics."""
    n_users = np.geomspace(20, 2000, len(genre_idx)).astype(int)
    n = np.repeat(rng.permutation(n_users)[:, None], 2, axis=1)
    truth, eta = {}, {}
    for part in ("payers", "payments"):
        value = {}
        for name in ("level", "effect"):
            priors = getattr(SBC_PRIORS, name)
            spread = Spread(
                *(
                    float(getattr(priors, key).scipy().rvs(random_state=rng))
                    for key in ("mu_global", "sigma_genre", "sigma_creator")
                )
            )
            value[name] = draw_creators(rng, genre_idx, spread)
            truth[f"{part}_{name}_mu_global"] = spread.mean
            truth[f"{part}_{name}_sigma_creator"] = spread.creator
        eta[part] = value["level"][:, None] + ARMS * value["effect"][:, None]
    sd = truth["payments_spread"] = float(SBC_PRIORS.spread.scipy().rvs(random_state=rng))
    k = rng.binomial(n, expit(eta["payers"]))
    mean_log = np.where(k > 0, rng.normal(eta["payments"], sd / np.sqrt(np.maximum(k, 1))), 0.0)
    ss = sd**2 * np.where(k > 1, rng.chisquare(np.maximum(k - 1, 1)), 0.0)
    columns = {"n": n, "payers": k, "log_mean": mean_log, "log_ss": ss}
    arms = pd.DataFrame({"creator_id": np.arange(len(k)), "genre_idx": genre_idx})
    for name, values in columns.items():
        arms[f"{name}_control"], arms[f"{name}_treatment"] = values.T
    truth["payers_log_p"] = Payers.of(arms).log_likelihood(eta["payers"]).sum()
    truth["payments_log_p"] = Lognormal.of(arms).log_likelihood(eta["payments"], sd).sum()
    mean = Lognormal.mean(eta["payments"], sd)
    effect = sum(split_effect(expit(eta["payers"]), mean))
    truth["dollars_smallest"], truth["dollars_largest"] = (
        effect[n[:, 0].argmin()],
        effect[n[:, 0].argmax()],
    )
    return truth, arms


def _ranked(fit, dollars: np.ndarray, arms: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the draws of what is ranked, each of shape ``(draw,)``."""
    values = {
        f"{part}_{name}": fit[part]["posterior"][name].values.ravel()
        for part in ("payers", "payments")
        for name in _RANKED
    }
    spread = values["payments_spread"] = fit["payments"]["posterior"]["spread"].values.ravel()
    for part, family, given in (
        ("payers", Payers.of(arms), None),
        ("payments", Lognormal.of(arms), spread[:, None, None]),
    ):
        eta = linear_predictor(fit[part])
        values[f"{part}_log_p"] = family.log_likelihood(eta, given).sum(axis=(1, 2))
    size = arms["n_control"].to_numpy()
    values["dollars_smallest"] = dollars[:, size.argmin()]
    values["dollars_largest"] = dollars[:, size.argmax()]
    return values


def _thin(values: dict[str, np.ndarray], chains: int, engine: str):
    """Keep so many draws that those of a chain are next to independent."""
    n = len(values["payments_spread"])
    if engine != "nuts":
        return values, {"ranked_draws": n}
    import arviz as az
    import xarray as xr

    shaped = xr.Dataset(
        {name: (("chain", "draw"), value.reshape(chains, -1)) for name, value in values.items()}
    )
    ess = min(float(az.ess(shaped, method=kind).to_array().min()) for kind in ("bulk", "tail"))
    thinned = shaped.isel(draw=slice(None, None, int(np.ceil(n / ess))))
    values = {name: thinned[name].values.ravel() for name in values}
    return values, {
        "ranked_draws": len(values["payments_spread"]),
        "min_ess": ess,
        "max_rhat": float(az.rhat(shaped).to_array().max()),
    }


def _convergence(fit) -> dict[str, int]:
    parts = [fit[part]["sample_stats"]["diverging"].values.sum() for part in ("payers", "payments")]
    return {"divergences": int(sum(parts))}


def anchor_study(
    arms: pd.DataFrame, anchors: Sequence[float] = (0.3, 1.0, 3.0, 1000.0), **settings: Any
) -> pd.DataFrame:
    """Measure how well NUTS moves by the way the creators are described.

    Parameters
    ----------
    arms : DataFrame
        From `summarize_payments`.
    anchors : sequence of float
        As for `fit_revenue_model`.
    **settings
        As for `fit_revenue_model`.

    Returns
    -------
    DataFrame
        One row an anchor and part: ``anchor, part, seconds, divergences, max_rhat``, ``min_ess``
        (bulk or tail, over all quantities) and ``ess_per_second``.
    """
    rows = []
    for anchor in anchors:
        fit = fit_revenue_model(arms, engine="nuts", anchor=anchor, **settings)
        for part in ("payers", "payments"):
            found = check_diagnostics(fit[part], effects=False)
            ess = float(found.table[["min_ess_bulk", "min_ess_tail"]].min().min())
            seconds = fit[part].attrs["seconds"]
            rows.append(
                {
                    "anchor": anchor,
                    "part": part,
                    "seconds": seconds,
                    "divergences": found.divergences,
                    "max_rhat": float(found.table["max_rhat"].max()),
                    "min_ess": ess,
                    "ess_per_second": ess / seconds,
                }
            )
    return pd.DataFrame(rows)
