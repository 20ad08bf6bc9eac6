"""Signs and priors: known polytopes, proofs against brute force, and layers closed by them."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from small import SEEDS, normal, observe

from rconv.attack import bound_constraints as by_bounds
from rconv.attack.activation_vjp import through_activation
from rconv.attack.attack import Attack
from rconv.attack.attempt import within_range
from rconv.attack.bound_constraints import Bounds
from rconv.attack.map_problem import ConvData, MapProblem
from rconv.attack.plan import LayerPlan
from rconv.attack.total_variation import fill, total_variation
from rconv.data.datasets import load
from rconv.equations.conv_gradient import gradient_matrix
from rconv.equations.conv_system import conv_system
from rconv.lab import metrics
from rconv.lab.architectures import build
from rconv.linalg import inequalities as signs
from rconv.linalg.dense import null_space, solve_dense
from rconv.linalg.inequalities import Forced, tightened_bounds
from rconv.model.activations import from_module
from rconv.model.geometry import Geometry, Stage

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _ambiguity import another_input


def psnr(found, truth):
    return metrics.psnr(found, truth, data_range=1.0)


def family(seed, n, rows, zeros):
    """A, and x ≥ 0 with so many zeros."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.5, 1.5, n)
    x[rng.permutation(n)[:zeros]] = 0
    return rng.standard_normal((rows, n)), x


def intervals(matrix, x):
    """The range of every entry over all points x' ≥ 0 with A x' = A x, by two programs each."""
    ends = []
    for i in range(len(x)):
        c = np.eye(len(x))[i]
        options = {"A_eq": matrix, "b_eq": matrix @ x, "bounds": [(0, 50)] * len(x)}
        ends.append([linprog(c, **options).fun, -linprog(-c, **options).fun])
    return np.array(ends)


@st.composite
def families(draw):
    """A short system of 4 to 9 unknowns and one of its non-negative solutions."""
    seed, n = draw(SEEDS), draw(st.integers(4, 9))
    return family(seed, n, draw(st.integers(1, n - 1)), draw(st.integers(0, n)))


@given(families())
@settings(max_examples=60, deadline=None)
def test_what_is_forced_is_what_every_point_has(drawn):
    """Against two linear programs per entry: forced entries are zero at every point."""
    matrix, x = drawn
    basis = null_space(matrix.T @ matrix)
    assert np.abs(matrix @ basis).max() < 1e-6
    start = np.linalg.pinv(matrix) @ matrix @ x
    found = signs.forced(start, basis, 1e-9)
    width = np.ptp(intervals(matrix, x), axis=1)
    assert (width[found.active] < 1e-6).all() and (x[found.active] == 0).all()
    assert (found.left == 0) == bool((width < 1e-6).all())
    point = signs.nonnegative(matrix, matrix @ start)
    np.testing.assert_allclose(matrix @ point, matrix @ x, atol=1e-6)
    at = signs.forced_at(point, basis, 1e-7)
    assert (width[at.active] < 1e-5).all()
    assert at.left > 0 or (width < 1e-5).all()


@given(families())
@settings(max_examples=40, deadline=None)
def test_extremes_are_those_of_two_programs_over_all_unknowns(drawn):
    """Here in the open directions, there in the unknowns with the equations as they are."""
    matrix, x = drawn
    basis = null_space(matrix.T @ matrix)
    low, high = tightened_bounds(x, basis, np.r_[x, 50 - x], np.r_[basis, -basis], (0.0, 50.0))
    np.testing.assert_allclose(np.c_[low, high], intervals(matrix, x), atol=1e-5)


@given(families())
@settings(max_examples=300, deadline=None)
def test_a_null_space_has_every_open_direction(drawn):
    """Where rounding fills a singular normal matrix up, a direction would count as known."""
    matrix, _ = drawn
    rows, n = matrix.shape
    assert null_space(matrix.T @ matrix).shape == (n, n - rows)


def test_extremes_without_an_end_are_infinite_and_without_a_point_none():
    basis, x = np.array([[1.0], [1.0], [0.0]]) / 2**0.5, np.array([1.0, 3.0, 2.0])
    low, high = tightened_bounds(x, basis, x, basis, (0.0, np.inf))
    np.testing.assert_allclose(low, [0, 2, 2])
    np.testing.assert_allclose(high, [np.inf, np.inf, 2])
    assert (
        tightened_bounds(x, basis, np.full(2, -1.0), np.r_[basis[:1], -basis[:1]], (0, 1)) is None
    )


def test_nothing_is_forced_where_there_is_room_and_contradictions_show():
    basis = np.array([[1.0], [-1.0]]) / 2**0.5
    room = signs.forced(np.array([1.0, 1.0]), basis, 0.0)
    assert not room.active.any() and room.left == 1 and room.margin > 0.9
    none = signs.forced(np.array([-1.0, -1.0]), basis, 0.0)
    assert not none.active.any() and none.margin == pytest.approx(-1)
    one = signs.forced(np.array([1.0, -1.0]), basis, 0.0)
    assert one.active.all() and one.left == 0


def test_what_was_forced_first_stays_forced():
    """A proof shows one pair at a time: two programs for two directions."""
    directions = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = signs.forced(np.zeros(4), directions, 0.0)
    assert found.active.all() and found.left == 0


def test_a_margin_within_the_noise_is_none():
    basis = np.array([[1.0], [-1.0]]) / 2**0.5
    values = np.array([1e-4, 1e-4])
    assert signs.forced(values, basis, 1e-5).left == 1
    assert signs.forced(values, basis, 1e-3).left == 0


def test_a_point_beyond_the_bounds_proves_nothing():
    """What touches a bound there need not touch it at any point that keeps to all of them."""
    basis = np.array([[1.0], [-1.0], [1.0]]) / 3**0.5
    on = np.array([0.0, 0.0, 1.0])
    assert signs.forced_at(on, basis, 1e-9).active.tolist() == [True, True, False]
    assert signs.forced_at(on - [0, 0, 1.1], basis, 1e-9) is None
    assert signs.forced_at(on - [0, 0, 1.1], basis, 0.2) is not None


def test_programs_that_are_too_large_are_left(monkeypatch):
    columns = 2 * signs.FEW
    assert signs.forced(np.zeros(5 * columns), np.ones((5 * columns, columns)), 0.0) is None
    monkeypatch.setattr(signs, "ACTIVE_STEPS", 50)
    assert signs.nonnegative(np.eye(100), np.ones(100)) is None


@given(SEEDS, st.integers(1, 12), st.integers(20, 400))
@settings(max_examples=40, deadline=None)
def test_rows_that_enter_as_needed_give_the_program_of_all(seed, columns, rows):
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((rows, columns))
    values = rng.uniform(-0.2, 1, rows)
    t, weights, _ = signs.chebyshev_center(values, directions)
    whole = linprog(
        np.r_[np.zeros(columns), -1.0],
        A_ub=np.c_[-directions, np.ones(rows)],
        b_ub=values,
        bounds=[(None, None)] * columns + [(None, signs.DEEP)],
    )
    assert t == pytest.approx(-whole.fun, abs=1e-8)
    assert weights.min() >= 0 and np.abs(weights @ directions).max() < 1e-8
    if t < signs.DEEP:
        assert weights.sum() == pytest.approx(1) and weights @ values == pytest.approx(t, abs=1e-8)


def test_a_program_that_fails_is_tried_again_with_another_method(monkeypatch):
    """HiGHS fails on some degenerate programs with small tolerances, and not with its own."""
    rng = np.random.default_rng(0)
    directions, values = rng.standard_normal((40, 3)), rng.uniform(-0.2, 1, 40)
    whole = signs.chebyshev_center(values, directions)
    calls, solve = [], signs.scipy.optimize.linprog

    def fails_at_first(*arguments, **options):
        calls.append(options["method"])
        found = solve(*arguments, **options)
        if options["options"] is signs.OPTIONS:
            found.x = None
        return found

    monkeypatch.setattr(signs.scipy.optimize, "linprog", fails_at_first)
    again = signs.chebyshev_center(values, directions)
    assert calls[:3] == [method for method, _ in signs.ATTEMPTS]
    assert again[0] == pytest.approx(whole[0], abs=1e-7)
    assert again[1] @ values == pytest.approx(again[0], abs=1e-12), "proved by its own weights"


def test_weights_that_depend_on_the_directions_prove_nothing():
    directions, values = np.array([[1.0], [-1.0]]), np.array([0.25, 0.0])
    t, weights = signs._proved(values, directions, np.array([0.5, 0.5]))
    assert t == 0.125 and weights.sum() == 1
    assert signs._proved(values, directions, np.array([0.6, 0.4])) is None


def test_a_negative_margin_of_a_few_times_the_noise_is_no_contradiction():
    basis = np.array([[1.0], [-1.0]]) / 2**0.5
    values = np.array([-1e-4, -1e-4])
    assert signs.forced(values, basis, 2e-5).left == 0
    assert signs.forced(values, basis, 5e-6).left == 1


def test_weak_directions_count_as_open_if_asked_for():
    """One direction is unknown, one is seen a millionth as well as the others."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    gram = (rotation * np.array([1.0, 1.0, 1.0, 1.0, 1e-6, 0.0]) ** 2) @ rotation.T
    open_ones = null_space(gram, weak=1e-5)
    assert open_ones.shape == (6, 2)
    # Separated up to eps / (1 - weak²): the four that are seen are not touched.
    assert np.abs(rotation[:, :4].T @ open_ones).max() < 1e-12
    assert null_space(gram, weak=1e-8).shape[1] == 1


G = Geometry((2, 6, 6), (3, 6, 6), (3, 3), (1, 1), (1, 1), (1, 1))


def layer(seed=0, bias=True, high=torch.inf):
    """A ReLU layer with an input at both ends of its range, its equations, its silent outputs."""
    weight, offset = normal(3, 2, 3, 3, seed=seed), normal(3, seed=seed + 1) if bias else None
    stage = Stage("conv", weight, offset, from_module(torch.nn.ReLU()), G)
    x = (normal(*G.input, seed=seed + 2) + 0.3).clamp(min=0, max=high)
    output = stage.convolve(x[None])[0]
    active = output + (0 if offset is None else offset[:, None, None]) > 0
    cotangent = normal(1, *G.output, seed=seed + 3) * active
    gradient = torch.nn.grad.conv2d_weight(x[None], weight.shape, cotangent, padding=1)
    first = (torch.arange(27)[None, :, None] < 6).double()  # six of the gradient's rows
    own = cotangent, gradient, output[None], active[None].double()
    system = conv_system(stage, *own, (0.0, high), first)
    limit = torch.zeros_like(output) if offset is None else -offset[:, None, None] + 0 * output
    rows = system.blocks[1]
    rows = replace(rows, rhs=torch.where(active, output, limit)[None, None])
    system = replace(system, blocks=(system.blocks[0], rows))
    return system, (~active)[None, None].double(), x


def closed_with(system, silent, forced, solution):
    return by_bounds._closed(Bounds(system, (None, silent)), forced, solution, 1e-16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("high", [torch.inf, 0.9])
def test_bounds_are_those_of_the_input_and_of_the_silent_outputs(bias, high):
    system, silent, x = layer(3, bias, high)
    basis = normal(72, 4).numpy()
    margins, slopes = Bounds(system, (None, silent)).along(x.flatten().numpy(), basis)
    ends = 72 if high == torch.inf else 144
    assert len(margins) == len(slopes) == ends + int(silent.sum())
    assert margins.min() >= -1e-12
    np.testing.assert_array_equal(margins[:72], x.flatten().numpy())
    np.testing.assert_array_equal(margins[72:ends], high - x.flatten().numpy()[: ends - 72])
    z = normal(4, 1, seed=5).numpy()[:, 0]
    moved = torch.from_numpy(x.flatten().numpy() + basis @ z)
    again, _ = Bounds(system, (None, silent)).along(moved.numpy(), basis)
    np.testing.assert_allclose(again, margins + slopes @ z, atol=1e-10)


@pytest.mark.parametrize("high", [torch.inf, 0.9])
def test_what_is_fixed_leaves_the_same_equations_for_the_rest(high):
    system, silent, x = layer(1, high=high)
    at = [x.flatten().numpy() == end for end in system.bounds if np.isfinite(end)]
    active = np.concatenate([*at, np.zeros(int(silent.sum()), dtype=bool)])
    closed = Bounds(system, (None, silent)).closed(active)
    assert closed.count == 72 - sum(int(own.sum()) for own in at)
    assert high == torch.inf or at[1].any()
    free = x.flatten()[closed.free][None, :, None]
    assert closed.residual(free).abs().max() < 1e-12
    gram, y = closed.gram(), normal(1, closed.count, 1)
    torch.testing.assert_close(gram @ y, closed.adjoint(closed.apply(y)))
    single = closed.gram(torch.float32)
    torch.testing.assert_close(single, gram.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(closed.whole(free)[0, :, 0], x.flatten())
    found = solve_dense(closed.scaled(), 1e-16)
    if int(found.rank) == closed.count:
        torch.testing.assert_close(closed.whole(found.value)[0, :, 0], x.flatten())


def test_a_silent_output_that_is_forced_becomes_an_equation():
    system, silent, _ = layer(2)
    active = np.zeros(72 + int(silent.sum()), dtype=bool)
    active[72] = True
    closed = Bounds(system, (None, silent)).closed(active)
    now, before = closed.blocks[1], system.blocks[1]
    added = (now.weight > 0) & (before.weight == 0)
    assert int(added.sum()) == 1 and bool(silent[added])
    bias = before.operator.stage.bias[:, None, None].expand_as(now.rhs)
    assert (now.rhs + bias)[added].item() == 0


def with_all_outputs(seed):
    """`layer` with every output known."""
    system, silent, x = layer(seed)
    rows = system.blocks[1]
    exact = rows.operator.stage.convolve(x[None])[None]
    rows = replace(rows, rhs=exact, weight=torch.ones_like(exact))
    return replace(system, blocks=(system.blocks[0], rows)), torch.zeros_like(silent), x


def test_an_answer_that_leaves_its_bounds_is_none():
    """An entry that is far from zero, taken for forced: the others turn negative for it."""
    system, silent, x = with_all_outputs(1)
    whole = solve_dense(system, 1e-16)
    solution = replace(whole, value=whole.value[..., 0])
    wrong = np.zeros(72 + int(silent.sum()), dtype=bool)
    wrong[int(x.flatten().argmax())] = True
    right = np.zeros_like(wrong)
    right[:72] = x.flatten().numpy() == 0
    assert closed_with(system, silent, Forced(wrong, 0, 0.0), solution) is None
    done, basis = closed_with(system, silent, Forced(right, 0, 0.0), solution)
    assert basis.shape == (72, 0)
    torch.testing.assert_close(done.solution.value[0], x.flatten())


def noisy(seed, told):
    """A determined layer whose equations have noise of 1e-6, and the noise that is stated."""
    system, silent, x = with_all_outputs(seed)
    std = torch.tensor(told, dtype=torch.float64)
    blocks = tuple(
        replace(b, rhs=b.rhs + 1e-6 * normal(*b.rhs.shape, seed=seed + k), std=std * b.weight)
        for k, b in enumerate(system.blocks, 50)
    )
    system = replace(system, blocks=blocks)
    whole = solve_dense(system.whitened(), told)
    assert int(whole.rank) == system.unknowns
    bounds = Bounds(system, (None, silent))
    return bounds, replace(whole, value=whole.value[..., 0]), x


@pytest.mark.parametrize("seed", [1, 4])
def test_entries_that_noise_pushes_below_zero_are_corrected(seed):
    """The noise is five times what is stated: entries below zero are no contradiction yet."""
    bounds, solution, x = noisy(seed, 2e-7)
    solution = replace(solution, error=torch.zeros_like(solution.error))
    none = np.zeros(72 + int(bounds.sides[1].sum()), dtype=bool)
    error = float(solution.error[0])
    assert by_bounds._violated(bounds, solution.value, error).any()
    answer, whole = by_bounds._kept(bounds, none, solution.value, error, 2e-7)
    assert whole.min() >= -1e-8 and int(answer.rank) < 72
    before, after = ((own[0] - x.flatten()).norm() for own in (solution.value, whole))
    assert after < before, "zeros of the truth are zeros again"


def test_a_residual_beyond_the_noise_is_a_contradiction():
    """The noise is a thousand times what is stated."""
    bounds, solution, _ = noisy(1, 1e-9)
    none = np.zeros(72 + int(bounds.sides[1].sum()), dtype=bool)
    assert by_bounds._kept(bounds, none, solution.value, 0.0, 1e-9) is None


@pytest.mark.parametrize("known", [True, False])
def test_another_input_is_found_where_there_is_one(known):
    """Without any gradient the silent outputs leave room; with all of it there is one input."""
    system, _, x = layer(0)
    rows = system.blocks[1]
    cotangent = normal(*G.output, seed=9) * (rows.weight[0, 0] if known else 0.0)
    stage = rows.operator.stage
    if known:
        stage = replace(stage, bias=stage.bias + 100)  # all outputs are known
    other = another_input(stage, cotangent, x)
    assert (other is None) == known
    if other is not None:
        outputs = [stage.convolve(own[None])[0] + stage.bias[:, None, None] for own in (x, other)]
        active = outputs[0] > 0
        torch.testing.assert_close(outputs[1][active], outputs[0][active])
        assert outputs[1][~active].max() < 1e-6 and other.min() > -1e-6
        assert (other - x).norm() > 1e-3 * x.norm()


def test_what_is_closed_and_what_is_left_are_all_that_was_open():
    """Five zeros of an input are told where the outputs of half the rows are not."""
    system, silent, x = layer(0)
    lower = torch.arange(6)[None, :, None] > 2
    rows = system.blocks[1].scaled(lower.double())
    system = replace(system, blocks=(system.blocks[0], rows))
    short = solve_dense(system, 1e-16)
    five = np.zeros(72 + int(silent.sum()), dtype=bool)
    five[(x.flatten().numpy() == 0).nonzero()[0][:5]] = True
    solution = replace(short, value=short.value[..., 0])
    solution = replace(solution, error=torch.tensor([0.25], dtype=torch.float64))
    done, basis = closed_with(system, silent, Forced(five, 0, 0.0), solution)
    assert done.solution.error.item() == 0.25, "what was forced rests on what was known"
    assert done.closed == 5 and basis.shape[1] == 72 - int(short.rank) - 5 > 0
    assert (done.solution.value[0][five[:72]] == 0).all()
    assert np.abs(basis[five[:72]]).max() == 0


@pytest.mark.parametrize("seed", range(2))
def test_silent_outputs_alone_can_close_a_layer(seed):
    """A patch of zeros, an input of either sign: where all outputs are silent, nothing is left."""
    g = Geometry((1, 6, 6), (2, 6, 6), (3, 3), (1, 1), (1, 1), (1, 1))
    stage = Stage("conv", normal(2, 1, 3, 3, seed=seed), None, from_module(torch.nn.ReLU()), g)
    x = normal(1, 1, 6, 6, seed=seed + 1)
    x[..., :4, :4] = 0
    y, back = stage.convolve(x).clamp(min=0), normal(1, 2, 6, 6, seed=seed + 2)
    told = torch.tensor([1e-15], dtype=torch.float64)
    below, inputs = through_activation(stage.activation, y, back, None, told.expand(1, 2), told)
    gradient = (gradient_matrix(below.value, g) @ x.flatten(2).mT).reshape(1, 2, 1, 3, 3)
    layer = ConvData(LayerPlan(stage, prior=False), inputs, below, gradient, told)
    found, report = MapProblem(0, (layer,)).solve()
    assert int(report.rank) == 32 and int(report.signs) == 4
    torch.testing.assert_close(found.value, x.flatten(1))


@pytest.fixture(scope="module")
def client():
    """PyTorch's initialisation, seed 1: one of conv4's three filters is dead."""
    model, truth = build("lenet_main", seed=1, initialisation="default"), load("Photos", range(2))
    return model, truth.images, observe(model, truth.images)


def test_signs_close_what_a_dead_filter_leaves_open(client):
    model, images, gradients = client
    without = Attack(model, (3, 32, 32), signs=False)(gradients)
    found = Attack(model, (3, 32, 32))(gradients)
    layers = {layer.name: layer for layer in found.layers}
    assert not without.full_rank.any() and not without.unique.any()
    assert (layers["conv4"].signs > 0).all() and (layers["conv4"].open == 0).all()
    assert (layers["conv4"].rank == without.layers[1].rank).all()
    assert found.unique.all() and (psnr(found.images, images) > 150).all()
    assert psnr(without.images, images).max() < 0


def test_signs_close_it_in_single_precision_too(client):
    model, images, gradients = client
    single = {name: g.float() for name, g in gradients.items()}
    found = Attack(model, (3, 32, 32))(single)
    assert found.unique.all() and (psnr(found.images, images) > 80).all()


@pytest.fixture(scope="module")
def narrow():
    """A ReLU first layer of eight filters: half of the image's directions are open."""
    model = build("lenet_all_relu", filters=(8, 24, 12, 12))
    truth = load("Photos", range(1))
    return model, truth.images, observe(model, truth.images)


def test_a_prior_shows_the_picture_and_says_that_it_guessed(narrow):
    model, images, gradients = narrow
    least = Attack(model, (3, 32, 32), prior=False)(gradients)
    found = Attack(model, (3, 32, 32))(gradients)
    assert not found.unique.any()
    error = (found.images - images).norm() / images.norm()
    assert 0.1 < error / found.expected_error.item() < 10
    low, high = found.interval
    assert ((low <= images) & (images <= high)).all()
    assert (low.isclose(high)).sum() < 0.6 * images.numel()
    assert psnr(found.images, images).item() > psnr(least.images, images).item() + 8
    assert found.guess.norm() > 0 and least.guess.norm() == 0
    inside = found.images.clamp(0, 1)
    assert torch.equal(found.images, inside)
    # Only open directions were moved: what the equations say is what it was.
    moved = least.images + found.guess
    assert ((moved - found.images) * ((moved > 0) & (moved < 1))).abs().max() < 1e-9


def test_intervals_hold_the_truth_and_the_exact_ones_are_smaller():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 3, 3, 2, 1)
    model = torch.nn.Sequential(
        conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 5)
    ).double()
    truth = (normal(3, 1, 8, 8, seed=1) / 2 + 0.1).clamp(0, 1)
    gradients = observe(model, truth)
    widths = []
    for exact in (False, True):
        found = Attack(model, (1, 8, 8), exact=exact)(gradients)
        low, high = found.interval
        assert not found.full_rank.all()
        assert (low <= truth + 1e-6).all() and (truth <= high + 1e-6).all()
        assert ((low == high).flatten(1).all(dim=1) == found.full_rank).all()
        widths.append((high - low).sum().item())
    assert widths[1] < 0.95 * widths[0]


def test_under_an_open_layer_every_interval_is_the_whole_range():
    model = build("lenet_main", seed=2, initialisation="default")  # two dead filters
    truth = load("Photos", range(1))
    found = Attack(model, (3, 32, 32), signs=False)(observe(model, truth.images))
    low, high = found.interval
    assert found.layers[1].open.item() > 0 and found.layers[-1].open.item() == 0
    assert (low == 0).all() and (high == 1).all()


def test_total_variation_is_that_of_a_step():
    image = torch.zeros(2, 4, 4).double()
    image[:, :, 2:] = 3.0
    assert total_variation(image).item() == pytest.approx(4 * 3 * 2**0.5)
    assert total_variation(image, colour=5.0).item() == pytest.approx(4 * 3 * 2**0.5)
    image[1] *= -1  # nothing in common: all of it is colour
    assert total_variation(image, colour=5.0).item() == pytest.approx(5 * 4 * 3 * 2**0.5)


def test_a_flat_image_is_found_in_the_open_directions():
    basis = np.linalg.qr(normal(16, 5).numpy())[0]
    flat = torch.full((1, 4, 4), 0.5).double()
    start = flat + torch.from_numpy(basis @ normal(5, 1, seed=2).numpy()).reshape(1, 4, 4)
    found, error = fill(start, basis, (0.0, 1.0))
    assert (found - flat).abs().max() < 1e-3 and error < 1e-3


def test_the_range_is_kept_where_less_variation_would_leave_it():
    """Two pixels, equal at 1.3: the range stops them at 1."""
    basis = np.array([[1.0], [2.0]]) / 5**0.5
    found, _ = fill(torch.tensor([[[0.9, 0.5]]]).double(), basis, (0.0, 1.0))
    assert 0.99 < found.max().item() < 1.05


def test_an_image_that_explains_nothing_is_answered_by_a_flat_one():
    model = build("lenet_main", seed=2, initialisation="default")  # two dead filters
    truth = load("Photos", range(3))
    raw = Attack(model, (3, 32, 32), signs=False)(observe(model, truth.images))
    found = within_range(raw, (0.0, 1.0))
    lost = ~raw.full_rank & (raw.gradient_residual >= 1)
    assert lost.any() and (found.images[lost] == 0.5).all()
    assert (found.expected_error[lost] == 1).all() and not found.unique[lost].any()
    assert (psnr(found.images, truth.images) > 5).all()
