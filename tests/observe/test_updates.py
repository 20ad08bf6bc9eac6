"""What weights before and after a step give away: known solutions, bounds, refusals."""

import copy
import math

import pytest
import torch
from small import relative_error, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.lab import architectures
from rconv.lab.channels import several_steps, sgd_step
from rconv.lab.false_positives import random_images, random_network
from rconv.observe.observation import per_sample_gradients
from rconv.observe.update import gradients_from_update, half_spacing

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
    read, noise = gradients_from_update(before(model), sgd_step(model, gradients, rate), rate)
    errors = []
    for name, g in gradients.items():
        error = (read[name] - g.double()).abs()
        # The client rounds rate × g once more before it adds, by 2^-24 of it.
        spread = noise.entry_std(name, read[name])
        allowed = math.sqrt(3) * spread * (1 + 1e-6) + 2**-23 * g.abs()
        assert (error <= allowed).all(), name
        errors.append((error / spread).flatten())
    # Uniform within the bound: its deviation is what is stated.
    assert torch.cat(errors).square().mean().sqrt().item() == pytest.approx(1, abs=0.15)


def test_a_tenth_of_the_rate_loses_ten_times_as_much(client):
    model, _, _, gradients = client
    found = []
    for rate in RATES:
        sent = sgd_step(model, gradients, rate)
        read, noise = gradients_from_update(before(model), sent, rate)
        found.append(
            noise.total_relative_std("conv2.weight", read["conv2.weight"], torch.ones(2).double())
        )
    for coarse, fine in zip(found[1:], found, strict=False):
        assert torch.allclose(coarse / fine, torch.full((2,), 10.0).double(), rtol=0.05)


def test_powers_of_two_are_read_exactly():
    # 1 - 2^-3 · 2^-4 needs 7 bits: nothing is rounded.
    weight, gradient = torch.ones(2, 2), torch.full((1, 2, 2), 2.0**-4)
    model = nn.Linear(2, 2, bias=False)
    model.weight.data.copy_(weight)
    sent = sgd_step(model, {"weight": gradient}, 2.0**-3)
    read, noise = gradients_from_update({"weight": weight}, sent, 2.0**-3)
    assert torch.equal(read["weight"], gradient.double())
    # Half the spacing of the numbers in [1/2, 1) is 2^-25: over the rate.
    known = noise.std["weight"]
    assert torch.allclose(known, torch.full((1, 2, 2), 2.0**-25 * 2**3 / math.sqrt(3)).double())


def test_a_parameter_that_has_not_moved_tells_nothing():
    model = nn.Linear(2, 2)
    gradient = {"weight": torch.full((1, 2, 2), 1e-20), "bias": torch.ones(1, 2)}
    read, noise = gradients_from_update(before(model), sgd_step(model, gradient, 1e-3), 1e-3)
    assert not read["weight"].any()
    assert (noise.entry_std("weight", read["weight"]) > 0).all()


def test_half_the_spacing_is_numpys():
    numpy = pytest.importorskip("numpy")
    x = torch.tensor([1.0, -1.5, 0.1, 1e-40, 3e38, 0.0])
    expected = torch.from_numpy(numpy.spacing(x.abs().numpy())).double() / 2
    assert torch.equal(half_spacing(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_half_the_spacing_of_other_numbers(dtype):
    x = torch.tensor([1.0, -1.5, 0.3, 2.0**-14], dtype=dtype)
    info = torch.finfo(dtype)
    expected = info.eps / 2 * torch.tensor([1, 1, 0.25, 2.0**-14]).double()
    assert torch.equal(half_spacing(x), expected)
    assert (half_spacing(x * 0) == info.smallest_normal * info.eps / 2).all()


# The first step of torch.optim.SGD, undone

SETTINGS = {
    "plain": {},
    "weight decay": {"weight_decay": 5e-4},
    "a decay above the gradients": {"weight_decay": 0.5},
    "momentum": {"momentum": 0.9},
    "dampened momentum": {"momentum": 0.9, "dampening": 0.5},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "Nesterov with decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    "ascent with decay": {"maximize": True, "weight_decay": 1e-2},
}


def one_client(model, x, label):
    """Name → gradient of one image, without an axis of images."""
    gradients = per_sample_gradients(model, x, torch.tensor([label]))
    return {name: g[0] for name, g in gradients.items()}


def stepped(model, gradients, optimiser, rate, **settings):
    """The parameters of a copy after one step."""
    own = copy.deepcopy(model)
    for name, parameter in own.named_parameters():
        parameter.grad = gradients[name].to(parameter, copy=True)
    optimiser(own.parameters(), lr=rate, **settings).step()
    return own.state_dict()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_first_step_of_sgd_is_undone_within_the_noise(settings, dtype):
    known = {key: value for key, value in settings.items() if key != "dampening"}
    ratios = []
    for seed in range(6):
        model, shape = random_network(seed)
        model, x = model.to(dtype), random_images(shape, 1, seed)
        gradients = {
            n: g[0] for n, g in per_sample_gradients(model, x, torch.zeros(1).long()).items()
        }
        rate = 10.0 ** -(1 + seed % 3)
        sent = stepped(model, gradients, torch.optim.SGD, rate, **settings)
        read, noise = gradients_from_update(model.state_dict(), sent, rate, **known)
        for name, g in gradients.items():
            spread = noise.entry_std(name, read[name][None])[0]
            ratio = ((read[name] - g.double()).abs() / spread).flatten()
            assert ratio.max() < 6, name
            ratios.append(ratio)
    assert 0.5 < torch.cat(ratios).square().mean().sqrt() < 1.3


def test_a_decay_that_is_not_told_is_no_part_of_the_noise(client):
    model, _, _, gradients = client
    own = {name: g[0] for name, g in gradients.items()}
    sent = stepped(model, own, torch.optim.SGD, 0.1, weight_decay=0.1)
    read, noise = gradients_from_update(before(model), sent, 0.1)
    error = (read["fc.weight"] - own["fc.weight"].double()).abs()
    assert error.max() > 100 * noise.entry_std("fc.weight", read["fc.weight"][None]).max()


# The attack on it


def small():
    """A network and an image that its gradients determine."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(),
        nn.Linear(512, 10),
    ).eval()  # fmt: skip
    return model, random_images((1, 8, 8), 1, 3)


def test_an_image_comes_back_from_state_dicts():
    model, x = small()
    gradients = one_client(model, x, 3)
    settings = {"weight_decay": 1e-3, "momentum": 0.9, "nesterov": True}
    sent = stepped(model, gradients, torch.optim.SGD, 0.01, **settings)
    read, noise = gradients_from_update(model.state_dict(), sent, 0.01, **settings)
    assert set(read) == {name for name, _ in model.named_parameters()}
    found = Attack(model, (1, 8, 8))(read, noise=noise)
    error = float((found.images - x).norm() / x.norm())
    assert found.unique.all() and error < 10 * float(found.expected_error) < 1e-2


@pytest.mark.parametrize("rate", RATES)
def test_two_local_steps_are_said_to_be_no_single_one(rate):
    model, x = small()
    label = torch.tensor([3])
    twice = several_steps(2, rate)(model, x, label).gradients
    twice = {n: g[0] for n, g in twice.items()}
    sent = stepped(model, twice, torch.optim.SGD, rate)
    read, noise = gradients_from_update(model.state_dict(), sent, rate)
    found = Attack(model, (1, 8, 8))(read, noise=noise)
    assert found.revealed_noise > 0 and found.diagnostics[0]
    error = float((found.images - x).norm() / x.norm())
    assert not found.unique.any() or error < 10 * float(found.expected_error)


# What is refused, and why

ADAPTIVE = {
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
}


@pytest.mark.parametrize("optimiser, settings", ADAPTIVE.values(), ids=ADAPTIVE)
@pytest.mark.parametrize("rate", RATES)
def test_steps_of_one_size_are_refused_as_signs(client, optimiser, settings, rate):
    model, _, _, gradients = client
    own = {name: g[1] for name, g in gradients.items()}
    sent = stepped(model, own, optimiser, rate, **settings)
    with pytest.raises(ValueError, match=r"Adam.*sign of each gradient.*sizes"):
        gradients_from_update(before(model), sent, rate)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(client, rate):
    model, _, _, gradients = client
    with pytest.raises(ValueError, match="positive and finite"):
        sgd_step(model, gradients, rate)
    with pytest.raises(ValueError, match="positive and finite"):
        gradients_from_update(before(model), gradients, rate)


def test_other_precisions_are_refused_with_a_remedy(client):
    model, _, _, gradients = client
    double = {name: g.double() for name, g in gradients.items()}
    with pytest.raises(ValueError, match=r"of the gradients is torch.float64.*model.float\(\)"):
        sgd_step(model, double, 0.1)
    with pytest.raises(ValueError, match=r"float32 before and torch.float64 after"):
        gradients_from_update(before(model), double, 0.1)


W, B = torch.ones(2, 3), torch.zeros(2)
MOVED = {"weight": W + 0.1, "bias": B}
REFUSED = {
    "the same": ({"weight": W, "bias": B}, "the weights before and after are the same"),
    "a name less": ({"weight": W + 1}, "bias is only among the weights before"),
    "a name more": ({**MOVED, "x": B}, "x is only among the weights after"),
    "another shape": ({"weight": W.T + 1, "bias": B}, r"weight has the shape \(2, 3\) before"),
    "not a number": ({"weight": W * torch.nan, "bias": B}, "weight has NaN or infinite"),
    "no tensor": ({"weight": 1.0, "bias": B}, "weight must be a dense tensor"),
    "a sparse one": ({"weight": W.to_sparse(), "bias": B}, "weight must be a dense tensor"),
    "unequal clients": ({"weight": (W + 1)[None], "bias": B}, "different numbers of clients"),
}  # fmt: skip


@pytest.mark.parametrize("after, hint", REFUSED.values(), ids=REFUSED)
def test_weights_that_do_not_belong_together_are_refused(after, hint):
    with pytest.raises(ValueError, match=hint):
        gradients_from_update({"weight": W, "bias": B}, after, 0.1)


OPTIONS = {
    "a negative decay": ({"weight_decay": -1.0}, "weight decay is -1"),
    "a decay that is none": ({"weight_decay": math.nan}, "weight decay is nan"),
    "a negative momentum": ({"momentum": -0.9}, "momentum is -0.9"),
    "Nesterov alone": ({"nesterov": True}, "needs its momentum"),
}


@pytest.mark.parametrize("options, hint", OPTIONS.values(), ids=OPTIONS)
def test_settings_out_of_range_are_refused(options, hint):
    with pytest.raises(ValueError, match=hint):
        gradients_from_update({"weight": W, "bias": B}, MOVED, 0.1, **options)


def test_the_weights_after_a_step_in_training_mode_have_the_statistics_of_the_batch():
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, 1, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(1536, 5)
    ).double().train()  # fmt: skip
    x, client = uniform(1, 1, 8, 8), copy.deepcopy(model)
    nn.functional.cross_entropy(client(x), torch.tensor([3])).backward()
    torch.optim.SGD(client.parameters(), lr=0.1).step()
    after = client.state_dict()
    gradients, noise = gradients_from_update(model.state_dict(), after, 0.1)
    assert set(gradients) == dict(model.named_parameters()).keys()
    found = Attack(model, (1, 8, 8))(gradients, noise=noise, buffers=after)
    assert relative_error(found.images, x) < 1e-6
    with pytest.raises(ValueError, match=r"changed 1.running_mean.*put the model into training"):
        Attack(model.eval(), (1, 8, 8))(gradients, noise=noise, buffers=after)
