"""The readout of a hurdle or count model: effects in dollars (or counts) per user."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from hbm.diagnostics import check_diagnostics
from hbm.intervals import LEVEL, tail_probabilities
from hbm.revenue.families import PAYMENTS, Counts, Gamma, Payers
from hbm.revenue.simulate import ARMS, split_effect


def extract_revenue_estimates(
    idata: xr.DataTree, arms: pd.DataFrame, *, smearing: bool = True, check: bool = True
) -> pd.DataFrame:
    """Return each creator's effect in dollars per user, and where it comes from.

    Parameters
    ----------
    idata : DataTree
        From `fit_revenue_model`.
    arms : DataFrame
        The statistics it was fitted to.
    smearing : bool
        With lognormal payments, take the ratio of mean payment to exp(mean logarithm) from the
        payments (Duan 1983) instead of exp(sd² / 2), which holds for a lognormal tail only.
    check : bool
        Refuse a fit that fails `check_diagnostics`.

    Returns
    -------
    DataFrame
        One row a creator: ``creator_id, genre, effect_hat`` (posterior mean), ``se``, ``ci_lower,
        ci_upper`` (equal-tailed 95% interval), ``n_total, p_positive``, and of the parts
        ``more_payers`` and ``more_per_payer``, which add up to the effect, mean, ``*_lower`` and
        ``*_upper``; dollars per user.

    Raises
    ------
    DiagnosticsError
        If the fit failed its diagnostics.
    ValueError
        If the posterior belongs to other creators.
    """
    if check:
        for name in ("payers", "payments"):
            check_diagnostics(idata[name], effects=False).raise_if_failed()
    parts = dict(
        zip(("more_payers", "more_per_payer"), draw_dollars(idata, arms, smearing), strict=True)
    )
    columns = _summary(sum(parts.values()))
    for name, drawn in parts.items():
        part = _summary(drawn)
        columns[name] = part["effect_hat"]
        columns |= {f"{name}_{end}": part[f"ci_{end}"] for end in ("lower", "upper")}
    return _frame(arms, columns)


def extract_count_estimates(
    idata: xr.DataTree, table: pd.DataFrame, *, check: bool = True
) -> pd.DataFrame:
    """Return each creator's effect on the mean count per user, from `fit_count_model`.

    Parameters
    ----------
    idata : DataTree
    table : DataFrame
        The count table it was fitted to.
    check : bool
        Refuse a fit that fails `check_diagnostics`.

    Returns
    -------
    DataFrame
        Estimates: ``creator_id, genre, effect_hat, se, ci_lower, ci_upper, n_total,
        p_positive``, counts per user.
    """
    if check:
        check_diagnostics(idata, effects=False).raise_if_failed()
    by = table.groupby("creator_id", observed=True, sort=True)
    creators = by["genre"].first().reset_index().assign(n_total=by["n_users"].sum().to_numpy())
    _require_same(idata, creators)
    mean = Counts.mean(linear_predictor(idata), None)
    return _frame(creators, _summary(mean[..., 1] - mean[..., 0]))


def draw_dollars(
    idata: xr.DataTree, arms: pd.DataFrame, smearing: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Draw both parts of each creator's effect, dollars per user.

    Parameters
    ----------
    idata, arms, smearing
        As for `extract_revenue_estimates`.

    Returns
    -------
    more_payers, more_per_payer : ndarray, shape (draw, creator)
    """
    for name in ("payers", "payments"):
        _require_same(idata[name], arms)
    share = Payers.mean(linear_predictor(idata["payers"]), None)
    eta = linear_predictor(idata["payments"])
    family = PAYMENTS[idata.attrs["payments"]]
    if family is not Gamma and smearing:
        paid = Gamma.of(arms)
        mean = np.exp(eta)
        factor = paid.total.sum() / np.einsum("dca,ca->d", mean, paid.n)
        mean *= factor[:, None, None]
    else:
        spread = idata["payments"]["posterior"]["spread"].values.ravel()
        mean = family.mean(eta, spread[:, None, None])
    return split_effect(share, mean)


def linear_predictor(idata: xr.DataTree) -> np.ndarray:
    """Return the draws of each arm on the scale of the model, shape (draw, creator, arm)."""
    posterior = idata["posterior"].dataset
    level, effect = (
        posterior[name].values.reshape(-1, posterior.sizes["creator"], 1)
        for name in ("level", "effect")
    )
    return level + ARMS * effect


def _summary(drawn: np.ndarray) -> dict[str, np.ndarray]:
    lower, upper = np.quantile(drawn, tail_probabilities(LEVEL), axis=0)
    return {
        "effect_hat": drawn.mean(axis=0),
        "se": drawn.std(axis=0, ddof=1),
        "ci_lower": lower,
        "ci_upper": upper,
        "p_positive": (drawn > 0).mean(axis=0),
    }


def _frame(creators: pd.DataFrame, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    if "n_total" in creators:
        n_total = creators["n_total"]
    else:
        n_total = creators["n_treatment"] + creators["n_control"]
    first = {name: columns.pop(name) for name in ("effect_hat", "se", "ci_lower", "ci_upper")}
    return pd.DataFrame(
        {
            "creator_id": creators["creator_id"].to_numpy(),
            "genre": creators["genre"].to_numpy(),
            **first,
            "n_total": n_total.to_numpy(),
            **columns,
        }
    )


def _require_same(idata: xr.DataTree, creators: pd.DataFrame) -> None:
    fitted = idata["posterior"].dataset["creator"].values
    if not np.array_equal(fitted, creators["creator_id"].to_numpy()):
        raise ValueError("the posterior belongs to other creators than the statistics")
