"""From users to summaries: DuckDB through Ibis on files, and pandas where pandas can."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from benchmarks.measure import SCRATCH, in_fresh_process, peak_megabytes, row, seconds_of

#: Users a file, and files.
FILE, FILES = 20_000_000, 5
CREATORS = 100_000

#: Creators of very different size in no order, 20 genres, and revenue that is mostly $0. Made
#: by DuckDB, since no other engine here writes so much so fast; hashes give the same table on
#: any machine.
_TABLE = """
COPY (
    SELECT
        'c' || lpad(creator::VARCHAR, 7, '0') AS creator_id,
        'genre ' || (creator % 20) AS genre,
        CASE WHEN hash(i, 1) % 2 = 0 THEN 'treatment' ELSE 'control' END AS "group",
        CASE WHEN hash(i, 2) % 10 < 7 THEN 0.0
             ELSE -16 * ln((1 + hash(i, 3) % 1000000) / 1000001.0) END::DOUBLE AS revenue
    FROM (
        SELECT i, floor({creators} * pow((hash(i, 0) % 1000000) / 1000000.0, 2))::BIGINT AS creator
        FROM range({start}, {stop}) AS t(i)
    )
) TO '{path}' (FORMAT parquet)
"""


def rows(quick: bool):
    """Yield times and memory of both ways on one file, and of DuckDB on all of them."""
    n_users, creators = (50_000, 500) if quick else (FILE, CREATORS)
    folder = SCRATCH / "users"
    folder.mkdir(parents=True, exist_ok=True)
    making = in_fresh_process(make, str(folder), n_users, creators)
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    one, everything = str(folder / "part-0.parquet"), str(folder / "*.parquet")
    yield row("users", "files", FILES * n_users, "size on disk", "MB", [size / 1e6])
    yield row("users", "files", FILES * n_users, "making them", "s", [making])
    effects = {}
    for case, function, path, number in (
        ("DuckDB through Ibis", by_duckdb, one, n_users),
        ("pandas", by_pandas, one, n_users),
        ("DuckDB through Ibis", by_duckdb, everything, FILES * n_users),
    ):
        seconds, memory, effect = in_fresh_process(function, path)
        if not np.isclose(effect, effects.setdefault(number, effect), rtol=1e-9):
            raise AssertionError(f"{case} finds another mean effect of {number:,} users")
        yield row("users", case, number, "users to summaries", "s", [seconds])
        yield row("users", case, number, "peak memory", "MB", [memory])
    shutil.rmtree(folder)


def make(folder: str, n_users: int, creators: int) -> float:
    """Write the users' files and return the seconds it took."""
    import time

    import duckdb

    start = time.perf_counter()
    for part in range(FILES):
        path = Path(folder) / f"part-{part}.parquet"
        span = {"start": part * n_users, "stop": (part + 1) * n_users}
        duckdb.execute(_TABLE.format(creators=creators, path=path, **span))
    return time.perf_counter() - start


def by_duckdb(path: str) -> tuple[float, float, float]:
    """Return seconds, peak megabytes and the mean effect of summarising without loading."""
    from hbm import arms_from_warehouse

    return _measured(lambda: arms_from_warehouse(path))


def by_pandas(path: str) -> tuple[float, float, float]:
    """Return seconds, peak megabytes and the mean effect of loading and summarising."""
    from hbm import read_users, summarize_arms

    return _measured(lambda: summarize_arms(read_users(path)))


def _measured(arms) -> tuple[float, float, float]:
    from hbm import summarize_creators

    effect = summarize_creators(arms(), variance="pooled", incomplete="exclude")["effect_hat"]
    peak = peak_megabytes()
    seconds = seconds_of(
        lambda: summarize_creators(arms(), variance="pooled", incomplete="exclude"), times=2
    )
    return seconds, peak, float(np.mean(effect))
