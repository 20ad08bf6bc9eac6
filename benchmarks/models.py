"""Every classification model of torchvision: what the attack and the audit say, and how fast.

    python benchmarks/models.py [--models resnet18 vit_b_16] [--short] [--write FILE]

Each at its own resolution, in evaluation and in training mode, with the weights of its constructor;
those that are zero there, as a vision transformer's head, are drawn, as training would make them.
Every point runs in a process of its own, so that its peak of memory is its own; they are forked
from one that has imported PyTorch. Only the
preparation is timed, `Attack(model, shape)` and `audit_model(model, shape)`: by the clock, and in
seconds of the processor summed over its threads.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision import models

from rconv import Attack, UnsupportedModelError, audit_model

KEPT = Path(__file__).with_name("models.json")

SHORT = ("alexnet", "resnet18", "squeezenet1_1", "vit_b_32")
"""What CI runs."""

BAR = 10.0
"""Seconds in which each should be answered, on two cores."""


def network(name: str, *, training: bool, seed: int = 0) -> tuple[nn.Module, tuple[int, int, int]]:
    """One model with random weights, and the shape of its images."""
    side = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    options = {"image_size": side} if name.startswith("vit") else {}
    drawn, nn.init.trunc_normal_ = nn.init.trunc_normal_, _normal
    torch.manual_seed(seed)
    try:
        model = models.get_model(name, weights=None, **options)
    finally:
        nn.init.trunc_normal_ = drawn
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.train(training), (3, side, side)


def _normal(tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, **_: object) -> torch.Tensor:
    """A normal draw in place of a truncated one, which takes minutes for the largest models."""
    return nn.init.normal_(tensor, mean, std)


def said(prepare: Callable[[], object]) -> dict:
    """What one of the two says, its first sentence, and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        found = prepare()
        layers = found if isinstance(found, list) else []
        answer, sentence = "supported", "; ".join(f"{own.name}: {own.verdict}" for own in layers)
        reasons = 0
    except UnsupportedModelError as error:
        answer, sentence = "not supported", str(error).partition(". ")[0]
        reasons = len(error.reasons)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    rounded = {key: round(value, 2) for key, value in seconds.items()}
    return {"answer": answer, "says": sentence, "reasons": reasons, **rounded}


def measure(name: str, *, training: bool) -> dict:
    """One model in one mode."""
    model, shape = network(name, training=training)
    attack = said(lambda: Attack(model, shape))
    audit = said(lambda: audit_model(model, shape))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    mode = "training" if training else "evaluation"
    own = {"model": name, "mode": mode, "side": shape[1], "GB": round(peak, 1)}
    return {**own, "attack": attack, "audit": audit}


def main() -> None:
    """Run each point in a process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=models.list_models(module=models))
    parser.add_argument("--short", action="store_true", help="a few models, as CI runs them")
    parser.add_argument("--write", type=Path, help="where to keep the record")
    arguments = parser.parse_args()
    points = []
    names = SHORT if arguments.short else arguments.models
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for name, training in itertools.product(names, (False, True)):
            points.append(pool.apply(measure, (name,), {"training": training}))
            own = points[-1]["attack"]
            line = f"{name:20} {points[-1]['mode']:10} {own['cpu']:5.1f} s  {own['answer']}"
            print(f"{line}: {own['says']}", flush=True)
            if arguments.write:
                _write(arguments.write, points)
    slow = [p for p in points if max(p["attack"]["cpu"], p["audit"]["cpu"]) > BAR]
    print(f"{len(points)} points, {len(slow)} took more than {BAR:g} s of the processor")


def _write(path: Path, points: list[dict]) -> None:
    """Keep the points, one a line, with the versions that they were measured with."""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    made = f"python benchmarks/models.py, threads: {torch.get_num_threads()}, {versions}"
    lines = ",\n".join(json.dumps(point) for point in points)
    path.write_text(f'{{"made": {json.dumps(made)}, "points": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
