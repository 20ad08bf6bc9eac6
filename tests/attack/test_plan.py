"""The plan: which equations come first, told by shapes and weights alone; the audit asks it too."""

import pytest
import torch
from hypothesis import given, settings
from small import geometries, network, observe, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.map_problem import is_better, is_unsure
from rconv.attack.plan import LayerPlan, gradients_suffice, kinds_per_layer
from rconv.audit import WEIGHT, audit, class_bound
from rconv.lab.architectures import build
from rconv.linalg import dense
from rconv.linalg.solution import Solution
from rconv.model.read import read


@given(geometries(largest=6))
@settings(max_examples=60, deadline=None)
def test_gradients_suffice_where_the_bound_by_classes_is_the_number_of_pixels(geometry):
    assert gradients_suffice(geometry) <= (class_bound(geometry) == geometry.pixels)


STAGES = read(build("lenet_main", activation="Tanh"), (3, 32, 32)).stages


def test_the_first_layer_is_by_weight_and_the_others_by_gradient_where_these_suffice():
    plans = [LayerPlan(stage, first=stage is STAGES[0]) for stage in STAGES]
    assert [plan.weights_determine(1e-16) for plan in plans] == [True] + [False] * 3
    assert [gradients_suffice(stage.geometry) for stage in STAGES] == [False] + [True] * 3


def test_a_first_layer_that_the_noise_drowns_takes_more_rows():
    """The square system of 12 filters has a condition of a million."""
    plan = LayerPlan(STAGES[0], first=True)
    assert plan.output.factor.spectrum.condition > 1e6
    assert plan.weights_determine(1e-9) and not plan.weights_determine(1e-5)


def wide(filters):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.Tanh(), nn.Conv2d(12, filters, 1), nn.Tanh(),
        nn.Flatten(), nn.Linear(filters * 64, 10),
    ).double().eval()  # fmt: skip


def test_weight_constraints_of_a_later_layer_are_found_by_attack_and_audit_alike():
    """1×1 filters give one gradient equation each, and 24 outputs for 12 inputs a position."""
    model, images = wide(24), uniform(2, 3, 16, 16)
    found = Attack(model, (3, 16, 16))(observe(model, images))
    assert found.layers[1].constraints == ("weight",) * 2
    assert found.unique.all() and (found.images - images).abs().max() < 1e-6
    assert {a.name: a.verdict for a in audit(model, (3, 16, 16))}["2"] == WEIGHT


def test_the_audit_promises_no_weight_constraints_that_the_attack_does_not_take():
    model, images = wide(10), uniform(1, 3, 16, 16)
    found = Attack(model, (3, 16, 16))(observe(model, images))
    verdicts = {a.name: a.verdict for a in audit(model, (3, 16, 16))}
    assert (verdicts["2"] == WEIGHT) == (found.layers[1].constraints == ("weight",))


def test_relu_has_no_weight_system():
    stage = read(network(nn.ReLU), (1, 8, 8)).stages[0]
    assert LayerPlan(stage, first=True).output.factor is None


def test_a_layer_that_is_too_large_for_a_dense_system_takes_the_same_equations(monkeypatch):
    model, images = network(nn.ReLU, filters=(1, 10)), uniform(1, 1, 8, 8)
    gradients = observe(model, images)
    first = LayerPlan(STAGES[0], first=True)
    monkeypatch.setattr(dense, "MAX_UNKNOWNS", 10)
    found = Attack(model, (1, 8, 8))(gradients)
    assert found.layers[-1].constraints == ("hybrid",)
    assert found.layers[-1].open.item() > 0 and not found.unique.any()
    assert not first.affordable and first.weights_determine(1e-5)


@pytest.mark.parametrize("constraints", [None, 5, "papers", ["gradient", None]])
def test_constraints_that_are_none_of_them_are_refused(constraints):
    with pytest.raises(ValueError, match="unknown constraints"):
        kinds_per_layer(constraints, 2)


def answer(rank, error):
    """Of one image to equations in 768 unknowns."""
    one, rank = torch.ones(1).double(), torch.tensor([rank])
    error = torch.tensor([error], dtype=torch.float64)
    return Solution(torch.zeros(1, 768), rank, one, one, one, error, rank, ("",), ("",))


UNSURE = [
    # rank, error, noise from above: whether more equations are tried
    (768, 1e-8, 1e-12, False, "exact enough, whatever the growth"),
    (768, 5e-7, 1e-8, True, "the equations amplify"),
    (768, 5e-7, 4e-7, False, "they do not"),
    (768, 1e-5, 9e-6, True, "noisy: every equation helps"),
    (768, 1.0, 1.0, False, "all is lost above"),
    (767, 1e-15, 1e-15, True, "short of rank"),
]


@pytest.mark.parametrize(
    ("rank", "error", "noise", "more", "why"), UNSURE, ids=[u[-1] for u in UNSURE]
)
def test_more_equations_are_tried_where_they_can_help(rank, error, noise, more, why):
    noise = torch.tensor([noise], dtype=torch.float64)
    assert is_unsure(answer(rank, error), 768, noise).tolist() == [more]


def test_of_two_answers_that_of_more_rank_is_better_then_that_of_less_error():
    own = answer(700, 1e-3)
    better = [is_better(answer(*other), own) for other in [(701, 1.0), (700, 1e-4)]]
    worse = [is_better(answer(*other), own) for other in [(699, 0.0), (700, 1e-2), (700, 1e-3)]]
    assert all(better) and not any(worse)
