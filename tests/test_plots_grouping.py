"""Figures of groupings show the tables they are given, in both themes and with any names."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from test_plots import ODD, darkened, level, png, points, texts, whole

from hbm import plots
from hbm.estimates import extract_hbm_estimates
from hbm.grouping.candidates import create_grouping, discover_clusters
from hbm.grouping.checks import analyze_shrinkage, check_posterior_separation
from hbm.grouping.compare import compare_groupings_empirical
from hbm.grouping.explore import explore_groupings
from hbm.grouping.monitor import monitor_grouping

CANDIDATES = ["kind", "coin", "half", "third"]


def build(names=("comedy", "music", "gaming")):
    """Everything that a figure can be given, for effects that `kind` structures."""
    rng = np.random.default_rng(3)
    n = 90
    kind = np.repeat([0, 1, 2], n // 3)
    features = pd.DataFrame({"creator_id": [f"c{i}" for i in range(n)]})
    features["kind"] = np.array(names, dtype=object)[kind]
    for column, k in (("coin", 2), ("half", 2), ("third", 3)):
        features[column] = rng.integers(0, k, n).astype(str)
    features["x"], features["y"] = 5.0 * kind + rng.normal(size=n), rng.normal(size=n)
    se = rng.choice([0.1, 0.5], n)
    effect = rng.normal(0.5 * kind, np.hypot(0.3, se))
    effect[0] = 0.0
    ites = features[["creator_id"]].assign(effect_hat=effect, se=se)
    data = ites.merge(features, on="creator_id")
    comparison = compare_groupings_empirical(ites, features, CANDIDATES, n_permutations=12)
    summaries = create_grouping(ites, features, "kind")
    pooled = extract_hbm_estimates(comparison.models["kind"], summaries)
    moved = summaries.assign(effect_hat=rng.normal(0.0, 0.5, n))
    rows = {"naive": rng.uniform(0, 0.4, 20), "quality": rng.normal(0.3, 0.1, 20), "share": 0.3}
    return {
        "data": data,
        "exploration": explore_groupings(data, CANDIDATES, "effect_hat", se="se"),
        "clusters": discover_clusters(features, ["x", "y"], n_seeds=2),
        "comparison": comparison,
        "separations": [
            check_posterior_separation(comparison.models[name], name) for name in ("kind", "coin")
        ],
        "shrinkage": analyze_shrinkage(ites, pooled, features, "kind"),
        "report": monitor_grouping({"Q1": summaries, "Q2": moved}),
        "studies": {"nothing": pd.DataFrame(rows), "something": pd.DataFrame(rows)},
    }


def explore(d, **how):
    how = {"outcome": "effect_hat"} | how
    return plots.plot_grouping_exploration(d["data"], d["exploration"], CANDIDATES, **how)


FIGURES = {
    "exploration": explore,
    "elbow": lambda d: plots.plot_elbow(d["clusters"]),
    "comparison": lambda d: plots.plot_grouping_comparison(d["comparison"]),
    "separation": lambda d: plots.plot_separation(d["separations"]),
    "shrinkage": lambda d: plots.plot_shrinkage_analysis(d["shrinkage"]),
    "monitoring": lambda d: plots.plot_monitoring(d["report"]),
    "quality": lambda d: plots.plot_quality(d["studies"]),
}


@pytest.fixture(scope="module")
def data():
    return build()


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_whole(name, data):
    fig = whole(FIGURES[name], data)
    bottom = [ax for ax in fig.axes if ax.get_subplotspec().is_last_row()]
    assert all(ax.get_xlabel() for ax in bottom)
    assert fig.get_supylabel() or fig.axes[0].get_ylabel()


@pytest.mark.parametrize("name", FIGURES)
def test_dark_changes_colours_and_nothing_else(name, data):
    darkened(FIGURES[name](data))


def test_names_from_data_are_text():
    odd = build(ODD)
    for name, draw in FIGURES.items():
        fig = draw(odd)
        png(fig)
        assert not any(text.get_parse_math() for text in fig.findobj(Text))
        if name in ("exploration", "separation", "shrinkage"):
            said = "\n".join(texts(fig))
            assert all(genre in said for genre in ODD)


def test_units_are_the_callers(data):
    for fig in (
        explore(data, unit="points"),
        plots.plot_separation(data["separations"], unit="points"),
        plots.plot_shrinkage_analysis(data["shrinkage"], unit="points"),
    ):
        said = " ".join(texts(fig))
        assert "points" in said
        assert "dollars" not in said


def test_the_exploration_has_a_panel_a_candidate_with_means_and_qualities(data):
    fig = explore(data)
    assert len(fig.axes) == 4
    table = data["exploration"].set_index("candidate")
    for ax, name in zip(fig.axes, CANDIDATES, strict=True):
        assert ax.get_title().startswith(name)
        quality = f"{table['quality'][name]:.2f}".replace("-", "−")
        assert quality in ax.get_title()
        (means,) = (line for line in ax.get_lines() if line.get_marker() == "D")
        expected = data["data"].groupby(name)["effect_hat"].mean()
        np.testing.assert_allclose(means.get_xdata(), expected)
        ticks = [text.get_text() for text in ax.get_yticklabels()]
        assert ticks == expected.index.tolist()
    values = data["data"]["effect_hat"]
    low, high = np.quantile(values, [0.01, 0.99])
    beyond = ((values < low) | (values > high)).sum()
    assert any(f"{beyond} creators lie beyond" in text for text in texts(fig))


def test_the_elbow_marks_what_was_chosen(data):
    clusters = data["clusters"]
    fig = plots.plot_elbow(clusters)
    for ax, column in zip(fig.axes, ("inertia", "silhouette", "stability"), strict=True):
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), clusters.table[column])
    assert fig.axes[0].get_title() == f"elbow: k = {clusters.elbow}"
    assert fig.axes[1].get_title() == f"chosen: k = {clusters.k}"


def test_the_comparison_shows_differences_errors_and_shuffles(data):
    comparison = data["comparison"]
    fig = plots.plot_grouping_comparison(comparison)
    (ax,) = fig.axes
    table = comparison.table[comparison.table["n_groups"] > 1].reset_index(drop=True)
    assert [t.get_text() for t in ax.get_yticklabels()] == table["candidate"].tolist()
    dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
    shown = [float(line.get_xdata()[0]) for line in dots]
    np.testing.assert_allclose(shown, table["elpd_diff"])
    for cloud, name in zip(points(ax), table["candidate"], strict=True):
        np.testing.assert_allclose(cloud.get_offsets()[:, 0], comparison.shuffled[name])
    low, high = ax.get_xlim()
    assert low < (table["elpd_diff"] - 1.96 * table["dse"]).min()
    assert high > (table["elpd_diff"] + 1.96 * table["dse"]).max()


def test_separation_is_a_forest_of_each_grouping(data):
    fig = plots.plot_separation(data["separations"])
    for ax, separation in zip(fig.axes, data["separations"], strict=True):
        (dots,) = points(ax)
        np.testing.assert_allclose(dots.get_offsets()[:, 0], separation.table["mean"])
        assert f"ratio {separation.ratio:.1f}, {separation.grade}" in ax.get_title()


def test_percentages_are_cut_in_the_figure_only(data):
    shrinkage = data["shrinkage"]
    assert shrinkage.n_undefined == 1
    left, right = plots.plot_shrinkage_analysis(shrinkage).axes
    shown = np.concatenate([c.get_offsets() for c in points(left)])
    assert len(shown) == len(shrinkage.creators)
    np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(shrinkage.creators["shrinkage"]))
    beyond = (shrinkage.creators["shrinkage_pct"] > 150).sum()
    assert f"{beyond} creators at 150+" in right.get_xlabel()
    drawn = [x for line in right.get_lines() for x in line.get_xdata()]
    assert max(drawn) <= 150
    assert shrinkage.creators["shrinkage_pct"].max() > 150


def test_monitoring_shows_every_check_limit_and_alert(data):
    report = data["report"]
    fig = plots.plot_monitoring(report)
    assert not report.ok
    for ax, check in zip(fig.axes, ("quality", "elpd", "coverage", "shrinkage"), strict=True):
        rows = report.table[report.table["check"] == check]
        assert rows["limit"].iloc[0] in level(ax)
        fine, alerts = (c.get_offsets()[:, 1] for c in points(ax))
        np.testing.assert_allclose(fine, rows.loc[~rows["alert"], "value"])
        np.testing.assert_allclose(alerts, rows.loc[rows["alert"], "value"])


def test_qualities_stand_beside_truth_and_thresholds(data):
    fig = plots.plot_quality(data["studies"])
    for ax, study in zip(fig.axes, data["studies"].values(), strict=True):
        assert {0.2, 0.3, 0.4} <= set(level(ax))
        naive, corrected = (c.get_offsets()[:, 1] for c in points(ax))
        np.testing.assert_allclose(naive, study["naive"])
        np.testing.assert_allclose(corrected, study["quality"])
