r"""Errors that are no noise: what several similar images or several steps would do to the image.

The mean gradient of two images that differ by δ is that of their mean up to the second order in δ:
a residual r in the gradients may come with an error of the image of the order of √r, far above
what noise of size r leads to. Several steps of one image leave the same trace, since its features
and cotangents move along with the weights.

At the head this can be computed. With the features :math:`v_i = v + \delta_i` of images of one
class, the logit gradients are :math:`z_i \approx z + S V \delta_i`, where S is the derivative of
the softmax, and the mean gradient is

.. math:: \mathrm{mean}(z_i v_i^\top) = z v^\top + S V \, \mathrm{mean}(\delta_i \delta_i^\top).

So the largest singular value s of what is left beside :math:`z v^\top`, with the singular vectors
u and w, belongs to differences of the size :math:`\sqrt{s / \|S V w\|}` along w, provided that u
is the direction of :math:`S V w`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from rconv.attack.report import Reconstruction
from rconv.attack.verdict import ARITHMETIC, DARK, STATED, image_size
from rconv.linalg.solution import root_mean_square
from rconv.model.heads import Head
from rconv.model.wrappers import tensor_of
from rconv.observe.noise import ARITHMETIC as ROUNDING
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

Turn = Callable[[Tensor], Tensor]

SECOND_ORDER = 3.0
"""Relative error of the image per square root of the undeclared relative residual. Two images of
equal weight, whose cotangents differ as much as they do, have 2; where the cotangents differ by
less, it is more. Measured: 1.6 to 4 in the wide network of tests/attack/test_verdict.py."""

LIKENESS = 1.4
"""A trace of several images, in units of the largest singular value that the known noise has, from
which on it counts as seen. Of 40 single images in half precision the largest had 1.0: an error of
a cotangent is one of a whole row."""

ABOVE = 1.05
"""The same where errors of cotangents and features have been taken out, whatever its direction.
Independent errors have 1, up to a few per cent; two images 4 % apart had 1.25 in float16."""

COARSE = 1e-4
"""Relative noise above which differences that the head's noise could hide count as an error. Below
it the layers further down show differences that the head does not, as where the softmax is
saturated."""

LOW_CONTRAST = 2.0
"""Brightness over contrast, as `verdict.image_size` measures them, above which an image is of low
contrast: photographs mostly have 1, and at most this."""

SCATTERED = 0.9
"""Share of the energy of the head's residual in one direction, up to which it is noise. Similar
images and steps leave all of it there; noise had 0.74 at the most, through that of a cotangent."""

NO_DIRECTION = 0.1
"""Least cosine that is assumed between the residual and S V w: noise has a random one."""


def second_order(revealed: Tensor) -> Tensor:
    """Relative error of the image where an undeclared residual is a systematic one.

    Parameters
    ----------
    revealed : Tensor
        (N,), relative residual that the known noise does not explain.

    Returns
    -------
    Tensor
        (N,), at most 1.
    """
    return (SECOND_ORDER * revealed.sqrt()).clamp(max=1.0)


def relative_to_contrast(
    result: Reconstruction, value_range: tuple[float, float]
) -> Reconstruction:
    """The result, its systematic error measured against the contrast of each image.

    What features and gradients show of a difference is relative to the brightness of the image. An
    image of low contrast and the same one shifted by a pixel differ by a small share of that, and
    by a large one of what there is to see.

    Parameters
    ----------
    result : Reconstruction
        Of N images.
    value_range : tuple of float
        Of the pixels.

    Returns
    -------
    Reconstruction
    """
    ratio = root_mean_square(result.images) / image_size(result.images, value_range)
    # What the residual hides within the noise is small beside the brightness of an image, but not
    # beside its contrast where that is low.
    hidden = torch.where(ratio > LOW_CONTRAST, second_order(result.gradient_residual), 0.0)
    # A black image has no brightness that an error could be relative to.
    error = result.systematic_error.maximum(hidden) * ratio.clamp(min=1.0)
    return replace(result, systematic_error=error.clamp(max=1.0))


def cotangent_turn(
    model: nn.Module, head: Head, images: Tensor, value: Tensor, cotangent: Tensor, labels: Tensor
) -> Turn:
    """How the cotangent of the first Linear depends on its input, for cross-entropy.

    Parameters
    ----------
    model : Module
        The shared model, float64.
    head : Head
        Its first Linear.
    images : Tensor
        (N, C, H, W).
    value, cotangent : Tensor
        Input v (N, n) and cotangent (N, K), the latter up to a factor.
    labels : Tensor
        (N,), int64; -1 where it is not known.

    Returns
    -------
    callable
        Takes (N, n) and returns (N, K), in the unit of `cotangent`.
    """
    linear = model.get_submodule(head.name)
    z, labels = value @ head.weight.mT, labels.clamp(min=0)
    if linear.bias is not None:
        z = z + linear.bias.detach()

    def turn(direction: Tensor) -> Tensor:
        step = direction @ head.weight.mT
        if head.last:
            p = torch.softmax(z, dim=1)
            expected = p.scatter_add(1, labels[:, None], -torch.ones_like(p))
            moved = p * (step - (p * step).sum(dim=1, keepdim=True))
        else:
            expected, moved = _derivatives(model, linear, images, z, step, labels)
        # The observed one is smaller where the client's gradients were clipped or scaled.
        ratio = cotangent.norm(dim=1) / expected.norm(dim=1).clamp(min=1e-300)
        return moved * ratio[:, None]

    return turn


def _derivatives(
    model: nn.Module, linear: nn.Module, images: Tensor, z: Tensor, step: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """First derivative of the loss by a Linear's output z (N, K), and the second times `step`."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(z: Tensor, image: Tensor, label: Tensor) -> Tensor:
        hook = linear.register_forward_hook(lambda module, args, output: z[None])
        logits = tensor_of(functional_call(model, parameters, (image[None],)))[0]
        hook.remove()
        if len(logits) == 1:
            return nn.functional.softplus(logits[0]) - label * logits[0]
        return torch.logsumexp(logits, dim=0) - logits.gather(0, label[None])[0]

    def both(z: Tensor, step: Tensor, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        def along(z: Tensor) -> tuple[Tensor, Tensor]:
            first = grad(loss)(z, image, label)
            return (first * step).sum(), first

        # The second derivative is symmetric.
        moved, first = grad(along, has_aux=True)(z)
        return first, moved

    try:
        return vmap(both)(z, step, images, labels)
    except RuntimeError:  # an operation of the head that PyTorch cannot derive twice
        return torch.ones_like(z), torch.full_like(z, torch.inf)


def black_features(model: nn.Module, head: Head, images: Tensor) -> Tensor:
    """Input (n,) of the first Linear for an image that is zero; `images` are (N, C, H, W)."""
    inputs: list[Tensor] = []
    linear = model.get_submodule(head.name)
    hook = linear.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(torch.zeros_like(images[:1]))
    hook.remove()
    return inputs[0].flatten()


def is_scattered(result: Reconstruction, gradients: Gradients) -> bool:
    """Whether the head's residual of one image has many directions of one size, as noise has.

    Parameters
    ----------
    result : Reconstruction
        Of one image.
    gradients : dict of str to Tensor
        Name → (1, *parameter shape).

    Returns
    -------
    bool
        False where the head has no bias, fewer than three outputs, or is none.
    """
    head = result.layers[0]
    weight, bias = (gradients.get(f"{head.name}.{end}") for end in ("weight", "bias"))
    if head.constraints[0] != "head" or bias is None or len(bias[0]) < 3:
        return False
    g, z, v = weight[0].flatten(1), bias[0].flatten(), head.low[0]
    along_v, along_z = v / v.norm().clamp(min=1e-300), z / z.norm().clamp(min=1e-300)
    rest = g - z[:, None] * v
    # An error of z is one of a whole row, along v: noise of the bias, if that is as noisy as the
    # rest shows; images of different brightness leave more there.
    bare = rest - (rest @ along_v)[:, None] * along_v
    bare = bare - along_z[:, None] * (along_z @ bare)
    energy, free = torch.linalg.svdvals(bare).square(), (len(z) - 1) * (len(v) - 1)
    noise = (energy.sum() / free).sqrt()
    sizes = [own.square().mean().sqrt() for own in (z, g)]
    of_bias = noise * (sizes[0] / sizes[1]).clamp(min=1.0)
    allowed = STATED * len(z) ** 0.5 * torch.hypot(noise, of_bias * v.norm())
    scattered = energy[0] <= SCATTERED * energy.sum()
    return bool(scattered & ((rest @ along_v).norm() <= allowed))


def head_mixture(
    head: Head,
    turn: Turn,
    value: Tensor,
    cotangent: Tensor,
    black: Tensor,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
) -> Tensor:
    """Relative error of the features if the head's residual comes from several similar images.

    Parameters
    ----------
    head : Head
        The first Linear.
    turn : callable
        What differences of the features, (N, n), do to its cotangents, (N, K).
    value, cotangent : Tensor
        Features v (N, n) and cotangents z (N, K), the latter divided by `unit`.
    black : Tensor
        (n,), features of an image that is zero: from there on the size of an image counts.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (N,).

    Returns
    -------
    Tensor
        (N,), at most 1: what the residual shows and, where the noise is above `COARSE`, the
        largest difference that the noise could hide. Float16 hides 3 % in the wide network of
        tests/attack/test_verdict.py.
    """
    name = f"{head.name}.weight"
    gradient = gradients[name].reshape(-1, *head.weight.shape)
    # What a number is rounded by is uniform within half a spacing.
    relative, absolute = (own / 3**0.5 for own in (noise.relative, noise.absolute))
    noise = replace(noise, relative=max(relative, ROUNDING), absolute=absolute)
    deviation = noise.entry_std(name, gradients[name], unit).reshape(gradient.shape)
    rows = deviation.square().mean(dim=2).sqrt()
    rows = rows.maximum(ARITHMETIC * rows.amax(dim=1, keepdim=True)).clamp(min=1e-300)
    rest = (gradient - cotangent[:, :, None] * value[:, None, :]) / rows[:, :, None]
    seen = noise.observed(name, gradients[name])
    if seen is not None:
        rest = rest * seen.reshape(gradient.shape)
    own = _prediction(turn, rest, rows)
    # One error of z is one of a whole row, along v; one of v is one of all rows, along z.
    along_v = value / value.norm(dim=1, keepdim=True).clamp(min=1e-300)
    along_z = cotangent / rows
    along_z = along_z / along_z.norm(dim=1, keepdim=True).clamp(min=1e-300)
    bare = rest - (rest @ along_v[:, :, None]) * along_v[:, None, :]
    bare = bare - along_z[:, :, None] * (along_z[:, None, :] @ bare)
    free = _prediction(turn, bare, rows)
    classes, features = head.weight.shape
    drowned = classes**0.5 + features**0.5
    # A black image has the features of nothing; it is measured as `image_size` measures it.
    length, bright = value.norm(dim=1), (value - black).norm(dim=1)
    size = bright.minimum(length).maximum(DARK * length).clamp(min=1e-300)
    hidden = (ABOVE * drowned * own.per).sqrt() / size
    level = deviation.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1).clamp(min=1e-300)
    # Without a bias, what the layers further down show is not compared with a simulation.
    hidden = torch.where(level > (COARSE if head.has_bias else 0.0), hidden, 0.0)
    found = own.largest * own.cosine > LIKENESS * drowned, free.largest > ABOVE * drowned
    each = zip(found, (own, free), strict=True)
    seen = torch.stack([torch.where(sure, part.difference, 0.0) for sure, part in each])
    return (seen.amax(dim=0) / size).maximum(hidden).clamp(max=1.0)


@dataclass(frozen=True)
class _Prediction:
    """What the leading singular vectors of a residual say of the differences of the images.

    Parameters
    ----------
    largest : Tensor
        (N,), singular value, in units of the rows' noise.
    per : Tensor
        (N,), squared difference of the features per `largest`.
    cosine : Tensor
        (N,), between the residual's left vector and that of similar images, at least
        `NO_DIRECTION`.
    """

    largest: Tensor
    per: Tensor
    cosine: Tensor

    @property
    def difference(self) -> Tensor:
        """(N,), distance of the features from their mean."""
        return (self.largest * self.per * self.cosine).sqrt()


def _prediction(turn: Turn, rest: Tensor, rows: Tensor) -> _Prediction:
    """Of a residual (N, K, n), divided by the noise (N, K) of its rows."""
    largest, left, right = _leading(rest)
    left = rows * left  # no longer of norm 1
    moved = turn(right)
    sizes = left.norm(dim=1) * moved.norm(dim=1)
    cosine = (left * moved).sum(dim=1) / sizes.clamp(min=1e-300)
    per = left.norm(dim=1) / moved.norm(dim=1).clamp(min=1e-300)
    return _Prediction(largest, per, cosine.clamp(min=NO_DIRECTION))


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular value (N,) of (N, K, n) and its vectors, (N, K) and (N, n)."""
    _, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    left = vectors[:, :, -1]
    right = (left[:, None, :] @ matrix)[:, 0]
    largest = right.norm(dim=1)
    return largest, left, right / largest.clamp(min=1e-300)[:, None]
