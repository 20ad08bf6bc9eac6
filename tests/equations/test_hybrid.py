"""Hybrid: against dense least squares of the rows written out, full rank and short."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from small import SEEDS, geometries, normal, relative_error
from torch import nn

from rconv.equations.conv_gradient import ConvGradient, gradient_matrix
from rconv.equations.conv_output import ConvOutput, weight_matrix
from rconv.linalg import dense
from rconv.linalg.dense import solve_dense
from rconv.linalg.system import Rows, System
from rconv.model.activations import from_module
from rconv.model.geometry import Geometry, Stage

EPS = 2.0**-53


def stage_of(geometry, seed=0):
    g = geometry
    weight = normal(g.output[0], g.input[0], *g.kernel, seed=seed)
    return Stage("conv", weight, None, from_module(nn.Identity()), geometry)


def system_of(geometry, known=1.0, gradient=True, seed=0):
    """Equations of a known input: its weight rows are used with the probability `known`."""
    stage = stage_of(geometry, seed)
    x = normal(*geometry.input, seed=seed + 1)
    cotangent = normal(1, *geometry.output, seed=seed + 2)
    output = stage.convolve(x[None])
    row_weight = normal(*geometry.output, seed=seed + 3).abs() + 0.1
    chosen = torch.rand(output.shape, generator=torch.Generator().manual_seed(seed)) < known
    rhs = gradient_matrix(cotangent, geometry) @ x.flatten(1).T
    by_gradient = Rows(ConvGradient(geometry, cotangent[None]), rhs)
    by_weight = Rows(ConvOutput(stage), output[None], weight=row_weight * chosen[None])
    if not gradient:
        by_gradient = by_gradient.scaled(torch.zeros(()).double())
    return System((by_gradient, by_weight), geometry.unknowns), x


def changed(system, gradient=None, output=None):
    """The system with fields of its two blocks replaced."""
    both = zip(system.blocks, (gradient or {}, output or {}), strict=True)
    return replace(system, blocks=tuple(replace(block, **new) for block, new in both))


def with_gradient_rows(system, count):
    """All gradient rows but the first are not observed."""
    rows = torch.arange(system.blocks[0].rhs.shape[1])[None, :, None]
    return changed(system, {"weight": (rows < count).double()})


def rows(system):
    """The weighted equations written out: matrix and right-hand side."""
    gradient, output = system.blocks
    stage = output.operator.stage
    g = stage.geometry
    weight = torch.from_numpy(weight_matrix(stage.weight, g).toarray())
    own, worth = (b.weight.expand_as(b.rhs).reshape(-1, 1) for b in system.blocks)
    # The order is that of the system: a row of A for each channel in turn.
    one = torch.eye(g.input[0], dtype=torch.float64)
    a = gradient_matrix(gradient.operator.cotangent[0], g)[0]
    blocks = torch.einsum("mp,cd->mcdp", a, one).reshape(-1, g.unknowns)
    matrix = torch.cat([own * blocks, worth * weight])
    rhs = torch.cat([own * gradient.rhs.reshape(-1, 1), worth * output.rhs.reshape(-1, 1)])
    return matrix, rhs


def lstsq(matrix, rhs):
    return torch.linalg.lstsq(matrix, rhs, driver="gelsd", rcond=1e-9).solution


@given(geometries(largest=5), SEEDS)
@settings(max_examples=40, deadline=None)
def test_normal_matrix_residual_and_adjoint_are_those_of_the_rows(g, seed):
    system, _ = system_of(g, known=0.6, seed=seed)
    matrix, rhs = rows(system)
    x = normal(g.unknowns, 1, seed=seed + 7)
    left = rhs - matrix @ x
    found = system.residual(x[None])
    torch.testing.assert_close(found[0], left, rtol=1e-10, atol=1e-10)
    gram = system.gram()[0]
    torch.testing.assert_close(gram, matrix.T @ matrix, rtol=1e-10, atol=1e-10)
    back = system.adjoint(found)[0]
    torch.testing.assert_close(back, matrix.T @ left, rtol=1e-10, atol=1e-10)


G = Geometry((2, 6, 5), (3, 6, 5), (3, 3), (1, 1), (1, 1), (1, 1))
CASES = [
    pytest.param(1.0, True, id="both kinds in full"),
    pytest.param(0.5, True, id="half the outputs are known, as after a ReLU"),
    pytest.param(0.0, True, id="no output is known: gradient rows alone"),
    pytest.param(1.0, False, id="weight rows alone"),
]


@pytest.mark.parametrize(("known", "gradient"), CASES)
def test_a_known_input_is_recovered(known, gradient):
    system, x = system_of(G, known, gradient)
    matrix, _ = rows(system.scaled())
    rank = int(torch.linalg.matrix_rank(matrix, rtol=1e-9))
    found = solve_dense(system.scaled(), EPS)
    assert found.value[..., 0].shape == (1, G.unknowns)
    assert found.rank.item() == rank
    assert found.residual.item() < 1e-13
    if rank == G.unknowns:
        assert relative_error(found.value[0, :, 0], x.flatten()) < 1e-11


@pytest.mark.parametrize("known", [0.3, 1.0])
def test_noisy_equations_are_solved_as_dense_least_squares_of_the_stacked_rows(known):
    system, _ = system_of(G, known)
    gradient, output = (
        {"rhs": b.rhs + 0.1 * normal(*b.rhs.shape, seed=5 + i)} for i, b in enumerate(system.blocks)
    )
    noisy = changed(system, gradient, output)
    matrix, rhs = rows(noisy.scaled())
    found = solve_dense(noisy.scaled(), EPS)
    expected = lstsq(matrix, rhs)
    torch.testing.assert_close(found.value[..., 0].T, expected, rtol=1e-9, atol=1e-9)
    left = (rhs - matrix @ expected).norm() / rhs.norm()
    assert found.residual.item() == pytest.approx(left.item(), rel=1e-6)


SHORT = [
    # geometry, known share of the outputs, gradient rows: why it is short
    pytest.param(G, 0.0, 3, id="27 rows for 30 pixels and no output known"),
    pytest.param(G, 0.15, 1, id="few outputs are known"),
    pytest.param(
        Geometry((1, 6, 6), (2, 2, 2), (2, 2), (3, 3), (0, 0), (1, 1)), 1.0, 8,
        id="pixels that no window covers",
    ),
    pytest.param(
        Geometry((2, 4, 4), (1, 4, 4), (1, 1), (1, 1), (0, 0), (1, 1)), 1.0, 0,
        id="a sum of two channels",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("geometry", "known", "gradient_rows"), SHORT)
def test_short_rank_is_counted_and_solved_with_minimum_norm(geometry, known, gradient_rows):
    system, x = system_of(geometry, known)
    system = with_gradient_rows(system, gradient_rows)
    matrix, rhs = rows(system.scaled())
    rank = int(torch.linalg.matrix_rank(matrix, rtol=1e-8))
    assert rank < geometry.unknowns
    found = solve_dense(system.scaled(), EPS)
    assert found.rank.item() == rank
    assert found.residual.item() < 1e-10
    torch.testing.assert_close(found.value[..., 0].T, lstsq(matrix, rhs), rtol=1e-7, atol=1e-9)
    assert found.value[..., 0].norm() <= x.norm() * (1 + 1e-9)


def test_no_equation_at_all_gives_zero_and_rank_zero():
    system, _ = system_of(G, 0.0)
    found = solve_dense(with_gradient_rows(system, 0), EPS)
    assert (found.rank.item(), found.value[..., 0].abs().max().item()) == (0, 0.0)
    assert found.condition.item() == math.inf


def test_the_condition_is_that_of_the_scaled_rows():
    system, _ = system_of(G, 0.7)
    matrix, _ = rows(system.scaled())
    values = torch.linalg.svdvals(matrix)
    condition = (values[0] / values[-1]).item()
    assert condition / 3 <= solve_dense(system.scaled(), EPS).condition.item() <= condition * 1.01


def test_both_blocks_are_scaled_to_a_mean_row_norm_of_one():
    system, _ = system_of(G, 0.5)
    million = torch.tensor(1e6, dtype=torch.float64)
    for block in changed(system, {"weight": million}).scaled().blocks:
        norms = block.operator.row_norms() * block.weight
        assert norms[norms > 0].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("unit", [1e-150, 1e-20, 1e20, 1e150])
def test_the_unit_of_the_gradient_rows_does_not_matter(unit):
    system, x = system_of(G, 0.5)
    own = changed(system, {"weight": torch.tensor(unit, dtype=torch.float64)})
    found = solve_dense(own.scaled(), EPS)
    assert found.rank.item() == G.unknowns
    assert relative_error(found.value[0, :, 0], x.flatten()) < 1e-11


def test_a_row_of_little_weight_hardly_matters_and_one_of_none_not_at_all():
    system, x = system_of(G, 1.0)
    output, row_weight = system.blocks[1].rhs[0, 0], system.blocks[1].weight[0, 0]
    output[0, 0, 0], row_weight[0, 0, 0] = 1e6, 0.0
    output[1, 2, 2], row_weight[1, 2, 2] = output[1, 2, 2] + 1, 1e-9
    found = solve_dense(system.scaled(), EPS)
    assert relative_error(found.value[0, :, 0], x.flatten()) < 1e-7


def test_amplification_is_what_noise_does():
    """Monte Carlo over independent errors of every right-hand side, relative to their size."""
    system, x = system_of(Geometry((1, 5, 5), (3, 5, 5), (3, 3), (1, 1), (1, 1), (1, 1)))
    system = changed(system, {}, {"weight": torch.ones((1,) * 5).double()}).scaled()
    _, rhs = rows(system)
    size, noise, squares = rhs.square().mean().sqrt().item(), 1e-6, []
    for trial in range(60):
        moved = changed(system, *(
            {"rhs": b.rhs + noise * size / b.weight * normal(*b.rhs.shape, seed=2 * trial + i)}
            for i, b in enumerate(system.blocks, 100)
        ))  # fmt: skip
        squares.append((solve_dense(moved, EPS).value[0, :, 0] - x.flatten()).square().mean())
    measured = (torch.stack(squares).mean() / x.square().mean()).sqrt().item() / noise
    found = solve_dense(system, EPS).amplification.item()
    assert measured / 3 < found < measured * 3


def test_amplification_of_a_short_system_is_that_of_the_directions_it_knows():
    """An estimate of √(mean of 1 / σ²) · rms(b) / rms(x), over the directions that count."""
    system, _ = system_of(G, 0.15)
    system = with_gradient_rows(system, 1)
    matrix, rhs = rows(system.scaled())
    found = solve_dense(system.scaled(), EPS)
    values = torch.linalg.svdvals(matrix)[: found.rank.item()]
    spread = (values**-2).sum().div(G.unknowns).sqrt()
    expected = (
        spread * rhs[rhs != 0].square().mean().sqrt() / found.value[..., 0].square().mean().sqrt()
    )
    assert expected / 1.5 < found.amplification.item() < expected * 1.5


@pytest.mark.parametrize("worth", [1e-3, 1e-5])
def test_refinement_keeps_the_digits_that_the_normal_equations_lose(worth):
    """One pixel that only equations of little weight see: a condition of about 1 / worth."""
    geometry = Geometry((1, 4, 4), (2, 4, 4), (1, 1), (1, 1), (0, 0), (1, 1))
    system, x = system_of(geometry, 1.0, gradient=False)
    row_weight = system.blocks[1].weight[0, 0]
    row_weight[:, 2, 1] = worth
    found = solve_dense(system.scaled(), EPS)
    assert relative_error(found.value[0, :, 0], x.flatten()) < 1e-12
    hidden = system_of(G, 0.9)[0]
    mixed = with_gradient_rows(hidden, 1)
    below = torch.arange(6)[None, :, None] > 2
    weight = mixed.blocks[1].weight * (1 - (1 - worth) * below)
    scaled_down = changed(mixed, {}, {"weight": weight})
    matrix, rhs = rows(scaled_down.scaled())
    values = torch.linalg.svdvals(matrix)
    found = solve_dense(scaled_down.scaled(), EPS)
    error = relative_error(found.value[..., 0].T, lstsq(matrix, rhs))
    assert found.rank.item() == G.unknowns
    assert error < 100 * EPS * (values[0] / values[-1]).item()


def test_a_faint_direction_counts_beside_one_that_is_not_seen():
    """1e-5 of the others is above the floor of 1e-7, although its square is not."""
    geometry = Geometry((1, 4, 4), (2, 4, 4), (1, 1), (1, 1), (0, 0), (1, 1))
    system, x = system_of(geometry, 1.0, gradient=False)
    row_weight = system.blocks[1].weight[0, 0]
    row_weight[:, 2, 1], row_weight[:, 0, 0] = 1e-5, 0.0
    found = solve_dense(system.scaled(), EPS)
    assert found.rank.item() == 15
    value = found.value[..., 0].reshape(4, 4)
    assert value[0, 0] == 0
    assert relative_error(value.flatten()[1:], x.flatten()[1:]) < 1e-9


@pytest.mark.parametrize("scaled", [True, False])
def test_a_direction_below_the_noise_of_the_equations_does_not_count(scaled):
    """One pixel is seen at a ten-thousandth of the others: a noise of 1e-3 drowns it."""
    geometry = Geometry((1, 4, 4), (2, 4, 4), (1, 1), (1, 1), (0, 0), (1, 1))
    system, x = system_of(geometry, 1.0, gradient=False)
    row_weight = system.blocks[1].weight[0, 0]
    row_weight[:, 2, 1] = 1e-4
    system = system.scaled() if scaled else system
    assert solve_dense(system, 1e-6).rank.item() == 16
    found = solve_dense(system, 1e-3)
    value = found.value[..., 0].reshape(4, 4)
    assert found.rank.item() == 15 and value[2, 1].abs() < 1e-9
    known = row_weight[0] > 1e-3
    assert relative_error(value[known], x[0][known]) < 1e-9


def test_more_unknowns_than_the_budget_are_declined_before_the_work():
    system, _ = system_of(G)
    with pytest.raises(ValueError, match=f"{G.unknowns} unknowns, more than 10"):
        solve_dense(system, EPS, budget=10)


def test_rows_are_weighed_by_their_own_error():
    """Two filters of three carry a hundredth of the noise: the answer is theirs."""
    system, x = system_of(G, 1.0)
    error = torch.full((3, 1, 1), 1e-6, dtype=torch.float64)
    error[0] = 1e-4
    gradient, output = system.blocks
    moved = changed(
        system,
        {
            "rhs": gradient.rhs + 1e-6 * normal(*gradient.rhs.shape, seed=10),
            "std": torch.tensor(1e-6).double(),
        },
        {
            "rhs": output.rhs + error / output.weight * normal(*output.rhs.shape, seed=9),
            "std": error.expand_as(output.rhs),
        },
    )
    by_size, by_noise = (
        relative_error(solve_dense(own, EPS).value.flatten(), x.flatten())
        for own in (moved.scaled(), moved.whitened())
    )
    assert by_noise < by_size / 10
    found = solve_dense(moved.whitened(), EPS)
    assert by_noise / 5 < found.error.item() < 5 * by_noise


def test_no_row_is_trusted_more_than_a_thousand_times_another():
    """The normal equations square it: rows of an error a million times smaller would be alone."""
    system = system_of(G, 1.0)[0]
    own = changed(system, *({"std": torch.tensor(e).double()} for e in (1e-9, 1e-3)))
    size = system.scaled().blocks[1].weight.norm()
    found = own.whitened().blocks[1].weight.norm()
    assert found.item() == pytest.approx(1e-3 * size.item())


def test_where_an_error_is_unknown_rows_are_weighed_by_their_size():
    system, _ = system_of(G, 0.5)
    own = changed(system, {"std": torch.tensor(1.0).double()})
    torch.testing.assert_close(own.whitened().rhs, system.scaled().rhs)


def test_where_no_error_is_told_none_is_expected():
    assert solve_dense(system_of(G)[0], EPS).error.item() == 0


@given(geometries(largest=5), SEEDS)
@settings(max_examples=60, deadline=None)
def test_single_precision_changes_no_digit_that_counts(g, seed):
    """Systems of every rank: what is left to single precision is solved as in double."""
    system, _ = system_of(g, known=0.6, seed=seed)
    system = system.scaled()
    double = solve_dense(system, EPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SINGLE_FROM", 1)
        found = solve_dense(system, EPS)
    assert found.rank.item() == double.rank.item()
    assert found.condition.item() == pytest.approx(double.condition.item(), rel=0.05)
    off = (found.value - double.value).norm()
    assert off <= 1e-11 * double.value.norm()


@pytest.mark.parametrize("lost", [0, 1, 40])
def test_a_large_system_is_factored_in_single_precision_only_where_its_rank_is_full(lost):
    """32 × 32 pixels, all but `lost` of them seen by weight rows of their own."""
    g = Geometry((1, 32, 32), (1, 32, 32), (1, 1), (1, 1), (0, 0), (1, 1))
    system, x = system_of(g, gradient=False)
    system.blocks[1].weight.view(-1)[:lost] = 0
    found = solve_dense(system.scaled(), EPS)
    single = found.method == ("Cholesky in single precision",)
    assert single == (lost == 0)
    assert found.rank.item() == 1024 - lost
    assert relative_error(found.value[0, lost:, 0], x.flatten()[lost:]) < 1e-14


def test_a_badly_conditioned_large_system_is_factored_in_double_precision():
    g = Geometry((1, 32, 32), (1, 32, 32), (1, 1), (1, 1), (0, 0), (1, 1))
    system, x = system_of(g, gradient=False)
    weight = torch.logspace(0, -4, 1024, dtype=torch.float64).reshape(1, 32, 32)
    found = solve_dense(changed(system, {}, {"weight": weight[None, None]}).scaled(), EPS)
    assert found.method == ("Cholesky",) and found.rank.item() == 1024
    assert relative_error(found.value[0, :, 0], x.flatten()) < 1e-12
