"""From users to arms where the users lie: in files larger than memory, or in a warehouse.

The table is reduced to the moments of the creators' arms by one grouped aggregation that runs in
the engine (DuckDB for files; any other through Ibis). Only these moments are loaded.
"""

from __future__ import annotations

import os
import sys
from glob import glob
from pathlib import Path
from typing import Any

import pandas as pd

from hbm.checks import FIRST, DataError, refusal, require_columns
from hbm.data import GROUPS, USER_COLUMNS, arrange_arms

_KEYS = ["creator_id", "genre", "group"]


def arms_from_warehouse(table: Any) -> pd.DataFrame:
    """Reduce users to the moments of each creator's two arms without loading them.

    The checks of a users frame are made on what the one aggregation returns, with the same
    errors; the offenders they name are the first by id. Only a ``user_id``, where there is one,
    takes a second pass. Variances are the engine's ``var_samp``, which DuckDB and Spark update
    about the running mean [1]_, so that revenue far from 0 loses no digits.

    Parameters
    ----------
    table : ibis.Table, str or Path
        One row a user, with the columns ``creator_id, genre, group, revenue``: an Ibis table of
        any backend, or a file, folder or pattern (``"users/*.parquet"``) of ``.parquet``,
        ``.csv`` or ``.csv.gz`` files, which DuckDB reads. Of a folder all such files count, in
        its folders too, but for those whose path in it has a name that begins with ``.`` or
        ``_``, unless that names a partition (``_day=1``).

    Returns
    -------
    DataFrame
        What `summarize_arms` returns; genres are numbered in the order of their names.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If the table breaks a rule of `validate_users`, or a file is not what its ending says.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983). Algorithms for computing the sample variance. The
       American Statistician 37, 242-247.
    """
    if not isinstance(table, str | Path):
        return _arms(table, "users")
    import duckdb

    name = Path(table).name
    try:
        return _arms(_read_files(table, name), name)
    except duckdb.Error as error:
        raise DataError(f"{name}: the files cannot be read: {error}") from error


def _read_files(pattern: str | Path, name: str):
    """Return files as one table of a DuckDB that lives as long as the table."""
    import ibis

    if Path(pattern).is_dir():
        files = _files_below(Path(pattern))
    else:
        files = sorted(filter(os.path.isfile, glob(str(pattern), recursive=True)))
    if not files:
        raise FileNotFoundError(f"no such file: {pattern}")
    kinds = {_kind(path) for path in files}
    if len(kinds) > 1 or None in kinds:
        raise DataError(
            f"{name}: known endings are .csv, .csv.gz and .parquet, CSV and Parquet not mixed"
        )
    if all(Path(path).stat().st_size == 0 for path in files):
        raise DataError(f"{name}: the file is empty")
    engine = ibis.duckdb.connect()
    engine.raw_sql("SET enable_progress_bar = false")
    if kinds == {"parquet"}:
        return engine.read_parquet(files, union_by_name=True)
    # As text, so that ids stay what they are and a wrong number can be named.
    dialect = {"header": True, "delim": ",", "quote": '"', "nullstr": ""}
    return engine.read_csv(files, all_varchar=True, union_by_name=True, **dialect)


def _files_below(folder: Path) -> list[str]:
    """Return the tables in a folder, without what engines and editors keep beside them."""
    tables = [path for path in folder.rglob("*") if path.is_file() and _kind(path)]
    below = [path.relative_to(folder) for path in tables]
    return sorted(str(folder / path) for path in below if not any(map(_is_hidden, path.parts)))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) and "=" not in name


def _kind(path: str | Path) -> str | None:
    name = str(path).lower()
    if name.endswith(".parquet"):
        return "parquet"
    return "csv" if name.endswith((".csv", ".csv.gz")) else None


def _arms(table, source: str) -> pd.DataFrame:
    import ibis

    if not isinstance(table, ibis.Table):
        kind = type(table).__name__
        raise DataError(f"{source}: an Ibis table or a path is needed, got {kind}")
    require_columns(pd.DataFrame(columns=table.columns), USER_COLUMNS, source)
    revenue = _as_number(table, source)
    # Neither NaN nor an infinity may reach the moments: some engines refuse them.
    finite = ibis.ifelse(_is_finite(revenue), revenue, None)
    moments = {
        "n": lambda users: users.count(),
        "n_finite": lambda users: users.revenue.count(),
        "mean": lambda users: users.revenue.mean(),
        "var": lambda users: users.revenue.var(how="sample"),
    }
    cells = table.mutate(revenue=finite).group_by(_KEYS).aggregate(**moments).to_pandas()
    # Numbered once: every step that follows would look up all ids again.
    cells = cells.infer_objects().astype({"creator_id": "category"})
    _check(cells, table, revenue, source)
    genre = cells.drop_duplicates("creator_id").set_index("creator_id")["genre"]
    by_arm = cells.set_index(["creator_id", "group"])[["n", "mean", "var"]]
    return arrange_arms(by_arm, genre)


def _as_number(table, source: str):
    """Return revenue as doubles; text that is no number becomes null."""
    revenue = table.revenue
    kind = revenue.type()
    if kind.is_string():
        # Not the bare column: DuckDB 2.0 has the CSV reader cast that, and stops at other text.
        return revenue.nullif("").try_cast("float64")
    if not (kind.is_floating() or kind.is_integer() or kind.is_decimal()):
        raise DataError(f"{source}: column 'revenue' must be numeric, its type is {kind}")
    return revenue.cast("float64")


def _is_finite(revenue):
    """Compare, since not every backend knows what is infinite; NaN is larger than all or false."""
    return revenue.abs() <= sys.float_info.max


def _check(cells: pd.DataFrame, table, revenue, source: str) -> None:
    """Check the cells (creator, genre and group) as `validate_users` checks the users."""
    if cells.empty:
        raise DataError(f"{source}: the table has no rows")
    for column in _KEYS:
        _refuse_cells(cells, cells[column].isna(), column, "must not be missing", source)
    unknown = ~cells["group"].isin(GROUPS)
    _refuse_cells(cells, unknown, "group", f"must be one of {GROUPS}", source)
    if (cells["n_finite"] < cells["n"]).any():
        if table.revenue.type().is_string():
            _refuse_rows(table, revenue.isnull(), "revenue", "must be a number", source)
        wrong = revenue.isnull() | ~_is_finite(revenue)
        _refuse_rows(table, wrong, "revenue", "must be finite", source)
    pairs = cells[["creator_id", "genre"]].drop_duplicates()
    twice = pairs[pairs["creator_id"].duplicated(keep=False)].assign(n=1)
    rule = "must be the same for all users of a creator"
    _refuse_cells(twice, twice["n"] > 0, "genre", rule, source)
    if "user_id" in table.columns:
        rule = "must not repeat within a creator"
        seen = table.group_by(["creator_id", "user_id"]).aggregate(n=lambda users: users.count())
        _refuse_groups(seen.filter(seen.n > 1), "user_id", rule, source)


def _refuse_cells(cells: pd.DataFrame, wrong, column: str, rule: str, source: str) -> None:
    """Raise if any cell is marked wrong; the rows that count are its users."""
    if wrong.any():
        named = list(dict.fromkeys(["creator_id", column]))
        cells = cells[wrong].sort_values(named)
        raise refusal(cells[named], int(cells["n"].sum()), column, rule, source)


def _refuse_rows(table, wrong, column: str, rule: str, source: str) -> None:
    """Raise if any row is marked wrong, by a query of its own."""
    rows = table.filter(wrong)
    groups = rows.group_by(["creator_id", column]).aggregate(n=lambda users: users.count())
    _refuse_groups(groups, column, rule, source)


def _refuse_groups(groups, column: str, rule: str, source: str) -> None:
    """Raise if there is any group of rows, `n` of them in each."""
    count = groups.n.sum().to_pandas()
    if pd.notna(count) and count:
        first = groups.order_by(["creator_id", column]).limit(FIRST).to_pandas()
        raise refusal(first[["creator_id", column]], int(count), column, rule, source)
