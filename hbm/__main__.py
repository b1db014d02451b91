"""Command line: `python -m hbm readout users.csv --output readouts.csv`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd

from hbm.checks import DataError
from hbm.data import read_users
from hbm.diagnostics import DiagnosticsError
from hbm.readout import ReadoutReport, readout_report
from hbm.warehouse import arms_from_warehouse

#: Exit codes: the table or a setting is wrong; the fit cannot be trusted; nowhere to write.
BAD_INPUT, BAD_FIT, BAD_OUTPUT = 2, 3, 4


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 if all went well, else one of the above."""
    given = _parser().parse_args(arguments)
    try:
        return given.run(given)
    except (DataError, FileNotFoundError, ValueError) as error:
        code, reason = BAD_INPUT, error
    except DiagnosticsError as error:
        code, reason = BAD_FIT, error
    except OSError as error:
        code, reason = BAD_OUTPUT, error
    print(f"error: {reason}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hbm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    readout = commands.add_parser(
        "readout",
        help="one readout a creator, from a users' table",
        description=(
            "Read a users' table (.csv, .csv.gz or .parquet with the columns creator_id, genre, "
            "group, revenue; group is treatment or control), fit the hierarchical model and "
            "write one row a creator as CSV. Parquet, and a folder or quoted pattern of files, "
            "may be larger than memory. Exit code 2: the table breaks a rule, and the "
            "message says which. Exit code 3: the fit cannot be trusted. Exit code 4: the output "
            "cannot be written."
        ),
    )
    readout.add_argument("data", help="the users' table")
    readout.add_argument("--output", default="readouts.csv", help="where to write (%(default)s)")
    readout.add_argument(
        "--expected-share",
        type=float,
        metavar="SHARE",
        help="promised share of users in treatment; creators that do not fit it are reported",
    )
    readout.add_argument("--cluster", metavar="COLUMN", help="column of the randomised unit")
    readout.add_argument(
        "--cluster-variance",
        choices=("own", "pooled"),
        default="own",
        help="variance between clusters: each creator's own, or pooled over all (%(default)s)",
    )
    readout.set_defaults(run=_readout)
    return parser


def _readout(given: argparse.Namespace) -> int:
    data = _load(given.data, given.cluster)
    report = readout_report(
        data,
        cluster=given.cluster,
        cluster_variance=given.cluster_variance,
        expected_share=given.expected_share,
    )
    _write_csv(report.readouts, Path(given.output))
    n_users = len(data) if "revenue" in data else data[["n_treatment", "n_control"]].sum().sum()
    _say(report, given.output, n_users)
    return 0


def _load(path: str, cluster: str | None) -> pd.DataFrame:
    """Return users; or only the arms where these do and the table may be larger than memory."""
    one_csv = Path(path).is_file() and path.lower().endswith((".csv", ".csv.gz"))
    return read_users(path) if cluster or one_csv else arms_from_warehouse(path)


def _say(report: ReadoutReport, output: str, n_users: int) -> None:
    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in report.verdicts.items() if n)
    print(f"readout: {n_users:,} users, {len(report.readouts):,} creators: {counts}")
    print(f"readout: {report.expected_wrong_signs:.2f} wrong signs expected among up and down")
    for row in report.findings.itertuples():
        if row.status != "ok":
            print(f"readout: look: {row.n_creators:,} creators, {row.check}; {row.detail}")
    print(f"readout: written to {output}")


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write the whole file or leave the old one as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        table.to_csv(temporary, index=False)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
