"""Maps that several convolutions take: their rows, their solution, and the derivative by them."""

from dataclasses import replace

import pytest
import torch
from graphs import conv, seeded
from hypothesis import given, settings
from small import SEEDS, normal, observe, relative_error, uniform
from torch import nn

from rconv.attack import joint, weak
from rconv.attack.attack import Attack
from rconv.attack.backward import Passed
from rconv.attack.plan import LayerPlan
from rconv.attack.signal import Cotangent, Told
from rconv.attack.solve import Known
from rconv.attack.walk import Walk
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.joint import JointSystem
from rconv.equations.system import StackedSystem
from rconv.linalg.shared import SharedRows
from rconv.linalg.split import STRONG, split
from rconv.model.activations import from_module
from rconv.model.geometry import Geometry, Stage
from rconv.model.read import read
from rconv.model.told import backward_order

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


def known(own, x, seed, share, noise=1e-12):
    """What is known of a convolution of x: a random Ō, and a share of its outputs."""
    o = own.convolve(x)
    cotangent = normal(*o.shape, seed=seed)
    weight = (uniform(*o.shape, seed=seed + 1) < share).double()
    passed = Passed(
        cotangent, torch.where(weight > 0, o, 7.0), weight,
        torch.full(o.shape[:2], noise).double(), torch.tensor([noise]).double(),
    )  # fmt: skip
    g = own.geometry
    gradient = torch.nn.grad.conv2d_weight(
        x, own.weight.shape, cotangent, g.stride, g.padding, g.dilation
    )
    return Known(own, passed, gradient[None], torch.tensor([noise]).double())


def entries(x, share, seed, noise=1e-12):
    """A share of the entries of x, known."""
    weight = (uniform(*x.shape, seed=seed) < share).double()
    value = torch.where(weight > 0, x, 7.0)
    return Told(value, weight, torch.full(x.shape[:2], noise).double())


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_rows_of_a_joint_system_are_those_of_its_parts(seed):
    """Products with unit vectors are an independent construction of the matrix."""
    x = normal(1, 2, 6, 6, seed=seed)
    parts = []
    for i, (filters, kernel, stride) in enumerate([(3, 3, 1), (2, 1, 2)]):
        own = globals()["stage"](filters, kernel, stride, seed + i)
        k = known(own, x, seed + i, 0.4)
        matrix = gradient_matrix(k.cotangent, own.geometry)[0]
        parts.append(StackedSystem(
            own, matrix, gradient_rhs(k.gradient)[0], k.passed.value[0], k.passed.weight[0]
        ))  # fmt: skip
    told = entries(x, 0.3, seed)
    value, weight = told.value.flatten(), told.weight.flatten()
    system = JointSystem(tuple(parts), value, weight, torch.zeros_like(value))
    rows = torch.cat([system.product(e[None, :, None]) for e in torch.eye(72).double()])[..., 0].T
    torch.testing.assert_close(system.product(x.reshape(1, -1, 1)), system.rhs)
    torch.testing.assert_close(system.normal_matrix()[0], rows.T @ rows)
    back = normal(1, len(rows), 1, seed=seed)
    torch.testing.assert_close(system.adjoint(back)[0], rows.T @ back[0])


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_channels_with_known_entries_are_systems_of_their_own(seed):
    matrix, x = normal(7, 5, seed=seed), normal(3, 5, 1, seed=seed + 1)
    diagonal = (uniform(3, 5, seed=seed) < 0.5).double() * 2
    rhs = torch.cat([matrix @ x, diagonal[..., None] * x], dim=1)
    rows = SharedRows(matrix, diagonal, rhs, torch.zeros(()).double())
    written = rows.select([0, 1, 2])
    torch.testing.assert_close(rows.product(x), rhs)
    torch.testing.assert_close(written.matrix @ x, rhs)
    torch.testing.assert_close(rows.normal_matrix(), written.normal_matrix())
    torch.testing.assert_close(rows.adjoint(rhs), written.adjoint(rhs))


def test_a_split_solves_what_is_strong_and_hands_out_what_is_weak():
    left, _ = torch.linalg.qr(normal(9, 9))
    right, _ = torch.linalg.qr(normal(6, 6, seed=1))
    sizes = torch.tensor([1, 0.9, 0.5, STRONG * 1.1, STRONG * 0.9, 0]).double()
    matrix, x = left[:, :6] * sizes @ right.T, normal(2, 6, 1, seed=2)
    rhs = torch.cat([matrix @ x, 0 * x], dim=1)
    found = split(SharedRows(matrix, torch.zeros(2, 6).double(), rhs, torch.ones(()).double()))
    strong, weak = right[:, :4], right[:, 4:]
    torch.testing.assert_close(found.value, x[..., 0] @ strong @ strong.T)
    assert found.system.tolist() == [0, 0, 1, 1]
    for c in (0, 1):
        own = found.directions[found.system == c]
        torch.testing.assert_close(own.T @ own, weak @ weak.T)
    told = (found.directions * x[found.system, :, 0]).sum(dim=1)
    torch.testing.assert_close(found.sizes * told, found.rhs, rtol=1e-9, atol=1e-9)


def solved(shares, filters=(6, 4), told=0.2, noise=1e-12, seed=0, **options):
    """A random map of two channels from two convolutions and known entries."""
    x = normal(1, 2, 6, 6, seed=seed)
    stages = stage(filters[0], 3, 1, seed), stage(filters[1], 1, 2, seed + 1)
    pairs = zip(stages, shares, strict=True)
    own = [known(s, x, seed + i, share, noise) for i, (s, share) in enumerate(pairs)]
    plans = [LayerPlan(s, **options) for s in stages]
    given_entries = entries(x, told, seed, noise) if told else None
    return x, plans, own, given_entries


@pytest.mark.parametrize("told", [0.0, 0.3])
def test_gradient_constraints_of_both_convolutions_suffice(told):
    x, *parts = solved((0.0, 0.0), told=told)
    found, report = joint.solve_joint(*parts)
    assert relative_error(found.value, x.flatten(1)) < 1e-10
    assert (int(report.rank), report.constraints) == (72, ("gradient",))
    assert report.name == "conv and conv"


@pytest.mark.parametrize("seed", range(5))
def test_weight_constraints_for_the_weak_directions_are_as_good_as_one_system(seed):
    x, plans, own, told = solved((0.5, 0.5), filters=(2, 1), seed=seed)
    short, _ = joint.solve_joint(plans, own, told, frugal=True)
    found, whole = weak.with_weight_rows(plans, own, told), joint._together(plans, own, told)
    assert int(short.rank) < 72
    assert int(found.rank) == int(whole.rank) == 72
    assert relative_error(found.value, x.flatten(1)) < 1e-9
    assert relative_error(whole.value, x.flatten(1)) < 1e-9
    best, report = joint.solve_joint(plans, own, told)
    assert report.constraints == ("hybrid",)
    assert relative_error(best.value, x.flatten(1)) < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_where_rows_are_short_the_rank_is_that_of_all_rows(seed):
    x, plans, own, told = solved((0.2, 0.2), filters=(1, 1), told=0.1, seed=seed)
    found, whole = weak.with_weight_rows(plans, own, told), joint._together(plans, own, told)
    assert int(found.rank) == int(whole.rank) < 72
    assert relative_error(found.value, x.flatten(1)) > 1e-3


@pytest.mark.parametrize("kind", ["gradient", "hybrid", "weight"])
def test_the_kind_that_is_asked_for_is_used(kind):
    x, *parts = solved((1.0, 1.0), kind=kind)
    found, report = joint.solve_joint(*parts)
    assert report.constraints == ("gradient" if kind == "gradient" else "hybrid",)
    assert relative_error(found.value, x.flatten(1)) < 1e-9


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_expected_error_is_about_the_error(share):
    """Noise of the gradients, of known outputs and of known entries alike."""
    noise, ratios = 1e-5, []
    for seed in range(10):
        x, plans, own, told = solved((share, share), noise=noise, seed=seed)
        noisy = []
        for k in own:
            size = noise * k.gradient.square().mean().sqrt()
            value = k.passed.value + noise * normal(*k.passed.value.shape, seed=seed + 7)
            noisy.append(replace(
                k,
                gradient=k.gradient + size * normal(*k.gradient.shape, seed=seed + 5),
                passed=replace(k.passed, value=value),
            ))  # fmt: skip
        told = replace(told, value=told.value + noise * normal(*x.shape, seed=seed + 9))
        found, _ = joint.solve_joint(plans, noisy, told)
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
    """All maps are put in as they are; what the walk then passes on is the chain rule."""
    model, x = seeded(Small), uniform(1, 1, 8, 8)
    network = read(model, (1, 8, 8))
    maps = [x.requires_grad_()]
    for node in network.nodes[1:]:
        maps.append(node.evaluate([maps[i] for i in node.inputs]))
        maps[-1].retain_grad()
    (maps[-1].sin().sum()).backward()
    tiny = torch.full((1,), 1e-15).double()
    last = Told.whole(maps[-1].detach(), 1e-15 * torch.ones(1, 14).double())
    walk = Walk(network, last, Cotangent(maps[-1].grad, tiny))
    for i in backward_order(network):
        if any(network.fed_by(i)):
            error = 1e-15 * torch.ones(maps[i].shape[:2]).double()
            walk.solved(i, Told.whole(maps[i].detach(), error))
        torch.testing.assert_close(Cotangent.total(walk._cotangents[i]).value, maps[i].grad)
        walk.pass_on(i, {})
    image = walk.told(0)
    assert image is None


def test_the_certificate_counts_the_parameters_of_every_branch():
    model, x = seeded(Small), uniform(1, 1, 8, 8)
    sent = observe(model, x)
    attack = Attack(model, (1, 8, 8))
    assert attack(sent).gradient_residual < 1e-12
    for name in ("shortcut.weight", "norm.weight", "two.bias"):
        changed = {**sent, name: sent[name] * 1.5}
        assert attack(changed).gradient_residual > 1e-4, name
