"""Whether the mean of several similar images would have passed for one image.

A head with three outputs or more shows that its gradient belongs to several images. With one or two
outputs, or with one active unit, the cotangents of all images are multiples of one another, and the
head's gradient is a single outer product however many images there were. Then only the curvature of
the layers below shows it, which may be too small: two images that meet the same linear pieces of
the network have the gradients of one image between them, and a Sigmoid of small inputs is almost
linear.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.attack.report import CLEAR, Reconstruction
from rconv.attack.verdict import image_size
from rconv.linalg.solution import root_mean_square
from rconv.model.heads import Head
from rconv.observe.noise import Observed
from rconv.observe.observation import per_sample_gradients

AVERAGES = (
    "the mean of several similar images has the same gradients, but for their noise: two classes, "
    "or one active unit, do not show how many images there were"
)

DIRECTIONS = 2
"""Of noise, and as many of smooth noise, in which two images may differ from their mean."""


def with_hidden_averages(
    result: Reconstruction,
    head: object,
    model: nn.Module,
    clients: Observed,
    attempt: Callable[[Observed], Reconstruction],
    value_range: tuple[float, float],
) -> Reconstruction:
    """The result, which is assumed where nothing shows how many images there were.

    Parameters
    ----------
    result : Reconstruction
        Of N images, each the only one of its client.
    head : Head or ConvEntry
        Where the network is entered.
    model : Module
        The shared model, float64.
    clients : Observed
        As they were sent.
    attempt : callable
        The attack on other gradients of such clients.
    value_range : tuple of float
        Of the pixels.

    Returns
    -------
    Reconstruction
        With `AVERAGES` among the diagnostics where that is the reason.
    """
    few = result.unique & few_cotangents(head, model, clients)
    hidden = few & (result.revealed_noise > 0)
    reasons = list(result.diagnostics)
    for i in (few & ~hidden).nonzero()[:, 0].tolist():
        one = result.select([i])
        if _passes_for_one(one, model, clients.select([i]), attempt, value_range):
            hidden[i], reasons[i] = True, AVERAGES
    return replace(result, assumed=result.assumed | hidden, diagnostics=tuple(reasons))


def few_cotangents(head: object, model: nn.Module, clients: Observed) -> Tensor:
    """(N,), bool: whether the cotangents of whatever images would be multiples of one."""
    few = torch.zeros(len(clients), dtype=torch.bool, device=clients.unit.device)
    if not isinstance(head, Head):
        return few
    bias = clients.gradients.get(f"{head.name}.bias")
    if bias is not None:
        few |= (bias != 0).flatten(1).sum(dim=1) == 1
    two = bool(head.logits) and len(model.get_parameter(f"{head.logits}.weight")) <= 2
    return few | two


def _passes_for_one(
    result: Reconstruction,
    model: nn.Module,
    client: Observed,
    attempt: Callable[[Observed], Reconstruction],
    value_range: tuple[float, float],
) -> bool:
    """Whether the mean gradient of some two images about this one would be called unique, too.

    They differ from it by `CLEAR` in noise, smooth noise or brightness, as photographs may.
    """
    image = result.images
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2 * DIRECTIONS, *image.shape[1:], generator=generator).to(image)
    noise[DIRECTIONS:] = nn.functional.avg_pool2d(noise[DIRECTIONS:], 3, 1, 1)
    directions = torch.cat([noise, image - image.mean(dim=(1, 2, 3), keepdim=True)])
    sizes = root_mean_square(directions).clamp(min=1e-300)
    step = CLEAR * image_size(image, value_range) / sizes
    step = step[:, None, None, None] * directions
    labels = result.labels.clamp(min=0).expand(len(step))
    pair = [per_sample_gradients(model, image + own, labels) for own in (step, -step)]
    sent = {name: (pair[0][name] + pair[1][name]) / 2 for name in pair[0]}
    sent = {name: own for name, own in sent.items() if name in client.gradients}
    # One after the other: memory may hold no more.
    for i in range(len(step)):
        one = {name: own[i : i + 1] for name, own in sent.items()}
        found = attempt(replace(client, gradients=one))
        if bool(found.unique & (found.revealed_noise == 0)):
            return True
    return False
