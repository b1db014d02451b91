"""The command line: exit codes, messages, and files written whole or not at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hbm import creator_readouts, generate_experiment_data, simulate_quarters, simulate_summaries
from hbm.__main__ import ALERT, BAD_FIT, BAD_INPUT, BAD_OUTPUT, main
from hbm.exact import quadrature
from hbm.production.nightly import load_night

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ibis.*")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def users():
    return generate_experiment_data(3, n_creators_per_genre=4)[0]


@pytest.fixture
def table(users, tmp_path):
    path = tmp_path / "users.csv"
    users.to_csv(path, index=False)
    return path


def test_readouts_are_written(table, users, tmp_path, capsys):
    output = tmp_path / "deep" / "readouts.csv"
    assert main(["readout", str(table), "--output", str(output)]) == 0
    written = pd.read_csv(output)
    expected = creator_readouts(users)
    assert written["creator_id"].tolist() == expected["creator_id"].tolist()
    assert written["pooled"].to_numpy() == pytest.approx(expected["pooled"].to_numpy(), rel=1e-6)
    said = capsys.readouterr().out
    assert "20 creators" in said
    assert "wrong signs expected" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("creator_id,genre,group\n", "missing column revenue"),
        ("creator_id,genre,group,revenue\na,x,treatment,many\n", "must be a number"),
        ("creator_id,genre,group,revenue\na,x,placebo,1\n", "'placebo'"),
    ],
)
def test_bad_input_says_why_and_leaves_the_old_file(tmp_path, capsys, content, message):
    bad = tmp_path / "bad.csv"
    bad.write_text(content)
    output = tmp_path / "readouts.csv"
    output.write_text("yesterday's\n")
    assert main(["readout", str(bad), "--output", str(output)]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert output.read_text() == "yesterday's\n"


def test_a_missing_file_is_bad_input(tmp_path, capsys):
    assert main(["readout", str(tmp_path / "no.csv")]) == BAD_INPUT
    assert "no such file" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(table, tmp_path, monkeypatch, capsys):
    output = tmp_path / "readouts.csv"
    output.write_text("yesterday's\n")

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    assert main(["readout", str(table), "--output", str(output)]) == BAD_OUTPUT
    assert "No space left" in capsys.readouterr().err
    assert output.read_text() == "yesterday's\n"
    assert [p.name for p in tmp_path.glob("*.part")] == []


COMMANDS = {
    "readout": ["creator_id, genre, group, revenue", "--priors", "effect_hat, se"],
    "fit-priors": ["yesterday's priors stay as they are", "a second job", "--min-share"],
    "monitor": ["Exit code 1 if the grouping needs a review", "the first being the baseline"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (*COMMANDS[command], "examples:", "Exit codes: 0", "another job is at work"):
        assert text in said


def test_it_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "hbm", "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert all(command in run.stdout for command in COMMANDS)


# ---------------------------------------------------------------------- nights and quarters


@pytest.fixture(scope="module")
def summaries():
    return simulate_summaries(3, n_creators_per_genre=12)[0]


@pytest.fixture
def priors(summaries, tmp_path, capsys):
    """A folder of priors, fitted by the command."""
    summaries.to_csv(tmp_path / "night.csv", index=False)
    folder = tmp_path / "priors"
    command = ["fit-priors", str(tmp_path / "night.csv"), "--folder", str(folder), "-v"]
    assert main([*command, "--night", "monday"]) == 0
    said = capsys.readouterr()
    assert "night monday (60 creators), 5 genres, now in force" in said.out
    assert "fit-priors: no night before this one" in said.err
    assert "] fitting 60 creators" in said.err
    return folder


def test_the_record_of_a_night_is_json(summaries, tmp_path, capsys):
    summaries.to_parquet(tmp_path / "night.parquet")
    command = ["fit-priors", str(tmp_path / "night.parquet"), "--folder", str(tmp_path / "p")]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == "fit-priors: no night before this one\n"
    assert json.loads(said.out) == load_night(tmp_path / "p").record


def test_users_and_summaries_give_the_same_night(table, users, tmp_path):
    from hbm import summarize_creators

    summarize_creators(users, variance="pooled").to_csv(tmp_path / "s.csv", index=False)
    for name, source in (("a", table), ("b", tmp_path / "s.csv")):
        assert main(["fit-priors", str(source), "--folder", str(tmp_path / name)]) == 0
    a, b = (load_night(tmp_path / name) for name in "ab")
    np.testing.assert_allclose(a.nodes.genre.mean, b.nodes.genre.mean, rtol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_instant_readouts_are_written(ending, summaries, priors, tmp_path, capsys):
    today = summaries.tail(4).drop(columns="genre_idx")
    more = today.assign(creator_id="new " + today["creator_id"], genre="unheard of")
    pd.concat([today, more]).to_csv(tmp_path / "today.csv", index=False)
    output = tmp_path / f"today.{ending}"
    command = ["readout", str(tmp_path / "today.csv"), "--priors", str(priors), "--output"]
    assert main([*command, str(output)]) == 0
    said = capsys.readouterr().out
    assert "with the priors of night monday" in said
    assert "4 of them were in that night's fit, and are not counted twice" in said
    assert "genres that the night did not know: unheard of" in said
    read = pd.read_csv if ending == "csv" else pd.read_json
    found = read(output).set_index("creator_id")
    expected = creator_readouts(summaries).set_index("creator_id").loc[today["creator_id"]]
    for name in ("pooled", "pooled_lower", "p_positive"):
        np.testing.assert_allclose(found.loc[expected.index, name], expected[name], atol=1e-6)
    assert found["confidence"].between(0.5, 1).all()


def test_a_creator_the_priors_did_not_expect_is_pointed_out(summaries, priors, tmp_path, capsys):
    odd = summaries.head(3).assign(effect_hat=[0.4, 0.5, 50.0], creator_id=["x", "y", "z"])
    odd.to_csv(tmp_path / "odd.csv", index=False)
    command = ["readout", str(tmp_path / "odd.csv"), "--priors", str(priors)]
    assert main([*command, "--output", str(tmp_path / "o.csv")]) == 0
    assert "1 creators the priors did not expect: z" in capsys.readouterr().out


def test_readouts_without_priors_or_with_damaged_ones_are_bad_input(table, priors, tmp_path):
    command = ["readout", str(table), "--output", str(tmp_path / "o.csv"), "--priors"]
    assert main([*command, str(tmp_path / "none")]) == BAD_INPUT
    assert main([*command, str(priors), "--expected-share", "0.5"]) == BAD_INPUT
    (priors / "priors.json").write_text("{")
    assert main([*command, str(priors)]) == BAD_INPUT
    assert not (tmp_path / "o.csv").exists()


def _few(summaries, path, monkeypatch):
    summaries.head(10).to_csv(path, index=False)


def _missing(summaries, path, monkeypatch):
    path.unlink()


def _coarse(summaries, path, monkeypatch):
    monkeypatch.setattr(quadrature, "MAX_INTERVALS", 2)
    monkeypatch.setattr(quadrature, "FIRST_INTERVALS", (6, 6))


def _full(summaries, path, monkeypatch):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)


BAD_NIGHTS = {
    _few: (BAD_INPUT, "data are probably missing"),
    _missing: (BAD_INPUT, "no such file"),
    _coarse: (BAD_FIT, "quadrature error"),
    _full: (BAD_OUTPUT, "No space left"),
}


@pytest.mark.parametrize("spoil", BAD_NIGHTS, ids=lambda f: f.__name__.strip("_"))
def test_a_bad_night_says_so_and_what_stays(
    spoil, summaries, priors, tmp_path, capsys, monkeypatch
):
    before = {p.name: p.read_bytes() for p in priors.iterdir()}
    table = tmp_path / "night.csv"
    spoil(summaries, table, monkeypatch)
    code, reason = BAD_NIGHTS[spoil]
    assert main(["fit-priors", str(table), "--folder", str(priors)]) == code
    said = capsys.readouterr().err
    assert reason in said
    assert f"no new priors in {priors}; night monday (60 creators) stays in force" in said
    assert {p.name: p.read_bytes() for p in priors.iterdir()} == before


def test_a_first_night_that_fails_leaves_none_to_fall_back_on(tmp_path, capsys):
    folder = str(tmp_path / "priors")
    assert main(["fit-priors", str(tmp_path / "no.csv"), "--folder", folder]) == BAD_INPUT
    assert "there are none to fall back on" in capsys.readouterr().err


@pytest.fixture(scope="module")
def quarters():
    """Two quarters of one platform, and one in which nothing holds any more."""
    settings = {"structure": {"genre": 0.6}, "changes_to": {}, "changes_at": 2}
    made = simulate_quarters(7, n_quarters=3, n_creators=150, **settings)
    columns = ["creator_id", "genre", "effect_hat", "se"]
    frames = []
    for k, platform in enumerate(made):
        frame = platform.ite_estimates.assign(genre=platform.features["genre"].to_numpy())
        frames.append(frame[columns].assign(quarter=f"2025Q{k + 1}"))
    return frames


def test_monitor_has_no_alert_while_the_grouping_holds(quarters, tmp_path, capsys):
    paths = []
    for frame in quarters[:2]:
        paths.append(str(tmp_path / f"{frame['quarter'].iloc[0]}.csv"))
        frame.drop(columns="quarter").to_csv(paths[-1], index=False)
    output = tmp_path / "checks.json"
    assert main(["monitor", *paths, "--quick", "--output", str(output)]) == 0
    assert "no alert in 1 later quarters; the baseline is 2025Q1" in capsys.readouterr().out
    checks = pd.read_json(output)
    assert set(checks["quarter"]) == {"2025Q1", "2025Q2"}
    assert not checks["alert"].any()


def test_monitor_raises_an_alert_when_the_grouping_is_gone(quarters, tmp_path, capsys):
    path = tmp_path / "quarters.parquet"
    pd.concat([quarters[0], quarters[2]]).to_parquet(path)
    assert main(["monitor", str(path), "--quick"]) == ALERT
    said = capsys.readouterr().out
    assert "ALERT: 2025Q3" in said
    assert "in 1 later quarters; the baseline is 2025Q1" in said


def test_the_first_quarter_of_a_file_is_the_baseline_whatever_its_name(quarters, tmp_path, capsys):
    named = [quarters[0].assign(quarter="Q4 2024"), quarters[1].assign(quarter="Q1 2025")]
    path, output = tmp_path / "quarters.csv", tmp_path / "checks.csv"
    pd.concat(named).to_csv(path, index=False)
    assert main(["monitor", str(path), "--quick", "--output", str(output)]) == 0
    assert "the baseline is Q4 2024" in capsys.readouterr().out
    assert pd.read_csv(output)["quarter"].unique().tolist() == ["Q4 2024", "Q1 2025"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_monitor_refuses_rows_without_a_quarter_and_quarters_in_pieces(
    ending, quarters, tmp_path, capsys
):
    path, output = tmp_path / f"quarters.{ending}", tmp_path / "checks.csv"

    def said(table):
        table = table.reset_index(drop=True)
        table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
        assert main(["monitor", str(path), "--quick", "--output", str(output)]) == BAD_INPUT
        return capsys.readouterr().err

    table = pd.concat(quarters[:2], ignore_index=True)
    lost = table.assign(quarter=table["quarter"].mask(table.index.isin([0, 200])))
    assert f"quarters.{ending}: column 'quarter' must not be missing; 2 rows break it" in said(lost)
    assert "the rows of a quarter together; 1 row breaks" in said(table.iloc[np.r_[1:300, 0]])
    assert not output.exists()


def test_monitor_refuses_what_it_cannot_compare(quarters, tmp_path, capsys):
    path = tmp_path / "one.csv"
    quarters[0].drop(columns="quarter").to_csv(path, index=False)
    assert main(["monitor", str(path)]) == BAD_INPUT
    assert "missing column quarter" in capsys.readouterr().err
    assert main(["monitor", str(path), str(path)]) == BAD_INPUT


@pytest.mark.parametrize("kind", ["summaries", "folder", "pattern"])
def test_a_page_needs_one_file_of_users_and_says_so_before_anything_is_written(
    kind, users, summaries, tmp_path, capsys
):
    (tmp_path / "in").mkdir()
    table = summaries if kind == "summaries" else users
    table.to_csv(tmp_path / "in" / "table.csv", index=False)
    given = {"summaries": "in/table.csv", "folder": "in", "pattern": "in/*.csv"}[kind]
    output = tmp_path / "readouts.csv"
    command = ["readout", str(tmp_path / given), "--output", str(output)]
    assert main([*command, "--users"]) == BAD_INPUT
    assert "needs one file, with one row a user; without the page: " in capsys.readouterr().err
    assert not output.exists()
    assert main(command) == 0


def test_clusters_cannot_be_had_from_summaries_nor_from_many_files(
    users, summaries, tmp_path, capsys
):
    (tmp_path / "in").mkdir()
    users.assign(room=1).to_csv(tmp_path / "in" / "users.csv", index=False)
    summaries.to_csv(tmp_path / "summaries.csv", index=False)
    output = tmp_path / "readouts.csv"
    for given, complaint in (
        ("summaries.csv", "cannot apply to summaries"),
        ("in", "column 'room' needs one row a user, not arms"),
    ):
        command = ["readout", str(tmp_path / given), "--output", str(output)]
        assert main([*command, "--cluster", "room"]) == BAD_INPUT
        assert complaint in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("folder", ["", "{}/"], ids=["relative", "absolute"])
def test_make_readout_takes_a_table_whose_name_has_spaces(folder, tmp_path):
    """Run for real, with programs in the place of Python and Quarto that say what they get."""
    for name in ("python", "quarto"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nfor given; do echo "{name}: $given"; done\n')
        program.chmod(0o755)
    data = folder.format(tmp_path) + "my  table.csv"
    command = ["make", "--old-file=.venv/.ready", "readout", f"DATA={data}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    said = subprocess.run(
        [*command, f"PYTHON={tmp_path / 'python'}"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert f"python: {data}" in said
    assert f"quarto: data:{ROOT / data}" in said


def test_make_readout_hands_its_settings_to_the_table_and_to_its_page():
    def said(*settings):
        command = ["make", "--dry-run", "readout", "DATA=my.csv", *settings]
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
        ).stdout

    commands = said("cluster=class", "expected_share=0.5", "unit=points of the test")
    for expected in (
        '--cluster "class"',
        '-P cluster:"class"',
        '--expected-share "0.5"',
        '-P expected_share:"0.5"',
        '-P unit:"points of the test"',
    ):
        assert expected in commands
    assert "--unit" not in commands
    assert 'test -z ""' in commands
    assert 'test -z "clutser"' in said("clutser=class")
