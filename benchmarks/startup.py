"""What it costs to import the package, against pandas, which it cannot do without."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import ROOT, row

CASES = {
    "pandas": "import pandas",
    "hbm": "import hbm",
    "all that exact readouts need": "from hbm import creator_readouts",
}


def rows(quick: bool):
    """Yield import times, taken in turn so that all see the same machine."""
    taken: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(2 if quick else 9):
        for case, code in CASES.items():
            taken[case].append(_seconds(code))
    for case, values in taken.items():
        yield row("import", case, 0, "import", "s", values[1:])  # the first one fills the caches


def _seconds(code: str) -> float:
    timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    done = subprocess.run(
        [sys.executable, "-c", timed], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)
