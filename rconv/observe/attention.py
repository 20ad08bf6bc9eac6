"""Attention as plain matrix products, which have derivatives for every image by itself."""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def differentiable_attention() -> Iterator[None]:
    """Keep PyTorch from its fused kernels of attention, and put the choice back afterwards.

    The fast path of nn.MultiheadAttention has no derivative, and vmap hides from it that one is
    wanted. The fused products have no rule for vmap.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
