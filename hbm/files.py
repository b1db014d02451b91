"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` when all has gone well.

    A reader, a full disk or a kill never meets half a file: whatever happens, `path` holds what
    it held before, or all of the new content, on the disk. Only a kill leaves something behind,
    a file beside it that begins with a dot and ends with ``.part``.

    Parameters
    ----------
    path : path
        Its folder is made if it is not there.

    Yields
    ------
    Path

    Raises
    ------
    OSError
        If the file cannot be written; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
