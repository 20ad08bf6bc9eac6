"""Systems that share nothing, solved where they are strong; what they see weakly is handed out.

Further equations that join the systems need to be solved for the weak directions alone: these are
few, where the joint system of all unknowns is large.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.linalg.equations import residual
from rconv.linalg.shared import SharedRows
from rconv.linalg.solution import root_mean_square

STRONG = 0.03
"""Singular values above this share of the largest are strong: noise grows by 30 at most, and the
normal equations keep 13 digits."""

CORRECTIONS = 2


@dataclass(frozen=True)
class Split:
    """N systems' solutions in their strong directions, and their weak directions.

    Parameters
    ----------
    value : Tensor
        (N, n), without any weak direction.
    error : Tensor
        (N, n), standard deviation of `value`.
    system : Tensor
        (r,), int64: of each weak direction the system that it belongs to.
    directions : Tensor
        (r, n), of norm 1, orthogonal to each other where they belong to one system.
    sizes : Tensor
        (r,), their singular values.
    rhs : Tensor
        (r,), what the systems say of them: size · z = rhs.
    condition : float
        Ratio of the largest singular value to the smallest strong one.
    """

    value: Tensor
    error: Tensor
    system: Tensor
    directions: Tensor
    sizes: Tensor
    rhs: Tensor
    condition: float


def split(rows: SharedRows) -> Split:
    """Solve N systems in their strong directions.

    Parameters
    ----------
    rows : SharedRows
        The systems.

    Returns
    -------
    Split
    """
    alike = not rows.diagonal.any()
    gram = rows.normal_matrix()[:1] if alike else rows.normal_matrix()
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = (part.expand(len(rows.rhs), *part.shape[1:]) for part in (values, vectors))
    # Below its rounding an eigenvalue is zero: the equation of its size would be of rounding alone.
    rounding = rows.unknowns * torch.finfo(values.dtype).eps * values.max()
    values = torch.where(values > rounding, values, 0.0)
    strong = values > STRONG**2 * values.max()
    inverse = torch.where(strong, 1 / torch.where(strong, values, 1.0), 0.0)[..., None]
    x = torch.zeros_like(rows.rhs[:, : rows.unknowns])
    for _ in range(1 + CORRECTIONS):
        x = x + vectors @ (inverse * (vectors.mT @ rows.adjoint(residual(rows, x))))
    spread = root_mean_square(rows.deviation.expand_as(rows.rhs))
    error = spread[:, None] * (vectors.square() @ inverse)[..., 0].sqrt()
    told = (vectors.mT @ rows.adjoint(rows.rhs))[..., 0]
    system, which = (~strong).nonzero(as_tuple=True)
    sizes = values[system, which].sqrt()
    own = torch.where(sizes > 0, told[system, which] / torch.where(sizes > 0, sizes, 1.0), 0.0)
    least = float(values[strong].min()) if strong.any() else 1.0
    condition = (float(values.max()) / least) ** 0.5
    return Split(x[..., 0], error, system, vectors.mT[system, which], sizes, own, condition)
