"""Figures of images and their reconstructions.

A file has an opaque white background and black text; on a page, `rconv.show.screen` draws them in
the page's colours, as a cell's last value. Nothing here goes through pyplot: figures need no screen
and leave no global state behind.
"""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from rconv.extras import extra
from rconv.files import replacing

with extra():
    import matplotlib as mpl
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.figure import Figure

    from rconv.show.charts import show_psnr, show_shares, show_sweep
    from rconv.show.panels import show_error, show_image, show_map

__all__ = [
    "comparison",
    "gallery",
    "picture_format",
    "save",
    "show_error",
    "show_image",
    "show_map",
    "show_psnr",
    "show_shares",
    "show_sweep",
]

ROWS = ("original", "reconstruction", "error")


def comparison(
    originals: torch.Tensor,
    reconstructions: torch.Tensor,
    titles: Sequence[str] | None = None,
    columns: int = 10,
) -> Figure:
    """Draw originals, reconstructions and magnified errors in three rows, a column per image.

    Parameters
    ----------
    originals, reconstructions
        Axes (image N, channel C, row, column), values in [0, 1].
    titles
        A text above each column; ``None`` means none.
    columns
        After that many images, three new rows begin.

    Returns
    -------
    Figure
        The picture; `save` writes it.

    Raises
    ------
    ValueError
        If the shapes differ, there is no image, or the titles are not one for each image.
    """
    count = len(originals)
    if originals.shape != reconstructions.shape or count == 0 or columns < 1:
        shapes = f"{tuple(originals.shape)} and {tuple(reconstructions.shape)}"
        raise ValueError(f"a comparison needs as many originals as reconstructions, not {shapes}")
    if titles is not None and len(titles) != count:
        raise ValueError(f"{len(titles)} titles for {count} images")
    width, bands = min(count, columns), math.ceil(count / columns)
    figure = Figure((1.1 * width + 0.4, 3.9 * bands), facecolor="white", layout="constrained")
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
                ax.set_ylabel(ROWS[row], fontsize=9, color="black")
    return figure


def gallery(images: torch.Tensor, columns: int = 10) -> Figure:
    """Draw images alone, where there is nothing to compare them with.

    Parameters
    ----------
    images
        Axes (image N, channel C, row, column), values in [0, 1].
    columns
        After that many images, a new row begins.

    Returns
    -------
    Figure
        The picture; `save` writes it.
    """
    width, rows = min(len(images), columns), math.ceil(len(images) / columns)
    figure = Figure((1.1 * width + 0.4, 1.3 * rows), facecolor="white", layout="constrained")
    for n, ax in enumerate(figure.subplots(rows, width, squeeze=False).flat):
        if n < len(images):
            show_image(ax, images[n])
        else:
            ax.set_visible(False)
    return figure


def picture_format(path: str | os.PathLike) -> str:
    """Tell a picture's format by its suffix, such as ``png`` for ``x.PNG``.

    Parameters
    ----------
    path : str or PathLike
        The file.

    Returns
    -------
    str
        A format that matplotlib writes by itself (for pgf it needs LaTeX).

    Raises
    ------
    ValueError
        If the suffix is unknown.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    known = sorted({*FigureCanvasBase.get_supported_filetypes()} - {"pgf"})
    if suffix not in known:
        raise ValueError(f"{path}: a picture's suffix is one of {', '.join(known)}")
    return suffix


def save(fig: Figure, path: str | os.PathLike) -> Path:
    """Write a figure, in the format of the suffix; the file is whole or absent.

    The same figure gives the same bytes as .png, .svg or .pdf: no date is written.

    Parameters
    ----------
    fig : Figure
        The figure.
    path : str or PathLike
        The file, with a suffix that matplotlib knows, such as .png, .svg or .pdf.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If the suffix is unknown or the file cannot be written. The message is one line.
    """
    path = Path(path)
    suffix = picture_format(path)
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    picture = io.BytesIO()  # not the file: some of matplotlib's writers pass over a full disk
    with mpl.rc_context({"svg.hashsalt": "rconv"}):
        fig.savefig(picture, format=suffix, dpi=150, metadata=undated, facecolor="white")
    try:
        with replacing(path) as file:
            file.write(picture.getbuffer())
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
