"""The input of a block as a nonlinear least-squares problem, and its solution.

The equations are everything that is observed of the block (`rconv.equations.block`), relative to
the size of each part. They are solved by Gauss-Newton from several starts; the derivative at the
solution says how well it is determined.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.equations.block import BlockFunction, Linearised, linearise, pulled_back
from rconv.equations.conv_gradient import ConvGradient, gradient_rhs
from rconv.linalg.columns import minimum_norm
from rconv.linalg.gauss_newton import (
    Change,
    Stationary,
    determined,
    gauss_newton,
    linear_step,
    undetermined,
)
from rconv.linalg.iterative import WEAK
from rconv.linalg.solution import Solution, root_mean_square
from rconv.linalg.system import Rows, System
from rconv.model.activations import Activation
from rconv.model.blocks import Block, is_statistic, kinks
from rconv.model.geometry import Stage

ROUNDING = 1e-11
"""Relative residual that rounding leaves in the equations of a block whose cotangent has passed
several others."""

LEAST_SHARE = 1e-2
"""A gradient smaller than this share of the block's largest is weighed as if it were this large."""

EVALUATED = 3e-15
"""Relative error of the equations that their evaluation leaves."""

NOISY = 3.0
"""How far the residual of a right solution may lie above the noise of its equations. With ten times
the noise, a wrong map of a network in single precision counted as a solution."""

CORRELATED = 10.0
"""How far the error of a map may lie above that of independent errors of its equations: those of
what comes from above are not independent. Of ten images of random networks in single precision, the
worst had seven times the independent error, the median once."""

DROWNED = 0.1
"""Share of the equations beyond which their noise makes a search pointless."""

SURE = 6.0
"""Standard deviations from a kink beyond which an input is on its side of it."""

LEAST_SCALE = 1e-8
"""Least share of a change of scale that the equations are taken to see."""

IMPATIENT = 3
"""Slow steps that end the search for all but the scale."""

SCALES, FACTORS, ROUNDS = (-3.0, 3.0), 31, 4
"""Powers of ten between which the scale is looked for, how many are tried, and how often, each time
between the neighbours of the best."""

BELOW = "below"
"""Name of the rows that the offset of the layer below gives."""

STARTS, START_STD = 2, 0.1
"""Random starts, and their standard deviation."""

INVERTED, WEAK_START = 8, 1e-3
"""Gauss-Newton steps that invert what follows the convolution, of which no more than a start is
made; and singular values of the gradient rows, relative, that this start leaves out."""


@dataclass(frozen=True)
class BlockProblem:
    """A map that a block takes, and everything that is known of it, for N clients.

    Parameters
    ----------
    node : int
        The map.
    plan : LayerPlan
        The block.
    output : Estimate
        What is known of its output, of N·B samples.
    cotangent : Cotangent
        The derivative of the loss by its output.
    gradients, stds : mapping of str to Tensor
        Name → (N, *shape), gradients of its parameters and statistics, as far as they are
        observed; and their standard deviations, infinite where an entry is not observed.
    below : Activation or None
        The activation whose output the map is.
    offset : Tensor or None
        (N, C), the derivative by that activation's input, summed over the positions.
    """

    node: int
    plan: LayerPlan
    output: Estimate
    cotangent: Cotangent
    gradients: Mapping[str, Tensor]
    stds: Mapping[str, Tensor]
    below: Activation | None = None
    offset: Tensor | None = None

    @property
    def block(self) -> Block:
        """The block."""
        return self.plan.stage

    @property
    def name(self) -> str:
        """Name of its convolution."""
        return self.block.name

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the map."""
        return self.plan.bounds

    def refuse_without_equations(self) -> None:
        """Nothing to refuse: a block's output is known."""

    def solve(self, *, frugal: bool = False) -> tuple[Solution, LayerReport]:
        """Solve for the map, client by client; see `MapProblem.solve`."""
        found = [self.one(i).solve() for i in range(len(self.cotangent.value))]
        solved = Solution.concatenate(found)
        solved = replace(solved, value=solved.value.flatten(1))
        return solved, self._report(solved)

    def one(self, i: int) -> "OneBlock":
        """The problem of one client."""
        output, known = self.output.value[[i]], self.output.weight[[i]] > 0
        std = torch.where(known, self.output.select([i]).entry_std(), torch.inf)
        observed = {"output": output} | {name: own[i] for name, own in self.gradients.items()}
        stds, level = {"output": std}, self.cotangent.relative_std[i]
        for name, own in self.stds.items():
            more = 0 if is_statistic(name) else level * root_mean_square(self.gradients[name][[i]])
            stds[name] = torch.hypot(own[i], own.new_zeros(()) + more)
        if self.offset is not None and self.below is not None:
            noise = level * root_mean_square(self.offset[[i]])
            observed[BELOW], stds[BELOW] = self.offset[i], noise.expand_as(self.offset[i])
        return OneBlock(self.block, self.cotangent.value[[i]], observed, stds, self.below)

    def _report(self, solved: Solution) -> LayerReport:
        n, count = self.block.geometry.unknowns, len(solved.rank)
        short = (solved.rank < n)[:, None]
        low, high = (torch.where(short, end, solved.value) for end in self.bounds)
        none = torch.zeros_like(solved.rank)
        rows = sum(int(own[0].numel()) for own in self.gradients.values())
        known = (self.output.weight > 0).flatten(1).sum(dim=1)
        fields = solved.rank, solved.condition, solved.residual, ("block",) * count
        left = none, torch.zeros_like(solved.value), low, high
        return LayerReport(self.name, n, none + rows, known, *fields, *left)


@dataclass(frozen=True)
class OneBlock:
    """The problem of one client's input.

    Parameters
    ----------
    block : Block
        The block.
    cotangent : Tensor
        Of its output, (B, D, H', W').
    observed, stds : dict of str to Tensor
        What `BlockFunction.parts` names, and its standard deviations; infinite where unknown.
    below : Activation or None
        As `BlockFunction` takes it.
    """

    block: Block
    cotangent: Tensor
    observed: dict[str, Tensor]
    stds: dict[str, Tensor]
    below: Activation | None = None

    @cached_property
    def function(self) -> BlockFunction:
        """The equations."""
        names = [name for name in self.observed if name not in ("output", BELOW)]
        trained = self.block.values()
        parameters = tuple(name for name in names if name in trained)
        statistics = tuple(name for name in names if name not in trained)
        below = self.below if BELOW in self.observed else None
        return BlockFunction(self.block, self.cotangent, parameters, statistics, below)

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Right-hand sides, weights and weighted standard deviations, (m,) each."""
        order = ["output", *self.function.parameters, *self.function.statistics]
        order += [BELOW] * (BELOW in self.observed)
        sizes = {name: self._size(name) for name in order}
        largest = max((sizes[name] for name in self.function.parameters), default=0.0)
        values, weights, stds = [], [], []
        for name in order:
            own, std, size = self.observed[name].flatten(), self.stds[name].flatten(), sizes[name]
            if name in self.function.parameters:  # of a bias before a norm, all is rounding
                size = max(size, LEAST_SHARE * largest)
            seen = std < torch.inf
            weight = seen / max(size, 1e-300)
            values.append(torch.where(seen, own, 0.0))
            weights.append(weight)
            stds.append(torch.where(seen, std * weight, 0.0).clamp(min=EVALUATED) * seen)
        return torch.cat(values), torch.cat(weights), torch.cat(stds)

    def _size(self, name: str) -> float:
        """Root mean square of what is observed of a part; 1 where nothing is."""
        own = self.observed[name][self.stds[name] < torch.inf]
        return float(own.square().mean().sqrt()) if own.numel() else 1.0

    def linearised(
        self, x: Tensor, *, scaled: bool = True, below: bool = False
    ) -> tuple[System, Change]:
        """The equations of a step from x (n,), and a preconditioner.

        Parameters
        ----------
        x : Tensor
            (n,).
        scaled : bool
            Whether the scale of x may change much.
        below : bool
            Whether the rows from below count. They jump where an entry of x changes its sign.
        """
        values, weights, stds = self._rows
        rows, derivative = linearise(self.function, x)
        if BELOW in self.observed and not below:
            used = torch.arange(len(values)) < len(values) - self.observed[BELOW].numel()
            weights, stds = weights * used, stds * used
        step = (values - rows)[None, :, None]
        block = Rows(derivative, step, stds[None, :, None], weights[None, :, None])
        change = self._preconditioner(x, derivative, scaled=scaled)
        return System((block,), len(x)), change

    def solve(self) -> Solution:
        """From the start that comes to rest at a solution; else the best of all."""
        values, weights, _ = self._rows
        good = self._rounding
        if good >= DROWNED * float((values * weights).norm()):  # no estimate from above is worth it
            start = gauss_newton(self.linearised, 0 * next(self._random_starts()), most=0)
            return undetermined(start)
        unscaled, best = partial(self.linearised, scaled=False), None
        for start in self._starts():
            found = gauss_newton(unscaled, start, good=good, patience=IMPATIENT)
            if found.residual > good:
                found = gauss_newton(self.linearised, self._rescaled(found.value), good=good)
            if best is None or found.residual < best.residual:
                best = found
            if best.residual <= good:
                break
        if BELOW in self.observed and best.residual <= good:
            best = gauss_newton(partial(self.linearised, below=True), best.value, good=good)
        return self._judged(best, solved=best.residual <= good)

    @property
    def _rounding(self) -> float:
        """Norm of the residual that noise and rounding leave."""
        values, _, stds = self._rows
        return NOISY * float(stds.norm()) + ROUNDING * len(values) ** 0.5

    def solve_from(self, start: Tensor) -> Solution:
        """From one start (n,), near which the scale is right."""
        good = self._rounding
        found = gauss_newton(partial(self.linearised, scaled=False), start, good=good)
        return self._judged(found, solved=found.residual <= good)

    def _rescaled(self, x: Tensor) -> Tensor:
        """The multiple of x that explains best what was observed."""
        values, weights, _ = self._rows
        low, high = SCALES
        for _ in range(ROUNDS):
            factors = torch.logspace(low, high, FACTORS, dtype=torch.float64)
            sizes = [((self.function(f * x) - values) * weights).norm().detach() for f in factors]
            least = int(torch.stack(sizes).nan_to_num(nan=torch.inf).argmin())
            centre, width = float(factors[least].log10()), (high - low) / (FACTORS - 1)
            low, high = centre - width, centre + width
        return 10**centre * x

    def _judged(self, found: Stationary, *, solved: bool) -> Solution:
        """The solution with its rank; none where it does not explain what was observed."""
        if not solved:
            return undetermined(found)
        own = determined(found, enough=self._enough)
        error = (CORRELATED * own.error).clamp(max=1.0)
        close = self._near_kinks(found.value, float(error))
        return replace(own, rank=(own.rank - close).clamp(min=0), error=error)

    @property
    def _enough(self) -> bool:
        """Whether there are more equations than unknowns, so that a solution is no coincidence."""
        values, weights, _ = self._rows
        told = int(((weights > 0) & (values != 0)).sum())
        return told > len(self.cotangent) * self.block.geometry.unknowns

    def _near_kinks(self, x: Tensor, error: float) -> int:
        """How many inputs of layers with kinks are not sure to be on their side."""
        seen: dict[str, Tensor] = {}
        maps = x.reshape(-1, *self.block.geometry.input)
        self.block.run(self.block.values(), maps, seen)
        count = 0
        for name, module in self.block.layers:
            limit = SURE * error * float(seen[name].square().mean().sqrt())
            for kink in kinks(module):
                count += int(((seen[name] - kink).abs() <= limit).sum())
        return count

    def _starts(self) -> Iterator[Tensor]:
        """First what the output determines, then random numbers."""
        if self.weight_name in self.observed and self.block.groups == 1:
            start = self._from_output()
            if start is not None:
                yield start
        yield from self._random_starts()

    def _random_starts(self) -> Iterator[Tensor]:
        n = len(self.cotangent) * self.block.geometry.unknowns
        for seed in range(STARTS):
            generator = torch.Generator().manual_seed(seed)
            yield START_STD * torch.randn(n, generator=generator, dtype=torch.float64)

    @property
    def weight_name(self) -> str:
        """The convolution's weight."""
        return f"{self.block.name}.weight"

    def _from_output(self) -> Tensor | None:
        """From the smallest output of the convolution that gives the block's output, if found."""
        matrix = self._gradient_rows(self._inverted()).matrix
        if not matrix.isfinite().all():
            return None
        rhs = gradient_rhs(self.observed[self.weight_name][None])
        found = minimum_norm(System.dense(matrix, rhs), WEAK_START).value[0]
        maps = found.reshape(len(self.cotangent), -1, found.shape[1])
        return maps.transpose(1, 2).flatten()

    def _inverted(self) -> Tensor:
        """An output of the convolution, (B, D, Ho, Wo), for which the block's is as observed."""
        values, shape = self.block.values(), (len(self.cotangent), *self.block.geometry.output)
        known = (self.stds["output"] < torch.inf).flatten()
        target = torch.where(known, self.observed["output"].flatten(), 0.0)

        def after(o: Tensor) -> Tensor:
            return self.block.after(values, o.reshape(shape)).flatten() * known

        o = torch.zeros(math.prod(shape), dtype=torch.float64)
        if len(target) == len(o):  # to the right of a minimum, where most inputs are
            o = target.clone()
        for _ in range(INVERTED):
            rows, derivative = linearise(after, o)
            system = System((Rows(derivative, (target - rows)[None, :, None]),), len(o))
            step = linear_step(system, Change.none(), system.rhs, accuracy=WEAK_START)
            o = o + step
            if float(step.norm()) <= WEAK_START * float(o.norm()):
                break
        return o.reshape(shape)

    def _gradient_rows(self, output: Tensor) -> ConvGradient:
        """Gradient constraints of the convolution, were this its output."""
        values = self.block.values()
        own = pulled_back(lambda o: self.block.after(values, o), output, self.cotangent)
        return ConvGradient(self.block.geometry, own[None])

    def _preconditioner(self, x: Tensor, derivative: Linearised, *, scaled: bool) -> Change:
        """P⁻¹ with P² = AᵀA + α, A the gradient constraints, which all channels share.

        α is what all other rows are on the average. Normalisation sees the scale of x through its
        ε alone: this direction is stretched to the size of the others.
        """
        _, weights, _ = self._rows
        output = Stage.evaluate(self.block, x.reshape(-1, *self.block.geometry.input))
        others, level = self.observed["output"].numel(), 0.0
        if self.weight_name in self.observed and self.block.groups == 1:
            level = float(weights[others:][: self.block.weight.numel()].max())
        rows = level * self._gradient_rows(output).matrix[0]
        sizes, vectors = torch.linalg.eigh(rows.T @ rows)
        v = torch.randn(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        alpha = (derivative.product(v) * weights)[:others].square().sum() / len(x)
        sizes = sizes.clamp(min=0) + torch.maximum(alpha, WEAK * sizes[-1])
        inverse = (vectors * sizes.rsqrt()) @ vectors.T
        scale = self._by_channel((vectors * sizes.sqrt()) @ vectors.T, x)
        size = float((derivative.product(x) * weights).norm() / scale.norm().clamp(min=1e-300))
        scale = scale / scale.norm().clamp(min=1e-300)
        more = max(1.0, 1 / max(size, LEAST_SCALE)) - 1 if scaled else 0.0

        def stretched(y: Tensor) -> Tensor:
            return y + more * (scale @ y) * scale

        def forward(y: Tensor) -> Tensor:
            return self._by_channel(inverse, stretched(y))

        return Change(forward, lambda v: stretched(self._by_channel(inverse, v)))

    def _by_channel(self, matrix: Tensor, v: Tensor) -> Tensor:
        """A symmetric matrix (B·H·W, B·H·W) times each channel of a map (n,)."""
        count, channels = len(self.cotangent), self.block.geometry.input[0]
        columns = v.reshape(count, channels, -1).transpose(0, 1).reshape(channels, -1)
        return (columns @ matrix).reshape(channels, count, -1).transpose(0, 1).flatten()


def cotangent_below(block: Block, x: Estimate, cotangent: Cotangent) -> Cotangent:
    """The derivative of the loss by a block's input, client by client.

    Parameters
    ----------
    block : Block
        The block.
    x : Estimate
        Its input, of N clients of one sample each.
    cotangent : Cotangent
        The derivative by its output.
    """
    values, generator = block.values(), torch.Generator().manual_seed(0)
    shift = torch.randn(x.value.shape, generator=generator, dtype=torch.float64)
    parts = []
    for own in (x.value, x.value + shift * x.std[..., None, None]):
        pairs = zip(own.split(1), cotangent.value.split(1), strict=True)
        maps = [pulled_back(lambda v: block.run(values, v), one, back) for one, back in pairs]
        parts.append(torch.cat(maps))
    value, moved = parts
    size = root_mean_square(value)
    change = root_mean_square(moved - value) / torch.where(size > 0, size, 1.0)
    return Cotangent(value, torch.hypot(change, cotangent.relative_std).clamp(max=1.0))
