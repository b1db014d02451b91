"""Arms made by an engine are those made by pandas, and its errors are the same errors."""

import gzip
import shutil
from decimal import Decimal
from fractions import Fraction

import ibis
import numpy as np
import pandas as pd
import pytest

from hbm import (
    DataError,
    arms_from_warehouse,
    creator_readouts,
    generate_experiment_data,
    summarize_arms,
    validate_users,
)
from hbm.__main__ import BAD_INPUT, main
from hbm.warehouse import _read_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ibis.*")

#: Sums over users are rounded in another order, and the variance at an offset loses more.
ROUNDING = {"rtol": 1e-12, "atol": 1e-14}


def plain(users):
    """The same table with text columns, as files and warehouses hold it."""
    return users.astype(dict.fromkeys(("creator_id", "genre", "group"), "str"))


@pytest.fixture(scope="module")
def platform():
    """Shuffled, so that no engine finds a creator's users side by side."""
    users = generate_experiment_data(5, n_creators_per_genre=20)[0]
    return plain(users).sample(frac=1, random_state=5, ignore_index=True)


@pytest.fixture(scope="module")
def arms(platform):
    return summarize_arms(platform)


def in_memory(users):
    return ibis.memtable(users)


def parquet(users, folder):
    users.to_parquet(folder / "users.parquet", row_group_size=5000)
    return folder / "users.parquet"


def csv(users, folder):
    users.to_csv(folder / "users.csv", index=False)
    return str(folder / "users.csv")


def zipped(users, folder):
    users.to_csv(folder / "users.csv.gz", index=False)
    return folder / "users.csv.gz"


def pattern(users, folder):
    """Two files whose columns stand in different order."""
    users.iloc[:1000].to_parquet(folder / "a.parquet")
    users.iloc[1000:, ::-1].to_parquet(folder / "b.parquet")
    (folder / "c.txt").write_text("not mine")
    return str(folder / "*.parquet")


def folder_of_an_engine(users, folder):
    (folder / "day.parquet").mkdir()  # Spark calls folders so
    users.iloc[:1000].to_parquet(folder / "day.parquet" / "part-0.parquet")
    users.iloc[1000:].to_parquet(folder / "part-1.parquet")
    (folder / "_SUCCESS").write_text("")
    (folder / ".part-1.parquet.crc").write_bytes(b"crc")
    return folder


def folder_with_copies(users, folder):
    """What a notebook, Spark and Delta leave in folders beside the table is not the table."""
    for place in (".ipynb_checkpoints", "_temporary/0", "day=1/_delta_log", "_day=2"):
        (folder / place).mkdir(parents=True)
        users.to_csv(folder / place / "copy.csv", index=False)
    users.iloc[:1000].to_csv(folder / "_day=2" / "copy.csv", index=False)
    users.iloc[1000:].to_csv(folder / "users.csv", index=False)
    return folder


@pytest.mark.parametrize(
    "place", [parquet, csv, zipped, pattern, folder_of_an_engine, folder_with_copies]
)
def test_arms_of_files_are_those_of_pandas(platform, arms, place, tmp_path):
    made = arms_from_warehouse(place(platform, tmp_path))
    pd.testing.assert_frame_equal(made, arms, **ROUNDING)


def test_arms_of_a_table_are_those_of_pandas(platform, arms):
    pd.testing.assert_frame_equal(arms_from_warehouse(in_memory(platform)), arms, **ROUNDING)


def test_a_sound_table_is_read_once(platform, monkeypatch):
    """One query, and it returns no more than a row for each arm."""
    fetched = []
    to_pandas = ibis.Table.to_pandas

    def counted(table, **how):
        fetched.append(to_pandas(table, **how))
        return fetched[-1]

    monkeypatch.setattr(ibis.Table, "to_pandas", counted)
    arms_from_warehouse(in_memory(platform))
    assert [len(frame) for frame in fetched] == [2 * platform["creator_id"].nunique()]


def naive_variance(values):
    n = len(values)
    return (np.square(values).sum() - values.sum() ** 2 / n) / (n - 1)


def test_variances_far_from_zero_are_exact_to_many_digits():
    """Against rational arithmetic; the sum of squares would lose them."""
    rng = np.random.default_rng(1)
    revenue = 1e6 + rng.normal(0, 0.01, 4000)
    users = pd.DataFrame(
        {
            "creator_id": "a",
            "genre": "x",
            "group": np.repeat(["control", "treatment"], 2000),
            "revenue": revenue,
        }
    )
    made = arms_from_warehouse(in_memory(users)).iloc[0]
    for group, values in users.groupby("group")["revenue"]:
        exact = [Fraction(value) for value in values]
        mean = sum(exact) / len(exact)
        var = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
        assert made[f"mean_{group}"] == pytest.approx(float(mean), rel=1e-15)
        assert made[f"var_{group}"] == pytest.approx(float(var), rel=1e-9)
        assert abs(naive_variance(values.to_numpy()) / float(var) - 1) > 1e-3


def test_an_absent_arm_and_an_arm_of_one_user():
    users = pd.DataFrame(
        [("b", "x", "treatment", 1.0), ("b", "x", "treatment", 3.0), ("a", "y", "control", 2.0)],
        columns=["creator_id", "genre", "group", "revenue"],
    )
    made = arms_from_warehouse(in_memory(users))
    pd.testing.assert_frame_equal(made, summarize_arms(users))
    assert made["n_treatment"].tolist() == [0, 2]
    assert made[["mean_treatment", "var_treatment", "var_control"]].iloc[0].isna().all()


def test_no_progress_bar_is_printed(platform, tmp_path):
    """DuckDB draws one for queries that take seconds, wherever its output goes."""
    table = _read_files(parquet(platform, tmp_path), "users")
    asked = "SELECT current_setting('enable_progress_bar')"
    assert table.get_backend().raw_sql(asked).fetchone() == (False,)


def test_ids_and_genres_of_csv_stay_as_they_are(tmp_path):
    users = pd.DataFrame(
        {
            "creator_id": ["007", "7", 'a "b", c', "日本"] * 2,
            "genre": ["NA", "null", "1.0", "true"] * 2,
            "group": np.repeat(["control", "treatment"], 4),
            "revenue": np.arange(8) / 10,
        }
    )
    made = arms_from_warehouse(csv(users, tmp_path))
    pd.testing.assert_frame_equal(made, summarize_arms(users))


@pytest.mark.parametrize("kind", ["int16", "int64", "float32", "decimal", "text"])
def test_revenue_of_any_numeric_type(arms, platform, kind):
    cents = (100 * platform["revenue"]).round().astype("int16")
    expected = summarize_arms(platform.assign(revenue=cents))
    values = {
        "decimal": lambda: [Decimal(int(value)) for value in cents],
        "text": lambda: cents.astype("str"),
    }.get(kind, lambda: cents.astype(kind))()
    made = arms_from_warehouse(in_memory(platform.assign(revenue=values)))
    pd.testing.assert_frame_equal(made, expected, **ROUNDING)


def test_integer_ids_stay_integers():
    users = pd.DataFrame(
        {
            "creator_id": [10, 9, 9, 10],
            "genre": [2, 1, 1, 2],
            "group": ["control", "control", "treatment", "treatment"],
            "revenue": [1.0, 2.0, 3.0, 4.0],
        }
    )
    pd.testing.assert_frame_equal(arms_from_warehouse(in_memory(users)), summarize_arms(users))


# --- tables that break a rule -------------------------------------------------------------------

SOUND = pd.DataFrame(
    {
        "creator_id": ["a", "a", "b", "b", "c", "c"],
        "genre": ["x", "x", "y", "y", "x", "x"],
        "group": ["control", "treatment"] * 3,
        "revenue": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "user_id": [1, 2, 1, 2, 1, 2],
    }
)

BREACHES = {
    "creator missing": {"creator_id": (1, None)},
    "genre missing": {"genre": (2, None)},
    "group missing": {"group": (4, None)},
    "group unknown": {"group": ([2, 5], "placebo")},
    "revenue missing": {"revenue": (0, np.nan)},
    "revenue infinite": {"revenue": ([3, 4], [np.inf, -np.inf])},
    "two genres": {"genre": (2, "x")},
    "user twice in an arm": {"group": (1, "control"), "user_id": (1, 1)},
    "user in both arms": {"user_id": (5, 1)},
}


def broken(breach):
    users = SOUND.copy()
    for column, (rows, value) in breach.items():
        users.loc[rows, column] = value
    return users


def message(function, *arguments, **how):
    with pytest.raises(DataError) as caught:
        function(*arguments, **how)
    return str(caught.value)


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
def test_errors_are_those_of_a_users_frame(breach, tmp_path):
    users = broken(breach)
    expected = message(validate_users, users)
    assert message(arms_from_warehouse, in_memory(users)) == expected
    expected = message(validate_users, users, source="users.parquet")
    assert message(arms_from_warehouse, parquet(users, tmp_path)) == expected


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
def test_a_breach_among_many_users_is_found_too(breach, platform):
    """Counted, and named first where it stands first by id."""
    users = broken(breach)
    users["user_id"] = users["user_id"].astype("int64")
    many = platform.assign(user_id=np.arange(len(platform)) + 10)
    found = message(arms_from_warehouse, in_memory(pd.concat([many, users], ignore_index=True)))
    assert found == message(validate_users, users)


def test_text_that_is_no_number_is_named(tmp_path):
    users = SOUND.astype({"revenue": "object"})
    users.loc[[2, 3], "revenue"] = "many"
    found = message(arms_from_warehouse, csv(users, tmp_path))
    assert found == (
        "users.csv: column 'revenue' must be a number; 2 rows break it, first creators: "
        "'b' ('many')"
    )


def test_no_more_than_five_offenders_are_named(platform):
    users = platform.assign(group=platform["group"].replace("control", "placebo"))
    found = message(arms_from_warehouse, in_memory(users))
    assert f"{platform['group'].eq('control').sum():,} rows break it" in found
    assert found.endswith("'c004' ('placebo'), 'c005' ('placebo')")


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (SOUND.drop(columns=["genre", "revenue"]), "missing columns genre, revenue"),
        (SOUND.iloc[:0], "the table has no rows"),
        (SOUND.assign(revenue=True), "must be numeric, its type is bool"),
    ],
    ids=["columns", "rows", "type"],
)
def test_other_breaches(table, complaint):
    assert complaint in message(arms_from_warehouse, in_memory(table))


def test_a_frame_is_no_warehouse(platform):
    assert "an Ibis table or a path is needed" in message(arms_from_warehouse, platform)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*\*\.parquet"):
        arms_from_warehouse(tmp_path / "*.parquet")
    with pytest.raises(FileNotFoundError, match="no such file"):
        arms_from_warehouse(tmp_path)  # an empty folder
    for name, content, complaint in (
        ("empty.csv", b"", "the file is empty"),
        ("bad.parquet", b"creator_id,genre\n", "bad.parquet: the files cannot be read"),
        ("bad.csv.gz", b"creator_id", "bad.csv.gz: the files cannot be read"),
        ("users.xlsx", b"PK", "known endings are .csv, .csv.gz and .parquet"),
    ):
        (tmp_path / name).write_bytes(content)
        assert complaint in message(arms_from_warehouse, tmp_path / name)
    assert "not mixed" in message(arms_from_warehouse, tmp_path / "bad*")


def test_parquet_that_calls_itself_csv(tmp_path):
    SOUND.to_parquet(tmp_path / "users.csv", engine="pyarrow")
    assert message(arms_from_warehouse, tmp_path / "users.csv").startswith("users.csv: ")


def test_a_csv_cut_short_is_refused(tmp_path):
    path = tmp_path / "users.csv.gz"
    path.write_bytes(gzip.compress(SOUND.to_csv(index=False).encode() * 200)[:-40])
    assert "cannot be read" in message(arms_from_warehouse, path)


# --- what comes after -----------------------------------------------------------------------------


def test_readouts_of_arms_are_those_of_users(platform):
    made = creator_readouts(arms_from_warehouse(in_memory(platform)), expected_share=0.5)
    expected = creator_readouts(platform, expected_share=0.5)
    pd.testing.assert_frame_equal(made, expected, rtol=1e-9)


def test_the_command_reads_a_pattern(platform, tmp_path, capsys):
    files, output = pattern(platform, tmp_path), tmp_path / "readouts.csv"
    assert main(["readout", files, "--output", str(output)]) == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(output, keep_default_na=False),
        creator_readouts(platform),
        check_dtype=False,
        rtol=1e-6,
    )
    assert f"{len(platform):,} users, 100 creators" in capsys.readouterr().out
    assert main(["readout", str(tmp_path / "no*.parquet")]) == BAD_INPUT


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
@pytest.mark.filterwarnings("ignore:::pyspark.*")
def test_spark_gives_the_same_from_the_same_expression(platform, tmp_path, monkeypatch):
    """Results and errors on an engine of another make, local but the one that clusters run."""
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    from pyspark.sql import SparkSession

    settings = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2"}
    session = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    try:
        engine = ibis.pyspark.connect(session)

        def in_spark(users, name):
            path = tmp_path / f"{name}.parquet"
            users.to_parquet(path)
            return engine.read_parquet(path, table_name=name)

        far = platform.assign(revenue=1e6 + platform["revenue"])
        made = arms_from_warehouse(in_spark(far, "far"))
        pd.testing.assert_frame_equal(made, arms_from_warehouse(in_memory(far)), rtol=1e-9)
        pd.testing.assert_frame_equal(made, summarize_arms(far), rtol=1e-9)
        for number, breach in enumerate(BREACHES.values()):
            users = broken(breach)
            found = message(arms_from_warehouse, in_spark(users, f"broken_{number}"))
            assert found == message(validate_users, users)
    finally:
        session.stop()
