"""Max pooling: routings are searched for, then confirmed by exact equations."""

import pytest
import torch
from small import observe, relative_error, uniform
from torch import nn
from torch.nn import functional

from rconv import Attack, UnsupportedModelError
from rconv.equations.routing import LiveNorm, PooledMap, RoutedRows, Windows
from rconv.model.activations import from_module
from rconv.model.build import stage_of
from rconv.observe.buffers import buffers_after


def network(*layers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(*(make() for make in layers)).double()


def conv(c, d):
    return lambda: nn.Conv2d(c, d, 3, 1, 1)


def pool(*shape):
    return lambda: nn.MaxPool2d(*shape)


def linear(n):
    return lambda: nn.Linear(n, 5)


NETWORKS = {
    "behind ReLU": [conv(1, 32), nn.ReLU, pool(2), nn.Flatten, linear(512)],
    "below ReLU": [conv(1, 32), pool(2), nn.ReLU, nn.Flatten, linear(512)],
    "behind Tanh": [conv(1, 24), nn.Tanh, pool(2), nn.Flatten, linear(384)],
    "overlapping, padded": [conv(1, 32), nn.ReLU, pool(3, 2, 1), nn.Flatten, linear(512)],
    "two": [conv(1, 24), nn.ReLU, pool(2), conv(24, 48), nn.ReLU, pool(2), nn.Flatten, linear(192)],
    "adaptive pooling to the size that a map has": [
        conv(1, 32), nn.ReLU, pool(2), lambda: nn.AdaptiveAvgPool2d((4, None)), nn.Flatten,
        linear(512),
    ],
    "BatchNorm in evaluation": [
        conv(1, 32), lambda: nn.BatchNorm2d(32).eval(), nn.ReLU, pool(2), nn.Flatten, linear(512),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_images_come_back_through_max_pooling(name):
    model, image = network(*NETWORKS[name]), uniform(1, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, image))
    assert relative_error(result.images, image) < 1e-9 and result.unique.all()


def test_few_filters_do_not_determine_the_image_and_single_precision_is_not_called_unique():
    few = network(conv(3, 4), nn.ReLU, pool(2), nn.Flatten, linear(64))
    result = Attack(few, (3, 8, 8))(observe(few, uniform(1, 3, 8, 8)))
    assert not result.unique.any() and not result.full_rank.any() and result.diagnostics[0]
    model, image = network(*NETWORKS["behind ReLU"]).float(), uniform(1, 1, 8, 8).float()
    assert not Attack(model, (1, 8, 8))(observe(model, image)).unique.any()


def test_windows_are_those_of_the_layer():
    layer, z = nn.MaxPool2d(3, 2, 1, ceil_mode=True), uniform(1, 4, 7, 8)
    pooled = layer(z)
    windows = Windows.of(layer, (7, 8), tuple(pooled.shape[2:]))
    own = windows.values(z[0].flatten(1))
    assert torch.equal(own.amax(dim=2), pooled[0].flatten(1))
    back = uniform(1, *pooled.shape[1:], seed=1)
    z.requires_grad_()
    expected = torch.autograd.grad(layer(z), z, back)[0]
    routed = windows.routed(z[0].detach().flatten(1), 0.0) * back[0].flatten(1)[..., None]
    assert torch.equal(windows.summed(routed, 56), expected[0].flatten(1))


def live(channels, pooling, features):
    """A network with BatchNorm in training mode, its γ of either sign."""
    model = network(
        conv(1, channels), lambda: nn.BatchNorm2d(channels), nn.ReLU, pooling, nn.Flatten,
        linear(features),
    )  # fmt: skip
    model[1].weight.data = torch.where(uniform(channels) < 0.2, -1.0, 1.0) * (
        0.5 + uniform(channels)
    )
    return model


@pytest.mark.parametrize("pooling", [pool(2), pool(3, 2, 1)], ids=["2 x 2", "3 x 3, overlapping"])
def test_batchnorm_in_training_mode_below_max_pooling(pooling):
    model, image = live(40, pooling, 640), uniform(1, 1, 8, 8)
    gradients, buffers = observe(model, image), buffers_after(model, image, together=True)
    result = Attack(model, (1, 8, 8))(gradients, buffers=buffers)
    assert relative_error(result.images, image) < 1e-9 and result.unique.all()
    without = Attack(model, (1, 8, 8))(gradients)
    assert not without.unique.any() and not without.full_rank.any() and without.diagnostics[0]


def test_overlapping_windows_rule_out_positions_and_never_the_right_one():
    layer, z = nn.MaxPool2d(3, 2, 1), uniform(1, 6, 12, 12)
    value = layer(z)[0].flatten(1)
    windows = Windows.of(layer, (12, 12), (6, 6))
    known, room = value > value.median(), value.new_full((6, 1), 1e-12)
    possible, shared = windows.candidates(value, known, value, 144, room)
    right = windows.routed(z[0].flatten(1), 0.0) > 0
    assert (possible | ~right).all()
    assert possible[known].sum() < 0.6 * windows.inside.expand_as(possible)[known].sum()
    distinct = sum(len(own[some].unique()) for own, some in zip(value, known, strict=True))
    assert abs(float((1 / shared)[known].sum()) - distinct) < 1e-9


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("step", [0, 1])
def test_rows_and_their_adjoint(step, normalised):
    (layer,) = network(conv(2, 6))
    stage = stage_of("0", layer, from_module(nn.Identity()), (2, 6, 6))
    windows = Windows.of(nn.MaxPool2d(2), (6, 6), (3, 3))
    value, back = uniform(6, 9) - 0.3, uniform(6, 9, seed=1)
    gradient = uniform(6, 18, seed=2)
    norm = LiveNorm(*uniform(3, 6, 1, seed=6)) if normalised else None
    given = PooledMap(
        stage, windows, value, value > 0, value <= 0, back, gradient, value[:, 0] > -1, 0.0,
        (0.5, 0.3, 0.5), windows.inside.expand(6, -1, -1), torch.ones_like(value), norm,
    )  # fmt: skip
    rows = RoutedRows(given, uniform(72, seed=3) - 0.5, step)
    x, r = uniform(72, seed=4), uniform(len(rows.target), seed=5)
    assert (rows.apply(x) @ r - x @ rows.adjoint(r)).abs() < 1e-10 * (
        1 + rows.apply(x).norm() * r.norm()
    )


class Code(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.fc = nn.Conv2d(1, 32, 3, 1, 1), nn.Linear(512, 5)

    def forward(self, x):
        return self.fc(functional.max_pool2d(functional.relu(self.one(x)), 2).flatten(1))


def test_functions_are_read_and_what_is_too_large_is_refused():
    torch.manual_seed(1)
    model, image = Code().double(), uniform(1, 1, 8, 8)
    assert Attack(model, (1, 8, 8))(observe(model, image)).unique.all()
    large = network(conv(1, 2), nn.ReLU, pool(2), nn.Flatten, linear(2 * 36 * 36))
    with pytest.raises(UnsupportedModelError, match="positions of maxima"):
        Attack(large, (1, 72, 72))
    silu = network(conv(1, 8), nn.SiLU, pool(2), nn.Flatten, linear(128))
    with pytest.raises(UnsupportedModelError, match="MaxPool2d"):
        Attack(silu, (1, 8, 8))
