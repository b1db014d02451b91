"""Results kept on disk by content: computed once, recomputed when anything they hang on changes.

The key of a result is the function, its arguments, the code it runs (the parsed source, without
docstrings, of its module and of every module of its package and of `hbm` that one imports) and
the versions of the libraries that compute. Beside each result lies a small JSON that says what
it is.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import joblib

from hbm import _MODULE_OF

#: Libraries whose versions can change a result.
LIBRARIES = ("numpy", "scipy", "pandas", "xarray", "arviz-stats", "pymc", "pytensor", "nutpie")


#: Modules edited later than this run here as they were before.
_STARTED = time.time()


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
        A function of a module with its source at hand, that depends on its arguments alone.
    *args, **kwargs
        Its arguments: frames, arrays, posteriors, plain values, frozen dataclasses, functions
        of modules, and lists and dictionaries of them.

    Returns
    -------
    object
        The result; with it a JSON beside the kept file: function, settings, seconds, versions,
        and for a posterior its seeds and its convergence figures.

    Raises
    ------
    ValueError
        If a function is a lambda, a method, or defined in another function or in a notebook: a
        change of its code would go unnoticed.

    Warns
    -----
    StoreWarning
        If a kept file is damaged (it is recomputed), the store cannot be written to, or the
        code was edited since this process began (the result is returned but not kept).
    """
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    key = _key(function, args, kwargs)
    path = store_dir() / f"{name}-{key}.joblib"
    with contextlib.suppress(FileNotFoundError):
        return _read(path, report=False)
    if edited := _edited(function):
        _warn(f"{edited} was edited since this process began: the result is not kept")
        return function(*args, **kwargs)
    with _locked(path):
        with contextlib.suppress(FileNotFoundError):
            return _read(path)  # another process has computed it meanwhile
        start = time.perf_counter()
        result = function(*args, **kwargs)
        record = {
            "function": f"{function.__module__}.{function.__qualname__}",
            "key": key,
            "state": _state(function.__module__, function.__qualname__),
            "seconds": round(time.perf_counter() - start, 3),
            "settings": {k: _plain(v) for k, v in kwargs.items()},
            "versions": _versions(),
            **_describe(result),
        }
        _write(path, result, record)
    return result


def records() -> list[dict[str, Any]]:
    """Return what the JSON files say of the results that the code, as it stands, would use.

    Results of code or of library versions that have changed since, or are gone, are left out.
    """
    found, state = [], cache(_state)  # which reads all that a function's module imports
    for path in sorted(store_dir().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, ImportError):
            record = json.loads(path.read_text("utf-8"))
            module, _, name = record["function"].rpartition(".")
            if record["state"] == state(module, name):
                found.append(record)
    return found


def _state(module: str, name: str) -> str:
    """Identify the code of a function and the libraries it runs with."""
    code = {m: _code(m) for m in sorted(_reachable(module))}
    return joblib.hash((module, name, code, _versions()), hash_name="sha1")[:16]


def _key(function: Callable[..., Any], args: tuple, kwargs: dict) -> str:
    identity = (_content(function), _content(args), _content(kwargs), _versions())
    return joblib.hash(identity, hash_name="sha1")[:16]


def _content(value: Any) -> Any:
    """Reduce a value to what identifies its content."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [_content(item) for item in value]
    if isinstance(value, dict):
        return {key: _content(item) for key, item in value.items()}
    if hasattr(value, "to_dict") and hasattr(value, "subtree"):  # an xarray DataTree
        # Without draws in it, the seed is what a function of it will draw by.
        groups = [(node.path, _content(node.to_dataset())) for node in value.subtree]
        return value.attrs.get("random_seed"), groups
    if hasattr(value, "data_vars"):
        variables = {str(k): (v.dims, v.values) for k, v in value.variables.items()}
        # Other attributes hold times of day; what was computed is in the variables.
        return sorted(variables.items(), key=lambda item: item[0])
    if hasattr(value, "to_numpy") and hasattr(value, "columns"):
        return [(name, _column(column)) for name, column in value.items()], value.index.to_numpy()
    if isinstance(value, partial):
        return "partial", _content(value.func), _content(value.args), _content(value.keywords)
    if inspect.isroutine(value) or inspect.isclass(value):
        module, name = value.__module__, value.__qualname__
        if module == "__main__" or "<" in name or inspect.ismethod(value):
            raise ValueError(f"{name} is no function of a module: its code cannot be part of a key")
        return module, name, {m: _code(m) for m in sorted(_reachable(module))}
    return value


def _column(column: Any) -> tuple:
    if hasattr(column, "cat"):  # the order of the categories is the order of the genres
        return column.cat.codes.to_numpy(), column.cat.categories.to_numpy(), column.cat.ordered
    return str(column.dtype), column.to_numpy()


@cache
def _reachable(module: str) -> frozenset[str]:
    """Return the module and every module of its package and of `hbm` it imports, however deep."""
    packages = (f"{module.partition('.')[0]}.", "hbm.")
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(_source(name))):
            names = _imported(node, importlib.util.find_spec(name).parent)
            pending += [n for n in names if n.startswith(packages) and _is_module(n)]
    return frozenset(found)


def _imported(node: ast.AST, package: str) -> list[str]:
    """Return what an import statement may name: modules, and names in modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    names = [alias.name for alias in node.names]
    if base == "hbm":
        names += [_MODULE_OF[name] for name in names if name in _MODULE_OF]
    return [base, *(f"{base}.{name}" for name in names)]


def _edited(function: Callable[..., Any]) -> str:
    """Return the name of a module whose file is newer than this process, if there is one."""
    for name in sorted(_reachable(function.__module__)):
        file = _file(name)
        if file and name in sys.modules and file.stat().st_mtime > _STARTED:
            return name
    return ""


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _file(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _source(module: str) -> str:
    file = _file(module)
    return file.read_text("utf-8") if file else ""


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


def _read(path: Path, *, report: bool = True) -> Any:
    """Read a kept result; a damaged one is reported and counts as absent."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if record["sha256"] != _digest(path):
            raise ValueError("its checksum does not match")
        return joblib.load(path)
    except Exception as error:  # whatever a damaged file makes the reader raise
        if report:
            _warn(f"the kept file {path.name} is damaged and is recomputed: {error}")
        raise FileNotFoundError(path) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, result: Any, record: dict[str, Any]) -> None:
    """Write both files whole or not at all."""
    side, part = path.with_suffix(".json"), path.with_suffix(f".{uuid.uuid4().hex}.part")
    side_part = part.with_suffix(".json.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        joblib.dump(result, part)
        record["sha256"] = _digest(part)
        side_part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(side_part, side)
        os.replace(part, path)
    except Exception as error:  # a full disk, or a result that cannot be pickled
        _warn(f"the result of {record['function']} could not be kept in {path.parent}: {error}")
        _remove(side, path)
    finally:
        _remove(part, side_part)


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path):
    """Let one process at a time compute a result; without a writable store, none waits."""
    from filelock import FileLock

    lock = FileLock(path.with_suffix(".lock"))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
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

        try:
            checked = check_diagnostics(result)
        except ValueError as error:  # too few draws to be checked
            return described | {"failures": [str(error)]}
        described |= {
            "max_rhat": float(checked.table["max_rhat"].max()),
            "min_ess_bulk": float(checked.table["min_ess_bulk"].min()),
            "divergences": checked.divergences,
            "failures": list(checked.failures),
        }
    return described
