"""Blocks: layers that are solved for together with the convolution below them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from small import geometries, normal, observe, relative_error, uniform
from torch import nn
from torch.nn import functional

from rconv import Attack, UnsupportedModelError
from rconv.equations.block import BlockFunction, linearise
from rconv.equations.conv_gradient import ConvGradient
from rconv.equations.conv_output import ConvOutput
from rconv.model.activations import from_module
from rconv.model.blocks import Block, Fused, block_of, with_blocks
from rconv.model.build import stage_of
from rconv.model.geometry import Stage
from rconv.model.operations import of_layers
from rconv.observe.noise import Noise

IDENTITY = from_module(nn.Identity())
ROUNDING = 1e-11
"""Of products whose terms are of size one, some thousand of them."""


def layers(*made):
    """Layers with PyTorch's initialisation, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return [make() for make in made]


def conv(c, d, stride=1):
    return lambda: nn.Conv2d(c, d, 3, stride, 1)


def linear(n):
    return lambda: nn.Linear(n, 5)


def named(own):
    return [(str(i), layer) for i, layer in enumerate(own)]


@settings(max_examples=10, deadline=None)
@given(geometries())
def test_the_derivative_of_a_convolution_is_what_the_operators_write_out(geometry):
    g = geometry
    weight, cotangent = normal(g.output[0], g.input[0], *g.kernel), normal(1, *g.output, seed=1)
    stage = Stage("conv", weight, None, IDENTITY, g)
    block = Block("conv", weight, None, IDENTITY, g)
    function = BlockFunction(block, cotangent, ("conv.weight",))
    _, derivative = linearise(function, normal(g.unknowns, seed=2))
    x = normal(1, g.unknowns, 1, seed=3)
    rows = ConvGradient(g, cotangent[None]).apply(x)  # (1, D·kh·kw, C)
    rows = rows.reshape(g.output[0], g.offsets, g.input[0]).transpose(1, 2)
    written = torch.cat([ConvOutput(stage).apply(x).flatten(), rows.flatten()])
    found = derivative.apply(x).flatten()
    assert (found - written).norm() <= ROUNDING * (1 + written.norm())


@pytest.mark.parametrize(
    "norm", [nn.Identity, lambda: nn.GroupNorm(2, 8), lambda: nn.BatchNorm2d(8)]
)
def test_product_adjoint_and_matrix_are_of_one_derivative(norm):
    own = layers(conv(2, 8), norm, nn.SiLU, lambda: nn.AvgPool2d(2))
    own = [layer for layer in own if type(layer) is not nn.Identity]
    steps = with_blocks(of_layers(named(own)))
    assert len(steps) == 2 and isinstance(steps[1].what, Fused)
    block = block_of(stage_of("0", own[0], IDENTITY, (2, 4, 4)), steps[1].what)
    function = BlockFunction(block, normal(1, 8, 2, 2), tuple(block.values()))
    x = normal(32, seed=4)
    rows, derivative = linearise(function, x)
    v, r = normal(32, seed=5), normal(len(rows), seed=6)
    matrix = torch.stack([derivative.product(e) for e in torch.eye(32).double()], dim=1)
    assert (matrix @ v - derivative.product(v)).norm() <= ROUNDING * matrix.norm()
    assert (matrix.T @ r - derivative.transposed(r)).norm() <= ROUNDING * matrix.norm()
    step = 1e-5  # central differences err by its square, and by rounding over it
    change = (function(x + step * v) - function(x - step * v)).detach() / (2 * step)
    assert relative_error(change, matrix @ v) < 1e-6


NETWORKS = {
    "average pooling": [
        conv(1, 16), nn.Tanh, lambda: nn.AvgPool2d(2), conv(16, 24), nn.Tanh,
        lambda: nn.AvgPool2d(2), nn.Flatten, linear(96),
    ],
    "GroupNorm and SiLU": [
        conv(1, 12), lambda: nn.GroupNorm(3, 12), nn.SiLU, conv(12, 24, 2),
        lambda: nn.GroupNorm(4, 24), nn.SiLU, nn.Flatten, linear(384),
    ],
    "LayerNorm and GELU": [
        conv(1, 12), lambda: nn.LayerNorm([12, 8, 8]), nn.GELU, conv(12, 24, 2),
        nn.LeakyReLU, nn.Flatten, linear(384),
    ],
    "ReLU6": [
        conv(1, 24), nn.ReLU6, conv(24, 24), lambda: nn.Hardtanh(-0.1, 0.2), nn.Flatten,
        linear(1536),
    ],
    "InstanceNorm and Mish": [
        conv(1, 16), lambda: nn.InstanceNorm2d(16, affine=True), nn.Mish, conv(16, 24, 2),
        nn.Tanh, nn.Flatten, linear(384),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_images_come_back_through_blocks(name):
    model = nn.Sequential(*layers(*NETWORKS[name])).double()
    images = uniform(1 + (name == "LayerNorm and GELU"), 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, images))
    assert relative_error(result.images, images) < 1e-6  # the scale is seen through eps alone
    assert result.unique.all()


class Code(nn.Module):
    """A forward of functions."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = layers(conv(1, 16), conv(16, 24), linear(96))

    def forward(self, x):
        x = functional.avg_pool2d(torch.tanh(self.one(x)), 2)
        return self.fc(functional.avg_pool2d(functional.silu(self.two(x)), 2).flatten(1))


def test_functions_are_read_as_layers_are():
    model, image = Code().double(), uniform(1, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, image))
    assert relative_error(result.images, image) < 1e-6 and result.unique.all()


BATCHNORM = [
    conv(1, 24), lambda: nn.BatchNorm2d(24), nn.ReLU, conv(24, 24), lambda: nn.BatchNorm2d(24),
    nn.ReLU, nn.Flatten, linear(1536),
]  # fmt: skip


def test_batchnorm_in_training_mode_with_and_without_the_buffers_that_clients_return():
    model = nn.Sequential(*layers(*BATCHNORM)).double().train()
    image, client = uniform(1, 1, 8, 8), copy.deepcopy(model)
    gradients = observe(model, image, torch.tensor([2]))
    client(image)  # which updates its buffers
    attack = Attack(model, (1, 8, 8))
    informed = attack(gradients, buffers=client.state_dict())
    assert relative_error(informed.images, image) < 1e-10 and informed.unique.all()
    alone = attack(gradients)  # the contrast is seen through eps = 1e-5 alone
    assert relative_error(alone.images, image) < 1e-6 and alone.unique.all()
    assert float(informed.expected_error) < float(alone.expected_error)


def test_buffers_that_do_not_fit_are_refused():
    model = nn.Sequential(*layers(*BATCHNORM)).double().train()
    attack, gradients = Attack(model, (1, 8, 8)), observe(model, uniform(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"no 1\.running_mean"):
        attack(gradients, buffers={})
    wrong = model.state_dict() | {"1.running_mean": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"1\.running_mean has the shape \(3,\)"):
        attack(gradients, buffers=wrong)
    with pytest.raises(ValueError, match=r"counts 0 batches since the step began"):
        attack(gradients, buffers=model.state_dict())
    evaluated = Attack(copy.deepcopy(model).eval(), (1, 8, 8))
    model(uniform(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"changed 1\.running_mean: .* in training mode"):
        evaluated(gradients, buffers=model.state_dict())


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {}), (torch.float32, {"relative_std": 0.0}),
     (torch.float64, {"relative_std": 1e-10}),
     (torch.float64, {"noise": Noise(std={"0.weight": 1e-12})})],
)  # fmt: skip
def test_blocks_are_not_called_unique_where_gradients_are_not_exact(dtype, options):
    model = nn.Sequential(*layers(*NETWORKS["LayerNorm and GELU"])).to(dtype)
    result = Attack(model, (1, 8, 8))(observe(model, uniform(1, 1, 8, 8).to(dtype)), **options)
    assert result.assumed.all() and not result.unique.any()
    assert all(result.diagnostics)


def test_the_mean_of_two_images_that_linear_pooling_hides_is_not_called_unique():
    own = [conv(1, 24), lambda: nn.AvgPool2d(2), nn.Flatten, lambda: nn.Linear(384, 2)]
    model, images = nn.Sequential(*layers(*own)).double(), uniform(2, 1, 8, 8)
    gradients = observe(model, images, torch.tensor([0, 1]))
    mean = {name: g.mean(dim=0) for name, g in gradients.items()}
    result = Attack(model, (1, 8, 8))(mean)
    assert result.full_rank.all() and result.gradient_residual.max() < 1e-10  # it explains them
    assert not result.unique.any()


def test_a_block_with_few_equations_is_not_called_unique():
    own = [conv(3, 2), nn.Tanh, lambda: nn.AvgPool2d(2), nn.Flatten, linear(32)]
    model, image = nn.Sequential(*layers(*own)).double(), uniform(1, 3, 8, 8)
    result = Attack(model, (3, 8, 8))(observe(model, image, torch.tensor([2])))
    assert not result.unique.any() and not result.full_rank.any()


def test_what_blocks_do_not_know_is_refused_in_a_sentence():
    pooled = [conv(1, 8), nn.Tanh, lambda: nn.AvgPool2d(2), nn.Flatten, linear(128)]
    model = nn.Sequential(*layers(*pooled)).double()
    with pytest.raises(ValueError, match="use constraints='auto'"):
        Attack(model, (1, 8, 8), constraints="paper")
    hidden = nn.Sequential(*model[:4], nn.Linear(128, 20), nn.ReLU(), nn.Linear(20, 5)).double()
    attack, gradients = Attack(hidden, (1, 8, 8)), observe(hidden, uniform(1, 1, 8, 8))
    with pytest.raises(UnsupportedModelError, match="a hidden layer does not know AvgPool2d"):
        attack(gradients, batch=2)
    first = [lambda: nn.AvgPool2d(2), conv(1, 8), nn.Tanh, nn.Flatten, linear(128)]
    with pytest.raises(UnsupportedModelError, match="AvgPool2d"):
        Attack(nn.Sequential(*layers(*first)), (1, 8, 8))


@pytest.mark.parametrize("groups", [2, 12])
def test_a_grouped_convolution_is_one_whose_weights_are_zero_elsewhere(groups):
    (grouped,) = layers(lambda: nn.Conv2d(12, 24, 3, 1, 1, groups=groups))
    stage = stage_of("one", grouped.double(), IDENTITY, (12, 5, 5))
    x = uniform(2, 12, 5, 5)
    assert (stage.evaluate(x) - grouped(x)).norm() <= ROUNDING
    assert torch.equal(stage.compact(stage.weight), grouped.weight)


def test_images_come_back_through_a_depthwise_convolution():
    own = [
        conv(1, 12, 2), nn.LeakyReLU, lambda: nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.LeakyReLU,
        lambda: nn.Conv2d(12, 24, 1), nn.LeakyReLU, nn.Flatten, linear(384),
    ]  # fmt: skip
    model, images = nn.Sequential(*layers(*own)).double(), uniform(2, 1, 8, 8)
    attack, gradients = Attack(model, (1, 8, 8)), observe(model, images)
    result = attack(gradients)
    assert relative_error(result.images, images) < 1e-6 and result.unique.all()
    mean = {name: g.mean(dim=0) for name, g in gradients.items()}
    both = attack(mean, batch=2).images
    order = (both[0] - images[0]).norm() > (both[1] - images[0]).norm()
    assert relative_error(both.flip(0) if order else both, images) < 1e-6
