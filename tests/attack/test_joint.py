"""Maps that several convolutions take: their rows, their solution, and the derivative by them."""

from dataclasses import replace

import pytest
import torch
from graphs import conv, seeded
from hypothesis import given, settings
from small import SEEDS, normal, observe, relative_error, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.backward import BackwardState
from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.map_problem import ConvData, MapProblem
from rconv.attack.plan import LayerPlan
from rconv.linalg.deflation import STRONG, deflated, solve_strong
from rconv.linalg.dense import solve_dense
from rconv.linalg.operator import Entries
from rconv.linalg.system import Rows, System
from rconv.model.activations import from_module
from rconv.model.geometry import Geometry, Stage
from rconv.model.read import read

IDENTITY = from_module(nn.Identity())


def stage(filters, kernel, stride, seed, channels=2, side=6):
    """A convolution of a (channels, side, side) map with random weights."""
    size = (side - 1) // stride + 1
    pad = kernel // 2
    g = Geometry(
        (channels, side, side), (filters, size, size), (kernel,) * 2, (stride,) * 2, (pad,) * 2,
        (1, 1),
    )  # fmt: skip
    return Stage("conv", normal(filters, channels, kernel, kernel, seed=seed), None, IDENTITY, g)


def known(plan, x, seed, share, noise=1e-12):
    """What is known of a convolution of x: a random Ō, and a share of its outputs."""
    own = plan.stage
    o = own.convolve(x)
    back = normal(*o.shape, seed=seed)
    weight = (uniform(*o.shape, seed=seed + 1) < share).double()
    std = torch.full(o.shape[:2], noise).double()
    output = Estimate(torch.where(weight > 0, o, 7.0), weight, std)
    g, level = own.geometry, torch.tensor([noise]).double()
    gradient = torch.nn.grad.conv2d_weight(
        x, own.weight.shape, back, g.stride, g.padding, g.dilation
    )
    return ConvData(plan, output, Cotangent(back, level), gradient[None], level)


def entries(x, share, seed, noise=1e-12):
    """A share of the entries of x, known."""
    weight = (uniform(*x.shape, seed=seed) < share).double()
    value = torch.where(weight > 0, x, 7.0)
    return Estimate(value, weight, torch.full(x.shape[:2], noise).double())


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_rows_of_a_joint_system_are_those_of_its_parts(seed):
    """Products with unit vectors are an independent construction of the matrix."""
    x = normal(1, 2, 6, 6, seed=seed)
    problem = problem_of(x, (0.4, 0.4), filters=(3, 2), seed=seed)
    system = problem.system()
    rows = torch.cat([system.apply(e[None, :, None]) for e in torch.eye(72).double()])[..., 0].T
    torch.testing.assert_close(system.apply(x.reshape(1, -1, 1)), system.rhs)
    torch.testing.assert_close(system.gram()[0], rows.T @ rows)
    back = normal(1, len(rows), 1, seed=seed)
    torch.testing.assert_close(system.adjoint(back)[0], rows.T @ back[0])


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_channels_with_known_entries_are_systems_of_their_own(seed):
    matrix, x = normal(1, 7, 5, seed=seed), normal(3, 5, 1, seed=seed + 1)
    diagonal = (uniform(3, 5, 1, seed=seed) < 0.5).double() * 2
    known = Rows(Entries((5, 1)), x, weight=diagonal)
    shared = System((*System.dense(matrix, matrix @ x).blocks, known), 5)
    for i in range(3):
        written = torch.cat([matrix[0], torch.diag(diagonal[i, :, 0])])
        alone = System.dense(written[None], written @ x[i : i + 1])
        own = shared.select([i])
        torch.testing.assert_close(own.rhs, alone.rhs)
        torch.testing.assert_close(own.apply(x[i : i + 1]), alone.rhs)
        torch.testing.assert_close(own.gram(), alone.gram())
        torch.testing.assert_close(shared.adjoint(shared.rhs)[i], alone.adjoint(alone.rhs)[0])


def test_deflation_solves_strong_directions_and_returns_the_weak_ones():
    left, _ = torch.linalg.qr(normal(9, 9))
    right, _ = torch.linalg.qr(normal(6, 6, seed=1))
    sizes = torch.tensor([1, 0.9, 0.5, STRONG * 1.1, STRONG * 0.9, 0]).double()
    matrix, x = left[:, :6] * sizes @ right.T, normal(2, 6, seed=2)
    found = solve_strong(Columns(matrix, (matrix @ x.T)[None], torch.ones(()).double()))
    strong, weak = right[:, :4], right[:, 4:]
    torch.testing.assert_close(found.value.reshape(2, 6), x @ strong @ strong.T)
    column = found.places[:, 0] // 6
    assert column.tolist() == [0, 0, 1, 1]
    for c in (0, 1):
        own = found.directions[column == c]
        torch.testing.assert_close(own.T @ own, weak @ weak.T)
    told = (found.directions * x[column]).sum(dim=1)
    torch.testing.assert_close(found.sizes * told, found.rhs, rtol=1e-9, atol=1e-9)


class Columns(System):
    """A matrix that two columns share, as a part of a map's equations."""

    def __init__(self, matrix, rhs, std):
        object.__setattr__(self, "own", System.dense(matrix[None], rhs, std))
        super().__init__((), 2 * matrix.shape[1])

    def parts(self):
        return [(self.own, torch.arange(self.unknowns).reshape(2, -1).T)]

    @property
    def rhs(self):
        return self.own.rhs


def problem_of(x, shares, filters=(6, 4), told=0.2, noise=1e-12, seed=0, **options):
    """A map of two channels, two convolutions that take it, and known entries."""
    stages = stage(filters[0], 3, 1, seed), stage(filters[1], 1, 2, seed + 1)
    pairs = zip(stages, shares, strict=True)
    layers = tuple(
        known(LayerPlan(s, **options), x, seed + i, share, noise)
        for i, (s, share) in enumerate(pairs)
    )
    return MapProblem(0, layers, entries(x, told, seed, noise) if told else None)


def solved(shares, seed=0, **options):
    """A random map, and its problem."""
    x = normal(1, 2, 6, 6, seed=seed)
    return x, problem_of(x, shares, seed=seed, **options)


@pytest.mark.parametrize("told", [0.0, 0.3])
def test_gradient_constraints_of_both_convolutions_suffice(told):
    x, problem = solved((0.0, 0.0), told=told)
    found, report = problem.solve()
    assert relative_error(found.value, x.flatten(1)) < 1e-10
    assert (int(report.rank), report.constraints) == (72, ("gradient",))
    assert report.name == "conv and conv"


def both_ways(problem):
    """The weak directions of the parts alone, and one dense system."""
    system = problem.system().whitened()
    return deflated(system, 1e-12), solve_dense(system, 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_deflation_is_as_good_as_one_system(seed):
    x, problem = solved((0.5, 0.5), filters=(2, 1), seed=seed)
    short, _ = problem.solve(frugal=True)
    found, whole = both_ways(problem)
    assert int(short.rank) < 72
    assert int(found.rank) == int(whole.rank) == 72
    assert relative_error(found.value, x.reshape(1, -1, 1)) < 1e-9
    assert relative_error(whole.value, x.reshape(1, -1, 1)) < 1e-9
    best, report = problem.solve()
    assert report.constraints == ("hybrid",)
    assert relative_error(best.value, x.flatten(1)) < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_where_rows_are_short_the_rank_is_that_of_all_rows(seed):
    x, problem = solved((0.2, 0.2), filters=(1, 1), told=0.1, seed=seed)
    found, whole = both_ways(problem)
    assert int(found.rank) == int(whole.rank) < 72
    assert relative_error(found.value, x.reshape(1, -1, 1)) > 1e-3


@pytest.mark.parametrize("kind", ["gradient", "hybrid", "weight"])
def test_the_kind_that_is_asked_for_is_used(kind):
    x, problem = solved((1.0, 1.0), kind=kind)
    found, report = problem.solve()
    assert report.constraints == ("gradient" if kind == "gradient" else "hybrid",)
    assert relative_error(found.value, x.flatten(1)) < 1e-9


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_expected_error_is_about_the_error(share):
    """Noise of the gradients, of known outputs and of known entries alike."""
    noise, ratios = 1e-5, []
    for seed in range(10):
        x, problem = solved((share, share), noise=noise, seed=seed)
        noisy = []
        for k in problem.layers:
            size = noise * k.gradient.square().mean().sqrt()
            value = k.output.value + noise * normal(*k.output.value.shape, seed=seed + 7)
            noisy.append(replace(
                k,
                gradient=k.gradient + size * normal(*k.gradient.shape, seed=seed + 5),
                output=replace(k.output, value=value),
            ))  # fmt: skip
        own = problem.estimate
        own = replace(own, value=own.value + noise * normal(*x.shape, seed=seed + 9))
        found, _ = replace(problem, layers=tuple(noisy), estimate=own).solve()
        ratios.append(relative_error(found.value, x.flatten(1)) / float(found.error))
    assert 0.2 < torch.tensor(ratios).median() < 3


class Small(nn.Module):
    """A residual block with a shortcut, behind a stem and before a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = conv(1, 6, 5), conv(6, 8), conv(8, 8)
        self.shortcut, self.norm, self.fc = conv(6, 8, 1), nn.BatchNorm2d(14), nn.Linear(896, 3)

    def forward(self, x):
        x = self.stem(x).tanh()
        y = self.two(self.one(x).tanh()) + self.shortcut(x)
        y = torch.cat([x, y], dim=1)
        return self.fc(nn.functional.leaky_relu(self.norm(y), 0.5).flatten(1))


def test_the_derivatives_on_the_way_are_those_of_autograd():
    """All maps are put in as they are; what is then passed on is the chain rule."""
    model, x = seeded(Small), uniform(1, 1, 8, 8)
    network = read(model, (1, 8, 8))
    maps = [x.requires_grad_()]
    for node in network.nodes[1:]:
        maps.append(node.evaluate([maps[i] for i in node.inputs]))
        maps[-1].retain_grad()
    (maps[-1].sin().sum()).backward()
    tiny = torch.full((1,), 1e-15).double()
    last = Estimate.whole(maps[-1].detach(), 1e-15 * torch.ones(1, 14).double())
    state = BackwardState(network, (), last, Cotangent(maps[-1].grad, tiny), {})
    met = set()
    for i in state.unsolved():
        error = 1e-15 * torch.ones(maps[i].shape[:2]).double()
        state.maps[i] = Estimate.whole(maps[i].detach(), error)
        torch.testing.assert_close(state.cotangent(i).value, maps[i].grad)
        met.add(i)
    assert met == {i for i in range(len(maps)) if any(network.fed_by(i))} >= {0}
    assert state.estimate(0) is None


def test_the_certificate_counts_the_parameters_of_every_branch():
    model, x = seeded(Small), uniform(1, 1, 8, 8)
    sent = observe(model, x)
    attack = Attack(model, (1, 8, 8))
    assert attack(sent).gradient_residual < 1e-12
    for name in ("shortcut.weight", "norm.weight", "two.bias"):
        changed = {**sent, name: sent[name] * 1.5}
        assert attack(changed).gradient_residual > 1e-4, name
