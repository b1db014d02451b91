"""How much do the priors matter? Power scaling of prior and likelihood."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hbm.diagnostics import priors_of
from hbm.predictive import with_group, with_log_likelihood
from hbm.priors import Fixed, refuse_memory

#: Sensitivities from here on are worth a look (Kallioinen et al. 2024).
THRESHOLD = 0.05

#: What the table says of a quantity; the first two are ArviZ's words.
CONFLICT = "potential prior-data conflict"
STRONG_PRIOR = "potential strong prior / weak likelihood"
FINE = "✓"

#: Rows of the table for quantities that there are many of.
_MANY = {"mu_genre": "genre", "tau": "creator"}


def with_log_prior(idata):
    """Return the posterior with the groups ``log_prior`` and ``log_likelihood`` for ArviZ.

    The log prior holds one variable a hyperparameter that was not fixed: the levels between them
    and the data are the model, no prior. The likelihood is the integrated one, by creator given
    the genres' means.

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model` or `hbm.fit_hierarchical_model_robust`.

    Raises
    ------
    ValueError
        If the fit's priors hold a memory, which is no prior of the hyperparameters alone.
    """
    import xarray as xr

    priors = priors_of(idata)
    refuse_memory(priors, "power scaling")
    tree = with_log_likelihood(idata)
    posterior = tree["posterior"].dataset
    free = [
        name
        for name in priors.describe()
        if name in posterior and not isinstance(getattr(priors, name), Fixed)
    ]
    log_prior = xr.Dataset(
        {
            name: posterior[name].copy(
                data=getattr(priors, name).scipy().logpdf(posterior[name].values)
            )
            for name in free
        }
    )
    return with_group(tree, "log_prior", log_prior)


def prior_sensitivity(idata) -> pd.DataFrame:
    """Say how far the posterior moves when the prior, or the likelihood, counts a little more.

    The prior (of all hyperparameters together) or the likelihood is raised to a power near 1, by
    reweighting the draws; the sensitivity is the distance between the distributions before and
    after (cumulative Jensen-Shannon) for each doubling of the power (Kallioinen et al. 2024,
    ``arviz_stats.psense``).

    Parameters
    ----------
    idata : DataTree
        From `hbm.fit_hierarchical_model` or `hbm.fit_hierarchical_model_robust`.

    Returns
    -------
    DataFrame
        One row a quantity: ``quantity, n`` values, ``prior`` and ``likelihood`` (sensitivities),
        ``largest_prior`` (the hyperparameter whose prior matters most), ``worst`` and
        ``diagnosis``. Of genre means and effects the one that is most sensitive to the prior is
        shown, and named in ``worst``. The diagnosis is ArviZ's: both sensitivities at or above
        `THRESHOLD` are a potential prior-data conflict, that to the prior alone a strong prior
        or a weak likelihood. Effects have no sensitivity to the likelihood: given what all
        creators share they follow their own data, which reweighting does not change.

    Raises
    ------
    ValueError
        If the fit's priors hold a memory.
    """
    from arviz_stats import psense

    tree = with_log_prior(idata)
    hyper = list(tree["log_prior"].data_vars)
    names = [*hyper, *_MANY]
    to_prior = psense(tree, var_names=names, group="prior")
    to_likelihood = psense(tree, var_names=names, group="likelihood")
    to_each = {
        name: psense(tree, var_names=names, group="prior", group_var_names=[name]) for name in hyper
    }
    rows = []
    for name in names:
        where, worst = {}, ""
        if name in _MANY:
            where = {_MANY[name]: int(to_prior[name].values.argmax())}
            worst = str(to_prior[name].isel(where)[_MANY[name]].item())
        prior, likelihood = (float(s[name].isel(where)) for s in (to_prior, to_likelihood))
        likelihood = np.nan if name == "tau" else likelihood
        single = {which: float(s[name].isel(where)) for which, s in to_each.items()}
        rows.append(
            {
                "quantity": name,
                "n": to_prior[name].size,
                "prior": prior,
                "likelihood": likelihood,
                "largest_prior": max(single, key=single.get),
                "worst": worst,
                "diagnosis": _diagnosis(prior, likelihood),
            }
        )
    return pd.DataFrame(rows)


def _diagnosis(prior: float, likelihood: float) -> str:
    if prior < THRESHOLD:
        return FINE
    return CONFLICT if likelihood >= THRESHOLD else STRONG_PRIOR
