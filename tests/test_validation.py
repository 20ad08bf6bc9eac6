"""Validation: what is no gradient of the model is refused by name; dtypes keep their rounding."""

import pytest
import torch
from torch import nn

from rconv.observe.check import check_gradients
from rconv.observe.noise import Rounding


def model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()


def gradients(n=None, dtype=torch.float64):
    lead = () if n is None else (n,)
    return {
        name: torch.ones(*lead, *p.shape, dtype=dtype) for name, p in model().named_parameters()
    }


@pytest.mark.parametrize(("n", "expected"), [(None, 1), (1, 1), (5, 5)])
def test_a_leading_axis_of_images_is_kept_or_added(n, expected):
    checked, _ = check_gradients(model(), gradients(n))
    for name, parameter in model().named_parameters():
        assert checked[name].shape == (expected, *parameter.shape)
        assert checked[name].dtype == torch.float64


def change(name, value):
    changed = gradients(2)
    changed[name] = value
    return changed


def poisoned(value):
    changed = gradients(3)
    changed["2.weight"][1, 2, 4] = value
    return changed


W = torch.ones(2, 3, 8, dtype=torch.float64)
REFUSED = [
    # why, gradients, message
    ("missing", {k: v for k, v in gradients().items() if k != "2.bias"}, "no gradient for 2"),
    ("frozen", change("0.bias", None), r"no gradient for 0\.bias"),
    ("empty", {}, r"no gradient for 0\.weight, 0\.bias, 2\.weight, 2\.bias"),
    ("unknown", change("fc.weight", W), r"no parameter 'fc\.weight'"),
    ("transposed", change("2.weight", W.mT), r"2\.weight has the shape \(2, 8, 3\)"),
    ("summed over an axis", change("2.weight", W.sum(2)), r"2\.weight has the shape"),
    ("two leading axes", change("2.weight", W[None]), r"2\.weight has the shape"),
    ("no image", change("2.weight", W[:0]), r"2\.weight has the shape"),
    ("unequal N", change("2.weight", W[:1]), "different numbers of images"),
    ("unequal N, one bare", change("2.weight", W[0]), "different numbers of images"),
    ("whole numbers", change("2.weight", W.long()), r"2\.weight must be a floating-point"),
    ("complex", change("2.weight", W.cfloat()), r"2\.weight must be a floating-point"),
    ("no tensor", change("2.weight", W.tolist()), r"2\.weight must be a floating-point"),
    ("NumPy", change("2.weight", W.numpy()), r"2\.weight must be a floating-point tensor"),
    ("NaN", poisoned(float("nan")), r"2\.weight has NaN or infinite entries \(image 1\)"),
    ("infinity", poisoned(float("inf")), r"2\.weight has NaN or infinite entries \(image 1\)"),
    ("minus infinity", poisoned(-float("inf")), r"2\.weight has NaN or infinite"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "given", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(why, given, message):
    with pytest.raises(ValueError, match=message):
        check_gradients(model(), given)


ROUNDINGS = [
    (torch.float64, 2.0**-53, 0.0),
    (torch.float32, 2.0**-24, 2.0**-150),
    (torch.float16, 2.0**-11, 2.0**-25),
    (torch.bfloat16, 2.0**-8, 2.0**-134),
]


@pytest.mark.parametrize(("dtype", "relative", "absolute"), ROUNDINGS, ids=str)
def test_the_rounding_is_half_the_spacing_of_numbers(dtype, relative, absolute):
    found = Rounding.of(dtype)
    assert found.relative == relative
    assert found.absolute == pytest.approx(absolute, abs=1e-323)
    _, rounding = check_gradients(model(), gradients(dtype=dtype))
    assert rounding == found
    # A number half the spacing above 1 is rounded, one of less than that near zero is lost.
    assert torch.tensor(1 + 0.99 * relative, dtype=dtype) == 1
    assert torch.tensor(1 + 2.01 * relative, dtype=dtype) > 1
    assert torch.tensor(0.99 * absolute, dtype=torch.float64).to(dtype) == 0


def test_the_coarsest_dtype_counts():
    mixed = gradients()
    mixed["0.bias"] = mixed["0.bias"].half()
    assert check_gradients(model(), mixed)[1] == Rounding.of(torch.float16)


def test_gradients_that_require_a_gradient_are_detached_and_not_changed():
    given = gradients(2)
    given["0.weight"].requires_grad_()
    checked, _ = check_gradients(model(), given)
    assert not checked["0.weight"].requires_grad
    assert given["0.weight"].requires_grad
