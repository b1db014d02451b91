"""Priors learned batch by batch: exact, discounted, saved, and refused where they do not fit."""

import json
import os
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from conftest import K
from scipy import stats

from hbm.covariance import StructuredCovariance
from hbm.diagnostics import MAX_QUADRATURE_ERROR, estimates_of, priors_of
from hbm.estimates import extract_genre_estimates, extract_hbm_estimates
from hbm.exact import predict_effects, predictive_moments
from hbm.exact.correlated import fit_correlated_model
from hbm.exact.draws import draw_effects, extract_hyper_estimates
from hbm.exact.loo import leave_one_genre_out, loo_exact
from hbm.gaussian import Estimates, Hyper, genre_sums, log_density, mixture_moments
from hbm.learned import (
    PriorsFileError,
    compare_discounts,
    learn_priors,
    load_priors,
    log_predictive_density,
    prior_mixture,
    remember_batch,
    save_priors,
)
from hbm.memory import Memory, merged
from hbm.model import fit_hierarchical_model
from hbm.priors import Fixed, HalfCauchy, HalfNormal, LogNormal, Normal, Priors, TruncatedNormal
from hbm.robust import fit_hierarchical_model_robust

PROMISED = MAX_QUADRATURE_ERROR

#: Both standard deviations known: everything is one dense normal.
KNOWN = Priors(Normal(0.2, 1.3), Fixed(0.5), Fixed(0.4))

NAMES = np.array(["drama", "games", "music", "news", "sport"], dtype=object)


def fit(summaries, priors=Priors(), **settings):
    return fit_hierarchical_model(
        summaries, engine="exact", priors=priors, **{"draws": 0} | settings
    )


def batch_of(rng, genres, n, se=(0.1, 1.0), mu=None, start=0):
    """A batch of n creators of some genres (places in `NAMES`), in a random order."""
    genres = np.asarray(genres)
    idx = rng.permutation(np.arange(n) % len(genres))
    mu = np.linspace(-0.5, 1.2, len(NAMES)) if mu is None else mu
    errors = np.exp(rng.uniform(*np.log(se), n))
    return pd.DataFrame(
        {
            "creator_id": [f"c{start + i}" for i in range(n)],
            "genre": NAMES[genres[idx]],
            "genre_idx": idx,
            "effect_hat": rng.normal(mu[genres[idx]], np.hypot(errors, 0.4)),
            "se": errors,
        }
    )


def together(batches):
    """All batches as one, genres in the order of their first creators."""
    joint = pd.concat(batches, ignore_index=True)
    codes, _ = pd.factorize(joint["genre"])
    ids = [f"j{i}" for i in range(len(joint))]
    return joint.assign(genre_idx=codes, creator_id=ids)


def learned(batches, discount=1.0, priors=Priors()):
    for batch in batches:
        priors = remember_batch(priors, batch, discount=discount)
    return priors


@pytest.fixture
def batches(rng):
    """Genres come, stay away and come back; the batches are large, small and tiny."""
    shapes = (([0, 1, 2], 40), ([2, 3], 7), ([4], 1), ([1, 0, 4, 3], 23))
    return [batch_of(rng, genres, n) for genres, n in shapes]


# ------------------------------------------------------------------------- exactness


def same_posterior(one, other):
    """Hyperparameters and genres of two fits, in posterior standard deviations."""
    a, b = (extract_hyper_estimates(f).set_index("parameter") for f in (one, other))
    assert (a - b).div(b["se"], axis=0).abs().max().max() < PROMISED
    a, b = (extract_genre_estimates(f).set_index("genre") for f in (one, other))
    a, b = (table.drop(columns=["n_creators", "p_positive"]) for table in (a, b))
    assert set(a.index) == set(b.index)
    assert (a - b).div(b["se"], axis=0).abs().max().max() < PROMISED


def test_a_chain_of_batches_is_the_joint_fit_of_all(batches):
    priors, evidence = Priors(), 0.0
    for batch in batches:
        evidence += log_predictive_density(priors, batch)
        last = fit(batch, priors)
        priors = learn_priors(last, discount=1)
    joint = fit(together(batches))
    same_posterior(last, joint)
    assert evidence == pytest.approx(joint.attrs["log_marginal_likelihood"], abs=PROMISED)
    own = extract_hbm_estimates(last, batches[-1])
    all_of_them = extract_hbm_estimates(joint, together(batches)).tail(len(own))
    for column in ("effect_hat", "se", "ci_lower", "ci_upper", "p_positive", "shrinkage"):
        difference = own[column].to_numpy() - all_of_them[column].to_numpy()
        assert np.abs(difference).max() < PROMISED, column


def test_the_order_of_the_batches_does_not_matter(batches):
    fits = [fit(batches[0], learned(order)) for order in permutations(batches[1:])]
    for other in fits[1:]:
        same_posterior(fits[0], other)


def test_a_memory_holds_the_sums_for_every_sigma_creator(rng):
    batch = batch_of(rng, [0, 1, 2], 60, se=(0.01, 3.0))
    data = Estimates.from_frame(batch)
    sigma = np.array([1e-6, 1e-3, 0.02, 0.1, 0.4, 1.0, 7.0, 1e3, 1e6])
    remembered = learned([batch]).memory.at(sigma)
    sums = genre_sums(data, sigma)
    np.testing.assert_allclose(remembered.weight, sums.weight, rtol=1e-10)
    away = (remembered.mean - sums.mean) * np.sqrt(sums.weight)
    assert np.abs(away).max() < 1e-9
    constant = 0.5 * (len(batch) - 3) * np.log(2 * np.pi)
    expected = sums.residual.sum(axis=1) - constant
    np.testing.assert_allclose(remembered.residual, expected, rtol=1e-10)


def dense(batches, priors, new_genre=False):
    """Mean and covariance of (mu_genre, estimates) of all batches, and the genres' names."""
    rows = pd.concat(batches)
    names = list(dict.fromkeys(rows["genre"])) + ["new"] * new_genre
    design = (rows["genre"].to_numpy()[:, None] == np.array(names)).astype(float)
    prior = priors.mu_global.sigma**2 + priors.sigma_genre.value**2 * np.eye(len(names))
    noise = np.diag(priors.sigma_creator.value**2 + np.square(rows["se"].to_numpy()))
    return names, prior, prior @ design.T, design @ prior @ design.T + noise, rows["effect_hat"]


def test_with_known_sigmas_it_is_one_dense_normal(batches):
    """The referee: all estimates of all batches in one multivariate normal."""
    priors, last = learned(batches[:-1], priors=KNOWN), batches[-1]
    density = [
        stats.multivariate_normal(np.full(len(d), KNOWN.mu_global.mu), total).logpdf(d)
        for _, _, _, total, d in (dense(part, KNOWN) for part in (batches, batches[:-1]))
    ]
    assert log_predictive_density(priors, last) == pytest.approx(density[0] - density[1], abs=1e-9)
    names, prior, cross, total, d = dense(batches, KNOWN, new_genre=True)
    pull = np.linalg.solve(total, cross.T).T
    mean = KNOWN.mu_global.mu + pull @ (d - KNOWN.mu_global.mu)
    sd = np.sqrt(np.diag(prior - pull @ cross.T))
    made = predict_effects(fit(last, priors), [*names[:-1], None])
    np.testing.assert_allclose(made["effect_hat"], mean, atol=1e-10)
    np.testing.assert_allclose(np.square(made["se"]) - 0.4**2, np.square(sd), atol=1e-10)
    # Before the last batch the same is in the priors alone.
    names, prior, cross, total, d = dense(batches[:-1], KNOWN, new_genre=True)
    pull = np.linalg.solve(total, cross.T).T
    known = prior_mixture(priors, names)
    overall = mixture_moments(known.genre, known.weights)
    mean = KNOWN.mu_global.mu + pull @ (d - KNOWN.mu_global.mu)
    np.testing.assert_allclose(overall.mean, mean, atol=1e-10)
    np.testing.assert_allclose(overall.var, np.diag(prior - pull @ cross.T), atol=1e-10)


def test_effects_far_from_zero_lose_no_digits(batches):
    priors = Priors(mu_global=Normal(0, 1e7))
    far = [b.assign(effect_hat=b["effect_hat"] + 1e6) for b in batches]
    near, moved = (
        extract_genre_estimates(fit(b[-1], learned(b[:-1], priors=priors))) for b in (batches, far)
    )
    np.testing.assert_allclose(moved["mean"] - 1e6, near["mean"], atol=1e-7)
    np.testing.assert_allclose(moved["se"], near["se"], atol=1e-7)


def test_standard_errors_may_differ_by_thousands_but_not_without_end(rng):
    wide = batch_of(rng, [0, 1], 20, se=(1e-3, 3.0))
    halves = [wide.iloc[:10], wide.iloc[10:]]
    halves = [
        h.reset_index(drop=True).assign(genre_idx=pd.factorize(h["genre"])[0]) for h in halves
    ]
    same_posterior(fit(halves[1], learned(halves[:1])), fit(together(halves)))
    with pytest.raises(ValueError, match="differ by so much"):
        remember_batch(Priors(), wide.assign(se=np.geomspace(1e-5, 1e5, 20)))


# ------------------------------------------------------------------------- discounts


def test_a_discount_is_a_power_of_the_likelihood(batches):
    """With sigma_creator known, a power of a normal density is one of larger variance."""
    first, second = batches[0], batches[3]
    inflated = first.assign(se=np.sqrt((0.4**2 + np.square(first["se"])) / 0.6 - 0.4**2))
    one = fit(second, learned([first], 0.6, KNOWN))
    other = fit(second, learned([inflated], 1.0, KNOWN))
    a, b = (extract_genre_estimates(f) for f in (one, other))
    np.testing.assert_allclose(a["mean"], b["mean"], atol=1e-10)
    np.testing.assert_allclose(a["se"], b["se"], atol=1e-10)


def test_a_discounted_memory_cannot_grow_without_bound(rng):
    """However many equal batches there were, no more than discount / (1 - discount) count."""
    batch = batch_of(rng, [0, 1], 30)
    one, priors = remember_batch(Priors(), batch, discount=1).memory, Priors()
    for count in range(1, 26):
        priors = remember_batch(priors, batch, discount=0.8)
        worth = 4 * (1 - 0.8**count)
        for name in ("n_creators", "weight", "toward", "density"):
            expected = worth * np.array(getattr(one, name))
            np.testing.assert_allclose(getattr(priors.memory, name), expected, rtol=1e-9, atol=1e-9)
    now, never, once = (
        mixture_moments(known.genre, known.weights).var
        for known in map(prior_mixture, (priors, learned([batch] * 4), learned([batch], 0.8)))
    )
    assert (never < now).all()
    assert (now < 1.02 * never).all()
    assert (once > 3 * now).all()


def test_forgetting_everything_leaves_the_first_priors(batches):
    assert remember_batch(KNOWN, batches[0], discount=0) == KNOWN
    with pytest.raises(ValueError, match="discount must lie between 0 and 1, got 2"):
        remember_batch(KNOWN, batches[0], discount=2)
    with pytest.raises(ValueError, match="nothing has been learned"):
        prior_mixture(KNOWN)


def test_discounts_are_scored_by_prediction(batches):
    scores = compare_discounts(batches, (0.5, 1.0)).set_index("discount")
    first, joint = (
        fit(b).attrs["log_marginal_likelihood"] for b in (batches[0], together(batches))
    )
    assert scores.loc[1.0, "elpd"] == pytest.approx(joint - first, abs=PROMISED)
    assert scores["difference"].max() == 0
    assert scores["difference"].min() == pytest.approx(-np.ptp(scores["elpd"]))
    assert (scores["difference_se"] > 0).sum() == 1
    with pytest.raises(ValueError, match="two batches"):
        compare_discounts(batches[:1])


# ------------------------------------------------------------------------- fits with a memory


def test_what_is_learned_from_a_fit_is_what_its_batch_says(batches):
    known = learned(batches[:2], 0.9)
    assert learn_priors(fit(batches[2], known)) == remember_batch(known, batches[2])
    assert priors_of(fit(batches[2], known)) == known


def test_genres_that_are_only_remembered_come_last(batches):
    made = extract_genre_estimates(fit(batches[2], learned(batches[:2])))
    assert made["genre"].iloc[0] == "sport"
    assert made["n_creators"].tolist() == [1, 0, 0, 0, 0]
    assert made["genre"].tolist()[1:] == list(learned(batches[:2]).memory.genres)


def test_leaving_out_agrees_with_fits_without(batches):
    known, last = learned(batches[:2]), batches[3].head(9)
    last = last.assign(genre_idx=pd.factorize(last["genre"])[0])
    whole = fit(last, known)
    left = loo_exact(whole).pointwise["elpd"]
    evidence = whole.attrs["log_marginal_likelihood"]
    for i in (0, 4):
        rest = last.drop(index=i).assign(genre_idx=lambda r: pd.factorize(r["genre"])[0])
        without = fit(rest, known).attrs["log_marginal_likelihood"]
        assert left[i] == pytest.approx(evidence - without, abs=PROMISED)
    by_genre = leave_one_genre_out(whole).set_index("genre")
    for genre, own in last.groupby("genre"):
        rest = last[last["genre"] != genre].assign(genre_idx=lambda r: pd.factorize(r["genre"])[0])
        model = fit(rest, known)
        named = genre if genre in known.memory.genres else None
        moments, weight = predictive_moments(model, [named] * len(own), own["se"])
        density = stats.norm(moments.mean, np.sqrt(moments.var)).pdf(own["effect_hat"].to_numpy())
        summed = np.log(weight @ density).sum()
        assert by_genre.loc[genre, "elpd_summed"] == pytest.approx(summed, abs=PROMISED)


def test_draws_of_remembered_genres(batches):
    model = fit(batches[1], learned(batches[:1]))
    drawn = draw_effects(model, draws=5000, chains=2)["mu_genre"].values.reshape(10_000, -1)
    made = extract_genre_estimates(model)
    error = made["se"].to_numpy() / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - made["mean"]) < K * error).all()
    assert (np.abs(drawn.std(axis=0) - made["se"]) < K * error).all()


def test_pytensor_and_numpy_agree_on_a_memory(batches):
    import pytensor
    import pytensor.tensor as pt

    memory = learned(batches[:2], 0.8).memory
    places, sigma = memory.places(["games", "unheard of"]), pt.dscalar()
    mean, weight = np.array([0.3, -0.2]), np.array([20.0, 7.0])
    outputs = merged(memory.pymc(sigma), places, mean, weight, 2, pt)
    compiled = pytensor.function([sigma], list(outputs), mode="FAST_COMPILE")
    for value in (1e-4, 0.3, 5.0):
        past = memory.at(np.array([value]))
        expected = merged(past, places, mean[None], weight[None], 2)
        for one, other in zip(compiled(value), expected, strict=True):
            np.testing.assert_allclose(one, other[0], rtol=1e-9)


def test_the_density_given_the_hyperparameters_counts_the_past_as_data(batches):
    known, joint = learned(batches[:-1]), together(batches)
    hyper = Hyper(*np.array([[0.1, 0.7], [0.4, 0.9], [0.3, 0.6]]))
    data = estimates_of(fit(batches[-1], known))
    expected = log_density(Estimates.from_frame(joint), hyper)
    np.testing.assert_allclose(log_density(data, hyper), expected, atol=1e-8)


@pytest.mark.slow
def test_sampling_agrees_with_the_exact_engine(batches):
    import arviz as az

    known = learned(batches[:-1], 0.9)
    sampled = fit_hierarchical_model(batches[-1], priors=known, draws=1500, chains=2)
    exact = fit(batches[-1], known)
    table = extract_hyper_estimates(exact).set_index("parameter")
    table = pd.concat([table, extract_genre_estimates(exact).set_index("genre")])
    posterior = sampled["posterior"].dataset
    for name in ("mu_global", "sigma_genre", "sigma_creator", *posterior["genre"].values):
        draws = posterior[name] if name in posterior else posterior["mu_genre"].sel(genre=name)
        error = float(az.mcse(draws.values, method="mean"))
        assert abs(float(draws.mean()) - table.loc[name, "mean"]) < K * error, name
    assert learn_priors(sampled) == learn_priors(exact)


def test_a_normal_family_for_sigma_creator_is_used(rng):
    """A sharp prior wins over a batch of three; a wide one leaves the data alone."""
    batch = batch_of(rng, [0, 1], 3, se=(1.0, 2.0))
    for prior in (LogNormal(np.log(0.7), 0.01), TruncatedNormal(0.7, 0.007)):
        made = extract_hyper_estimates(fit(batch, Priors(sigma_creator=prior)))
        sigma = made.set_index("parameter").loc["sigma_creator"]
        assert sigma["mean"] == pytest.approx(0.7, abs=0.002)
        assert sigma["se"] == pytest.approx(0.007, rel=0.05)


# ------------------------------------------------------------------------- files


def test_a_file_gives_back_the_same_priors(tmp_path, batches):
    path = tmp_path / "priors.json"
    for priors in (
        learned(batches, 0.9),
        Priors(Normal(0.1, 1 / 3), LogNormal(-1.1, 0.3), TruncatedNormal(0.4, 0.1)),
        Priors(sigma_genre=HalfCauchy(5.0), sigma_creator=Fixed(0.4)),
    ):
        assert save_priors(priors, path) == path
        assert load_priors(path) == priors
        assert [p.name for p in tmp_path.iterdir()] == ["priors.json"]
    assert json.loads(path.read_text("utf-8"))["version"] == 1


def test_the_file_is_small(tmp_path, rng):
    years = [batch_of(rng, range(5), 500) for _ in range(3)]
    assert save_priors(learned(years), tmp_path / "p.json").stat().st_size < 40_000


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_priors(tmp_path, batches, monkeypatch, broken):
    path = tmp_path / "priors.json"
    save_priors(KNOWN, path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        save_priors(learned(batches), path)
    assert load_priors(path) == KNOWN
    assert [p.name for p in tmp_path.iterdir()] == ["priors.json"]


def test_a_file_that_is_cut_short_says_so(tmp_path, batches):
    path = save_priors(learned(batches), tmp_path / "priors.json")
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(PriorsFileError, match="no JSON, perhaps cut short"):
            load_priors(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(format="fits"), 'does not say "format": "hbm-priors"'),
        (lambda c: c.update(version=2), "version 2 of the file; this code knows 1"),
        (lambda c: c.pop("priors"), "damaged priors: KeyError"),
        (lambda c: c["priors"].update(nu=["Cauchy", {}]), "not Cauchy"),
        (lambda c: c["priors"].update(nu=["Gamma", {"shape": 1}]), "damaged priors: TypeError"),
        (lambda c: c["priors"].update(mu_global=["HalfNormal", {"sigma": 1}]), "needs a Normal"),
        (lambda c: _memory(c).update(scale=0), "scale and n_creators must be greater than 0"),
        (lambda c: _memory(c).update(scale="x"), "damaged priors"),
        (lambda c: _memory(c).update(center=[0.0]), "need an entry a genre"),
        (
            lambda c: _memory(c)["genres"].reverse() or _memory(c)["genres"].pop(),
            "an entry a genre",
        ),
        (lambda c: _memory(c).update(genres=["a", "a", "b"]), "distinct names"),
        (lambda c: _memory(c)["density"].__setitem__(0, None), "damaged priors"),
        (lambda c: _memory(c)["density"].__setitem__(0, float("nan")), "finite number"),
        (lambda c: _memory(c)["weight"].__setitem__(0, [-1.0]), "weight must be greater than 0"),
    ],
)
def test_damaged_files_are_refused(tmp_path, batches, damage, message):
    path = save_priors(learned(batches[:1]), tmp_path / "priors.json")
    content = json.loads(path.read_bytes())
    damage(content)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(PriorsFileError, match=message) as caught:
        load_priors(path)
    assert str(path) in str(caught.value)


def _memory(content):
    return content["priors"]["memory"][1]


def test_a_file_that_is_not_there_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_priors(tmp_path / "none.json")
    made = save_priors(KNOWN, tmp_path / "new" / "folder" / "priors.json")
    assert load_priors(made) == KNOWN


# ------------------------------------------------------------------------- refusals


def test_other_models_neither_use_a_memory_nor_fill_one(rng, batches):
    known, batch = learned(batches[:1]), batch_of(rng, [0, 1], 8)
    batch = batch.assign(x=rng.normal(size=8))
    message = "cannot use what past batches said"
    with pytest.raises(ValueError, match=message):
        fit(batch, known, covariates=["x"])
    with pytest.raises(ValueError, match=message):
        fit_hierarchical_model(batch, priors=known, parameterization="centered")
    with pytest.raises(ValueError, match=message):
        fit_hierarchical_model(batch, priors=known, sigma_by_genre=True)
    with pytest.raises(ValueError, match=message):
        fit_hierarchical_model_robust(batch, priors=known)
    covariance = StructuredCovariance.independent(batch["creator_id"], batch["se"])
    with pytest.raises(ValueError, match=message):
        fit_correlated_model(batch, covariance, priors=known)
    for other in (fit(batch, covariates=["x"]), fit_correlated_model(batch, covariance)):
        with pytest.raises(ValueError, match="learned from the plain model"):
            learn_priors(other)


def test_a_batch_needs_names_of_genres(batches):
    nameless = batches[1].drop(columns="genre")
    with pytest.raises(ValueError, match="genre"):
        remember_batch(Priors(), nameless)
    with pytest.raises(ValueError, match="genre"):
        fit(nameless, learned(batches[:1]))


def test_memories_of_different_scales_are_not_added(batches):
    one, other = (learned([batch]).memory for batch in batches[:2])
    with pytest.raises(ValueError, match="other scales or centers"):
        one.plus(other)
    with pytest.raises(TypeError, match="memory needs a Memory"):
        Priors(memory="yesterday")
    assert isinstance(one, Memory)


def test_a_memory_is_said_in_a_line(batches):
    said = learned(batches[:1], 0.5).describe()["memory"]
    assert said.startswith("Memory(n_creators: ")
    assert "drama=7" in said
    assert "memory" not in Priors().describe()
    assert replace(learned(batches[:1]), memory=None) == Priors()
    assert isinstance(Priors().sigma_creator, HalfNormal)
