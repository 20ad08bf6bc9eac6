"""Batches beyond the number of classes: disaggregated at a hidden ReLU layer."""

import pytest
import torch
from small import normal, relative_error, uniform
from torch import nn

from rconv import Attack
from rconv.attack import hidden_layer
from rconv.attack.hidden_batch import hidden_equations
from rconv.attack.hidden_layer import disaggregate_hidden
from rconv.attack.hidden_state import low_rank
from rconv.audit import batch_limits
from rconv.lab.metrics import matched
from rconv.observe.noise import Noise, Observed

SHAPE = (1, 12, 12)
CLASSES = 10
EXACT = "donot_use_mm_for_euclid_dist"


def mlp(width=160, activation=nn.ReLU, above=(), pixels=144, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(pixels, width), activation()]
    for size in above:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, CLASSES)).double()


def batch(count, seed=0):
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return uniform(count, *SHAPE, seed=seed), labels


def averaged(model, x, labels, reduction="mean"):
    dtype = next(model.parameters()).dtype
    loss = nn.functional.cross_entropy(model(x.to(dtype)), labels, reduction=reduction)
    return torch.autograd.grad(loss, list(model.parameters()))


def errors(found, x):
    order = matched(found.images, x)
    distance = (found.images[order] - x).flatten(1).norm(dim=1)
    return order, distance / x.flatten(1).norm(dim=1)


CASES = [
    ({}, "mean", 24, 1e-10, "as it is"),
    ({}, "sum", None, 1e-10, "a sum, its size read from the gradient"),
    ({"activation": lambda: nn.LeakyReLU(0.1)}, "mean", 24, 1e-10, "LeakyReLU"),
    ({"above": (30,)}, "mean", 24, 1e-10, "another hidden layer above"),
    ({"dtype": torch.float32}, "mean", 24, 1e-3, "float32"),
]


@pytest.mark.parametrize(
    ("options", "reduction", "told", "bar", "why"), CASES, ids=[case[-1] for case in CASES]
)
def test_a_two_layer_perceptron_gives_up_more_images_than_it_has_classes(
    options, reduction, told, bar, why
):
    dtype = options.pop("dtype", torch.float64) if "dtype" in options else torch.float64
    model, (x, labels) = mlp(**options).to(dtype), batch(24)
    found = Attack(model, SHAPE)(averaged(model, x, labels, reduction), batch=told)
    assert len(found.images) == 24
    order, error = errors(found, x)
    assert error.max() < bar and found.unique.all()
    assert torch.equal(found.labels[order], labels)
    assert (error < 5 * found.expected_error[order] + 1e-12).all()
    options["dtype"] = dtype


def test_an_image_that_is_there_twice_comes_back_twice_and_could_be_the_mean_of_two():
    model, (x, labels) = mlp(), batch(20)
    x[1], labels[1] = x[0], labels[0]
    found = Attack(model, SHAPE)(averaged(model, x, labels), batch=20)
    order, error = errors(found, x)
    assert error.max() < 1e-10 and found.unique[order].tolist() == [False] * 2 + [True] * 18
    assert "several samples" in found.diagnostics[int(order[0])]


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-6, 1e-13])
def test_two_images_that_are_nearly_alike_never_pass_for_one_wrong_one(distance):
    """Where no unit distinguishes them both are missing; where they are closer, merged."""
    model, (x, labels) = mlp(), batch(20)
    x[1], labels[1] = x[0] + distance * normal(*SHAPE), labels[0]
    found = Attack(model, SHAPE)(averaged(model, x, labels), batch=20)
    nearest = torch.cdist(found.images.flatten(1), x.flatten(1), compute_mode=EXACT).amin(dim=1)
    assert found.unique.sum() >= 18 and nearest[found.unique].max() < 1e-9


def test_what_is_not_found_is_reported_and_what_is_found_is_right():
    """One image with two labels fits no label, so that it stays in what is left."""
    model, (x, labels) = mlp(), batch(20)
    x[1], labels[1] = x[0], (labels[0] + 1) % CLASSES
    found = Attack(model, SHAPE)(averaged(model, x, labels), batch=20)
    sure = found.unique
    nearest = torch.cdist(found.images.flatten(1), x.flatten(1)).amin(dim=1)
    assert 10 <= sure.sum() <= 18 and nearest[sure].max() < 1e-5
    assert all(bool(own) != bool(doubt) for own, doubt in zip(sure, found.diagnostics, strict=True))
    assert not found.images[~sure].any()


def test_too_many_samples_are_refused_by_rank_and_too_narrow_a_layer_finds_none_wrong():
    model, (x, labels) = mlp(width=40), batch(30)
    sent = averaged(model, x, labels)
    found = Attack(model, SHAPE)(sent, batch=30)
    nearest = torch.cdist(found.images.flatten(1), x.flatten(1)).amin(dim=1)
    assert (nearest[found.unique] < 1e-5).all() and not found.unique.all()
    assert "more samples than 9" in Attack(model, SHAPE)(sent, batch=9).diagnostics[0]


def equations_of(model, sent):
    attack = Attack(model, SHAPE)
    names = [name for name, _ in model.named_parameters()]
    gradients = {name: g[None] for name, g in zip(names, sent, strict=True)}
    head = attack.network.head
    bias = attack.model.get_parameter(f"{head.name}.bias").detach()
    return hidden_equations(head, bias, Observed.of(gradients, Noise(1e-15)))


def test_a_stall_is_restarted_from_patterns(monkeypatch):
    """Centred inputs: every unit fires for about half of the samples, none for one alone."""
    model = mlp(width=400)
    x, labels = normal(24, *SHAPE), batch(24)[1]
    equations = equations_of(model, averaged(model, x, labels))
    found = disaggregate_hidden(equations, 24)
    inputs = found.q @ equations.factors.right[:, :-1]
    assert found.complete and torch.cdist(x.flatten(1), inputs).amin(dim=1).max() < 1e-5
    nothing = lambda equations, left, found: (left.rows[:0], found.labels[:0])  # noqa: E731
    monkeypatch.setattr(hidden_layer, "restarted", nothing)
    assert not disaggregate_hidden(equations, 24).complete


def test_convolutions_below_are_solved_for_every_sample():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, 1, 1), nn.LeakyReLU(0.2), nn.Flatten(),
        nn.Linear(6 * 144, 160), nn.ReLU(), nn.Linear(160, CLASSES),
    ).double()  # fmt: skip
    x, labels = batch(14)
    found = Attack(model, SHAPE)(averaged(model, x, labels), batch=14)
    assert found.unique.all() and errors(found, x)[1].max() < 1e-8
    # With samples missing, each image's own outputs are all that is used.
    x[1], labels[1] = x[0], (labels[0] + 1) % CLASSES
    part = Attack(model, SHAPE)(averaged(model, x, labels), batch=14)
    nearest = torch.cdist(part.images.flatten(1), x.flatten(1)).amin(dim=1)
    assert part.unique.sum() >= 8 and nearest[part.unique].max() < 1e-5


def test_a_low_rank_is_found_without_the_whole_decomposition():
    matrix = normal(700, 130) @ normal(130, 600, seed=1)
    u, s, v = low_rank(matrix, 1e-12)
    assert relative_error((u * s) @ v, matrix) < 1e-12
    assert int((s > 1e-9).sum()) == 130 and len(s) < 600


def test_the_audit_finds_the_largest_batch_by_trial():
    limit = batch_limits(mlp(width=64), SHAPE)[0]
    assert limit.largest >= 9 and (limit.failed or 33) > limit.largest
    model, (x, labels) = mlp(width=64), batch(limit.largest)
    found = Attack(model, SHAPE)(averaged(model, x, labels), batch=limit.largest)
    assert found.unique.double().mean() > 0.5
