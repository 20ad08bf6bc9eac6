"""The equations of one map that fall apart into its channels, put together for one image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rconv.attack.signal import Told
from rconv.attack.solve import Known, gradient_errors
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.linalg.equations import worth
from rconv.linalg.shared import SharedRows


def shared_rows(known: Sequence[Known], told: Told | None, least: float = torch.inf) -> SharedRows:
    """Gradient constraints and known entries of one image, a system for each channel.

    Parameters
    ----------
    known : sequence of Known
        What is known of the convolutions that take the map.
    told : Told or None
        What is known of the map itself.
    least : float
        Error of the best of further rows, in the unit of their norm.

    Returns
    -------
    SharedRows
        Every row divided by its error, that of the best one as 1, as far as `TRUST` allows.
    """
    blocks = [_block(own) for own in known]
    size = blocks[0][1].shape[1], known[0].stage.geometry.pixels
    value, spread = torch.zeros(size), torch.full(size, torch.inf)
    if told is not None:
        value, spread = told.value[0].flatten(1), told.deviation()[0].flatten(1)
    value, spread = (part.to(blocks[0][0]) for part in (value, spread))
    least = min([least, *(float(error.min()) for _, _, error in blocks), float(spread.min())])

    matrix = torch.cat([a * worth(error, least) for a, _, error in blocks])
    rhs = torch.cat([b * worth(error, least) for _, b, error in blocks])
    deviation = torch.cat([worth(error, least) * error for _, _, error in blocks])
    diagonal = torch.where(spread < torch.inf, worth(spread, least), 0.0)
    # An entry that is not known has no error; its row must not lower the mean of the others'.
    own = torch.where(spread < torch.inf, diagonal * spread, deviation.mean())
    columns = deviation.T.expand(len(value), -1)
    return SharedRows(
        matrix,
        diagonal,
        torch.cat([rhs.T, diagonal * value], dim=1)[..., None],
        torch.cat([columns, own], dim=1)[..., None],
    )


def _block(known: Known) -> tuple[Tensor, Tensor, Tensor]:
    """One image's gradient constraints, of mean row norm 1: A (m, H·W), b (m, C), errors (m, 1)."""
    matrix = gradient_matrix(known.cotangent, known.stage.geometry)[0]
    rhs, errors = gradient_rhs(known.gradient)[0], gradient_errors(known)[0]
    size = float(matrix.norm(dim=1).mean()) or 1.0
    return matrix / size, rhs / size, errors.expand(len(rhs), 1) / size


def best_noise(known: Sequence[Known], told: Told | None) -> Tensor:
    """Relative error of the best equations of a map, which they do not average out.

    Parameters
    ----------
    known, told
        As `shared_rows` takes them.

    Returns
    -------
    Tensor
        (1,).
    """
    noise = torch.stack([n for own in known for n in (own.noise, own.output_noise)]).amin(dim=0)
    if told is None:
        return noise
    spread = told.deviation()
    used = spread < torch.inf
    size = (told.value * used).flatten(1).norm(dim=1)
    own = torch.where(used, spread, 0.0).flatten(1).norm(dim=1) / size
    return noise.minimum(own.nan_to_num(nan=1.0, posinf=1.0))
