"""Files: tables read from them, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from hbm.checks import DataError


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV or Parquet table; ids and names are text, and only empty cells are missing.

    Parameters
    ----------
    path : path
        Ends with .csv, .csv.gz or .parquet.

    Returns
    -------
    DataFrame
        As it stands in the file; its rows are not checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If the ending is unknown, the content is not what the ending says, or two columns have
        one name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(path)
        if name.endswith((".csv", ".csv.gz")):
            return _read_csv(path)
        raise DataError(f"{path.name}: known endings are .csv, .csv.gz and .parquet")
    except pd.errors.EmptyDataError:
        raise DataError(f"{path.name}: the file is empty") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        kind = "Parquet" if name.endswith(".parquet") else "CSV"
        raise DataError(f"{path.name}: the content is not {kind}: {error}") from error


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            raise DataError(f"{path.name}: the content is Parquet, not CSV")
    how = {"keep_default_na": False, "na_values": [""]}
    # pandas would rename the second of two columns of one name, and nobody would notice.
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, **how).iloc[0]
    if (twice := header[header.duplicated()].dropna()).size:
        raise DataError(f"{path.name}: more than one column is called {', '.join(twice.unique())}")
    text = dict.fromkeys(("creator_id", "genre", "group", "user_id", "quarter"), "str")
    return pd.read_csv(path, dtype=text, **how)


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
