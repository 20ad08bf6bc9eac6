"""Pictures of images, errors and feature maps, and the style that all figures share.

A file has an opaque white background and black text; on a page, `rconv.show.responsive` draws
figures in the page's colours, as a cell's last value. Nothing here goes through pyplot: figures
need no screen and leave no global state behind.
"""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rconv.extras import extra
from rconv.files import replacing
from rconv.show.numbers import RAISED

with extra():
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"
"""Of Okabe and Ito, which the colour-blind distinguish too."""

STYLE = {
    **{"font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9},
    **{"xtick.labelsize": 9, "ytick.labelsize": 9},
    **{"figure.facecolor": "white", "text.color": "black", "axes.labelcolor": "black"},
    **{"image.interpolation": "none", "image.composite_image": False, "svg.image_inline": True},
    **{"svg.fonttype": "none", "svg.hashsalt": "rconv"},
    **{"axes.spines.top": False, "axes.spines.right": False},
    **{"legend.frameon": False, "legend.labelcolor": "linecolor"},
    "axes.prop_cycle": mpl.cycler(color=(BLUE, ORANGE, GREEN, PINK, YELLOW, SKY)),
}
"""Matplotlib's settings for all figures. On a page text stays text, and pixels are stored as they
are: the browser draws both sharply."""

METHODS = {
    **dict.fromkeys(("paper", "gradient", "R-CONV (paper)"), BLUE),
    **dict.fromkeys(("auto", "hybrid", "both", "R-CONV (auto)"), ORANGE),
    **{"R-GAP": GREEN, "equations": SKY, "masked": PINK},
    **{"DLG": PINK, "iDLG": YELLOW, "Inverting Gradients": SKY},
}
"""The colour of each method, the same in all figures."""

ERROR_COLOURS, MAP_COLOURS, SIGNED_MAP_COLOURS = "magma", "viridis", "RdBu_r"
NOT_A_NUMBER = "0.6"
"""The grey of what is not a number, in errors, feature maps and matrices."""

INK, PAPER = "0.01", "0.99"
"""Text on a picture: not quite black and white, which a page in the dark exchanges."""

TITLE = 9
"""Points of the text above a picture or a panel."""

ROWS = ("original", "reconstruction", "error")


@mpl.rc_context(STYLE)
def comparison(
    originals: torch.Tensor,
    reconstructions: torch.Tensor,
    titles: Sequence[str] | None = None,
    columns: int = 10,
) -> Figure:
    """Draw originals, reconstructions and magnified errors in three rows, a column per image.

    Images have axes (N, C, row, column), values in [0, 1]. After `columns` images, three new rows
    begin; titles stand above each column.
    """
    count = len(originals)
    if originals.shape != reconstructions.shape or count == 0 or columns < 1:
        shapes = f"{tuple(originals.shape)} and {tuple(reconstructions.shape)}"
        raise ValueError(f"a comparison needs as many originals as reconstructions, not {shapes}")
    if titles is not None and len(titles) != count:
        raise ValueError(f"{len(titles)} titles for {count} images")
    width, bands = min(count, columns), math.ceil(count / columns)
    figure = Figure((1.1 * width + 0.4, 3.9 * bands), layout="constrained")
    grid = figure.subplots(3 * bands, width, squeeze=False)
    for ax in grid.flat:
        ax.set_visible(False)
    for n in range(count):
        band, column = divmod(n, columns)
        top, middle, bottom = grid[3 * band : 3 * band + 3, column]
        show_image(top, originals[n], None if titles is None else titles[n])
        show_image(middle, reconstructions[n])
        show_error(bottom, reconstructions[n], originals[n])
        for row, ax in enumerate((top, middle, bottom)):
            ax.set_visible(True)
            if column == 0:
                ax.set_ylabel(ROWS[row], fontsize=TITLE)
    return figure


@mpl.rc_context(STYLE)
def gallery(images: torch.Tensor, columns: int = 10) -> Figure:
    """Draw images, axes (image N, channel C, row, column), where there is nothing to compare.

    After so many `columns`, a new row begins.
    """
    width, rows = min(len(images), columns), math.ceil(len(images) / columns)
    figure = Figure((1.1 * width + 0.4, 1.3 * rows), layout="constrained")
    for n, ax in enumerate(figure.subplots(rows, width, squeeze=False).flat):
        if n < len(images):
            show_image(ax, images[n])
        else:
            ax.set_visible(False)
    return figure


def picture_format(path: str | os.PathLike) -> str:
    """The format that a file's suffix names, such as ``png`` for ``x.PNG``.

    Raises ValueError if matplotlib does not write it by itself (for pgf it needs LaTeX).
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    known = sorted({*FigureCanvasBase.get_supported_filetypes()} - {"pgf"})
    if suffix not in known:
        raise ValueError(f"{path}: a picture's suffix is one of {', '.join(known)}")
    return suffix


def save(fig: Figure, path: str | os.PathLike) -> Path:
    """Write a figure, in the format of the suffix; the file is whole or absent.

    The same figure gives the same bytes as .png, .svg or .pdf: no date is written. Raises
    ValueError if the suffix is unknown or the file cannot be written.
    """
    path = Path(path)
    suffix = picture_format(path)
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    picture = io.BytesIO()  # not the file: some of matplotlib's writers pass over a full disk
    with mpl.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}):
        fig.savefig(picture, format=suffix, dpi=150, metadata=undated, facecolor="white")
    try:
        with replacing(path) as file:
            file.write(picture.getbuffer())
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def show_image(ax: Axes, image: torch.Tensor, title: str | None = None) -> Axes:
    """Draw one image, its values clipped to [0, 1], on Axes, and return these.

    The image has axes (channel, row, column), with 1 channel (grey) or 3 (RGB). NaN is drawn
    mid-grey.
    """
    pixels = _image(image).clamp(0, 1).nan_to_num(0.5).permute(1, 2, 0)
    return _drawn(ax, pixels, title, cmap="gray", vmin=0, vmax=1)


def show_error(
    ax: Axes, image: torch.Tensor, reference: torch.Tensor, *, scale: float | None = None
) -> Axes:
    """Draw the absolute error of one image, magnified; the title states the magnification.

    Images have axes (channel, row, column). A pixel shows its largest error over the channels:
    black is 0, the brightest colour is 1 / `scale` or more, and grey is NaN. The default scale is
    the largest power of ten that keeps every finite error at or below the brightest colour.
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
    return _drawn(ax, error * scale, title, cmap=colours, vmin=0, vmax=1)


def show_map(ax: Axes, feature_map: torch.Tensor, title: str | None = None) -> Axes:
    """Draw one feature map, one filter's output, of any values.

    The map has axes (row, column). Without a negative value the colours run from 0 to the largest
    value (viridis); otherwise white is 0, red positive and blue negative, up to the largest
    magnitude. Grey is NaN.
    """
    if feature_map.ndim != 2:
        raise ValueError(f"a feature map has axes (row, column), not {tuple(feature_map.shape)}")
    values = feature_map.detach().cpu().double()
    finite = values[values.isfinite()]
    limit = float(finite.abs().max()) if finite.numel() else 0.0
    signed = bool((finite < 0).any())
    colours = mpl.colormaps[SIGNED_MAP_COLOURS if signed else MAP_COLOURS]
    colours = colours.with_extremes(bad=NOT_A_NUMBER)
    low, high = -limit if signed else 0.0, limit or 1.0
    return _drawn(ax, values, title, cmap=colours, vmin=low, vmax=high)


def show_numbers(ax: Axes, values: torch.Tensor, title: str | None = None) -> Axes:
    """Draw a small matrix with its entries written into the cells.

    Cells are tinted pale red where positive and pale blue where negative, to the largest magnitude;
    a cell that is not a number stays empty. The values have the axes (row, column), and a
    ValueError says if they have not.
    """
    if values.ndim != 2:
        raise ValueError(f"a matrix has axes (row, column), not {tuple(values.shape)}")
    values = values.detach().cpu().double()
    limit = float(values.nan_to_num().abs().max()) or 1.0
    # Twice the limit keeps the tint pale under black figures.
    _drawn(ax, values, title, cmap=SIGNED_MAP_COLOURS, vmin=-2 * limit, vmax=2 * limit)
    for row, numbers in enumerate(values.tolist()):
        for column, number in enumerate(numbers):
            if not math.isnan(number):
                text = f"{number:g}".replace("-", "−")
                ax.text(column, row, text, ha="center", va="center", color=INK)
    rows, columns = values.shape
    grid = {"colors": "0.7", "linewidth": 0.5}
    ax.hlines([row - 0.5 for row in range(rows + 1)], -0.5, columns - 0.5, **grid)
    ax.vlines([column - 0.5 for column in range(columns + 1)], -0.5, rows - 0.5, **grid)
    return ax


def _magnification(error: torch.Tensor) -> tuple[float, str]:
    """Return the power of ten that brings the largest finite error below 1, and a title."""
    finite = error[error.isfinite()]
    if finite.numel() == 0:
        return 1.0, "error not a number"
    if finite.max() == 0:
        return 1.0, "error 0"
    exponent = min(math.floor(-math.log10(finite.max())), 300)  # 10^-300 is as good as equal
    return 10.0**exponent, f"error × 10{str(exponent).translate(RAISED)}"


def _image(image: torch.Tensor) -> torch.Tensor:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image has axes (1 or 3, row, column), not {tuple(image.shape)}")
    return image.detach().cpu().double()


def _drawn(ax: Axes, values: torch.Tensor, title: str | None, **colours: Any) -> Axes:
    """Draw pixels as they are, without ticks and lines around them."""
    ax.imshow(values.numpy(), interpolation="none", **colours)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=TITLE)
    return ax
