"""Batches: the average of several images' gradients, taken apart and solved for all of them."""

from dataclasses import replace

import pytest
import torch
from small import normal, relative_error, uniform, written_out
from torch import nn

from rconv import Attack, UnsupportedModelError
from rconv.attack.batch_head import HeadEquations, disaggregate
from rconv.attack.label_inference import label_counts
from rconv.data.datasets import load
from rconv.equations.conv_system import conv_system
from rconv.lab.metrics import matched
from rconv.linalg.dense import solve_dense
from rconv.linalg.iterative import solve_iterative
from rconv.model.build import IDENTITY, stage_of
from rconv.observe.observation import per_sample_gradients

SHAPE = (3, 8, 8)
EPS = 2.0**-53


def head_gradient(labels, classes, features=60, seed=0):
    """Summed gradient of a softmax head, [V c] and the features with their 1."""
    matrix = (uniform(classes, features + 1, seed=seed) * 2 - 1) / features**0.5
    v = torch.cat([normal(len(labels), features, seed=seed + 1).relu(), normal(len(labels), 1)], 1)
    v[:, -1] = 1
    z = torch.softmax(v @ matrix.T, dim=1) - nn.functional.one_hot(labels, classes)
    return z.T @ v, matrix, v


HEADS = [
    ([3, 7], 10, "two"),
    ([0, 1, 2, 3, 4, 5], 10, "six of ten classes"),
    (list(range(0, 100, 7)), 100, "fifteen of a hundred"),
    ([4, 4, 1], 10, "two of one label"),
]


@pytest.mark.parametrize(("labels", "classes", "why"), HEADS, ids=[row[2] for row in HEADS])
def test_the_average_of_a_head_is_taken_apart(labels, classes, why):
    labels = torch.tensor(labels)
    gradient, matrix, v = head_gradient(labels, classes)
    found = disaggregate(matrix, gradient, len(labels), 1e-13)
    assert found.residual < 1e-13
    order = torch.cdist(v, found.features).argmin(dim=1)
    assert relative_error(found.features[order], v) < 1e-9
    assert torch.equal(found.labels[order], labels)


@pytest.mark.arithmetic
@pytest.mark.parametrize("seed", range(6))
def test_a_feature_that_is_zero_stays_zero(seed):
    """The error of a feature is rounding of that feature in all samples, and not of their bias.

    Behind convolutions with PyTorch's initialisation features are small beside the 1 of the bias.
    Through the singular vectors, which mix the two, zeros had 40 to 300 times this error, and some
    passed for active outputs of a ReLU.
    """
    labels, classes, size = torch.arange(8), 100, 1e-4
    _, matrix, v = head_gradient(labels, classes, features=2048, seed=seed)
    v[:, :-1] *= size
    z = torch.softmax(v @ matrix.T, dim=1) - nn.functional.one_hot(labels, classes)
    found = disaggregate(matrix, z.T @ v, 8, 3e-14)
    error = found.features[found.labels.argsort()].abs()
    # The condition of Z is 1.04, so what is left are the sums over the classes.
    limit = classes * EPS * v.norm(dim=0)
    assert (v == 0).sum() > 7000 and (error <= limit)[v == 0].all()


def test_label_counts_are_those_that_probabilities_allow():
    p = torch.tensor([0.1, 0.2, 1.1, 0.6], dtype=torch.float64)  # sums over two samples
    truth = torch.tensor([1, 0, 1, 0])
    found = [own.tolist() for own in label_counts(p - truth, 2, 1e-12)]
    assert truth.tolist() in found
    assert all(sum(own) == 2 and own[0] >= 1 for own in found)
    assert label_counts(p - 2 * truth, 2, 1e-12) == []


def batch_system(filters, told, seed=0):
    """Two maps with the rows of one convolution: some outputs and the shared gradient."""
    torch.manual_seed(seed)
    stage = stage_of("c", nn.Conv2d(2, filters, 3, 2, 1).double(), IDENTITY, (2, 6, 6))
    x, back = normal(2, 2, 6, 6, seed=seed), normal(2, filters, 3, 3, seed=seed + 1)
    output = stage.convolve(x)
    g = stage.geometry
    gradient = torch.nn.grad.conv2d_weight(x, stage.weight.shape, back, g.stride, g.padding)
    known = (uniform(*output.shape, seed=seed) < told).double()
    return conv_system(stage, back, gradient, output, known), x


@pytest.mark.parametrize(("filters", "told"), [(8, 0.9), (5, 0.4)], ids=["full", "short"])
def test_shared_rows_agree_with_their_matrix_and_both_solvers(filters, told):
    system, x = batch_system(filters, told)
    matrix = written_out(system)
    rows = normal(1, len(matrix), 1)
    torch.testing.assert_close(system.adjoint(rows)[0], matrix.T @ rows[0])
    torch.testing.assert_close(system.gram()[0], matrix.T @ matrix)
    alone = replace(system, blocks=system.blocks[1:])
    twice = alone.adjoint(alone.apply(x.reshape(1, -1, 1)))
    torch.testing.assert_close(alone.gram() @ x.reshape(1, -1, 1), twice)
    torch.testing.assert_close(system.apply(x.reshape(1, -1, 1)), system.rhs)
    scaled = system.scaled()
    dense, free = solve_dense(scaled, 1e-15), solve_iterative(scaled, 2)
    open_ = system.unknowns - int(torch.linalg.matrix_rank(matrix))
    assert int(dense.rank) == system.unknowns - open_
    assert bool(free.rank.sum() == system.unknowns) == (open_ == 0)
    if open_ == 0:
        assert relative_error(free.value.reshape(x.shape), x) < 1e-13
    else:  # what is open of a random vector tells how much is, roughly
        assert open_ / 3 < system.unknowns - int(free.rank.sum()) < 3 * open_ + 2


def network(activation=nn.LeakyReLU, filters=(8, 32), classes=10, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, filters[0], 3, padding=1), activation(),
        nn.Conv2d(filters[0], filters[1], 3, 2, 1), activation(),
        nn.Flatten(), nn.Linear(16 * filters[1], classes),
    ).double()  # fmt: skip


def averaged(model, images, labels, reduction="mean"):
    dtype = next(model.parameters()).dtype
    loss = nn.functional.cross_entropy(model(images.to(dtype)), labels, reduction=reduction)
    return torch.autograd.grad(loss, list(model.parameters()))


CASES = [
    (nn.LeakyReLU, "mean", 3, "as it is"),
    (nn.Sigmoid, "sum", 3, "a sum instead of a mean"),
    (nn.ReLU, "mean", None, "read from the gradient"),
]


@pytest.mark.parametrize(("activation", "reduction", "batch", "why"), CASES,
                         ids=[case[3] for case in CASES])  # fmt: skip
def test_all_images_of_a_batch_come_back(activation, reduction, batch, why):
    model, x, labels = network(activation), uniform(3, *SHAPE), torch.tensor([7, 2, 5])
    result = Attack(model, SHAPE)(averaged(model, x, labels, reduction), batch=batch)
    order = matched(result.images, x)
    error = (result.images[order] - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert error.max() < 1e-10
    assert result.unique.all()
    assert (error < 5 * result.expected_error[order]).all()
    assert torch.equal(result.labels[order], labels)
    assert result.gradient_residual.max() < 1e-12
    assert result.diagnostics == ("",) * 3


@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-10), (torch.float32, 1e-2)], ids=str)
def test_signs_close_what_a_batch_leaves_open(dtype, bar):
    """Six ReLU filters are too few for three digits, whose ink and ReLU outputs are sparse."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(384, 10)).to(dtype)
    digits = load("Digits", range(3), side=8)
    x, sent = digits.images.double(), averaged(model, digits.images.to(dtype), digits.labels)
    plain, closed = (Attack(model, (1, 8, 8), signs=on)(sent, batch=3) for on in (False, True))
    assert not plain.unique.any() and plain.layers[1].open.min() > 20
    assert closed.unique.all() and (closed.layers[1].signs == plain.layers[1].open).all()
    assert relative_error(closed.images[matched(closed.images, x)], x) < bar
    assert relative_error(plain.images[matched(plain.images, x)], x) > 0.1


def test_what_signs_leave_open_too_is_open_in_every_sample_that_it_may_be_of():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)]
    model, x = nn.Sequential(*layers).double(), uniform(4, 1, 8, 8)
    found = Attack(model, (1, 8, 8))(averaged(model, x, torch.arange(4)), batch=4)
    image = found.layers[-1]
    assert (image.open > 0).all() and not found.unique.any()
    low, high = found.interval
    own = x[torch.cdist(x.flatten(1), found.images.flatten(1)).argmin(dim=0)]
    assert (low - 1e-9 <= own).all() and (own <= high + 1e-9).all()


def test_single_precision_and_several_clients():
    model = network().float()
    x, labels = uniform(4, *SHAPE), torch.tensor([7, 2, 5, 5])
    parts = [averaged(model, x[cut], labels[cut]) for cut in (slice(0, 2), slice(2, 4))]
    result = Attack(model, SHAPE)([torch.stack(own) for own in zip(*parts, strict=True)], batch=2)
    for first in (0, 2):
        cut = slice(first, first + 2)
        own, truth = result.select([first, first + 1]), x[cut]
        error = relative_error(own.images[matched(own.images, truth)], truth)
        assert error < 1e-3
        assert error < 5 * own.expected_error.max()


@pytest.mark.parametrize("head", [True, False], ids=["everywhere", "not at the head"])
def test_noise_of_a_batch_that_was_not_declared_is_revealed(head):
    """The head separates the samples by the noise that it shows; then the layers are asked."""
    model, x, labels, level = network(nn.ReLU), uniform(3, *SHAPE), torch.tensor([7, 2, 5]), 1e-6
    sent = averaged(model, x, labels)
    for k, own in enumerate(sent if head else sent[:-2]):
        own += level * own.square().mean().sqrt() * normal(*own.shape, seed=k)
    result = Attack(model, SHAPE)(sent, batch=3)
    error = relative_error(result.images[matched(result.images, x)], x)
    assert level / 10 < error < 5 * result.expected_error.max() < 100 * level
    assert (result.revealed_noise > level / 3).all() and (result.revealed_noise < 3 * level).all()
    assert all("not declared" in why for why in result.diagnostics)


def twice(x, labels):
    return torch.stack([x[0], x[0], x[2]]), torch.tensor([7, 7, 5])


REFUSED = [
    (lambda x, labels: (x, labels), 2, "rank 3"),
    (lambda x, labels: (x, labels), 4, "rank 3"),
    (twice, 3, "rank 2"),
]


@pytest.mark.parametrize(("change", "batch", "reason"), REFUSED,
                         ids=["fewer", "more", "alike"])  # fmt: skip
def test_what_is_not_told_apart_says_so(change, batch, reason):
    model = network()
    x, labels = change(uniform(3, *SHAPE), torch.tensor([7, 2, 5]))
    result = Attack(model, SHAPE)(averaged(model, x, labels), batch=batch)
    assert not result.unique.any()
    assert not result.full_rank.any()
    assert all(reason in doubt for doubt in result.diagnostics)


def test_an_image_that_is_there_twice_comes_back_once():
    """As one sample with the factor 2, where the size of the batch is read from the rank."""
    model = network()
    x, labels = twice(uniform(3, *SHAPE), torch.tensor([7, 2, 5]))
    result = Attack(model, SHAPE)(averaged(model, x, labels), batch=None)
    assert result.unique.all() and sorted(result.labels.tolist()) == [5, 7]
    assert torch.cdist(result.images.flatten(1), x.flatten(1)).amin(dim=1).max() < 1e-6


@pytest.mark.parametrize("factors", [(0.3, 0.07), (0.2, 0.2)], ids=["unlike", "alike"])
def test_a_clipped_batch_is_separated(factors):
    """DP-SGD without noise: each sample's gradient has a factor that the attacker does not know."""
    model, x, labels = network(), uniform(2, *SHAPE), torch.tensor([7, 2])
    each = per_sample_gradients(model, x, labels)
    weights = torch.tensor(factors, dtype=torch.float64)
    sent = {name: torch.einsum("b,b...->...", weights, g) for name, g in each.items()}
    result = Attack(model, SHAPE)(sent, batch=2)
    order = matched(result.images, x)
    assert result.unique.all() and torch.equal(result.labels[order], labels)
    assert relative_error(result.images[order], x) < 1e-6


def test_the_derivative_with_factors_is_that_of_the_residual():
    labels = torch.tensor([3, 7])
    gradient, matrix, _ = head_gradient(labels, 10)
    equations = HeadEquations.of(matrix, gradient, 2, clipped=True)
    x = normal(6, seed=3)
    _, derivative = equations.residual(x, labels)
    expected = torch.autograd.functional.jacobian(lambda y: equations.residual(y, labels)[0], x)
    assert relative_error(derivative, expected) < 1e-12


def test_refusals_come_before_the_work():
    model, x = network(), uniform(1, *SHAPE)
    sent = averaged(model, x, torch.tensor([1]))
    for wrong, message in ((10, "at most 9 samples"), (0, "whole number")):
        with pytest.raises(ValueError, match=message):
            Attack(model, SHAPE)(sent, batch=wrong)
    deep = nn.Sequential(*network(), nn.Sigmoid(), nn.Linear(10, 10).double())
    with pytest.raises(UnsupportedModelError, match="not followed by the loss"):
        Attack(deep, SHAPE)(averaged(deep, x, torch.tensor([1])), batch=2)


def test_one_image_needs_no_other_attack():
    model, x = network(), uniform(1, *SHAPE)
    sent = averaged(model, x, torch.tensor([1]))
    one, read = (Attack(model, SHAPE)(sent, batch=batch) for batch in (1, None))
    assert torch.equal(one.images, read.images)
