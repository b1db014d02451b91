"""Points that tell who they are, and pictures that weigh less."""

import io
import json
import re
from base64 import b64decode, b64encode

import numpy as np
import pytest
from PIL import Image

from hbm import plots
from hbm.baselines import no_pooling_estimates
from hbm.data import generate_experiment_data, summarize_creators
from hbm.plots import look


@pytest.fixture(scope="module")
def data():
    users, _ = generate_experiment_data(seed=3, n_creators_per_genre=12)
    plain = no_pooling_estimates(summarize_creators(users))
    means = plain.groupby("genre")["effect_hat"].mean()
    own = plain["genre"].map(means)
    pooled = plain.assign(effect_hat=0.5 * plain["effect_hat"] + 0.5 * own)
    return plain, pooled, means


def test_hover_finds_the_points_where_the_picture_has_them(data):
    """Every place that is told lies on ink."""
    plain, pooled, genre_means = data
    written = plots.hover_shrinkage("fig-x", plain, pooled, genre_means)
    found = json.loads(re.search(r'data-figure="fig-x">(.*?)</script>', written)[1])
    assert len(found) == len(plain)
    fig = plots.plot_shrinkage(plain, pooled, genre_means)
    stream = io.BytesIO()
    fig.savefig(stream, format="png", dpi=fig.dpi)
    image = np.asarray(Image.open(stream).convert("RGB"))
    height, width, _ = image.shape
    paper = 0
    for x, y, told in found:
        paper += (image[int(y * height), int(x * width)] == 255).all()
        assert told.split(" · ")[0] in set(plain["creator_id"])
    assert paper == 0
    assert all(told.count("[") == 2 and "-" not in told.split("\n", 1)[1] for *_, told in found)


def test_lighter_picture_is_smaller_and_looks_the_same(data):
    stream = io.BytesIO()
    plots.plot_shrinkage(*data).savefig(stream, format="png", dpi=192)
    before = stream.getvalue()
    after = b64decode(look._lighter(b64encode(before).decode()))
    assert len(after) < 0.6 * len(before)
    one, two = (np.asarray(Image.open(io.BytesIO(b)).convert("RGB"), int) for b in (before, after))
    assert one.shape == two.shape
    assert np.abs(one - two).mean() < 1.5
