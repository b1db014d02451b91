"""Decide on a grouping: the playbook's decision tree, with its whole reasoning.

History proposes, the experiment disposes: candidates are shortlisted by their share of the
variance in an earlier rollout, and chosen by leave-one-out on the experiment, so that no data
are used twice. Where nothing convinces, the answer is no grouping: partial pooling toward the
platform mean. It is never no pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hbm.checks import DataError, refuse, require_columns
from hbm.estimates import extract_hbm_estimates
from hbm.grouping.candidates import (
    check_group_sizes,
    coarser_bins,
    discover_clusters,
    merge_small_groups,
)
from hbm.grouping.checks import (
    HeldOutCoverage,
    Separation,
    ShrinkageAnalysis,
    analyze_shrinkage,
    check_posterior_separation,
    held_out_coverage,
)
from hbm.grouping.compare import (
    NO_GROUPING,
    GroupingComparison,
    compare_groupings_empirical,
    elpd_difference,
    shuffle_labels,
)
from hbm.grouping.explore import explore_groupings
from hbm.grouping.thresholds import THRESHOLDS
from hbm.priors import Priors

PASS, FAIL, PERSON = "pass", "fail", "needs a person"


@dataclass(frozen=True)
class GroupingDecision:
    """What `select_grouping` decided, and why.

    Attributes
    ----------
    grouping : str or None
        The chosen candidate; None for no grouping.
    steps : DataFrame
        The way through the decision tree: ``question, answer, evidence``.
    checklist : DataFrame
        Ten points for the chosen candidate, or else for the one that came closest: ``point,
        status`` (``pass, fail`` or ``needs a person``), ``evidence``.
    candidate : str
        The candidate that the checklist is about.
    exploration : DataFrame
        From `explore_groupings`, with ``shortlisted``.
    comparison : GroupingComparison
        Of the shortlist; of the best candidate alone, for the record, where nothing was
        shortlisted.
    separation, shrinkage, coverage
        Checks of `candidate`'s model.
    summaries : DataFrame
        Effects with the decided grouping, or without.
    model : DataTree
        The fit with the decided grouping, or without.
    features : DataFrame
        The features with the columns that were made on the way: merged groups, clusters, bins.
    """

    grouping: str | None
    steps: pd.DataFrame
    checklist: pd.DataFrame
    candidate: str
    exploration: pd.DataFrame
    comparison: GroupingComparison
    separation: Separation
    shrinkage: ShrinkageAnalysis
    coverage: HeldOutCoverage
    summaries: pd.DataFrame
    model: Any
    features: pd.DataFrame


def select_grouping(
    ite_estimates: pd.DataFrame,
    creator_features: pd.DataFrame,
    candidates: Sequence[str] = (),
    *,
    history: pd.DataFrame | None = None,
    outcome: str = "lift",
    outcome_se: str | None = "lift_se",
    numeric_features: Sequence[str] = (),
    priors: Priors | None = None,
    engine: str = "exact",
    n_permutations: int = 200,
    monitoring: str | None = None,
    seed: int = 42,
    quick: bool = False,
) -> GroupingDecision:
    """Walk the decision tree from candidates to a decision.

    Parameters
    ----------
    ite_estimates : DataFrame
        One row a creator: ``creator_id, effect_hat, se``, of the experiment.
    creator_features : DataFrame
        One row a creator: ``creator_id`` and the features from before the experiment.
    candidates : sequence of str
        Columns, the easiest to explain first: of candidates that predict equally well the first
        one is taken. When empty, clusters and quartiles of `numeric_features` stand in.
    history : DataFrame, optional
        One row a creator: ``creator_id``, `outcome` and `outcome_se` from earlier data
        (`historical_lift`). When omitted the shortlist is made from the experiment itself.
    outcome, outcome_se : str
        Columns of `history`; `outcome_se` is None where the outcome is known exactly.
    numeric_features : sequence of str
        Columns, used where `candidates` is empty.
    priors, engine, quick
        As for `compare_groupings_empirical`.
    n_permutations : int
        Shuffles of the labels of each candidate that beats no grouping.
    monitoring : str, optional
        The plan for quarterly checks, such as the name of the scheduled job.
    seed : int

    Returns
    -------
    GroupingDecision

    Raises
    ------
    DataError
        If a named column is missing, a creator has no features, no group or two rows, or there
        are too few creators for any candidate.
    DiagnosticsError
        If a fit failed its diagnostics.
    ValueError
        If there are neither candidates nor numeric features.
    """
    path = _Path()
    require_columns(ite_estimates, ("creator_id", "effect_hat", "se"), "ite_estimates")
    declared = list(dict.fromkeys(candidates))
    require_columns(creator_features, ("creator_id", *declared), "creator_features")
    features, names = _candidates(creator_features, declared, list(numeric_features), seed, path)
    features, names = _large_enough(features, names, ite_estimates, path)
    if history is None:
        data, outcome, outcome_se = ite_estimates, "effect_hat", "se"
    else:
        data = _known(history, features, outcome, outcome_se, path)
    measured = ["creator_id", outcome] + ([] if outcome_se is None else [outcome_se])
    joined = data[measured].merge(features[["creator_id", *names]], on="creator_id")
    exploration = explore_groupings(joined, names, outcome, se=outcome_se)
    shortlist = _shortlist(exploration, names, path, "the experiment" if history is None else "")
    exploration["shortlisted"] = exploration["candidate"].isin(shortlist)
    comparison = compare_groupings_empirical(
        ite_estimates,
        features,
        shortlist or [exploration["candidate"][0]],
        priors=priors,
        engine=engine,
        n_permutations=0,
        seed=seed,
        quick=quick,
    )
    contenders = []
    if shortlist:
        comparison, contenders = _contenders(comparison, n_permutations, seed, path)
    chosen, findings = _first_that_passes(contenders, names, comparison, features, path)
    closest = chosen or _closest(comparison)
    checks = findings.get(closest) or _checks(comparison, features, closest)
    model = chosen or NO_GROUPING
    path.add(
        "Decision",
        chosen or NO_GROUPING,
        "monitor it every quarter" if chosen else "pool all creators toward the platform mean",
    )
    return GroupingDecision(
        grouping=chosen,
        steps=path.frame(),
        checklist=_checklist(closest, exploration, comparison, checks, monitoring),
        candidate=closest,
        exploration=exploration,
        comparison=comparison,
        separation=checks[0],
        shrinkage=checks[1],
        coverage=checks[2],
        summaries=comparison.groupings[model],
        model=comparison.models[model],
        features=features,
    )


class _Path:
    """The questions that were asked, with their answers."""

    def __init__(self):
        self.rows = []

    def add(self, question: str, answer: str, evidence: str) -> None:
        self.rows.append((question, answer, evidence))

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["question", "answer", "evidence"])


# -------------------------------------------------------------------- candidates and sizes


def _candidates(features, names: list[str], numeric: list[str], seed: int, path: _Path):
    """Take what is declared; where nothing is, cluster and cut."""
    question = "Is it known which creators should respond alike?"
    if names:
        path.add(question, "yes", f"{len(names)} candidates: {', '.join(names)}")
        return features.copy(), names
    if not numeric:
        raise ValueError("either candidates or numeric_features must be given")
    require_columns(features, numeric, "creator_features")
    made, uncut = {}, []
    for column in numeric:
        values = features[column].fillna(features[column].median())
        try:
            made[f"{column} (bins)"] = coarser_bins(values, 4)
        except DataError:  # too many equal values
            uncut.append(column)
    clusters = discover_clusters(features, numeric, seed=seed)
    evidence = f"{len(made)} features in bins, and {clusters.k} clusters by silhouette"
    made["cluster"] = clusters.labels
    path.add(question, "no", evidence + "".join(f"; {column} cannot be cut" for column in uncut))
    return features.assign(**made), list(made)


def _large_enough(features, names: list[str], ite_estimates, path: _Path):
    """Merge groups that are too small for the shortlist, among the experiment's creators."""
    features, kept, notes = features.copy(), [], []
    there = features["creator_id"].isin(ite_estimates["creator_id"])
    for name in names:
        sizes = check_group_sizes(features[there], name, THRESHOLDS.size_shortlist)
        if not sizes.small:
            kept.append(name)
            continue
        merged = merge_small_groups(features.loc[there, name], THRESHOLDS.size_shortlist)
        if merged.labels.nunique() < 2:
            notes.append(f"{name}: merged, there is one group left; dropped")
            continue
        notes.append(f"{name}: merged " + "; ".join(merged.merged["into"].unique()))
        features[f"{name} (merged)"] = merged.apply(features[name])
        kept.append(f"{name} (merged)")
    if not kept:
        raise DataError(
            f"ite_estimates: no candidate has two groups of {THRESHOLDS.size_shortlist} creators: "
            "there is nothing to select; pool without grouping, with create_grouping(…, None)"
        )
    question = f"Has every group at least {THRESHOLDS.size_shortlist} creators?"
    path.add(question, "no" if notes else "yes", "; ".join(notes))
    return features, kept


def _known(history: pd.DataFrame, features, outcome: str, outcome_se: str | None, path: _Path):
    """The history of creators whose features are known; the others are counted."""
    source = "history"
    named = [outcome] if outcome_se is None else [outcome, outcome_se]
    require_columns(history, ("creator_id", *named), source)
    twice = history["creator_id"].duplicated(keep=False)
    refuse(history, twice, "creator_id", "must be unique", source)
    known = history["creator_id"].isin(features["creator_id"]) & history[named].notna().all(axis=1)
    lacking = f"; {(~known).sum()} without features or {' or '.join(named)} set aside"
    aside = "" if known.all() else lacking
    path.add("Is there a history?", "yes", f"{outcome} of {known.sum()} creators{aside}")
    return history[known]


# ------------------------------------------------------------------ shortlist and contest


def _shortlist(exploration: pd.DataFrame, names: list[str], path: _Path, source: str):
    """Candidates whose share of the variance may exceed the threshold, in order of preference.

    Ruled out is what lies below with its whole interval: a shortlist that goes by the estimate
    alone drops good candidates by chance, and leave-one-out is the stricter judge anyway.
    """
    least = THRESHOLDS.quality_moderate
    possible = exploration[~(exploration["upper"] < least)]
    kept = [name for name in names if name in set(possible["candidate"])]
    shown = exploration if possible.empty else possible
    found = "; ".join(
        f"{row.candidate} {row.quality:.2f} [{row.lower:.2f}, {row.upper:.2f}]"
        for row in shown.head(4).itertuples()
    )
    path.add(
        f"Can any candidate explain {least:.0%} of the variance?",
        "yes" if kept else "no",
        ("" if not source else f"judged on {source} itself: ") + found,
    )
    return kept


def _contenders(comparison: GroupingComparison, n: int, seed: int, path: _Path):
    """Candidates that predict better than no grouping, by elpd and by shuffled labels."""
    table = comparison.table
    better = list(table.loc[table["verdict"].isin(["likely", "clear"]), "candidate"])
    if better and n:
        comparison = shuffle_labels(comparison, better, n, seed)
        table = comparison.table.set_index("candidate")
        better = [name for name in better if table["p_permutation"][name] < THRESHOLDS.anova_level]
    path.add(
        "Does any predict left-out creators better than no grouping?",
        "yes" if better else "no",
        "; ".join(map(_against_none, comparison.table.itertuples())),
    )
    return comparison, better


def _against_none(row) -> str:
    shuffled = (
        "" if pd.isna(row.p_permutation) else f", shuffled labels p = {row.p_permutation:.3f}"
    )
    return f"{row.candidate} {row.elpd_diff:+.1f} ± {row.dse:.1f}{shuffled}"


def _first_that_passes(contenders, names: list[str], comparison, features, path: _Path):
    """Check the contenders, the best first; equals in order of preference."""
    findings = {}
    left = list(contenders)
    while left:
        name = _favourite(left, names, comparison, path)
        findings[name] = checks = _checks(comparison, features, name)
        problems = _problems(*checks)
        path.add(f"Does {name} pass its checks?", "no" if problems else "yes", _evidence(checks))
        if not problems:
            return name, findings
        left.remove(name)
    return None, findings


def _favourite(left: list[str], names: list[str], comparison, path: _Path) -> str:
    """The best, unless others predict as well: then the one that is easiest to explain."""
    best = left[0]
    if len(left) == 1:
        return best
    equals, notes = [best], []
    for name in left[1:]:
        lead, dse = elpd_difference(comparison.pointwise[best], comparison.pointwise[name])
        notes.append(f"{name} {-lead:.1f} ± {dse:.1f}")
        if THRESHOLDS.elpd(lead, dse) == "equal":
            equals.append(name)
    order = [_as_declared(name, names) for name in equals]
    favourite = equals[order.index(min(order))]
    path.add(
        f"Is {best} ahead of all others?",
        "yes" if len(equals) == 1 else f"no: {favourite} is the easiest to explain",
        "; ".join(notes),
    )
    return favourite


def _as_declared(name: str, names: list[str]) -> int:
    """Place of a candidate among the declared ones; merged on the way, it keeps its place."""
    return names.index(name if name in names else name.removesuffix(" (merged)"))


def _closest(comparison: GroupingComparison) -> str:
    table = comparison.table
    return table.loc[table["candidate"] != NO_GROUPING, "candidate"].iloc[0]


# --------------------------------------------------------------------------------- checks


def _checks(comparison: GroupingComparison, features: pd.DataFrame, name: str):
    """Separation, shrinkage and coverage of a candidate's model."""
    model, summaries = comparison.models[name], comparison.groupings[name]
    pooled = extract_hbm_estimates(model, summaries)
    labels = summaries[["creator_id", "genre"]]
    return (
        check_posterior_separation(model, name),
        analyze_shrinkage(summaries, pooled, labels, "genre"),
        held_out_coverage(comparison.pit[name]),
    )


def _problems(separation: Separation, shrinkage: ShrinkageAnalysis, coverage) -> list[str]:
    """What disqualifies a grouping: groups that overlap, estimates that are held out in vain."""
    found = []
    if separation.grade == "weak":
        found.append("separation")
    if shrinkage.sensible is False:
        found.append("shrinkage")
    if coverage_status(coverage) == FAIL:
        found.append("coverage")
    return found


def coverage_status(coverage: HeldOutCoverage) -> str:
    """Grade a coverage: a miss that chance explains is for a person to judge."""
    if coverage.coverage >= THRESHOLDS.coverage_min:
        return PASS
    return FAIL if coverage.upper < THRESHOLDS.coverage_min else PERSON


def _evidence(checks) -> str:
    separation, shrinkage, coverage = checks
    return (
        f"separation {separation.ratio:.1f} ({separation.grade}); correlation of precision and "
        f"shrinkage {shrinkage.correlation:.2f}; coverage {_coverage_text(coverage)}"
    )


def _coverage_text(coverage: HeldOutCoverage) -> str:
    return f"{coverage.coverage:.1%} [{coverage.lower:.1%}, {coverage.upper:.1%}]"


def _checklist(name: str, exploration, comparison, checks, monitoring) -> pd.DataFrame:
    """The ten points of the playbook."""
    separation, shrinkage, coverage = checks
    declared = name if name in set(exploration["candidate"]) else name.removesuffix(" (merged)")
    explored = exploration.set_index("candidate").loc[declared]
    row = comparison.table.set_index("candidate").loc[name]
    best = -row["behind"] <= THRESHOLDS.elpd_likely and row["verdict"] in ("likely", "clear")
    separated = separation.ratio > THRESHOLDS.separation_min
    sensible = {True: PASS, False: FAIL, None: PERSON}[shrinkage.sensible]
    points = [
        ("makes sense to those who know the creators", PERSON, f"{row['n_groups']} groups"),
        (
            f"groups differ (analysis of variance, p < {THRESHOLDS.anova_level:g})",
            _status(explored["anova_p"] < THRESHOLDS.anova_level),
            f"p = {explored['anova_p']:.2g}, adjusted for {len(exploration)} candidates",
        ),
        (
            f"explains more than {THRESHOLDS.eta_min:.0%} of the variance (noise removed)",
            _status(explored["eta_corrected"] > THRESHOLDS.eta_min),
            f"eta² {explored['eta_corrected']:.2f}; with noise {explored['eta_squared']:.2f}",
        ),
        (
            f"every group has at least {THRESHOLDS.size_shortlist} creators",
            _status(row["smallest"] >= THRESHOLDS.size_shortlist),
            f"smallest {row['smallest']}",
        ),
        (
            f"predicts better than no grouping, and within {THRESHOLDS.elpd_likely:g} of the best",
            _status(best),
            f"elpd {row['elpd_diff']:+.1f} ± {row['dse']:.1f} from no grouping, "
            f"{row['behind']:.1f} from the best",
        ),
        (
            f"groups are separated (ratio > {THRESHOLDS.separation_min:g})",
            _status(separated),
            f"{separation.ratio:.1f}, {separation.grade}",
        ),
        (
            "less precise estimates shrink more",
            sensible,
            f"correlation {shrinkage.correlation:.2f}",
        ),
        (
            f"covers held-out estimates (at least {THRESHOLDS.coverage_min:.0%})",
            coverage_status(coverage),
            _coverage_text(coverage),
        ),
        ("can be explained, and is trusted", PERSON, ", ".join(separation.table["genre"])),
        (
            "is monitored every quarter",
            PASS if monitoring else PERSON,
            monitoring or "no plan given",
        ),
    ]
    return pd.DataFrame(points, columns=["point", "status", "evidence"])


def _status(passed) -> str:
    return PASS if passed else FAIL
