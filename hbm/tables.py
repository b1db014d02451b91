"""Finished frames as Markdown tables, which become real tables on the page and in the PDF."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Mapping

import numpy as np
import pandas as pd

#: Characters that Markdown would read as markup inside a cell or a sentence.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|$~^@&!\"'])")

#: A column asks for no more room than this many characters; longer text wraps.
_WIDEST = 40


def escape(text: object) -> str:
    """Return text that shows as it is: ids and genres come from data and may be anything."""
    return _MARKUP.sub(r"\\\1", re.sub(r"[^\S\N{NO-BREAK SPACE}]+", " ", str(text)))


class Unbroken(str):
    """Text of numbers, which stays on one line and may stand in a sentence or in a table."""

    def __new__(cls, text: str):
        return super().__new__(cls, text.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}"))

    def _repr_markdown_(self) -> str:
        # An inline expression would otherwise show the repr, in which such a space is "\xa0".
        return escape(self)


def interval_text(estimate: float, lower: float, upper: float, digits: int = 2) -> Unbroken:
    """Return ``estimate [lower, upper]``, the one way the book writes an interval."""
    return Unbroken(f"{estimate:.{digits}f} [{lower:.{digits}f}, {upper:.{digits}f}]")


def error_text(value: float, error: float) -> Unbroken:
    """Return ``value ± error`` in any unit, with the two leading digits of the error."""
    digits = 1 - math.floor(math.log10(error)) if error > 0 else 3
    return Unbroken(" ± ".join(f"{round(x, digits):,.{max(digits, 0)}f}" for x in (value, error)))


def markdown_table(
    frame: pd.DataFrame,
    digits: int | Mapping[str, int] = 3,
    rename: Mapping[str, str] | None = None,
) -> str:
    """Return a frame as a Markdown table.

    Parameters
    ----------
    frame : DataFrame
        What to show; the index is left out.
    digits : int or mapping
        Decimals of the columns with fractions, for all or by column.
    rename : mapping, optional
        Headings by column; a column without one shows its name with spaces for underscores.

    Returns
    -------
    str
        Text columns left, numbers right; missing values as an en dash.
    """
    rename = rename or {}
    by_column = digits if isinstance(digits, Mapping) else {}
    default = 3 if by_column else digits
    columns = []
    for name in frame.columns:
        values = frame[name]
        head = escape(rename.get(name, str(name).replace("_", " ")))
        cells = [_cell(value, by_column.get(name, default)) for value in values]
        # In a wide table the columns share the page in proportion to these dashes.
        dashes = "-" * min(_WIDEST, max(3, *map(len, [*cells, *head.split()])))
        numeric = pd.api.types.is_numeric_dtype(values) and values.dtype != bool
        columns.append([head, dashes + ":" if numeric else ":" + dashes, *cells])
    lines = zip(*columns, strict=True)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_link(frame: pd.DataFrame, name: str, text: str) -> str:
    """Return a link that saves a frame as CSV, as Markdown that shows on the page only.

    The file is within the link, so that there is nothing to fetch; meant for some hundred rows.
    """
    data = b64encode(frame.to_csv(index=False, float_format="%.6g").encode()).decode()
    link = f'<p><a download="{name}" href="data:text/csv;base64,{data}">{text}</a></p>'
    return f"```{{=html}}\n{link}\n```"


def _cell(value: object, digits: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:,.{digits}f}".replace("-", "−")
    # A value and its error stay on one line of a narrow column.
    return escape(value).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
