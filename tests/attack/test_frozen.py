"""Gradients that are missing, as those of frozen parameters: their equations are left out."""

import pytest
import torch
from graphs import conv, seeded
from small import observe, relative_error, uniform
from torch import nn
from torch.nn import functional

from rconv import UnsupportedModelError
from rconv.attack.attack import Attack

SHAPE = (3, 8, 8)


def chain(activation):
    """Three convolutions; with ReLU, weight constraints alone leave all of them open."""
    layers = conv(3, 24, 3, 1), activation(), conv(24, 24, 3, 2), activation()
    return nn.Sequential(*layers, conv(24, 24), activation(), nn.Flatten(), nn.Linear(384, 5))


class Residual(nn.Module):
    """A stem, and a block of two convolutions with BatchNorm in evaluation."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = conv(3, 24, 3, 2), conv(24, 24), conv(24, 24)
        self.norm, self.last = nn.BatchNorm2d(24), nn.BatchNorm2d(24)
        self.fc = nn.Linear(384, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (self.last(self.two(self.norm(self.one(x)).relu())) + x).relu()
        return self.fc(x.flatten(1))


MODELS = {
    "ReLU": lambda: chain(nn.ReLU),
    "LeakyReLU": lambda: chain(nn.LeakyReLU),
    "Tanh": lambda: chain(nn.Tanh),
    "residual": Residual,
}


def frozen(gradients, layer):
    return {n: g for n, g in gradients.items() if n.rpartition(".")[0] != layer}


def wrong(result, images):
    """Images that are called unique and are not right."""
    return [i for i, own in enumerate(result.unique.tolist())
            if own and relative_error(result.images[i], images[i]) > 1e-2]  # fmt: skip


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_layer_frozen_in_turn_is_solved_without_it_or_refused_by_name(make, dtype):
    model, images = seeded(make), uniform(2, *SHAPE)
    sent = {name: g.to(dtype) for name, g in observe(model, images).items()}
    attack = Attack(model, SHAPE)
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in sent):
        try:
            result = attack(frozen(sent, layer))
        except UnsupportedModelError as error:
            assert str(error).startswith(f"no gradient for {layer}.weight")
            assert layer in ("7", "fc", "two")  # the head, and a branch whose output is not known
            continue
        assert layer not in ("7", "fc", "two")
        assert not wrong(result, images)


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Tanh])
def test_the_outputs_determine_the_image_where_all_convolutions_are_frozen(activation):
    filters = 8, 40, 40  # weight constraints of full rank
    layers = conv(3, filters[0], 3, 1), activation(), conv(filters[0], filters[1], 3, 2)
    layers = *layers, activation(), conv(filters[1], filters[2]), activation()
    model = seeded(lambda: nn.Sequential(*layers, nn.Flatten(), nn.Linear(640, 5)))
    for parameter in list(model.parameters())[:-2]:
        parameter.requires_grad_(False)
    images = uniform(1, *SHAPE)
    loss = functional.cross_entropy(model(images), torch.tensor([3]))
    sent = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    result = Attack(model, SHAPE)(sent)  # in the order of those that have gradients
    assert result.unique.all() and relative_error(result.images, images) < 1e-6


def test_a_missing_bias_costs_nothing_but_what_it_would_settle():
    model, images = seeded(lambda: chain(nn.LeakyReLU)), uniform(2, *SHAPE)
    sent = observe(model, images)
    partly = {name: None if name in ("0.bias", "2.bias", "4.bias") else g
              for name, g in sent.items()}  # fmt: skip
    result = Attack(model, SHAPE)(partly)
    assert result.unique.all() and relative_error(result.images, images) < 1e-6


def test_the_certificate_compares_only_what_was_observed():
    """A missing gradient is no gradient of zero, which would contradict every image."""
    model, images = seeded(lambda: chain(nn.LeakyReLU)), uniform(1, *SHAPE)
    sent = observe(model, images)
    zero = {n: torch.zeros_like(g) if n.startswith("4.") else g for n, g in sent.items()}
    attack = Attack(model, SHAPE)
    assert float(attack(frozen(sent, "4")).gradient_residual) < 1e-9
    assert float(attack(zero).gradient_residual) > 1e-3 and not attack(zero).unique.any()


def test_a_batch_does_without_a_frozen_convolution():
    """The weight rows of each sample are left; where they are short, the verdict says so."""
    model, images = seeded(lambda: chain(nn.LeakyReLU)), uniform(2, *SHAPE)
    sent = {n: g.mean(0) for n, g in observe(model, images).items()}
    found = Attack(model, SHAPE)(frozen(sent, "2"), batch=2)
    errors = torch.cdist(found.images.flatten(1), images.flatten(1)).amin(dim=1)
    assert ((errors < 1e-6) | ~found.unique).all()


def test_gradient_constraints_that_are_missing_are_not_replaced():
    model = seeded(lambda: chain(nn.LeakyReLU))
    sent = observe(model, uniform(1, *SHAPE))
    with pytest.raises(UnsupportedModelError, match=r"no gradient for 4\.weight: .*'auto'"):
        Attack(model, SHAPE, constraints="gradient")(frozen(sent, "4"))
