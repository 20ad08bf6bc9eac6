"""Random networks and photographs of their size, each drawn from a seed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rconv.data import datasets

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
