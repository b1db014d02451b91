"""Headline numbers: from the chapters' pages into one file, and what a reviewer gets to see."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import results
import yaml
from scipy.stats import beta

from hbm import Fixed, Priors, extract_hbm_estimates, fit_hierarchical_model, simulate_summaries
from hbm.intervals import share_error
from hbm.results import carried, share_of

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

ROWS = [("n < 100, \"x\" & 'y'", 0.93124, 0.00234), ("creators", 500), ("width", 1 / 3, 0.1, "$²")]


def page(*rows):
    """Return a page that carries these, as the offline edition writes it."""
    return carried(*rows).replace("```{=html}\n", "<p>").replace("\n```", "</p>")


def numbers(folder, *rows, name="01-a"):
    path = folder / f"{name}.html"
    path.write_text(page(*rows), "utf-8")
    return results.gathered([path])


def kept_and_found(folder, before, after):
    return results.changes(numbers(folder, before), numbers(folder, after))


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty project, in which a render is about to end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARTO_PROJECT_RENDER_ALL", "1")
    monkeypatch.setenv("QUARTO_PROJECT_OUTPUT_FILES", "_output/b.html\n_output/book.pdf")
    monkeypatch.delenv("QUARTO_PROJECT_OUTPUT_DIR", raising=False)
    monkeypatch.delenv("HBM_STUDIES", raising=False)
    (tmp_path / "_output").mkdir()
    numbers(tmp_path / "_output", *ROWS, name="b")
    return tmp_path


# ------------------------------------------------------------------- carrying and gathering


@pytest.mark.parametrize("written", [str, lambda text: text.replace("&lt;", "<")])
def test_numbers_survive_the_page(tmp_path, written):
    """Pandoc, on Quarto's way, writes fewer characters as entities."""
    (tmp_path / "05-x.html").write_text(written(page(*ROWS)), "utf-8")
    found = results.gathered([tmp_path / "05-x.html"])
    assert list(found["chapter"]) == ["05-x"] * 3
    assert list(found["name"]) == sorted(row[0] for row in ROWS)
    assert list(found["value"]) == [500, 0.93124, 1 / 3]
    assert found["mcse"].isna().tolist() == [True, False, False]
    assert list(found["unit"]) == ["", "", "$²"]


@pytest.mark.parametrize("row", [("x", float("nan")), ("x", 1, -0.1), ("x", 1, float("nan"))])
def test_what_is_no_number_is_refused(row):
    with pytest.raises(ValueError, match=r"headline 'x': its (value|mcse) is"):
        carried(row)


def test_a_share_of_few_is_not_certain():
    assert share_of([False] * 10) == (0, pytest.approx((0.5 * 10.5 / 11**2 / 12) ** 0.5))
    share, error = share_of([True, False] * 5000)
    assert (share, error) == (0.5, pytest.approx(0.005, rel=1e-3))


def test_the_error_of_a_share_is_that_of_jeffreys_posterior():
    hits = np.array([0, 3, 10])
    np.testing.assert_allclose(share_error(hits, 10), beta(hits + 0.5, 10.5 - hits).std())


def test_a_name_stands_once_in_a_chapter(tmp_path):
    with pytest.raises(SystemExit, match="01-a / x is there twice"):
        numbers(tmp_path, ("x", 1), ("x", 2))


def test_the_file_is_sorted_short_and_loses_nothing_that_counts(tmp_path):
    found = numbers(tmp_path, *ROWS, ("tiny", 1.23456789e-7))
    results.write(found, tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text("utf-8").splitlines() == [
        "chapter,name,value,mcse,unit",
        "01-a,creators,500,,",
        '01-a,"n < 100, ""x"" & \'y\'",0.93124,0.00234,',
        "01-a,tiny,1.23456789e-07,,",
        "01-a,width,0.333,0.1,$²",
    ]
    assert results.changes(found, results.read(tmp_path / "results.csv")).empty


# ------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ((0.950, 0.003), (0.931, 0.0022), "-5.1 MCSE"),
        ((0.950, 0.003), (0.936, 0.0022), None),  # 3.8 MCSE
        ((0.950, 0.0), (0.930, 0.004), "-5.0 MCSE"),  # only one of them has an error
        ((0.950, 0.004), (0.930,), "-5.0 MCSE"),
        ((0.0, 0.0), (0.0, 0.0), None),
        ((1e5,), (1e5 + 0.2,), "+0.2, exact"),
        ((1e5,), (1e5 + 0.05,), None),
        ((-2.0,), (2.0,), "+4, exact"),
        ((0.0,), (1e-12,), "+1e-12, exact"),
    ],
)
def test_what_counts_as_moved(tmp_path, before, after, change):
    found = kept_and_found(tmp_path, ("x", *before), ("x", *after))
    assert list(found["change"]) == ([change] if change else [])
    assert found["fault"].all()


def test_the_table_tells_a_reviewer_what_moved(tmp_path):
    table = kept_and_found(tmp_path, ("coverage n<100", 0.95, 0.003), ("coverage n<100", 0.931))
    assert re.search(
        r"\| 01-a +\| coverage n<100 +\| 0\.95 ± 0\.003 +\| 0\.931 +\| -6\.3 MCSE +\|",
        results.markdown(table, 7),
    )
    assert results.markdown(table[:0], 7) == "None of 7 headline numbers has moved."


def test_what_is_gone_is_a_fault_and_what_is_new_is_shown(tmp_path):
    found = kept_and_found(tmp_path, ("x", 1, None, "$"), ("x", 1, None, "cents"))
    shown = found.set_index("number")[["kept", "rendered", "change", "fault"]]
    assert list(shown.loc["x ($)"]) == ["1", "–", "gone", True]
    assert list(shown.loc["x (cents)"]) == ["–", "1", "new", False]


def test_a_changed_prior_is_noticed(tmp_path):
    summaries, _ = simulate_summaries(7, n_creators_per_genre=20)
    rows = []
    for priors in (Priors(), Priors(sigma_creator=Fixed(0.1))):
        fit = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)
        rows.append(("mean shrinkage", extract_hbm_estimates(fit, summaries)["shrinkage"].mean()))
    assert kept_and_found(tmp_path, *rows)["fault"].tolist() == [True]
    assert kept_and_found(tmp_path, rows[0], rows[0]).empty


# ------------------------------------------------------------------- the end of a render


def test_only_a_complete_render_writes(book, monkeypatch):
    monkeypatch.delenv("QUARTO_PROJECT_RENDER_ALL")
    results.gather()
    monkeypatch.setenv("QUARTO_PROJECT_RENDER_ALL", "1")
    monkeypatch.setenv("QUARTO_PROJECT_OUTPUT_FILES", "_output/book.pdf")
    results.gather()
    assert results.rendered() is None
    with pytest.raises(SystemExit, match="no complete render yet"):
        results.compare()
    monkeypatch.setenv("QUARTO_PROJECT_OUTPUT_FILES", "_output/b.html")
    results.gather()
    assert results.rendered() == Path("_output/results.csv")
    assert not Path("results.csv").exists()


def test_a_change_is_accepted_from_full_studies_only(book, monkeypatch, capsys):
    monkeypatch.setenv("HBM_STUDIES", "small")
    results.gather()
    with pytest.raises(SystemExit, match="only a complete render with full studies"):
        results.accept()
    assert results.rendered() == Path("_output/results-small.csv")
    monkeypatch.delenv("HBM_STUDIES")
    results.gather()
    assert not Path("_output/results-small.csv").exists()
    results.accept()
    assert results.compare() == 0
    numbers(book / "_output", *ROWS[:2], ("width", 9.0, 0.1, "$²"), name="b")
    capsys.readouterr()
    assert results.gather() == 0  # a render tells; comparing fails
    assert "| 0.333 ± 0.1 | 9 ± 0.1    | +61.3 MCSE |" in capsys.readouterr().out
    assert results.compare() == 1
    results.accept()
    assert results.compare() == 0


def test_the_offline_edition_ends_like_quarto(tmp_path):
    (tmp_path / "index.qmd").write_text(f"# One\n\n{carried(*ROWS)}\n", "utf-8")
    config = "format: {html: {toc: true}}\nproject: {output-dir: out, post-render: [SCRIPT]}\n"

    def offline(script, *arguments):
        (tmp_path / "_quarto.yml").write_text(config.replace("SCRIPT", script), "utf-8")
        command = [sys.executable, "-m", "offline", "--project", str(tmp_path), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    script = f"{ROOT / 'tests/results.py'} gather"
    offline(script, "-P", "data:other.csv")  # not the book as it stands
    assert not list(tmp_path.glob("out/results*.csv"))
    assert "width ($²)" in offline(script).stdout
    [file] = tmp_path.glob("out/results*.csv")
    assert len(results.read(file)) == len(ROWS)
    failed = offline("test -e nowhere")
    assert failed.returncode == 1
    assert "post-render 'test -e nowhere' failed" in failed.stderr


def test_a_readout_has_nothing_to_do_with_it():
    readout = ROOT / "chapters/readout"
    assert "post-render" not in (readout / "_quarto.yml").read_text("utf-8")
    for path in (readout / "index.qmd", ROOT / "chapters/_readout.qmd"):
        assert "headlines(" not in path.read_text("utf-8")


def test_the_book_rendered_last_has_the_kept_numbers():
    last = results.rendered(ROOT / "_output")
    if last is None or not (ROOT / results.KEPT).exists():
        pytest.skip("no complete render, or nothing kept yet: `make book`, `make results`")
    found = results.read(last)
    table = results.changes(results.read(ROOT / results.KEPT), found)
    assert not table["fault"].any(), f"\n{results.markdown(table, len(found))}\n`make results`?"


# ------------------------------------------------------------------- the public host


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_may_do_little(path):
    text = path.read_text("utf-8")
    for action in re.findall(r"uses: *(.*)", text):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    granted = {
        f"{what}: {how}"
        for job in workflow["jobs"].values()
        for what, how in job.get("permissions", {}).items()
        if how != "read"
    }
    allowed = {"comment": {"pull-requests: write"}, "main": {"pages: write", "id-token: write"}}
    assert granted == allowed.get(path.stem, set())
    assert "pull_request_target" not in text


def test_the_citation_is_that_of_book_and_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    book = yaml.safe_load((ROOT / "_quarto.yml").read_text("utf-8"))["book"]
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert cited["title"].startswith(book["title"])
    assert cited["authors"] == [{"name": book["author"]}]
    assert (str(cited["version"]), cited["license"]) == (package["version"], package["license"])
