"""The audit: ranks by formula and by numbers, verdicts that the attack confirms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rconv import audit as module
from rconv.attack.attack import Attack
from rconv.audit import audit, class_bound, filters_needed, gradient_rank, overall
from rconv.lab import architectures
from rconv.model.geometry import Geometry
from rconv.model.read import UnsupportedModelError, read
from rconv.observe.observation import per_sample_gradients


def geometry(conv: nn.Conv2d, side: int):
    model = nn.Sequential(conv, nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, conv.in_channels, side, side))
    return read(model, (conv.in_channels, side, side)).stages[0].geometry


@pytest.mark.parametrize(
    "filters, side, stride, rank",
    [
        (11, 16, 2, 236),  # 275 equations for 256 pixels, and still short
        (12, 16, 2, 240),
        (16, 16, 2, 256),  # what stride 2 really needs
        (3, 8, 1, 64),  # stride 1: counting is right
        (41, 32, 2, 912),  # 1025 equations for 1024 pixels
        (64, 32, 2, 1024),
    ],
)
def test_rank_of_5x5_kernels_against_counting(filters, side, stride, rank):
    shapes = geometry(nn.Conv2d(1, filters, 5, stride, 2), side)
    assert gradient_rank(shapes) == rank
    assert class_bound(shapes) == rank


@settings(max_examples=40, deadline=None)
@given(
    filters=st.integers(1, 6),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_class_bound_bounds_the_rank(filters, kernel, stride, padding, dilation):
    """Per residue class is never below the true rank, and never above plain counting."""
    shapes = geometry(nn.Conv2d(1, filters, kernel, stride, padding, dilation), 9)
    bound = class_bound(shapes)
    assert gradient_rank(shapes) <= bound
    assert bound <= min(shapes.pixels, filters * shapes.offsets)


VERDICTS = {
    "lenet_main": ("leaks", {}),
    "cnn6_narrow": ("needs hybrid", {"conv2": module.HYBRID}),
    "dlg_lenet": ("needs hybrid", {"conv2": module.HYBRID, "conv1": module.WEIGHT}),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_of_the_architectures(name):
    expected, layers = VERDICTS[name]
    judged = audit(architectures.build(name), (3, 32, 32))
    assert overall(judged) == expected
    found = {layer.name: layer.verdict for layer in judged}
    assert {key: found[key] for key in layers} == layers


def small(filters: int, activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, filters, 3, 2, 1)
    return nn.Sequential(conv, activation, nn.Flatten(), nn.Linear(filters * 16, 5)).double()


@pytest.mark.parametrize("filters", [1, 4, 8, 12, 16])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.LeakyReLU(0.1)], ids=["Tanh", "LeakyReLU"])
def test_the_attack_confirms_the_verdict(filters, activation):
    """Full rank is promised exactly where the attack finds the image to be unique."""
    model = small(filters, activation)
    image = torch.rand(1, 2, 8, 8, dtype=torch.float64)
    found = Attack(model, (2, 8, 8))(per_sample_gradients(model, image, torch.tensor([1])))
    promised = overall(audit(model, (2, 8, 8))) != module.NOT_UNIQUE
    assert bool(found.unique) == promised
    assert (float((found.images - image).abs().max()) < 1e-8) == promised


def test_relu_counts_only_active_outputs():
    few = audit(small(12, nn.ReLU()), (2, 8, 8), active=0.1)[-1]
    many = audit(small(12, nn.ReLU()), (2, 8, 8), active=1.0)[-1]
    assert few.weight_rows < many.weight_rows == 12 * 16
    assert few.hybrid_rank < many.hybrid_rank == 128


def test_refuses_what_the_attack_refuses():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(UnsupportedModelError, match="MaxPool2d"):
        audit(model, (1, 8, 8))
    with pytest.raises(ValueError, match="active"):
        audit(small(2, nn.ReLU()), (2, 8, 8), active=0)


NEEDED = [
    # kernel, stride, padding, side: fewest filters, by hand from the residue classes
    (5, 2, 2, 16, 16),
    (5, 2, 2, 32, 64),
    (5, 1, 2, 8, 3),
    (3, 1, 1, 9, 9),
    (3, 2, 1, 9, 25),
    (1, 1, 0, 3, 9),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "side", "expected"), NEEDED)
def test_filters_needed_are_the_fewest_of_full_rank(kernel, stride, padding, side, expected):
    out = (side + 2 * padding - kernel) // stride + 1
    shapes = (kernel, kernel), (stride, stride), (padding, padding), (1, 1)
    assert filters_needed(Geometry((2, side, side), (7, out, out), *shapes)) == expected
    fewer = Geometry((2, side, side), (expected - 1, out, out), *shapes)
    assert gradient_rank(fewer) < side**2


def test_no_number_of_filters_tells_a_pixel_that_no_window_covers():
    gaps = Geometry((1, 6, 6), (4, 2, 2), (2, 2), (3, 3), (0, 0), (1, 1))
    with pytest.raises(ValueError, match="under no window"):
        filters_needed(gaps)
