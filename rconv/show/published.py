"""Tables of the published networks, and of the published figures beside ours."""

from collections.abc import Iterable
from itertools import groupby

from rconv.lab.architectures import ARCHITECTURES, CHOSEN, build
from rconv.lab.published import Cell, Judgement
from rconv.show.tables import decibel

NETWORK_HEADER = (
    "network",
    "filters",
    "kernel, stride s, padding p",
    "activations",
    "head",
    "biases",
    "initialisation",
)
JUDGEMENT_HEADER = (
    "notebook",
    "MSE published",
    "row by row",
    "`rconv`",
    "times smaller",
    "PSNR published (peak 255)",
    "PSNR here (peak 255)",
    "PSNR here (peak 1)",
)


def network_row(name: str, channels: int = 3, classes: int = 10) -> tuple:
    """What an architecture is made of; see `NETWORK_HEADER`."""
    own = ARCHITECTURES[name]
    head = build(name, channels, classes).fc
    open_ones = ("chosen" if kind == CHOSEN else kind for kind in own.activations)
    uniform = "uniform in [-0.5, 0.5]"
    return (
        f"`{name}`",
        ", ".join(map(str, own.filters)),
        _grouped(f"{k}×{k} s{stride} p{pad}" for k, stride, pad in own.shapes),
        _grouped(open_ones),
        f"{head.in_features} → {head.out_features}",
        "yes" if own.bias else "no",
        uniform if own.initialisation == "uniform" else "PyTorch's own",
    )


def judgement_row(cell: Cell, judged: Judgement) -> tuple:
    """A published image beside what was measured; see `JUDGEMENT_HEADER`."""
    return (
        cell.notebook,
        f"{cell.mse:.2e}",
        "–" if judged.row_by_row is None else f"{judged.row_by_row:.2e}",
        f"{judged.ours:.2e}",
        rough(judged.factor),
        decibel(cell.psnr),
        decibel(judged.psnr_255),
        decibel(judged.psnr),
    )


def rough(number: float) -> str:
    """A positive number with one digit that counts: rounding errors are known by their size."""
    return f"{float(f'{number:.1g}'):,.0f}"


def _grouped(names: Iterable[str]) -> str:
    """Neighbours that are equal, once, with their number."""
    groups = ((name, len(list(same))) for name, same in groupby(names))
    return ", ".join(name if count == 1 else f"{name} ({count}×)" for name, count in groups)
