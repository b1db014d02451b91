"""Careful timing: warm, repeated, in a fresh process; and the rows that results are made of."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]

#: Tables that a benchmark makes lie here while it runs; Git ignores them.
SCRATCH = ROOT / "data" / "generated" / "bench"

#: A row: what was measured, of what size (creators or users), and the median, smallest and
#: largest of `n` measurements.
COLUMNS = ["part", "case", "size", "quantity", "unit", "median", "smallest", "largest", "n"]


def row(part: str, case: str, size: int, quantity: str, unit: str, values: Sequence[float]) -> dict:
    """Return a row of the results; without any value its numbers are missing."""
    values = np.asarray(values, float)
    some = values if len(values) else np.array([np.nan])
    summary = np.median(some), some.min(), some.max(), len(values)
    return dict(zip(COLUMNS, (part, case, size, quantity, unit, *summary), strict=True))


def seconds_of(call: Callable[[], Any], *, at_least: float = 0.5, times: int = 3) -> float:
    """Return the least time a call takes, warm: what else a machine does can only add to it.

    Repeated at least so many `times`, and for so many seconds in all.
    """
    call()
    taken: list[float] = []
    while len(taken) < times or sum(taken) < at_least:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def peak_megabytes() -> float:
    """Return the largest memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # the other measure is inherited from the process that started this one
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1000
    in_bytes = sys.platform == "darwin"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if in_bytes else 1e3)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a new process; arguments and result as JSON can hold them."""
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as function; "
        "result = function(*json.loads(sys.argv[1])); print(); print(json.dumps(result))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Describe the machine, and what it was busy with when the benchmark began."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    libraries = ("numpy", "scipy", "pandas", "pymc", "nutpie", "duckdb")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.partition(":")[2] for x in info.read_text().splitlines() if "model name" in x]
        if names:
            return names[0].strip()
    return platform.processor() or platform.machine()


def write(rows: list[dict], folder: Path) -> None:
    """Write results to four digits: more are noise, and a diff should show what changed."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "results.csv", index=False, float_format="%.4g")
