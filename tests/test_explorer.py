"""What the explorer of readouts writes into a page."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from hbm import creator_readouts
from hbm.explorer import COLUMNS, creator_explorer

HOSTILE = 'a</script><img src=x onerror="alert(1)">'


@pytest.fixture
def readouts(users):
    table = creator_readouts(users)
    table.loc[1, "creator_id"] = HOSTILE
    unknown = ["pooled", "pooled_lower", "pooled_upper", "p_positive", "shrinkage"]
    table.loc[2, unknown] = np.nan
    return table


def state(markdown):
    return json.loads(re.search(r'id="explorer-data">(.*?)</script>', markdown, re.DOTALL)[1])


def test_holds_every_creator_once_with_the_highest_first_and_the_unknown_last(readouts):
    found = pd.DataFrame(state(creator_explorer(readouts, unit="points"))["rows"], columns=COLUMNS)
    assert sorted(found["creator_id"]) == sorted(readouts["creator_id"])
    assert found["pooled"].dropna().is_monotonic_decreasing
    assert np.isnan(found["pooled"].iloc[-1])
    both = found.merge(readouts, on="creator_id", suffixes=("", "_given"))
    for name in COLUMNS[2:-1]:
        np.testing.assert_allclose(both[name], both[f"{name}_given"], atol=0.5e-4)


def test_names_from_data_cannot_leave_their_place(readouts):
    markdown = creator_explorer(readouts, unit="points")
    assert HOSTILE in [row[0] for row in state(markdown)["rows"]]
    assert HOSTILE not in markdown
    assert markdown.count("<script") == markdown.count("</script") == 3  # the explorer's own
    assert markdown.count("<!--") == 1


def test_is_one_raw_block_that_asks_for_nothing_outside(readouts):
    markdown = creator_explorer(readouts, unit="points")
    first, *inside, last = markdown.splitlines()
    assert (first, last) == ("````````{=html}", "````````")
    assert not any(line.startswith("````````") for line in inside)
    assert not re.search(r'<(?:script|link|img)\b[^>]*\b(?:src|href)="', markdown)


def test_five_thousand_creators_fit_a_page(readouts):
    many = pd.concat([readouts] * 1000, ignore_index=True).head(5000)
    many["creator_id"] = [f"creator-{i:05}" for i in range(len(many))]
    assert len(creator_explorer(many, unit="points").encode()) < 1_500_000
