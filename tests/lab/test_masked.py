"""The attack on pruned gradients: exact where rows suffice, and aware of it where not."""

import pytest
import torch
from small import network, observe, relative_error, uniform
from torch import nn

from rconv.lab import defences
from rconv.lab.masked import masked_attack, masked_head
from rconv.model.read import UnsupportedModelError, read
from rconv.observe.observation import features


def images(count=2, seed=3):
    return uniform(count, 1, 8, 8, seed=seed)


@pytest.mark.parametrize(
    "activation, share", [(nn.Tanh, 0.0), (nn.ReLU, 0.0), (nn.ReLU, 0.2), (nn.ReLU, 0.4)]
)
def test_pruned_gradients_give_exact_images(activation, share):
    model = network(activation, filters=(12, 10))
    truth = images()
    found = masked_attack(model, (1, 8, 8), defences.prune(observe(model, truth), share))
    assert relative_error(found.images, truth) < 1e-8
    assert (found.gradient_residual < 1e-9).all()


def test_it_knows_when_too_much_is_gone():
    model = network(nn.Tanh)
    truth = images()
    found = masked_attack(model, (1, 8, 8), defences.prune(observe(model, truth), 0.97))
    assert relative_error(found.images, truth) > 0.1
    assert (found.gradient_residual > 1e-3).all()


def test_it_counts_the_directions_that_are_open():
    # Two filters of 5 × 5 give 50 rows for the 64 unknowns of a channel; a tenth is left.
    model = network(nn.ReLU, filters=(6, 2))
    found = masked_attack(model, (1, 8, 8), defences.prune(observe(model, images()), 0.9))
    assert (found.gap > 0).all() and (found.gap <= 6 * 64 + 64).all()


def test_the_first_linears_missing_entries_are_completed():
    model = network(nn.Tanh)
    head = read(model, (1, 8, 8)).head
    bias, truth = model[-1].bias.detach(), images(1)
    gradients = observe(model, truth)
    whole_weight, whole_bias = (
        gradients[f"{head.name}.weight"][0],
        gradients[f"{head.name}.bias"][0],
    )
    thinned = whole_weight * (uniform(*whole_weight.shape, seed=1) < 0.5)
    only = torch.zeros_like(whole_bias)
    only[whole_bias.argmin()] = whole_bias.min()
    v, z = masked_head(head.weight, bias, thinned, only)
    seen = (thinned != 0).any(dim=0)
    expected = list(features(model, truth).values())[-2][0]
    assert relative_error(v[seen], expected[seen]) < 1e-12
    assert relative_error(z, whole_bias) < 1e-12


def test_a_row_of_zeros_is_completed_by_the_loss():
    model = network(nn.Tanh)
    head = read(model, (1, 8, 8)).head
    gradients = observe(model, images(1))
    weight, bias = gradients[f"{head.name}.weight"][0].clone(), gradients[f"{head.name}.bias"][0]
    thinned = bias.clone()
    weight[5], thinned[5] = 0, 0
    _, z = masked_head(head.weight, model[-1].bias.detach(), weight, thinned)
    assert z[5].item() == pytest.approx(bias[5].item(), rel=1e-9)


@pytest.mark.parametrize(
    "head",
    [lambda n: [nn.Linear(n, 10, bias=False)], lambda n: [nn.Linear(n, 6), nn.Linear(6, 10)]],
)
def test_other_heads_are_refused_with_a_reason(head):
    model = network(head=head)
    with pytest.raises(UnsupportedModelError, match="must have a bias and make all logits"):
        masked_attack(model, (1, 8, 8), {})
