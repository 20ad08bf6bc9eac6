"""The plan: which equations come first, told by shapes and weights alone; the audit asks it too."""

import pytest
import torch
from hypothesis import given, settings
from small import geometries, network, observe, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.plan import LayerPlan, gradients_suffice, kinds_per_layer
from rconv.audit import WEIGHT, audit, class_bound
from rconv.lab.architectures import build
from rconv.linalg import dense
from rconv.model.read import read


@given(geometries(largest=6))
@settings(max_examples=60, deadline=None)
def test_gradients_suffice_where_the_bound_by_classes_is_the_number_of_pixels(geometry):
    assert gradients_suffice(geometry) <= (class_bound(geometry) == geometry.pixels)


STAGES = read(build("lenet_main", activation="Tanh"), (3, 32, 32)).stages


def test_the_first_layer_is_by_weight_and_the_others_by_gradient_where_these_suffice():
    plans = [LayerPlan(stage, first=stage is STAGES[0]) for stage in STAGES]
    assert [plan.cheapest(True, 1e-16) for plan in plans] == ["weight"] + ["gradient"] * 3
    assert plans[0].cheapest(False, 1e-16) == "hybrid"  # saturated outputs, 12 filters


def test_a_first_layer_that_the_noise_drowns_takes_more_rows():
    """The square system of 12 filters has a condition of a million."""
    plan = LayerPlan(STAGES[0], first=True)
    assert plan.system.spectrum.condition > 1e6
    assert plan.cheapest(True, 1e-9) == "weight"
    assert plan.cheapest(True, 1e-5) == "hybrid"


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
    assert LayerPlan(stage, first=True).system is None


@pytest.mark.parametrize("kind", ["hybrid", "weight"])
def test_dense_systems_that_are_too_large_are_refused_at_once(monkeypatch, kind):
    stage = read(network(nn.ReLU), (1, 8, 8)).stages[1]
    monkeypatch.setattr(dense, "MAX_UNKNOWNS", stage.geometry.unknowns - 1)
    with pytest.raises(ValueError, match="dense system of 384 unknowns"):
        LayerPlan(stage, kind)
    plan = LayerPlan(stage, "auto")
    assert not plan.affordable and plan.cheapest(False, 1e-16) == "gradient"


def test_a_layer_that_is_too_large_for_a_dense_system_keeps_what_it_can_have(monkeypatch):
    """Gradient constraints of short rank, and weight constraints that noise drowns in part."""
    model, images = network(nn.ReLU, filters=(1, 10)), uniform(1, 1, 8, 8)
    gradients = observe(model, images)
    assert Attack(model, (1, 8, 8))(gradients).layers[-1].constraints == ("hybrid",)
    first = LayerPlan(STAGES[0], first=True)
    monkeypatch.setattr(dense, "MAX_UNKNOWNS", 10)
    found = Attack(model, (1, 8, 8))(gradients)
    assert found.layers[-1].constraints == ("gradient",)
    assert found.layers[-1].open.item() > 0 and not found.unique.any()
    assert first.cheapest(True, 1e-5) == "weight"


@pytest.mark.parametrize("constraints", [None, 5, "papers", ["gradient", None]])
def test_constraints_that_are_none_of_them_are_refused(constraints):
    with pytest.raises(ValueError, match="unknown constraints"):
        kinds_per_layer(constraints, 2)
