"""Residual networks and batches with BatchNorm in training mode."""

import copy

import pytest
import torch
from small import normal, observe, relative_error, uniform
from torch import nn
from torch.nn import functional

from rconv import Attack, UnsupportedModelError
from rconv.equations.batch_norm import with_statistics
from rconv.equations.block import BlockFunction, MapFunction
from rconv.model.activations import from_module
from rconv.model.blocks import Block
from rconv.model.geometry import Geometry

RELU, IDENTITY = from_module(nn.ReLU()), from_module(nn.Identity())
EXACT = 1e-10
"""Of maps that five blocks have passed, with buffers, which reveal the scale."""


class Residual(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inputs, filters, stride, norm=nn.BatchNorm2d):
        super().__init__()
        self.one = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.act = (
            nn.BatchNorm2d(filters),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            narrow = nn.Conv2d(inputs, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(narrow, norm(filters))

    def forward(self, x):
        y = self.norm2(self.two(self.act(self.norm1(self.one(x)))))
        return self.act(y + self.shortcut(x))


def network(*blocks, pooled=False, filters=32, pixels=16):
    """A stem, residual blocks and a head, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        stem = nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        head = [nn.Flatten(), nn.Linear(filters * (1 if pooled else pixels), 5)]
        pool = [nn.AdaptiveAvgPool2d(1)] if pooled else []
        own = nn.Sequential(*stem, *[block() for block in blocks], *pool, *head)
    return own.double().train()


def pooled_stem():
    """A network as ResNet-18 is made, for images of 12 × 12."""
    model = network(same, narrower, pooled=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model[0] = nn.Conv2d(1, 24, 5, 1, 2, bias=False).double()
    return nn.Sequential(*model[:3], nn.MaxPool2d(3, 2, 1), *model[3:])


def same():
    return Residual(24, 24, 1)


def narrower():
    return Residual(24, 32, 2)


def sent(model, images, labels):
    """The gradient of one batch, and the client's buffers after the step."""
    client = copy.deepcopy(model)
    loss = functional.cross_entropy(client(images), labels)
    names, parameters = zip(*client.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    return gradients, client.state_dict()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_stem_with_max_pooling_and_the_maps_above_it(frozen):
    """Without the gradients of the stem, the maps above it are exact all the same."""
    model, image = pooled_stem(), uniform(1, 1, 12, 12)
    gradients, buffers = sent(model, image, torch.tensor([3]))
    if frozen:
        gradients = {name: g for name, g in gradients.items() if name[0] not in "01"}
    result = Attack(model, (1, 12, 12))(gradients, buffers=buffers)
    pooled = model[:4](image).detach()
    assert relative_error(result.layers[-2].known.reshape(pooled.shape), pooled) < EXACT
    assert bool(result.unique) != frozen
    if frozen:
        assert result.layers[-1].open == 144 and result.diagnostics[0]
    else:
        assert relative_error(result.images, image) < EXACT


@pytest.mark.parametrize("pooled", [False, True])
def test_images_come_back_through_residual_blocks_in_training_mode(pooled):
    model, image = network(same, narrower, pooled=pooled), uniform(1, 1, 8, 8)
    gradients, buffers = sent(model, image, torch.tensor([3]))
    result = Attack(model, (1, 8, 8))(gradients, buffers=buffers)
    assert result.layers[0].constraints == ("span" if pooled else result.layers[0].constraints[0],)
    assert relative_error(result.images, image) < EXACT and result.unique.all()


def test_an_identity_shortcut_needs_no_buffers():
    model, images = network(same, filters=24, pixels=64), uniform(2, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, images))
    assert relative_error(result.images, images) < 1e-6  # the contrast is seen through eps alone
    assert result.unique.all()


def test_a_batch_is_normalised_together_and_comes_back_image_by_image():
    model, images = network(filters=24, pixels=64), uniform(2, 1, 8, 8)
    gradients, buffers = sent(model, images, torch.tensor([3, 1]))
    result = Attack(model, (1, 8, 8))(gradients, batch=2, buffers=buffers)
    order = torch.cdist(images.flatten(1), result.images.flatten(1)).argmin(dim=1)
    assert relative_error(result.images[order], images) < EXACT and result.unique.all()
    rounded = {name: g.float() for name, g in gradients.items()}
    found = Attack(model, (1, 8, 8))(rounded, batch=2, buffers=buffers)
    assert not found.unique.any()


@pytest.mark.parametrize("below", [None, RELU])
def test_what_is_observed_of_a_map_is_that_of_all_blocks_that_take_it(below):
    shapes = [Geometry((3, 6, 6), (4, 6, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
              Geometry((3, 6, 6), (5, 3, 3), (1, 1), (2, 2), (0, 0), (1, 1))]  # fmt: skip
    functions = []
    for i, g in enumerate(shapes):
        weight = normal(g.output[0], g.input[0], *g.kernel, seed=i)
        block = Block(f"conv{i}", weight, None, IDENTITY, g)
        functions.append(BlockFunction(block, normal(1, *g.output, seed=i), (f"conv{i}.weight",)))
    x, direct = normal(1, 3, 6, 6, seed=5), normal(1, 3, 6, 6, seed=6)
    found = MapFunction(tuple(functions), True, below, direct).parts(x)
    alone = [own.parts(x.clone().requires_grad_()) for own in functions]
    for parts, _ in alone:
        for name, value in parts.items():
            assert torch.equal(found[name], value)
    assert torch.equal(found["itself"], x)
    if below is not None:
        total = ((direct + alone[0][1] + alone[1][1]) * (x > 0)).detach()
        assert relative_error(found["below"].detach(), total.sum(dim=(0, 2, 3))) < 1e-12


def test_with_its_statistics_given_a_norm_has_the_same_equations_of_the_true_input():
    torch.manual_seed(0)
    g = Geometry((3, 4, 4), (40, 2, 2), (3, 3), (2, 2), (1, 1), (1, 1))
    norm = nn.BatchNorm2d(40, track_running_stats=False).double()
    block = Block("conv", normal(40, 3, 3, 3), None, IDENTITY, g, layers=(("norm", norm),))
    names = "conv.weight", "norm.weight", "norm.bias"
    statistics = "norm.running_mean", "norm.running_var"
    mix = torch.linalg.qr(normal(40, 24))[0].mT
    function = BlockFunction(block, normal(2, 40, 2, 2, seed=1), names, statistics, mix)
    x = normal(2, 3, 4, 4, seed=2).requires_grad_()
    expected, back = function.parts(x)
    found, own = with_statistics(function, expected).parts(x)
    assert list(found) == list(expected)
    for name, value in expected.items():
        scale = expected["norm.weight"] if name == "norm.bias" else value
        assert (found[name] - value).norm() <= 1e-10 * scale.norm()
    assert relative_error(own.detach(), back.detach()) < 1e-10
    whole, _ = BlockFunction(block, function.cotangent, names).parts(x)
    mixed = torch.einsum("rd,dcij->rcij", mix, whole["conv.weight"])
    assert relative_error(expected["conv.weight"].detach(), mixed.detach()) < 1e-12


def test_what_residual_blocks_do_not_know_is_refused_in_a_sentence():
    plain = network(same, lambda: Residual(24, 32, 2, norm=nn.Identity))
    with pytest.raises(UnsupportedModelError, match=r"beside 4\.one, which 4\.norm1 follows"):
        Attack(plain, (1, 8, 8))
    model, image = network(same, narrower, pooled=True), uniform(1, 1, 8, 8)
    gradients, _ = sent(model, image, torch.tensor([3]))
    del gradients["4.norm2.bias"]
    with pytest.raises(UnsupportedModelError, match=r"no gradient for 4\.norm2\.bias"):
        Attack(model, (1, 8, 8))(gradients)
