"""The averaged gradient of one client's batch: its images, in any order.

The head takes the average apart; from there on every sample has outputs and cotangents of its own,
and the equations of each convolution share the gradient.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.attack.attempt import largest_entry
from rconv.attack.backward import backward_pass
from rconv.attack.batch_head import (
    InseparableError,
    batch_head,
    head_gradient,
    head_rank,
)
from rconv.attack.certificate import distance, recomputed, where_observed
from rconv.attack.doubts import with_batch_doubts
from rconv.attack.head import HeadInput
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport, Reconstruction
from rconv.attack.start import head_report
from rconv.attack.systematic import second_order
from rconv.attack.verdict import (
    STATED,
    expected_error,
    layer_levels,
    layer_names,
    residual_excess,
    revealed_noise,
)
from rconv.model.ends import Entry
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.told import backward_order
from rconv.observe.noise import ARITHMETIC, Noise
from rconv.observe.observation import Gradients

ROUNDINGS = 4.0
"""Of the gradients' dtype, that their entries carry: an average is summed over all samples and
positions. Chosen on 213 images of random networks, which without it had 1.2 times their expected
error in the median and 13 times at the most; with it, on others, 0.7 times in the median."""


def required_for_batches(network: Network, batch: int | None) -> None:
    """Refuse what a batch cannot be told apart in, whatever its images are.

    Parameters
    ----------
    network : Network
        The model.
    batch : int or None
        B.

    Raises
    ------
    UnsupportedModelError
        A network that branches, or one whose head is not one Linear with a bias.
    ValueError
        A batch that is no positive number, or not below the number of classes.
    """
    head = network.head
    if isinstance(head, Entry):
        raise UnsupportedModelError(
            f"{head.reason}; a batch is separated by the softmax of the last layer, which must be "
            "reached"
        )
    if not (head.last and head.has_bias and head.logits):
        what = "has no bias" if head.last and head.logits else "is not followed by the loss"
        raise UnsupportedModelError(
            f"{head.name}: a batch is told apart by the softmax of the last layer; this Linear "
            f"{what}. Ask for batches of one image"
        )
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"the batch must be a whole number, 1 or more, or None, got {batch!r}")
    classes = head.weight.shape[0]
    if batch is not None and batch >= classes:
        raise ValueError(
            f"a batch of {batch} with {classes} classes: logit gradients add up to zero, so that "
            f"at most {classes - 1} samples are told apart"
        )


def permits_batches(network: Network) -> bool:
    """Whether two images or more can be told apart in a network, as `required_for_batches` says."""
    try:
        required_for_batches(network, 2)
    except (UnsupportedModelError, ValueError):
        return False
    return True


def batch_size(network: Network, gradients: Gradients, noise: Noise) -> int:
    """Samples of one client's batch, as the rank of its head's gradient tells; at least 1.

    Parameters
    ----------
    network, gradients, noise
        As `reconstruct_batch` takes them.

    Returns
    -------
    int
    """
    return max(1, head_rank(*head_gradient(network.head, gradients, noise)))


def reconstruct_batch(
    model: nn.Module,
    network: Network,
    plans: Sequence[LayerPlan],
    gradients: Gradients,
    noise: Noise,
    value_range: tuple[float, float],
    batch: int,
) -> Reconstruction:
    """The images of one batch.

    Parameters
    ----------
    model : Module
        The shared model, float64.
    network : Network
        The same, as it was read.
    plans : sequence of LayerPlan
        One per convolution.
    gradients : dict of str to Tensor
        Name → (1, *parameter shape), float64: mean or sum over the batch.
    noise : Noise
        What is known of their errors.
    value_range : tuple of float
        Of the pixels.
    batch : int
        B.

    Returns
    -------
    Reconstruction
        Of B images; all zero, and with the reason for a doubt, where the batch is not told apart.
    """
    noise = replace(noise, relative=ROUNDINGS * max(noise.relative, ARITHMETIC))
    bias = model.get_parameter(f"{network.head.name}.bias").detach()
    shape = network.nodes[-1].shape
    try:
        found = batch_head(network.head, bias, gradients, noise, batch, shape)
    except InseparableError as error:
        return _untold(network, batch, bias, gradients, str(error))
    largest = largest_entry(gradients)
    unit = largest / found.factor  # of what was sent; the samples' own cotangents are in `largest`
    found = found.divided(largest)
    summed = {name: g / unit.reshape(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}
    start = found.start(network.head.name)
    images, reports, spread = backward_pass(network, plans, start, summed, noise, unit)
    error = expected_error(images, reports, spread, value_range)
    own = recomputed(model, start.linear, images, start.derivative)
    own = {name: g.sum(dim=0, keepdim=True) for name, g in own.items()}
    own = where_observed(own, summed, noise)
    levels = layer_levels(network, summed, noise, unit)
    head = error.new_full((1,), found.samples.residual)
    revealed = revealed_noise(network, own, summed, levels, head, error.amax(dim=0, keepdim=True))
    growth = error / levels.amax().clamp(min=1e-300)
    none = torch.zeros(batch, dtype=torch.int64, device=images.device)
    residual = distance(own, summed, [name for name in own if name in summed])
    excess = residual_excess(network, own, summed, noise, unit)
    revealed = _with_excess(revealed, residual, excess)
    # A noise that nobody told grows as the told one does.
    error = error.maximum(growth * revealed).clamp(max=1.0)
    fields = found.samples.labels, residual.expand(batch), error, none
    revealed, excess = revealed.expand(batch), excess.expand(batch, -1)
    judged = revealed, second_order(revealed), excess, growth, none.bool(), ("",) * batch
    found = Reconstruction(images, reports, *fields, *judged)
    return with_batch_doubts(found, value_range)


def _with_excess(revealed: Tensor, residual: Tensor, excess: Tensor) -> Tensor:
    """Revealed noise, and the residual where some layer's is far above its noise, (N,).

    Right images stay within twice what their noise allows; the mean of weights of several clients,
    where its rounding turned outputs to the other side of a kink, had six times as much and more.
    """
    undeclared = (excess > STATED).any(dim=1)
    return torch.where(undeclared, revealed.maximum(residual.clamp(max=1.0)), revealed)


def _untold(
    network: Network, batch: int, bias: Tensor, gradients: Gradients, reason: str
) -> Reconstruction:
    """A batch that is not separated: nothing is known of its images."""
    none = torch.zeros(batch, dtype=torch.int64, device=bias.device)
    zeros, lost = none.to(bias), torch.full((batch,), torch.inf).to(bias)
    flat = network.head.weight.new_zeros(batch, network.head.weight.shape[1])
    head = HeadInput(flat, bias.new_zeros(batch, len(bias)), none, lost, none.bool())
    reports = [head_report(network.head.name, head)]
    for node in backward_order(network):
        stages = [stage for _, stage in network.fed_by(node)]
        if not stages:
            continue
        n, name = stages[0].geometry.unknowns, " and ".join(stage.name for stage in stages)
        nothing = bias.new_zeros(batch, n)
        ends = nothing - torch.inf, nothing + torch.inf
        own = none, none, none, lost, lost, ("none",) * batch, none, nothing, *ends
        reports.append(LayerReport(name, n, *own))
    images = bias.new_zeros(batch, *network.input_shape)
    certain, doubts = torch.ones_like(zeros), (reason,) * batch
    layers = len(layer_names(network, gradients))
    excess = lost[:, None].expand(-1, layers)
    judged = certain, certain, excess, lost
    fields = none - 1, lost, certain, none, *judged, none.bool(), doubts
    return Reconstruction(images, tuple(reports), *fields)
