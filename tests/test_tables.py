"""Markdown tables: real tables, with text from data shown as text."""

import base64
import io
import re

import pandas as pd
import pypandoc
import pytest
from IPython.core.formatters import DisplayFormatter

from hbm.tables import csv_link, error_text, escape, interval_text, markdown_table


def to_html(markdown: str) -> str:
    return pypandoc.convert_text(markdown, "html", format="markdown", extra_args=["--wrap=none"])


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "a|b", "*x* _y_", "$x_1$", "[@cite]", "`code`", "# 1", "~~a~~",
     "back\\slash", "{{< include x >}}", "::: {.x}", "&amp;", "Ünïcødé 日本", "two\nlines", "'\""],
)  # fmt: skip
def test_text_from_data_shows_as_text(name):
    frame = pd.DataFrame({"genre": [name], "n": [1]})
    html = to_html(markdown_table(frame))
    plain = pypandoc.convert_text(html, "plain", format="html", extra_args=["--wrap=none"])
    shown = " ".join(name.split())
    assert shown in plain.replace("’", "'").replace("“", '"').replace("”", '"')
    assert "<script>" not in html
    assert html.count("<td") == 2


def test_numbers_are_aligned_and_formatted():
    frame = pd.DataFrame(
        {"creator_id": ["007"], "n_total": [12345], "se": [0.12345], "x": [-1.0], "y": [None]}
    )
    assert markdown_table(frame, digits=2).splitlines() == [
        "| creator id | n total | se | x | y |",
        "| :------- | ------: | ----: | -----: | :--- |",
        "| 007 | 12,345 | 0.12 | −1.00 | – |",
    ]


def test_digits_and_headings_by_column():
    frame = pd.DataFrame({"a": [0.5], "b": [0.25], "ok": [True]})
    text = markdown_table(frame, digits={"a": 1}, rename={"b": "share"})
    assert text.splitlines()[0] == "| a | share | ok |"
    assert text.splitlines()[2] == "| 0.5 | 0.250 | yes |"


def test_columns_of_a_wide_table_get_room_by_what_they_hold():
    frame = pd.DataFrame({"n": [1], "text": ["word " * 30]})
    marks = markdown_table(frame).splitlines()[1]
    assert marks == "| ---: | :" + "-" * 40 + " |"


def test_interval_text():
    text = interval_text(0.5, -0.25, 0.75)
    assert text == "0.50\N{NO-BREAK SPACE}[−0.25,\N{NO-BREAK SPACE}0.75]"
    assert escape(text) == text.replace("[", r"\[").replace("]", r"\]")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.015987, 0.007263, "0.0160 ± 0.0073"),
        (-0.0709, 0.0148, "−0.071 ± 0.015"),
        (2434.2, 1512.0, "2,400 ± 1,500"),
        (882.6, 99.6, "883 ± 100"),
        (1.5, 0.0, "1.500 ± 0.000"),
    ],
)
def test_an_error_decides_on_digits(value, error, text):
    assert error_text(value, error) == text.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize("text", [interval_text(0.5, -0.25, 0.75), error_text(0.5, 0.01)])
def test_a_sentence_shows_numbers_and_not_their_repr(text):
    data, _ = DisplayFormatter().format(text)
    assert data["text/markdown"] == escape(text)
    assert "xa0" in data["text/plain"]


def test_escape_keeps_one_line():
    assert escape("a\n  b") == "a b"


def test_csv_link_holds_the_table():
    frame = pd.DataFrame({"creator": ["a", "b,c"], "effect": [0.25, -1.5]})
    link = csv_link(frame, "x.csv", "The table")
    data = re.search(r'download="x.csv" href="data:text/csv;base64,([^"]+)"', link)[1]
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(base64.b64decode(data))), frame)
    assert link.startswith("```{=html}\n")
