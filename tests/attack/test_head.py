"""Head: the input of the first Linear, with and without a bias, whatever the softmax saturates."""

import math

import pytest
import scipy.special
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small import SEEDS, normal, relative_error, uniform

from rconv.attack import head as scale
from rconv.attack.head import head_input, rank_one
from rconv.model.heads import Head
from rconv.observe.noise import Noise


def head_of(classes, features, bias=True, seed=0):
    return Head("fc", normal(classes, features, seed=seed), bias, True, "fc.bias" if bias else None)


def with_bias(v, back):
    """Gradients of a Linear with inputs v (N, n) and output derivatives (N, K)."""
    return {"fc.weight": back[:, :, None] * v[:, None, :], "fc.bias": back}


def softmax_gradient(logits, label):
    """Softmax minus one-hot without cancellation: the label's entry is minus the others' sum."""
    gradient = torch.softmax(logits, dim=0)
    gradient[label] = 0
    gradient[label] = -gradient.sum()
    return gradient


@given(SEEDS, st.integers(1, 4), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_with_a_bias_the_input_is_read_off(seed, images, classes, features):
    v, back = normal(images, features, seed=seed), normal(images, classes, seed=seed + 1)
    found = head_input(head_of(classes, features), with_bias(v, back))
    torch.testing.assert_close(found.value, v, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.cotangent, back)
    assert found.image.tolist() == list(range(images))
    assert found.known.all()
    assert (found.residual < 1e-14).all()


ROWS = [
    ([0.0, 0.3, 0.0, -0.3], "zero bias gradients of saturated classes"),
    ([0.0, 0.0, 0.0, -1e-9], "one small row is left"),
    ([1e-200, 1e-210, 1e-190, -1e-190], "every row has an underflowing square"),
    ([1e-310, 0.0, 0.0, -1e-310], "subnormal rows"),
    ([1e200, 1e180, 0.0, -1e200], "every row has an overflowing square"),
    ([1e-315, 0.1, 0.2, -0.3], "a subnormal row, which R-CONV's code divides by if it is the last"),
    ([0.1, 0.2, -0.3, 1e-315], "and here it is the last"),
]


@pytest.mark.parametrize(("back", "why"), ROWS, ids=[row[1] for row in ROWS])
def test_rows_that_vanish_or_underflow(back, why):
    back = torch.tensor([back], dtype=torch.float64)
    v = normal(1, 6)
    found = head_input(head_of(4, 6), with_bias(v, back))
    assert relative_error(found.value, v) < 1e-13
    assert found.known.all()


def test_noise_in_one_row_is_averaged_over_all_rows():
    """Least squares weighs a row by the square of its bias gradient."""
    v, back = normal(1, 6), torch.tensor([[1.0, 1e-6, -1.0]]).double()
    gradients = with_bias(v, back)
    gradients["fc.weight"][:, 1] += 1e-7
    found = head_input(head_of(3, 6), gradients)
    assert relative_error(found.value, v) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_that_are_zero_tell_nothing_and_spoil_no_neighbour(bias):
    v, back = normal(3, 6), normal(3, 4, seed=1)
    back = torch.stack([softmax_gradient(row, 2) for row in back])
    back[1] = 0
    gradients = with_bias(v, back)
    head = head_of(4, 6, bias)
    if not bias:
        logits = v @ head.weight.T
        back = torch.stack([softmax_gradient(row, 2) for row in logits])
        back[1] = 0
        gradients = {"fc.weight": back[:, :, None] * v[:, None, :]}
    found = head_input(head, gradients)
    assert found.known.tolist() == [True, False, True]
    assert found.image.tolist() == [0, 1, 2]
    assert (found.value[1] == 0).all()
    assert relative_error(found.value[[0, 2]], v[[0, 2]]) < 1e-12


def test_the_residual_is_not_small_where_a_step_saw_two_images():
    v, back = normal(2, 6), normal(2, 4, seed=1)
    one = with_bias(v, back)
    mixed = {name: g.sum(0, keepdim=True) for name, g in one.items()}
    assert head_input(head_of(4, 6), mixed).residual.item() > 0.1


def test_an_input_of_zeros_is_known():
    found = head_input(head_of(4, 6), with_bias(torch.zeros(1, 6).double(), normal(1, 4)))
    assert found.known.all() and (found.value == 0).all()
    assert found.residual.item() == 0


def no_bias_error(classes, seed, spread, label):
    """Relative error of the candidate, where the logits have this spread.

    There may be two of them where only two classes have a probability to speak of.
    """
    head = head_of(classes, 12, bias=False, seed=seed)
    v = normal(12, seed=seed + 1) * spread
    back = softmax_gradient(head.weight @ v, label)
    if back.abs().max() < 1e-250:
        return 0.0  # nothing is left of the gradient
    found = head_input(head, {"fc.weight": (back[:, None] * v)[None]})
    if len(found.image) > 1:
        assert len(found.image) == 2 and back.abs().sort().values[-3] < 1e-6 * back.abs().max()
    errors = [relative_error(value, v) for value in found.value]
    best = errors.index(min(errors))
    assert found.image.tolist() == [0] * len(errors)
    # A softmax of logits of a thousand is right to a thousand roundings.
    assert found.residual.max().item() < 1e-12
    size = back.abs().max()  # down to 1e-250, which has no square
    assert relative_error(found.cotangent[best] / size, back / size) < 1e-9
    return errors[best]


def test_two_classes_that_leave_the_third_nothing_have_two_scales():
    """The third class has a probability of 1e-13: a second root of the label's row fits too."""
    assert no_bias_error(3, 4727, 10**1.25, 2) < 1e-9


def test_a_scale_is_found_beyond_logits_that_count_for_nothing():
    """The label has 531, the next class 429, and another one -1089."""
    assert no_bias_error(10, 1797, 100.0, 0) < 1e-9


@given(SEEDS, st.sampled_from([3, 10, 100]), st.floats(-3, 2), st.data())
@settings(max_examples=25, deadline=None)
def test_without_a_bias_cross_entropy_gives_the_scale(seed, classes, exponent, data):
    """From logits of 1e-3, where softmax is flat, to 100, where only two classes are left."""
    label = data.draw(st.integers(0, classes - 1))
    assert no_bias_error(classes, seed, 10.0**exponent, label) < 1e-9


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_without_a_bias_a_third_class_of_1e_20_still_tells_the_sign(seed, label):
    """Two entries are equal in size to the last bit; the label's is the only negative one."""
    assert no_bias_error(3, seed, 10.0, label) < 1e-9


def test_without_a_bias_classes_that_underflow_to_zero_still_tell_the_sign():
    """Only two entries are left, but the zeros say that the other classes are impossible."""
    head = Head("fc", torch.tensor([[1.0, 0], [0.9, 0], [-9.0, 1]]).double(), False, True, None)
    v = torch.tensor([100.0, 3.0]).double()
    back = softmax_gradient(head.weight @ v, 1)
    assert back[2] == 0 and back[1] < 0
    found = head_input(head, {"fc.weight": (back[:, None] * v)[None]})
    assert relative_error(found.value[0], v) < 1e-9


def test_without_a_bias_float32_saturation_is_survived():
    """The other rows keep their digits; the label's is minus their sum, whatever it rounds to."""
    for seed in range(30):
        weight, v = normal(3, 12, seed=seed).float(), 20 * normal(12, seed=seed + 99).float()
        own = weight.clone().requires_grad_()
        label = (weight @ v).argmax() if seed % 2 else torch.tensor(seed % 3)
        torch.nn.functional.cross_entropy((own @ v)[None], label[None]).backward()
        if own.grad.any():
            head = Head("fc", weight.double(), False, True, None)
            found = head_input(head, {"fc.weight": own.grad.double()[None]})
            assert nearest(found, v.double()) < 1e-3


def nearest(found, v):
    return min(relative_error(value, v) for value in found.value)


def slope(margin):
    """d log(t σ(t·m)) / d log t: where it is 0, the scale's equation turns and roots meet."""
    return 1 + margin * torch.sigmoid(-margin).item()


def two_classes(seed, exponent, label):
    head = head_of(2, 12, bias=False, seed=seed)
    v = normal(12, seed=seed + 1) * 10.0**exponent
    z = head.weight @ v
    back = softmax_gradient(z, label)
    return head, v, back, slope(z[1 - label] - z[label])


def one_logit(seed, exponent, label):
    head = head_of(1, 12, bias=False, seed=seed)
    v = normal(12, seed=seed + 1) * 10.0**exponent
    z, sign = head.weight @ v, 1 - 2 * label
    return head, v, sign * (sign * z).sigmoid(), slope((sign * z)[0])


CASES = pytest.mark.parametrize("case", [two_classes, one_logit])


@CASES
@given(SEEDS, st.floats(-3, 2), st.integers(0, 1))
@settings(max_examples=25, deadline=None)
def test_with_two_classes_or_one_logit_the_truth_is_among_the_candidates(
    case, seed, exponent, label
):
    head, v, back, turning = case(seed, exponent, label)
    assume(back.abs().max() > 1e-250 and abs(turning) > 0.1)
    gradients = {"fc.weight": (back[:, None] * v)[None]}
    found = head_input(head, gradients)
    assert nearest(found, v) < 1e-9
    check_candidates(found, head, gradients)


@pytest.mark.parametrize(
    ("seed", "exponent", "label"), [(0, 2.0**-24, 0), (157460, -0.14862323998774407, 0)]
)
def test_a_root_is_found_where_lamberts_w_does_not_settle_in_the_last_digit(seed, exponent, label):
    head, v, back, _ = two_classes(seed, exponent, label)
    assert nearest(head_input(head, {"fc.weight": (back[:, None] * v)[None]}), v) < 1e-9


def test_a_gradient_whose_eigenvalues_lapack_does_not_find_is_told_all_the_same(monkeypatch):
    g = normal(100, 1) * normal(12, seed=1)
    left, direction = rank_one(g)

    def fails(_):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    again = rank_one(g)
    torch.testing.assert_close(again[0], left)
    torch.testing.assert_close(again[1], direction)


@CASES
@pytest.mark.parametrize("distance", [1e-3, 1e-4])
def test_roots_that_nearly_meet_are_both_found(case, distance):
    """Logits near those at which the gradient is largest, |m| = 1.2785."""
    head, v, back, _ = case(3, 0.0, 0)
    margin = (head.weight @ v) if len(back) == 1 else (head.weight @ v)[1:] - (head.weight @ v)[:1]
    v = v * -(1.2784645427610738 + distance) / margin
    z = head.weight @ v
    back = softmax_gradient(z, 0) if len(back) == 2 else z.sigmoid()
    found = head_input(head, {"fc.weight": (back[:, None] * v)[None]})
    assert nearest(found, v) < 1e-9


@pytest.mark.parametrize("branch", [0, -1])
@pytest.mark.parametrize("size", [1 - 1e-9, 0.9, 1e-3, 1e-30])
def test_where_scipy_gives_no_number_the_equation_does(monkeypatch, size, branch):
    argument = -size * math.exp(-1)
    expected = scale._lambert_w(argument, branch)
    monkeypatch.setattr(scipy.special, "lambertw", lambda *_, **__: complex(math.nan))
    found = scale._lambert_w(argument, branch)
    assert found == pytest.approx(expected, rel=1e-11)
    assert math.log(-found) + found == pytest.approx(math.log(-argument), rel=1e-14)


def check_candidates(found, head, gradients):
    """Every candidate explains the gradient, and its logits give its cotangent."""
    assert 1 <= len(found.value) <= 4
    for value, back in zip(found.value, found.cotangent, strict=True):
        own = back[:, None] * value
        torch.testing.assert_close(own, gradients["fc.weight"][0], rtol=1e-9, atol=1e-300)
        z = head.weight @ value
        if len(z) == 1:
            expected = -(-z).sigmoid() if back < 0 else z.sigmoid()
        else:
            expected = softmax_gradient(z, int(back.argmin()))
        torch.testing.assert_close(back, expected, rtol=1e-7, atol=0)


def test_candidates_of_several_images_name_their_image():
    head = head_of(1, 5, bias=False)
    v = normal(3, 5, seed=1)
    back = (v @ head.weight.T).sigmoid()
    found = head_input(head, {"fc.weight": back[:, :, None] * v[:, None, :]})
    assert sorted(set(found.image.tolist())) == [0, 1, 2]
    assert found.image.tolist() == sorted(found.image.tolist())
    for i in range(3):
        own = found.value[found.image == i]
        assert min(relative_error(value, v[i]) for value in own) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_rows_with_a_noise_of_their_own_are_weighted_by_it(seed):
    """The standard deviation of each entry is that of the error; without weights it is larger."""
    head, v, back = head_of(10, 400), normal(1, 400, seed=seed), normal(1, 10, seed=seed + 9)
    exact = with_bias(v, back)
    deviations = {
        name: 1e-6 * 10 ** (2 * uniform(*g.shape, seed=seed + n)) for n, (name, g) in
        enumerate(exact.items())
    }  # fmt: skip
    sent = {n: g + deviations[n] * normal(*g.shape, seed=seed + 5) for n, g in exact.items()}
    found = head_input(head, sent, Noise(std=deviations))
    error, alone = found.value - v, head_input(head, sent).value - v
    assert 0.8 < (error / found.error).square().mean().sqrt() < 1.25
    assert alone.norm() > 2 * error.norm()


def test_a_noise_of_one_size_is_no_reason_to_weigh():
    gradients = with_bias(normal(1, 6), normal(1, 4, seed=1))
    found = head_input(head_of(4, 6), gradients, Noise(relative_std=1e-3))
    assert found.error is None
    assert torch.equal(found.value, head_input(head_of(4, 6), gradients).value)


def test_gradients_of_nothing_but_noise_tell_nothing():
    gradients = {name: g * 0 for name, g in with_bias(normal(1, 6), normal(1, 4)).items()}
    told = {name: torch.full_like(g, 1e-3) for name, g in gradients.items()}
    found = head_input(head_of(4, 6), gradients, Noise(std=told))
    assert not found.known.any() and not found.value.any() and found.error.isfinite().all()
