"""What a table that breaks a rule is answered with: column, rule and first offenders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: So many offenders are named.
FIRST = 5


class DataError(ValueError):
    """The table breaks a rule; the message names column, rule and first offenders."""


def require_columns(frame: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    """Raise a `DataError` unless each column is there once; it names those that are."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{source}: a pandas DataFrame is needed, got {type(frame).__name__}")
    twice = [column for column in columns if (frame.columns == column).sum() > 1]
    if twice:
        raise DataError(f"{source}: more than one column is called {', '.join(twice)}")
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns)) or "none"
        raise DataError(
            f"{source}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"columns found: {there}"
        )


def refuse(frame: pd.DataFrame, wrong, column: str, rule: str, source: str) -> None:
    """Raise if any row is marked wrong, naming the first offenders with their values."""
    wrong = np.asarray(wrong, dtype=bool)
    if wrong.any():
        named = list(dict.fromkeys(["creator_id", column]))
        raise refusal(frame.loc[wrong, named], wrong.sum(), column, rule, source)


def refusal(offenders: pd.DataFrame, count: int, column: str, rule: str, source: str) -> DataError:
    """Say that `count` rows break the rule of a column, with the first `offenders`' values."""
    shown = ", ".join(
        f"{creator!r}" + "".join(f" ({value!r})" for value in values)
        for creator, *values in offenders.drop_duplicates().head(FIRST).itertuples(index=False)
    )
    rows = "1 row breaks" if count == 1 else f"{count:,} rows break"
    return DataError(f"{source}: column '{column}' {rule}; {rows} it, first creators: {shown}")


def is_real(values: pd.Series) -> bool:
    """Whether a column holds numbers, whole or not, and neither truth values nor text."""
    types = pd.api.types
    return types.is_float_dtype(values.dtype) or types.is_integer_dtype(values.dtype)


def numbers(frame: pd.DataFrame, column: str, source: str) -> np.ndarray:
    """Return a column as floats, NaN where it is missing; raise unless it holds numbers."""
    if not is_real(frame[column]):
        dtype = frame[column].dtype
        raise DataError(f"{source}: column '{column}' must be numeric, its type is {dtype}")
    return frame[column].to_numpy(float, na_value=np.nan)
