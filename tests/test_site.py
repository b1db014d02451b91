"""The built site in a real browser, and the PDF beside it: whichever edition `_output` holds."""

import functools
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import yaml
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
    from playwright.sync_api import sync_playwright

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


@needs_browser
@pytest.mark.parametrize("path", PAGES)
def test_page_fits_a_phone(page, address, path):
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto(address + path, wait_until="networkidle")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375


@needs_browser
def test_theme_switch_changes_colours_and_figures(page, address):
    page.goto(address + "chapters/05-validation.html", wait_until="networkidle")
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    light = page.locator(".light-content").first
    dark = page.locator(".dark-content").first
    assert light.is_visible()
    assert not dark.is_visible()
    page.locator("#theme, .quarto-color-scheme-toggle:visible").first.click()
    assert page.evaluate(background) != before
    assert dark.is_visible()
    assert not light.is_visible()


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
        assert len(self.pdf().outline) >= len(PAGES) - 2

    def test_has_every_caption(self):
        text = re.sub(r"\s+", "", self.text())
        for source in sources():
            content = (ROOT / source).read_text("utf-8")
            for caption in re.findall(r'#\| (?:fig|tbl)-cap: "([^"`$*\\]+)"', content):
                start = re.sub(r"\s+", "", caption)[:25].replace("'", "’")
                assert start in text.replace("'", "’"), f"{source}: {caption}"

    def test_fonts_are_embedded_and_no_markup_is_left(self):
        for page in self.pdf().pages[:20]:
            for font in page["/Resources"].get("/Font", {}).values():
                font = font.get_object()
                inner = font.get("/DescendantFonts", [font])[0].get_object()
                descriptor = inner.get("/FontDescriptor", {})
                assert any(key.startswith("/FontFile") for key in descriptor)
        for raw in ("{python}", ":::", "```", "@fig-", "@tbl-", "@sec-"):
            assert raw not in self.text()
