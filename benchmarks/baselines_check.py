"""The baselines beside the figures of their originals, on models of the same kind.

    python benchmarks/baselines_check.py            everything, about 3 minutes of CPU time
    python benchmarks/baselines_check.py dlg rgap   some of dlg, idlg, ig, rgap

The originals' figures are those of their published code on a two-core machine, one thread, CPU
seconds. Their random start and initialisation are not ours (that of Inverting Gradients was
measured on another Sigmoid network, of unknown width), and whether L-BFGS without a line search
diverges in float32 hangs on the last bit, so that the figures compare in kind and not digit by
digit. CIFAR-10 comes from the folder that RCONV_DATA names.
"""

import argparse
import time

import torch
from torch import nn

from rconv.baselines import BaselineResult, dlg, idlg, inverting_gradients, rgap
from rconv.data.datasets import Images, load
from rconv.lab import architectures
from rconv.lab.metrics import psnr
from rconv.observe.observation import per_sample_gradients

ROW = "{:<34} {:>5} {:>9} {:>8} {:>10} {:>9}   {}"
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's channels: Inverting Gradients works on normalised images."""


def lenet12(seed: int) -> nn.Sequential:
    """Sigmoid LeNet with four convolutions of 12 filters, weights and biases within ±0.5."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for channels, stride in ((3, 2), (12, 2), (12, 1), (12, 1)):
            layers += [nn.Conv2d(channels, 12, 5, stride, 2), nn.Sigmoid()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10)).eval()
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def report(title: str, expected: str, data: Images, images: torch.Tensor, run) -> None:
    """Attack the images one by one and print a row for each."""
    for n, index in enumerate(data.indices.tolist()):
        start, cpu = time.perf_counter(), time.process_time()
        result: BaselineResult
        result, restored = run(images[n : n + 1], data.labels[n : n + 1])
        figure = float(psnr(restored.double(), data.images[n : n + 1], data_range=1))
        state = "diverged" if bool(result.diverged) else ""
        seconds = time.perf_counter() - start, time.process_time() - cpu
        print(
            ROW.format(
                title,
                index,
                f"{figure:.1f} dB",
                f"{float(result.objective):.0e}",
                f"{seconds[0]:.0f} s",
                f"{seconds[1]:.0f} s",
                f"{expected}{'   ' if state else ''}{state}",
            ),
            flush=True,
        )


def check_matching(attack, seed: int, title: str, expected: str) -> None:
    """DLG and iDLG: images 0 to 3, 300 iterations, float32."""
    model = lenet12(seed)

    def run(image, label):
        gradients = per_sample_gradients(model, image, label)
        result = attack(model, gradients, (3, 32, 32))
        return result, result.images

    data = load("CIFAR10", [0, 1, 2, 3])
    report(title, expected, data, data.images, run)


def check_inverting(total_variation: float, seed: int, expected: str) -> None:
    """Inverting Gradients: image 0, normalised, label known, 4,000 iterations, float32."""
    model = lenet12(seed)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))

    def run(image, label):
        gradients = per_sample_gradients(model, (image - mean) / deviation, label)
        result = inverting_gradients.attack(
            model,
            gradients,
            (3, 32, 32),
            labels=label,
            iterations=4000,
            total_variation=total_variation,
            value_range=(-mean / deviation, (1 - mean) / deviation),
        )
        return result, result.images * deviation + mean

    data = load("CIFAR10", [0])
    report(f"Inverting Gradients, TV {total_variation}", expected, data, data.images, run)


def check_rgap(dtype: torch.dtype, expected: tuple[str, ...]) -> None:
    """R-GAP: images 0 to 2, `cnn6`, label known and set against the model's own prediction."""
    model = architectures.build("cnn6").to(dtype)
    loss = architectures.loss_function("cnn6")

    def run(image, label):
        with torch.no_grad():
            label = (model(image.to(dtype))[:, 0] <= 0).long()
        gradients = per_sample_gradients(model, image, label, loss)
        result = rgap.attack(model, gradients, (3, 32, 32), labels=label)
        return result, result.images

    for index, figure in enumerate(expected):
        data = load("CIFAR10", [index])
        report(f"R-GAP, cnn6, {str(dtype)[6:]}", figure, data, data.images, run)


CHECKS = {
    "dlg": lambda seed: check_matching(
        dlg.attack, seed, "DLG", "26.0 and 55.4 dB, two of four diverged; 14 to 111 s"
    ),
    "idlg": lambda seed: check_matching(
        idlg.attack, seed, "iDLG", "42.0 to 50.9 dB, one of four diverged; 15 to 87 s"
    ),
    "ig": lambda seed: (
        check_inverting(0.2, seed, "18.2 dB, 100 s"),
        check_inverting(0.001, seed, "26.4 dB, 52 s"),
    ),
    "rgap": lambda seed: (
        check_rgap(torch.float32, ("28.9 dB, 715 s", "9.5 dB, 830 s", "14.6 dB, 705 s")),
        check_rgap(torch.float64, ("(float32 only)",) * 3),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="check", help=", ".join(CHECKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=50, help="of the LeNet (default: 50)")
    arguments = parser.parse_args()
    unknown = [check for check in arguments.checks if check not in CHECKS]
    if unknown:
        parser.error(f"unknown check {unknown[0]!r}: use {', '.join(CHECKS)}")
    torch.set_num_threads(arguments.threads)
    print(ROW.format("baseline", "image", "PSNR", "objective", "wall", "CPU", "original"))
    for check in arguments.checks or CHECKS:
        CHECKS[check](arguments.seed)


if __name__ == "__main__":
    main()
