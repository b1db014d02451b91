"""What goes wrong with groupings, simulated, with what it costs.

Costs are mean squared errors of the pooled estimates against the known truth, relative to what
should have been done on the same platform.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from hbm.baselines import complete_pooling_estimates
from hbm.estimates import extract_genre_estimates, mixture
from hbm.exact.loo import loo_exact
from hbm.gaussian import shrinkage_factor
from hbm.grouping.candidates import create_grouping
from hbm.grouping.history import Platform, simulate_platform_history, simulate_quarters
from hbm.grouping.study import fit_grouping, pooled_scores, with_clusters
from hbm.intervals import LEVEL, normal_factor
from hbm.replicate import replicate
from hbm.validation import compute_mse, join_truth

#: Double dipping: groups of creators' own estimates, and random features searched for the best.
N_OWN_GROUPS, N_FEATURES, N_BEST = 5, 60, 3


def pitfall_costs(n_platforms: int, *, seed: int = 42) -> pd.DataFrame:
    """Simulate every pitfall on many platforms.

    Parameters
    ----------
    n_platforms : int
    seed : int

    Returns
    -------
    DataFrame
        One row a platform and way: ``platform, pitfall, way, mse`` (relative to the way that is
        marked by `reference`), ``coverage`` of the 95% intervals (NaN where there are none),
        ``elpd_diff`` that leave-one-out claims over no grouping (NaN where it was not asked),
        ``reference``, whether this is what should have been done.
    """
    frames = replicate(_pitfalls, n_platforms, seed=seed)
    return pd.concat([f.assign(platform=i) for i, f in enumerate(frames)], ignore_index=True)


def summarize_pitfalls(costs: pd.DataFrame) -> pd.DataFrame:
    """Average over platforms, with Monte Carlo errors by platform.

    Parameters
    ----------
    costs : DataFrame
        From `pitfall_costs`.

    Returns
    -------
    DataFrame
        One row a way: ``pitfall, way, mse, mse_se, coverage, coverage_se, elpd_diff``.
    """
    groups = costs.groupby(["pitfall", "way"], sort=False)
    mean, error = (
        getattr(groups[["mse", "coverage", "elpd_diff"]], how)() for how in ("mean", "sem")
    )
    table = mean.join(error[["mse", "coverage"]].add_suffix("_se"))
    columns = ["mse", "mse_se", "coverage", "coverage_se", "elpd_diff"]
    return table[columns].reset_index()


def _pitfalls(rng: np.random.Generator) -> pd.DataFrame:
    parts = {
        "double dipping": _double_dipping,
        "many small groups": _many_small_groups,
        "uninterpretable winner": _uninterpretable,
        "fitted once": _fitted_once,
    }
    frames = []
    for pitfall, simulate in parts.items():
        frame = pd.DataFrame(simulate(rng), columns=["way", "mse", "coverage", "elpd_diff"])
        frame["reference"] = frame.index == 0
        frame["mse"] /= frame["mse"].iloc[0]
        frame.insert(0, "pitfall", pitfall)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _double_dipping(rng):
    """Groups made from the estimates that they are then to improve; nothing is there to find."""
    platform = simulate_platform_history(rng, structure={})
    ites = platform.ite_estimates
    effects = ites["effect_hat"].to_numpy()
    own = pd.qcut(ites["effect_hat"], N_OWN_GROUPS, labels=False).astype(str)
    coins = rng.integers(0, 2, (N_FEATURES, len(ites)))
    difference = [effects[coin == 1].mean() - effects[coin == 0].mean() for coin in coins]
    best = np.argsort(np.abs(difference))[-N_BEST:]
    found = pd.Series(["".join(map(str, row)) for row in coins[best].T])
    features = platform.features.assign(own=own, found=found)
    yield ("no grouping", *_scores(platform, features, None))
    yield (f"{N_OWN_GROUPS} groups of own estimates", *_scores(platform, features, "own", True))
    way = f"best {N_BEST} of {N_FEATURES} random features, crossed"
    yield (way, *_scores(platform, features, "found", True))


def _many_small_groups(rng):
    """Genre is what structures the effects; its sub-genres are as good, and far smaller."""
    platform = simulate_platform_history(rng)
    features = platform.features
    yield ("genre", *_scores(platform, features, "genre"))
    yield ("no grouping", *_scores(platform, features, None))
    yield ("sub-genre, partial pooling", *_scores(platform, features, "sub_genre", True))
    summaries = create_grouping(platform.ite_estimates, features, "sub_genre")
    means = join_truth(complete_pooling_estimates(summaries), platform.truth)
    mse = compute_mse(means["effect_hat"], means["effect_true"])
    yield "sub-genre, its mean for all its creators", mse, np.nan, np.nan


def _uninterpretable(rng):
    """Hidden types structure the effects: clusters find them, and one feature shows a part."""
    platform = simulate_platform_history(rng, structure={"archetype": 0.36})
    features = with_clusters(platform)
    yield ("clusters", *_scores(platform, features, "cluster", True))
    yield ("engagement quartile", *_scores(platform, features, "engagement_quartile", True))
    yield ("no grouping", *_scores(platform, features, None))


def _fitted_once(rng):
    """Fitted to a quarter in which genre structures the effects; now another feature does.

    Frozen are the genres' means and sigma_creator of the first quarter.
    """
    first, now = simulate_quarters(
        rng, n_quarters=2, changes_at=1, changes_to={"monetization_method": 0.36}
    )
    _, model = fit_grouping(first.ite_estimates, first.features, "genre")
    yield ("selected anew", *_scores(now, now.features, "monetization_method"))
    yield ("the old grouping, fitted anew", *_scores(now, now.features, "genre"))
    means = extract_genre_estimates(model).set_index("genre")["mean"]
    sigma = np.array([np.average(mixture(model).sigma_creator, weights=mixture(model).weights)])
    frozen = create_grouping(now.ite_estimates, now.features, "genre")
    pull = shrinkage_factor(frozen["se"].to_numpy(), sigma)[0]
    target = frozen["genre"].map(means).to_numpy()
    estimate = frozen["effect_hat"] + pull * (target - frozen["effect_hat"])
    truth = now.truth["creator_effects"]
    reach = normal_factor(LEVEL) * frozen["se"] * np.sqrt(1 - pull)
    covered = np.mean(np.abs(estimate - truth) <= reach)
    yield "the old fit, frozen", compute_mse(estimate, truth), covered, np.nan


def _scores(platform: Platform, features, grouping: str | None, claim: bool = False):
    """Mean squared error, coverage, and the elpd_diff that the data used for it would claim."""
    summaries, model = fit_grouping(platform.ite_estimates, features, grouping)
    claimed = np.nan
    if claim:
        _, none = fit_grouping(platform.ite_estimates, features, None)
        claimed = loo_exact(model, quick=True).elpd - loo_exact(none, quick=True).elpd
    return (*pooled_scores(summaries, model, platform.truth), claimed)
