"""Systems that share nothing, solved at the same time: a thread for each."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import torch
from threadpoolctl import threadpool_limits

from rconv.linalg.solution import Solution

MEMORY = 2 * 2**30
"""Bytes that systems which are solved at the same time may take."""

BYTES = 24
"""Of a dense system for each entry of its normal matrix: the matrix and its factor, in single
precision and then in double."""

_ALONE = Lock()


def in_threads(
    solve: Callable[[int], Solution], count: int, unknowns: int, device: torch.device
) -> list[Solution]:
    """Solve systems, as many at a time as PyTorch has threads and as memory holds.

    Parameters
    ----------
    solve : callable
        Takes the number of a system, and has one thread for its algebra.
    count : int
        Systems.
    unknowns : int
        Of each, for its memory.
    device : torch.device
        Where they are: elsewhere than on the CPU they are solved one after the other.

    Returns
    -------
    list of Solution
        In the order of the systems.
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
