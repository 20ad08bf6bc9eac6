"""The networks of the paper and of the attacks it is compared with, as tables of names and numbers.

No PyTorch is imported here: the command line names these networks in its help. They are built by
`rconv.lab.architectures`.
"""

from dataclasses import dataclass

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

    Parameters
    ----------
    filters : tuple of int
        Filters per convolution.
    shapes : tuple of (int, int, int)
        Kernel, stride and padding per convolution.
    activations : tuple of str
        Name of the activation after each convolution, or `CHOSEN`.
    bias, logistic : bool
        Biases in all layers; one logit and the logistic loss, instead of cross-entropy.
    initialisation : str
        The one used where the caller names none.
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
