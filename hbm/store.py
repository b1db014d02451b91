"""Results kept on disk by content: computed once, recomputed when anything they hang on changes.

The key of a result is the function, its arguments, the code it runs (the parsed source, without
docstrings, of its module and of every `hbm` module that one imports) and the versions of the
libraries that compute. Beside each result lies a small JSON that says what it is.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import joblib

#: Libraries whose versions can change a result.
LIBRARIES = ("numpy", "scipy", "pandas", "xarray", "arviz-stats", "pymc", "pytensor", "nutpie")


class StoreWarning(UserWarning):
    """A result could not be kept or read; it was computed instead."""


def store_dir() -> Path:
    """Return the folder of kept results: ``$HBM_STORE``, or ``.store`` beside the package."""
    default = Path(__file__).resolve().parents[1] / ".store"
    return Path(os.environ.get("HBM_STORE") or default)


def kept(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return ``function(*args, **kwargs)``, from the store where it has been computed before.

    Parameters
    ----------
    function : callable
        A public function of `hbm` (or of any module with its source at hand) that depends on
        its arguments alone.
    *args, **kwargs
        Its arguments: frames, arrays, posteriors, plain values, frozen dataclasses.

    Returns
    -------
    object
        The result; with it a JSON beside the kept file: function, settings, seconds, versions,
        and for a posterior its seeds and its convergence figures.

    Warns
    -----
    StoreWarning
        If a kept file is damaged (it is recomputed), or the store cannot be written to (the
        result is returned all the same).
    """
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    key = _key(function, args, kwargs)
    path = store_dir() / f"{name}-{key}.joblib"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    with _locked(path):
        with contextlib.suppress(FileNotFoundError):
            return _read(path)  # another process has computed it meanwhile
        start = time.perf_counter()
        result = function(*args, **kwargs)
        record = {
            "function": f"{function.__module__}.{function.__qualname__}",
            "key": key,
            "seconds": round(time.perf_counter() - start, 3),
            "settings": {k: _plain(v) for k, v in kwargs.items()},
            "versions": _versions(),
            **_describe(result),
        }
        _write(path, result, record)
    return result


def records() -> list[dict[str, Any]]:
    """Return what the JSON files of the store say, sorted by function and key."""
    found = []
    for path in sorted(store_dir().glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text("utf-8")))
    return found


def _key(function: Callable[..., Any], args: tuple, kwargs: dict) -> str:
    arguments = [_content(value) for value in args]
    arguments += [(name, _content(value)) for name, value in sorted(kwargs.items())]
    code = {module: _code(module) for module in sorted(_reachable(function.__module__))}
    named = (function.__module__, function.__qualname__)
    return joblib.hash((named, arguments, code, _versions()), hash_name="sha1")[:16]


def _content(value: Any) -> Any:
    """Reduce a value to what identifies its content."""
    if hasattr(value, "to_dict") and hasattr(value, "subtree"):  # an xarray DataTree
        return [(node.path, _content(node.to_dataset())) for node in value.subtree]
    if hasattr(value, "data_vars"):
        variables = {str(k): (v.dims, v.values) for k, v in value.variables.items()}
        # Attributes hold times of day; what was computed is in the variables.
        return sorted(variables.items(), key=lambda item: item[0])
    if hasattr(value, "to_numpy") and hasattr(value, "columns"):
        columns = [(str(name), str(value[name].dtype), value[name].to_numpy()) for name in value]
        return columns, value.index.to_numpy()
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__module__, value.__qualname__
    return value


@cache
def _reachable(module: str) -> frozenset[str]:
    """Return the module and every module of its package that it imports, however deep."""
    package = module.partition(".")[0]
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        source = _source(name)
        for node in ast.walk(ast.parse(source)):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            pending += [n for n in names if n.startswith(f"{package}.") and _is_module(n)]
    return frozenset(found)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return ""
    return Path(spec.origin).read_text("utf-8")


def _code(module: str) -> str:
    """Return the parsed source without docstrings: comments and prose change no result."""
    tree = ast.parse(_source(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def _read(path: Path) -> Any:
    """Read a kept result; a damaged one is reported and counts as absent."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if record["sha256"] != _digest(path):
            raise ValueError("its checksum does not match")
        return joblib.load(path)
    except Exception as error:  # whatever a damaged file makes the reader raise
        _warn(f"the kept file {path.name} is damaged and is recomputed: {error}")
        raise FileNotFoundError(path) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, result: Any, record: dict[str, Any]) -> None:
    """Write both files whole or not at all."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        temporary = Path(name)
        joblib.dump(result, temporary)
        record["sha256"] = _digest(temporary)
        side = temporary.with_suffix(".json.part")
        side.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(side, path.with_suffix(".json"))
        os.replace(temporary, path)
    except OSError as error:
        _warn(f"the result of {record['function']} could not be kept in {path.parent}: {error}")
        if temporary:
            for leftover in (temporary, temporary.with_suffix(".json.part")):
                with contextlib.suppress(OSError):
                    leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path):
    """Let one process at a time compute a result; without a writable store, none waits."""
    from filelock import FileLock

    lock = FileLock(str(path.with_suffix(".lock")))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _warn(message: str) -> None:
    warnings.warn(message, StoreWarning, stacklevel=4)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it, by its shape where it is large."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if hasattr(value, "describe") and hasattr(value, "__dataclass_fields__"):
        return value.describe()
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}{list(shape)}" if shape else repr(value)


def _describe(result: Any) -> dict[str, Any]:
    """Say of a posterior how it came about and whether it converged."""
    if not (hasattr(result, "subtree") and "posterior" in result.children):
        return {}
    described = {"attrs": {k: _plain(v) for k, v in result.attrs.items()}}
    if "sample_stats" in result.children:
        from hbm.diagnostics import check_diagnostics

        checked = check_diagnostics(result)
        described |= {
            "max_rhat": float(checked.table["max_rhat"].max()),
            "min_ess_bulk": float(checked.table["min_ess_bulk"].min()),
            "divergences": checked.divergences,
            "failures": list(checked.failures),
        }
    return described
