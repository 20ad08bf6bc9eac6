"""The networks of the paper and of the attacks it is compared with, seeded."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rconv.lab.catalogue import ARCHITECTURES, CHOSEN, INITIALISATIONS, SEED, Architecture
from rconv.lab.catalogue import OTHERS as OTHERS
from rconv.lab.catalogue import PUBLISHED as PUBLISHED

ACTIVATIONS = {
    "ReLU": nn.ReLU,
    "LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
}


def build(
    name: str,
    channels: int = 3,
    classes: int = 10,
    activation: str | None = None,
    *,
    seed: int = SEED,
    filters: Sequence[int] | None = None,
    initialisation: str | None = None,
) -> nn.Sequential:
    """Build one of `ARCHITECTURES` for images of 32 × 32 pixels.

    Parameters
    ----------
    name : str
        Key of `ARCHITECTURES`.
    channels : int
        Channels C of the image.
    classes : int
        Classes K; a logistic architecture has one logit whatever K is.
    activation : str, optional
        Key of `ACTIVATIONS` for the layers whose activation is open, by default ReLU. An
        architecture that fixes every activation takes only its own.
    seed : int
        Seeds the initialisation. With `SEED`, networks in `PUBLISHED` have the published weights.
    filters : sequence of int, optional
        Filters per convolution, in place of the architecture's own.
    initialisation : str, optional
        "uniform" (in [-0.5, 0.5], DLG's) or "default" (PyTorch's); the architecture's own if None.

    Returns
    -------
    Sequential
        In float64 and evaluation mode, with modules conv1, act1, …, flatten, fc.

    Raises
    ------
    ValueError
        If a name is unknown or a setting does not fit the architecture.
    """
    architecture = _lookup(name)
    filters = tuple(filters) if filters is not None else architecture.filters
    if len(filters) != len(architecture.filters) or min(filters) < 1:
        raise ValueError(
            f"{name} has {len(architecture.filters)} convolutions and needs as many positive "
            f"filter counts, got {', '.join(map(str, filters))}"
        )
    initialisation = initialisation or architecture.initialisation
    if initialisation not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {initialisation!r}: use 'uniform' or 'default'")
    kinds = activation_names(name, activation)
    with torch.random.fork_rng(devices=[]):
        # As the published code: construction draws PyTorch's own initialisation in float64, and
        # the uniform one follows it in the same random stream.
        torch.manual_seed(seed)
        model = nn.Sequential(_layers(architecture, filters, kinds, channels, classes)).eval()
        if initialisation == "uniform":
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def _layers(
    architecture: Architecture,
    filters: tuple[int, ...],
    kinds: tuple[str, ...],
    channels: int,
    classes: int,
) -> OrderedDict[str, nn.Module]:
    """The modules by name, in float64, with weights that PyTorch draws."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    side, width, options = 32, channels, {"bias": architecture.bias, "dtype": torch.float64}
    for i, (d, shape, kind) in enumerate(zip(filters, architecture.shapes, kinds, strict=True), 1):
        kernel, stride, padding = shape
        layers[f"conv{i}"] = nn.Conv2d(width, d, kernel, stride, padding, **options)
        layers[f"act{i}"] = ACTIVATIONS[kind]()
        side, width = (side + 2 * padding - kernel) // stride + 1, d
    layers["flatten"] = nn.Flatten()
    outputs = 1 if architecture.logistic else classes
    layers["fc"] = nn.Linear(width * side * side, outputs, **options)
    return layers


def activation_names(name: str, activation: str | None = None) -> tuple[str, ...]:
    """Activation after each convolution, the open ones filled in; ValueError if there is none."""
    names = _lookup(name).activations
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: use one of {', '.join(ACTIVATIONS)}")
    if CHOSEN not in names and activation not in (None, names[-1]):
        raise ValueError(f"{name} fixes its activation to {names[-1]}: leave -a {activation} out")
    return tuple((activation or "ReLU") if n == CHOSEN else n for n in names)


def published_constraints(name: str) -> str:
    """The paper's equations for it: "paper", or "gradient" where the first layer has ReLU."""
    return "gradient" if _lookup(name).activations[0] == "ReLU" else "paper"


def targets(name: str, labels: Tensor) -> Tensor:
    """What the loss is computed with: the labels, or their parity where there is one logit."""
    return labels % 2 if _lookup(name).logistic else labels


def _lookup(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}: use one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
