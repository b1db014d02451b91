"""The README's picture, table and commands are true."""

import re

import pytest
import readme
from matplotlib.testing.compare import compare_images

TEXT = readme.README.read_text("utf-8")


@pytest.fixture(scope="module")
def made():
    return readme.picture_and_table()


def test_table_is_the_computed_one(made):
    shown = readme.TABLE.search(TEXT).group().strip()
    assert shown == made[1].strip(), "run `make readme` and look at what changed"


def test_picture_is_the_drawn_one(made, tmp_path):
    drawn = tmp_path / "shrinkage.png"
    readme.save(made[0], drawn)
    # Fonts and antialiasing differ by a few grey levels between machines.
    assert compare_images(str(readme.PICTURE), str(drawn), tol=5) is None


def test_every_make_target_exists():
    makefile = (readme.ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", TEXT))
    assert named
    assert named <= targets


def test_every_named_file_exists():
    for name in re.findall(r"`((?:hbm|data|offline|\.ci|chapters|tests)/[\w./]*)`", TEXT):
        path = name.replace("NN-x", "01-data").replace("x.py", "data.py")
        assert (readme.ROOT / path).exists(), name
