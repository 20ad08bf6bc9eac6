"""Steps of a forward pass, made into the maps that the attack goes back through."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from rconv.model.activations import Activation, from_module
from rconv.model.batchnorm import affine_of, folded
from rconv.model.blocks import Fused, block_of, output_shape
from rconv.model.geometry import Geometry, Stage
from rconv.model.nodes import CONCATENATION, SUM, Node, UnsupportedModelError
from rconv.model.operations import READ, Operation
from rconv.model.weights import check_own_parameters, copy_of

IDENTITY = from_module(nn.Identity())


def build(
    steps: Sequence[Operation],
    inside: Sequence[int],
    shape: tuple[int, int, int],
    made: dict[tuple[int, ...], Stage] | None = None,
) -> tuple[list[Node], bool]:
    """The maps between the image and the first Linear.

    `steps` are those of the whole model; `inside` are the indices of those before the first Linear,
    in order, the image first. `made` keeps convolutions by their steps, for other parts of the same
    model. Returns the nodes, from the image to the input of the Linear, and whether that is
    flattened. Raises UnsupportedModelError at a step that the attack cannot pass.
    """
    builder = _Builder(steps, inside, {} if made is None else made)
    for i in inside:
        operation = steps[i]
        try:
            if operation.what is None:
                builder.append(i, Node(operation.name, None, (), shape))
            else:
                builder.take(i)
        except UnsupportedModelError as error:
            line = operation.line
            place = f" ({line})" if line and line not in str(error) else ""
            raise UnsupportedModelError(f"{error}{place}") from None
    return builder.nodes, inside[-1] in builder.flat


class _Builder:
    """Nodes so far; `place` says which node a step's result is, `flat` which are flattened."""

    def __init__(
        self,
        steps: Sequence[Operation],
        inside: Sequence[int],
        made: dict[tuple[int, ...], Stage],
    ):
        self.steps, self.made = steps, made
        self.nodes: list[Node] = []
        self.place: dict[int, int] = {}
        self.flat: set[int] = set()
        self.uses = Counter(j for i in inside for j in steps[i].inputs)
        self.uses[inside[-1]] += 1  # by the Linear

    def append(self, step: int, node: Node) -> None:
        self.place[step] = len(self.nodes)
        self.nodes.append(node)

    def take(self, step: int) -> None:
        operation = self.steps[step]
        what, flat = operation.what, not self.flat.isdisjoint(operation.inputs)
        if isinstance(what, str) and what not in (SUM, CONCATENATION):
            raise operation.refusal(what)
        if type(what) is nn.Flatten:
            if what.start_dim != 1 or what.end_dim != -1:
                raise operation.refusal("Flatten must keep the batch axis and no other")
            self.place[step], flat = self.place[operation.inputs[0]], True
        elif self._changes_nothing(operation):
            self.place[step] = self.place[operation.inputs[0]]
        elif type(what) in (nn.Conv2d, nn.BatchNorm2d, Fused) or what == CONCATENATION:
            if flat:
                kind = what if isinstance(what, str) else type(what).__name__
                raise operation.refusal(f"{kind} stands behind a Flatten")
            self._map(step, operation)
        elif what == SUM:
            self._combine(step, operation, self.nodes[self.place[operation.inputs[0]]].shape)
        else:
            self._activation(step, operation)
        if flat:
            self.flat.add(step)

    def _changes_nothing(self, operation: Operation) -> bool:
        """Whether a step is adaptive average pooling of a map to the size that it has."""
        what = operation.what
        if type(what) is not nn.AdaptiveAvgPool2d:
            return False
        size = what.output_size
        size = size if isinstance(size, tuple) else (size, size)
        below = self.nodes[self.place[operation.inputs[0]]].shape[1:]
        return all(own in (None, now) for own, now in zip(size, below, strict=True))

    def _map(self, step: int, operation: Operation) -> None:
        below = self.nodes[self.place[operation.inputs[0]]]
        if isinstance(operation.what, nn.Conv2d):
            read = partial(stage_of, operation.name, operation.what, IDENTITY, below.shape)
            stage = self._once((step,), read)
            self._put(step, operation, stage, stage.geometry.output)
        elif isinstance(operation.what, Fused):
            stage = stage_of(operation.name, operation.what[0], IDENTITY, below.shape)
            block = block_of(stage, operation.what)
            self._put(step, operation, block, output_shape(block))
        elif operation.what == CONCATENATION:
            parts = [self.nodes[self.place[i]].shape for i in operation.inputs]
            self._combine(step, operation, (sum(c for c, _, _ in parts), *below.shape[1:]))
        else:
            self._norm(step, operation, below)

    def _norm(self, step: int, operation: Operation, below: Node) -> None:
        affine = affine_of(operation.name, operation.what, below.shape[0])
        stage, alone = below.does, self.uses[operation.inputs[0]] == 1
        if below.does is None:
            raise operation.refusal("BatchNorm2d stands before the first convolution")
        if type(stage) is Stage and stage.scale is None and alone:
            self.place[step] = self.place[operation.inputs[0]]
            fold = partial(folded, stage, operation.name, affine)
            stage = self._once((operation.inputs[0], step), fold)
            self.nodes[self.place[step]] = replace(below, does=stage)
        else:
            self._put(step, operation, affine, below.shape)

    def _once(self, key: tuple[int, ...], make: Callable[[], Stage]) -> Stage:
        """What was made of these steps before, or is made now."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _activation(self, step: int, operation: Operation) -> None:
        activation = _activation(operation)
        kind = type(operation.what).__name__
        (source,) = operation.inputs
        below = self.nodes[self.place[source]]
        if below.does is None:
            raise operation.refusal(f"{kind} stands before the first convolution")
        if isinstance(below.does, Activation):
            raise operation.refusal(f"{kind} is a second activation after one convolution")
        if type(below.does) is Stage and self.uses[source] == 1:
            stage = replace(below.does, activation=activation)
            self.nodes[self.place[source]] = replace(below, does=stage)
        self._put(step, operation, activation, below.shape)

    def _combine(self, step: int, operation: Operation, shape: tuple[int, int, int]) -> None:
        places = [self.place[i] for i in operation.inputs]
        if len(set(places)) < len(places):
            raise operation.refusal("takes the same map twice")
        self._put(step, operation, operation.what, shape)

    def _put(
        self, step: int, operation: Operation, does: object, shape: tuple[int, int, int]
    ) -> None:
        inputs = tuple(self.place[i] for i in operation.inputs)
        self.append(step, Node(operation.name, does, inputs, shape))


def _activation(operation: Operation) -> Activation:
    kind = type(operation.what)
    base = next((known for known in READ if isinstance(operation.what, known)), None)
    try:
        if base not in (None, kind):
            raise ValueError(
                f"it is a subclass of {base.__name__}, and what it computes is not known; "
                f"use nn.{base.__name__} itself"
            )
        return from_module(operation.what)
    except ValueError as error:
        raise operation.refusal(
            f"{kind.__name__} between the image and the first Linear is not supported"
            + _why_not(kind.__name__, str(error))
        ) from None


ENLARGES = ("ConvTranspose2d", "Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")


def _why_not(kind: str, error: str) -> str:
    """Reason and remedy for a layer that is no activation that the attack knows."""
    if "Pool" in kind:
        return (
            ", since it discards what it does not pass on; use a convolution with a stride in its "
            "place"
        )
    if kind in ENLARGES:
        return ": it enlarges maps, which the attack has no equations for; use Conv2d in its place"
    if "cannot be passed" in error:
        return (
            ", since its derivative is not known as a function of its output; use PyTorch's own "
            "ReLU, LeakyReLU with a positive slope, Sigmoid, Tanh, ELU or Softplus"
        )
    return f": {error}"


def stage_of(name: str, conv: nn.Conv2d, activation: Activation, shape: tuple[int, ...]) -> Stage:
    """Read one convolution.

    Its input has the shape (C, H, W). Weights are copies in float64. Raises UnsupportedModelError
    if it pads with anything but zeros.
    """
    geometry = _geometry(name, conv, shape)
    expected = geometry.output[0], shape[0] // conv.groups, *geometry.kernel
    check_own_parameters(name, conv, expected)
    bias, weight = None if conv.bias is None else copy_of(conv.bias), copy_of(conv.weight)
    stage = Stage(name, weight, bias, activation, geometry, groups=conv.groups)
    return replace(stage, weight=stage.expanded(weight))


def _geometry(name: str, conv: nn.Conv2d, shape: tuple[int, ...]) -> Geometry:
    if conv.in_channels != shape[0]:
        raise UnsupportedModelError(
            f"{name}: takes {conv.in_channels} channels, but its input has the shape {shape}"
        )
    if conv.padding_mode != "zeros":
        raise UnsupportedModelError(f"{name}: padding_mode {conv.padding_mode!r} is not supported")
    kernel, stride, dilation = map(_pair, (conv.kernel_size, conv.stride, conv.dilation))
    padding = _padding(name, conv)
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise UnsupportedModelError(
            f"{name}: kernel, stride and dilation must be positive, and padding not negative"
        )
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(shape[1:], padding, dilation, kernel, stride, strict=True)
    ]
    if min(size) < 1:
        raise UnsupportedModelError(f"{name}: the kernel is larger than its input {shape}")
    output = (conv.out_channels, size[0], size[1])
    return Geometry(shape, output, kernel, stride, padding, dilation)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """Two numbers, of which PyTorch lets one stand for both."""
    return tuple(values) * 2 if len(values) == 1 else tuple(values)


def _padding(name: str, conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(_pair(conv.dilation), conv.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            raise UnsupportedModelError(f"{name}: padding 'same' with an even kernel is lopsided")
        return (total[0] // 2, total[1] // 2)
    return _pair(conv.padding)
