"""Reconstruction quality over the first images of each dataset, as one table.

    RCONV_DATA=… python benchmarks/accuracy.py [--images 100] [--dtype float32] [--constraints auto]

Each line is one setting; an image counts as good below MSE 1e-6, "told" counts the others that
the attack itself reports as not unique, and "80 dB" those of at least that PSNR.
"""

import argparse
import statistics

from rconv.lab import published
from rconv.lab.architectures import ACTIVATIONS
from rconv.lab.experiment import run
from rconv.lab.records import SUCCESS, table

DATASETS = ("MNIST", "CIFAR10", "CIFAR100")
HEADER = (
    *("dataset", "architecture", "activation", "images", "good", "told", "80 dB"),
    *("MSE median", "MSE max", "PSNR min", "s / image"),
)


def line(dataset: str, count: int, architecture: str, activation: str | None, **options) -> tuple:
    """One setting as a row of the table."""
    records = run(dataset, range(count), architecture, activation, **options).records
    errors = [r["mse"] for r in records]
    told = sum(r["mse"] >= SUCCESS and not r["unique"] for r in records)
    psnr = [r["psnr"] for r in records if r["psnr"] is not None]
    return (
        dataset,
        architecture,
        records[0]["activation"],
        count,
        sum(e < SUCCESS for e in errors),
        told,
        sum(p >= 80 for p in psnr),
        f"{statistics.median(errors):.0e}",
        f"{max(errors):.0e}",
        f"{min(psnr):.1f}",
        f"{records[0]['seconds']:.3f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--constraints", default="auto")
    arguments = parser.parse_args()
    options = {"dtype": arguments.dtype, "constraints": arguments.constraints}
    few = min(20, arguments.images)
    rows = [
        line(dataset, arguments.images, "lenet_main", activation, **options)
        for dataset in DATASETS
        for activation in ACTIVATIONS
    ]
    if arguments.dtype == "float64":
        for cell in published.CELLS.values():
            rows.append(line(cell.dataset, arguments.images, cell.architecture, None, **options))
        rows.append(line("CIFAR10", arguments.images, "relu_lenet", None, **options))
        rows.append(line("CIFAR10", arguments.images, "dlg_lenet", None, **options))
        rows.append(line("CIFAR10", few, "cnn6_narrow", None, **options))
        rows.append(line("CIFAR10", few, "cnn6", None, **options))
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
