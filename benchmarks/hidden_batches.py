"""Batches far beyond the number of classes, disaggregated at a hidden ReLU layer.

    RCONV_DATA=… python benchmarks/hidden_batches.py [--draws 10] [--only NAME …] [--short]

A draw is a seed, for the weights and for the images among the dataset's first 200 training images;
of more, mirrored ones are taken as well. The settings of the attack were chosen on the same images
upside down, with other seeds. A sample counts as recovered where its error is at most 1e-6 of its
size, 1e-4 in float32, and an image at 60 dB. `sending` counts those alone whose gradient is above
the rounding of the batch's. One thread; time is the processor's.

`published` is the share in the table of a paper on peeling, on a GPU: weights of deviation σ = 0.5,
1,000 units. It counts recovered images by its own measure, and its images are others.
"""

import json
import time
from dataclasses import dataclass, replace

import torch
from _shared import dataset, keep, parser
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.data import datasets

FIRST, GOOD = 200, {"float64": 1e-6, "float32": 1e-4}


@dataclass(frozen=True)
class Cell:
    """One setting of the table."""

    group: str
    data: str
    width: int
    batch: int
    init: str = "PyTorch"
    dtype: str = "float64"
    activation: str = "ReLU"
    front: tuple[int, ...] = ()
    images: bool = False
    side: int = 32
    bar: float | None = None
    published: float | None = None

    @property
    def classes(self) -> int:
        return datasets.CLASSES[self.data]


def cells() -> list[Cell]:
    """The table, row by row."""
    rows = [
        Cell("mlp", data, 1000, batch, bar=0.99)
        for data in ("CIFAR10", "CIFAR100")
        for batch in (64, 100, 128)
    ]
    rows += [Cell("large", "CIFAR10", 1000, 256), Cell("large", "CIFAR10", 2000, 256, bar=0.9)]
    rows += [
        Cell("narrow", "CIFAR10", 512, 64, bar=0.99),
        Cell("narrow", "CIFAR10", 256, 32, bar=0.95),
    ]
    rows += [Cell("mnist", "MNIST", 1000, 64, bar=0.95), Cell("mnist", "MNIST", 1000, 100)]
    front = 16, 32, 32
    rows += [Cell("features", "CIFAR10", 1000, batch, front=front, bar=0.99) for batch in (64, 128)]
    rows += [
        Cell("sigma", data, 1000, batch, init="normal 0.5", bar=share, published=share)
        for data, batch, share in (
            ("CIFAR10", 64, 0.994),
            ("CIFAR10", 128, 0.666),
            ("CIFAR100", 64, 1.0),
            ("CIFAR100", 128, 1.0),
            ("MNIST", 64, 0.484),
        )
    ]
    rows += [Cell("float32", "CIFAR10", 1000, n, dtype="float32", bar=0.95) for n in (32, 64)]
    rows += [Cell("leaky", "CIFAR10", 1000, 64, activation=a) for a in ("LeakyReLU",)]
    rows += [Cell("trained", "CIFAR10", 1000, batch, init="trained") for batch in (16, 32, 64)]
    rows += [
        Cell("images", "CIFAR10", 1000, 16, front=(40, 96, 96), images=True, side=16, bar=0.95),
        Cell("images", "CIFAR10", 1000, 32, front=(48, 128, 96), images=True, side=16, bar=0.95),
    ]
    return rows


def drawn(cell: Cell, seed: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B,)."""
    name = dataset(cell.data, FIRST)
    loaded = datasets.load(name, range(min(FIRST, datasets.SIZES[name])))
    x, y = loaded.images.double(), loaded.labels
    if cell.images:
        x = nn.functional.avg_pool2d(x, x.shape[-1] // cell.side)
    if cell.batch > len(x):
        x, y = torch.cat([x, x.flip(3)]), torch.cat([y, y])
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: cell.batch]
    return x[chosen], y[chosen]


def network(cell: Cell, shape: tuple[int, int, int], seed: int) -> nn.Module:
    """The model: convolutions with ReLU and strides 2, 2, 1, if any; a hidden layer; the logits."""
    torch.manual_seed(seed)
    layers, (channels, height, width) = [], shape
    for filters, stride in zip(cell.front, (2, 2, 1), strict=False):
        kernel = 5 if stride == 2 else 3
        layers += [nn.Conv2d(channels, filters, kernel, stride, kernel // 2), nn.ReLU()]
        channels, height, width = filters, height // stride, width // stride
    activation = nn.ReLU() if cell.activation == "ReLU" else nn.LeakyReLU(0.01)
    layers += [nn.Flatten(), nn.Linear(channels * height * width, cell.width), activation]
    model = nn.Sequential(*layers, nn.Linear(cell.width, cell.classes)).double()
    if cell.init == "normal 0.5":
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0, 0.5)
    if cell.init == "trained":
        _train(model, *drawn(replace(cell, batch=FIRST), seed))
    return model.to(getattr(torch, cell.dtype))


def _train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 10) -> None:
    """A few epochs of Adam on the first images, in steps of 20."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for cut in range(0, len(images), 20):
            optimiser.zero_grad()
            part = slice(cut, cut + 20)
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimiser.step()


def measure(cell: Cell, seed: int) -> dict:
    """One draw."""
    x, y = drawn(cell, seed)
    model = network(cell, tuple(x.shape[1:]), seed)
    if not cell.images:  # the features of the convolutions, as if they were images
        first = list(map(type, model)).index(nn.Flatten)
        with torch.no_grad():
            x = model[:first](x.to(model[-1].weight.dtype)).double()
        model = model[first:]
    loss = nn.functional.cross_entropy(model(x.to(model[-1].weight.dtype)), y)
    sent = [g.detach() for g in torch.autograd.grad(loss, list(model.parameters()))]
    attack = Attack(model, tuple(x.shape[1:]))
    start = time.process_time()
    result = attack(sent, batch=cell.batch)
    seconds = time.process_time() - start
    truth, found, certain = x.flatten(1), result.images.flatten(1), result.unique
    good = 1e-3 if cell.images else GOOD[cell.dtype]
    size = truth[0].numel() ** 0.5 if cell.images else truth.norm(dim=1, keepdim=True)
    errors = torch.cdist(truth, found, compute_mode=EXACT) / size
    right, own = int((errors <= good).any(dim=1).sum()), errors.amin(dim=0)
    sending = len(x) if cell.images else _sending(model.double(), truth, y, cell, sent[0])
    return {
        "share": round(right / len(x), 4),
        "sending": round(right / max(1, sending), 4),
        "certified": int(certain.sum()),
        "wrong": int((certain & (own > max(good, 1e-3))).sum()),
        "worst": float(f"{float(own[certain].max()) if certain.any() else 0:.1e}"),
        "seconds": round(seconds, 1),
    }


EXACT = "donot_use_mm_for_euclid_dist"

ROUNDINGS = 40
"""Of the gradient's entries, that a sample's own gradient must be above to count as sent."""


def _sending(model: nn.Module, truth: Tensor, labels: Tensor, cell: Cell, sent: Tensor) -> int:
    """Samples whose gradient is above the rounding of the batch's."""
    first, pre = model[1], model[1](truth)
    p = torch.softmax(model[2:](pre), dim=1).scatter(1, labels[:, None], 0.0)
    p = p.scatter(1, labels[:, None], -p.sum(dim=1, keepdim=True))
    z = torch.where(pre > 0, 1.0, 0.0) * (p @ model[3].weight) / len(truth)
    unit = torch.finfo(getattr(torch, cell.dtype)).eps / 2 * sent.double().square().mean().sqrt()
    floor = ROUNDINGS * unit * sum(n**0.5 for n in first.weight.shape)
    return int((z.norm(dim=1) * truth.norm(dim=1) > floor).sum())


def summary(cell: Cell, draws: list[dict]) -> dict:
    """A cell of the record: medians beside the worst."""
    of = {name: [draw[name] for draw in draws] for name in draws[0]}
    names = ("data", "width", "batch", "init", "dtype", "activation", "front", "images", "side")
    shares = torch.tensor(of["share"])
    return {
        "group": cell.group,
        **{name: getattr(cell, name) for name in names},
        "draws": len(draws),
        "share": round(float(shares.mean()), 4),
        "least share": min(of["share"]),
        "of those sending": round(sum(of["sending"]) / len(draws), 4),
        "certified": sum(of["certified"]),
        "wrong": sum(of["wrong"]),
        "worst certified": max(of["worst"]),
        "most seconds": max(of["seconds"]),
        "bar": cell.bar,
        "published": cell.published,
    }


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--draws", type=int, default=10)
    own.add_argument("--only", nargs="*", default=[], metavar="NAME", help="groups of cells")
    options = own.parse_args()
    torch.set_num_threads(1)
    if options.short:
        cell = Cell("short", "CIFAR10", 128, 12)
        print(json.dumps(summary(cell, [measure(cell, 0)]), indent=2))
        return
    points = []
    for cell in cells():
        if options.only and cell.group not in options.only:
            continue
        draws = min(options.draws, 3) if cell.images else options.draws
        points.append(summary(cell, [measure(cell, seed) for seed in range(draws)]))
        print(json.dumps(points[-1]), flush=True)
    keep(options, points)


if __name__ == "__main__":
    main()
