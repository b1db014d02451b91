"""Small and skewed arms: what becomes of pooled estimates when standard errors are estimated.

Every platform is simulated with its users, so that skewed revenue ties an arm's mean to its
variance, as it does in life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp, ndtr, roots_genlaguerre

from hbm.baselines import degrees_of_freedom, no_pooling_estimates
from hbm.data import GROUPS, summarize_creators
from hbm.estimates import effect_cdf, extract_hbm_estimates, mixture
from hbm.intervals import LEVEL
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, Priors
from hbm.replicate import replicate
from hbm.validation import compute_mse

_LOGNORMAL_SD = np.sqrt((np.e - 1) * np.e)

#: Revenue of users, with mean 0 and standard deviation 1: function of a Generator and a shape.
REVENUE: dict[str, Callable[..., np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "lognormal": lambda rng, shape: (rng.lognormal(size=shape) - np.exp(0.5)) / _LOGNORMAL_SD,
}

#: What the readouts are made of: how each method of `hbm.variance` is called in the study.
METHODS = {"welch": "Welch", "moderated": "moderated", "pooled": "two arms pooled, moderated"}

_GENRE = 0.5, 0.4  # mean and sd of the effects, in dollars per user
_NO_GENRES = Priors(sigma_genre=Fixed(0))


def simulate_arms(
    rng: np.random.Generator,
    *,
    n: int,
    share: float = 0.5,
    revenue: str = "normal",
    treated_sd: float = 1.0,
    sigma_obs: float = 2.0,
    n_creators: int = 500,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Simulate creators of one genre with `n` users each, reduced to their arms.

    Parameters
    ----------
    rng : Generator
    n : int
        Users of a creator.
    share : float
        Share of them in treatment; both arms keep at least two.
    revenue : {"normal", "lognormal"}
        Distribution of revenue around its mean; the lognormal has a log standard deviation of 1.
    treated_sd : float
        The treatment multiplies the deviations of revenue from its mean by this.
    sigma_obs : float
        Standard deviation of revenue in control, dollars per user.
    n_creators : int

    Returns
    -------
    arms : DataFrame
        As from `hbm.data.summarize_arms`.
    truth : dict
        As from `hbm.data.generate_experiment_data`, with ``se`` (creator,), the true standard
        errors.
    """
    n_treatment = int(np.clip(np.rint(n * share), 2, n - 2))
    effects = rng.normal(*_GENRE, n_creators)
    ids = np.array([f"c{i:04d}" for i in range(n_creators)], dtype=object)
    arms = {"creator_id": ids, "genre": "all", "genre_idx": 0}
    squared = 0.0
    for group, size, mean, factor in zip(
        GROUPS, (n - n_treatment, n_treatment), (0.0, effects), (1.0, treated_sd), strict=True
    ):
        sd = sigma_obs * factor
        users = sd * REVENUE[revenue](rng, (n_creators, size))
        arms |= {
            f"n_{group}": size,
            f"mean_{group}": mean + users.mean(axis=1),
            f"var_{group}": users.var(axis=1, ddof=1),
        }
        squared += sd**2 / size
    truth = {
        "genre_effects": np.array(_GENRE[:1]),
        "creator_effects": effects,
        "sigma_creator": _GENRE[1],
        "creator_genre": np.zeros(n_creators, int),
        "creator_id": ids,
        "se": np.full(n_creators, np.sqrt(squared)),
    }
    return pd.DataFrame(arms), truth


def student_likelihood_estimates(summaries: pd.DataFrame, truth: dict[str, Any]) -> pd.DataFrame:
    """Pool creators of one genre with a Student's t for each estimate: a referee.

    (effect_hat - tau) / se has a t distribution with ``df`` degrees of freedom: a mixture of
    normals over the unknown true variance, taken by a Gauss rule. mu_global and sigma_creator
    are integrated over a grid, with the default priors.

    Parameters
    ----------
    summaries : DataFrame
        One row a creator of a single genre, with ``df``.
    truth : dict

    Returns
    -------
    DataFrame
        ``creator_id, effect_hat, sigma_creator`` (posterior means) and ``pit``, the posterior
        probability of effects up to the true one.
    """
    d, se = (summaries[name].to_numpy(float) for name in ("effect_hat", "se"))
    share, noise = _true_variances(se, degrees_of_freedom(summaries))
    mu = np.median(d) + np.linspace(-8, 8, 33) * d.std() / np.sqrt(len(d))
    mu, sigma = (part.ravel() for part in np.meshgrid(mu, d.std() * np.linspace(0.01, 1.5, 75)))
    log_weight = np.log(_NO_GENRES.mu_global.scipy().pdf(mu))
    log_weight += np.log(_NO_GENRES.sigma_creator.scipy().pdf(sigma))
    for i in range(len(d)):
        log_weight += np.log(_density(d[i], noise[i], mu, sigma) @ share[i])
    weight = np.exp(log_weight - logsumexp(log_weight))
    kept = weight > 1e-8
    mu, sigma, weight = mu[kept], sigma[kept], weight[kept]
    rows = []
    for i, true in enumerate(truth["creator_effects"]):
        part = _density(d[i], noise[i], mu, sigma) * share[i]
        part *= (weight / part.sum(axis=1))[:, None]
        pull = noise[i] / (noise[i] + np.square(sigma)[:, None])
        mean = d[i] + pull * (mu[:, None] - d[i])
        below = ndtr((true - mean) / (sigma[:, None] * np.sqrt(pull)))
        rows.append(((part * mean).sum(), (part * below).sum()))
    made = pd.DataFrame(rows, columns=["effect_hat", "pit"])
    return made.assign(creator_id=summaries["creator_id"].to_numpy(), sigma_creator=weight @ sigma)


def _true_variances(se: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and values of se² df / chi²(df), each of shape (creator, node)."""
    rules = [roots_genlaguerre(16, half - 1) for half in df / 2]
    x, weight = (np.array(part) for part in zip(*rules, strict=True))
    return weight / weight.sum(axis=1, keepdims=True), np.square(se)[:, None] * df[:, None] / (
        2 * x
    )


def _density(d: float, noise: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Normal density of an estimate but for a constant, by node of the grid and of the noise."""
    var = np.square(sigma)[:, None] + noise
    return np.exp(-0.5 * np.square(d - mu[:, None]) / var) / np.sqrt(var)


def standard_error_study(
    n_platforms: int,
    *,
    sizes: Sequence[int] = (10, 20, 50, 100),
    shares: Sequence[float] = (0.5, 0.1),
    treated_sd: float = 1.0,
    referee_up_to: int = 20,
    n_creators: int = 500,
    seed: int = 42,
) -> pd.DataFrame:
    """Measure every way to get a standard error, by size, split and skewness of the arms.

    Parameters
    ----------
    n_platforms : int
    sizes : sequence of int
        Users of a creator.
    shares : sequence of float
        Shares of users in treatment.
    treated_sd : float
        The treatment multiplies the standard deviation of revenue by this.
    referee_up_to : int
        The largest size at which the slow `student_likelihood_estimates` are made.
    n_creators : int
    seed : int

    Returns
    -------
    DataFrame
        One row a setting and method (`METHODS`, "t likelihood", "known"): ``revenue, share, n,
        method, n_platforms`` and, each with its ``*_se`` by platform: ``correlation`` of standard
        error and error of the plain estimates; ``plain_coverage`` of theirs; ``bias, mse`` and
        ``coverage`` of the pooled estimates; ``sigma_creator``, its posterior mean. Dollars per
        user.
    """
    rows = replicate(
        _one_platform,
        n_platforms,
        seed=seed,
        sizes=tuple(sizes),
        shares=tuple(shares),
        treated_sd=treated_sd,
        referee_up_to=referee_up_to,
        n_creators=n_creators,
    )
    keys = ["revenue", "share", "n", "method"]
    groups = pd.DataFrame([row for platform in rows for row in platform]).groupby(keys, sort=False)
    mean, error = groups.mean(), groups.sem()
    table = pd.DataFrame({"n_platforms": groups.size()})
    for column in mean:
        table[column], table[f"{column}_se"] = mean[column], error[column]
    return table.reset_index()


def _one_platform(rng, *, sizes, shares, treated_sd, referee_up_to, n_creators) -> list[dict]:
    rows = []
    for revenue in REVENUE:
        for share in shares:
            for n in sizes:
                setting = {"revenue": revenue, "share": share, "n": n}
                arms, truth = simulate_arms(
                    rng, **setting, treated_sd=treated_sd, n_creators=n_creators
                )
                for method, name in METHODS.items():
                    summaries = summarize_creators(arms, variance=method)
                    rows.append(setting | {"method": name} | _scored(summaries, truth))
                    if method == "welch" and n <= referee_up_to:
                        made = student_likelihood_estimates(summaries, truth)
                        rows.append(setting | {"method": "t likelihood"} | _scores(made, truth))
                known = summaries.assign(se=truth["se"])
                rows.append(setting | {"method": "known"} | _scored(known, truth))
    return rows


def _scored(summaries: pd.DataFrame, truth: dict[str, Any]) -> dict[str, float]:
    fit = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=_NO_GENRES)
    made = extract_hbm_estimates(fit, summaries)
    made["pit"] = effect_cdf(fit, truth["creator_effects"])
    _, sigma_creator, weight = mixture(fit)
    made["sigma_creator"] = weight @ sigma_creator
    plain = no_pooling_estimates(summaries, student=True)
    error = plain["effect_hat"] - truth["creator_effects"]
    covered = (truth["creator_effects"] >= plain["ci_lower"]) & (
        truth["creator_effects"] <= plain["ci_upper"]
    )
    varies = np.ptp(summaries["se"]) > 1e-12
    return {
        "correlation": np.corrcoef(summaries["se"], error)[0, 1] if varies else 0.0,
        "plain_coverage": covered.mean(),
    } | _scores(made, truth)


def _scores(made: pd.DataFrame, truth: dict[str, Any]) -> dict[str, float]:
    error = made["effect_hat"] - truth["creator_effects"]
    return {
        "bias": error.mean(),
        "mse": compute_mse(made["effect_hat"], truth["creator_effects"]),
        "coverage": np.mean(np.abs(made["pit"] - 0.5) <= LEVEL / 2),
        "sigma_creator": made["sigma_creator"].iloc[0],
    }
