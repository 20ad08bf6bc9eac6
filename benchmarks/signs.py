"""Networks as they are initialised and trained, and layers with too few filters.

    RCONV_DATA=… python benchmarks/signs.py [--draws 40] [--first 200] [--write FILE]
    RCONV_DATA=… python benchmarks/signs.py --table [--images 20] [--seeds 10]
    python benchmarks/signs.py --short

Without `--table`: `lenet_main` with ReLU and PyTorch's initialisation, where one of the last
convolution's three filters is dead. A draw is a seed, for the weights and for one image of
CIFAR-10 that no setting was chosen on (training images 100 to 199); seeds without exactly two live
filters are passed over. Each draw is attacked in float64 and in float32. Where the last
convolution stays open, `_ambiguity` tries to prove that its equations and signs do not
determine its input: then no setting could have closed it. `--short` makes two draws with embedded
photographs.

With `--table`, each line is one setting. "live" counts the images that leave at least two filters
of the last convolution alive; of these, "good" reach the PSNR of the bar. "wrong" are called
unique below 40 dB; "near" have a true error within a factor of ten of the expected one.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from _ambiguity import another_input
from _shared import dataset
from torch import nn
from tqdm import tqdm

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.records import SHOWN, Record, expected, table, value
from rconv.lab.training import train
from rconv.lab.underdetermined import attacked
from rconv.observe.observation import features

HEADER = (
    *("setting", "images", "live", "bar dB", "good", "unique", "wrong", "below 5 dB", "near"),
    *("PSNR median", "min", "s median", "max"),
)
EPOCHS = 20
POOL = 200
"""Images to train on."""

NETWORK = ("CIFAR10", "lenet_main", "ReLU")
BARS = (("float64", 100.0), ("float32", 80.0))
DRAWN = (
    *("precision", "bar dB", "good", "low", "high", "proved open", "good of the rest"),
    *("low", "high", "unique", "wrong", "good: worst dB", "median dB"),
)


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
        sum(expected(r) for r in records),
        f"{statistics.median(psnr):.1f}",
        f"{min(psnr):.1f}",
        f"{statistics.median(r['seconds'] for r in records):.2f}",
        f"{max(r['seconds'] for r in records):.2f}",
    )


def settings(images: int, seeds: int):
    """Name, bar, architecture, dtype, images, and models with the images that each attacks."""
    colour, grey = dataset("CIFAR10", POOL), dataset("MNIST", images)
    cifar = datasets.load(colour, range(images))

    def initial(seed):
        return shared_model(*NETWORK, seed=seed, initialisation="default")

    for dtype, bar in BARS:
        models = (initial(seed) for seed in range(seeds))
        yield f"initial, {dtype}", bar, "lenet_main", dtype, cifar, models
    pool = datasets.load(colour, range(min(POOL, datasets.SIZES[colour])))
    trained = (train(initial(s), pool, epochs=EPOCHS, seed=s) for s in range(min(5, seeds)))
    models = (model for model, accuracy in trained if not print(f"accuracy {accuracy:.3f}"))
    yield f"trained {EPOCHS} epochs", 100.0, "lenet_main", "float64", cifar, models
    for data, width, bar in ((grey, 4, 100.0), *((colour, *pair) for pair in (
        (14, 34.0), (12, 32.0), (10, 25.0), (8, 25.0), (6, 22.0)))):  # fmt: skip
        own = "lenet_all_relu" if data == grey else "relu_lenet"
        filters = (width, *architectures.ARCHITECTURES[own].filters[1:])
        model = shared_model(data, own, filters=filters)
        truth = datasets.load(data, range(images))
        name = f"{data}, {width} first filters"
        yield name, bar, own, "float64", truth, iter([model])


def draws(first: int, source: str) -> Iterator[tuple[int, nn.Module, datasets.Images]]:
    """Seeds, models and images that leave exactly two filters of the last convolution alive."""
    count = 100 if source == "CIFAR10" else 6
    seed = first
    while True:
        image = seed % count + (100 if source == "CIFAR10" else 0)
        model = shared_model(*NETWORK, seed=seed, initialisation="default").double()
        truth = datasets.load(source, [image])
        last = features(model, truth.images.double())["act4"][0].flatten(1)
        if int((last > 0).any(dim=1).sum()) == 2:
            yield seed, model, truth
        seed += 1


def undetermined(model: nn.Module, truth: datasets.Images) -> bool:
    """Whether equations and signs of the last convolution are proved to allow another input."""
    outputs = []
    hook = model.get_submodule("conv4").register_forward_hook(lambda m, a, o: outputs.append(o))
    logits = model(truth.images.double())
    hook.remove()
    loss = nn.functional.cross_entropy(logits, truth.labels)
    (cotangent,) = torch.autograd.grad(loss, outputs)
    x = features(model, truth.images.double())["act3"][0].detach()
    plans = Attack(model, tuple(truth.images.shape[1:])).entry_points[0].plans
    stage = next(plan.stage for plan in plans if plan.stage.name == "conv4")
    return another_input(stage, cotangent[0], x) is not None


def measured(seed: int, model: nn.Module, truth: datasets.Images) -> Record:
    """One draw, attacked in both precisions."""
    record: Record = {"seed": seed, "image": int(truth.indices[0])}
    for dtype in ("float64", "float32"):
        (found,) = judged(model, "lenet_main", truth, dtype)
        keys = "psnr", "unique", "gap", "expected_error", "seconds"
        record[dtype] = {key: found[key] for key in keys}
    model.double()
    record["undetermined"] = record["float64"]["gap"] > 0 and undetermined(model, truth)
    return record


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate."""
    z, p = 1.96, successes / max(count, 1)
    centre = p + z**2 / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return tuple((centre + sign * half) / (1 + z**2 / count) for sign in (-1, 1))


def summary(records: list[Record]) -> list[tuple]:
    """Of each precision: how many reach the bar, of all draws and of those not proved open."""
    rows = []
    for dtype, bar in BARS:
        psnr = [value(r[dtype]["psnr"], math.inf) for r in records]
        unique = [r[dtype]["unique"] for r in records]
        good = [p >= bar for p in psnr]
        rest = [g for g, r in zip(good, records, strict=True) if not r["undetermined"]]
        closed = [p for p, own in zip(psnr, good, strict=True) if own]
        rows.append((
            *(dtype, f"{bar:.0f}", *share(good), len(good) - len(rest), *share(rest)),
            *(sum(unique), sum(u and p < SHOWN for u, p in zip(unique, psnr, strict=True))),
            f"{min(closed, default=math.nan):.0f}",
            f"{statistics.median(closed or [math.nan]):.0f}",
        ))  # fmt: skip
    return rows


def share(good: list[bool]) -> tuple[str, str, str]:
    """How many, and Wilson's interval of the rate."""
    low, high = wilson(sum(good), len(good)) if good else (0.0, 1.0)
    return f"{sum(good)} of {len(good)}", f"{low:.3f}", f"{high:.3f}"


def two_live(first: int, count: int, source: str, write: Path | None) -> None:
    """The draws, one after the other, and their table."""
    records: list[Record] = []
    for draw in draws(first, source):
        records.append(measured(*draw))
        print(json.dumps(records[-1]), flush=True)
        if write:
            made = f"python benchmarks/signs.py --first {first}, torch {torch.__version__}"
            write.write_text(json.dumps({"made": made, "points": records}, indent=1) + "\n")
        if len(records) == count:
            break
    print(table(DRAWN, summary(records)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--first", type=int, default=200, help="the first seed")
    parser.add_argument("--write", type=Path, help="keep the draws as a record")
    parser.add_argument("--short", action="store_true", help="two draws, embedded photographs")
    parser.add_argument("--table", action="store_true", help="the table of settings instead")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        compare(arguments.images, arguments.seeds)
    elif arguments.short:
        two_live(0, 2, "Photos", None)
    else:
        two_live(arguments.first, arguments.draws, dataset("CIFAR10", POOL), arguments.write)


def compare(images: int, seeds: int) -> None:
    """The table of settings."""
    rows = []
    for name, bar, architecture, dtype, truth, models in settings(images, seeds):
        records = [
            r for m in tqdm(models, desc=name) for r in judged(m, architecture, truth, dtype)
        ]
        rows.append(line(name, bar, records))
        print("  ".join(map(str, rows[-1])), flush=True)
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
