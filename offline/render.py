"""Renders a project: runs its chapters, writes site and PDF, checks every link, publishes."""

import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pypandoc
import typst

from .book import BuildError, Project
from .execute import execute
from .notebooks import write_notebooks
from .weave import weave

HERE = Path(__file__).parent


def render(root, output_dir=None, parameters=None):
    """Render the project at `root`; return the folder that now holds site and PDF."""
    project = Project(root)
    given = output_dir or project.config.get("project", {}).get("output-dir", ".")
    target = Path(given if output_dir else project.root / given).resolve()
    (project.root / ".offline").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=project.root / ".offline") as folder:
        site = Path(folder, "site")
        site.mkdir()
        facts = description(
            project, [woven(project, chapter, parameters, site) for chapter in project.chapters]
        )
        if project.typst is not None:
            typeset(project, facts, site)
        if project.html is not None:
            if facts["links"]:
                write_notebooks(project, site)
            write_site(project, facts, site)
        publish(project.root, site, target)
    if not parameters:
        finish(project, target)
    if project.html is not None:
        print(f"site  {target / 'index.html'}")
    if project.typst is not None:
        print(f"PDF   {target / facts['main']}")
    return target


def woven(project, chapter, parameters, site):
    """Run one chapter and describe the page it makes."""
    total, files = len(project.chapters), [other.file for other in project.chapters]
    cells = sum(kind == "cell" for kind, _ in chapter.pieces())
    print(
        f"[{files.index(chapter.file) + 1:{len(str(total))}}/{total}] "
        f"{chapter.file:{max(map(len, files))}} {cells:4} cells",
        end="  ",
        flush=True,
    )
    start = time.perf_counter()
    outputs, kept = execute(project, chapter, parameters)
    print("kept" if kept else f"{time.perf_counter() - start:.1f} s")
    return {
        "file": chapter.file,
        "part": chapter.part,
        "number": chapter.number,
        "meta": chapter.meta,
        "markdown": weave(project, chapter, outputs, site),
    }


def description(project, pages):
    """All that the Lua half needs to know of the book."""
    book, config = project.book, project.config
    html, paper = project.html or {}, project.typst or {}
    title = book.get("title") or pages[0]["meta"].get("title", "")
    authors = book.get("author") or []
    main = f"{book.get('output-file') or (title if project.is_book else 'index')}.pdf"
    names = config.get("bibliography") or []
    repo, actions = book.get("repo-url", "").rstrip("/"), book.get("repo-actions") or []
    edit = f"{repo}/edit/{book.get('repo-branch', 'main')}/"
    facts = {
        "title": title,
        "subtitle": book.get("subtitle"),
        "author": authors if isinstance(authors, str) else ", ".join(authors) or None,
        "date": project.date_text(),
        "pdf": main if project.typst is not None else None,
        "edit": edit if "edit" in actions else None,
        "issue": f"{repo}/issues/new" if "issue" in actions else None,
        "paper": paper.get("papersize", "us-letter"),
        "search": (project.is_book and book.get("search") is not False) or None,
    }
    if html.get("embed-resources"):
        facts["embed"] = {
            "style": (HERE / "style.css").read_text("utf-8"),
            "script": (HERE / "script.js").read_text("utf-8"),
        }
    links = project.root / "chapters" / "links.lua"
    return {
        "pages": pages,
        "root": str(project.root),
        "links": str(links) if links.exists() else None,
        "title": title,
        "description": book.get("description"),
        "facts": facts,
        "main": main,
        "is_book": project.is_book or None,
        "csl": config.get("csl") and str(project.root / config["csl"]),
        "bibliography": [
            str(project.root / name) for name in ([names] if isinstance(names, str) else names)
        ]
        or None,
    }


def pandoc(project, facts, target, options, template, site):
    """Hand the book to `render.lua`; copy the files its pages name; stop if a link dangles."""
    facts |= {
        "target": target,
        "site": str(site),
        "template": (HERE / template).read_text("utf-8"),
        "toc": bool(options.get("toc")),
        "sections": bool(options.get("number-sections")),
    }
    command = [pypandoc.get_pandoc_path(), "lua", HERE / "render.lua"]
    answer = subprocess.run(
        command,
        input=json.dumps(present(facts), default=str),
        text=True,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    answer = json.loads(answer)
    problems = [
        f"{place(project, p['file'], p['label'])}: {p['text']} '{p['label']}'"
        for p in answer["problems"]
    ]
    for name, chapter in dict(answer["files"]).items():
        copy, source = site / name, project.root / name
        if source.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
        elif not copy.exists() and name != facts["main"]:
            problems.append(f"{place(project, chapter, Path(name).name)}: no such file '{name}'")
    if problems:
        raise BuildError("\n".join(problems))
    return answer["pages"]


def present(value):
    """Without the None: Lua's JSON makes a true value of null."""
    if isinstance(value, dict):
        return {key: present(item) for key, item in value.items() if item is not None}
    return [present(item) for item in value] if isinstance(value, list) else value


def place(project, file, label):
    """Where a label first stands in a chapter, as file:line."""
    lines = next(chapter.lines for chapter in project.chapters if chapter.file == file)
    return next((str(line) for line in lines if label in line.text), file)


def write_site(project, facts, site):
    """Write the pages, their style and script, and the search index."""
    for name, text in pandoc(project, facts, "html", project.html, "template.html", site).items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, "utf-8")
    if "embed" in facts["facts"]:
        shutil.rmtree(site / "index_files", ignore_errors=True)
    else:
        for name in ("style.css", "script.js"):
            shutil.copy(HERE / name, site / name)
    if facts["facts"]["search"]:
        subprocess.run([sys.executable, "-m", "pagefind", "--silent", "--site", site], check=True)


def typeset(project, facts, site):
    """Write the PDF; beside it nothing of the typesetting remains."""
    pages = pandoc(project, facts, "typst", project.typst, "template.typ", site)
    source = site / "book.typ"
    source.write_text(pages[facts["main"]], "utf-8")
    day = project.date() or datetime.date(2000, 1, 1)
    noon = datetime.datetime(day.year, day.month, day.day, 12, tzinfo=datetime.UTC)
    try:
        typst.compile(
            str(source),
            output=str(site / facts["main"]),
            root=str(site),
            timestamp=noon,
            ignore_system_fonts=True,
        )
    except typst.TypstError as error:
        shutil.copy(source, project.root / ".offline" / "book.typ")
        raise BuildError(f".offline/book.typ: {error.diagnostic or error.message}") from None
    source.unlink()


def publish(root, site, target):
    """Put the finished folder in its place: in one move inside the project, else file by file."""
    if root not in target.parents:
        shutil.copytree(site, target, dirs_exist_ok=True)
        return
    old = site.parent / "old"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old)
    site.rename(target)


def finish(project, target):
    """Run the project's `post-render` scripts, and tell them what Quarto tells them."""
    scripts = project.config.get("project", {}).get("post-render") or []
    names = [str(Path(chapter.file).with_suffix(".html")) for chapter in project.chapters]
    files = [str(target / name) for name in names if project.html is not None]
    told = {
        "QUARTO_PROJECT_RENDER_ALL": "1",
        "QUARTO_PROJECT_OUTPUT_DIR": str(target),
        "QUARTO_PROJECT_OUTPUT_FILES": "\n".join(files),
    }
    for script in [scripts] if isinstance(scripts, str) else scripts:
        command = shlex.split(script)
        command = [sys.executable, *command] if command[0].endswith(".py") else command
        if subprocess.run(command, cwd=project.root, env=os.environ | told).returncode:
            raise BuildError(f"_quarto.yml: post-render '{script}' failed")
