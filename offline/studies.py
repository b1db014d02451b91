"""Command line: `python -m offline.studies` runs the chapters' code for what it keeps.

Nothing is rendered. Each chapter runs in this terminal, which shows how far its studies are; their
results are kept in the store, where the next render finds them.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .book import BuildError, Project
from .execute import defaults, steps, workplace


def script(project, chapter):
    """The code of a chapter's cells, without the expressions in its text."""
    todo = steps(chapter, {}, defaults(project, chapter))
    return "\n\n".join(source for source, _, name, _ in todo if not name.startswith("`"))


def main():
    project, start = Project("."), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for chapter in project.chapters:
            code = Path(folder, "chapter.ipy")
            code.write_text(script(project, chapter), "utf-8")
            begun = time.perf_counter()
            command = [sys.executable, "-m", "IPython", "--quick", str(code)]
            env = os.environ | {"MPLBACKEND": "agg"}
            ran = subprocess.run(command, cwd=workplace(project, chapter), env=env, check=False)
            if ran.returncode:
                raise BuildError(f"{chapter.file}: its code failed")
            print(f"studies: {chapter.file}  {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    print(f"studies: all kept after {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(f"error: {error}")
