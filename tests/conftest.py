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


@pytest.fixture(scope="session")
def fabricate():
    """Return a function that dresses draws of the hyperparameters up as a sampled fit."""

    def fabricated(summaries, mu_global, sigma_genre, sigma_creator, seed=0):
        from hbm.data import validate_summaries
        from hbm.gaussian import Estimates, Hyper, creator_moments, genre_moments
        from hbm.model import as_datatree

        rng = np.random.default_rng(seed)
        hyper = np.broadcast_arrays(mu_global, sigma_genre, sigma_creator)
        shape = hyper[0].shape
        flat = Hyper(*(values.reshape(-1) for values in hyper))
        data = Estimates.from_frame(validate_summaries(summaries))
        genre = genre_moments(data, flat)
        mu_genre = rng.normal(genre.mean, np.sqrt(genre.var))
        creator = creator_moments(data, mu_genre, flat.sigma_creator)
        tau = data.unsort(rng.normal(creator.mean, np.sqrt(creator.var)))
        posterior = dict(zip(("mu_global", "sigma_genre", "sigma_creator"), hyper, strict=True))
        posterior |= {"mu_genre": mu_genre.reshape(*shape, -1), "tau": tau.reshape(*shape, -1)}
        stats = {
            "diverging": np.zeros(shape, bool),
            "reached_max_tree_depth": np.zeros(shape, bool),
            "energy": rng.normal(size=shape),
        }
        return as_datatree(summaries, posterior, stats, {"fixed": []})

    return fabricated
