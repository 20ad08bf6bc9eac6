"""The Cholesky factorisation of SciPy's LAPACK, which other threads need not wait for.

SciPy's own wrapper holds Python's lock while it factors, so that two systems cannot be factored
side by side. Its LAPACK can be called without: its addresses are public, for Cython and for
ctypes, which gives the lock back.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from scipy.linalg import cython_lapack, get_lapack_funcs
from torch import Tensor

ROUTINES = {torch.float32: "spotrf", torch.float64: "dpotrf"}


def cholesky(gram: Tensor) -> Tensor | None:
    """The lower factor of a symmetric positive definite matrix.

    Parameters
    ----------
    gram : Tensor
        (n, n), float32 or float64, contiguous, on the CPU.

    Returns
    -------
    Tensor or None
        (n, n), what is above its diagonal left as it was; None where the matrix is singular.
    """
    routine = _routine(ROUTINES[gram.dtype])
    if routine is None:
        columns = gram.numpy().T
        packed, info = get_lapack_funcs(("potrf",), (columns,))[0](columns, lower=1, clean=0)
        return torch.from_numpy(packed) if info == 0 else None
    factor, size, info = gram.clone(), ctypes.c_int(len(gram)), ctypes.c_int()
    # LAPACK sees the transpose of what lies row by row, and of its upper factor the lower one.
    routine(b"U", size, factor.data_ptr(), size, info)
    return factor if info.value == 0 else None


@cache
def _routine(name: str) -> Callable[..., None] | None:
    """LAPACK's own, (triangle, n, matrix, n, info); None where integers are no C integers."""
    capsule = cython_lapack.__pyx_capi__[name]
    told = _pythonapi("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)(capsule)
    if told.count(b" int *") != 3:
        return None
    get = _pythonapi("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    integer = ctypes.POINTER(ctypes.c_int)
    kinds = ctypes.c_char_p, integer, ctypes.c_void_p, integer, integer
    return ctypes.CFUNCTYPE(None, *kinds)(get(capsule, told))


def _pythonapi(name: str, result: type, *kinds: type) -> Callable[..., object]:
    """A function of Python's own interface for C."""
    return ctypes.PYFUNCTYPE(result, *kinds)((name, ctypes.pythonapi))
