"""The networks of the paper and of the attacks it is compared with, seeded.

PyTorch is imported when one is built: the command line names these networks in its help.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

TYPE_CHECKING = False  # type checkers take it for True
if TYPE_CHECKING:
    from torch import Tensor, nn

ACTIVATIONS = ("ReLU", "LeakyReLU", "Sigmoid", "Tanh")
"""Activations that can be chosen."""

INITIALISATIONS = ("uniform", "default")
"""In [-0.5, 0.5] as DLG's, or PyTorch's."""

DTYPES = ("float64", "float32", "float16")
"""What the clients compute in; float16 rounds float32 gradients."""

MODES = ("evaluation", "training")
"""Of a model: which layers behave as in training."""

DEFAULT = "lenet_main"
"""The network of the paper's script."""

CHOSEN = "chosen"
"""Stands in an architecture for the activation that the caller chooses."""


@dataclass(frozen=True)
class Architecture:
    """A stack of square convolutions, then Flatten and Linear.

    Each convolution has a number of `filters`, its `shapes` (kernel, stride, padding) and the name
    of the activation behind it, or `CHOSEN`. `logistic` means one logit and the logistic loss
    instead of cross-entropy; `initialisation` is the one used where the caller names none.
    """

    filters: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]
    activations: tuple[str, ...]
    bias: bool = True
    logistic: bool = False
    initialisation: str = "uniform"


_LENET = ((5, 2, 2), (5, 2, 2), (5, 1, 2), (5, 1, 2))
_LENET_6 = (*_LENET, (5, 1, 2), (5, 1, 2))
_CNN6 = ((4, 2, 2), (3, 2, 1), (3, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1))
_LEAKY = ("LeakyReLU", "LeakyReLU")
_THEN_2 = (*_LEAKY, CHOSEN, CHOSEN)

PUBLISHED = {
    "lenet_main": Architecture((12, 16, 12, 3), _LENET, _THEN_2),
    "lenet": Architecture((12, 16, 12, 12), _LENET, _THEN_2),
    "lenet_o": Architecture((12, 16, 3, 3), _LENET, _THEN_2),
    "o_cnn6": Architecture((12, 16, 3, 3, 3, 3), _LENET_6, (*_LEAKY, *[CHOSEN] * 4)),
    "lenet_4_relu": Architecture((12, 22, 3, 3), _LENET, ("LeakyReLU", *["ReLU"] * 3)),
    "lenet_all_relu": Architecture((77, 22, 3, 3), _LENET, ("ReLU",) * 4),
    "test_cifar10": Architecture((12, 16, 12, 3), _LENET, (*_LEAKY, "ReLU", "ReLU")),
    "test_cifar100": Architecture((12, 16, 12, 12), _LENET, (*_LEAKY, "ReLU", "ReLU")),
    "test_mnist": Architecture((12, 16, 12, 12), _LENET, (*_LEAKY, "ReLU", "ReLU")),
}
"""The paper's networks, by the names of the script and the notebooks that its authors published.

From https://github.com/tamertaras91/RR-CONV, commit e750f96: `main.py` and the notebooks. `CHOSEN`
is an option of the script, and ReLU in the notebooks. What they gave: `rconv.lab.published`.
"""

OTHERS = {
    "relu_lenet": Architecture((16, 24, 12, 12), _LENET, ("ReLU",) * 4),
    "cnn6_narrow": Architecture((12, 36, 36, 36, 64, 3), _CNN6, ("LeakyReLU",) * 6),
    "dlg_lenet": Architecture((12, 12, 12), _LENET[:3], ("Sigmoid",) * 3),
    "cnn6": Architecture(
        (12, 36, 36, 36, 64, 128),
        _CNN6,
        ("LeakyReLU",) * 6,
        bias=False,
        logistic=True,
        initialisation="default",
    ),
}
"""Not the paper's: DLG's own LeNet, R-GAP's `cnn6`, and two of ours, a narrow LeNet with ReLU
everywhere, and `cnn6` with 3 filters in its last convolution, biases and several classes."""

ARCHITECTURES = {**PUBLISHED, **OTHERS}

SEED = 50
"""Of the published initialisation."""


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
    """Build one of `ARCHITECTURES` for images of 32 × 32 pixels, in float64 and evaluation mode.

    Its modules are conv1, act1, …, flatten, fc.

    Parameters
    ----------
    channels, classes : int
        C of the image, and K; a logistic architecture has one logit whatever K is.
    activation : str, optional
        One of `ACTIVATIONS` for the layers whose activation is open, by default ReLU. An
        architecture that fixes every activation takes only its own.
    seed : int
        Seeds the initialisation. With `SEED`, networks in `PUBLISHED` have the published weights.
    filters, initialisation : sequence of int, str, optional
        In place of those of the architecture.
    """
    import torch
    from torch import nn

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
    import torch
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    side, width, options = 32, channels, {"bias": architecture.bias, "dtype": torch.float64}
    for i, (d, shape, kind) in enumerate(zip(filters, architecture.shapes, kinds, strict=True), 1):
        kernel, stride, padding = shape
        layers[f"conv{i}"] = nn.Conv2d(width, d, kernel, stride, padding, **options)
        layers[f"act{i}"] = nn.LeakyReLU(0.2) if kind == "LeakyReLU" else getattr(nn, kind)()
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
