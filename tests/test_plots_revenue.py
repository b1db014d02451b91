"""Figures of skewed revenue show the tables they are given, in both themes."""

import numpy as np
import pandas as pd
import pytest
from test_plots import ODD, darkened, texts, whole

from hbm import plots


def skew():
    grid = pd.MultiIndex.from_product([[0.5, 1.5], [100, 400, 1600]], names=["log_sd", "n"])
    table = grid.to_frame(index=False)
    columns = ("mse_ratio", "mse_ratio_se", "coverage", "coverage_se")
    for place, name in enumerate(columns):
        table[name] = 0.1 + np.linspace(0.5, 0.9, 6) / (place + 1)
    return table


def parts(names):
    n = len(names)
    frame = pd.DataFrame({"creator_id": names, "n_total": np.arange(n) * 1000 + 30})
    frame["more_payers"], frame["more_per_payer"] = np.linspace(-1, 1, n), 0.3
    frame["effect_hat"] = frame["more_payers"] + frame["more_per_payer"]
    return frame.assign(ci_lower=frame["effect_hat"] - 1, ci_upper=frame["effect_hat"] + 1)


FIGURES = {
    "skew": lambda: plots.plot_skew(skew()),
    "parts": lambda: plots.plot_revenue_parts(parts([f"c{i}" for i in range(9)]), np.zeros(9)),
    "odd names": lambda: plots.plot_revenue_parts(parts(list(ODD))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_whole(name):
    fig = whole(FIGURES[name])
    assert all(ax.get_xlabel() for ax in fig.axes)
    darkened(fig)


def test_skew_draws_the_figures_of_the_table():
    fig, table = plots.plot_skew(skew()), skew()
    for ax, measure in zip(fig.axes, ("mse_ratio", "coverage"), strict=True):
        lines = [bars.lines[0].get_ydata(orig=False) for bars in ax.containers]
        for line, (_, own) in zip(lines, table.groupby("log_sd"), strict=True):
            np.testing.assert_allclose(line, own[measure])


def test_parts_are_bars_and_their_sum_is_a_point():
    frame = parts(["c1", "c2", "c3"])
    ax = plots.plot_revenue_parts(frame, np.ones(3)).axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]
    np.testing.assert_allclose(widths, [frame["more_payers"], frame["more_per_payer"]])
    effect, truth = (line.get_xdata() for line in ax.lines[-2:])
    np.testing.assert_allclose(effect, frame["effect_hat"])
    np.testing.assert_allclose(truth, 1)
    assert any("1,030 users" in text for text in texts(ax.figure))
