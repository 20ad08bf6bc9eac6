"""Networks as they are initialised and trained, and layers with too few filters, as one table.

    RCONV_DATA=… python benchmarks/signs.py [--images 20] [--seeds 10] [--short]

Each line is one setting. "live" counts the images that leave at least two filters of the last
convolution alive; of these, "good" reach the PSNR of the bar. "wrong" are called unique below
40 dB; "near" have a true error within a factor of ten of the expected one.
"""

import math
import statistics

import torch
from _shared import dataset, keep, named, parser
from tqdm import tqdm

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab import architectures, hunt
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.openings import attacked
from rconv.lab.records import Record, table, value
from rconv.lab.training import train
from rconv.observe.observation import features

HEADER = (
    *("setting", "images", "live", "bar dB", "good", "unique", "wrong", "below 5 dB", "near"),
    *("PSNR median", "min", "s median", "max"),
)
EPOCHS = 20
POOL = 200
"""Images to train on."""


def judged(model, architecture, truth, dtype) -> list[Record]:
    """Every image attacked and judged, with the filters that it leaves alive, and CPU seconds."""
    model = model.double() if dtype == "float64" else model.float()
    sent = client_gradients(model, architecture, truth, dtype)
    attack = Attack(model, tuple(truth.images.shape[1:]), loss="cross-entropy")
    maps = features(model.double(), truth.images.double())["act4"].flatten(2)
    records = []
    for n in range(len(truth)):
        live = int((maps[n] > 0).any(dim=1).sum())
        records.append(attacked(attack, sent, truth, n, {"live": live}))
    return records


def line(setting: str, bar: float, records: list[Record]) -> tuple:
    """One row of the table."""
    live = [r for r in records if r["live"] >= 2]
    psnr = [value(r["psnr"], math.inf) for r in records]
    return (
        setting,
        len(records),
        len(live),
        f"{bar:.0f}",
        sum(value(r["psnr"], math.inf) >= bar for r in live),
        sum(r["unique"] for r in records),
        sum(r["unique"] and not r["right"] for r in records),
        sum(p < 5 for p in psnr),
        sum(hunt.near(r) for r in records),
        f"{statistics.median(psnr):.1f}",
        f"{min(psnr):.1f}",
        f"{statistics.median(r['seconds'] for r in records):.2f}",
        f"{max(r['seconds'] for r in records):.2f}",
    )


def settings(images: int, seeds: int, epochs: int, widths: int):
    """Name, bar, architecture, dtype, images, and models with the images that each attacks."""
    colour, grey = dataset("CIFAR10", POOL), dataset("MNIST", images)
    cifar = datasets.load(colour, range(images))
    network = (colour, "lenet_main", "ReLU")

    def initial(seed):
        return shared_model(*network, seed=seed, initialisation="default")

    for dtype, bar in (("float64", 100.0), ("float32", 80.0)):
        models = (initial(seed) for seed in range(seeds))
        yield f"initial, {dtype}", bar, "lenet_main", dtype, cifar, models
    pool = datasets.load(colour, range(min(POOL, datasets.SIZES[colour])))
    trained = (train(initial(s), pool, epochs=epochs, seed=s) for s in range(min(5, seeds)))
    models = (model for model, accuracy in trained if not print(f"accuracy {accuracy:.3f}"))
    yield f"trained {epochs} epochs", 100.0, "lenet_main", "float64", cifar, models
    narrow = ((grey, 4, 100.0), *((colour, *pair) for pair in (
        (14, 34.0), (12, 32.0), (10, 25.0), (8, 25.0), (6, 22.0))))  # fmt: skip
    for data, width, bar in narrow[:widths]:
        own = "lenet_all_relu" if data == grey else "relu_lenet"
        filters = (width, *architectures.ARCHITECTURES[own].filters[1:])
        model = shared_model(data, own, filters=filters)
        truth = datasets.load(data, range(images))
        name = f"{data}, {width} first filters"
        yield name, bar, own, "float64", truth, iter([model])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=20)
    options.add_argument("--seeds", type=int, default=10)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    size = (1, 1, 1, 1) if arguments.short else (arguments.images, arguments.seeds, EPOCHS, 6)
    for name, bar, architecture, dtype, truth, models in settings(*size):
        records = [
            r for m in tqdm(models, desc=name) for r in judged(m, architecture, truth, dtype)
        ]
        rows.append(line(name, bar, records))
        print("  ".join(map(str, rows[-1])), flush=True)
    print(table(HEADER, rows))
    keep(arguments, named(HEADER, rows))


if __name__ == "__main__":
    main()
