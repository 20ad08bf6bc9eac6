"""Trying a model: the truth as the judge, and words that say which verdict says what."""

from dataclasses import replace

import pytest
import torch
from small import network, normal, observe, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.audit import HYBRID, NOT_UNIQUE, TOO_LARGE, audit, overall
from rconv.data import datasets
from rconv.data.datasets import SIZES, photographs
from rconv.lab.metrics import gain, psnr
from rconv.lab.records import SHOWN, score
from rconv.lab.trial import VISIBLE, trial
from rconv.model.read import UnsupportedModelError

SHAPE = (1, 8, 8)


def short(filters=4, activation=nn.ReLU):
    """One layer with a stride and few filters: too few equations for 3 × 8 × 8 pixels."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, filters, 3, 2, 1)
    return nn.Sequential(conv, activation(), nn.Flatten(), nn.Linear(filters * 16, 5)).double()


def dead(model):
    """All but one filter of the last convolution silent, whatever the image."""
    with torch.no_grad():
        model[2].bias[1:] = -100.0
    return model


@pytest.fixture(scope="module")
def shown():
    """A trial in which no image is unique."""
    return trial(short(), (3, 8, 8))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_it_is_the_attack_measured_against_the_truth(dtype):
    model, images, labels = network(), uniform(3, *SHAPE), torch.tensor([1, 1, 7])
    found = trial(model, SHAPE, images, labels, dtype=dtype)
    client = network().float() if dtype else model
    alone = Attack(client, SHAPE)(observe(client, images, labels)).images
    assert found.dtype == (dtype or "float64") and torch.equal(found.truth, images)
    assert torch.equal(found.reconstruction.images, alone)
    shown = alone.clamp(0, 1)
    assert torch.equal(found.psnr, psnr(shown, images, data_range=1.0))
    assert (found.psnr - found.flat - gain(shown, images)).abs().max() < 1e-9
    assert found.unique.all() and (found.psnr >= SHOWN).all()
    assert not found.false.any() and found.verdict.startswith("3 of 3 images")
    assert f"median {found.psnr.median():.0f} dB, worst {found.psnr.min():.0f}" in found.verdict
    assert next(model.parameters()).dtype == torch.float64, "the model is changed"


def test_the_models_own_dtype_is_the_clients():
    assert trial(network().float(), SHAPE, count=1).dtype == "float32"


def test_layers_tell_what_equations_leave_and_signs_close():
    found = trial(short(), (3, 8, 8), count=3)
    for row, report in zip(found.layers, found.reconstruction.layers, strict=True):
        left = report.unknowns - report.rank
        assert row == (
            report.name, report.unknowns, left.median(), report.signs.median(),
            report.open.median(), (report.open > 0).sum(),
        )  # fmt: skip
    name, unknowns, *directions, images = found.layers[-1]
    assert (name, unknowns, images) == ("0", 192, 3) and directions[2] > 50


def test_the_median_of_an_even_number_lies_between():
    found = trial(short(), (3, 8, 8), count=2)
    assert found.layers[-1][4] == found.reconstruction.layers[-1].open.double().mean()


def test_not_unique_is_not_private(shown):
    assert not shown.unique.any() and (shown.psnr - shown.flat > 2 * VISIBLE).any()
    assert (
        shown.verdict.startswith("0 of 4 images") and "; all are shown at median" in shown.verdict
    )
    assert f"best {shown.psnr.max():.0f}" in shown.verdict
    assert shown.verdict.endswith("not unique is not private")
    flat = shown.flat.quantile(0.5)
    assert f"flat image: median {flat:.0f} dB" in shown.verdict


def test_nothing_is_claimed_of_pictures_no_better_than_flat(shown):
    same = replace(shown, psnr=shown.flat + 3.0)  # just above half of the error
    assert same.verdict.endswith(
        "none has less than half its error): this attack shows next to nothing"
    )
    one = replace(shown, psnr=shown.flat + torch.tensor([3.02, 0, 0, 0]))
    assert "; 1 with less than half its error" in one.verdict


def test_both_kinds_are_told_apart():
    """One image whose gradients vanish: its logit is certain."""
    model, images = network(), uniform(4, *SHAPE)
    with torch.no_grad():
        model[-1].weight.mul_(1e6)
    labels = model(images).argmax(dim=1)
    labels[1:] = (labels[1:] + 1) % 10
    found = trial(model, SHAPE, images, labels)
    assert found.unique.tolist() == [False, True, True, True]
    assert found.verdict.startswith("3 of 4 images") and "; the other is shown at" in found.verdict
    assert f"(median {found.psnr[1:].median():.0f} dB, " in found.verdict
    assert "image 0: the gradients are zero" in found.beside("leaks")


def test_a_wrong_image_that_is_called_unique_is_shouted_out():
    model, images = network(), uniform(2, *SHAPE)
    found = trial(model, SHAPE, images, torch.arange(2))
    wrong = images + 0.1 * normal(*images.shape)
    judged = score(replace(found.reconstruction, images=wrong), images, {}, data_range=1.0)
    assert [r["false"] for r in judged] == [True, True]
    loud = replace(found, false=torch.tensor([r["false"] for r in judged]))
    assert "2 CALLED UNIQUE AND WRONG" in loud.verdict and "WRONG" not in found.verdict


def test_a_wide_range_of_pixels_lowers_the_bar_with_it():
    """What is 34 dB of one range is 20 dB more of one that is ten times as wide.

    The verdict asks for as much of the image's own size, whatever the range.
    """
    model, images = network(), uniform(1, *SHAPE)
    found = trial(model, SHAPE, images, torch.tensor([0])).reconstruction
    wrong = replace(found, images=images + 0.02)
    narrow, wide = (score(wrong, images, {}, data_range=top)[0] for top in (1.0, 10.0))
    assert not narrow["right"] and wide["right"]
    assert narrow["false"] and wide["false"]


def test_decibels_do_not_depend_on_the_unit_of_the_pixels():
    images, labels = uniform(2, *SHAPE), torch.arange(2)
    one = trial(network(), SHAPE, images, labels)
    other = trial(network(), SHAPE, images * 4 - 1, labels, value_range=(-1, 3))
    assert torch.allclose(one.flat, other.flat)
    assert other.unique.all() and other.psnr.min() > 150


def test_photographs_fill_the_range():
    found = trial(network(), SHAPE, count=2, value_range=(-2, 2))
    wanted = -2 + 4 * photographs(SHAPE, 2)[0]
    assert torch.equal(found.truth, wanted) and found.truth.min() < -1 < 1 < found.truth.max()


# Which verdict says what


def test_dead_filters_break_what_the_shapes_promise():
    model = dead(network(nn.ReLU, filters=(6, 8)))
    generic = overall(audit(model, SHAPE))
    found = trial(model, SHAPE, count=1)
    assert generic == "leaks" and not found.unique.any()
    text = found.beside(generic)
    assert text.startswith("Rank and trial differ. The rank for random data says 'leaks'")
    assert "image 0: 2 has rank" in text


def test_signs_give_more_than_the_shapes_promise():
    """A dark image with one bright pixel needs far fewer equations than it has pixels."""
    model, images = short(5), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    images[:, :, 3, 4] = 1.0
    found = trial(model, (3, 8, 8), images, torch.tensor([0, 1]))
    assert found.unique.all() and found.psnr.min() > 100
    assert found.layers[-1][2] > 0 and found.layers[-1][3] == found.layers[-1][2]
    generic = overall(audit(model, (3, 8, 8)))
    assert generic == NOT_UNIQUE and "signs determine the rest" in found.beside(generic)


def test_nothing_is_said_where_the_two_agree(shown):
    assert shown.beside(NOT_UNIQUE) == ""
    every = trial(network(), SHAPE, count=1)
    assert every.beside("leaks") == every.beside(HYBRID) == ""
    assert "more outputs are active" in every.beside(NOT_UNIQUE)
    assert "too large" in every.beside(TOO_LARGE)


# Photographs of any shape


def test_photographs_of_three_channels_are_the_datasets():
    images, text = photographs((3, 32, 32), 3)
    assert torch.equal(images, datasets.load("Photos", range(3)).images) and "grey" not in text


def test_photographs_are_cut_to_the_shape():
    whole = photographs((3, 20, 20), 2)[0]
    assert torch.equal(photographs((3, 20, 14), 2)[0], whole[..., 3:17])
    assert torch.equal(photographs((3, 14, 20), 2)[0], whole[..., 3:17, :])


def test_channels_lie_between_red_green_and_blue():
    colours = photographs((3, 9, 9), 2)[0]
    grey, text = photographs((1, 9, 9), 2)
    assert torch.equal(grey, colours.mean(dim=1, keepdim=True)) and "grey" in text
    five, text = photographs((5, 9, 9), 2)
    assert torch.allclose(five[:, ::2], colours) and "interpolated" in text
    assert torch.allclose(five[:, 1], colours[:, :2].mean(dim=1))


# Refusals, before any work

IMAGES, LABELS = uniform(2, *SHAPE), torch.arange(2)
REFUSED = {
    "no labels": ((IMAGES,), {}, "no labels"),
    "images of another shape": ((uniform(2, 1, 8, 9), LABELS), {}, "not of shape"),
    "no image": ((IMAGES[:0], LABELS[:0]), {}, "not of shape"),
    "no tensor": (([1.0], LABELS), {}, "not of shape"),
    "images beyond the range": ((2 * IMAGES, LABELS), {}, "value range"),
    "images that are not finite": ((IMAGES / 0, LABELS), {}, "value range"),
    "a class that is none": ((IMAGES, LABELS + 9), {}, "classes from 0 to 9"),
    "a label too few": ((IMAGES, LABELS[:1]), {}, "1 targets for 2"),
    "unknown dtype": ((), {"dtype": "float8"}, "float8"),
    "no photographs": ((), {"count": 0}, "1 to 100"),
    "more photographs than there are": ((), {"count": SIZES["Photos"] + 1}, "1 to 100"),
    "a range upside down": ((), {"value_range": (1, 0)}, "lower one first"),
}


@pytest.mark.parametrize(("given", "options", "hint"), REFUSED.values(), ids=REFUSED)
def test_refuses_before_the_attack(given, options, hint, monkeypatch):
    monkeypatch.setattr(Attack, "__call__", lambda *a, **k: pytest.fail("attacked first"))
    with pytest.raises(ValueError, match=hint):
        trial(network(), SHAPE, *given, **options)


def test_refuses_what_the_attack_refuses():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveMaxPool2d(3), nn.Flatten())
    with pytest.raises(UnsupportedModelError, match="MaxPool2d"):
        trial(model, SHAPE)
    with pytest.raises(UnsupportedModelError, match="int is no torch"):
        trial(3, SHAPE, dtype="float32")


def test_a_loss_of_the_clients_own_is_not_told():
    def squares(logits, target):
        return (logits - nn.functional.one_hot(target, 10)).square().sum()

    found = trial(network(), SHAPE, count=2, loss=squares)
    assert found.unique.all() and found.psnr.min() > 150
