"""Where the recursion starts in a network that is read in part, and what checks it there."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.attack.estimate import Cotangent
from rconv.attack.report import LayerReport
from rconv.attack.start import Start
from rconv.model.ends import Entry
from rconv.model.nodes import Network
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


def from_embedding(network: Network, gradients: Gradients, noise: Noise, unit: Tensor) -> Start:
    """What a position embedding says of the output of the convolution that it is added to.

    Its gradient is the derivative Ō of the loss by the output, entry for entry. The gradient of
    the convolution's bias, the sum of Ō over the positions, checks it.

    Parameters
    ----------
    network : Network
        That ends at the convolution.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (N,).

    Returns
    -------
    Start
        The output itself is not known.
    """
    entry, stage = network.head, network.stages[-1]
    name, index = entry.embedding.name, entry.embedding.index
    level = noise.level(name, gradients[name], unit)
    value = gradients[name].flatten(1)[:, index.flatten()].reshape(-1, *index.shape)
    sums = value.sum(dim=(2, 3))
    # Measured by the rounding of the sum and by that of its terms, which may cancel.
    size = torch.hypot(sums.norm(dim=1), value.flatten(1).norm(dim=1))
    difference = gradients.get(f"{stage.name}.bias", sums) - sums
    residual = difference.norm(dim=1) / torch.where(size > 0, size, 1.0)
    report = _report(entry, value, residual)
    logits = gradients[f"{entry.logits}.bias"]
    return Start(None, Cotangent(value, level), report, entry.logits, logits)


def _report(entry: Entry, value: Tensor, residual: Tensor) -> LayerReport:
    """How well the derivative by the convolution's output is known."""
    value = value.flatten(1)
    rows = torch.full_like(residual, value.shape[1], dtype=torch.int64)
    known, none = (value != 0).any(dim=1), torch.zeros_like(value)
    return LayerReport(
        entry.embedding.name,
        value.shape[1],
        rows,
        torch.zeros_like(rows),
        known * rows,
        torch.where(known, torch.ones_like(residual), torch.inf),
        residual,
        ("embedding",) * len(rows),
        torch.zeros_like(rows),
        none,
        value,
        value,
    )


def checked(
    network: Network, start: Start, reports: tuple[LayerReport, ...], gradients: Gradients
) -> tuple[LayerReport, ...]:
    """The reports, the first with how far the gradients at the entry contradict each other.

    There are more of them than unknowns: the convolution's weight gradient is the product of Ō
    and the windows of its input, its bias gradient the sum of Ō. Noise that nobody told shows
    here at its own size, also where the image is so sensitive to it that it explains the
    gradients all the same.

    Parameters
    ----------
    network : Network
        That ends at the convolution.
    start : Start
        What tells Ō.
    reports : tuple of LayerReport
        Of the entry, of the convolution's input, and further down.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape).

    Returns
    -------
    tuple of LayerReport
        The residual of the first is relative to what errors of one relative size would leave.
    """
    residual = reports[0].residual.maximum(_contradiction(network, start, reports[1], gradients))
    return (replace(reports[0], residual=residual), *reports[1:])


def _contradiction(
    network: Network, start: Start, solved: LayerReport, gradients: Gradients
) -> Tensor:
    """(N,): what the windows of the input leave of the weight gradient; 0 if the rank is short."""
    stage, g = network.stages[-1], network.stages[-1].geometry
    output, given = start.cotangent.value.flatten(2), gradients[f"{stage.name}.weight"].flatten(2)
    # Where the input is determined, both ends of its interval are its value.
    known = torch.where(solved.low == solved.high, solved.low, 0.0).reshape(-1, *g.input)
    windows = nn.functional.unfold(known, g.kernel, g.dilation, g.padding, g.stride)
    sizes = [own.flatten(1).norm(dim=1) for own in (given, output, windows)]
    size = torch.hypot(sizes[0], sizes[1] * sizes[2] / g.positions**0.5)
    left = (given - output @ windows.mT).flatten(1).norm(dim=1)
    contradiction = left / torch.where(size > 0, size, 1.0)
    determined = solved.rank == solved.unknowns
    return torch.where(determined, contradiction, 0.0)
