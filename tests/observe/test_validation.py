"""Validation: what is no gradient of the model is refused by name; dtypes keep their rounding."""

import copy
import pickle

import pytest
import torch
from small import network, observe, uniform
from torch import nn

from rconv import Attack, per_sample_gradients
from rconv.observe.check import check_gradients, check_value_range, declared_noise
from rconv.observe.noise import Noise


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
    ("NaN", poisoned(float("nan")), r"2\.weight has NaN or infinite entries.*\(image 1\)"),
    ("overflow", poisoned(-1e308), r"2\.weight .* above 1e\+300 \(image 1\)"),
    ("sparse", change("2.weight", W.to_sparse()), r"2\.weight is sparse .* to_dense"),
    ("meta", change("2.weight", W.to("meta")), r"2\.weight has no values"),
    ("eight bits", change("2.weight", W.to(torch.float8_e5m2)), r"float8_e5m2: use one of float64"),
    ("infinity", poisoned(float("inf")), r"2\.weight has NaN or infinite entries.*\(image 1\)"),
    ("minus infinity", poisoned(-float("inf")), r"2\.weight has NaN or infinite"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "given", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(why, given, message):
    with pytest.raises(ValueError, match=message):
        check_gradients(model(), given)


GRADIENTS = list(gradients().values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (GRADIENTS[:3], "3 gradients for 4 parameters"),
        ((), "0 gradients for 4 parameters"),
        ([gradients(), gradients()], "2 gradients for 4 .* leading axis N"),
        ((*GRADIENTS[:3], None), r"no gradient for 2\.bias"),
        (GRADIENTS[::-1], r"0\.weight has the shape \(3,\)"),
        (None, "mapping .* got NoneType"),
        (5, "mapping .* got int"),
        ("0.weight", "mapping .* got str"),
        (GRADIENTS[0], "mapping .* got Tensor"),
        (iter(GRADIENTS), "mapping .* got list_iterator"),
        ({0: GRADIENTS[0], **gradients()}, "no parameter 0"),
    ],
    ids="fewer none dicts missing order None int str tensor iterator key".split(),
)
def test_what_is_no_list_of_the_parameters_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_gradients(model(), given)


@pytest.mark.parametrize("kind", [tuple, list])
def test_gradients_may_come_in_the_order_of_the_parameters(kind):
    """As `torch.autograd.grad` returns them."""
    layers = model()
    loss = layers(torch.ones(1, 1, 4, 4, dtype=torch.float64)).square().sum()
    found = torch.autograd.grad(loss, list(layers.parameters()))
    checked, _ = check_gradients(layers, kind(found))
    for (name, _), gradient in zip(layers.named_parameters(), found, strict=True):
        assert torch.equal(checked[name][0], gradient)


def test_gradients_made_in_inference_mode_can_be_used_by_autograd():
    with torch.inference_mode():
        given = gradients(2)
    checked, _ = check_gradients(model(), given)
    assert not any(gradient.is_inference() for gradient in checked.values())


ROUNDINGS = [
    (torch.float64, 2.0**-53, 0.0),
    (torch.float32, 2.0**-24, 2.0**-150),
    (torch.float16, 2.0**-11, 2.0**-25),
    (torch.bfloat16, 2.0**-8, 2.0**-134),
]


@pytest.mark.parametrize(("dtype", "relative", "absolute"), ROUNDINGS, ids=str)
def test_the_rounding_is_half_the_spacing_of_numbers(dtype, relative, absolute):
    found = Noise.of(dtype)
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
    assert check_gradients(model(), mixed)[1] == Noise.of(torch.float16)


def test_gradients_that_require_a_gradient_are_detached_and_not_changed():
    given = gradients(2)
    given["0.weight"].requires_grad_()
    checked, _ = check_gradients(model(), given)
    assert not checked["0.weight"].requires_grad
    assert given["0.weight"].requires_grad


# What else is told to an attack

ROUNDING = Noise.of(torch.float32)


def test_what_is_told_of_the_noise_takes_the_place_of_the_rounding():
    own = Noise(std={"0.weight": torch.ones(2, 1, 1, 1), "2.bias": 0.5})
    assert declared_noise(model(), ROUNDING) == ROUNDING
    assert declared_noise(model(), ROUNDING, 1e-3) == Noise(
        relative_std=1e-3, absolute=ROUNDING.absolute
    )
    assert declared_noise(model(), ROUNDING, torch.tensor(0.5)).relative_std == 0.5
    assert declared_noise(model(), ROUNDING, 1e-3, own) is own


@pytest.mark.parametrize(
    "precision", [-1, float("nan"), float("inf"), "little", [1], 1j, torch.ones(2)], ids=str
)
def test_a_precision_that_is_none_is_refused(precision):
    with pytest.raises(ValueError, match="relative_std must be a finite number"):
        declared_noise(model(), ROUNDING, precision)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (1e-3, "must be a Noise, got float"),
        ({"relative_std": 1.0}, "must be a Noise, got dict"),
        (Noise(std={"fc.bias": 1.0}), "names 'fc.bias'"),
        (Noise(std={"2.bias": -1.0}), "2.bias must be 0 or more"),
        (Noise(std={"2.bias": float("nan")}), "2.bias must be 0 or more"),
        (Noise(std={"2.bias": torch.ones(2)}), r"2.bias does not fit its shape \(3,\)"),
        (Noise(std={"2.bias": torch.ones(1, 1, 3)}), "2.bias does not fit"),
    ],
    ids="number dict name negative NaN shape axes".split(),
)
def test_a_noise_that_is_none_is_refused(noise, message):
    with pytest.raises(ValueError, match=message):
        declared_noise(model(), ROUNDING, None, noise)


@pytest.mark.parametrize(
    "value_range",
    [None, 5, (1, 0), (0, 0), (0,), (0, 1, 2), (0, float("inf")), (float("nan"), 1), (None, 1)],
    ids=str,
)
def test_a_value_range_that_is_none_is_refused(value_range):
    assert check_value_range((-1, 1)) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="two finite numbers"):
        check_value_range(value_range)


# Where an attack is prepared and asked

IMAGES = uniform(2, 1, 8, 8)


@pytest.mark.parametrize("constraints", [None, 5, "", [], {"auto"}, [None, "auto"]], ids=str)
def test_constraints_that_are_none_are_refused(constraints):
    with pytest.raises(ValueError, match="constraints"):
        Attack(network(), (1, 8, 8), constraints=constraints)


@pytest.mark.parametrize("options", [{"relative_std": -1}, {"relative_std": float("nan")}], ids=str)
def test_an_attack_refuses_what_cannot_be_a_precision(options):
    with pytest.raises(ValueError, match="number"):
        Attack(network(), (1, 8, 8))(observe(network(), IMAGES), **options)


def test_an_attack_takes_what_autograd_returns():
    layers = network()
    loss = nn.functional.cross_entropy(layers(IMAGES[:1]), torch.tensor([3]))
    found = Attack(layers, (1, 8, 8))(torch.autograd.grad(loss, list(layers.parameters())))
    torch.testing.assert_close(found.images, IMAGES[:1], rtol=0, atol=1e-8)


AGAIN = {"pickle": lambda o: pickle.loads(pickle.dumps(o)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("constraints", ["auto", "paper"])
def test_an_attack_and_its_answer_can_be_pickled_and_copied(again, constraints):
    """The factors of a sparse system cannot: they are made anew."""
    layers = network(nn.LeakyReLU)
    attack, gradients = Attack(layers, (1, 8, 8), constraints=constraints), observe(layers, IMAGES)
    found = attack(gradients)
    assert torch.equal(again(attack)(gradients).images, found.images)
    assert torch.equal(again(found).images, found.images)
    assert again(found).unique.tolist() == found.unique.tolist()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_attack_works_where_gradients_are_switched_off(mode):
    found = Attack(network(), (1, 8, 8))(observe(network(), IMAGES))
    with mode():
        layers, images = network(), IMAGES.clone()
        again = Attack(layers, (1, 8, 8))(per_sample_gradients(layers, images, torch.arange(2)))
    assert torch.equal(again.images, found.images)
    assert not again.images.is_inference()
