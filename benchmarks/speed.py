"""Speed and memory of the attack, as ratios measured side by side in one run.

    RCONV_DATA=… python benchmarks/speed.py

- `lenet_main`, ReLU, CIFAR-10, the paper's constraints, 100 images: the attack against nothing but
  the batched linear-algebra calls that it cannot do without, and against a straightforward
  dense implementation (one dense least-squares solve per layer and image).
- one layer of 3,072 unknowns by hybrid constraints.
- a single image in a fresh process.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from rconv.attack.attack import Attack
from rconv.attack.backward import through_activation
from rconv.attack.head import head_input
from rconv.attack.layer import solve_layer
from rconv.attack.plan import LayerPlan
from rconv.attack.solve import Known
from rconv.data import datasets
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.weight import weight_matrix
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.records import table

COLD = """
import time, torch
start = time.perf_counter()
from rconv.lab.experiment import run
run("CIFAR10", [0], activation="ReLU", constraints="paper")
print(time.perf_counter() - start)
"""


def timed(function: Callable[[], object], repeats: int = 3) -> float:
    """Best of a few runs, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
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
        passed = through_activation(
            stage.activation, output.reshape(shape), cotangent.reshape(shape), bias, noise
        )
        weight_gradient = gradients[f"{stage.name}.weight"]
        matrix = gradient_matrix(passed.cotangent, stage.geometry)
        systems.append((matrix, gradient_rhs(weight_gradient)))
        known = Known(stage, passed, weight_gradient, noise)
        solved, _ = solve_layer(LayerPlan(stage, "gradient"), known)
        output, cotangent = solved.value, stage.transpose(passed.cotangent)
    return systems


def bare_calls(systems: list[tuple], sparse, rhs: torch.Tensor) -> None:
    """Normal equations, Cholesky, two refinements per layer, and the sparse LU solve: no more."""
    for matrix, b in systems:
        gram = matrix.mT @ matrix
        factor = torch.linalg.cholesky(gram)
        x = torch.cholesky_solve(matrix.mT @ b, factor)
        for _ in range(2):
            x = x + torch.cholesky_solve(matrix.mT @ (b - matrix @ x), factor)
    sparse.solve(sparse.rows(rhs))


def dense_calls(systems: list[tuple], dense: torch.Tensor, rhs: torch.Tensor) -> None:
    """One dense least-squares solve per layer and image, the first layer's included."""
    for matrix, b in systems:
        for a, y in zip(matrix, b, strict=True):
            torch.linalg.lstsq(a, y)
    for y in rhs:
        torch.linalg.solve(dense, y)


def paper_constraints(count: int = 100, dense_count: int = 4) -> None:
    truth = datasets.load("CIFAR10", range(count))
    model = shared_model("CIFAR10", "lenet_main", "ReLU")
    shape = tuple(truth.images.shape[1:])
    gradients = client_gradients(model, "lenet_main", truth)
    prepare = timed(lambda: Attack(model, shape, constraints="paper"))
    attack = Attack(model, shape, constraints="paper")
    ours = timed(lambda: attack(gradients)) / count
    systems = layer_systems(attack, gradients, count)
    stage = attack.network.stages[0]
    rhs = stage.convolve(truth.images).flatten(1)
    bare = timed(lambda: bare_calls(systems, attack.plans[0].system, rhs)) / count
    dense = torch.from_numpy(weight_matrix(stage.weight, stage.geometry).toarray())
    few = [(a[:dense_count], b[:dense_count]) for a, b in systems]
    slow = timed(lambda: dense_calls(few, dense, rhs[:dense_count]), 1) / dense_count
    rows = [
        ("attack, certificate included", f"{1e3 * ours:.2f}", f"{ours / bare:.2f}"),
        ("bare batched calls", f"{1e3 * bare:.2f}", "1"),
        ("dense, image by image", f"{1e3 * slow:.1f}", f"{slow / bare:.0f}"),
    ]
    print(table(("lenet_main, ReLU, 100 images", "ms / image", "ratio"), rows))
    print(f"preparation {prepare:.3f} s")


def hybrid_constraints(count: int = 5) -> None:
    truth = datasets.load("CIFAR10", range(count))
    model = shared_model("CIFAR10", "lenet_main", "ReLU", dtype="float32")
    gradients = client_gradients(model, "lenet_main", truth, "float32")
    kinds = ("hybrid", "gradient", "gradient", "gradient")
    plain = Attack(model, tuple(truth.images.shape[1:]), constraints="gradient")
    mixed = Attack(model, tuple(truth.images.shape[1:]), constraints=kinds)
    difference = timed(lambda: mixed(gradients)) / count
    rest = timed(lambda: plain(gradients), 1) / count
    print(f"hybrid layer of 3,072 unknowns: {difference:.2f} s an image, other layers included")
    print(f"  (gradient constraints of short rank by SVD instead: {rest:.2f} s an image)")


def main() -> None:
    paper_constraints()
    hybrid_constraints()
    cold = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=True)
    print(f"single image from cold: {float(cold.stdout):.2f} s beyond `import torch`")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this benchmark {peak:.2f} GiB, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
