"""The figures that one plays with: what is in them, and that they work in a browser."""

import json
import re
from dataclasses import dataclass

import pytest
import torch

from rconv import audit
from rconv.attack.attack import Attack
from rconv.audit.ranks import class_bound
from rconv.data import datasets
from rconv.equations.conv_gradient import gradient_matrix
from rconv.lab import architectures
from rconv.linalg.solution import relative
from rconv.model.geometry import Geometry
from rconv.observe.observation import features, per_sample_gradients
from rconv.show.explorer import explorer
from rconv.show.numbers import scientific
from rconv.show.peeling import peeling
from rconv.show.residues import layer as shapes_of
from rconv.show.residues import residues
from rconv.show.sliding import sliding

RIGHT, LEFT, DOWN = "\ue014", "\ue012", "\ue015"
FILTERS = (2, 11, 16)
PHONE = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}


def data(html):
    """What the script reads."""
    return json.loads(re.search(r'application/json">(.*?)</script>', html, re.S)[1])


def map_of_cells(**changes):
    """Three by two settings, two methods; the frames' grey levels are all different."""
    values = {
        "frames": torch.arange(12.0).div(16).reshape(3, 2, 2, 1, 1, 1).expand(3, 2, 2, 1, 4, 4),
        "original": torch.full((1, 4, 4), 0.5, dtype=torch.float64),
        "ranks": torch.arange(12).reshape(3, 2, 2),
        "certificates": torch.logspace(-16, 0, 12).reshape(3, 2, 2),
        "diagnostics": [[["", "noise <b>"]] * 2] * 2 + [[["", ""], ["", "noise <b>"]]],
        "sliders": {"filters <n>": ["2", "4", "8"], "noise": ["none", "much"]},
        "methods": ["gradient", "hybrid"],
        "start": (1, 0),
    }
    return explorer(**values | changes)


WINDOW = Geometry((1, 6, 6), (1, 4, 4), (3, 3), (1, 1), (0, 0), (1, 1))
NUMBERS = torch.tensor([[1, -2, 0, 2], [3, 1, -1, -3], [-1, 2, 1, 0], [2, -3, -2, 1]])


@dataclass
class Attacked:
    """A photograph, attacked."""

    layers: tuple
    truth: list


@pytest.fixture(scope="module")
def attacked():
    photo = datasets.load("Photos", [1])
    model = architectures.build("lenet_main", activation="ReLU")
    gradients = per_sample_gradients(model, photo.images, photo.labels)
    seen = features(model, photo.images)
    truth = [*(seen[f"act{n}"] for n in (4, 3, 2, 1)), photo.images]
    return Attacked(Attack(model, (3, 32, 32), constraints="paper")(gradients).layers, truth)


@pytest.fixture(scope="module")
def figures(attacked):
    """All of them, by name."""
    return {
        "sliding": sliding(NUMBERS, WINDOW),
        "residues": residues((8, 16), (3, 5), (1, 2, 3), FILTERS, (1, 1, 1, 1)),
        "peeling": peeling(attacked.layers, attacked.truth),
        "explorer": map_of_cells(),
    }


def test_every_entry_of_the_cotangent_goes_where_the_matrix_has_it(figures):
    found = data(figures["sliding"])
    places = torch.tensor(found["places"])
    matrix = torch.where(places >= 0, NUMBERS.flatten()[places.clamp(min=0)], 0)
    assert torch.equal(matrix.double(), gradient_matrix(NUMBERS[None, None].double(), WINDOW)[0])
    assert figures["sliding"].count("data-p=") == int((places >= 0).sum()) == 9 * 16
    # Row 0 has the Ō above, laid over the upper left pixels.

    assert "X[0] − 2·X[1] + 2·X[3] + …" in found["rows"][0]


def test_a_window_needs_a_cotangent_of_its_shape():
    with pytest.raises(ValueError, match="no output"):
        sliding(NUMBERS[:3], WINDOW)


@pytest.mark.parametrize("size", [8, 12, 16])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_ranks_of_the_classes_are_those_of_the_layer(size, kernel, stride):
    html = residues((size,), (kernel,), (stride,), FILTERS)
    (own,) = data(html)["settings"].values()
    for filters, ranks, said in zip(FILTERS, own["ranks"], own["said"], strict=True):
        shapes = shapes_of(size, kernel, stride)
        wide = Geometry(**vars(shapes) | {"output": (filters, *shapes.output[1:])})
        assert sum(ranks) == audit.gradient_rank(wide)
        counted = zip(own["pixels"], own["offsets"], strict=True)
        assert class_bound(wide) == sum(min(n, filters * m) for n, m in counted)
        assert f"{filters * kernel**2} equations for {size**2} unknowns" in said
        assert f"Rank {sum(ranks)}:" in said
        assert ("is full" in said) == (sum(ranks) == size**2)


def test_errors_and_ranks_of_the_peeled_layers_are_the_attacks(figures, attacked):
    said = data(figures["peeling"])["said"]
    assert len(said) == 6
    for text, layer, true in zip(said[1:], attacked.layers, attacked.truth, strict=True):
        error = float(relative(layer.low.reshape(true.shape) - true, true))
        assert f"of {layer.name} give" in text and f"Rank {int(layer.rank)} of" in text
        assert text.endswith(f"error {scientific(f'{error:.0e}')}.")
    assert said[-1].startswith("Step 5: weight constraints of conv1 give the image")


def test_an_image_that_is_not_told_is_not_peeled(attacked):
    short = type(attacked.layers[1])(
        **vars(attacked.layers[1]) | {"rank": attacked.layers[1].rank - 1}
    )
    with pytest.raises(ValueError, match="full rank"):
        peeling((short,), attacked.truth[1:2])


def test_cells_hold_what_the_attack_and_the_judge_say():
    facts = data(map_of_cells())["facts"]
    assert len(facts) == 12
    assert facts[0] == ["6 dB", "rank 0 of 16", 0.0, "certificate 10⁻¹⁶", 1.0, "the only image"]
    assert facts[8][0] == "no error"  # equal to the original
    assert facts[11][1:] == ["rank 11 of 16", 0.6875, "certificate 1", 0.0, "in doubt: noise <b>"]
    html = map_of_cells()
    assert html.count(' trusted"') == 7
    assert "filters <n>" not in re.sub(r"<script.*", "", html, flags=re.S)


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["one"]},
        {"sliders": {"one": ["a"]}},
        {"ranks": torch.zeros(3, 2)},
        {"certificates": torch.zeros(3, 2)},
        {"diagnostics": [[["", ""]] * 2] * 2},
        {"diagnostics": [[["", ""]] * 2, [["", ""]] * 2, [["", ""], [""]]]},
    ],
    ids=["methods", "sliders", "ranks", "certificates", "diagnostics", "ragged doubts"],
)
def test_a_map_refuses_what_does_not_fit(changes):
    with pytest.raises(ValueError, match="do not fit"):
        map_of_cells(**changes)


def test_nothing_is_loaded_and_data_cannot_end_the_script(figures):
    for html in figures.values():
        assert html.count("</script>") == 2
        assert (
            "http" not in html
            and "@import" not in html
            and " src=" not in html.replace(' src="data:', "")
        )
        assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", html))
    assert data(map_of_cells(methods=["</script>", "b"]))["methods"][0] == "</script>"


DARK = "--pst-color-text-base: #ced6dd; --pst-color-background: #14181e; background: #14181e"


@pytest.fixture(scope="module")
def pages(figures, tmp_path_factory):
    """A page for each figure, without anything else."""
    folder = tmp_path_factory.mktemp("pages")
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<style>html[data-theme='dark'] {{{DARK}}}</style>"
    )
    around = '<div class="cell_output container"><div class="output text_html">'  # as in the book
    for name, html in figures.items():
        (folder / f"{name}.html").write_text(head + around + html, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in figures}


class Played:
    """One figure in the browser."""

    def __init__(self, browser, page):
        self.browser = browser
        browser.get(page)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.all(selector)[0]

    def text(self, selector):
        return self.one(selector).get_attribute("textContent")

    def count(self, selector):
        return len(self.all(selector))

    @property
    def said(self):
        return self.text(".said")


@pytest.fixture
def play_with(browser, pages):
    yield lambda name: Played(browser, pages[name])
    assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            assert event["params"]["request"]["url"].startswith(("file:", "data:"))


def test_the_window_slides_by_keys_and_buttons(play_with, figures):
    found = data(figures["sliding"])
    figure = play_with("sliding")
    assert figure.said == found["windows"][15] and figure.count(".later") == 0
    slider = figure.one("[name='window']")
    slider.send_keys(LEFT)
    assert figure.said == found["windows"][14]
    assert slider.get_attribute("aria-valuetext") == "15 of 16"
    assert figure.count(".matrix .later") == 9 and figure.count(".matrix .now") == 9
    assert [e.text for e in figure.all(".rconv-play svg.output .now + text")] == ["−2"]
    figure.one("[data-by='-1']").click()
    assert figure.said == found["windows"][13] and figure.count(".image .now") == 9
    assert not figure.one("[data-by='1']").get_property("disabled")


def test_a_row_of_the_matrix_shows_its_pixels(play_with, figures):
    found = data(figures["sliding"])
    figure = play_with("sliding")
    figure.one("[name='row'][value='4']").send_keys(" ")
    assert figure.said == found["rows"][4]
    assert figure.count(".matrix .aside") == 8 * 16 and figure.count(".image .now") == 16
    figure.one("[name='row'][value='4']").send_keys(DOWN)
    assert figure.said == found["rows"][5]
    figure.one("[name='window']").send_keys(LEFT)  # takes the figure back
    assert figure.said == found["windows"][14] and figure.count(".aside") == 0
    figure.one("[data-row='2']").click()
    assert figure.said == found["rows"][2]


def test_the_layer_is_chosen_and_ranks_are_those_computed(play_with, figures):
    settings = data(figures["residues"])["settings"]
    figure = play_with("residues")
    assert figure.text(".ranked") == "236" and figure.text(".counted") == "275"
    assert figure.count(".shares .open") == 1
    figure.one("[name='stride'][value='1']").send_keys(RIGHT)
    own = settings["1,1,2"]
    assert figure.text(".ranked") == str(sum(own["ranks"][1])) and figure.said == own["said"][1]
    lines = [[int(n) for n in line.text.split()] for line in figure.all(".shares li:not(.muted)")]
    assert [line[-1] for line in lines if line] == own["ranks"][1]
    assert figure.one(".pixels svg").get_dom_attribute("viewBox") == "0 0 16 16"
    figure.one("[name='filters']").send_keys(RIGHT)
    assert figure.text(".ranked") == str(sum(own["ranks"][2]))


def test_layers_are_peeled(play_with, figures):
    said = data(figures["peeling"])["said"]
    figure = play_with("peeling")
    assert figure.said == said[0] and figure.count(".open") == 5
    figure.one("[name='step']").send_keys("\ue010")  # end
    assert figure.said == said[5] and figure.count(".done") == 5
    figure.one("[data-step='3']").click()
    assert figure.said == said[3] and figure.count(".done") == 3


def test_a_cell_is_chosen_by_click_and_by_keys(play_with, figures):
    facts = data(figures["explorer"])["facts"]
    figure = play_with("explorer")

    def shown():
        parts = (".psnr", ".rank", ".certificate", ".verdict")
        return [[e.get_attribute("textContent") for e in figure.all(part)] for part in parts]

    def told(column, row):
        own = facts[(column * 2 + row) * 2 :][:2]
        return [[fact[n] for fact in own] for n in (0, 1, 3, 5)]

    assert shown() == told(1, 0)
    figure.one("[data-cell='2,1']").click()
    assert shown() == told(2, 1) and figure.count(".now") == 2
    assert figure.all(".frame")[1].value_of_css_property("background-position") == "100% 100%"
    assert "in doubt: noise <b>" in figure.all(".frame")[1].get_attribute("aria-label")
    figure.one(".map").send_keys(LEFT)
    assert shown() == told(1, 1)
    figure.one(".map").send_keys(DOWN)  # there is no further row
    assert shown() == told(1, 1)
    figure.one("[name='row']").send_keys(LEFT)
    assert shown() == told(1, 0)


NAMES = ("sliding", "residues", "peeling", "explorer")
SMALLEST = """
const shown = (e) => e.getClientRects().length && e.textContent.trim() && !e.children.length;
const size = (e) => parseFloat(getComputedStyle(e).fontSize) *
  (e.ownerSVGElement ? e.getScreenCTM().a : 1);
const texts = [...document.querySelectorAll('.rconv-play *')].filter(
  (e) => !['SCRIPT', 'STYLE'].includes(e.tagName) && shown(e));
return Math.min(...texts.map(size));
"""


@pytest.mark.parametrize("name", NAMES)
def test_on_a_phone_it_is_legible_and_answers_to_touch(play_with, browser, name):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        figure = play_with(name)
        root = "document.documentElement"
        assert browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0
        assert browser.execute_script(SMALLEST) >= 11
        before = figure.said
        selector = {
            "sliding": "[data-row='3']",
            "residues": "[name='stride'][value='0']",
            "peeling": "[data-step='2']",
            "explorer": "[data-cell='0,1']",
        }[name]
        target = "arguments[0].scrollIntoView({block: 'center'});"
        middle = (
            "const r = arguments[0].getBoundingClientRect();"
            "return {x: r.x + r.width / 2, y: r.y + r.height / 2};"
        )
        place = browser.execute_script(target + middle, figure.one(selector))
        for kind, points in (("touchStart", [place]), ("touchEnd", [])):
            touch = {"type": kind, "touchPoints": points}
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
        browser.execute_async_script("setTimeout(arguments[0], 400)")
        assert figure.said != before
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
document.documentElement.dataset.theme = arguments[0];
const bright = (colour) => {
  const canvas = document.createElement('canvas').getContext('2d');
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => {
    const c = v / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = arguments[0] === 'dark' ? '#14181e' : '#fff';
const texts = [...document.querySelectorAll('.rconv-play :is(b, output, legend, .said, .verdict)')];
return Math.min(...texts.filter((e) => e.getClientRects().length).map((e) => {
  const [one, two] = [bright(getComputedStyle(e).color), bright(paper)];
  return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
}));
"""


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_texts_are_legible_in_both_modes(play_with, browser, name, mode):
    play_with(name)
    assert browser.execute_script(CONTRAST, mode) >= 4.5


STEPPED = [name for name in NAMES if name != "explorer"]


@pytest.mark.parametrize("name", STEPPED)
def test_it_plays_when_asked_and_only_then(play_with, browser, name):
    figure = play_with(name)
    before = figure.said
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert figure.said == before, "nothing moves by itself"
    button = figure.one("[data-run]")
    button.click()
    assert button.text == "pause" and figure.one(".said").get_attribute("aria-live") == "off"
    button.click()
    assert button.text == "play"


@pytest.mark.parametrize("name", NAMES)
def test_who_wants_no_motion_gets_none(play_with, browser, name):
    calm = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": calm})
    try:
        figure = play_with(name)
        assert not [e for e in figure.all("[data-run]") if e.is_displayed()]
        moving = (
            "return [...document.querySelectorAll('.rconv-play *')]"
            ".filter((e) => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"
        )
        assert browser.execute_script(moving) == 0
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("name", NAMES)
def test_without_scripts_the_first_state_stands_there(browser, pages, name):
    seen = "return document.querySelector('form').innerText"
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pages[name])
        form = browser.find_element("css selector", "form").text
        assert not browser.find_element("css selector", ".controls").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.get(pages[name])
    browser.execute_script("document.querySelector('.controls').hidden = true")
    assert form and form.split() == browser.execute_script(seen).split()
