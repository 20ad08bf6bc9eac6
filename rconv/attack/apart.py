"""Signs where no output of a convolution is known: its channels share nothing and are closed alone.

A convolution inside a residual block has gradient constraints only, since what it adds to is not
known yet. These are one matrix for all channels of its input, and so is what they leave open.
"""

from dataclasses import replace

import torch

from rconv.attack.plan import LayerPlan
from rconv.attack.signs import Completed, by_signs
from rconv.attack.solve import Known
from rconv.linalg.solution import Solution, root_mean_square


def by_signs_apart(plan: LayerPlan, known: Known, solution: Solution) -> Completed:
    """What the range of the input leaves of one image's solutions, channel by channel.

    Directions that stay open are left as they are: to choose in each channel would take longer
    than all else.

    Parameters
    ----------
    plan, known, solution
        As `rconv.attack.signs.by_signs` takes them; no output is known.

    Returns
    -------
    Completed
        Of all channels.
    """
    g = plan.stage.geometry
    values = solution.value.reshape(g.input[0], 1, g.pixels)
    scale = float(root_mean_square(solution.value)[0])
    done = []
    for c, value in enumerate(values):
        own = replace(solution, value=value, rank=solution.rank // g.input[0])
        alone = _channel(plan, c)
        spread = None if known.spread is None else known.spread[:, :, c : c + 1]
        gradient = known.gradient[:, :, c : c + 1]
        mine = replace(known, stage=alone.stage, gradient=gradient, spread=spread)
        done.append(by_signs(alone, mine, own, scale=scale))
    parts = [part.solution for part in done]
    sizes = torch.stack([part.value.norm() for part in parts])
    errors = torch.stack([part.error[0] for part in parts])
    error = (errors * sizes).norm() / sizes.norm().clamp(min=1e-300)
    whole = torch.cat([part.value for part in parts], dim=1)
    ends = (torch.cat([getattr(part, end) for part in done]) for end in ("guess", "low", "high"))
    whole = replace(solution, value=whole, error=error[None])
    return Completed(whole, sum(part.closed for part in done), *ends)


def _channel(plan: LayerPlan, c: int) -> LayerPlan:
    """The plan of one channel of the convolution's input."""
    g = plan.stage.geometry
    alone = replace(g, input=(1, *g.input[1:]))
    stage = replace(plan.stage, weight=plan.stage.weight[:, c : c + 1], geometry=alone)
    return LayerPlan(stage, bounds=plan.bounds, prior=False, exact=plan.exact)
