"""The built site in a real browser, and the PDF beside it: whichever edition `_output` holds."""

import functools
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import nbformat
import pytest
import yaml
from playwright.sync_api import expect, sync_playwright
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_output"
BOOK = yaml.safe_load((ROOT / "_quarto.yml").read_text("utf-8"))["book"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LABELS = [
    "tbl-comparison",
    "fig-shrinkage",
    "fig-mse",
    "fig-coverage-width",
    "fig-creators",
    "fig-genre-posteriors",
    "fig-hyperparameters",
    "fig-trace",
    "fig-ppc",
]

pytestmark = [
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no site yet: `make book`"),
]
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the PATH")


def titles(outline):
    """The titles of all bookmarks, however deep; parts hold chapters."""
    for mark in outline:
        if isinstance(mark, list):
            yield from titles(mark)
        else:
            yield mark.title


def sources(parts=None):
    """Every .qmd the book lists, in order."""
    for part in parts or [*BOOK["chapters"], *BOOK["appendices"]]:
        if isinstance(part, str):
            yield part
        else:
            yield from sources(part["chapters"])


PAGES = [source.replace(".qmd", ".html") for source in sources()]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield context.new_page()
    context.close()


@needs_browser
@pytest.mark.parametrize("path", PAGES)
def test_page_opens_without_error_or_outside_request(page, address, path):
    errors, outside = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((address, "data:", "blob:")) else outside.append(asked.url)
        ),
    )
    page.goto(address + path, wait_until="networkidle")
    # On its first page Quarto sets the book's title above the page's own.
    assert page.locator("h1").count() == 1 + (
        path == "index.html" and page.locator("#quarto-content").count()
    )
    assert page.locator("main").count() == 1
    assert not errors
    assert not outside


def violations(page):
    """What axe calls serious or critical, each with the first elements concerned."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (found["id"], [node["target"] for node in found["nodes"][:3]])
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def switch_theme(page):
    """Switch from light to dark, and wait until all colours have faded over."""
    before = page.evaluate(BACKGROUND)
    page.locator("#theme, .quarto-color-scheme-toggle:visible").first.click()
    page.wait_for_function(f"before => {BACKGROUND} !== before", arg=before)
    page.evaluate("Promise.allSettled(document.getAnimations().map(({ finished }) => finished))")


@needs_browser
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious_in_light_or_dark(page, address, path):
    page.goto(address + path, wait_until="networkidle")
    assert not violations(page)
    switch_theme(page)
    assert not violations(page)


@needs_browser
@pytest.mark.parametrize("path", PAGES)
def test_page_fits_a_phone_and_axe_finds_nothing_serious(page, address, path):
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto(address + path, wait_until="networkidle")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375
    assert not violations(page)


@needs_browser
def test_axe_would_notice(page, address):
    page.goto(address + "index.html", wait_until="networkidle")
    page.evaluate("document.querySelector('main img').removeAttribute('alt')")
    assert any(rule == "image-alt" for rule, _ in violations(page))


@needs_browser
def test_theme_switch_changes_colours_and_figures(page, address):
    page.goto(address + "chapters/05-validation.html", wait_until="networkidle")
    light = page.locator(".light-content").first
    dark = page.locator(".dark-content").first
    expect(light).to_be_visible()
    expect(dark).to_be_hidden()
    switch_theme(page)
    expect(dark).to_be_visible()
    expect(light).to_be_hidden()


@needs_browser
@pytest.mark.parametrize("preferred", ["light", "dark"])
def test_first_visit_is_in_the_theme_that_the_reader_prefers(browser, address, preferred):
    context = browser.new_context(color_scheme=preferred)
    page = context.new_page()
    page.goto(address + "chapters/05-validation.html", wait_until="networkidle")
    expect(page.locator(f".{preferred}-content").first).to_be_visible()
    context.close()


@needs_browser
def test_search_finds_a_phrase(page, address):
    page.goto(address + "index.html", wait_until="networkidle")
    opener = page.locator(".aa-DetachedSearchButton, #quarto-search button").first
    if opener.count() and opener.is_visible():
        opener.click()
    page.locator(".pagefind-ui__search-input, .aa-Input").first.fill("shrinkage")
    found = page.locator(".pagefind-ui__result-link, .aa-Item a").first
    found.wait_for(timeout=10_000)
    assert ".html" in found.get_attribute("href")


@pytest.fixture
def explorer(page, address):
    page.goto(address + "chapters/06-readout.html", wait_until="networkidle")
    page.locator("#explorer tbody tr").first.wait_for()
    return page.locator("#explorer")


def column(explorer, number):
    return explorer.locator(f"tbody tr td:nth-child({number})").all_inner_texts()


def press_until(header, direction):
    """Press a column's button until it is sorted so: ascending, descending and not take turns."""
    for _ in range(3):
        before = header.get_attribute("aria-sort")
        header.locator(".dt-column-order").press("Enter")
        header.page.wait_for_function(
            "([header, before]) => header.getAttribute('aria-sort') !== before",
            arg=[header.element_handle(), before],
        )
        if header.get_attribute("aria-sort") == direction:
            return
    pytest.fail(f"the column cannot be sorted {direction}")


@needs_browser
class TestExplorer:
    def test_finds_a_creator_by_part_of_its_id_and_by_genre(self, explorer):
        explorer.get_by_label("Find a creator").fill("village-01")
        assert {name[:-1] for name in column(explorer, 1)} == {"village-01"}
        explorer.get_by_label("Find a creator").fill("")
        explorer.get_by_label("Genre", exact=True).select_option("2 to 3 km")
        assert set(column(explorer, 2)) == {"2 to 3 km"}
        for verdict in ("up", "not estimated"):
            explorer.get_by_label("Verdict", exact=True).select_option(verdict)
            assert {told.strip("▲▼● ") for told in column(explorer, 9)} == {verdict}

    @pytest.mark.parametrize("number", [3, 4, 5, 7, 8])
    def test_sorts_by_keyboard(self, explorer, number):
        explorer.get_by_label("a page").select_option("100")
        header = explorer.locator(f"thead th:nth-child({number})")
        for direction in ("ascending", "descending"):
            press_until(header, direction)
            cells = column(explorer, number)
            known = [cell.split()[0] for cell in cells if cell != "–"]
            assert cells[len(known) :] == ["–"] * (len(cells) - len(known))  # unknown ones last
            values = [float(text.replace("−", "-").replace(",", "")) for text in known]
            assert len(values) > 50
            assert len(set(values)) > 1
            assert values == sorted(values, reverse=direction == "descending")

    def test_shows_plain_against_pooled_and_saves_what_is_listed(self, page, explorer):
        assert explorer.locator("tbody svg").count() == 10
        explorer.get_by_label("Genre", exact=True).select_option("0 to 1 km")
        with page.expect_download() as download:
            explorer.get_by_role("button", name="Save as CSV").click()
        lines = Path(download.value.path()).read_text("utf-8").splitlines()
        count = int(re.search(r"of ([\d,]+)", explorer.locator(".dt-info").inner_text())[1])
        assert lines[0].startswith("creator_id,genre,n_total,plain,")
        assert len(lines) == 1 + count
        assert all(",0 to 1 km," in line for line in lines[1:])


@needs_browser
@pytest.mark.parametrize(
    ("path", "label"),
    [("03-model", "fig-shrinkage"), ("06-readout", "fig-readout-shrinkage")],
)
def test_shrinkage_plot_tells_who_a_point_is(page, address, path, label):
    page.goto(f"{address}chapters/{path}.html", wait_until="networkidle")
    picture = page.locator(f"#{label} img:visible").first
    picture.scroll_into_view_if_needed()
    points = page.evaluate(
        f"JSON.parse(document.querySelector('script.hover[data-figure={label}]').textContent)"
    )
    note, box = page.locator(".hover-note"), picture.bounding_box()
    x, y, told = max(points)  # the rightmost has no near neighbour
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    assert note.inner_text() == told
    assert {"plain", "pooled"} <= set(told.split())
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    expect(note).to_be_hidden()
    link = page.locator(f"#{label} a:visible").first
    link.press("ArrowRight")
    assert note.inner_text() == points[0][2]


def anchors(html: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', html))


def test_every_internal_link_resolves():
    pages = {path: (SITE / path).read_text("utf-8") for path in PAGES}
    broken = []
    for path, html in pages.items():
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', html):
            if re.match(r"[a-z]+:", link) or not link:
                continue
            target, fragment = urldefrag(urljoin(path, unquote(link)))
            target = target or path
            if not (SITE / target).exists() or (
                fragment and target in pages and fragment not in anchors(pages[target])
            ):
                broken.append(f"{path}: {link}")
    assert not broken


@pytest.mark.parametrize("path", PAGES)
def test_page_weighs_less_than_two_megabytes(path):
    """The page and what it alone shows, in both themes; what all pages share is fetched once."""
    html = (SITE / path).read_text("utf-8")
    own = set(re.findall(r'<img\b[^>]*\bsrc="([^":]+)"', html))
    files = [SITE / urljoin(path, unquote(name)) for name in own]
    assert sum(file.stat().st_size for file in [SITE / path, *files]) < 2_000_000


@pytest.mark.parametrize("path", [page for page in PAGES if "references" not in page])
def test_page_links_terms_once_and_to_the_glossary(path):
    html = (SITE / path).read_text("utf-8")
    terms = re.findall(r'<a\b[^>]*\bhref="[^"]*#(term-[^"]+)"', html)
    assert len(terms) == len(set(terms))
    assert bool(terms) != path.endswith("b-glossary.html")


@pytest.mark.parametrize("path", [p for p in PAGES if not re.search("references|glossary", p)])
def test_page_offers_its_notebook(path):
    html = (SITE / path).read_text("utf-8")
    name = "notebooks/" + Path(path).stem + ".ipynb"
    assert re.search(rf'<a\b[^>]*\bhref="[^"]*{name}"', html)
    book = nbformat.read(SITE / name, as_version=4)
    nbformat.validate(book)
    assert any(cell.cell_type == "code" for cell in book.cells)


@pytest.mark.parametrize("label", LABELS)
def test_required_label_is_in_the_rendered_book(label):
    assert any(f'id="{label}"' in (SITE / path).read_text("utf-8") for path in PAGES)


def test_tables_are_real_tables():
    html = (SITE / "chapters/05-validation.html").read_text("utf-8")
    after = html[html.index('id="tbl-comparison"') :]
    assert "<table" in after[:3000]


def test_images_have_alt_texts():
    for path in PAGES:
        for image in re.findall(r"<img\b[^>]*>", (SITE / path).read_text("utf-8")):
            assert re.search(r'\balt="[^"]{20,}"', image), f"{path}: {image[:120]}"


def structure(pdf):
    """Every element of the tree that tells a screen reader what the PDF is made of."""
    pending = [pdf.trailer["/Root"]["/StructTreeRoot"]]
    while pending:
        element = pending.pop().get_object()
        if isinstance(element, list):
            pending += element
        elif isinstance(element, dict):
            yield element
            if "/K" in element:
                pending.append(element["/K"])


class TestPdf:
    @staticmethod
    @functools.cache
    def pdf():
        return PdfReader(SITE / (BOOK["output-file"] + ".pdf"))

    @staticmethod
    @functools.cache
    def text():
        return " ".join(page.extract_text() for page in TestPdf.pdf().pages)

    def test_has_pages_title_and_bookmarks(self):
        assert len(self.pdf().pages) > 30
        assert BOOK["title"] in self.pdf().metadata.title
        marks = list(titles(self.pdf().outline))
        for source in sources():
            heading = re.search(r"^# (.*?)(?: \{.*)?$", (ROOT / source).read_text("utf-8"), re.M)
            assert heading is None or any(mark.endswith(heading[1]) for mark in marks), source

    def test_has_every_caption(self):
        # A hyphen at the end of a line comes out as a soft one.
        text = re.sub(r"\s+", "", self.text()).replace("\N{SOFT HYPHEN}", "-")
        for source in sources():
            content = (ROOT / source).read_text("utf-8")
            for caption in re.findall(r'#\| (?:fig|tbl)-cap: "([^"`$*\\]+)"', content):
                start = re.sub(r"\s+", "", caption)[:25].replace("'", "’")
                assert start in text.replace("'", "’"), f"{source}: {caption}"

    def test_has_every_figure_and_every_cell_of_it_has_an_alternative_text(self):
        """Figures are drawn as vectors; a tagged PDF has one Figure with its text for each."""
        tagged = [element for element in structure(self.pdf()) if element.get("/S") == "/Figure"]
        texts = "".join(re.sub(r"\W", "", str(element.get("/Alt", ""))) for element in tagged)
        for source in sources():
            content = (ROOT / source).read_text("utf-8")
            for alt in re.findall(r'#\| fig-alt: "([^"\\]+)"', content):
                assert re.sub(r"\W", "", alt)[:60] in texts, f"{source}: {alt}"

    def test_links_lead_somewhere(self):
        pdf, named, count = self.pdf(), set(self.pdf().named_destinations), 0
        for page in pdf.pages:
            for link in page.get("/Annots", []):
                link = link.get_object()
                action = link.get("/A", {})
                target = link.get("/Dest", action.get("/D"))
                count += 1
                if "/URI" in action:
                    assert re.match(r"https?://|mailto:", action["/URI"])
                elif isinstance(target, str):
                    assert target in named
                else:
                    assert target is not None
                    assert target[0].get_object()["/Type"] == "/Page"
        assert count > 200

    def test_fonts_are_embedded_and_no_markup_is_left(self):
        for page in self.pdf().pages:
            for font in page["/Resources"].get("/Font", {}).values():
                font = font.get_object()
                inner = font.get("/DescendantFonts", [font])[0].get_object()
                descriptor = inner.get("/FontDescriptor", {})
                assert any(key.startswith("/FontFile") for key in descriptor)
        for raw in ("{python}", "\\xa0", ":::", "```", "@fig-", "@tbl-", "@sec-"):
            assert raw not in self.text()
