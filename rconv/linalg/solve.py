"""The only place that chooses a solver.

What a system is made of decides, and how large it is:

| rows | solver | measured |
| --- | --- | --- |
| of single channels | small systems that columns share (`columns`) | 100 images together |
| all of a model's weight rows | a sparse factorisation per model (`sparse`) | 1.6 ms an image |
| both, few weak directions | the parts, then these (`deflation`) | 3,000 directions at most |
| both, up to `DENSE` unknowns | dense Cholesky (`dense`), one thread an image | 1 s for 3,072 |
| larger | preconditioned LSMR (`iterative`) | 0.7 s for 9,408, dense 10 s |
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from rconv.linalg.columns import solve_columns
from rconv.linalg.deflation import deflated
from rconv.linalg.dense import MAX_UNKNOWNS, solve_dense
from rconv.linalg.iterative import solve_iterative
from rconv.linalg.operator import Entries
from rconv.linalg.solution import Solution, root_mean_square
from rconv.linalg.sparse import SparseFactor
from rconv.linalg.system import System

DENSE = {"one sample": MAX_UNKNOWNS, "several": 3_000}
"""Unknowns up to which a dense factorisation is taken. Of several samples it needs 0.1 s for 1,000
unknowns, 0.9 s for 3,000 and 1.8 s for 4,000; LSMR 0.1 to 0.4 s for any of these where the
condition is 10, and 17 s where the rank is short. For one sample the exact rank, which bounds and
the prior need, is worth more than the time."""

CLASS = 4_096
"""Unknowns of a column up to which rows of single channels are factored. A class of 3,136 pixels
takes 0.5 s and 80 MB and serves all channels; LSMR would take 20 s for 160 of them."""

MEMORY = 2 * 2**30
"""Bytes that systems which are solved at the same time may take."""

BYTES = 24
"""Of a dense system for each entry of its normal matrix: the matrix and its factor, in single
precision and then in double."""

_ALONE = Lock()


def solve(system: System, tolerance: Tensor, samples: int = 1) -> Solution:
    """Solve N systems, k = 1, each for the unknowns of B samples: value (N·B, n / B, 1).

    The tolerance (N,) is the relative noise of the equations.
    """
    if not system.couples and _columns_fit(system):
        return solve_columns(system, tolerance).per_sample(samples)
    factored = _by_factor(system, tolerance, samples)
    if factored is not None:
        return factored

    def one(i: int) -> Solution:
        return _solve_one(system.select([i]), float(tolerance[i]), samples)

    count, device = len(system.blocks[0].rhs), system.blocks[0].rhs.device
    return Solution.concatenate(in_threads(one, count, system.count, device))


def is_dense(system: System, samples: int = 1) -> bool:
    """Whether a system of these samples is small enough for a dense factorisation."""
    return system.count <= DENSE["one sample" if samples == 1 else "several"]


def _solve_one(system: System, tolerance: float, samples: int) -> Solution:
    whitened = system.whitened()
    several = len([b for b in system.used if not b.operator.couples]) > 1
    entries = any(isinstance(b.operator, Entries) for b in system.used)
    if system.couples and (several or entries) and _columns_fit(system):
        found = deflated(whitened, tolerance)
        if found is not None:
            return found.per_sample(samples)
    if is_dense(system, samples):
        return solve_dense(whitened, tolerance).per_sample(samples)
    found = solve_iterative(_as_they_are(system) or whitened, samples)
    short = bool((found.rank < system.unknowns // samples).any())
    if short and _as_they_are(system) is not None:
        factor = system.used[0].operator.factor
        return found if factor is None else _factored(system, factor)
    return found


def _columns_fit(system: System) -> bool:
    """Whether the parts of the rows that meet one channel each are small enough to be factored."""
    return system.column_size <= CLASS


def _as_they_are(system: System) -> System | None:
    """All weight rows of a model with equal weights; None where some are missing, or others used.

    Outputs that are all known determine the input exactly, if at all. Unweighted, the rows are
    better conditioned than weighted by their errors, and one factorisation serves all images.
    """
    used = system.used
    if system.fixed is not None or len(used) != 1 or not hasattr(type(used[0].operator), "factor"):
        return None
    if not bool((used[0].weight != 0).all()):
        return None
    return replace(system, blocks=(used[0].scaled(1 / used[0].weight),)).scaled()


def _by_factor(system: System, tolerance: Tensor, samples: int) -> Solution | None:
    """By the sparse factorisation of a model's weight rows, where it exists and is worth it."""
    if samples > 1 or not is_dense(system) or _as_they_are(system) is None:
        return None
    factor = system.used[0].operator.factor
    return None if factor is None else _factored(system, factor)


def _factored(system: System, factor: SparseFactor) -> Solution:
    block = system.used[0]
    std = (block.std / block.weight).expand_as(block.rhs).flatten(1)
    rhs = block.rhs.flatten(1)
    size = root_mean_square(rhs)
    noise = root_mean_square(std) / torch.where(size > 0, size, 1.0)
    return factor.solve(rhs, std, noise.clamp(max=1.0))


def in_threads(
    solve: Callable[[int], Solution], count: int, unknowns: int, device: torch.device
) -> list[Solution]:
    """Solve systems, as many at a time as PyTorch has threads and as memory holds.

    Each call has one thread for its algebra. Elsewhere than on the CPU systems are solved one after
    the other.
    """
    fit = int(MEMORY / (BYTES * unknowns**2))
    threads = min(torch.get_num_threads(), count, fit)
    if threads < 2 or device.type != "cpu":
        return [solve(i) for i in range(count)]
    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(solve, range(count)))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """PyTorch's and NumPy's own threads switched off, and on again."""
    with _ALONE, threadpool_limits(1, "blas"):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
