"""A model as the attack reads it: convolution stages, then the first Linear. Refuses the rest."""

from dataclasses import dataclass

from torch import Tensor, nn

from rconv.model.activations import from_module
from rconv.model.geometry import Geometry, Stage


class UnsupportedModelError(ValueError):
    """The attack does not apply to this model; the message names the layer and why."""


@dataclass(frozen=True)
class Head:
    """The first Linear, and whether it is also the last.

    Attributes
    ----------
    name : the Linear's name.
    weight : (K, n), float64.
    has_bias : whether it has one.
    last : the loss follows directly.
    logits : name of the Linear that makes the logits, whose gradients tell the label; None where
        something other than LogSoftmax follows it.
    """

    name: str
    weight: Tensor
    has_bias: bool
    last: bool
    logits: str | None


@dataclass(frozen=True)
class Network:
    """Stages in the order of the forward pass, and the head."""

    stages: tuple[Stage, ...]
    head: Head
    input_shape: tuple[int, int, int]


_SKIPPED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def read(model: nn.Sequential, input_shape: tuple[int, int, int]) -> Network:
    """Read a Sequential (nested ones included) into stages and head, in float64.

    Parameters
    ----------
    model : convolutions, each followed by at most one activation; Flatten; Linear; anything.
    input_shape : (C, H, W) of one image.

    Raises
    ------
    UnsupportedModelError : a layer that the attack cannot pass, by name and with the reason.
    """
    layers = list(_flatten(model))
    _refuse_active_dropout(layers)
    _refuse_shared_parameters(layers)
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise UnsupportedModelError(f"the input shape must be (C, H, W), got {input_shape}")
    shape = tuple(int(n) for n in input_shape)
    stages: list[Stage] = []
    convolution: tuple[str, nn.Conv2d, Geometry] | None = None
    activation: nn.Module = nn.Identity()

    def close_stage() -> None:
        if convolution is not None:
            name, module, geometry = convolution
            bias = None if module.bias is None else module.bias.detach().double()
            weight = module.weight.detach().double()
            stages.append(Stage(name, weight, bias, from_module(activation), geometry))

    for position, (name, module) in enumerate(layers):
        if isinstance(module, nn.Linear):
            close_stage()
            head = _head(layers[position:], shape)
            return Network(tuple(stages), head, tuple(input_shape))
        if isinstance(module, nn.Conv2d):
            close_stage()
            geometry = _geometry(name, module, shape)
            convolution, activation, shape = (
                (name, module, geometry),
                nn.Identity(),
                geometry.output,
            )
        elif isinstance(module, nn.Flatten):
            if module.start_dim != 1 or module.end_dim != -1:
                raise UnsupportedModelError(
                    f"{name}: Flatten must keep the batch axis and no other"
                )
        elif isinstance(module, (nn.Identity, *_SKIPPED)):
            continue
        else:
            _check_activation(
                name, module, convolution is None, type(activation) is not nn.Identity
            )
            activation = module
    raise UnsupportedModelError(
        "the model has no Linear layer: the attack starts at the gradient of the first one"
    )


def _flatten(model: nn.Module, prefix: str = ""):
    if not isinstance(model, nn.Sequential):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no Sequential: write the model as nn.Sequential, so that "
            "the order of its layers is known (branches and skip connections are not supported)"
        )
    # Not named_children: it lists a module that serves twice only once.
    for name, module in model._modules.items():
        if isinstance(module, nn.Sequential):
            yield from _flatten(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _refuse_active_dropout(layers: list[tuple[str, nn.Module]]) -> None:
    for name, module in layers:
        if isinstance(module, _SKIPPED) and module.training and module.p > 0:
            raise UnsupportedModelError(
                f"{name}: Dropout is active, its random mask is not in the gradients; "
                "call model.eval() on both sides first"
            )


def _refuse_shared_parameters(layers: list[tuple[str, nn.Module]]) -> None:
    owners: dict[nn.Parameter, str] = {}
    for name, module in layers:
        for parameter in module.parameters():
            if owners.setdefault(parameter, name) != name:
                raise UnsupportedModelError(
                    f"{name}: shares a parameter with {owners[parameter]}, whose gradient is the "
                    "sum over both layers"
                )


def _check_activation(name: str, module: nn.Module, first: bool, second: bool) -> None:
    kind = type(module).__name__
    if first:
        raise UnsupportedModelError(f"{name}: {kind} stands before the first convolution")
    try:
        from_module(module)
    except ValueError as error:
        reason = "loses what it does not pass on" if "Pool" in kind else str(error)
        raise UnsupportedModelError(
            f"{name}: {kind} between the image and the first Linear is not supported: {reason}"
        ) from None
    if second:
        raise UnsupportedModelError(f"{name}: {kind} is a second activation after one convolution")


def _geometry(name: str, conv: nn.Conv2d, shape: tuple[int, ...]) -> Geometry:
    if len(shape) != 3 or conv.in_channels != shape[0]:
        raise UnsupportedModelError(
            f"{name}: takes {conv.in_channels} channels, but its input has the shape {shape}"
        )
    if conv.groups != 1:
        raise UnsupportedModelError(f"{name}: grouped convolutions are not supported")
    if conv.padding_mode != "zeros":
        raise UnsupportedModelError(f"{name}: padding_mode {conv.padding_mode!r} is not supported")
    padding = _padding(name, conv)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            shape[1:], padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
    ]
    if min(size) < 1:
        raise UnsupportedModelError(f"{name}: the kernel is larger than its input {shape}")
    output = (conv.out_channels, size[0], size[1])
    return Geometry(shape, output, conv.kernel_size, conv.stride, padding, conv.dilation)


def _padding(name: str, conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            raise UnsupportedModelError(f"{name}: padding 'same' with an even kernel is lopsided")
        return (total[0] // 2, total[1] // 2)
    return tuple(conv.padding)


def _head(layers: list[tuple[str, nn.Module]], shape: tuple[int, ...]) -> Head:
    name, linear = layers[0]
    n = 1
    for size in shape:
        n *= size
    if linear.in_features != n:
        raise UnsupportedModelError(
            f"{name}: takes {linear.in_features} features, but its input has the shape {shape}"
        )
    rest = [m for _, m in layers[1:] if not isinstance(m, (nn.Identity, *_SKIPPED))]
    if linear.bias is None and rest:
        raise UnsupportedModelError(
            f"{name}: has no bias and is not the last layer, so that the scale of its input is "
            "not in the gradients"
        )
    linears = [(key, m) for key, m in layers if isinstance(m, nn.Linear)]
    last_name, last = linears[-1]
    outputs = [linear, *(m for m in rest if not isinstance(m, nn.LogSoftmax))]
    return Head(
        name,
        linear.weight.detach().double(),
        linear.bias is not None,
        last=not rest,
        logits=last_name if outputs[-1] is last else None,
    )
