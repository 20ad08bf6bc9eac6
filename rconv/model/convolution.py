"""One `nn.Conv2d` as a stage: its shapes, and its weights in float64."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from rconv.model.activations import Activation
from rconv.model.geometry import Geometry, Stage
from rconv.model.nodes import UnsupportedModelError
from rconv.model.weights import check_own_parameters, copy_of


def stage_of(name: str, conv: nn.Conv2d, activation: Activation, shape: tuple[int, ...]) -> Stage:
    """Read one convolution.

    Parameters
    ----------
    name : str
        Its name in the model.
    conv : Conv2d
        The module.
    activation : Activation
        What follows it.
    shape : tuple of int
        (C, H, W) of its input.

    Returns
    -------
    Stage
        With copies of the weights in float64.

    Raises
    ------
    UnsupportedModelError
        If it pads with anything but zeros, or does not fit its input.
    """
    geometry = _geometry(name, conv, shape)
    own = geometry.output[0], shape[0] // conv.groups, *geometry.kernel
    check_own_parameters(name, conv, own)
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
