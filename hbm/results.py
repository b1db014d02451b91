"""Headline numbers: the few of each chapter whose change a reviewer should see."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from typing import NamedTuple

from hbm.intervals import share_error


class Headline(NamedTuple):
    """One headline number of a chapter.

    Attributes
    ----------
    name : str
        What it is, in words; one of its kind in the chapter.
    value : float
        The number.
    mcse : float or None
        Its Monte Carlo error, in the same unit; None for an exact number, which only a change of
        code or data can move.
    unit : str
        Its unit; empty for shares, ratios and counts.
    """

    name: str
    value: float
    mcse: float | None = None
    unit: str = ""


def share_of(hits: Iterable[bool]) -> tuple[float, float]:
    """Return the share of hits and its Monte Carlo error, not 0 where all of a few are alike."""
    hits = list(hits)
    return sum(hits) / len(hits), share_error(sum(hits), len(hits))


def carried(*rows: Iterable) -> str:
    """Return headline numbers as Markdown that a page carries and does not show.

    They are read from the pages once a whole book is rendered, so that they are the numbers of
    the pages, wherever and whenever their cells were run.

    Parameters
    ----------
    *rows : tuple
        Each ``(name, value)``, with the Monte Carlo error of a simulated number, and the unit of
        one that has a unit; see `Headline`.

    Returns
    -------
    str
        A block of raw HTML, which a PDF leaves out.

    Raises
    ------
    ValueError
        If a value or an error is not finite, or an error is negative.
    """
    headlines = [Headline(*row) for row in rows]
    for name, value, mcse, _ in headlines:
        if not math.isfinite(value):
            raise ValueError(f"headline {name!r}: its value is {value}, must be finite")
        if mcse is not None and not 0 <= mcse < math.inf:
            raise ValueError(f"headline {name!r}: its mcse is {mcse}, must be finite and >= 0")
    plain = [
        [h.name, float(h.value), None if h.mcse is None else float(h.mcse), h.unit]
        for h in headlines
    ]
    data = html.escape(json.dumps(plain))
    return f'```{{=html}}\n<div hidden data-headlines="{data}"></div>\n```'
