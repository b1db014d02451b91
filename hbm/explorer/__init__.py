"""An explorer of readouts for the page: find, filter, sort and save them, without a server.

The table is kept by DataTables, whose one-file build comes with the package itables; it is
written into the page, so that nothing is fetched, from the network or from anywhere else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

#: What the page gets of each readout, in this order.
COLUMNS = (
    *("creator_id", "genre", "n_total", "plain", "plain_lower", "plain_upper"),
    *("pooled", "pooled_lower", "pooled_upper", "p_positive", "shrinkage", "verdict"),
)
_HERE = Path(__file__).parent


def creator_explorer(readouts: pd.DataFrame, *, unit: str, digits: int = 2) -> str:
    """Return an explorer of readouts as Markdown that shows on the page and not in the PDF.

    Parameters
    ----------
    readouts : DataFrame
        From `hbm.creator_readouts`, one row a creator.
    unit : str
        Unit of the effects.
    digits : int
        Decimals of what is shown.

    Returns
    -------
    str
        A raw HTML block: controls, table, its data, and the library that keeps it. One of it
        fits a page.
    """
    from itables import options  # where a page may point at another build of DataTables

    # In its texts only; as code neither occurs. Either would end or hide the script that holds it.
    library = re.sub(r"<(?=!--|/?script)", r"\\x3c", Path(options.dt_bundle).read_text("utf-8"))
    state = {"columns": COLUMNS, "rows": _rows(readouts, digits + 2)}
    state |= {"unit": unit, "digits": digits}
    html = (_HERE / "explorer.html").read_text("utf-8")
    parts = {
        "STYLE": (_HERE / "explorer.css").read_text("utf-8"),
        "DATA": json.dumps(state, ensure_ascii=False, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
        "LIBRARY": library,
        "SCRIPT": (_HERE / "explorer.js").read_text("utf-8"),
    }
    for name, text in parts.items():
        html = html.replace(f"<!-- {name} -->", text)
    fence = "`" * 8
    return f"{fence}{{=html}}\n{html}\n{fence}"


def _rows(readouts: pd.DataFrame, decimals: int) -> list[list]:
    """One list a creator; numbers rounded, and null where there is none."""
    frame = readouts.sort_values("pooled", ascending=False, na_position="last", kind="stable")
    columns = []
    for name in COLUMNS:
        values = frame[name]
        if name == "n_total":
            columns.append([None if pd.isna(n) else int(n) for n in values])
        elif pd.api.types.is_numeric_dtype(values) and name != "creator_id":
            rounded = np.round(values.astype(float), decimals)
            columns.append([None if np.isnan(x) else x for x in rounded])
        else:
            columns.append([str(text) for text in values])
    return [list(row) for row in zip(*columns, strict=True)]
