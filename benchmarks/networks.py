"""The engineer's matrix: networks × scenarios, each cell an attack on photographs.

    python benchmarks/networks.py --write [FILE] [--networks LeNet ViT] [--scenarios "one image"]

keeps the record in FILE, by default book/records/networks.json; without --write it only prints.
Cells that are named are measured anew and the others kept. Every cell runs in a process of its own,
which is stopped after `LIMIT` seconds of the processor or at `MEMORY` GiB: such a cell is not
determined. The page "Does my network leak?" asks the package again which networks it supports, and
shows a cell as not determined where the answer has changed since the record was written.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from rconv import Attack, UnsupportedModelError, __version__
from rconv.lab import architectures, run_trial
from rconv.lab.scenarios import Scenario

KEPT = Path(__file__).parents[1] / "book" / "records" / "networks.json"

LIMIT, MEMORY = 300, 6
"""Seconds of the processor, and GiB of memory, for a cell."""

SHAPE = 3, 32, 32

COUNT = 4
"""Photographs of a cell, all of them behind one gradient where it is a batch or a sum."""

SCENARIOS = {
    "one image": Scenario(dtype="float64"),
    "batch of 4": Scenario(dtype="float64", batch=COUNT),
    "sum over 4 clients": Scenario(dtype="float64", clients=COUNT),
    "training mode": Scenario(dtype="float64", mode="training"),
    "5 local steps": Scenario(dtype="float64", steps=5),
    "float32": Scenario(dtype="float32"),
}
"""Each differs from the first in one respect."""


class Block(nn.Module):
    """Two convolutions and the sum, as in the residual networks of CIFAR and in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if (inputs, stride) != (outputs, 1):
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum behind a ReLU."""
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (inner + self.shortcut(x)).relu()


def resnet20() -> nn.Module:
    """The residual network of 20 layers for CIFAR (He et al., 2016), with projections."""
    first = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(a, b, 1 + (a != b)) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vgg() -> nn.Module:
    """Three convolutions with max pooling, as VGG begins."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 16, 10))


def vit() -> nn.Module:
    """torchvision's vision transformer with 16 patches; its head is drawn, since it starts at 0."""
    model = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=192, mlp_dim=384,
        num_classes=10,
    )  # fmt: skip
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model


def lenet(*filters: int) -> Callable[[], nn.Module]:
    """`lenet_main` as PyTorch initialises it, with ReLU in the last two layers."""
    own = filters or None
    return lambda: architectures.build("lenet_main", filters=own, initialisation="default")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LeNet": lenet(),
    "LeNet, more filters": lenet(16, 160, 48, 40),
    "VGG-like": vgg,
    "CIFAR-ResNet-20": resnet20,
    "ResNet-18": lambda: models.resnet18(num_classes=10),
    "MobileNetV2": lambda: models.mobilenet_v2(num_classes=10, dropout=0.0),
    "ViT": vit,
}


def network(name: str, seed: int = 0) -> nn.Module:
    """One of them, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name]()


def refusal(model: nn.Module) -> str:
    """Why the attack does not support a model as it is, in a sentence; "" where it does."""
    try:
        Attack(model, SHAPE)
    except UnsupportedModelError as error:
        return str(error).partition("; ")[0]
    return ""


def measure(name: str, scenario: str, count: int) -> dict:
    """One cell with so many photographs, and the seconds of the processor."""
    start, own = time.process_time(), SCENARIOS[scenario]
    point = {"network": name, "scenario": scenario, "tried": 0, "recovered": 0, "psnr": []}
    try:
        found = run_trial(network(name), SHAPE, count=count, scenario=own)
        point |= {
            "risk": found.risk,
            "tried": len(found.psnr),
            "recovered": int(found.recovered.sum()),
            "unique_and_wrong": int(found.false.sum()),
            "psnr": [round(min(own, 400.0), 1) for own in found.psnr.tolist()],
            "reason": next((own for own in found.reconstruction.diagnostics if own), ""),
        }
    except UnsupportedModelError as error:
        point |= {"risk": "not determined", "reason": str(error).partition("; ")[0]}
    except ValueError as error:
        point |= {"risk": "not determined", "reason": str(error)}
    except (MemoryError, RuntimeError) as error:
        if "memory" not in repr(error).lower():
            raise
        point |= {"risk": "not determined", "reason": f"the attack needs more than {MEMORY} GiB"}
    return {**point, "cpu": round(time.process_time() - start, 1)}


def _send(pipe: Connection, name: str, scenario: str) -> None:
    """First one photograph, in case that there is no time for all."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY << 30, MEMORY << 30))
    for count in (1, COUNT) if SCENARIOS[scenario].together == 1 else (COUNT,):
        pipe.send(measure(name, scenario, count))


def run(name: str, scenario: str) -> dict:
    """One cell in a process of its own; not determined where that was stopped before its end."""
    point = {"network": name, "scenario": scenario, "tried": 0, "recovered": 0, "psnr": [],
             "risk": "not determined", "cpu": LIMIT,
             "reason": f"the attack needs more than {LIMIT} s of the processor"}  # fmt: skip
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_send, args=(theirs, name, scenario)
    )
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):
        while True:
            point = ours.recv()
    process.join()
    return point


def main() -> None:
    """Measure the cells that are named, and keep the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--short", action="store_true", help="two cells, as CI runs them")
    parser.add_argument(
        "--write", type=Path, nargs="?", const=KEPT, help="where to keep the record"
    )
    arguments = parser.parse_args()
    target, names, scenarios = arguments.write, arguments.networks, arguments.scenarios
    if arguments.short:
        names, scenarios = ["LeNet, more filters"], ["one image", "float32"]
    kept = json.loads(target.read_text())["points"] if target and target.exists() else []
    cells = {(p["network"], p["scenario"]): p for p in kept}
    for name in names:
        for scenario in scenarios:
            cells[name, scenario] = point = run(name, scenario)
            said = f"{point['recovered']} of {point['tried']}, {point['cpu']:.0f} s"
            print(f"{name:20} {scenario:20} {point['risk']}: {said} {point['reason']}", flush=True)
            if target:
                _write(target, cells)


def _write(path: Path, cells: dict[tuple[str, str], dict]) -> None:
    """Keep the cells in the order of the matrix, one a line."""
    order = [(n, s) for n in NETWORKS for s in SCENARIOS if (n, s) in cells]
    lines = ",\n".join(json.dumps(cells[key]) for key in order)
    made = f"python benchmarks/networks.py --write, rconv {__version__}, torch {torch.__version__}"
    path.write_text(f'{{"made": {json.dumps(made)}, "points": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
