"""The command line: exit codes, messages, and files written whole or not at all."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from hbm import creator_readouts, generate_experiment_data
from hbm.__main__ import BAD_INPUT, BAD_OUTPUT, main


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


def test_help_teaches():
    run = subprocess.run(
        [sys.executable, "-m", "hbm", "readout", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "creator_id, genre, group, revenue" in " ".join(run.stdout.split())
