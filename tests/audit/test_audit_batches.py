"""The audit of batches: what is counted, what random matrices say, and what the attack does."""

import pytest
import torch
from small import normal, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.audit import batch_limits, examine, weakest
from rconv.audit.batches import largest
from rconv.equations.conv_system import conv_system
from rconv.lab.metrics import matched
from rconv.linalg.dense import determines
from rconv.model.activations import from_module
from rconv.model.build import stage_of
from rconv.model.read import UnsupportedModelError
from rconv.show import audit as shown


def chain(*filters, activation=nn.LeakyReLU, classes=30, side=8):
    torch.manual_seed(0)
    layers, width = [], 2
    for stride, d in enumerate(filters, start=1):
        layers += [nn.Conv2d(width, d, 3, stride, 1), activation()]
        width = d
    size = width * (side // len(filters)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, classes)).double()


def test_every_link_has_its_limit_and_the_weakest_is_that_of_the_model():
    found = batch_limits(chain(6, 8), (2, 8, 8))
    # conv "2": 8 outputs for 24 unknowns at 16 positions, and 432 rows that are shared, 64 of
    # them what the outputs say already: 256 B <= 368.
    assert [(own.name, own.largest) for own in found] == [("5", 29), ("2", 1), ("0", None)]
    assert weakest(found).name == "2"
    assert weakest(batch_limits(chain(6, 24), (2, 8, 8))).name == "5"


@pytest.mark.parametrize("activation", [nn.LeakyReLU(), nn.ReLU()], ids=["known", "half known"])
@pytest.mark.parametrize("shape", [(3, 8, 3, 1), (4, 12, 5, 2), (2, 6, 3, 2)], ids=str)
def test_counting_agrees_with_ranks_of_random_matrices(activation, shape):
    channels, filters, kernel, stride = shape
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2).double()
    stage = stage_of("c", conv, from_module(activation), (channels, 6, 6))

    def full(batch):
        output = batch, *stage.geometry.output
        known = (uniform(*output, seed=5) < (0.5 if stage.activation.flat else 1)).double()
        own = normal(*output, seed=6) * known
        return determines(conv_system(stage, own, stage.weight, 0 * known, known), 1e-16)

    limit = largest(stage)
    if limit is None:
        assert full(1)
    else:  # another draw of active outputs may shift it by one
        room = int(stage.activation.flat)
        assert limit <= room or full(limit - room)
        assert not full(limit + 1 + room)


def test_the_attack_ends_where_the_audit_says():
    model, shape = chain(8, 8), (2, 8, 8)
    limit = weakest(batch_limits(model, shape)).largest
    x, labels = uniform(limit + 1, *shape), torch.arange(limit + 1)
    for count in (limit, limit + 1):
        loss = nn.functional.cross_entropy(model(x[:count]), labels[:count])
        sent = torch.autograd.grad(loss, list(model.parameters()))
        found = Attack(model, shape)(sent, batch=count)
        assert bool(found.unique.all()) == (count == limit)
        order = matched(found.images, x[:count])
        right = (found.images[order] - x[:count]).abs().max() < 1e-8
        assert right == (count == limit)


def test_what_takes_no_batches_is_audited_all_the_same():
    deep = nn.Sequential(*chain(6, 12), nn.Sigmoid(), nn.Linear(30, 4).double())
    with pytest.raises(UnsupportedModelError, match="not followed by the loss"):
        batch_limits(deep, (2, 8, 8))
    found = examine(deep, (2, 8, 8))
    assert found.batches == []
    assert "does not separate" in shown.batches(found)


SENTENCES = {
    "several": (chain(4, 16, side=4), "of 29 images determines all of them; 5 sets"),
    "one": (chain(6, 4, side=4), "of one image determines it"),
    "none": (chain(6, 2, side=4), "does not determine one image"),
}


@pytest.mark.parametrize("model, hint", SENTENCES.values(), ids=SENTENCES)
def test_the_limit_is_said(model, hint):
    assert hint in shown.batches(examine(model, (2, 4, 4)))
