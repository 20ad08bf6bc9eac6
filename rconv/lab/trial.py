"""Does THIS model leak? Its own weights, images, the attack, and the truth as the judge.

`rconv.audit` asks what the shapes can tell at best. Here the attack is made: which share of the
images comes back as the only one possible, and how well the prior shows the others.
"""

import math

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.lab.experiment import DTYPES
from rconv.lab.hunt import judge
from rconv.lab.metrics import flat, matched, psnr
from rconv.lab.outcome import Trial
from rconv.lab.photographs import photographs
from rconv.lab.scenarios import Scenario, client_model, sent
from rconv.observe.check import check_value_range
from rconv.observe.observation import Loss


def trial(
    model: nn.Sequential,
    input_shape: tuple[int, int, int],
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    count: int = 4,
    value_range: tuple[float, float] = (0.0, 1.0),
    dtype: str | None = None,
    loss: Loss | None = None,
    scenario: Scenario | None = None,
    progress: bool = False,
) -> Trial:
    """Attack images through a model, as it is, and compare with the truth.

    Parameters
    ----------
    model : Sequential
        As `Attack` takes it, with the weights that are asked about. A trained model is asked with
        images and labels of its own kind: what it has learnt makes its gradients small.
    input_shape : tuple of int
        (C, H, W) of one image.
    images : Tensor, optional
        (N, C, H, W), values in `value_range`; by default `photographs`.
    labels : Tensor, optional
        (N,), classes; needed with `images`. Photographs have classes 0, 1, 2, and so on.
    count : int
        How many photographs, where no images are given.
    value_range : tuple of float
        Of the pixels, which the attacker knows.
    dtype : str, optional
        In which the clients compute, a key of `rconv.lab.experiment.DTYPES`; float16 rounds
        float32 gradients. By default the model's own.
    loss : Callable, optional
        The clients' loss, of which the attacker is not told. By default cross-entropy, or the
        logistic loss for one logit, of which it is.
    scenario : Scenario, optional
        How the gradients come about, in place of `dtype`; by default one step on each image, in
        the model's own mode.
    progress : bool
        Show a progress bar over the images.

    Returns
    -------
    Trial
        Of N images.

    Raises
    ------
    UnsupportedModelError
        A layer that the attack cannot pass.
    ValueError
        Images that do not fit the shape or the range, no labels for them, an unknown dtype, or no
        such number of photographs.
    """
    low, high = check_value_range(value_range)
    scenario = scenario or Scenario(dtype=dtype, mode=None)
    if scenario.dtype not in (None, *DTYPES):
        names = ", ".join(DTYPES)
        raise ValueError(f"unknown dtype {scenario.dtype!r}: use one of {names}")
    client = client_model(model, scenario)
    stated = "cross-entropy" if loss is None else None
    attack = Attack(client, input_shape, value_range=(low, high), loss=stated)
    source = "given images"
    if images is None:
        images, source = photographs(attack.network.input_shape, count)
        images = low + (high - low) * images
        labels = torch.arange(count) % _classes(client, images)
        source = f"{source}, labels 0 to {int(labels.max())}"
    truth = _checked(images, labels, attack.network.input_shape, (low, high))
    gradients, noise = sent(client, truth, labels, scenario, loss)
    found = attack(gradients, batch=scenario.together, noise=noise, progress=progress)
    if scenario.together > 1:
        found = found.select(matched(found.images.cpu(), truth).tolist())
    received = str(next(iter(gradients.values())).dtype).removeprefix("torch.")
    return _judged(source, received, truth.to(found.images.device), found, (low, high))


def _judged(
    source: str, dtype: str, truth: Tensor, found: Reconstruction, value_range: tuple[float, float]
) -> Trial:
    """The answer, cut to the range of the pixels, which the attacker knows, beside the truth."""
    peak = value_range[1] - value_range[0]
    reached = psnr(found.images.clamp(*value_range), truth, data_range=peak)
    return Trial(
        source,
        dtype,
        truth,
        found,
        reached.nan_to_num(-math.inf, math.inf, -math.inf),
        psnr(flat(truth), truth, data_range=peak),
        torch.tensor([r["false"] for r in judge(found, truth, {}, data_range=peak)]),
    )


def _classes(model: nn.Sequential, images: Tensor) -> int:
    """Classes of the model: its logits, or 2 where there is one."""
    with torch.no_grad():
        logits = model(images[:1].to(next(model.parameters())))
    return max(2, logits.shape[1])


def _checked(
    images: Tensor,
    labels: Tensor | None,
    input_shape: tuple[int, int, int],
    value_range: tuple[float, float],
) -> Tensor:
    """The images in float64; ValueError where they are not what they are said to be."""
    if labels is None:
        raise ValueError("the images have no labels: give the class of each")
    shape = tuple(getattr(images, "shape", ()))
    if not torch.is_tensor(images) or 0 in shape or shape[1:] != tuple(input_shape):
        raise ValueError(f"the images must be a tensor (N, *{input_shape}), not of shape {shape}")
    low, high = float(images.min()), float(images.max())
    if not value_range[0] <= low <= high <= value_range[1]:
        raise ValueError(
            f"the images reach from {low:.3g} to {high:.3g}, and the value range is "
            f"{value_range}: state that of the images, which the attack relies on"
        )
    return images.detach().double()
