"""Layers too large for a dense factorisation: the same equations, without a matrix."""

from dataclasses import replace

import pytest
import torch
from small import network, normal, observe, relative_error, uniform, written_out
from torch import nn

from rconv import Attack, ShortRankError
from rconv.attack.plan import LayerPlan
from rconv.audit import audit
from rconv.equations.conv_system import conv_system
from rconv.lab.false_positives import attack_random_networks
from rconv.linalg import dense
from rconv.linalg import solve as solver
from rconv.linalg.iterative import Runs, preconditioner, solve_iterative
from rconv.linalg.system import System
from rconv.model.build import IDENTITY, stage_of

SHAPE = (1, 8, 8)


@pytest.fixture
def few(monkeypatch):
    """Every layer counts as too large to be factored."""
    monkeypatch.setattr(dense, "MAX_UNKNOWNS", 10)
    for samples in solver.DENSE:
        monkeypatch.setitem(solver.DENSE, samples, 10)
    for module in ("rconv.linalg.solve", "rconv.attack.map_problem"):
        monkeypatch.setattr(f"{module}.CLASS", 4)
    for name, most in (("MAX_FILL", 0), ("MAX_UNKNOWNS", 10)):
        monkeypatch.setattr(f"rconv.equations.conv_output.{name}", most)


KINDS = [
    (nn.Tanh, "auto", "weight constraints in the first layer"),
    (nn.LeakyReLU, "weight", "as they are, whatever they are worth"),
    (nn.LeakyReLU, "gradient", "residue classes that are not factored either"),
    (nn.ReLU, "hybrid", "both, some outputs silent"),
    (nn.ReLU, "weight", "those of active outputs"),
]


@pytest.mark.parametrize(("activation", "kind", "why"), KINDS, ids=[k[-1] for k in KINDS])
def test_the_image_is_that_of_the_factorised_layers(monkeypatch, few, activation, kind, why):
    model, images = network(activation, filters=(10, 30)), uniform(2, *SHAPE)
    gradients = observe(model, images)
    found = Attack(model, SHAPE, constraints=kind)(gradients)
    monkeypatch.undo()
    factored = Attack(model, SHAPE, constraints=kind)(gradients)
    assert torch.equal(found.full_rank, factored.full_rank)
    assert found.full_rank.all() and found.unique.all()
    for own in (found, factored):
        assert relative_error(own.images, images) < 1e-9
        error = (own.images - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
        assert (error < 10 * own.expected_error).all()


@pytest.mark.parametrize("filters", [(1, 10), (10, 2)], ids=["first layer", "second"])
def test_what_is_short_of_rank_is_not_called_unique(few, filters):
    model, images = network(nn.ReLU, filters=filters), uniform(1, *SHAPE)
    attack, sent = Attack(model, SHAPE, signs=False), observe(model, images)
    found = attack(sent)
    assert not found.full_rank.any() and not found.unique.any()
    assert "rank" in found.diagnostics[0]
    with pytest.raises(ShortRankError):
        attack(sent, strict=True)


def test_a_large_layer_that_is_open_says_that_signs_were_not_tried(few, monkeypatch):
    monkeypatch.setattr("rconv.attack.diagnostics.MAX_UNKNOWNS", 10)
    found = Attack(network(nn.ReLU, filters=(1, 10)), SHAPE)
    assert "too large for signs" in found(observe(found.model, uniform(1, *SHAPE))).diagnostics[0]


def singular(columns, filters=8, seed=0):
    """Rows that do not see so many columns of the map: no output there, and no cotangent."""
    torch.manual_seed(seed)
    stage = stage_of("c", nn.Conv2d(2, filters, 3, 1, 1).double(), IDENTITY, (2, 8, 8))
    x, back = normal(1, 2, 8, 8, seed=seed), normal(1, filters, 8, 8, seed=seed + 1)
    told = torch.ones_like(back)
    if columns:
        told[..., -columns - 1 :] = 0
        back[..., -columns - 1 :] = 0
    g = stage.geometry
    gradient = nn.grad.conv2d_weight(x, stage.weight.shape, back, g.stride, g.padding)
    return conv_system(stage, back, gradient, stage.convolve(x), told), x


def heavier(system, factor):
    """Both kinds divided by their size, the gradient rows multiplied."""
    gradient, output = system.scaled().blocks
    factor = torch.tensor(factor, dtype=torch.float64)
    return replace(system, blocks=(gradient.scaled(factor), output))


@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("gradients", [1.0, 100.0], ids=["weight", "gradient"])
def test_open_directions_are_seen_and_stay_zero_whatever_the_preconditioner(columns, gradients):
    system, x = singular(columns)
    system = heavier(system, gradients)
    changed = preconditioner(system)(system.adjoint(system.rhs)) - system.adjoint(system.rhs)
    assert bool(changed.abs().max() > 0) == (gradients > 1)
    found = solve_iterative(system)
    assert bool(found.rank == system.unknowns) == (columns == 0)
    value = found.value.reshape(x.shape)
    kept = slice(0, 8 - columns)
    assert relative_error(value[..., kept], x[..., kept]) < 1e-12
    assert value[..., 8 - columns :].abs().sum() < 1e-9
    sizes = torch.linalg.svdvals(written_out(system))
    sizes = sizes[sizes > 1e-9 * sizes[0]]
    condition = float(sizes[0] / sizes[-1])
    assert condition / 5 < float(found.condition[0]) < 1.01 * condition


def test_a_preconditioner_is_the_inverse_root_of_gradient_rows_and_a_number():
    system, _ = singular(1, filters=6)
    system = heavier(system, 100.0)
    apply, eye = preconditioner(system), torch.eye(system.unknowns).double()
    inverse = torch.cat([apply(v[None, :, None])[0] for v in eye], dim=1)
    torch.testing.assert_close(inverse, inverse.mT)
    only = replace(system, blocks=system.blocks[:1])
    gram, mean = only.gram()[0], system.gram()[0] - only.gram()[0]
    level = mean.diagonal().mean()
    torch.testing.assert_close(inverse @ (gram + level * eye) @ inverse, level * eye)


def test_missing_entries_cost_few_iterations():
    """With the mean weights of all channels in the preconditioner it was seven times as many."""
    gradient, output = heavier(singular(0, filters=12)[0], 100.0).blocks
    seen = (uniform(*gradient.rhs.shape) > 0.05).double()
    rows = gradient, replace(gradient, weight=gradient.weight * seen)
    counts = []
    for own in rows:
        run = Runs(System((own, output), 2 * 8 * 8))
        counts.append(run(run.system.rhs)[1])
    assert counts[1] < 2 * counts[0] + 10


def test_no_layer_is_refused_for_its_size(few):
    stage = stage_of("c", nn.Conv2d(1, 4, 5, 2, 2).double(), IDENTITY, (1, 16, 16))
    for kind in ("auto", "gradient", "weight", "hybrid"):
        assert not LayerPlan(stage, kind).affordable


def test_the_audit_of_a_large_layer_says_when_it_is_whole(few):
    verdicts = audit(network(nn.ReLU, filters=(10, 30)), SHAPE)
    assert [own.open for own in verdicts] == [0, 0, 0]


def test_random_networks_without_a_matrix_are_never_wrong_and_unique(few):
    seeds, cases = range(100, 112), ("float64", "float32")
    records = [r for case in cases for r in attack_random_networks(seeds, case)]
    assert not any(record["false"] for record in records)
    assert any(record["unique"] for record in records)
