"""Priors and a new batch are confronted fairly, and what is refuted is forgotten."""

import numpy as np
import pandas as pd
import pytest
from conftest import K
from test_learned import KNOWN, NAMES, batch_of, dense, fit, learned

from hbm.estimates import extract_genre_estimates
from hbm.gaussian import Estimates
from hbm.learned import prior_mixture, remember_batch
from hbm.learned.conflict import SPREAD, prior_conflict, resolve_conflict
from hbm.priors import Priors
from hbm.replicate import replicate
from hbm.uniform import uniform_pvalue


def _pvalues(rng):
    """P-values of a batch when everything is drawn from the priors, a new genre among others."""
    mu = rng.normal(rng.normal(), abs(rng.normal()), len(NAMES))
    sigma = abs(rng.normal())

    def draw(genres, n):
        batch = batch_of(rng, genres, n, mu=mu)
        tau = rng.normal(mu[[list(NAMES).index(g) for g in batch["genre"]]], sigma)
        return batch.assign(effect_hat=rng.normal(tau, batch["se"]))

    priors = learned([draw([0, 1, 2], 30)])
    conflict = prior_conflict(priors, draw([0, 1, 2, 3], 20))
    return conflict.table["p_value"].to_numpy(), conflict.alarm


def test_without_a_change_p_values_are_uniform():
    found = replicate(_pvalues, 100, seed=5, jobs=1)
    values = np.array([p for p, _ in found])
    assert min(uniform_pvalue(column) for column in values.T) > 1e-4 / values.shape[1]
    share, n = np.mean([alarm for _, alarm in found]), len(found)
    assert share <= 0.01 + K * np.sqrt(0.01 * 0.99 / n)


def test_the_predictive_is_the_models_own(rng):
    """The referee: many batches drawn from the joint posterior of the first."""
    first, second = batch_of(rng, [0, 1], 12), batch_of(rng, [0, 1, 2], 15)
    priors, wanted = learned([first]), ["drama", "games", "music"]
    table = prior_conflict(priors, second).table.set_index("what")
    genre, sigma, weights = prior_mixture(priors, wanted)
    data, n = Estimates.from_frame(second), 40_000
    names = second.groupby("genre_idx")["genre"].first().tolist()
    order = [names.index(genre) for genre in wanted]
    node = rng.choice(len(weights), size=n, p=weights / weights.sum())
    mu = np.empty((n, 3))
    mu[:, order] = rng.normal(genre.mean[node], np.sqrt(genre.var[node]))
    sd = np.sqrt(np.square(sigma[node])[:, None] + np.square(data.se))
    drawn = rng.normal(mu[:, data.genre_idx], sd)
    v = 1 / (np.square(data.se) + (weights @ sigma) ** 2)
    center = data.by_genre(v * drawn) / data.by_genre(v)
    q = (v * np.square(drawn - center[:, data.genre_idx])).sum(axis=1) / (15 - 3)
    simulated = {g: center[:, k] for g, k in zip(wanted, order, strict=True)} | {SPREAD: q}
    for name, values in simulated.items():
        row = table.loc[name]
        error = values.std() / np.sqrt(n)
        assert abs(values.mean() - row["expected"]) < K * error, name
        below = np.mean(values < row["observed"])
        p = 2 * min(below, 1 - below)
        assert abs(p - row["p_value"]) < 2 * K * np.sqrt(0.25 / n), name


def test_with_known_sigmas_the_means_are_those_of_a_dense_normal(rng):
    first, second = batch_of(rng, [0, 1], 9), batch_of(rng, [0, 1, 2], 12)
    table = prior_conflict(learned([first], priors=KNOWN), second).table
    *_, total, d = dense([first, second], KNOWN)
    known = slice(len(first))
    new = slice(len(first), None)
    pull = np.linalg.solve(total[known, known], total[known, new]).T
    mean = KNOWN.mu_global.mu + pull @ (d.iloc[known] - KNOWN.mu_global.mu)
    covariance = total[new, new] - pull @ total[known, new]
    v = 1 / (np.square(second["se"].to_numpy()) + 0.4**2)
    for _, row in table.iterrows():
        if row["what"] != SPREAD:
            share = np.where(second["genre"] == row["what"], v, 0)
            share = share / share.sum()
            assert row["expected"] == pytest.approx(share @ mean, abs=1e-9)
            assert row["sd"] == pytest.approx(np.sqrt(share @ covariance @ share), abs=1e-9)
    spread = table.iloc[-1]
    assert spread["expected"] == pytest.approx(1)  # chi-squared by its degrees of freedom
    assert spread["sd"] == pytest.approx(np.sqrt(2 / (12 - 3)))


def test_a_jump_is_named_and_a_wider_spread_too(rng):
    priors = learned([batch_of(rng, [0, 1, 2], 90) for _ in range(3)])
    batch = batch_of(rng, [0, 1, 2], 90)
    assert not prior_conflict(priors, batch).alarm
    moved = batch.assign(effect_hat=batch["effect_hat"] + 2.0 * (batch["genre"] == "games"))
    conflict = prior_conflict(priors, moved)
    assert conflict.alarm
    assert conflict.surprises == ("games",)
    center = batch.groupby("genre")["effect_hat"].transform("mean")
    wide = batch.assign(effect_hat=center + 3 * (batch["effect_hat"] - center))
    assert SPREAD in prior_conflict(priors, wide).surprises
    assert not prior_conflict(priors, moved, level=conflict.p_value / 2).alarm


def test_what_is_refuted_is_forgotten_and_nothing_else(rng):
    priors = learned([batch_of(rng, [0, 1, 2], 90) for _ in range(3)])
    batch = batch_of(rng, [0, 1, 2], 90)
    moved = batch.assign(effect_hat=batch["effect_hat"] + 2.0 * (batch["genre"] == "games"))
    after = resolve_conflict(priors, prior_conflict(priors, moved))
    assert "games" not in after.memory.genres
    assert "games (until change 1)" in after.memory.genres
    made, alone = (
        extract_genre_estimates(fit(moved, p)).set_index("genre") for p in (after, Priors())
    )
    assert (
        abs(made.loc["games", "mean"] - alone.loc["games", "mean"]) < 0.2 * alone.loc["games", "se"]
    )
    assert made.loc["drama", "se"] < 0.7 * alone.loc["drama", "se"]
    again = resolve_conflict(
        remember_batch(after, moved), prior_conflict(remember_batch(after, moved), batch)
    )
    assert {"games (until change 1)", "games (until change 2)"} <= set(again.memory.genres)
    center = batch.groupby("genre")["effect_hat"].transform("mean")
    wide = batch.assign(effect_hat=center + 3 * (batch["effect_hat"] - center))
    assert resolve_conflict(priors, prior_conflict(priors, wide)).memory is None
    calm = prior_conflict(priors, batch)
    assert resolve_conflict(priors, calm) == priors


def test_order_does_not_matter(rng):
    priors, batch = learned([batch_of(rng, [0, 1], 20)]), batch_of(rng, [0, 1, 2], 20)
    turned = batch.sample(frac=1, random_state=1).assign(
        genre_idx=lambda b: pd.factorize(b["genre"])[0]
    )
    one, other = (prior_conflict(priors, b).table.set_index("what") for b in (batch, turned))
    pd.testing.assert_frame_equal(one, other.loc[one.index])
    assert one["remembered"].to_dict() == {
        "drama": True,
        "games": True,
        "music": False,
        SPREAD: True,
    }


def test_single_creators_have_no_spread(rng):
    priors = learned([batch_of(rng, [0, 1], 20)])
    assert SPREAD not in set(prior_conflict(priors, batch_of(rng, [0, 1], 2)).table["what"])
    with pytest.raises(ValueError, match="nothing has been learned"):
        prior_conflict(Priors(), batch_of(rng, [0], 3))
