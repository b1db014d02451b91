"""The sources of the book keep their contract; every message begins with file and line.

That the chapters run is shown by rendering them. Each check is a function from a source to a
list of complaints, so that it is tried here on the real sources and on a sentence that breaks it.
"""

import ast
import importlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

import hbm

ROOT = Path(__file__).resolve().parents[1]

REQUIRED_LABELS = {
    "tbl-comparison", "fig-shrinkage", "fig-mse", "fig-coverage-width", "fig-creators",
    "fig-genre-posteriors", "fig-hyperparameters", "fig-trace", "fig-ppc",
}  # fmt: skip
LAST_SECTIONS = ["What to take away", "Where it stops being true", "What to read"]
CALLOUTS = {"callout-note", "callout-warning"}
KINDS = ("fig", "tbl", "eq", "sec")

#: Decimals that are typed on purpose: constants of the simulated platform, of the model's priors
#: and of the diagnostics' rules. Results come from inline code.
CONSTANTS = {
    "0.05", "0.1", "0.10", "0.2", "0.3", "0.4", "0.5", "0.50", "0.65", "0.7", "0.8", "0.9",
    "0.95", "0.99", "0.025", "0.975", "1.01", "1.1", "1.5", "1.96", "2.0", "2.5", "5.0", "97.5",
}  # fmt: skip

FENCE = re.compile(r"^\s{0,3}(`{3,}|~{3,})\s*(.*)$")
INCLUDE = re.compile(r"^{{<\s*include\s+(\S+)\s*>}}")
INLINE_CODE = re.compile(r"`[^`]+`(\{[^}]*\})?")
ATTRIBUTE = re.compile(r"\{#([A-Za-z][\w:.-]*)")
REFERENCE = re.compile(rf"(?<![\w.])@((?:{'|'.join(KINDS)})-[\w-]*\w)")
CITATION = re.compile(rf"(?<![\w.@\\])-?@(?!(?:{'|'.join(KINDS)})-)([A-Za-z]\w*)")
POINTER = re.compile(
    r"\b(see|shown|described|defined|mentioned|given|listed|table|figure|section|equation|plot|"
    r"as|from|the)\s+(above|below)\b|\b(above|below)\s*[:.)]|^(above|below)\b",
    re.IGNORECASE,
)
TWO_SENTENCES = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\bal)[.?!][)*”’\"]* +[A-Z]"
)
DECIMAL = re.compile(r"(?<!section )(?<!chapter )(?<!sections )(?<![\w.,])\d+\.\d+(?![\w.]*\d)")
UNWANTED = re.compile(r"\bsignifican(t|tly|ce)\b", re.IGNORECASE)


@dataclass
class Cell:
    line: int
    options: dict
    code: str


@dataclass
class Source:
    """One .qmd file, parted into cells and prose; prose keeps its line numbers."""

    name: str
    text: str
    header: dict = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    prose: list[tuple[int, str]] = field(default_factory=list)
    includes: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self):
        lines = self.text.splitlines()
        start = 0
        if lines and lines[0] == "---":
            start = lines.index("---", 1) + 1
            self.header = yaml.safe_load("\n".join(lines[1 : start - 1])) or {}
        fence, block = None, []
        for number, line in enumerate(lines[start:], start + 1):
            opened = FENCE.match(line)
            if fence is None and opened:
                fence, block = (opened[1], opened[2], number), []
            elif fence and opened and opened[1].startswith(fence[0]) and not opened[2]:
                if fence[1].startswith("{python"):
                    self.cells.append(_cell(fence[2], block))
                fence = None
            elif fence:
                block.append(line)
            elif include := INCLUDE.match(line):
                self.includes.append((number, include[1]))
            else:
                self.prose.append((number, line))
        assert fence is None, f"{self.name}:{fence[2]}: this block is never closed"

    def plain(self):
        """Yield (line number, prose) without code, mathematics, tables, comments and HTML."""
        within_math = within_comment = False
        for number, line in self.prose:
            if "$$" in line:
                within_math ^= line.count("$$") % 2 == 1
                continue
            if "<!--" in line or within_comment:
                within_comment = "-->" not in line
                continue
            if within_math or line.lstrip().startswith(("|", "<")):
                continue
            yield number, re.sub(r"(?<!\\)\$[^$]+\$", "§", INLINE_CODE.sub("§", line))

    def told(self, tables=False):
        """Yield (line number, text) of all that a reader reads: prose, captions, alt texts."""
        yield from self.plain()
        if tables:
            rows = [(n, line) for n, line in self.prose if line.lstrip().startswith("|")]
            yield from ((n, INLINE_CODE.sub("§", line)) for n, line in rows)
        for cell in self.cells:
            for key in ("fig-cap", "tbl-cap", "fig-alt"):
                if key in cell.options:
                    yield cell.line, str(cell.options[key])

    def labels(self):
        """Yield (line number, label)."""
        for cell in self.cells:
            if "label" in cell.options:
                yield cell.line, cell.options["label"]
        for number, line in self.prose:
            for match in ATTRIBUTE.finditer(INLINE_CODE.sub("", line)):
                yield number, match[1]

    def headings(self, level):
        """Yield (line number, title) of the headings of one level, outside callouts."""
        depth = 0
        for number, line in self.prose:
            if line.startswith(":::"):
                depth += 1 if line.strip(": ") else -1
            elif depth == 0 and line.startswith("#" * level + " "):
                yield number, re.sub(r"\s*\{[^}]*\}\s*$", "", line.lstrip("# "))


def _cell(line, block):
    end = next((i for i, text in enumerate(block) if not text.startswith("#|")), len(block))
    options = yaml.safe_load("\n".join(text[2:].strip() for text in block[:end])) or {}
    return Cell(line, options, "\n".join(block[end:]))


def _listed():
    book = yaml.safe_load((ROOT / "_quarto.yml").read_text("utf-8"))["book"]
    for item in [*book["chapters"], *book["appendices"]]:
        yield from item["chapters"] if isinstance(item, dict) else [item]


def _read(name):
    return Source(name, (ROOT / name).read_text("utf-8"))


def _sources():
    """Every listed chapter, and the partial files they include, each once."""
    found = {}
    pending = [name for name in _listed() if (ROOT / name).exists()]
    while pending:
        name = pending.pop(0)
        if name not in found:
            found[name] = _read(name)
            folder = (ROOT / name).parent
            for _, inner in found[name].includes:
                path = (folder / inner).resolve()
                if path.exists():
                    pending.append(path.relative_to(ROOT).as_posix())
    return list(found.values())


SOURCES = _sources()
BIBLIOGRAPHY = ROOT / "chapters" / "references.bib"


# ------------------------------------------------------------------- checks of one source


def figures(source):
    """Every figure has label, caption, alt text and both renderings; every table a caption."""
    for cell in source.cells:
        where, label = f"{source.name}:{cell.line}", str(cell.options.get("label", ""))
        last = cell.code.rstrip().splitlines()[-1:] or [""]
        draws = bool(re.match(r"plots\.plot_", last[0]))
        if label.startswith("tbl-") and not cell.options.get("tbl-cap"):
            yield f"{where}: {label} has no tbl-cap"
        if not (label.startswith("fig-") or draws):
            continue
        needed = ["fig-alt", "renderings"]
        if source.name != "index.qmd":  # the index shows unlabelled copies
            needed += ["label", "fig-cap"]
        for key in needed:
            if not cell.options.get(key):
                yield f"{where}: figure {label or last[0]} has no {key}"
        if cell.options.get("renderings") not in (None, ["light", "dark"]):
            yield f"{where}: figure {label} needs renderings [light, dark]"
        alt = str(cell.options.get("fig-alt", ""))
        if alt and (len(alt) < 40 or alt == cell.options.get("fig-cap")):
            yield f"{where}: the alt text of {label} does not tell what is to be seen"


def pointers(source):
    for number, line in source.told():
        if match := POINTER.search(line):
            yield f"{source.name}:{number}: '{match[0].strip()}' points by place; use @label"


def callouts(source):
    for number, line in source.prose:
        for kind in re.findall(r"callout-\w+", line):
            if line.startswith(":::") and kind not in CALLOUTS:
                yield f"{source.name}:{number}: {kind} is none of {sorted(CALLOUTS)}"


def contract(source):
    """A chapter: description, one labelled title, its headline numbers, the three last sections."""
    name = Path(source.name).name
    if not source.header.get("description") and name != "references.qmd":
        yield f"{source.name}:1: the header has no description"
    titles = list(source.headings(1))
    if name == "index.qmd":
        return
    if "title" in source.header:
        yield f"{source.name}:1: the title stands in a heading with its label, not in the header"
    if len(titles) != 1:
        yield f"{source.name}:1: {len(titles)} headings of level 1, there must be one"
    labelled = re.search(r"^# .*\{#sec-[\w-]+", source.text, re.MULTILINE)
    if titles and not labelled:
        yield f"{source.name}:{titles[0][0]}: the title has no label {{#sec-…}}"
    if re.match(r"\d\d-", name):
        sections = [title for _, title in source.headings(2)]
        if sections[-3:] != LAST_SECTIONS:
            yield f"{source.name}:1: ends with {sections[-3:]}, not with {LAST_SECTIONS}"
        if not any("headlines(" in cell.code for cell in source.cells):
            yield f"{source.name}:1: hands no headline numbers to results.csv"


def sentences(source):
    """One sentence a line, in paragraphs; lists and definitions may hold two short ones."""
    for number, line in source.plain():
        if re.match(r"\s*([-*+>#:|\[]|\d+\.|$)", line):
            continue
        bare = re.sub(r"\[[^\]]*@[^\]]*\]|\*\*[^*]+\*\*", "§", line)
        if match := TWO_SENTENCES.search(bare):
            found = bare[max(0, match.start() - 20) : match.end() + 10]
            yield f"{source.name}:{number}: two sentences on a line: '…{found}…'"


def decimals(source):
    for number, line in source.told():
        for value in DECIMAL.findall(line):
            if value not in CONSTANTS:
                yield f"{source.name}:{number}: {value} is typed; results come from inline code"


def wording(source):
    for number, line in source.told():
        if match := UNWANTED.search(line):
            yield f"{source.name}:{number}: the book does not say '{match[0]}'"
        if re.search(r"\bHDI\b", line) and Path(source.name).name != "b-glossary.qmd":
            yield f"{source.name}:{number}: intervals are equal-tailed, no HDI"


def code(source):
    """Cells parse, and what they import from hbm or take from plots is there."""
    for cell in source.cells:
        where = f"{source.name}:{cell.line}"
        try:
            tree = ast.parse(re.sub(r"^\s*[%!].*$", "", cell.code, flags=re.MULTILINE))
        except SyntaxError as error:
            yield f"{where}: {error}"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hbm":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not _has(module, alias.name):
                        yield f"{where}: {node.module} has no '{alias.name}'"
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "plots"
                and not hasattr(importlib.import_module("hbm.plots"), node.attr)
            ):
                yield f"{where}: hbm.plots has no '{node.attr}'"


def _has(module, name):
    if module is hbm and name in hbm.__all__:
        return hasattr(hbm, name)
    try:
        importlib.import_module(f"{module.__name__}.{name}")
    except ModuleNotFoundError:
        return hasattr(module, name)
    return True


CHECKS = [figures, pointers, callouts, contract, sentences, decimals, wording, code]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_source_keeps_the_contract(check):
    partial = [s for s in SOURCES if Path(s.name).name.startswith("_")]
    chosen = [s for s in SOURCES if check is not contract or s not in partial]
    complaints = [text for source in chosen for text in check(source)]
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(
    ("check", "text", "complaint"),
    [
        (figures, "```{python}\n#| label: fig-x\nplots.plot_x()\n```", ":1: figure fig-x has no"),
        (figures, "```{python}\n#| label: tbl-x\ntable(x)\n```", ":1: tbl-x has no tbl-cap"),
        (pointers, "As shown above, it works.", ":1: 'shown above'"),
        (pointers, "The table below has it.", ":1: 'table below'"),
        (callouts, "::: {.callout-tip}\n:::", ":1: callout-tip"),
        (contract, "# Title\n\n## End", ":1: the header has no description"),
        (contract, "# Title\n\n## End", ":1: hands no headline numbers"),
        (sentences, "One sentence here. Another there.", ":1: two sentences"),
        (decimals, "It is 0.123 in all.", ":1: 0.123"),
        (decimals, "```{python}\n#| tbl-cap: 'It is 0.123.'\n```", ":1: 0.123"),
        (wording, "The effect is significant.", ":1: the book does not say 'significant'"),
        (code, "```{python}\nfrom hbm import nothing\n```", ":1: hbm has no 'nothing'"),
        (code, "```{python}\n1 +\n```", ":1: invalid syntax"),
    ],
)
def test_each_check_notices(check, text, complaint):
    assert any(complaint in found for found in check(Source("05-x.qmd", text)))


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (pointers, "R-hat is below 1.01 and the point lies above the line."),
        (sentences, 'It gives `{python} f"{x}. A"`, see [@a, p. 3; @b]. '),
        (sentences, "Some parts, e.g. The first, are short."),
        (decimals, "It is `{python} x` of $0.123$, `0.123` and 1.96."),
        (callouts, "::: {.callout-note}\n:::"),
    ],
)
def test_the_checks_let_good_prose_pass(check, text):
    assert not list(check(Source("05-x.qmd", text)))


# ------------------------------------------------------------------- the book as a whole


def test_every_listed_chapter_exists_and_every_chapter_is_listed():
    listed = list(_listed())
    missing = [f"_quarto.yml:1: lists {name}, which does not exist" for name in listed
               if not (ROOT / name).exists()]  # fmt: skip
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "chapters").glob("*.qmd")}
    partial = {name for name in there if Path(name).name.startswith("_")}
    missing += [f"{name}:1: is not listed in _quarto.yml" for name in
                sorted(there - partial - set(listed))]  # fmt: skip
    twice = [f"_quarto.yml:1: lists {n} twice" for n, count in Counter(listed).items() if count > 1]
    assert not missing + twice, "\n" + "\n".join(missing + twice)


def test_includes_exist():
    missing = [
        f"{source.name}:{number}: includes {inner}, which does not exist"
        for source in SOURCES
        for number, inner in source.includes
        if not ((ROOT / source.name).parent / inner).exists()
    ]
    assert not missing, "\n" + "\n".join(missing)


def _labels():
    return [(s.name, number, label) for s in SOURCES for number, label in s.labels()]


def _references():
    for source in SOURCES:
        for number, line in source.told(tables=True):
            for match in REFERENCE.finditer(line):
                yield source.name, number, match[1]


def test_labels_are_unique():
    counts = Counter(label for _, _, label in _labels())
    twice = [f"{f}:{n}: label {label} is used twice" for f, n, label in _labels()
             if counts[label] > 1]  # fmt: skip
    assert not twice, "\n" + "\n".join(twice)


def test_every_figure_table_and_equation_is_referenced():
    """Labels of sections may stand alone: they are addresses for links from outside."""
    referenced = {label for _, _, label in _references()}
    orphans = [
        f"{name}:{number}: {label} is never referenced"
        for name, number, label in _labels()
        if label.startswith(("fig-", "tbl-", "eq-")) and label not in referenced
    ]
    assert not orphans, "\n" + "\n".join(orphans)


def test_every_reference_has_its_label():
    known = {label for _, _, label in _labels()}
    dangling = [f"{f}:{n}: @{label} does not exist" for f, n, label in _references()
                if label not in known]  # fmt: skip
    assert not dangling, "\n" + "\n".join(dangling)


def test_the_required_labels_exist():
    assert not REQUIRED_LABELS - {label for _, _, label in _labels()}


def test_citations_resolve_and_every_entry_is_cited():
    text = BIBLIOGRAPHY.read_text("utf-8")
    entries = re.findall(r"^@\w+\{([^,\s]+),", text, re.MULTILINE)
    cited = [
        (source.name, number, match[1])
        for source in SOURCES
        for number, line in source.told(tables=True)
        for match in CITATION.finditer(line)
    ]
    where = BIBLIOGRAPHY.relative_to(ROOT).as_posix()
    wrong = [f"{f}:{n}: @{key} is not in {where}" for f, n, key in cited if key not in entries]
    wrong += [
        f"{where}:{text[: text.index('{' + key + ',')].count(chr(10)) + 1}: {key} is never cited"
        for key in entries
        if key not in {key for _, _, key in cited}
    ]
    wrong += [f"{where}:1: {key} twice" for key, count in Counter(entries).items() if count > 1]
    assert not wrong, "\n" + "\n".join(wrong)
