"""What the tests share."""

import numpy as np
import pandas as pd
import pytest

#: Monte Carlo errors a simulated figure may lie from its expectation: 6 in 100,000 by chance.
K = 4


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def users(rng):
    """A table small enough to be read: 6 creators of 3 genres, unequal arms."""
    rows = []
    for i in range(6):
        for group, n in (("treatment", 4 + 3 * i), ("control", 5 + i)):
            rows += [(f"c{i}", ["music", "comedy", "gaming"][i % 3], group)] * n
    table = pd.DataFrame(rows, columns=["creator_id", "genre", "group"])
    return table.assign(revenue=rng.gamma(2.0, 2.5, len(table)))
