"""Least squares: known solutions, systems made singular on purpose, and how good it says it is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from small import SEEDS, normal, relative_error

from rconv.linalg import columns as solvers
from rconv.linalg.columns import independent
from rconv.linalg.dense import SINGLE_FROM, determines
from rconv.linalg.gauss_newton import Change, gauss_newton, roots_of
from rconv.linalg.refine import LIMIT, refine
from rconv.linalg.solution import CONDITION_LIMIT, Solution, relative, root_mean_square
from rconv.linalg.sparse import SparseFactor
from rconv.linalg.system import System

pytestmark = pytest.mark.arithmetic

EPS = 2.0**-53


def least_squares(matrix, rhs, tolerance):
    return solvers.least_squares(System.dense(matrix, rhs), tolerance)


def minimum_norm(matrix, rhs, tolerance):
    return solvers.minimum_norm(System.dense(matrix, rhs), tolerance)


SOLVERS = pytest.mark.parametrize("solve", [least_squares, minimum_norm])


def with_singular_values(values, rows, seed=0):
    """A (rows, n) matrix with these singular values and random singular vectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    left = torch.linalg.qr(normal(rows, n, seed=seed)).Q
    right = torch.linalg.qr(normal(n, n, seed=seed + 1)).Q
    return left * values @ right.T


def spectra(largest=1e6):
    return st.tuples(SEEDS, st.floats(1, largest), st.integers(2, 24))


def geometric(condition, n):
    return torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)


@SOLVERS
@given(SEEDS, st.integers(1, 4), st.integers(1, 12), st.integers(0, 8), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_known_solution_is_recovered(solve, seed, images, n, more, columns):
    matrix = torch.stack(
        [with_singular_values(geometric(50, n), n + more, seed + i) for i in range(images)]
    )
    x = normal(images, n, columns, seed=seed + 9)
    found = solve(matrix, matrix @ x, EPS)
    torch.testing.assert_close(found.value, x, rtol=1e-11, atol=1e-11)
    assert found.rank.tolist() == [n] * images
    assert (found.residual < 1e-13).all()


@given(spectra())
@settings(max_examples=40, deadline=None)
def test_the_condition_is_within_a_factor_of_three(case):
    seed, condition, n = case
    matrix = with_singular_values(geometric(condition, n), n + 5, seed)[None]
    found = least_squares(matrix, normal(1, n + 5, 1), EPS).condition.item()
    assert condition / 3 <= found <= condition * 1.01
    exact = minimum_norm(matrix, normal(1, n + 5, 1), EPS).condition.item()
    assert exact == pytest.approx(condition, rel=1e-6)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 9e6, 1e8, 1e10])
def test_refinement_keeps_the_digits_that_the_normal_equations_lose(condition):
    """Error of the order of condition · ε, not condition² · ε, on both sides of the limit."""
    matrix = with_singular_values(geometric(condition, 30), 40)[None]
    x = normal(1, 30, 2, seed=3)
    found = least_squares(matrix, matrix @ x, EPS)
    assert relative_error(found.value, x) < 100 * condition * EPS
    assert found.rank.item() == 30


@SOLVERS
@given(SEEDS, st.integers(2, 16), st.data())
@settings(max_examples=40, deadline=None)
def test_short_rank_is_counted_and_solved_with_minimum_norm(solve, seed, n, data):
    rank = data.draw(st.integers(1, n - 1))
    values = torch.cat([geometric(100, rank), torch.zeros(n - rank)])
    matrix = with_singular_values(values, n + 3, seed)[None]
    rhs = matrix @ normal(1, n, 2, seed=seed + 5)
    found = solve(matrix, rhs, 10 * EPS)  # the matrix itself is rounded
    expected = torch.linalg.pinv(matrix[0], rtol=1e-9) @ rhs[0]
    assert found.rank.item() == rank
    torch.testing.assert_close(found.value[0], expected, rtol=1e-9, atol=1e-9)
    assert found.residual.item() < 1e-12
    expected = 100 if rank > 1 else 1
    assert found.condition.item() == pytest.approx(expected, rel=1e-6)


@SOLVERS
def test_wide_systems_have_minimum_norm(solve):
    matrix = normal(1, 5, 9)
    rhs = normal(1, 5, 1, seed=1)
    found = solve(matrix, rhs, EPS)
    assert found.rank.item() == 5
    expected = torch.linalg.pinv(matrix[0]) @ rhs[0]
    torch.testing.assert_close(found.value[0], expected, rtol=1e-10, atol=1e-10)


@SOLVERS
def test_a_zero_matrix_has_rank_zero_and_solution_zero(solve):
    found = solve(torch.zeros(2, 5, 3).double(), normal(2, 5, 1), EPS)
    assert found.rank.tolist() == [0, 0]
    assert (found.value == 0).all()
    assert (found.condition == math.inf).all()
    assert found.residual.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_singular_image_does_not_change_its_neighbours(place):
    matrix = normal(3, 12, 8)
    matrix[place, :, 3] = 0
    x = normal(3, 8, 2, seed=1)
    rhs = matrix @ x
    together = least_squares(matrix, rhs, EPS)
    assert together.rank.tolist() == [7 if i == place else 8 for i in range(3)]
    for i in range(3):
        alone = least_squares(matrix[i : i + 1], rhs[i : i + 1], EPS)
        torch.testing.assert_close(together.value[i], alone.value[0], rtol=1e-10, atol=1e-12)
        assert together.condition[i].item() == pytest.approx(alone.condition.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("smallest", "tolerance", "rank"),
    [
        (1e-3, EPS, 10),
        (1e-3, 1e-2, 9),
        (1e-9, EPS, 10),  # beyond the normal equations' limit, yet a direction that is known
        (1e-9, 6e-8, 9),  # float32 rounding: not known
        (1e-17, EPS, 9),
    ],
)
def test_directions_below_the_rounding_do_not_count(smallest, tolerance, rank):
    values = torch.ones(10, dtype=torch.float64)
    values[-1] = smallest
    matrix = with_singular_values(values, 15)[None]
    found = least_squares(matrix, matrix @ normal(1, 10, 1), tolerance)
    assert found.rank.item() == rank


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("single", [True, False], ids=["one small value", "geometric"])
def test_amplification_is_what_noisy_right_hand_sides_do(condition, single):
    """Monte Carlo: independent errors on b, relative error of x by relative error of b."""
    n, rows, trials, noise = 12, 18, 400, 1e-6
    values = geometric(condition, n)
    if single:
        values = torch.cat([torch.ones(n - 1), torch.tensor([1 / condition])])
    matrix = with_singular_values(values, rows)[None]
    x = normal(1, n, 1, seed=3)
    rhs = matrix @ x
    size = root_mean_square(rhs).item()
    errors = noise * size * normal(1, rows, trials, seed=4)
    moved = least_squares(matrix, rhs + errors, EPS).value
    measured = (root_mean_square(moved - x) / root_mean_square(x)).item() / noise
    for solve in (least_squares, minimum_norm):
        found = solve(matrix, rhs, EPS).amplification.item()
        # Four probes tell the mean of 1 / σ² to a factor; the SVD tells it exactly.
        factor = 1.2 if solve is minimum_norm else 4
        assert measured / factor < found < measured * factor


def test_residual_is_that_of_the_inconsistent_part():
    matrix = torch.zeros(1, 4, 2).double()
    matrix[0, 0, 0] = matrix[0, 1, 1] = 1
    rhs = torch.tensor([[[3.0], [0.0], [4.0], [0.0]]]).double()
    assert least_squares(matrix, rhs, EPS).residual.item() == pytest.approx(0.8)


@given(SEEDS, st.floats(-120, 120))
@settings(max_examples=30, deadline=None)
def test_a_common_unit_changes_nothing_but_the_unit(seed, exponent):
    unit = 10.0**exponent
    matrix = normal(1, 9, 6, seed=seed)
    rhs = normal(1, 9, 1, seed=seed + 1)
    plain, scaled = (least_squares(matrix, b, EPS) for b in (rhs, rhs * unit))
    torch.testing.assert_close(scaled.value / unit, plain.value, rtol=1e-9, atol=0)
    for name in ("rank", "condition", "amplification", "residual"):
        torch.testing.assert_close(
            getattr(scaled, name), getattr(plain, name), rtol=1e-6, atol=1e-14
        )


def test_relative_and_root_mean_square():
    residual = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    rhs = torch.tensor([[0.0, 10.0], [0.0, 0.0], [0.0, 0.0]])
    assert relative(residual, rhs).tolist() == [0.5, 0.0, 1.0]
    assert root_mean_square(residual)[0].item() == pytest.approx(math.sqrt(12.5))


def solution(*values):
    t = torch.tensor(values).double()
    words = tuple(map(str, values))
    return Solution(t[:, None, None], t.long(), t, t, t, t, t.long(), words, words)


def test_solutions_are_joined_and_replaced_image_by_image():
    joined = Solution.concatenate([solution(1, 2), solution(3)])
    assert joined.rank.tolist() == [1, 2, 3]
    changed = joined.replace(torch.tensor([1]), solution(9))
    assert changed.value.flatten().tolist() == [1, 9, 3]
    assert changed.condition.tolist() == changed.residual.tolist() == [1, 9, 3]
    assert joined.value.flatten().tolist() == [1, 2, 3]


def sparse_matrix(rows, n, condition, seed=0):
    return sparse.csr_matrix(with_singular_values(geometric(condition, n), rows, seed).numpy())


@pytest.mark.parametrize("rows", [20, 21, 50], ids=["square", "nearly square", "tall"])
@pytest.mark.parametrize("condition", [2.0, 1e4])
def test_a_sparse_system_recovers_known_solutions_and_says_how_well(rows, condition):
    matrix = sparse_matrix(rows, 20, condition)
    system = SparseFactor(matrix)
    assert system.regular
    x = normal(3, 20)
    rhs = torch.from_numpy(x.numpy() @ matrix.T)
    found = system.solve(rhs)
    assert relative_error(found.value[..., 0], x) < 1e3 * condition * EPS
    assert found.rank.tolist() == [20] * 3
    assert (found.residual < 1e-13).all()
    assert (condition / 3 <= found.condition).all() and (found.condition <= condition * 1.01).all()
    exact = minimum_norm(torch.from_numpy(matrix.toarray())[None], rhs[:1, :, None], EPS)
    ratio = (found.amplification[0] / exact.amplification[0]).item()
    assert 1 / 4 < ratio < 4


def test_a_tall_sparse_system_is_least_squares_where_it_is_inconsistent():
    matrix = sparse_matrix(40, 20, 100)
    rhs = normal(2, 40)
    system = SparseFactor(matrix)
    found = system.solve(rhs)
    expected = np.linalg.lstsq(matrix.toarray(), rhs.numpy().T, rcond=None)[0].T
    np.testing.assert_allclose(found.value[..., 0].numpy(), expected, rtol=1e-9, atol=1e-9)
    left = np.linalg.norm(rhs.numpy() - expected @ matrix.T, axis=1)
    expected = left / np.linalg.norm(rhs.numpy(), axis=1)
    np.testing.assert_allclose(found.residual.numpy(), expected, rtol=1e-9)


def zero_column(rows):
    dense = normal(rows, 6).numpy()
    dense[:, 2] = 0
    return dense


SINGULAR = [
    pytest.param(zero_column(6), id="square, an unknown in no equation"),
    pytest.param(zero_column(9), id="tall, an unknown in no equation"),
    pytest.param(np.ones((4, 4)), id="square, one equation four times"),
    pytest.param(np.ones((6, 4)), id="tall, one equation six times"),
    pytest.param(np.diag([1.0, 1.0, 1e-15]), id="square, beyond the limit"),
    pytest.param(np.diag([1.0, 1.0, 1e-9])[[0, 1, 2, 0]], id="tall, beyond the limit"),
]


@pytest.mark.parametrize("dense", SINGULAR)
def test_singular_sparse_systems_say_so(dense):
    assert not SparseFactor(sparse.csr_matrix(dense)).regular


def test_a_square_system_is_regular_beyond_the_limit_of_the_normal_equations():
    condition = 100 * CONDITION_LIMIT
    system = SparseFactor(sparse.csr_matrix(np.diag([1.0, 0.5, 1 / condition])))
    assert system.regular
    assert system.spectrum.condition.item() == pytest.approx(condition, rel=1e-3)


@pytest.mark.parametrize("short", [False, True], ids=["full rank", "short of rank"])
def test_independent_systems_are_one_block_diagonal_system(short):
    a, b = normal(3, 9, 5, seed=1), 1e-3 * normal(3, 8, 4, seed=2)
    if short:
        b[..., 3] = b[..., 2]
    y, z = normal(3, 9, 2, seed=3), 5 * normal(3, 8, 2, seed=4)
    parts = [least_squares(a, y, EPS), least_squares(b, z, EPS)]
    found = independent(parts, [y.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1)])
    whole = torch.stack([torch.block_diag(p, q) for p, q in zip(a, b, strict=True)])
    expected = minimum_norm(whole, torch.cat([y, z], dim=1), EPS)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-9, atol=0)
    assert torch.equal(found.rank, 2 * expected.rank), "of both columns"
    assert torch.equal(found.condition, torch.maximum(parts[0].condition, parts[1].condition))


def test_amplification_of_independent_systems_is_dominated_by_the_larger_solution():
    """Monte Carlo: each right-hand side with an error of its own relative size."""
    matrices = [normal(1, 12, 4, seed=5), 1e-2 * normal(1, 12, 4, seed=6)]
    rhs = [normal(1, 12, 1, seed=7), normal(1, 12, 1, seed=8)]

    def solved(sides):
        parts = [least_squares(m, r, EPS) for m, r in zip(matrices, sides, strict=True)]
        return independent(parts, [r.flatten(1).norm(dim=1) for r in sides])

    exact, noise, errors = solved(rhs), 1e-6, []
    for trial in range(200):
        moved = [
            r
            + noise * root_mean_square(r)[:, None, None] * normal(*r.shape, seed=9 + 2 * trial + k)
            for k, r in enumerate(rhs)
        ]
        errors.append((solved(moved).value - exact.value).square().sum())
    measured = float((torch.stack(errors).mean() / exact.value.square().sum()).sqrt()) / noise
    assert measured / 2 < exact.amplification.item() < measured * 2


def test_a_solution_says_how_it_was_found():
    matrix = with_singular_values(geometric(10.0, 6), 9)[None]
    short = matrix.clone()
    short[:, :, 0] = 0
    rhs = normal(2, 9, 1)
    found = least_squares(torch.cat([matrix, short]), rhs, EPS)
    assert found.method == ("Cholesky", "SVD")
    assert found.status == ("converged", "direct")
    assert found.iterations.tolist()[1] == 0
    system = SparseFactor(sparse.csr_matrix(matrix[0].numpy()))
    found = system.solve(rhs[..., 0])
    assert found.method == ("sparse LU",) * 2
    assert found.status == ("converged",) * 2


def test_corrections_are_counted_and_a_stall_is_told():
    start = torch.full((3, 1, 1), 0.9, dtype=torch.float64)
    truth = torch.tensor([1.0, 1.0, 1.0]).reshape(3, 1, 1).double()
    factor = torch.tensor([1.0, 0.9, 0.0]).reshape(3, 1, 1).double()
    value, iterations, status = refine(lambda x: factor * (truth - x) + (factor == 0) * 1.0, start)
    assert status == ("converged", "converged", "stalled")
    assert iterations[0] < iterations[1] < LIMIT and iterations[2] == 0
    assert value[:2].flatten().tolist() == pytest.approx([1, 1])


def test_independent_parts_say_all_that_they_are():
    short = normal(1, 6, 3)
    short[..., 2] = 0
    parts = [least_squares(m, normal(1, 6, 1), EPS) for m in (normal(1, 6, 3, seed=1), short)]
    found = independent(parts, [torch.ones(1).double()] * 2)
    assert found.status == ("converged and direct",) and found.method == ("Cholesky and SVD",)


@pytest.mark.parametrize(("ratio", "weight"), [(1e-2, 1e-2), (1e-6, 1e-3)])
def test_rows_are_weighed_by_their_own_error_as_far_as_it_is_trusted(ratio, weight):
    """Half the rows are surer than the others; the answer is theirs."""
    matrix, x = normal(1, 24, 6), normal(1, 6, 1, seed=1)
    deviation = torch.full((1, 24, 1), 1e-2).double()
    deviation[:, :12] *= ratio
    rhs = matrix @ x + deviation * normal(1, 24, 1, seed=2)
    rows = System.dense(matrix, rhs, deviation)
    own = rows.whitened()
    ratios = own.blocks[0].weight / own.blocks[0].weight.amax()
    expected = torch.where(deviation == deviation.amax(), weight, 1.0).double()
    torch.testing.assert_close(ratios, expected)
    plain, weighed = (relative_error(solvers.least_squares(r, EPS).value, x) for r in (rows, own))
    assert weighed < plain / 10


def test_the_expected_error_is_that_of_the_rows_deviations():
    matrix, x = with_singular_values(geometric(100.0, 8), 20)[None], normal(1, 8, 1)
    deviation = 1e-3 * torch.ones(1, 20, 1, dtype=torch.float64)
    deviation[:, :10] = 0
    found = solvers.least_squares(System.dense(matrix, matrix @ x, deviation), EPS)
    relative = deviation[:, 10:].square().mean().sqrt() / (matrix @ x).square().mean().sqrt()
    assert found.error.item() == pytest.approx((found.amplification * relative).item(), rel=1e-9)
    assert least_squares(matrix, matrix @ x, EPS).error.item() == 0


@pytest.mark.parametrize("change", ["none", "condition", "two equal", "sum", "fifty"])
def test_a_matrix_of_short_rank_determines_nothing_in_any_precision(change):
    matrix = normal(SINGLE_FROM + 500, SINGLE_FROM)
    if change == "condition":
        matrix[:, 0] = matrix[:, 1] + 1e-4 * matrix[:, 0]
    elif change == "two equal":
        matrix[:, 0] = matrix[:, 1]
    elif change == "sum":
        matrix[:, 0] = matrix[:, 1:].sum(dim=1) / SINGLE_FROM**0.5
    elif change == "fifty":
        matrix[:, :50] = matrix[:, 50:100] - 0.3 * matrix[:, 100:150]
    system = System.dense(matrix[None], matrix[None, :, :1])
    assert determines(system, 1e-16) == (change in ("none", "condition"))


def test_an_iteration_that_diverges_ends_without_an_error():
    """A step through softened kinks gave NaN, and its preconditioner no Cholesky factor."""
    nothing = torch.full((3, 3), torch.nan).double()
    root, inverse = roots_of(nothing, torch.tensor(torch.nan).double())
    assert torch.equal(root, torch.eye(3).double()) and torch.equal(inverse, root)
    system = System.dense(torch.eye(3).double()[None], torch.full((1, 3, 1), torch.nan).double())
    found = gauss_newton(lambda x: (system, Change.none()), torch.zeros(3))
    assert found.residual == torch.inf and found.steps == 0 and not found.converged
