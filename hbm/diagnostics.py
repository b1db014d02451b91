"""Can this posterior be trusted as a computation? Convergence checks that can raise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from hbm.gaussian import Estimates, Hyper, creator_moments, genre_moments
from hbm.priors import Priors
from hbm.student import conditional_means, nodes_for, student_draws

#: The rules a fit has to keep: Vehtari et al. (2021) for R-hat and effective sample sizes.
MAX_RHAT = 1.01
MIN_ESS_PER_CHAIN = 400
MIN_EBFMI = 0.3

#: Largest quadrature error of an exact fit: of the log evidence, and of the mean and standard
#: deviation of each hyperparameter in units of its standard deviation.
MAX_QUADRATURE_ERROR = 1e-6

#: The same for a crossed fit, whose integral has four dimensions. It is less than what 4,000
#: independent draws would give: 1/sqrt(4,000) of a standard deviation.
MAX_LATTICE_ERROR = 1e-2

HYPERPARAMETERS = ("mu_global", "sigma_genre", "sigma_creator")


class DiagnosticsError(RuntimeError):
    """A fit failed its diagnostics; the message lists every rule it broke."""


@dataclass(frozen=True)
class Diagnostics:
    """What `check_diagnostics` found.

    For an exact fit the table has the columns ``n`` and ``quadrature_error``, and what belongs
    to sampling is 0 or missing.

    Attributes
    ----------
    table : DataFrame
        One row a quantity (``mu_global``, ``tau``, ``E[tau | hyper]``, …): ``n`` values,
        ``max_rhat``, ``min_ess_bulk``, ``min_ess_tail`` and the worst value's name, ``worst``.
    divergences : int
        Divergent transitions after warm-up.
    max_tree_depth_hits : int
        Transitions that were cut off at the largest tree depth.
    min_ebfmi : float
        Smallest energy Bayesian fraction of missing information over chains.
    failures : tuple of str
        Every rule that was broken; empty for a good fit.
    """

    table: pd.DataFrame
    divergences: int
    max_tree_depth_hits: int
    min_ebfmi: float
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every rule was kept."""
        return not self.failures

    def raise_if_failed(self) -> None:
        """Raise `DiagnosticsError` if a rule was broken."""
        if self.failures:
            raise DiagnosticsError("the fit failed its diagnostics: " + "; ".join(self.failures))


def check_diagnostics(idata, *, effects: bool = True) -> Diagnostics:
    """Check a fit: R-hat, effective sample sizes, divergences, tree depth, energy.

    The rules hold for the hyperparameters, the genre means, every tau and every
    E[tau | hyperparameters]. The last are needed because taus drawn exactly given the
    hyperparameters look well mixed even where the hyperparameters are stuck. In a robust fit
    the hyperparameters include nu, and the expectation is given the genre means too, which are
    sampled there.

    The draws of an exact fit are independent, so R-hat would say nothing: what can go wrong is
    the grid, and its error is checked instead.

    Parameters
    ----------
    idata : DataTree
        From `fit_hierarchical_model`.
    effects : bool
        False leaves the creators out, tau and its expectations: quick, for studies of many fits.

    Returns
    -------
    Diagnostics

    Raises
    ------
    ValueError
        If a sampled fit has a single chain or fewer than 4 draws: then nothing can be checked.
    """
    if "quadrature_errors" in idata.attrs:
        limit = MAX_LATTICE_ERROR if "lattice" in idata.children else MAX_QUADRATURE_ERROR
        return check_quadrature(idata.attrs["quadrature_errors"], limit)
    posterior = idata["posterior"].dataset
    n_chains, n_draws = posterior.sizes["chain"], posterior.sizes["draw"]
    if n_chains < 2 or n_draws < 4:
        raise ValueError(f"diagnostics need 2 chains and 4 draws, got {n_chains} and {n_draws}")
    table = _convergence_table(_monitored(idata, effects))
    failures = _table_failures(table, MIN_ESS_PER_CHAIN * n_chains)

    stats = idata["sample_stats"].dataset
    divergences = int(stats["diverging"].sum())
    hits = int(stats["reached_max_tree_depth"].sum()) if "reached_max_tree_depth" in stats else 0
    ebfmi = _min_ebfmi(stats["energy"].values)
    if divergences:
        failures.append(f"{divergences} divergent transitions")
    if hits:
        failures.append(f"{hits} transitions reached the largest tree depth")
    if not ebfmi > MIN_EBFMI:
        failures.append(f"E-BFMI {ebfmi:.2f} is not above {MIN_EBFMI}")
    return Diagnostics(table, divergences, hits, ebfmi, tuple(failures))


def check_quadrature(errors: dict[str, float], limit: float) -> Diagnostics:
    """Return the diagnostics of a fit by quadrature, from the error of each quantity."""
    table = pd.DataFrame({"n": 1, "quadrature_error": errors}).rename_axis("quantity")
    failures = tuple(
        f"quadrature error of {name} is {error:.1e}, not below {limit}"
        for name, error in errors.items()
        if not error <= limit
    )
    return Diagnostics(table, 0, 0, np.nan, failures)


def hyper_draws(posterior) -> Hyper:
    """Return the hyperparameters of a posterior dataset, each of shape ``(chain * draw,)``.

    Where each genre has its own, sigma_creator has the shape ``(chain * draw, genre)``.
    """
    hyper = Hyper(*(posterior[name].values.reshape(-1) for name in HYPERPARAMETERS))
    if "sigma_by_genre" not in posterior:
        return hyper
    own = posterior["sigma_by_genre"].values
    return hyper._replace(sigma_creator=own.reshape(-1, own.shape[-1]))


def estimates_of(idata) -> Estimates:
    """Return the data a posterior was fitted to, from its ``observed_data`` group."""
    constant = idata["constant_data"].dataset
    data = Estimates.from_arrays(
        idata["observed_data"]["effect_hat"].values,
        constant["se"].values,
        constant["genre_idx"].values,
        covariates=constant["covariates"].values if "covariates" in constant else None,
    )
    if "prior_parameters" not in idata.attrs:
        return data
    return data.remembering(priors_of(idata).memory, idata["posterior"].dataset["genre"].values)


def priors_of(idata) -> Priors:
    """Return the priors that a posterior was fitted with."""
    return _parsed(idata.attrs["prior_parameters"])


@lru_cache(maxsize=8)
def _parsed(parameters: str) -> Priors:
    return Priors.from_parameters(json.loads(parameters))


def _monitored(idata, effects: bool = True):
    """Posterior with E[tau | hyperparameters] added, without what is constant by design."""
    if not effects:
        return idata["posterior"].dataset.drop_vars(["tau", *idata.attrs["fixed"]], errors="ignore")
    posterior, data = idata["posterior"].dataset, estimates_of(idata)
    if "nu" in posterior:
        means = conditional_means(data, student_draws(posterior), nodes_for(data))
    else:
        hyper = hyper_draws(posterior)
        means = creator_moments(data, genre_moments(data, hyper), hyper.sigma_creator).mean
    shape = (posterior.sizes["chain"], posterior.sizes["draw"], -1)
    monitored = posterior.assign(
        {"E[tau | hyper]": (("chain", "draw", "creator"), data.unsort(means).reshape(shape))}
    )
    return monitored.drop_vars(list(idata.attrs["fixed"]))


def _convergence_table(monitored) -> pd.DataFrame:
    """Worst R-hat and effective sample sizes of each variable."""
    import arviz as az

    rhat = az.rhat(monitored)
    bulk, tail = az.ess(monitored, method="bulk"), az.ess(monitored, method="tail")
    rows = {}
    for name in monitored.data_vars:
        worst = rhat[name].fillna(np.inf)
        where = worst.argmax(...) if worst.ndim else {}
        label = "" if not where else str(worst.isel(where)[worst.dims[0]].item())
        rows[name] = {
            "n": worst.size,
            "max_rhat": float(worst.max()),
            "min_ess_bulk": float(bulk[name].fillna(0).min()),
            "min_ess_tail": float(tail[name].fillna(0).min()),
            "worst": label,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("quantity")


def _table_failures(table: pd.DataFrame, min_ess: float) -> list[str]:
    failures = []
    for name, row in table.iterrows():
        if not row["max_rhat"] < MAX_RHAT:
            failures.append(f"R-hat of {name} is {row['max_rhat']:.3f}, not below {MAX_RHAT}")
        for kind in ("bulk", "tail"):
            ess = row[f"min_ess_{kind}"]
            if not ess > min_ess:
                failures.append(f"{kind} ESS of {name} is {ess:.0f}, not above {min_ess:.0f}")
    return failures


def _min_ebfmi(energy: np.ndarray) -> float:
    """Smallest E-BFMI over chains (Betancourt 2017, section 6.1)."""
    import arviz as az

    return float(np.min(az.bfmi(energy)))
