"""Lets a figure on the page tell which creator a point is; the figure itself stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from hbm.intervals import LEVEL
from hbm.plots import look
from hbm.plots.estimates import plot_shrinkage

_SCRIPT = Path(__file__).with_name("hover.js")
_STYLE = """\
.hover-note {
  position: fixed; z-index: 10; max-width: 20rem; padding: 0.3rem 0.6rem; font-size: 0.85rem;
  white-space: pre-line; pointer-events: none;
  color: #fff; background: #212529; border: 1px solid #a3abb3; border-radius: 0.3rem;
}
.hover-note:empty { display: none; }
.hover-note::after {
  content: ""; position: absolute; left: calc(var(--x) - 7px); top: calc(var(--y) - 7px);
  width: 12px; height: 12px; border: 2px solid #c8102e; border-radius: 50%;
}"""


def hover_shrinkage(
    label: str,
    plain: pd.DataFrame,
    pooled: pd.DataFrame,
    genre_means,
    *,
    unit: str = look.UNIT,
    digits: int = 2,
) -> str:
    """Return what makes a page's `plot_shrinkage` tell of its creators, as Markdown.

    Parameters
    ----------
    label : str
        The label of the cell that shows the figure drawn from the same arguments.
    plain, pooled, genre_means, unit
        As for `plot_shrinkage`.
    digits : int
        Decimals of the estimates.

    Returns
    -------
    str
        A raw HTML block, which the PDF leaves out: where each point lies in the figure, in
        shares of its width and height, and its creator's id, genre, number of users, plain and
        pooled estimate, with intervals if they are known.
    """
    fig = plot_shrinkage(plain, pooled, genre_means, unit=unit)
    fig.draw_without_rendering()
    both = plain.merge(pooled, on="creator_id", suffixes=("_plain", "_pooled"))
    both = both.sort_values("effect_hat_plain", kind="stable")
    places = fig.axes[0].transData.transform(both[["effect_hat_plain", "effect_hat_pooled"]])
    places /= fig.bbox.size
    points = [
        [round(x, 4), round(1 - y, 4), _told(row, digits)]
        for (x, y), row in zip(places.tolist(), both.to_dict("records"), strict=True)
    ]
    data = json.dumps(points, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f"```````{{=html}}\n<style>{_STYLE}</style>\n"
        f'<script type="application/json" class="hover" data-figure="{label}">{data}</script>\n'
        f'<script type="module">{_SCRIPT.read_text("utf-8")}</script>\n```````'
    )


def _told(row: dict, digits: int) -> str:
    """What is told of one creator, line by line."""
    users = row["n_total_plain"]
    head = f"{row['creator_id']} · {row['genre_plain']}"
    lines = [head if pd.isna(users) else f"{head} · n = {users:,.0f}"]
    for kind in ("plain", "pooled"):
        text = f"{kind} {row[f'effect_hat_{kind}']:.{digits}f}"
        ends = [row.get(f"ci_{end}_{kind}") for end in ("lower", "upper")]
        if None not in ends:
            text += " [{:.{d}f}, {:.{d}f}]".format(*ends, d=digits)
        lines.append(text.replace("-", "−"))
    return "\n".join([*lines[:-1], f"{lines[-1]} ({LEVEL:.0%} intervals)"])
