"""The built book: sound links, readable offline, and working in a browser."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "book" / "records"

PHONE = {"width": 375, "height": 720, "deviceScaleFactor": 2, "mobile": True}


class Page(HTMLParser):
    """What the HTML of one page refers to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads = {""}, [], []
        self.images, self.drawings = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if "rconv-figure" in (attributes.get("class") or ""):
            self.drawings.append(attributes.get("aria-label") or "")
        if tag == "img":
            self.images.append((attributes["src"], attributes.get("alt") or ""))
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(attributes["href"])
        if "src" in attributes:
            self.loads.append(attributes["src"])


@pytest.fixture(scope="module")
def book():
    """The folder of the book's HTML, built by make's own steps in this environment.

    For this file alone: another one may run beside it, and two builds would share the folder.
    """
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    made = subprocess.run(
        ["make", "book", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert made.returncode == 0, made.stdout
    assert "warning" not in made.stdout.lower(), made.stdout
    return ROOT / "_build" / "html"


@pytest.fixture(scope="module")
def pages(book):
    """All pages by path, parsed; the theme keeps a template of its own under _static."""
    paths = sorted(path for path in book.rglob("*.html") if book / "_static" not in path.parents)
    return {path: Page(path) for path in paths}


def test_internal_links_and_anchors_exist(pages):
    broken = []
    for path, page in pages.items():
        for link in (link for link in page.links if not urlsplit(link).scheme):
            name, anchor = urldefrag(unquote(link))
            target = (path.parent / name.split("?")[0]).resolve() if name else path
            if not target.is_file() or (target in pages and anchor not in pages[target].anchors):
                broken.append((path.name, link))
    assert not broken


def test_nothing_is_loaded_from_elsewhere(pages):
    loads = {load for page in pages.values() for load in page.loads}
    assert not {load for load in loads if urlsplit(load).scheme not in ("", "data")}
    assert not {load for load in loads if load.startswith("//")}


def test_images_have_alternative_texts(pages):
    # Where none was given, Sphinx writes the path of the file instead.
    images = {image for page in pages.values() for image in page.images}
    assert not {(src, alt) for src, alt in images if not alt.strip() or "_images/" in alt}


def test_drawings_have_alternative_texts(pages):
    assert sum(len(page.drawings) for page in pages.values()) > 30
    assert not [path.name for path, page in pages.items() if "" in page.drawings]


def test_no_page_shows_an_error_instead_of_a_figure(pages):
    # IPython prints what a figure raises, and the build goes on.
    texts = {path: path.read_text() for path in pages}
    assert not [path.name for path, text in texts.items() if "highlight-ipythontb" in text]
    assert not [path.name for path, text in texts.items() if "&lt;Figure size" in text]


def test_captions_are_numbered(book):
    text = (book / "notebooks" / "rank.html").read_text()
    assert re.search(r'class="?caption-number"?>Figure \d+\.1 ?<', text)
    assert re.search(r'class="?caption-number"?>Table \d+\.1 ?<', text)
    assert not re.search(r"<em>(Figure|Table)\.</em>", text)


def test_long_tables_fold_behind_their_captions(book):
    for name, rows in (("rank", 45), ("success", 45), ("other_attacks", 36)):
        text = (book / "notebooks" / f"{name}.html").read_text()
        assert f"Show the table ({rows} rows)" in text
    assert "rconv-long" not in (book / "notebooks" / "claims.html").read_text()


@pytest.mark.parametrize("page", ["gradient_constraints", "recursion", "rank", "explore"])
def test_a_figure_that_one_plays_with_is_the_first(book, page):
    article = (book / "notebooks" / f"{page}.html").read_text().split("<article", 1)[1]
    before, after = re.split('class="?rconv-play', article, maxsplit=1)
    assert "<h2" not in before and "caption-number" not in before
    assert re.search('caption-number"?>Figure', after.split("<h2")[0])


def test_numbers_are_written_with_powers_of_ten(pages):
    # The reference shows signatures as they are written.
    text = "".join(path.read_text() for path in pages if path.parent.name != "api")
    prose = re.sub(r"<(pre|script|style|svg|code)\b.*?</\1>", "", text, flags=re.S)
    assert "·10⁻" in prose
    assert not re.findall(r">[^<]*\b\d(?:\.\d+)?e-\d\d\b[^<]*<", prose)


def buttons(page):
    """Addresses of the buttons at the top that lead to the repository, Binder and Colab."""
    return [link for link in page.links if "/rconv/rconv/" in link and "launch" not in link]


def test_rockets_pencils_and_issues_lead_to_files_that_exist(book, pages):
    root, missing = book.parents[1], []
    for path, page in pages.items():
        for link in buttons(page):
            if found := re.search(r"(?:main\?urlpath=lab/tree|(?:blob|edit)/main)/([^#]+)", link):
                missing += [(path.name, link)] * (not (root / found[1]).exists())
    assert not missing


def test_a_rocket_of_a_page_of_the_grid_opens_that_very_point(book, pages):
    made = sorted(book.glob("book/*/*-*.html"))
    assert made
    for path in made:
        notebook, point = path.parent.name, path.stem
        found = buttons(pages[path])
        assert any(link.endswith(f"lab/tree/notebooks/{notebook}/{point}.ipynb") for link in found)
        assert any(link.endswith(f"blob/main/notebooks/{notebook}/{point}.ipynb") for link in found)
        assert any(link.endswith(f"edit/main/notebooks/{notebook}.md") for link in found)


def test_rockets_of_other_pages_open_their_own_notebook(book, pages):
    own = buttons(pages[book / "notebooks" / "rank.html"])
    assert sum(link.endswith("/notebooks/rank.ipynb") for link in own) == 2
    assert any(link.endswith("/edit/main/notebooks/rank.md") for link in own)
    assert any("/issues/new" in link for link in own)


def test_downloads_hold_no_outputs_and_the_cells_of_the_page(book):
    paths = sorted(book.glob("_sources/**/*.ipynb"))
    assert len(paths) > 25
    for path in paths:
        cells = json.loads(path.read_text())["cells"]
        assert any(cell["cell_type"] == "code" for cell in cells), path
        assert not any(cell.get("outputs") for cell in cells), path


def test_every_page_shows_the_version(book, pages):
    version = tomllib.loads((book.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    text = f"Version {version}: <a"
    assert not [path for path in pages if "footer" in (own := path.read_text()) and text not in own]


def test_the_book_is_light(book):
    """Of which it had 10.3 MB when this was last set."""
    assert sum(path.stat().st_size for path in book.rglob("*") if path.is_file()) < 12e6


def test_every_module_is_in_the_reference(book, pages):
    package = book.parents[1] / "rconv"
    files = (path for path in package.rglob("*.py") if not path.stem.startswith("_"))
    modules = {".".join(path.relative_to(package.parent).with_suffix("").parts) for path in files}
    anchors = set().union(*(pages[path].anchors for path in book.glob("book/api/*.html")))
    assert not {name for name in modules if f"module-{name}" not in anchors}


def eventually(condition, seconds=20):
    """Wait until the condition gives something true, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


@dataclass
class Visit:
    """What the browser saw on one page."""

    console: list = field(default_factory=list)
    requested: list = field(default_factory=list)
    failed: list = field(default_factory=list)
    seen: dict = field(default_factory=dict)
    phone: dict = field(default_factory=dict)


FORM = """
const name = element => element.outerHTML.slice(0, 120);
const all = selector => [...document.querySelectorAll(selector)];
// Scrolled to its end, a table shows its last column, within the window.
const lost = all('article table').filter(table => {
  const box = table.parentElement, cell = table.rows[0].cells[table.rows[0].cells.length - 1];
  box.scrollLeft = 1e6;
  const end = cell.getBoundingClientRect(), inside = box.getBoundingClientRect();
  box.scrollLeft = 0;
  return end.right > Math.min(inside.right, innerWidth) + 1 || end.left < inside.left - 1;
}).map(name);
const texts = all('.rconv-figure text, .rconv-diagram text').filter(e => e.getClientRects().length);
// Exponents are smaller than what they stand at.
const parts = e => e.childElementCount ? [...e.children] : [e];
const pixels = e => Math.max(...parts(e).map(part => parseFloat(getComputedStyle(part).fontSize)))
  * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b);
const brightness = e => Math.max(...getComputedStyle(e).fill.match(/[\\d.]+/g).slice(0, 3));
const rules = all('svg style').map(e => e.textContent).join('');
const painted = e => e.style.fill
  || [...e.classList].some(name => RegExp('\\\\.' + name + '\\\\{[^}]*fill:').test(rules));
const own = texts.filter(e => !painted(e));  // without a colour of its own
"""

SEE = (
    FORM
    + """
return {
  lost,
  pale: own.filter(e => brightness(e) > 128).map(e => e.textContent),
  unrendered: all('.math').filter(e => !e.querySelector('.katex-html')).map(name),
  errors: all('.katex-error').map(name),
  broken: all('img').filter(e => e.complete && !e.naturalWidth).map(name),
};
"""
)

SEE_ON_PHONE = (
    """
document.documentElement.dataset.theme = 'dark';
const root = document.documentElement, article = document.querySelector('.bd-content');
const images = article ? [...article.querySelectorAll('img')] : [];
"""
    + FORM
    + """
return {
  lost,
  small: texts.filter(e => pixels(e) < 11).map(e => e.textContent + ' ' + pixels(e)),
  dark: own.filter(e => brightness(e) < 128).map(e => e.textContent),
  sideways: root.scrollWidth - root.clientWidth,
  filtered: images.map(e => getComputedStyle(e).filter).filter(f => f != 'none'),
};
"""
)


def visit(browser, path):
    """Open one page, wide and then as a phone in dark mode, and note what happened."""
    browser.get(path.as_uri())
    result = Visit(seen=browser.execute_script(SEE))
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    result.phone = browser.execute_script(SEE_ON_PHONE)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    result.console = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            result.requested.append(event["params"]["request"]["url"])
        elif event["method"] == "Network.loadingFailed":
            result.failed.append(event["params"]["errorText"])
    return result


@pytest.fixture(scope="module")
def visits(browser, book, pages):
    """Every page, opened once, but for the one that only leads to the front page."""
    names = {path: path.relative_to(book).as_posix() for path in pages}
    return {name: visit(browser, path) for path, name in names.items() if name != "index.html"}


def wrong(visits, of):
    """The pages on which `of` finds something, with what it finds."""
    return {name: found for name, visit in visits.items() if (found := of(visit))}


def test_no_console_errors(visits):
    assert not wrong(visits, lambda visit: visit.console)


def test_no_request_fails(visits):
    assert not wrong(visits, lambda visit: visit.failed)


def test_no_request_leaves_the_book(visits):
    local = ("file:", "data:", "blob:")
    assert not wrong(visits, lambda v: [url for url in v.requested if not url.startswith(local)])
    assert any(visit.requested for visit in visits.values())


def test_mathematics_is_rendered(visits):
    assert not wrong(visits, lambda visit: visit.seen["unrendered"] + visit.seen["errors"])


def weight(visit):
    """Bytes that a browser loads for a page without its pictures: styles, scripts and fonts too."""
    files = {unquote(urlsplit(url).path) for url in visit.requested if url.startswith("file:")}
    pictures = (".png", ".svg", ".jpg", ".webp", ".gif", ".ico")
    loaded = [path for path in map(Path, files) if path.suffix not in pictures]
    pages = "".join(path.read_text() for path in loaded if path.suffix == ".html")
    inside = re.findall(r"data:image/[\w+/;,=]+", pages)
    return sum(path.stat().st_size for path in loaded) - sum(map(len, inside))


def test_pages_are_light(visits):
    heavy = {name: weight(visit) for name, visit in visits.items() if weight(visit) > 1e6}
    reference = {name for name in heavy if name.startswith("book/api/")}
    assert set(heavy) <= reference and max(heavy.values(), default=0) < 1.2e6, heavy


def test_icons_are_drawn(browser, book):
    browser.get((book / "notebooks" / "rank.html").as_uri())
    drawn = """
    const icon = document.querySelector('.fa-rocket, .fa-download');
    const {fontFamily, content} = getComputedStyle(icon, '::before');
    const loaded = () => document.fonts.check(`900 16px ${fontFamily}`);
    return document.fonts.ready.then(() => [content.length > 2, loaded()]);
    """
    assert browser.execute_script(drawn) == [True, True]


def test_images_are_shown(visits):
    assert not wrong(visits, lambda visit: visit.seen["broken"])


def test_no_sideways_scrolling_on_a_phone(visits):
    assert not wrong(visits, lambda visit: visit.phone["sideways"] > 0)


def test_dark_mode_leaves_images_as_they_are(visits):
    assert not wrong(visits, lambda visit: visit.phone["filtered"])


def test_no_table_loses_a_column(visits):
    assert not wrong(visits, lambda visit: visit.seen["lost"] + visit.phone["lost"])


def test_labels_are_legible_on_a_phone(visits):
    assert not wrong(visits, lambda visit: visit.phone["small"])


def test_labels_follow_the_mode(visits):
    assert not wrong(visits, lambda visit: visit.seen["pale"] + visit.phone["dark"])


def find(browser, selector):
    """Those elements that a reader can see."""
    return [e for e in browser.find_elements("css selector", selector) if e.is_displayed()]


def click(browser, selector):
    """Click the first such element once it can be seen, in the middle of the window."""
    element = eventually(lambda: find(browser, selector))[0]
    middle = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
    browser.execute_script(middle, element)
    element.click()


def test_navigation(browser, book):
    browser.get((book / "index.html").as_uri())
    eventually(lambda: browser.current_url.endswith("/book/index.html"))
    click(browser, "a.right-next")
    eventually(lambda: browser.current_url.endswith("/notebooks/does_my_network_leak.html"))


def test_navigation_on_a_phone(browser, book):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        browser.get((book / "book" / "index.html").as_uri())
        link = ".bd-sidebar-primary a[href$='rank.html']"
        assert not find(browser, link), "the navigation starts closed"
        click(browser, ".primary-toggle")
        click(browser, link)
        eventually(lambda: browser.current_url.endswith("/notebooks/rank.html"))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_comes_next_follows_the_table_of_contents(book):
    """From page to page of _toc.yml; pages of the grid lead back to their index."""

    def leads(name, side):
        page = book / name
        link = re.search(rf'class="?{side}"? href="?([^ ">]+)', page.read_text())
        return link and os.path.relpath(page.parent / link[1], book)

    toc = (book.parents[1] / "_toc.yml").read_text()
    listed = [f"{name}.html" for name in re.findall(r"- file: (\S+)", toc)]
    reference = (path.relative_to(book).as_posix() for path in book.glob("book/api/*.html"))
    following = [leads(name, "right-next") for name in ("book/index.html", *listed, *reference)]
    assert all(name in following for name in listed)
    assert leads("notebooks/experiments.html", "right-next").startswith("book/")
    for path in sorted(book.glob("book/experiment/*.html")):
        name = path.relative_to(book).as_posix()
        assert leads(name, "left-prev") == "notebooks/experiments.html"
        assert leads(name, "right-next") is None


def test_the_index_lists_every_experiment_and_filters_them(browser, book):
    made = {p.name for p in book.glob("book/*/*-*.html")}
    browser.get((book / "notebooks" / "experiments.html").as_uri())
    links = [e.get_attribute("href") for e in find(browser, "article tbody a")]
    assert made <= {link.rpartition("/")[2] for link in links}
    browser.find_element("css selector", ".rconv-filter").send_keys("cifar10 cnn6_narrow")
    assert 0 < len(find(browser, "article tbody tr")) < 4
    click(browser, "article th:nth-child(4) button")
    head = browser.find_element("css selector", "article th:nth-child(4)")
    assert head.get_attribute("aria-sort") == "ascending"


def test_search(browser, book):
    browser.get((book / "book" / "index.html").as_uri())
    click(browser, ".search-button__button, .search-button-field")
    eventually(lambda: find(browser, "input[type=search]"))[0].send_keys("constraints\n")
    # Until it is finished, results move under the pointer.
    eventually(lambda: "finished" in "".join(e.text for e in find(browser, ".search-summary")))
    click(browser, "#search-results li a")
    eventually(lambda: "search.html" not in browser.current_url)


def test_every_point_of_the_papers_grid_has_a_page(book):
    for record in sorted(RECORDS.glob("*/*.json")):
        name = record.relative_to(RECORDS).with_suffix(".html")
        assert (book / "book" / name).exists()


def test_the_gallery_links_to_every_point(book, pages):
    links = pages[book / "notebooks" / "gallery.html"].links
    for record in sorted(RECORDS.glob("*/*.json")):
        if record.parent.name == "experiment":
            assert f"../book/experiment/{record.stem}.html" in links
