"""Gathers the headline numbers of a rendered book and compares them with those kept in git.

A complete render ends with `gather` (`post-render` in `_quarto.yml`): what the pages carry is
written beside them, into `_output/results.csv`, or `results-small.csv` where $HBM_STUDIES is
small, and compared with the kept `results.csv`. Only `accept` (`make results`) writes the kept
file, and only what a complete render with full studies found.
"""

import html
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

KEPT = Path("results.csv")
OUTPUT = Path("_output")
FULL, SMALL = "results.csv", "results-small.csv"

#: A number has moved beyond these: Monte Carlo errors of the difference; relative, if exact.
ERRORS, RELATIVE = 4, 1e-6

CARRIED = re.compile(r'data-headlines="([^"]*)"')
KEY = ["chapter", "name", "unit"]


def gathered(pages):
    """Return what the pages carry: one row a headline number, sorted."""
    rows = [
        (page.stem, name, value, mcse, unit)
        for page in pages
        for data in CARRIED.findall(page.read_text("utf-8"))
        for name, value, mcse, unit in json.loads(html.unescape(data))
    ]
    frame = pd.DataFrame(rows, columns=["chapter", "name", "value", "mcse", "unit"])
    twice = frame[frame.duplicated(["chapter", "name"])]
    if len(twice):
        raise SystemExit(f"results: {' / '.join(twice.iloc[0, :2])} is there twice")
    return frame.astype({"value": float, "mcse": float}).sort_values(KEY, ignore_index=True)


def write(frame, path):
    """Write numbers with the digits that mean something: the error's third, if there is one."""
    text = frame.assign(
        value=[number(*row) for row in frame[["value", "mcse"]].to_numpy()],
        mcse=[f"{mcse:.3g}" if mcse == mcse else "" for mcse in frame["mcse"]],
    )
    text.to_csv(path, index=False, lineterminator="\n")


def number(value, mcse):
    if not mcse > 0:
        return f"{value:.9g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(mcse)))}f}"


def read(path):
    """Return a file of headline numbers; a missing one is empty."""
    if not Path(path).exists():
        return gathered([])
    return pd.read_csv(path, dtype={"chapter": str, "unit": str}).fillna({"unit": ""})


def changes(old, new):
    """Return the numbers that have moved, gone or come, the last of which is no fault.

    Columns: chapter, number, kept, rendered, change; and `fault`, whether it has to be accepted.
    """
    both = old.merge(new, "outer", KEY, suffixes=("_old", "_new"), indicator="where")
    change = both["value_new"] - both["value_old"]
    error = np.hypot(both["mcse_old"].fillna(0), both["mcse_new"].fillna(0))
    relative = change.abs() / both[["value_old", "value_new"]].abs().max(axis=1)
    far = np.where(error > 0, change.abs() > ERRORS * error, relative > RELATIVE)
    lone = both["where"].map({"left_only": "gone", "right_only": "new", "both": ""})
    by = [
        alone or (f"{c / e:+.1f} MCSE" if e > 0 else f"{c:+.2g}, exact")
        for alone, c, e in zip(lone, change, error, strict=True)
    ]
    table = pd.DataFrame(
        {
            "chapter": both["chapter"],
            "number": [f"{n} ({u})" if u else n for n, u in both[["name", "unit"]].to_numpy()],
            "kept": [shown(*row) for row in both[["value_old", "mcse_old"]].to_numpy()],
            "rendered": [shown(*row) for row in both[["value_new", "mcse_new"]].to_numpy()],
            "change": by,
            "fault": far | (lone == "gone"),
        }
    )
    return table[far | (lone != "")].reset_index(drop=True)


def shown(value, mcse):
    if value != value:
        return "–"
    return f"{value:.4g} ± {mcse:.2g}" if mcse > 0 else f"{value:.9g}"


def markdown(table, count):
    """Return changes as a table that reads well in a terminal and in a comment."""
    if table.empty:
        return f"None of {count} headline numbers has moved."
    return table.drop(columns="fault").to_markdown(index=False, disable_numparse=True)


def rendered(output=OUTPUT):
    """Return the file that the last complete render wrote, with full or with small studies."""
    return next((output / name for name in (FULL, SMALL) if (output / name).exists()), None)


def gather():
    """End a complete render: write its numbers beside its pages, and say what has moved."""
    files = map(Path, os.environ.get("QUARTO_PROJECT_OUTPUT_FILES", "").splitlines())
    pages = [file for file in files if file.suffix == ".html"]
    if not os.environ.get("QUARTO_PROJECT_RENDER_ALL") or not pages:
        return 0
    found = gathered(pages)
    output = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR", OUTPUT))
    for name in (FULL, SMALL):
        (output / name).unlink(missing_ok=True)
    write(found, output / (SMALL if os.environ.get("HBM_STUDIES") == "small" else FULL))
    compare(KEPT, rendered(output))
    return 0


def compare(old=KEPT, new=None):
    """Show what differs between two files; 1 if anything has to be accepted."""
    new = new or rendered()
    if not new:
        raise SystemExit("results: no complete render yet: `make book`")
    new = read(new)
    table = changes(read(old), new)
    print(f"\n{markdown(table, len(new))}\n")
    return int(table["fault"].any())


def accept():
    """Keep the numbers of the last complete render."""
    if rendered() != OUTPUT / FULL:
        raise SystemExit("results: only a complete render with full studies is kept: `make book`")
    compare()
    KEPT.write_bytes(rendered().read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit({"gather": gather, "compare": compare, "accept": accept}[sys.argv[1]](*sys.argv[2:]))
