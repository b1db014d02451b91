"""The same computation on many random streams, in parallel, with progress in a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np


def sized(n: int) -> int:
    """Return the number of replications to run: `n`, or where $HBM_STUDIES is "small" a tenth.

    Small studies, of 10 replications at least, are for checks of the whole book that have to be
    quick; their Monte Carlo errors are larger and say so.
    """
    return max(min(n, 10), n // 10) if os.environ.get("HBM_STUDIES") == "small" else n


def replicate(
    function: Callable[..., Any],
    n: int,
    *,
    seed: int = 42,
    jobs: int | None = None,
    **settings: Any,
) -> list:
    """Call ``function(rng, **settings)`` with `n` independent generators.

    Every replication has its own stream, the same whatever their number and whatever the number
    of processes; a longer study begins with the shorter one. Progress is shown in a terminal
    only, so that a rendered page and a log stay clean.

    Parameters
    ----------
    function : callable
        Of a NumPy Generator and the settings.
    n : int
        Number of replications, at least 1.
    seed : int
    jobs : int, optional
        Number of processes; as many as there are processors when omitted. What cannot be sent to
        another process, such as a compiled model, needs 1.
    **settings
        Handed on to `function`.

    Returns
    -------
    list
        What the calls returned, in order.

    Raises
    ------
    ValueError
        If `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    streams = np.random.SeedSequence(seed).spawn(n)
    if jobs is None:
        # A process each would cost more than a short study, and workers of a worker are too many.
        jobs = min(n, joblib.cpu_count()) if "PYTEST_XDIST_WORKER" not in os.environ else 1
    calls = (joblib.delayed(_call)(function, stream, settings) for stream in streams)
    results = joblib.Parallel(n_jobs=jobs, return_as="generator")(calls)
    return list(_progress(results, n, function.__name__))


def _call(function: Callable[..., Any], stream: np.random.SeedSequence, settings: dict) -> Any:
    return function(np.random.default_rng(stream), **settings)


def _progress(results, n: int, name: str):
    if not sys.stderr.isatty():
        return results
    from tqdm import tqdm

    return tqdm(results, total=n, desc=name)
