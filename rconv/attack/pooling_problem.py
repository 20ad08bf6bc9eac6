"""The input of a convolution behind which max pooling stands.

Which position of each window carries its maximum is not known. It is searched for in single
precision with routings as random variables (`rconv.equations.routing`). Given all of them, the
equations are those of a convolution of which some outputs are known and the others bounded: they
are solved as those, and the solution must confirm each routing.

Where BatchNorm in training mode stands between the two, it is affine in the search, with the
statistics that the client returns; the solution is that of the whole block.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from rconv.attack.block_problem import CORRELATED, NOISY, ROUNDING, SURE, BlockData, BlockProblem
from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.map_problem import ConvData, MapProblem
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.equations.routing import LiveNorm, PooledMap, Windows, search
from rconv.linalg.gauss_newton import Change, linear_step
from rconv.linalg.solution import STALLED, Solution, relative, root_mean_square
from rconv.linalg.system import ONE, System
from rconv.model.blocks import STATISTICS, Block
from rconv.model.geometry import Stage

STEPS, SHORT = 25, 12
"""Steps of the search at most; and where counting says that the map is not determined."""

SMOOTHER = (1.0, 0.5)
"""What the prior's differences of neighbours are multiplied by, one search after the other."""

ACCURACY, ITERATIONS = 1e-6, 100
"""Of each of them. With an accuracy of 1e-4 they came to rest anywhere."""

REST = 1e-5
"""Root mean square of what the windows miss at which the search ends."""

PIXELS, ENTRIES = (0.3, 0.5), (0.2, 2.0)
"""Standard deviations of differences of neighbours, and of the values, that the search starts from:
of an image per range, of other maps per size. They hardly count once the equations are met."""

TIED = 1e-9
"""Share of the largest output within which two count as equal, and of the largest entry within
which two patches do: both positions then give the same equations."""

SOLUTIONS = 4
"""Times that routings are read from a solution and the equations solved with them."""

DIGITS = 40.0
"""Bits that one equation confirms: those of float64 less a dozen that its computation loses."""


def windows_of(block: Block, pooled: Tensor) -> Windows:
    """The windows of a block that ends in max pooling, and whose output is (N, D, H', W')."""
    return Windows.of(block.pool, block.geometry.output[1:], tuple(pooled.shape[2:]))


def routed(stage: Stage, windows: Windows, x: Tensor) -> Tensor:
    """(D, L', K), which position carries each maximum of a map x (1, C, H, W)."""
    z = stage.convolve(x)[0].flatten(1)
    return windows.routed(z, TIED * z.abs().max())


def cotangent_below_pool(block: Block, x: Estimate, cotangent: Cotangent) -> Cotangent:
    """The derivative of the loss by the input of a convolution and max pooling.

    Parameters
    ----------
    block : Block
        Both.
    x : Estimate
        The input, of N clients of one sample each.
    cotangent : Cotangent
        The derivative by the maxima.
    """
    stage, windows = block.unpooled({}), windows_of(block, cotangent.value)
    value = []
    for part, back in zip(x.value.split(1), cotangent.value.split(1), strict=True):
        shares = routed(stage, windows, part) * back[0].flatten(1)[..., None]
        maps = windows.summed(shares, block.geometry.positions)
        value.append(stage.transpose(maps.reshape(1, *block.geometry.output)))
    return Cotangent(torch.cat(value), cotangent.relative_std)


class PoolingProblem(BlockProblem):
    """The input of a convolution and max pooling; see `BlockProblem`."""

    def solve(self, *, frugal: bool = False) -> tuple[Solution, LayerReport]:
        """Solve for the map, client by client; see `MapProblem.solve`."""
        count = len(self.layers[0].cotangent.value)
        found = [OnePooled(self, i).solve() for i in range(count)]
        solved = Solution.concatenate(found)
        return solved, self._report(solved)


@dataclass(frozen=True)
class OnePooled:
    """The problem of one client.

    Parameters
    ----------
    problem : PoolingProblem
        Of all clients.
    client : int
        Which one.
    """

    problem: PoolingProblem
    client: int

    @property
    def data(self) -> BlockData:
        """What is known of the block."""
        return self.problem.layers[0]

    def solve(self) -> Solution:
        """The map, if routings are found that explain everything; else the best estimate."""
        stage = self._stage
        if stage is None:
            return self._nothing
        given = self.given(stage)
        if not given.known.any():
            return self._nothing
        enough = _determined(given)
        live, found = self.data.block.live_norm is not None, []
        for factor in SMOOTHER:
            x = self._searched(given, STEPS if enough else SHORT, factor)
            found.append(undetermined(given, x))
            if enough:
                solved = self._normalised(given, x) if live else self._routed(given, x)
                if solved.rank.any():
                    return solved
        return min(found, key=lambda own: float(own.residual))

    def _routed(self, given: PooledMap, x: Tensor) -> Solution:
        """The solution with the routings of an estimate, which it must confirm."""
        choice = None
        for _ in range(SOLUTIONS):
            own = routed(given.stage, given.windows, x.reshape(1, *given.stage.geometry.input))
            if choice is not None and bool((own == choice)[given.known].all()):
                break
            choice = own
            solved, system = self._with_routing(given, choice)
            x = solved.value.flatten()
        return self._judged(given, choice, solved, system)

    @cached_property
    def _stage(self) -> Stage | None:
        """What stands below the pooling; None where that takes more than is observed."""
        own, norm = self.data, self.data.block.live_norm
        if norm is not None:
            keys = (*STATISTICS, "weight", "bias")
            weight = own.block.layers[0][1].weight
            if not all(f"{norm}.{key}" in own.gradients for key in keys) or (weight == 0).any():
                return None
        return own.block.unpooled({key: g[self.client] for key, g in own.gradients.items()})

    def given(self, stage: Stage) -> PooledMap:
        """What is known, in float64."""
        problem, i, block = self.data, self.client, self.data.block
        output = problem.output.select([self.client])
        bias = 0.0 if stage.bias is None else stage.bias[:, None]
        known = (output.weight > 0)[0].flatten(1)
        side = torch.zeros_like(output.value) if output.side is None else output.side
        name, zero = f"{block.name}.weight", torch.zeros_like(stage.weight)
        gradient, std = problem.gradients.get(name), problem.stds.get(name)
        gradient = zero if gradient is None else stage.expanded(gradient[i])
        seen = zero if std is None else stage.expanded((std[i] < torch.inf) + zero[:, :, :1, :1])
        value, cotangent = output.value[0].flatten(1) - bias, problem.cotangent.value[[i]]
        windows, bounded = windows_of(block, output.value), (side > 0)[0].flatten(1) & ~known
        room = SURE * output.std[0, :, None] + TIED * root_mean_square(value[known][None])
        limit = torch.where(known | bounded, value, torch.inf)
        return PooledMap(
            replace(stage, bias=None),
            windows,
            value,
            known,
            bounded,
            stage.unscaled(cotangent)[0].flatten(1),
            gradient.flatten(1),
            (seen if stage.groups == 1 else seen + 1 - stage.meeting()).flatten(1).all(dim=1),
            self.problem.bounds[0],
            self._prior(stage, value[known]),
            *windows.candidates(value, known, limit, stage.geometry.positions, room),
            self._norm(stage),
        )

    def _norm(self, stage: Stage) -> LiveNorm | None:
        """BatchNorm in training mode below the pooling, as the folded convolution has it."""
        block, own = self.data.block, self.data.gradients
        if block.live_norm is None:
            return None
        ((name, norm), _), count = block.layers, block.geometry.positions
        means = (own[f"{name}.{key}"][self.client] / count for key in ("bias", "weight"))
        by_bias, by_weight = (stage.scale * mean for mean in means)
        # The output of the folded convolution is γ ô + β, and its own norm knows no sign of γ.
        parts = norm.bias.detach() - stage.bias, by_bias, by_weight * norm.weight.detach().sign()
        return LiveNorm(*(part[:, None] for part in parts))

    @property
    def _nothing(self) -> Solution:
        """What is said where there is nothing to search with."""
        block = self.data.block
        return unknown(block.weight.new_full((block.geometry.unknowns,), self._middle))

    @property
    def _middle(self) -> float:
        """Of the range of an image; 0 for other maps."""
        return sum(self.problem.bounds) / 2 if self.problem.node == 0 else 0.0

    def _prior(self, stage: Stage, value: Tensor) -> tuple[float, float, float]:
        """Of an image by its range; of other maps by the size that the maxima suggest."""
        if self.problem.node == 0:
            low, high = self.problem.bounds
            size = high - low
            return self._middle, PIXELS[0] * size, PIXELS[1] * size
        rows = stage.weight.square().sum(dim=(1, 2, 3)).mean().sqrt()
        size = float(value.square().mean().sqrt() / rows) if len(value) else 1.0
        return 0.0, ENTRIES[0] * size, ENTRIES[1] * size

    def _searched(self, given: PooledMap, rounds: int, factor: float) -> Tensor:
        """An estimate, with a prior of differences of neighbours that is wider by a factor."""

        def solve(system: System, change: Change) -> Tensor:
            return linear_step(system, change, system.rhs, 0.0, ACCURACY, ITERATIONS)

        mean, slope, spread = given.prior
        single, cautious = given.to(torch.float32), given.norm is not None and factor < 1
        own = replace(single, prior=(mean, factor * slope, spread), cautious=cautious)
        return search(own, solve, rounds=rounds, rest=REST).double()

    def _normalised(self, given: PooledMap, start: Tensor) -> Solution:
        """The solution of convolution, norm and pooling together, from an estimate."""
        found = self.problem.one(self.client).solve_from(start)
        x, g = found.value.flatten(), given.stage.geometry
        if not found.rank.any():
            return undetermined(given, start)
        choice = routed(given.stage, given.windows, x.reshape(1, *g.input))
        z = given.windows.values(given.outputs(x))
        room = (SURE * float(found.error) + TIED) * z[z.isfinite()].square().mean().sqrt()
        above = (z > given.value[..., None] + room) & (given.known | given.bounded)[..., None]
        if above.any():
            return undetermined(given, x)
        close = _ties(given, choice, z, x, room)
        return replace(found, value=x[None], rank=(found.rank - close).clamp(min=0))

    def _with_routing(self, given: PooledMap, choice: Tensor) -> tuple[Solution, System]:
        """The solution where it is known which position carries each maximum."""
        own, i, g = self.data, self.client, given.stage.geometry
        shape, name = (1, *g.output), f"{own.block.name}.weight"
        stage = given.stage
        equal = given.windows.summed(choice * given.known[..., None], g.positions) > 0
        limit = torch.where(given.known | given.bounded, given.value, torch.inf)
        least = given.windows.least(limit, g.positions)
        side = (least < torch.inf) & ~equal
        std = own.output.select([i]).std
        estimate = Estimate(
            torch.where(least < torch.inf, least, 0.0).reshape(shape),
            equal.reshape(shape).double(), std, side.reshape(shape).double(),
        )  # fmt: skip
        back = own.cotangent.value[[i]][0].flatten(1)[..., None]
        maps = given.windows.summed(choice * back, g.positions).reshape(shape)
        cotangent = Cotangent(maps, own.cotangent.relative_std[[i]])
        plan = own.plan
        new = LayerPlan(stage, bounds=plan.bounds, signs=plan.signs, prior=False, exact=plan.exact)
        data = ConvData(new, estimate, cotangent, **self._gradient(name, stage))
        problem = MapProblem(self.problem.node, (data,))
        return problem.solve()[0], problem.system()

    def _gradient(self, name: str, stage: Stage) -> dict[str, Tensor]:
        """The weight gradient as `ConvData` takes it."""
        own, i = self.data, self.client
        if name not in own.gradients:
            nothing = stage.weight.new_zeros(1, *stage.weight.shape)
            return {"gradient": nothing, "relative_std": ONE[None] * 0, "observed": ONE * 0}
        gradient, std = own.gradients[name][[i]], own.stds[name]
        std = (std[[i]] if std.dim() else std[None]).expand_as(gradient)
        seen = (std < torch.inf).double()
        size = root_mean_square(gradient).clamp(min=1e-300)
        std = torch.where(seen > 0, std, 0.0)
        return {
            "gradient": stage.expanded(gradient * seen),
            "relative_std": root_mean_square(std) / size,
            "std": stage.expanded(std),
            "observed": stage.expanded(seen),
        }

    def _judged(
        self, given: PooledMap, choice: Tensor, solved: Solution, system: System
    ) -> Solution:
        """The solution, whose rank counts where it explains everything and no maximum is unsure."""
        x, g = solved.value.flatten(), given.stage.geometry
        scaled = system.whitened()
        residual = float(relative(scaled.residual(x[None, :, None]), scaled.rhs)[0])
        noise = float(scaled.std.norm() / scaled.rhs.norm().clamp(min=1e-300))
        z = given.windows.values(given.stage.convolve(x.reshape(1, *g.input))[0].flatten(1))
        size = z[z.isfinite()].square().mean().sqrt()
        error = (CORRELATED * solved.error).clamp(max=1.0)
        room = SURE * float(error) * size + TIED * size
        above = (z > given.value[..., None] + room) & (given.known | given.bounded)[..., None]
        # A residual is relative to the rows; the accuracy of a solution is that of float64.
        good = residual <= NOISY * noise + ROUNDING
        if not good or above.any():
            return undetermined(given, x)
        close = _ties(given, choice, z, x, room)
        return replace(solved, rank=(solved.rank - close).clamp(min=0), error=error)


def _ties(given: PooledMap, choice: Tensor, z: Tensor, x: Tensor, room: Tensor) -> int:
    """Windows whose maximum is not sure, and where that makes a difference."""
    top = z.amax(dim=2, keepdim=True)
    near = (z >= top - room) & (choice == 0) & given.known[..., None]
    g, found = given.stage.geometry, 0
    maps = x.reshape(1, *g.input)
    patches = functional.unfold(maps, g.kernel, g.dilation, g.padding, g.stride)[0].T
    for d, w, k in near.nonzero().tolist():
        first = int(given.windows.positions[w, int(choice[d, w].argmax())])
        other = int(given.windows.positions[w, k])
        change = (patches[first] - patches[other]).abs().max()
        found += int(change > TIED * x.abs().max())
    return found


def _determined(given: PooledMap) -> bool:
    """Whether equations determine the unknowns and confirm the routings, by their number."""
    seen = given.gradient[given.observed]
    gradients = int((seen != 0).sum())
    bits = float(given.possible.sum(dim=2)[given.known].log2().sum())
    distinct = float((1 / given.shared)[given.known].sum())
    return distinct + gradients > given.stage.geometry.unknowns + bits / DIGITS


def unknown(x: Tensor, miss: float = 1.0, steps: int = 0) -> Solution:
    """An estimate (n,) of which nothing is known; what its maxima miss, relative, and the steps."""
    one = torch.ones(1, dtype=torch.float64)
    fields = torch.tensor([0]), one * math.inf, one, one * miss, one, torch.tensor([steps])
    return Solution(x[None], *fields, ("routings",), (STALLED,))


def undetermined(given: PooledMap, x: Tensor) -> Solution:
    """The same of an estimate that was searched for."""
    miss = given.miss(x)[given.known].norm() / given.value[given.known].norm().clamp(min=1e-300)
    return unknown(x, float(miss.nan_to_num(nan=1.0)), STEPS)
