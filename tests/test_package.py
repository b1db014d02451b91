"""The package as a whole: what it exports, who imports whom, and what importing costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hbm

FOLDER = Path(hbm.__file__).parent


def _name(path):
    """Name of a module within `hbm`; a folder is called like its ``__init__``."""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES = {_name(path): path.read_text("utf-8") for path in sorted(FOLDER.rglob("*.py"))}

#: A module imports only from those before it.
ORDER = [
    "intervals",
    "uniform",
    "replicate",
    "memory",
    "priors",
    "gaussian",
    "variance",
    "student",
    "checks",
    "files",
    "sizes",
    "data",
    "warehouse",
    "rollouts.panels",
    "covariance",
    "rollouts.twoway",
    "rollouts",
    "rollouts.placebos",
    "baselines",
    "diagnostics",
    "exact.likelihood",
    "exact.covariates",
    "exact.quadrature",
    "exact.rule",
    "exact.draws",
    "exact.loo",
    "exact",
    "exact.lattice",
    "model",
    "estimates",
    "exact.correlated",
    "learned",
    "validation",
    "robust",
    "studies",
    "arms",
    "assumptions",
    "sbc",
    "planted",
    "rollouts.study",
    "predictive",
    "sensitivity",
    "halves",
    "readout",
    "learned.conflict",
    "learned.study",
    "learned.forms",
    "grouping.thresholds",
    "grouping.candidates",
    "grouping.history",
    "grouping.explore",
    "grouping.compare",
    "grouping.checks",
    "grouping.select",
    "grouping.monitor",
    "grouping.study",
    "grouping.pitfalls",
    "grouping",
    "crossed.likelihood",
    "crossed.posterior",
    "crossed",
    "crossed.loo",
    "crossed.study",
    "crossed.calibration",
    "drift.process",
    "drift.axes",
    "drift.posterior",
    "drift",
    "drift.future",
    "drift.study",
    "drift.calibration",
    "revenue.simulate",
    "revenue.arms",
    "revenue.families",
    "revenue.laplace",
    "revenue.model",
    "revenue.dollars",
    "revenue.study",
    "revenue.scores",
    "revenue",
    "production.instant",
    "production.nightly",
    "production.variational",
    "production.study",
    "production",
    "store",
    "tables",
    "results",
    "explorer",
    "plots.look",
    "plots.posterior",
    "plots.estimates",
    "plots.hover",
    "plots.studies",
    "plots.calibration",
    "plots.robust",
    "plots.scale",
    "plots.rollouts",
    "plots.grouping",
    "plots.priors",
    "plots.crossed",
    "plots.drift",
    "plots.revenue",
    "plots.production",
    "plots",
]

#: Modules that draw: they import Matplotlib, and only chapters import them.
FIGURES = {name for name in SOURCES if name.split(".")[0] == "plots"}

#: Libraries that take seconds to import, and are imported where they are used.
HEAVY = {
    "pymc",
    "pytensor",
    "arviz",
    "nutpie",
    "numba",
    "matplotlib",
    "seaborn",
    "pandera",
    "ibis",
    "duckdb",
}


def imports(source):
    """Modules and names that any import statement of a source mentions, however deep."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def hbm_modules(source):
    for module, name in imports(source):
        if module.startswith("hbm.") or (module == "hbm" and name in SOURCES):
            inner = f"{module}.{name}".removeprefix("hbm.")
            yield inner if inner in SOURCES else module.removeprefix("hbm.")


def fresh(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(done.stdout)


def test_every_module_has_its_place():
    assert set(SOURCES) - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_its_left(module):
    allowed = set(ORDER[: ORDER.index(module)])
    assert set(hbm_modules(SOURCES[module])) <= allowed


@pytest.mark.parametrize("module", [m for m in SOURCES if m not in FIGURES])
def test_nothing_but_chapters_imports_the_figures(module):
    assert not FIGURES & set(hbm_modules(SOURCES[module]))


@pytest.mark.parametrize("module", [m for m in SOURCES if m != "store"])
def test_modules_import_from_modules_not_from_the_package(module):
    """Else the store would not see what a result hangs on."""
    names = {name for source, name in imports(SOURCES[module]) if source == "hbm"}
    assert names <= set(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_what_a_module_keeps_to_itself_is_imported_by_no_other(module):
    private = {(source, name) for source, name in imports(SOURCES[module]) if name.startswith("_")}
    assert private <= {("hbm", "_MODULE_OF")}  # by which the store follows public names


@pytest.fixture(scope="module")
def found():
    """What a fresh process sees once it has imported every module that draws nothing."""
    return fresh(f"""
import importlib, json, sys
for name in {[name for name in ORDER if name not in FIGURES]}:
    importlib.import_module(f"hbm.{{name}}")
heavy = sorted({{name.split(".")[0] for name in sys.modules}} & {HEAVY})
import hbm
public = {{
    name: [type(value).__name__, value.__name__, value.__module__, bool(value.__doc__)]
    for name in hbm.__all__
    for value in [getattr(hbm, name)]
}}
print(json.dumps({{"heavy": heavy, "public": public}}))
""")


def test_importing_the_modules_imports_nothing_heavy(found):
    assert found["heavy"] == []


def test_importing_hbm_costs_hardly_more_than_importing_pandas():
    def seconds(name):
        code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter()-t)"
        return min(fresh(code) for _ in range(3))

    assert seconds("hbm") <= 1.2 * seconds("pandas")


def test_every_public_name_can_be_imported_and_is_documented(found):
    assert set(found["public"]) == set(hbm._MODULE_OF) == set(dir(hbm))
    for name, (_, own, module, documented) in found["public"].items():
        assert own == name
        assert module == f"hbm.{hbm._MODULE_OF[name]}"
        assert documented, name


def test_the_promised_names_are_there():
    promised = {
        "generate_experiment_data",
        "summarize_creators",
        "no_pooling_estimates",
        "complete_pooling_estimates",
        "fit_hierarchical_model",
        "extract_hbm_estimates",
        "compute_mse",
        "compute_coverage",
        "compute_avg_interval_width",
        "compare_estimators",
        "check_diagnostics",
        "creator_readouts",
        "run_sbc",
        "borusyak_imputation_estimator",
        "borusyak_imputation_estimator_calibrated",
    }
    assert promised <= set(hbm.__all__)


def test_a_public_name_is_never_shadowed_by_a_module(found):
    """`from hbm import x` must give the function, also once every module has been imported."""
    assert not set(hbm.__all__) & set(SOURCES)
    assert {kind for kind, *_ in found["public"].values()} == {"function", "type"}


def test_unknown_names_are_errors():
    with pytest.raises(AttributeError, match="has no attribute 'fit_everything'"):
        hbm.fit_everything  # noqa: B018


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_is_short_and_says_what_it_is_for(module):
    assert len(SOURCES[module].splitlines()) <= 500
    assert ast.get_docstring(ast.parse(SOURCES[module]))


@pytest.mark.parametrize("module", [m for m in SOURCES if m != "__main__"])
def test_results_are_returned_and_warnings_not_swallowed(module):
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print"
            assert called not in {"warnings.filterwarnings", "warnings.simplefilter"}
