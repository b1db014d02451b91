"""Command line: readouts, nightly priors, and a watch over the grouping.

Exit codes: 0, all went well; 1, monitor raised an alert; 2, a table or a setting is wrong; 3, the
fit cannot be trusted; 4, the output cannot be written; 5, another job is at work.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path

import pandas as pd

from hbm.checks import DataError, refuse, require_columns
from hbm.data import read_users
from hbm.diagnostics import DiagnosticsError
from hbm.files import read_table, written_whole
from hbm.grouping.candidates import create_grouping
from hbm.grouping.monitor import monitor_grouping
from hbm.learned import load_priors
from hbm.production.instant import SURPRISING, Night, instant_estimates
from hbm.production.nightly import (
    MIN_SHARE,
    NightBusyError,
    NightError,
    last_night,
    load_night,
    run_night,
)
from hbm.readout import ReadoutReport, join_readouts, readout_report, summarized
from hbm.warehouse import arms_from_warehouse

#: Exit codes, as the module says.
ALERT, BAD_INPUT, BAD_FIT, BAD_OUTPUT, BUSY = 1, 2, 3, 4, 5

#: What each error means; the first that fits counts.
_CODES = {
    NightBusyError: BUSY,
    NightError: BAD_INPUT,
    DataError: BAD_INPUT,
    FileNotFoundError: BAD_INPUT,
    ValueError: BAD_INPUT,
    DiagnosticsError: BAD_FIT,
    OSError: BAD_OUTPUT,
}

_TABLE = (
    "The table: .csv, .csv.gz or .parquet, either one row a user (creator_id, genre, group, "
    "revenue; group is treatment or control) or one row a creator (creator_id, genre, "
    "effect_hat, se). Users in Parquet, and in a folder or quoted pattern of files, may be more "
    "than fit into memory."
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        return given.run(given)
    except tuple(_CODES) as error:
        print(f"error: {error}", file=sys.stderr)
        if given.run is _fit_priors:
            _say_what_stays(given.folder)
        return next(code for kind, code in _CODES.items() if isinstance(error, kind))


# ------------------------------------------------------------------------------ the commands


def _readout(given: argparse.Namespace) -> int:
    say = _progress(given)
    say("reading the table")
    data = _load(given.data, given.cluster, given.users)
    settings = {"cluster": given.cluster, "cluster_variance": given.cluster_variance}
    if given.priors:
        if given.expected_share is not None:
            raise ValueError("--expected-share needs the full readout, without --priors")
        return _instant(given, data, settings, say)
    say("fitting")
    report = readout_report(data, expected_share=given.expected_share, **settings)
    _write(report.readouts, given.output)
    n_users = len(data) if "revenue" in data else None
    if "n_treatment" in data:
        n_users = data[["n_treatment", "n_control"]].sum().sum()
    _say(report, given.output, n_users)
    return 0


def _instant(given, data: pd.DataFrame, settings: dict, say) -> int:
    """Answer from last night's priors."""
    night = load_night(given.priors)
    _, summaries, excluded = summarized(data, **settings)
    say(f"reading out {len(summaries):,} creators with the priors of {_name(night)}")
    found = instant_estimates(night, summaries)
    readouts = join_readouts(summaries, found, excluded)
    extra = ["creator_id", "expected", "expected_sd", "surprise", "change", "confidence", "counted"]
    readouts = readouts.merge(found[extra], on="creator_id", how="left", validate="1:1")
    _write(readouts, given.output)
    counts = readouts["verdict"].value_counts()
    verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in counts.items())
    print(f"readout: {len(readouts):,} creators, with the priors of {_name(night)}: {verdicts}")
    if found["counted"].any():
        n = found["counted"].sum()
        print(f"readout: {n:,} of them were in that night's fit, and are not counted twice")
    unknown = sorted(set(found["genre"].astype(str)) - set(night.priors.memory.genres))
    if unknown:
        print(f"readout: look: genres that the night did not know: {', '.join(unknown[:5])}")
    surprising = found.loc[found["surprise"] < SURPRISING / len(found), "creator_id"]
    if len(surprising):
        first = ", ".join(map(str, surprising.head(5)))
        print(f"readout: look: {len(surprising):,} creators the priors did not expect: {first}")
    print(f"readout: written to {given.output}")
    return 0


def _fit_priors(given: argparse.Namespace) -> int:
    say = _progress(given)
    # What is amiss with yesterday's priors belongs into every log.
    last_night(given.folder, lambda message: print(f"fit-priors: {message}", file=sys.stderr))

    def table() -> pd.DataFrame:
        return summarized(_load(given.data, None))[1]

    made = run_night(
        table,
        given.folder,
        past=load_priors(given.past) if given.past else None,
        night=given.night,
        min_share=given.min_share,
        say=say,
    )
    if given.json:
        print(json.dumps(made.record, indent=1))
    else:
        genres = len(made.record["genres"])
        print(f"fit-priors: {_name(made)}, {genres:,} genres, now in force in {given.folder}")
    return 0


def _say_what_stays(folder: str) -> None:
    night = last_night(folder)
    stays = "there are none to fall back on" if night is None else f"{_name(night)} stays in force"
    print(f"fit-priors: no new priors in {folder}; {stays}", file=sys.stderr)


def _name(night: Night) -> str:
    counted = f"{night.record.get('n_creators', 0):,} creators"
    return f"night {night.record.get('night', 'unknown')} ({counted})"


def _monitor(given: argparse.Namespace) -> int:
    say = _progress(given)
    say("reading the quarters")
    quarters = _quarters(given.data)
    say(f"fitting {len(quarters)} quarters, with the grouping and without")
    report = monitor_grouping(quarters, quick=given.quick)
    if given.output:
        _write(report.table, given.output)
    for row in report.alerts.itertuples():
        print(f"monitor: ALERT: {row.quarter}, {row.check}: {row.detail}")
    alerts = "no alert" if report.ok else f"alerts: {len(report.alerts)}"
    later = len(quarters) - 1
    print(f"monitor: {alerts} in {later} later quarters; the baseline is {report.baseline}")
    if given.output:
        print(f"monitor: written to {given.output}")
    return report.exit_code


# ------------------------------------------------------------------------- tables in and out


def _load(path: str, cluster: str | None, users: bool = False) -> pd.DataFrame:
    """Return users or summaries; or only the arms, where the table may be larger than memory."""
    file = Path(path)
    summaries = file.is_file() and "effect_hat" in _columns(file)
    if users and (summaries or (glob(path) and not file.is_file())):
        raise DataError(
            f"{file.name}: the page of 'make readout' needs one file, with one row a user; "
            f"without the page: python -m hbm readout {path!r}"
        )
    if summaries:
        return _grouped(read_table(file))
    if users or (file.is_file() and (cluster or path.lower().endswith((".csv", ".csv.gz")))):
        return read_users(file)
    return arms_from_warehouse(path)


def _columns(path: Path) -> list[str]:
    """Return the names of a table's columns; a file that cannot be read has none yet."""
    try:
        if path.name.lower().endswith(".parquet"):
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(path).names
        return list(pd.read_csv(path, nrows=0).columns)
    except (ValueError, OSError, EOFError):
        return []


def _grouped(summaries: pd.DataFrame) -> pd.DataFrame:
    """Number the genres of a table with one row a creator."""
    return create_grouping(summaries, summaries, "genre")


def _quarters(paths: list[str]) -> dict[str, pd.DataFrame]:
    """Return summaries by quarter: a file each, or one file with a column ``quarter``."""
    if len(paths) == 1:
        table, name = read_table(paths[0]), Path(paths[0]).name
        require_columns(table, ["quarter", "creator_id"], name)
        quarter = table["quarter"]
        refuse(table, quarter.isna(), "quarter", "must not be missing", name)
        # Names do not sort by time ("Q4 2024", "Q1 2025"): the first in the file is the baseline.
        again = quarter.ne(quarter.shift()) & quarter.duplicated()
        rule = "must be in order of time, the rows of a quarter together"
        refuse(table, again, "quarter", rule, name)
        groups = table.groupby("quarter", sort=False, observed=True)
        return {str(q): _grouped(part.reset_index(drop=True)) for q, part in groups}
    names = [Path(path).name.split(".")[0] for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"quarters are called like their files, which must differ: {names}")
    return {name: _grouped(read_table(path)) for name, path in zip(names, paths, strict=True)}


def _write(table: pd.DataFrame, output: str) -> None:
    """Write the whole file, as CSV or JSON, or leave the old one as it is."""
    with written_whole(output) as part:
        if output.lower().endswith(".json"):
            table.to_json(part, orient="records", indent=1, double_precision=15)
        else:
            table.to_csv(part, index=False)


def _progress(given: argparse.Namespace) -> Callable[[str], None]:
    """Return a function that says what is being done, and since when: in a terminal, or a log."""
    start = time.perf_counter()

    def say(message: str) -> None:
        if given.verbose or sys.stderr.isatty():
            seconds = time.perf_counter() - start
            print(f"[{seconds:6.2f} s] {message}", file=sys.stderr, flush=True)

    return say


def _say(report: ReadoutReport, output: str, n_users: int | None) -> None:
    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in report.verdicts.items() if n)
    users = "" if n_users is None else f"{n_users:,} users, "
    print(f"readout: {users}{len(report.readouts):,} creators: {counts}")
    print(f"readout: {report.expected_wrong_signs:.2f} wrong signs expected among up and down")
    for row in report.findings.itertuples():
        if row.status != "ok":
            print(f"readout: look: {row.n_creators:,} creators, {row.check}; {row.detail}")
    print(f"readout: written to {output}")


# -------------------------------------------------------------------------------- the parser

_READOUT = f"""Fit the hierarchical model to a table and write one row a creator. With --priors,
answer at once from last night's priors, without a fit: the same answer for each creator as a fit
to all of that night and this creator.

{_TABLE}
"""

_FIT_PRIORS = f"""The nightly job: fit the model to all experiments that count, check the fit,
rehearse the readouts of the day, and put tonight's priors in the place of yesterday's. Whatever
goes wrong (a bad table, missing creators, a fit that cannot be trusted, a full disk, a kill, a
second job), yesterday's priors stay as they are, and the message says so.

{_TABLE}
"""

_MONITOR = """Compare every later quarter with the one in which the grouping was chosen: quality,
elpd, coverage, shrinkage. Exit code 1 if the grouping needs a review, so that a scheduler
notices.

The tables: .csv, .csv.gz or .parquet with one row a creator (creator_id, genre, effect_hat, se);
one file a quarter, the first being the baseline, or one file with a column quarter, in order of
time: its first quarter is the baseline, and the rows of a quarter stand together.
"""


def _command(commands, name: str, run, help: str, description: str, examples: str):
    codes = __doc__[__doc__.index("Exit codes") :]
    command = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{examples}\n\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "-v", "--verbose", action="store_true", help="show progress where there is no terminal too"
    )
    command.set_defaults(run=run)
    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hbm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    readout = _command(
        commands,
        "readout",
        _readout,
        "one readout a creator, by a fit or from last night's priors",
        _READOUT,
        "  python -m hbm readout users.csv --output readouts.csv\n"
        "  python -m hbm readout today.parquet --priors priors/ --output today.json",
    )
    readout.add_argument("data", help="the table")
    readout.add_argument(
        "--output", default="readouts.csv", help="where to write, .csv or .json (%(default)s)"
    )
    readout.add_argument(
        "--users",
        action="store_true",
        help="take nothing but one file with one row a user, as the page of 'make readout' needs",
    )
    readout.add_argument(
        "--priors", metavar="FOLDER", help="of fit-priors: answer from it, without a fit"
    )
    readout.add_argument(
        "--expected-share",
        type=float,
        metavar="SHARE",
        help="promised share of users in treatment; creators that do not fit it are reported",
    )
    readout.add_argument("--cluster", metavar="COLUMN", help="column of the randomised unit")
    readout.add_argument(
        "--cluster-variance",
        choices=("own", "moderated", "pooled"),
        default="moderated",
        help="variance between clusters: each creator's own, moderated toward the others', "
        "or pooled over all (%(default)s)",
    )
    fit = _command(
        commands,
        "fit-priors",
        _fit_priors,
        "the nightly job: fit, check, and replace the priors",
        _FIT_PRIORS,
        "  python -m hbm fit-priors experiments.parquet --folder priors/\n"
        "  python -m hbm fit-priors experiments.csv --folder priors/ --json > night.json",
    )
    fit.add_argument("data", help="the table of all experiments that count")
    fit.add_argument("--folder", default="priors", help="of the priors (%(default)s)")
    fit.add_argument("--night", help="what the night is called (today's date)")
    fit.add_argument(
        "--past", metavar="FILE", help="priors learned from older experiments, of other creators"
    )
    fit.add_argument(
        "--min-share",
        type=float,
        default=MIN_SHARE,
        metavar="SHARE",
        help="refuse a table with fewer than this share of last night's creators (%(default)s)",
    )
    fit.add_argument("--json", action="store_true", help="print the night's record as JSON")
    monitor = _command(
        commands,
        "monitor",
        _monitor,
        "does the grouping still hold in later quarters?",
        _MONITOR,
        "  python -m hbm monitor 2025Q1.csv 2025Q2.csv 2025Q3.csv --output checks.json\n"
        "  python -m hbm monitor quarters.parquet || mail -s 'review the grouping' team",
    )
    monitor.add_argument("data", nargs="+", help="the quarters in order, the baseline first")
    monitor.add_argument("--output", help="where to write every check, .csv or .json")
    monitor.add_argument("--quick", action="store_true", help="leave out on fewer nodes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
