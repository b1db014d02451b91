"""Puts what the cells gave back among the prose: a chapter as Pandoc Markdown, with its images."""

import ast
import re
from base64 import b64decode

from .book import BuildError
from .execute import ANSI, INLINE, Cell, defaults


def weave(project, chapter, outputs, site):
    """The chapter as Markdown; its images are written below the folder `site`."""
    options, outputs, text = defaults(project, chapter), iter(outputs), []
    for number, (kind, lines) in enumerate(chapter.pieces(), 1):
        if kind == "cell":
            cell = Cell(lines, options)
            given = next(outputs) if cell.options["eval"] else []
            label = cell.own.get("label", f"cell-{number}")
            stem = f"{chapter.file.removesuffix('.qmd')}_files/figure-html/{label}-output"
            if cell.options["include"]:
                text += ["", *cell_blocks(cell, given, site, stem), ""]
        elif kind == "verbatim":
            text += [line.text for line in lines]
        else:
            text += [filled(line, outputs) for line in lines]
    return "\n".join(text)


def filled(line, outputs):
    """A line of prose with the values of its inline expressions."""

    def value(expression):
        try:
            return inline(next(outputs))
        except ValueError as error:
            raise BuildError(f"{line}: {expression[0]}: {error}") from None

    return INLINE.sub(value, line.text)


def inline(outputs):
    """The value of an inline expression, as Quarto puts it: a plain text is escaped.

    Quarto leaves an expression without a value on the page, and shows the repr of a text but for
    its quotes: what would come out wrong is refused.
    """
    for data in (out["data"] for out in outputs if "data" in out):
        if "text/markdown" in data:
            return data["text/markdown"]
        value = data["text/plain"]
        if value[0] not in "'\"":
            return value
        text = ast.literal_eval(value)
        if not text:
            break
        if text != value[1:-1]:
            raise ValueError(f"its text would show as {value[1:-1]}; give Markdown")
        return re.sub(r"([\\`*_{}\[\]()>#+,\-.!])", r"\\\1", text)
    raise ValueError("its value is empty, and would not take its place")


def cell_blocks(cell, outputs, site, stem):
    """The blocks of one cell: its code, what it printed, what it displayed."""
    options, printed, shown = cell.options, [], []
    if options["echo"] and cell.code:
        folding = {
            "code-fold": str(options["code-fold"]).lower(),
            "code-summary": options["code-summary"],
        }
        printed.append(code(cell.code, ".python", ".cell-code", **folding))
    asis = options["output"] == "asis"
    for out in outputs if options["output"] else []:
        data = out.get("data", {})
        if out["output_type"] == "stream":
            if out["name"] == "stdout" or options["warning"]:
                printed.append(out["text"] if asis else code(ANSI.sub("", out["text"]), ".output"))
        elif out["output_type"] == "error":
            printed.append(code(ANSI.sub("", "\n".join(out["traceback"])), ".output"))
        elif "text/markdown" in data:
            shown.append(data["text/markdown"])
        elif "image/png" in data or "image/svg+xml" in data:
            shown.append(image(cell, out, len(shown), site, f"{stem}-{len(shown) + 1}"))
        elif data.get("text/plain") and not any("widget" in kind for kind in data):
            printed.append(code(data["text/plain"], ".output"))
    return "\n\n".join([*printed, *captioned(cell, shown)]).splitlines()


def captioned(cell, shown):
    """What is displayed, in the div that Quarto makes of a labelled or captioned cell."""
    label = cell.own.get("label", "")
    numbered = label.startswith(("fig-", "tbl-"))
    caption = cell.own.get("tbl-cap" if label.startswith("tbl-") else "fig-cap", "")
    if not shown or not (numbered or caption):
        return shown
    mark = attributes([f"#{label}" if numbered else ".captioned"], {})
    return ["\n\n".join([f"::::: {mark}", *shown, caption, ":::::"])]


def image(cell, out, index, site, path):
    """An image as Markdown: the page's own file, the sharper one named for the PDF."""
    files = []
    for kind, suffix in {"image/png": ".png", "image/svg+xml": ".svg"}.items():
        if raw := out["data"].get(kind):
            files.append(path + suffix)
            (site / files[-1]).parent.mkdir(parents=True, exist_ok=True)
            (site / files[-1]).write_bytes(b64decode(raw) if suffix == ".png" else raw.encode())
    marks = [f".{name}-content" for name in (cell.own.get("renderings") or [])[index : index + 1]]
    named = {"fig-alt": cell.own.get("fig-alt", ""), "pdf": f"/{files[-1]}"}
    size = out["metadata"].get("image/png", {})
    named |= {key: f"{size[key]}px" for key in ("width", "height") if key in size}
    return f"![](/{files[0]}){attributes(marks, named)}"


def attributes(marks, named):
    values = (
        f'{key}="{str(value).replace("\\", "\\\\").replace('"', '\\"')}"'
        for key, value in named.items()
    )
    return "{" + " ".join([*marks, *values]).replace("\n", " ") + "}"


def code(text, *marks, **named):
    """A fenced block that no fence in the text can close."""
    fence = "`" * (1 + max(map(len, re.findall("`{3,}", text)), default=2))
    return f"{fence} {attributes(marks, named)}\n{text.rstrip()}\n{fence}"
