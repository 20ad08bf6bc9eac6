"""What a reconstruction is worth, told without the truth.

One verdict from three witnesses. The rank says whether the equations determine the image. The
certificate, layer by layer, says whether the image explains the gradients as well as their noise
allows; where it does not, its residual REVEALS a noise that nobody told. The expected error says
what that noise becomes on its way to the image.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from rconv.attack.certificate import distance
from rconv.attack.report import LayerReport
from rconv.linalg.solution import root_mean_square
from rconv.model.heads import ConvEntry
from rconv.model.nodes import Network
from rconv.observe.noise import ARITHMETIC as ROUNDING
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

ACCUMULATED = 10.0
"""How far the certificate of a right image may lie above the noise of the gradients: sums of a
thousand terms, several layers deep, carry some ten roundings where they were computed."""

ARITHMETIC = 100 * torch.finfo(torch.float64).eps
"""What the attack's own arithmetic may leave in the certificate."""

STATED = 3.0
"""How far the certificate of a right image may lie above noise whose size is stated. Norms of a
hundred entries and more are within a fifth of what is expected of them; a right image had 2.8 times
as much, through the error of the features that it rests on, and five steps taken for one had 5."""

DARK = 1e-2
"""An image whose size is below this share of the pixels' range is measured by this share: a flat
image has no contrast, and a black one no root mean square."""

CONTRAST = 4.0
"""Standard deviations that stand for the range of an image: of values spread evenly over a range
it has 3.5, and photographs mostly have four to five. Below a contrast of a quarter of its root mean
square, an image is measured by them."""

FITTED = 10.0
"""How far the certificate of a right image may lie above the expected error of the image: the
estimate is one of size, and good to about this factor."""


def layer_names(network: Network, parameters: Gradients) -> list[list[str]]:
    """Names of the parameters of each layer, from the head down; then of what is not read.

    The latter not where a convolution is entered by its own gradients: nothing above it is used,
    and what rounding does there is no noise of the equations.
    """
    layers = network.parameters
    if isinstance(network.head, ConvEntry) and network.head.embedding is not None:
        read, others = set(chain.from_iterable(layers)), {}
        for name in parameters:
            if name not in read:
                others.setdefault(name.rpartition(".")[0], []).append(name)
        layers += others.values()
    found = [[name for name in names if name in parameters] for names in layers]
    return [names for names in found if names]


def image_size(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """What errors of images are measured against: the smaller of brightness and contrast.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W).
    value_range : tuple of float
        Of the pixels.

    Returns
    -------
    Tensor
        (N,), the root mean square of each image or `CONTRAST` standard deviations about its mean,
        whichever is smaller; at least `DARK` of the range.
    """
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    size = torch.minimum(root_mean_square(images), CONTRAST * root_mean_square(centred))
    return size.clamp(min=DARK * (value_range[1] - value_range[0]))


def expected_error(
    images: Tensor,
    reports: Sequence[LayerReport],
    spread: Tensor,
    value_range: tuple[float, float],
) -> Tensor:
    """Relative error to expect, from the noise and from what no equation tells.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W).
    reports : sequence of LayerReport
        Of all layers.
    spread : Tensor
        (N,), standard deviation of the pixels by the noise.
    value_range : tuple of float
        Of the pixels.

    Returns
    -------
    Tensor
        (N,), in [0, 1].
    """
    size = image_size(images, value_range)
    shares = torch.stack([(report.open / report.unknowns).to(size).sqrt() for report in reports])
    # What a prior chose of the image has an error of its own, which is in the spread already.
    shares[-1] = torch.where(reports[-1].guess.any(dim=1), 0.0, shares[-1])
    error = (spread / size).maximum(shares.amax(dim=0))
    return error.nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0)


def layer_relative_std(
    network: Network, gradients: Gradients, noise: Noise, unit: Tensor
) -> Tensor:
    """Relative noise of each layer's gradients, weight and bias together.

    Parameters
    ----------
    network : Network
        The layers.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (N,).

    Returns
    -------
    Tensor
        (N, layers), head first.
    """
    levels = []
    for names in layer_names(network, gradients):
        sizes = torch.stack([gradients[name].flatten(1).norm(dim=1) for name in names])
        own = torch.stack([noise.total_relative_std(name, gradients[name], unit) for name in names])
        size = sizes.norm(dim=0)
        levels.append((own * sizes).norm(dim=0) / torch.where(size > 0, size, 1.0))
    return torch.stack(levels, dim=1)


def residual_excess(
    network: Network, own: Gradients, gradients: Gradients, noise: Noise, unit: Tensor
) -> Tensor:
    """Each layer's residual over what its noise alone allows.

    Rounding is allowed `ACCUMULATED` times, since the client's sums carry several of them; noise
    of a stated size, as the rounding of new weights is, `STATED` times.

    Parameters
    ----------
    network, own, gradients
        As `revealed_noise` takes them.
    noise : Noise
        What is known of the errors of the gradients.
    unit : Tensor
        (N,), what the gradients were divided by.

    Returns
    -------
    Tensor
        (N, layers), from 0 upwards.
    """
    widened = Noise(
        relative=ACCUMULATED * max(noise.relative, ROUNDING),
        relative_std=STATED * noise.relative_std,
        absolute=ACCUMULATED * noise.absolute,
        std={name: STATED * own for name, own in noise.std.items()},
    )
    names = layer_names(network, gradients)
    residuals = torch.stack([distance(own, gradients, layer) for layer in names], dim=1)
    return residuals / (layer_relative_std(network, gradients, widened, unit) + ARITHMETIC)


def revealed_noise(
    network: Network,
    own: Gradients,
    gradients: Gradients,
    levels: Tensor,
    head_residual: Tensor,
    expected_error: Tensor,
) -> Tensor:
    """Noise that the certificate shows beyond what was told.

    Parameters
    ----------
    network : Network
        The layers.
    own, gradients : dict of str to Tensor
        Gradients recomputed from the images, and observed: name → (N, *parameter shape).
    levels : Tensor
        (N, layers), the noise that is known; see `layer_relative_std`.
    head_residual : Tensor
        (N,), of the head's own equations, or of those at the entry.
    expected_error : Tensor
        (N,), of the images.

    Returns
    -------
    Tensor
        (N,), relative: the largest residual of a layer that neither its noise nor the expected
        error explains, 0 where there is none, at most 1.
    """
    names = layer_names(network, gradients)
    residuals = torch.stack([distance(own, gradients, layer) for layer in names], dim=1)
    allowed = ACCUMULATED * levels + ARITHMETIC + FITTED * expected_error[:, None]
    if isinstance(network.head, ConvEntry):  # what contradicts itself does so whatever the image
        least = ACCUMULATED * levels[:, :2].norm(dim=1) + ARITHMETIC
        residuals = torch.cat([residuals, head_residual[:, None]], dim=1)
        allowed = torch.cat([allowed, least[:, None]], dim=1)
    else:
        residuals[:, 0] = residuals[:, 0].maximum(head_residual)
        if not network.head.has_bias:  # the scale follows from these equations alone
            allowed[:, 0] = ACCUMULATED * levels[:, 0] + ARITHMETIC
    beyond = torch.where(residuals > allowed, residuals, 0.0)
    return beyond.amax(dim=1).clamp(max=1.0)
