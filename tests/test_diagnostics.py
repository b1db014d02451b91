"""A bad fit is noticed, also where its taus look well."""

import numpy as np
import pandas as pd
import pytest

from hbm import diagnostics, store
from hbm.data import generate_experiment_data, summarize_creators
from hbm.diagnostics import (
    DiagnosticsError,
    _monitored,
    _table_failures,
    check_diagnostics,
    estimates_of,
    hyper_draws,
)
from hbm.gaussian import creator_moments, genre_moments
from hbm.model import fit_hierarchical_model

SHAPE = (4, 2000)
QUANTITIES = ["mu_global", "sigma_genre", "sigma_creator", "mu_genre", "tau", "E[tau | hyper]"]


@pytest.fixture(scope="module")
def summaries():
    rng = np.random.default_rng(8)
    return pd.DataFrame(
        {
            "creator_id": [f"c{i}" for i in rng.permutation(12)],
            "genre_idx": np.arange(12) % 3,
            "genre": np.array(["comedy", "music", "gaming"])[np.arange(12) % 3],
            "effect_hat": rng.normal(0.5, 0.6, 12),
            "se": rng.uniform(0.1, 0.5, 12),
        }
    )


def well_mixed(rng, shape=SHAPE):
    return [
        rng.normal(0.5, 0.2, shape),
        rng.lognormal(-1.0, 0.4, shape),
        rng.lognormal(-1.0, 0.1, shape),
    ]


@pytest.fixture(scope="module")
def good(fabricate, summaries):
    return fabricate(summaries, *well_mixed(np.random.default_rng(1)))


def with_stats(idata, **stats):
    changed = idata.copy(deep=True)
    dims = {name: (("chain", "draw"), values) for name, values in stats.items()}
    changed["sample_stats"].dataset = changed["sample_stats"].dataset.assign(dims)
    return changed


def test_a_good_fit_is_green(good):
    found = check_diagnostics(good)
    assert found.failures == ()
    assert found.ok
    assert found.raise_if_failed() is None
    assert found.table.index.tolist() == QUANTITIES
    assert found.table["n"].tolist() == [1, 1, 1, 3, 12, 12]
    assert found.divergences == found.max_tree_depth_hits == 0
    assert found.min_ebfmi > 1


def test_the_table_holds_the_worst_of_each_quantity(good):
    import arviz as az

    table, posterior = check_diagnostics(good).table, good["posterior"].dataset
    tau = posterior["tau"]
    assert table.loc["tau", "max_rhat"] == float(az.rhat(tau).max())
    assert table.loc["tau", "min_ess_bulk"] == float(az.ess(tau, method="bulk").min())
    assert table.loc["tau", "min_ess_tail"] == float(az.ess(tau, method="tail").min())
    assert table.loc["tau", "worst"] == tau["creator"].values[az.rhat(tau).values.argmax()]
    mu_genre = az.rhat(posterior["mu_genre"]).values
    assert table.loc["mu_genre", "worst"] == ["comedy", "music", "gaming"][mu_genre.argmax()]


def test_the_conditional_means_are_those_of_the_closed_form(good, summaries):
    """In the order of the frame: by genre they would be watched under wrong names."""
    means = _monitored(good)["E[tau | hyper]"].values.reshape(-1, 12)
    data, hyper = estimates_of(good), hyper_draws(good["posterior"].dataset)
    creator = creator_moments(data, genre_moments(data, hyper), hyper.sigma_creator)
    np.testing.assert_array_equal(means[:, data.order], creator.mean)
    pull = np.corrcoef(means.mean(axis=0), summaries["effect_hat"])[0, 1]
    assert pull > 0.7


def walk(rng, shape, sd):
    return np.cumsum(rng.normal(0, sd, shape), axis=1)


def stuck(kind):
    """Hyperparameters that have not mixed, while each tau is drawn exactly given them."""
    rng = np.random.default_rng(2)
    mu_global, sigma_genre, sigma_creator = well_mixed(rng)
    if kind == "chains apart":
        sigma_creator = sigma_creator * np.array([[0.92], [0.97], [1.02], [1.08]])
    elif kind == "slow sigma_creator":
        sigma_creator = np.exp(-1.0 + 0.1 * np.sin(walk(rng, SHAPE, 0.02)))
    elif kind == "slow mu_global":
        mu_global = 0.5 + 0.2 * np.sin(walk(rng, SHAPE, 0.02))
    return mu_global, sigma_genre, sigma_creator


@pytest.mark.parametrize("kind", ["chains apart", "slow sigma_creator"])
def test_stuck_hyperparameters_fail_although_the_taus_look_well(fabricate, summaries, kind):
    idata = fabricate(summaries, *stuck(kind))
    found = check_diagnostics(idata)
    table = found.table
    assert table.loc["tau", "max_rhat"] < 1.01
    assert table.loc["tau", ["min_ess_bulk", "min_ess_tail"]].min() > 1600
    assert not found.ok
    for quantity in ("sigma_creator", "E[tau | hyper]"):
        assert table.loc[quantity, "max_rhat"] > 1.02
        assert any(f" {quantity} is" in failure for failure in found.failures)
    with pytest.raises(DiagnosticsError, match=r"E\[tau \| hyper\]"):
        found.raise_if_failed()


def test_a_stuck_platform_mean_fails(fabricate, summaries):
    found = check_diagnostics(fabricate(summaries, *stuck("slow mu_global")))
    assert any("mu_global" in failure for failure in found.failures)


def test_a_stuck_tau_fails(good):
    """Where every tau is sampled, one of them may be stuck alone."""
    changed = good.copy(deep=True)
    changed["posterior"]["tau"][3, :, 7] += 1.0
    found = check_diagnostics(changed)
    assert [f for f in found.failures if "R-hat of tau" in f]
    assert found.table.loc["tau", "worst"] == good["posterior"]["creator"].values[7]
    assert all(" tau " in failure for failure in found.failures)


# --- every rule at its boundary -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rhat", "bulk", "tail", "broken"),
    [
        (1.00999, 1600.01, 1600.01, []),
        (1.01, 2000, 2000, ["R-hat of x is 1.010, not below 1.01"]),
        (1.0, 1600, 2000, ["bulk ESS of x is 1600, not above 1600"]),
        (1.0, 2000, 1600, ["tail ESS of x is 1600, not above 1600"]),
        (np.inf, 0, 0, ["R-hat", "bulk", "tail"]),
        (np.nan, np.nan, np.nan, ["R-hat", "bulk", "tail"]),
    ],
)
def test_convergence_rules(rhat, bulk, tail, broken):
    row = {"max_rhat": rhat, "min_ess_bulk": bulk, "min_ess_tail": tail}
    failures = _table_failures(pd.DataFrame([row], index=["x"]), 1600)
    assert len(failures) == len(broken)
    assert all(f.startswith(start) for f, start in zip(failures, broken, strict=True))


@pytest.mark.parametrize("n_chains", [2, 4])
def test_the_effective_sample_size_is_demanded_of_every_chain(fabricate, summaries, n_chains):
    """350 independent draws a chain are too few, 500 enough, however many chains."""
    for draws, enough in ((350, False), (500, True)):
        hyper = well_mixed(np.random.default_rng(3), (n_chains, draws))
        failures = check_diagnostics(fabricate(summaries, *hyper)).failures
        if not enough:
            assert any(f"not above {400 * n_chains}" in failure for failure in failures)
        assert not any("R-hat" in failure for failure in failures) or not enough


@pytest.mark.parametrize("count", [1, 3])
def test_divergences_and_cut_off_trees_fail(good, count):
    flags = np.zeros(SHAPE, bool)
    flags.ravel()[:count] = True
    divergent = check_diagnostics(with_stats(good, diverging=flags))
    assert divergent.failures == (f"{count} divergent transitions",)
    assert divergent.divergences == count
    cut = check_diagnostics(with_stats(good, reached_max_tree_depth=flags))
    assert cut.failures == (f"{count} transitions reached the largest tree depth",)
    assert cut.max_tree_depth_hits == count


def test_a_slow_energy_fails(good):
    """One chain of four is enough: the smallest E-BFMI counts."""
    energy = good["sample_stats"]["energy"].values.copy()
    energy[2] = walk(np.random.default_rng(4), (1, 2000), 1.0)[0]
    found = check_diagnostics(with_stats(good, energy=energy))
    assert found.min_ebfmi < 0.1
    assert len(found.failures) == 1
    assert found.failures[0].startswith("E-BFMI 0.")


@pytest.mark.parametrize(("ebfmi", "ok"), [(0.301, True), (0.3, False), (np.nan, False)])
def test_the_energy_rule_at_its_boundary(good, monkeypatch, ebfmi, ok):
    monkeypatch.setattr(diagnostics, "_min_ebfmi", lambda energy: ebfmi)
    assert check_diagnostics(good).ok == ok


def test_the_error_lists_every_broken_rule(fabricate, summaries):
    idata = fabricate(summaries, *stuck("chains apart"))
    flags = np.zeros(SHAPE, bool)
    flags[0, :2] = True
    found = check_diagnostics(with_stats(idata, diverging=flags, reached_max_tree_depth=flags))
    with pytest.raises(DiagnosticsError) as caught:
        found.raise_if_failed()
    assert "2 divergent transitions" in str(caught.value)
    assert "2 transitions reached the largest tree depth" in str(caught.value)
    assert len(found.failures) > 4
    assert all(failure in str(caught.value) for failure in found.failures)


# --- what cannot be checked ---------------------------------------------------------------------


def test_a_constant_that_was_not_meant_fails(fabricate, summaries):
    mu_global, _, sigma_creator = well_mixed(np.random.default_rng(1))
    frozen = fabricate(summaries, mu_global, np.zeros(SHAPE), sigma_creator)
    found = check_diagnostics(frozen)
    assert any("sigma_genre" in failure for failure in found.failures)
    frozen.attrs["fixed"] = ["sigma_genre"]
    meant = check_diagnostics(frozen)
    assert meant.ok
    assert "sigma_genre" not in meant.table.index


def test_values_that_are_no_numbers_fail(good):
    changed = good.copy(deep=True)
    changed["posterior"]["tau"][0, 5, 2] = np.nan
    assert not check_diagnostics(changed).ok


@pytest.mark.parametrize("shape", [(1, 2000), (4, 3)])
def test_too_little_to_check_is_an_error(fabricate, summaries, shape):
    idata = fabricate(summaries, *well_mixed(np.random.default_rng(1), shape))
    with pytest.raises(ValueError, match=f"2 chains and 4 draws, got {shape[0]} and {shape[1]}"):
        check_diagnostics(idata)
    assert "diagnostics need" in store._describe(idata)["failures"][0]


def test_the_store_describes_a_posterior_by_its_convergence(good, fabricate, summaries):
    described = store._describe(good)
    assert described["failures"] == []
    assert described["divergences"] == 0
    assert 1 < described["max_rhat"] < 1.01
    assert described["min_ess_bulk"] > 1600
    bad = store._describe(fabricate(summaries, *stuck("chains apart")))
    assert bad["failures"]


def test_results_cannot_be_changed(good):
    with pytest.raises(AttributeError):
        check_diagnostics(good).failures = ()


@pytest.mark.slow
def test_the_textbooks_parameterization_fails_on_the_default_platform():
    """Non-centred throughout: with 100 creators a genre, the genre means are pinned down."""
    summaries = summarize_creators(generate_experiment_data()[0])
    found = check_diagnostics(fit_hierarchical_model(summaries, parameterization="noncentered"))
    assert not found.ok
    assert found.table.loc["mu_global", "min_ess_bulk"] < 1600
