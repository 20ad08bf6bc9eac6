"""The input of one convolution for the samples of a batch, whose gradient is shared."""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.beside import Both
from rconv.attack.layer import is_unsure, layer_report
from rconv.attack.plan import LayerPlan, gradients_suffice
from rconv.attack.report import LayerReport
from rconv.attack.signs import close
from rconv.attack.solve import Known, at_least, by_weight, stacked
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.windows import residue_classes
from rconv.linalg.equations import DenseRows
from rconv.linalg.iterative import solve_iterative
from rconv.linalg.normal import independent, least_squares
from rconv.linalg.solution import Solution, root_mean_square

DENSE = 3_000
"""Unknowns of all samples up to which a dense factorisation is taken. It needs 0.1 s for 1,000 of
them, 0.9 s for 3,000 and 1.8 s for 4,000. LSMR needs 0.1 to 0.4 s for any of these where the
condition is 10, and 17 s where the rank is short: below 3,000 the exact rank costs little."""


def solve_batch(plan: LayerPlan, known: Known) -> tuple[Solution, LayerReport]:
    """Solve for the input of a convolution, of all samples at once.

    As for single images, the cheapest kind that may suffice comes first, then both kinds.

    Parameters
    ----------
    plan : LayerPlan
        The convolution, and the equations that it uses.
    known : Known
        What is known of it: output and cotangent of B samples, and one weight gradient, the sum
        over them.

    Returns
    -------
    Solution
        The layer's input, value (B, C·H·W), and its expected error.
    LayerReport
        How well it is determined, one entry for each sample. What is open of all samples together
        counts for each that it may be of.
    """
    kind, both = _cheapest(plan, known), Both(plan, known)
    solved = _solved(both, kind)
    unknowns = plan.stage.geometry.unknowns
    if plan.kind == "auto" and kind != "hybrid":
        other = known.some.any() and is_unsure(solved, unknowns, known.output_noise).any()
        if other:
            hybrid = _solved(both, "hybrid")
            own, new = int(solved.rank.sum()), int(hybrid.rank.sum())
            smaller = bool(hybrid.error.amax() < solved.error.amax())
            if new > own or (new == own and smaller):
                solved, kind = hybrid, "hybrid"
    dense = len(solved.value) * unknowns <= DENSE and plan.kind == "auto"
    closes = dense and plan.signs and bool((solved.rank < unknowns).any())
    solved, left = _closed(both, solved) if closes else _as_is(plan, solved)
    return solved, layer_report(plan.stage, solved, known.passed, [kind] * len(solved.rank), left)


Left = tuple[Tensor, Tensor, Tensor, Tensor]
"""The last fields of a report, from `signs` on."""


def _as_is(plan: LayerPlan, solved: Solution) -> tuple[Solution, Left]:
    """What is open may be anything in its range."""
    short = (solved.rank < plan.stage.geometry.unknowns)[:, None]
    low, high = (torch.where(short, end, solved.value) for end in plan.bounds)
    return solved, (torch.zeros_like(solved.rank), torch.zeros_like(solved.value), low, high)


def _closed(both: Both, solved: Solution) -> tuple[Solution, Left]:
    """What the range of the inputs and silent outputs close, of all samples together."""
    plan, known, system = both.plan, both.known, both.system
    joint = replace(both.dense, value=both.dense.value[..., 0])
    own = LayerPlan(plan.stage, bounds=plan.bounds, prior=False, exact=plan.exact)
    done = close(own, system, known.passed.weight == 0, joint, both.precision)
    if not done.closed:
        return _as_is(plan, solved)
    batch, unknowns = solved.value.shape
    gap = system.unknowns - done.solution.rank
    least = torch.minimum(known.noise.amax(), known.output_noise)
    value = done.solution.value.reshape(batch, -1)
    found = _apart(done.solution, value, gap, least)
    left = (gap - done.closed).clamp(max=unknowns)
    low, high = (end.reshape(batch, -1) for end in (done.low, done.high))
    return found, (unknowns - found.rank - left, torch.zeros_like(value), low, high)


def _cheapest(plan: LayerPlan, known: Known) -> str:
    """The kind to try first."""
    if plan.kind != "auto":
        return plan.kind
    told = bool((known.passed.weight > 0).all())
    if told and (plan.weight_first or plan.weight_next) and plan.system is not None:
        if bool((plan.system.spectrum.condition * known.output_noise < 1).all()):
            return "weight"
    batch = len(known.passed.value)
    suffice = gradients_suffice(plan.stage.geometry, batch)
    return "gradient" if suffice or not known.some.any() else "hybrid"


def _solved(both: Both, kind: str) -> Solution:
    plan, known = both.plan, both.known
    if kind == "gradient":
        return _by_gradient(known)
    if kind == "hybrid":
        return _together(both)
    if plan.system is not None and bool((known.passed.weight > 0).all()):
        return by_weight(plan, known)
    batch = len(known.passed.value)
    own = known.gradient.expand(batch, *known.gradient.shape[1:])
    each = replace(known, gradient=own, precision=known.precision.expand(batch), spread=None)
    return stacked(plan, each, gradients=False)


def _by_gradient(known: Known) -> Solution:
    """Gradient constraints alone: one matrix for all channels, the samples side by side."""
    g, parts, sizes, classes = known.stage.geometry, [], [], residue_classes(known.stage.geometry)
    batch = len(known.passed.value)
    for block in classes:
        rhs = gradient_rhs(known.gradient, block[0])
        matrix = gradient_matrix(known.cotangent, g, block)
        joined = torch.cat(list(matrix), dim=1)[None]
        spread = (known.noise.amax() * root_mean_square(rhs))[:, None, None]
        parts.append(least_squares(DenseRows(joined, rhs, spread), known.precision))
        sizes.append(rhs.flatten(1).norm(dim=1))
    joint = independent(parts, sizes)
    value = known.gradient.new_zeros(batch, g.pixels, g.input[0])
    pixels = torch.cat([own for _, own in classes])
    maps = [part.value.reshape(batch, -1, g.input[0]) for part in parts]
    value[:, pixels] = torch.cat(maps, dim=1)
    gap = (batch * g.pixels - joint.rank) * g.input[0]
    return _apart(joint, value.mT.flatten(1), gap, known.noise.amax())


def _together(both: Both) -> Solution:
    """Both kinds, the weight constraints where the output is known."""
    system, known, batch = both.system, both.known, len(both.known.output)
    least = torch.minimum(known.noise.amax(), known.output_noise)
    if system.unknowns <= DENSE:
        gap = system.unknowns - both.dense.rank
        return _apart(both.dense, both.dense.value.reshape(batch, -1), gap, least)
    solution = solve_iterative(system.whitened(), batch)
    return at_least(replace(solution, value=solution.value.flatten(1)), least)


def _apart(joint: Solution, value: Tensor, gap: Tensor, least: Tensor) -> Solution:
    """A joint solution sample by sample: what is open may be of any of them."""
    batch, unknowns = value.shape
    sizes = root_mean_square(value)
    growth = root_mean_square(value.reshape(1, -1)) / sizes.clamp(min=1e-300)
    fields = joint.condition, joint.amplification, joint.residual, joint.iterations
    condition, amplification, residual, iterations = (own.expand(batch) for own in fields)
    solution = Solution(
        value,
        (unknowns - gap).clamp(min=0).expand(batch),
        condition,
        amplification * growth,
        residual,
        joint.error * growth,
        iterations,
        joint.method * batch,
        joint.status * batch,
    )
    return at_least(solution, least.expand(batch))
