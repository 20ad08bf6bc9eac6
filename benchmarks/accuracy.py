"""Reconstruction quality over the first images of each dataset, as one table.

    RCONV_DATA=… python benchmarks/accuracy.py [--images 100] [--dtype float32] [--short]

Each line is one setting; an image counts as good below MSE 1e-6, "told" counts the others that
the attack itself reports as not unique, and "80 dB" those of at least that PSNR.
"""

import statistics

from _shared import dataset, keep, named, parser

from rconv.lab import published
from rconv.lab.architectures import ACTIVATIONS
from rconv.lab.experiment import run
from rconv.lab.records import SUCCESS, table

DATASETS = ("MNIST", "CIFAR10", "CIFAR100")
HEADER = (
    *("dataset", "architecture", "activation", "images", "good", "told", "80 dB"),
    *("MSE median", "MSE max", "PSNR min", "s / image"),
)


def line(name: str, count: int, architecture: str, activation: str | None, **options) -> tuple:
    """One setting as a row of the table."""
    records = run(name, range(count), architecture, activation, **options).records
    errors = [r["mse"] for r in records]
    told = sum(r["mse"] >= SUCCESS and not r["unique"] for r in records)
    psnr = [r["psnr"] for r in records if r["psnr"] is not None]
    return (
        name,
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
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--dtype", default="float64")
    options.add_argument("--constraints", default="auto")
    arguments = options.parse_args()
    if arguments.short:
        rows = [line(dataset("CIFAR10", 2), 2, "lenet_main", kind) for kind in ACTIVATIONS]
        print(table(HEADER, rows))
        return keep(arguments, named(HEADER, rows))
    count = arguments.images
    at_hand = {name: dataset(name, count) for name in DATASETS}
    options = {"dtype": arguments.dtype, "constraints": arguments.constraints}
    few = min(20, count)
    rows = [
        line(at_hand[name], count, "lenet_main", activation, **options)
        for name in DATASETS
        for activation in ACTIVATIONS
    ]
    if arguments.dtype == "float64":
        for cell in published.CELLS.values():
            rows.append(line(at_hand[cell.dataset], count, cell.architecture, None, **options))
        last = {"relu_lenet": count, "dlg_lenet": count, "cnn6_narrow": few, "cnn6": few}
        for name, images in last.items():
            rows.append(line(at_hand["CIFAR10"], images, name, None, **options))
    print(table(HEADER, rows))
    keep(arguments, named(HEADER, rows))


if __name__ == "__main__":
    main()
