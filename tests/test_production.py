"""Instant readouts are the full refit's; on every fault yesterday's night stays as it is."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats

from hbm import files
from hbm.checks import DataError
from hbm.diagnostics import DiagnosticsError
from hbm.estimates import effect_cdf, extract_hbm_estimates
from hbm.exact import quadrature
from hbm.learned import PriorsFileError, learn_priors, save_priors
from hbm.model import fit_hierarchical_model
from hbm.production import instant, nightly
from hbm.production.instant import Night, instant_estimates
from hbm.production.nightly import (
    NightBusyError,
    NightError,
    fit_night,
    last_night,
    load_night,
    run_night,
    save_night,
)
from hbm.production.study import (
    ESTIMATORS,
    RANKED,
    confidence_table,
    production_study,
    run_instant_sbc,
    score_study,
)
from hbm.sbc import sbc_verdicts
from hbm.studies import simulate_summaries

#: Probability of K Monte Carlo errors: as rarely does a right readout fail its calibration here.
LEVEL = 1 - 2 * stats.norm.sf(K)

SAID = ["effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage"]


@pytest.fixture(scope="module")
def summaries():
    return simulate_summaries(3, n_creators_per_genre=12)[0]


@pytest.fixture(scope="module")
def night(summaries):
    return fit_night(summaries, night="monday")


def refit(night, frame):
    """Estimates of a full fit to a frame, with the priors that the night began with."""
    fit = fit_hierarchical_model(
        frame, engine="exact", draws=0, priors=replace(night.priors, memory=None)
    )
    return extract_hbm_estimates(fit, frame), fit


def assert_same(found, expected, tolerance=1e-6):
    for name in SAID:
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance, err_msg=name)


# ------------------------------------------------------------------------- instant readouts


def test_a_new_creator_gets_what_a_refit_with_it_would_say(summaries):
    before, new = summaries.drop(index=17).reset_index(drop=True), summaries.iloc[[17]]
    night = fit_night(before)
    expected, _ = refit(night, pd.concat([before, new], ignore_index=True))
    assert_same(instant_estimates(night, new), expected.iloc[[-1]])


def test_a_creator_of_the_night_gets_what_the_fit_says(summaries, night):
    """Its data are in the priors: they are taken out, and then count once."""
    found = instant_estimates(night, summaries)
    assert found["counted"].all()
    assert_same(found, refit(night, summaries)[0])


def test_the_prior_without_a_creator_is_that_of_a_night_without_it(summaries, night):
    new = summaries.iloc[[17]]
    without = fit_night(
        summaries.drop(index=17).reset_index(drop=True), past=replace(night.priors, memory=None)
    )
    columns = ["expected", "expected_sd", "surprise", *SAID]
    found, expected = (instant_estimates(n, new)[columns] for n in (night, without))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_creator_with_more_data_enters_with_the_new_data_only(summaries, night):
    updated = summaries.copy()
    updated.loc[17, ["effect_hat", "se"]] = 1.4, 0.11
    found = instant_estimates(night, updated.iloc[[17]])
    assert_same(found, refit(night, updated)[0].iloc[[17]])


def test_counting_twice_would_be_noticed(summaries, night):
    forgetful = replace(night, counted=night.counted.iloc[:0])
    found = instant_estimates(forgetful, summaries)
    assert np.abs(found["effect_hat"] / refit(night, summaries)[0]["effect_hat"] - 1).max() > 1e-3


def test_a_genre_never_seen_is_a_draw_around_the_platform(summaries, night):
    new = pd.DataFrame({"creator_id": ["x"], "genre": ["new"], "effect_hat": [2.0], "se": [0.5]})
    frame = pd.concat([summaries, new.assign(genre_idx=5)], ignore_index=True)
    assert_same(instant_estimates(night, new), refit(night, frame)[0].iloc[[-1]])


def test_past_batches_are_part_of_the_night(summaries):
    past = learn_priors(fit_hierarchical_model(summaries, engine="exact", draws=0))
    later = simulate_summaries(4, n_creators_per_genre=5)[0]
    later["creator_id"] = "later " + later["creator_id"].astype(str)
    night = fit_night(later, past=past)
    fit = fit_hierarchical_model(later, engine="exact", draws=0, priors=past)
    assert_same(instant_estimates(night, later), extract_hbm_estimates(fit, later))


def test_one_genre_is_the_platform(summaries):
    one = summaries[summaries["genre_idx"] == 0]
    night = fit_night(one)
    assert_same(instant_estimates(night, one), refit(night, one)[0])


def test_order_and_company_do_not_matter(summaries, night):
    shuffled = summaries.sample(frac=1, random_state=1)
    one_by_one = pd.concat(
        [instant_estimates(night, shuffled.iloc[[k]]) for k in range(5)], ignore_index=True
    )
    together = instant_estimates(night, shuffled).iloc[:5]
    pd.testing.assert_frame_equal(together, one_by_one, rtol=1e-8)


def test_blocks_and_threads_do_not_matter(summaries, night, monkeypatch):
    whole = instant_estimates(night, summaries)
    monkeypatch.setattr(instant, "_BLOCK", 7 * len(night.nodes.weights))
    pd.testing.assert_frame_equal(instant_estimates(night, summaries), whole, rtol=1e-8)


def test_ids_are_known_whether_text_or_numbers(summaries):
    numbered = summaries.assign(creator_id=range(len(summaries)))
    night = fit_night(numbered)
    assert instant_estimates(night, numbered.assign(creator_id=numbered.index.astype(str)))[
        "counted"
    ].all()


def test_confidence_is_the_probability_of_being_nearer(summaries, night):
    found = instant_estimates(night, summaries)
    expected, fit = refit(night, summaries)
    plain = summaries["effect_hat"].to_numpy()
    below = effect_cdf(fit, (plain + expected["effect_hat"].to_numpy()) / 2)
    nearer = np.where(expected["effect_hat"] < plain, below, 1 - below)
    np.testing.assert_allclose(found["confidence"], nearer, atol=1e-6)
    np.testing.assert_allclose(found["change"], expected["effect_hat"] - plain, atol=1e-6)
    # Of one normal it is Phi(|change| / 2 sd).
    assert found["confidence"].between(0.5, 1).all()


def test_surprise_is_the_tail_of_leaving_one_out(summaries, night):
    from hbm.exact.loo import loo_exact

    pit = loo_exact(refit(night, summaries)[1]).pointwise["pit"]
    found = instant_estimates(night, summaries)["surprise"]
    np.testing.assert_allclose(found, 2 * np.minimum(pit, 1 - pit), atol=1e-5)


def test_bad_summaries_are_refused(summaries, night):
    with pytest.raises(DataError, match="'se' must be greater than 0"):
        instant_estimates(night, summaries.assign(se=0.0))
    with pytest.raises(DataError, match="missing column genre"):
        instant_estimates(night, summaries.drop(columns="genre"))
    with pytest.raises(ValueError, match="unknown method"):
        instant_estimates(night, summaries, method="guess")


# --------------------------------------------------------------------- the night, on the disk


def on_disk(folder):
    """Names and contents of all that lies in a folder, but for the lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != nightly.LOCK}


@pytest.fixture
def yesterday(summaries, tmp_path):
    """A folder with a night in it, and what lies there."""
    run_night(summaries, tmp_path / "priors", night="yesterday")
    return tmp_path / "priors"


def test_a_night_comes_back_as_it_was(night, tmp_path):
    saved = save_night(night, tmp_path)
    loaded = load_night(tmp_path)
    assert loaded.priors == night.priors
    assert loaded.record == saved.record
    pd.testing.assert_frame_equal(loaded.counted, night.counted, check_dtype=False)
    assert sorted(on_disk(tmp_path)) == [saved.record["counted"], nightly.PRIORS]


def test_running_twice_changes_nothing_but_the_time(summaries, yesterday):
    before = load_night(yesterday)
    run_night(summaries, yesterday, night="yesterday")
    after = load_night(yesterday)
    assert after.priors == before.priors
    assert after.record["sha256"] == before.record["sha256"]


def test_a_good_night_replaces_the_old_and_leaves_readers_their_file(summaries, yesterday):
    old = load_night(yesterday).record["counted"]
    today = summaries.assign(effect_hat=summaries["effect_hat"] + 0.1)
    run_night(today, yesterday, night="today")
    record = load_night(yesterday).record
    assert record["night"] == "today"
    assert set(on_disk(yesterday)) == {nightly.PRIORS, record["counted"], old}
    run_night(today.iloc[::-1], yesterday, night="tomorrow")
    assert old not in on_disk(yesterday)


def test_priors_of_the_other_chapter_can_be_used_too(summaries, night, tmp_path):
    path = save_priors(night.priors, tmp_path / "learned.json")
    new = summaries.assign(creator_id="new " + summaries["creator_id"].astype(str))
    found = instant_estimates(load_night(path), new)
    assert not found["counted"].any()


FAULTS = {
    "an empty table": (lambda s: s.iloc[:0], DataError, "no rows"),
    "a missing column": (lambda s: s.drop(columns="se"), DataError, "missing column se"),
    "a missing value": (
        lambda s: s.assign(effect_hat=s["effect_hat"].where(s.index != 3)),
        DataError,
        "must be a finite number",
    ),
    "half of the creators": (lambda s: s.iloc[::3], NightError, "data are probably missing"),
    "no table": (lambda s: (_ for _ in ()).throw(FileNotFoundError("no such file")), OSError, "no"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_missing_data_keep_yesterdays_priors(fault, summaries, yesterday):
    before = on_disk(yesterday)
    spoil, error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        run_night(lambda: spoil(summaries), yesterday)
    assert on_disk(yesterday) == before


def test_a_genre_that_has_vanished_is_noticed(summaries, tmp_path):
    many = simulate_summaries(5, n_creators_per_genre=30)[0]
    run_night(many, tmp_path)
    before = on_disk(tmp_path)
    with pytest.raises(NightError, match="genre 'lifestyle': 0 of 30"):
        run_night(many[many["genre"] != "lifestyle"], tmp_path)
    assert on_disk(tmp_path) == before
    renamed = many.assign(genre=many["genre"].replace("lifestyle", "Lifestyle"))
    with pytest.raises(NightError, match="genre 'lifestyle': 0 of 30"):
        run_night(renamed, tmp_path)
    assert on_disk(tmp_path) == before
    run_night(many[many["genre"] != "lifestyle"], tmp_path, min_share=0)
    assert load_night(tmp_path).record["n_creators"] == 120


def test_as_many_others_do_not_stand_in_for_last_nights_creators(tmp_path):
    """Under other ids they would count twice by day; beside them newcomers are welcome."""
    many = simulate_summaries(5, n_creators_per_genre=30)[0]
    run_night(many, tmp_path)
    before = on_disk(tmp_path)
    many["creator_id"] = many["creator_id"].astype(str)
    mangled = many.assign(creator_id="x" + many["creator_id"])
    with pytest.raises(NightError, match="the table: 0 of 150; genre 'comedy': 0 of 30; "):
        run_night(mangled, tmp_path)
    music = (many["genre"] == "music") & (many.groupby("genre").cumcount() >= 14)
    with pytest.raises(NightError, match=r"\(genre 'music': 14 of 30\)"):
        run_night(many.mask(music, mangled), tmp_path)
    assert on_disk(tmp_path) == before
    run_night(pd.concat([many, mangled], ignore_index=True), tmp_path)
    assert load_night(tmp_path).record["n_creators"] == 300


def test_a_fit_that_cannot_be_trusted_keeps_yesterdays_priors(summaries, yesterday, monkeypatch):
    """The quadrature is not allowed to refine: its error is real, and its diagnostics fail."""
    before = on_disk(yesterday)
    monkeypatch.setattr(quadrature, "MAX_INTERVALS", 2)
    monkeypatch.setattr(quadrature, "FIRST_INTERVALS", (6, 6))
    with pytest.raises(DiagnosticsError, match="quadrature error"):
        run_night(summaries, yesterday)
    assert on_disk(yesterday) == before


def test_a_failed_rehearsal_keeps_yesterdays_priors(summaries, yesterday, monkeypatch):
    """What the day would read out is wrong, though the fit is right: creators counted twice."""
    before = on_disk(yesterday)
    right = nightly.instant_estimates

    def twice(night, some):
        return right(replace(night, counted=night.counted.iloc[:0]), some)

    monkeypatch.setattr(nightly, "instant_estimates", twice)
    with pytest.raises(DiagnosticsError, match="the rehearsal failed"):
        run_night(summaries, yesterday)
    assert on_disk(yesterday) == before


@pytest.mark.parametrize("step", ["make", "write", "sync", "rename", "second rename"])
def test_a_full_disk_keeps_yesterdays_priors(step, summaries, yesterday, monkeypatch):
    before = on_disk(yesterday)
    right, done = os.replace, []

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def second(*paths):
        return full() if done else done.append(right(*paths))

    owner, name = {
        "make": (files.tempfile, "mkstemp"),
        "write": (files.Path, "write_bytes"),
        "sync": (os, "fsync"),
        "rename": (os, "replace"),
        "second rename": (os, "replace"),
    }[step]
    monkeypatch.setattr(owner, name, second if step == "second rename" else full)
    today = summaries.assign(effect_hat=summaries["effect_hat"] + 0.1)
    with pytest.raises(OSError, match="No space left"):
        run_night(today, yesterday)
    monkeypatch.undo()
    assert on_disk(yesterday) == before
    assert done or step != "second rename"


def test_a_disk_that_is_really_full(summaries, tmp_path):
    """A file system of 28 kB: yesterday's night fits, tonight's larger one does not."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs rights that this process has not")
    try:
        run_night(summaries, folder, night="yesterday")
        before = on_disk(folder)
        many = simulate_summaries(5, n_creators_per_genre=200)[0]
        with pytest.raises(OSError, match="No space left"):
            run_night(many, folder, min_share=0)
        assert on_disk(folder) == before
    finally:
        subprocess.run(["umount", str(folder)], check=True)


DAMAGES = {
    "cut short": lambda f: cut(f / nightly.PRIORS),
    "no json": lambda f: (f / nightly.PRIORS).write_text("{"),
    "counted creators lost": lambda f: counted_file(f).unlink(),
    "counted creators cut": lambda f: cut(counted_file(f)),
    "counted creators of another night": lambda f: counted_file(f).write_bytes(b"other"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def counted_file(folder):
    return folder / json.loads((folder / nightly.PRIORS).read_text())["night"]["counted"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_and_repaired_by_the_next_night(damage, summaries, yesterday):
    DAMAGES[damage](yesterday)
    with pytest.raises(PriorsFileError):
        load_night(yesterday)
    said = []
    run_night(summaries, yesterday, night="today", say=said.append)
    assert any("damaged and will be replaced" in message for message in said)
    assert load_night(yesterday).record["night"] == "today"


def test_a_folder_without_a_night(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the nightly job first"):
        load_night(tmp_path)
    assert last_night(tmp_path) is None


# ------------------------------------------------------------------------------ real processes

#: Runs the nightly job and stops for good at a given call of a function, saying so by a file.
_STOPPED = """
import os, sys, time
from pathlib import Path
import pandas as pd
from hbm.production import nightly
from hbm.studies import simulate_summaries

folder, flag, module, name, calls = sys.argv[1:]
owner = {"os": os, "nightly": nightly, "Path": Path}[module]
right, left = getattr(owner, name), [int(calls)]

def stop(*args, **kwargs):
    left[0] -= 1
    if left[0]:
        return right(*args, **kwargs)
    if name == "write_text":
        right(args[0], args[1][: len(args[1]) // 2], *args[2:])  # half of it is on the disk
    Path(flag).touch()
    time.sleep(600)

table = simulate_summaries(3, n_creators_per_genre=12)[0]
table["effect_hat"] += 0.1
setattr(owner, name, stop)
nightly.run_night(table, folder, night="today")
"""

PLACES = {
    "before the fit": ("nightly", "fit_night", 1),
    "after the fit": ("nightly", "save_night", 1),
    "before the first file is in place": ("os", "replace", 1),
    "half-way through the priors": ("Path", "write_text", 1),
    "before the priors are in place": ("os", "replace", 2),
}


def stopped(folder, flag, place):
    """Start a job that stops at a place, and wait until it is there."""
    arguments = [str(folder), str(flag), *map(str, PLACES[place])]
    job = subprocess.Popen([sys.executable, "-c", textwrap.dedent(_STOPPED), *arguments])
    for _ in range(1200):
        if flag.exists():
            return job
        assert job.poll() is None, "the job ended before it came to the place"
        time.sleep(0.05)
    job.kill()
    raise AssertionError("the job never came to the place")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_job_that_is_killed_keeps_yesterdays_priors(place, summaries, yesterday, tmp_path):
    before = on_disk(yesterday)
    job = stopped(yesterday, tmp_path / "flag", place)
    # Nobody else may work in the folder meanwhile; readers may.
    with pytest.raises(NightBusyError, match="another job is at work"):
        run_night(summaries, yesterday)
    assert load_night(yesterday).record["night"] == "yesterday"
    job.send_signal(signal.SIGKILL)
    job.wait()
    after = on_disk(yesterday)
    left = set(after) - set(before)
    assert all(name.endswith(".part") or name.startswith("counted-") for name in left)
    assert {name: after[name] for name in before} == before
    assert load_night(yesterday).record["night"] == "yesterday"
    # The lock died with the job, and the next night tidies up.
    run_night(summaries, yesterday, night="tomorrow")
    assert not [name for name in on_disk(yesterday) if name.endswith(".part")]
    assert load_night(yesterday).record["night"] == "tomorrow"


@pytest.mark.slow
def test_two_jobs_at_once(summaries, yesterday, tmp_path):
    """The second one says so and exits with its own code; the first one's lock is not touched."""
    summaries.to_csv(tmp_path / "table.csv", index=False)
    first = stopped(yesterday, tmp_path / "flag", "after the fit")
    try:
        command = ["-m", "hbm", "fit-priors", str(tmp_path / "table.csv"), "--folder"]
        second = subprocess.run(
            [sys.executable, *command, str(yesterday)], capture_output=True, text=True
        )
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 5
    assert "another job is at work" in second.stderr
    assert "night yesterday (60 creators) stays in force" in second.stderr


# --------------------------------------------------------------------------------- the studies


@pytest.fixture(scope="module")
def study():
    return production_study(12, n_creators_per_genre=25, seed=5)


def test_a_study_has_every_estimator_of_the_same_creators(study):
    assert study.groupby("estimator").size().to_dict() == dict.fromkeys(ESTIMATORS, 12 * 50)
    scores = score_study(study).set_index("estimator")
    gain = study.assign(e=np.square(study["effect_hat"] - study["effect_true"]))
    gain = gain.pivot_table(index="platform", columns="estimator", values="e")
    difference = gain["Instant"] - gain["No pooling"]
    assert difference.mean() + K * difference.sem() < 0
    assert scores.loc["Full refit", "ratio"] == 1
    for name in ("Instant", "Full refit"):
        error = scores.loc[name, "coverage_se"]
        assert abs(scores.loc[name, "coverage"] - 0.95) < K * error


def test_confidence_keeps_its_promises(study):
    table = confidence_table(study, 4)
    assert table["n_creators"].sum() == 12 * 50
    assert (np.abs(table["closer"] - table["confidence"]) < K * table["closer_se"]).all()
    assert (np.abs(table["saved"] - table["promised"]) < K * table["saved_se"]).all()


def test_instant_readouts_are_calibrated_and_ignoring_the_data_is_noticed():
    right, wrong = (run_instant_sbc(60, ignore=ignore) for ignore in (False, True))
    assert sbc_verdicts(right, LEVEL)["uniform"].all()
    verdicts = sbc_verdicts(wrong, LEVEL).set_index("quantity")["uniform"]
    assert verdicts[list(RANKED)].all(), "the ranks of effects alone do not notice"
    assert not verdicts["log density, new creator"]


def test_a_night_holds_what_it_says(night):
    assert isinstance(night, Night)
    assert night.record["night"] == "monday"
    assert night.record["n_creators"] == 60
    assert night.record["disagreement"] < nightly.MAX_DISAGREEMENT
