"""The interactive figure: what is in it, and that its sliders work in a browser."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rconv.show.explorer import explorer

SLIDERS = {"filters <n>": ["2", "4", "8"], "noise": ["none", "much"]}


def figure(channels=1, **changes):
    """Three by two positions, two methods; the frames' grey levels are all different."""
    frames = torch.arange(12.0).div(16).reshape(3, 2, 2, 1, 1, 1).expand(3, 2, 2, channels, 4, 4)
    ranks = torch.arange(12).reshape(3, 2, 2)
    original = torch.full((channels, 4, 4), 0.5, dtype=torch.float64)
    values = {"frames": frames, "original": original, "ranks": ranks, "sliders": SLIDERS}
    return explorer(**(values | {"methods": ["gradient", "hybrid"], "start": (1, 0)} | changes))


def data(html):
    """What the script reads."""
    return json.loads(re.search(r'application/json">(.*?)</script>', html, re.S)[1])


def test_sprite_holds_every_frame_in_its_place():
    html = figure()
    uri = data(html)["sprite"].removeprefix("data:image/png;base64,")
    assert f'base64,{uri}"></noscript>' in html
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    assert pixels.shape == (3 * 4, 2 * 2 * 4)
    levels = pixels[::4, ::4] / 255
    assert np.allclose(levels, np.arange(12).reshape(3, 4) / 16, atol=1 / 500)
    assert (pixels == np.repeat(np.repeat(pixels[::4, ::4], 4, 0), 4, 1)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_beside_the_frames(channels):
    found = data(figure(channels))
    assert found["unknowns"] == 16 * channels
    assert found["ranks"][2][1] == [10, 11]
    assert found["psnr"][0][0][0] == pytest.approx(6.0, abs=0.1)  # black against 0.5
    assert found["psnr"][2][0][0] == 400  # equal: infinite is no JSON
    assert found["doubts"] is None


def test_nothing_is_loaded_and_names_cannot_end_the_script():
    html = figure(doubts=[[["</script>", ""]] * 2] * 3)
    assert data(html)["sliders"][0] == "filters <n>" and "filters <n>" not in html
    assert data(html)["doubts"][2][1] == ["</script>", ""]
    assert html.count("</script>") == 2 and "http" not in html
    assert "%%" not in html and "${name}" in html  # all places are filled, the script is whole
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", html))


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["one"]},
        {"sliders": {"one": ["a"]}},
        {"ranks": torch.zeros(3, 2)},
        {"doubts": [[["", ""]] * 2] * 2},
        {"doubts": [[["", ""]] * 2, [["", ""]] * 2, [["", ""], [""]]]},
    ],
    ids=["methods", "sliders", "ranks", "doubts", "ragged doubts"],
)
def test_refuses_what_does_not_fit(changes):
    with pytest.raises(ValueError, match="do not fit"):
        figure(**changes)


DOUBTS = [[["", "noise"]] * 2] * 2 + [[["", ""], ["", "noise"]]]


def test_keys_move_the_sliders(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium or chromedriver is not installed")
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8">{figure(doubts=DOUBTS)}')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in "headless no-sandbox disable-gpu disable-quic disable-dev-shm-usage".split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(page.as_uri())

        def seen():
            frame = browser.find_elements("css selector", "div.frame")[1]
            position = frame.value_of_css_property("background-position")
            return frame.get_attribute("aria-label"), position

        filters, noise = browser.find_elements("css selector", "input[type=range]")
        assert filters.get_attribute("aria-valuetext") == "4"
        assert "rank 5 of 16" in seen()[0] and seen()[1].endswith("50%")
        filters.send_keys("\ue014")  # arrow right
        noise.send_keys("\ue014")
        assert filters.get_attribute("aria-valuetext") == "8"
        assert noise.get_attribute("aria-valuetext") == "much"
        said = "Reconstruction, hybrid: rank 11 of 16, 15 dB, in doubt: noise"
        assert seen() == (said, "100% 100%")
        verdicts = browser.find_elements("css selector", ".verdict")
        assert [v.text for v in verdicts] == ["the only image", "in doubt: noise"]
        noise.send_keys("\ue012")  # arrow left
        assert [v.text for v in verdicts] == ["the only image"] * 2
        assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    finally:
        browser.quit()
