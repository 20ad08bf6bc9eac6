"""Systems solved at the same time, and the factorisation that lets them."""

import threading

import numpy as np
import pytest
import torch

from rconv.linalg import dense as lapack
from rconv.linalg import solve as threads
from rconv.linalg.solve import in_threads

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_systems_are_solved_at_the_same_time_and_come_back_in_their_order(two_threads) -> None:
    meet = threading.Barrier(2, timeout=60)

    def solve(i: int) -> tuple[int, int]:
        meet.wait()  # one after the other would wait for ever
        return i, torch.get_num_threads()

    assert in_threads(solve, 4, 10, CPU) == [(i, 1) for i in range(4)]
    assert torch.get_num_threads() == 2


def test_a_system_that_fails_gives_the_threads_back(two_threads) -> None:
    def solve(i: int) -> None:
        raise ValueError(f"system {i}")

    with pytest.raises(ValueError, match="system 0"):
        in_threads(solve, 3, 10, CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("count", "unknowns", "device"),
    [(1, 10, CPU), (3, 12_000, CPU), (3, 10, torch.device("meta"))],
    ids=["one", "large", "elsewhere"],
)
def test_one_after_the_other_where_that_is_better(two_threads, count, unknowns, device) -> None:
    here = threading.get_ident()
    found = in_threads(lambda i: (i, threading.get_ident()), count, unknowns, device)
    assert found == [(i, here) for i in range(count)]


def test_memory_bounds_how_many_are_solved_at_once(two_threads, monkeypatch) -> None:
    monkeypatch.setattr(threads, "MEMORY", threads.BYTES * 10**2)
    here = threading.get_ident()
    assert set(in_threads(lambda i: threading.get_ident(), 3, 10, CPU)) == {here}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [True, False], ids=["without the lock", "SciPy's wrapper"])
def test_cholesky_is_numpys(dtype, own, monkeypatch) -> None:
    if own:
        assert lapack._routine(lapack.ROUTINES[dtype]) is not None
    else:
        monkeypatch.setattr(lapack, "_routine", lambda name: None)
    a = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=dtype)
    gram = a.mT @ a
    before = gram.clone()
    expected = np.linalg.cholesky(gram.double().numpy())
    factor = lapack.cholesky(gram).tril().double().numpy()
    assert np.abs(factor - expected).max() < 100 * torch.finfo(dtype).eps * np.abs(expected).max()
    assert torch.equal(gram, before)


@pytest.mark.parametrize("own", [True, False], ids=["without the lock", "SciPy's wrapper"])
def test_a_matrix_that_is_not_definite_has_no_factor(own, monkeypatch) -> None:
    if not own:
        monkeypatch.setattr(lapack, "_routine", lambda name: None)
    assert lapack.cholesky(torch.diag(torch.tensor([1.0, -1.0, 1.0]))) is None
