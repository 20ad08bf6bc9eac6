"""Speed and memory of the attack, as ratios measured side by side in one run.

    RCONV_DATA=… python benchmarks/speed.py [--short]

- `lenet_main`, ReLU, CIFAR-10, the paper's constraints, 100 images: the attack against nothing but
  the batched linear-algebra calls that it cannot do without, and against a straightforward
  dense implementation (one dense least-squares solve per layer and image).
- one layer of 3,072 unknowns by hybrid constraints.
- a single image in a fresh process, beyond `import torch`.

Times are those of the processor, summed over threads, which do not depend on what else it does; of
the fresh process that by the clock as well.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from _shared import dataset, keep, parser
from torch import nn

from rconv.attack.activation_vjp import through_activation
from rconv.attack.attack import Attack
from rconv.attack.head import head_input
from rconv.attack.map_problem import ConvData, MapProblem
from rconv.attack.plan import LayerPlan
from rconv.data import datasets
from rconv.equations.conv_gradient import gradient_matrix, gradient_rhs
from rconv.equations.conv_output import weight_matrix
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.records import table

COLD = """
import json, sys, time, torch
clock, cpu = time.perf_counter(), time.process_time()
from rconv.lab.experiment import run
run(sys.argv[1], [0], activation="ReLU", constraints="paper")
print(json.dumps([time.perf_counter() - clock, time.process_time() - cpu]))
"""


def timed(function: Callable[[], object], repeats: int = 3) -> float:
    """Best of a few runs, in seconds of the processor."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def layer_systems(attack: Attack, gradients: dict, count: int) -> list[tuple]:
    """The gradient systems (A, b) that the attack meets on its way, recorded for replay."""
    head = head_input(attack.network.head, gradients)
    output, cotangent = head.value, head.cotangent @ attack.network.head.weight
    noise = torch.full((count,), 1e-16, dtype=torch.float64)
    systems = []
    for stage in reversed(attack.network.stages[1:]):
        shape = (-1, *stage.geometry.output)
        bias = gradients[f"{stage.name}.bias"]
        below, inputs = through_activation(
            stage.activation, output.reshape(shape), cotangent.reshape(shape), bias, noise
        )
        weight_gradient = gradients[f"{stage.name}.weight"]
        matrix = gradient_matrix(below.value, stage.geometry)
        systems.append((matrix, gradient_rhs(weight_gradient)))
        layer = ConvData(LayerPlan(stage, "gradient"), inputs, below, weight_gradient, noise)
        solved, _ = MapProblem(0, (layer,)).solve()
        output, cotangent = solved.value, stage.transpose(below.value)
    return systems


def bare_calls(systems: list[tuple], sparse, rhs: torch.Tensor) -> None:
    """Normal equations, Cholesky, two refinements per layer, and the sparse LU solve: no more."""
    for matrix, b in systems:
        gram = matrix.mT @ matrix
        factor = torch.linalg.cholesky(gram)
        x = torch.cholesky_solve(matrix.mT @ b, factor)
        for _ in range(2):
            x = x + torch.cholesky_solve(matrix.mT @ (b - matrix @ x), factor)
    sparse.solve(rhs)


def dense_calls(systems: list[tuple], dense: torch.Tensor, rhs: torch.Tensor) -> None:
    """One dense least-squares solve per layer and image, the first layer's included."""
    for matrix, b in systems:
        for a, y in zip(matrix, b, strict=True):
            torch.linalg.lstsq(a, y)
    for y in rhs:
        torch.linalg.solve(dense, y)


def paper_constraints(name: str, count: int = 100, dense_count: int = 4) -> dict:
    """Milliseconds an image: ours, the bare calls, and a dense implementation."""
    truth = datasets.load(name, range(count))
    model = shared_model(name, "lenet_main", "ReLU")
    shape = tuple(truth.images.shape[1:])
    gradients = client_gradients(model, "lenet_main", truth)
    prepare = timed(lambda: Attack(model, shape, constraints="paper"))
    attack = Attack(model, shape, constraints="paper")
    ours = timed(lambda: attack(gradients)) / count
    systems = layer_systems(attack, gradients, count)
    stage = attack.network.stages[0]
    rhs = stage.convolve(truth.images).flatten(1)
    factor = attack.entry_points[0].plans[0].output.factor
    bare = timed(lambda: bare_calls(systems, factor, rhs)) / count
    dense = torch.from_numpy(weight_matrix(stage.weight, stage.geometry).toarray())
    few = [(a[:dense_count], b[:dense_count]) for a, b in systems]
    slow = timed(lambda: dense_calls(few, dense, rhs[:dense_count]), 1) / dense_count
    rows = [
        ("attack, certificate included", f"{1e3 * ours:.2f}", f"{ours / bare:.2f}"),
        ("bare batched calls", f"{1e3 * bare:.2f}", "1"),
        ("dense, image by image", f"{1e3 * slow:.1f}", f"{slow / bare:.0f}"),
    ]
    print(table((f"lenet_main, ReLU, {count} images", "ms / image", "ratio"), rows))
    print(f"preparation {prepare:.3f} s")
    milliseconds = {"ours": ours, "bare": bare, "dense": slow, "prepare": prepare}
    return {key: round(1e3 * seconds, 3) for key, seconds in milliseconds.items()}


def hybrid_constraints(name: str, architecture: str, count: int = 5) -> dict:
    """Seconds an image of a hybrid layer."""
    truth = datasets.load(name, range(count))
    model = shared_model(name, architecture, dtype="float32")
    gradients = client_gradients(model, architecture, truth, "float32")
    layers = sum(isinstance(module, nn.Conv2d) for module in model)
    kinds = ("hybrid", *["gradient"] * (layers - 1))
    plain = Attack(model, tuple(truth.images.shape[1:]), constraints="gradient")
    mixed = Attack(model, tuple(truth.images.shape[1:]), constraints=kinds)
    difference = timed(lambda: mixed(gradients)) / count
    rest = timed(lambda: plain(gradients), 1) / count
    unknowns = truth.images[0].numel()
    print(
        f"hybrid layer of {unknowns:,} unknowns: {difference:.2f} s an image, other layers included"
    )
    print(f"  (gradient constraints of short rank by SVD instead: {rest:.2f} s an image)")
    return {"hybrid": round(difference, 3), "gradient": round(rest, 3)}


def from_cold(name: str, runs: int = 5) -> dict:
    """Median seconds of one image in a fresh process, beyond `import torch`."""
    command = [sys.executable, "-c", COLD, name]
    each = []
    for _ in range(runs):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        each.append(json.loads(done.stdout))
    clock, cpu = (statistics.median(seconds) for seconds in zip(*each, strict=True))
    print(f"single image from cold: {clock:.2f} s beyond `import torch`, {cpu:.2f} s of CPU time")
    return {"clock": round(clock, 2), "cpu": round(cpu, 2)}


def main() -> None:
    options = parser(__doc__).parse_args()
    count, dense, hybrid, runs = (4, 1, 1, 1) if options.short else (100, 4, 5, 5)
    name = dataset("CIFAR10", count)
    network = ("Digits", "dlg_lenet") if options.short else (name, "lenet_main")
    points = [
        {"images": count, "ms an image": paper_constraints(name, count, dense)},
        {"images": hybrid, "s an image": hybrid_constraints(*network, hybrid)},
        {"images": 1, "s from cold": from_cold(name, runs)},
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this benchmark {peak:.2f} GiB, {torch.get_num_threads()} threads")
    keep(options, points)


if __name__ == "__main__":
    main()
