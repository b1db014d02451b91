"""The product: one readout a creator, ready to send, with what should be known about the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hbm.baselines import no_pooling_estimates
from hbm.data import (
    incomplete_creators,
    summarize_arms,
    summarize_creators,
    validate_summaries,
)
from hbm.diagnostics import Diagnostics, check_diagnostics
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates, mixture
from hbm.intervals import LEVEL, tail_probabilities
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors
from hbm.variance import variance_ratio

#: A verdict is given if the probability of the other sign is at most this.
SIGN_ERROR = tail_probabilities(LEVEL)[0]

#: Findings: arms of fewer randomised units lean on the other creators' variances.
SMALL_ARM = 10
#: Genres smaller than this lean on the platform.
SMALL_GENRE = 5
#: Treatment changes the spread of revenue if it does so by this many standard errors, and it
#: matters for a creator whose stated standard error it moves by this share.
SPREAD_Z, SPREAD_MATTERS = 4.0, 0.1
#: A creator this many predictive standard deviations from its genre's mean is an outlier.
OUTLIER_SD = 4.0
#: A sample-ratio mismatch is reported at this family-wise error rate (Fabijan et al. 2019).
SRM_LEVEL = 0.01

_VERDICTS = ("up", "down", "unclear", "not estimated")


@dataclass(frozen=True)
class ReadoutReport:
    """Everything behind a list of readouts.

    Attributes
    ----------
    readouts : DataFrame
        One row a creator; see `creator_readouts`.
    genres : DataFrame
        One row a genre; see `hbm.extract_genre_estimates`.
    sigma_creator : float
        Posterior mean of the standard deviation of the effects within a genre.
    findings : DataFrame
        One row a check of the data: ``check, status`` (``ok`` or ``look``), ``n_creators``
        concerned, ``detail``.
    summaries : DataFrame
        Plain estimates and standard errors of the creators that could be estimated.
    idata : DataTree
        The posterior.
    diagnostics : Diagnostics
        All passed, or there would be no report.
    expected_wrong_signs : float
        Expected number of creators whose verdict, up or down, has the wrong sign.
    """

    readouts: pd.DataFrame
    genres: pd.DataFrame
    sigma_creator: float
    findings: pd.DataFrame
    summaries: pd.DataFrame
    idata: Any
    diagnostics: Diagnostics
    expected_wrong_signs: float

    @property
    def verdicts(self) -> dict[str, int]:
        """Number of creators for each verdict."""
        counts = self.readouts["verdict"].value_counts()
        return {verdict: int(counts.get(verdict, 0)) for verdict in _VERDICTS}


def creator_readouts(data: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """Return one readout a creator.

    Parameters
    ----------
    data : DataFrame
        A users frame, its arms, or a summaries frame.
    **settings
        As for `readout_report`.

    Returns
    -------
    DataFrame
        One row for every creator of the table, sorted by id: ``creator_id, genre, n_treatment,
        n_control, n_total``; the plain estimate ``plain, plain_se, plain_lower, plain_upper``;
        the pooled one ``pooled, pooled_se, pooled_lower, pooled_upper``; ``p_positive``;
        ``p_wrong_sign`` = min(P(> 0), P(< 0)); ``shrinkage``, the weight of the genre in the
        pooled estimate; ``reason``, which of the two weighs more, ``own data`` or ``genre``;
        ``verdict``: ``up`` or ``down`` if ``p_wrong_sign`` is at most .025, which is the same
        as the interval excluding 0, else ``unclear``; ``not estimated`` with a ``note`` for a
        creator with fewer than two users in an arm. Effects in the unit of revenue.

    Raises
    ------
    DataError
        If the table breaks a rule.
    DiagnosticsError
        If the fit cannot be trusted.
    """
    return readout_report(data, **settings).readouts


def readout_report(
    data: pd.DataFrame,
    *,
    variance: str = "pooled",
    cluster: str | None = None,
    cluster_variance: str = "moderated",
    expected_share: float | None = None,
    priors: Priors | None = None,
    engine: str = "exact",
    random_seed: int = 42,
) -> ReadoutReport:
    """Fit the hierarchical model to a table and return the readouts with all that is behind.

    Parameters
    ----------
    data : DataFrame
        A users frame, its arms (`hbm.summarize_arms`, `hbm.arms_from_warehouse`), or a summaries
        frame.
    variance : {"pooled", "moderated", "welch"}
        Standard errors: `hbm.summarize_creators`. Summaries have theirs.
    cluster, cluster_variance
        Column of the randomised unit where that is not the user: `hbm.summarize_creators`.
    expected_share : float, optional
        Promised share of users in treatment. When given, creators whose arms do not fit it are
        reported (two-sided binomial test, Holm-adjusted).
    priors : Priors, optional
        `Priors.weakly_informative` when omitted, so that the unit does not matter.
    engine : {"exact", "nuts"}
    random_seed : int

    Returns
    -------
    ReadoutReport

    Raises
    ------
    DataError
        If the table breaks a rule.
    DiagnosticsError
        If the fit cannot be trusted.
    ValueError
        If a setting is out of its range, or cannot apply to this table.
    """
    errors = {"variance": variance, "cluster": cluster, "cluster_variance": cluster_variance}
    arms, summaries, excluded = summarized(data, **errors)
    priors = Priors.suited(summaries, priors)
    # Readouts of the exact engine need no draws; NUTS makes them anyway.
    draws = {"draws": 0} if engine == "exact" else {}
    idata = fit_hierarchical_model(
        summaries, engine=engine, priors=priors, random_seed=random_seed, **draws
    )
    diagnostics = check_diagnostics(idata)
    diagnostics.raise_if_failed()
    pooled = extract_hbm_estimates(idata, summaries, check=False)
    _, sigma_creator, weights = mixture(idata)
    sigma_creator = float(np.average(sigma_creator, weights=weights))
    genres = extract_genre_estimates(idata)
    readouts = join_readouts(summaries, pooled, excluded)
    declared = readouts["verdict"].isin(["up", "down"])
    return ReadoutReport(
        readouts=readouts,
        genres=genres,
        sigma_creator=sigma_creator,
        findings=pd.DataFrame(
            [
                _finding(
                    "fewer than two users in an arm",
                    excluded["creator_id"],
                    "set aside; listed as not estimated",
                ),
                *_findings_of_errors(data, arms, summaries, **errors),
                *_findings_of_effects(summaries, genres, sigma_creator),
                *_findings_of_shares(data if arms is None else arms, expected_share),
            ]
        ),
        summaries=summaries,
        idata=idata,
        diagnostics=diagnostics,
        expected_wrong_signs=float(readouts.loc[declared, "p_wrong_sign"].sum()),
    )


def summarized(
    data: pd.DataFrame,
    variance: str = "pooled",
    cluster: str | None = None,
    cluster_variance: str = "moderated",
) -> tuple[pd.DataFrame | None, pd.DataFrame, pd.DataFrame]:
    """Return the arms of a table, its summaries, and the creators that have none.

    Parameters
    ----------
    data : DataFrame
        A users frame, its arms, or a summaries frame, which has no arms to return.
    variance, cluster, cluster_variance
        As for `readout_report`.

    Raises
    ------
    ValueError
        If one of them is given for a summaries frame.
    """
    arms, excluded = None, pd.DataFrame(columns=["creator_id", "genre", "reason"])
    if "effect_hat" in data:
        if cluster is not None or variance != "pooled" or cluster_variance != "moderated":
            raise ValueError(
                "variance, cluster and cluster_variance cannot apply to summaries: "
                "they have their standard errors already"
            )
        summaries = validate_summaries(data)
    else:
        arms = data if "n_treatment" in data else summarize_arms(data)
        excluded = incomplete_creators(arms)
        summaries = summarize_creators(
            data if cluster else arms,
            variance=variance,
            incomplete="exclude",
            cluster=cluster,
            cluster_variance=cluster_variance,
        )
    return arms, summaries, excluded


def join_readouts(
    summaries: pd.DataFrame, pooled: pd.DataFrame, excluded: pd.DataFrame
) -> pd.DataFrame:
    """Join plain and pooled estimates, and add a row for each creator set aside."""
    plain = no_pooling_estimates(summaries)
    p_wrong_sign = np.minimum(pooled["p_positive"], 1 - pooled["p_positive"])
    direction = np.where(pooled["p_positive"] > 0.5, "up", "down")
    table = pd.DataFrame(
        {
            "creator_id": pooled["creator_id"],
            "genre": pooled["genre"],
            "n_treatment": summaries.get("n_treatment", np.nan),
            "n_control": summaries.get("n_control", np.nan),
            "n_total": pooled["n_total"],
            **_four("plain", plain),
            **_four("pooled", pooled),
            "p_positive": pooled["p_positive"],
            "p_wrong_sign": p_wrong_sign,
            "shrinkage": pooled["shrinkage"],
            "reason": np.where(pooled["shrinkage"] < 0.5, "own data", "genre"),
            "verdict": np.where(p_wrong_sign <= SIGN_ERROR, direction, "unclear"),
            "note": "",
        }
    )
    if len(excluded):
        rest = excluded.assign(
            n_total=excluded["n_treatment"] + excluded["n_control"],
            verdict="not estimated",
            note=excluded["reason"],
            reason="",
        )
        table = pd.concat([table, rest.reindex(columns=table.columns)], ignore_index=True)
    return table.sort_values("creator_id", kind="stable", ignore_index=True)


def _four(prefix: str, estimates: pd.DataFrame) -> dict[str, pd.Series]:
    names = {"": "effect_hat", "_se": "se", "_lower": "ci_lower", "_upper": "ci_upper"}
    return {prefix + suffix: estimates[column] for suffix, column in names.items()}


def _findings_of_errors(
    data, arms, summaries, variance, cluster, cluster_variance
) -> list[dict[str, Any]]:
    """Check what the standard errors rest on; also what found nothing appears."""
    rows, ids = [], summaries["creator_id"]
    if "variance_borrowed" in summaries:
        rows.append(
            _finding(
                f"no variation {'between clusters ' if cluster else ''}in an arm",
                ids[summaries["variance_borrowed"]],
                "kept; the variance comes from the other creators too",
            )
        )
    if arms is None:
        return rows
    alone = cluster_variance == "own" if cluster else variance == "welch"
    rows.append(
        _finding(
            f"fewer than {SMALL_ARM} {'clusters' if cluster else 'users'} in an arm",
            ids[_smallest_arm(data, summaries, cluster) < SMALL_ARM],
            "kept; the standard error "
            + ("is itself mostly noise" if alone else "leans on the other creators"),
        )
    )
    if variance == "pooled" and not cluster:
        rows.append(
            _finding(
                "treatment changes the spread of revenue, and the arms are unequal",
                _misstated(arms, summaries),
                'kept; compare with variance="moderated"',
            )
        )
    return rows


def _smallest_arm(data, summaries, cluster) -> np.ndarray:
    """Randomised units in the smaller arm of each creator."""
    if cluster is None:
        return summaries[["n_treatment", "n_control"]].min(axis=1).to_numpy()
    clusters = data.groupby(["creator_id", "group"], observed=True)[cluster].nunique()
    smallest = clusters.groupby("creator_id", observed=True).min()
    return smallest.reindex(summaries["creator_id"]).to_numpy()


def _findings_of_effects(summaries, genres, sigma_creator) -> list[dict[str, Any]]:
    """Check the genres, and the creators against them."""
    sizes = summaries.groupby("genre_idx")["creator_id"].transform("size")
    outliers = _outliers(summaries, genres, sigma_creator)
    return [
        _finding(
            f"genre of fewer than {SMALL_GENRE} creators",
            summaries.loc[sizes < SMALL_GENRE, "creator_id"],
            "kept; the genre's mean leans on the platform",
        ),
        _finding(
            f"plain estimate more than {OUTLIER_SD:g} predictive sd from its genre",
            summaries.loc[outliers, "creator_id"],
            "kept; normal effects may be the wrong assumption",
        ),
    ]


def _findings_of_shares(counts, expected_share) -> list[dict[str, Any]]:
    """Check the promised share of treatment, if there is a promise."""
    if expected_share is None:
        return []
    mismatch = sample_ratio_mismatch(counts, expected_share)
    return [
        _finding(
            f"arms do not fit the promised share {expected_share:g}",
            mismatch.loc[mismatch["p_holm"] < SRM_LEVEL, "creator_id"],
            "kept; find out why before trusting these experiments",
        )
    ]


def _misstated(arms: pd.DataFrame, summaries: pd.DataFrame) -> pd.Series:
    """Creators whose standard error a common variance of both arms would state wrongly."""
    estimated = arms["creator_id"].isin(summaries["creator_id"])
    ratio, z = variance_ratio(arms[estimated])
    if not abs(z) > SPREAD_Z:
        return summaries["creator_id"].head(0)
    treated, control = summaries["n_treatment"], summaries["n_control"]
    stated = (treated * ratio + control) / (treated + control) * (1 / treated + 1 / control)
    off = np.abs(np.sqrt(stated / (ratio / treated + 1 / control)) - 1)
    return summaries.loc[off > SPREAD_MATTERS, "creator_id"]


def _finding(check: str, creators: pd.Series, detail: str) -> dict[str, Any]:
    first = ", ".join(map(str, creators.head(5)))
    more = ", …" if len(creators) > 5 else ""
    return {
        "check": check,
        "status": "look" if len(creators) else "ok",
        "n_creators": len(creators),
        "detail": f"{detail}: {first}{more}" if len(creators) else "",
    }


def _outliers(summaries: pd.DataFrame, genres: pd.DataFrame, sigma_creator: float) -> np.ndarray:
    """Mark creators far outside what the fitted hierarchy expects of a creator of the genre."""
    spread = np.hypot(summaries["se"], sigma_creator)
    mean = genres["mean"].to_numpy()[summaries["genre_idx"].to_numpy(int)]
    return (np.abs(summaries["effect_hat"] - mean) > OUTLIER_SD * spread).to_numpy()


def sample_ratio_mismatch(data: pd.DataFrame, expected_share: float) -> pd.DataFrame:
    """Test whether each creator's arms fit the promised share of treatment.

    Parameters
    ----------
    data : DataFrame
        A users frame, arms or summaries.
    expected_share : float
        Promised share of users in treatment, between 0 and 1.

    Returns
    -------
    DataFrame
        One row a creator: ``creator_id, n_treatment, n_control, share, p_value`` (two-sided
        exact binomial test), ``p_holm`` (adjusted for all creators, Holm 1979).

    Raises
    ------
    ValueError
        If the share does not lie between 0 and 1, or summaries do not tell the users an arm.
    """
    if not 0 < expected_share < 1:
        raise ValueError(f"expected_share must lie between 0 and 1, got {expected_share}")
    if "effect_hat" in data and not {"n_treatment", "n_control"} <= set(data):
        raise ValueError("expected_share needs n_treatment and n_control of every summary")
    arms = data if "n_treatment" in data else summarize_arms(data)
    treated, total = arms["n_treatment"], arms["n_treatment"] + arms["n_control"]
    p_value = np.array(
        [
            stats.binomtest(int(k), int(n), expected_share).pvalue
            for k, n in zip(treated, total, strict=True)
        ]
    )
    return pd.DataFrame(
        {
            "creator_id": arms["creator_id"],
            "n_treatment": treated,
            "n_control": arms["n_control"],
            "share": treated / total,
            "p_value": p_value,
            "p_holm": holm(p_value),
        }
    )


def holm(p_value: np.ndarray) -> np.ndarray:
    """Adjust p-values for all tests made (Holm 1979)."""
    order = np.argsort(p_value)
    stepped = p_value[order] * np.arange(len(p_value), 0, -1)
    adjusted = np.empty_like(p_value)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return adjusted
