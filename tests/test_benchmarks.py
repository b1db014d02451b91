"""The committed table of results is whole, and `make bench` can make it anew."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import exact, measure, nuts, users

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"


def complaints(results, machine):
    """What is wrong with a table of results."""
    if list(results.columns) != measure.COLUMNS:
        yield f"columns {list(results.columns)}"
        return
    if results.duplicated(["part", "case", "size", "quantity"]).any():
        yield "a row stands twice"
    measured = results[results["n"] > 0]
    if not np.isfinite(measured[["median", "smallest", "largest"]]).all(axis=None):
        yield "a number is missing"
    if not (measured["smallest"] <= measured["median"]).all():
        yield "a median lies below the smallest"
    if not (measured["median"] <= measured["largest"]).all():
        yield "a median lies above the largest"
    if set(results["part"]) != {"import", "exact", "users", "nuts"}:
        yield f"parts {sorted(set(results['part']))}"
    if not {"processor", "cores", "memory_gb", "load_at_start", "pymc"} <= set(machine):
        yield "the machine is not described"


@pytest.fixture(scope="module")
def results():
    return pd.read_csv(FOLDER / "results.csv")


@pytest.fixture(scope="module")
def machine():
    return json.loads((FOLDER / "machine.json").read_text("utf-8"))


def test_the_committed_table_is_whole(results, machine):
    assert not list(complaints(results, machine))


def test_it_is_that_of_a_full_run(results):
    by_part = {part: rows for part, rows in results.groupby("part")}
    assert tuple(by_part["exact"]["size"].unique()) == exact.SIZES
    assert set(by_part["users"]["size"]) == {users.FILE, users.FILE * users.FILES}
    assert list(by_part["nuts"]["case"].unique()) == [nuts.DEFAULT, nuts.CENTERED, nuts.SKETCH]
    fits = by_part["nuts"].query("quantity == 'R-hat'")
    assert (fits["n"] >= 10).all()


def test_a_broken_table_is_noticed(results, machine):
    twice = pd.concat([results, results.iloc[:1]])
    upside_down = results.rename(columns={"smallest": "largest", "largest": "smallest"})
    for broken, complaint in (
        (twice, "a row stands twice"),
        (results.assign(median=np.nan), "a number is missing"),
        (results[results["part"] != "nuts"], "parts"),
        (upside_down, "columns"),
        (upside_down[measure.COLUMNS], "a median lies"),
    ):
        assert any(complaint in found for found in complaints(broken, machine))
    assert list(complaints(results, {}))


def test_a_row_summarises_its_values():
    row = measure.row("nuts", "sketch", 500, "sampling", "s", [3.0, 1.0, 2.0])
    assert list(row) == measure.COLUMNS
    assert list(row.values())[5:] == [2.0, 1.0, 3.0, 3]
    empty = measure.row("nuts", "sketch", 500, "ESS", "smallest", [])
    assert empty["n"] == 0
    assert np.isnan(empty["median"])


def test_times_are_warm_and_the_least_of_several(monkeypatch):
    now, waits = [0], [1, 8, 4, 6, 2]

    def call():
        now[0] += waits.pop(0)

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert measure.seconds_of(call, at_least=0) == 4
    assert waits == [2]
    waits[:] = [1, 8, 4, 6, 2, 3]
    assert measure.seconds_of(call, at_least=20) == 2
    assert waits == [3]


def test_memory_is_that_of_the_process_alone():
    """Not what the process that started it had held."""
    ballast = np.ones(60_000_000)
    here = measure.peak_megabytes()
    fresh = measure.in_fresh_process(measure.peak_megabytes)
    assert here > ballast.nbytes / 1e6
    assert fresh < 300


def fit(divergences=0, rhat=1.001, seconds=2.0):
    return {
        "creators": 500,
        "compiling": 1.0,
        "sampling": seconds,
        "ess": 1000.0,
        "ess_per_second": 1000 / seconds,
        "rhat": rhat,
        "divergences": divergences,
        "failed": nuts.has_failed(divergences, rhat),
    }


def test_failed_fits_do_not_count_as_slow(monkeypatch):
    fits = [fit(), fit(divergences=1, seconds=0.1), fit(rhat=1.011, seconds=0.1), fit(rhat=np.nan)]
    monkeypatch.setattr(nuts, "in_fresh_process", lambda *_: fits)
    rows = pd.DataFrame(nuts.rows(quick=False)).query("case == @nuts.SKETCH").set_index("quantity")
    assert rows.loc["failed", "median"] == 0.75
    assert rows.loc["ESS per second", ["median", "n"]].tolist() == [500, 1]
    assert rows.loc["ESS per second, failures overlooked", "n"] == 4
    monkeypatch.setattr(nuts, "in_fresh_process", lambda *_: fits[1:])
    rows = pd.DataFrame(nuts.rows(quick=False)).query("case == @nuts.SKETCH").set_index("quantity")
    assert rows.loc["ESS per second", "n"] == 0


@pytest.mark.slow
def test_everything_runs(tmp_path):
    """All parts at tiny sizes; its numbers say nothing, so it may not write the real table."""
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--output" in refused.stderr
    subprocess.run([*command, "--output", tmp_path], cwd=ROOT, check=True, timeout=500)
    results = pd.read_csv(tmp_path / "results.csv")
    machine = json.loads((tmp_path / "machine.json").read_text("utf-8"))
    assert not list(complaints(results, machine))
    assert not measure.SCRATCH.exists()
