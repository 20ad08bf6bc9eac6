"""Eight images of CIFAR-100 from one averaged gradient: how many filters it takes.

    RCONV_DATA=… python benchmarks/batches.py [--draws 10] [--write FILE] [--short]

Four convolutions 5×5 of the strides 2, 2, 1, 1 with PyTorch's initialisation, in float64. A draw is
a seed, for the weights and for eight of the dataset's first 200 training images of different
labels. Every draw runs in a process of its own with one thread, as many at a time as there are
cores; time is the processor's.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from _shared import dataset, keep, parser
from large import network
from torch import nn

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab.metrics import matched, psnr
from rconv.lab.records import table

BATCH, FIRST = 8, 200

NETWORKS = (
    ("LeakyReLU", (16, 64, 64, 64)),
    ("ReLU", (28, 96, 32, 32)),
    ("ReLU", (32, 96, 32, 32)),
    ("ReLU", (40, 96, 32, 32)),
)
"""Behind a ReLU only active outputs are known, so that the first layer needs more filters: their
number decides. The other layers are wide enough."""


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images of different labels: (8, 3, 32, 32), (8,)."""
    name = dataset("CIFAR100", FIRST)
    images = datasets.load(name, range(min(FIRST, datasets.SIZES[name])))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    first: dict[int, int] = {}
    for i in order:
        first.setdefault(int(images.labels[i]), i)
    chosen = list(first.values())[:BATCH]
    return images.images[chosen].double(), images.labels[chosen]


def measure(number: int, seed: int, batch: int) -> dict:
    """One draw."""
    torch.set_num_threads(1)
    truth, labels = (of_all[:batch] for of_all in drawn(seed))
    model = network(*NETWORKS[number], side=32, classes=100, seed=seed)
    loss = nn.functional.cross_entropy(model(truth), labels)
    sent = [g.detach() for g in torch.autograd.grad(loss, list(model.parameters()))]
    start = time.process_time()
    found = Attack(model, (3, 32, 32))(sent, batch=batch)
    seconds = time.process_time() - start
    order = matched(found.images, truth)
    quality = psnr(found.images[order], truth, data_range=1.0)
    return {
        "activation": NETWORKS[number][0],
        "filters": list(NETWORKS[number][1]),
        "seed": seed,
        "psnr": [round(float(own), 1) for own in quality],
        "unique": int(found.unique.sum()),
        "false": int((found.unique[order] & (quality < 40)).sum()),
        "condition": round(max(float(layer.condition.max()) for layer in found.layers[1:])),
        "seconds": round(seconds, 1),
    }


def run(point: tuple[int, int, int]) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, point)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    print(done.stdout, end="", flush=True)
    return json.loads(done.stdout)


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--draws", type=int, default=10)
    names = ("NETWORK", "SEED", "IMAGES")
    own.add_argument("--one", nargs=3, type=int, metavar=names, help="one draw")
    options = own.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    numbers = range(len(NETWORKS))
    each = [(number, seed, BATCH) for seed in range(options.draws) for number in numbers]
    if options.short:
        each = [(0, 0, 2)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        points = sorted(pool.map(run, each), key=lambda p: (p["activation"], p["filters"]))
    print(table(tuple(points[0]), [tuple(map(str, point.values())) for point in points]))
    keep(options, points)


if __name__ == "__main__":
    main()
