"""Datasets: preprocessing, names and indices; their sources have tests of their own."""

import numpy as np
import pytest
import torch
from PIL import Image
from small import refusal

from rconv.data import TRAIN_SIZES
from rconv.data.datasets import CHANNELS, CLASSES, SIZES, load, preprocess


@pytest.mark.parametrize(
    "shape",
    [(28, 28), (32, 32, 3), (8, 8), (300, 451, 3), (61, 40, 3), (32, 35)],
    ids=["MNIST", "CIFAR", "Digits", "wide photo", "tall", "wide grey, odd margin"],
)
def test_preprocessing_is_torchvisions_to_the_last_bit(shape):
    from torchvision import transforms

    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()]
    expected = transforms.Compose(steps)(Image.fromarray(image))
    ours = torch.tensor(preprocess(image, 32)).permute(2, 0, 1).double() / 255
    assert torch.equal(ours.float(), expected)


@pytest.mark.parametrize("side", [0, -1, 2.5, "32"])
def test_a_side_that_is_no_number_of_pixels_is_refused(side):
    assert "side" in refusal("Digits", [0], side=side)


def test_an_image_of_the_wanted_side_keeps_its_pixels(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    targets = np.array([3, 1, 4, 1])
    np.savez(tmp_path / "CIFAR10-train-first4.npz", data=data, targets=targets)
    found = load("CIFAR10", [2, 0], tmp_path)
    assert torch.equal((found.images * 255).round(), torch.tensor(data[[2, 0]]).permute(0, 3, 1, 2))
    assert found.labels.tolist() == [4, 3]
    assert found.indices.tolist() == [2, 0]
    assert found.name == "CIFAR10"


@pytest.mark.parametrize("name", CLASSES)
def test_an_index_out_of_range_is_refused_with_the_range_before_any_download(name, tmp_path):
    last = SIZES[name] - 1
    assert f"choose 0 to {last}" in refusal(name, [last + 1], tmp_path)
    assert f"choose 0 to {last}" in refusal(name, [0, -1], tmp_path)


@pytest.mark.parametrize("indices", [[], [0.5], "92", ["92"], 92], ids=repr)
def test_indices_that_are_none_are_refused(indices):
    assert "ind" in refusal("Digits", indices)


def test_indices_may_be_any_whole_numbers_in_any_order():
    found = load("Digits", torch.tensor([4, 0, 4]))
    assert found.indices.tolist() == [4, 0, 4]
    assert torch.equal(found.images[0], found.images[2])


def test_an_unknown_name_is_refused_with_the_choice():
    assert all(name in refusal("cifar10") for name in CLASSES)


def test_the_tables_speak_of_the_same_datasets():
    assert set(CLASSES) == set(CHANNELS) == set(SIZES)
    assert {name: SIZES[name] for name in TRAIN_SIZES} == TRAIN_SIZES


@pytest.mark.parametrize(("folder", "reason"), [("", "is empty"), ("~nosuch", "no such user")])
def test_a_path_that_names_no_folder_is_refused(folder, reason):
    assert reason in refusal("MNIST", [0], folder)
