"""The attack as a picture."""

import re
from xml.etree import ElementTree

import pytest
import torch
from graphs import Block
from torch import nn

from rconv.lab import architectures
from rconv.model.nodes import UnsupportedModelError
from rconv.model.read import read
from rconv.show.diagram import STEPS, WIDTH, attack_diagram

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawing():
    network = read(architectures.build("lenet_main", activation="ReLU"), (3, 32, 32))
    return ElementTree.fromstring(attack_diagram(network))


def test_every_layer_and_map_stands_there_from_the_loss_down(drawing):
    texts = [text.text for text in drawing.iter(f"{SVG}text")]
    drawn = re.compile(r"loss|fc|map|image|conv\d")
    layers = [text for text in texts if text and drawn.fullmatch(text)]
    assert layers[:4] == ["loss", "fc", "map", "conv4"] and layers[-2:] == ["conv1", "image"]
    assert "12 × 16 × 16" in texts and "12 of 5×5, stride 2" in texts


def test_boxes_say_what_the_attacker_has(drawing):
    kinds = [box.get("class") for box in drawing.iter(f"{SVG}rect")]
    assert (
        kinds[:-2] == ["sent", "found"] * 5
    )  # the head and four convolutions, each above its input
    assert kinds[-2:] == ["sent", "found"]  # the legend


def test_nothing_leaves_the_picture(drawing):
    height = float(drawing.get("viewBox").split()[3])
    for text in drawing.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x")) < WIDTH and 0 < float(text.get("y")) < height


def test_it_is_told_in_words_too(drawing):
    assert drawing.get("role") == "img"
    assert (
        drawing.find(f"{SVG}title").text
        and "conv4: 2  activation" in drawing.find(f"{SVG}desc").text
    )


def test_names_are_text_not_markup():
    model = nn.Sequential()
    model.add_module("a<b", nn.Conv2d(1, 2, 3))
    model.add_module("relu", nn.ReLU())
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(2 * 4 * 4, 3))
    drawing = ElementTree.fromstring(attack_diagram(read(model, (1, 6, 6))))
    assert "a<b" in [text.text for text in drawing.iter(f"{SVG}text")]


def test_a_network_that_branches_is_refused():
    block = Block("residual", torch.relu, 3, 4, 1, normed=False, bias=True)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(4 * 4 * 4, 3))
    with pytest.raises(UnsupportedModelError, match="branches"):
        attack_diagram(read(model, (3, 4, 4)))


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_highlighted_in_a_short_picture(step):
    network = read(architectures.build("lenet_main"), (3, 32, 32))
    boxes = [
        box.get("class")
        for box in ElementTree.fromstring(attack_diagram(network, step)).iter(f"{SVG}rect")
    ]
    assert len(boxes) < 10 and any(kind.endswith(" lit") for kind in boxes)
