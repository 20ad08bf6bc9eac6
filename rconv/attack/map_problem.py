"""One map of the network as a least-squares problem: what is known of it, and its solution.

The equations are the union of those of all convolutions that take the map, and of its entries that
are known already. Which kinds of equations are used is decided here; how they are solved, in
`rconv.linalg.solve`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rconv.attack.bound_constraints import (
    Bounds,
    Completed,
    close,
    close_parts,
    joint,
)
from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.plan import LayerPlan, gradients_suffice
from rconv.attack.report import LayerReport
from rconv.equations.conv_gradient import ConvGradient, gradient_rhs
from rconv.equations.conv_output import ConvOutput
from rconv.linalg.operator import Entries
from rconv.linalg.solution import Solution, root_mean_square
from rconv.linalg.solve import CLASS, is_dense, solve
from rconv.linalg.system import ONE, Rows, System
from rconv.model.geometry import Stage
from rconv.model.nodes import UnsupportedModelError

ERROR_LIMIT = 2.5e-8
MILD = 2.0
NOISY = 1e-6
"""`auto` takes hybrid constraints where the expected relative error of the map passes ERROR_LIMIT
and the equations amplify what comes from above by more than MILD, and wherever it passes NOISY:
there every equation helps, unless all is lost above."""


Left = tuple[Tensor, Tensor, Tensor, Tensor]
"""The last fields of a `LayerReport`, from `signs` on."""


@dataclass(frozen=True)
class ConvData:
    """What is known of one convolution before its input is, for N clients of B samples each.

    Parameters
    ----------
    plan : LayerPlan
        The convolution, and the equations that may be used.
    output : Estimate
        Its output O, of N·B samples.
    cotangent : Cotangent
        The derivative of the loss by O, of N·B samples.
    gradient : Tensor
        ∂ℓ/∂W, summed over the samples of each client; (N, D, C, kh, kw).
    relative_std : Tensor
        (N,), relative error of the gradient, both as root mean squares.
    std : Tensor or None
        Shaped as the gradient: standard deviation of each entry, where `relative_std` is not that
        of all.
    observed : Tensor
        Broadcasts to the gradient: 0 for entries that are missing, 1 for all others.
    """

    plan: LayerPlan
    output: Estimate
    cotangent: Cotangent
    gradient: Tensor
    relative_std: Tensor
    std: Tensor | None = None
    observed: Tensor = ONE

    @property
    def stage(self) -> Stage:
        """The convolution."""
        return self.plan.stage

    @property
    def samples(self) -> int:
        """B."""
        return len(self.cotangent.value) // len(self.gradient)

    def select(self, where: Tensor | list[int]) -> "ConvData":
        """The same of some of the clients."""
        index = torch.as_tensor(where, device=self.gradient.device)
        each = (index[:, None] * self.samples + torch.arange(self.samples)).flatten()
        observed = self.observed if self.observed.dim() == 0 else self.observed[index]
        return replace(
            self,
            output=self.output.select(each),
            cotangent=self.cotangent.select(each),
            gradient=self.gradient[index],
            relative_std=self.relative_std[index],
            std=None if self.std is None else self.std[index],
            observed=observed,
        )

    @property
    def gradient_std(self) -> Tensor:
        """(N,), relative error of gradient constraints: of both of their sides."""
        return torch.hypot(self.relative_std, self._cotangent_std)

    @property
    def _cotangent_std(self) -> Tensor:
        """(N,): the largest relative error of a sample's cotangent."""
        return self.cotangent.relative_std.reshape(-1, self.samples).amax(dim=1)

    @cached_property
    def offset_free(self) -> Estimate:
        """O - b: the convolution of the input alone."""
        bias = self.stage.bias
        if bias is None:
            return self.output
        return replace(self.output, value=self.output.value - bias[:, None, None])

    def gradient_rows(self) -> Rows:
        """Gradient constraints, the samples of a client together."""
        rhs, shape = gradient_rhs(self.gradient), (-1, self.samples, *self.stage.geometry.output)
        cotangent = self.stage.unscaled(self.cotangent.value).reshape(shape)
        operator = ConvGradient(self.stage.geometry, cotangent)
        std = (self.gradient_std * root_mean_square(rhs))[:, None, None]
        if self.std is not None:
            own = gradient_rhs(self.std).square().mean(dim=2, keepdim=True).sqrt()
            std = torch.hypot(own, (self._cotangent_std * root_mean_square(rhs))[:, None, None])
        weight = self.observed
        if weight.dim():
            weight = gradient_rhs(weight.expand_as(self.gradient))
        return Rows(operator, rhs * weight, std * weight, weight)

    def output_rows(self) -> Rows:
        """Weight constraints, where the output is known; each sample has its own."""
        output, shape = self.offset_free, (-1, self.samples, *self.stage.geometry.output)
        std = root_mean_square(output.std).reshape(-1, self.samples, 1, 1, 1)
        value, weight = output.value.reshape(shape), output.weight.reshape(shape)
        operator = self.plan.output if self.samples == 1 else ConvOutput(self.stage, self.samples)
        return Rows(operator, value, std, weight)


@dataclass(frozen=True)
class MapProblem:
    """One map that convolutions take, and everything that is known of it.

    Parameters
    ----------
    node : int
        The map.
    layers : tuple of ConvData
        What is known of the convolutions that take it.
    estimate : Estimate or None
        What is known of the map itself.
    """

    node: int
    layers: tuple[ConvData, ...]
    estimate: Estimate | None = None

    @property
    def samples(self) -> int:
        """B."""
        return self.layers[0].samples

    @property
    def clients(self) -> int:
        """N."""
        return len(self.layers[0].gradient)

    @property
    def unknowns(self) -> int:
        """C·H·W of one sample."""
        return self.layers[0].stage.geometry.unknowns

    @property
    def name(self) -> str:
        """Names of the convolutions."""
        return " and ".join(layer.stage.name for layer in self.layers)

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the map."""
        return self.layers[0].plan.bounds

    @property
    def alone(self) -> bool:
        """Whether one convolution is all that determines the map."""
        return self.estimate is None and len(self.layers) == 1

    def refuse_without_equations(self) -> None:
        """Refuse a map of which missing gradients leave no equation."""
        some = any(bool(layer.observed.any() or layer.output.some.any()) for layer in self.layers)
        if not some and self.estimate is None:
            name = self.layers[0].stage.name
            raise UnsupportedModelError(
                f"no gradient for {name}.weight: the output of {name} is not known either, so that "
                "nothing determines its input; its gradient must be sent"
            )

    def select(self, where: Tensor | list[int]) -> "MapProblem":
        """The same of some of the clients."""
        index = torch.as_tensor(where)
        each = (index[:, None] * self.samples + torch.arange(self.samples)).flatten()
        estimate = None if self.estimate is None else self.estimate.select(each)
        layers = tuple(layer.select(where) for layer in self.layers)
        return replace(self, layers=layers, estimate=estimate)

    def system(self, kind: str = "hybrid") -> System:
        """The equations of one kind, "gradient" or "weight", or of both, "hybrid"."""
        blocks = []
        for layer in self.layers:
            allowed = (kind, layer.plan.kind)
            if "weight" not in allowed:
                blocks.append(layer.gradient_rows())
            if "gradient" not in allowed:
                blocks.append(layer.output_rows())
        if self.estimate is not None:
            shape = self.samples, *self.layers[0].stage.geometry.input
            own = self.estimate
            value, weight = (v.reshape(-1, *shape) for v in (own.value, own.weight))
            std = own.std.reshape(-1, *shape[:2], 1, 1)
            meant = weight > 0  # or a bound
            if own.side is not None:
                meant = meant | (own.side != 0).reshape(value.shape)
            blocks.append(Rows(Entries(shape), torch.where(meant, value, 0.0), std, weight))
        bounds = self.layers[0].plan.bounds
        return System(tuple(blocks), self.samples * self.unknowns, bounds)

    def solve(self, *, frugal: bool = False) -> tuple[Solution, LayerReport]:
        """Solve for the map.

        With `auto`, the cheapest kind that may suffice is tried first, then hybrid for the clients
        where it falls short of rank or amplifies the noise; the better of the two answers is kept.
        What is short of rank all the same may be closed by bounds.

        Parameters
        ----------
        frugal : bool
            With `auto`, keep what was tried first.

        Returns
        -------
        Solution
            The map, value (N·B, C·H·W), and its expected error.
        LayerReport
            How well it is determined, one entry for every sample. What is open in the samples of a
            client together counts for each that it may be of.
        """
        kinds, order, parts = self._cheapest(), [], []
        for kind, where in _groups(kinds):
            parts.append(self.select(where).solved_by(kind))
            order += [i * self.samples + b for i in where for b in range(self.samples)]
        solved = Solution.concatenate(parts).select(torch.tensor(order).argsort())
        if not frugal:
            solved, kinds = self._with_all_rows(solved, kinds)
        solved, left = self._closed(solved)
        return solved, self._report(solved, kinds, left)

    def solved_by(self, kind: str) -> Solution:
        """The solution of one kind of equations, for every sample; value (N·B, C·H·W)."""
        own = self._sample_by_sample() if kind == "weight" and self.estimate is None else self
        relative_std = torch.stack([layer.relative_std for layer in own.layers]).amax(dim=0)
        found = solve(own.system(kind), relative_std, own.samples)
        error = found.error.nan_to_num(nan=1.0, posinf=1.0).maximum(self.least_std(kind))
        return replace(found, value=found.value.flatten(1), error=error.clamp(max=1.0))

    def least_std(self, kind: str) -> Tensor:
        """(N·B,): relative error of the best equations of a kind.

        Errors that are not independent do not average out.
        """
        each = [] if self.estimate is None else [self.estimate.relative_std()]
        for layer in self.layers:
            if kind != "weight" and layer.observed.any():
                each.append(layer.gradient_std.repeat_interleave(self.samples))
            if kind != "gradient":
                each.append(layer.offset_free.relative_std())
        zero = torch.zeros_like(self.layers[0].cotangent.relative_std)
        return torch.stack(each).amin(dim=0) if each else zero + 1

    def _sample_by_sample(self) -> "MapProblem":
        """Weight constraints alone do not join the samples of a client."""
        if self.samples == 1:
            return self
        (layer,) = self.layers
        gradient, relative_std = (
            own.repeat_interleave(self.samples, dim=0)
            for own in (layer.gradient, layer.relative_std)
        )
        alone = replace(layer, gradient=gradient, relative_std=relative_std, std=None, observed=ONE)
        return replace(self, layers=(alone,))

    def _cheapest(self) -> list[str]:
        """Of each client the kind of equations to try first."""
        if not self.alone:
            apart = all(layer.plan.kind in ("auto", "gradient") for layer in self.layers)
            apart &= self.layers[0].stage.geometry.pixels * self.samples <= CLASS
            return ["gradient" if apart else "hybrid"] * self.clients
        (layer,) = self.layers
        plan, shape = layer.plan, (self.clients, self.samples)
        if plan.kind != "auto":
            return [plan.kind] * self.clients
        whole = layer.output.all.reshape(shape).all(dim=1)
        some = layer.output.some.reshape(shape).any(dim=1)
        noise = layer.offset_free.relative_std().reshape(shape).amax(dim=1)
        suffice = gradients_suffice(plan.stage.geometry, self.samples) and layer.observed.any()
        kinds = []
        for known, any_known, level in zip(whole, some, noise.tolist(), strict=True):
            if known and plan.weights_determine(level):
                kinds.append("weight")
            else:
                kinds.append("gradient" if suffice or not any_known else "hybrid")
        return kinds

    def _with_all_rows(self, solved: Solution, kinds: list[str]) -> tuple[Solution, list[str]]:
        """The same, with all equations where these determine the map better."""
        if any(layer.plan.kind != "auto" for layer in self.layers):
            return solved, kinds
        shape = self.clients, self.samples
        outputs = [layer.offset_free for layer in self.layers]
        noise = torch.stack([output.relative_std() for output in outputs]).amin(dim=0)
        some = torch.stack([output.some for output in outputs]).any(dim=0).reshape(shape).any(dim=1)
        unsure = is_unsure(solved, self.unknowns, noise).reshape(shape).any(dim=1) & some
        again = [i for i in unsure.nonzero()[:, 0].tolist() if kinds[i] != "hybrid"]
        if not again:
            return solved, kinds
        others = self.select(again).solved_by("hybrid")
        for k, i in enumerate(again):
            mine, new = (self.samples * j + torch.arange(self.samples) for j in (i, k))
            if is_better(others.select(new), solved.select(mine)):
                solved = solved.replace(mine, others.select(new))
                kinds[i] = "hybrid"
        return solved, kinds

    def _closed(self, solved: Solution) -> tuple[Solution, Left]:
        """What inequalities add to the solution, and `signs`, `guess`, `low` and `high`."""
        n, plan = self.unknowns, self.layers[0].plan
        short = solved.rank < n
        closed, guess = torch.zeros_like(solved.rank), torch.zeros_like(solved.value)
        low, high = (torch.where(short[:, None], end, solved.value) for end in plan.bounds)
        uses = plan.signs and all(layer.plan.kind == "auto" for layer in self.layers)
        clients = short.reshape(-1, self.samples).any(dim=1).nonzero()[:, 0].tolist()
        for i in clients if uses else ():
            own = self.select([i])
            where = i * self.samples + torch.arange(self.samples)
            mine = solved.select(where)
            done = own._completed(joint(mine))
            if done is None:
                continue
            samples = done.solution.per_sample(self.samples)
            error = samples.error.maximum(own.least_std("hybrid")).clamp(max=1.0)
            gap = min(int(n - mine.rank.min()), n)
            left = max(gap - done.closed, 0)
            rank = mine.rank if self.samples == 1 else torch.full_like(mine.rank, n - gap)
            solved = solved.replace(where, replace(samples, error=error, rank=rank))
            closed[where] = n - rank - left
            for part, whole in ((done.guess, guess), (done.low, low), (done.high, high)):
                whole[where] = part.reshape(self.samples, -1)
        return solved, (closed, guess, low, high)

    def _completed(self, solution: Solution) -> Completed | None:
        """One client's system closed; None where it is too large."""
        plan, system = self.layers[0].plan, self.system()
        relative_std = max(float(layer.relative_std.amax()) for layer in self.layers)
        scale = float(root_mean_square(solution.value)[0])
        bounds = Bounds(system, self._sides(system))
        if not bounds.one_sided and not system.couples:
            return close_parts(system, solution, relative_std, exact=plan.exact, scale=scale)
        if not is_dense(system, self.samples):
            return None
        image = (self.samples, *plan.stage.geometry.input) if plan.first else None
        how = {"prior": plan.prior, "image": image, "exact": plan.exact}
        return close(bounds, solution, relative_std, **how, scale=scale)

    def _sides(self, system: System) -> tuple[Tensor | None, ...]:
        """The sides of every block of one client's system."""
        kinds = (layer for layer in self.layers if layer.plan.kind != "gradient")
        outputs, found = (layer.output.side for layer in kinds), []
        for rows in system.blocks:
            if isinstance(rows.operator, Entries):
                side = self.estimate.side
            else:
                side = next(outputs) if rows.operator.couples else None
            if side is not None:
                side = side.reshape(rows.rhs.shape) * (rows.operator.row_norms() > 0)
            found.append(side)
        return tuple(found)

    def _report(self, solved: Solution, kinds: list[str], left: Left) -> LayerReport:
        each = [kind for kind in kinds for _ in range(self.samples)]
        device = solved.rank.device
        by_gradient = torch.tensor([kind != "weight" for kind in each], device=device)
        by_weight = torch.tensor([kind != "gradient" for kind in each], device=device)
        gradient_rows = sum(layer.stage.geometry.gradient_rows for layer in self.layers)
        outputs = sum((own.output.weight > 0).flatten(1).sum(dim=1) for own in self.layers)
        weight_rows = by_weight * outputs
        if self.estimate is not None:
            weight_rows = weight_rows + (self.estimate.weight > 0).flatten(1).sum(dim=1)
        return LayerReport(
            self.name,
            self.unknowns,
            by_gradient * gradient_rows,
            weight_rows,
            solved.rank,
            solved.condition,
            solved.residual,
            tuple(each),
            *left,
        )


def is_unsure(solved: Solution, unknowns: int, noise: Tensor) -> Tensor:
    """(N,), bool: maps that are short of rank, or have equations that amplify the noise too much.

    The noise (N,) is relative, of what other equations there are.
    """
    error, growth = solved.error, solved.error / noise.clamp(min=1e-300)
    unsure = (error > NOISY) & (noise < 1)
    unsure |= (error > ERROR_LIMIT) & (growth > MILD)
    return unsure | (solved.rank < unknowns)


def is_better(other: Solution, solved: Solution) -> bool:
    """Whether an answer to the samples of a client has more rank, or as much and smaller errors."""
    own, new = int(solved.rank.sum()), int(other.rank.sum())
    return new > own or (new == own and bool(other.error.amax() < solved.error.amax()))


def _groups(kinds: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Clients that are solved by the same kind of equations."""
    for kind in dict.fromkeys(kinds):
        yield kind, [i for i, own in enumerate(kinds) if own == kind]
