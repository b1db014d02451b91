"""Figures show what the plan's section 8 lists, at the values of the tables they were given."""

import io
import warnings
from types import SimpleNamespace

import arviz as az
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.text import Text

from hbm import plots
from hbm.baselines import complete_pooling_estimates, no_pooling_estimates
from hbm.data import generate_experiment_data, summarize_creators
from hbm.plots import estimates as _estimates
from hbm.plots import look
from hbm.priors import Priors
from hbm.sbc import QUANTITIES, Calibration, sbc_verdicts
from hbm.studies import ESTIMATORS
from hbm.uniform import uniform_band, uniform_pvalue
from hbm.validation import compare_estimators, coverage_by_distance, oracle_estimates

ODD = ("<script>", "$x_1$ {\\frac", "_hidden")


def posterior_of(summaries, truth, rng):
    """A stand-in for a fit: draws around the truth, in the shape that a fit has."""
    genres, chains, draws = truth["genres"], 4, 200

    def around(center, sd, shape=()):
        return rng.normal(center, sd, (chains, draws, *shape))

    return az.from_dict(
        {
            "posterior": {
                "mu_global": around(0.5, 0.1),
                "sigma_genre": np.abs(around(0.3, 0.1)),
                "sigma_creator": np.abs(around(0.4, 0.05)),
                "mu_genre": around(truth["genre_effects"], 0.1, (len(genres),)),
            },
            "posterior_predictive": {
                "effect_hat": around(summaries["effect_hat"], 0.3, (len(summaries),))
            },
            "prior_predictive": {"effect_hat": around(0, 2, (len(summaries),))},
            "observed_data": {"effect_hat": summaries["effect_hat"].to_numpy()},
        },
        coords={"creator": summaries["creator_id"].to_numpy(), "genre": list(genres)},
        dims={"mu_genre": ["genre"], "effect_hat": ["creator"]},
    )


def outlier_table():
    """What a study of an outlier returns, made up."""
    rows = [
        {
            "model": model,
            "distance": float(distance),
            "se": se,
            "plain": 0.5 + 0.4 * distance,
            "effect_hat": 0.5 + part * distance,
            "ci_lower": 0.3 + part * distance,
            "ci_upper": 0.7 + part * distance,
            "others": 0.5 + 0.1 * part * distance,
        }
        for se, parts in ((0.1, (0.3, 0.35)), (0.5, (0.1, 0.2)))
        for distance in (0, 4, 8)
        for model, part in zip(("normal", "robust"), parts, strict=True)
    ]
    return pd.DataFrame(rows)


def build(genres, n_creators_per_genre):
    """Every table and posterior that a figure can be given, for one simulated platform."""
    rng = np.random.default_rng(5)
    users, truth = generate_experiment_data(
        seed=3, genres=genres, n_creators_per_genre=n_creators_per_genre
    )
    summaries = summarize_creators(users)
    plain, complete = no_pooling_estimates(summaries), complete_pooling_estimates(summaries)
    pooled = oracle_estimates(summaries, truth)
    named = {"no pooling": plain, "complete pooling": complete, "partial pooling": pooled}
    readouts = summaries[["creator_id", "genre", "n_total"]].assign(
        plain=plain["effect_hat"],
        plain_lower=plain["ci_lower"],
        plain_upper=plain["ci_upper"],
        pooled=pooled["effect_hat"],
        pooled_lower=pooled["ci_lower"],
        pooled_upper=pooled["ci_upper"],
    )
    unclear = np.where(readouts["pooled_upper"] < 0, "down", "unclear")
    readouts["verdict"] = np.where(readouts["pooled_lower"] > 0, "up", unclear)
    halves = pd.DataFrame(
        {
            "creator_id": plain["creator_id"],
            "predicted": pooled["effect_hat"],
            "predicted_plain": plain["effect_hat"],
            "held_out": plain["effect_hat"] + rng.normal(0, plain["se"]),
            "held_out_se": plain["se"],
        }
    )
    return SimpleNamespace(
        truth=truth,
        summaries=summaries,
        plain=plain,
        complete=complete,
        pooled=pooled,
        named=named,
        genre_means=dict(zip(truth["genres"], truth["genre_effects"], strict=True)),
        comparison=compare_estimators(named, truth),
        by_distance=coverage_by_distance(named, truth),
        idata=posterior_of(summaries, truth, rng),
        readouts=readouts,
        halves=halves,
        pit=rng.uniform(size=len(plain)),
        outlier=outlier_table(),
        ranks=pd.DataFrame(rng.uniform(size=(60, len(QUANTITIES))), columns=list(QUANTITIES)),
        times=pd.DataFrame(
            {
                "size": [100, 10_000, 1_000_000],
                "median": [0.01, 0.03, 2.0],
                "smallest": [0.01, 0.02, 1.9],
                "largest": [0.02, 0.05, 2.4],
            }
        ),
    )


#: Every figure as a function of what `build` returns.
FIGURES = {
    "sample_sizes": lambda d: plots.plot_sample_sizes(d.summaries),
    "true_effects": lambda d: plots.plot_true_effects(d.truth),
    "error_by_size": lambda d: plots.plot_error_by_size(d.plain, d.truth),
    "shrinkage": lambda d: plots.plot_shrinkage(d.plain, d.pooled, d.genre_means),
    "mse": lambda d: plots.plot_mse(d.comparison),
    "coverage_width": lambda d: plots.plot_coverage_width(d.named, d.truth),
    "creators": lambda d: plots.plot_creators(d.plain, d.pooled, d.genre_means, d.truth, 4),
    "genre_posteriors": lambda d: plots.plot_genre_posteriors(d.idata, d.complete, d.truth),
    "hyperparameters": lambda d: plots.plot_hyperparameters(d.idata, d.truth, Priors()),
    "trace": lambda d: plots.plot_trace(d.idata),
    "rank": lambda d: plots.plot_rank(d.idata),
    "ppc": lambda d: plots.plot_ppc(d.idata),
    "prior_ppc": lambda d: plots.plot_ppc(d.idata, group="prior_predictive"),
    "coverage_by_distance": lambda d: plots.plot_coverage_by_distance(d.by_distance),
    "readouts": lambda d: plots.plot_readouts(d.readouts),
    "halves": lambda d: plots.plot_halves(d.halves),
    "loo_pit": lambda d: plots.plot_loo_pit(d.pit),
    "outlier": lambda d: plots.plot_outlier(d.outlier),
    "sbc": lambda d: plots.plot_sbc({"one": d.ranks, "other": d.ranks, "third": d.ranks[:40]}),
    "scaling": lambda d: plots.plot_scaling({"exact": d.times}, {"a fit by NUTS": (500, 40.0)}),
}
#: Figures without an effect on an axis.
UNITLESS = {"sample_sizes", "rank", "coverage_by_distance", "loo_pit", "sbc", "scaling"}


@pytest.fixture(scope="module")
def data():
    return build(("comedy", "music", "gaming"), 8)


@pytest.fixture(scope="module")
def odd():
    return build(ODD, 4)


def texts(fig):
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def png(fig):
    stream = io.BytesIO()
    fig.savefig(stream, format="png", dpi=50)
    return stream.getvalue()


def upright(ax):
    """Places of the vertical lines of an axes."""
    ends = [line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 2]
    return [x[0] for x in ends if x[0] == x[1]]


def level(ax):
    """Heights of the horizontal lines that cross an axes, with their colours."""
    lines = [line for line in ax.get_lines() if not isinstance(line, AxLine)]
    lines = [line for line in lines if list(line.get_xdata()) == [0, 1]]
    return {float(line.get_ydata()[0]): line for line in lines}


def points(ax):
    return [c for c in ax.collections if isinstance(c, PathCollection)]


# ------------------------------------------------------------------------------ all figures


def whole(draw, *data, size=(6.3, 3.9)):
    """Draw a figure, in the size of the PDF unless told, and see that all of it is on the page."""
    with plt.rc_context({"figure.figsize": size}):
        fig = draw(*data)
    assert isinstance(fig, Figure)
    assert not plt.get_fignums()  # or a notebook would show it twice
    assert fig.get_figwidth() == size[0]
    fits(fig)
    return fig


def fits(fig):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit warns
        fig.draw_without_rendering()
    drawn, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.01  # nothing is cut off
    assert drawn.x1 < width + 0.01
    assert drawn.y1 < height + 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_whole(name, data):
    fig = whole(FIGURES[name], data)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    bottom = [ax for ax in shown if ax.get_subplotspec().is_last_row()]
    named = name == "creators"  # there the ticks are words
    assert named or fig.get_supxlabel() or all(ax.get_xlabel() for ax in bottom)
    assert fig.get_supylabel() or shown[0].get_ylabel()
    if name not in UNITLESS:
        labels = [fig.get_supylabel(), *(ax.get_xlabel() for ax in shown)]
        labels += [ax.get_ylabel() for ax in shown]
        assert any("dollars per user" in label for label in labels)


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in UNITLESS])
def test_unit_is_the_callers(name, data):
    draw = getattr(plots, "plot_" + name.removeprefix("prior_"))
    given = {
        "true_effects": (data.truth,),
        "error_by_size": (data.plain, data.truth),
        "shrinkage": (data.plain, data.pooled, data.genre_means),
        "mse": (data.comparison,),
        "coverage_width": (data.named, data.truth),
        "creators": (data.plain, data.pooled, data.genre_means),
        "genre_posteriors": (data.idata, data.complete),
        "readouts": (data.readouts,),
        "halves": (data.halves,),
        "outlier": (data.outlier,),
    }.get(name, (data.idata,))
    fig = draw(*given, unit="points per pupil", figsize=(5, 3))
    said = " ".join(texts(fig))
    assert "points per pupil" in said
    assert "dollars" not in said
    assert tuple(fig.get_size_inches()) == (5, 3)


@pytest.mark.parametrize("name", FIGURES)
def test_names_from_data_are_text(name, odd):
    fig = FIGURES[name](odd)
    png(fig)  # as mathematics, the second name could not be drawn at all
    assert not any(text.get_parse_math() for text in fig.findobj(Text))
    if name in ("true_effects", "shrinkage", "creators", "genre_posteriors", "readouts"):
        said = "\n".join(texts(fig))
        assert all(genre in said for genre in ODD)


def test_names_from_data_are_text_in_both_themes(odd):
    fig = plots.themed(plots.plot_shrinkage(odd.plain, odd.pooled, odd.genre_means), "dark")
    stream = io.StringIO()
    fig.savefig(stream, format="svg")
    assert "<script>" not in stream.getvalue()
    assert not any(text.get_parse_math() for text in fig.findobj(Text))


@pytest.mark.parametrize("name", FIGURES)
def test_one_genre_and_two_creators_make_a_whole_figure(name):
    whole(FIGURES[name], build(("comedy",), 2))


def test_every_method_of_the_book_has_its_own_look():
    styles = _estimates._method_styles(ESTIMATORS)
    assert set(map(str.lower, ESTIMATORS)) == set(_estimates._METHODS)
    assert len(set(styles.values())) == len(ESTIMATORS)
    strangers = _estimates._method_styles(["no pooling", "a", "b"])
    assert len(set(strangers.values())) == 3


def test_more_genres_than_colours_stay_apart():
    styles = look.genre_styles(f"genre {i}" for i in range(56))
    assert len(set(styles.values())) == 56


# ----------------------------------------------------------------------------------- themes


def ink(fig):
    """Everything of a figure that has a place but is not a colour."""
    lines = [line.get_xydata() for ax in fig.axes for line in ax.get_lines()]
    offsets = [np.asarray(c.get_offsets()) for ax in fig.axes for c in ax.collections]
    return lines + offsets, texts(fig), [(ax.get_xlim(), ax.get_ylim()) for ax in fig.axes]


def contrast(one, other):
    """Contrast ratio of the Web Content Accessibility Guidelines."""

    def luminance(colour):
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def darkened(fig):
    """Return the dark version of a figure, once nothing but colours is seen to differ."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # which settles a little more at each drawing
    before = png(fig)
    dark = plots.themed(fig, "dark")
    assert png(fig) == before
    for mine, theirs in zip(ink(fig)[0], ink(dark)[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert ink(fig)[1:] == ink(dark)[1:]
    assert png(dark) != before
    return dark


@pytest.mark.parametrize("name", FIGURES)
def test_dark_changes_colours_and_nothing_else(name, data):
    dark = darkened(FIGURES[name](data))
    paper = to_hex(dark.get_facecolor())
    assert contrast(paper, "white") > 12
    for text in dark.findobj(Text):
        if text.get_text():
            assert contrast(text.get_color(), paper) > 4.5, text
    for ax in dark.axes:
        assert to_hex(ax.get_facecolor()) == paper
        for line in (*ax.get_xgridlines(), *ax.get_ygridlines()):
            assert contrast(line.get_color(), paper) < 2  # a grid stays in the background


def test_light_is_a_copy(data):
    fig = FIGURES["mse"](data)
    light = plots.themed(fig, "light")
    assert light is not fig
    assert png(light) == png(fig)  # each drawn for the first time
    with pytest.raises(ValueError, match="unknown theme 'sepia'; known: light, dark"):
        plots.themed(fig, "sepia")


def test_house_colours_can_be_seen_on_both_pages():
    for colour in (*look.COLOURS, look.RED, look.SOFT):
        assert contrast(colour, look.PAPER) > 2.4
        assert contrast(look._dark(colour), look._dark(look.PAPER)) > 4


def test_other_grays_change_sides_and_other_colours_stay():
    assert to_hex(look._dark("black")) == to_hex(look._dark(look.INK))
    assert to_hex(look._dark("red")) == "#ff0000"
    assert look._dark((0, 0, 0, 0.25))[3] == 0.25


@pytest.fixture
def shell():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(("kind", "mime"), [("retina", "image/png"), ("svg", "image/svg+xml")])
def test_notebook_shows_light_then_dark(shell, kind, mime, data):
    from IPython.utils.capture import capture_output
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats(kind)
    plots.enable_themes()
    shell.user_ns["fig"] = FIGURES["mse"](data)
    shows = []
    for _ in range(2):
        with capture_output() as captured:
            shell.run_cell("fig", store_history=True)
        shows.append([output.data for output in captured.outputs])
        metadata = [output.metadata for output in captured.outputs]
    light, dark = shows[0]
    assert mime in light
    assert mime in dark
    assert light[mime] != dark[mime]
    assert shows[0] == shows[1]  # same figure, same bytes: no date, no random names
    if kind == "svg":
        assert look.INK in light[mime]
        assert look.INK not in dark[mime]
        assert look._DARK[look.INK] in dark[mime]
    else:
        assert metadata[0][mime] == metadata[1][mime]
        width, height = shell.user_ns["fig"].bbox.size
        assert metadata[0][mime]["width"] == int(width)
        assert metadata[0][mime]["height"] == int(height)


def test_outside_a_notebook_themes_change_nothing():
    with plt.rc_context({"svg.hashsalt": None}):
        before = dict(plt.rcParams.items())
        plots.enable_themes()
        assert dict(plt.rcParams.items()) == before


# -------------------------------------------------------------- plot 1: shrinkage


def test_shrinkage_plot(data):
    fig = FIGURES["shrinkage"](data)
    (ax,) = fig.axes
    (diagonal,) = (line for line in ax.get_lines() if isinstance(line, AxLine))
    assert diagonal.get_slope() == 1
    x, y = diagonal.get_xy1()
    assert x == y

    styles = look.genre_styles(data.genre_means)
    heights = level(ax)
    assert sorted(heights) == pytest.approx(sorted(data.genre_means.values()))
    for genre, mean in data.genre_means.items():
        assert to_hex(heights[mean].get_color()) == styles[genre][0]

    assert len(points(ax)) == 3
    for genre, drawn in zip(sorted(data.genre_means), points(ax), strict=True):
        mine = data.plain["genre"].astype(str) == genre
        expected = np.c_[data.plain["effect_hat"][mine], data.pooled["effect_hat"][mine]]
        at = np.asarray(drawn.get_offsets())
        np.testing.assert_allclose(at[np.argsort(at[:, 0])], expected[np.argsort(expected[:, 0])])
        assert to_hex(drawn.get_facecolor()[0]) == styles[genre][0]
        sizes = data.plain["n_total"][mine].sort_values(ascending=False)
        assert (np.diff(drawn.get_sizes()) <= 0).all()  # large ones first, small ones on top
        assert drawn.get_sizes()[0] == pytest.approx(
            90 * np.sqrt(sizes.iloc[0] / data.plain["n_total"].max())
        )

    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert {"comedy", "music", "gaming", "no pooling: y = x", "Users", "100"} <= set(legend)
    assert len({handle.get_marker() for handle in fig.legends[0].legend_handles[1:4]}) == 3


def test_shrinkage_plot_takes_a_series_and_joins_by_id(data):
    shuffled = data.pooled.sample(frac=1, random_state=1)
    fig = plots.plot_shrinkage(data.plain, shuffled, pd.Series(data.genre_means))
    same = FIGURES["shrinkage"](data)
    for one, other in zip(points(fig.axes[0]), points(same.axes[0]), strict=True):
        np.testing.assert_allclose(
            np.sort(one.get_offsets(), axis=0), np.sort(other.get_offsets(), axis=0)
        )
    with pytest.raises(ValueError, match="different creators"):
        plots.plot_shrinkage(data.plain, data.pooled.iloc[1:], data.genre_means)


# -------------------------------------------------------------- plot 2: MSE


def test_mse_plot(data):
    fig = FIGURES["mse"](data)
    (ax,) = fig.axes
    bins = ["n < 100", "100 ≤ n < 500", "n ≥ 500", "all creators"]
    assert [text.get_text() for text in ax.get_xticklabels()] == bins
    bars = [c for c in ax.containers if isinstance(c, BarContainer)]
    assert len(bars) == 3
    table = data.comparison.set_index(["estimator", "size_bin"])
    for name, group in zip(data.named, bars, strict=True):
        heights = [bar.get_height() for bar in group]
        np.testing.assert_allclose(heights, table.loc[name].loc[bins, "mse"])
        for i, bar in enumerate(group):
            assert abs(bar.get_x() + bar.get_width() / 2 - i) < 0.5  # within its own group
    colours = {to_hex(group[0].get_facecolor()) for group in bars}
    assert len(colours) == 3
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(data.named)
    whiskers = [c for c in ax.collections if isinstance(c, LineCollection)]
    for name, drawn in zip(data.named, whiskers, strict=True):
        lengths = [np.ptp(path.vertices[:, 1]) for path in drawn.get_paths()]
        np.testing.assert_allclose(lengths, 2 * table.loc[name].loc[bins, "mse_se"])
    assert f"{table.loc[('partial pooling', 'all creators'), 'mse']:.3f}" in texts(fig)


def test_mse_plot_without_errors_and_with_empty_bins(data):
    table = data.comparison.drop(columns="mse_se")
    table.loc[table["size_bin"] == "n ≥ 500", "mse"] = np.nan
    ax = whole(plots.plot_mse, table).axes[0]
    bars = [c for c in ax.containers if isinstance(c, BarContainer)]
    heights = [[bar.get_height() for bar in group] for group in bars]
    assert np.isfinite(heights).tolist() == [[True, True, False, True]] * 3
    assert len(ax.texts) == 9  # an empty bin has no number either
    whiskers = [path for c in ax.collections for path in c.get_paths()]
    assert not whiskers


@pytest.mark.parametrize("factor", [1e-18, 1e18])
def test_mse_plot_in_any_unit(data, factor):
    table = data.comparison.assign(
        mse=data.comparison["mse"] * factor, mse_se=data.comparison["mse_se"] * factor
    )
    assert max(map(len, texts(plots.plot_mse(table)))) < 50


# -------------------------------------------------------------- plot 3: coverage and width


def test_coverage_width_plot(data):
    fig = FIGURES["coverage_width"](data)
    (ax,) = fig.axes
    assert ax.get_xscale() == "log"
    effects = pd.Series(data.truth["creator_effects"], data.truth["creator_id"])
    said = texts(fig)
    assert len(points(ax)) == 3
    for (name, frame), drawn in zip(data.named.items(), points(ax), strict=True):
        true = effects[frame["creator_id"]].to_numpy()
        covered = ((true >= frame["ci_lower"]) & (true <= frame["ci_upper"])).to_numpy()
        width = frame["ci_upper"] - frame["ci_lower"]
        x, y = np.asarray(drawn.get_offsets()).T
        np.testing.assert_allclose(x, width)
        np.testing.assert_array_equal(y > 0.5, covered)
        note = f"{name}\n{covered.mean():.1%} covered\nmean width {width.mean():.2f}"
        assert note in said
        assert f"{(~covered).sum()} of {len(frame)} missed" in said
        assert upright(ax).count(pytest.approx(width.mean())) == 2
    assert len({to_hex(drawn.get_facecolor()[0]) for drawn in points(ax)}) == 3
    assert [t.get_text() for t in ax.get_yticklabels()] == ["missed (0)", "covered (1)"]


def test_coverage_width_plot_refuses_an_unknown_creator(data):
    stranger = data.plain.assign(creator_id=[f"x{i}" for i in range(len(data.plain))])
    with pytest.raises(ValueError, match="in the estimates only"):
        plots.plot_coverage_width({"no pooling": stranger}, data.truth)


# -------------------------------------------------------------- plot 4: single creators


@pytest.mark.parametrize("n_creators", [12, 13, 16])
def test_creators_plot(data, n_creators):
    fig = plots.plot_creators(data.plain, data.pooled, data.genre_means, data.truth, n_creators)
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert len(panels) == n_creators
    effects = pd.Series(data.truth["creator_effects"], data.truth["creator_id"])
    sizes = []
    for ax in panels:
        creator, genre, users = ax.get_title().split("\n")
        n = int(users.removeprefix("n = ").replace(",", ""))
        sizes.append(n)
        plain, pooled = (
            f.set_index(f["creator_id"].astype(str)).loc[creator] for f in (data.plain, data.pooled)
        )
        assert (n, genre) == (plain["n_total"], plain["genre"])
        heights = level(ax)
        assert set(heights) == {effects[creator], data.genre_means[genre]}
        truth, mean = heights[effects[creator]], heights[data.genre_means[genre]]
        assert to_hex(truth.get_color()) == look.RED
        assert truth.is_dashed()
        assert to_hex(mean.get_color()) == look.SOFT
        assert mean.is_dashed()
        others = [line for line in ax.get_lines() if line not in heights.values()]
        drawn = [(to_hex(line.get_color()), list(line.get_ydata())) for line in others]
        for colour, row in ((look.BLUE, plain), (look.ORANGE, pooled)):
            assert (colour, [row["ci_lower"], row["ci_upper"]]) in drawn
            assert (colour, [row["effect_hat"]]) in drawn
    assert sizes == sorted(sizes)
    assert sizes[0] == data.plain["n_total"].min()
    assert sizes[-1] == data.plain["n_total"].max()
    legend = {text.get_text() for text in fig.legends[0].get_texts()}
    assert legend == {"plain, 95% CI", "pooled, 95% CrI", "true effect", "genre mean"}


def test_creators_plot_without_truth(data):
    fig = plots.plot_creators(data.plain, data.pooled, data.genre_means)
    assert "true effect" not in texts(fig)
    assert all(len(level(ax)) == 1 for ax in fig.axes)


# -------------------------------------------------------------- plots 5 and 6: posteriors


def test_genre_posteriors_plot(data):
    fig = FIGURES["genre_posteriors"](data)
    genres = data.truth["genres"]
    assert [ax.get_ylabel() for ax in fig.axes] == list(genres)
    plain = data.complete.set_index(data.complete["genre"].astype(str))["effect_hat"]
    for i, (ax, genre) in enumerate(zip(fig.axes, genres, strict=True)):
        true, frequentist = data.genre_means[genre], plain[genre].iloc[0]
        assert set(upright(ax)) == {true, frequentist}
        density = next(line for line in ax.get_lines() if len(line.get_xdata()) > 2)
        x, y = density.get_data()
        draws = data.idata["posterior"]["mu_genre"].values[..., i]
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
        assert np.trapezoid(x * y, x) == pytest.approx(draws.mean(), abs=0.02)
    legend = {text.get_text() for text in fig.legends[0].get_texts()}
    assert legend == {"posterior", "complete pooling", "true mean"}
    without = plots.plot_genre_posteriors(data.idata, data.complete)
    assert all(len(upright(ax)) == 1 for ax in without.axes)


def test_outlier_plot(data):
    """A row a standard error; the curves are the table's, those of others from where they began."""
    study = data.outlier
    fig = plots.plot_outlier(study)
    assert len(fig.axes) == 4
    for place, (se, rows) in enumerate(study.groupby("se")):
        own, others = fig.axes[2 * place : 2 * place + 2]
        assert f"{se:.2g}" in own.get_title()
        curves = {tuple(line.get_ydata()) for line in own.get_lines()}
        shifts = {tuple(np.round(line.get_ydata(), 9)) for line in others.get_lines()}
        assert tuple(rows["plain"].unique()) in curves
        for _, one in rows.groupby("model"):
            assert tuple(one["effect_hat"]) in curves
            assert tuple(np.round(one["others"] - one["others"].iloc[0], 9)) in shifts
        assert len(own.collections) == 2  # a band a model
    said = texts(fig)
    assert {"normal model", "robust model", "95% interval", "plain estimate"} <= set(said)


def test_degrees_of_freedom_have_no_unit(data):
    import xarray as xr

    posterior = data.idata["posterior"].dataset
    nu = posterior["sigma_creator"] * 10 + 2
    tree = xr.DataTree.from_dict({"posterior": posterior.assign(nu=nu)})
    for fig in (plots.plot_hyperparameters(tree), plots.plot_trace(tree), plots.plot_rank(tree)):
        said = [text for text in texts(fig) if "nu" in text.split()]
        assert said or any(text == "nu" for text in texts(fig))
        assert not any("dollars" in text for text in said)


def test_hyperparameters_plot(data):
    fig = FIGURES["hyperparameters"](data)
    for ax, name in zip(fig.axes, ("mu_global", "sigma_genre", "sigma_creator"), strict=True):
        assert name in ax.get_xlabel()
        (line,) = (line for line in ax.get_lines() if len(line.get_xdata()) == 2)
        assert list(line.get_xdata()) == [data.truth[name]] * 2
        assert line.is_dashed()
        curves = [line for line in ax.get_lines() if len(line.get_xdata()) > 2]
        assert len(curves) == 2  # posterior and prior
        x, y = curves[0].get_data()
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
        prior_x, prior_y = curves[1].get_data()
        np.testing.assert_allclose(prior_y, getattr(Priors(), name).scipy().pdf(prior_x))
    assert "prior" not in texts(plots.plot_hyperparameters(data.idata, data.truth))


def test_a_posterior_without_draws_is_refused(data):
    bare = data.idata.copy()
    bare["posterior"] = bare["posterior"].to_dataset()[["mu_genre"]]
    for draw in (plots.plot_hyperparameters, plots.plot_trace, plots.plot_rank):
        with pytest.raises(ValueError, match="fit with draws > 0"):
            draw(bare)


def test_a_fixed_hyperparameter_is_left_out(data):
    fixed = data.idata.copy()
    posterior = fixed["posterior"].to_dataset()
    fixed["posterior"] = posterior.assign(sigma_genre=0 * posterior["sigma_genre"])
    for draw in (plots.plot_hyperparameters, plots.plot_trace, plots.plot_rank):
        assert "sigma_genre" not in " ".join(texts(draw(fixed)))


# -------------------------------------------------------------- the other figures


def test_sample_sizes_count_the_creators(data):
    fig = FIGURES["sample_sizes"](data)
    n = data.summaries["n_total"]
    assert sum(bar.get_height() for bar in fig.axes[0].patches) == len(n)
    assert {100, 500} <= set(upright(fig.axes[0]))
    assert any(f"n < 100\n{(n < 100).sum()} creators" in text for text in texts(fig))


def test_error_plot_joins_by_id(data):
    shuffled = data.plain.sample(frac=1, random_state=2)
    x, y = np.asarray(
        points(plots.plot_error_by_size(shuffled, data.truth).axes[0])[0].get_offsets()
    ).T
    effects = pd.Series(data.truth["creator_effects"], data.truth["creator_id"])
    np.testing.assert_array_equal(x, shuffled["n_total"])
    np.testing.assert_allclose(
        y, shuffled["effect_hat"].to_numpy() - effects[shuffled["creator_id"]].to_numpy()
    )


def test_trace_shows_every_chain(data):
    fig = FIGURES["trace"](data)
    for left, right in zip(fig.axes[::2], fig.axes[1::2], strict=True):
        assert len(left.get_lines()) == len(right.get_lines()) == 4
    draws = data.idata["posterior"]["mu_global"].values
    for chain, line in zip(draws, fig.axes[1].get_lines(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), chain)


def test_rank_plot_notices_a_stuck_chain(data):
    def outside(idata):
        ax = plots.plot_rank(idata).axes[0]
        band = ax.patches[0].get_path().vertices[:, 1]
        counts = np.concatenate([line.get_ydata() for line in ax.get_lines()[1:]])
        return ((counts > band.max()) | (counts < band.min())).sum()

    stuck = data.idata.copy()
    posterior = stuck["posterior"].to_dataset()
    shift = np.array([0, 0, 0, 0.3])[:, None]
    stuck["posterior"] = posterior.assign(mu_global=posterior["mu_global"] + shift)
    assert outside(data.idata) == 0
    assert outside(stuck) > 5


def test_predictive_plot_draws_observed_and_replicated(data):
    fig = plots.plot_ppc(data.idata, n_lines=20)
    assert len(fig.axes[0].get_lines()) == 21
    assert "20 data sets replicated from the posterior" in texts(fig)
    prior = FIGURES["prior_ppc"](data)
    assert "60 data sets replicated from the prior" in texts(prior)


def test_coverage_by_distance_plot(data):
    fig = FIGURES["coverage_by_distance"](data)
    (ax,) = fig.axes
    assert 0.95 in level(ax)
    everyone = data.by_distance[data.by_distance["size_bin"] == "all creators"]
    for name, line in zip(data.named, ax.get_lines()[1:], strict=True):
        expected = everyone.loc[everyone["estimator"] == name, "coverage"]
        np.testing.assert_allclose(line.get_ydata(), expected)


def test_readouts_plot_sorts_selects_and_says_so(data):
    readouts = data.readouts.copy()
    gone = ["pooled", "pooled_lower", "pooled_upper", "plain"]
    readouts.loc[:1, gone] = np.nan
    fig = plots.plot_readouts(readouts, max_creators=10)
    (ax,) = fig.axes
    said = "\n".join(texts(fig))
    assert "10 of 22 creators, evenly spaced by pooled effect" in said
    assert "2 that could not be estimated left out" in said
    ids = [text.get_text().split(" · ")[0] for text in ax.get_yticklabels()]
    shown = readouts.set_index(readouts["creator_id"].astype(str)).loc[ids]
    assert shown["pooled"].is_monotonic_decreasing
    assert shown["pooled"].iloc[0] == readouts["pooled"].max()
    assert shown["pooled"].iloc[-1] == readouts["pooled"].min()
    assert ax.yaxis_inverted()  # the largest on top
    for verdict in ("up", "down", "unclear"):
        assert f"{verdict} ({(readouts['verdict'][2:] == verdict).sum()})" in said
    whole = texts(plots.plot_readouts(data.readouts))
    assert not any("evenly spaced" in text or "left out" in text for text in whole)


def test_halves_plot_leaves_out_what_was_set_aside(data):
    table = pd.concat([data.halves.assign(split=0), data.halves.assign(split=1)])
    table.iloc[0, table.columns.get_loc("predicted")] = np.nan
    fig = plots.plot_halves(table)
    for ax, column in zip(fig.axes, ("predicted_plain", "predicted"), strict=True):
        x, y = np.asarray(points(ax)[0].get_offsets()).T
        np.testing.assert_array_equal(x, data.halves[column][1:])
        np.testing.assert_array_equal(y, data.halves["held_out"][1:])
        assert any(isinstance(line, AxLine) for line in ax.get_lines())


def test_loo_pit_plot_has_a_band_that_uniform_values_keep(data):
    grid = (np.arange(200) + 0.5) / 200
    ax = plots.plot_loo_pit(grid).axes[0]
    line = ax.get_lines()[-1].get_ydata()
    assert np.abs(line).max() < 0.01
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() > 0.05
    squeezed = plots.plot_loo_pit(0.3 + 0.4 * grid).axes[0].get_lines()[-1].get_ydata()
    assert np.abs(squeezed).max() > band.max()


def test_loo_pit_plot_has_the_exact_band():
    grid = (np.arange(50) + 0.5) / 50
    z, low, high = uniform_band(50)
    inside = []
    for power in np.linspace(1, 2, 21):
        ax = plots.plot_loo_pit(grid**power).axes[0]
        drawn = ax.collections[0].get_paths()[0].vertices.round(9).tolist()
        for edge in (low, high):  # its steps are in the middle between two places
            assert all(step in drawn for step in np.c_[z + 0.01, edge - z].round(9).tolist())
        x, y = ax.get_lines()[-1].get_data()
        assert (x[0], x[-1], y[-1]) == (0, 1, 0)
        y = y[1:-1]
        keeps = ((y >= low - z - 1e-9) & (y <= high - z + 1e-9)).all()
        assert keeps == (uniform_pvalue(grid**power) > 0.05)
        inside.append(keeps)
    assert True in inside
    assert False in inside


def test_sbc_plot_has_the_band_that_belongs_to_the_verdicts():
    rng = np.random.default_rng(3)
    ranks = pd.DataFrame(rng.uniform(size=(300, len(QUANTITIES))), columns=list(QUANTITIES))
    verdicts = []
    for power in np.linspace(1, 1.5, 12):
        wrong = ranks.assign(mu_genre=ranks["mu_genre"] ** power)
        uniform = sbc_verdicts(Calibration(wrong, pd.DataFrame())).set_index("quantity")["uniform"]
        ax = plots.plot_sbc({"a title": wrong}).axes[0]
        vertices = ax.collections[0].get_paths()[0].vertices
        lines = {line.get_label(): line for line in ax.get_lines()}
        x, y = lines["mean of one genre"].get_data()
        band = [vertices[np.isclose(vertices[:, 0], place), 1] for place in x]
        inside = all(
            part.min() - 1e-9 <= value <= part.max() + 1e-9
            for part, value in zip(band, y, strict=True)
        )
        assert inside == uniform["mu_genre"]
        verdicts.append(inside)
        assert "a title\n300 replications" in ax.get_title()
    assert True in verdicts
    assert False in verdicts


def test_scaling_plot_shows_times_ranges_and_proportion(data):
    fig = plots.plot_scaling({"exact": data.times}, {"a fit by NUTS": (500, 40.0)})
    (ax,) = fig.axes
    assert ax.get_xscale() == ax.get_yscale() == "log"
    drawn = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
    (measured,) = (container.lines for container in ax.containers)
    np.testing.assert_array_equal(measured[0].get_xydata(), data.times[["size", "median"]])
    bars = np.array([segment[:, 1] for segment in measured[2][0].get_segments()])
    np.testing.assert_allclose(bars, data.times[["smallest", "largest"]])
    (start, first), (end, last) = drawn["the same for each creator"]
    assert (start, end, last) == (100, 1_000_000, 2.0)
    assert last / first == pytest.approx(end / start)
    np.testing.assert_array_equal(drawn["a fit by NUTS"], [[500, 40]])
    low, high = ax.get_ylim()
    assert low < 0.01
    assert high > 40
