"""Writes each chapter as a notebook that runs from top to bottom: `python -m offline.notebooks`.

Quarto calls it as a script once the book is rendered; the offline edition does so by itself.
"""

import os
import re
import sys
from pathlib import Path

import nbformat.v4

if not __package__:  # called as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from offline.book import Project
from offline.execute import INLINE, Cell, defaults

#: Marks of Quarto that mean nothing in a notebook: fenced divs, and attributes in braces.
DIV = re.compile(r"^:{3,}.*$\n?", re.MULTILINE)
ATTRIBUTES = re.compile(r"\s*\{[#.][^}]*\}")


def notebook(project, chapter):
    """A chapter as a notebook without outputs; sentences with results are cells that say them."""
    options, cells = defaults(project, chapter), [nbformat.v4.new_markdown_cell(preface(chapter))]
    for kind, lines in chapter.pieces():
        text = "\n".join(line.text for line in lines).strip()
        if kind == "cell":
            cell = Cell(lines, options)
            if cell.options["eval"] and cell.code:
                tags = ["raises-exception"] if cell.options["error"] else []
                cells.append(nbformat.v4.new_code_cell(cell.code, metadata={"tags": tags}))
        elif kind == "verbatim" and text:
            cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            cells += [said(part) for part in re.split(r"\n{2,}", plain(text)) if part.strip()]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the same with every writing
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def preface(chapter):
    return (
        f"The code of `{chapter.file}`, to be run at the root of the project, which has the data "
        "and the package. Where the book refers to a figure, a table or a work, its label stands."
    )


def plain(text):
    return ATTRIBUTES.sub("", DIV.sub("", text))


def said(text):
    """A paragraph; where it holds results, a cell that computes them and shows it."""
    found = [match[1] for match in INLINE.finditer(text)]
    if not found:
        return nbformat.v4.new_markdown_cell(text)
    shape = INLINE.sub("\0", text).replace("{", "{{").replace("}", "}}").replace("\0", "{}")
    lines = "\n".join(f"    {line!r}" for line in shape.splitlines(keepends=True))
    values = "".join(f"        {expression},\n" for expression in found)
    code = f"Markdown(\n    (\n{lines}\n    ).format(\n{values}    )\n)"
    return nbformat.v4.new_code_cell(code, metadata={"jupyter": {"source_hidden": True}})


def write_notebooks(project, folder):
    """Write `notebooks/NN-x.ipynb` for each chapter with code; return their names."""
    names = []
    for chapter in project.chapters:
        if any(kind == "cell" for kind, _ in chapter.pieces()):
            path = Path(folder, "notebooks", Path(chapter.file).stem + ".ipynb")
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook(project, chapter), path)
            names.append(path.name)
    return names


if __name__ == "__main__":
    here = Project(".")
    given = os.environ.get("QUARTO_PROJECT_OUTPUT_DIR", here.config["project"]["output-dir"])
    write_notebooks(here, here.root / given)
