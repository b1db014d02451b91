"""Reads `_quarto.yml` and the chapters it lists: order, numbers, includes, front matter."""

import re
import subprocess
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import yaml

INCLUDE = re.compile(r"^\s*{{<\s*include\s+(\S+)\s*>}}\s*$")
META = re.compile(r"{{<\s*meta\s+(\S+)\s*>}}")
FENCE = re.compile(r"^\s{0,3}(`{3,}|~{3,})\s*(.*)$")


class BuildError(Exception):
    """Something in the sources stops the build; the message begins with its file and line."""


@dataclass(frozen=True)
class Line:
    """One line of source, and where it really stands."""

    text: str
    file: str
    number: int

    def __str__(self):
        return f"{self.file}:{self.number}"


@dataclass
class Chapter:
    """A page of the book: its lines with includes expanded, its header, its place."""

    file: str
    lines: list[Line]
    meta: dict
    part: str | None = None
    number: str | None = None

    def pieces(self):
        """Yield (kind, lines) with kind text, verbatim or cell; a cell comes with its fences."""
        kind, piece, fence = "text", [], None
        for line in self.lines:
            match = FENCE.match(line.text)
            if fence is None and match:
                yield kind, piece
                kind = "cell" if match[2].startswith("{python") else "verbatim"
                piece, fence = [line], match[1]
            elif fence and match and match[1].startswith(fence) and not match[2].strip():
                yield kind, [*piece, line]
                kind, piece, fence = "text", [], None
            else:
                piece.append(line)
        if fence:
            raise BuildError(f"{piece[0]}: this block is never closed")
        yield kind, piece


class Project:
    """What `_quarto.yml` says, and the chapters in order."""

    def __init__(self, root):
        self.root = Path(root).resolve()
        if not (self.root / "_quarto.yml").exists():
            raise BuildError(f"{self.root}: no _quarto.yml here")
        self.config = {}
        for name in ("_quarto.yml", "_quarto.yml.local"):  # what this machine alone has to say
            if (self.root / name).exists():
                more = yaml.safe_load((self.root / name).read_text("utf-8")) or {}
                self.config = merged(self.config, more)
        self.book = self.config.get("book") or {}
        self.is_book = self.config.get("project", {}).get("type") == "book"
        formats = self.config.get("format") or {"html": {}}
        formats = formats if isinstance(formats, dict) else {formats: {}}
        self.html, self.typst = formats.get("html"), formats.get("typst")
        self.chapters = [self._chapter(file, part) for file, part in self._listing()]
        self._number()

    def _listing(self):
        """Yield (file, part) of every page."""
        if not self.is_book:
            yield "index.qmd", None
        for item in self.book.get("chapters", []):
            if isinstance(item, dict):
                yield from ((file, item["part"]) for file in item["chapters"])
            else:
                yield item, None
        yield from ((file, "Appendices") for file in self.book.get("appendices", []))

    def _chapter(self, file, part):
        lines = list(self._expand(file, self.root / file))
        header, lines = split_header(lines)
        meta = {**self.config, **self.book, **header}
        lines = [with_meta(line, meta) for line in lines]
        if title := header.get("title"):
            lines = [Line(f"# {title}", file, 1), Line("", file, 1), *lines]
        return Chapter(file, lines, header, part)

    def _expand(self, name, path, seen=()):
        """Yield the lines of a file, those of included files in their place."""
        if path in seen or not path.exists():
            raise BuildError(f"{name}: " + ("includes itself" if path in seen else "no such file"))
        for number, text in enumerate(path.read_text("utf-8").expandtabs(4).splitlines(), 1):
            if match := INCLUDE.match(text):
                inner = (path.parent / match[1]).resolve()
                inner_name = inner.relative_to(self.root, walk_up=True).as_posix()
                yield from split_header(list(self._expand(inner_name, inner, (*seen, path))))[1]
            else:
                yield Line(text, name, number)

    def _number(self):
        """Number the chapters 1, 2, 3 and the appendices A, B, C; the index has no number."""
        count = {True: 0, False: 0}
        for chapter in self.chapters:
            title = next((ln.text for ln in chapter.lines if ln.text.startswith("# ")), "")
            plain = re.search(r"{[^}]*(\.unnumbered|-)\s*}", title)
            if self.is_book and not plain and not chapter.file.startswith("index."):
                appendix = chapter.part == "Appendices"
                count[appendix] += 1
                number = count[appendix]
                chapter.number = chr(64 + number) if appendix else str(number)

    def date(self):
        """The day of the last commit for `last-modified`, else what is written."""
        value = self.book.get("date")
        if value != "last-modified":
            return value if isinstance(value, date | None) else date.fromisoformat(str(value))
        commit = self.git("log", "-1", "--format=%cs", "--", ".")
        newest = max((self.root / ch.file).stat().st_mtime for ch in self.chapters)
        return date.fromisoformat(commit.strip()) if commit else date.fromtimestamp(newest)

    def date_text(self):
        """The date as `date-format` wants it (D MMMM YYYY and the like)."""
        day = self.date()
        if day is None:
            return None
        names = {
            "YYYY": f"{day:%Y}",
            "MMMM": f"{day:%B}",
            "MMM": f"{day:%b}",
            "MM": f"{day:%m}",
            "DD": f"{day:%d}",
            "D": str(day.day),
        }
        shape = self.book.get("date-format", "YYYY-MM-DD")
        return re.sub("YYYY|MMMM|MMM|MM|DD|D", lambda m: names[m[0]], shape)

    def git(self, *arguments):
        """What git answers here; nothing when it is absent or this is no repository."""
        try:
            return subprocess.run(
                ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError):
            return ""


def merged(one, other):
    """Both settings, those of the other where they differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return one | {key: merged(one.get(key), value) for key, value in other.items()}


def split_header(lines):
    """Part the YAML header from the lines that follow it."""
    if not lines or lines[0].text.rstrip() != "---":
        return {}, lines
    end = next(i for i, line in enumerate(lines) if i and line.text.rstrip() in ("---", "..."))
    header = yaml.safe_load("\n".join(line.text for line in lines[1:end]))
    return header or {}, lines[end + 1 :]


def with_meta(line, meta):
    """The line with each `{{< meta key >}}` replaced by its value."""

    def value(match):
        found = meta
        for step in match[1].split("."):
            if not isinstance(found, dict) or step not in found:
                raise BuildError(f"{line}: there is no metadata '{match[1]}'")
            found = found[step]
        return str(found)

    return replace(line, text=META.sub(value, line.text))
