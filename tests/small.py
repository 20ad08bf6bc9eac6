"""Small networks, random tensors and checks that tests share."""

from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from rconv.data.datasets import DatasetError, load
from rconv.data.sources import data_folder
from rconv.model.geometry import Geometry
from rconv.observe.observation import per_sample_gradients

SEEDS = st.integers(0, 10**6)


def refusal(*args, **kwargs):
    """Return the message of the DatasetError that `load` raises, which must be one line."""
    with pytest.raises(DatasetError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def normal(*shape, seed=0):
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    """Numbers uniform in [0, 1), float64: images."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@st.composite
def geometries(draw, largest=7, channels=3):
    """Any convolution that PyTorch accepts: kernel, stride, padding, dilation, not square."""
    sizes = [
        (k, s, p, d, n)
        for k in (1, 2, 3)
        for s in (1, 2, 3)
        for p in (0, 1, 2, 3)
        for d in (1, 2)
        for n in range(1, largest + 1)
        if n + 2 * p - d * (k - 1) - 1 >= 0
    ]
    (kh, sh, ph, dh, h), (kw, sw, pw, dw, w) = (draw(st.sampled_from(sizes)) for _ in range(2))
    c, d = draw(st.integers(1, channels)), draw(st.integers(1, channels))
    ho = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    wo = (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    return Geometry((c, h, w), (d, ho, wo), (kh, kw), (sh, sw), (ph, pw), (dh, dw))


def convolution(geometry, bias=True):
    """The `nn.Conv2d` of a geometry, float64."""
    g = geometry
    shape = (g.input[0], g.output[0], g.kernel, g.stride, g.padding, g.dilation)
    return nn.Conv2d(*shape, bias=bias, dtype=torch.float64)


def convolve(geometry, x, weight):
    """PyTorch's own convolution, without a bias."""
    g = geometry
    return nn.functional.conv2d(x, weight, None, g.stride, g.padding, g.dilation)


def network(
    activation=nn.Tanh,
    *,
    filters=(6, 10),
    channels=1,
    side=8,
    bias=True,
    head=lambda n: [nn.Linear(n, 10)],
    seed=0,
):
    """Convolutions 5×5 that keep the side, each with an activation; PyTorch's initialisation.

    With the standard filters every layer has full rank by gradient constraints and by weight
    constraints alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, width = [], channels
        for d in filters:
            layers += [nn.Conv2d(width, d, 5, 1, 2, bias=bias), activation()]
            width = d
        return nn.Sequential(*layers, nn.Flatten(), *head(width * side * side)).double().eval()


def observe(model, images, labels=None, loss=None):
    """Gradients of images whose labels are 0, 1, 2, … where none are given."""
    labels = torch.arange(len(images)) if labels is None else labels
    return per_sample_gradients(model, images, labels, loss)


def snapshot_folder(name):
    """The folder with the first 200 images of a dataset, or None."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    for folder in (data_folder(), beside):
        if (folder / f"{name}-train-first200.npz").exists():
            return folder
    return None


def written_out(system):
    """The matrix of a system of one client, by products with unit vectors."""
    eye = torch.eye(system.count, dtype=torch.float64)
    return torch.cat([system.apply(v[None, :, None])[0] for v in eye], dim=1)


def matched_errors(found, truth):
    """(B,), relative error of each image found beside the nearest true one; each true one once."""
    distances = torch.cdist(found.flatten(1), truth.flatten(1))
    nearest = distances.argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(len(truth)))
    return distances.min(dim=1).values / truth.flatten(1).norm(dim=1)[nearest]
