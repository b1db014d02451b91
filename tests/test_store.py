"""A kept result is the result: found again, and never where anything it hangs on has changed."""

import contextlib
import errno
import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from hbm import store
from hbm.data import summarize_creators
from hbm.priors import HalfCauchy, HalfNormal, Priors
from hbm.store import StoreWarning, kept, records

LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HBM_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


class Package:
    """A package on the path whose sources a test can edit, as if before this process began."""

    def __init__(self, path, monkeypatch):
        self.path = path / "tried"
        self.path.mkdir()
        monkeypatch.syspath_prepend(str(path))
        self.write("__init__", "")
        self.write("tools", "def twice(x):\n    return 2 * x\n")
        self.write(
            "study",
            """
            import os
            from pathlib import Path
            from tried.tools import twice

            def run(x=1, *others, **settings):
                with open(os.environ["CALLS"], "a") as calls:
                    calls.write("run\\n")
                return twice(x)

            def apply(function):
                return function(3)
            """,
        )

    def write(self, name, source, edited=LONG_AGO):
        file = self.path / f"{name}.py"
        file.write_text(textwrap.dedent(source))
        os.utime(file, (edited, edited))
        self.forget()

    def forget(self):
        """Start over, as a fresh process would."""
        for name in [n for n in sys.modules if n.partition(".")[0] == "tried"]:
            del sys.modules[name]
        for cache in self.path.glob("__pycache__/*"):
            cache.unlink()
        importlib.invalidate_caches()
        store._reachable.cache_clear()

    @property
    def study(self):
        return importlib.import_module("tried.study")


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    made = Package(tmp_path, monkeypatch)
    yield made
    made.forget()


def calls():
    with contextlib.suppress(FileNotFoundError), open(os.environ["CALLS"]) as file:
        return len(file.readlines())
    return 0


# --- the key ------------------------------------------------------------------------------------


def test_the_same_call_is_computed_once(package, folder):
    assert [kept(package.study.run, 4) for _ in range(3)] == [8, 8, 8]
    package.forget()
    assert kept(package.study.run, 4) == 8
    assert calls() == 1
    names = sorted(path.name.partition("-")[0] for path in folder.iterdir())
    assert set(names) == {"study.run"}
    assert len([p for p in folder.iterdir() if p.suffix != ".lock"]) == 2


def test_results_of_none_and_false_are_kept_like_others(package):
    for value in (0, 0.0, -0.0):
        assert kept(package.study.run, value) == kept(package.study.run, value)
    assert calls() == 3


FRAME = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
TREE = xr.DataTree.from_dict({"posterior": xr.Dataset({"mu": ("draw", [1.0, 2.0])})})


def seeded(seed):
    tree = TREE.copy()
    tree.attrs.update(random_seed=seed, created_at=f"{seed} o'clock")
    return tree


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (1, True),
        (1, "1"),
        (None, "None"),
        ([1, 2], (1, 2)),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        (np.arange(3), np.arange(3.0)),
        (np.arange(4), np.arange(4).reshape(2, 2)),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (Priors(), Priors(sigma_genre=HalfNormal(2.0))),
        (HalfNormal(1.0), HalfCauchy(1.0)),
        (FRAME, FRAME.assign(a=[1.0, 2.0 + 1e-15])),
        (FRAME, FRAME.astype({"a": "float32"})),
        (FRAME, FRAME[["b", "a"]]),
        (FRAME, FRAME.rename(columns={"a": "c"})),
        (FRAME, FRAME.set_index(pd.Index([1, 2]))),
        (FRAME, FRAME.iloc[::-1]),
        ({"x": FRAME}, {"x": FRAME.iloc[::-1]}),
        (
            FRAME.astype({"b": pd.CategoricalDtype(["x", "y"])}),
            FRAME.astype({"b": pd.CategoricalDtype(["y", "x"])}),
        ),
        (TREE, TREE.map_over_datasets(lambda node: node + 1)),
        (seeded(1), seeded(2)),
    ],
)
def test_every_part_of_an_argument_counts(package, one, other):
    run = package.study.run

    def key(*args, **kwargs):
        return store._key(run, args, kwargs)

    assert key(one) == key(one)
    assert key(one) != key(other)
    assert key(x=one) != key(x=other)
    assert key(x=one) != key(y=one)
    assert key(one, 5) != key(5, one)
    assert key(a=1, b=2) == key(b=2, a=1)


def test_equal_content_is_the_same_wherever_it_came_from(package, users):
    def key(*args):
        return store._key(package.study.run, args, {})

    again = users.copy()
    for column in ("creator_id", "genre", "group"):
        again[column] = ["".join(list(text)) for text in users[column]]
    before = key({"a": users}, users["revenue"])
    users["revenue"].mean(), users.loc[0], users.index.is_unique, users.groupby("genre").size()
    assert key({"a": users}, users["revenue"]) == before
    assert key({"a": again}, again["revenue"]) == before
    assert key(users.astype({"genre": "object"})) == key(again.astype({"genre": "object"}))
    dated = TREE.copy()
    dated.attrs["created_at"] = "noon"
    assert key(TREE) == key(dated)


def test_the_order_of_genres_is_not_lost(users):
    """The same labels in another order of categories are numbered otherwise."""
    orders = [["music", "comedy", "gaming"], ["gaming", "music", "comedy"]]
    first, second = (
        kept(summarize_creators, users.astype({"genre": pd.CategoricalDtype(order)}))
        for order in orders
    )
    assert first.groupby("genre_idx")["genre"].first().tolist() == orders[0]
    assert second.groupby("genre_idx")["genre"].first().tolist() == orders[1]


def changed(package, name, old, new, edited=LONG_AGO):
    source = (package.path / f"{name}.py").read_text()
    assert old in source
    package.write(name, source.replace(old, new), edited)


def test_a_change_of_the_code_is_noticed(package):
    assert kept(package.study.run, 4) == 8
    changed(package, "study", "return twice(x)", "return twice(x) + 1")
    assert kept(package.study.run, 4) == 9
    changed(package, "tools", "2 * x", "3 * x")
    assert kept(package.study.run, 4) == 13
    assert calls() == 3


@pytest.mark.parametrize(
    "statement",
    [
        "from tried import deep",
        "import tried.deep as deep",
        "from . import deep",
        "from .deep import factor",
        "from tried.deep import factor",
    ],
)
def test_modules_are_followed_however_they_are_imported(package, statement):
    package.write("deep", "factor = 2\n")
    use = "factor" if statement.endswith("factor") else "deep.factor"
    package.write("tools", f"def twice(x):\n    {statement}\n    return {use} * x\n")
    assert kept(package.study.run, 4) == 8
    changed(package, "deep", "2", "5")
    assert kept(package.study.run, 4) == 20


def test_other_packages_code_of_hbm_is_followed(package):
    changed(package, "study", "import os", "import os\nfrom hbm import fit_hierarchical_model")
    reached = store._reachable("tried.study")
    assert {"tried.study", "tried.tools", "hbm.model", "hbm.gaussian", "hbm.data"} <= reached


def test_prose_in_the_code_is_not_noticed(package):
    assert kept(package.study.run, 4) == 8
    changed(package, "study", "import os", '"""About."""\n\n# why\nimport os')
    changed(package, "study", "**settings):", '**settings):\n    """Say more."""')
    changed(package, "tools", "2 * x", "2  *  x  # twice")
    assert kept(package.study.run, 4) == 8
    assert calls() == 1


def test_modules_that_are_not_imported_do_not_count(package):
    package.write("unused", "a = 1\n")
    kept(package.study.run, 4)
    changed(package, "unused", "1", "2")
    kept(package.study.run, 4)
    assert calls() == 1


def test_a_new_version_of_a_library_is_noticed(package, monkeypatch):
    assert {"numpy", "scipy", "pandas", "pymc", "pytensor", "nutpie"} <= set(store._versions())
    kept(package.study.run, 4)
    newer = {**store._versions(), "nutpie": "99.0"}
    monkeypatch.setattr(store, "_versions", lambda: newer)
    kept(package.study.run, 4)
    assert calls() == 2


def test_the_code_of_a_function_that_is_passed_counts(package):
    package.write("other", "def f(x):\n    return x\n")

    def result(wrap):
        return kept(package.study.apply, wrap(importlib.import_module("tried.other").f))

    for wrap in (lambda f: f, partial):
        assert result(wrap) == 3
        changed(package, "other", "return x", "return x + 1")
        assert result(wrap) == 4
        package.write("other", "def f(x):\n    return x\n")


def test_the_settings_of_a_partial_count(package):
    power = partial(pow, 2)
    assert kept(package.study.apply, power) == 8
    assert kept(package.study.apply, partial(pow, exp=2)) == 9
    assert kept(package.study.apply, partial(pow, 2)) == 8


def test_functions_that_cannot_be_identified_are_refused(package):
    def local(x):
        return x

    for function in (local, lambda x: x, FRAME.head, Package.__init__.__get__(package)):
        with pytest.raises(ValueError, match="no function of a module"):
            kept(package.study.apply, function)
        with pytest.raises(ValueError, match="no function of a module"):
            kept(function, 3)


def test_code_edited_under_a_running_process_is_not_kept(package, folder):
    """What is in memory is older than what would be part of the key."""
    run = package.study.run
    kept(run, 4)
    source = (package.path / "tools.py").read_text().replace("2 * x", "7 * x")
    (package.path / "tools.py").write_text(source)
    os.utime(package.path / "tools.py", (time.time() + 60,) * 2)
    with pytest.warns(StoreWarning, match=r"tried\.tools was edited since"):
        assert kept(run, 4) == 8
    assert len(list(folder.glob("*.joblib"))) == 1
    package.write("tools", source)
    assert kept(package.study.run, 4) == 28


# --- damage -------------------------------------------------------------------------------------


def only(folder, pattern="*.joblib"):
    (path,) = folder.glob(pattern)
    return path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "one bit": lambda path: flip(path),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "another result": lambda path: joblib.dump([1, 2], path),
    "no description": lambda path: path.with_suffix(".json").unlink(),
    "description cut": lambda path: path.with_suffix(".json").write_text("{"),
    "description emptied": lambda path: path.with_suffix(".json").write_text("{}"),
    "description a list": lambda path: path.with_suffix(".json").write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_recomputed_and_said_so(package, folder, kind):
    run = package.study.run
    expected = kept(run, np.arange(5.0))
    DAMAGES[kind](only(folder))
    with pytest.warns(StoreWarning, match="damaged and is recomputed") as caught:
        np.testing.assert_array_equal(kept(run, np.arange(5.0)), expected)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(kept(run, np.arange(5.0)), expected)
    assert calls() == 2


def test_a_lost_file_is_recomputed(package, folder):
    kept(package.study.run, 4)
    only(folder).unlink()
    assert kept(package.study.run, 4) == 8
    assert calls() == 2


# --- stores that cannot be written to -----------------------------------------------------------


def leftovers(folder):
    return [path.name for path in folder.glob("*") if path.suffix != ".lock"]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HBM_STORE", str(tmp_path / "file" / "store"))
    for _ in range(2):
        with pytest.warns(StoreWarning, match="could not be kept in"):
            assert kept(package.study.run, 4) == 8
    assert calls() == 2
    assert records() == []


@pytest.mark.parametrize("step", ["replace", "second replace", "dump", "text"])
def test_a_full_disk_leaves_no_halves(package, folder, monkeypatch, step):
    run = package.study.run
    if step == "dump":

        def dump_some(value, path):
            path.write_bytes(b"half")
            full()

        monkeypatch.setattr(joblib, "dump", dump_some)
    elif step == "text":
        monkeypatch.setattr(store.Path, "write_text", full)
    elif step == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        replace, done = os.replace, []
        monkeypatch.setattr(
            os, "replace", lambda a, b: full() if done else done.append(replace(a, b))
        )
    with pytest.warns(StoreWarning, match="No space left"):
        assert kept(run, 4) == 8
    assert leftovers(folder) == []
    assert records() == []
    monkeypatch.undo()
    monkeypatch.setenv("HBM_STORE", str(folder))
    monkeypatch.setenv("CALLS", str(folder.parent / "calls"))
    assert kept(run, 4) == 8
    assert len(leftovers(folder)) == 2


def test_a_result_that_cannot_be_pickled_is_returned(package, folder):
    package.write("study", "def run():\n    return lambda: 5\n")
    with pytest.warns(StoreWarning, match="could not be kept"):
        assert kept(package.study.run)() == 5
    assert leftovers(folder) == []


def test_what_the_function_raises_is_raised_and_not_kept(package, folder):
    package.write("study", "def run(x):\n    return 1 / x\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept(package.study.run, 0)
    assert leftovers(folder) == []
    assert kept(package.study.run, 2) == 0.5


# --- several processes --------------------------------------------------------------------------

_SLOW = """
import os, time

def run(x):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write("run\\n")
    if "DIE" in os.environ:
        os._exit(9)
    time.sleep(1.0)
    return x + 1
"""


_CALL = (
    "import sys; sys.path.insert(0, sys.argv[1]); import tried.study;"
    "from hbm.store import kept;"
    "sys.exit(kept(tried.study.run, 1))"
)


def process(tmp_path, **environment):
    command = [sys.executable, "-c", _CALL, str(tmp_path)]
    return subprocess.Popen(command, env=os.environ | environment)


def test_processes_at_once_compute_once(package, tmp_path):
    package.write("study", _SLOW)
    running = [process(tmp_path) for _ in range(3)]
    assert [one.wait() for one in running] == [2, 2, 2]
    assert calls() == 1


def test_a_process_that_dies_does_not_block_the_next(package, tmp_path):
    package.write("study", _SLOW)
    assert process(tmp_path, DIE="yes").wait() == 9
    assert calls() == 1
    assert kept(package.study.run, 1) == 2
    assert calls() == 2


# --- descriptions -------------------------------------------------------------------------------


def test_the_description_says_what_the_file_is(package, folder):
    kept(package.study.run, 4, priors=Priors(), data=FRAME, seed=7)
    (record,) = records()
    assert record["function"] == "tried.study.run"
    assert record["settings"] == {
        "priors": Priors().describe(),
        "data": "DataFrame[2, 2]",
        "seed": 7,
    }
    assert record["seconds"] >= 0
    assert record["versions"]["numpy"] == np.__version__
    assert only(folder).name == f"study.run-{record['key']}.joblib"
    assert json.loads(only(folder, "*.json").read_text("utf-8")) == record


def test_records_skip_what_is_no_description(package, folder):
    kept(package.study.run, 4)
    (folder / "a.json").write_text("{")
    assert len(records()) == 1


def test_records_leave_out_what_code_that_is_gone_computed(package, folder):
    kept(package.study.run, 4)
    (path,) = folder.glob("*.json")
    record = json.loads(path.read_text("utf-8"))
    gone = record | {"function": record["function"].replace(".study.", ".gone.")}
    assert gone != record
    (folder / "a.json").write_text(json.dumps(gone))
    assert records() == [record]


def test_records_leave_out_what_other_versions_computed(package, monkeypatch):
    kept(package.study.run, 4)
    assert len(records()) == 1
    monkeypatch.setattr(store, "_versions", lambda: {"numpy": "0.1"})
    assert records() == []


def test_the_store_lies_beside_the_package_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HBM_STORE", "")
    assert store.store_dir().name == ".store"
    assert (store.store_dir().parent / "hbm" / "store.py").is_file()
    monkeypatch.setenv("HBM_STORE", str(tmp_path))
    assert store.store_dir() == tmp_path
