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
from rconv.attack.batch_head import InseparableError, with_roundings
from rconv.attack.hidden_batch import from_hidden
from rconv.attack.hidden_state import ACCUMULATED
from rconv.data import datasets
from rconv.linalg.solution import largest_of_noise
from rconv.observe.check import check_gradients, declared_noise
from rconv.observe.noise import Observed

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
        Cell("images", "CIFAR10", 1000, 16, front=(28, 96, 96), images=True, bar=0.95),
        Cell("images", "CIFAR10", 1000, 32, front=(48, 128, 128), images=True, bar=0.95),
    ]
    return rows


def drawn(cell: Cell, seed: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B,)."""
    name = dataset(cell.data, FIRST)
    loaded = datasets.load(name, range(min(FIRST, datasets.SIZES[name])))
    x, y = loaded.images.double(), loaded.labels
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
    loss = nn.functional.cross_entropy(model(x.to(getattr(torch, cell.dtype))), y)
    sent = [g.detach() for g in torch.autograd.grad(loss, list(model.parameters()))]
    attack = Attack(model, tuple(x.shape[1:]))
    start = time.process_time()
    if cell.images:
        result = attack(sent, batch=cell.batch)
        found, certain = result.images, result.unique
        limit = 1e-3 * x[0].numel() ** 0.5  # 60 dB
        errors = torch.cdist(x.flatten(1), found.flatten(1), compute_mode=EXACT) / limit
        good, sending = 1.0, None
    else:
        truth = model.double()[: list(map(type, model)).index(nn.Linear)](x).flatten(1)
        found, certain, sending = _features(attack, sent, cell, truth, y)
        size = truth.norm(dim=1, keepdim=True)
        errors = torch.cdist(truth, found, compute_mode=EXACT) / size
        good = GOOD[cell.dtype]
    seconds = time.process_time() - start
    right = (errors <= good).any(dim=1) if len(found) else torch.zeros(len(x), dtype=torch.bool)
    own = errors.amin(dim=0) if len(found) else errors.new_zeros(0)
    return {
        "share": round(float(right.double().mean()), 4),
        "sending": round(float(right.sum()) / max(1, sending or len(x)), 4),
        "certified": int(certain.sum()),
        "wrong": int((certain & (own > max(good, 1e-3))).sum()),
        "worst": float(f"{float(own[certain].max()) if certain.any() else 0:.1e}"),
        "seconds": round(seconds, 1),
    }


EXACT = "donot_use_mm_for_euclid_dist"


def _features(attack: Attack, sent: list, cell: Cell, truth: Tensor, labels: Tensor) -> tuple:
    """What is found at the hidden layer, what of it is certified; how many samples send enough."""
    gradients, rounding = check_gradients(attack.model, sent, None, partial=True)
    noise, head = declared_noise(attack.model, rounding, None, None), attack.network.head
    clients = with_roundings(Observed.of(gradients, noise))
    bias = attack.model.get_parameter(f"{head.name}.bias").detach()
    pre = truth @ head.weight.mT + bias
    logits = head.hidden.activation(pre) @ head.hidden.weight.mT + head.hidden.bias
    p = torch.softmax(logits, 1).scatter(1, labels[:, None], 0.0)
    p = p.scatter(1, labels[:, None], -p.sum(dim=1, keepdim=True))
    z = head.hidden.derivative(pre) * (p @ head.hidden.weight) / len(truth)
    level = clients.every_std(f"{head.name}.weight")
    floor = ACCUMULATED * largest_of_noise(level, *head.weight.shape)
    sending = int((z.norm(dim=1) * truth.norm(dim=1) > floor).sum())
    try:
        shape = attack.network.nodes[-1].shape
        found = from_hidden(head, bias, clients, cell.batch, shape)
    except InseparableError:
        return truth[:0], torch.zeros(0, dtype=torch.bool), sending
    return found.estimate.value.flatten(1), found.separated.certain, sending


def summary(cell: Cell, draws: list[dict]) -> dict:
    """A cell of the record: medians beside the worst."""
    of = {name: [draw[name] for draw in draws] for name in draws[0]}
    names = ("data", "width", "batch", "init", "dtype", "activation", "front", "images")
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
        print(summary(cell, [measure(cell, 0)]))
        return
    points = []
    for cell in cells():
        if options.only and cell.group not in options.only:
            continue
        draws = 2 if cell.images else options.draws
        points.append(summary(cell, [measure(cell, seed) for seed in range(draws)]))
        print(json.dumps(points[-1]), flush=True)
    keep(options, points)


if __name__ == "__main__":
    main()
