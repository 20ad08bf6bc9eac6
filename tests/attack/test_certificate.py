"""Certificate: rounding at the truth, growing with the error, infinite where it is no number."""

import math
from itertools import pairwise

import pytest
import torch
from small import network, normal, observe, uniform
from torch import nn

from rconv.attack.certificate import gradient_residual

pytestmark = pytest.mark.arithmetic

MLP = lambda n: [nn.Linear(n, 12), nn.GELU(), nn.Linear(12, 10)]  # noqa: E731


def residual(model, images, gradients):
    return gradient_residual(model, "5", images, gradients["5.bias"], gradients)


@pytest.mark.parametrize("head", [lambda n: [nn.Linear(n, 10)], MLP], ids=["Linear", "MLP"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
def test_the_truth_has_a_residual_of_rounding(activation, head):
    model, x = network(activation, head=head), uniform(3, 1, 8, 8)
    assert (residual(model, x, observe(model, x)) < 1e-14).all()


def test_the_residual_is_that_of_the_gradients_up_to_the_first_linear():
    """An independent construction: backward() with the head's own derivative put in."""
    model, x, other = network(head=MLP), uniform(1, 1, 8, 8), uniform(1, 1, 8, 8, seed=1)
    gradients = observe(model, x)
    names = [f"{layer}.{kind}" for layer in (0, 2, 5) for kind in ("weight", "bias")]
    model.zero_grad()
    (model[:6](other) * gradients["5.bias"]).sum().backward()
    own = torch.cat([model.get_parameter(name).grad.flatten() for name in names])
    observed = torch.cat([gradients[name].flatten() for name in names])
    expected = ((own - observed).norm() / observed.norm()).item()
    assert residual(model, other, gradients).item() == pytest.approx(expected, rel=1e-9)
    assert expected > 0.01


def test_the_residual_grows_with_the_error():
    model, x = network(), uniform(1, 1, 8, 8)
    gradients, direction = observe(model, x), normal(1, 1, 8, 8)
    found = [residual(model, x + e * direction, gradients).item() for e in (1e-9, 1e-6, 1e-3)]
    for small, large in pairwise(found):
        assert large / small == pytest.approx(1e3, rel=0.2)


def test_one_wrong_image_does_not_change_the_others():
    model, x = network(), uniform(3, 1, 8, 8)
    gradients, wrong = observe(model, x), x.clone()
    wrong[1] = math.nan
    found = residual(model, wrong, gradients)
    assert found[1] == math.inf
    assert (found[[0, 2]] < 1e-14).all()


def test_gradients_of_another_image_are_noticed():
    model, x = network(), uniform(2, 1, 8, 8)
    gradients = observe(model, x, torch.tensor([3, 3]))
    assert (residual(model, x.flip(0), gradients) > 0.01).all()


def test_a_nested_model_and_its_hooks():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh()), nn.Flatten(),
                          nn.Sequential(nn.Linear(8, 3))).double()  # fmt: skip
    x = uniform(2, 1, 4, 4)
    gradients = observe(model, x)
    found = gradient_residual(model, "2.0", x, gradients["2.0.bias"], gradients)
    assert (found < 1e-14).all()
    assert not model[2][0]._forward_hooks
