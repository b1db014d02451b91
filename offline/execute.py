"""Runs the code of a chapter in a fresh kernel, and keeps what came out of it."""

import hashlib
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat.v4
import yaml
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from .book import BuildError, Line

INLINE = re.compile(r"(?<!`)`{python}[ \t]+([^`]+)`")
CODE = {".py", ".js", ".css", ".html", ".csv", ".json"}  # what a package's outputs hang on
HIDDEN = "the parameters given"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
DEFAULTS = {
    **{"echo": True, "eval": True, "include": True, "output": True, "warning": True},
    **{"error": False, "code-fold": False, "code-summary": "Code"},
    **{"fig-width": 7, "fig-height": 5},
}


class ThisPython(KernelSpecManager):
    """The running interpreter's own kernel, whatever is registered as python3."""

    def get_kernel_spec(self, kernel_name):
        command = [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--log-level=ERROR",
            "--InlineBackend.figure_formats={'retina', 'svg'}",
        ]
        return KernelSpec(argv=command, language="python", display_name=kernel_name)


@dataclass
class Cell:
    """A code cell: its code, its own options, and those that hold when it is silent."""

    lines: list[Line]
    defaults: dict

    def __post_init__(self):
        body = self.lines[1:-1]
        end = next((i for i, ln in enumerate(body) if not ln.text.startswith("#|")), len(body))
        self.code = "\n".join(line.text for line in body[end:]).strip("\n")
        try:
            head = "\n".join(line.text[2:].removeprefix(" ") for line in body[:end])
            self.own = yaml.safe_load(head) or {}
        except yaml.YAMLError as error:
            raise BuildError(f"{self.lines[0]}: options that cannot be read: {error}") from None
        self.options = self.defaults | self.own

    @property
    def name(self):
        return f"cell '{self.own['label']}'" if "label" in self.own else "this cell"


def defaults(project, chapter):
    """The options of all cells of a chapter: Quarto's, the project's, the chapter's."""
    options = dict(DEFAULTS)
    for layer in (project.html or {}, project.config, chapter.meta):
        options |= {key: layer[key] for key in layer if key.startswith(("code-", "fig-"))}
        options |= layer.get("execute") or {}
    return options


def steps(chapter, parameters, options):
    """Yield (source, where, name, may fail) of all that is to be executed, in order."""
    for kind, lines in chapter.pieces():
        if kind == "text":
            for line in lines:
                for match in INLINE.finditer(line.text):
                    yield match[1], line, f"`{match[1]}`", False
        elif kind == "cell" and (cell := Cell(lines, options)).options["eval"]:
            yield cell.code, lines[0], cell.name, cell.options["error"]
            if parameters and "parameters" in (cell.own.get("tags") or []):
                given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
                yield given, lines[0], HIDDEN, False


def execute(project, chapter, parameters):
    """The outputs of each cell and inline expression, and whether they had been kept.

    With parameters nothing is kept: what lies behind a path that was given is unknown here.
    """
    options = defaults(project, chapter)
    todo = list(steps(chapter, parameters, options))
    shelf = project.root / ".offline" / (chapter.file.replace("/", "--") + ".json")
    key = fingerprint(project, chapter, todo)
    if not parameters and shelf.exists():
        kept = json.loads(shelf.read_text("utf-8"))
        if kept["key"] == key:
            return kept["outputs"], True
    outputs = run(workplace(project, chapter), todo, options) if todo else []
    if not parameters:
        shelf.parent.mkdir(exist_ok=True)
        draft = shelf.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"key": key, "outputs": outputs}), "utf-8")
        draft.replace(shelf)
    return outputs, False


def workplace(project, chapter):
    """The folder that the code of a chapter starts in."""
    if project.config.get("project", {}).get("execute-dir") == "project":
        return project.root
    return (project.root / chapter.file).parent


def fingerprint(project, chapter, todo):
    """Changes with anything that may change the outputs: code, packages, data, versions."""
    packages = {init.parent.name for init in project.root.glob("*/__init__.py")}
    rooms = ["data", "requirements.lock", "_quarto.yml", *packages - {"tests", "offline"}]
    listed = project.git("ls-files", "-zco", "--exclude-standard", "--", *rooms).split("\0")
    if not any(listed):
        inside = [path for room in rooms for path in (project.root / room).rglob("*")]
        listed = [*rooms, *(path.relative_to(project.root).as_posix() for path in inside)]
    digest = hashlib.sha256(Path(__file__).read_bytes())
    code = [(source, may_fail) for source, _, _, may_fail in todo]
    size = os.environ.get("HBM_STUDIES")
    digest.update(repr((sys.version, code, chapter.meta, size)).encode())
    for name in sorted(set(listed)):
        path = project.root / name
        inside = name.split("/")[0] in packages
        if path.is_file() and (not inside or path.suffix in CODE):
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()


def run(cwd, todo, options):
    """Execute the steps one after another in a fresh kernel that starts in `cwd`."""
    cells = [nbformat.v4.new_code_cell(source) for source, *_ in todo]
    client = NotebookClient(
        nbformat.v4.new_notebook(cells=cells),
        coalesce_streams=True,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
        timeout=None,
        startup_timeout=300,
        iopub_timeout=60,  # the default of 4 s loses outputs on a busy machine
        raise_on_iopub_timeout=True,
        resources={"metadata": {"path": str(cwd)}},
    )
    outputs = []
    with tempfile.TemporaryDirectory() as folder:
        style = Path(folder, "matplotlibrc")
        style.write_text(
            "figure.figsize: {fig-width}, {fig-height}\nfigure.dpi: 96\n"
            "svg.hashsalt: offline\n".format(**options)
        )
        # Asked for, since a manager that was handed in is left with its kernel running.
        env = os.environ | {"MATPLOTLIBRC": str(style)}
        with client.setup_kernel(env=env, cleanup_kc=True):
            for index, (cell, step) in enumerate(zip(cells, todo, strict=True)):
                run_step(client, cell, index, step)
                if step[2] != HIDDEN:
                    outputs.append(cell.outputs)
    return outputs


def run_step(client, cell, index, step):
    """Execute one step; say where it stands if it fails."""
    _, line, name, may_fail = step
    cell.metadata["tags"] = ["raises-exception"] if may_fail else []
    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        stop = BuildError(f"{line}: {name} failed: {error.ename}: {error.evalue}")
        [out] = [out for out in cell.outputs if out.output_type == "error"]
        stop.add_note(ANSI.sub("", "\n".join(out.traceback)))
        raise stop from None
    except DeadKernelError:
        raise BuildError(f"{line}: {name} failed: the kernel died (out of memory?)") from None
