"""The offline edition, on a small book that uses every construct once."""

import contextlib
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pypdf
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # `offline` is not an installed package

from offline.__main__ import main

QUARTO = """
project: {type: book, output-dir: _output, execute-dir: project}
book:
  title: "Little & \\"large\\" #1"
  subtitle: "A book for tests"
  author: "Ann Author"
  date: last-modified
  date-format: "D MMMM YYYY"
  description: "Every construct once."
  output-file: little
  downloads: [pdf]
  chapters:
    - index.qmd
    - part: "Part one"
      chapters: [chapters/01-first.qmd, chapters/references.qmd]
  appendices: [chapters/a-more.qmd]
bibliography: chapters/references.bib
execute: {echo: true, warning: false}
format:
  html: {toc: true, number-sections: true, fig-width: 4, fig-height: 2}
  typst: {toc: true, number-sections: true, papersize: a4}
"""

LOCAL = "book: {repo-url: https://example.org/repo, repo-actions: [edit, issue]}"

INDEX = """---
title: "Welcome"
number-sections: false
---

The answer is in @fig-line, @sec-first and @sec-more; @tbl-plain is in @sec-rest.

```{python}
#| label: fig-front
#| fig-cap: "A *front* figure"
#| fig-alt: 'Two "quoted" lines'
#| renderings: [light, dark]
import matplotlib.pyplot as plt
for colour in ("black", "white"):
    plt.figure()
    plt.plot([1, 2], color=colour)
plt.show()
```
"""

FIRST = """---
title: "The first {#sec-first}"
subtitle: "Of several"
abstract: "What it *holds*."
description: "About the first"
---

{{< include _shared.qmd >}}

## A section {#sec-section}

@knuth1984 and [@knuth1984, p. 3]. Format {{< meta book.date-format >}}. Noted.[^1]
Value `{python} base + 1`, text `{python} "a*b* 1."`, mark `{python} Markdown("**strong**")`.
Verbatim ``{python} nothing``. A [link](a-more.qmd#sec-rest), [data](../data/small.csv).

[^1]: The footnote.

$$ a^2 = b $$ {#eq-square}

Then @eq-square, [-@fig-line], @Fig-line, [@fig-line; @tbl-made] and [see @sec-section].

```{python}
#| label: fig-line
#| fig-cap: "A line"
#| fig-alt: "A rising line"
#| code-fold: true
#| code-summary: "The code"
plt.plot([1, 2])
```

```{python}
#| label: tbl-made
#| tbl-cap: "A made table"
#| echo: false
Markdown("|name|n|\\n|:--|--:|\\n|x|1|\\n")
```

```{python}
print("<script>alert(1)</script>", plt.rcParams["figure.figsize"][0])
import sys; print("to " + "stderr", file=sys.stderr)
```

```{python}
#| error: true
1 / 0
```

```{python}
#| eval: false
not_run()
```

```{python}
#| output: asis
#| echo: false
print("### Made heading\\n")
print("```{=html}\\n<details><summary>Raw</summary>inside</details>\\n```")
```

| a | b |
|---|---|
| 1 | 2 |

: A plain table {#tbl-plain}

::: {.callout-warning}
## Mind this
Body of it.
:::

::: {.callout-note collapse="true" title="Folded"}
Hidden body.
:::

::: {.panel-tabset}
## Tab one
Text one.

## Tab two
Text two.
:::

::: {.content-visible when-format="html"}
Only on the web.
:::

::: {.content-visible unless-format="html"}
Only on paper.
:::

```{=typst}
#text[Raw typst.]
```

Term
: Its definition.
"""

SHARED = """```{python}
#| include: false
import matplotlib.pyplot as plt
from IPython.display import Markdown
from pkg import base
```
"""

BIB = """@book{knuth1984, title={The TeXbook}, author={Knuth, Donald E.}, year={1984},
publisher={Addison-Wesley}}"""


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def offline(folder, *arguments, succeeds=True):
    """Run the command line; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["--project", str(folder), *arguments])
    assert code == (0 if succeeds else 1), printed.getvalue()
    return printed.getvalue()


def studies(folder):
    command = [sys.executable, "-m", "offline.studies"]
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True)


class Page(HTMLParser):
    """A page's elements as (tag, attributes), and its text."""

    def __init__(self, path):
        super().__init__()
        self.path, self.elements, self.text = path, [], ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **wanted):
        return [
            have for name, have in self.elements if name == tag and wanted.items() <= have.items()
        ]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = write(
        tmp_path_factory.mktemp("book"),
        {
            "_quarto.yml": QUARTO,
            "_quarto.yml.local": LOCAL,
            "index.qmd": INDEX,
            "chapters/01-first.qmd": FIRST,
            "chapters/_shared.qmd": SHARED,
            "chapters/references.bib": BIB,
            "chapters/references.qmd": "# References {.unnumbered}\n\n::: {#refs}\n:::\n",
            "chapters/a-more.qmd": "# More {#sec-more}\n\n## Rest {#sec-rest}\n\nSee @sec-rest.\n",
            "pkg/__init__.py": "base = 41\n",
            "data/small.csv": "a\n1\n",
            ".gitignore": ".offline/\n",
        },
    )
    dated = os.environ | {"GIT_COMMITTER_DATE": "2024-05-03T12:00:00"}
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=folder, env=dated, check=True)
    return folder


@pytest.fixture(scope="module")
def log(book):
    return offline(book)


@pytest.fixture(scope="module")
def first(book, log):
    return Page(book / "_output/chapters/01-first.html")


@pytest.fixture(scope="module")
def front(book, log):
    return Page(book / "_output/index.html")


@pytest.fixture(scope="module")
def pdf(book, log):
    return pypdf.PdfReader(book / "_output/little.pdf")


@pytest.fixture(scope="module")
def paper(pdf):
    return re.sub(r"\s+", " ", " ".join(page.extract_text() for page in pdf.pages))


def test_progress_and_addresses(book, log):
    assert re.search(r"\[2/4\] chapters/01-first\.qmd +7 cells  \d+\.\d s", log)
    assert "python -m http.server -d" in log
    made = {path.relative_to(book / "_output").as_posix() for path in book.glob("_output/**/*")}
    assert {
        "index.html",
        "chapters/01-first.html",
        "chapters/a-more.html",
        "little.pdf",
        "data/small.csv",
        "pagefind/pagefind-ui.js",
        "chapters/01-first_files/figure-html/fig-line-output-1.png",
    } <= made
    assert "book.typ" not in made


def test_page_frame(front, first):
    for page in (front, first):
        assert page.all("html", lang="en")
        assert len(page.all("h1")) == 1
        assert [page.all(tag) for tag in ("header", "nav", "main", "footer")].count([]) == 0
        assert page.all("a", href="#content")
        assert "Offline edition" in page.text
    assert first.all("meta", name="description", content="About the first")
    assert first.all("a", href="../little.pdf")
    assert first.all("a", href="../index.html", rel="prev")
    assert first.all("a", href="https://example.org/repo/edit/main/chapters/01-first.qmd")
    assert "Part one" in first.text
    assert "Of several" in first.text
    assert "What it holds." in first.text
    assert "Ann Author · 3 May 2024" in front.text
    assert "Little & “large” #1" in front.text


def test_numbers_and_references(front, first):
    assert "Figure 1: A front figure" in front.text
    text = first.text
    assert "Then Equation 1.1, 1.1, Figure 1.1, Figure 1.1, Table 1.1 and see 1.1." in text
    assert "Figure 1.1: A line" in text
    assert "Table 1.2: A plain table" in text
    assert "1.1 A section" in text
    assert "1.1.1 Made heading" in text
    assert "Figure 1.1, Chapter 1 and Appendix A; Table 1.2 is in Section A.1" in (front.text)
    assert front.all("a", href="chapters/01-first.html#fig-line")
    assert first.all("a", href="../chapters/a-more.html#sec-rest")


def test_every_internal_link_leads_somewhere(book, log):
    pages = {path: Page(path) for path in (book / "_output").glob("**/*.html")}
    ids = {path: {have.get("id") for _, have in page.elements} for path, page in pages.items()}
    for path, page in pages.items():
        for target in (have["href"] for have in page.all("a")):
            file, _, anchor = target.partition("#")
            if not target.startswith("https:"):
                goal = (path.parent / file).resolve() if file else path
                assert goal.exists(), (path, target)
                assert not anchor or anchor in ids[goal], (path, target)


def test_nothing_loads_from_outside(book, log):
    for path in (book / "_output").glob("**/*.html"):
        page = Page(path)
        loaded = [
            have.get("src") or have.get("href")
            for tag, have in page.elements
            if tag in ("script", "link", "img", "iframe")
        ]
        assert not [url for url in loaded if url and re.match(r"(https?:)?//", url)]
    for name in ("style.css", "script.js"):
        assert "http" not in (book / "_output" / name).read_text().replace("location.protocol", "")


def test_citations_lead_to_the_references(first, book):
    assert "Knuth (1984) and (Knuth 1984, 3)" in first.text
    assert first.all("a", href="../chapters/references.html#ref-knuth1984")
    assert "Addison-Wesley" in Page(book / "_output/chapters/references.html").text


def test_cells(first):
    assert "Value 42, text a*b* 1., mark strong." in first.text
    assert "{python} nothing" in first.text
    assert "Format D MMMM YYYY" in first.text
    assert "&lt;script&gt;alert(1)" in first.source
    assert "<script>alert" not in first.source
    assert "</script> 4.0" in first.text
    assert "to stderr" not in first.text
    assert "ZeroDivisionError" in first.text
    assert "not_run()" in first.text
    assert "from pkg import base" not in first.text
    assert "#|" not in first.text
    assert "<summary>The code</summary>" in first.source


def test_figures(front, first):
    light, dark = front.all("img")
    assert (light["class"], dark["class"]) == ("light-content", "dark-content")
    assert light["alt"] == 'Two "quoted" lines'
    assert "width" in light
    assert first.all("img", alt="A rising line")


def test_blocks(first):
    assert "Mind this" in first.text
    assert first.all("details", **{"class": "callout callout-note"})
    assert "Only on the web." in first.text
    assert "Only on paper." not in first.text
    assert len(first.all("details", name="tabs-1")) == 2
    assert "<summary>Raw</summary>" in first.source
    assert first.all("math", display="block")
    assert first.all("dt")
    assert "The footnote." in first.text
    assert first.all("table")


def test_pdf(pdf, paper):
    assert pdf.metadata.title == 'Little & "large" #1'
    assert pdf.metadata.author == "Ann Author"
    for text in (
        "Contents",
        "1 The first",
        "Figure 1.1: A line",
        "Table 1.1: A made table",
        "(1.1)",
        "Mind this",
        "Only on paper.",
        "Raw typst.",
        "Knuth",
        "Appendix A — More",
    ):
        assert text in paper.replace("\xa0", " "), text
    assert "Only on the web" not in paper
    titles = [entry.title for entry in pdf.outline if not isinstance(entry, list)]
    assert titles == ["Welcome", "Part one", "Appendices"]
    assert sum(len(page.get("/Annots", [])) for page in pdf.pages) > 10
    assert b"A rising line" in b"".join(
        obj.get_data() if hasattr(obj, "get_data") else str(obj).encode()
        for obj in (pdf.get_object(number) for number in range(1, len(pdf.xref[0]) + 1))
    )


SINGLE = "project: {type: default, output-dir: out}\nformat: {html: {toc: true}}\n"


def single(folder, text, **files):
    return write(folder, {"_quarto.yml": SINGLE, "index.qmd": text} | files)


def test_cells_run_again_when_the_package_changes(tmp_path):
    single(
        tmp_path, "# One\n\n```{python}\nimport pkg; pkg.x\n```\n", **{"pkg/__init__.py": "x = 1"}
    )
    assert "kept" not in offline(tmp_path)
    assert "kept" in offline(tmp_path)
    write(tmp_path, {"index.qmd": (tmp_path / "index.qmd").read_text() + "\nMore prose.\n"})
    assert "kept" in offline(tmp_path)
    assert "More prose." in (tmp_path / "out/index.html").read_text()
    write(tmp_path, {"pkg/__init__.py": "x = 12345"})
    assert "kept" not in offline(tmp_path)
    assert "12345" in (tmp_path / "out/index.html").read_text()
    write(tmp_path, {"pkg/table.csv": "a table that a cell may read"})
    assert "kept" not in offline(tmp_path)


def test_cells_run_again_when_studies_are_of_another_size(tmp_path, monkeypatch):
    single(tmp_path, "# One\n\n```{python}\nimport os; os.environ.get('HBM_STUDIES')\n```\n")
    monkeypatch.setenv("HBM_STUDIES", "small")
    offline(tmp_path)
    monkeypatch.setenv("HBM_STUDIES", "other")
    assert "kept" not in offline(tmp_path)
    assert "other" in (tmp_path / "out/index.html").read_text()


def test_studies_run_the_code_in_this_terminal(tmp_path):
    cell = (
        "```{python}\n#| include: false\nimport sys\nfrom IPython.display import Markdown\n"
        "open('made.txt', 'a').write('x'); print('on its way', file=sys.stderr)\n```\n"
    )
    single(tmp_path, f"# One\n\n{cell}\nText with `{{python}} 1 / 0`.\n\n{cell}")
    seen = studies(tmp_path)
    assert (tmp_path / "made.txt").read_text() == "xx"
    assert seen.stderr.count("on its way") == 2
    assert "studies: index.qmd" in seen.stderr
    assert not (tmp_path / "out").exists()
    single(tmp_path, "# One\n\n```{python}\nraise ValueError('no luck')\n```\n")
    failed = studies(tmp_path)
    assert failed.returncode == 1
    assert "no luck" in failed.stdout + failed.stderr
    assert "index.qmd: its code failed" in failed.stderr


def test_parameters(tmp_path):
    single(
        tmp_path,
        "---\ntitle: Page\n---\n\n```{python}\n#| tags: [parameters]\nname, n = 'a', 1\n"
        "```\n\nIt is `{python} name` and `{python} n + 1`.\n",
    )
    offline(tmp_path, "-P", "name:Zoë's: x", "-P", "n:41", "--output-dir", str(tmp_path / "other"))
    assert "It is Zoë’s: x and 42." in (tmp_path / "other/index.html").read_text()


@pytest.mark.parametrize("included", [False, True])
def test_a_failing_cell_is_named_where_it_stands(tmp_path, included):
    cell = "\ntext\n\n```{python}\n#| label: fig-bad\nraise ValueError('no luck')\n```\n"
    single(
        tmp_path,
        "# One\n\n{{< include parts/_x.qmd >}}\n" if included else "# One\n" + cell,
        **{"parts/_x.qmd": cell},
    )
    write(tmp_path, {"out/index.html": "the last good one"})
    place = "parts/_x.qmd:4" if included else "index.qmd:5"
    message = offline(tmp_path, succeeds=False)
    assert f"{place}: cell 'fig-bad' failed: ValueError: no luck\n" in message
    assert "Traceback" in message
    assert message.count("no luck") > 1
    assert (tmp_path / "out/index.html").read_text() == "the last good one"


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("' more' if False else ''", "its value is empty"),
        ("'1\\xa0m'", "its text would show as 1\\xa0m; give Markdown"),
    ],
)
def test_an_inline_expression_that_quarto_would_show_wrongly_is_refused(tmp_path, expression, why):
    single(tmp_path, f"# One\n\nSome `{{python}} {expression}` text.\n")
    assert f"index.qmd:3: `{{python}} {expression}`: {why}" in offline(tmp_path, succeeds=False)


def test_a_dead_kernel_is_called_dead(tmp_path):
    single(tmp_path, "# One\n\n```{python}\nimport os; os._exit(1)\n```\n")
    assert "index.qmd:3: this cell failed: the kernel died" in offline(tmp_path, succeeds=False)


def test_no_kernel_outlives_its_chapter(tmp_path):
    cell = "import os; open('pid', 'w').write(str(os.getpid()))"
    single(tmp_path, f"# One\n\n```{{python}}\n{cell}\n```\n")
    offline(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_dangling_references_stop_the_build(tmp_path):
    single(
        tmp_path,
        "# One\n\n## A {#sec-a}\n\nSee @fig-none,\n@tbl-none, [x](#nowhere), "
        "[@unknown1999],\n[gone](gone.csv) and @sec-a.\n",
    )
    message = offline(tmp_path, succeeds=False)
    for problem in (
        "index.qmd:5: nothing has the label 'fig-none'",
        "index.qmd:6: nothing has the label 'tbl-none'",
        "index.qmd:6: nothing has the label 'nowhere'",
        "index.qmd:6: the bibliography has no 'unknown1999'",
        "index.qmd:7: no such file 'gone.csv'",
    ):
        assert problem in message
    assert "sec-a" not in message
    assert not (tmp_path / "out").exists()


def test_a_label_may_stand_once(tmp_path):
    single(tmp_path, "# One\n\n$$ a $$ {#eq-a}\n\n$$ b $$ {#eq-a}\n")
    assert "this label stands twice 'eq-a'" in offline(tmp_path, succeeds=False)


def test_the_command_knows_a_project(tmp_path):
    assert "no _quarto.yml here" in offline(tmp_path, succeeds=False)
