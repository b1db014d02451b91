"""Figures of rollouts show the values of the tables they were given, on both pages."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from test_plots import fits, whole

from hbm import plots
from hbm.rollouts import borusyak_imputation_estimator
from hbm.rollouts.panels import generate_rollout_data
from hbm.rollouts.placebos import placebo_effects, pretrend_test

READOUTS = ("plain", "pooled", "pooled, shared errors")


@pytest.fixture(scope="module")
def data():
    panel, _ = generate_rollout_data(2, n_creators_per_genre=10, never_share=0.5)
    panel["creator_id"] = panel["creator_id"].replace("c10", "$x_1$ {\\frac")
    rows = [("independent", "plain"), *(("AR(1)", how) for how in READOUTS)]
    table = pd.DataFrame(rows, columns=["errors", "estimator"])
    table = table.assign(coverage=[0.7, 0.94, 0.95, 0.96], coverage_se=0.01)
    waves = pd.DataFrame(
        [(n, how, 0.9 + 0.01 * n / 100) for n in (5, 50) for how in READOUTS[1:]],
        columns=["n_never", "estimator", "coverage"],
    )
    waves = waves.assign(coverage_se=0.01, genre_coverage=0.8, genre_coverage_se=0.02)
    return SimpleNamespace(
        panel=panel,
        result=borusyak_imputation_estimator(panel, weights="n_users"),
        leads=pretrend_test(panel, weights="n_users").leads,
        placebos={"a": placebo_effects(panel), "b": placebo_effects(panel, source="before")},
        worlds={"one world": table, "$another_world": table.assign(coverage=0.5)},
        waves=waves,
    )


def picked(data):
    return list(data.result.ite["creator_id"][:2])


FIGURES = {
    "imputation": lambda d: plots.plot_imputation(d.panel, d.result.effects, picked(d)),
    "event_study": lambda d: plots.plot_event_study(d.result.event_study, d.leads),
    "effects_alone": lambda d: plots.plot_event_study(d.result.event_study),
    "placebos": lambda d: plots.plot_placebos(d.placebos),
    "rollout_coverage": lambda d: plots.plot_rollout_coverage(d.worlds),
    "shared_errors": lambda d: plots.plot_shared_errors(d.waves),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("size", [(7, 4.2), (6.3, 3.9)])
def test_figure_is_whole_in_both_themes(name, size, data):
    fig = whole(FIGURES[name], data, size=size)
    for version in (fig, plots.themed(fig, "dark")):
        fits(version)
        texts = [t for t in version.findobj(Text) if t.get_text() and t.get_visible()]
        assert not any(text.get_parse_math() for text in texts)
        legend = version.legends[0].get_window_extent()
        for ax in version.axes:
            assert not legend.overlaps(ax.xaxis.label.get_window_extent())
            assert ax.get_xlabel()
        assert version.axes[0].get_ylabel()


def test_imputation_shows_what_was_earned_and_imputed(data):
    fig = FIGURES["imputation"](data)
    spans = [np.ptp(ax.get_ylim()) for ax in fig.axes]
    assert spans[0] == pytest.approx(spans[1])
    for ax, creator in zip(fig.axes, picked(data), strict=True):
        own = data.panel[data.panel["creator_id"] == creator]
        imputed = data.result.effects[data.result.effects["creator_id"] == creator]
        lines = [line.get_xydata() for line in ax.get_lines()]
        assert lines[0][0, 0] == own["first_treated"].iloc[0] - 0.5
        np.testing.assert_allclose(lines[1], own[["period", "revenue"]])
        np.testing.assert_allclose(lines[2], imputed[["period", "imputed"]])


def test_event_study_shows_effects_intervals_and_counts(data):
    fig = FIGURES["event_study"](data)
    points = {tuple(p) for line in fig.axes[0].get_lines() for p in line.get_xydata()}
    segments = [s for c in fig.axes[0].collections for s in c.get_segments()]
    for frame in (data.result.event_study, data.leads):
        for row in frame.itertuples():
            assert (row.horizon, row.effect) in points
            ends = [[row.horizon, row.ci_lower], [row.horizon, row.ci_upper]]
            assert any(np.allclose(segment, ends) for segment in segments)
    said = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert f"0\n({data.result.event_study['n_creators'].iloc[0]})" in said


def test_placebos_name_their_factor_and_lose_nobody(data):
    fig = FIGURES["placebos"](data)
    for ax, (name, frame) in zip(fig.axes, data.placebos.items(), strict=True):
        factor = np.sqrt(np.mean(frame["z"] ** 2))
        assert ax.get_title() == f"{name}: factor {factor:.2f}"
        assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(1)


def test_coverage_is_at_its_place(data):
    fig = FIGURES["rollout_coverage"](data)
    marks = [line.get_xdata()[0] for line in fig.axes[0].get_lines() if line.get_marker() != "None"]
    assert marks == [0.7, 0.94, 0.95, 0.96]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["independent", "AR(1)"]
    waves = FIGURES["shared_errors"](data)
    drawn = [line.get_ydata() for line in waves.axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert any(np.allclose(y, 0.8) for y in drawn)
