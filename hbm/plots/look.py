"""The one look of all figures: colours, type, helpers, and their light and dark versions.

Colours are those of Okabe and Ito (2008), which survive colour blindness; markers, order and
labels say the same as colours, so that print in gray loses nothing. Text from data (genres,
ids) is drawn as it is, never read as mathematics.
"""

from __future__ import annotations

import pickle
from base64 import b64decode, b64encode
from collections.abc import Iterable
from functools import wraps
from io import BytesIO
from textwrap import shorten

import matplotlib
import numpy as np
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

UNIT = "dollars per user"
THEMES = ("light", "dark")

PAPER, INK, SOFT, FAINT, GRID = "#ffffff", "#212529", "#5c636a", "#a3abb3", "#e3e6e9"
BLUE, ORANGE, GREEN, PURPLE = "#0068a8", "#e08a00", "#009e73", "#cc79a7"
SKY, VERMILLION, RED = "#45a8e6", "#d55e00", "#c8102e"

#: What each colour becomes on a dark page.
_DARK = {
    PAPER: "#222222",
    INK: "#e9ecef",
    SOFT: "#b3bac1",
    FAINT: "#7b848c",
    GRID: "#3c4043",
    BLUE: "#4fa3dd",
    ORANGE: "#f2ab3c",
    GREEN: "#33c296",
    PURPLE: "#e6a6ca",
    SKY: "#9ad7ff",
    VERMILLION: "#f5854a",
    RED: "#ff6b6b",
}
# 7 colours and 8 markers: no pair comes twice within 56 genres.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))


_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.6,
}


# ---------------------------------------------------------------------------------- themes


def themed(fig: Figure, theme: str) -> Figure:
    """Return a copy of a figure for a light or a dark page; the figure itself is not touched.

    Parameters
    ----------
    fig : Figure
        With the colours of this module; other grays change sides, other colours stay.
    theme : {"light", "dark"}
    """
    if theme not in THEMES:
        raise ValueError(f"unknown theme {theme!r}; known: {', '.join(THEMES)}")
    copy = pickle.loads(pickle.dumps(fig))
    if theme == "dark":
        for artist in copy.findobj():
            _darken(artist)
        for ax in copy.axes:
            for axis in (ax.xaxis, ax.yaxis):  # for ticks that do not exist yet
                had = {"color": FAINT, "labelcolor": INK, "grid_color": GRID}
                had |= {k: v for k, v in axis.get_tick_params().items() if k in had}
                axis.set_tick_params(**{k: _dark(v) for k, v in had.items()})
    return copy


def _dark(colour):
    """Return what one colour becomes on a dark page, its transparency kept."""
    *rgb, alpha = to_rgba(colour)
    found = _DARK.get(to_hex(rgb))
    if found is None and max(rgb) - min(rgb) < 0.02:  # any other gray: from white to black
        back, ink = (np.array(to_rgba(_DARK[name])[:3]) for name in (PAPER, INK))
        found = ink + (back - ink) * rgb[0]
    return to_rgba(rgb if found is None else found, alpha)


def _darken(artist) -> None:
    if isinstance(artist, Collection | Patch):
        names = ("facecolor", "edgecolor")
    elif isinstance(artist, Line2D):
        names = ("color", "markerfacecolor", "markeredgecolor")
    else:
        names = ("color",) if isinstance(artist, Text) else ()
    colours = {name: getattr(artist, f"get_{name}")() for name in names}
    for name, colour in colours.items():
        if isinstance(colour, np.ndarray) and colour.ndim == 2:
            new = [_dark(row) for row in colour]
        else:
            new = colour if to_rgba(colour)[3] == 0 else _dark(colour)
        getattr(artist, f"set_{name}")("none" if len(new) == 0 else new)


def enable_themes() -> None:
    """Let a notebook show every figure twice, for light and for dark pages.

    To be called once in a notebook. A cell that ends in a `Figure` then gives two images, in
    the formats the inline backend is set to, as Quarto's ``renderings: [light, dark]`` expects.
    Outside of a notebook it does nothing.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats
    from matplotlib_inline.config import InlineBackend

    matplotlib.rcParams["svg.hashsalt"] = "hbm"  # no random names in the files
    if not any(f.for_type(Figure) for f in shell.display_formatter.formatters.values()):
        set_matplotlib_formats(*InlineBackend.instance(parent=shell).figure_formats)
    shell.display_formatter.ipython_display_formatter.for_type(Figure, _show_themes)


def _show_themes(fig: Figure) -> None:
    """Publish both versions in the formats that the inline backend has set up."""
    from IPython import get_ipython
    from IPython.display import publish_display_data

    formatters = get_ipython().display_formatter.formatters
    writers = {mime: formatter.for_type(Figure) for mime, formatter in formatters.items()}
    light = themed(fig, "light")
    light.draw_without_rendering()  # one layout for both, found once
    light.set_layout_engine("none")
    for version in (light, themed(light, "dark")):
        data, metadata = {"text/plain": repr(fig)}, {}
        for mime, write in writers.items():
            if write is not None:
                # The size asked for, and no date, so that the same figure gives the same bytes.
                out = write(version, bbox_inches=None, metadata={"Date": None})
                data[mime], metadata[mime] = out if isinstance(out, tuple) else (out, {})
                if mime == "image/png":
                    data[mime] = _lighter(data[mime])
        publish_display_data(data, metadata)


def _lighter(image: str) -> str:
    """Give a picture (PNG in base 64) a palette: a third of its bytes, and the same to the eye."""
    from PIL import Image

    picture, out = Image.open(BytesIO(b64decode(image))).convert("RGB"), BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return b64encode(out.getvalue()).decode()


# --------------------------------------------------------------------------------- helpers


def house(draw):
    """Draw in the house look, whatever the reader's own settings are."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            fig = draw(*args, **kwargs)
            for text in fig.findobj(Text):
                text.set_parse_math(False)
        return fig

    return drawn


def subplots(rows: int = 1, cols: int = 1, *, figsize, taller: float = 1.0, **how):
    """Return a figure and its axes, an array for more than one."""
    width, height = matplotlib.rcParams["figure.figsize"]
    fig = Figure(figsize=figsize or (width, height * taller), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.07, h_pad=0.05)
    return fig, fig.subplots(rows, cols, **how)


def label(name, width: int = 26) -> str:
    """Return a name from data as a short line that a legend does not take for a private one."""
    text = shorten(str(name), width, placeholder="…") if str(name).strip() else "(blank)"
    if text == "…":
        text = str(name)[: width - 1] + "…"
    return "\u200a" + text if text.startswith("_") else text


def log_x(ax, label: str) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.set_xlabel(f"{label}, log scale")


def genre_styles(genres: Iterable) -> dict[str, tuple[str, str]]:
    """Colour and marker of each genre, by its name's place in the alphabet."""
    names = sorted({str(genre) for genre in genres})
    return {g: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, g in enumerate(names)}


def no_effect(ax, axis: str = "x") -> None:
    line = ax.axvline if axis == "x" else ax.axhline
    line(0, color=FAINT, linewidth=0.9, zorder=1)


TRUTH = {"color": RED, "linestyle": "--", "linewidth": 1.4}


def key(label: str, **how) -> Line2D:
    return Line2D([], [], label=label, **{"markersize": 6, "linewidth": 1.1, **how})


def below(fig: Figure, handles=None, labels=None, ncols: int = 4) -> None:
    """Put the legend under the axes, where it can hide nothing."""
    entries = {} if handles is None else {"handles": handles}
    entries |= {} if labels is None else {"labels": labels}
    fig.legend(loc="outside lower center", ncols=ncols, **entries)


def dots(ax, x, y, style: tuple[str, str], size: float = 14, alpha: float = 0.65, **how):
    """Draw points in a colour and a marker."""
    colour, marker = style
    how = {"linewidth": 0, "zorder": 3, **how}
    return ax.scatter(x, y, s=size, color=colour, marker=marker, alpha=alpha, **how)
