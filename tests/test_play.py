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
from rconv.equations.gradient import gradient_matrix
from rconv.lab import architectures
from rconv.linalg.solution import relative
from rconv.model.geometry import Geometry
from rconv.observe.observation import features, per_sample_gradients
from rconv.show import classes as by_class
from rconv.show import play
from rconv.show.explorer import explorer
from rconv.show.peeling import peeling
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
        "doubts": [[["", "noise <b>"]] * 2] * 2 + [[["", ""], ["", "noise <b>"]]],
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
        "classes": by_class.classes((8, 16), (3, 5), (1, 2, 3), FILTERS, (1, 1, 1, 1)),
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
    html = by_class.classes((size,), (kernel,), (stride,), FILTERS)
    (own,) = data(html)["settings"].values()
    for filters, ranks, said in zip(FILTERS, own["ranks"], own["said"], strict=True):
        shapes = by_class.layer(size, kernel, stride)
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
        assert text.endswith(f"error {play.power(error)}.")
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
    assert facts[11][1:] == ["rank 11 of 16", 0.6875, "certificate 10⁰", 0.0, "in doubt: noise <b>"]
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
        {"doubts": [[["", ""]] * 2] * 2},
        {"doubts": [[["", ""]] * 2, [["", ""]] * 2, [["", ""], [""]]]},
    ],
    ids=["methods", "sliders", "ranks", "certificates", "doubts", "ragged doubts"],
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


def test_small_numbers():
    assert play.power(7e-7) == "7·10⁻⁷" and play.power(1e-12) == "10⁻¹²"
    assert play.power(0) == "0" and play.power(float("nan")) == "not a number"
