"""Batches, bounds and missing entries in branching networks: one formulation carries them all."""

import pytest
import torch
from small import matched_errors, observe, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.observe.noise import Noise


class Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut), BatchNorm in evaluation."""

    def __init__(self, width, inner, filters, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, filters, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(filters)
        same = width == filters and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, filters, 1, stride, bias=False)

    def forward(self, x):
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def residual(channels, width, *blocks, classes=20, seed=0):
    """A stem of 3 × 3, residual blocks on 8 × 8 pixels, a Linear; random BatchNorm statistics."""
    torch.manual_seed(seed)
    stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    side = 8 // 2 ** sum(block[-1] == 2 for block in blocks)
    features = blocks[-1][2] * side**2
    own = (Block(*block) for block in blocks)
    model = nn.Sequential(*stem, *own, nn.Flatten(), nn.Linear(features, classes))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    return model.double().eval()


DEEP = (3, 48, (48, 48, 48, 1), (48, 96, 96, 2))


def mean_of(model, images):
    """The averaged gradient of images with different labels."""
    return {name: g.mean(dim=0) for name, g in observe(model, images).items()}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("batch", [4, None])
def test_a_batch_of_four_through_a_residual_network(seed, batch):
    model, images = residual(*DEEP, seed=seed), uniform(4, 3, 8, 8, seed=seed)
    found = Attack(model, (3, 8, 8))(mean_of(model, images), batch=batch)
    assert len(found.images) == 4 and found.unique.all()
    assert matched_errors(found.images, images).max() < 1e-10  # far beyond 100 dB


@pytest.mark.parametrize("batch", [4, None])
def test_a_batch_of_which_one_gradient_entry_in_twenty_is_missing(batch):
    model, images = residual(*DEEP), uniform(4, 3, 8, 8, seed=3)
    sent, missing = mean_of(model, images), {}
    for k, (name, g) in enumerate(sent.items()):
        if g.dim() == 4:  # the convolutions'; the head's are needed to separate the samples
            lost = uniform(*g.shape, seed=k) < 0.05
            missing[name] = torch.where(lost, torch.inf, 0.0).double()
            sent[name] = torch.where(lost, 0.0, g)
    found = Attack(model, (3, 8, 8))(sent, batch=batch, noise=Noise(std=missing))
    assert found.unique.all()
    assert matched_errors(found.images, images).max() < 1e-10
    taken = Attack(model, (3, 8, 8))(sent, batch=batch)
    assert not taken.unique.any(), "zeros taken for gradients are noticed"


def test_missing_entries_of_a_single_image_are_left_out_everywhere():
    model, image = residual(*DEEP), uniform(1, 3, 8, 8)
    sent, missing = dict(observe(model, image)), {}
    last = list(sent)[-1]
    for k, (name, g) in enumerate(sent.items()):
        lost = uniform(*g.shape, seed=k) < (0.05 if name != last else 0.0)
        missing[name] = torch.where(lost, torch.inf, 0.0).double()
        sent[name] = torch.where(lost, 0.0, g)
    found = Attack(model, (3, 8, 8))(sent, noise=Noise(std=missing))
    assert found.unique.all() and found.gradient_residual < 1e-12
    assert matched_errors(found.images, image).max() < 1e-10


@pytest.mark.parametrize("seed", [0, 3, 5, 7])
def test_bounds_close_a_map_inside_a_branching_network(seed):
    """Three inner filters give the block's input some 900 equations for 1,024 unknowns.

    Where the sum is silent, its other term bounds the input from above.
    """
    model, image = residual(1, 16, (16, 3, 16, 1), seed=seed), uniform(1, 1, 8, 8, seed=seed)
    sent = observe(model, image)
    found = Attack(model, (1, 8, 8))(sent)
    layer = next(own for own in found.layers if own.signs > 0)
    assert int(layer.rank) + int(layer.signs) == layer.unknowns > int(layer.rank)
    assert found.unique.all() and matched_errors(found.images, image).max() < 1e-10
    without = Attack(model, (1, 8, 8), signs=False)(sent)
    assert not without.full_rank.any()
