"""Clients that send weights in place of gradients, as one table.

    RCONV_DATA=… python benchmarks/updates.py [--images 10] [--rates 0.1 0.01 0.001] [--short]

The attacker takes what comes for one step. Each line is one activation of `lenet_main` with the
published initialisation, in float32. "near" have a true error within a factor of ten of the
expected one; "wrong" are called unique, have a larger error than that, and a PSNR below 40 dB. The
ratios are of the true error to the expected.
"""

import copy
import itertools
import statistics
import time

import torch
from _shared import dataset, keep, named, parser
from torch import Tensor, nn

from rconv.data import datasets
from rconv.lab.architectures import ACTIVATIONS
from rconv.lab.channels import Sent, sgd_step
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.records import Record, expected, score, table
from rconv.observe.update import gradients_from_update

HEADER = (
    *(
        "steps",
        "rate",
        "activation",
        "images",
        "near",
        "unique",
        "wrong",
        "PSNR median",
        "min",
        "max",
    ),
    *("ratio median", "min", "max", "s / image"),
)


def weights_sent(
    model: nn.Sequential, truth: datasets.Images, rate: float, steps: int
) -> dict[str, Tensor]:
    """Name → `(N, *parameter shape)`: weights of clients after steps on one image each."""
    sent = []
    for n in range(len(truth)):
        own, alone = copy.deepcopy(model), datasets.load(truth.name, [n])
        for _ in range(steps):
            gradients = client_gradients(own, "lenet_main", alone, "float32")
            step = sgd_step(own, gradients, rate)
            own.load_state_dict({name: w[0] for name, w in step.items()})
        sent.append(own.state_dict())
    return {name: torch.stack([own[name] for own in sent]) for name in sent[0]}


def judged(activation: str, rate: float, steps: int, truth: datasets.Images) -> list[Record]:
    """Every image attacked and judged, with CPU seconds."""
    model = shared_model(truth.name, "lenet_main", activation, dtype="float32")
    before, after = model.state_dict(), weights_sent(model, truth, rate, steps)
    gradients, noise = gradients_from_update(before, after, rate)
    records = []
    for n in range(len(truth)):
        own = {name: g[n : n + 1] for name, g in gradients.items()}
        start = time.process_time()
        seen = Sent(model, own, noise.select(slice(n, n + 1), gradients))
        found = seen.attacked(tuple(truth.images.shape[1:]))
        seconds = time.process_time() - start
        records += score(found, truth.images[n : n + 1].double(), {"seconds": seconds})
    return records


def line(activation: str, rate: float, steps: int, records: list[Record]) -> tuple:
    """One row of the table."""
    psnr = [r["psnr"] for r in records]
    ratios = [r["error"] / r["expected_error"] for r in records]
    return (
        steps,
        f"{rate:g}",
        activation,
        len(records),
        sum(expected(r) for r in records),
        sum(r["unique"] for r in records),
        sum(r["false"] for r in records),
        f"{statistics.median(psnr):.1f}",
        f"{min(psnr):.1f}",
        f"{max(psnr):.1f}",
        f"{statistics.median(ratios):.2g}",
        f"{min(ratios):.2g}",
        f"{max(ratios):.2g}",
        f"{statistics.median(r['seconds'] for r in records):.2f}",
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=10)
    options.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.01, 0.001])
    options.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    arguments = options.parse_args()
    torch.set_num_threads(1)
    cases = itertools.product(arguments.steps, arguments.rates, ACTIVATIONS)
    if arguments.short:
        arguments.images, cases = 1, [(1, 0.01, "ReLU")]
    truth = datasets.load(dataset("CIFAR10", arguments.images), range(arguments.images))
    rows = []
    for steps, rate, activation in cases:
        rows.append(line(activation, rate, steps, judged(activation, rate, steps, truth)))
        print("  ".join(map(str, rows[-1])), flush=True)
    print(table(HEADER, rows))
    keep(arguments, named(HEADER, rows))


if __name__ == "__main__":
    main()
