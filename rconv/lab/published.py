"""The figures that the paper's authors published, and the same measured here.

The figures are those that the notebooks of the paper's repository show, in its folders
``Various_Settings`` and ``Testing``: https://github.com/tamertaras91/RR-CONV, commit e750f96.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.linalg import LinAlgError

from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.experiment import Experiment, client_gradients, run, shared_model
from rconv.lab.records import Record, score, won
from rconv.lab.row_by_row import attack_one
from rconv.model.read import read

SHIFT = 20 * math.log10(255)
"""Decibels that a peak of 255 adds to the PSNR of values in [0, 1]: 48.13."""

ROW_BY_ROW = "row by row"
"""Stands in a record for the constraints of the published procedure, `rconv.lab.row_by_row`."""


@dataclass(frozen=True)
class Cell:
    """What one published notebook shows.

    `index` is the training image that was attacked; None where it was each of the first 100. `mse`
    is the published error on values in [0, 1], `psnr` the published PSNR with a peak of 255, in dB;
    None where the notebook shows pictures only. The first `images` training images are attacked
    here.
    """

    notebook: str
    dataset: str
    architecture: str
    index: int | None = None
    mse: float | None = None
    psnr: float | None = None
    images: int = 100

    @property
    def constraints(self) -> str:
        """What `rconv.attack.attack.Attack` takes for the equations that the notebook uses."""
        return architectures.published_constraints(self.architecture)


_CELLS = (
    Cell("LetNet", "CIFAR100", "lenet", 12, 1.3960632745552419e-15, 196.68175258363408),
    Cell("LetNet_O", "CIFAR100", "lenet_o", 12, 1.1264123494237117e-18, 227.6138295765548),
    Cell("O_CNN6", "CIFAR10", "o_cnn6", 6, 4.395512784448099e-18, 221.70070813320342),
    Cell(
        *("R_LetNet_4_Relu", "CIFAR100", "lenet_4_relu"),
        *(12, 2.2904629919850007e-22, 264.53157081785514),
    ),
    Cell(
        *("R_LetNet_All_Relu", "CIFAR100", "lenet_all_relu"),
        *(2, 1.1674971617449619e-25, 297.45824527424196),
        images=30,
    ),
    Cell("Test_on_MNIST", "MNIST", "test_mnist"),
    Cell("Test_on_CIFAR10", "CIFAR10", "test_cifar10"),
    Cell("Test_on_CIFAR100", "CIFAR100", "test_cifar100"),
)
CELLS = {(cell.dataset, cell.architecture): cell for cell in _CELLS}
"""(dataset, architecture) → what is published of it."""


def measure(cell: Cell, images: int | None = None) -> dict[str, Experiment]:
    """Attack the images of a published notebook with its equations, and with ours.

    Network, seed, initialisation, precision and images are those of the notebook. `images` first
    training images are attacked, by default as many as the cell says, and the published one in any
    case. Returns the results by constraints: the notebook's, and "auto".
    """
    indices = {*range(cell.images if images is None else images), cell.index or 0}
    return {
        kind: run(cell.dataset, sorted(indices), cell.architecture, constraints=kind)
        for kind in (cell.constraints, "auto")
    }


def procedure(cell: Cell) -> Record:
    """Attack a published image by the published procedure; no quality where that failed."""
    truth = datasets.load(cell.dataset, [cell.index or 0])
    model = shared_model(cell.dataset, cell.architecture)
    sent = client_gradients(model, cell.architecture, truth)
    gradients = {name: g[0] for name, g in sent.items()}
    try:
        image = attack_one(read(model, tuple(truth.images.shape[1:])), gradients)[None]
    except LinAlgError:
        image = torch.full_like(truth.images, torch.nan)
    settings = {"dataset": cell.dataset, "architecture": cell.architecture}
    (record,) = score(image, truth, {**settings, "dtype": "float64", "constraints": ROW_BY_ROW})
    return record


@dataclass(frozen=True)
class Judgement:
    """A published cell beside what was measured.

    `row_by_row` and `ours` are errors of the published image, by the published procedure and by
    `rconv` with the same equations, None for a test of 100 images; `psnr_255` and `psnr` are of
    `ours` with the peak as published and with the peak 1 of the values, in dB; `ours` is so many
    times smaller than the published error as `factor` says. `succeeded` of `images` are below
    `rconv.lab.records.SUCCESS` with the cell's constraints, and `auto` of them with ours.
    """

    row_by_row: float | None
    ours: float | None
    psnr_255: float | None
    psnr: float | None
    factor: float | None
    succeeded: int
    auto: int
    images: int


def judge(cell: Cell, records: Sequence[Record]) -> Judgement:
    """Compare the records of one cell, of `measure` and `procedure`, with what is published."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(record["constraints"], []).append(record)
    chosen = kinds[cell.constraints]
    counts = won(chosen), won(kinds["auto"]), len(chosen)
    if cell.mse is None:
        return Judgement(None, None, None, None, None, *counts)
    (ours,) = [r for r in chosen if r["index"] == cell.index]
    (rows,) = kinds[ROW_BY_ROW]
    psnr = ours["psnr"]
    return Judgement(rows["mse"], ours["mse"], psnr + SHIFT, psnr, cell.mse / ours["mse"], *counts)
