"""Replications: own streams, whatever their number and the number of processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hbm.replicate import replicate, sized


def normal(rng, loc=0.0):
    return rng.normal(loc)


def test_replications_do_not_hang_on_their_number_or_on_processes(monkeypatch):
    several = replicate(normal, 6, seed=3)
    assert len(set(several)) == 6
    assert replicate(normal, 3, seed=3) == several[:3]
    assert replicate(normal, 3, seed=4) != several[:3]
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")  # one process
    assert replicate(normal, 6, seed=3) == several


def test_settings_are_handed_on():
    np.testing.assert_allclose(
        np.subtract(replicate(normal, 4, loc=10.0), replicate(normal, 4)), 10.0
    )


def test_none_is_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        replicate(normal, 0)


def test_progress_is_shown_in_a_terminal_only():
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    code = "from hbm.replicate import replicate; from test_replicate import normal;"
    command = [sys.executable, "-c", code + "replicate(normal, 3)"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    quiet = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert quiet.stdout + quiet.stderr == ""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run(command, stderr=theirs, check=True, env=env, timeout=60)
    os.close(theirs)
    shown = b""
    while b"3/3" not in shown:  # ends with an OSError where nothing is left to read
        shown += os.read(ours, 10_000)


def test_small_studies_are_asked_for_by_the_environment(monkeypatch):
    monkeypatch.delenv("HBM_STUDIES", raising=False)
    assert sized(500) == 500
    monkeypatch.setenv("HBM_STUDIES", "small")
    assert [sized(n) for n in (5, 20, 100, 500)] == [5, 10, 10, 50]
