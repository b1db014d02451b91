"""Studies of platforms that move: what is simulated, what is scored, and what must be noticed."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from matplotlib.figure import Figure
from scipy import stats

from hbm import plots
from hbm.drift import STATIC, AutoRegression, RandomWalk, fit_drift_model
from hbm.drift.calibration import RANKED, run_drift_sbc
from hbm.drift.future import leave_future_out
from hbm.drift.process import simulate
from hbm.drift.study import (
    MODELS,
    MOTIONS,
    TARGETS,
    forecast_study,
    simulate_drift,
    summarize_forecasts,
)
from hbm.priors import Fixed, HalfNormal, Priors
from hbm.sbc import sbc_verdicts
from hbm.studies import simulate_summaries
from hbm.validation import join_truth

#: Probability of K Monte Carlo errors: as rarely does a right posterior fail here.
LEVEL = 1 - 2 * stats.norm.sf(K)

TINY = {"genres": ("a", "b"), "n_periods": 7, "n_creators_per_genre": 28}
TWO = {name: MODELS[name] for name in ("static", "random walk")}


# --- simulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_moving_platform_is_the_static_one_and_its_motion(motion):
    summaries, truth = simulate_drift(7, motion=motion, size=0.3)
    still, still_truth = simulate_summaries(np.random.default_rng(7))
    when, idx = summaries["period"].to_numpy(), summaries["genre_idx"].to_numpy()
    moved = (truth["paths"] - truth["genre_effects"][:, None])[idx, when]
    pd.testing.assert_frame_equal(
        summaries.drop(columns=["period", "effect_hat"]), still.drop(columns="effect_hat")
    )
    np.testing.assert_allclose(summaries["effect_hat"], still["effect_hat"] + moved)
    np.testing.assert_allclose(
        truth["creator_effects"], still_truth["creator_effects"] + moved, atol=1e-12
    )
    counts = summaries.groupby(["genre", "period"]).size()
    assert counts.min() == counts.max() == 4
    assert truth["paths"].shape == (5, 25)


def test_motions_have_the_size_they_say():
    n, rng = 4000, np.random.default_rng(3)
    made = {name: motion(rng, 13, n, 0.3) for name, motion in MOTIONS.items()}
    error = 0.3 / np.sqrt(2 * n)
    assert not made["none"].any()
    steps = np.diff(made["random walk"], axis=0)
    assert not made["random walk"][0].any()
    assert np.all(np.abs(steps.std(axis=1) - 0.3) < K * error)
    for name in ("autoregression", "season"):
        assert np.all(np.abs(made[name].std(axis=1) - 0.3) < K * error)
    neighbours = [np.corrcoef(a, b)[0, 1] for a, b in zip(made["autoregression"][:-1],
                  made["autoregression"][1:], strict=True)]  # fmt: skip
    assert np.all(np.abs(np.array(neighbours) - 0.8) < K * (1 - 0.8**2) / np.sqrt(n))
    np.testing.assert_allclose(made["season"][0], made["season"][12], atol=1e-12)
    assert np.all((np.diff(made["one jump"], axis=0) != 0).sum(axis=0) == 1)
    assert abs(made["one jump"][-1].std() - 0.3) < K * error
    assert np.all(made["all genres together"] == made["all genres together"][:, :1])


def test_unknown_motions_are_refused():
    with pytest.raises(ValueError, match="unknown motion 'sideways'"):
        simulate_drift(1, motion="sideways")


# --- scores ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    return forecast_study(6, seed=3, **TINY)


def test_scores_are_those_of_the_fits(study):
    """One platform by hand, from the frames a reader sees."""
    rng = np.random.default_rng(np.random.SeedSequence(3).spawn(6)[2])
    summaries, truth = simulate_drift(rng, **TINY)
    summaries = join_truth(summaries, truth)
    past, new = (summaries[part] for part in (summaries["period"] < 6, summaries["period"] == 6))
    found = study[study["platform"] == 2].set_index(["model", "target"])
    fit = fit_drift_model(past)
    made, true = fit.estimates, past["effect_true"].to_numpy()
    row = found.loc[("random walk", "creators")]
    assert row["mse"] == pytest.approx(np.mean((made["effect_hat"] - true) ** 2))
    inside = (made["ci_lower"] <= true) & (true <= made["ci_upper"])
    assert row["coverage"] == pytest.approx(inside.mean())
    assert row["width"] == pytest.approx(2 * 1.959964 * made["se"].mean(), rel=1e-6)
    for target, frame, at in (
        ("genres now", fit.paths[fit.paths["period"] == 5], 5),
        ("genres next month", fit.forecast(), 6),
    ):
        row, true = found.loc[("random walk", target)], truth["paths"][:, at]
        assert row["mse"] == pytest.approx(np.mean((frame["mean"] - true) ** 2))
        inside = (frame["lower"] <= true) & (true <= frame["upper"])
        assert row["coverage"] == pytest.approx(inside.mean())
    row = found.loc[("random walk", "new creators")]
    predicted = fit.predict(new["genre"], new["period"])
    error = predicted["effect_hat"].to_numpy() - new["effect_true"].to_numpy()
    assert row["mse"] == pytest.approx(np.mean(error**2))
    future = leave_future_out(summaries, first=6)
    assert row["elpd"] == pytest.approx(future.estimates["elpd"].mean())
    recent = fit_drift_model(past[past["period"] > -1], process=STATIC)
    row = found.loc[("static, last six months", "genres now")]
    now = recent.paths[recent.paths["period"] == 5]
    assert row["mse"] == pytest.approx(np.mean((now["mean"] - truth["paths"][:, 5]) ** 2))


def test_every_model_is_scored_on_every_target_it_can_have(study):
    counts = study.groupby(["model", "target"]).size().unstack()
    assert set(counts.columns) == set(TARGETS)
    assert np.isnan(counts.loc["static, last six months", "creators"])
    assert (counts.drop(columns="creators") == 6).all(axis=None)
    assert study["quadrature_error"].max() <= 1e-6


def test_platforms_do_not_depend_on_their_number_or_on_the_models(study):
    fewer = forecast_study(3, models=TWO, seed=3, **TINY)
    wanted = study[(study["platform"] < 3) & study["model"].isin(TWO)]
    pd.testing.assert_frame_equal(fewer, wanted.reset_index(drop=True))


def test_models_are_compared_platform_by_platform(study):
    table = summarize_forecasts(study).set_index(["model", "target"])
    same = table.xs("static")
    assert (same["ratio"] == 1).all()
    assert (same["ratio_se"] == 0).all()
    own = study[study["target"] == "new creators"]
    wide = own.pivot(index="platform", columns="model", values="mse")
    row = table.loc[("random walk", "new creators")]
    assert row["ratio"] == pytest.approx(wide["random walk"].mean() / wide["static"].mean())
    assert row["mse_se"] == pytest.approx(wide["random walk"].sem())
    rng = np.random.default_rng(1)
    again = [wide.iloc[rng.integers(0, 6, 6)] for _ in range(2000)]
    ratios = [w["random walk"].mean() / w["static"].mean() for w in again]
    # The bootstrap of 6 platforms divides by 6 instead of 5.
    assert row["ratio_se"] == pytest.approx(np.std(ratios) * np.sqrt(6 / 5), rel=0.25)
    wide = own.pivot(index="platform", columns="model", values="elpd")
    gain = wide["random walk"] - wide["static"]
    assert row["gain"] == pytest.approx(gain.mean())
    assert row["gain_se"] == pytest.approx(gain.sem())


@pytest.mark.slow
def test_tracking_pays_where_genres_move_and_costs_little_where_not():
    moving = summarize_forecasts(forecast_study(40, models=TWO, seed=1, size=0.1))
    still = summarize_forecasts(forecast_study(40, models=TWO, motion="none", seed=1))
    gain, cost = (table.set_index(["model", "target"]) for table in (moving, still))
    for target in TARGETS:
        row = gain.loc[("random walk", target)]
        assert row["ratio"] + K * row["ratio_se"] < 1
        assert abs(row["coverage"] - 0.95) < K * row["coverage_se"] + 0.01
    assert gain.loc[("static", "genres now"), "coverage"] < 0.6
    row = gain.loc[("random walk", "new creators")]
    assert row["gain"] > K * row["gain_se"]
    row = cost.loc[("random walk", "creators")]
    assert row["ratio"] - K * row["ratio_se"] < 1.01


# --- calibration -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def design():
    rng = np.random.default_rng(3)
    n = 45
    return pd.DataFrame(
        {
            "creator_id": np.arange(n),
            "genre_idx": rng.permutation(np.arange(n) % 3),
            "period": np.append([0, 7], rng.choice([0, 1, 2, 4, 5, 7], n - 2)),
            "se": np.exp(rng.uniform(np.log(0.1), np.log(0.8), n)),
        }
    )


WIDE = RandomWalk(HalfNormal(0.4))
CERTAIN = Priors(sigma_genre=HalfNormal(0.5), sigma_creator=HalfNormal(0.5))


def failed(calibration, level=LEVEL):
    table = sbc_verdicts(calibration, level)
    return set(table.loc[~table["uniform"], "quantity"])


def test_the_random_walk_is_calibrated(design):
    found = run_drift_sbc(design, 40, process=WIDE, priors=CERTAIN)
    assert set(found.ranks) == {
        "mu_global", "sigma_genre", "sigma_creator", "sigma_step", *RANKED
    }  # fmt: skip
    assert failed(found) == set()
    assert found.fits["quadrature_error"].max() <= 1e-6


@pytest.mark.slow
def test_the_autoregression_is_calibrated(design):
    process = AutoRegression(0.8, HalfNormal(0.4))
    found = run_drift_sbc(design, 40, process=process, priors=CERTAIN)
    assert "sigma_drift" in found.ranks
    assert failed(found) == set()


def backwards(data):
    return data.assign(period=data["period"].max() - data["period"])


def one_month_late(data):
    """Half of the creators are noted in the period after their own."""
    odd = data["creator_id"] % 2
    return data.assign(period=np.minimum(data["period"] + odd, data["period"].max()))


def wrong_genres(data):
    return data.assign(genre_idx=np.roll(data["genre_idx"], 5))


def variance_for_sd(data):
    return data.assign(se=np.square(data["se"]))


def test_time_running_backwards_is_noticed(design):
    assert failed(run_drift_sbc(design, 30, process=WIDE, priors=CERTAIN, fault=backwards))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "n"), [(one_month_late, 200), (wrong_genres, 60), (variance_for_sd, 60)]
)
def test_planted_errors_are_noticed(design, fault, n):
    assert failed(run_drift_sbc(design, n, process=WIDE, priors=CERTAIN, fault=fault))


def no_data(data):
    """The prior for a posterior: every rank of a parameter stays uniform."""
    return data.assign(se=1e4, effect_hat=0.0)


def test_a_posterior_that_ignores_the_data_is_noticed_by_the_densities_alone(design):
    found = run_drift_sbc(design, 20, process=WIDE, priors=CERTAIN, fault=no_data)
    assert failed(found) == {"log_p_given_hyper"}


def test_known_parameters_are_not_ranked_and_fixed_priors_refused(design):
    found = run_drift_sbc(design, 2, process=STATIC)
    assert "sigma_step" not in found.ranks
    with pytest.raises(ValueError, match="sigma_genre is fixed"):
        run_drift_sbc(design, 2, priors=Priors(sigma_genre=Fixed(0)))


def test_simulated_processes_have_their_covariances():
    n, rng = 20_000, np.random.default_rng(2)
    gaps = np.array([0, 1, 3])
    for process, wanted in (
        (RandomWalk(), 0.25 * np.array([[0, 0, 0], [0, 1, 1], [0, 1, 4]])),
        (AutoRegression(0.6), 0.25 * 0.6 ** np.array([[0, 1, 4], [1, 0, 3], [4, 3, 0]])),
    ):
        drawn = simulate(process, np.full((n, 1), 0.5), gaps, 1, rng)[:, :, 0]
        found, var = np.cov(drawn.T), np.diag(wanted)
        error = np.sqrt((np.outer(var, var) + wanted**2) / n)
        assert np.all(np.abs(found - wanted) <= K * error)


# --- figures -----------------------------------------------------------------------------------


ODD = ("<script>", "$x_1$ {\\frac", "_hidden")


@pytest.mark.parametrize("genres", [("a", "b", "c", "d", "e"), ODD, ("alone",)])
def test_the_figure_of_paths_shows_the_frames(genres):
    data, truth = simulate_drift(2, genres=genres, n_periods=6, n_creators_per_genre=12)
    past = data[(data["period"] < 5) & (data["period"] != 2)]
    fit, static = fit_drift_model(past), fit_drift_model(past, process=STATIC)
    fig = plots.plot_paths(fit.paths, fit.forecast(2), static.paths, truth)
    assert isinstance(fig, Figure)
    fig.draw_without_rendering()
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert len(shown) == len(genres)
    for ax, genre in zip(shown, fit.genres, strict=True):
        assert ax.get_title().strip("\u200a") == genre
        own = fit.paths[fit.paths["genre"] == genre]
        lines = [line.get_xydata() for line in ax.get_lines()]
        mean = own[["period", "mean"]].to_numpy(float)
        true = np.column_stack([np.arange(6), truth["paths"][list(genres).index(genre)]])
        for wanted in (mean, true):
            assert any(line.shape == wanted.shape and np.allclose(line, wanted) for line in lines)
        points = ax.collections[-1].get_offsets()
        seen = own[own["n_creators"] > 0]
        np.testing.assert_allclose(points, seen[["period", "plain"]].to_numpy(float))
        assert len(seen) == 4
    plots.plot_paths(fit.paths, fit.forecast())


def test_the_figure_of_gains_shows_the_table(study):
    table = summarize_forecasts(study)
    table = pd.concat([table.assign(size=0.1), table.assign(size=0.05, ratio=2 * table["ratio"])])
    fig = plots.plot_forecast_gain(table, ["creators", "genres now"], label="Step")
    fig.draw_without_rendering()
    assert [ax.get_title() for ax in fig.axes] == ["creators", "genres now"]
    heights = [line.get_ydata() for line in fig.axes[1].get_lines()]
    ratio = summarize_forecasts(study).set_index(["model", "target"])["ratio"]
    for model in MODELS:
        wanted = ratio[model, "genres now"] * np.array([2, 1])
        assert any(len(h) == 2 and np.allclose(h, wanted) for h in heights)
    ticks = [text.get_text() for text in fig.axes[0].get_xticklabels()]
    assert ticks == ["0.05", "0.1"]
