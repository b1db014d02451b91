"""Command line: `python -m benchmarks` measures everything and writes the table of results."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from benchmarks import exact, nuts, startup, users
from benchmarks.measure import SCRATCH, machine, write

PARTS = {"import": startup, "exact": exact, "users": users, "nuts": nuts}


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write `results.csv` and `machine.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that everything runs"
    )
    parser.add_argument("--only", choices=PARTS, help="measure one part alone")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent,
        metavar="FOLDER",
        help="where to write (benchmarks)",
    )
    given = parser.parse_args(arguments)
    if (given.quick or given.only) and given.output == parser.get_default("output"):
        parser.error("--quick and --only need an --output of their own: the table is of one run")
    SCRATCH.mkdir(parents=True, exist_ok=True)
    described, rows = machine(), []
    try:
        for name in [given.only] if given.only else PARTS:
            start = time.perf_counter()
            rows += list(PARTS[name].rows(given.quick))
            print(f"bench: {name} took {time.perf_counter() - start:.0f} s", file=sys.stderr)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    write(rows, given.output)
    (given.output / "machine.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    print(f"bench: {given.output / 'results.csv'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
