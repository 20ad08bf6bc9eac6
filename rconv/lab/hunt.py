"""Looks for the most dangerous failure: an image that is wrong and called unique.

Random networks, images and disturbances of the gradients, each drawn from a seed; the verdict of
the attack is compared with the truth.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab.metrics import psnr
from rconv.lab.records import Record, finite
from rconv.observe.observation import Gradients, per_sample_gradients

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.Identity,
)  # fmt: skip
"""What may follow a convolution; ReLU twice as often, since it is what people use."""

BAR = 40.0
"""PSNR in dB below which an image counts as wrong here."""

FACTOR = 10.0
"""An error above this multiple of the expected one was not expected."""

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


def random_network(seed: int) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A random network of one to four convolutions, and the shape of its images.

    Parameters
    ----------
    seed : int
        Draws depth, kernels, strides, padding, filters, activations, biases, initialisation
        (uniform ±0.5 or PyTorch's own), head (one Linear or two) and number of classes.

    Returns
    -------
    nn.Sequential
        float64, in evaluation mode.
    tuple of int
        (C, H, W) of its images, 8 to 16 pixels a side.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    channels, side = pick(1, 3), pick(8, 10, 12, 16)
    shape, layers, width = (channels, side, side), [], channels
    bias, uniform = pick(True, True, True, False), pick(True, False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(pick(1, 2, 2, 3, 4)):
            kernel, stride = pick(2, 3, 3, 5), pick(1, 1, 2)
            padding = pick(0, kernel // 2, kernel // 2)
            size = (side + 2 * padding - kernel) // stride + 1
            if size < 2:
                break
            filters = pick(2, 3, 4, 8, 12, 16, 24)
            layers += [nn.Conv2d(width, filters, kernel, stride, padding, bias=bias)]
            layers += [pick(*ACTIVATIONS)()]
            width, side = filters, size
        classes, features = pick(1, 2, 5, 10, 10), width * side * side
        head = [nn.Linear(features, classes, bias=bias)]
        if bias and pick(True, False, False):
            head = [nn.Linear(features, 20), nn.ReLU(), nn.Linear(20, classes)]
        model = nn.Sequential(*layers, nn.Flatten(), *head).double().eval()
        if uniform:
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
    return model, shape


def random_images(shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Photographs of this shape, (count, C, H, W), values in [0, 1], chosen by the seed."""
    generator = torch.Generator().manual_seed(seed)
    total = datasets.SIZES["Photos"]
    indices = torch.randperm(total, generator=generator)[:count].tolist()
    photos = datasets.load("Photos", indices).images
    if shape[0] == 1:
        photos = photos.mean(dim=1, keepdim=True)
    return nn.functional.interpolate(photos, shape[1:], mode="area")


def plain(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Gradients:
    """The gradients as clients send them who compute in a dtype (float16: rounded float32)."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    sent = per_sample_gradients(model.to(compute), images, labels)
    return {name: g.to(dtype) for name, g in sent.items()}


def hunt(
    seeds: range, dtype: str = "float64", constraints: str = "auto", images: int = 2
) -> list[Record]:
    """Attack photographs through random networks, and compare the verdict with the truth.

    Parameters
    ----------
    seeds : range
        One network each.
    dtype : str
        In which the clients compute, a key of `DTYPES`.
    constraints : str
        As `Attack` takes them.
    images : int
        Photographs per network.

    Returns
    -------
    list of Record
        One per image: what was tried, the verdict, and whether it is false.
    """
    records: list[Record] = []
    for seed in seeds:
        model, shape = random_network(seed)
        x = random_images(shape, images, seed)
        classes = model[-1].out_features
        labels = torch.arange(images) % max(2, classes)
        gradients = plain(model, x, labels, DTYPES[dtype])
        found = Attack(model.double(), shape, constraints=constraints)(gradients)
        records += judge(found, x, {"network": seed, "dtype": dtype, "constraints": constraints})
    return records


def judge(found, truth: Tensor, settings: Record) -> list[Record]:
    """One record per image: error, expected error, verdict, and whether the verdict is false."""
    size = truth.flatten(1).norm(dim=1)
    error = (found.images - truth).flatten(1).norm(dim=1) / size
    quality = psnr(found.images, truth, data_range=1.0)
    wrong = ~((error <= FACTOR * found.expected_error) | (quality >= BAR))
    return [
        {
            **settings,
            "image": i,
            "psnr": finite(quality[i]),
            "error": finite(error[i]),
            "expected_error": finite(found.expected_error[i]),
            "gradient_residual": finite(found.gradient_residual[i]),
            "unique": bool(found.unique[i]),
            "false": bool(found.unique[i] and wrong[i]),
        }
        for i in range(len(truth))
    ]
