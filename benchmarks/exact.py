"""The exact engine: from summaries to readouts, by the number of creators."""

from __future__ import annotations

from functools import partial

import pandas as pd

from benchmarks.measure import (
    SCRATCH,
    in_fresh_process,
    peak_megabytes,
    row,
    seconds_of,
)

SIZES = (100, 300, 500, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)

#: How many creators the draws of the largest platforms are asked for.
DRAWN = 500

UNITS = {"readouts": "s", "fit": "s", "draws": "s", "quadrature error": "largest"}


def rows(quick: bool):
    """Yield times, memory and errors of all sizes."""
    from hbm import simulate_summaries

    for size in (100, 1_000) if quick else SIZES:
        n_sets = 1 if quick else 10 if size == 500 else 5 if size <= 100_000 else 3
        paths = [SCRATCH / f"summaries_{size}_{seed}.parquet" for seed in range(n_sets)]
        for seed, path in enumerate(paths):
            summaries, _ = simulate_summaries(seed, n_creators_per_genre=size // 5)
            summaries.to_parquet(path)
        peak, measured = in_fresh_process(readouts, [str(path) for path in paths])
        yield row("exact", "exact engine", size, "peak memory", "MB", [peak])
        for quantity, unit in UNITS.items():
            values = [one[quantity] for one in measured]
            yield row("exact", "exact engine", size, quantity, unit, values)
        for path in paths:
            path.unlink()


def readouts(paths: list[str]) -> tuple[float, list[dict[str, float]]]:
    """Time all that readouts need: hyperparameters, moments, quantiles, P(> 0), evidence.

    Returns
    -------
    peak : float
        Megabytes that a process needs which reads a table and makes its readouts.
    measured : list of dict
        What `UNITS` names, of each table.
    """
    from hbm.exact import draw_effects

    peak, measured = 0.0, []
    for path in paths:
        summaries = pd.read_parquet(path)
        _readouts(summaries)
        peak = peak or peak_megabytes()
        idata = _fit(summaries)
        some = summaries["creator_id"].to_numpy()[:DRAWN]
        measured.append(
            {
                "readouts": seconds_of(partial(_readouts, summaries)),
                "fit": seconds_of(partial(_fit, summaries)),
                "draws": seconds_of(partial(draw_effects, idata, some, draws=2000, chains=4)),
                "quadrature error": idata.attrs["quadrature_error"],
            }
        )
    return peak, measured


def _fit(summaries: pd.DataFrame):
    from hbm import fit_hierarchical_model

    return fit_hierarchical_model(summaries, engine="exact", draws=0)


def _readouts(summaries: pd.DataFrame) -> pd.DataFrame:
    from hbm import extract_hbm_estimates

    return extract_hbm_estimates(_fit(summaries), summaries)
