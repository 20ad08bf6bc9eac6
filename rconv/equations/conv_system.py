"""Both kinds of equations of one convolution, stacked: gradient rows first, then weight rows.

Both kinds share the unknown, so that one kind can close what the other leaves open, and noise that
one amplifies the other holds down. Stacking them is R-GAP's idea (Zhu and Blaschko, ICLR 2021,
arXiv 2010.07733).
"""

from torch import Tensor

from rconv.equations.conv_gradient import ConvGradient, gradient_rhs
from rconv.equations.conv_output import ConvOutput
from rconv.linalg.system import FREE, ONE, Rows, System
from rconv.model.geometry import Stage


def conv_system(
    stage: Stage,
    cotangent: Tensor,
    gradient: Tensor,
    output: Tensor,
    weight: Tensor = ONE,
    bounds: tuple[float, float] = FREE,
    gradient_weight: Tensor = ONE,
) -> System:
    """The equations of the input of one convolution, for the samples of one client.

    Parameters
    ----------
    stage : Stage
        The convolution.
    cotangent : Tensor
        Ō, (B, D, Ho, Wo), of the convolution alone.
    gradient : Tensor
        ∂ℓ/∂W summed over the samples, (D, C, kh, kw).
    output : Tensor
        O - b where it is known, (B, D, Ho, Wo).
    weight : Tensor
        Weight of each weight row, 0 where the output is unknown; broadcasts to `output`.
    bounds : tuple of float
        Of the input.
    gradient_weight : Tensor
        Weight of the gradient rows, broadcasts to (1, D·kh·kw, C).
    """
    by_gradient = ConvGradient(stage.geometry, cotangent[None])
    weight = weight[None] if weight.dim() else weight
    rows = (
        Rows(by_gradient, gradient_rhs(gradient[None]), weight=gradient_weight),
        Rows(ConvOutput(stage, len(cotangent)), output[None], weight=weight),
    )
    return System(rows, len(cotangent) * stage.geometry.unknowns, bounds)
