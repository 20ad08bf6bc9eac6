"""What weights before and after a step give away: known solutions, bounds, refusals."""

import math

import pytest
import torch
from torch import nn

from rconv.lab import architectures
from rconv.lab.updates import gradients_from_weights, half_spacing, sgd_step
from rconv.observe.observation import per_sample_gradients

RATES = (0.1, 0.01, 0.001)


@pytest.fixture(scope="module")
def client():
    """A float32 network, two images and the gradients of each."""
    model = architectures.build("lenet_main", initialisation="default").float()
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.rand(2, 3, 32, 32, generator=generator), torch.tensor([3, 7])
    return model, images, targets, per_sample_gradients(model, images, targets)


def before(model):
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("rate", RATES)
def test_the_step_is_that_of_torchs_optimiser(client, rate):
    model, _, _, gradients = client
    sent = sgd_step(model, gradients, rate)
    for n in range(2):
        own = architectures.build("lenet_main", initialisation="default").float()
        for name, parameter in own.named_parameters():
            parameter.grad = gradients[name][n].clone()
        torch.optim.SGD(own.parameters(), lr=rate).step()
        for name, parameter in own.named_parameters():
            assert torch.equal(parameter, sent[name][n])


@pytest.mark.parametrize("rate", RATES)
def test_every_entrys_error_is_within_its_deviation(client, rate):
    model, _, _, gradients = client
    read, noise = gradients_from_weights(before(model), sgd_step(model, gradients, rate), rate)
    errors = []
    for name, g in gradients.items():
        error = (read[name] - g.double()).abs()
        # The client rounds rate × g once more before it adds, by 2^-24 of it.
        spread = noise.deviation(name, read[name])
        allowed = math.sqrt(3) * spread * (1 + 1e-6) + 2**-23 * g.abs()
        assert (error <= allowed).all(), name
        errors.append((error / spread).flatten())
    # Uniform within the bound: its deviation is what is told.
    assert torch.cat(errors).square().mean().sqrt().item() == pytest.approx(1, abs=0.15)


def test_a_tenth_of_the_rate_loses_ten_times_as_much(client):
    model, _, _, gradients = client
    found = []
    for rate in RATES:
        sent = sgd_step(model, gradients, rate)
        read, noise = gradients_from_weights(before(model), sent, rate)
        found.append(noise.level("conv2.weight", read["conv2.weight"], torch.ones(2).double()))
    for coarse, fine in zip(found[1:], found, strict=False):
        assert torch.allclose(coarse / fine, torch.full((2,), 10.0).double(), rtol=0.05)


def test_powers_of_two_are_read_exactly():
    # 1 - 2^-3 · 2^-4 needs 7 bits: nothing is rounded.
    weight, gradient = torch.ones(2, 2), torch.full((1, 2, 2), 2.0**-4)
    model = nn.Linear(2, 2, bias=False)
    model.weight.data.copy_(weight)
    sent = sgd_step(model, {"weight": gradient}, 2.0**-3)
    read, noise = gradients_from_weights({"weight": weight}, sent, 2.0**-3)
    assert torch.equal(read["weight"], gradient.double())
    # Half the spacing of the numbers in [1/2, 1) is 2^-25: over the rate.
    told = noise.deviations["weight"]
    assert torch.allclose(told, torch.full((1, 2, 2), 2.0**-25 * 2**3 / math.sqrt(3)).double())


def test_a_parameter_that_has_not_moved_tells_nothing():
    model = nn.Linear(2, 2, bias=False)
    sent = sgd_step(model, {"weight": torch.full((1, 2, 2), 1e-20)}, 1e-3)
    read, noise = gradients_from_weights(before(model), sent, 1e-3)
    assert not read["weight"].any()
    assert (noise.deviation("weight", read["weight"]) > 0).all()


def test_half_the_spacing_is_numpys():
    numpy = pytest.importorskip("numpy")
    x = torch.tensor([1.0, -1.5, 0.1, 1e-40, 3e38, 0.0])
    expected = torch.from_numpy(numpy.spacing(x.abs().numpy())).double() / 2
    assert torch.equal(half_spacing(x), expected)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(client, rate):
    model, _, _, gradients = client
    with pytest.raises(ValueError, match="positive and finite"):
        sgd_step(model, gradients, rate)
    with pytest.raises(ValueError, match="positive and finite"):
        gradients_from_weights(before(model), gradients, rate)


def test_other_precisions_are_refused_with_a_remedy(client):
    model, _, _, gradients = client
    double = {name: g.double() for name, g in gradients.items()}
    with pytest.raises(ValueError, match=r"of the gradients is torch.float64.*model.float\(\)"):
        sgd_step(model, double, 0.1)
    with pytest.raises(ValueError, match="of the weights after"):
        gradients_from_weights(before(model), double, 0.1)
