"""Looks for the most dangerous failure: an image that is wrong and called unique.

Random networks, photographs and clients that do not send what the attacker expects; the verdict of
the attack is compared with the truth.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab import channels
from rconv.lab.channels import Client, computed, disturbed, pair, several_steps
from rconv.lab.records import Record, score

CASES: dict[str, tuple[Client, dict]] = {
    "float64": (computed(torch.float64), {}),
    "float32": (computed(torch.float32), {}),
    "bfloat16": (computed(torch.bfloat16), {}),
    "float16": (computed(torch.float16), {}),
    "float32, paper": (computed(torch.float32), {"constraints": "paper"}),
    "float16, paper": (computed(torch.float16), {"constraints": "paper"}),
    "noise 1e-6": (disturbed(channels.noisy), {}),
    "weight decay 1e-7": (disturbed(channels.decayed), {}),
    "first gradient zeroed": (disturbed(channels.first_zeroed), {}),
    "one entry in twenty zeroed": (disturbed(channels.partly_zeroed), {}),
    "two images averaged": (channels.averaged, {}),
    "two local steps": (several_steps(2, 0.01, torch.float64), {}),
    "clipped layer by layer": (disturbed(channels.clipped), {}),
    "signs": (disturbed(channels.signs), {}),
    "other loss, no biases": (disturbed(lambda g, _: g, channels.squared_error), {}),
}
"""Clients that the attacker takes for honest ones, and the attack's settings."""

LOW = 0.05
"""Range of the pixels of an image of low contrast, about the middle of all values."""

SIMILAR: dict[str, Callable[[Tensor], Tensor]] = {
    "shifted": channels.shifted, "brighter": channels.brighter, "grainy": channels.grainy,
}  # fmt: skip

CLIENTS: dict[str, Client] = {
    **{
        f"{count} steps, rate {rate:g}, {what}, {dtype}": several_steps(
            count, rate, getattr(torch, dtype), weights=what == "weights"
        )
        for count in (2, 5, 10)
        for rate in (1e-4, 1e-3, 1e-2)
        for what in ("gradients", "weights")
        for dtype in ("float64", "float32")
    },
    **{
        f"{kind}, {label} label, {dtype}": pair(make, getattr(torch, dtype), same=label == "same")
        for kind, make in SIMILAR.items()
        for label in ("same", "other")
        for dtype in ("float64", "float32", "bfloat16", "float16")
    },
    **{
        f"one step, rate {rate:g}, weights": several_steps(1, rate, weights=True)
        for rate in (1e-4, 1e-3, 1e-2, 1e-1)
    },
}
"""Clients that send something else than the gradients of one image; and, in the last four cases,
the weights after one step, which are to be right. The attack on them has no prior: what a prior
chooses is never called unique."""


def attack_random_networks(
    seeds: range,
    case: str = "float64",
    network: str = "random",
    *,
    batch: int | None = 1,
    low_contrast: bool = False,
) -> list[Record]:
    """Attack photographs through random networks, and compare the verdict with the truth.

    One network and one photograph for each seed. `case` is a key of `CASES` or of `CLIENTS`,
    `network` one of `NETWORKS`, `batch` as the attack takes it; with
    `low_contrast` the pixels have a range of `LOW` only. Returns one record per image of an answer,
    as `rconv.lab.records.score` has it, compared with the nearest of those that are right;
    "network" is the seed.
    """
    for name, known in ((case, {**CASES, **CLIENTS}), (network, NETWORKS)):
        if name not in known:
            raise ValueError(f"unknown {name!r}: use one of {', '.join(known)}")
    client, settings = CASES.get(case) or (CLIENTS[case], {"prior": False})
    count = 2 if client is channels.averaged else 1
    records: list[Record] = []
    for seed in seeds:
        options = {"bias": False} if case == "other loss, no biases" else {}
        model, shape = NETWORKS[network](seed, **options)
        x = random_images(shape, count, seed)
        if low_contrast:
            x = 0.5 + LOW * (x - 0.5)
        first = seed if case in CLIENTS else 0
        labels = (first + torch.arange(count)) % max(2, model[-1].out_features)
        try:
            sent = client(model, x, labels)
        except ValueError:  # steps below the rounding of the weights are refused: no verdict
            continue
        found = Attack(sent.model, shape, **settings)(sent.gradients, noise=sent.noise, batch=batch)
        each = torch.stack([truth.expand_as(found.images) for truth in sent.truths])
        errors = (each - found.images).flatten(2).norm(dim=2)
        right = each[errors.argmin(dim=0), torch.arange(len(found.images))]  # the nearest
        records += score(found, right, {"network": seed, "case": case}, layers=False)
    return records


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.Identity,
)  # fmt: skip
"""What may follow a convolution; ReLU twice as often, since it is what people use."""


def random_network(
    seed: int, bias: bool | None = None
) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A random network of one to four convolutions, and the shape of its images.

    The network is float64, in evaluation mode; its images (C, H, W) have 8 to 12 pixels a side. The
    seed draws depth, kernels, strides, padding, filters, activations, biases (in three networks of
    four, unless `bias` says it), initialisation (uniform ±0.5 or PyTorch's own), head (one Linear
    or two) and number of classes.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    channels, side = pick(1, 3), pick(8, 10, 12)
    shape, layers, width = (channels, side, side), [], channels
    drawn, uniform = pick(True, True, True, False), pick(True, False)
    bias = drawn if bias is None else bias
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(pick(1, 2, 2, 3, 4)):
            kernel, stride = pick(2, 3, 3, 5), pick(1, 1, 2)
            padding = pick(0, kernel // 2, kernel // 2)
            size = (side + 2 * padding - kernel) // stride + 1
            if size < 2:
                break
            filters = pick(2, 4, 8, 12, 16, 16)
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


def wide_network(seed: int) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """One wide convolution with Tanh and a Linear, PyTorch's initialisation; see `random_network`.

    Its features change little with the image, so that the gradients of similar images are alike.
    """
    side = (8, 12)[seed % 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 32, 5, 2, 2), nn.Tanh(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(32 * (side // 2) ** 2, 10))
    return model.double().eval(), (3, side, side)


class _Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut; half the side where the width grows."""

    def __init__(self, width: int, filters: int, activation: type[nn.Module]):
        super().__init__()
        stride = 1 if width == filters else 2
        self.conv1 = nn.Conv2d(width, filters, 3, stride, 1, bias=False)
        self.norm1, self.act1 = nn.BatchNorm2d(filters), activation()
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(filters), activation()
        wide = nn.Conv2d(width, filters, 1, stride, bias=False)
        self.shortcut = nn.Identity() if width == filters else wide

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(inner + self.shortcut(x))


def residual_network(seed: int) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A convolution and two residual blocks, BatchNorm in evaluation, Kaiming's initialisation.

    The activation is Sigmoid for one seed in two, else Tanh or LeakyReLU; see `random_network`.
    """
    activation = (nn.Sigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU)[seed % 4]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = [nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), activation()]
        blocks = [_Block(24, 24, activation), _Block(24, 48, activation)]
        model = nn.Sequential(*stem, *blocks, nn.Flatten(), nn.Linear(48 * 16, 10))
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
    return model.double().eval(), (3, 8, 8)


NETWORKS: dict[str, Callable[[int], tuple[nn.Sequential, tuple[int, int, int]]]] = {
    "random": random_network,
    "wide": wide_network,
    "residual": residual_network,
}
"""Networks that are drawn from a seed."""
