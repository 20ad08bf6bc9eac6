"""What is known of the errors of the gradients."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rounding:
    """What a dtype rounds: the relative error of its numbers, and the absolute error near 0."""

    relative: float
    absolute: float

    @staticmethod
    def of(dtype: torch.dtype) -> "Rounding":
        """Half the spacing of the dtype's normal and of its subnormal numbers."""
        info = torch.finfo(dtype)
        return Rounding(info.eps / 2, info.smallest_normal * info.eps / 2)
