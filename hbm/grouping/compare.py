"""Which grouping predicts best? Leave-one-out on the integrated likelihood, with controls.

Every candidate predicts the same creators' estimates, each from all others. What a candidate is
worth is its difference from "no grouping" (partial pooling toward the platform mean), creator by
creator, against its standard error; and from the differences that its own labels give when they
are shuffled, which have the same number and sizes of groups and mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from hbm.diagnostics import check_diagnostics
from hbm.estimates import mixture
from hbm.exact.likelihood import Likelihood, Sums
from hbm.exact.loo import density_without, leave_one_genre_out, loo_exact
from hbm.exact.quadrature import log_density_of
from hbm.exact.rule import Rule
from hbm.gaussian import Estimates
from hbm.grouping.candidates import check_group_sizes, create_grouping, merge_small_groups
from hbm.grouping.thresholds import THRESHOLDS
from hbm.model import fit_hierarchical_model
from hbm.predictive import leave_one_out, loo_pit
from hbm.priors import Fixed, Priors

#: What the model without grouping is called.
NO_GROUPING = "no grouping"

#: The rule of shuffled labels: first and last node of log sigma_creator, counted from its mean,
#: and the number of nodes over sigma_genre.
_CREATOR_NODES, _GENRE_NODES = (-4, 3), 12


@dataclass(frozen=True)
class GroupingComparison:
    """What `compare_groupings_empirical` found.

    Attributes
    ----------
    table : DataFrame
        One row a model, best first: ``candidate, n_groups, smallest, elpd, se``; ``elpd_diff,
        dse``, difference from no grouping and its standard error; ``behind, behind_dse``, the
        same from the best model (negative); ``verdict`` of elpd_diff (``equal, likely`` or
        ``clear``; ``worse`` where it is negative); ``weight`` in a stack of all models;
        ``p_permutation``, share of shuffled labels that do at least as well.
    pointwise : DataFrame
        Log predictive density of each creator's estimate (rows) by model (columns).
    pit : DataFrame
        Probability of a smaller estimate given all other creators, likewise.
    shuffled : DataFrame
        elpd_diff of shuffled labels, one column a candidate.
    skipped : DataFrame
        Candidates that were not compared as they are: ``candidate, reason, retried_as``.
    groupings : dict of str to DataFrame
        Summaries by model, as `create_grouping` makes them.
    models : dict of str to DataTree
        Fits by model.
    priors : Priors
        Of all candidates; no grouping has sigma_genre fixed at 0.
    """

    table: pd.DataFrame
    pointwise: pd.DataFrame
    pit: pd.DataFrame
    shuffled: pd.DataFrame
    skipped: pd.DataFrame
    groupings: dict[str, pd.DataFrame]
    models: dict[str, Any]
    priors: Priors


def compare_groupings_empirical(
    ite_estimates: pd.DataFrame,
    creator_features: pd.DataFrame,
    candidates: Sequence[str],
    *,
    priors: Priors | None = None,
    engine: str = "exact",
    n_permutations: int = 200,
    seed: int = 42,
    quick: bool = False,
    **sampling,
) -> GroupingComparison:
    """Compare groupings by how well each predicts every creator's estimate from all others.

    Parameters
    ----------
    ite_estimates : DataFrame
        One row a creator: ``creator_id, effect_hat, se``.
    creator_features : DataFrame
        One row a creator: ``creator_id`` and the candidates.
    candidates : sequence of str
        Columns. One whose smallest group has fewer than 5 creators is skipped whole, reported,
        and retried with its small groups merged, so that every model scores the same creators.
    priors : Priors, optional
        `Priors.weakly_informative` when omitted; the same for all candidates.
    engine : {"exact", "nuts"}
        ``exact`` leaves out exactly; ``nuts`` samples, and leaves out by importance sampling
        on the integrated likelihood.
    n_permutations : int
        Shuffles of each candidate's labels; 0 for none.
    seed : int
        Of the shuffles, and of NUTS.
    quick : bool
        Leave out on fewer nodes, for studies of many platforms: `hbm.exact.loo.loo_exact`.
    **sampling
        For NUTS: as for `hbm.fit_hierarchical_model`.

    Returns
    -------
    GroupingComparison

    Raises
    ------
    DataError
        If a creator has no features, or no group.
    DiagnosticsError
        If a fit failed its diagnostics.
    ValueError
        If no candidate is given, or one is called like the model without grouping.

    References
    ----------
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation, Stat. Comput. 27.
    Yao, Vehtari, Simpson & Gelman (2018), Using stacking, Bayesian Analysis 13.
    """
    if not candidates or NO_GROUPING in candidates:
        raise ValueError(f"candidates must be columns, not {list(candidates)}")
    priors = priors or Priors.weakly_informative(ite_estimates)
    groupings = {NO_GROUPING: create_grouping(ite_estimates, creator_features, None)}
    skipped = []
    for name in dict.fromkeys(candidates):
        grouped, skip = _grouping(ite_estimates, creator_features, name)
        skipped += [skip] if skip else []
        if grouped is not None:
            groupings[skip["retried_as"] if skip else name] = grouped
    models, left_out = {}, {}
    for name, summaries in groupings.items():
        own = without_grouping(priors) if name == NO_GROUPING else priors
        models[name], left_out[name] = _leave_out(summaries, own, engine, seed, quick, sampling)
    pointwise, pit = (
        pd.DataFrame({name: frame[column] for name, frame in left_out.items()})
        for column in ("elpd", "pit")
    )
    comparison = GroupingComparison(
        table=_table(pointwise, groupings),
        pointwise=pointwise,
        pit=pit,
        shuffled=pd.DataFrame(index=pd.RangeIndex(n_permutations)),
        skipped=pd.DataFrame(skipped, columns=["candidate", "reason", "retried_as"]),
        groupings=groupings,
        models=models,
        priors=priors,
    )
    names = [name for name in groupings if name != NO_GROUPING]
    return shuffle_labels(comparison, names, n_permutations, seed) if n_permutations else comparison


def shuffle_labels(
    comparison: GroupingComparison, candidates: Sequence[str], n: int = 200, seed: int = 42
) -> GroupingComparison:
    """Return the comparison with the differences that shuffled labels of candidates give.

    Parameters
    ----------
    comparison : GroupingComparison
    candidates : sequence of str
        Names of models.
    n : int
        Shuffles of each.
    seed : int
    """
    rng = np.random.default_rng(seed)
    table, shuffled = comparison.table.copy(), {}
    none, priors = comparison.models[NO_GROUPING], comparison.priors
    for name in candidates:
        found = permuted_elpd(comparison.groupings[name], none, priors, n, rng)
        shuffled[name] = found[1:]
        table.loc[table["candidate"] == name, "p_permutation"] = np.mean(found >= found[0])
    return replace(comparison, table=table, shuffled=pd.DataFrame(shuffled))


def leave_group_out(comparison: GroupingComparison, candidate: str) -> pd.DataFrame:
    """Predict each group's estimates from the other groups: groups that are not yet seen.

    Parameters
    ----------
    comparison : GroupingComparison
        With the exact engine.
    candidate : str
        Name of a model of the comparison.

    Returns
    -------
    DataFrame
        One row a group: ``group, n_creators, elpd`` (joint log density of its estimates),
        ``elpd_none`` (the same without grouping) and ``elpd_diff``. A grouping cannot know the
        mean of a group that it has not seen; what it can know is how far such a mean may lie.

    Raises
    ------
    DiagnosticsError
        If the fit without grouping failed its diagnostics.
    """
    summaries, priors = comparison.groupings[candidate], comparison.priors
    with_groups = leave_one_genre_out(comparison.models[candidate])
    none = checked_fit(summaries, engine="exact", draws=0, priors=without_grouping(priors))
    without = leave_one_genre_out(none)["elpd_joint"]
    return pd.DataFrame(
        {
            "group": with_groups["genre"],
            "n_creators": with_groups["n_creators"],
            "elpd": with_groups["elpd_joint"],
            "elpd_none": without,
            "elpd_diff": with_groups["elpd_joint"] - without,
        }
    )


def elpd_difference(first: pd.Series, second: pd.Series) -> tuple[float, float]:
    """Return the difference of two pointwise elpds, summed, and its standard error."""
    difference = np.asarray(first) - np.asarray(second)
    return float(difference.sum()), float(np.sqrt(len(difference)) * difference.std(ddof=1))


# ------------------------------------------------------------------------------ the models


def _grouping(ite_estimates, creator_features, name: str):
    """Return the grouping, merged if need be, and why it is not taken as it is."""
    grouped = create_grouping(ite_estimates, creator_features, name)
    features = creator_features.set_index("creator_id").loc[ite_estimates["creator_id"]]
    sizes = check_group_sizes(features, name, THRESHOLDS.size_skip)
    if not sizes.small:
        if len(sizes.sizes) > 1:
            return grouped, None
        reason = "there is one group only"
        return None, {"candidate": name, "reason": reason, "retried_as": None}
    reason = (
        f"{len(sizes.small)} of {len(sizes.sizes)} groups have fewer than "
        f"{THRESHOLDS.size_skip} creators, the smallest {sizes.smallest}"
    )
    merged = merge_small_groups(features[name], THRESHOLDS.size_warn).labels
    if merged.nunique() < 2:
        reason += "; merged, there is one group left"
        return None, {"candidate": name, "reason": reason, "retried_as": None}
    again = f"{name} (merged)"
    relabelled = merged.rename(again).reset_index()
    grouped = create_grouping(ite_estimates, relabelled, again)
    return grouped, {"candidate": name, "reason": reason, "retried_as": again}


def without_grouping(priors: Priors) -> Priors:
    """The same priors for a model that knows no groups."""
    return Priors(priors.mu_global, Fixed(0), priors.sigma_creator)


def checked_fit(summaries: pd.DataFrame, **how):
    """Fit a model; one that fails its diagnostics decides nothing."""
    model = fit_hierarchical_model(summaries, **how)
    check_diagnostics(model, effects=False).raise_if_failed()
    return model


def _leave_out(summaries, priors: Priors, engine: str, seed: int, quick: bool, sampling):
    """Fit a model, and predict each creator's estimate from all others: ``elpd, pit``."""
    if engine == "exact":
        model = checked_fit(summaries, engine=engine, draws=0, priors=priors)
        return model, loo_exact(model, quick=quick).pointwise.set_index("creator_id")
    model = checked_fit(summaries, engine=engine, priors=priors, random_seed=seed, **sampling)
    loo = leave_one_out(model)
    frame = loo_pit(model, loo).set_index("creator_id")
    return model, frame.assign(elpd=loo.elpd.elpd_i.values)


def _table(pointwise: pd.DataFrame, groupings) -> pd.DataFrame:
    totals = pointwise.sum().sort_values(ascending=False, kind="stable")
    best, weights = totals.index[0], stacking_weights(pointwise)
    rows = []
    for name in totals.index:
        difference, dse = elpd_difference(pointwise[name], pointwise[NO_GROUPING])
        behind, behind_dse = elpd_difference(pointwise[name], pointwise[best])
        grade = THRESHOLDS.elpd(difference, dse)
        sizes = groupings[name]["genre"].value_counts()
        rows.append(
            {
                "candidate": name,
                "n_groups": len(sizes),
                "smallest": int(sizes.min()),
                "elpd": totals[name],
                "se": np.sqrt(len(pointwise)) * pointwise[name].std(),
                "elpd_diff": difference,
                "dse": dse,
                "behind": behind,
                "behind_dse": behind_dse,
                "verdict": "worse" if difference < 0 and grade != "equal" else grade,
                "weight": weights[name],
                "p_permutation": np.nan,
            }
        )
    return pd.DataFrame(rows)


def stacking_weights(pointwise: pd.DataFrame) -> pd.Series:
    """Weights of the mixture of models that predicts the left-out estimates best (ArviZ).

    Parameters
    ----------
    pointwise : DataFrame
        Log predictive density by creator (rows) and model (columns).
    """
    import arviz as az
    import xarray as xr

    n = len(pointwise)
    results = {
        name: az.ELPDDataLOO(
            elpd=float(values.sum()),
            se=float(np.sqrt(n) * values.std()),
            p=np.nan,
            n_samples=1,
            n_data_points=n,
            scale="log",
            warning=False,
            good_k=None,
            elpd_i=xr.DataArray(values.to_numpy(), dims="creator"),
        )
        for name, values in pointwise.items()
    }
    weights = az.compare(results, method="stacking", round_to="none")["weight"]
    return weights.reindex(pointwise.columns)


# ------------------------------------------------------------------------- shuffled labels


def permuted_elpd(
    summaries: pd.DataFrame, none, priors: Priors, n: int, rng: np.random.Generator
) -> np.ndarray:
    """elpd_diff of a grouping and of `n` shuffles of its labels, all by one coarse rule.

    The rule has few nodes, the same for all shuffles: `_CREATOR_NODES` of log sigma_creator
    around its posterior without grouping, and Gauss-Legendre nodes of sigma_genre /
    (sigma_genre + s), s the standard error of a typical group's mean. It errs by hundredths of an
    elpd where labels mean nothing; since the labels as they are go by the same rule, their rank
    among the shuffles is that of an exact permutation test, however coarse the rule.

    Parameters
    ----------
    summaries : DataFrame
        From `create_grouping`.
    none : DataTree
        The fit without grouping.
    priors : Priors
        Of the grouping.
    n : int
    rng : Generator

    Returns
    -------
    ndarray, shape (1 + n,)
        First the labels as they are.
    """
    labels = summaries["genre_idx"].to_numpy(np.int64)
    sigma_creator = _creator_nodes(none)
    single = _elpd(
        summaries, np.zeros_like(labels), sigma_creator, np.zeros(1), np.zeros(1), priors
    )
    weight = 1 / (np.square(sigma_creator[len(sigma_creator) // 2]) + np.square(summaries["se"]))
    scale = np.median(1 / np.sqrt(np.bincount(labels, weight)))
    node, node_weight = np.polynomial.legendre.leggauss(_GENRE_NODES)
    t = (node + 1) / 2
    sigma_genre = scale * t / (1 - t)
    log_step = np.log(node_weight * scale / (1 - t) ** 2)
    log_prior = log_density_of(priors.sigma_genre)(sigma_genre) + log_step
    shuffles = (labels, *(rng.permutation(labels) for _ in range(n)))
    grid = sigma_creator, sigma_genre, log_prior, priors
    return np.array([_elpd(summaries, each, *grid) for each in shuffles]) - single


def _creator_nodes(none) -> np.ndarray:
    """Equidistant nodes of log sigma_creator, 1.5 standard deviations apart.

    More of them below the posterior's mean, since whatever groups explain is taken from it.
    """
    _, sigma_creator, weight = mixture(none)
    log_sigma = np.log(sigma_creator)
    mean = np.average(log_sigma, weights=weight)
    sd = np.sqrt(np.average(np.square(log_sigma - mean), weights=weight))
    low, high = _CREATOR_NODES
    return np.exp(mean + 1.5 * sd * np.arange(low, high + 1))


def _elpd(summaries, labels, sigma_creator, sigma_genre, log_prior, priors: Priors) -> float:
    """Leave-one-out on the nodes of a product rule."""
    data = Estimates.from_arrays(summaries["effect_hat"], summaries["se"], labels)
    likelihood = Likelihood(data, priors.mu_global)
    sums = likelihood.sums(sigma_creator)
    shape = len(sigma_creator), len(sigma_genre)
    inner = np.broadcast_to(sigma_genre, shape)
    log_weight, mu_mean, mu_var = likelihood.given(sums, inner)
    outer = np.log(sigma_creator) + log_density_of(priors.sigma_creator)(sigma_creator)
    log_weight = (log_weight + outer[:, None] + log_prior).ravel()
    log_weight -= logsumexp(log_weight)
    kept = log_weight > log_weight.max() - 25
    parts = np.repeat(sigma_creator, shape[1]), inner.ravel(), mu_mean.ravel(), mu_var.ravel()
    creator, genre, mean, var = (part[kept] for part in parts)
    rule = Rule(genre, creator, mean, var, np.exp(log_weight[kept]))
    by_node = Sums(*(np.repeat(part, shape[1], axis=0)[kept] for part in sums))
    centers = likelihood.centers(by_node, genre, rule.mu_global)
    log_density, _ = density_without(rule, data, centers)
    return float(-logsumexp(log_weight[kept, None] - log_density, axis=0).sum())
