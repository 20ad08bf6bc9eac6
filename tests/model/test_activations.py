"""Activations from their output: derivatives against autograd, inverses, what a row is worth."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rconv.model.activations import from_module, input_noise

INF = math.inf
ACTIVATIONS = [
    # module, range, kink, flat
    (nn.ReLU(), (0, INF), True, True),
    (nn.ReLU6(), (0, 6), True, True),
    (nn.LeakyReLU(), (-INF, INF), True, False),
    (nn.LeakyReLU(0.2), (-INF, INF), True, False),
    (nn.LeakyReLU(1.5), (-INF, INF), True, False),
    (nn.LeakyReLU(0), (0, INF), True, True),
    (nn.Sigmoid(), (0, 1), False, False),
    (nn.Tanh(), (-1, 1), False, False),
    (nn.ELU(), (-1, INF), False, False),
    (nn.ELU(0.3), (-0.3, INF), True, False),
    (nn.ELU(2.0), (-2, INF), True, False),
    (nn.Softplus(), (0, INF), False, False),
    (nn.Softplus(3), (0, INF), False, False),
    (nn.Identity(), (-INF, INF), False, False),
]
modules = pytest.mark.parametrize("module", [row[0] for row in ACTIVATIONS], ids=repr)


@modules
@given(st.lists(st.floats(-6, 6), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_the_derivative_in_the_output_is_autograds_in_the_input(module, inputs):
    o = torch.tensor([*inputs, 0.0, 1e-9, -1e-9], dtype=torch.float64, requires_grad=True)
    y = module(o)
    (expected,) = torch.autograd.grad(y.sum(), o)
    found = from_module(module).derivative(y.detach())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@modules
@given(st.lists(st.floats(-6, 6), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_the_inverse_undoes_the_activation(module, inputs):
    activation = from_module(module)
    o = torch.tensor(inputs, dtype=torch.float64)
    o = (o.abs() + 1e-3).clamp(max=5) if activation.flat else o  # below the end of ReLU6
    torch.testing.assert_close(activation.inverse(module(o)), o, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("module", "bounds", "kink", "flat"), ACTIVATIONS, ids=lambda v: repr(v))
def test_range_kink_and_flatness(module, bounds, kink, flat):
    activation = from_module(module)
    assert (activation.low, activation.high) == bounds
    assert activation.invertible is not flat
    assert activation.flat is flat
    # A kink is where the derivative jumps at y = 0; with a slope of 1 there is none to see.
    tiny = torch.tensor([1e-200, -1e-200], dtype=torch.float64)
    right, left = activation.derivative(tiny).tolist()
    assert (abs(right - left) > 1e-6) == kink == activation.kink
    y = module(torch.linspace(-800, 800, 99, dtype=torch.float64))
    assert (y >= activation.low).all() and (y <= activation.high).all()


@pytest.mark.parametrize("o", [15.0, 19.0, 19.999, 20.001, 25.0, 100.0])
@pytest.mark.parametrize("beta", [0.5, 1, 4])
def test_softplus_is_linear_beyond_pytorchs_threshold(beta, o):
    o = torch.tensor([o / beta], dtype=torch.float64, requires_grad=True)
    y = nn.Softplus(beta)(o)
    (expected,) = torch.autograd.grad(y.sum(), o)
    activation = from_module(nn.Softplus(beta))
    torch.testing.assert_close(activation.derivative(y.detach()), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(activation.inverse(y.detach()), o.detach(), rtol=1e-14, atol=0)


REFUSED = [
    (nn.GELU(), "not monotone: two inputs share an output"),
    (nn.SiLU(), "not monotone"),
    (nn.LeakyReLU(-0.1), "not monotone"),
    (nn.ELU(-1.0), "not monotone"),
    (nn.LeakyReLU(float("nan")), "no slope"),
    (nn.ELU(float("inf")), "no range"),
    (nn.Softplus(-1.0), "not increasing"),
    (nn.PReLU(), "its slope is a parameter"),
    (nn.Softmax(dim=1), "not elementwise"),
    (nn.MaxPool2d(2), "no activation"),
    (nn.BatchNorm2d(3), "no activation"),
]


@pytest.mark.parametrize("module", [row[0] for row in REFUSED], ids=repr)
def test_what_cannot_be_passed_is_refused_by_name(module):
    with pytest.raises(ValueError, match=type(module).__name__):
        from_module(module)


def test_a_softplus_with_a_low_threshold_is_refused():
    """It jumps down at the threshold: o = 2 and o = 2.1 have the same output."""
    with pytest.raises(ValueError, match=r"Softplus.*threshold"):
        from_module(nn.Softplus(1, threshold=2))


@modules
def test_the_worth_of_an_input_is_the_derivative_inside_the_range(module):
    activation = from_module(module)
    o = torch.linspace(0.1, 3, 30, dtype=torch.float64)
    o = o if activation.flat else torch.cat([-o, o])
    y = module(o)
    value, weight = input_noise(activation, y, 1e-9)
    torch.testing.assert_close(value, o, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weight, activation.derivative(y), rtol=0, atol=0)


@modules
def test_outputs_at_the_ends_or_past_them_are_finite_and_worth_nothing(module):
    activation = from_module(module)
    ends = [end for end in (activation.low, activation.high) if math.isfinite(end)]
    past = [(end + side * 0.2) for end, side in zip(ends, (-1, 1), strict=False)]
    near = [end - side * 5e-7 for end, side in zip(ends, (-1, 1), strict=False)]
    y = torch.tensor([*ends, *past, *near], dtype=torch.float64)
    value, weight = input_noise(activation, y, 1e-6)
    assert value.isfinite().all()
    assert (weight == 0).all()
    inside, weight = input_noise(activation, y[len(ends) + len(past) :], 1e-7)
    assert inside.isfinite().all()
    assert (weight > 0).all()


@modules
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20), st.floats(1e-12, 1e-2))
@settings(max_examples=30, deadline=None)
def test_no_output_whatever_becomes_infinite_or_negative(module, outputs, margin):
    y = torch.tensor(outputs, dtype=torch.float64)
    value, weight = input_noise(from_module(module), y, margin)
    assert value.isfinite().all()
    assert weight.isfinite().all() and (weight >= 0).all()


def test_the_margin_may_differ_between_images():
    y = torch.full((2, 1, 1, 3), 1 - 1e-4, dtype=torch.float64)
    margin = torch.tensor([1e-6, 1e-2], dtype=torch.float64)[:, None, None, None]
    _, weight = input_noise(from_module(nn.Sigmoid()), y, margin)
    assert (weight[0] > 0).all() and (weight[1] == 0).all()


def test_a_relative_weight_is_what_an_output_error_does_to_the_input():
    """δo = δy / a'(o), measured by moving the output."""
    activation = from_module(nn.Sigmoid())
    y = torch.tensor([0.03, 0.4, 0.9, 0.999], dtype=torch.float64)
    value, weight = input_noise(activation, y, 1e-9)
    moved, _ = input_noise(activation, y + 1e-8, 1e-9)
    torch.testing.assert_close(
        (moved - value) * weight, torch.full_like(y, 1e-8), rtol=1e-4, atol=0
    )


@modules
def test_an_activation_can_be_pickled_and_copied(module):
    activation = from_module(module)
    y = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for again in (pickle.loads(pickle.dumps(activation)), copy.deepcopy(activation)):
        assert torch.equal(again.derivative(y), activation.derivative(y))
        assert torch.equal(again.inverse(y), activation.inverse(y))
        assert (again.name, again.low, again.high) == (
            activation.name,
            activation.low,
            activation.high,
        )
