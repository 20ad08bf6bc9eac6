"""Observation: the vectorised per-sample gradients are those of one backward() per image."""

import copy

import pytest
import torch
from small import network, normal, relative_error, uniform
from torch import nn
from torch.utils.checkpoint import checkpoint

from rconv.observe.observation import features, per_sample_gradients


def backward(model, image, target, loss):
    """Gradients by PyTorch's plain loop."""
    own = copy.deepcopy(model)
    own.zero_grad()
    loss(own(image[None].to(next(own.parameters()))), target).backward()
    return {name: p.grad for name, p in own.named_parameters()}


def test_one_entry_per_image_as_backward_gives_it():
    model, images = network(nn.LeakyReLU), uniform(4, 1, 8, 8)
    labels = torch.tensor([3, 0, 9, 3])
    found = per_sample_gradients(model, images, labels)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for n in range(4):
        expected = backward(model, images[n], labels[n : n + 1], nn.CrossEntropyLoss())
        for name, gradient in expected.items():
            assert relative_error(found[name][n], gradient) < 1e-12


def test_a_checkpointed_layer_has_the_same_gradients():
    """It has no rule for vmap: each image has a backward pass of its own."""

    class Checkpointed(nn.Sequential):
        def forward(self, x):
            first, *others = self
            return nn.Sequential(*others)(checkpoint(first, x, use_reentrant=False))

    model, images = network(nn.Tanh), uniform(3, 1, 8, 8)
    found = per_sample_gradients(Checkpointed(*model), images, torch.tensor([3, 0, 9]))
    expected = per_sample_gradients(model, images, torch.tensor([3, 0, 9]))
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) < 1e-12


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([1, 2])),
        (lambda z, y: z[:, y].square().sum(), torch.tensor([1, 2])),
    ],
    ids=["smoothed", "a function"],
)
def test_any_loss_of_logits_and_target(loss, targets):
    model, images = network(), uniform(2, 1, 8, 8)
    found = per_sample_gradients(model, images, targets, loss)
    for n in range(2):
        expected = backward(model, images[n], targets[n : n + 1], loss)
        assert all(relative_error(found[k][n], g) < 1e-12 for k, g in expected.items())


def logistic(logit, target):
    return nn.functional.binary_cross_entropy_with_logits(logit[:, 0], target.double())


def test_one_logit_takes_zeros_and_ones():
    model = network(head=lambda n: [nn.Linear(n, 1)])
    images, targets = uniform(2, 1, 8, 8), torch.tensor([0, 1])
    found = per_sample_gradients(model, images, targets, nn.BCEWithLogitsLoss())
    for n in range(2):
        expected = backward(model, images[n], targets[n : n + 1], logistic)
        assert all(relative_error(found[k][n], g) < 1e-12 for k, g in expected.items())
    assert (found["5.bias"][:, 0] > 0).tolist() == [True, False]


def test_one_logit_without_a_loss_is_the_logistic_one():
    """Cross-entropy over a single class is zero: every gradient would vanish."""
    model = network(head=lambda n: [nn.Linear(n, 1)])
    images, targets = uniform(2, 1, 8, 8), torch.tensor([0, 1])
    found = per_sample_gradients(model, images, targets)
    expected = per_sample_gradients(model, images, targets, nn.BCEWithLogitsLoss())
    assert all(torch.equal(found[name], g) for name, g in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_models_dtype_is_that_of_the_gradients(dtype):
    model = network().to(dtype)
    found = per_sample_gradients(model, uniform(1, 1, 8, 8).float(), torch.tensor([1]))
    assert {g.dtype for g in found.values()} == {dtype}


def test_the_model_and_its_own_gradients_stay_as_they_are():
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = per_sample_gradients(model, uniform(2, 1, 8, 8), torch.tensor([1, 2]))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(g.requires_grad for g in found.values())


def test_features_are_the_output_of_every_module():
    model, x = network(nn.Tanh), normal(2, 1, 8, 8)
    found = features(model, x)
    assert list(found) == ["0", "1", "2", "3", "4", "5"]
    with torch.no_grad():
        assert torch.equal(found["5"], model(x))
        assert torch.equal(found["1"], model[0](x).tanh())


def test_features_of_a_module_that_serves_twice():
    shared = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared).double()
    x = normal(1, 4)
    with torch.no_grad():
        assert torch.equal(features(model, x)["3"], model(x))


MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_gradients_are_computed_where_they_are_switched_off(mode):
    images, labels = uniform(2, 1, 8, 8), torch.tensor([1, 2])
    expected = per_sample_gradients(network(), images, labels)
    with mode():
        found = per_sample_gradients(network(), images.clone(), labels.clone())
        assert torch.is_grad_enabled() is False
    assert all(torch.equal(found[name], g) for name, g in expected.items())
    assert not any(g.is_inference() for g in found.values())


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (2, torch.tensor([1]), "1 targets for 2 images"),
        (0, torch.tensor([]), "0 targets for 0 images"),
        (2, torch.tensor([1, 10]), "classes from 0 to 9"),
        (2, torch.tensor([-1, 1]), "classes from 0 to 9"),
        (2, torch.tensor([0.0, 1.0]), "whole numbers"),
        (2, torch.tensor([[0], [1]]), "whole numbers"),
        (2, [0, 1], "targets must be a dense tensor"),
        (2, torch.tensor([0, 1]).to_sparse(), "targets must be a dense tensor"),
        (2, torch.tensor([0, 1], device="meta"), "with values"),
        (2, torch.tensor(1), "axis of images"),
        (2, torch.tensor([1j, 0]), "must be real"),
    ],
    ids="fewer none high negative float column list sparse meta scalar complex".split(),
)
def test_targets_that_are_none_are_refused(images, targets, message):
    with pytest.raises(ValueError, match=message):
        per_sample_gradients(network(), uniform(images, 1, 8, 8), targets)


def test_whole_numbers_of_any_kind_are_classes():
    images = uniform(2, 1, 8, 8)
    expected = per_sample_gradients(network(), images, torch.tensor([1, 2]))
    found = per_sample_gradients(network(), images, torch.tensor([1, 2], dtype=torch.uint8))
    assert all(torch.equal(found[name], g) for name, g in expected.items())


def test_a_model_without_parameters_has_no_gradients():
    with pytest.raises(ValueError, match="Flatten has no parameters"):
        per_sample_gradients(nn.Flatten(), uniform(1, 1, 8, 8), torch.tensor([1]))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 9, 9), (2, 64)], ids=str)
def test_images_that_the_model_does_not_take_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes no image of the shape \("):
        per_sample_gradients(network(), uniform(*shape), torch.tensor([0, 1]))


def test_a_loss_that_is_no_single_number_is_refused():
    with pytest.raises(ValueError, match="must be one number"):
        per_sample_gradients(
            network(), uniform(1, 1, 8, 8), torch.tensor([0]), lambda z, y: z.square()
        )
