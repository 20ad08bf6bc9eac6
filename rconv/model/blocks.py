"""Blocks: a convolution with everything that follows it up to the next map that is known.

Pooling, normalisation by the data and activations that are not monotone have no derivative that
their output determines. They are not passed backwards one by one: together with the convolution
below them they are one function of its input, which is solved for as a whole.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rconv.model.activations import from_module
from rconv.model.batchnorm import affine_of, folded, without_statistics
from rconv.model.geometry import Stage
from rconv.model.nodes import UnsupportedModelError
from rconv.model.operations import ACTIVATIONS, Operation

STATISTICS = ("running_mean", "running_var")
"""Buffers of BatchNorm that a step in training mode moves towards those of the batch."""

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
CURVES = (
    nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.PReLU, nn.Softsign, nn.CELU, nn.SELU, nn.LogSigmoid,
    nn.Tanhshrink,
)  # fmt: skip
"""Activations whose derivative is no function of the output, or is not written as one."""

BLOCKED = (*NORMS, *POOLS, *CURVES)


class Fused(nn.ModuleList):
    """The layers of a block, the convolution first, from their steps."""

    def __init__(self, steps: list[Operation]):
        super().__init__(step.what for step in steps)
        self.names = tuple(step.name for step in steps)


@dataclass(frozen=True)
class Block(Stage):
    """A convolution and what follows it up to a known map, as one function of its input.

    `layers` are names and modules of what follows the convolution, in float64.
    """

    layers: tuple[tuple[str, nn.Module], ...] = ()
    linear = False

    @property
    def pool(self) -> nn.MaxPool2d | None:
        """The max pooling that ends it, if one does; only BatchNorm stands below it then."""
        module = self.layers[-1][1] if self.layers else None
        return module if type(module) is nn.MaxPool2d else None

    @property
    def live_norm(self) -> str | None:
        """Of a block that ends in max pooling, the BatchNorm in training mode, if there is one."""
        name, norm = self.layers[0]
        return name if type(norm) is nn.BatchNorm2d and is_blocked(norm) else None

    def unpooled(self, statistics: Mapping[str, Tensor]) -> Stage:
        """Of a block that ends in max pooling, what stands below it, as one convolution.

        Takes the statistics of the batch by name, which are needed where there is a `live_norm`.
        """
        parts = (self.name, self.weight, self.bias, self.activation, self.geometry)
        stage = Stage(*parts, groups=self.groups)
        for name, norm in self.layers[:-1]:
            if name == self.live_norm:
                norm = copy.deepcopy(norm).eval()
                count = self.geometry.positions
                mean, variance = (statistics[f"{name}.{key}"] for key in STATISTICS)
                norm.running_mean, norm.running_var = mean, variance * (count - 1) / count
            stage = folded(stage, name, affine_of(name, norm, len(self.weight)))
        return stage

    @property
    def offset(self) -> str:
        """The parameter whose gradient is the sum of the cotangent over the positions, if any."""
        name, module = self.layers[-1]
        return f"{name}.bias" if type(module) in (nn.BatchNorm2d, nn.GroupNorm) else ""

    @property
    def parameters(self) -> list[str]:
        """Names that its parameters can have."""
        layers = [f"{name}.{key}" for name, m in self.layers for key, _ in m.named_parameters()]
        return [f"{self.name}.weight", f"{self.name}.bias", *layers]

    @property
    def statistics(self) -> dict[str, float]:
        """Names of the buffers that a client may return, and their momentum."""
        norms = [(name, module) for name, module in self.layers if type(module) is nn.BatchNorm2d]
        return {
            f"{name}.{kind}": module.momentum or 1.0
            for name, module in norms
            for kind in STATISTICS
        }

    def values(self) -> dict[str, Tensor]:
        """Its parameters, by name."""
        found = {f"{self.name}.weight": self.compact(self.weight)}
        if self.bias is not None:
            found[f"{self.name}.bias"] = self.bias
        for name, module in self.layers:
            found |= {f"{name}.{key}": p.detach() for key, p in module.named_parameters()}
        return found

    def evaluate(self, x: Tensor) -> Tensor:
        """Its output, (B, D, H', W'), from its input (B, C, H, W)."""
        return self.run(self.values(), x)

    def run(
        self, parameters: Mapping[str, Tensor], x: Tensor, seen: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Its output for other parameters, from x (B, C, H, W); `seen` collects the input of each
        layer.
        """
        return self.after(parameters, self.convolved(parameters, x), seen)

    def convolved(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The convolution alone; see `run`."""
        g = self.geometry
        weight, bias = parameters[f"{self.name}.weight"], parameters.get(f"{self.name}.bias")
        return nn.functional.conv2d(x, self.expanded(weight), bias, g.stride, g.padding, g.dilation)

    def after(
        self, parameters: Mapping[str, Tensor], x: Tensor, seen: dict[str, Tensor] | None = None
    ) -> Tensor:
        """What follows the convolution, as a function of its output; see `run`."""
        for name, module in self.layers:
            if seen is not None:
                seen[name] = x
            values = {key: parameters[f"{name}.{key}"] for key, _ in module.named_parameters()}
            x = functional_call(module, values, (x,))
        return x


def block_of(stage: Stage, fused: Fused) -> Block:
    """A convolution that was read, the first of the layers, with those that follow it."""
    layers = tuple(
        (name, copy.deepcopy(without_statistics(module)).double())
        for name, module in list(zip(fused.names, fused, strict=True))[1:]
    )
    parts = (stage.name, stage.weight, stage.bias, stage.activation, stage.geometry)
    return Block(*parts, groups=stage.groups, layers=layers)


def output_shape(block: Block) -> tuple[int, int, int]:
    """(D, H', W') of a block's output; UnsupportedModelError if one image cannot be computed."""
    try:
        shape = block.evaluate(torch.zeros(1, *block.geometry.input, dtype=torch.float64)).shape
    except (RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{block.layers[0][0]}: cannot be run on one image: {error}"
        ) from None
    if len(shape) != 4:
        raise UnsupportedModelError(f"{block.layers[-1][0]}: its output is no map")
    return tuple(shape[1:])


def kinks(module: nn.Module) -> tuple[float, ...]:
    """Inputs at which the derivative of a layer jumps."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val, module.max_val
    if isinstance(module, nn.Hardswish):
        return -3.0, 3.0
    return (0.0,) if isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU)) else ()


def is_statistic(name: str) -> bool:
    """Whether a name is that of a running statistic."""
    return name.rpartition(".")[2] in STATISTICS


def is_blocked(module: object) -> bool:
    """Whether a layer is passed as part of a block only."""
    if type(module) is nn.BatchNorm2d:
        return module.training or module.running_mean is None
    if type(module) is nn.MaxPool2d:
        return not module.return_indices
    return type(module) in BLOCKED


def with_blocks(steps: list[Operation]) -> list[Operation]:
    """The steps, each layer that cannot be passed alone joined with the convolution below it.

    A block has the name of its convolution, and steps have new indices.
    """
    uses = Counter(j for step in steps for j in step.inputs)
    steps = _pooled_first(steps, uses)
    chains: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        chain = _down_to_convolution(steps, i, uses) if is_blocked(step.what) else None
        if chain is not None:
            chains[chain[0]] = chain
    last = {chain[-1]: chain for chain in chains.values()}
    inner = {i for chain in chains.values() for i in chain[:-1]}
    found: list[Operation] = []
    place: dict[int, int] = {}
    for i, step in enumerate(steps):
        if i in inner:
            continue
        first = steps[last[i][0]] if i in last else step
        what = Fused([steps[j] for j in last[i]]) if i in last else step.what
        place[i] = len(found)
        inputs = tuple(place[j] for j in first.inputs)
        found.append(Operation(first.name, what, inputs, first.line))
    return found


def _pooled_first(steps: list[Operation], uses: Mapping[int, int]) -> list[Operation]:
    """The steps, max pooling moved below activations: they never decrease, so the order is free."""
    found = list(steps)
    for i in range(len(steps)):
        while type(found[i].what) is nn.MaxPool2d and len(found[i].inputs) == 1:
            (j,) = found[i].inputs
            if type(found[j].what) not in ACTIVATIONS or uses[j] != 1 or not _increases(found[j]):
                break
            above, below = found[i], found[j]
            found[i] = Operation(below.name, below.what, above.inputs, below.line)
            found[j] = Operation(above.name, above.what, below.inputs, above.line)
            i = j
    return found


def _increases(step: Operation) -> bool:
    """Whether an activation is one that the attack passes, and never decreases."""
    try:
        from_module(step.what)
    except ValueError:
        return False
    return getattr(step.what, "negative_slope", 0.0) >= 0


def _down_to_convolution(
    steps: list[Operation], end: int, uses: Mapping[int, int]
) -> list[int] | None:
    """Steps from the convolution below a layer up to it; None where something else is there."""
    chain = [end]
    while len(steps[chain[0]].inputs) == 1:
        below = steps[chain[0]].inputs[0]
        what = steps[below].what
        if uses[below] != 1:
            return None
        chain.insert(0, below)
        pooled = any(type(steps[i].what) is nn.MaxPool2d for i in chain)
        if type(what) is nn.Conv2d:
            return chain
        if pooled and (type(what) is not nn.BatchNorm2d or len(chain) > 2):
            return None
        if not (is_blocked(what) or type(what) in (*ACTIVATIONS, nn.BatchNorm2d)):
            return None
    return None
