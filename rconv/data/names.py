"""Names and sizes of the datasets, which the command line's help shows: nothing is imported."""

CLASSES = {"MNIST": 10, "CIFAR10": 10, "CIFAR100": 100, "Photos": 10, "Digits": 10}
CHANNELS = {"MNIST": 1, "CIFAR10": 3, "CIFAR100": 3, "Photos": 3, "Digits": 1}
TRAIN_SIZES = {"MNIST": 60_000, "CIFAR10": 50_000, "CIFAR100": 50_000}
SIZES = {**TRAIN_SIZES, "Photos": 100, "Digits": 1797}
DEFAULT = "Photos"
"""The dataset that is used where none is named: it needs no network."""
