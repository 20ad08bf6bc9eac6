"""The input of a block as a nonlinear least-squares problem, and its solution.

The equations are everything that is observed of the block (`rconv.equations.block`), relative to
the size of each part. They are solved by Gauss-Newton from several starts; the derivative at the
solution says how well it is determined.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.equations.batch_norm import NormFunction, with_statistics
from rconv.equations.block import (
    BELOW,
    ITSELF,
    BlockFunction,
    Linearised,
    MapFunction,
    linearise,
    pulled_back,
)
from rconv.equations.conv_gradient import ConvGradient, gradient_rhs
from rconv.linalg.columns import minimum_norm
from rconv.linalg.gauss_newton import (
    Change,
    Stationary,
    determined,
    gauss_newton,
    linear_step,
    roots_of,
    undetermined,
)
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

INFORMED = 20
"""Steps with the statistics given, at most; they make a start."""

MIXED = 2, 16
"""Combinations of filters per position, and more: twice the rank that the derivative by the output
has keeps its condition within 6."""

STARTS, START_STD = 2, 0.1
"""Random starts, and their standard deviation."""

INVERTED, WEAK_START = 8, 1e-3
"""Gauss-Newton steps that invert what follows the convolution, of which no more than a start is
made; and singular values of the gradient rows, relative, that this start leaves out."""


@dataclass(frozen=True)
class BlockData:
    """What is known of one block before its input is, for N clients of B samples each.

    Parameters
    ----------
    plan : LayerPlan
        The block.
    output : Estimate
        What is known of its output, of N·B samples.
    cotangent : Cotangent
        The derivative of the loss by its output.
    gradients, stds : mapping of str to Tensor
        Name → (N, *shape), gradients of its parameters and statistics, as far as they are
        observed; and their standard deviations, infinite where an entry is not observed.
    """

    plan: LayerPlan
    output: Estimate
    cotangent: Cotangent
    gradients: Mapping[str, Tensor]
    stds: Mapping[str, Tensor]

    @property
    def block(self) -> Block:
        """The block."""
        return self.plan.stage

    def observed(
        self, i: int, each: list[int]
    ) -> tuple[BlockFunction, dict[str, Tensor], dict[str, Tensor]]:
        """The equations of client i, whose samples are `each`; right-hand sides and their stds."""
        name, level = self.block.name, self.cotangent.relative_std[each].max()
        observed = {name: self.output.value[each]}
        stds = {name: self.output.select(each).entry_std()}
        for key, own in self.gradients.items():
            more = 0 if is_statistic(key) else level * root_mean_square(own[[i]])
            observed[key] = own[i]
            stds[key] = torch.hypot(self.stds[key][i], own.new_zeros(()) + more)
        parameters = tuple(key for key in self.gradients if not is_statistic(key))
        statistics = tuple(key for key in self.gradients if is_statistic(key))
        own = self.cotangent.value[each], parameters, statistics
        function = BlockFunction(self.block, *own, self._mix(stds, len(each)))
        if function.mix is not None:
            weight, mix = function.weight, function.mix
            observed[weight] = torch.einsum("rd,dcij->rcij", mix, observed[weight])
            variance = stds[weight].square()
            stds[weight] = torch.einsum("rd,dcij->rcij", mix.square(), variance).sqrt()
        return function, observed, stds

    def _mix(self, stds: Mapping[str, Tensor], samples: int) -> Tensor | None:
        """Random combinations of the filters, where there are many more than positions."""
        weight, filters = f"{self.block.name}.weight", self.block.geometry.output[0]
        few = MIXED[0] * samples * self.block.geometry.positions + MIXED[1]
        if few >= filters or self.block.groups > 1 or weight not in stds:
            return None
        if not stds[weight].isfinite().all():
            return None
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(filters, few, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(matrix)[0].mT.contiguous()


@dataclass(frozen=True)
class BlockProblem:
    """A map that blocks take, and everything that is known of it, for N clients of B samples each.

    Parameters
    ----------
    node : int
        The map.
    layers : tuple of BlockData
        The blocks.
    samples : int
        B.
    estimate : Estimate or None
        What is known of the map itself.
    direct : Cotangent or None
        The derivative of the loss by the map on other ways than through the blocks.
    below : Activation or None
        The activation whose output the map is.
    offset : Tensor or None
        (N, C), the derivative by that activation's input, summed over the positions.
    """

    node: int
    layers: tuple[BlockData, ...]
    samples: int = 1
    estimate: Estimate | None = None
    direct: Cotangent | None = None
    below: Activation | None = None
    offset: Tensor | None = None

    @property
    def name(self) -> str:
        """Names of its convolutions."""
        return " and ".join(own.block.name for own in self.layers)

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the map."""
        return self.layers[0].plan.bounds

    def refuse_without_equations(self) -> None:
        """Nothing to refuse: the output of some block is known."""

    def solve(self, *, frugal: bool = False) -> tuple[Solution, LayerReport]:
        """Solve for the map, client by client; see `MapProblem.solve`."""
        count = len(self.layers[0].cotangent.value) // self.samples
        solved = Solution.concatenate([self.one(i).solve() for i in range(count)])
        solved = replace(solved, value=solved.value.flatten(1)).per_sample(self.samples)
        solved = replace(solved, error=solved.error.clamp(max=1.0))
        return solved, self._report(solved)

    def one(self, i: int) -> "OneMap":
        """The problem of one client."""
        each = list(range(i * self.samples, (i + 1) * self.samples))
        functions, observed, stds = [], {}, {}
        for layer in self.layers:
            function, own, spread = layer.observed(i, each)
            functions.append(function)
            observed, stds = observed | own, stds | spread
        if self.estimate is not None:
            observed[ITSELF] = self.estimate.value[each]
            stds[ITSELF] = self.estimate.select(each).entry_std()
        below = None if self.offset is None else self.below
        if below is not None:
            levels = [own.cotangent.relative_std[each].max() for own in self.layers]
            noise = max(levels) * root_mean_square(self.offset[[i]])
            observed[BELOW], stds[BELOW] = self.offset[i], noise.expand_as(self.offset[i])
        direct = None if self.direct is None else self.direct.value[each]
        function = MapFunction(tuple(functions), self.estimate is not None, below, direct)
        return OneMap(function, observed, stds)

    def _report(self, solved: Solution) -> LayerReport:
        n, count = self.layers[0].block.geometry.unknowns, len(solved.rank)
        short = (solved.rank < n)[:, None]
        low, high = (torch.where(short, end, solved.value) for end in self.bounds)
        none = torch.zeros_like(solved.rank)
        gradients = [g for own in self.layers for g in own.gradients.values()]
        estimates = [own.output for own in self.layers] + [self.estimate] * bool(self.estimate)
        known = sum((own.weight > 0).flatten(1).sum(dim=1) for own in estimates)
        rows = sum(int(own[0].numel()) for own in gradients)
        fields = solved.rank, solved.condition, solved.residual, ("block",) * count
        left = none, torch.zeros_like(solved.value), low, high
        return LayerReport(self.name, n, none + rows, known, *fields, *left)


@dataclass(frozen=True)
class OneMap:
    """The problem of one client's map.

    Parameters
    ----------
    function : MapFunction
        The equations.
    observed, stds : dict of str to Tensor
        What `MapFunction.parts` names, and its standard deviations; infinite where unknown.
    """

    function: MapFunction
    observed: dict[str, Tensor]
    stds: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""
        first = self.function.blocks[0]
        return len(first.cotangent), *first.block.geometry.input

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(name for own in self.function.blocks for name in own.parameters)

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Right-hand sides, weights and weighted standard deviations, (m,) each."""
        sizes = {name: self._size(name) for name in self.observed}
        largest = {}
        for own in self.function.blocks:
            top = max((sizes[name] for name in own.parameters), default=0.0)
            largest |= dict.fromkeys(own.parameters, top)
        values, weights, stds = [], [], []
        for name, value in self.observed.items():
            own, std, size = value.flatten(), self.stds[name].flatten(), sizes[name]
            if name in largest:  # of a bias before a norm, all is rounding
                size = max(size, LEAST_SHARE * largest[name])
            seen = std < torch.inf
            weight = seen / max(size, 1e-300)
            values.append(torch.where(seen, own, 0.0))
            weights.append(weight)
            stds.append(torch.where(seen, std * weight, 0.0).clamp(min=EVALUATED) * seen)
        return torch.cat(values), torch.cat(weights), torch.cat(stds)

    def _where(self, names: Collection[str]) -> Tensor:
        """(m,), bool: the rows of some parts."""
        parts = [torch.full_like(own, name in names, dtype=torch.bool).flatten()
                 for name, own in self.observed.items()]  # fmt: skip
        return torch.cat(parts)

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
            used = ~self._where((BELOW,))
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
        until = good if BELOW in self.observed else 0.0
        for start in self._starts():
            found = gauss_newton(unscaled, start, good=good, until=until, patience=IMPATIENT)
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
        seen = int(((weights > 0) & (values != 0)).sum())
        return seen > math.prod(self.shape)

    def _near_kinks(self, x: Tensor, error: float) -> int:
        """How many inputs of layers with kinks are not sure to be on their side."""
        seen: dict[str, Tensor] = {}
        count, layers = 0, []
        for own in self.function.blocks:
            own.block.run(own.block.values(), x.reshape(self.shape), seen)
            layers += own.block.layers
        for name, module in layers:
            limit = SURE * error * float(seen[name].square().mean().sqrt())
            for kink in kinks(module):
                count += int(((seen[name] - kink).abs() <= limit).sum())
        return count

    def _starts(self) -> Iterator[Tensor]:
        """First what the output determines, then random numbers."""
        informed = self._with_statistics()
        start = None if informed is None else informed._from_output()
        if start is not None:
            own = partial(informed.linearised, scaled=False)
            good = informed._rounding
            yield gauss_newton(own, start, good=good, until=good, most=INFORMED).value
        start = self._from_output()
        if start is not None:
            yield start
        yield from self._random_starts()

    def _random_starts(self) -> Iterator[Tensor]:
        n = math.prod(self.shape)
        for seed in range(STARTS):
            generator = torch.Generator().manual_seed(seed)
            yield START_STD * torch.randn(n, generator=generator, dtype=torch.float64)

    def _with_statistics(self) -> "OneMap | None":
        """The same with the observed statistics of batches in place of those of the map."""
        found = [with_statistics(own, self.observed) or own for own in self.function.blocks]
        if all(a is b for a, b in zip(found, self.function.blocks, strict=True)):
            return None
        return replace(self, function=replace(self.function, blocks=tuple(found)))

    @cached_property
    def _sources(self) -> tuple[BlockFunction, ...]:
        """Blocks whose weight gradient is observed; those with groups are left out."""
        blocks = self.function.blocks
        return tuple(
            own for own in blocks
            if own.weight in own.parameters and own.block.groups == 1
        )  # fmt: skip

    def _from_output(self) -> Tensor | None:
        """From the smallest outputs of convolutions that give the blocks', if they are found."""
        if not self._sources:
            return None
        matrix = torch.cat([self._guessed_rows(own).matrix for own in self._sources], dim=1)
        sides = [gradient_rhs(self.observed[own.weight][None]) for own in self._sources]
        rhs = torch.cat(sides, dim=1)
        if not matrix.isfinite().all():
            return None
        found = minimum_norm(System.dense(matrix, rhs), WEAK_START).value[0]
        maps = found.reshape(self.shape[0], -1, found.shape[1]).transpose(1, 2).flatten()
        if ITSELF in self.observed:
            known = (self.stds[ITSELF] < torch.inf).flatten()
            maps = torch.where(known, self.observed[ITSELF].flatten(), maps)
        return maps

    def _guessed_rows(self, own: BlockFunction) -> ConvGradient:
        """Gradient constraints for a guess of the convolution's output."""
        if isinstance(own, NormFunction):
            known = self.stds[own.block.name] < torch.inf
            guess = own.convolved_from(self.observed[own.block.name], known)
            back = own.mixed(own.by_convolution(guess))
            return ConvGradient(own.block.geometry, back[None])
        return _gradient_rows(own, self._inverted(own))

    def _inverted(self, own: BlockFunction) -> Tensor:
        """An output of a convolution, (B, D, Ho, Wo), for which its block's is as observed."""
        block, name = own.block, own.block.name
        values, shape = block.values(), (self.shape[0], *block.geometry.output)
        known = (self.stds[name] < torch.inf).flatten()
        target = torch.where(known, self.observed[name].flatten(), 0.0)

        def after(o: Tensor) -> Tensor:
            return block.after(values, o.reshape(shape)).flatten() * known

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

    def _preconditioner(self, x: Tensor, derivative: Linearised, *, scaled: bool) -> Change:
        """L⁻ᵀ with L Lᵀ = AᵀA + α, A the gradient constraints, which all channels share.

        α is what all other rows are on the average. Normalisation sees the scale of x through its
        ε alone: this direction is stretched to the size of the others.
        """
        _, weights, _ = self._rows
        pixels = self.shape[0] * math.prod(self.shape[2:])
        gram = torch.zeros(pixels, pixels, dtype=torch.float64)
        for own in self._sources:
            output = Stage.evaluate(own.block, x.reshape(self.shape))
            rows = _gradient_rows(own, output).matrix[0]
            level = float(weights[self._where((own.weight,))].max())
            gram += level**2 * (rows.T @ rows)
        v = torch.randn(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        others = self._where((ITSELF, *(own.block.name for own in self.function.blocks)))
        alpha = (derivative.product(v) * weights)[others].square().sum() / len(x)
        root, inverse = roots_of(gram, alpha)
        scale = self._by_channel(root, x)
        size = float((derivative.product(x) * weights).norm() / scale.norm().clamp(min=1e-300))
        scale = scale / scale.norm().clamp(min=1e-300)
        more = max(1.0, 1 / max(size, LEAST_SCALE)) - 1 if scaled else 0.0

        def stretched(y: Tensor) -> Tensor:
            return y + more * (scale @ y) * scale

        def forward(y: Tensor) -> Tensor:
            return self._by_channel(inverse, stretched(y))

        return Change(forward, lambda v: stretched(self._by_channel(inverse.mT, v)))

    def _by_channel(self, matrix: Tensor, v: Tensor) -> Tensor:
        """Each channel of a map (n,), a row, times a matrix (B·H·W, B·H·W)."""
        count, channels = self.shape[:2]
        columns = v.reshape(count, channels, -1).transpose(0, 1).reshape(channels, -1)
        return (columns @ matrix).reshape(channels, count, -1).transpose(0, 1).flatten()


def _gradient_rows(own: BlockFunction, output: Tensor) -> ConvGradient:
    """Gradient constraints of a block's convolution, were this its output."""
    values, block = own.block.values(), own.block
    back = pulled_back(lambda o: block.after(values, o), output, own.cotangent)
    return ConvGradient(block.geometry, own.mixed(back)[None])


def cotangent_below(block: Block, x: Estimate, cotangent: Cotangent, samples: int) -> Cotangent:
    """The derivative of the loss by a block's input, client by client.

    Parameters
    ----------
    block : Block
        The block.
    x : Estimate
        Its input, of N clients.
    cotangent : Cotangent
        The derivative by its output.
    samples : int
        Of each client.
    """
    values = block.values()

    def back(maps: Tensor) -> Tensor:
        pairs = zip(maps.split(samples), cotangent.value.split(samples), strict=True)
        parts = [pulled_back(lambda v: block.run(values, v), one, own) for one, own in pairs]
        return torch.cat(parts)

    value, moved = back(x.value), back(_disturbed(x))
    size = root_mean_square(value)
    change = root_mean_square(moved - value) / torch.where(size > 0, size, 1.0)
    return Cotangent(value, torch.hypot(change, cotangent.relative_std).clamp(max=1.0))


def output_of(block: Block, x: Estimate, samples: int) -> Estimate:
    """A block's output from its input; arguments are those of `cotangent_below`."""
    value, moved = (
        torch.cat([block.evaluate(own) for own in maps.split(samples)])
        for maps in (x.value, _disturbed(x))
    )
    return Estimate.whole(value, (moved - value).flatten(2).square().mean(dim=2).sqrt())


def _disturbed(x: Estimate) -> Tensor:
    """A map with errors of the size of its own."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(x.value.shape, generator=generator, dtype=torch.float64)
    return x.value + shift * x.std[..., None, None]
