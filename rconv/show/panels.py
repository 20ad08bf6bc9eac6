"""Draw one image, error or feature map: Axes in, Axes out."""

import math

import matplotlib as mpl
import torch
from matplotlib.axes import Axes

ERROR_COLOURS = "magma"
MAP_COLOURS = "viridis"
SIGNED_MAP_COLOURS = "RdBu_r"
NOT_A_NUMBER = "0.6"
"""The grey of pixels that are not a number, in errors and feature maps."""

INK, PAPER = "0.01", "0.99"
"""Text on a picture: not quite black and white, which a page in the dark exchanges."""


def show_image(ax: Axes, image: torch.Tensor, title: str | None = None) -> Axes:
    """Draw one image, its values clipped to [0, 1].

    Parameters
    ----------
    ax
        Where to draw.
    image
        Axes (channel, row, column), 1 channel (grey) or 3 (RGB). Pixels that are not a number are
        drawn mid-grey.
    title
        Text above the image.

    Returns
    -------
    Axes
        The same `ax`.

    Raises
    ------
    ValueError
        If the image has another shape.
    """
    pixels = _image(image).clamp(0, 1).nan_to_num(0.5).permute(1, 2, 0)
    ax.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="none")
    return _frame(ax, title)


def show_error(
    ax: Axes, image: torch.Tensor, reference: torch.Tensor, *, scale: float | None = None
) -> Axes:
    """Draw the absolute error of one image, magnified; the title states the magnification.

    Parameters
    ----------
    ax
        Where to draw.
    image, reference
        Axes (channel, row, column). A pixel shows its largest error over the channels: black is
        0, the brightest colour is 1 / `scale` or more, and grey is not a number.
    scale
        The magnification. ``None`` means the largest power of ten that keeps every finite error
        at or below the brightest colour.

    Returns
    -------
    Axes
        The same `ax`.

    Raises
    ------
    ValueError
        If the shapes differ, or the scale is not positive and finite.
    """
    if image.shape != reference.shape:
        shapes = f"{tuple(image.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"an image and its reference have different shapes, {shapes}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"the error's magnification is {scale}: it must be positive and finite")
    error = (_image(image) - _image(reference)).abs().amax(dim=0)
    title = f"error × {scale:g}" if scale else None
    if scale is None:
        scale, title = _magnification(error)
    colours = mpl.colormaps[ERROR_COLOURS].with_extremes(bad=NOT_A_NUMBER)
    ax.imshow((error * scale).numpy(), cmap=colours, vmin=0, vmax=1, interpolation="none")
    return _frame(ax, title)


def show_map(ax: Axes, feature_map: torch.Tensor, title: str | None = None) -> Axes:
    """Draw one feature map, one filter's output.

    Parameters
    ----------
    ax
        Where to draw.
    feature_map
        Axes (row, column), any values. Without a negative value the colours run from 0 to the
        largest value (viridis); otherwise white is 0, red positive and blue negative, to the
        largest magnitude. Grey is not a number.
    title
        Text above the map.

    Returns
    -------
    Axes
        The same `ax`.

    Raises
    ------
    ValueError
        If there are not exactly two axes.
    """
    if feature_map.ndim != 2:
        raise ValueError(f"a feature map has axes (row, column), not {tuple(feature_map.shape)}")
    values = feature_map.detach().cpu().double()
    finite = values[values.isfinite()]
    limit = float(finite.abs().max()) if finite.numel() else 0.0
    signed = bool((finite < 0).any())
    colours = mpl.colormaps[SIGNED_MAP_COLOURS if signed else MAP_COLOURS]
    ax.imshow(
        values.numpy(),
        cmap=colours.with_extremes(bad=NOT_A_NUMBER),
        vmin=-limit if signed else 0.0,
        vmax=limit or 1.0,
        interpolation="none",
    )
    return _frame(ax, title)


def show_numbers(ax: Axes, values: torch.Tensor, title: str | None = None) -> Axes:
    """Draw a small matrix with its entries written into the cells.

    Parameters
    ----------
    ax
        Where to draw.
    values
        Axes (row, column). Cells are tinted pale red where positive and pale blue where negative,
        to the largest magnitude; a cell that is not a number stays empty.
    title
        Text above the matrix.

    Returns
    -------
    Axes
        The same `ax`.

    Raises
    ------
    ValueError
        If there are not exactly two axes.
    """
    if values.ndim != 2:
        raise ValueError(f"a matrix has axes (row, column), not {tuple(values.shape)}")
    values = values.detach().cpu().double()
    limit = float(values.nan_to_num().abs().max()) or 1.0
    # Twice the limit keeps the tint pale under black figures.
    tint = {"cmap": SIGNED_MAP_COLOURS, "vmin": -2 * limit, "vmax": 2 * limit}
    ax.imshow(values.numpy(), interpolation="none", **tint)
    for row, numbers in enumerate(values.tolist()):
        for column, number in enumerate(numbers):
            if not math.isnan(number):
                ax.text(column, row, f"{number:g}", ha="center", va="center", color=INK)
    rows, columns = values.shape
    grid = {"colors": "0.7", "linewidth": 0.5}
    ax.hlines([row - 0.5 for row in range(rows + 1)], -0.5, columns - 0.5, **grid)
    ax.vlines([column - 0.5 for column in range(columns + 1)], -0.5, rows - 0.5, **grid)
    return _frame(ax, title)


def _magnification(error: torch.Tensor) -> tuple[float, str]:
    """Return the power of ten that brings the largest finite error below 1, and a title."""
    finite = error[error.isfinite()]
    if finite.numel() == 0:
        return 1.0, "error not a number"
    if finite.max() == 0:
        return 1.0, "error 0"
    exponent = min(math.floor(-math.log10(finite.max())), 300)  # 10^-300 is as good as equal
    return 10.0**exponent, rf"error $\times\,10^{{{exponent}}}$"


def _image(image: torch.Tensor) -> torch.Tensor:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image has axes (1 or 3, row, column), not {tuple(image.shape)}")
    return image.detach().cpu().double()


def _frame(ax: Axes, title: str | None) -> Axes:
    """Take away ticks and lines, set the title."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=9, color="black")
    return ax
