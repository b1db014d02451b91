"""NUTS: the default fit, the plan's sketch, and the best ordinary fit, on the same data sets.

Compared is how many effective draws a second of sampling gives of the quantity that mixes worst,
among the hyperparameters, the genre means and all taus. Compiling is timed apart. A fit with
divergent transitions or an R-hat above 1.01 has failed, however fast it was.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from unittest import mock

import numpy as np
from tqdm import tqdm

from benchmarks.measure import in_fresh_process, row

HYPER = ["mu_global", "sigma_genre", "sigma_creator"]
MAX_RHAT = 1.01

DEFAULT, CENTERED, SKETCH = "default (marginal)", "all centred, nutpie", "the sketch"


def rows(quick: bool):
    """Yield the rows of all contenders."""
    n_sets = 1 if quick else 10
    for case in (DEFAULT, CENTERED, SKETCH):
        measured = in_fresh_process(fits, case, n_sets, quick)
        size = measured[0]["creators"]
        good = [fit for fit in measured if not fit["failed"]]

        def of(name, chosen):
            return [fit[name] for fit in chosen]

        for quantity, unit, values in (
            ("failed", "share of fits", [np.mean(of("failed", measured))]),
            ("divergences", "transitions", of("divergences", measured)),
            ("R-hat", "largest", of("rhat", measured)),
            ("compiling", "s", of("compiling", measured)),
            ("sampling", "s", of("sampling", measured)),
            ("ESS", "smallest", of("ess", good)),
            ("ESS per second", "1/s", of("ess_per_second", good)),
            ("ESS per second, failures overlooked", "1/s", of("ess_per_second", measured)),
        ):
            yield row("nuts", case, size, quantity, unit, values)


def fits(case: str, n_sets: int, quick: bool) -> list[dict]:
    """Fit the data sets with the seeds 0, 1, …, after a first one that only warms up."""
    from hbm import simulate_summaries

    fit = {DEFAULT: _default, CENTERED: _centered, SKETCH: _sketch}[case]
    shape = {"n_creators_per_genre": 5} if quick else {}
    length = {"draws": 50, "tune": 50} if quick else {"draws": 2000, "tune": 1000}
    fit(simulate_summaries(1000, **shape)[0], draws=10, tune=10)
    seeds = tqdm(range(n_sets), desc=case, disable=None)  # shown in a terminal only
    return [_measured(fit, simulate_summaries(seed, **shape)[0], length) for seed in seeds]


def _measured(fit, summaries, length: dict[str, int]) -> dict:
    import arviz as az

    start = time.perf_counter()
    with _stopwatch() as compiling:
        tree = fit(summaries, **length)
    sampling = time.perf_counter() - start - sum(compiling)
    posterior = tree["posterior"].dataset[[*HYPER, "mu_genre", "tau"]]
    ess = float(az.ess(posterior, method="bulk").min().to_array().min())
    rhat = float(az.rhat(posterior).max().to_array().max())
    divergences = int(tree["sample_stats"]["diverging"].sum())
    return {
        "creators": len(summaries),
        "compiling": sum(compiling),
        "sampling": sampling,
        "ess": ess,
        "ess_per_second": ess / sampling,
        "rhat": rhat,
        "divergences": divergences,
        "failed": has_failed(divergences, rhat),
    }


def has_failed(divergences: int, rhat: float) -> bool:
    """Say whether a fit cannot be used."""
    return bool(divergences or not rhat <= MAX_RHAT)


@contextmanager
def _stopwatch():
    """Note what of `pm.sample` is not sampling: compiling before, and packing up afterwards."""
    import pymc as pm

    compiling, sample = [], pm.sample

    def timed(*arguments, **how):
        start = time.perf_counter()
        tree = sample(*arguments, **how)
        taken = time.perf_counter() - start
        compiling.append(taken - tree["posterior"].attrs["sampling_time"])
        return tree

    with mock.patch("pymc.sample", timed):
        yield compiling


def _default(summaries, **length):
    from hbm import fit_hierarchical_model

    return fit_hierarchical_model(summaries, **length)


def _centered(summaries, **length):
    from hbm import fit_hierarchical_model

    return fit_hierarchical_model(summaries, parameterization="centered", **length)


def _sketch(summaries, **length):
    """The classical sketch: every effect an offset, PyMC's own sampler."""
    import pymc as pm

    genre_idx, n_genres = summaries["genre_idx"].to_numpy(), summaries["genre_idx"].nunique()
    with pm.Model():
        mu_global = pm.Normal("mu_global", mu=0, sigma=1)
        sigma_genre = pm.HalfNormal("sigma_genre", sigma=1)
        genre_offset = pm.Normal("genre_offset", mu=0, sigma=1, shape=n_genres)
        mu_genre = pm.Deterministic("mu_genre", mu_global + sigma_genre * genre_offset)
        sigma_creator = pm.HalfNormal("sigma_creator", sigma=1)
        creator_offset = pm.Normal("creator_offset", mu=0, sigma=1, shape=len(summaries))
        tau = pm.Deterministic("tau", mu_genre[genre_idx] + sigma_creator * creator_offset)
        observed, se = summaries["effect_hat"].to_numpy(), summaries["se"].to_numpy()
        pm.Normal("obs", mu=tau, sigma=se, observed=observed)
        return pm.sample(
            **length,
            chains=4,
            random_seed=42,
            target_accept=0.9,
            nuts_sampler="pymc",
            progressbar=False,
            quiet=True,
            compute_convergence_checks=False,
        )
