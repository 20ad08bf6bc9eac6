"""Photos and Digits: the images of scikit-image and scikit-learn, without importing them."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from rconv.data import sources
from rconv.data.datasets import DEFAULT, SIZES, DatasetError, load


def test_the_default_needs_no_network_and_has_ten_different_photographs_first():
    found = load(indices=range(10))
    assert (found.name, DEFAULT) == ("Photos", "Photos")
    assert found.labels.tolist() == list(range(10))
    assert found.images.shape == (10, 3, 32, 32)
    assert found.images.dtype == torch.float64
    assert found.images.flatten(1).unique(dim=0).shape[0] == 10


def test_all_hundred_photos_differ_and_carry_their_photographs_number():
    found = load()
    assert len(found) == SIZES["Photos"] == 100
    assert found.labels.tolist() == [index % 10 for index in range(100)]
    assert found.images.flatten(1).unique(dim=0).shape[0] == 100


def test_photos_are_scikit_images_photographs():
    from skimage import data

    for number, name in [(0, "astronaut"), (5, "immunohistochemistry"), (7, "camera")]:
        published = getattr(data, name)()
        image, label = sources.embedded("Photos", number)
        assert label == number
        assert np.array_equal(image, np.broadcast_to(published.T, image.T.shape).T)


def test_the_crops_of_a_photo_are_a_grid_of_half_side_squares():
    photo, _ = sources.embedded("Photos", 1)  # 300 × 451
    corners = {10 * crop + 1: sources.embedded("Photos", 10 * crop + 1)[0] for crop in (1, 5, 9)}
    assert np.array_equal(corners[11], photo[:150, :150])
    assert np.array_equal(corners[51], photo[75:225, 150:300])
    assert np.array_equal(corners[91], photo[-150:, -150:])


def test_grey_photographs_have_three_equal_channels():
    found = load(indices=[7, 8, 9, 0])
    spread = (found.images.amax(1) - found.images.amin(1)).flatten(1).amax(1)
    assert spread[:3].tolist() == [0, 0, 0]
    assert spread[3] > 0.1


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    published = load_digits()
    found = load("Digits", side=8)
    assert found.images.shape == (1797, 1, 8, 8)
    assert found.labels.tolist() == published.target.tolist()
    assert (
        found.images[:, 0] - torch.tensor(published.images) / 16
    ).abs().max() <= 0.5 / 255 + 1e-9
    assert found.images.max() == 1


def test_a_package_without_its_data_files_is_named(monkeypatch):
    monkeypatch.setattr(sources, "PHOTOS", ("absent.png",))
    sources._photo.cache_clear()
    with pytest.raises(DatasetError, match="install skimage again"):
        sources.embedded("Photos", 0)
    sources._photo.cache_clear()


def test_loading_photos_imports_neither_scikit_image_nor_torchvision():
    code = (
        "import sys; from rconv.data.datasets import load; load(indices=[0]); load('Digits', [0]);"
        "print({'skimage', 'sklearn', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
