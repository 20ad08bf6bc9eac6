"""One kind of equations of a convolution, solved for its input, with the error to expect."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.plan import LayerPlan
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.system import StackedSystem
from rconv.equations.windows import residue_classes, tiles
from rconv.linalg.dense import solve_stacked
from rconv.linalg.equations import DenseRows
from rconv.linalg.normal import independent, least_squares
from rconv.linalg.solution import Solution, root_mean_square
from rconv.linalg.threads import in_threads
from rconv.model.geometry import Stage


@dataclass(frozen=True)
class Known:
    """What is known of one convolution, for N images.

    Parameters
    ----------
    stage : Stage
        The convolution.
    passed : Passed
        Its output and the output's cotangent.
    gradient : Tensor
        ∂ℓ/∂W, (N, D, C, kh, kw).
    precision : Tensor
        (N,), relative error of the weight gradient, both as root mean squares.
    spread : Tensor or None
        Shaped as the weight gradient: standard deviation of each entry, where `precision` is not
        that of all.
    """

    stage: Stage
    passed: Passed
    gradient: Tensor
    precision: Tensor
    spread: Tensor | None = None

    def select(self, where: Tensor | list[int]) -> "Known":
        """The same of some of the images."""
        spread = None if self.spread is None else self.spread[where]
        own = self.passed.select(where), self.gradient[where], self.precision[where]
        return Known(self.stage, *own, spread)

    @property
    def cotangent(self) -> Tensor:
        """Ō of the convolution alone, which its weight gradient is made of, (N, D, Ho, Wo)."""
        return self.stage.unscaled(self.passed.cotangent)

    @property
    def some(self) -> Tensor:
        """(N,), bool, whether any output is known."""
        return (self.passed.weight > 0).flatten(1).any(dim=1)

    @property
    def noise(self) -> Tensor:
        """(N,), relative error of gradient constraints: of both of their sides."""
        return torch.hypot(self.precision, self.passed.cotangent_noise)

    @property
    def output(self) -> Tensor:
        """O - b, (N, D, Ho, Wo)."""
        bias = self.stage.bias
        return self.passed.value if bias is None else self.passed.value - bias[:, None, None]

    @property
    def output_noise(self) -> Tensor:
        """(N,): relative error of `output` where it is known, as root mean squares; 1 nowhere."""
        used = self.passed.weight > 0
        spread = self.passed.error[..., None, None] / torch.where(used, self.passed.weight, 1.0)
        size = (self.output * used).flatten(1).norm(dim=1)
        noise = (spread * used).flatten(1).norm(dim=1) / size
        return noise.nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0)


def by_gradient(known: Known) -> Solution:
    """Gradient constraints: one matrix for all channels, and a block of it per residue class."""
    g, parts, sizes = known.stage.geometry, [], []
    if tiles(g):
        return _by_tiles(known)
    classes = residue_classes(g)
    for block in classes:
        rhs = gradient_rhs(known.gradient, block[0])
        matrix = gradient_matrix(known.cotangent, g, block)
        spread = None if known.spread is None else gradient_rhs(known.spread, block[0])
        parts.append(_least_squares(known, matrix, rhs, spread))
        sizes.append(rhs.flatten(1).norm(dim=1))
    solution = independent(parts, sizes)
    value = known.gradient.new_zeros(len(known.gradient), g.pixels, g.input[0])
    value[:, torch.cat([pixels for _, pixels in classes])] = solution.value
    solution = replace(solution, value=value.mT.flatten(1), rank=solution.rank * g.input[0])
    return at_least(solution, known.noise)


def _by_tiles(known: Known) -> Solution:
    """The same where windows tile the input: ∂ℓ/∂W = Ōᵀ U, one matrix for all entries of U.

    U, (L, C·kh·kw), has a window in each row.
    """
    g = known.stage.geometry
    spread = None if known.spread is None else known.spread.flatten(2)
    rhs = known.gradient.flatten(2)
    solution = _least_squares(known, known.cotangent.flatten(2), rhs, spread)
    value = solution.value.reshape(-1, *g.output[1:], g.input[0], *g.kernel)
    value = value.permute(0, 3, 1, 4, 2, 5).flatten(1)
    rank = solution.rank * g.input[0] * g.offsets
    return at_least(replace(solution, value=value, rank=rank), known.noise)


def _least_squares(known: Known, matrix: Tensor, rhs: Tensor, spread: Tensor | None) -> Solution:
    """Some of the gradient constraints, solved; `spread` as `rhs`, each entry's own error."""
    size = root_mean_square(rhs)[:, None, None]
    rows = DenseRows(matrix, rhs, known.noise[:, None, None] * size)
    if spread is not None:
        common = known.passed.cotangent_noise[:, None, None] * size
        rows = DenseRows(matrix, rhs, torch.hypot(spread, common)).whitened()
    return least_squares(rows, known.precision)


def by_weight(plan: LayerPlan, known: Known) -> Solution:
    """Weight constraints that determine the input alone, factored with the model."""
    rhs, noise = known.output.flatten(1), known.output_noise
    rows = plan.system.rows(rhs, noise * root_mean_square(rhs))
    solution = plan.system.solve(rows, noise)
    return at_least(replace(solution, value=solution.value.flatten(1)), noise)


def stacked_system(plan: LayerPlan, known: Known, *, gradients: bool = True) -> StackedSystem:
    """Weight constraints where the output is known, and gradient constraints if asked for.

    Of one image, N = 1.
    """
    matrix = gradient_matrix(known.cotangent, known.stage.geometry)[0]
    rhs, errors = gradient_rhs(known.gradient)[0], gradient_errors(known)[0]
    if not gradients:
        matrix, rhs, errors = matrix[:0], rhs[:0], errors[:1]
    output, weight = known.output[0], known.passed.weight[0]
    spread = root_mean_square(known.passed.error)[0]
    return StackedSystem(known.stage, matrix, rhs, output, weight, errors, spread, plan.bounds)


def gradient_errors(known: Known) -> Tensor:
    """Standard deviation of the gradient constraints' errors, (N, 1, 1) or (N, D·kh·kw, 1)."""
    rhs = gradient_rhs(known.gradient)
    if known.spread is None:
        return (known.noise * root_mean_square(rhs))[:, None, None]
    common = known.passed.cotangent_noise * root_mean_square(rhs)
    own = gradient_rhs(known.spread).square().mean(dim=2, keepdim=True).sqrt()
    return torch.hypot(own, common[:, None, None])


def stacked(plan: LayerPlan, known: Known, *, gradients: bool = True) -> Solution:
    """Each image's stacked system, solved; those of several images at the same time."""

    def solve(i: int) -> Solution:
        own = stacked_system(plan, known.select([i]), gradients=gradients)
        return solve_stacked(own, float(known.precision[i]), weigh="noise")

    unknowns = plan.stage.geometry.unknowns
    parts = in_threads(solve, len(known.gradient), unknowns, known.gradient.device)
    solution = Solution.concatenate(parts)
    least = known.output_noise
    if gradients:
        least = torch.minimum(known.noise, least)
    return at_least(replace(solution, value=solution.value.flatten(1)), least)


def at_least(solution: Solution, least: Tensor) -> Solution:
    """The solution, its error no smaller than the noise of what it is made of.

    Errors that are not independent do not average out.
    """
    error = solution.error.nan_to_num(nan=1.0, posinf=1.0).maximum(least)
    return replace(solution, error=error.clamp(max=1.0))
