"""Models whose upper part is not read, entered by a convolution's own gradients."""

import pytest
import torch
from graphs import conv
from small import observe, uniform
from torch import nn
from torch.nn import functional

from rconv.attack.attack import Attack
from rconv.attack.report import ShortRankError
from rconv.lab.metrics import psnr
from rconv.lab.records import expected, score
from rconv.model.batchnorm import without_statistics
from rconv.model.entry_convolutions import cotangent_subspace
from rconv.model.nodes import UnsupportedModelError
from rconv.observe.noise import Noise

SHAPE = (1, 8, 8)


class Attention(nn.Module):
    """One head over the positions, and their mean."""

    def __init__(self, width):
        super().__init__()
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        x = x.flatten(2).mT
        scores = self.key(x) @ x.mT / x.shape[2] ** 0.5
        return (scores.softmax(dim=2) @ self.value(x)).mean(dim=1)


class Means(nn.Module):
    """The mean of each map, as code."""

    def forward(self, x):
        return x.relu().mean((2, 3))


WIDE = 96
"""Filters: of those that are silent nowhere, the mean of a map makes Ō the same everywhere."""


def trunk(filters=WIDE, activation=nn.ReLU, bias=True, below=True):
    """Three convolutions, the last of which sees 4 × 4 positions."""
    first = conv(1, 12, 5, bias=below), activation(), conv(12, 12, 5, 2, bias=below), activation()
    return *first, conv(12, filters, 3, bias=bias)


def model(*top, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [layer() if isinstance(layer, type) else layer for layer in top]
        return nn.Sequential(*trunk(**options), *made).double()


def linear(features):
    return nn.Flatten(), nn.Linear(features, 5)


def pooled(*layers, features=WIDE):
    return nn.ReLU(), *layers, *linear(features)


TOPS = {
    "global average pooling": lambda: pooled(nn.AdaptiveAvgPool2d(1)),
    "mean, as code": lambda: (Means(), *linear(WIDE)),
    "max pooling": lambda: pooled(nn.MaxPool2d(2), features=4 * WIDE),
    "BatchNorm in train mode": lambda: (nn.BatchNorm2d(WIDE), *pooled(features=16 * WIDE)),
    "InstanceNorm": lambda: (nn.InstanceNorm2d(WIDE), *pooled(features=16 * WIDE)),
    "LayerNorm": lambda: (nn.LayerNorm((WIDE, 4, 4)), *pooled(features=16 * WIDE)),
    "attention": lambda: (nn.ReLU(), Attention(WIDE), nn.Linear(WIDE, 5)),
    "no Linear": lambda: (nn.ReLU(), conv(WIDE, 5, 3, 2), nn.Flatten()),
}


@pytest.mark.parametrize("top", TOPS.values(), ids=TOPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_image_comes_back_from_below_what_is_not_read(top, dtype):
    torch.manual_seed(0)
    client, images = model(*top()).to(dtype), uniform(2, *SHAPE)
    before = {name: value.clone() for name, value in client.state_dict().items()}
    result = Attack(client, SHAPE)(observe(client, images))
    assert result.layers[0].name == "4" and result.layers[1].constraints == ("span",) * 2
    assert result.unique.all() and result.diagnostics == ("", "")
    least = 200 if dtype is torch.float64 else 80
    assert psnr(result.images, images, data_range=1.0).min() > least
    assert not any(record["false"] for record in score(result, images, {}))
    after = client.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_whatever_the_loss():
    torch.manual_seed(0)
    client, images = model(*TOPS["global average pooling"]()), uniform(1, *SHAPE)
    sent = observe(client, images, torch.zeros(1), lambda z, y: (z.exp() - 3).abs().sum())
    result = Attack(client, SHAPE)(sent)
    assert result.unique.all() and psnr(result.images, images, data_range=1.0) > 200


def test_the_topmost_convolution_that_is_wide_enough():
    torch.manual_seed(0)
    layers = trunk(filters=40), nn.ReLU(), conv(40, 8, 3), *TOPS["BatchNorm in train mode"]()[2:]
    client = nn.Sequential(*layers[0], *layers[1:3], nn.AdaptiveAvgPool2d(1), *linear(8)).double()
    images = uniform(1, *SHAPE)
    result = Attack(client, SHAPE)(observe(client, images))
    assert result.layers[0].name == "4" and result.unique.all()


class Residual(nn.Module):
    """A stem and a residual block, its BatchNorms in evaluation, and global average pooling."""

    def __init__(self, bias=False):
        super().__init__()
        self.stem = conv(1, 24, 5, 2, bias=True)
        self.one, self.two = conv(24, 24, bias=bias), conv(24, 24, bias=bias)
        self.norm, self.last = nn.BatchNorm2d(24).eval(), nn.BatchNorm2d(24).eval()
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (self.last(self.two(self.norm(self.one(x)).relu())) + x).relu()
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_residual_block_is_entered_at_its_sum():
    torch.manual_seed(0)
    client, images = Residual().double(), uniform(1, *SHAPE)
    result = Attack(client, SHAPE)(observe(client, images))
    assert [layer.name for layer in result.layers] == ["two", "two", "one", "stem"]
    assert result.unique.all() and psnr(result.images, images, data_range=1.0) > 200


@pytest.mark.parametrize(("below", "unique"), [(True, True), (False, False)])
def test_without_a_bias_the_layer_below_tells_the_factor(below, unique):
    torch.manual_seed(0)
    client, images = model(*TOPS["max pooling"](), bias=False, below=below), uniform(1, *SHAPE)
    result = Attack(client, SHAPE)(observe(client, images))
    assert bool(result.unique) is unique and int(result.gap) == int(not unique)
    if not unique:
        assert "nothing tells the factor" in result.diagnostics[0]


def test_what_an_image_does_not_reach_is_named_with_rank_and_need():
    torch.manual_seed(0)
    client = model(*TOPS["global average pooling"](), activation=nn.Tanh)
    client[4].bias.data.fill_(10.0)  # no ReLU is ever silent: Ō is the same at all positions
    result = Attack(client, SHAPE)(sent := observe(client, uniform(1, *SHAPE)))
    assert not result.unique and result.diagnostics == ("4 has rank 1, and 16 is needed",)
    with pytest.raises(ShortRankError, match="4: span constraints give rank 1 of 16"):
        Attack(client, SHAPE)(sent, strict=True)


@pytest.mark.parametrize(
    ("options", "top", "reason"),
    [
        (
            {"filters": 12},
            lambda: pooled(nn.AdaptiveMaxPool2d(2), features=48),
            "rank of 12, and 16 is ne",
        ),
        (
            {},
            lambda: (nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(1), *linear(WIDE)),
            "leave a family of dimension 85",
        ),
    ],
    ids=["few filters", "no ReLU before the mean"],
)
def test_what_no_image_can_reach_is_refused(options, top, reason):
    with pytest.raises(UnsupportedModelError) as refusal:
        Attack(model(*top(), **options), SHAPE)
    assert any(layer == "4" and reason in why for layer, why in refusal.value.reasons)


def test_several_images_are_no_single_image():
    torch.manual_seed(0)
    client = model(*TOPS["max pooling"](), filters=60) if False else None
    client = nn.Sequential(*trunk(), *pooled(nn.MaxPool2d(2), features=4 * WIDE)).double()
    sent = observe(client, uniform(2, *SHAPE))
    mean = {name: g.mean(dim=0) for name, g in sent.items()}
    assert not Attack(client, SHAPE)(mean).unique


def test_noise_is_expected_and_called_by_its_size():
    torch.manual_seed(0)
    client, images = model(*TOPS["max pooling"]()), uniform(1, *SHAPE)
    generator = torch.Generator().manual_seed(0)
    sent = {
        name: g
        + 1e-9 * g.square().mean().sqrt() * torch.randn(g.shape, generator=generator).double()
        for name, g in observe(client, images).items()
    }
    found = Attack(client, SHAPE)(sent, noise=Noise(relative_std=1e-9))
    assert found.unique and all(map(expected, score(found, images, {})))


def test_reach_knows_what_can_arrive():
    torch.manual_seed(0)
    norm = without_statistics(model(*TOPS["BatchNorm in train mode"]()))
    q = cotangent_subspace(norm, ["4"], SHAPE)["4"]
    assert q.shape == (16, 15) and q.sum(dim=0).norm() < 1e-12
    passed_over = model(nn.ReLU(), nn.MaxPool2d(3), *linear(WIDE))
    q = cotangent_subspace(passed_over, ["4"], SHAPE)["4"]
    assert q.shape == (16, 9) and q.reshape(4, 4, 9)[3].norm() < 1e-12
