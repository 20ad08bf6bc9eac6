"""Many small dense systems at once: batched normal equations with refinement.

Where no row meets two channels of the unknown, a map's equations fall into small systems that many
columns share. An SVD takes the few that are short of rank.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.linalg.operator import Entries, Matrix, shared
from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, DIRECT, Solution, Spectrum, rank_floor, relative
from rconv.linalg.system import Rows, System

MOST = 2**25
"""Entries of the normal matrices that are made at a time."""


def solve_columns(system: System, tolerance: Tensor) -> Solution:
    """Solve a map's equations, k = 1, where no row meets two channels; value (N, n, 1).

    The tolerance (N,) is the relative error of the equations.
    """
    whitened = system if len(system.used) == 1 else system.whitened()
    if not any(isinstance(b.operator, Entries) for b in system.used):
        parts = whitened.parts()
        if all(shared(b.weight) for part, _ in parts for b in part.blocks):
            return _of_parts(whitened, parts, tolerance)
    whitened, each = system.whitened(), range(len(system.blocks[0].rhs))
    return Solution.concatenate(
        [_column_by_column(whitened.select([i]), tolerance[i]) for i in each]
    )


def _of_parts(system: System, parts: list[tuple[System, Tensor]], tolerance: Tensor) -> Solution:
    """Parts whose columns share their matrices."""
    # Equal errors need no weights; others weigh the rows of each part for themselves.
    each = []
    for part, _ in parts:
        numbers = (1, len(part.blocks[0].rhs))
        equal = len(part.blocks) == 1 and part.blocks[0].std.numel() in numbers
        each.append(part if equal else part.whitened())
    solved = [least_squares(part, tolerance) for part in each]
    sizes = [part.rhs.flatten(1).norm(dim=1) for part in each]
    value = system.blocks[0].rhs.new_zeros(len(sizes[0]), system.unknowns)
    for solution, (_, index) in zip(solved, parts, strict=True):
        value[:, index.to(value.device)] = solution.value
    return replace(independent(solved, sizes), value=value[..., None])


def _column_by_column(system: System, tolerance: Tensor) -> Solution:
    """One system whose channels differ in the entries that are known, or in the rows."""
    entries = [b for b in system.used if isinstance(b.operator, Entries)]
    value = system.blocks[0].rhs.new_zeros(system.unknowns)
    solved, sizes = [], []
    if not system.column_size:
        return _entries_alone(system, entries)
    for part, index in system.parts():
        for cut in torch.arange(index.shape[1]).split(max(1, MOST // index.shape[0] ** 2)):
            columns = columns_of(part, entries, index, cut)
            found = least_squares(columns, tolerance)
            value[index[:, cut].to(value.device)] = found.value[..., 0].mT
            sizes.append(columns.rhs.flatten(1).norm(dim=1))
            solved.append(found)
    each = [one for found in solved for one in found.split()]
    return replace(independent(each, list(torch.cat(sizes)[:, None])), value=value[None, :, None])


def _entries_alone(system: System, entries: list[Rows]) -> Solution:
    """What known entries say where no rows are observed; zero where they say nothing."""
    like = system.blocks[0].rhs
    value, known, std = (like.new_zeros(system.unknowns) for _ in range(3))
    for block in entries:
        weight, spread = (v.expand(block.rhs.shape).flatten() for v in (block.weight, block.std))
        known = (weight > 0).to(like)
        value = torch.where(weight > 0, block.rhs.flatten(), 0.0)
        std = torch.where(weight > 0, spread / weight.clamp(min=1e-300), 0.0)
    size = value.norm().clamp(min=1e-300)
    error = (std.norm() / size)[None].clamp(max=1.0)
    one, rank = torch.ones_like(error), known.sum()[None].long()
    error, condition = (torch.where(rank > 0, field, field.new_tensor(other))
                        for field, other in ((error, 1.0), (one, torch.inf)))  # fmt: skip
    fields = rank, condition, one, 0 * one, error, torch.zeros_like(rank)
    return Solution(value[None, :, None], *fields, ("entries",), (DIRECT,))


def columns_of(part: System, entries: list[Rows], index: Tensor, cut: Tensor) -> System:
    """Some columns of one part as systems of their own, with the entries that each knows.

    The part has N = 1 and k columns; `entries` are the known entries of the whole unknown, in one
    block at most. `index` (p, k) holds the places of the part's unknowns. Each column of `cut`
    (k',) becomes one of N = k' systems.
    """

    def chosen(values: Tensor) -> Tensor:
        return values if shared(values) else values[0][:, cut].mT[..., None]

    blocks = tuple(
        Rows(b.operator, chosen(b.rhs), chosen(b.std), chosen(b.weight)) for b in part.blocks
    )
    place = index[:, cut].mT
    for b in entries:
        each = (v.expand(b.rhs.shape).flatten()[place][..., None] for v in (b.rhs, b.std, b.weight))
        blocks += (Rows(Entries((len(index), 1)), *each),)
    return System(blocks, len(index))


def least_squares(system: System, tolerance: float | Tensor) -> Solution:
    """Solve a batch of small dense systems; value (N, n, k), of minimum norm if rank-deficient.

    Of matrices that are written out, and entries: N systems of n unknowns and k columns. The
    tolerance is the relative error of A and b, one for all or (N,), and sets the `rank_floor`.
    """
    gram = system.gram()
    factor, info = torch.linalg.cholesky_ex(gram)
    spectrum = Spectrum.estimate(
        lambda v: gram @ v, lambda v: torch.cholesky_solve(v, factor), gram[..., 0]
    )

    def correction(value: Tensor) -> Tensor:
        return torch.cholesky_solve(system.adjoint(system.residual(value)), factor)

    start = torch.cholesky_solve(system.adjoint(system.rhs), factor)
    value, iterations, status = refine(correction, start)
    rank = torch.full(gram.shape[:1], gram.shape[-1], device=gram.device)
    solution = _solution(system, value, rank, spectrum, iterations, "Cholesky", status)
    tolerance = torch.as_tensor(tolerance).to(gram).expand(len(gram))
    limit = (1 / rank_floor(tolerance)).clamp(max=CONDITION_LIMIT)
    failed = (info != 0) | ~(spectrum.condition < limit)
    for i in failed.nonzero()[:, 0].tolist():
        solution = solution.replace(i, minimum_norm(system.select([i]), tolerance[i]))
    return solution


def minimum_norm(system: System, tolerance: float | Tensor) -> Solution:
    """`least_squares` by SVD: exact rank, solution of minimum norm, some 50 times slower."""
    rhs = system.rhs
    matrix = _written_out(system)
    floor = rank_floor(torch.as_tensor(tolerance).to(matrix)).reshape(-1, 1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    counts = s > s[:, :1] * floor
    inverse = torch.where(counts, 1 / torch.where(counts, s, 1.0), 0.0)
    value = vt.mT @ (inverse[..., None] * (u.mT @ rhs))
    spectrum = Spectrum(s[:, 0] * inverse.amax(dim=1), inverse.square().mean(dim=1))
    condition = torch.where(counts.any(dim=1), spectrum.condition, torch.inf)
    spectrum, none = Spectrum(condition, spectrum.inverse_square), torch.zeros_like(counts[:, 0])
    status = (DIRECT,) * len(value)
    return _solution(system, value, counts.sum(dim=1), spectrum, none.long(), "SVD", status)


def _written_out(system: System) -> Tensor:
    """All rows as one matrix, (N, m, n)."""
    identity = torch.eye(system.unknowns).to(system.rhs)
    rows = []
    for block in system.blocks:
        values = block.operator.values if isinstance(block.operator, Matrix) else identity
        rows.append((values * block.weight).expand(len(system.rhs), -1, -1))
    return torch.cat(rows, dim=1)


def _solution(
    system: System,
    value: Tensor,
    rank: Tensor,
    spectrum: Spectrum,
    iterations: Tensor,
    method: str,
    status: tuple[str, ...],
) -> Solution:
    """A value with what follows from its spectrum and from the equations."""
    std = system.std
    return Solution(
        value,
        rank,
        spectrum.condition,
        spectrum.amplification(system.rhs, value),
        relative(system.residual(value), system.rhs),
        spectrum.amplification(std, value),
        iterations,
        (method,) * len(value),
        status,
    )


def independent(parts: list[Solution], sizes: list[Tensor]) -> Solution:
    """One solution, value (N, Σ n_i, k), of systems that share neither equation nor unknown.

    `sizes` are the norms (N,) of their right-hand sides. Its rank is that of all columns, its
    condition the worst one, and its amplification is for errors relative to each part's own
    right-hand side.
    """
    values = [part.value for part in parts]
    norms = torch.stack([value.flatten(1).norm(dim=1) for value in values])
    return Solution(
        torch.cat(values, dim=1),
        torch.stack([part.rank * part.value.shape[2] for part in parts]).sum(dim=0),
        torch.stack([part.condition for part in parts]).amax(dim=0),
        _weighted_mean(torch.stack([part.amplification for part in parts]), norms),
        _weighted_mean(torch.stack([part.residual for part in parts]), torch.stack(sizes)),
        _weighted_mean(torch.stack([part.error for part in parts]), norms),
        torch.stack([part.iterations for part in parts]).amax(dim=0),
        tuple(map(_all, zip(*(part.method for part in parts), strict=True))),
        tuple(map(_all, zip(*(part.status for part in parts), strict=True))),
    )


def _all(words: tuple[str, ...]) -> str:
    """The words that occur, each once."""
    return " and ".join(dict.fromkeys(words))


def _weighted_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """Root mean square over the first axis, weighted by the squares of `sizes`."""
    total = sizes.norm(dim=0)
    return (values * sizes).norm(dim=0) / torch.where(total > 0, total, 1.0)
