"""How many images an averaged gradient may be of, so that every layer still determines them all.

Counted, as a flow. A weight row tells one of the pixels in its window, of one sample; a row of the
gradient one of the pixels that its offset meets, of any sample. The most pixels that rows can
tell is the rank of rows whose entries are generic. Samples, and channels, are alike, so that one
map of pixels stands for all. What rows of the two kinds say twice is taken off.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor, nn

from rconv.attack.batch_head import required_for_batches
from rconv.attack.entry_points import entry_points
from rconv.attack.hidden_batch import hidden_equations
from rconv.attack.hidden_layer import disaggregate_hidden
from rconv.audit.layers import check_share
from rconv.audit.ranks import EPS
from rconv.equations.conv_system import conv_system
from rconv.equations.windows import window_index
from rconv.linalg.dense import determines
from rconv.model.geometry import Geometry, Stage
from rconv.model.nodes import Network
from rconv.observe.noise import Noise, Observed

MOST = 256
"""The largest batch that is tried at a hidden layer."""

CONFIRMED = 1_500
"""Unknowns up to which the number that was counted is confirmed by ranks of random matrices: a
third of a second each. Counting is off by what rows say twice by chance where windows are few."""


@dataclass(frozen=True)
class BatchLimit:
    """The largest batch whose images one layer determines.

    Parameters
    ----------
    name : str
        The layer.
    largest : int or None
        B; None where the equations of every sample suffice alone, whatever B is.
    failed : int or None
        Of a hidden layer, whose limit is found by trial: the least batch that was tried and was not
        separated, so that the limit lies from `largest` up to it; None where none failed.
    """

    name: str
    largest: int | None
    failed: int | None = None


def batch_limits(
    model: nn.Module, input_shape: tuple[int, int, int], *, active: float = 0.5, seed: int = 0
) -> list[BatchLimit]:
    """The largest batch of every layer, by equations alone; that of the model is their least.

    Parameters
    ----------
    model, input_shape, active, seed
        As `rconv.audit.audit` takes them.

    Returns
    -------
    list of BatchLimit
        Head first: softmax separates one sample less than there are classes, and a hidden layer as
        many as random images show.

    Raises
    ------
    UnsupportedModelError
        A model that the attack does not take batches of.
    ValueError
        `active` out of range.
    """
    check_share(active)
    return limits(entry_points(model, input_shape)[0].network, active=active, seed=seed)


def limits(network: Network, *, active: float = 0.5, seed: int = 0) -> list[BatchLimit]:
    """`batch_limits` of a model as it was read."""
    required_for_batches(network, None)
    network.required_chain("the largest batch")
    if network.head.hidden is not None:
        head = separated(network, seed=seed)
    else:
        head = BatchLimit(network.head.name, network.head.weight.shape[0] - 1)
    own = (BatchLimit(s.name, largest(s, active, seed)) for s in reversed(network.stages))
    return [head, *own]


def separated(
    network: Network, images: Tensor | None = None, *, draws: int = 2, seed: int = 0
) -> BatchLimit:
    """The largest batch that a hidden layer gives up, by trial.

    Parameters
    ----------
    network : Network
        With `head.hidden`.
    images : Tensor, optional
        (N, C, H, W) that batches are drawn from; else random ones.
    draws : int
        Batches of each size, of which every sample must be certified.
    seed : int
        Of batches and labels.

    Returns
    -------
    BatchLimit
        Sizes are doubled up to `MOST`, or half as many as there are units; then the interval is
        halved until it is a tenth of its lower end.
    """
    generator = torch.Generator().manual_seed(seed)
    most = min(MOST, len(network.head.weight) // 2, len(images) if images is not None else MOST)
    low, high = 1, None
    while low < most and (high is None or high - low > max(1, low // 10)):
        size = min(2 * low, most) if high is None else (low + high) // 2
        if all(_separates(network, images, size, generator) for _ in range(draws)):
            low = size
        else:
            high = size
    return BatchLimit(network.head.name, low, high)


def _separates(
    network: Network, images: Tensor | None, size: int, generator: torch.Generator
) -> bool:
    """Whether every sample of one random batch is certified."""
    head, hidden = network.head, network.head.hidden
    if images is None:
        x = torch.rand(size, *network.input_shape, generator=generator, dtype=torch.float64)
    else:
        x = images[torch.randperm(len(images), generator=generator)[:size]]
    x = network.evaluate(x.to(head.weight)).flatten(1)
    own = head.weight, torch.zeros_like(head.weight[:, 0]), hidden.weight
    weight, bias, second = (p.clone().requires_grad_() for p in own)
    inner = hidden.activation(x @ weight.mT + bias) @ second.mT + hidden.bias
    logits = hidden.logits(inner)
    labels = torch.randint(logits.shape[1], (size,), generator=generator).to(x.device)
    loss = nn.functional.cross_entropy(logits, labels)
    names = *head.parameters, f"{hidden.name}.weight"
    sent = torch.autograd.grad(loss, [weight, bias, second])
    gradients = {name: g[None] for name, g in zip(names, sent, strict=True)}
    equations = hidden_equations(head, bias.detach(), Observed.of(gradients, Noise(EPS)))
    found = disaggregate_hidden(equations, size)
    return len(found.labels) == size and bool(found.certain.all())


def weakest(layers: list[BatchLimit]) -> BatchLimit:
    """The layer whose limit is that of the model, the first one in the order of the attack."""
    told = [layer for layer in layers if layer.largest is not None]
    return min(told, key=lambda own: own.largest or 0)


def largest(stage: Stage, active: float = 0.5, seed: int = 0) -> int | None:
    """The largest batch whose inputs of one convolution its equations determine.

    Parameters
    ----------
    stage : Stage
        The convolution.
    active, seed
        As `rconv.audit.audit` takes them.

    Returns
    -------
    int or None
        B, 0 where one image is not determined; None for any.
    """
    flat, g = stage.activation.flat, stage.geometry
    generator = torch.Generator().manual_seed(seed)
    share = active if flat else 1.0
    known = torch.rand(g.output, generator=generator) < share
    outputs = known.flatten(1).sum(dim=0).numpy()
    told = _told(g, outputs, gradients=0)
    if told == g.unknowns:
        return None
    low, high = 0, g.gradient_rows // (g.unknowns - told) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if counted(g, outputs, middle) else (low, middle)
    while 0 < low * g.unknowns <= CONFIRMED and not _confirmed(stage, low, share, generator):
        low -= 1
    return low


def counted(geometry: Geometry, outputs: np.ndarray, batch: int) -> bool:
    """Whether there are equations for every pixel of so many samples.

    Parameters
    ----------
    geometry : Geometry
        Of a convolution.
    outputs : np.ndarray
        (L,), how many of its filters have a known output at each position.
    batch : int
        B.

    Returns
    -------
    bool
    """
    g, every = geometry, bool((outputs == geometry.output[0]).all())
    rows, filters, outputs = g.gradient_rows, g.output[0], batch * outputs
    # The gradient row of filter d, summed over a kernel d', is the output of d' weighted by Ō of
    # d. It says nothing new where that output is known wherever Ō is not zero: with ReLU for
    # d' = d, else for all d', of which as many are independent as a kernel has entries.
    twice = filters * (min(filters, g.input[0] * g.offsets) if every else 1)
    by_weight = _told(g, outputs, gradients=0, batch=batch)
    by_gradient = _told(g, 0 * outputs, gradients=rows, batch=batch)
    known = by_weight + by_gradient - min(twice, by_weight, by_gradient)
    together = _told(g, outputs, gradients=max(rows - twice, 0), batch=batch)
    return min(known, together) >= batch * g.unknowns


def _told(g: Geometry, outputs: np.ndarray, gradients: int, batch: int = 1) -> int:
    """Pixels of all samples that rows can tell, `gradients` of them the gradient's."""
    window = window_index(g).numpy()
    offset, pixel = np.nonzero(window < g.positions)
    demand = batch * g.input[0]
    # Source, the gradient, positions, offsets, pixels, sink.
    first = 2 + g.positions
    last = first + g.offsets
    sink = last + g.pixels
    edges = [
        ([0], [1], gradients),
        ([0], 2 + np.arange(g.positions), outputs),
        ([1], first + np.arange(g.offsets), g.input[0] * g.output[0]),
        (2 + window[offset, pixel], last + pixel, demand),
        (first + offset, last + pixel, demand),
        (last + np.arange(g.pixels), [sink], demand),
    ]
    whole = zip(*(np.broadcast_arrays(*edge) for edge in edges), strict=True)
    source, target, capacity = map(np.concatenate, whole)
    graph = sparse.csr_matrix((capacity.astype(np.int32), (source, target)), (sink + 1, sink + 1))
    return int(maximum_flow(graph, 0, sink).flow_value)


def _confirmed(stage: Stage, batch: int, share: float, generator: torch.Generator) -> bool:
    """Whether the equations of random data have full rank."""
    shape = batch, *stage.geometry.output
    known = (torch.rand(shape, generator=generator) < share).to(stage.weight)
    cotangent = torch.randn(shape, generator=generator, dtype=torch.float64).to(known) * known
    zero = torch.zeros_like(stage.weight)
    return determines(conv_system(stage, cotangent, zero, 0 * known, known), EPS)
