"""Propagation: one activation backwards against autograd, and outputs on the wrong side of 0."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SEEDS, normal, relative_error
from torch import nn

from rconv.attack.activation_vjp import settle_sides, through_activation
from rconv.attack.backward import propagated
from rconv.attack.estimate import channel_errors
from rconv.attack.head import from_head
from rconv.attack.map_problem import ConvData, MapProblem
from rconv.attack.plan import LayerPlan
from rconv.equations.conv_gradient import gradient_matrix
from rconv.model.activations import from_module
from rconv.model.geometry import Geometry, Stage
from rconv.model.heads import Head
from rconv.observe.noise import Noise, Observed

pytestmark = pytest.mark.arithmetic

MODULES = [
    nn.ReLU(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.ELU(0.5), nn.Softplus(),
    nn.Identity(),
]  # fmt: skip
KINKED = pytest.mark.parametrize(
    "module", [nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.LeakyReLU(1.8)], ids=repr
)
TINY = torch.tensor([1e-16], dtype=torch.float64)


def forward(module, seed=0, shape=(2, 3, 4, 5)):
    """Output, its derivative, the true derivative by the input, and the bias gradient."""
    o = normal(*shape, seed=seed).requires_grad_()
    y = module(o)
    back = normal(*shape, seed=seed + 1)
    (own,) = torch.autograd.grad(y, o, back)
    return o.detach(), y.detach(), back, own, own.sum(dim=(2, 3))


@pytest.mark.parametrize("module", MODULES, ids=repr)
@pytest.mark.parametrize("bias", [True, False])
def test_the_cotangent_is_autograds_and_known_inputs_are_right(module, bias):
    o, y, back, own, bias_gradient = forward(module)
    activation = from_module(module)
    below, inputs = through_activation(
        activation, y, back, bias_gradient if bias else None, TINY.repeat(2)
    )
    torch.testing.assert_close(below.value, own, rtol=1e-12, atol=1e-13)
    known = inputs.weight > 0
    assert known.all() or (activation.flat and torch.equal(known, o > 0))
    torch.testing.assert_close(inputs.value[known], o[known], rtol=1e-10, atol=1e-10)
    expected = activation.derivative(y)
    torch.testing.assert_close(inputs.weight[known], expected[known], rtol=1e-12, atol=1e-13)


def on_the_wrong_side(module, places):
    """Outputs 1e-7 from the kink at these places, and the same with their sides exchanged."""
    o, back = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    for n, place in enumerate(places):
        o[place] = 1e-7 if n % 2 else -1e-7
    o.requires_grad_()
    y = module(o)
    (own,) = torch.autograd.grad(y, o, back)
    wrong = y.detach().clone()
    for place in places:
        wrong[place] = -1e-7 if o[place] > 0 else 1e-7
    return o.detach(), wrong, back, own


ONE_PER_FILTER = [(0, 0, 1, 2), (0, 1, 3, 4), (1, 0, 0, 0), (1, 2, 2, 1)]
TWO_IN_ONE = [(0, 0, 1, 2), (0, 0, 3, 4)]


@KINKED
@pytest.mark.parametrize(
    "places",
    [
        pytest.param(ONE_PER_FILTER[:1], id="one"),
        pytest.param(ONE_PER_FILTER, id="one in each of several filters and images"),
    ],
)
def test_outputs_on_the_wrong_side_are_moved_back(module, places):
    """A rounding error of 1e-6 has carried them across; the bias gradient tells which."""
    o, wrong, back, own = on_the_wrong_side(module, places)
    activation = from_module(module)
    error = torch.full((2, 1, 1, 1), 1e-6, dtype=torch.float64)
    settled = settle_sides(activation, wrong, back, own.sum(dim=(2, 3)), error)
    assert torch.equal(settled > 0, o > 0)
    assert (settled != wrong).sum() == len(places)
    torch.testing.assert_close(activation.derivative(settled) * back, own, rtol=1e-4, atol=1e-5)


@KINKED
def test_two_wrong_outputs_in_one_filter_stay(module):
    """The bias gradient is one number per filter: it must not move a third output instead."""
    _, wrong, back, own = on_the_wrong_side(module, TWO_IN_ONE)
    error = torch.full((2, 1, 1, 1), 1e-6, dtype=torch.float64)
    settled = settle_sides(from_module(module), wrong, back, own.sum(dim=(2, 3)), error)
    assert torch.equal(settled, wrong)


def test_the_whole_step_settles_sides_too():
    _, wrong, back, own = on_the_wrong_side(nn.LeakyReLU(0.2), ONE_PER_FILTER)
    noise = torch.tensor([1e-6, 1e-6], dtype=torch.float64)
    activation = from_module(nn.LeakyReLU(0.2))
    below, _ = through_activation(activation, wrong, back, own.sum(dim=(2, 3)), noise)
    torch.testing.assert_close(below.value, own, rtol=1e-9, atol=1e-9)
    without, _ = through_activation(activation, wrong, back, None, noise)
    assert (without.value - own).abs().max() > 1e-2


@KINKED
@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_outputs_that_agree_with_the_bias_gradient_stay(module, seed):
    _, y, back, _, bias_gradient = forward(module, seed)
    error = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)  # everything is uncertain
    settled = settle_sides(from_module(module), y, back, bias_gradient, error)
    assert torch.equal(settled, y)


def test_outputs_far_from_zero_are_never_moved():
    """A bias gradient that is wrong, or of another image, cannot turn a certain output."""
    _, y, back, _, bias_gradient = forward(nn.LeakyReLU(0.2))
    error = torch.full((2, 1, 1, 1), 1e-9, dtype=torch.float64)
    settled = settle_sides(from_module(nn.LeakyReLU(0.2)), y, back, bias_gradient + 1, error)
    assert torch.equal(settled, y)


def test_filters_and_images_are_settled_apart():
    module = nn.LeakyReLU(0.2)
    _, y, back, own, bias_gradient = forward(module)
    wrong = y.clone()
    wrong[1, 2, 0, 0] = -1e-8 if own[1, 2, 0, 0] == back[1, 2, 0, 0] else 1e-8
    error = torch.full((2, 1, 1, 1), 1e-8, dtype=torch.float64)
    settled = settle_sides(from_module(module), wrong, back, bias_gradient, error)
    changed = (settled != wrong).nonzero().tolist()
    assert changed == [[1, 2, 0, 0]]


def test_relu_outputs_within_the_error_count_as_zero():
    """What is below zero shows how large the error is; what is as small above it is no evidence."""
    y = torch.tensor([1.0, 0.5, -1e-7, 2e-7, 0.0, 0.3]).double().reshape(1, 1, 2, 3)
    back = torch.ones_like(y)
    below, inputs = through_activation(from_module(nn.ReLU()), y, back, None, TINY)
    expected = torch.tensor([1.0, 1, 0, 0, 0, 1]).double().reshape(1, 1, 2, 3)
    assert torch.equal(below.value, expected)
    assert torch.equal(inputs.weight, expected)


def test_a_small_map_shows_its_own_error():
    """A hundredth of the second map is less than its most negative output, which is no output."""
    y = torch.tensor([1.0, 0.5, 0.7, 0.2, 1e-3, 2.5e-5, -2e-5, 1e-4]).double().reshape(1, 2, 2, 2)
    below, _ = through_activation(from_module(nn.ReLU()), y, torch.ones_like(y), None, TINY)
    assert below.value.flatten().tolist() == [1, 1, 1, 1, 1, 0, 0, 1]


def test_relu_outputs_that_are_small_but_sure_count():
    y = torch.tensor([1.0, 1e-9, 0.0, 0.0]).double().reshape(1, 1, 2, 2)
    below, _ = through_activation(from_module(nn.ReLU()), y, torch.ones_like(y), None, TINY)
    assert below.value.flatten().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.ELU()], ids=repr)
@pytest.mark.parametrize("noise", [1e-16, 1e-8, 1e-3])
def test_saturated_outputs_and_outputs_past_the_range_are_finite_and_unknown(module, noise):
    o = torch.tensor([-900.0, -60.0, 0.5, 1.0]).double()
    y = module(o).reshape(1, 1, 2, 2)
    low = from_module(module).low
    y[0, 0, 0, 0] = low - noise  # a rounding error past the end
    back = torch.full_like(y, 3.0)
    told = torch.tensor([noise]).double()
    below, inputs = through_activation(from_module(module), y, back, None, told)
    assert inputs.value.isfinite().all()
    assert inputs.weight.flatten()[0] == 0 and (inputs.weight.flatten()[2:] > 0).all()
    assert below.value.flatten()[0].abs() < 1e-12
    assert (below.value >= 0).all()  # the derivative never turns its sign


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Tanh()], ids=repr)
@pytest.mark.parametrize("noise", [1e-8, 1e-5])
def test_what_is_called_known_is_right_to_a_few_per_cent(module, noise):
    """Near the end of its range an output within its error has any inverse, up to infinity."""
    o = torch.linspace(-30, 30, 6000).double().reshape(1, 1, 60, 100)
    y = module(o) + noise * normal(*o.shape)
    told = torch.tensor([noise]).double()
    _, inputs = through_activation(from_module(module), y, torch.ones_like(y), None, told)
    known = inputs.weight > 0
    assert known[o.abs() < 3].all() and known.sum() < 0.7 * known.numel()
    assert (inputs.value - o)[known].abs().max() < 0.07


def test_a_relu_output_counts_from_where_its_error_cannot_have_made_it():
    """No output is negative here, so that none shows an error: only what was told decides."""
    error = 1e-6
    y = torch.tensor([1.0, 3 * error, 20 * error, 0.0]).double().reshape(1, 1, 2, 2)
    told = torch.tensor([[error]]).double()
    below, _ = through_activation(from_module(nn.ReLU()), y, torch.ones_like(y), None, told)
    assert below.value.flatten().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("errors", "left", "moves"),
    [
        (1, 0.0, True),
        (10, 0.0, True),
        (300, 0.0, False),  # nothing can have carried it so far
        (1, 3e-3, True),
        (1, 0.1, False),  # the bias gradient is off by something else
    ],
)
def test_a_side_is_settled_where_the_error_allows_it_and_it_explains_the_bias(errors, left, moves):
    """One output that many errors from 0; all but a share of the difference is its jump."""
    leaky, error = from_module(nn.LeakyReLU(0.2)), 1e-8
    y, back = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    y[0, 0, 1, 2] = errors * error
    other = y.clone()
    other[0, 0, 1, 2] = -y[0, 0, 1, 2]
    own, expected = ((back * leaky.derivative(side)).sum(dim=(2, 3)) for side in (y, other))
    bias = own + (expected - own) / (1 - left)
    told = torch.tensor([[[[error]]]]).double()
    settled = settle_sides(leaky, y, back, bias, told)
    assert torch.equal(settled > 0, other > 0 if moves else y > 0)


@given(SEEDS, st.sampled_from(MODULES))
@settings(max_examples=25, deadline=None)
def test_an_image_of_a_batch_is_passed_as_it_is_alone(seed, module):
    _, y, back, _, bias_gradient = forward(module, seed, (3, 2, 3, 3))
    y[1] *= 1e-3
    noise = torch.tensor([1e-16, 1e-3, 1e-7]).double()
    activation = from_module(module)
    together, outputs = through_activation(activation, y, back, bias_gradient, noise)
    for n in range(3):
        own = (t[n : n + 1] for t in (y, back, bias_gradient, noise))
        alone, mine = through_activation(activation, *own)
        # Not to the bit: vector and scalar routines of a function differ in the last one.
        for whole, part in ((together.value, alone.value), (outputs.weight, mine.weight)):
            torch.testing.assert_close(whole[n], part[0], rtol=1e-13, atol=1e-15)


def test_an_output_of_zeros_only():
    y = torch.zeros(1, 2, 3, 3).double()
    for module in MODULES:
        bias_gradient = torch.zeros(1, 2).double()
        below, inputs = through_activation(from_module(module), y, y, bias_gradient, TINY)
        assert below.value.isfinite().all() and inputs.value.isfinite().all()


@pytest.mark.parametrize("level", [1e-9, 1e-4])
def test_an_error_is_no_smaller_than_the_noise_that_it_comes_from(level):
    """Sixty-four filters for sixteen pixels: independent errors would average out, others not."""
    geometry = Geometry((1, 4, 4), (64, 4, 4), (3, 3), (1, 1), (1, 1), (1, 1))
    identity = from_module(nn.Identity())
    stage = Stage("conv", normal(64, 1, 3, 3), None, identity, geometry)
    x, cotangent = normal(1, 1, 4, 4, seed=1), normal(1, 64, 4, 4, seed=2)
    gradient = (gradient_matrix(cotangent, geometry) @ x.flatten(2).mT).reshape(1, 64, 1, 3, 3)
    error, told = torch.full((1, 64), 1e-3).double(), torch.tensor([level]).double()
    below, inputs = through_activation(identity, stage.convolve(x), cotangent, None, error, told)
    for kind in ("gradient", "hybrid"):
        layer = ConvData(LayerPlan(stage), inputs, below, gradient, torch.zeros(1).double())
        problem = MapProblem(0, (layer,))
        found = problem.solved_by(kind)
        torch.testing.assert_close(found.value, x.flatten(1))
        assert (found.error >= problem.least_std(kind)).all() and (found.amplification < 1).all()
        assert problem.least_std("gradient").item() == pytest.approx(level)


def test_where_rows_of_the_first_linear_cancel_their_rounding_weighs_more():
    """Rows that differ by a thousandth: v̄ is a thousandth of its terms, and their errors stay."""
    common, level = normal(1, 12), 2.0**-24
    weight = common + 1e-3 * normal(10, 12, seed=1)
    z = torch.softmax(normal(1, 10, seed=2), dim=1)
    z[:, 3] -= 1
    linear = Head("fc", weight, True, True, "fc.bias")
    gradients = {"fc.weight": z[:, :, None] * normal(1, 1, 12, seed=3), "fc.bias": z}
    start = from_head(linear, Observed.of(gradients, Noise.of(torch.float32)), (3, 2, 2))
    signal, z = start.cotangent, z / start.observed.unit
    moved = (z * (1 + level * normal(200, 10, seed=4))) @ weight
    exact = signal.value.flatten(1)
    measured = ((moved - exact).square().mean() / exact.square().mean()).sqrt().item()
    assert measured > 100 * level
    assert measured / 2 < signal.relative_std.item() < 10 * measured


def test_added_noise_is_of_one_size_in_all_rows_of_the_first_linear():
    """The row of the largest derivative hardly counts: the noise of the others does."""
    level, weight = 1e-6, normal(10, 12)
    weight[3] *= 1e-4
    z = torch.full((1, 10), 1e-3).double() * normal(1, 10, seed=1)
    z[:, 3] = -1
    linear = Head("fc", weight, True, True, "fc.bias")
    gradients = {"fc.weight": z[:, :, None] * normal(1, 1, 12, seed=3), "fc.bias": z}
    start = from_head(linear, Observed.of(gradients, Noise(relative_std=level)), (3, 2, 2))
    signal, z = start.cotangent, z / start.observed.unit
    moved = (z + level * z.square().mean().sqrt() * normal(200, 10, seed=4)) @ weight
    exact = signal.value.flatten(1)
    measured = ((moved - exact).square().mean() / exact.square().mean()).sqrt().item()
    assert measured / 2 < signal.relative_std.item() < 10 * measured


def test_where_a_transposed_convolution_cancels_its_noise_weighs_more():
    """Filters of ones over outputs of alternating sign: little is left but their errors."""
    geometry = Geometry((1, 8, 8), (1, 8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    stage = Stage(
        "conv", torch.ones(1, 1, 3, 3).double(), None, from_module(nn.Identity()), geometry
    )
    level = 1e-6
    own = torch.ones(1, 1, 8, 8).double()
    own[..., ::2] = -1
    own[..., ::2, :] *= -1
    told = torch.tensor([level], dtype=torch.float64)
    below, _ = through_activation(stage.activation, own, own, None, told[:, None], told)
    exact = stage.transpose(below.value)
    moved = stage.transpose(own + level * normal(100, 1, 8, 8))
    measured = ((moved - exact).square().mean() / exact.square().mean()).sqrt().item()
    assert measured > 3 * level
    assert propagated(stage, below).relative_std.item() == pytest.approx(measured, rel=0.3)


def test_errors_of_one_size_are_shared_by_the_channels_and_roundings_are_not():
    value = normal(1, 2, 50, 50) * torch.tensor([1.0, 1e-3]).double()[:, None, None]
    level, rounding, added = (
        torch.tensor([1e-6]).double(),
        Noise(relative=1e-6),
        Noise(relative_std=1e-6),
    )
    apart = channel_errors(value, level, ("gradient",), rounding)[0]
    assert (apart[1] / apart[0]).item() == pytest.approx(1e-3, rel=0.1)
    for kind, noise in (("gradient", added), ("hybrid", rounding), ("hybrid", added)):
        shared = channel_errors(value, level, (kind,), noise)[0]
        assert shared[0] == shared[1] and shared[0].item() == pytest.approx(0.7e-6, rel=0.1)


def test_noise_of_the_bias_gradient_alone_reaches_the_input_of_the_first_linear():
    weight, z = normal(10, 12), normal(1, 10, seed=1)
    linear = Head("fc", weight, True, True, "fc.bias")
    gradients = {"fc.weight": z[:, :, None] * normal(1, 1, 12, seed=3), "fc.bias": z}
    found = [
        from_head(linear, Observed.of(gradients, Noise(std=known)), (3, 2, 2))
        .estimate.std.max()
        .item()
        for known in ({"fc.bias": 1e-3}, {"fc.weight": 1e-3}, {})
    ]
    assert min(found[:2]) > 1e-4 and found[2] < 1e-12


def test_the_noise_of_every_entry_reaches_what_the_first_linear_says():
    """Channels whose entries are noisier have the larger error; v̄ has the noise of the bias."""
    weight, z, v = normal(10, 800, seed=4), normal(1, 10, seed=1), normal(1, 800, seed=3)
    linear = Head("fc", weight, True, True, "fc.bias")
    exact = {"fc.weight": z[:, :, None] * v[:, None, :], "fc.bias": z}
    told = {"fc.weight": torch.full((1, 10, 800), 1e-3), "fc.bias": torch.full((1, 10), 1e-5)}
    told["fc.weight"][:, :, 400:] *= 10
    noise = Noise(std=told)
    sent = {n: g + told[n] * normal(*g.shape, seed=k) for k, (n, g) in enumerate(exact.items())}
    start = from_head(linear, Observed.of(sent, noise), (2, 20, 20))
    value, cotangent = start.estimate, start.cotangent
    measured = (value.value - v.reshape(1, 2, 20, 20)).square().mean(dim=(2, 3)).sqrt()
    torch.testing.assert_close(value.std, measured, rtol=0.2, atol=0)
    assert (measured[0, 1] / measured[0, 0]).item() == pytest.approx(10, rel=0.2)
    own, right = (cotangent.value * start.observed.unit).flatten(), (z @ weight).flatten()
    assert cotangent.relative_std.item() == pytest.approx(relative_error(own, right), rel=0.5)


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Tanh()], ids=repr)
def test_the_error_of_an_output_is_one_of_the_derivative(module):
    activation, error = from_module(module), 1e-4
    y, back = module(normal(1, 2, 30, 30)), normal(1, 2, 30, 30, seed=1)
    told = torch.tensor([1e-12], dtype=torch.float64)
    below, _ = through_activation(
        activation, y, back, None, torch.full((1, 2), error, dtype=torch.float64), told
    )
    moved = back * activation.derivative(y + error * normal(*y.shape, seed=2))
    measured = ((moved - below.value).norm() / below.value.norm()).item()
    assert below.relative_std.item() == pytest.approx(measured, rel=0.3)


def test_a_difference_within_the_noise_of_the_cotangent_moves_no_output():
    """An output of little cotangent would explain it to the last digit; so would the noise."""
    leaky, error = from_module(nn.LeakyReLU(0.2)), torch.tensor([[[[1e-8]]]]).double()
    y, back = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    y[0, 0, 1, 2], back[0, 0, 1, 2] = 1e-8, 1e-5
    bias = (back * leaky.derivative(y)).sum(dim=(2, 3)) - 0.8e-5
    sure = settle_sides(leaky, y, back, bias, error, torch.tensor([1e-12]).double())
    noisy = settle_sides(leaky, y, back, bias, error, torch.tensor([1e-5]).double())
    assert sure[0, 0, 1, 2] < 0 < noisy[0, 0, 1, 2]
