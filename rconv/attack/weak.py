"""Weight constraints for what the channels' own equations see weakly or not at all."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.channels import best_noise, shared_rows
from rconv.attack.plan import LayerPlan
from rconv.attack.signal import Told
from rconv.attack.solve import Known, at_least, stacked_system
from rconv.equations.system import StackedSystem
from rconv.linalg.dense import solve_stacked
from rconv.linalg.equations import DenseRows, worth
from rconv.linalg.solution import Solution
from rconv.linalg.split import Split, split

CHUNK = 256
"""Directions that are convolved at a time."""

MOST = 3_000
"""Weak directions that are solved for, at most: beyond, one system of all unknowns costs less."""


def with_weight_rows(
    plans: Sequence[LayerPlan], known: Sequence[Known], told: Told | None
) -> Solution | None:
    """One image's map from the equations of its channels, and from weight constraints.

    Parameters
    ----------
    plans : sequence of LayerPlan
        Of the convolutions that take it.
    known : sequence of Known
        What is known of them.
    told : Told or None
        What is known of the map itself.

    Returns
    -------
    Solution or None
        Value (1, C·H·W). Strong directions follow from the channels' own equations, the others
        from all. None where there are no weak directions, or too many.
    """
    each = zip(plans, known, strict=True)
    parts = [stacked_system(plan, own, gradients=False) for plan, own in each]
    parts = [part for part in parts if part.used]
    rows = shared_rows(known, told, min(part.least_error() for part in parts))
    best = float(rows.deviation.min())
    parts = [part.weighed_against(best) for part in parts]
    strong = split(rows)
    if not 0 < len(strong.sizes) <= MOST:
        return None
    precision = float(torch.stack([own.precision for own in known]).amax())
    weak = solve_stacked(_weak_rows(parts, strong, best), precision, weigh=None)
    return at_least(_whole(strong, weak), best_noise(known, told))


def _weak_rows(parts: list[StackedSystem], strong: Split, best: float) -> DenseRows:
    """The equations of the weak directions: those of the channels, and the weight constraints."""
    matrices, rhs = [torch.diag(strong.sizes)], [strong.rhs]
    deviations = [torch.full_like(strong.rhs, best)]
    for part in parts:
        shape, used, factor = part.stage.geometry.input, part.row_weight > 0, part.row_weight
        matrices.append((_outputs(part, strong) * factor[used]).T)
        base = part.stage.convolve(strong.value.reshape(1, *shape))[0]
        rhs.append((factor * (part.output - base))[used])
        # Errors of the strong directions are errors of these rows.
        leak = part.stage.variance(strong.error.square().reshape(1, *shape))[0].sqrt()
        own = part.output_error.expand_as(part.output)
        deviations.append(torch.hypot(own, leak * factor)[used])
    matrix, b, deviation = torch.cat(matrices), torch.cat(rhs), torch.cat(deviations)
    rows = DenseRows(matrix[None], b[None, :, None], deviation[None, :, None])
    return rows.weighed(worth(rows.deviation, best))


def _outputs(part: StackedSystem, strong: Split) -> Tensor:
    """(r, rows): the convolution's outputs that are used, of each weak direction."""
    used, shape, found = part.row_weight > 0, part.stage.geometry.input, []
    for cut in torch.arange(len(strong.system)).split(CHUNK):
        x = strong.directions.new_zeros(len(cut), *strong.value.shape)
        x[torch.arange(len(cut)), strong.system[cut]] = strong.directions[cut]
        found.append(part.stage.convolve(x.reshape(-1, *shape))[:, used])
    return torch.cat(found)


def _whole(strong: Split, weak: Solution) -> Solution:
    """Both kinds of directions together."""
    z = weak.value[0]
    value = strong.value.index_add(0, strong.system, strong.directions * z)
    spread = torch.hypot(strong.error.norm(), weak.error * z.norm())
    condition = weak.condition.maximum(weak.condition.new_tensor(strong.condition))
    return replace(
        weak,
        value=value.reshape(1, -1),
        rank=weak.rank + value.numel() - len(z),
        condition=condition,
        error=spread / value.norm().clamp(min=1e-300),
        method=(f"channels, then {weak.method[0]}",),
    )
