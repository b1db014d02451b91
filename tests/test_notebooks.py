"""Chapters as notebooks: they hold the chapter's code, and run from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from offline.book import Project
from offline.execute import Cell
from offline.notebooks import notebook, said, write_notebooks

ROOT = Path(__file__).resolve().parents[1]
PROJECT = Project(ROOT)
CHAPTERS = [c for c in PROJECT.chapters if any(kind == "cell" for kind, _ in c.pieces())]
IDS = [Path(chapter.file).stem for chapter in CHAPTERS]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=IDS)
def test_holds_all_code_in_order_and_no_mark_of_quarto(chapter):
    book = notebook(PROJECT, chapter)
    nbformat.validate(book)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    wanted = [Cell(lines, {}).code for kind, lines in chapter.pieces() if kind == "cell"]
    rest = iter(code)
    assert all(source in rest for source in wanted if source)
    for cell in book.cells:
        assert "`{python}" not in cell.source
        if cell.cell_type == "markdown":
            assert not re.search(r"^:::|\{#(?:sec|fig|tbl)-", cell.source, re.MULTILINE)


def test_sentences_say_their_results():
    cell = said('It is `{python} f"{x:.1f}"` of {y}, "so".\nAnd `{python} name`.')
    space = {"x": 1.25, "name": "more", "Markdown": str}
    assert eval(cell.source, space) == 'It is 1.2 of {y}, "so".\nAnd more.'
    assert said("No result.").cell_type == "markdown"


def test_writing_twice_writes_the_same(tmp_path):
    for folder in ("one", "two"):
        names = write_notebooks(PROJECT, tmp_path / folder)
    assert names == [f"{name}.ipynb" for name in IDS]
    for name in names:
        one, two = ((tmp_path / f / "notebooks" / name).read_bytes() for f in ("one", "two"))
        assert one == two


def run(chapter):
    book = notebook(PROJECT, chapter)
    client = NotebookClient(book, timeout=900, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    return book


def test_a_notebook_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.setenv("HBM_STUDIES", "small")
    book = run(next(chapter for chapter in CHAPTERS if "01-data" in chapter.file))
    said = [
        o for c in book.cells for o in c.get("outputs", []) if "text/markdown" in o.get("data", {})
    ]
    assert any("users of 500 creators" in o["data"]["text/markdown"] for o in said)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=IDS)
def test_every_notebook_runs_from_top_to_bottom(chapter, monkeypatch):
    monkeypatch.setenv("HBM_STUDIES", "small")
    run(chapter)
