"""Training: it learns, it repeats itself, it leaves the original alone."""

import pytest
import torch

from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.training import train


@pytest.fixture(scope="module")
def digits():
    return datasets.load("Digits", range(40))


@pytest.fixture(scope="module")
def start():
    return architectures.build("lenet_main", channels=1, initialisation="default")


@pytest.fixture(scope="module")
def trained(start, digits):
    return train(start, digits, epochs=25)


def test_it_learns_its_images(trained, digits):
    model, accuracy = trained
    assert accuracy >= 0.9
    with torch.no_grad():
        right = model(digits.images).argmax(dim=1) == digits.labels
    assert accuracy == right.double().mean()


def test_the_copy_is_of_the_originals_dtype_and_its_weights_are_float32_numbers(trained, start):
    model, _ = trained
    assert not model.training
    for new, old in zip(model.parameters(), start.parameters(), strict=True):
        assert new.dtype == old.dtype == torch.float64
        assert torch.equal(new, new.float().double())
        assert not torch.equal(new, old)


def test_the_original_stays_as_it_was(trained, start):
    again = architectures.build("lenet_main", channels=1, initialisation="default")
    for one, other in zip(start.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not start.training


def test_the_seed_decides_the_weights(start, digits):
    one, same, other = (train(start, digits, epochs=1, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(one.fc.weight, same.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)


def test_no_epoch_is_only_rounding(start, digits):
    model, accuracy = train(start, digits, epochs=0)
    assert torch.equal(model.fc.weight, start.fc.weight.float().double())
    assert accuracy < 0.5


def test_refusals(start, digits):
    with pytest.raises(ValueError, match="0 or more, and 1 or more"):
        train(start, digits, epochs=-1)
    with pytest.raises(ValueError, match="0 or more, and 1 or more"):
        train(start, digits, batch=0)
    with pytest.raises(ValueError, match="no classifier"):
        train(architectures.build("cnn6", channels=1), digits)
