"""Figures of crossed groupings show the tables they are given, whatever the names and the theme."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from test_plots import ODD, darkened, png, points, texts, whole

from hbm import plots
from hbm.crossed.study import ERRORS


def build(genres=("comedy", "music", "gaming", "news")):
    """Everything that a figure can be given, made up."""
    rng = np.random.default_rng(5)
    segments = ["teens", "workers"]
    cells = pd.MultiIndex.from_product([genres, segments], names=["genre", "segment"])
    mean = rng.normal(0.5, 0.4, len(cells))
    cells = pd.DataFrame({"n_creators": range(len(cells)), "mean": mean}, cells).reset_index()
    cells = cells.assign(lower=mean - 0.3, upper=mean + 0.2, own=mean + 0.1, truth=mean - 0.1)
    cells.loc[0, "own"] = np.nan

    def summary(models, reference):
        table = pd.DataFrame({"model": models})
        for error in ERRORS:
            table[f"{error}_ratio"] = rng.uniform(0.4, 5.0, len(models))
            table[f"{error}_ratio_se"] = 0.05
        ratios = [f"{error}_ratio" for error in ERRORS]
        table.loc[table["model"] == reference, ratios] = 1.0
        return table

    models = ["Genre only", "Cells as one factor", "Crossed"]
    return {
        "cells": cells,
        "study": {world: summary(models, "Crossed") for world in ("both matter", "one")},
        "prior": {truth: summary(["0.05", "0.25", "1"], "0.25") for truth in ("σ = 0", "σ = 1")},
    }


FIGURES = {
    "cells": lambda d: plots.plot_cells(d["cells"]),
    "study": lambda d: plots.plot_crossed_study(d["study"]),
    "prior": lambda d: plots.plot_interaction_prior(d["prior"]),
}


@pytest.fixture(scope="module")
def data():
    return build()


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_whole(name, data):
    fig = whole(FIGURES[name], data)
    assert fig.axes[-1].get_xlabel() or not fig.axes[-1].get_visible()


@pytest.mark.parametrize("name", FIGURES)
def test_dark_changes_colours_and_nothing_else(name, data):
    darkened(FIGURES[name](data))


def test_names_from_data_are_text():
    fig = plots.plot_cells(build(ODD)["cells"])
    png(fig)
    assert not any(text.get_parse_math() for text in fig.findobj(Text))
    assert all(genre in "\n".join(texts(fig)) for genre in ODD)


def test_every_cell_is_drawn_with_its_estimate_and_its_truth(data):
    fig, cells = plots.plot_cells(data["cells"]), data["cells"]
    for ax, (genre, own) in zip(fig.axes, cells.groupby("genre", sort=False), strict=False):
        assert ax.get_title() == genre
        drawn = np.concatenate([c.get_offsets().compressed()[::2] for c in points(ax)])
        for column in ("mean", "own", "truth"):
            known = own[column].dropna()
            assert np.isin(known.round(9), drawn.round(9)).all(), column
        labels = [text.get_text() for text in ax.texts]
        assert labels == [
            f"{s} ({n})" for s, n in zip(own["segment"], own["n_creators"], strict=True)
        ]
    assert "points" in " ".join(texts(plots.plot_cells(cells, unit="points")))


def test_the_reference_is_the_line_and_no_point(data):
    fig = plots.plot_crossed_study(data["study"])
    assert fig.axes[0].get_legend_handles_labels()[1] == ["Genre only", "Cells as one factor"]
    table = data["study"]["one"].set_index("model")
    for ax, measure in zip(
        fig.axes, ("mse_ratio", "cell_mse_ratio", "empty_mse_ratio"), strict=True
    ):
        drawn = [line.get_xdata() for line in ax.lines]
        assert any(table.loc["Genre only", measure] in values for values in drawn)
        # 1 twice: the line across. A reference drawn as points would give one for each world.
        assert sum(np.all(np.asarray(values) == 1) for values in drawn) == 1
